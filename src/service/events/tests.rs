//! The room engine on a homeserver without listeners: rooms, forks, refusals, redactions, crashes.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::clock::Clock;
use crate::config::Config;
use crate::error::{ErrCode, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::room_version::{self, EventIdFormat};
use crate::protocol::signatures::hash;
use crate::protocol::signatures::sign::SigningKey;
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, ServerName, UserId, VerifiedPdu};
use crate::service::Homeserver;
use crate::service::events::build::Draft;
use crate::service::rooms::create::CreateRoom;
use crate::store::{EventKey, Status, StoredEvent};

pub(super) fn homeserver() -> Arc<Homeserver> {
    homeserver_named("here.example")
}

fn homeserver_named(name: &str) -> Arc<Homeserver> {
    let name = ServerName::parse(name).unwrap();
    Homeserver::open(Config::for_name(name), Clock::new()).unwrap()
}

pub(super) fn user(id: &str) -> UserId {
    UserId::parse(id).unwrap()
}

pub(super) fn alice() -> UserId {
    user("@alice:here.example")
}

fn bob() -> UserId {
    user("@bob:there.example")
}

pub(super) fn there() -> ServerName {
    ServerName::parse("there.example").unwrap()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => panic!("not an object"),
    }
}

/// A public room of Alice's.
pub(super) fn room(hs: &Homeserver, version: &str) -> RoomId {
    let version = room_version::room_version(version).unwrap();
    let wishes: CreateRoom =
        serde_json::from_value(json!({ "preset": "public_chat", "name": "Kitchen" })).unwrap();
    let events = wishes.plan(&alice(), &Map::new(), version, None).unwrap();
    hs.rooms().create_room_with(version, &alice(), &events, |_, _| Ok(())).unwrap()
}

pub(super) fn draft(
    room: &RoomId,
    sender: &UserId,
    event_type: &str,
    state_key: Option<&str>,
    content: Value,
) -> Draft {
    Draft {
        room: room.clone(),
        sender: sender.clone(),
        event_type: event_type.into(),
        state_key: state_key.map(str::to_owned),
        content: object(content),
        redacts: None,
    }
}

fn message(room: &RoomId, sender: &UserId, text: &str) -> Draft {
    draft(room, sender, "m.room.message", None, json!({ "msgtype": "m.text", "body": text }))
}

/// Another server, of which there is only its hand: it writes what it is told.
pub(super) struct Other {
    key: SigningKey,
    version: RoomVersion,
    room: RoomId,
    pub(super) time: i64,
}

impl Other {
    pub(super) fn new(room: &RoomId, version: &str) -> Other {
        let version = room_version::room_version(version).unwrap();
        Other {
            key: SigningKey::generate([7; 32], "other"),
            version,
            room: room.clone(),
            time: 1_700_000_000_000,
        }
    }

    /// An event by a user of there.example with the auth events that the state after `after` asks for.
    pub(super) fn event(
        &mut self,
        hs: &Homeserver,
        after: &[&EventId],
        sender: &UserId,
        (event_type, state_key): (&str, Option<&str>),
        content: Value,
    ) -> VerifiedPdu {
        let content = object(content);
        let wanted = crate::protocol::event_auth::auth_types(
            event_type,
            sender.as_str(),
            state_key,
            &content,
            self.version,
        );
        let (auth, depth, hashes) = hs
            .store
            .read(|db| {
                let prev: Vec<StoredEvent> = after.iter().map(|id| db.event(id).unwrap().unwrap()).collect();
                let state = prev[0].state_after.unwrap();
                let auth: Vec<Pdu> =
                    wanted.iter().filter_map(|(t, k)| db.state_event_in(state, t, k).unwrap()).collect();
                let depth = prev.iter().map(|p| p.pdu.depth()).max().unwrap() + 1;
                Ok((auth, depth, prev.into_iter().map(|p| p.pdu).collect::<Vec<_>>()))
            })
            .unwrap();
        let reference = |pdu: &Pdu| match self.version.event_id_format {
            EventIdFormat::InEvent => json!([pdu.event_id(), { "sha256": "x" }]),
            _ => json!(pdu.event_id()),
        };
        self.time += 1000;
        let mut event = object(json!({
            "type": event_type, "sender": sender, "room_id": self.room, "content": content, "depth": depth,
            "origin_server_ts": self.time, "signatures": {},
            "prev_events": hashes.iter().map(reference).collect::<Vec<_>>(),
            "auth_events": auth.iter().map(reference).collect::<Vec<_>>(),
        }));
        if let Some(state_key) = state_key {
            event.insert("state_key".into(), state_key.into());
        }
        if self.version.event_id_format == EventIdFormat::InEvent {
            event.insert("event_id".into(), format!("${}:there.example", self.time).into());
        }
        hash::add_content_hash(&mut event);
        verified(Pdu::from_object(event, self.version).unwrap(), &there(), &self.key)
    }

