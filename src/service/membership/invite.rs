//! Invites, both ends: a local user invites (`invite`), and another server's user invites a local user
//! (`receive_invite`). An invite to somebody who knocked accepts the knock, whether or not it says so.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::guard::{HandshakeRequest, check_open};
use super::invite_place::{await_invite, check_place};
use super::offered_invites::may_have_been_taken;
use super::open_door::{answers_beside, invite_in_place_of};
use super::rows::{check_version, last_leave, note, remote_membership_or_state};
use super::shown_state::stripped_state_for_servers;
use super::template::member_draft;
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::federation::CallError;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{Effect, Fact, Refusal, RemoteState, apply};
use crate::protocol::rooms::stripped_state::{self, strip};
use crate::protocol::signatures::verify::{self, SignatureError};
use crate::protocol::{
    EventId, Pdu, RoomId, RoomVersion, ServerName, UserId, VerifiedPdu, content, handshake, json,
};
use crate::service::events::server_acl::RoomAcl;
use crate::service::keys::attempts::KeyPurpose;
use crate::service::keys::verify::Checked;
use crate::service::limits::request_permits::AskerId;
use crate::service::membership::Memberships;
use crate::store::{Db, Room, Tx};

/// How often an invite is repeated that something else overtook.
const INVITE_ATTEMPTS_MAX: usize = 3;

/// How long an invite waits until the invitee's server has heard that they were removed before.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(2);

/// How old a removal is at least before its user is invited again without a rest, and how long the rest is once it was
/// delivered, in milliseconds.
const REMOVAL_AGE_MS: Millis = 500;

/// How long an invite that comes in waits for the outcome of the invitee's leave.
const LEAVE_OUTCOME_TIMEOUT: Duration = Duration::from_secs(3);
/// Time to find the keys of what an invite shows of its room. The inviter waits.
const KEYS_TIMEOUT: Duration = Duration::from_secs(10);

// ----- a local user invites -----

