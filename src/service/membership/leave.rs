//! Leaves, both ends: a local user leaves, rejects an invite or withdraws a knock (`leave`), and another server's
//! user does (`receive_leave`).

use std::time::Duration;

use super::candidates::{HandshakeAnswers, JoinTarget};
use super::guard::{AdmittedRoom, HandshakeRequest, admit_event};
use super::rows::{check_not_resident, note, remote_membership_or_state, warn_if_given_up};
use super::template::{TEMPLATE_TIMEOUT, member_draft};
use super::template_expectation::TemplateExpectation;
use crate::error::{Error, Result};
use crate::federation::calls::HandshakeKind;
use crate::federation::{CallError, CallResult};
use crate::protocol::pdu::{Membership, ParsedPdu};
use crate::protocol::remote_membership::{Fact, LeaveAnswer, Refusal, RemoteMembership, RemoteState};
use crate::protocol::{EventId, Pdu, RoomId, ServerName, UserId};
use crate::service::keys::attempts::KeyPurpose;
use crate::service::membership::Memberships;
use crate::store::{Room, Status};

/// How long a leave may take to reach the room before the local user is told that they have left.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// So many servers are all asked within the time for a handshake, even if none of them answers.
const ASKED_IN_TIME: usize = 4;

// ----- a local user leaves -----

