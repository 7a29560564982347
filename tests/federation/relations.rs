//! Relations that other servers send: of events that come late or not at all, and of such as break the rules.

use crate::common::scene::{Scene, objects, stored};
use crate::common::wait::wait_until;
use doorstep::internals::Status;
use doorstep::protocol::{EventId, Pdu, UserId};
use doorstep::testing::segment;
use serde_json::{Value, json};

fn related(rel_type: &str, parent: &EventId) -> Value {
    json!({ "rel_type": rel_type, "event_id": parent })
}

fn edit_of(parent: &EventId, body: &str) -> Value {
    json!({ "body": body, "m.new_content": { "body": body }, "m.relates_to": related("m.replace", parent) })
}

/// A message of the room's creator at the room's end, which it becomes.
fn say(scene: &mut Scene, kind: &str, content: Value) -> Pdu {
    let creator = scene.room.creator.clone();
    say_as(scene, &creator, kind, content)
}

fn say_as(scene: &mut Scene, sender: &UserId, kind: &str, content: Value) -> Pdu {
    let last = scene.last.clone();
    let event = scene.event(&[&last], sender, (kind, None), content);
    scene.last = event.event_id().clone();
    event
}

#[track_caller]
fn take(scene: &Scene, txn: &str, pdus: &[&Pdu]) {
    scene.send(txn, pdus);
    for pdu in pdus {
        assert_eq!(scene.status(pdu), Some(Status::Accepted), "{}", pdu.event_id());
    }
}

fn bundle(scene: &Scene, event: &Pdu) -> Value {
    let (room, id) = (segment(scene.room.id.as_str()), segment(event.event_id().as_str()));
    let event = scene.alice.get(&format!("/_matrix/client/v3/rooms/{room}/event/{id}"));
    event["unsigned"]["m.relations"].clone()
}

fn ids(answer: &Value) -> Vec<String> {
    let chunk = answer["chunk"].as_array().unwrap_or_else(|| panic!("no chunk in {answer}"));
    chunk.iter().map(|event| event["event_id"].as_str().expect("an event id").to_owned()).collect()
}

fn relations(scene: &Scene, event: &Pdu, query: &str) -> Vec<String> {
    let (room, id) = (segment(scene.room.id.as_str()), segment(event.event_id().as_str()));
    ids(&scene.alice.get(&format!("/_matrix/client/v1/rooms/{room}/relations/{id}{query}")))
}

fn threads(scene: &Scene) -> Vec<String> {
    let room = segment(scene.room.id.as_str());
    ids(&scene.alice.get(&format!("/_matrix/client/v1/rooms/{room}/threads")))
}

/// A redaction of the creator's at the room's end, which it becomes.
fn redaction(scene: &mut Scene, of: &EventId) -> Pdu {
    say(scene, "m.room.redaction", json!({ "redacts": of }))
}