    fn join(&mut self, hs: &Homeserver, user: &UserId) -> EventId {
        let extremity = only_extremity(hs, &self.room);
        let join = self.event(
            hs,
            &[&extremity],
            user,
            ("m.room.member", Some(user.as_str())),
            json!({ "membership": "join" }),
        );
        assert!(!hs.events().accept_signed(join.clone(), &there(), Membership::Join).unwrap().already);
        join.event_id().clone()
    }
}

fn extremities(hs: &Homeserver, room: &RoomId) -> Vec<EventId> {
    let read = |db: &crate::store::Db<'_>| {
        let room = db.known_room(room)?;
        db.forward_extremities(room.key)
            .map(|extremities| extremities.into_iter().map(|e| e.event_id).collect())
    };
    hs.store.read(read).unwrap()
}

pub(super) fn only_extremity(hs: &Homeserver, room: &RoomId) -> EventId {
    let extremities = extremities(hs, room);
    assert_eq!(extremities.len(), 1);
    extremities.into_iter().next().unwrap()
}

fn stored(hs: &Homeserver, id: &EventId) -> StoredEvent {
    hs.store.read(|db| Ok(db.event(id)?.unwrap())).unwrap()
}

fn state(hs: &Homeserver, room: &RoomId, event_type: &str, state_key: &str) -> Option<Pdu> {
    hs.store.read(|db| db.state_event(db.known_room(room)?.key, event_type, state_key)).unwrap()
}

pub(super) fn membership(hs: &Homeserver, room: &RoomId, user: &UserId) -> Option<Membership> {
    hs.store.read(|db| db.membership(db.known_room(room)?.key, user)).unwrap()
}

/// What the tables that follow the current state say must be what the snapshot of the current state says.
pub(super) fn assert_consistent(hs: &Homeserver, room: &RoomId) {
    hs.store
        .read(|db| {
            let room = db.known_room(room)?;
            let rows = db.state_rows_at(room.state.unwrap())?;
            assert_eq!(rows, db.current_state_rows(room.key)?);
            let joined = db.members(room.key, Some(Membership::Join))?.len() as u64;
            let invited = db.members(room.key, Some(Membership::Invite))?.len() as u64;
            assert_eq!((room.joined, room.invited), (joined, invited));
            let mut servers: Vec<String> = db
                .members(room.key, Some(Membership::Join))?
                .iter()
                .map(|m| m.user_id.server_name().to_owned())
                .collect();
            servers.sort();
            servers.dedup();
            let mut resident: Vec<String> =
                db.resident_servers(room.key)?.iter().map(|s| s.to_string()).collect();
            resident.sort();
            assert_eq!(servers, resident);
            assert_eq!(room.resident, servers.contains(&hs.server_name().to_string()));
            Ok(())
        })
        .unwrap();
}

fn verified(pdu: Pdu, server: &ServerName, key: &SigningKey) -> VerifiedPdu {
    VerifiedPdu::unchecked(pdu.signed(server, key).unwrap())
}

fn receive(hs: &Homeserver, pdu: &VerifiedPdu) -> Result<()> {
    hs.events().receive_pdu(&there(), pdu.clone())
}

#[test]
fn a_room_of_every_version_is_made_and_spoken_in() {
    let hs = homeserver();
    for version in room_version::all() {
        let room = room(&hs, version.id);
        let id = hs.events().send(message(&room, &alice(), "hello")).unwrap();
        let event = stored(&hs, &id);
        assert_eq!((event.status, event.pdu.content_str("body")), (Status::Accepted, Some("hello".into())));
        assert_eq!(only_extremity(&hs, &room), id);
        assert_eq!(membership(&hs, &room, &alice()), Some(Membership::Join));
        assert_consistent(&hs, &room);
        // Everything that was stored reads back as what the format asks for.
        Pdu::parse(event.pdu.json(), version).unwrap();
    }
}

#[test]
fn rooms_that_are_made_alike_at_the_same_time_are_several() {
    let hs = homeserver();
    let rooms: std::collections::HashSet<RoomId> = std::thread::scope(|scope| {
        let made: Vec<_> = (0..20).map(|_| scope.spawn(|| room(&hs, "12"))).collect();
        made.into_iter().map(|room| room.join().unwrap()).collect()
    });
    assert_eq!(rooms.len(), 20);
    rooms.iter().for_each(|room| assert_consistent(&hs, room));
}