impl Memberships<'_> {
    /// `POST /invite`, also the invites of `PUT /state/m.room.member` and of a new room (`owed_invites`). `extra` is
    /// further content (`is_direct`). An invitee elsewhere is asked first: what their server refuses never happened.
    ///
    /// Errors: 403 `M_FORBIDDEN`, 403 `M_INVITE_BLOCKED`, 400 `M_UNSUPPORTED_ROOM_VERSION`, 502 if the invitee's
    /// server cannot be reached or answers with something else than the event that was sent; 429 `M_LIMIT_EXCEEDED`
    /// if it takes no more.
    pub fn invite(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<&str>,
        extra: Map<String, Value>,
    ) -> Result<()> {
        let _guard = self.handshake_locks.take(room_id, target)?;
        self.invite_with_lock(sender, room_id, target, reason, extra)
    }

    /// Invites somebody who knocked and waits. Errors: 404 `M_NOT_FOUND` if they do not wait any more, and those of an
    /// invite.
    pub(in crate::service) fn accept_knock(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
    ) -> Result<()> {
        let _guard = self.handshake_locks.take(room_id, target)?;
        let room = self.resident_room(room_id)?.ok_or_else(Error::not_in_room)?;
        if !self.is_joined(&room, sender)? {
            return Err(Error::not_in_room());
        }
        if self.store.read(|db| db.membership(room.key, target))? != Some(Membership::Knock) {
            return Err(Error::not_found("That user does not wait before the room"));
        }
        self.invite_with_lock(sender, room_id, target, None, Map::new())
    }

    /// [`Memberships::invite`] for whoever holds the lock for the invitee.
    pub(super) fn invite_with_lock(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<&str>,
        extra: Map<String, Value>,
    ) -> Result<()> {
        let invited = self.invite_into_room(sender, room_id, target, reason, extra);
        self.count_ending(|metrics| &metrics.invites_out, &invited);
        invited
    }

    fn invite_into_room(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<&str>,
        extra: Map<String, Value>,
    ) -> Result<()> {
        let room = self.resident_room(room_id)?.ok_or_else(Error::not_in_room)?;
        let present = self.store.read(|db| db.membership(room.key, target))?;
        if present == Some(Membership::Invite) && self.is_joined(&room, sender)? {
            return Ok(());
        }
        let content = self.invite_content(target, reason, extra)?;
        self.invite_with(&room, sender, target, content).map(drop)
    }

    /// What an invite says. `extra` is further content.
    pub(in crate::service) fn invite_content(
        &self,
        target: &UserId,
        reason: Option<&str>,
        extra: Map<String, Value>,
    ) -> Result<Map<String, Value>> {
        let mut content = self.member_content(target, Membership::Invite, reason)?;
        content.extend(extra);
        content.insert("membership".to_owned(), Membership::Invite.as_str().into());
        Ok(content)
    }

    /// Sends an invite with this content, asking the invitee's server if that is another.
    pub(super) fn invite_with(
        &self,
        room: &Room,
        sender: &UserId,
        target: &UserId,
        content: Map<String, Value>,
    ) -> Result<EventId> {
        self.store.read(|db| check_open(db, &room.room_id))?;
        let mut draft = member_draft(&room.room_id, sender, target, content);
        draft.origin_server_ts = self.at;
        if self.is_local(target) {
            self.check_own_invitees(sender, std::slice::from_ref(target))?;
            // Once more: a policy server may have been asked since.
            let again = target.clone();
            return self.events().send_with(draft, move |tx, _| check_invitee(tx, &again));
        }
        let server = target.server();
        // What the invitee does while their server is asked may overtake the invite (a withdrawn knock, say): then
        // their server refuses it, or the room, which has both, decides that they are not invited, and they are
        // invited anew.
        for _ in 0..INVITE_ATTEMPTS_MAX {
            let ours = self.events().draft_event(draft.clone())?;
            self.after_removal(room, target, &ours)?;
            let was_here = self.store.read(|db| db.is_resident(room.key, &server))?;
            let room_state = self.store.read(|db| stripped_state_for_servers(db, room, Some(sender)))?;
            let answer = match self.offer_invite(&server, &ours, room, &room_state) {
                Err(e) if e.status() == 403 && self.member_moved(room, target, &ours)? => continue,
                other => other?,
            };
            let both = self.check_invite_answer(&ours, answer, &server);
            let both = both.inspect_err(|_| self.note_offered_invite(room, &ours))?;
            let committed = self.events().commit_signed(both.clone());
            committed.inspect_err(|_| self.note_offered_invite(room, &ours))?;
            let is_here = self.store.read(|db| db.is_resident(room.key, &server))?;
            if was_here && !is_here {
                // It left the invite to the room to be told of, and the room has nobody there to tell any more.
                if let Err(error) = self.offer_invite(&server, &both, room, &room_state) {
                    log::warn!("{server} left {} while {target} was invited: {error}", room.room_id);
                }
            }
            if self.took_effect(room, target, &both)? {
                return Ok(both.event_id().clone());
            }
        }
        Err(Error::forbidden(format!("{target} leaves the room faster than they can be invited")))
    }

    /// Gives the news of the removal that an invite rests on, if it does, a moment to reach the invitee's server, where
    /// it would undo the invite. What the room says is not asked: they may have been removed since, or since before
    /// the invite was drafted.
    fn after_removal(&self, room: &Room, target: &UserId, invite: &Pdu) -> Result<()> {
        let server = target.server();
        let removed = self.store.read(|db| {
            if db.is_resident(room.key, &server)? {
                return Ok(None);
            }
            for id in invite.auth_events() {
                let Some(event) = db.event(id)? else { continue };
                if event.pdu.is("m.room.member", target.as_str()) && event.pdu.sender() != target {
                    return Ok(Some(event));
                }
            }
            Ok(None)
        })?;
        let Some((removal, place)) = removed.and_then(|e| Some((e.pdu, e.place?))) else { return Ok(()) };
        let age = self.clock.now_ms() - removal.origin_server_ts();
        self.outgoing.wait_for_delivery(&server, place.stream, REMOVAL_TIMEOUT);
        // Some take in what they were sent only after they have answered, however long the delivery took.
        if (0..REMOVAL_AGE_MS).contains(&age) {
            self.scheduler.rest(Duration::from_millis(REMOVAL_AGE_MS.unsigned_abs()));
        }
        Ok(())
    }

    /// Whether what the user is in the room has changed since this invite was drafted: it rests on what they were.
    fn member_moved(&self, room: &Room, target: &UserId, invite: &Pdu) -> Result<bool> {
        let present = self.store.read(|db| db.state_event(room.key, "m.room.member", target.as_str()))?;
        Ok(present.is_some_and(|present| !invite.auth_events().contains(present.event_id())))
    }

    /// Whether an invite that is in the room is what the user is there, or was: somebody may have taken it back
    /// already, which is no reason to invite them again.
    fn took_effect(&self, room: &Room, target: &UserId, invite: &Pdu) -> Result<bool> {
        let present = self.store.read(|db| db.state_event(room.key, "m.room.member", target.as_str()))?;
        Ok(present.is_some_and(|present| {
            matches!(present.membership(), Some(Membership::Invite | Membership::Join))
                || present.auth_events().contains(invite.event_id())
        }))
    }

    /// Whether the local ones of these users can be invited. Errors: 403 `M_FORBIDDEN`, `M_INVITE_BLOCKED`; 429 `M_LIMIT_EXCEEDED`.
    pub fn check_own_invitees(&self, sender: &UserId, users: &[UserId]) -> Result<()> {
        let ours: Vec<&UserId> = users.iter().filter(|user| self.is_local(user)).collect();
        self.let_services_make(AskerId::User(sender.clone()), &ours)?;
        self.store.read(|db| ours.iter().try_for_each(|user| check_invitee(db, user)))
    }

    fn is_joined(&self, room: &Room, user: &UserId) -> Result<bool> {
        Ok(self.store.read(|db| db.membership(room.key, user))? == Some(Membership::Join))
    }

    /// Hands the invite to the invitee's server and returns the event as it came back. A server that does not know
    /// version 2 of the request is asked by version 1, where the room is old enough for it.
    fn offer_invite(
        &self,
        peer: &ServerName,
        ours: &Pdu,
        room: &Room,
        room_state: &[Box<RawValue>],
    ) -> Result<Map<String, Value>> {
        let version = room.version;
        let refused = |error: CallError| {
            if may_have_been_taken(&error) {
                self.note_offered_invite(room, ours);
            }
            let unsupported = matches!(
                error.errcode(),
                Some(ErrCode::IncompatibleRoomVersion | ErrCode::UnsupportedRoomVersion)
            );
            if unsupported {
                let why = format!("{peer} does not support rooms of version {}", version.id);
                return Error::new(ErrCode::UnsupportedRoomVersion, why);
            }
            error.as_limit(peer).unwrap_or_else(|| error.into_handshake_error(peer))
        };
        let (room_id, event_id) = (ours.room_id(), ours.event_id());
        let event = RawValue::from_string(ours.json_str().to_owned()).map_err(Error::internal)?;
        let answer = match self.federation.invite_v2(peer, room_id, event_id, version, &event, room_state) {
            Err(error) if matches!(version.id, "1" | "2") && may_be_older(&error) => {
                let body = with_room_state(ours, room_state)?;
                self.federation.invite_v1(peer, room_id, event_id, &body).map_err(refused)?
            }
            other => other.map_err(refused)?,
        };
        json::parse_object(answer.get().as_bytes()).map_err(|e| {
            self.note_offered_invite(room, ours);
            Error::bad_gateway(format!("{peer} answered the invite with no event")).with_cause(e)
        })
    }

    /// The answer must be the event that was sent with a valid signature of the invitee's server, and nothing else.
    /// Returns our own bytes with that signature added: whatever else came back is not looked at again.
    fn check_invite_answer(
        &self,
        ours: &VerifiedPdu,
        answer: Map<String, Value>,
        peer: &ServerName,
    ) -> Result<VerifiedPdu> {
        let odd = |what: &str| Error::bad_gateway(format!("{peer} answered the invite with {what}"));
        handshake::check_countersigned(ours, &answer).map_err(|e| odd("another event").with_cause(e))?;
        let both = handshake::with_signatures_of(ours, &answer, peer)?;
        match self.signature_in_time(&both, peer) {
            Ok(_) => Ok(both),
            Err(e @ SignatureError::NoKey(_)) => Err(Error::bad_gateway(format!(
                "{peer} has signed the invite by a key that it does not give at the moment, so that the room cannot have it yet"
            ))
            .with_cause(e)),
            Err(e) => Err(odd("an event without its signature").with_cause(e)),
        }
    }
}

