//! Memberships: joining, knocking, inviting, leaving, kicking and banning.
//!
//! Both ends of a handshake live in one file: `knock` has our user knocking elsewhere *and* a stranger knocking here.
//! This file has what the handshakes share: the one guard that decides whom we deal with (`admit`), the one check of
//! a signed event that is handed in (`check_signed`), the way to ask several servers until one says yes, and the turns
//! that keep two handshakes of one user in one room apart.
//!
//! A room that we are in follows its own state, and a membership changes there by an ordinary event. A room that we are
//! not in has a row in `remote_memberships`, which only `protocol::remote_membership::apply` may change. What is
//! about to be said to another server is committed first; what an answer means is judged against the row as it is by
//! then, so that a late answer changes nothing.
//!
//! How much strangers may ask of us is bounded before anything is made of it: knocks by `knock_budget`, invites by
//! `invite::check_place`.
//!
//! # Who waits for whom
//!
//! Two handshakes of one user in one room may meet: on one server, or on the wire. What comes later in the room counts, and
//! nobody sees the whole room from outside; so there is one order.
//!
//! 1. **Here, one at a time.** Joining, knocking and telling a leave take turns (`turns`). A leave is written down at once
//!    and told in its turn; the answer to the user waits a moment until it is told.
//! 2. **An invite waits for a leave that is being handed in**, since nobody is invited without the signature of their own
//!    server. A leave that nobody was handed yet is dropped for a newer invite. One that was is in the row, signed, before
//!    it is sent, and until its outcome is known an invite gets no answer (`note_invite`). What is signed then was made
//!    after the leave, or is refused; the inviter's server drafts it anew (`invite_with`).
//! 3. **At the resident, what is asked for that user waits for the invite that is under way to them**: a template for a
//!    leave, a knock, and a join that would be refused (`after_their_invite`). Their server shows an invite when it signs
//!    it, before the room has it. Only `send_leave` does not wait. And an invite is not offered before the server of
//!    somebody who was removed has heard of that (`after_removal`).
//! 4. **Who asks a server that does not wait asks again** for a second or two (`standing`): while a template rests on what
//!    our user is no longer, or an invite that we signed is not known yet.
//! 5. **What the events' own order does not tell is asked of the room**: whether an invite that met a removal stands, or one
//!    with which our user was not let in (`look_up_invite`).
//!
//! So other requests wait for an invite, an invite for `send_leave` (or a transaction), and these for nobody: there is no
//! circle. And every wait ends by itself: 3 within 5 seconds and for four requests at most, 2 within 3 seconds with a
//! refusal, 1 for the user's answer within 2. A crash loses nothing but the waiting: each of these is a row with a time.

mod invite;
pub mod join;
mod kick_ban;
pub(in crate::service) mod knock;
mod knock_budget;
pub(in crate::service) mod leave;
mod locks;
mod owed_invites;
pub(in crate::service) mod rows;
pub(in crate::service) mod standing;
pub mod third_party_invite;

pub use crate::service::membership::locks::Turns;
pub use invite::InviteReceived;
pub(in crate::service) use invite::blocks_invites;
pub use knock_budget::KnockBudget;
pub(in crate::service) use rows::shown_to_client;
use std::ops::Deref;

use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::Homeserver;
use crate::error::{ErrCode, Error, Result};
use crate::federation::calls::{HandshakeKind, Template};
use crate::federation::{CallError, CallResult};
use crate::protocol::event_auth::{JoinRules, PowerLevels};
use crate::protocol::pdu::Membership;
pub(in crate::service) use crate::protocol::remote_membership::backoff_ms;
use crate::protocol::remote_membership::{ATTEMPTS_MAX, RemoteMembership, RemoteState};
use crate::protocol::verify::{self, SignedBy};
use crate::protocol::{
    EventId, Pdu, RoomId, RoomVersion, ServerName, UserId, VerifiedPdu, handshake, room_version,
};
use crate::service::events::build::Draft;
use crate::service::events::server_acl::RoomAcl;
use crate::service::keys::attempts::KeyPurpose;
use crate::service::keys::fetch::WantedKey;
use crate::store::rooms::not_resident;
use crate::store::{Db, Room};

/// Joining, knocking, inviting, leaving, kicking and banning.
#[derive(Clone, Copy)]
pub struct Memberships<'h>(&'h Homeserver);

impl Deref for Memberships<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// Joining, knocking, inviting, leaving, kicking and banning.
    pub fn membership(&self) -> Memberships<'_> {
        Memberships(self)
    }
}