#[test]
fn a_thousand_messages_of_several_callers_make_one_line_without_forks() {
    let hs = homeserver();
    let room = room(&hs, "12");
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let (hs, room) = (&hs, &room);
            scope.spawn(move || {
                for number in 0..125 {
                    hs.events().send(message(room, &alice(), &format!("{caller}/{number}"))).unwrap();
                }
            });
        }
    });
    let mut id = only_extremity(&hs, &room);
    let mut messages = 0;
    loop {
        let event = stored(&hs, &id);
        messages += usize::from(event.pdu.event_type() == "m.room.message");
        match event.pdu.prev_events() {
            [] => break,
            [prev] => id = prev.clone(),
            _ => panic!("a fork"),
        }
    }
    assert_eq!(messages, 1000);
    assert_consistent(&hs, &room);
}

#[test]
fn what_the_rules_forbid_is_refused_and_changes_nothing() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let before = (only_extremity(&hs, &room), hs.store.position());
    let stranger = user("@stranger:here.example");
    let error = hs.events().send(message(&room, &stranger, "hello")).unwrap_err();
    assert_eq!((error.status(), error.errcode()), (403, ErrCode::Forbidden));
    let unknown = RoomId::parse("!unknown:here.example").unwrap();
    assert_eq!(hs.events().send(message(&unknown, &alice(), "hello")).unwrap_err().status(), 404);
    assert_eq!(
        hs.events().send(message(&room, &alice(), &"x".repeat(70_000))).unwrap_err().errcode(),
        ErrCode::TooLarge
    );
    assert_eq!(before, (only_extremity(&hs, &room), hs.store.position()));
}

#[test]
fn what_else_belongs_to_an_event_is_in_the_same_transaction() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let before = only_extremity(&hs, &room);
    let failed =
        hs.events().send_with(message(&room, &alice(), "hello"), |_, _| Err(crate::Error::not_found("no")));
    assert_eq!(failed.unwrap_err().status(), 404);
    assert_eq!(only_extremity(&hs, &room), before);
    let id = hs.events().send_with(message(&room, &alice(), "hello"), |tx, sent| {
        assert_eq!(tx.event_key(&sent.event_id)?, Some(sent.key));
        Ok(())
    });
    assert_eq!(only_extremity(&hs, &room), id.unwrap());
}

#[test]
fn another_servers_user_joins_once_however_often_the_join_is_handed_in() {
    for version in ["1", "3", "10", "12"] {
        let hs = homeserver();
        let room = room(&hs, version);
        let mut other = Other::new(&room, version);
        let join = other.join(&hs, &bob());
        let pdu = VerifiedPdu::unchecked(stored(&hs, &join).pdu);
        assert!(hs.events().accept_signed(pdu.clone(), &there(), Membership::Join).unwrap().already);
        assert_eq!(hs.events().accept_signed(pdu, &there(), Membership::Leave).unwrap_err().status(), 403);
        assert_eq!(membership(&hs, &room, &bob()), Some(Membership::Join));
        assert_consistent(&hs, &room);
    }
}

#[test]
fn forks_with_different_states_are_resolved_and_merged_by_the_next_event() {
    for version in ["1", "2", "6", "12"] {
        let hs = homeserver();
        let room = room(&hs, version);
        let mut other = Other::new(&room, version);
        let join = other.join(&hs, &bob());
        // Alice goes on; Bob's server has not heard of it and speaks from where it was.
        let topic = hs
            .events()
            .send(draft(&room, &alice(), "m.room.topic", Some(""), json!({ "topic": "soup" })))
            .unwrap();
        let late = other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": "late" }));
        receive(&hs, &late).unwrap();
        assert_eq!(extremities(&hs, &room), [topic.clone(), late.event_id().clone()]);
        assert_eq!(state(&hs, &room, "m.room.topic", "").unwrap().event_id(), &topic);
        assert_consistent(&hs, &room);
        let merge = hs.events().send(message(&room, &alice(), "merged")).unwrap();
        let merged = stored(&hs, &merge);
        assert_eq!(merged.pdu.prev_events().len(), 2);
        assert_eq!(only_extremity(&hs, &room), merge);
        assert_eq!(state(&hs, &room, "m.room.topic", "").unwrap().event_id(), &topic);
        assert_consistent(&hs, &room);
        receive(&hs, &late).unwrap();
        assert_eq!(only_extremity(&hs, &room), merge);
    }
}