/// Whether a server refused like one that knows only version 1 of invites: not with a reason of its own.
fn may_be_older(error: &CallError) -> bool {
    let unexplained = |status: u16, errcode: Option<&str>| matches!(status, 400 | 404) && errcode.is_none();
    error.is_unrecognized() || error.refusal().is_some_and(|r| unexplained(r.status, r.errcode.as_deref()))
}

/// The body of a version 1 invite: the event, with the room's state in its `unsigned`.
fn with_room_state(ours: &Pdu, room_state: &[Box<RawValue>]) -> Result<Vec<u8>> {
    let state =
        to_raw_value(&BTreeMap::from([("invite_room_state", room_state)])).map_err(Error::internal)?;
    let mut event: BTreeMap<String, &RawValue> = json::read(ours.json())?;
    event.insert("unsigned".to_owned(), &state);
    serde_json::to_vec(&event).map_err(Error::internal)
}

/// Whether there is such a local user, and takes invites. Errors: 403 `M_FORBIDDEN`, 403 `M_INVITE_BLOCKED`.
pub(in crate::service) fn check_invitee(db: &Db<'_>, user: &UserId) -> Result<()> {
    if !db.is_active_user(user)? {
        return Err(Error::forbidden(format!("There is no user {user} here")));
    }
    if blocks_invites(db, user)? {
        return Err(Error::new(ErrCode::InviteBlocked, format!("{user} takes no invites")));
    }
    Ok(())
}

