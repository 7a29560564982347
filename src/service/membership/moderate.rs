//! What members do to others' memberships: kick, ban, unban; and the general door for a member event that a client
//! writes by hand (`PUT /state/m.room.member`). A kick or ban is also how a knock is refused and an invite taken back:
//! the event is owed to the target's server even if that server is not in the room.

use serde_json::{Map, Value};

use super::{AUTHORISER, member_draft};
use crate::error::{ErrCode, Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, RoomId, UserId};
use crate::service::Homeserver;
use crate::store::Room;

impl Homeserver {
    /// `POST /kick`: the target may be joined, invited or knocking. Errors: 403 `M_FORBIDDEN`, also if the target is
    /// none of these; 403 `M_BAD_STATE` if they are banned.
    pub fn kick(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<&str>,
    ) -> Result<()> {
        let (room, present) = self.room_and_target(room_id, target)?;
        match present {
            Some(Membership::Ban) => {
                Err(bad_state("A banned user cannot be kicked; to lift the ban there is unban"))
            }
            None | Some(Membership::Leave) => Err(Error::forbidden(format!("{target} is not in the room"))),
            _ => self.change(&room, sender, target, Membership::Leave, reason),
        }
    }

    /// `POST /ban`: anybody may be banned, also before they ever came. Banning again changes nothing.
    pub fn ban(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<&str>,
    ) -> Result<()> {
        let (room, present) = self.room_and_target(room_id, target)?;
        if present == Some(Membership::Ban)
            && self.store.read(|db| db.membership(room.key, sender))? == Some(Membership::Join)
        {
            return Ok(());
        }
        self.change(&room, sender, target, Membership::Ban, reason)
    }

    /// `POST /unban`. Errors: 403 `M_FORBIDDEN`, 403 `M_BAD_STATE` if the target is not banned.
    pub fn unban(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<&str>,
    ) -> Result<()> {
        let (room, present) = self.room_and_target(room_id, target)?;
        if present != Some(Membership::Ban) {
            return Err(bad_state("That user is not banned"));
        }
        self.change(&room, sender, target, Membership::Leave, reason)
    }

    fn room_and_target(&self, room_id: &RoomId, target: &UserId) -> Result<(Room, Option<Membership>)> {
        self.store.read(|db| {
            let room = db.room(room_id)?.filter(|room| room.resident);
            let room = room.ok_or_else(|| Error::forbidden("You are not in this room"))?;
            let present = db.membership(room.key, target)?;
            Ok((room, present))
        })
    }

    fn change(
        &self,
        room: &Room,
        sender: &UserId,
        target: &UserId,
        membership: Membership,
        reason: Option<&str>,
    ) -> Result<()> {
        let mut content = super::knock::bare(membership);
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        self.send(member_draft(&room.room_id, sender, target, content)).map(drop)
    }

    /// A member event with content of the client's making. Invites go the way of invites (the invitee's server is
    /// asked, blocked invites are refused), joins of restricted rooms get the user that authorises them; everything
    /// else is judged by the room alone. Errors: 400 `M_BAD_JSON`, 403 `M_FORBIDDEN`, `M_INVITE_BLOCKED` …
    pub fn set_member_event(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        mut content: Map<String, Value>,
    ) -> Result<EventId> {
        let membership = content.get("membership").and_then(Value::as_str).and_then(Membership::parse);
        let membership = membership.ok_or_else(|| Error::bad_json("A member event needs a membership"))?;
        let room =
            self.resident_room(room_id)?.ok_or_else(|| Error::forbidden("You are not in this room"))?;
        // Only the server that lets somebody in may say in whose name.
        content.remove(AUTHORISER);
        match membership {
            Membership::Invite => {
                let _turn = self.turns.take(room_id, target)?;
                self.invite_with(&room, sender, target, content)
            }
            Membership::Join if sender == target => {
                if let Some(authoriser) = self.authoriser(&room, target)? {
                    content.insert(AUTHORISER.to_owned(), authoriser.as_str().into());
                }
                self.send(member_draft(room_id, sender, target, content))
            }
            _ => self.send(member_draft(room_id, sender, target, content)),
        }
    }

    /// `GET /joined_rooms`.
    pub fn joined_rooms(&self, user: &UserId) -> Result<Vec<RoomId>> {
        let rooms = self.store.read(|db| db.rooms_of(user))?;
        Ok(rooms.into_iter().filter(|r| r.membership == Membership::Join).map(|r| r.room_id).collect())
    }
}

fn bad_state(why: &'static str) -> Error {
    Error::new(ErrCode::BadState, why).with_status(403)
}