#[test]
fn an_event_that_evades_a_ban_is_kept_from_clients_and_referred_to_by_nobody() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let mut other = Other::new(&room, "12");
    let join = other.join(&hs, &bob());
    let ban = draft(&room, &alice(), "m.room.member", Some(bob().as_str()), json!({ "membership": "ban" }));
    let ban = hs.events().send(ban).unwrap();
    let evasion = other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": "ha" }));
    receive(&hs, &evasion).unwrap();
    let event = stored(&hs, evasion.event_id());
    assert_eq!((event.status, event.place), (Status::SoftFailed, None));
    assert_eq!(only_extremity(&hs, &room), ban);
    // What comes after it, from another branch that saw both, is judged by the state alone.
    let after = other.event(
        &hs,
        &[&ban, evasion.event_id()],
        &bob(),
        ("m.room.message", None),
        json!({ "body": "!" }),
    );
    assert_eq!(receive(&hs, &after).unwrap_err().status(), 403);
    assert!(
        hs.store.read(|db| db.event(after.event_id())).unwrap().is_none(),
        "of an outsider nothing is kept"
    );
    assert_eq!(only_extremity(&hs, &room), ban);
    // The ban took the server out of the room, so the ban itself is owed to it on its own.
    let owed = hs.store.read(|db| db.owed_events(&there(), 0, i64::MAX, 100)).unwrap();
    assert!(owed.iter().any(|event| event.event_id == ban), "{owed:?}");
    assert_consistent(&hs, &room);
}

#[test]
fn a_refused_knock_is_owed_to_the_server_of_the_knocker_and_a_leave_of_our_own_is_not() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let mut other = Other::new(&room, "12");
    let rules = draft(&room, &alice(), "m.room.join_rules", Some(""), json!({ "join_rule": "knock" }));
    let rules = hs.events().send(rules).unwrap();
    let knock = other.event(
        &hs,
        &[&rules],
        &bob(),
        ("m.room.member", Some(bob().as_str())),
        json!({ "membership": "knock" }),
    );
    hs.events().accept_signed(knock, &there(), Membership::Knock).unwrap();
    assert!(hs.store.read(|db| db.owed_events(&there(), 0, i64::MAX, 100)).unwrap().is_empty());
    let kick =
        draft(&room, &alice(), "m.room.member", Some(bob().as_str()), json!({ "membership": "leave" }));
    let kick = hs.events().send(kick).unwrap();
    let owed = hs.store.read(|db| db.owed_events(&there(), 0, i64::MAX, 100)).unwrap();
    assert_eq!(owed.iter().map(|event| event.event_id.clone()).collect::<Vec<_>>(), [kick]);
    assert_consistent(&hs, &room);
}

#[test]
fn a_server_in_the_room_is_owed_what_happens_while_it_is_there() {
    let hs = homeserver();
    let room = room(&hs, "12");
    hs.events().send(message(&room, &alice(), "before")).unwrap();
    let mut other = Other::new(&room, "12");
    let join = other.join(&hs, &bob());
    let during = hs.events().send(message(&room, &alice(), "during")).unwrap();
    let leave = other.event(
        &hs,
        &[&during],
        &bob(),
        ("m.room.member", Some(bob().as_str())),
        json!({ "membership": "leave" }),
    );
    receive(&hs, &leave).unwrap();
    hs.events().send(message(&room, &alice(), "after")).unwrap();
    let owed = hs.store.read(|db| db.owed_events(&there(), 0, i64::MAX, 100)).unwrap();
    assert_eq!(owed.iter().map(|event| event.event_id.clone()).collect::<Vec<_>>(), [during]);
    let _ = join;
    assert_consistent(&hs, &room);
}

#[test]
fn a_redaction_acts_on_its_target_whichever_of_them_comes_first() {
    for version in ["1", "3", "10", "11", "12"] {
        let hs = homeserver();
        let room = room(&hs, version);
        let mut other = Other::new(&room, version);
        let join = other.join(&hs, &bob());
        let target =
            other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": "secret" }));
        let rules = room_version::room_version(version).unwrap();
        let content =
            if rules.redacts_in_content { json!({ "redacts": target.event_id() }) } else { json!({}) };
        let redaction = other.event(&hs, &[&join], &bob(), ("m.room.redaction", None), content);
        let redaction = if rules.redacts_in_content {
            redaction
        } else {
            let mut object = redaction.to_object();
            object.insert("redacts".into(), target.event_id().as_str().into());
            hash::add_content_hash(&mut object);
            VerifiedPdu::unchecked(Pdu::from_object(object, rules).unwrap())
        };
        receive(&hs, &redaction).unwrap();
        let waits = stored(&hs, redaction.event_id());
        assert_eq!(waits.place.is_none(), !rules.redactions_authorised, "version {version}");
        receive(&hs, &target).unwrap();
        let redacted = stored(&hs, target.event_id());
        assert_eq!(redacted.redacted_by, Some(waits.key), "version {version}");
        assert!(redacted.pdu.content().is_empty() && redacted.pdu.event_id() == target.event_id());
        assert!(stored(&hs, redaction.event_id()).place.is_some());

        // And the usual way round, by a local moderator.
        let open = other.event(
            &hs,
            &[target.event_id()],
            &bob(),
            ("m.room.message", None),
            json!({ "body": "rude" }),
        );
        receive(&hs, &open).unwrap();
        let mut wish = draft(&room, &alice(), "m.room.redaction", None, json!({ "reason": "rude" }));
        wish.redacts = Some(open.event_id().clone());
        let id = hs.events().send(wish).unwrap();
        assert_eq!(stored(&hs, &id).pdu.redacts().as_ref(), Some(open.event_id()));
        assert!(stored(&hs, open.event_id()).pdu.content().is_empty());
    }
}

