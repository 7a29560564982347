//! Which requests of other servers are let in: the one guard (`admit`) and the one check of a signed event that is
//! handed in (`check_signed`), for all handshakes.

use std::time::{Duration, Instant};

use super::shown_state::stripped_events;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::pdu::{Membership, ParsedPdu};
use crate::protocol::rooms::policy_server::{POLICY_EVENT_TYPE, PolicyServer};
use crate::protocol::rooms::stripped_state::STRIPPED_TYPES;
use crate::protocol::signatures::verify::{self, SignatureError, SignedBy};
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, ServerName, UserId, VerifiedPdu, handshake};
use crate::service::accounts::moderation::{locked, suspended};
use crate::service::events::policy_server::policy_server_of;
use crate::service::events::server_acl::{self, RoomAcl};
use crate::service::keys::attempts::KeyPurpose;
use crate::service::keys::fetch::WantedKey;
use crate::service::membership::Memberships;
use crate::store::cache::fronts::RoomFront;
use crate::store::rooms::not_resident;
use crate::store::{Db, Room};

/// What another server asks for its user.
pub(super) struct HandshakeRequest<'a> {
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

/// Whether anybody may come into a room, as far as who runs this server is concerned. Errors: 403 `M_FORBIDDEN`.
pub(super) fn check_open(db: &Db<'_>, room_id: &RoomId) -> Result<()> {
    match db.is_room_shut(room_id)? {
        true => Err(Error::forbidden("This room has been blocked on this server")),
        false => Ok(()),
    }
}

/// Whether a local user may ask for being let into a room, by the transaction that commits what they ask: since the handshake
/// began another server was asked for its template, and who runs this server may have decided meanwhile. Errors: 403 `M_FORBIDDEN`,
/// `M_USER_SUSPENDED`, 401 `M_USER_LOCKED`.
pub(super) fn check_may_ask(db: &Db<'_>, room_id: &RoomId, user: &UserId) -> Result<()> {
    check_open(db, room_id)?;
    let standing = db.account(user)?.map(|account| account.standing).unwrap_or_default();
    match (standing.locked, standing.suspended) {
        (true, _) => Err(locked()),
        (false, true) => Err(suspended()),
        (false, false) => Ok(()),
    }
}

