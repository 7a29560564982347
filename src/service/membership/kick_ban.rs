//! What members do to others' memberships: kick, ban, unban. A kick or ban is also how a knock is refused and an invite
//! taken back: the event is owed to the target's server even if that server is not in the room.

use super::template::member_draft;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::{Pdu, RoomId, UserId};
use crate::service::membership::Memberships;
use crate::store::{Db, Room};

/// Whether somebody's membership may be changed in this way from what it is.
type MayChange = fn(Option<Membership>) -> Result<()>;

impl Memberships<'_> {
    /// `POST /kick`: the target may be joined, invited, knocking, or about to be invited. Errors: 403 `M_FORBIDDEN`,
    /// also if the target is none of these; 403 `M_BAD_STATE` if they are banned.
    pub fn kick(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<&str>,
    ) -> Result<()> {
        let (room, present) = self.room_and_target(sender, room_id, target)?;
        match present {
            Some(Membership::Ban) => may_kick(present),
            None | Some(Membership::Leave) => self.kick_not_joined(&room, sender, target, reason),
            _ => self.change(&room, sender, target, (Membership::Leave, may_kick), reason),
        }
    }

    /// Who is not in the room may be about to be invited: that is taken back, at whatever stage it is.
    fn kick_not_joined(
        &self,
        room: &Room,
        sender: &UserId,
        target: &UserId,
        reason: Option<&str>,
    ) -> Result<()> {
        let not_there = || Error::forbidden(format!("{target} is not in the room"));
        let about_to_be = |db: &Db<'_>| {
            Ok(db.owed_invite(&room.room_id, target)?.is_some() || db.is_offered_invite(room.key, target)?)
        };
        if !self.store.read(about_to_be)? {
            return Err(not_there());
        }
        let _guard = self.handshake_locks.take(&room.room_id, target)?;
        match self.store.read(|db| db.membership(room.key, target))? {
            Some(Membership::Invite | Membership::Join | Membership::Knock) => {
                self.change(room, sender, target, (Membership::Leave, may_kick), reason)
            }
            _ => {
                let is_rescinded = self.rescind_owed_invite(room, sender, target)?;
                // Their server may show one that the room never had, and hears of it only by an event of the room.
                if self.store.read(|db| db.is_offered_invite(room.key, target))? {
                    let kicked = self.change(room, sender, target, (Membership::Leave, may_kick), reason);
                    return kicked.or_else(|e| if is_rescinded { Ok(()) } else { Err(e) });
                }
                if is_rescinded { Ok(()) } else { Err(not_there()) }
            }
        }
    }

    /// Sends somebody away who knocked and waits. Errors: 404 `M_NOT_FOUND` if they do not wait any more, 403
    /// `M_FORBIDDEN`.
    pub(in crate::service) fn refuse_knock(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<&str>,
    ) -> Result<()> {
        let (room, present) = self.room_and_target(sender, room_id, target)?;
        may_refuse(present)?;
        self.change(&room, sender, target, (Membership::Leave, may_refuse), reason)
    }

    /// `POST /ban`: anybody may be banned, also before they ever came. Banning again changes nothing.
    pub fn ban(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<&str>,
    ) -> Result<()> {
        let (room, present) = self.room_and_target(sender, room_id, target)?;
        if present == Some(Membership::Ban) {
            return Ok(());
        }
        self.change(&room, sender, target, (Membership::Ban, |_| Ok(())), reason)
    }

    /// `POST /unban`. Errors: 403 `M_FORBIDDEN`, 403 `M_BAD_STATE` if the target is not banned.
    pub fn unban(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<&str>,
    ) -> Result<()> {
        let (room, present) = self.room_and_target(sender, room_id, target)?;
        may_unban(present)?;
        self.change(&room, sender, target, (Membership::Leave, may_unban), reason)
    }

    /// The room and what the target is in it. Errors: 403 `M_FORBIDDEN` unless the sender is joined: who is not in the
    /// room is not told, not even by another error, who is or is banned.
    fn room_and_target(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
    ) -> Result<(Room, Option<Membership>)> {
        self.store.read(|db| {
            let room = db.resident_room(room_id)?.ok_or_else(Error::not_in_room)?;
            if db.membership(room.key, sender)? != Some(Membership::Join) {
                return Err(Error::not_in_room());
            }
            let present = db.membership_in_state(room.key, target)?;
            Ok((room, present))
        })
    }

    /// Writes the change, if `may` allows it of what the target is by then: a ban may have come in between, and the
    /// authorisation rules take a kick for lifting it.
    fn change(
        &self,
        room: &Room,
        sender: &UserId,
        target: &UserId,
        (membership, may): (Membership, MayChange),
        reason: Option<&str>,
    ) -> Result<()> {
        let mut content = membership.content();
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        let draft = member_draft(&room.room_id, sender, target, content);
        let changed = target.clone();
        self.events()
            .send_with(draft, move |tx, sent| may(membership_before(tx, &sent.pdu, &changed)?))
            .map(drop)
    }

    /// `GET /joined_rooms`.
    pub fn joined_rooms(&self, user: &UserId) -> Result<Vec<RoomId>> {
        let rooms = self.store.read(|db| db.rooms_of(user))?;
        Ok(rooms.into_iter().filter(|r| r.membership == Membership::Join).map(|r| r.room_id).collect())
    }
}

/// What the target was before this member event, which by "auth events selection" names the one that it replaces.
fn membership_before(db: &Db<'_>, event: &Pdu, target: &UserId) -> Result<Option<Membership>> {
    for id in event.auth_events() {
        if let Some(named) = db.event(id)?.filter(|named| named.pdu.is("m.room.member", target.as_str())) {
            return Ok(named.pdu.membership());
        }
    }
    Ok(None)
}

fn may_kick(present: Option<Membership>) -> Result<()> {
    match present {
        Some(Membership::Ban) => {
            Err(bad_state("A banned user cannot be kicked; to lift the ban there is unban"))
        }
        _ => Ok(()),
    }
}

/// Of a knock that was withdrawn, or answered by somebody else, nothing is left to refuse.
fn may_refuse(present: Option<Membership>) -> Result<()> {
    match present {
        Some(Membership::Knock) => Ok(()),
        _ => Err(Error::not_found("That user does not wait before the room")),
    }
}

fn may_unban(present: Option<Membership>) -> Result<()> {
    match present {
        Some(Membership::Ban) => Ok(()),
        _ => Err(bad_state("That user is not banned")),
    }
}

fn bad_state(why: &'static str) -> Error {
    Error::new(ErrCode::BadState, why).with_status(403)
}