#[test]
fn nobody_redacts_others_without_the_power_to() {
    for version in ["1", "10", "12"] {
        let hs = homeserver();
        let room = room(&hs, version);
        let mut other = Other::new(&room, version);
        other.join(&hs, &bob());
        let carol = user("@carol:here.example");
        let join =
            draft(&room, &carol, "m.room.member", Some(carol.as_str()), json!({ "membership": "join" }));
        hs.events().send(join).unwrap();
        let last = hs.events().send(message(&room, &alice(), "mine")).unwrap();
        let theirs =
            other.event(&hs, &[&last], &bob(), ("m.room.message", None), json!({ "body": "theirs" }));
        receive(&hs, &theirs).unwrap();
        let mut wish = draft(&room, &carol, "m.room.redaction", None, json!({}));
        wish.redacts = Some(theirs.event_id().clone());
        assert_eq!(hs.events().send(wish).unwrap_err().status(), 403, "version {version}");
        assert!(!stored(&hs, theirs.event_id()).pdu.content().is_empty());
    }
}

#[test]
fn a_template_is_judged_and_becomes_an_event_that_is_accepted() {
    let hs = homeserver();
    let room = room(&hs, "11");
    let wish = draft(&room, &bob(), "m.room.member", Some(bob().as_str()), json!({ "membership": "join" }));
    let (template, version) = hs.events().template(wish).unwrap();
    assert!(!template.contains_key("hashes") && !template.contains_key("signatures"));
    let mut event = template;
    event.insert("signatures".into(), json!({}));
    hash::add_content_hash(&mut event);
    let join = verified(
        Pdu::from_object(event, version).unwrap(),
        &there(),
        &SigningKey::generate([7; 32], "other"),
    );
    hs.events().accept_signed(join, &there(), Membership::Join).unwrap();
    assert_eq!(membership(&hs, &room, &bob()), Some(Membership::Join));
    let banned = user("@banned:there.example");
    hs.events()
        .send(draft(&room, &alice(), "m.room.member", Some(banned.as_str()), json!({ "membership": "ban" })))
        .unwrap();
    let wish = draft(&room, &banned, "m.room.member", Some(banned.as_str()), json!({ "membership": "join" }));
    assert_eq!(hs.events().template(wish).unwrap_err().status(), 403);
}

#[test]
fn an_event_drafted_for_another_server_is_committed_later_though_the_room_went_on() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let invite =
        draft(&room, &alice(), "m.room.member", Some(bob().as_str()), json!({ "membership": "invite" }));
    let invite = hs.events().draft_event(invite).unwrap();
    assert_eq!(membership(&hs, &room, &bob()), None);
    hs.events().send(message(&room, &alice(), "meanwhile")).unwrap();
    assert!(!hs.events().commit_signed(invite.clone()).unwrap().already);
    assert!(hs.events().commit_signed(invite).unwrap().already);
    assert_eq!(membership(&hs, &room, &bob()), Some(Membership::Invite));
    assert_eq!(extremities(&hs, &room).len(), 2);
    assert_consistent(&hs, &room);
}

#[test]
fn more_heads_than_an_event_can_name_are_taken_up_by_and_by() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let mut other = Other::new(&room, "12");
    let join = other.join(&hs, &bob());
    for number in 0..45 {
        let fork = other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": number }));
        receive(&hs, &fork).unwrap();
    }
    assert_eq!(extremities(&hs, &room).len(), 45);
    for left in [26, 7, 1] {
        hs.events().send(message(&room, &alice(), "tidy")).unwrap();
        assert_eq!(extremities(&hs, &room).len(), left);
    }
    assert_consistent(&hs, &room);
}

#[test]
fn the_last_of_us_leaves_and_may_come_back_if_nobody_else_is_there() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let leave =
        draft(&room, &alice(), "m.room.member", Some(alice().as_str()), json!({ "membership": "leave" }));
    hs.events().send(leave).unwrap();
    assert!(!hs.store.read(|db| db.known_room(&room)).unwrap().resident);
    assert_consistent(&hs, &room);
    let join =
        draft(&room, &alice(), "m.room.member", Some(alice().as_str()), json!({ "membership": "join" }));
    hs.events().send(join).unwrap();
    assert!(hs.store.read(|db| db.known_room(&room)).unwrap().resident);
    assert_consistent(&hs, &room);
}

