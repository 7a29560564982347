//! Knocks, both ends: a local user knocks (`knock`), and another server's user knocks on a room of this server
//! (`receive_knock`). How a knock is answered is in `invite` (accepted) and in `leave` (refused or withdrawn).

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::candidates::{HandshakeAnswers, JoinTarget};
use super::guard::{AdmittedRoom, HandshakeRequest, check_may_ask, check_open, check_still_holds};
use super::rows::{check_not_resident, note, remote_membership_or_state};
use super::shown_state::stripped_events;
use super::template::{INVITE_TIMEOUT, member_draft, own_names};
use super::template_expectation::TemplateExpectation;
use crate::error::{Error, Result};
use crate::federation::calls::HandshakeKind;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{Fact, Prepared, PriorMembership, RemoteMembership, RemoteState};
use crate::protocol::rooms::stripped_state;
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, ServerName, UserId};
use crate::service::events::draft::Draft;
use crate::service::limits::knock_budget::KnockPermit;
use crate::service::membership::Memberships;
use crate::store::Room;

/// Time to find the keys of what the answer to a knock shows of the room: the knocker waits for it.
const KEYS_TIMEOUT: Duration = Duration::from_secs(10);

// ----- a local user knocks -----

impl Memberships<'_> {
    /// `POST /knock`: returns when a server of the room has taken the knock (or one that we sent before still stands).
    ///
    /// Errors: 403 `M_FORBIDDEN` (also while invited), 404 `M_NOT_FOUND`, 400 `M_INCOMPATIBLE_ROOM_VERSION` with
    /// `room_version`, 429 `M_LIMIT_EXCEEDED` if the user, or the room, has had too many, 502 if no server could be
    /// reached: a knock that was already signed is then repeated later.
    pub fn knock(&self, user: &UserId, target: &JoinTarget, reason: Option<&str>) -> Result<()> {
        self.knock_named(user, target, reason, &Map::new())
    }

    /// [`Memberships::knock`] by way of `PUT /state`, where the body is the event's content: the name and the avatar that it
    /// has, if any, are those of this room. Errors: also 400 `M_INVALID_PARAM` if they are too long.
    pub fn knock_by_state(
        &self,
        user: &UserId,
        target: &JoinTarget,
        reason: Option<&str>,
        content: &Map<String, Value>,
    ) -> Result<()> {
        self.knock_named(user, target, reason, &own_names(content)?)
    }

    fn knock_named(
        &self,
        user: &UserId,
        target: &JoinTarget,
        reason: Option<&str>,
        names: &Map<String, Value>,
    ) -> Result<()> {
        let knocked = self.with_handshake_lock(&target.room_id, user, || {
            self.store.read(|db| check_open(db, &target.room_id))?;
            let mut content = self.member_content(user, Membership::Knock, reason)?;
            content.extend(names.clone());
            self.as_resident_or_remotely(
                &target.room_id,
                |room| self.knock_as_resident(room, user, &content),
                || self.knock_remotely(user, target, &content),
            )
        });
        self.count_ending(|metrics| &metrics.knocks_out, &knocked);
        knocked
    }

    fn knock_remotely(&self, user: &UserId, target: &JoinTarget, content: &Map<String, Value>) -> Result<()> {
        let row = self.store.read(|db| remote_membership_or_state(db, &target.room_id, user))?;
        PriorMembership::of(row.as_ref()).may_knock()?;
        let candidates = self.candidates_to_enter(target, row.as_ref())?;
        match row {
            // It was signed and perhaps sent, and no answer came: the same event again, not another one.
            Some(row) if row.state == RemoteState::Knocking => self.deliver_knock(&row, &candidates),
            row => {
                let permit = self.knock_budget.permit_remote_knock(self, user, &target.room_id)?;
                let waits = row.as_ref().is_some_and(|row| row.state == RemoteState::Knocked);
                let prepared = self.prepare_knock(user, target, content, row, &candidates);
                if waits && prepared.as_ref().is_err_and(|error| error.status() == 403) {
                    // Who took the last one may have refused it since, and not told.
                    self.schedule_lookup(&target.room_id, user)?;
                }
                let Some(row) = prepared? else { return Ok(()) };
                permit.into_iter().for_each(KnockPermit::keep);
                self.deliver_knock(&row, &row.via)
            }
        }
    }

    /// In a room that this server is in a knock is an ordinary event.
    fn knock_as_resident(&self, room: &Room, user: &UserId, content: &Map<String, Value>) -> Result<()> {
        self.wait_for_signed_invite(room, user)?;
        if self.store.read(|db| db.membership(room.key, user))? == Some(Membership::Knock) {
            return Ok(());
        }
        let permit = self.knock_budget.permit_knock(self, room, user, None)?;
        let draft = member_draft(&room.room_id, user, user, content.clone());
        self.events().send(Draft { origin_server_ts: self.at, ..draft })?;
        permit.into_iter().for_each(KnockPermit::keep);
        Ok(())
    }

    /// Gets a template from the first server that gives one, signs the knock and commits the intent to send it. None:
    /// the server still has our last knock, and there is nothing to send.
    fn prepare_knock(
        &self,
        user: &UserId,
        target: &JoinTarget,
        content: &Map<String, Value>,
        row: Option<RemoteMembership>,
        candidates: &[ServerName],
    ) -> Result<Option<RemoteMembership>> {
        let mut answers = HandshakeAnswers::new(self.clock.instant());
        let mut expected = self.store.read(|db| {
            TemplateExpectation::to_enter(db, HandshakeKind::Knock, &target.room_id, user, row.as_ref())
        })?;
        let mut queue = self.handshake_queue(candidates, row.as_ref(), true);
        while answers.has_time(self.clock.instant())
            && let Some((peer, within)) = queue.next()
        {
            let template = self.ask_in_turn(&mut queue, (&peer, within), |within| {
                let expected = (&mut expected, within);
                self.ask_template_in_time(&peer, HandshakeKind::Knock, &target.room_id, user, expected)
            });
            let knock = match template {
                Ok((template, version)) => self.sign_template_of_peer(&template, version, content)?,
                Err(error) => Err(error),
            };
            match knock {
                Ok(knock) => {
                    if still_stands(row.as_ref(), &knock) {
                        return Ok(None);
                    }
                    let via = std::iter::once(peer.clone()).chain(candidates.iter().cloned()).collect();
                    let before = PriorMembership::of(row.as_ref());
                    return self.intend_knock(Prepared { event: knock, before, via }).map(Some);
                }
                Err(error) => answers.add(&peer, error),
            }
        }
        Err(answers.into_error())
    }

    /// Commits the signed knock before anybody is told of it.
    fn intend_knock(&self, knock: Prepared) -> Result<RemoteMembership> {
        let (room_id, user) = (knock.event.room_id().clone(), knock.event.sender().clone());
        let now = self.clock.now_ms();
        self.store.write(move |tx| {
            check_not_resident(tx, &room_id)?;
            check_may_ask(tx, &room_id, &user)?;
            note(tx, &room_id, &user, Fact::UserKnocks(knock), now)?;
            let row = tx.remote_membership(&room_id, &user)?;
            row.ok_or_else(|| Error::internal("a knock that was not written"))
        })
    }

    /// Sends the committed knock to these servers until one takes it. Also what the scheduler does after a
    /// crash: it is the same event with the same id, which the other side takes as done if it has it.
    pub(super) fn deliver_knock(&self, row: &RemoteMembership, servers: &[ServerName]) -> Result<()> {
        let Some(knock) = &row.event else { return Err(Error::internal("a knock without its event")) };
        let mut answers = HandshakeAnswers::new(self.clock.instant());
        for peer in servers {
            if !answers.has_time(self.clock.instant()) {
                break;
            }
            match self.federation.send_knock(peer, &row.room_id, knock.event_id(), knock.json()) {
                Ok(room_state) => return self.knock_taken(row, knock, peer, &room_state),
                // It is in the room, and only what clients would see of that is lacking.
                Err(error) if error.is_after_success() => {
                    log::info!("{peer} took a knock upon {}, and shows nothing of it: {error}", row.room_id);
                    return self.knock_taken(row, knock, peer, &[]);
                }
                Err(error) => answers.add(peer, error),
            }
        }
        // Whoever is told to come later knows that nothing stands in the room yet, and comes by themselves. Of a
        // knock that may have been taken before we do not know that.
        let told_to_wait = answers.only_later() && row.attempts == 0;
        if answers.undecided() && !told_to_wait {
            let fact = Fact::KnockUnanswered { knock: knock.event_id().clone() };
            self.note_unanswered(row, servers, fact)?;
        } else {
            let leave = self.local_leave(row, None)?;
            let fact = Fact::KnockRefused { knock: knock.event_id().clone(), leave };
            self.note_fact(&row.room_id, &row.user_id, fact)?;
        }
        Err(answers.into_error())
    }

    fn knock_taken(
        &self,
        row: &RemoteMembership,
        knock: &Pdu,
        peer: &ServerName,
        room_state: &[Box<RawValue>],
    ) -> Result<()> {
        let stripped_state = self.usable_stripped_state(peer, room_state, &row.room_id, row.room_version);
        let (knock, by) = (knock.event_id().clone(), peer.clone());
        let fact = Fact::KnockTaken { knock, by, stripped_state };
        self.note_fact(&row.room_id, &row.user_id, fact).map(drop)
    }

    /// Stripped state as clients may see it. What is badly formed, of another room or (from version 12 on, where all
    /// of it has to be signed) badly signed is left out: it only decorates, and the knock is taken in any case.
    fn usable_stripped_state(
        &self,
        peer: &ServerName,
        entries: &[Box<RawValue>],
        room_id: &RoomId,
        version: RoomVersion,
    ) -> Vec<Box<RawValue>> {
        if !version.room_id_is_create_hash {
            return stripped_state::usable(entries, room_id, version, None);
        }
        let verified = self.verified_entries(peer, entries, (room_id, version), KEYS_TIMEOUT);
        let verified: Vec<_> = verified.into_iter().filter_map(Result::ok).collect();
        stripped_state::usable(&verified, room_id, version, None)
    }
}

