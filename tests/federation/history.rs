//! What was said in a room before we came into it: history that goes on behind what nobody can verify any more, that is not
//! at its beginning because nobody can be asked for a moment, and in which nothing is skipped.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::scene::{Scene, objects, read_back, stored};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::{EventId, Pdu, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const V3: &str = "/_matrix/client/v3";

/// A room that a peer serves the past of, in which users of another server have spoken that nobody will hear of again.
struct OldRoom {
    host: Peer,
    gone: Peer,
    bob: UserId,
    room: FakeRoom,
    past: Vec<Pdu>,
}

impl OldRoom {
    fn new(version: &str) -> Self {
        let (host, gone) = (Peer::start(), Peer::start());
        let mut room = FakeRoom::new(&host, version, "public");
        let bob = gone.user("bob");
        room.add(&gone, "m.room.member", bob.as_str(), &bob, json!({ "membership": "join" }));
        let past = room.state.values().cloned().collect();
        Self { host, gone, bob, room, past }
    }

    fn says(&mut self, is_gone: bool, text: &str) -> Pdu {
        let (by, sender) = match is_gone {
            true => (&self.gone, self.bob.clone()),
            false => (&self.host, self.room.creator.clone()),
        };
        let mut event = self.room.unsigned("m.room.message", "", &sender, json!({ "body": text }));
        event.remove("state_key");
        event.insert("depth".into(), json!(10 + self.past.len()));
        let event = by.sign(event, self.room.version);
        self.room.last = event.event_id().clone();
        self.past.push(event.clone());
        event
    }

    /// Lets a user of ours in, who is served the past as servers do: what comes before these events, the newest first, so
    /// many at most.
    fn joined_by(&self, user: &TestUser) {
        self.past_served_by(&self.host);
        // Whoever comes in takes its word for who is in the room.
        let (gone, key) = (self.gone.name(), self.gone.signing_key());
        let mut keys = json!({
            "server_name": gone, "valid_until_ts": now_ms() + 86_400_000, "old_verify_keys": {},
            "verify_keys": { key.key_id(): { "key": key.public_base64() } },
        });
        for signer in [&self.gone, &self.host] {
            signer.sign_object(keys.as_object_mut().expect("an object"));
        }
        self.host.answer_json("/key/v2/query", 200, json!({ "server_keys": [keys] }));
        let ids: Vec<&EventId> = self.room.state.values().map(Pdu::event_id).collect();
        self.host.answer_json("/state_ids/", 200, json!({ "pdu_ids": ids, "auth_chain_ids": [] }));
        self.host.let_in(&self.room, user.id());
        user.join_via(self.room.id.as_str(), &[self.host.name().as_str()]);
    }

    fn past_served_by(&self, peer: &Peer) {
        let by_id: BTreeMap<EventId, Pdu> =
            self.past.iter().map(|event| (event.event_id().clone(), event.clone())).collect();
        peer.answer("/backfill/", move |asked| {
            let query = asked.target.split_once('?').map_or("", |(_, query)| query);
            let value = |part: &str, name: &str| part.strip_prefix(name).map(str::to_owned);
            let limit = query.split('&').find_map(|part| value(part, "limit=")).expect("a limit");
            let from: Vec<String> = query.split('&').filter_map(|part| value(part, "v=")).collect();
            let mut next: Vec<&Pdu> =
                by_id.values().filter(|pdu| from.contains(&segment(pdu.event_id().as_str()))).collect();
            let mut found: Vec<Pdu> = Vec::new();
            while let Some(event) = next.pop() {
                if found.len() < limit.parse().expect("a number") && !found.contains(event) {
                    found.push(event.clone());
                    next.extend(event.prev_events().iter().filter_map(|id| by_id.get(id)));
                }
            }
            Reply::json(&json!({ "origin": "", "origin_server_ts": 0, "pdus": objects(&found) }))
        });
    }
}

