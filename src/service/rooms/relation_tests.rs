//! Relations as no honest room has them: in circles, and without end.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock::Millis;
use crate::config::Config;
use crate::protocol::room_version::room_version;
use crate::protocol::{EventId, Pdu, RoomId, ServerName, UserId, VerifiedPdu};
use crate::service::Homeserver;
use crate::service::rooms::client_format::ClientFormat;
use crate::service::rooms::create::CreateRoom;
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::relations::RelationsRequest;
use crate::service::rooms::threads::ThreadsRequest;
use crate::store::rooms::events::NewEvent;
use crate::store::{Place, Status};

struct House {
    hs: Arc<Homeserver>,
    alice: UserId,
    room: RoomId,
    version: &'static str,
}

impl House {
    fn new(version: &'static str) -> Self {
        let hs = crate::testing::secluded(Config::for_name(ServerName::parse("here.example").unwrap()));
        let alice = UserId::parse("@alice:here.example").unwrap();
        let options = json!({ "preset": "public_chat", "room_version": version });
        let options: CreateRoom = serde_json::from_value(options).unwrap();
        let room = hs.rooms().create_room(&alice, &options).unwrap();
        Self { hs, alice, room, version }
    }

    fn event(&self, id: &str, sender: &str, kind: &str, content: &Value) -> Pdu {
        let event = json!({
            "type": kind, "room_id": self.room, "sender": sender, "depth": 5, "content": content,
            "origin_server_ts": 1, "prev_events": [], "auth_events": [], "hashes": { "sha256": "x" },
            "signatures": {}, "event_id": id,
        });
        Pdu::from_object(event.as_object().unwrap().clone(), room_version(self.version).unwrap()).unwrap()
    }

    /// Puts events into the room as if they had come one after the other.
    fn take(&self, events: Vec<Pdu>) {
        let room = self.room.clone();
        self.hs
            .store
            .write(move |tx| {
                let room = tx.known_room(&room)?;
                for pdu in events {
                    let place = Place::live(tx.next_stream());
                    let new = NewEvent {
                        room: room.key,
                        pdu: &VerifiedPdu::unchecked(pdu.clone()),
                        status: Status::Accepted,
                        place: Some(place),
                        outgoing: false,
                        state_before: room.state,
                        given: false,
                    };
                    let (key, _) = tx.insert_event(&new)?;
                    tx.note_relation(room.key, (key, place), &pdu, false).map(drop)?;
                }
                Ok(())
            })
            .unwrap();
    }

    fn format(&self) -> ClientFormat<'_> {
        let now: Millis = 1;
        ClientFormat::usual(&self.alice, None, now)
    }

    fn relations(&self, of: &EventId, request: &RelationsRequest) -> Value {
        let answer = self.hs.rooms().relations(&self.format(), &self.room, of, request).unwrap();
        serde_json::to_value(answer).unwrap()
    }

    fn threads(&self, request: &ThreadsRequest) -> Value {
        serde_json::to_value(self.hs.rooms().threads(&self.format(), &self.room, request).unwrap()).unwrap()
    }

    fn bundle(&self, of: &EventId) -> Value {
        let event = self.hs.rooms().event_for(&self.format(), &self.room, of).unwrap();
        serde_json::from_str::<Value>(event.get()).unwrap()["unsigned"]["m.relations"].clone()
    }
}

fn related(rel_type: &str, parent: &str) -> Value {
    json!({ "body": "x", "m.relates_to": { "rel_type": rel_type, "event_id": parent } })
}

fn id(text: &str) -> EventId {
    EventId::parse(text).unwrap()
}

fn count(answer: &Value) -> usize {
    answer["chunk"].as_array().unwrap().len()
}

fn everything() -> RelationsRequest {
    RelationsRequest { recurse: Some(true), ..RelationsRequest::default() }
}

