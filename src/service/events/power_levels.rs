//! What a room's power levels, as they are now, let its members do.

use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::event_auth::{PowerLevel, PowerLevels};
use crate::store::{Db, Room};

/// The power levels in force in a room.
pub(in crate::service) fn power_levels(db: &Db<'_>, room: &Room) -> Result<PowerLevels> {
    // The lookup cannot fail half way, so what it needs is read before.
    let create = db.state_event(room.key, "m.room.create", "")?;
    let levels = db.state_event(room.key, "m.room.power_levels", "")?;
    Ok(PowerLevels::of(room.version, &|event_type, _| match event_type {
        "m.room.create" => create.clone(),
        "m.room.power_levels" => levels.clone(),
        _ => None,
    }))
}

/// Whether a user may send a state event of this type, by the power levels alone.
pub(in crate::service) fn may_send_state(
    db: &Db<'_>,
    room: &Room,
    user: &UserId,
    event_type: &str,
) -> Result<bool> {
    let levels = power_levels(db, room)?;
    let level: PowerLevel = levels.user(user.as_str());
    Ok(level.reaches(levels.required(event_type, true)))
}

/// The local member who has most power in a room, among those who may do something.
pub(in crate::service) fn mightiest_local_member(
    db: &Db<'_>,
    room: &Room,
    may: impl Fn(&PowerLevels, &UserId) -> Result<bool>,
) -> Result<Option<UserId>> {
    let levels = power_levels(db, room)?;
    let mut mightiest = None;
    for member in db.joined_local_users(room.key)? {
        let level = levels.user(member.as_str());
        // Of equals the first: what is asked twice is done by the same.
        if mightiest.as_ref().is_none_or(|(most, _)| level > *most) && may(&levels, &member)? {
            mightiest = Some((level, member));
        }
    }
    Ok(mightiest.map(|(_, member)| member))
}
