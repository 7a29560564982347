//! Restricted rooms ("Restricted rooms" of the client-server API): in whose name this server lets somebody in.

use crate::error::{ErrCode, Error, Result};
use crate::protocol::event_auth::{JoinRules, PowerLevels};
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::membership::Memberships;
use crate::store::{Db, Room};

/// The key of a restricted join's content that names the user in whose name the room lets somebody in.
pub(crate) const AUTHORISER: &str = "join_authorised_via_users_server";

impl Memberships<'_> {
    /// For a join of a restricted room by somebody who is neither invited nor in it: the local user in whose name we
    /// let them in. None if the join needs no such name. Errors: 403 `M_FORBIDDEN` if the user fulfils no condition,
    /// 400 `M_UNABLE_TO_AUTHORISE_JOIN` if we cannot know, 400 `M_UNABLE_TO_GRANT_JOIN` if no local user may invite.
    pub(super) fn authoriser(&self, room: &Room, user: &UserId) -> Result<Option<UserId>> {
        self.store.read(|db| authoriser(db, room, user))
    }
}

/// [`Memberships::authoriser`] within a look at the room.
pub(super) fn authoriser(db: &Db<'_>, room: &Room, user: &UserId) -> Result<Option<UserId>> {
    let state = |event_type: &str, key: &str| db.state_event(room.key, event_type, key).ok().flatten();
    let rules = JoinRules::of(room.version, &state);
    if !rules.rule.is_restricted(room.version) {
        return Ok(None);
    }
    match db.membership(room.key, user)? {
        Some(Membership::Invite | Membership::Join) => return Ok(None),
        Some(Membership::Ban) => return Err(Error::forbidden("You are banned from this room")),
        Some(Membership::Knock | Membership::Leave) | None => {}
    }
    check_conditions(db, &rules.allowed_rooms, user)?;
    let levels = PowerLevels::of(room.version, &state);
    let mut ours = db.joined_local_users(room.key)?;
    ours.retain(|one| levels.may_invite(one.as_str()));
    let highest = ours.into_iter().max_by_key(|one| levels.user(one.as_str()));
    highest.map(Some).ok_or_else(|| {
        Error::new(ErrCode::UnableToGrantJoin, "Nobody on this server may let you in; try another server")
    })
}

/// Whether the user is in one of the rooms whose members a restricted room lets in ("Restricted rooms").
fn check_conditions(db: &Db<'_>, allowed: &[RoomId], user: &UserId) -> Result<()> {
    let mut all_known = true;
    for room_id in allowed {
        match db.resident_room(room_id)? {
            Some(room) if db.membership(room.key, user)? == Some(Membership::Join) => return Ok(()),
            Some(_) => {}
            None => all_known = false,
        }
    }
    // A local user there would make this server resident, so what we do not know of local users is not so.
    if all_known || db.is_local(user.as_str()) {
        return Err(Error::forbidden("You are in none of the rooms whose members may join this room"));
    }
    Err(Error::new(
        ErrCode::UnableToAuthoriseJoin,
        "This server is not in the rooms whose members may join this room",
    ))
}