#[test]
fn a_root_that_comes_after_its_replies_has_its_thread_then() {
    let mut scene = Scene::new("11");
    let here = scene.last.clone();
    let root = scene.message("root");
    let reply = say(
        &mut scene,
        "m.room.message",
        json!({ "body": "r", "m.relates_to": related("m.thread", root.event_id()) }),
    );
    let edited = say(&mut scene, "m.room.message", edit_of(root.event_id(), "edited"));
    let on_nothing = json!({ "body": "r", "m.relates_to": related("m.thread", &here) });
    let on_state = say(&mut scene, "m.room.message", on_nothing);
    // The peer keeps the root back, and so what follows it stands behind a gap.
    scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    scene.answer_with_state();
    take(&scene, "1", &[&reply, &edited, &on_state]);
    assert_eq!(threads(&scene), [""; 0], "{} is state, and the root is not here", here);
    let page = json!({ "origin": scene.peer.name(), "origin_server_ts": 1, "pdus": objects(std::slice::from_ref(&root)) });
    scene.peer.answer_json("/backfill/", 200, page);
    let room = segment(scene.room.id.as_str());
    let messages = scene.alice.get(&format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=50"));
    let shown = messages["chunk"].as_array().expect("a chunk").iter();
    let shown = shown.clone().find(|event| event["event_id"] == root.event_id().as_str());
    let told = &shown.expect("it was fetched")["unsigned"]["m.relations"];
    assert_eq!(told["m.thread"]["latest_event"]["event_id"], reply.event_id().as_str());
    assert_eq!(told["m.replace"]["event_id"], edited.event_id().as_str());
    assert_eq!(threads(&scene), [root.event_id().as_str()]);
    // History has its place before what follows it, whenever it came.
    assert_eq!(relations(&scene, &root, ""), [edited.event_id().as_str(), reply.event_id().as_str()]);
}

#[test]
fn replies_that_come_by_backfill_stand_where_they_were_said() {
    let mut scene = Scene::new("11");
    let root = scene.message("root");
    take(&scene, "1", &[&root]);
    let old: Vec<Pdu> = (0..3)
        .map(|n| {
            let content =
                json!({ "body": format!("{n}"), "m.relates_to": related("m.thread", root.event_id()) });
            say(&mut scene, "m.room.message", content)
        })
        .collect();
    let gone = scene.message("lost for good");
    let new = say(
        &mut scene,
        "m.room.message",
        json!({ "body": "new", "m.relates_to": related("m.thread", root.event_id()) }),
    );
    scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    scene.answer_with_state();
    take(&scene, "2", &[&new]);
    assert_eq!(bundle(&scene, &root)["m.thread"]["count"], 1);
    let mut behind = old.clone();
    behind.push(gone);
    let page = json!({ "origin": scene.peer.name(), "origin_server_ts": 1, "pdus": objects(&behind) });
    scene.peer.answer_json("/backfill/", 200, page);
    let room = segment(scene.room.id.as_str());
    scene.alice.get(&format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=50"));
    let told = bundle(&scene, &root);
    assert_eq!(told["m.thread"]["count"], 4);
    assert_eq!(told["m.thread"]["latest_event"]["event_id"], new.event_id().as_str());
    let mut expected: Vec<&str> = old.iter().map(|event| event.event_id().as_str()).collect();
    expected.push(new.event_id().as_str());
    assert_eq!(relations(&scene, &root, "?dir=f"), expected);
}

#[test]
fn a_relation_that_was_redacted_before_it_came_is_none() {
    let mut scene = Scene::new("11");
    let root = scene.message("root");
    take(&scene, "1", &[&root]);
    let reply = say(
        &mut scene,
        "m.room.message",
        json!({ "body": "r", "m.relates_to": related("m.thread", root.event_id()) }),
    );
    let redacts = redaction(&mut scene, reply.event_id());
    scene.send("2", &[&redacts]);
    scene.send("3", &[&reply]);
    wait_until("it is redacted", || {
        stored(&scene.server, reply.event_id()).is_some_and(|event| event.redacted_by.is_some())
    });
    assert_eq!(bundle(&scene, &root), Value::Null);
    assert_eq!((relations(&scene, &root, ""), threads(&scene)), (vec![], vec![]));
}

#[test]
fn of_edits_of_one_moment_that_with_the_largest_id_is_the_latest_and_time_counts_for_more_than_arrival() {
    let mut scene = Scene::new("11");
    let original = scene.message("original");
    take(&scene, "1", &[&original]);
    let edits: Vec<Pdu> = [9, 7, 9, 9, 3]
        .iter()
        .enumerate()
        .map(|(n, ts)| {
            let event = say(&mut scene, "m.room.message", edit_of(original.event_id(), &format!("{n}")));
            let mut object = event.to_object();
            object.insert("origin_server_ts".into(), json!(1_700_000_000_000_i64 + ts));
            object.retain(|key, _| key != "hashes" && key != "signatures");
            let event = scene.peer.sign(object, scene.room.version);
            scene.last = event.event_id().clone();
            event
        })
        .collect();
    take(&scene, "2", &edits.iter().collect::<Vec<_>>());
    let latest = |edits: &[&Pdu]| edits.iter().map(|edit| edit.event_id().to_string()).max().expect("some");
    let newest = latest(&[&edits[0], &edits[2], &edits[3]]);
    assert_eq!(bundle(&scene, &original)["m.replace"]["event_id"], newest);
    for edit in edits.iter().filter(|edit| edit.event_id().as_str() == newest) {
        let redacts = redaction(&mut scene, edit.event_id());
        take(&scene, "3", &[&redacts]);
    }
    let left: Vec<&Pdu> =
        [0, 2, 3].iter().map(|n| &edits[*n]).filter(|edit| edit.event_id().as_str() != newest).collect();
    assert_eq!(bundle(&scene, &original)["m.replace"]["event_id"], latest(&left));
}

#[test]
fn what_breaks_the_rules_of_its_relation_is_told_with_nothing() {
    let mut scene = Scene::new("11");
    let other = scene.peer.user("other");
    let join = scene.join(&other);
    let original = scene.message("original");
    let liked = say(
        &mut scene,
        "m.reaction",
        json!({ "m.relates_to": { "rel_type": "m.annotation",
        "event_id": original.event_id(), "key": "👍" } }),
    );
    // Somebody else's edit, a thread at a reaction, a thread at somebody's join.
    let stolen = say_as(&mut scene, &other, "m.room.message", edit_of(original.event_id(), "stolen"));
    let nested = json!({ "body": "n", "m.relates_to": related("m.thread", liked.event_id()) });
    let nested = say(&mut scene, "m.room.message", nested);
    let at_state = json!({ "body": "s", "m.relates_to": related("m.thread", join.event_id()) });
    let at_state = say(&mut scene, "m.room.message", at_state);
    take(&scene, "1", &[&join, &original, &liked, &stolen, &nested, &at_state]);
    for event in [&original, &liked, &join] {
        assert_eq!(bundle(&scene, event), Value::Null, "{}", event.event_type());
    }
    assert_eq!(threads(&scene), [""; 0]);
    // They relate to it all the same, as whoever shows the history of an event must know.
    assert_eq!(relations(&scene, &original, "/m.replace"), [stolen.event_id().as_str()]);
    assert_eq!(relations(&scene, &liked, "?recurse=true"), [nested.event_id().as_str()]);
    // The same reaction may come twice from elsewhere: whoever counts them has to look.
    let again = say(&mut scene, "m.reaction", liked.content().into());
    take(&scene, "2", &[&again]);
    assert_eq!(relations(&scene, &original, "/m.annotation").len(), 2);
}

#[test]
fn an_event_that_comes_without_its_content_relates_to_nothing_until_that_is_here() {
    let mut scene = Scene::new("11");
    let root = scene.message("root");
    take(&scene, "1", &[&root]);
    let reply = say(
        &mut scene,
        "m.room.message",
        json!({ "body": "r", "m.relates_to": related("m.thread", root.event_id()) }),
    );
    let mut altered = reply.to_object();
    altered.insert("content".into(), json!({ "body": "altered on the way" }));
    let pdus = json!({ "origin": scene.peer.name(), "origin_server_ts": 1, "pdus": [altered], "edus": [] });
    let (status, answer) =
        scene.peer.ask(scene.server.name(), "PUT", "/_matrix/federation/v1/send/2", Some(&pdus));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(scene.status(&reply), Some(Status::Accepted));
    assert_eq!(bundle(&scene, &root), Value::Null);
    scene.send("3", &[&reply]);
    wait_until("it is whole", || {
        stored(&scene.server, reply.event_id()).is_some_and(|event| !event.pdu.content().is_empty())
    });
    assert_eq!(bundle(&scene, &root)["m.thread"]["count"], 1);
}
