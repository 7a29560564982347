//! Leaves, both ends: our user leaves, rejects an invite or withdraws a knock (`leave`), and another server's user does
//! (`receive_leave`).

use serde_json::{Map, Value};

use super::{Answers, Ask, Door, check_still_outside, member_draft};
use crate::error::{ErrCode, Error, Result};
use crate::federation::calls::Kind;
use crate::federation::client::{CallError, CallResult};
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{Fact, State, next};
use crate::protocol::{EventId, Pdu, RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::store::remote_memberships::RemoteMembership;
use crate::store::{Db, Room};

// ----- our user leaves -----

impl Homeserver {
    /// `POST /leave`: leaves, rejects an invite or withdraws a knock. In a room that we are not in this is done at once
    /// for our user; the room's servers are told in the background, for days if need be.
    /// Errors: 403 `M_FORBIDDEN` (not in the room, banned), the same whether or not there is such a room.
    pub fn leave(&self, user: &UserId, room_id: &RoomId, reason: Option<&str>) -> Result<()> {
        if let Some(room) = self.resident_room(room_id)? {
            return self.leave_here(&room, user, reason);
        }
        let Some(row) = self.store.read(|db| remote_row(db, room_id, user))? else {
            return match self.past_membership(room_id, user)? {
                Some(Membership::Leave) => Ok(()),
                Some(_) => Err(Error::forbidden("You are banned from this room")),
                None => Err(Error::forbidden("You are not in this room")),
            };
        };
        if matches!(row.state, State::Leaving | State::Closed) {
            return Ok(());
        }
        let leave = self.local_leave(&row, reason)?;
        let now = self.clock.now_ms();
        let (room_id, user) = (room_id.clone(), user.clone());
        self.store.write(move |tx| {
            let Some(mut row) = remote_row(tx, &room_id, &user)? else { return Ok(()) };
            let Some(state) = next(Some(row.state), Fact::UserLeaves)?.to else {
                return tx.delete_remote_membership(&room_id, &user);
            };
            if row.state == state {
                return Ok(());
            }
            row.state = state;
            row.tell(leave);
            (row.attempts, row.due_ms) = (0, Some(now));
            tx.save_remote_membership(&row)
        })?;
        self.scheduler.wake();
        Ok(())
    }

    /// In a room that we are in a leave is an ordinary event.
    pub(super) fn leave_here(&self, room: &Room, user: &UserId, reason: Option<&str>) -> Result<()> {
        match self.store.read(|db| db.membership(room.key, user))? {
            Some(Membership::Leave) => Ok(()),
            Some(Membership::Ban) => Err(Error::forbidden("You are banned from this room")),
            None => Err(Error::forbidden("You are not in this room")),
            Some(Membership::Join | Membership::Invite | Membership::Knock) => {
                let content = self.member_content(user, Membership::Leave, reason)?;
                self.send(member_draft(&room.room_id, user, user, content)).map(drop)
            }
        }
    }

    fn past_membership(&self, room_id: &RoomId, user: &UserId) -> Result<Option<Membership>> {
        self.store.read(|db| match db.room(room_id)? {
            Some(room) => db.membership(room.key, user),
            None => Ok(None),
        })
    }

    /// The leave that our user's clients are told at once. No server gets it: the event that the room gets is made
    /// from a server's template once one answers.
    pub(super) fn local_leave(&self, row: &RemoteMembership, reason: Option<&str>) -> Result<Pdu> {
        let template = Map::from_iter([
            ("type".to_owned(), Value::from("m.room.member")),
            ("room_id".to_owned(), row.room_id.as_str().into()),
            ("sender".to_owned(), row.user_id.as_str().into()),
            ("state_key".to_owned(), row.user_id.as_str().into()),
            ("prev_events".to_owned(), Value::Array(Vec::new())),
            ("auth_events".to_owned(), Value::Array(Vec::new())),
            (
                "depth".to_owned(),
                row.event.as_ref().map_or(1, |event| event.depth().saturating_add(1)).into(),
            ),
        ]);
        let content = self.member_content(&row.user_id, Membership::Leave, reason)?;
        self.sign_template(&template, row.room_version, &content)
    }

    /// What the scheduler does with a row that is `leaving`: tells a server of the room, or the room itself if we have
    /// come into it since.
    pub(super) fn deliver_leave(&self, row: &RemoteMembership) -> Result<()> {
        if let Some(room) = self.resident_room(&row.room_id)? {
            return self.leave_after_all(&room, row);
        }
        let door = Door { room_id: row.room_id.clone(), via: Vec::new() };
        let mut answers = Answers::new(self.clock.instant());
        for peer in self.candidates(&door, Some(row))? {
            match self.leave_through(&peer, row) {
                Ok(()) => return self.leave_done(row),
                Err(error) => answers.add(&peer, error),
            }
        }
        if answers.undecided() {
            return self.try_again_later(row);
        }
        // Every server says no: the room has us as no member, and there is nothing to leave.
        log::info!("nothing to leave in {} for {}: {}", row.room_id, row.user_id, answers.into_error());
        self.leave_done(row)
    }

    fn leave_through(&self, peer: &ServerName, row: &RemoteMembership) -> CallResult<()> {
        let (template, version) = self.ask_template(peer, Kind::Leave, &row.room_id, &row.user_id)?;
        let reason = row.event.as_ref().and_then(|told| told.content_str("reason"));
        let content = self.member_content(&row.user_id, Membership::Leave, reason.as_deref());
        let leave = content.and_then(|content| self.sign_template(&template, version, &content));
        let leave = leave.map_err(|e| CallError::bad(e.message().to_owned()))?;
        self.federation.send_leave(peer, &row.room_id, leave.event_id(), leave.json())
    }

    fn leave_done(&self, row: &RemoteMembership) -> Result<()> {
        let (room_id, user) = (row.room_id.clone(), row.user_id.clone());
        let told = row.event.as_ref().map(|event| event.event_id().clone());
        let now = self.clock.now_ms();
        self.store.write(move |tx| {
            let Some(mut row) = tx.remote_membership(&room_id, &user)? else { return Ok(()) };
            let is_same = row.event.as_ref().map(Pdu::event_id) == told.as_ref();
            if !is_same || row.state != State::Leaving {
                return Ok(());
            }
            if check_still_outside(tx, &room_id).is_err() {
                return tx.delete_remote_membership(&room_id, &user);
            }
            row.state = next(Some(row.state), Fact::LeaveDone)?.to.unwrap_or(State::Closed);
            row.settle(now);
            tx.save_remote_membership_quietly(&row)
        })
    }

    /// Another of us entered the room before its servers knew of this leave: now we can say it ourselves.
    fn leave_after_all(&self, room: &Room, row: &RemoteMembership) -> Result<()> {
        let reason = row.event.as_ref().and_then(|told| told.content_str("reason"));
        let (room_id, user) = (row.room_id.clone(), row.user_id.clone());
        let present = self.store.read(|db| db.membership(room.key, &user))?;
        if let Some(Membership::Join | Membership::Invite | Membership::Knock) = present {
            self.leave_here(room, &user, reason.as_deref())?;
        }
        self.store.write(move |tx| tx.delete_remote_membership(&room_id, &user))
    }

    /// `POST /forget`. Errors: 400 `M_UNKNOWN` while the user is in the room, invited or knocking; 404 `M_NOT_FOUND`.
    pub fn forget(&self, user: &UserId, room_id: &RoomId) -> Result<()> {
        let (room_id, user) = (room_id.clone(), user.clone());
        self.store.write(move |tx| {
            let not_left = || Error::new(ErrCode::Unknown, "Leave the room first").with_status(400);
            // A room that the user never had to do with is answered as one that there is not.
            let unknown = || Error::not_found("You know no such room");
            let room = tx.room(&room_id)?;
            let mut is_known = true;
            if let Some(mut row) = tx.remote_membership(&room_id, &user)? {
                if !matches!(row.state, State::Leaving | State::Closed) {
                    return Err(not_left());
                }
                row.forgotten = true;
                tx.save_remote_membership_quietly(&row)?;
            } else if room.is_none() {
                return Err(unknown());
            } else {
                is_known = false;
            }
            let Some(room) = room else { return Ok(()) };
            match tx.membership(room.key, &user)? {
                Some(Membership::Leave | Membership::Ban) => tx.set_forgotten(room.key, &user, true),
                Some(_) if room.resident => Err(not_left()),
                None if !is_known => Err(unknown()),
                _ => Ok(()),
            }
        })
    }
}

/// The user's remote membership, also where only the room's last state that we know speaks of it: they were invited
/// (or knocked) while another of us was in the room, and that other one has left since.
pub(super) fn remote_row(db: &Db<'_>, room_id: &RoomId, user: &UserId) -> Result<Option<RemoteMembership>> {
    if let Some(row) = db.remote_membership(room_id, user)? {
        return Ok(Some(row));
    }
    let Some(room) = db.room(room_id)?.filter(|room| !room.resident) else { return Ok(None) };
    let state = match db.membership(room.key, user)? {
        Some(Membership::Invite) => State::Invited,
        Some(Membership::Knock) => State::Knocked,
        _ => return Ok(None),
    };
    let mut row = RemoteMembership::new(room_id, user, state, room.version);
    row.event = db.state_event(room.key, "m.room.member", user.as_str())?;
    row.prefer(db.resident_servers(room.key)?);
    Ok(Some(row))
}

// ----- another server's user leaves -----

impl Homeserver {
    /// `PUT /send_leave`: takes the leave into the room and tells the other servers in it. Repeats change nothing.
    pub fn receive_leave(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        body: &[u8],
    ) -> Result<()> {
        let ask = Ask { origin, room_id, membership: Membership::Leave, user: None, versions: None };
        let room = self.admit(&ask)?;
        let leave = self.check_signed(body, room.version, &ask, event_id)?;
        let leave = self.with_policy_signature(leave)?;
        self.accept_signed(leave, origin, Membership::Leave).map(drop)
    }
}