/// Alice of `here` joins a room of `there` as if over the network. Returns the stream position before.
fn join_over(here: &Homeserver, there: &Homeserver, room: &RoomId, user: &UserId) -> i64 {
    let wish = draft(room, user, "m.room.member", Some(user.as_str()), json!({ "membership": "join" }));
    let (mut event, version) = there.events().template(wish).unwrap();
    event.insert("signatures".into(), json!({}));
    hash::add_content_hash(&mut event);
    let signer = here.events().signer();
    let join = verified(Pdu::from_object(event, version).unwrap(), &signer.server, &signer.key);
    there.events().accept_signed(join.clone(), here.server_name(), Membership::Join).unwrap();
    let known = there.store.read(|db| db.known_room(room)).unwrap();
    let answer = there.events().state_for_join(&known, join.event_id(), false).unwrap();
    assert!(answer.servers.contains(here.server_name()) && answer.servers.contains(there.server_name()));
    let before = here.store.position();
    let events = |keys: &[EventKey], of_state: bool| {
        let read = |key: &EventKey| {
            let pdu = there.store.read(|db| db.pdu_by_key(*key))?;
            Ok((VerifiedPdu::unchecked(pdu), of_state))
        };
        keys.iter().map(read).collect::<Result<Vec<_>>>().unwrap()
    };
    let memberships = here.membership();
    let mut adoption = memberships.begin_import(room, version).unwrap();
    adoption.add(events(&answer.state, true)).unwrap();
    adoption.add(events(&answer.auth_chain, false)).unwrap();
    assert_eq!(
        adoption.finish(join, |_| Ok(())).unwrap(),
        crate::service::membership::join::import::ImportOutcome::BecameResident
    );
    before
}

#[test]
fn a_room_is_adopted_left_and_adopted_again_with_what_changed_meanwhile() {
    for version in ["5", "12"] {
        let (here, there) = (homeserver(), homeserver_named("there.example"));
        let rules = room_version::room_version(version).unwrap();
        let wishes: CreateRoom = serde_json::from_value(json!({ "preset": "public_chat" })).unwrap();
        let events = wishes.plan(&bob(), &Map::new(), rules, None).unwrap();
        let room = there.rooms().create_room_with(rules, &bob(), &events, |_, _| Ok(())).unwrap();
        let topic = |text: &str| draft(&room, &bob(), "m.room.topic", Some(""), json!({ "topic": text }));
        let old_topic = there.events().send(topic("old")).unwrap();
        join_over(&here, &there, &room, &alice());
        assert_consistent(&here, &room);
        assert_eq!(state(&here, &room, "m.room.topic", "").unwrap().event_id(), &old_topic);
        let leave =
            draft(&room, &alice(), "m.room.member", Some(alice().as_str()), json!({ "membership": "leave" }));
        let leave = here.events().send(leave).unwrap();
        assert_consistent(&here, &room);
        there
            .events()
            .receive_pdu(here.server_name(), VerifiedPdu::unchecked(stored(&here, &leave).pdu))
            .unwrap();
        assert_consistent(&there, &room);
        let new_topic = there.events().send(topic("new")).unwrap();
        let carol = user("@carol:there.example");
        there
            .events()
            .send(draft(
                &room,
                &carol,
                "m.room.member",
                Some(carol.as_str()),
                json!({ "membership": "join" }),
            ))
            .unwrap();

        let before = join_over(&here, &there, &room, &alice());
        assert_consistent(&here, &room);
        assert_eq!(state(&here, &room, "m.room.topic", "").unwrap().event_id(), &new_topic);
        assert_eq!(membership(&here, &room, &carol), Some(Membership::Join));
        here.store
            .read(|db| {
                let room = db.known_room(&room)?;
                // What was when we were away is known to have been so then.
                let as_of =
                    |event_type: &str, key: &str, at| db.state_event_as_of(room.key, event_type, key, at);
                assert_eq!(db.event_id(as_of("m.room.topic", "", before)?.unwrap())?, old_topic);
                assert_eq!(as_of("m.room.member", carol.as_str(), before)?, None);
                let alices = as_of("m.room.member", alice().as_str(), before)?.unwrap();
                assert_eq!(db.pdu_by_key(alices)?.membership(), Some(Membership::Leave));
                // The events between are a hole before the join.
                let gaps =
                    db.gaps_between(room.key, crate::store::Place::START, crate::store::Place::END, 10)?;
                assert!(gaps.iter().any(|gap| gap.before.stream > before), "{gaps:?}");
                Ok(())
            })
            .unwrap();
        // And it is spoken in again, by both.
        let hello = here.events().send(message(&room, &alice(), "back")).unwrap();
        there
            .events()
            .receive_pdu(here.server_name(), VerifiedPdu::unchecked(stored(&here, &hello).pdu))
            .unwrap();
        assert_eq!(only_extremity(&there, &room), hello);
    }
}