/// Whether a local user takes no invites; those that are there already "MUST NOT be served over … synchronisation endpoints".
pub(in crate::service) fn blocks_invites(db: &Db<'_>, user: &UserId) -> Result<bool> {
    let config = db.account_data(user, None, "m.invite_permission_config")?;
    let config = config.and_then(|text| json::parse_object(text.as_bytes()).ok());
    Ok(config.as_ref().is_some_and(content::blocks_invites))
}

// ----- a local user is invited by another server -----

/// An invite as it came in.
pub struct InviteReceived<'a> {
    /// The server that sent it.
    pub origin: &'a ServerName,
    /// The room in the path.
    pub room_id: &'a RoomId,
    /// The event id in the path.
    pub event_id: &'a EventId,
    /// The version that the room is said to have.
    pub version: RoomVersion,
    /// The event's JSON.
    pub event: &'a [u8],
    /// `invite_room_state`.
    pub room_state: &'a [Box<RawValue>],
}

impl Memberships<'_> {
    /// `PUT /invite`, both versions: returns the event with our signature added. Errors: 400 `M_INVALID_PARAM`,
    /// `M_BAD_JSON`; 403 `M_FORBIDDEN`, also where a signature is lacking, `M_INVITE_BLOCKED`; 429 `M_LIMIT_EXCEEDED` if too
    /// many invites of that server or inviter wait already. A repeat gets the same answer and changes nothing.
    pub fn receive_invite(&self, received: InviteReceived<'_>) -> Result<Map<String, Value>> {
        let answer = self.receive_signed_invite(received);
        self.count_ending(|metrics| &metrics.invites_in, &answer);
        answer
    }

    fn receive_signed_invite(&self, received: InviteReceived<'_>) -> Result<Map<String, Value>> {
        let InviteReceived { origin, room_id, event_id, version, event, room_state } = received;
        if let Some(room) = self.resident_room(room_id)? {
            self.store.read(|db| RoomAcl::of(db, &room)?.check(origin))?;
        }
        let request =
            HandshakeRequest { origin, room_id, membership: Membership::Invite, user: None, versions: None };
        // Whether it is for a local user, with a place for it, shows before its signatures do: what is not is worth
        // no keys.
        let unproved = Pdu::parse(event, version)?;
        handshake::check_signed_event(&unproved, Membership::Invite, room_id, event_id, origin)?;
        let invitee = UserId::parse(unproved.state_key().unwrap_or_default())?;
        if !self.is_local(&invitee) {
            return Err(Error::invalid_param("The invited user is not of this server"));
        }
        self.let_services_make(AskerId::Peer(origin.clone()), &[&invitee])?;
        self.store.read(|db| {
            check_invitee(db, &invitee)?;
            check_open(db, room_id)?;
            check_place(db, &unproved, &invitee)
        })?;
        self.count_invite(origin, &unproved, &invitee)?;
        let invite = self.check_signed(event, version, &request, event_id)?;
        if !verify::required_signers(&invite)?.contains(origin) {
            // By way of a third-party invite. The room would look at that; from outside only the signature counts.
            self.check_signature_of(&invite, origin, KeyPurpose::Received(origin))?;
        }
        let stripped = self.check_room_state(origin, room_state, room_id, version, invite.sender())?;
        let signed = invite.signed(self.server_name(), &self.key_ring.signing_key())?;
        self.note_invite(&signed, &invitee, &stripped, Some(origin))?;
        Ok(signed.to_object())
    }

    /// [`Memberships::write_invite`], once a leave of the invitee's that is being handed in has an outcome: until then
    /// nobody can know which of the two is the later one.
    pub(in crate::service) fn note_invite(
        &self,
        invite: &VerifiedPdu,
        invitee: &UserId,
        stripped: &[Box<RawValue>],
        origin: Option<&ServerName>,
    ) -> Result<()> {
        let until = self.clock.instant() + LEAVE_OUTCOME_TIMEOUT;
        let mut hastened = false;
        let noted = self.handshake_locks.watch(until, || {
            match self.write_invite(invite, invitee, stripped, origin)? {
                InviteOutcome::Done => Ok(Some(())),
                InviteOutcome::LeaveUnderWay => {
                    if !std::mem::replace(&mut hastened, true) {
                        self.hasten(invite.room_id(), invitee)?;
                    }
                    Ok(None)
                }
            }
        })?;
        noted.ok_or_else(|| Refusal::LeaveUnderWay.into())
    }

    /// `invite_room_state`: from room version 12 on it must show the room's create event, and nothing that fails a
    /// check; before, peers send what they always did, and it is only decoration. What was made by servers that are
    /// gone, whose keys nobody can be asked for, fails none.
    fn check_room_state(
        &self,
        origin: &ServerName,
        entries: &[Box<RawValue>],
        room_id: &RoomId,
        version: RoomVersion,
        inviter: &UserId,
    ) -> Result<Vec<Box<RawValue>>> {
        let stripped = stripped_state::check_received(entries, room_id, version, inviter)?;
        if !version.room_id_is_create_hash {
            return Ok(stripped);
        }
        let verified = self.verified_entries(origin, entries, (room_id, version), KEYS_TIMEOUT);
        let fails = |e: Error| format!("An entry of invite_room_state fails a check: {}", e.message());
        let kept = verified.into_iter().collect::<Result<Vec<_>>>();
        let kept = kept.map_err(|e| Error::invalid_param(fails(e)))?;
        stripped_state::check_received(&kept, room_id, version, inviter)
    }

    /// Entries of `invite_room_state` or `knock_room_state` in the form that their signatures and hashes vouch for;
    /// those of four fields, for which nobody does, as they are, and so those whose key cannot be had. What is wrong with
    /// one is told instead. The create event of version 12 is vouched for by the room id, which is its hash. `origin` shows
    /// them to us; `within`: the time to find keys.
    pub(super) fn verified_entries(
        &self,
        origin: &ServerName,
        entries: &[Box<RawValue>],
        (room_id, version): (&RoomId, RoomVersion),
        within: Duration,
    ) -> Vec<Result<Box<RawValue>>> {
        let kind_of = |entry: &RawValue| match stripped_state::is_full_event(entry) {
            false => StrippedEntry::FourFields,
            true if is_create_of(entry, room_id, version) => StrippedEntry::Create,
            true => StrippedEntry::Event,
        };
        let kinds: Vec<StrippedEntry> = entries.iter().map(|entry| kind_of(entry)).collect();
        let check = |kind: StrippedEntry, within: Duration| {
            let of_kind = entries.iter().zip(&kinds).filter(|(_, of)| **of == kind);
            let bytes: Vec<&[u8]> = of_kind.map(|(entry, _)| entry.get().as_bytes()).collect();
            self.keys().check_received(origin, &bytes, version, within).into_iter()
        };
        // All at once: their servers may be slow to give their keys.
        let mut events = check(StrippedEntry::Event, within);
        // A signature that is known to be wrong counts here too; nobody is waited for to know it.
        let mut creates = check(StrippedEntry::Create, Duration::ZERO);
        let verified = |(entry, kind): (&RawValue, &StrippedEntry)| {
            let checked = match kind {
                StrippedEntry::FourFields => return Ok(entry.to_owned()),
                StrippedEntry::Create => creates.next(),
                StrippedEntry::Event => events.next(),
            };
            match checked {
                Some(Checked::Passed(event)) => {
                    RawValue::from_string(event.json_str().to_owned()).map_err(Error::internal)
                }
                Some(Checked::NoKey(..)) if *kind == StrippedEntry::Create => Ok(entry.to_owned()),
                Some(Checked::NoKey(event, _)) => to_raw_value(&strip(&event)).map_err(Error::internal),
                Some(Checked::Dropped(e)) => Err(e),
                None => Err(Error::internal("one event in, none out")),
            }
        };
        entries.iter().map(AsRef::as_ref).zip(&kinds).map(verified).collect()
    }

    /// Writes the invite down and shows it to the invitee; if they knocked, it is linked to the knock. In a room that
    /// this server is in the event comes again in a transaction, once the inviting server has it back, and until then is only
    /// awaited. `origin`: who offers it; none if the room tells us of one that we signed. Errors: 403 `M_FORBIDDEN` if
    /// the user has left since it was made, 429 `M_LIMIT_EXCEEDED`.
    fn write_invite(
        &self,
        invite: &VerifiedPdu,
        invitee: &UserId,
        stripped: &[Box<RawValue>],
        origin: Option<&ServerName>,
    ) -> Result<InviteOutcome> {
        let (invite, invitee, offered) = (invite.clone(), invitee.clone(), origin.is_some());
        let origin = origin.cloned().unwrap_or_else(|| invite.sender().server());
        let (stripped, now) = (stripped.to_vec(), self.clock.now_ms());
        self.store.write(move |tx| {
            if let Some(room) = tx.resident_room(invite.room_id())? {
                check_invite_as_resident(tx, &room, &origin, &invitee)?;
                return await_invite(tx, &room, (&invite, &invitee), &origin, now)
                    .map(|()| InviteOutcome::Done);
            }
            let old = remote_membership_or_state(tx, invite.room_id(), &invitee)?;
            if old.as_ref().is_some_and(|row| row.has_seen(&invite)) {
                return Ok(InviteOutcome::Done);
            }
            // The invitee, and who runs this server, may have decided otherwise since keys were asked for.
            if offered {
                check_invitee(tx, &invitee)?;
                check_open(tx, invite.room_id())?;
                check_place(tx, &invite, &invitee)?;
                check_version(tx, &invite)?;
            } else if !tx.is_active_user(&invitee)? || tx.is_room_shut(invite.room_id())? {
                return Ok(InviteOutcome::Done);
            }
            let old_invite = old.as_ref().and_then(|row| invite_in_place_of(row, &origin)).cloned();
            let answers = old.as_ref().is_some_and(|row| answers_beside(row, &invite, &origin));
            let left = last_leave(tx, invite.room_id(), &invitee)?;
            let fact = Fact::InviteArrives {
                invite: invite.clone().into(),
                invitee: invitee.clone(),
                stripped_state: stripped,
                from: origin.clone(),
                left,
            };
            match apply(old, fact, now) {
                Err(Refusal::LeaveUnderWay) => {
                    // The server that invites can take the leave too.
                    let fact = Fact::LeaveMayGoThrough(origin);
                    note(tx, invite.room_id(), &invitee, fact, now).map(|_| InviteOutcome::LeaveUnderWay)
                }
                effect => {
                    let effect = effect?;
                    tx.write_remote_membership(&effect)?;
                    note_accepted_knock(tx, old_invite.as_ref(), answers, &effect)?;
                    Ok(InviteOutcome::Done)
                }
            }
        })
    }
}

