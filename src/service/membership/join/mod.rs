//! Joins, both ends: a local user joins (`join`), and another server's user joins a room of this server
//! (`receive_join`). The room that `send_join` is answered with:
//!
//! - `receive`: its way from the answer to the database, in passing.
//! - `check`: whether it is a room that the join may enter.
//! - `import`: becoming resident in it.
//!
//! `attempts`: what comes of asking one server after the other. `answer`: what the server of who joins here is shown.

mod answer;
mod attempts;
pub(super) mod check;
pub mod import;
pub(super) mod receive;

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use self::attempts::{JoinAttempts, Waiter, host_of};
use super::candidates::{HandshakeAnswers, JoinTarget};
use super::guard::{AdmittedRoom, HandshakeRequest, check_may_ask, check_open, check_still_holds};
use super::guest_access::check_guest;
use super::open_door::check_wanted;
use super::replaced_rooms::follow_upgrade;
use super::restricted_join::AUTHORISER;
use super::rows::{check_not_resident, note, note_residence, remote_membership_or_state};
use super::template::{member_draft, own_fields, own_names};
use super::template_expectation::TemplateExpectation;
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::federation::calls::{HandshakeKind, JoinBody};
use crate::federation::{CallError, CallResult};
use crate::protocol::pdu::{Membership, ParsedPdu};
use crate::protocol::remote_membership::{
    Fact, JoinFailure, Prepared, PriorMembership, Refusal, RemoteMembership, RemoteState,
};
use crate::protocol::{
    EventId, Pdu, RoomId, ServerName, UserId, VerifiedPdu, handshake, json as matrix_json,
};
use crate::service::events::draft::Draft;
use crate::service::events::entry::check_not_closed;
use crate::service::events::serve::large_answer::LargeAnswer;
use crate::service::events::server_acl::RoomAcl;
use crate::service::keys::attempts::KeyPurpose;
use crate::service::membership::Memberships;
use crate::service::membership::join::import::{ImportOutcome, RoomImport};
use crate::service::membership::locks::LOCK_TIMEOUT;
use crate::store::{Room, Tx};

/// When it is looked again whether what there is of a room from before has gone, for a join that is taken up again.
const PURGE_PAUSE_MS: Millis = 2_000;

// ----- a local user joins -----