/// A room as somebody outside knows it: its id, and servers that may let them in, best first.
#[derive(Debug, Clone)]
pub struct Door {
    /// The room.
    pub room_id: RoomId,
    /// Servers to go through.
    pub via: Vec<ServerName>,
}

/// How many servers are asked in one handshake.
const MOST_CANDIDATES: usize = 12;

/// How long a client waits for a handshake at most: after this no further server is asked.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long another server's user waits for the invite that is under way to them.
const INVITE_WITHIN: Duration = Duration::from_secs(5);

// ----- our side as the resident: the guard and the check -----

/// What another server asks for its user.
pub(super) struct Ask<'a> {
    /// The server that asks.
    pub origin: &'a ServerName,
    /// The room.
    pub room_id: &'a RoomId,
    /// What the user wants to be.
    pub membership: Membership,
    /// For a template: the user it is for. A signed event speaks for itself.
    pub user: Option<&'a UserId>,
    /// For a template of a join or a knock: the room versions that the other server knows.
    pub versions: Option<&'a [&'a str]>,
}

impl Memberships<'_> {
    /// The one guard of `make_join`, `make_knock`, `make_leave`, `send_join`, `send_knock` and `send_leave`, in this
    /// order. Errors:
    ///
    /// 1. 404 `M_NOT_FOUND`: we are not in the room (or never heard of it).
    /// 2. 403 `M_FORBIDDEN`: the room's server ACL keeps the other server out.
    /// 3. 403 `M_FORBIDDEN`: the user is not of that server.
    /// 4. 400 `M_INCOMPATIBLE_ROOM_VERSION` with `room_version`: the other server does not know the room's version.
    /// 5. 403 `M_FORBIDDEN`: the room's version does not know this membership.
    ///
    /// What remains is up to the authorisation rules.
    pub(super) fn admit(&self, ask: &Ask<'_>) -> Result<Room> {
        let room = self.store.read(|db| {
            let room = db.resident_room(ask.room_id)?.ok_or_else(not_resident)?;
            RoomAcl::of(db, &room)?.check(ask.origin)?;
            Ok(room)
        })?;
        if ask.user.is_some_and(|user| user.server_name() != ask.origin.as_str()) {
            return Err(Error::forbidden("That user is not of the server that asks"));
        }
        if ask.versions.is_some_and(|known| !known.contains(&room.version.id)) {
            return Err(Error::new(
                ErrCode::IncompatibleRoomVersion,
                "Your homeserver does not support the features required to enter this room",
            )
            .with_field("room_version", room.version.id));
        }
        if ask.membership == Membership::Knock && !room.version.knock {
            return Err(Error::forbidden("Nobody can knock on a room of this version"));
        }
        Ok(room)
    }

    /// `GET /make_join`, `/make_knock`, `/make_leave`: an event for the other server to sign, that would be accepted
    /// now. `versions`: what it sent as `ver`; none for a leave. Errors: 429 `M_LIMIT_EXCEEDED` for a knock that is beyond
    /// the budget (the specification names no errors for limits here; `make_join` is limited so elsewhere).
    pub fn make_template(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        user: &UserId,
        membership: Membership,
        versions: Option<&[&str]>,
    ) -> Result<(Map<String, Value>, RoomVersion)> {
        let room = self.admit(&Ask { origin, room_id, membership, user: Some(user), versions })?;
        if membership == Membership::Knock {
            self.may_knock(&room, user)?;
        }
        if membership == Membership::Join {
            return self.after_their_invite(room_id, user, || self.template_of(&room, user, membership));
        }
        self.turns.wait_for_end(room_id, user, INVITE_WITHIN);
        self.template_of(&room, user, membership)
    }

    /// Does it, and if it is refused while an invite to this user of another server is under way, once more when that is
    /// in the room.
    pub(super) fn after_their_invite<T>(
        &self,
        room_id: &RoomId,
        user: &UserId,
        ask: impl Fn() -> Result<T>,
    ) -> Result<T> {
        match ask() {
            Err(e) if e.status() == 403 && self.turns.wait_for_end(room_id, user, INVITE_WITHIN) => ask(),
            other => other,
        }
    }

    fn template_of(
        &self,
        room: &Room,
        user: &UserId,
        membership: Membership,
    ) -> Result<(Map<String, Value>, RoomVersion)> {
        let room_id = &room.room_id;
        let mut content = Map::from_iter([("membership".to_owned(), Value::from(membership.as_str()))]);
        if membership == Membership::Join
            && let Some(authoriser) = self.authoriser(room, user)?
        {
            content.insert(AUTHORISER.to_owned(), authoriser.as_str().into());
        }
        let (mut event, version) = self.events().template(member_draft(room_id, user, user, content))?;
        event.insert("origin".to_owned(), self.server_name().as_str().into());
        Ok((event, version))
    }

    /// The one check of an event that another server hands in signed: `send_join`, `send_knock`, `send_leave` and
    /// invites. Its type, membership, sender, state key, room and computed event id are what the request says, its
    /// content hash is right, and everyone who has to sign it has.
    /// Errors: 400 `M_BAD_JSON`, `M_NOT_JSON`, `M_INVALID_PARAM`.
    pub(super) fn check_signed(
        &self,
        body: &[u8],
        version: RoomVersion,
        ask: &Ask<'_>,
        event_id: &EventId,
    ) -> Result<VerifiedPdu> {
        let pdu = Pdu::parse(body, version)?;
        handshake::check_signed_event(&pdu, ask.membership, ask.room_id, event_id, ask.origin)?;
        if !pdu.canonical().content_hash_matches() {
            return Err(Error::invalid_param("The event's content hash is wrong"));
        }
        let verdict = self.keys().check_parsed_pdu(&pdu, KeyPurpose::Received(ask.origin));
        verdict.map_err(|e| Error::invalid_param(format!("The event fails a check: {}", e.message())))
    }
}