impl Memberships<'_> {
    /// `POST /leave`: leaves, rejects an invite or withdraws a knock. In a room that this server is not in this is
    /// done at once for the local user; the room's servers are told in the background, for days if need be. The
    /// answer waits a moment for that. Errors: 403 `M_FORBIDDEN` (not in the room, banned), the same whether or not
    /// there is such a room.
    pub fn leave(&self, user: &UserId, room_id: &RoomId, reason: Option<&str>) -> Result<()> {
        self.as_resident_or_remotely(
            room_id,
            |room| self.leave_as_resident(room, user, reason),
            || self.leave_remotely(user, room_id, reason),
        )
    }

    fn leave_remotely(&self, user: &UserId, room_id: &RoomId, reason: Option<&str>) -> Result<()> {
        let Some(row) = self.store.read(|db| remote_membership_or_state(db, room_id, user))? else {
            return match self.past_membership(room_id, user)? {
                Some(Membership::Leave) => Ok(()),
                Some(_) => Err(Error::forbidden("You are banned from this room")),
                None => Err(Error::not_in_room()),
            };
        };
        // Who was removed while their join was on its way may come in yet: what the removal is worth, the room decides. And the
        // server that invited them, or took their knock, need not have heard of a removal that others made.
        if row.is_left() {
            return Ok(());
        }
        if let Err(e) = self.note_fact(room_id, user, Fact::UserLeaves(self.local_leave(&row, reason)?)) {
            // Their knock may have been refused at this moment: then there is nothing left to leave.
            let is_over = self.resident_room(room_id)?.is_none()
                && self.store.read(|db| remote_membership_or_state(db, room_id, user))?.is_none();
            return if is_over { Ok(()) } else { Err(e) };
        }
        self.wait_for_leave(room_id, user)
    }

    /// Gives the leave a moment to arrive. Whoever was told that somebody has left may invite them at once, and the
    /// room should know by then what is invited: an invite of somebody who is invited already is none.
    fn wait_for_leave(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        let until = self.clock.instant() + LEAVE_TIMEOUT;
        let told = self.handshake_locks.watch(until, || {
            let row = self.store.read(|db| db.remote_membership(room_id, user))?;
            let waits = row.is_some_and(|row| row.state == RemoteState::Leaving && row.attempts == 0);
            Ok((!waits).then_some(()))
        });
        told.map(drop)
    }

    /// In a room that this server is in a leave is an ordinary event.
    pub(super) fn leave_as_resident(&self, room: &Room, user: &UserId, reason: Option<&str>) -> Result<()> {
        self.wait_for_signed_invite(room, user)?;
        match self.store.read(|db| db.membership(room.key, user))? {
            Some(Membership::Leave) => Ok(()),
            Some(Membership::Ban) => Err(Error::forbidden("You are banned from this room")),
            None => Err(Error::not_in_room()),
            Some(Membership::Join | Membership::Invite | Membership::Knock) => {
                let content = self.member_content(user, Membership::Leave, reason)?;
                let left = self.events().send(member_draft(&room.room_id, user, user, content)).map(drop);
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

    /// What the scheduler does with a row that is `leaving`: tells a server of the room, or the room itself if we have
    /// come into it since.
    pub(super) fn deliver_leave(&self, row: &RemoteMembership) -> Result<()> {
        if let Some(room) = self.resident_room(&row.room_id)? {
            return self.leave_after_all(&room, row);
        }
        let target = JoinTarget { room_id: row.room_id.clone(), via: Vec::new() };
        let (mut answers, mut expected) =
            (HandshakeAnswers::new(self.clock.instant()), TemplateExpectation::to_leave(row));
        let mut candidates = self.candidates(&target, Some(row))?;
        // Nobody but this server was in the room, and by now nobody is: what the row says is all that there is to say.
        if candidates.is_empty() {
            return self.leave_taken(row, (None, self.server_name()));
        }
        let unaware_host = row.unaware_host();
        // It was handed to a server, and no answer came: the same event again. What else the server says is of no use:
        // it may have it already.
        if let (Some(leave), Some(peer)) = (row.leave_handed_in(), candidates.first())
            && self.federation.send_leave(peer, &row.room_id, leave.event_id(), leave.json()).is_ok()
        {
            return self.leave_taken(row, (Some(leave), peer));
        }
        // Of many each time another one is the first, since silent ones may take all the time there is.
        if let Some(host) = &unaware_host {
            candidates.retain(|peer| peer != host);
            candidates.insert(0, host.clone());
        } else if candidates.len() > ASKED_IN_TIME {
            let first = row.attempts as usize % candidates.len();
            candidates.rotate_left(first);
        }
        for peer in candidates {
            if !answers.has_time(self.clock.instant()) {
                answers.leaves_out_some();
                break;
            }
            match self.leave_through(&peer, row, &mut expected) {
                Ok(LeaveDelivery::HandedIn(leave)) => return self.leave_taken(row, (Some(&leave), &peer)),
                Ok(LeaveDelivery::Needless) => return Ok(()),
                Err(error) => answers.add(&peer, error),
            }
            // The only one that has to hear of it knows that it is over.
            if unaware_host.as_ref() == Some(&peer) && !answers.undecided() {
                break;
            }
        }
        let answer = if answers.undecided() { LeaveAnswer::Unanswered } else { LeaveAnswer::Refused };
        log::info!("no leave from {} for {}: {}", row.room_id, row.user_id, answers.into_error());
        self.leave_answered(row, answer)
    }

    /// One server took it. If the invite of another one was shown in place of what was left, that is told once.
    fn leave_taken(&self, row: &RemoteMembership, (leave, by): (Option<&Pdu>, &ServerName)) -> Result<()> {
        self.leave_answered(row, LeaveAnswer::Taken)?;
        let Some(covering) = row.covered.as_ref().map(|covering| &covering.event) else { return Ok(()) };
        let server = covering.sender().server();
        if &server == by {
            return Ok(());
        }
        // Whose invite knows of what was left is in the room, which is to have one leave and not two. A stranger makes what they
        // like of theirs.
        let knows = |left: &Pdu| covering.auth_events().contains(left.event_id());
        let is_inside = row.previous.as_ref().is_some_and(knows);
        let hand_in =
            |leave: &Pdu| self.federation.send_leave(&server, &row.room_id, leave.event_id(), leave.json());
        if leave.filter(|_| is_inside).is_none_or(|leave| hand_in(leave).is_err()) {
            self.leave_once(&server, &row.room_id, &row.user_id);
        }
        Ok(())
    }

    /// Hands one server a leave, come of it what may: what it holds of the user is nothing that others know of.
    pub(super) fn leave_once(&self, peer: &ServerName, room_id: &RoomId, user: &UserId) {
        let template = self.ask_template(peer, HandshakeKind::Leave, room_id, user, TEMPLATE_TIMEOUT);
        let made = template.and_then(|(template, version)| {
            let content = self.member_content(user, Membership::Leave, None);
            let leave = content.and_then(|content| self.sign_template(&template, version, &content));
            let leave = leave.map_err(|e| CallError::bad(e.message().to_owned()))?;
            self.federation.send_leave(peer, room_id, leave.event_id(), leave.json())
        });
        if let Err(error) = made {
            log::info!("{user} has not left {room_id} by way of {peer}: {error}");
        }
    }

    fn leave_through(
        &self,
        peer: &ServerName,
        row: &RemoteMembership,
        expected: &mut TemplateExpectation,
    ) -> CallResult<LeaveDelivery> {
        let (template, version) = self.ask_template_in_time(
            peer,
            HandshakeKind::Leave,
            &row.room_id,
            &row.user_id,
            (expected, TEMPLATE_TIMEOUT),
        )?;
        let reason = reason_of(row);
        let content = self.member_content(&row.user_id, Membership::Leave, reason.as_deref());
        let leave = content.and_then(|content| self.sign_template(&template, version, &content));
        let leave = leave.map_err(|e| CallError::bad(e.message().to_owned()))?;
        if !self.intend_leave(row, &leave, peer).map_err(|e| CallError::bad(e.message().to_owned()))? {
            return Ok(LeaveDelivery::Needless);
        }
        self.federation.send_leave(peer, &row.room_id, leave.event_id(), leave.json())?;
        Ok(LeaveDelivery::HandedIn(Box::new(leave)))
    }

    /// Commits the signed leave before anybody is handed it. False: an invite or the user has made it needless.
    fn intend_leave(&self, row: &RemoteMembership, leave: &Pdu, peer: &ServerName) -> Result<bool> {
        let Some(told) = row.told().cloned() else { return Ok(false) };
        let fact = Fact::LeaveSigned { told, leave: leave.clone(), to: peer.clone() };
        let effect = self.note_fact(&row.room_id, &row.user_id, fact)?;
        Ok(effect.saved().is_some())
    }

    fn leave_answered(&self, row: &RemoteMembership, answer: LeaveAnswer) -> Result<()> {
        let Some(told) = row.told().cloned() else {
            return Err(Error::internal("a leave without its event"));
        };
        if matches!(answer, LeaveAnswer::Unanswered | LeaveAnswer::Refused) {
            self.scheduler.waits_for(&row.via, &row.room_id, &row.user_id);
        }
        let (room_id, user, now) = (row.room_id.clone(), row.user_id.clone(), self.clock.now_ms());
        let effect = self.store.write(move |tx| {
            let answer = match (check_not_resident(tx, &room_id), answer) {
                (Ok(()), answer) => answer,
                (Err(_), LeaveAnswer::Taken | LeaveAnswer::InRoom) => LeaveAnswer::InRoom,
                // We have come in since, and can say it ourselves.
                (Err(_), LeaveAnswer::Refused | LeaveAnswer::Unanswered) => LeaveAnswer::Unanswered,
            };
            note(tx, &room_id, &user, Fact::LeaveAnswered { told, answer }, now)
        })?;
        if answer == LeaveAnswer::Unanswered {
            warn_if_given_up(row, &effect);
        }
        self.scheduler.wake();
        Ok(())
    }

    /// Another local user entered the room before its servers knew of this leave: now we can say it ourselves.
    fn leave_after_all(&self, room: &Room, row: &RemoteMembership) -> Result<()> {
        if let Some(leave) = row.leave_handed_in()
            && self.take_leave_along(room, row, leave)?
        {
            return self.leave_answered(row, LeaveAnswer::InRoom);
        }
        let reason = reason_of(row);
        let present = self.store.read(|db| db.membership(room.key, &row.user_id))?;
        if let Some(Membership::Join | Membership::Invite | Membership::Knock) = present {
            self.leave_as_resident(room, &row.user_id, reason.as_deref())?;
        }
        self.leave_answered(row, LeaveAnswer::InRoom)
    }

    /// Receives a leave that a server was handed before we came in: others rest on that very event, and nobody sends us our
    /// own; but whoever lacks it is sent it. Whether it is in the room.
    fn take_leave_along(&self, room: &Room, row: &RemoteMembership, leave: &Pdu) -> Result<bool> {
        if leave.version().id != room.version.id {
            return Ok(false);
        }
        let event = match self.keys().check_parsed_pdu(ParsedPdu::of(leave), KeyPurpose::Events) {
            Ok(event) => event,
            Err(e) if e.is_own_failure() => return Err(e),
            Err(_) => return Ok(false),
        };
        match self.events().commit_signed(event.clone()) {
            Err(e) if e.is_own_failure() => return Err(e),
            // What it follows is not here yet: who took it knows that.
            Err(_) => {
                let peer = row.via.first().cloned().unwrap_or_else(|| self.server_name().clone());
                if let Err(e) = self.events().receive_pdu(&peer, event) {
                    log::info!("{} has left {} anew: {}", row.user_id, row.room_id, e.message());
                }
            }
            Ok(_) => {}
        }
        let status = self.store.read(|db| db.event_status(leave.event_id()))?;
        Ok(matches!(status, Some((Status::Accepted, false))))
    }

    /// `POST /forget`. Errors: 400 `M_UNKNOWN` while the user is in the room, invited or knocking; 404 `M_NOT_FOUND`.
    pub fn forget(&self, user: &UserId, room_id: &RoomId) -> Result<()> {
        let (room_id, of_user, now) = (room_id.clone(), user.clone(), self.clock.now_ms());
        self.store.write(move |tx| {
            let user = of_user;
            let not_left = || Error::from(Refusal::NotLeft);
            // A room that the user never had to do with is answered as one that there is not.
            let unknown = || Error::not_found("You know no such room");
            let room = tx.room(&room_id)?;
            let mut is_known = true;
            if remote_membership_or_state(tx, &room_id, &user)?.is_some() {
                note(tx, &room_id, &user, Fact::UserForgets, now)?;
            } else if room.is_none() {
                return Err(unknown());
            } else {
                is_known = false;
            }
            let Some(room) = room else { return Ok(()) };
            match tx.membership(room.key, &user)? {
                Some(Membership::Leave | Membership::Ban) => {
                    tx.delete_thread_subscriptions(&user, Some(room.key))?;
                    tx.set_forgotten(room.key, &user, true)
                }
                Some(_) if room.resident => Err(not_left()),
                None if !is_known => Err(unknown()),
                _ => Ok(()),
            }
        })?;
        // That is no change in the stream.
        self.sliding.read_rooms_anew(user);
        Ok(())
    }
}

/// The reason that the user gave. Where somebody else had removed them before, what clients are told has that one's.
fn reason_of(row: &RemoteMembership) -> Option<String> {
    let own = row.event.as_ref().filter(|_| !row.is_ended_by_others())?;
    own.content_str("reason")
}

/// What became of a leave that a server was to take.
enum LeaveDelivery {
    HandedIn(Box<Pdu>),
    /// It was overtaken, and nobody was told.
    Needless,
}

// ----- another server's user leaves -----

impl Memberships<'_> {
    /// `PUT /send_leave`: takes the leave into the room and tells the other servers in it. Repeats change nothing.
    pub fn receive_leave(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        body: &[u8],
    ) -> Result<()> {
        let request =
            HandshakeRequest { origin, room_id, membership: Membership::Leave, user: None, versions: None };
        let AdmittedRoom { room, policy } = self.store.read(|db| admit_event(db, &request))?;
        let leave = self.check_signed(body, room.version, &request, event_id)?;
        let leave = self.events().with_signature_of(policy.as_ref(), leave)?;
        self.events().accept_signed(leave, origin, Membership::Leave).map(drop)
    }
}
