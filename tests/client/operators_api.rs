//! What administrators ask about rooms and media by Synapse's admin API, and what ordinary users do not.

use crate::common::client::{V3, join, knock, post, room_path};
use crate::common::media::{download, upload};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const V1: &str = "/_synapse/admin/v1";

#[track_caller]
fn refused(answer: (u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{answer:?}");
}

fn of_room(room: &str, rest: &str) -> String {
    format!("{V1}/rooms/{}{rest}", segment(room))
}

fn ids(page: &Value, list: &str, field: &str) -> Vec<String> {
    let list = page[list].as_array().expect("a list");
    list.iter().map(|entry| entry[field].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn rooms_are_listed_in_every_order_page_by_page_and_found_by_their_names() {
    let server = TestServer::start();
    let (admin, alice, bob) = (server.user("admin"), server.user("alice"), server.user("bob"));
    let named = |name: &str, public: bool| {
        let preset = if public { "public_chat" } else { "private_chat" };
        let visibility = if public { "public" } else { "private" };
        alice.create_room_with(json!({ "name": name, "preset": preset, "visibility": visibility }))
    };
    let (ash, oak, yew) = (named("Ash tree", true), named("Oak", false), named("Yew TREE", true));
    bob.join(&yew);
    alice.set_state(&oak, "m.room.canonical_alias", "", json!({}));
    let list = |query: &str| admin.get(&format!("{V1}/rooms?{query}"));
    let all = list("");
    assert_eq!(ids(&all, "rooms", "room_id"), [ash.clone(), oak.clone(), yew.clone()]);
    assert_eq!((&all["offset"], &all["total_rooms"], all.get("next_batch")), (&json!(0), &json!(3), None));
    let first = &all["rooms"][0];
    let expected = json!({ "room_id": ash, "name": "Ash tree", "canonical_alias": null, "joined_members": 1,
        "joined_local_members": 1, "version": first["version"], "creator": alice.id(), "encryption": null,
        "federatable": true, "public": true, "join_rules": "public", "guest_access": first["guest_access"],
        "history_visibility": "shared", "state_events": first["state_events"], "room_type": null,
        "blocked": false });
    assert_eq!(*first, expected);

    assert_eq!(ids(&list("dir=b"), "rooms", "room_id"), [yew.clone(), oak.clone(), ash.clone()]);
    assert_eq!(ids(&list("order_by=joined_members"), "rooms", "room_id")[0], yew);
    assert_eq!(ids(&list("order_by=joined_members&dir=b"), "rooms", "room_id")[2], yew);
    for order in [
        "alphabetical",
        "size",
        "canonical_alias",
        "joined_local_members",
        "version",
        "creator",
        "encryption",
        "federatable",
        "public",
        "join_rules",
        "guest_access",
        "history_visibility",
        "state_events",
    ] {
        assert_eq!(list(&format!("order_by={order}"))["rooms"].as_array().map(Vec::len), Some(3), "{order}");
    }
    assert_eq!(ids(&list("search_term=tree"), "rooms", "room_id"), [ash.clone(), yew.clone()]);
    assert_eq!(
        ids(&list(&format!("search_term={}", segment(&oak))), "rooms", "room_id"),
        std::slice::from_ref(&oak)
    );
    assert_eq!(list("search_term=100%25_")["total_rooms"], 0);
    assert_eq!(ids(&list("public_rooms=false"), "rooms", "room_id"), std::slice::from_ref(&oak));
    let second = list("limit=1&from=1");
    assert_eq!(ids(&second, "rooms", "room_id"), std::slice::from_ref(&oak));
    assert_eq!((&second["next_batch"], &second["prev_batch"]), (&json!(2), &json!(0)));
    // Beyond the end, and none at all.
    let beyond = list("from=99999999999");
    assert_eq!((beyond["rooms"].as_array().map(Vec::len), beyond.get("next_batch")), (Some(0), None));
    assert_eq!(list("limit=0").get("next_batch"), None);
    for wrong in ["order_by=taste", "dir=x", "from=-1", "limit=x", "public_rooms=maybe", "search_term="] {
        refused(admin.request("GET", &format!("{V1}/rooms?{wrong}"), None), 400, "M_INVALID_PARAM");
    }
    // Who has left a room leaves it to who runs the server to look at.
    alice.leave(&ash);
    assert_eq!(ids(&list("empty_rooms=true"), "rooms", "room_id"), [ash]);
}

#[test]
fn a_room_is_told_with_its_members_and_its_state_to_administrators_and_to_nobody_else() {
    let server = TestServer::start();
    let (admin, alice, bob) = (server.user("admin"), server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "topic": "Trees", "preset": "private_chat" }));
    alice.invite(&room, bob.id());
    let details = admin.get(&of_room(&room, ""));
    assert_eq!((&details["topic"], &details["avatar"]), (&json!("Trees"), &Value::Null));
    assert_eq!((&details["joined_local_devices"], &details["forgotten"]), (&json!(1), &json!(false)));
    assert_eq!((&details["tombstoned"], &details["replacement_room"]), (&json!(false), &Value::Null));
    assert_eq!(admin.get(&of_room(&room, "/members")), json!({ "members": [alice.id()], "total": 1 }));
    let state = admin.get(&of_room(&room, "/state"));
    assert_eq!(state["state"].as_array().map(Vec::len), details["state_events"].as_u64().map(|n| n as usize));
    let members = admin.get(&of_room(&room, "/state?type=m.room.member"));
    assert_eq!(members["state"].as_array().map(Vec::len), Some(2), "{members}");
    assert_eq!(members["state"][0]["room_id"], room.as_str());
    let joined = admin.get(&format!("{V1}/users/{}/joined_rooms", segment(alice.id())));
    assert_eq!(joined, json!({ "joined_rooms": [room], "total": 1 }));

    let unknown = "!unknown:example.org";
    for rest in ["", "/members", "/state"] {
        refused(admin.request("GET", &of_room(unknown, rest), None), 404, "M_NOT_FOUND");
        refused(admin.request("GET", &of_room("no-room-id", rest), None), 400, "M_INVALID_PARAM");
    }
    refused(admin.request("DELETE", &of_room(unknown, ""), Some(json!({}))), 404, "M_NOT_FOUND");
    refused(admin.request("GET", "/_synapse/admin/v2/rooms/delete_status/nothing", None), 404, "M_NOT_FOUND");
    let status = format!("/_synapse/admin/v2/rooms/{}/delete_status", segment(&room));
    refused(admin.request("GET", &status, None), 404, "M_NOT_FOUND");
    for (body, errcode) in [(json!({ "block": "yes" }), "M_BAD_JSON"), (json!({ "purge": 1 }), "M_BAD_JSON")]
    {
        refused(admin.request("DELETE", &of_room(&room, ""), Some(body)), 400, errcode);
    }
    let routes = [
        ("GET", of_room(&room, "")),
        ("GET", format!("{V1}/rooms")),
        ("GET", of_room(&room, "/members")),
        ("GET", of_room(&room, "/state")),
        ("GET", of_room(&room, "/block")),
        ("PUT", of_room(&room, "/block")),
        ("DELETE", of_room(&room, "")),
        ("DELETE", of_room(&room, "").replace("v1", "v2")),
        ("GET", status),
        ("POST", of_room(&room, "/make_room_admin")),
        ("POST", format!("{V1}/join/{}", segment(&room))),
        ("GET", "/_doorstep/admin/v1/knocks".to_owned()),
        ("GET", "/_doorstep/admin/v1/blocked_rooms".to_owned()),
        ("GET", format!("{V1}/users/{}/media", segment(bob.id()))),
        ("DELETE", format!("{V1}/users/{}/media", segment(bob.id()))),
        ("POST", format!("{V1}/media/delete?before_ts=1700000000000")),
        ("POST", format!("{V1}/purge_media_cache?before_ts=1700000000000")),
        ("GET", format!("{V1}/statistics/users/media")),
    ];
    for (method, path) in routes {
        refused(
            alice.request(method, &path, Some(json!({})).filter(|_| method != "GET")),
            403,
            "M_FORBIDDEN",
        );
    }
}

#[test]
fn into_a_blocked_room_nobody_of_the_server_comes_by_any_way_and_nobody_of_others_through_it() {
    let (here, there) = TestServer::pair();
    let (admin, alice, eve) = (here.user("admin"), here.user("alice"), here.user("eve"));
    let (bob, dave) = (there.user("bob"), there.user("dave"));
    let theirs = bob.create_room_with(json!({ "preset": "public_chat", "initial_state": [
        { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }));
    let ours = alice.create_room();
    for room in [&theirs, &ours] {
        assert_eq!(admin.get(&of_room(room, "/block")), json!({ "block": false }));
        let blocked = admin.put(&of_room(room, "/block"), json!({ "block": true }));
        assert_eq!(blocked, json!({ "block": true }));
        assert_eq!(admin.get(&of_room(room, "/block")), json!({ "block": true, "user_id": admin.id() }));
    }
    refused(admin.request("PUT", &of_room(&ours, "/block"), Some(json!({}))), 400, "M_MISSING_PARAM");
    refused(admin.request("PUT", &of_room(&ours, "/block"), Some(json!({ "block": 1 }))), 400, "M_BAD_JSON");
    refused(
        admin.request("PUT", &of_room("nothing", "/block"), Some(json!({ "block": true }))),
        400,
        "M_INVALID_PARAM",
    );
    assert_eq!(admin.get(&of_room(&ours, ""))["blocked"], true);
    let mut listed = ids(&admin.get("/_doorstep/admin/v1/blocked_rooms"), "rooms", "room_id");
    listed.sort();
    let mut expected = [theirs.clone(), ours.clone()];
    expected.sort();
    assert_eq!(listed, expected);

    refused(knock(&eve, &theirs, there.name()), 403, "M_FORBIDDEN");
    refused(join(&eve, &theirs, Some(there.name())), 403, "M_FORBIDDEN");
    refused(join(&eve, &ours, None), 403, "M_FORBIDDEN");
    let invite = |by: &TestUser, room: &str, whom: &TestUser| {
        by.request("POST", &room_path(room, "invite"), Some(json!({ "user_id": whom.id() })))
    };
    refused(invite(&bob, &theirs, &eve), 403, "M_FORBIDDEN");
    refused(invite(&alice, &ours, &eve), 403, "M_FORBIDDEN");
    refused(invite(&alice, &ours, &dave), 403, "M_FORBIDDEN");
    let as_state = room_path(&ours, &format!("state/m.room.member/{}", segment(eve.id())));
    refused(alice.request("PUT", &as_state, Some(json!({ "membership": "invite" }))), 403, "M_FORBIDDEN");
    refused(eve.request("PUT", &as_state, Some(json!({ "membership": "join" }))), 403, "M_FORBIDDEN");
    assert!(join(&dave, &ours, Some(here.name())).0 >= 400);
    refused(
        admin.request("POST", &format!("{V1}/join/{}", segment(&ours)), Some(json!({ "user_id": eve.id() }))),
        403,
        "M_FORBIDDEN",
    );
    // Who is in it stays, speaks, and may leave.
    alice.send(&ours, "still here");
    for room in [&theirs, &ours] {
        admin.put(&of_room(room, "/block"), json!({ "block": false }));
    }
    assert_eq!(join(&dave, &ours, Some(here.name())).0, 200);
    eve.join(&ours);
    assert_eq!(knock(&eve, &theirs, there.name()).0, 200);
}

#[test]
fn who_is_put_into_a_room_or_over_it_is_let_in_by_a_member_who_may() {
    let server = TestServer::start();
    let (admin, alice, bob) = (server.user("admin"), server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "private_chat", "room_version": "11" }));
    let put = |user: &str| {
        admin.request("POST", &format!("{V1}/join/{}", segment(&room)), Some(json!({ "user_id": user })))
    };
    assert_eq!(put(bob.id()), (200, json!({ "room_id": room })));
    assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("join"));
    refused(put("@x:example.org"), 400, "M_INVALID_PARAM");
    refused(put(&bob.id().replace("bob", "nobody")), 404, "M_NOT_FOUND");
    let over = |user: &str| {
        admin.request("POST", &of_room(&room, "/make_room_admin"), Some(json!({ "user_id": user })))
    };
    assert_eq!(over(bob.id()), (200, json!({})));
    let levels = alice.state(&room, "m.room.power_levels", "").expect("power levels");
    assert_eq!(levels["users"][bob.id()], 100);
    // Who asks without naming anybody is invited, and has the power when they come.
    assert_eq!(admin.request("POST", &of_room(&room, "/make_room_admin"), None), (200, json!({})));
    assert_eq!(alice.membership_of(&room, admin.id()).as_deref(), Some("invite"));
    let nobodys = bob.create_room();
    bob.leave(&nobodys);
    let answer = admin.request("POST", &of_room(&nobodys, "/make_room_admin"), Some(json!({})));
    assert_eq!(answer.0, 400, "{answer:?}");
}