/// The key of a restricted join's content that names the user in whose name the room lets somebody in.
pub(crate) const AUTHORISER: &str = "join_authorised_via_users_server";

impl Memberships<'_> {
    /// For a join of a restricted room by somebody who is neither invited nor in it: the user of ours in whose name we
    /// let them in. None if the join needs no such name. Errors: 403 `M_FORBIDDEN` if the user fulfils no condition,
    /// 400 `M_UNABLE_TO_AUTHORISE_JOIN` if we cannot know, 400 `M_UNABLE_TO_GRANT_JOIN` if none of us may invite.
    pub(super) fn authoriser(&self, room: &Room, user: &UserId) -> Result<Option<UserId>> {
        self.store.read(|db| {
            let state =
                |event_type: &str, key: &str| db.state_event(room.key, event_type, key).ok().flatten();
            let rules = JoinRules::of(room.version, &state);
            let present = db.membership(room.key, user)?;
            if !rules.rule.is_restricted(room.version)
                || matches!(present, Some(Membership::Invite | Membership::Join))
            {
                return Ok(None);
            }
            if present == Some(Membership::Ban) {
                return Err(Error::forbidden("You are banned from this room"));
            }
            check_conditions(db, &rules.allowed_rooms, user)?;
            let levels = PowerLevels::of(room.version, &state);
            let mut ours = db.joined_local_users(room.key)?;
            ours.retain(|one| levels.may_invite(one.as_str()));
            let highest = ours.into_iter().max_by_key(|one| levels.user(one.as_str()));
            highest.map(Some).ok_or_else(|| {
                Error::new(
                    ErrCode::UnableToGrantJoin,
                    "Nobody on this server may let you in; try another server",
                )
            })
        })
    }
}

/// Whether the user is in one of the rooms whose members a restricted room lets in ("Restricted rooms").
fn check_conditions(db: &Db<'_>, allowed: &[RoomId], user: &UserId) -> Result<()> {
    let mut all_known = true;
    for room_id in allowed {
        match db.resident_room(room_id)? {
            Some(room) if db.membership(room.key, user)? == Some(Membership::Join) => return Ok(()),
            Some(_) => {}
            None => all_known = false,
        }
    }
    // One of us would make us resident, so what we do not know of our own users is not so.
    if all_known || db.is_ours(user.as_str()) {
        return Err(Error::forbidden("You are in none of the rooms whose members may join this room"));
    }
    Err(Error::new(
        ErrCode::UnableToAuthoriseJoin,
        "This server is not in the rooms whose members may join this room",
    ))
}

// ----- our side as the one who asks -----