#[test]
fn one_slow_resolution_is_not_asked_of_the_writer_when_the_room_moves() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let mut other = Other::new(&room, "12");
    let join = other.join(&hs, &bob());
    let levels = draft(&room, &alice(), "m.room.power_levels", Some(""), json!({ "users_default": 50 }));
    hs.events().send(levels).unwrap();
    let extremity = only_extremity(&hs, &room);
    // Forks with differing states arrive while others speak.
    let forks: Vec<VerifiedPdu> = (0..20)
        .map(|n| {
            let topic = json!({ "topic": n });
            other.event(&hs, &[&extremity], &bob(), ("m.room.topic", Some("")), topic)
        })
        .collect();
    std::thread::scope(|scope| {
        let (hs, room, forks) = (&hs, &room, &forks);
        scope.spawn(move || {
            (0..40).for_each(|n| drop(hs.events().send(message(room, &alice(), &n.to_string())).unwrap()))
        });
        for half in forks.chunks(10) {
            scope.spawn(move || half.iter().for_each(|fork| receive(hs, fork).unwrap()));
        }
    });
    for fork in &forks {
        assert_ne!(stored(&hs, fork.event_id()).status, Status::Rejected);
    }
    assert_consistent(&hs, &room);
    let _ = join;
}

#[test]
fn an_event_that_follows_nothing_is_refused_and_leaves_nothing() {
    for version in ["1", "10", "12"] {
        let hs = homeserver();
        let room = room(&hs, version);
        let mut other = Other::new(&room, version);
        let join = other.join(&hs, &bob());
        let mut event = other
            .event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": "from nowhere" }))
            .to_object();
        event.insert("prev_events".into(), json!([]));
        hash::add_content_hash(&mut event);
        let event = VerifiedPdu::unchecked(Pdu::from_object(event, other.version).unwrap());
        let before = hs.store.position();
        assert_eq!(receive(&hs, &event).unwrap_err().status(), 403);
        assert!(hs.store.read(|db| db.event(event.event_id())).unwrap().is_none());
        assert_eq!((only_extremity(&hs, &room), hs.store.position()), (join, before));
    }
}

#[test]
fn of_one_server_a_few_redactions_wait_for_an_event_and_act_when_it_comes() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let mut other = Other::new(&room, "12");
    let join = other.join(&hs, &bob());
    let target = other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": "late" }));
    for n in 0..50 {
        let content = json!({ "redacts": target.event_id(), "reason": n.to_string() });
        let redaction = other.event(&hs, &[&join], &bob(), ("m.room.redaction", None), content);
        receive(&hs, &redaction).unwrap();
    }
    let of_ours = Draft {
        redacts: Some(target.event_id().clone()),
        ..draft(&room, &alice(), "m.room.redaction", None, json!({}))
    };
    hs.events().send(of_ours).unwrap();
    let waiting = hs.store.read(|db| db.redactions_of(target.event_id())).unwrap();
    assert_eq!(waiting.len(), 21, "each server has its share");
    receive(&hs, &target).unwrap();
    assert!(stored(&hs, target.event_id()).redacted_by.is_some());
    assert_consistent(&hs, &room);
}

#[test]
fn however_often_a_room_is_forked_its_forward_extremities_stay_few_and_its_state_whole() {
    let hs = homeserver();
    let room = room(&hs, "10");
    let mut other = Other::new(&room, "10");
    let join = other.join(&hs, &bob());
    for n in 0..230 {
        let (kind, content) = match n {
            0..30 => (
                ("m.room.member", Some("@bob:there.example")),
                json!({ "membership": "join", "displayname": format!("Bob {n}") }),
            ),
            _ => (("m.room.message", None), json!({ "body": n })),
        };
        let event = other.event(&hs, &[&join], &bob(), kind, content);
        receive(&hs, &event).unwrap();
    }
    assert!((2..=201).contains(&extremities(&hs, &room).len()));
    assert_eq!(membership(&hs, &room, &bob()), Some(Membership::Join));
    assert_consistent(&hs, &room);
    // Ours join them again, as many as fit into one event.
    for n in 0..15 {
        hs.events().send(message(&room, &alice(), &format!("{n}"))).unwrap();
    }
    assert_eq!(extremities(&hs, &room).len(), 1);
    assert_consistent(&hs, &room);
}