/// What of a room's state is asked for on behalf of such a request: the server ACL, and for a template what an event
/// rests on; for a signed event the policy server, and of a join or a knock what somebody outside is shown.
fn asked_for(request: &HandshakeRequest<'_>) -> &'static [&'static str] {
    const FOR_TEMPLATE: [&str; 4] =
        ["m.room.server_acl", "m.room.create", "m.room.power_levels", "m.room.join_rules"];
    const FOR_EVENT: [&str; 2 + STRIPPED_TYPES.len()] = {
        let mut types = [POLICY_EVENT_TYPE; 2 + STRIPPED_TYPES.len()];
        types[1] = "m.room.server_acl";
        let mut at = 0;
        while at < STRIPPED_TYPES.len() {
            types[2 + at] = STRIPPED_TYPES[at];
            at += 1;
        }
        types
    };
    match (request.user, request.membership) {
        (Some(_), _) => &FOR_TEMPLATE,
        (None, Membership::Join | Membership::Knock) => &FOR_EVENT,
        (None, _) => &FOR_EVENT[..2],
    }
}

/// [`Memberships::admit`] within a look at the room.
pub(super) fn admit(db: &Db<'_>, request: &HandshakeRequest<'_>) -> Result<Room> {
    let room = db.resident_room(request.room_id)?.ok_or_else(not_resident)?;
    db.foresee_state(room.key, asked_for(request))?;
    RoomAcl::of(db, &room)?.check(request.origin)?;
    if request.membership != Membership::Leave {
        check_open(db, request.room_id)?;
    }
    check_request(&room, request)?;
    Ok(room)
}

/// What of a request is checked against nothing but what the room is.
fn check_request(room: &Room, request: &HandshakeRequest<'_>) -> Result<()> {
    if request.user.is_some_and(|user| user.server_name() != request.origin.as_str()) {
        return Err(Error::forbidden("That user is not of the server that asks"));
    }
    if request.versions.is_some_and(|known| !known.contains(&room.version.id)) {
        return Err(Error::new(
            ErrCode::IncompatibleRoomVersion,
            "Your homeserver does not support the features required to enter this room",
        )
        .with_field("room_version", room.version.id));
    }
    if request.membership == Membership::Knock && !room.version.knock {
        return Err(Error::forbidden("Nobody can knock on a room of this version"));
    }
    Ok(())
}

/// What was handed in before is answered once more, with what the room is like, for who did not hear the answer: as long as they are
/// that in the room, or what comes of it. Else anybody who was ever let see the room from its door would see it for good. Errors:
/// 403 `M_FORBIDDEN`.
pub(super) fn check_still_holds(db: &Db<'_>, room: &Room, event: &Pdu) -> Result<()> {
    let present = db.state_event(room.key, "m.room.member", event.sender().as_str())?;
    let holds = match present.and_then(|present| present.membership()) {
        Some(Membership::Join) => true,
        Some(Membership::Knock | Membership::Invite) => event.membership() == Some(Membership::Knock),
        Some(Membership::Leave | Membership::Ban) | None => false,
    };
    match holds {
        true => Ok(()),
        false => Err(Error::forbidden("That was handed in before, and is over")),
    }
}

/// A room that a signed event may be handed in for.
pub(super) struct AdmittedRoom {
    /// Its counts and its state may be those of some time.
    pub room: Room,
    /// The policy server that it uses.
    pub policy: Option<PolicyServer>,
}

/// [`admit`] for who hands in a signed event.
pub(super) fn admit_event(db: &Db<'_>, request: &HandshakeRequest<'_>) -> Result<AdmittedRoom> {
    let room = admit(db, request)?;
    let policy = policy_server_of(db, &room)?;
    Ok(AdmittedRoom { room, policy })
}

/// [`admit_event`] by the front of the room as it is remembered; no room is shut.
fn admit_by_front(front: &RoomFront, request: &HandshakeRequest<'_>) -> Result<AdmittedRoom> {
    server_acl::check(front.acl.as_ref(), request.origin)?;
    check_request(&front.room, request)?;
    Ok(AdmittedRoom { room: front.room.clone(), policy: None })
}

/// The front of a room that was let in to, if it may be remembered. Which policy server there is depends on who is in the
/// room, and so it may not where there is any.
fn front_of(db: &Db<'_>, room: &Room, shown: &[Pdu]) -> Result<Option<RoomFront>> {
    if db.state_event_key(room.key, POLICY_EVENT_TYPE, "")?.is_some() {
        return Ok(None);
    }
    let acl = RoomAcl::of(db, room)?.into_inner();
    Ok(Some(RoomFront { room: room.clone(), acl, shown: shown.to_vec() }))
}

impl Memberships<'_> {
    /// The one guard of `make_join`, `make_knock`, `make_leave`, `send_join`, `send_knock` and `send_leave`, in this
    /// order. Errors:
    ///
    /// 1. 404 `M_NOT_FOUND`: this server is not in the room (or never heard of it).
    /// 2. 403 `M_FORBIDDEN`: the room's server ACL keeps the other server out.
    /// 3. 403 `M_FORBIDDEN`: who runs this server has blocked the room; out of it they may all the same.
    /// 4. 403 `M_FORBIDDEN`: the user is not of that server.
    /// 5. 400 `M_INCOMPATIBLE_ROOM_VERSION` with `room_version`: the other server does not know the room's version.
    /// 6. 403 `M_FORBIDDEN`: the room's version does not know this membership.
    ///
    /// What remains is up to the authorisation rules.
    pub(super) fn admit(&self, request: &HandshakeRequest<'_>) -> Result<Room> {
        self.store.read(|db| admit(db, request))
    }

    /// [`Self::admit`] for who hands in a signed join or knock, with the events that somebody outside is shown of the room: as
    /// it is remembered, or by one look at it. The transaction that takes the event in looks again at all that may keep it out.
    pub(super) fn admit_event(&self, request: &HandshakeRequest<'_>) -> Result<(AdmittedRoom, Vec<Pdu>)> {
        let known = self.store.front(request.room_id);
        // Which rooms are shut is not remembered, and mostly none ever was.
        if let Ok(front) = &known
            && !self.store.are_any_rooms_shut()
        {
            return Ok((admit_by_front(front, request)?, front.shown.clone()));
        }
        let (seen, shown, front) = self.store.read(|db| {
            let seen = admit_event(db, request)?;
            let shown = stripped_events(db, &seen.room, None)?;
            let front = front_of(db, &seen.room, &shown)?;
            Ok((seen, shown, front))
        })?;
        if let (Err(emptied), Some(front)) = (known, front) {
            self.store.keep_front(emptied, front);
        }
        Ok((seen, shown))
    }

    /// The one check of an event that another server hands in signed: `send_join`, `send_knock`, `send_leave` and
    /// invites. Its type, membership, sender, state key, room and computed event id are what the request says, its
    /// content hash is right, and everyone who has to sign it has.
    /// Errors: 400 `M_BAD_JSON`, `M_NOT_JSON`, `M_INVALID_PARAM`; 403 `M_FORBIDDEN` if its sender is not of the server that
    /// asks, or somebody has not signed it.
    pub(super) fn check_signed(
        &self,
        body: &[u8],
        version: RoomVersion,
        request: &HandshakeRequest<'_>,
        event_id: &EventId,
    ) -> Result<VerifiedPdu> {
        self.check_signed_event(Pdu::parse_whole(body, version)?, request, event_id)
    }

    /// [`Self::check_signed`] for an event that was parsed before.
    pub(super) fn check_signed_event(
        &self,
        event: ParsedPdu,
        request: &HandshakeRequest<'_>,
        event_id: &EventId,
    ) -> Result<VerifiedPdu> {
        let (membership, room_id, origin) = (request.membership, request.room_id, request.origin);
        handshake::check_signed_event(&event.pdu, membership, room_id, event_id, origin)?;
        // Before anybody is asked for keys on its behalf.
        if !event.is_whole() {
            return Err(Error::invalid_param("The event's content hash is wrong"));
        }
        let verdict = self.keys().check_parsed_pdu(event, KeyPurpose::Received(origin));
        verdict.map_err(|e| {
            let told = format!("The event fails a check: {}", e.message());
            e.with_message(told)
        })
    }

    /// The evidence that one particular server has signed an event, required or not. `purpose` as for
    /// [`Self::check_parsed_pdu`]. Errors: 403 `M_FORBIDDEN`.
    pub(in crate::service) fn check_signature_of(
        &self,
        event: &Pdu,
        server: &ServerName,
        purpose: KeyPurpose<'_>,
    ) -> Result<SignedBy> {
        Ok(self.signature_of(event, server, purpose)?)
    }

    /// [`Self::check_signature_of`], with what is wrong as it is.
    pub(super) fn signature_of(
        &self,
        event: &Pdu,
        server: &ServerName,
        purpose: KeyPurpose<'_>,
    ) -> std::result::Result<SignedBy, SignatureError> {
        const KEYS_TIMEOUT: Duration = Duration::from_secs(30);
        let object = event.canonical();
        let valid_at = if event.version().enforce_key_validity { event.origin_server_ts() } else { 0 };
        let wanted: Vec<WantedKey> = object
            .signatures_of(server.as_str())
            .into_iter()
            .map(|(key_id, _)| WantedKey { server: server.clone(), key_id: key_id.into_owned(), valid_at })
            .collect();
        let deadline = Instant::now() + KEYS_TIMEOUT;
        let mut found = self.keys().gather_keys(&wanted, &[], purpose, KEYS_TIMEOUT);
        self.keys().check_with(&mut found, purpose, deadline, |found, doubts| {
            let keys = |server: &str, key_id: &str| found.get(server, key_id);
            doubts.noted(verify::verify_event_by(event, server, &keys))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::service::events::tests::{alice, draft, homeserver, room};

    #[test]
    fn what_is_foreseen_of_a_rooms_state_is_what_it_has() {
        let hs = homeserver();
        let (one, other) = (room(&hs, "11"), room(&hs, "12"));
        let set = |room: &RoomId, event_type: &str, content| {
            hs.events().send(draft(room, &alice(), event_type, Some(""), content)).expect("allowed");
        };
        set(&one, "m.room.name", json!({ "name": "one" }));
        set(&one, "m.room.topic", json!({ "topic": "none" }));
        set(&other, "m.room.avatar", json!({ "url": "mxc://a/b" }));
        set(&one, "m.room.topic", json!({ "topic": "some" }));
        let request = |user, membership| HandshakeRequest {
            origin: hs.server_name(),
            room_id: &one,
            membership,
            user,
            versions: None,
        };
        let alice = alice();
        let seen = |foreseen: Option<&HandshakeRequest<'_>>| {
            let look = |db: &Db<'_>| {
                let rooms = [db.known_room(&one)?.key, db.known_room(&other)?.key];
                if let Some(request) = foreseen {
                    db.foresee_state(rooms[0], asked_for(request))?;
                }
                let types = STRIPPED_TYPES.into_iter().chain(["m.room.server_acl", "m.room.power_levels"]);
                let all = types.flat_map(|event_type| {
                    rooms.map(|room| db.state_event_key(room, event_type, "")).into_iter()
                });
                Ok((all.collect::<Result<Vec<_>>>()?, db.state_event_key(rooms[0], "m.room.name", "x")?))
            };
            hs.store.read(look).expect("readable")
        };
        let plain = seen(None);
        assert!(plain.0.iter().any(Option::is_none) && plain.0.iter().any(Option::is_some));
        for request in [
            request(Some(&alice), Membership::Join),
            request(None, Membership::Knock),
            request(None, Membership::Leave),
        ] {
            assert_eq!(seen(Some(&request)), plain);
        }
    }
}