/// Whether the server that gave this template still has our last knock: the template rests on it.
fn still_stands(row: Option<&RemoteMembership>, knock: &Pdu) -> bool {
    let Some(last) = row.filter(|row| row.state == RemoteState::Knocked).and_then(|row| row.event.as_ref())
    else {
        return false;
    };
    let reason = |event: &Pdu| event.content_str("reason");
    knock.auth_events().contains(last.event_id()) && reason(last) == reason(knock)
}

// ----- another server's user knocks -----

impl Memberships<'_> {
    /// `PUT /send_knock`: takes the knock into the room and tells the other servers in it. Returns the events of
    /// `knock_room_state`. A repeat gets the same answer, while the knock stands or was accepted, and makes no second event.
    /// Errors: 429 `M_LIMIT_EXCEEDED`, as for the template; 403 `M_FORBIDDEN`.
    pub fn receive_knock(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        body: &[u8],
    ) -> Result<Vec<Pdu>> {
        let received = self.receive_signed_knock(origin, room_id, event_id, body);
        self.count_ending(|metrics| &metrics.knocks_in, &received);
        received
    }

    fn receive_signed_knock(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        event_id: &EventId,
        body: &[u8],
    ) -> Result<Vec<Pdu>> {
        let request =
            HandshakeRequest { origin, room_id, membership: Membership::Knock, user: None, versions: None };
        let (mut seen, mut room_state) = self.admit_event(&request)?;
        let knock = self.check_signed(body, seen.room.version, &request, event_id)?;
        if self.handshake_locks.is_under_way(room_id, knock.sender()) {
            self.handshake_locks.wait_for_end(room_id, knock.sender(), INVITE_TIMEOUT);
            (seen, room_state) = self.admit_event(&request)?;
        }
        let AdmittedRoom { room, policy } = seen;
        let permit = self.knock_budget.permit_knock(self, &room, knock.sender(), Some(knock.event_id()))?;
        let knock = self.events().with_signature_of(policy.as_ref(), knock)?;
        let accepted = self.events().accept_signed(knock.clone(), origin, Membership::Knock)?;
        if accepted.already {
            self.store.read(|db| check_still_holds(db, &room, &knock))?;
        }
        permit.into_iter().for_each(KnockPermit::keep);
        match policy {
            // It may have taken its time.
            Some(_) => self.store.read(|db| stripped_events(db, &room, None)),
            None => Ok(room_state),
        }
    }
}