#[test]
fn relations_in_a_circle_are_followed_once_around() {
    // In the oldest versions a server names its events as it likes, and so they can name each other.
    let house = House::new("2");
    let ids = ["$a:x.org", "$b:x.org", "$c:x.org"];
    let mut events: Vec<Pdu> = (0..3)
        .map(|n| {
            let content = related("m.reference", ids[(n + 1) % 3]);
            house.event(ids[n], "@bob:x.org", "m.room.message", &content)
        })
        .collect();
    events.push(house.event(
        "$own:x.org",
        "@bob:x.org",
        "m.room.message",
        &related("m.thread", "$own:x.org"),
    ));
    let thread = related("m.thread", "$two:x.org");
    events.push(house.event("$one:x.org", "@bob:x.org", "m.room.message", &thread));
    let thread = related("m.thread", "$one:x.org");
    events.push(house.event("$two:x.org", "@bob:x.org", "m.room.message", &thread));
    house.take(events);
    for event in ids {
        assert_eq!(count(&house.relations(&id(event), &everything())), 2, "each but itself");
        assert_eq!(house.bundle(&id(event))["m.reference"]["chunk"].as_array().map(Vec::len), Some(1));
        let root = house.hs.store.read(|db| db.thread_root_of(db.event_key(&id(event))?.unwrap())).unwrap();
        assert_eq!(root, None);
    }
    assert_eq!(count(&house.relations(&id("$own:x.org"), &everything())), 0);
    for root in ["$one:x.org", "$two:x.org"] {
        assert_eq!(house.bundle(&id(root)), Value::Null, "both relate to another");
    }
    assert_eq!(count(&house.threads(&ThreadsRequest::default())), 0);
}

/// A room with so many reactions, edits, references and replies to one event, in turn, by so many users.
fn flooded(house: &House, events: usize, users: usize) -> EventId {
    let root = "$root:x.org";
    house.take(vec![house.event(root, "@bob:x.org", "m.room.message", &json!({ "body": "root" }))]);
    for portion in (0..events).collect::<Vec<_>>().chunks(10_000) {
        let event = |n: &usize| {
            let rel_type = ["m.annotation", "m.replace", "m.reference", "m.thread"][n % 4];
            let mut content = related(rel_type, root);
            content["m.new_content"] = json!({ "body": "new" });
            let sender = format!("@user{}:x.org", n % users);
            house.event(&format!("$f{n}:x.org"), &sender, "m.room.message", &content)
        };
        house.take(portion.iter().map(event).collect());
    }
    id(root)
}

#[test]
fn relations_without_end_make_no_answer_without_end() {
    let house = House::new("2");
    let root = flooded(&house, 12_000, 7);
    let bundle = house.bundle(&root);
    assert_eq!(bundle["m.thread"]["count"], 3000);
    assert_eq!(bundle["m.reference"]["chunk"].as_array().map(Vec::len), Some(100));
    assert_eq!(bundle.get("m.replace"), None, "none is by the sender of the original");
    let most = RelationsRequest { limit: Some(usize::MAX), backwards: true, ..RelationsRequest::default() };
    assert_eq!(count(&house.relations(&root, &most)), 500);
    let most = RelationsRequest { recurse: Some(true), ..most };
    assert_eq!(count(&house.relations(&root, &most)), 500);
    // What nobody sent is looked for a part at a time, and the next page goes on.
    let (mut pages, mut from) = (0, None);
    loop {
        let event_type = Some("m.room.encrypted".to_owned());
        let request = RelationsRequest { event_type, from, backwards: true, ..RelationsRequest::default() };
        let page = house.relations(&root, &request);
        assert_eq!(count(&page), 0);
        pages += 1;
        let Some(next) = page["next_batch"].as_str() else { break };
        from = Some(PaginationToken::parse(next).unwrap());
    }
    assert!((2..20).contains(&pages), "{pages}");
    // One type among many others is found at once.
    let threads = RelationsRequest {
        rel_type: Some("m.thread".to_owned()),
        limit: Some(10),
        backwards: true,
        ..RelationsRequest::default()
    };
    assert_eq!(count(&house.relations(&root, &threads)), 10);
}

#[test]
fn a_long_thread_by_somebody_who_is_ignored_hides_no_other() {
    let house = House::new("2");
    let mut events = Vec::new();
    for (root, replies, sender) in [("$old:x.org", 3, "@carol:x.org"), ("$loud:x.org", 7000, "@bob:x.org")] {
        events.push(house.event(root, "@carol:x.org", "m.room.message", &json!({ "body": "root" })));
        for n in 0..replies {
            let content = related("m.thread", root);
            events.push(house.event(&format!("${root}{n}"), sender, "m.room.message", &content));
        }
    }
    house.take(events);
    let alice = house.alice.clone();
    let list = r#"{"ignored_users":{"@bob:x.org":{}}}"#;
    house.hs.store.write(move |tx| tx.set_account_data(&alice, None, "m.ignored_user_list", list)).unwrap();
    // No answer looks at all of what is passed over; the next goes on.
    let first = house.threads(&ThreadsRequest::default());
    assert_eq!(count(&first), 0);
    let from = Some(PaginationToken::parse(first["next_batch"].as_str().unwrap()).unwrap());
    let next = house.threads(&ThreadsRequest { from, ..ThreadsRequest::default() });
    assert_eq!((&next["chunk"][0]["event_id"], next.get("next_batch")), (&json!("$old:x.org"), None));
    assert_eq!(next["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"], 3);
    assert_eq!(house.bundle(&id("$loud:x.org")), Value::Null);
}

