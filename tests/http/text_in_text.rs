//! JSON text within JSON text, as often as fits into a request: whoever parses it on the way, each within the other, runs
//! out of stack, and a process that does is gone. To us it is text.

use crate::common::ProcessServer;
use crate::common::peer::{FakeRoom, Peer};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// The key by which the library for JSON knows text that it shall parse.
const RAW: &str = "$serde_json::private::RawValue";

/// Text in text in text: thousands of levels, none of which has more than 120.
fn text_in_text(levels: usize) -> Value {
    let mut text = "0".to_owned();
    for _ in 0..levels {
        let quoted = text.replace('\\', "\\u005c").replace('"', "\\u0022");
        text = format!("{}{{\"{RAW}\":\"{quoted}\"}}{}", "[".repeat(120), "]".repeat(120));
    }
    json!({ RAW: text })
}

/// As many as fit into an event.
fn for_an_event() -> Value {
    let value = text_in_text(60);
    assert!((40_000..60_000).contains(&value.to_string().len()), "{}", value.to_string().len());
    value
}

#[track_caller]
fn serves(server: &ProcessServer) {
    let (status, body) =
        TestUser::new(&server.url(), "", "").request("GET", "/_matrix/client/versions", None);
    assert_eq!(status, 200, "{body}");
}

#[test]
fn requests_of_anybody_have_text_in_text_in_them_and_the_server_lives() {
    let server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    let nobody = TestUser::new(&server.url(), "", "");
    let deep = text_in_text(80);
    let login =
        |more: &Value| json!({ "type": "m.login.password", "user": "bob", "password": "x", "more": more });
    for (method, path, body) in [
        ("POST", "/_matrix/client/v3/login", login(&deep)),
        ("POST", "/_matrix/client/v3/login", login(&json!([{ "a": deep }]))),
        (
            "POST",
            "/_matrix/client/v3/login",
            json!({ "type": "m.login.password", "identifier": deep, "password": deep }),
        ),
        ("POST", "/_matrix/client/v3/register", json!({ "username": "carol", "more": deep })),
        ("POST", "/_matrix/key/v2/query", json!({ "server_keys": deep })),
        ("POST", "/_matrix/key/v2/query", json!({ "server_keys": { "localhost:1": deep } })),
        ("POST", "/_matrix/client/v3/createRoom", json!({ "creation_content": { "x": deep } })),
        ("PUT", "/_matrix/client/v3/profile/x/displayname", deep.clone()),
    ] {
        for who in [&nobody, &bob] {
            let (status, said) = who.request(method, path, Some(body.clone()));
            assert!(status < 500, "{path}: {status} {said}");
            serves(&server);
        }
    }
    let (status, said) = bob.request(
        "POST",
        "/_matrix/client/v3/createRoom",
        Some(json!({ "creation_content": { "x": deep } })),
    );
    assert_eq!((status, &said["errcode"]), (400, &json!("M_BAD_JSON")), "{said}");
}

#[test]
fn an_event_with_text_in_text_is_an_event_like_any_other() {
    let (server, peer) = (ProcessServer::start(&[]), Peer::start());
    let (bob, carol) = (server.user("bob"), server.user("carol"));
    let mut room = FakeRoom::joined_by(&peer, "11", &bob);
    let content = json!({ "name": "Kitchen", "more": [for_an_event()] });
    let creator = room.creator.clone();
    let named = room.add(&peer, "m.room.name", "", &creator, content.clone());
    let (status, said) = peer.send_transaction(server.name(), "named", &[&named]);
    assert_eq!((status, &said["pdus"][named.event_id().as_str()]), (200, &json!({})), "{said}");
    let path = room.id.as_str();
    assert_eq!(bob.state(path, "m.room.name", ""), Some(content.clone()));
    // In every form that it is shown in.
    let shown = |filter: &str| {
        let answer = bob.get(&format!("/_matrix/client/v3/sync?filter={}", segment(filter)));
        answer["rooms"]["join"][path].to_string()
    };
    assert!(shown("{}").contains("Kitchen"));
    let cut = shown(r#"{"event_fields":["type","content.name","content.more"]}"#);
    assert!(cut.contains("Kitchen") && cut.contains(RAW), "{cut}");
    // And to those outside.
    let mut open = FakeRoom::new(&peer, "11", "invite");
    open.add(&peer, "m.room.name", "", &creator, content);
    open.invite(&peer, server.name(), carol.id());
    let four = json!([{
        "type": "m.room.name", "state_key": "", "sender": creator, "content": { "name": "Cellar", "more": text_in_text(40) },
    }]);
    let other = FakeRoom::new(&peer, "11", "invite");
    let invite = other.membership(&peer, &other.creator, carol.id(), "invite");
    let body = json!({ "room_version": "11", "event": invite.to_object(), "invite_room_state": four });
    let (status, said) = peer.put_event(server.name(), "v2/invite", &other.id, &invite, &body);
    assert_eq!(status, 200, "{said}");
    let invites = carol.initial_sync()["rooms"]["invite"].clone();
    assert_eq!(invites.as_object().map(serde_json::Map::len), Some(2), "{invites}");
    serves(&server);
}

#[test]
fn answers_of_another_server_have_text_in_text_in_them_and_the_server_lives() {
    let (server, peer) = (ProcessServer::start(&[]), Peer::start());
    let bob = server.user("bob");
    let room = FakeRoom::new(&peer, "11", "public");
    let deep = text_in_text(80);
    let join = |say: &dyn Fn()| {
        say();
        let path = format!("/_matrix/client/v3/join/{}?via={}", segment(room.id.as_str()), peer.name());
        let (status, said) = bob.request("POST", &path, None);
        assert!(status == 403 || status == 502, "{status} {said}");
        serves(&server);
        assert!(!peer.asked("make_join").is_empty());
    };
    join(&|| {
        peer.answer_json(
            "make_join",
            403,
            json!({ "errcode": "M_FORBIDDEN", "error": "no", "more": for_an_event() }),
        );
    });
    join(&|| {
        let mut template = room.template(bob.id(), "join");
        template["event"]["content"]["more"] = deep.clone();
        peer.answer_json("make_join", 200, template);
    });
    join(&|| peer.answer_json("make_join", 200, json!({ "room_version": "11", "event": deep })));
}
