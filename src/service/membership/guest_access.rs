//! Which rooms guests may come into ("Guest Access").

use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::store::{Db, RoomKey};

/// Whether a user may be in this room: "Servers MUST only allow guest users to join rooms if the `m.room.guest_access`
/// state event is present on the room, and has the `guest_access` value `can_join`." Errors: 403 `M_GUEST_ACCESS_FORBIDDEN`
/// for a guest who may not, also where this server is not in the room and so cannot know.
pub(super) fn check_guest(db: &Db<'_>, user: &UserId, room: Option<RoomKey>) -> Result<()> {
    if !db.is_guest(user)? {
        return Ok(());
    }
    let refused = || Error::new(ErrCode::GuestAccessForbidden, "Guests cannot join this room");
    let access = db.state_event(room.ok_or_else(refused)?, "m.room.guest_access", "")?;
    match access.and_then(|access| access.content_str("guest_access")).as_deref() {
        Some("can_join") => Ok(()),
        _ => Err(refused()),
    }
}