/// Prints what the list of threads of a large room takes: 100 000 events, of which every tenth begins a thread, and of
/// others that relate to one event.
#[test]
#[ignore = "prints figures"]
#[expect(clippy::print_stdout, reason = "figures are printed")]
fn figures_of_threads_and_relations() {
    let house = House::new("2");
    // Processor time of this thread, in nanoseconds: others may be busy too.
    let spent = || -> f64 {
        let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        told.split(' ').next().unwrap().parse().unwrap()
    };
    let took = |what: &str, times: u32, run: &dyn Fn() -> usize| {
        run();
        let before = spent();
        let found = (0..times).map(|_| run()).max().unwrap_or(0);
        println!("{what}: {:.2} ms ({found} found)", (spent() - before) / 1e6 / f64::from(times));
    };
    for portion in (0..100_000_usize).collect::<Vec<_>>().chunks(10_000) {
        let event = |n: &usize| {
            let content = match n % 10 {
                0 => json!({ "body": "root" }),
                // Replies to some thread of before, in no order.
                1..=6 => related("m.thread", &format!("$e{}:x.org", (n * 7919 % (n + 1)) / 10 * 10)),
                _ => json!({ "body": "message" }),
            };
            house.event(
                &format!("$e{n}:x.org"),
                &format!("@user{}:x.org", n % 50),
                "m.room.message",
                &content,
            )
        };
        house.take(portion.iter().map(event).collect());
    }
    for limit in [20, 100] {
        took(&format!("/threads, the first {limit}"), 20, &|| {
            count(&house.threads(&ThreadsRequest { limit: Some(limit), ..ThreadsRequest::default() }))
        });
    }
    took("/threads?include=participated, none", 5, &|| {
        count(&house.threads(&ThreadsRequest { participated: true, ..ThreadsRequest::default() }))
    });
    let alice = house.alice.clone();
    let list = r#"{"ignored_users":{"@user1:x.org":{}}}"#;
    house.hs.store.write(move |tx| tx.set_account_data(&alice, None, "m.ignored_user_list", list)).unwrap();
    took("/threads, the first 20, somebody is ignored", 20, &|| {
        count(&house.threads(&ThreadsRequest::default()))
    });
    let root = flooded(&house, 1_000_000, 1000);
    let page = RelationsRequest { backwards: true, ..RelationsRequest::default() };
    took("/relations, 1 000 000 to one event", 20, &|| count(&house.relations(&root, &page)));
    took("the same with recursion", 5, &|| {
        count(&house.relations(
            &root,
            &RelationsRequest { recurse: Some(true), backwards: true, ..RelationsRequest::default() },
        ))
    });
    took("its bundle", 20, &|| {
        house.bundle(&root)["m.thread"]["count"].as_u64().map_or(0, |count| count as usize)
    });
}

#[test]
fn a_change_that_came_before_the_message_is_not_found_beside_it() {
    let house = House::new("11");
    let message =
        house.event("", "@bob:x.org", "m.room.message", &json!({ "msgtype": "m.text", "body": "a heron" }));
    let changed = |body: &str, at: i64| {
        let content = json!({ "msgtype": "m.text", "body": format!("* {body}"), "m.new_content": { "body": body },
            "m.relates_to": { "rel_type": "m.replace", "event_id": message.event_id() } });
        let mut object = house.event("", "@bob:x.org", "m.room.message", &content).to_object();
        object.insert("origin_server_ts".into(), at.into());
        Pdu::from_object(object, room_version("11").unwrap()).unwrap()
    };
    let found = || {
        let criteria =
            serde_json::from_value(json!({ "search_term": "heron", "order_by": "recent" })).unwrap();
        let answer = house.hs.rooms().search(&house.format(), &criteria, None, || true).unwrap();
        let answer = serde_json::to_value(answer).unwrap();
        let ids =
            answer["results"].as_array().unwrap().iter().map(|found| found["result"]["event_id"].clone());
        ids.collect::<Vec<Value>>()
    };
    let changes = vec![changed("a heron flies", 2), changed("a heron stands", 3)];
    house.take(changes);
    assert_eq!(found().len(), 2, "they are all there is");
    house.take(vec![message.clone()]);
    assert_eq!(found(), [json!(message.event_id())]);
}