#[test]
fn history_goes_on_behind_what_servers_said_whose_keys_are_gone() {
    for version in ["3", "11", "12"] {
        let mut old = OldRoom::new(version);
        let lost: Vec<Pdu> = (0..12)
            .map(|n| {
                old.says(false, &format!("{n}"));
                old.says(true, &format!("gone {n}"))
            })
            .collect();
        old.gone.hide_keys(true);
        let server = TestServer::start();
        let alice = server.user("alice");
        old.joined_by(&alice);
        let room = old.room.id.as_str();
        let kept: Vec<String> = (0..12).map(|n| n.to_string()).collect();
        assert_eq!(read_back(&alice, room), kept, "{version}");
        assert!(lost.iter().all(|event| stored(&server, event.event_id()).is_none()), "{version}");
        // What was before an event that follows none but messages is known: nobody need say it.
        assert!(old.host.asked("/state_ids/").len() <= 1, "{version}");
        let asked = old.host.asked("/backfill/").len();
        assert_eq!(read_back(&alice, room), kept);
        assert_eq!(old.host.asked("/backfill/").len(), asked, "{version}: it was asked for the same again");
        // Once its server is back, what it said is where it was said.
        old.gone.hide_keys(false);
        server.advance(Duration::from_secs(16));
        assert_eq!(old.gone.send_transaction(server.name(), "back", &[]).0, 200);
        let all: Vec<String> = (0..12).flat_map(|n| [format!("{n}"), format!("gone {n}")]).collect();
        assert_eq!(read_back(&alice, room), all, "{version}");
    }
}

#[test]
fn history_goes_on_behind_an_event_whose_signature_is_wrong() {
    let mut old = OldRoom::new("11");
    for n in 0..5 {
        old.says(false, &format!("before {n}"));
    }
    let spoilt = old.says(true, "signed with a key that nobody has any more");
    for n in 0..5 {
        old.says(false, &format!("after {n}"));
    }
    old.gone.begin_anew();
    let server = TestServer::start();
    let alice = server.user("alice");
    old.joined_by(&alice);
    let kept: Vec<String> =
        ["before", "after"].iter().flat_map(|w| (0..5).map(move |n| format!("{w} {n}"))).collect();
    assert_eq!(read_back(&alice, old.room.id.as_str()), kept);
    assert!(stored(&server, spoilt.event_id()).is_none());
}

#[test]
fn many_events_in_a_row_that_nobody_can_verify_are_walked_over_but_not_for_ever() {
    for (count, is_too_many) in [(250, false), (1300, true)] {
        let mut old = OldRoom::new("11");
        old.says(false, "old");
        for n in 0..count {
            old.says(true, &format!("{n}"));
        }
        old.says(false, "new");
        old.gone.hide_keys(true);
        let server = TestServer::start();
        let alice = server.user("alice");
        old.joined_by(&alice);
        let read = read_back(&alice, old.room.id.as_str());
        assert_eq!(read, if is_too_many { vec!["new"] } else { vec!["old", "new"] });
        let asked = old.host.asked("/backfill/").len();
        assert!(asked <= 13, "{count}: it was asked {asked} times");
    }
}

/// A page of messages: the status, the bodies, and where it ends.
fn page(user: &TestUser, room: &str, query: &str) -> (u16, Vec<String>, Option<String>) {
    let (status, page) = user.request("GET", &format!("{V3}/rooms/{}/messages?{query}", segment(room)), None);
    let bodies = page["chunk"].as_array().into_iter().flatten();
    let bodies = bodies.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect();
    let end = page["end"].as_str().map(str::to_owned);
    if let Some(end) = &end {
        assert_ne!(Some(end.as_str()), page["start"].as_str(), "a client would take it for the last page");
    }
    (status, bodies, end)
}

