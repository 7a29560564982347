//! Rooms and users of other servers.

use super::*;

#[test]
fn a_room_joined_on_another_server_comes_whole_and_its_history_is_fetched() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat", "name": "Far"}));
    let sent: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    for body in &sent {
        alice.send(&room, body);
    }
    let before = sync(&bob, "");
    bob.join_via(&room, &[here.name()]);
    let answer = sync(&bob, &next(&before));
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(members(&joined["timeline"]), [bob.id()]);
    assert_eq!(members(&joined["state"]), [alice.id()]);
    assert!(
        types(&joined["state"]).contains(&"m.room.create")
            && types(&joined["state"]).contains(&"m.room.name")
    );
    assert_eq!(joined["summary"]["m.joined_member_count"], 2);
    let nothing = sync(&bob, &next(&answer));
    assert!(nothing.get("rooms").is_none(), "{nothing}");

    let mut from = joined["timeline"]["prev_batch"].as_str().unwrap().to_owned();
    let mut seen = Vec::new();
    loop {
        let page = bob.get(&room_path(&room, &format!("messages?dir=b&limit=7&from={from}")));
        seen.extend(page["chunk"].as_array().unwrap().clone());
        match page["end"].as_str() {
            Some(end) => end.clone_into(&mut from),
            None => break,
        }
    }
    seen.reverse();
    let bodies: Vec<&str> = seen.iter().filter_map(|e| e["content"]["body"].as_str()).collect();
    assert_eq!(bodies, sent);
    assert_eq!(seen[0]["type"], "m.room.create", "to the very beginning");

    alice.send(&room, "news");
    let answer = sync(&bob, &format!("{}&timeout=20000", next(&answer)));
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], false);
    assert!(types(&joined["timeline"]).iter().all(|kind| *kind == "m.room.message"), "no history as news");
}

#[test]
fn memberships_in_rooms_of_other_servers_come_and_go_once() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({
        "preset": "private_chat", "name": "Far",
        "initial_state": [{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}],
    }));
    let start = sync(&bob, "");
    bob.knock_via(&room, &[here.name()]);
    let knocked = sync(&bob, &next(&start));
    let stripped = &knocked["rooms"]["knock"][&room]["knock_state"];
    assert!(types(stripped).contains(&"m.room.create") && types(stripped).contains(&"m.room.name"));
    assert_eq!(members(stripped), [bob.id()]);
    assert_eq!(rooms(&sync(&bob, ""), "knock"), std::slice::from_ref(&room));

    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    let invited = sync(&bob, &next(&knocked));
    assert_eq!(rooms(&invited, "knock"), Vec::<String>::new());
    assert!(members(&invited["rooms"]["invite"][&room]["invite_state"]).contains(&bob.id()));

    bob.leave(&room);
    for after in ["", "&use_state_after=true"] {
        let rejected = sync(&bob, &format!("{}{after}", next(&invited)));
        assert_eq!(rooms(&rejected, "invite"), Vec::<String>::new());
        let left = &rejected["rooms"]["leave"][&room];
        assert_eq!(members(&left["timeline"]), [bob.id()]);
        let event = &left["timeline"]["events"][0];
        assert_eq!(event["content"]["membership"], "leave");
        assert_eq!(event["unsigned"]["prev_content"]["membership"], "invite");
        let state = if after.is_empty() { "state" } else { "state_after" };
        assert_eq!(members(&left[state]).len(), usize::from(!after.is_empty()));
        // Delivery of the leave goes on in the background, and is no news.
        let nothing = sync(&bob, &next(&rejected));
        assert!(nothing.get("rooms").is_none(), "{nothing}");
    }
    assert_eq!(rooms(&sync(&bob, ""), "leave"), Vec::<String>::new());
    let archived = sync(&bob, &filter(&json!({"room": {"include_leave": true}})));
    assert_eq!(rooms(&archived, "leave"), [room]);
}

#[test]
fn aliases_and_profiles_of_other_servers_are_asked_of_them() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat", "room_alias_name": "pub"}));
    alice.put(&format!("{V3}/profile/{}/displayname", segment(alice.id())), json!({"displayname": "Alice"}));
    let alias = format!("#pub:{}", here.name());
    let found = bob.get(&format!("{V3}/directory/room/{}", segment(&alias)));
    assert_eq!(found, json!({"room_id": room, "servers": [here.name()]}));
    assert_eq!(bob.join(&alias), room);
    let profile = format!("{V3}/profile/{}", segment(alice.id()));
    assert_eq!(bob.get(&profile), json!({"displayname": "Alice"}));
    assert_eq!(bob.get(&format!("{profile}/displayname")), json!({"displayname": "Alice"}));
    assert_eq!(bob.request("GET", &format!("{profile}/avatar_url"), None).0, 404);
    let nobody = format!("{V3}/profile/{}", segment(&format!("@nobody:{}", here.name())));
    assert_eq!(bob.request("GET", &nobody, None).0, 404);
    let none = format!("{V3}/directory/room/{}", segment(&format!("#none:{}", here.name())));
    assert_eq!(bob.request("GET", &none, None).0, 404);
}

#[test]
fn who_was_banned_before_the_room_came_here_is_told_so_with_their_own_event_and_once() {
    let (here, there) = TestServer::pair();
    let (alice, carol, zed) = (here.user("alice"), here.user("carol"), there.user("zed"));
    let room = zed.create_room_with(json!({ "preset": "public_chat" }));
    zed.post(&room_path(&room, "ban"), json!({ "user_id": alice.id() }));
    let own = alice.create_room_with(json!({ "preset": "public_chat" }));
    let before = sync(&alice, "");
    carol.join_via(&room, &[there.name()]);
    carol.join(&own);
    let answer = sync(&alice, &next(&before));
    assert_eq!(members(&answer["rooms"]["join"][&own]["timeline"]), [carol.id()]);
    let left = &answer["rooms"]["leave"][&room]["state"]["events"];
    let told: Vec<_> = left.as_array().expect("events").iter().collect();
    let [ban] = told[..] else { panic!("{answer}") };
    assert_eq!((&ban["state_key"], &ban["content"]["membership"]), (&json!(alice.id()), &json!("ban")));
    assert_eq!(rooms(&sync(&alice, &next(&answer)), "leave"), Vec::<String>::new());
    let after = sync(&alice, &format!("{}&use_state_after=true", next(&before)));
    assert_eq!(members(&after["rooms"]["leave"][&room]["state_after"]), [alice.id()]);
}