impl Memberships<'_> {
    /// `POST /join`: returns when the user is in the room. A failure leaves the invite or knock as it was.
    ///
    /// Errors: 403 `M_FORBIDDEN`, 404 `M_NOT_FOUND`, 400 `M_INCOMPATIBLE_ROOM_VERSION` with `room_version`,
    /// `M_UNABLE_TO_AUTHORISE_JOIN`, `M_UNABLE_TO_GRANT_JOIN`; 502 if no server could help. If a server may have
    /// taken the join without our hearing of it, or something failed here after one had, the scheduler repeats it until we
    /// know. If one did take it, and its answer is of no use, the room is left again.
    pub fn join(&self, user: &UserId, target: &JoinTarget, reason: Option<&str>) -> Result<()> {
        self.join_with(user, target, reason, Map::new())
    }

    /// [`Memberships::join`] with fields of the client's own in the member event, as far as they are not the server's to
    /// write. (The specification does not know them; they are what clients have by way of Synapse.) Errors: also 413
    /// `M_TOO_LARGE`.
    pub fn join_with(
        &self,
        user: &UserId,
        target: &JoinTarget,
        reason: Option<&str>,
        fields: Map<String, Value>,
    ) -> Result<()> {
        self.join_named(user, target, reason, (fields, Map::new()))
    }

    /// [`Memberships::join_with`] by way of `PUT /state`, where the body is the event's content: the name and the avatar that it
    /// has, if any, are those of this room. Errors: also 400 `M_INVALID_PARAM` if they are too long.
    pub fn join_by_state(
        &self,
        user: &UserId,
        target: &JoinTarget,
        reason: Option<&str>,
        content: Map<String, Value>,
    ) -> Result<()> {
        let names = own_names(&content)?;
        self.join_named(user, target, reason, (content, names))
    }

    fn join_named(
        &self,
        user: &UserId,
        target: &JoinTarget,
        reason: Option<&str>,
        (fields, names): (Map<String, Value>, Map<String, Value>),
    ) -> Result<()> {
        let fields = own_fields(fields)?;
        self.with_handshake_lock(&target.room_id, user, || {
            let mut content = fields;
            content.extend(self.member_content(user, Membership::Join, reason)?);
            content.extend(names);
            self.join_by_content(user, target, &content, None)
        })
    }

    /// [`Memberships::join`] for whoever holds the lock for the user. `by`: only if this invite is what the user is in the
    /// room, and what they are joined by because it accepted their knock; else the error is 403 `M_FORBIDDEN`.
    pub(super) fn join_with_lock(
        &self,
        user: &UserId,
        target: &JoinTarget,
        reason: Option<&str>,
        by: Option<&EventId>,
    ) -> Result<()> {
        let content = self.member_content(user, Membership::Join, reason)?;
        self.join_by_content(user, target, &content, by)
    }

    fn join_by_content(
        &self,
        user: &UserId,
        target: &JoinTarget,
        content: &Map<String, Value>,
        by: Option<&EventId>,
    ) -> Result<()> {
        self.store.read(|db| {
            check_open(db, &target.room_id)?;
            let room = db.resident_room(&target.room_id)?;
            check_guest(db, user, room.map(|room| room.key))
        })?;
        let here = |room: &Room| self.join_as_resident(room, user, target, content.clone(), by);
        self.as_resident_or_remotely(&target.room_id, here, || {
            // Another local user may be on the way in: then the room is here in a moment. Who waits in vain goes
            // themselves.
            let _guard = self.join_locks.lock_until(target.room_id.clone(), Instant::now() + LOCK_TIMEOUT);
            match self.resident_room(&target.room_id)? {
                Some(room) => here(&room),
                None => self.join_remotely(user, target, content, (by, Waiter::Client)),
            }
        })
    }

    /// In a room that this server is in, a join is an ordinary event; unless the room is restricted and no local user
    /// may let the user in, but somebody on another server may.
    fn join_as_resident(
        &self,
        room: &Room,
        user: &UserId,
        target: &JoinTarget,
        mut content: Map<String, Value>,
        by: Option<&EventId>,
    ) -> Result<()> {
        if self.store.read(|db| db.membership(room.key, user))? == Some(Membership::Join) {
            return Ok(());
        }
        self.wait_for_signed_invite(room, user)?;
        match self.authoriser(room, user) {
            Ok(Some(authoriser)) => drop(content.insert(AUTHORISER.to_owned(), authoriser.as_str().into())),
            Ok(None) => {}
            Err(error) if error.errcode() == ErrCode::UnableToGrantJoin && by.is_none() => {
                return self.join_by_others_leave(room, user, target, &content).map_err(|e| {
                    // 404: the room has nobody else; then what we know ourselves is the better answer.
                    if e.status() == 404 { error } else { e }
                });
            }
            Err(error) => return Err(error),
        }
        let (room_id, joiner, now) = (room.room_id.clone(), user.clone(), self.clock.now_ms());
        let (by, by_default) = (by.cloned(), self.config.join_on_accepted_knock);
        let draft = Draft { origin_server_ts: self.at, ..member_draft(&room.room_id, user, user, content) };
        self.events()
            .send_with(draft, move |tx, join| {
                if let Some(invite) = by {
                    // What the joiner was before is among the auth events, whatever else is.
                    if !join.pdu.auth_events().contains(&invite) {
                        return Err(stands_no_more());
                    }
                    if let Some(invite) = tx.pdu(&invite)? {
                        check_wanted(tx, &joiner, invite.sender(), by_default)?;
                    }
                    tx.end_owed_join(&room_id, &joiner, &invite)?;
                }
                note(tx, &room_id, &joiner, Fact::AskedInRoom, now)?;
                let room = tx.event_by_key(join.key)?.room;
                check_guest(tx, &joiner, Some(room))?;
                follow_upgrade(tx, &tx.room_by_key(room)?, &joiner)
            })
            .map(drop)
    }

    /// We are in the room, but only a user of another server may let a local user in: the same handshake, and the
    /// join comes back with that server's signature, to be taken in like any event.
    fn join_by_others_leave(
        &self,
        room: &Room,
        user: &UserId,
        target: &JoinTarget,
        content: &Map<String, Value>,
    ) -> Result<()> {
        let mut answers = HandshakeAnswers::new(self.clock.instant());
        let mut queue = self.handshake_queue(&self.candidates_to_enter(target, None)?, None, true);
        while answers.has_time(self.clock.instant())
            && let Some((peer, within)) = queue.next()
        {
            let template = self.ask_in_turn(&mut queue, (&peer, within), |within| {
                self.ask_template(&peer, HandshakeKind::Join, &room.room_id, user, within)
            });
            let within = answers.share(self.clock.instant(), queue.left());
            let join = match template {
                Ok((template, version)) => self.sign_template_of_peer(&template, version, content)?,
                Err(error) => Err(error),
            };
            let joined = join.and_then(|join| self.join_in_their_name(&peer, &join, within));
            match joined {
                Ok(join) => {
                    self.events().receive_pdu(&peer, self.events().with_policy_signature(join)?)?;
                    self.follow_upgrade_of(room, user)?;
                    return self.leave_if_barred(room, user);
                }
                Err(error) => answers.add(&peer, error),
            }
        }
        Err(answers.into_error())
    }

    fn join_in_their_name(&self, peer: &ServerName, join: &Pdu, within: Duration) -> CallResult<VerifiedPdu> {
        let body = self.federation.send_join(peer, join.room_id(), join.event_id(), join.json(), within)?;
        let answer = body.read()?;
        self.countersigned(join, answer.event).map_err(|e| CallError::bad(e.message().to_owned()))
    }

    /// After a join that another server has taken: the user is in, whatever has been decided here since they asked. If they
    /// would not be let in any more, they leave again. Errors: 403 `M_FORBIDDEN`.
    fn leave_if_barred(&self, room: &Room, user: &UserId) -> Result<()> {
        let barred = self.store.read(|db| {
            check_not_closed(db, user.as_str())?;
            check_open(db, &room.room_id)
        });
        if barred.is_err()
            && let Err(error) = self.leave_as_resident(room, user, None)
        {
            log::log!(error.level(log::Level::Warn), "{user} cannot leave {}: {error}", room.room_id);
        }
        barred
    }

    fn follow_upgrade_of(&self, room: &Room, user: &UserId) -> Result<()> {
        let (room, user) = (room.clone(), user.clone());
        self.store.write(move |tx| follow_upgrade(tx, &room, &user))
    }

    /// The join as it came back from the server that took it, which in a restricted room signs it too; or as it was, if
    /// it did not come back. Errors: 400 if another event came back, or one without the signatures that it needs.
    fn countersigned(&self, join: &Pdu, theirs: Option<&RawValue>) -> Result<VerifiedPdu> {
        let Some(theirs) = theirs else {
            return self.keys().check_parsed_pdu(ParsedPdu::of(join), KeyPurpose::Events);
        };
        handshake::check_countersigned(join, &matrix_json::parse_object(theirs.get().as_bytes())?)?;
        self.keys().check_pdu(theirs.get().as_bytes(), join.version())
    }

    /// The handshake with the room's servers, one after the other. A join that was on its way when we last stopped is
    /// repeated first, with the same event id; unless the client asks others now.
    fn join_remotely(
        &self,
        user: &UserId,
        target: &JoinTarget,
        content: &Map<String, Value>,
        (by, waiter): (Option<&EventId>, Waiter),
    ) -> Result<()> {
        let row = self.store.read(|db| remote_membership_or_state(db, &target.room_id, user))?;
        if by.is_some_and(|invite| !row.as_ref().is_some_and(|row| row.is_invited_by(invite))) {
            return Err(stands_no_more());
        }
        let before = PriorMembership::of(row.as_ref());
        let mut candidates = self.candidates_to_enter(target, row.as_ref())?;
        let host = host_of(row.as_ref(), by.is_some()).cloned();
        let mut attempts = JoinAttempts::new(self.clock.instant(), host, waiter);
        let mut expected = self.store.read(|db| {
            TemplateExpectation::to_enter(db, HandshakeKind::Join, &target.room_id, user, row.as_ref())
        })?;
        let unfinished = row.as_ref().filter(|row| row.state == RemoteState::Joining);
        let unfinished = unfinished.and_then(|row| Some((row.pending.clone()?, row.via.first()?.clone())));
        let was_in = |join: &Pdu| self.store.read(|db| db.is_placed(join.event_id()));
        match unfinished {
            Some((join, _)) if was_in(&join)? => attempts.began_with_lost(join),
            Some((join, peer)) if candidates.first() == Some(&peer) => {
                let within = attempts.share(self.clock.instant(), candidates.len() - 1);
                match self.hand_in_join(&peer, &join, (within, waiter))? {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        attempts.not_in(&peer, join, error);
                        self.check_not_overtaken(&attempts)?;
                    }
                }
                // It has had its turn.
                candidates.rotate_left(1);
            }
            Some((join, _)) => attempts.began_with(join),
            None => {}
        }
        let mut queue = self.handshake_queue(&candidates, row.as_ref(), !attempts.has_host());
        while !attempts.shut_out
            && attempts.answers.has_time(self.clock.instant())
            && let Some((peer, within)) = queue.next()
        {
            let template = self.ask_in_turn(&mut queue, (&peer, within), |within| {
                let expected = (&mut expected, within);
                self.ask_template_in_time(&peer, HandshakeKind::Join, &target.room_id, user, expected)
            });
            let join = match template {
                Ok((template, version)) => self.sign_template_of_peer(&template, version, content)?,
                Err(error) => Err(error),
            };
            let join = match join {
                Ok(join) => join,
                Err(error) => {
                    attempts.add(&peer, error);
                    continue;
                }
            };
            let via = std::iter::once(&peer).chain(&candidates).cloned().collect();
            let prepared = Prepared { event: join.clone(), before: before.clone(), via };
            if let Err(error) = self.intend_join(prepared, attempts.may_be_in(), by) {
                // Nobody else is asked, and the room is left if somebody may have let them in before.
                if let Some(join) = &attempts.last {
                    self.note_failed_join(join, attempts.failure())?;
                }
                return Err(error);
            }
            let within = attempts.share(self.clock.instant(), queue.left());
            match self.hand_in_join(&peer, &join, (within, waiter))? {
                Ok(()) => return Ok(()),
                Err(error) => {
                    attempts.not_in(&peer, join, error);
                    self.check_not_overtaken(&attempts)?;
                }
            }
        }
        if let Some(join) = &attempts.last {
            self.note_failed_join(join, attempts.failure())?;
        }
        let error = attempts.into_error();
        if before.state == Some(RemoteState::Invited) && error.status() == 403 {
            self.schedule_lookup(&target.room_id, user)?;
        }
        Err(error)
    }

    /// Takes up a join that was on its way when its request ended, or we did, with what that request said of its user.
    pub(super) fn resume_join(&self, row: &RemoteMembership) -> Result<()> {
        if self.store.read(|db| db.is_past_going(&row.room_id))? {
            // Another of the timer's threads is to have that done first.
            let (room_id, user) = (row.room_id.clone(), row.user_id.clone());
            let later = self.clock.now_ms() + PURGE_PAUSE_MS;
            return self.store.write(move |tx| tx.lease_remote_membership(&room_id, &user, later));
        }
        let content = match row.pending.as_ref().filter(|_| row.has_join_on_its_way()) {
            Some(join) => wanted_content(join),
            None => self.member_content(&row.user_id, Membership::Join, None)?,
        };
        let target = JoinTarget { room_id: row.room_id.clone(), via: Vec::new() };
        let Some(room) = self.resident_room(&row.room_id)? else {
            return self.join_remotely(&row.user_id, &target, &content, (None, Waiter::Timer));
        };
        // We have come in since. Whether they may too, the room says, and that is the end of it.
        let joined = self.join_as_resident(&room, &row.user_id, &target, content, None);
        self.note_fact(&row.room_id, &row.user_id, Fact::AskedInRoom)?;
        joined
    }

    /// Commits the signed join before anybody is told of it. `may_be_in`: whether a server may have taken another one
    /// that was handed in before. From then on the row says that the user is to be joined, and no join is owed to them
    /// `by` an invite any more.
    fn intend_join(&self, join: Prepared, may_be_in: bool, by: Option<&EventId>) -> Result<()> {
        let (room_id, user) = (join.event.room_id().clone(), join.event.sender().clone());
        let (now, by, by_default) = (self.clock.now_ms(), by.cloned(), self.config.join_on_accepted_knock);
        self.store.write(move |tx| {
            check_not_resident(tx, &room_id)?;
            check_may_ask(tx, &room_id, &user)?;
            if let Some(invite) = by {
                let row = remote_membership_or_state(tx, &room_id, &user)?;
                // Once it was handed in to one server, it goes on with the next.
                let goes_on =
                    |row: &RemoteMembership| row.state == RemoteState::Joining || row.is_invited_by(&invite);
                let row = row.filter(goes_on).ok_or_else(stands_no_more)?;
                if let Some(invite) = row.event.as_ref().filter(|_| row.is_invited_by(&invite)) {
                    check_wanted(tx, &user, invite.sender(), by_default)?;
                }
                tx.end_owed_join(&room_id, &user, &invite)?;
            }
            note(tx, &room_id, &user, Fact::UserJoins { join, may_be_in }, now).map(drop)
        })
    }

    /// Nobody else is asked for a join that did not bring the user in and for which they wait no more. Errors: 403
    /// `M_FORBIDDEN` if they left meanwhile, or were removed.
    fn check_not_overtaken(&self, attempts: &JoinAttempts) -> Result<()> {
        let Some(join) = &attempts.last else { return Ok(()) };
        let row = self.store.read(|db| db.remote_membership(join.room_id(), join.sender()))?;
        let Some(refusal) = row.and_then(|row| row.overtaken_by()) else { return Ok(()) };
        self.note_failed_join(join, attempts.failure())?;
        Err(refusal.into())
    }

    /// Sends the committed join to one server, and imports the room that comes back. Once the server has said yes the
    /// join is in the room, whatever becomes of the answer here. Errors: 500 and 507, which say nothing of that answer: the join
    /// is repeated later, since no other server could do better and the user need not leave for it.
    fn hand_in_join(
        &self,
        peer: &ServerName,
        join: &Pdu,
        (within, waiter): (Duration, Waiter),
    ) -> Result<CallResult<()>> {
        let id = join.event_id();
        let body = match self.federation.send_join(peer, join.room_id(), id, join.json(), within) {
            Ok(body) => body,
            Err(error) => return Ok(Err(error)),
        };
        match self.import_from(peer, join, body, waiter) {
            Ok(entered) => Ok(entered.map_err(CallError::after_success)),
            Err(error) => {
                log::log!(error.level(log::Level::Warn), "{} is entered later: {error}", join.room_id());
                self.note_failed_join(join, JoinFailure::Unanswered)?;
                Err(error)
            }
        }
    }

    fn import_from(
        &self,
        peer: &ServerName,
        join: &Pdu,
        body: JoinBody,
        waiter: Waiter,
    ) -> Result<CallResult<()>> {
        let answer = match body.read() {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(error)),
        };
        let entered = self.countersigned(join, answer.event).and_then(|signed| {
            let mut room = self.receive_room(&signed, peer, answer)?;
            room.waits = waiter == Waiter::Client;
            Ok((room, signed))
        });
        drop(body);
        match entered.and_then(|(room, signed)| self.become_resident(room, signed, peer)) {
            Err(error) if error.is_own_failure() => Err(error),
            Err(error) => {
                Ok(Err(CallError::bad(format!("a room that cannot be entered: {}", error.message()))))
            }
            Ok(()) => Ok(Ok(())),
        }
    }

    /// One transaction makes us resident, and ends what the room's other rows said of us. Who was kicked while the join
    /// was on its way is kicked from the room that we are now in, and who left leaves it. Errors: 403 `M_FORBIDDEN` if they
    /// were invited anew after that, or the room was blocked here: then it is not entered by this join.
    fn become_resident(&self, room: RoomImport<'_>, join: VerifiedPdu, peer: &ServerName) -> Result<()> {
        let (room_id, user, now) = (join.room_id().clone(), join.sender().clone(), self.clock.now_ms());
        let (entered, user_id) = (room_id.clone(), user.clone());
        let (note, removed) = std::sync::mpsc::channel();
        let end_rows = move |tx: &mut Tx<'_>| {
            let row = tx.remote_membership(&room_id, &user)?;
            let closed = row.as_ref().filter(|row| row.state == RemoteState::Closed);
            let removal = closed.and_then(|row| row.event.clone()).filter(|event| event.sender() != &user);
            // Or it is the room that decides whether it is one.
            if let Some(removal) = removal.or_else(|| row.as_ref()?.removal.clone()) {
                // Nobody is left to hear it only if we stopped waiting for the commit.
                let _ = note.send(removal);
            }
            note_residence(tx, &room_id, now)?;
            let room = tx.known_room(&room_id)?;
            follow_upgrade(tx, &room, &user)
        };
        let (entered_by, end) = (join.clone(), end_rows.clone());
        let enter = move |tx: &mut Tx<'_>| {
            let row = tx.remote_membership(entered_by.room_id(), entered_by.sender())?;
            if row.is_some_and(|row| !row.is_entered_by(entered_by.event_id())) {
                return Err(Refusal::RemovedMeanwhile.into());
            }
            check_open(tx, entered_by.room_id())?;
            end(tx)
        };
        if room.finish(join.clone(), enter)? == ImportOutcome::WasResident {
            // What the room is like we have learned by ourselves, and the join is an event like any other.
            self.events().receive_pdu(peer, join)?;
            self.store.write(end_rows)?;
            let room = self.store.read(|db| db.known_room(&entered))?;
            self.leave_if_barred(&room, &user_id)?;
        }
        // The user is in, whatever becomes of the little that waited.
        if let Err(e) = self.ephemeral().receive_kept(&entered) {
            log::warn!("what waited for {entered} is lost: {e}");
        }
        if let Ok(removal) = removed.try_recv()
            && let Err(e) = self.receive_removal(peer, &removal)
        {
            // The room, which we know now, may not allow it: then it never happened, and the join did.
            log::info!("{user_id} was not removed from {entered} after all: {}", e.message());
        }
        // A leave that a user asked for meanwhile is still in its row.
        self.scheduler.wake();
        Ok(())
    }

    /// A removal that met the join, from before this server knew whom the room keeps out.
    fn receive_removal(&self, peer: &ServerName, removal: &Pdu) -> Result<()> {
        self.store.read(|db| {
            RoomAcl::of(db, &db.known_room(removal.room_id())?)?.check(&removal.sender().server())
        })?;
        let removal = self.keys().check_parsed_pdu(ParsedPdu::of(removal), KeyPurpose::Received(peer))?;
        self.events().receive_pdu(peer, removal)
    }

    /// Nobody let us in. If a server took the join, or may have, the local user leaves the room again in the end, and
    /// their clients are told so; the room is told in the background, for days if need be.
    fn note_failed_join(&self, join: &Pdu, how: JoinFailure) -> Result<()> {
        let row = self.store.read(|db| db.remote_membership(join.room_id(), join.sender()))?;
        let Some(row) = row else { return Ok(()) };
        let leave = self.local_leave(&row, Some("The room could not be entered"))?;
        let fact = Fact::JoinFailed { join: join.event_id().clone(), how: how.clone(), leave };
        match how {
            JoinFailure::Unanswered => self.note_unanswered(&row, &row.via, fact),
            JoinFailure::Refused => self.note_fact(&row.room_id, &row.user_id, fact).map(drop),
            JoinFailure::Taken(by) => {
                let effect = self.note_fact(&row.room_id, &row.user_id, fact)?;
                // What the invite covered is nothing to these, who alone know of the join.
                if effect.saved().is_some_and(|after| after.state != RemoteState::Leaving) {
                    by.iter().for_each(|peer| self.leave_once(peer, &row.room_id, &row.user_id));
                }
                Ok(())
            }
        }
    }
}