impl Memberships<'_> {
    /// What the scheduler does with a row that is due: whatever its state still has to be told to other servers.
    pub(in crate::service) fn pursue_membership(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        let Some(_turn) = self.turns.try_take(room_id, user) else {
            // A request of the user's is at it, and may settle the matter.
            let (room_id, user, soon) = (room_id.clone(), user.clone(), self.clock.now_ms() + 2_000);
            return self.store.write(move |tx| tx.lease_remote_membership(&room_id, &user, soon));
        };
        let Some(row) = self.store.read(|db| db.remote_membership(room_id, user))? else { return Ok(()) };
        match row.state {
            RemoteState::Knocking => self.deliver_knock(&row, &row.via),
            RemoteState::Joining => self.resume_join(&row),
            RemoteState::Leaving => self.deliver_leave(&row),
            RemoteState::Invited => self.look_up_invite(&row),
            // Nothing to tell anybody: settled since it was looked up.
            RemoteState::Knocked | RemoteState::Closed => Ok(()),
        }
    }

    /// Does what our user asks for in its turn. What they asked for meanwhile is taken up after it: they may have left.
    pub(super) fn in_turn<T>(
        &self,
        room_id: &RoomId,
        user: &UserId,
        ask: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let turn = self.turns.take(room_id, user)?;
        let answer = ask();
        drop(turn);
        let row = self.store.read(|db| db.remote_membership(room_id, user))?;
        if row.is_some_and(|row| row.state == RemoteState::Leaving) {
            self.hasten(room_id, user)?;
        }
        answer
    }

    /// Has the scheduler take up a row now that is due some day.
    pub(super) fn hasten(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        let (room_id, user, now) = (room_id.clone(), user.clone(), self.clock.now_ms());
        self.store.write(move |tx| tx.hasten_remote_membership(&room_id, &user, now))?;
        self.scheduler.wake();
        Ok(())
    }

    /// Does the one thing in a room that we are in, the other for a room that we are not in; and if that changes at the
    /// same moment (the user is removed and we are out with them, or another of us comes in), what it has become.
    pub(super) fn here_or_elsewhere<T>(
        &self,
        room_id: &RoomId,
        here: impl Fn(&Room) -> Result<T>,
        elsewhere: impl Fn() -> Result<T>,
    ) -> Result<T> {
        if let Some(room) = self.resident_room(room_id)? {
            match here(&room) {
                Err(_) if self.resident_room(room_id)?.is_none() => {}
                other => return other,
            }
        }
        elsewhere().or_else(|e| match self.resident_room(room_id)? {
            Some(room) => here(&room),
            None => Err(e),
        })
    }

    /// The room, if we are in it: then everything is an ordinary event.
    pub(super) fn resident_room(&self, room_id: &RoomId) -> Result<Option<Room>> {
        self.store.read(|db| db.resident_room(room_id))
    }

    /// The content of our user's own member event: profile and reason beside the membership.
    pub(super) fn member_content(
        &self,
        user: &UserId,
        membership: Membership,
        reason: Option<&str>,
    ) -> Result<Map<String, Value>> {
        let mut content = Map::from_iter([("membership".to_owned(), Value::from(membership.as_str()))]);
        if self.is_ours(user)
            && matches!(membership, Membership::Join | Membership::Knock | Membership::Invite)
        {
            let profile = self.store.read(|db| db.profile(user))?;
            for field in ["displayname", "avatar_url"] {
                if let Some(value) = profile.get(field).filter(|v| v.is_string()) {
                    content.insert(field.to_owned(), value.clone());
                }
            }
        }
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        Ok(content)
    }

    /// The servers to ask, best first and never ourselves: the one that we knocked through, the inviter's, those that
    /// the client named, others that were worth asking before, those that we saw in the room when we were in it, the one
    /// in the room's id. Errors: 404 `M_NOT_FOUND` if there are none.
    pub(super) fn candidates(&self, door: &Door, row: Option<&RemoteMembership>) -> Result<Vec<ServerName>> {
        let known = row.map_or(&[][..], |row| &row.via);
        let inviter = row.and_then(|row| row.event.as_ref()).map(|event| event.sender().server());
        let seen = self.store.read(|db| match db.room(&door.room_id)? {
            Some(room) => db.resident_servers(room.key),
            None => Ok(Vec::new()),
        })?;
        let all = known.iter().take(1).cloned().chain(inviter).chain(door.via.iter().cloned());
        let all = all.chain(known.iter().skip(1).cloned()).chain(seen);
        let all = all.chain(door.room_id.server_name().and_then(|name| ServerName::parse(name).ok()));
        let mut candidates: Vec<ServerName> = Vec::new();
        for server in all {
            if &server != self.server_name() && !candidates.contains(&server) {
                candidates.push(server);
            }
        }
        if candidates.is_empty() {
            return Err(Error::not_found("No server is known that is in that room; name one with `via`"));
        }
        candidates.truncate(MOST_CANDIDATES);
        Ok(candidates)
    }

    /// For a room that we are not in: what the user is to it as far as we know, and the servers to ask about it.
    pub(super) fn seen_from_outside(
        &self,
        user: &UserId,
        door: &Door,
    ) -> Result<(Option<Membership>, Vec<ServerName>)> {
        let row = self.store.read(|db| rows::remote_row(db, &door.room_id, user))?;
        let membership = row.as_ref().and_then(|row| match row.state {
            RemoteState::Knocking | RemoteState::Knocked => Some(Membership::Knock),
            RemoteState::Invited => Some(Membership::Invite),
            RemoteState::Leaving | RemoteState::Closed => Some(Membership::Leave),
            RemoteState::Joining => None,
        });
        match self.candidates(door, row.as_ref()) {
            Ok(servers) => Ok((membership, servers)),
            Err(error) if error.errcode() == ErrCode::NotFound => Ok((membership, Vec::new())),
            Err(error) => Err(error),
        }
    }

    /// Asks one server for a template and checks it as the specification wants it: it is a member event of this room
    /// for this user and membership, in a room version that we know.
    pub(super) fn ask_template(
        &self,
        peer: &ServerName,
        kind: HandshakeKind,
        room_id: &RoomId,
        user: &UserId,
    ) -> CallResult<(Map<String, Value>, RoomVersion)> {
        let membership = match kind {
            HandshakeKind::Join => Membership::Join,
            HandshakeKind::Knock => Membership::Knock,
            HandshakeKind::Leave => Membership::Leave,
        };
        let versions: Vec<RoomVersion> =
            room_version::all().iter().filter(|v| kind != HandshakeKind::Knock || v.knock).collect();
        let Template { room_version, event } =
            self.federation.make_membership(peer, kind, room_id, user, &versions)?;
        let version = versions.into_iter().find(|version| version.id == room_version);
        let version =
            version.ok_or_else(|| CallError::bad("a template of a room version that was not asked for"))?;
        handshake::check_template(&event, room_id, user, membership, version).map_err(|e| {
            CallError::bad(format!("a template that is not what was asked for: {}", e.message()))
        })?;
        Ok((event, version))
    }

    /// Makes a template ours: our content, our time and name, our hash and signature. Of its content nothing is taken
    /// over but the user that authorises a restricted join.
    pub(super) fn sign_template(
        &self,
        template: &Map<String, Value>,
        version: RoomVersion,
        content: &Map<String, Value>,
    ) -> Result<Pdu> {
        let mut content = content.clone();
        let authoriser = template.get("content").and_then(|c| c.get(AUTHORISER));
        if version.restricted_join
            && content.get("membership").is_some_and(|m| m == "join")
            && let Some(authoriser) = authoriser
        {
            content.insert(AUTHORISER.to_owned(), authoriser.clone());
        }
        handshake::finish(
            template,
            content,
            self.server_name(),
            &self.key_ring.signing_key(),
            self.clock.now_ms(),
            version,
        )
    }
}

