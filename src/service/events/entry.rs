//! Who comes into no room of ours, whatever its rules say: whose account was closed, and whose server the room's server ACL keeps
//! out; and into a room that the operator has shut, nobody. Nor is anybody put out of a room by an invite. Asked by the
//! transaction in which somebody comes in: what was begun before may end after that.

use serde_json::Value;

use super::draft::Draft;
use crate::error::{Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::{Pdu, UserId};
use crate::service::events::server_acl::RoomAcl;
use crate::store::{Db, Room};

/// Whose account was closed comes into no room any more, and nobody into a room that is shut: what they, or somebody else for them,
/// had begun before may end after that. Errors: 403 `M_FORBIDDEN`.
pub(super) fn check_entry(db: &Db<'_>, room: &Room, draft: &Draft) -> Result<()> {
    let membership = draft.content.get("membership").and_then(Value::as_str);
    let enters = matches!(membership, Some("join" | "invite" | "knock"));
    let Some(member) = draft.state_key.as_ref().filter(|_| enters && draft.event_type == "m.room.member")
    else {
        return Ok(());
    };
    if db.is_local(member) {
        check_not_closed(db, member)?;
    }
    check_not_shut(db, room, member)
}

/// Of what the room's rules allow: whoever they do not let speak learns nothing of who is in the room. Errors: 403
/// `M_FORBIDDEN` for an invite of somebody who is in.
pub(super) fn check_puts_nobody_out(db: &Db<'_>, room: &Room, draft: &Draft) -> Result<()> {
    let is_invite = draft.event_type == "m.room.member"
        && draft.content.get("membership").and_then(Value::as_str) == Some("invite");
    draft.state_key.as_ref().filter(|_| is_invite).map_or(Ok(()), |member| check_not_in(db, room, member))
}

/// An event that was handed in, and let in when the handshake began: whether it still is. Errors: 403 `M_FORBIDDEN`.
pub(super) fn check_handed_in(db: &Db<'_>, room: &Room, event: &Pdu) -> Result<()> {
    if !db.is_local(event.sender().as_str()) {
        RoomAcl::of(db, room)?.check(&event.sender().server())?;
    }
    let enters =
        matches!(event.membership(), Some(Membership::Join | Membership::Invite | Membership::Knock));
    let Some(member) = event.state_key().filter(|_| enters && event.event_type() == "m.room.member") else {
        return Ok(());
    };
    if event.membership() == Some(Membership::Invite) {
        check_not_in(db, room, member)?;
    }
    check_not_shut(db, room, member)
}

/// The rules let a third-party invite pass also for who is in the room, and it would put them out of it. Errors: 403 `M_FORBIDDEN`.
fn check_not_in(db: &Db<'_>, room: &Room, member: &str) -> Result<()> {
    if is_in(db, room, member)? {
        return Err(Error::forbidden(format!("{member} is already in the room")));
    }
    Ok(())
}

fn is_in(db: &Db<'_>, room: &Room, member: &str) -> Result<bool> {
    match UserId::parse(member) {
        Ok(user) => Ok(db.membership(room.key, &user)? == Some(Membership::Join)),
        Err(_) => Ok(false),
    }
}

/// Errors: 403 `M_FORBIDDEN` if nobody is to come into the room, and this user is not there yet.
pub(in crate::service) fn check_not_shut(db: &Db<'_>, room: &Room, member: &str) -> Result<()> {
    if !db.is_room_shut(&room.room_id)? || is_in(db, room, member)? {
        return Ok(());
    }
    Err(Error::forbidden("This room has been blocked on this server"))
}

/// Errors: 403 `M_FORBIDDEN` for a user of ours whose account was closed.
pub(in crate::service) fn check_not_closed(db: &Db<'_>, user: &str) -> Result<()> {
    match db.is_closed_user(user)? {
        true => Err(Error::forbidden("There is no such account any more")),
        false => Ok(()),
    }
}