/// What a join says that its user wants to be said. In whose name they are let in, the next template says anew.
fn wanted_content(join: &Pdu) -> Map<String, Value> {
    let mut content = join.content().clone();
    content.remove(AUTHORISER);
    content
}

/// The invite by which somebody was to be joined is not what they are in the room any more.
fn stands_no_more() -> Error {
    Error::forbidden("The invite that accepted the knock does not stand any more")
}

// ----- another server's user joins -----

impl Memberships<'_> {
    /// `PUT /send_join`: takes the join into the room, with our signature, and tells the other servers in it. Returns
    /// the body of the answer: the state before the join, its auth chain, the join as it went into the room. A repeat
    /// gets the same answer while the user is in the room, and makes no second event. Errors: 403 `M_FORBIDDEN`.
    pub fn receive_join(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        body: &[u8],
        may_omit_members: bool,
    ) -> Result<LargeAnswer> {
        let request =
            HandshakeRequest { origin, room_id, membership: Membership::Join, user: None, versions: None };
        let (AdmittedRoom { room, policy }, _) = self.admit_event(&request)?;
        let signed = self.countersign(&room, body)?;
        let join = self.check_signed_event(signed, &request, event_id)?;
        self.check_authoriser(&room, &join)?;
        let join = self.events().with_signature_of(policy.as_ref(), join)?;
        let accept = || self.events().accept_signed(join.clone(), origin, Membership::Join);
        if self.after_their_invite(room_id, join.sender(), accept)?.already {
            self.store.read(|db| check_still_holds(db, &room, &join))?;
        }
        self.join_answer(&room, &join, may_omit_members)
    }

    /// "The resident homeserver then adds its signature to this event." In a restricted room that is what makes the
    /// join valid, so it is there before the event is checked; nothing of it leaves the house if the checks fail.
    fn countersign(&self, room: &Room, body: &[u8]) -> Result<ParsedPdu> {
        Pdu::parse_whole(body, room.version)?.signed(self.server_name(), &self.key_ring.signing_key())
    }

    /// A join of a restricted room that names a local user is let in on our word: the conditions are looked at again,
    /// since the template may be old, or never have been ours.
    fn check_authoriser(&self, room: &Room, join: &Pdu) -> Result<()> {
        let Some(named) = join.content_str(AUTHORISER).and_then(|name| UserId::parse(&name).ok()) else {
            return Ok(());
        };
        if self.is_local(&named) && room.version.restricted_join {
            self.authoriser(room, join.sender())?;
        }
        Ok(())
    }
}