#[test]
fn an_event_id_that_is_used_twice_is_the_first_events() {
    let hs = homeserver();
    let (kitchen, cellar) = (room(&hs, "1"), room(&hs, "1"));
    let mut other = Other::new(&kitchen, "1");
    let join = other.join(&hs, &bob());
    // Known from somebody's auth events, in one room; and now comes something else of the same id.
    let named = |other: &mut Other, body: &str, room: &RoomId| {
        let event = other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": body }));
        let mut event = event.to_object();
        event.insert("event_id".into(), "$chosen:there.example".into());
        event.insert("room_id".into(), room.as_str().into());
        hash::add_content_hash(&mut event);
        VerifiedPdu::unchecked(Pdu::from_object(event, other.version).unwrap())
    };
    let first = named(&mut other, "first", &kitchen);
    let outlier = first.clone();
    hs.store
        .write(move |tx| {
            let room = tx.known_room(outlier.room_id())?.key;
            tx.insert_outlier(room, &outlier, Status::Accepted)
        })
        .unwrap();
    for second in [named(&mut other, "second", &kitchen), named(&mut other, "second", &cellar)] {
        assert_eq!(receive(&hs, &second).unwrap_err().status(), 403);
        assert!(stored(&hs, first.event_id()).is_outlier());
    }
    receive(&hs, &first).unwrap();
    assert_eq!(only_extremity(&hs, &kitchen), *first.event_id());
    assert_consistent(&hs, &kitchen);
}

#[test]
fn an_outlier_that_gets_its_place_has_the_signatures_of_the_copy_that_was_judged() {
    let hs = homeserver();
    let room = room(&hs, "11");
    let mut other = Other::new(&room, "11");
    let join = other.join(&hs, &bob());
    let content = json!({ "msgtype": "m.text", "body": "known from auth events first" });
    let first = other.event(&hs, &[&join], &bob(), ("m.room.message", None), content);
    // The room's policy server signs what comes in, and not what is only referred to.
    let judged = first.with_signature("policy.example", "ed25519:policy_server", "c2lnbmF0dXJl").unwrap();
    let outlier = first.clone();
    hs.store
        .write(move |tx| {
            let room = tx.known_room(outlier.room_id())?.key;
            tx.insert_outlier(room, &outlier, Status::Accepted)
        })
        .unwrap();
    assert_eq!(stored(&hs, first.event_id()).pdu.json(), first.json());
    receive(&hs, &judged).unwrap();
    assert!(!stored(&hs, first.event_id()).is_outlier());
    // Whoever gets it from us finds what they look for.
    let given =
        hs.events().backfill_for_peer(&there(), &room, std::slice::from_ref(first.event_id()), 1).unwrap();
    assert_eq!(given[0].to_object()["signatures"], judged.to_object()["signatures"]);
    assert!(given[0].to_object()["signatures"]["policy.example"].is_object());
    assert_consistent(&hs, &room);
}

#[test]
fn a_server_reads_what_was_said_while_one_of_its_users_was_in_the_room_and_nothing_else() {
    let hs = homeserver();
    let room = room(&hs, "10");
    let visibility = json!({ "history_visibility": "joined" });
    hs.events().send(draft(&room, &alice(), "m.room.history_visibility", Some(""), visibility)).unwrap();
    let mut other = Other::new(&room, "10");
    let carol = user("@carol:there.example");
    let say = |what: &str| hs.events().send(message(&room, &alice(), what)).unwrap();
    say("before");
    other.join(&hs, &bob());
    say("while bob is here");
    hs.events()
        .send(draft(&room, &alice(), "m.room.member", Some(bob().as_str()), json!({ "membership": "leave" })))
        .unwrap();
    say("between");
    other.join(&hs, &carol);
    say("while carol is here");
    let bodies = |from: &EventId| -> Vec<Option<String>> {
        let found = hs.events().backfill_for_peer(&there(), &room, std::slice::from_ref(from), 100).unwrap();
        let messages = found.iter().filter(|e| e.event_type() == "m.room.message");
        messages.map(|e| e.content_str("body")).collect()
    };
    let (carol_here, bob_here) = (Some("while carol is here".into()), Some("while bob is here".into()));
    assert_eq!(bodies(&only_extremity(&hs, &room)), [carol_here.clone(), None, bob_here.clone(), None]);
    // And so when many others of its users come.
    for n in 0..210 {
        other.join(&hs, &user(&format!("@user{n}:there.example")));
    }
    // The page ends before these: it starts from an event that is not behind them.
    let (from, to) = (crate::store::Place::START, crate::store::Place::END);
    let all = crate::store::rooms::events::TimelineRange { from, to, backwards: false, limit: 1000 };
    let said = hs.store.read(|db| db.timeline(db.known_room(&room)?.key, all)).unwrap();
    let last = said.iter().rfind(|e| e.pdu.event_type() == "m.room.message").unwrap();
    assert_eq!(bodies(last.pdu.event_id()), [carol_here, None, bob_here, None]);
}
