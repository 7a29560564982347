//! What one server says of the state before an event whose past nobody has: that may let the event in, and rejects nobody's.

use super::*;

/// A server of the room that gives no missing events, and of every state before an event the room's as it is now without
/// what is left out.
fn liar(scene: &mut Scene, localpart: &str, leave_out: (&str, &str)) -> Peer {
    let liar = resident(scene, localpart);
    lie(&liar, scene, leave_out);
    liar
}

fn lie(liar: &Peer, scene: &Scene, (kind, state_key): (&str, &str)) {
    let left_out = (kind.to_owned(), state_key.to_owned());
    let told = scene.room.state.iter().filter(|(key, _)| **key != left_out).map(|(_, pdu)| pdu.event_id());
    let told: Vec<&EventId> = told.collect();
    liar.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    liar.answer_json("/state_ids/", 200, json!({ "pdu_ids": told, "auth_chain_ids": [] }));
}

fn relay(scene: &Scene, by: &Peer, txn: &str, pdu: &Pdu) -> Value {
    let (status, said) = by.send_transaction(scene.server.name(), txn, &[pdu]);
    assert_eq!(status, 200, "{said}");
    said["pdus"][pdu.event_id().as_str()].clone()
}

#[test]
fn a_ban_is_not_rejected_by_the_state_that_the_banned_server_says_was_before_it() {
    for version in ["10", "12"] {
        let mut scene = Scene::new(version);
        let creator = scene.room.creator.clone();
        let liar = liar(&mut scene, "liar", ("m.room.member", creator.as_str()));
        let banned = liar.user("liar");
        let missing = scene.message("missing");
        let ban = scene.set_state("m.room.member", banned.as_str(), json!({ "membership": "ban" }));
        let after = scene.message("after");
        assert_eq!(relay(&scene, &liar, "relayed", &ban), json!({}), "it waits");
        assert!(!liar.asked("/state_ids/").is_empty(), "whoever relays it was asked");
        assert_eq!((scene.status(&ban), waiting(&scene)), (None, 1));
        let said = scene.send("own", &[&missing, &ban, &after]);
        assert!(
            [&missing, &ban, &after].iter().all(|pdu| said[pdu.event_id().as_str()] == json!({})),
            "{said}"
        );
        assert!([&missing, &ban, &after].iter().all(|pdu| accepted(&scene, pdu)));
        assert_eq!(scene.membership(&banned).as_deref(), Some("ban"));
        wait_until("nothing waits any more", || waiting(&scene) == 0);
    }
}

#[test]
fn the_server_of_an_events_sender_is_asked_for_its_past_before_the_one_that_relays_it() {
    let mut scene = Scene::new("11");
    let creator = scene.room.creator.clone();
    let liar = liar(&mut scene, "liar", ("m.room.member", creator.as_str()));
    let missing = scene.message("missing");
    let ban = scene.set_state("m.room.member", liar.user("liar").as_str(), json!({ "membership": "ban" }));
    scene.peer.serve_events(&[missing.clone(), ban.clone()], 10);
    assert_eq!(relay(&scene, &liar, "relayed", &ban), json!({}));
    assert!(accepted(&scene, &missing) && accepted(&scene, &ban));
    assert!(liar.asked("/state_ids/").is_empty() && liar.asked("/get_missing_events/").is_empty());
}

#[test]
fn what_follows_an_event_that_came_in_by_such_a_state_is_not_rejected_by_it_either() {
    let mut scene = Scene::new("11");
    let creator = scene.room.creator.clone();
    let liar = liar(&mut scene, "liar", ("m.room.member", creator.as_str()));
    let (missing, user) = (scene.message("missing"), liar.user("liar"));
    let text = json!({ "body": "lies" });
    let lies = scene.event_of(&liar, &[missing.event_id()], &user, ("m.room.message", None), text);
    assert_eq!(relay(&scene, &liar, "lies", &lies), json!({}));
    assert!(accepted(&scene, &lies), "such a state lets in");
    assert_eq!(scene.membership(&creator).as_deref(), Some("join"), "and changes nothing that the room has");
    // Others have seen it, and go on from there.
    let first = scene.message_after(&[lies.event_id()], &creator, "first");
    let second = scene.message_after(&[first.event_id()], &creator, "second");
    let said = scene.send("after", &[&first, &second]);
    assert!([&first, &second].iter().all(|pdu| said[pdu.event_id().as_str()] == json!({})), "{said}");
    assert_eq!((scene.status(&first), scene.status(&second)), (None, None), "nobody says what the truth is");
    scene.answer_with_state();
    scene.server.advance(Duration::from_secs(60));
    wait_until("they are in", || accepted(&scene, &first) && accepted(&scene, &second));
    // With an event that joins the forks it is over: what comes then is rejected by what this server knows.
    let (last, heads) = (second.event_id().clone(), heads(&scene.server, &scene.room));
    let all: Vec<&EventId> = heads.iter().chain([&last]).collect();
    let joining = scene.message_after(&all, &creator, "joining");
    let stranger = scene.peer.user("stranger");
    let spam = scene.message_after(&[joining.event_id()], &stranger, "spam");
    let said = scene.send("joined", &[&joining, &spam]);
    assert_eq!(said[joining.event_id().as_str()], json!({}), "{said}");
    assert!(said[spam.event_id().as_str()]["error"].is_string(), "{said}");
    assert_eq!(waiting(&scene), 0);
}

