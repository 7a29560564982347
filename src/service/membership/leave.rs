//! Leaves, both ends: our user leaves, rejects an invite or withdraws a knock (`leave`), and another server's user does
//! (`receive_leave`).

use std::time::Duration;

use serde_json::{Map, Value};

use super::standing::Expected;
use super::{Answers, Ask, Door, check_still_outside, member_draft};
use crate::error::{ErrCode, Error, Result};
use crate::federation::calls::Kind;
use crate::federation::client::{CallError, CallResult};
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{Fact, State, next};
use crate::protocol::{EventId, Pdu, RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::room_view::not_in_room;
use crate::store::remote_memberships::RemoteMembership;
use crate::store::{Db, Room};

/// How long a leave may take to reach the room before our user is told that they have left.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// How often a leave behind a join that may have been taken is tried although every server says that there is nothing to
/// leave: for about half an hour.
const ATTEMPTS_BEHIND_A_JOIN: u32 = 5;

// ----- our user leaves -----

impl Homeserver {
    /// `POST /leave`: leaves, rejects an invite or withdraws a knock. In a room that we are not in this is done at once
    /// for our user; the room's servers are told in the background, for days if need be. The answer waits a moment for that.
    /// Errors: 403 `M_FORBIDDEN` (not in the room, banned), the same whether or not there is such a room.
    pub fn leave(&self, user: &UserId, room_id: &RoomId, reason: Option<&str>) -> Result<()> {
        if let Some(room) = self.resident_room(room_id)? {
            match self.leave_here(&room, user, reason) {
                // They are out, and with them we are, by another event at the same moment.
                Err(_) if self.resident_room(room_id)?.is_none() => {}
                other => return other,
            }
        }
        let Some(row) = self.store.read(|db| remote_row(db, room_id, user))? else {
            return match self.past_membership(room_id, user)? {
                Some(Membership::Leave) => Ok(()),
                Some(_) => Err(Error::forbidden("You are banned from this room")),
                None => Err(not_in_room()),
            };
        };
        if matches!(row.state, State::Leaving | State::Closed) {
            return Ok(());
        }
        let leave = self.local_leave(&row, reason)?;
        let now = self.clock.now_ms();
        let (door, leaver) = (room_id.clone(), user.clone());
        let (room_id, user) = (room_id.clone(), user.clone());
        self.store.write(move |tx| {
            let Some(mut row) = remote_row(tx, &room_id, &user)? else { return Ok(()) };
            let Some(state) = next(Some(row.state), Fact::UserLeaves)?.to else {
                return tx.delete_remote_membership(&room_id, &user);
            };
            if row.state == state {
                return Ok(());
            }
            // A join that was handed in may land yet.
            row.may_be_in = row.state == State::Joining;
            row.state = state;
            row.tell(leave);
            (row.attempts, row.due_ms) = (0, Some(now));
            tx.save_remote_membership(&row)
        })?;
        self.scheduler.wake();
        self.wait_for_leave(&door, &leaver)
    }

    /// Gives the leave a moment to arrive. Whoever was told that somebody has left may invite them at once, and the room
    /// should know by then what is invited: an invite of somebody who is invited already is none.
    fn wait_for_leave(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        let until = self.clock.instant() + TOLD_WITHIN;
        let told = self.turns.watch(until, || {
            let row = self.store.read(|db| db.remote_membership(room_id, user))?;
            let waits = row.is_some_and(|row| row.state == State::Leaving && row.attempts == 0);
            Ok((!waits).then_some(()))
        });
        told.map(drop)
    }

    /// In a room that we are in a leave is an ordinary event.
    pub(super) fn leave_here(&self, room: &Room, user: &UserId, reason: Option<&str>) -> Result<()> {
        match self.store.read(|db| db.membership(room.key, user))? {
            Some(Membership::Leave) => Ok(()),
            Some(Membership::Ban) => Err(Error::forbidden("You are banned from this room")),
            None => Err(not_in_room()),
            Some(Membership::Join | Membership::Invite | Membership::Knock) => {
                let content = self.member_content(user, Membership::Leave, reason)?;
                let left = self.send(member_draft(&room.room_id, user, user, content)).map(drop);
                left.or_else(|e| match self.store.read(|db| db.membership(room.key, user))? {
                    Some(Membership::Leave) => Ok(()),
                    _ => Err(e),
                })
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
        let (mut answers, mut expected) = (Answers::new(self.clock.instant()), Expected::to_leave(row));
        let candidates = self.candidates(&door, Some(row))?;
        // It was handed to a server, and no answer came: the same event again. What else the server says is of no use:
        // it may have it already.
        if let (Some(leave), Some(peer)) = (row.leave_handed_in(), candidates.first())
            && self.federation.send_leave(peer, &row.room_id, leave.event_id(), leave.json()).is_ok()
        {
            return self.leave_done(row, true);
        }
        for peer in candidates {
            match self.leave_through(&peer, row, &mut expected) {
                Ok(Handed::In) => return self.leave_done(row, true),
                Ok(Handed::Nothing) => return Ok(()),
                Err(error) => answers.add(&peer, error),
            }
        }
        // A server that does not know the invite may be slow to take it in, and is asked once more.
        let rejects = row.previous.as_ref().is_some_and(|left| left.membership() == Some(Membership::Invite));
        // And a join that was on its way may still come to be in the room.
        let may_land = row.may_be_in && row.attempts < ATTEMPTS_BEHIND_A_JOIN;
        if answers.undecided() || may_land || (rejects && row.attempts == 0) {
            return self.try_again_later(row);
        }
        // Every server says no: the room has us as no member, and there is nothing to leave.
        log::info!("nothing to leave in {} for {}: {}", row.room_id, row.user_id, answers.into_error());
        self.leave_done(row, false)
    }

    fn leave_through(
        &self,
        peer: &ServerName,
        row: &RemoteMembership,
        expected: &mut Expected,
    ) -> CallResult<Handed> {
        let (template, version) =
            self.ask_template_in_time(peer, Kind::Leave, &row.room_id, &row.user_id, expected)?;
        let reason = row.event.as_ref().and_then(|told| told.content_str("reason"));
        let content = self.member_content(&row.user_id, Membership::Leave, reason.as_deref());
        let leave = content.and_then(|content| self.sign_template(&template, version, &content));
        let leave = leave.map_err(|e| CallError::bad(e.message().to_owned()))?;
        if !self.intend_leave(row, &leave, peer).map_err(|e| CallError::bad(e.message().to_owned()))? {
            return Ok(Handed::Nothing);
        }
        self.federation.send_leave(peer, &row.room_id, leave.event_id(), leave.json())?;
        Ok(Handed::In)
    }

    /// Commits the signed leave before anybody is handed it. False: an invite or the user has made it needless.
    fn intend_leave(&self, row: &RemoteMembership, leave: &Pdu, peer: &ServerName) -> Result<bool> {
        let (row, leave, peer) = (row.clone(), leave.clone(), peer.clone());
        self.store.write(move |tx| {
            let Some(mut now) = still_leaving(tx, &row)? else { return Ok(false) };
            now.pending = Some(leave);
            now.prefer([peer]);
            tx.save_remote_membership_quietly(&now).map(|()| true)
        })
    }

    /// `is_in`: a server of the room has taken the leave. Otherwise there was nothing to leave.
    fn leave_done(&self, row: &RemoteMembership, is_in: bool) -> Result<()> {
        let (row, now) = (row.clone(), self.clock.now_ms());
        self.store.write(move |tx| {
            let Some(mut row) = still_leaving(tx, &row)? else { return Ok(()) };
            if check_still_outside(tx, &row.room_id).is_err() {
                return tx.delete_remote_membership(&row.room_id, &row.user_id);
            }
            row.state = next(Some(row.state), Fact::LeaveDone)?.to.unwrap_or(State::Closed);
            if !is_in {
                row.pending = None;
            }
            row.may_be_in = false;
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

/// What became of a leave that a server was to take.
enum Handed {
    In,
    /// It was overtaken, and nobody was told.
    Nothing,
}

/// The row as it is now, if it is still about this leave.
fn still_leaving(db: &Db<'_>, row: &RemoteMembership) -> Result<Option<RemoteMembership>> {
    let told = row.event.as_ref().map(Pdu::event_id);
    let now = db.remote_membership(&row.room_id, &row.user_id)?;
    Ok(now.filter(|now| now.state == State::Leaving && now.event.as_ref().map(Pdu::event_id) == told))
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