impl Memberships<'_> {
    /// The evidence that one particular server has signed an event, required or not. `purpose` as for
    /// [`Self::check_parsed_pdu`]. Errors: 400 `M_INVALID_PARAM`.
    pub(super) fn check_signature_of(
        &self,
        event: &Pdu,
        server: &ServerName,
        purpose: KeyPurpose<'_>,
    ) -> Result<SignedBy> {
        const WITHIN: Duration = Duration::from_secs(30);
        let object = event.canonical();
        let valid_at = if event.version().enforce_key_validity { event.origin_server_ts() } else { 0 };
        let wanted: Vec<WantedKey> = object
            .signatures_of(server.as_str())
            .into_iter()
            .map(|(key_id, _)| WantedKey { server: server.clone(), key_id: key_id.into_owned(), valid_at })
            .collect();
        let found = self.keys().gather_keys(&wanted, None, purpose, WITHIN);
        let keys = |server: &str, key_id: &str| found.get(server, key_id);
        Ok(verify::verify_event_by(event, server, &keys)?)
    }
}

/// A draft of a member event.
pub(super) fn member_draft(
    room: &RoomId,
    sender: &UserId,
    target: &UserId,
    content: Map<String, Value>,
) -> Draft {
    Draft {
        room: room.clone(),
        sender: sender.clone(),
        event_type: "m.room.member".to_owned(),
        state_key: Some(target.as_str().to_owned()),
        content,
        redacts: None,
    }
}