#[test]
fn a_room_is_deleted_in_the_background_or_at_once_and_never_with_users_in_it_who_stay() {
    let server = TestServer::start();
    let (admin, alice) = (server.user("admin"), server.user("alice"));
    let room = alice.create_room();
    let v2 = of_room(&room, "").replace("v1", "v2");
    let begun = admin.request("DELETE", &v2, Some(json!({ "block": true })));
    assert_eq!(begun.0, 200, "{begun:?}");
    let by_id =
        format!("/_synapse/admin/v2/rooms/delete_status/{}", begun.1["delete_id"].as_str().expect("an id"));
    wait_until("it is gone", || admin.get(&by_id)["status"] == "complete");
    let status = admin.get(&by_id);
    let result = json!({ "kicked_users": [alice.id()], "failed_to_kick_users": [], "local_aliases": [], "new_room_id": null });
    assert_eq!((&status["room_id"], &status["shutdown_room"]), (&json!(room), &result));
    assert_eq!(admin.get(&format!("{v2}/delete_status")), json!({ "results": [status] }));
    refused(admin.request("GET", &of_room(&room, ""), None), 404, "M_NOT_FOUND");
    refused(join(&alice, &room, None), 403, "M_FORBIDDEN");
    assert_eq!(admin.get(&format!("{V1}/rooms"))["total_rooms"], 0);

    // Left, and kept.
    let room = alice.create_room();
    let left = admin.request("DELETE", &of_room(&room, ""), Some(json!({ "purge": false })));
    assert_eq!((left.0, &left.1["kicked_users"]), (200, &json!([alice.id()])));
    assert_eq!(admin.get(&of_room(&room, ""))["joined_members"], 0);
    assert_eq!(admin.request("DELETE", &of_room(&room, ""), Some(json!({}))).0, 200);
    refused(admin.request("GET", &of_room(&room, ""), None), 404, "M_NOT_FOUND");
}