#[test]
fn no_state_that_is_given_lets_in_what_an_events_own_auth_events_forbid() {
    let mut scene = Scene::new("11");
    let liar = liar(&mut scene, "liar", ("m.room.power_levels", ""));
    let (missing, user) = (scene.message("missing"), liar.user("liar"));
    let (kind, content) = (("m.room.name", Some("")), json!({ "name": "theirs" }));
    let name = scene.event_of(&liar, &[missing.event_id()], &user, kind, content);
    assert!(relay(&scene, &liar, "name", &name)["error"].is_string());
    assert_eq!(scene.state_content("m.room.name", "").expect("a name")["name"], "fake");
}

#[test]
fn history_is_not_cut_out_by_the_state_that_a_server_says_was_before_it() {
    let server = TestServer::start();
    let alice = server.user("alice");
    // Of two that have been in the room for as long the one with the lesser name is asked first.
    let (one, other) = (Peer::start(), Peer::start());
    let (liar, peer) = if one.name() < other.name() { (one, other) } else { (other, one) };
    let mut room = FakeRoom::new(&peer, "11", "public");
    let user = liar.user("liar");
    room.add(&liar, "m.room.member", user.as_str(), &user, json!({ "membership": "join" }));
    let past = room.say(&peer, "past");
    // Whoever takes what it is sent is worth asking.
    liar.take_transactions();
    peer.let_in(&room, alice.id());
    alice.join_via(room.id.as_str(), &[peer.name().as_str()]);
    let ids = |without: Option<&UserId>| -> Value {
        let told = room.state.iter().filter(|((_, key), _)| without.is_none_or(|user| key != user.as_str()));
        told.map(|(_, pdu)| json!(pdu.event_id())).collect()
    };
    for (of, state) in [(&liar, ids(Some(&room.creator))), (&peer, ids(None))] {
        of.answer_json("/backfill/", 200, json!({ "pdus": [past.to_object()] }));
        of.answer_json("/state_ids/", 200, json!({ "pdu_ids": state, "auth_chain_ids": [] }));
    }
    assert_eq!(read_back(&alice, room.id.as_str()), ["past"]);
    assert!(
        !liar.asked("/state_ids/").is_empty(),
        "{:?}",
        [&liar, &peer].map(|of| of.asked("/").into_iter().map(|a| a.target).collect::<Vec<_>>())
    );
    assert_eq!(stored(&server, past.event_id()).expect("it is stored").status, Status::Accepted);
}

#[test]
fn nobody_is_let_in_by_a_friends_word_against_what_the_room_has_become() {
    for version in ["11", "12"] {
        let mut scene = Scene::new(version);
        let friend = resident(&mut scene, "friend");
        let (banned, late) = (friend.user("banned"), friend.user("late"));
        let join = scene.join_of(&friend, "banned");
        scene.send("join", &[&join]);
        // While the door stood open, as is said now; nobody ever heard of it.
        let (last, member) = (scene.last.clone(), ("m.room.member", Some(late.as_str())));
        let stale = scene.event_of(&friend, &[&last], &late, member, json!({ "membership": "join" }));
        scene.room.state.insert(("m.room.member".into(), late.to_string()), stale);
        let open = scene.room.state.clone();
        let ban = scene.set_state("m.room.member", banned.as_str(), json!({ "membership": "ban" }));
        let closed = scene.set_state("m.room.join_rules", "", json!({ "join_rule": "invite" }));
        let said = scene.message("closed");
        scene.send("closed", &[&ban, &closed, &said]);
        assert!([&ban, &closed, &said].into_iter().all(|pdu| accepted(&scene, pdu)), "{version}");
        scene.room.state = open;
        let ids: Vec<&EventId> = scene.room.state.values().map(Pdu::event_id).collect();
        friend.answer_json("/state_ids/", 200, json!({ "pdu_ids": ids, "auth_chain_ids": [] }));
        friend.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
        let events: Vec<Pdu> = scene.room.state.values().cloned().collect();
        friend.answer_json("/event_auth/", 200, json!({ "auth_chain": objects(&events) }));
        let (unknown, word) = (scene.message("unknown"), ("m.room.message", None));
        let mut say = |prev: &Pdu, who: &UserId, text: &str| {
            let content = json!({ "body": text });
            scene.event_of(&friend, &[prev.event_id()], who, word, content)
        };
        let all = [say(&unknown, &banned, "a"), say(&unknown, &late, "b"), say(&said, &late, "c")];
        for (n, event) in all.iter().enumerate() {
            relay(&scene, &friend, &format!("friend{n}"), event);
        }
        assert_eq!(friend.asked("/state_ids/").len(), 2, "{version}");
        let became: Vec<_> = all.iter().filter_map(|event| scene.status(event)).collect();
        assert_eq!(became, [Status::SoftFailed, Status::SoftFailed, Status::Rejected], "{version}");
        assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), ["closed"], "{version}");
        assert_eq!(scene.membership(&banned).as_deref(), Some("ban"), "{version}");
        assert_eq!(scene.membership(&late), None, "{version}");
    }
}