/// What several servers said to the same question, as long as none said yes.
pub(super) struct Answers {
    until: Instant,
    refusal: Option<Error>,
    limit: Option<Error>,
    failure: Option<Error>,
    undecided: bool,
}

impl Answers {
    pub fn new(now: Instant) -> Self {
        Self { until: now + PATIENCE, refusal: None, limit: None, failure: None, undecided: false }
    }

    /// Whether there is time to ask another server.
    pub fn has_time(&self, now: Instant) -> bool {
        now < self.until
    }

    /// Takes down what a server said.
    pub fn add(&mut self, peer: &ServerName, error: CallError) {
        log::info!("{peer} did not take part in a handshake: {error}");
        // 401 speaks of our keys, which the other server may have trouble to get; nonsense speaks of nothing.
        let undecided = match &error {
            CallError::Refused(refusal) => error.is_transient() || refusal.status == 401,
            CallError::Unreachable(_) | CallError::BadAnswer(_) | CallError::AfterSuccess(_) => true,
        };
        if let Some(limit) = error.as_limit(peer) {
            self.limit.get_or_insert(limit);
            return;
        }
        self.undecided |= undecided;
        let error = error.into_client_error(peer);
        let speaks_of_the_room = !undecided && error.errcode().is_relayable();
        // A server that is not in the room knows less of it than one that says no.
        let is_better =
            self.refusal.as_ref().is_none_or(|first| first.status() == 404 && error.status() != 404);
        if speaks_of_the_room && is_better {
            self.refusal = Some(error);
        } else if !speaks_of_the_room {
            self.failure.get_or_insert(error);
        }
    }

    /// Whether some server may yet say yes: it could not be reached, had trouble of its own, or wants to be asked later.
    pub fn undecided(&self) -> bool {
        self.undecided || self.limit.is_some()
    }

    /// Whether the only ones that may are those that want to be asked later.
    pub fn only_later(&self) -> bool {
        !self.undecided && self.limit.is_some()
    }

    /// What the client is told: the first refusal that speaks of the room, that it asked too often, else that no server
    /// could help.
    pub fn into_error(self) -> Error {
        let (unknown, refusal) = match self.refusal {
            Some(error) if error.status() == 404 => (Some(error), None),
            other => (None, other),
        };
        refusal
            .or(self.limit)
            .or(unknown)
            .or(self.failure)
            .unwrap_or_else(|| Error::bad_gateway("No server could be asked in time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::PeerError;

    fn refusal(status: u16, errcode: &str) -> CallError {
        let (errcode, message) = (Some(errcode.to_owned()), "no".to_owned());
        CallError::Refused(Box::new(PeerError { status, errcode, message, body: Map::new() }))
    }

    fn told(said: Vec<CallError>) -> (u16, bool) {
        let peer = ServerName::parse("b.org").unwrap();
        let mut answers = Answers::new(Instant::now());
        said.into_iter().for_each(|error| answers.add(&peer, error));
        let undecided = answers.undecided();
        (answers.into_error().status(), undecided)
    }

    #[test]
    fn the_client_is_told_the_refusal_that_says_most_of_the_room() {
        let unreachable = || CallError::Unreachable("gone".into());
        assert_eq!(told(vec![refusal(404, "M_NOT_FOUND"), refusal(403, "M_FORBIDDEN")]), (403, false));
        assert_eq!(told(vec![refusal(403, "M_FORBIDDEN"), refusal(404, "M_NOT_FOUND")]), (403, false));
        assert_eq!(told(vec![unreachable(), refusal(404, "M_NOT_FOUND")]), (404, true));
        assert_eq!(told(vec![refusal(500, "M_UNKNOWN"), unreachable()]), (502, true));
        assert_eq!(told(vec![refusal(401, "M_UNAUTHORIZED")]), (502, true));
        let limit = || refusal(429, "M_LIMIT_EXCEEDED");
        assert_eq!(told(vec![unreachable(), refusal(404, "M_NOT_FOUND"), limit()]), (429, true));
        assert_eq!(told(vec![limit(), refusal(403, "M_FORBIDDEN")]), (403, true));
        assert_eq!(told(vec![refusal(404, "M_UNRECOGNIZED")]), (502, false));
        assert_eq!(told(vec![CallError::bad("HTML")]), (502, true));
        assert_eq!(told(Vec::new()), (502, false));
    }
}