#[test]
fn files_are_counted_listed_quarantined_and_deleted_by_who_uploaded_them_and_by_age() {
    let server = TestServer::start();
    let (admin, alice, bob) = (server.user("admin"), server.user("alice"), server.user("bob"));
    let uris = [("a", 1), ("b", 2000), ("c", 30)]
        .map(|(name, size)| upload(&alice, "text/plain", name, &vec![b'x'; size]));
    let avatar = upload(&bob, "image/png", "avatar", b"me");
    bob.put(&format!("{V3}/profile/{}/avatar_url", segment(bob.id())), json!({ "avatar_url": avatar }));
    let usage = admin.get(&format!("{V1}/statistics/users/media?order_by=media_length&dir=b"));
    assert_eq!(
        usage["users"],
        json!([{ "user_id": alice.id(), "displayname": null, "media_count": 3, "media_length": 2031 },
               { "user_id": bob.id(), "displayname": null, "media_count": 1, "media_length": 2 }])
    );
    assert_eq!(admin.get(&format!("{V1}/statistics/users/media?search_term=ALI"))["total"], 1);
    let of_alice = format!("{V1}/users/{}/media", segment(alice.id()));
    let sizes = |query: &str| -> Vec<u64> {
        let media = admin.get(&format!("{of_alice}?{query}"));
        media["media"]
            .as_array()
            .expect("media")
            .iter()
            .map(|file| file["media_length"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(sizes(""), [30, 2000, 1]);
    assert_eq!(sizes("order_by=media_length"), [1, 30, 2000]);
    assert_eq!(sizes("order_by=media_length&dir=b&limit=1&from=1"), [30]);
    assert_eq!(sizes("from=7"), [0; 0]);
    assert_eq!(admin.get(&format!("{of_alice}?limit=2"))["next_token"], 2);
    let (_, id) = uris[0].rsplit_once('/').expect("a URI");
    let info = &admin.get(&format!("{V1}/media/{}/{id}", segment(server.name())))["media_info"];
    assert_eq!((&info["user_id"], &info["upload_name"]), (&json!(alice.id()), &json!("a")));
    for wrong in ["@x:example.org", "nobody"] {
        let answer = admin.request("GET", &format!("{V1}/users/{}/media", segment(wrong)), None);
        refused(answer, 400, "M_INVALID_PARAM");
    }
    refused(admin.request("POST", &format!("{V1}/media/delete"), None), 400, "M_MISSING_PARAM");
    refused(admin.request("POST", &format!("{V1}/media/delete?before_ts=7"), None), 400, "M_INVALID_PARAM");

    let far = "before_ts=33000000000000";
    let gone = admin.request("POST", &format!("{V1}/media/delete?{far}&size_gt=100"), None);
    assert_eq!((gone.0, &gone.1["total"]), (200, &json!(1)), "{gone:?}");
    assert_eq!(sizes(""), [30, 1]);
    let kept = admin.request("POST", &format!("{V1}/media/delete?{far}"), None);
    assert_eq!(kept.1["total"], 2, "an avatar stays: {kept:?}");
    assert_eq!(download(&alice, &avatar, "").status, 200);
    let quarantined = admin.post(&format!("{V1}/user/{}/media/quarantine", segment(bob.id())), json!({}));
    assert_eq!(quarantined, json!({ "num_quarantined": 1 }));
    assert_eq!(download(&alice, &avatar, "").status, 404);
    let deleted = admin.request("DELETE", &format!("{V1}/users/{}/media", segment(bob.id())), None);
    assert_eq!(deleted.1["total"], 0, "what is in quarantine stays there: {deleted:?}");
    // Tools go by whether there is something.
    let listed = &admin.get(&format!("{V1}/users/{}/media", segment(bob.id())))["media"][0];
    assert!(listed["quarantined_by"].as_str().is_some_and(|by| !by.is_empty()), "{listed}");
    assert_eq!(admin.post(&format!("{V1}/purge_media_cache?{far}"), json!({})), json!({ "deleted": 0 }));
}

#[test]
fn the_files_of_a_room_are_told_and_put_into_quarantine() {
    let server = TestServer::start();
    let (admin, alice) = (server.user("admin"), server.user("alice"));
    let [picture, thumbnail, encrypted, elsewhere] = ["picture", "thumbnail", "encrypted", "elsewhere"]
        .map(|name| upload(&alice, "image/png", name, name.as_bytes()));
    let remote = "mxc://elsewhere.example/remote";
    let (room, other) = (alice.create_room(), alice.create_room());
    let of_room = format!("{V1}/room/{}/media", segment(&room));
    assert_eq!(admin.get(&of_room), json!({ "local": [], "remote": [] }));
    let send = |room: &str, content: Value| {
        alice.send_event(room, "m.room.message", content);
    };
    for _ in 0..2 {
        let info = json!({ "thumbnail_url": thumbnail });
        send(&room, json!({ "msgtype": "m.image", "body": "p", "url": picture, "info": info }));
    }
    send(&room, json!({ "msgtype": "m.file", "body": "f", "file": { "url": encrypted } }));
    send(&room, json!({ "msgtype": "m.file", "body": "r", "url": remote }));
    send(&room, json!({ "msgtype": "m.text", "body": "mxc://elsewhere.example/said", "url": 5 }));
    send(&other, json!({ "msgtype": "m.image", "body": "o", "url": elsewhere }));
    let mut local = [picture.clone(), thumbnail, encrypted];
    local.sort();
    assert_eq!(admin.get(&of_room), json!({ "local": local, "remote": [remote] }));
    let nowhere = admin.get(&format!("{V1}/room/{}/media", segment("!nowhere:example.org")));
    assert_eq!(nowhere, json!({ "local": [], "remote": [] }));
    refused(alice.request("GET", &of_room, None), 403, "M_FORBIDDEN");
    let quarantine = format!("{of_room}/quarantine");
    refused(alice.request("POST", &quarantine, Some(json!({}))), 403, "M_FORBIDDEN");
    assert_eq!(download(&alice, &picture, "").status, 200);
    assert_eq!(admin.post(&quarantine, json!({})), json!({ "num_quarantined": 4 }));
    assert_eq!(download(&alice, &picture, "").status, 404);
    assert_eq!(download(&alice, &elsewhere, "").status, 200);
    let old = format!("{V1}/quarantine_media/{}", segment(&room));
    assert_eq!(admin.post(&old, json!({})), json!({ "num_quarantined": 0 }));
}

#[test]
fn knocks_are_answered_by_administrators_too() {
    let server = TestServer::start();
    let (admin, alice, bob) = (server.user("admin"), server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "initial_state": [
        { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }));
    assert_eq!(post(&bob, &format!("knock/{}", segment(&room)), json!({ "reason": "Rain" })).0, 200);
    let knocks = admin.get("/_doorstep/admin/v1/knocks");
    assert_eq!(ids(&knocks, "knocks", "user_id"), [bob.id()]);
    let answer = |verb: &str| {
        let path = format!("/_doorstep/admin/v1/knocks/{}/{}/{verb}", segment(&room), segment(bob.id()));
        admin.request("POST", &path, Some(json!({})))
    };
    refused(answer("ignore"), 404, "M_UNRECOGNIZED");
    assert_eq!(answer("accept"), (200, json!({})));
    refused(answer("refuse"), 404, "M_NOT_FOUND");
}

/// What a page of a list says of the pages beside it.
fn neighbours(page: &Value) -> Vec<(&str, &Value)> {
    let beside = ["next_token", "next_batch", "prev_batch"];
    beside.into_iter().filter_map(|name| Some((name, page.get(name).filter(|at| !at.is_null())?))).collect()
}

#[test]
fn no_page_of_a_list_names_itself_as_the_next_one_and_all_that_there_is_is_told_page_by_page() {
    let (here, there) = TestServer::pair();
    let (admin, alice, bob) = (here.user("admin"), here.user("alice"), there.user("bob"));
    for n in 0..3 {
        let room = alice.create_room_with(json!({ "preset": "public_chat" }));
        bob.join_via(&room, &[here.name()]);
        upload(&alice, "image/png", "a.png", format!("file {n}").as_bytes());
        alice.post(&room_path(&room, "report"), json!({ "reason": "bad" }));
        let event = alice.send(&room, "hello");
        alice.post(&room_path(&room, &format!("report/{}", segment(&event))), json!({ "reason": "bad" }));
        let user = format!("@u{n}:elsewhere.example");
        alice.post(&format!("{V3}/users/{}/report", segment(&user)), json!({ "reason": "bad" }));
    }
    upload(&admin, "image/png", "a.png", b"a file");
    let them = segment(there.name());
    let lists = [
        ("/_synapse/admin/v2/users".to_owned(), "users", 2),
        ("/_synapse/admin/v3/users".to_owned(), "users", 2),
        (format!("{V1}/rooms"), "rooms", 3),
        (format!("{V1}/event_reports"), "event_reports", 3),
        (format!("{V1}/user_reports"), "user_reports", 3),
        ("/_doorstep/admin/v1/room_reports".to_owned(), "room_reports", 3),
        (format!("{V1}/federation/destinations"), "destinations", 1),
        (format!("{V1}/federation/destinations/{them}/rooms"), "rooms", 3),
        (format!("{V1}/users/{}/media", segment(alice.id())), "media", 3),
        (format!("{V1}/statistics/users/media"), "users", 2),
    ];
    for (path, list, all) in &lists {
        let told = |page: &Value| page[list].as_array().expect("a list").len();
        let page = |query: &str| admin.get(&format!("{path}?{query}"));
        let huge = i64::MAX;
        for query in [
            "limit=0".to_owned(),
            "limit=0&from=1".to_owned(),
            format!("limit=0&from={huge}"),
            format!("from={huge}"),
        ] {
            let page = page(&query);
            let itself = neighbours(&page).into_iter().filter(|(name, at)| {
                *name != "prev_batch"
                    || at.to_string().trim_matches('"') == query.rsplit('=').next().expect("a value")
            });
            assert_eq!((told(&page), itself.count()), (0, 0), "{path}?{query}: {page}");
        }
        let whole = page(&format!("limit={huge}"));
        assert_eq!((told(&whole), neighbours(&whole).len()), (*all, 0), "{path}: {whole}");
        for wrong in ["limit=-1", "from=-1", "limit=x", "limit=9223372036854775808", "from=1.5"] {
            refused(admin.request("GET", &format!("{path}?{wrong}"), None), 400, "M_INVALID_PARAM");
        }
        let (mut from, mut seen) = ("0".to_owned(), 0);
        for _ in 0..=*all {
            let page = page(&format!("limit=1&from={from}"));
            seen += told(&page);
            let Some(next) = page.get("next_token").or(page.get("next_batch")) else { break };
            from = next.to_string().trim_matches('"').to_owned();
        }
        assert_eq!(seen, *all, "{path}");
    }
}