/// Two servers, with a room that somebody of one has said so many things in before somebody of the other joined.
fn spoken_in(count: usize) -> ((TestServer, TestServer), (TestUser, TestUser), String, Vec<String>) {
    let (here, there) = TestServer::pair();
    let (bob, alice) = (here.user("bob"), there.user("alice"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    let said = (0..count).map(|n| alice.send(&room, &format!("{n}"))).collect();
    bob.join_via(&room, &[there.name()]);
    ((here, there), (bob, alice), room, said)
}

#[test]
fn a_moment_in_which_no_server_can_be_reached_is_not_the_beginning_of_the_room() {
    let ((here, there), (bob, alice), room, _) = spoken_in(30);
    here.cut_off(&there);
    let (status, said, end) = page(&bob, &room, "dir=b&limit=20");
    assert_eq!((status, said.len()), (200, 0), "there is nothing but the join");
    let from = segment(&end.expect("there is more"));
    for _ in 0..2 {
        // And there it stands: who pages on is told that nobody can be asked.
        assert_eq!(page(&bob, &room, &format!("dir=b&limit=20&from={from}")).0, 504);
        assert_eq!(page(&bob, &room, "dir=f&limit=20").0, 504);
    }
    here.mend(&there);
    alice.send(&room, "hello");
    wait_until("the other server speaks", || !page(&bob, &room, "dir=b&limit=1").1.is_empty());
    let (status, said, end) = page(&bob, &room, &format!("dir=b&limit=20&from={from}"));
    assert_eq!((status, said.len(), end.is_some()), (200, 20, true));
    assert_eq!(read_back(&bob, &room).len(), 31);
}

#[test]
fn where_all_servers_answer_without_it_what_is_lost_is_passed_over() {
    let mut old = OldRoom::new("11");
    old.says(false, "lost");
    let server = TestServer::start();
    let alice = server.user("alice");
    old.joined_by(&alice);
    old.host.answer_json("/backfill/", 200, json!({ "origin": "", "origin_server_ts": 0, "pdus": [] }));
    let room = old.room.id.as_str();
    for _ in 0..2 {
        assert_eq!(page(&alice, room, "dir=b"), (200, vec![], None));
        assert_eq!(page(&alice, room, "dir=f"), (200, vec![], None));
    }
    assert_eq!(old.host.asked("/backfill/").len(), 1);
    old.host.forget_answer("/backfill/");
    server.advance(Duration::from_secs(301));
    assert_eq!(read_back(&alice, room), ["lost"]);
}

#[test]
fn who_reads_on_from_a_date_is_given_everything_up_to_now() {
    for count in [60, 250] {
        let ((_here, _there), (bob, alice), room, said) = spoken_in(count);
        let event = alice.get(&format!("{V3}/rooms/{}/event/{}", segment(&room), segment(&said[20])));
        let near = format!(
            "/_matrix/client/v1/rooms/{}/timestamp_to_event?dir=f&ts={}",
            segment(&room),
            event["origin_server_ts"]
        );
        let near = bob.get(&near)["event_id"].as_str().expect("an event").to_owned();
        let context = bob.get(&format!("{V3}/rooms/{}/context/{}?limit=10", segment(&room), segment(&near)));
        let body = |event: &Value| event["content"]["body"].as_str().map(str::to_owned);
        assert!(context.to_string().contains(&near));
        let (mut all, mut from) =
            (body(&context["event"]).into_iter().collect::<Vec<_>>(), context["end"].clone());
        all.extend(context["events_after"].as_array().expect("events").iter().filter_map(body));
        while let Some(token) = from.as_str() {
            let (status, said, end) = page(&bob, &room, &format!("dir=f&limit=30&from={}", segment(token)));
            assert_eq!(status, 200);
            all.extend(said);
            from = end.into();
        }
        let first: usize = all[0].parse().expect("a number");
        assert_eq!(all, (first..count).map(|n| n.to_string()).collect::<Vec<_>>(), "{count}");
    }
}

#[test]
fn reading_on_from_a_date_stops_where_something_is_lacking_that_nobody_gives_now() {
    let ((here, there), (bob, alice), room, said) = spoken_in(250);
    let event = alice.get(&format!("{V3}/rooms/{}/event/{}", segment(&room), segment(&said[20])));
    let near = format!(
        "/_matrix/client/v1/rooms/{}/timestamp_to_event?dir=f&ts={}",
        segment(&room),
        event["origin_server_ts"]
    );
    let near = bob.get(&near)["event_id"].as_str().expect("an event").to_owned();
    here.cut_off(&there);
    let context = bob.get(&format!("{V3}/rooms/{}/context/{}?limit=10", segment(&room), segment(&near)));
    assert_eq!(context["events_after"], json!([]), "what follows here does not follow it there");
    let from = segment(context["end"].as_str().expect("a token"));
    assert_eq!(page(&bob, &room, &format!("dir=f&limit=30&from={from}")).0, 504);
    here.mend(&there);
    here.advance(Duration::from_secs(4));
    let (status, said, _) = page(&bob, &room, &format!("dir=f&limit=30&from={from}"));
    assert_eq!((status, said.len()), (200, 30));
}

#[test]
fn what_is_here_is_given_though_a_server_in_the_room_never_says_what_its_event_follows() {
    let mut scene = Scene::new("11");
    scene.peer.take_transactions();
    let room = scene.room.id.to_string();
    let old: Vec<String> = (0..10).map(|n| scene.alice.send(&room, &format!("{n}"))).collect();
    let lost: Vec<Pdu> = (0..3).map(|n| scene.message(&format!("lost {n}"))).collect();
    scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    let silence = json!({ "errcode": "M_UNKNOWN", "error": "not now" });
    scene.peer.answer_json("/backfill/", 503, silence);
    scene.answer_with_state();
    let arrived = scene.message("arrived");
    scene.send("1", &[&arrived]);
    scene.alice.send(&room, "last");
    let (status, said, end) = page(&scene.alice, &room, "dir=b&limit=20");
    assert_eq!((status, said), (200, vec!["last".to_owned(), "arrived".to_owned()]));
    let at_gap = segment(&end.expect("there is more"));
    let newest_first: Vec<String> = (0..10).rev().map(|n| n.to_string()).collect();
    let mut top = String::new();
    // However often it says something else meanwhile.
    for n in 0..3 {
        let (status, said, end) = page(&scene.alice, &room, &format!("dir=b&limit=20&from={at_gap}"));
        assert_eq!((status, &said), (200, &newest_first));
        top = segment(&end.expect("there is more"));
        assert_eq!(scene.peer.send_transaction(scene.server.name(), &format!("speaks{n}"), &[]).0, 200);
    }
    // Before that there is nothing here.
    assert_eq!(page(&scene.alice, &room, &format!("dir=b&limit=20&from={top}")).0, 504);
    // Who reads on forwards is not stopped there for ever either.
    let context = format!("{V3}/rooms/{}/context/{}?limit=0", segment(&room), segment(&old[8]));
    let from = segment(scene.alice.get(&context)["end"].as_str().expect("a token"));
    let (status, said, end) = page(&scene.alice, &room, &format!("dir=f&limit=20&from={from}"));
    assert_eq!((status, said), (200, vec!["9".to_owned()]));
    let forwards = segment(&end.expect("there is more"));
    let on = format!("dir=f&limit=20&from={forwards}");
    assert_eq!(page(&scene.alice, &room, &on).0, 504);
    for _ in 0..2 {
        scene.server.advance(Duration::from_secs(70));
        page(&scene.alice, &room, &on);
    }
    assert_eq!(page(&scene.alice, &room, &on).1, ["arrived", "last"]);
    // What it says after all has its place where it was passed over.
    let given = json!({ "origin": scene.peer.name(), "origin_server_ts": 1, "pdus": objects(&lost) });
    scene.peer.answer_json("/backfill/", 200, given);
    scene.server.advance(Duration::from_secs(301));
    let (_, said, _) = page(&scene.alice, &room, &format!("dir=b&limit=5&from={at_gap}"));
    assert_eq!(said, ["lost 2", "lost 1", "lost 0", "9", "8"]);
    let (_, said, _) = page(&scene.alice, &room, &format!("dir=f&limit=5&from={forwards}"));
    assert_eq!(said, ["lost 0", "lost 1", "lost 2", "arrived", "last"]);
}

#[test]
fn where_nobody_can_be_asked_for_minutes_the_room_ends_until_it_is_asked_for_again() {
    let ((here, there), (bob, alice), room, _) = spoken_in(30);
    here.cut_off(&there);
    let from = segment(&page(&bob, &room, "dir=b&limit=20").2.expect("there is more"));
    let on = format!("dir=b&limit=20&from={from}");
    assert_eq!(page(&bob, &room, &on).0, 504);
    for _ in 0..2 {
        here.advance(Duration::from_secs(50));
        assert_eq!(page(&bob, &room, &on).0, 504, "it may be a moment");
    }
    here.advance(Duration::from_secs(50));
    assert_eq!(page(&bob, &room, &on), (200, vec![], None));
    assert_eq!(page(&bob, &room, "dir=f&limit=20"), (200, vec![], None));
    here.mend(&there);
    alice.send(&room, "hello");
    wait_until("the other server speaks", || !page(&bob, &room, "dir=b&limit=1").1.is_empty());
    let (status, said, end) = page(&bob, &room, &on);
    assert_eq!((status, said.len(), end.is_some()), (200, 20, true));
}

#[test]
fn those_who_have_been_in_a_room_for_longest_are_not_asked_alone_for_its_past() {
    let mut old = OldRoom::new("11");
    let mut others: Vec<Peer> = (0..6).map(|_| Peer::start()).collect();
    for peer in &others {
        let user = peer.user("member");
        let join = json!({ "membership": "join" });
        old.past.push(old.room.add(peer, "m.room.member", user.as_str(), &user, join));
    }
    old.says(false, "what was said");
    let server = TestServer::start();
    let alice = server.user("alice");
    old.joined_by(&alice);
    for peer in &others {
        peer.take_transactions();
    }
    others.sort_by(|a, b| a.name().as_str().cmp(b.name().as_str()));
    let last = others.pop().expect("some");
    for peer in others.iter().chain([&old.host, &old.gone]) {
        peer.answer_json("/backfill/", 503, json!({ "errcode": "M_UNKNOWN", "error": "not now" }));
    }
    old.past_served_by(&last);
    let ids: Vec<&EventId> = old.room.state.values().map(Pdu::event_id).collect();
    last.answer_json("/state_ids/", 200, json!({ "pdu_ids": ids, "auth_chain_ids": [] }));
    let room = old.room.id.as_str();
    page(&alice, room, "dir=b&limit=20");
    server.advance(Duration::from_secs(4));
    assert_eq!(read_back(&alice, room), ["what was said"]);
}