/// An invite that answers the local user's own knock is what they are joined by, if they want that, also if it does so beside
/// another one (`answers`); so is one that takes its place.
fn note_accepted_knock(tx: &mut Tx<'_>, old: Option<&EventId>, answers: bool, effect: &Effect) -> Result<()> {
    let Some(row) = effect.saved().filter(|row| row.state == RemoteState::Invited) else { return Ok(()) };
    let Some(invite) = row.told() else { return Ok(()) };
    // What it only covers was not meant for whoever made it.
    let is_covered = |old: &&EventId| row.covered.as_ref().is_some_and(|c| c.event.event_id() == *old);
    match old.filter(|old| !is_covered(old)) {
        _ if answers || row.answers().is_some() => tx.owe_join(&row.room_id, &row.user_id, invite),
        Some(old) => tx.owe_join_by(&row.room_id, &row.user_id, old, invite),
        None => Ok(()),
    }
}

/// What an entry of stripped state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StrippedEntry {
    /// Nobody has signed it.
    FourFields,
    /// The event whose hash the room id is.
    Create,
    /// Any other whole event.
    Event,
}

/// Whether an entry is the create event of a room whose id is the hash of it. Of such an event nothing can be changed
/// that anybody is shown: redaction leaves its content whole, so that the hash is one of all of it.
fn is_create_of(entry: &RawValue, room_id: &RoomId, version: RoomVersion) -> bool {
    version.room_id_is_create_hash
        && Pdu::parse(entry.get().as_bytes(), version)
            .is_ok_and(|event| event.is("m.room.create", "") && event.room_id() == room_id)
}

/// What became of an invite that came in.
enum InviteOutcome {
    Done,
    /// Nothing yet: a leave is being handed in.
    LeaveUnderWay,
}

/// A room that this server is in knows who may not be invited. Errors: 403 `M_FORBIDDEN`.
fn check_invite_as_resident(db: &Db<'_>, room: &Room, origin: &ServerName, invitee: &UserId) -> Result<()> {
    RoomAcl::of(db, room)?.check(origin)?;
    check_open(db, &room.room_id)?;
    match db.membership(room.key, invitee)? {
        Some(Membership::Join) => Err(Error::forbidden(format!("{invitee} is already in the room"))),
        Some(Membership::Ban) => Err(Error::forbidden(format!("{invitee} is banned from the room"))),
        _ => Ok(()),
    }
}
