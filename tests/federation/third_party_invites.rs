//! Invites of e-mail addresses: a scripted identity server that knows some, keeps invites for the others, and tells
//! homeservers when an address turns out to belong to one of their users.

use crate::common::peer::Peer;
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::json::base64_url;
use doorstep::protocol::signatures::sign::{self, SigningKey};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const ADDRESS: &str = "Carol@Example.com";
const STORE: &str = "/_matrix/identity/v2/store-invite";
const VALID: &str = "/_matrix/identity/v2/pubkey/isvalid";

/// An identity server that knows nobody and keeps every invite under the token `t0k=n`.
struct Identity {
    peer: Peer,
    key: SigningKey,
}

impl Identity {
    fn start() -> Self {
        let (peer, key) = (Peer::start(), SigningKey::generate([42; 32], "id"));
        let details = json!({ "lookup_pepper": "salt", "algorithms": ["none", "sha256"] });
        peer.answer_json("/_matrix/identity/v2/hash_details", 200, details);
        peer.answer_json("/_matrix/identity/v2/lookup", 200, json!({ "mappings": {} }));
        let other = SigningKey::generate([43; 32], "other").public_base64();
        let url = format!("https://{}{VALID}", peer.name());
        // Real ones write keys URL-safe.
        let own = key.public_base64().replace('+', "-").replace('/', "_");
        let kept = json!({
            "token": "t0k=n", "display_name": "C...@E...",
            "public_keys": [
                { "public_key": own, "key_validity_url": url },
                { "public_key": other, "key_validity_url": "https://nowhere.invalid/isvalid" },
            ],
        });
        peer.answer_json(STORE, 200, kept);
        peer.answer_json(VALID, 200, json!({ "valid": true }));
        Self { peer, key }
    }

    /// The body of a client's invite.
    fn invitee(&self) -> Value {
        json!({ "id_server": self.peer.name(), "id_access_token": "secret", "medium": "email", "address": ADDRESS })
    }

    /// What it signs for whoever the address belongs to.
    fn signed(&self, user: &str, sender: &str) -> Value {
        let mut signed = json!({ "mxid": user, "sender": sender, "token": "t0k=n" });
        sign::sign_json(signed.as_object_mut().expect("an object"), self.peer.name(), &self.key);
        signed
    }

    /// Tells a homeserver that the address is one of its users'.
    fn tell(
        &self,
        server: &TestServer,
        user: &str,
        room: &str,
        sender: &str,
        signed: &Value,
    ) -> (u16, Value) {
        let invite = json!({
            "medium": "email", "address": ADDRESS, "mxid": user, "room_id": room, "sender": sender, "signed": signed,
        });
        let body = json!({ "medium": "email", "address": ADDRESS, "mxid": user, "invites": [5, {}, invite] });
        self.peer.ask(server.name(), "PUT", "/_matrix/federation/v1/3pid/onbind", Some(&body))
    }

    /// The same, and what follows the answer.
    fn tell_and_wait(
        &self,
        server: &TestServer,
        user: &str,
        room: &str,
        sender: &str,
        signed: &Value,
    ) -> (u16, Value) {
        let told = self.tell(server, user, room, sender, signed);
        wait_until("all was done about it", || server.homeserver().request_permits.at_work() == 0);
        told
    }
}

fn invite(user: &TestUser, room: &str, body: Value) -> (u16, Value) {
    user.request("POST", &format!("/_matrix/client/v3/rooms/{}/invite", segment(room)), Some(body))
}

fn private_room(user: &TestUser) -> String {
    user.create_room_with(json!({ "preset": "private_chat", "room_version": "11", "name": "Den" }))
}

/// A room with an invite of the address in it.
fn room_with_invite(alice: &TestUser, identity: &Identity) -> String {
    let room = private_room(alice);
    let (status, body) = invite(alice, &room, identity.invitee());
    assert_eq!(status, 200, "{body}");
    room
}

#[test]
fn an_address_that_belongs_to_somebody_is_an_invite_of_them() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let identity = Identity::start();
    let hashed = base64_url(&Sha256::digest("carol@example.com email salt"));
    let answer = json!({ "mappings": { hashed.as_str(): bob.id() } });
    identity.peer.answer("/lookup", move |asked| {
        assert_eq!(asked.body["pepper"], "salt");
        assert_eq!(asked.body["algorithm"], "sha256");
        assert_eq!(asked.body["addresses"], json!([hashed]), "without regard to case");
        Reply::json(&answer)
    });
    let room = private_room(&alice);
    assert_eq!(invite(&alice, &room, identity.invitee()), (200, json!({})));
    bob.wait_for_room("invite", &room);
    let created = alice.create_room_with(json!({ "invite_3pid": [identity.invitee()] }));
    bob.wait_for_room("invite", &created);
    assert!(identity.peer.asked(STORE).is_empty());
}

#[test]
fn an_address_that_belongs_to_nobody_yet_leaves_an_invite_in_the_room() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let identity = Identity::start();
    let room = room_with_invite(&alice, &identity);
    let told = identity.peer.asked(STORE).pop().expect("asked to keep it").body;
    assert_eq!(told["medium"], "email");
    assert_eq!(told["address"], "carol@example.com");
    assert_eq!((told["room_id"].as_str(), told["sender"].as_str()), (Some(room.as_str()), Some(alice.id())));
    assert_eq!((&told["room_name"], &told["room_join_rules"]), (&json!("Den"), &json!("invite")));
    assert!(told.get("room_type").is_none());
    let event = alice.state(&room, "m.room.third_party_invite", "t0k=n").expect("it is in the room");
    assert_eq!(event["display_name"], "C...@E...");
    assert_eq!(event["public_keys"].as_array().map(Vec::len), Some(2));
    assert_eq!(event["public_key"], event["public_keys"][0]["public_key"]);
    assert_eq!(event["key_validity_url"], event["public_keys"][0]["key_validity_url"]);
    assert!(!event.to_string().to_lowercase().contains("carol"), "the address stays between the two servers");

    // Who may not invite learns nothing, and nobody gets mail.
    alice.invite(&room, bob.id());
    bob.join(&room);
    let levels = alice.state(&room, "m.room.power_levels", "").expect("power levels");
    let mut levels = levels;
    levels["invite"] = json!(50);
    alice.set_state(&room, "m.room.power_levels", "", levels);
    let asked = identity.peer.asked("/identity/").len();
    assert_eq!(invite(&bob, &room, identity.invitee()).1["errcode"], "M_FORBIDDEN");
    assert_eq!(invite(&server.user("eve"), &room, identity.invitee()).1["errcode"], "M_FORBIDDEN");
    assert_eq!(identity.peer.asked("/identity/").len(), asked);

    let mut without = identity.invitee();
    without.as_object_mut().expect("an object").remove("id_access_token");
    assert_eq!(invite(&alice, &room, without).1["errcode"], "M_MISSING_PARAM");
    let mut odd = identity.invitee();
    odd["id_server"] = json!("not/a/server");
    assert_eq!(invite(&alice, &room, odd).1["errcode"], "M_INVALID_PARAM");
}

#[test]
fn an_identity_server_that_refuses_or_talks_nonsense_makes_no_invite() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let identity = Identity::start();
    let room = private_room(&alice);
    let says = |status: u16, body: Value| identity.peer.answer_json(STORE, status, body);
    for (status, errcode, told) in [
        (401, "M_UNKNOWN_TOKEN", (403, "M_FORBIDDEN")),
        (403, "M_TERMS_NOT_SIGNED", (403, "M_TERMS_NOT_SIGNED")),
        (400, "M_UNRECOGNIZED", (400, "M_INVALID_PARAM")),
        (500, "M_UNKNOWN", (502, "M_UNKNOWN")),
    ] {
        says(status, json!({ "errcode": errcode, "error": "no" }));
        let (status, body) = invite(&alice, &room, identity.invitee());
        assert_eq!((status, body["errcode"].as_str()), (told.0, Some(told.1)), "{errcode}: {body}");
    }
    let keys = json!([{ "public_key": "a", "key_validity_url": "b" }]);
    for nonsense in [
        json!({}),
        json!({ "token": "", "display_name": "x", "public_keys": keys }),
        json!({ "token": "a/b", "display_name": "x", "public_keys": keys }),
        json!({ "token": "a", "display_name": "x", "public_keys": [] }),
        json!({ "token": "a", "display_name": 5, "public_keys": keys }),
    ] {
        says(200, nonsense.clone());
        assert_eq!(invite(&alice, &room, identity.invitee()).0, 502, "{nonsense}");
    }
    // Bound between the two questions.
    says(400, json!({ "errcode": "M_THREEPID_IN_USE", "error": "known", "mxid": bob.id() }));
    assert_eq!(invite(&alice, &room, identity.invitee()).0, 200);
    bob.wait_for_room("invite", &room);
}

#[test]
fn whoever_the_address_belongs_to_here_is_invited_if_the_signature_and_its_key_are_good() {
    let server = TestServer::start();
    let (alice, carol) = (server.user("alice"), server.user("carol"));
    let identity = Identity::start();
    let room = room_with_invite(&alice, &identity);
    let is_invited = || carol.initial_sync()["rooms"]["invite"].get(&room).is_some();
    let good = identity.signed(carol.id(), alice.id());

    let mut forged = good.clone();
    forged["signatures"][identity.peer.name().as_str()]["ed25519:id"] = json!("AAAA");
    assert_eq!(identity.tell_and_wait(&server, carol.id(), &room, alice.id(), &forged), (200, json!({})));
    let for_another = identity.signed("@mallory:example.org", alice.id());
    assert_eq!(identity.tell_and_wait(&server, carol.id(), &room, alice.id(), &for_another).0, 200);
    assert_eq!(
        identity.tell_and_wait(&server, carol.id(), &room, carol.id(), &good).0,
        200,
        "not the one who invited"
    );
    identity.peer.answer_json(VALID, 200, json!({ "valid": false }));
    assert_eq!(
        identity.tell_and_wait(&server, carol.id(), &room, alice.id(), &good).0,
        200,
        "the key was revoked"
    );
    assert!(!is_invited());
    let (status, body) = identity.tell_and_wait(&server, "@nobody:example.org", &room, alice.id(), &good);
    assert_eq!((status, body["errcode"].as_str()), (400, Some("M_INVALID_PARAM")), "{body}");

    // Where it cannot be found out just now, it is asked again.
    let asked = identity.peer.asked(VALID).len();
    identity.peer.answer_json(VALID, 500, json!({ "errcode": "M_UNKNOWN", "error": "broken" }));
    assert_eq!(identity.tell(&server, carol.id(), &room, alice.id(), &good), (200, json!({})));
    wait_until("the identity server is asked about both keys", || {
        identity.peer.asked(VALID).len() >= asked + 2
    });
    assert!(!is_invited());
    identity.peer.answer_json(VALID, 200, json!({ "valid": true }));
    wait_until("she is invited", is_invited);
    for _ in 0..2 {
        assert_eq!(identity.tell_and_wait(&server, carol.id(), &room, alice.id(), &good), (200, json!({})));
    }
    let asked = identity.peer.asked(VALID).pop().expect("asked");
    assert!(asked.target.contains("?public_key="), "{}", asked.target);
    let member = alice.state(&room, "m.room.member", carol.id()).expect("a member event");
    assert_eq!(member["membership"], "invite");
    assert_eq!(member["third_party_invite"], json!({ "display_name": "C...@E...", "signed": good }));
    assert!(is_invited());
    carol.join(&room);
    let (status, _) = identity.tell_and_wait(&server, carol.id(), &room, alice.id(), &good);
    assert_eq!(status, 200);
    assert_eq!(
        alice.membership_of(&room, carol.id()).as_deref(),
        Some("join"),
        "nobody is put out by an invite"
    );
}

#[test]
fn whoever_the_address_belongs_to_elsewhere_is_invited_through_the_inviters_server() {
    let (here, there) = TestServer::pair();
    let (alice, carol) = (here.user("alice"), there.user("carol"));
    let identity = Identity::start();
    let room = room_with_invite(&alice, &identity);
    let good = identity.signed(carol.id(), alice.id());
    assert_eq!(identity.tell(&there, carol.id(), &room, alice.id(), &good), (200, json!({})));
    carol.wait_for_room("invite", &room);
    carol.join(&room);
    wait_until("alice sees her", || alice.membership_of(&room, carol.id()).as_deref() == Some("join"));
    assert!(!identity.peer.asked(VALID).is_empty(), "the server in the room asked whether the key is good");

    // A second address, redeemed by a client that has the signature: the server is in the room by now.
    let dave = there.user("dave");
    let mut signed = json!({ "mxid": dave.id(), "sender": alice.id(), "token": "t0k=n" });
    sign::sign_json(signed.as_object_mut().expect("an object"), identity.peer.name(), &identity.key);
    let path = format!("/_matrix/client/v3/join/{}", segment(&room));
    let refused = dave.request("POST", &path, Some(json!({})));
    assert_eq!(refused.1["errcode"], "M_FORBIDDEN");
    let (status, body) = dave.request("POST", &path, Some(json!({ "third_party_signed": signed })));
    assert_eq!(status, 200, "{body}");
    wait_until("alice sees him", || alice.membership_of(&room, dave.id()).as_deref() == Some("join"));
}

#[test]
fn a_client_with_the_signature_joins_a_room_that_its_server_is_not_in() {
    let (here, there) = TestServer::pair();
    let (alice, carol) = (here.user("alice"), there.user("carol"));
    let identity = Identity::start();
    let room = room_with_invite(&alice, &identity);
    let path = format!("/_matrix/client/v3/rooms/{}/join", segment(&room));
    let signed = identity.signed(carol.id(), alice.id());
    let (status, body) = carol.request("POST", &path, Some(json!({ "third_party_signed": signed })));
    assert_eq!(status, 200, "{body}");
    wait_until("alice sees her", || alice.membership_of(&room, carol.id()).as_deref() == Some("join"));
}

#[test]
fn who_comes_into_the_room_while_their_invites_key_is_asked_about_is_not_put_out_of_it() {
    let (server, identity, peer) = (TestServer::start(), Identity::start(), Peer::start());
    let alice = server.user("alice");
    let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": "11" }));
    assert_eq!(invite(&alice, &room, identity.invitee()).0, 200);
    let (eve, gate) = (peer.user("eve"), Gate::default());
    let signed = identity.signed(eve.as_str(), alice.id());
    peer.take_transactions();
    identity.peer.answer_behind(&gate, VALID, 200, json!({ "valid": true }));
    let event = json!({
        "type": "m.room.member", "room_id": room, "sender": alice.id(), "state_key": eve,
        "content": { "membership": "invite", "third_party_invite": { "display_name": "", "signed": signed } },
    });
    let path = format!("/_matrix/federation/v1/exchange_third_party_invite/{}", segment(&room));
    let (status, said) = std::thread::scope(|scope| {
        let exchanged = scope.spawn(|| peer.ask(server.name(), "PUT", &path, Some(&event)));
        identity.peer.wait_for(VALID);
        assert_eq!(peer.hand_in(server.name(), "join", &room, &eve).1.0, 200);
        gate.open();
        exchanged.join().expect("no panic")
    });
    assert_eq!((status, said["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{said}");
    assert_eq!(alice.membership_of(&room, eve.as_str()).as_deref(), Some("join"));
}

#[test]
fn an_exchange_that_proves_nothing_gets_no_invite() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (identity, peer) = (Identity::start(), Peer::start());
    let room = room_with_invite(&alice, &identity);
    let mallory = peer.user("mallory");
    let good = json!({
        "type": "m.room.member", "room_id": room, "sender": alice.id(), "state_key": mallory,
        "content": { "membership": "invite", "third_party_invite": {
            "display_name": "Admin", "signed": identity.signed(mallory.as_str(), alice.id()),
        }},
    });
    let with = |change: &dyn Fn(&mut Value)| {
        let mut event = good.clone();
        change(&mut event);
        event
    };
    let path = format!("/_matrix/federation/v1/exchange_third_party_invite/{}", segment(&room));
    let ask = |event: &Value| {
        let (status, body) = peer.ask(server.name(), "PUT", &path, Some(event));
        (status, body["errcode"].as_str().unwrap_or_default().to_owned())
    };
    let bad = |errcode: &str| (if errcode == "M_FORBIDDEN" { 403 } else { 400 }, errcode.to_owned());
    let member = "third_party_invite";
    for (event, told) in [
        (with(&|e| e["type"] = json!("m.room.message")), "M_INVALID_PARAM"),
        (with(&|e| e["room_id"] = json!("!other:example.org")), "M_INVALID_PARAM"),
        (with(&|e| e["content"]["membership"] = json!("join")), "M_INVALID_PARAM"),
        (with(&|e| e["content"][member] = json!("yes")), "M_INVALID_PARAM"),
        (with(&|e| e["state_key"] = json!("nobody")), "M_INVALID_PARAM"),
        (with(&|e| e["sender"] = json!(mallory)), "M_FORBIDDEN"),
        (with(&|e| e["sender"] = json!(bob.id())), "M_FORBIDDEN"),
        (with(&|e| e["state_key"] = json!(peer.user("another"))), "M_FORBIDDEN"),
        (with(&|e| e["content"][member]["signed"]["token"] = json!("guess")), "M_FORBIDDEN"),
        (with(&|e| e["content"][member]["signed"]["signatures"] = json!({})), "M_FORBIDDEN"),
    ] {
        assert_eq!(ask(&event), bad(told), "{event}");
    }
    let elsewhere = path.replace(&segment(&room), &segment("!nowhere:example.org"));
    assert_eq!(peer.ask(server.name(), "PUT", &elsewhere, Some(&good)).0, 404);
    assert!(peer.asked("/invite/").is_empty());
    assert_eq!(alice.membership_of(&room, mallory.as_str()), None);

    // The proof that there is: the invite goes the way of every other, to be signed by the invitee's server first.
    peer.answer_json("/invite/", 403, json!({ "errcode": "M_FORBIDDEN", "error": "changed my mind" }));
    assert_eq!(ask(&good), bad("M_FORBIDDEN"));
    let offered = peer.wait_for("/invite/").body;
    assert_eq!(offered["event"]["content"][member]["display_name"], "C...@E...", "as the room has it");
    assert_eq!(alice.membership_of(&room, mallory.as_str()), None);
    // Banned people stay banned.
    alice.act_on("ban", &room, mallory.as_str());
    assert_eq!(ask(&good), bad("M_FORBIDDEN"));
    // Once the room takes the invite back, the proof is worth nothing.
    alice.act_on("unban", &room, mallory.as_str());
    alice.set_state(&room, "m.room.third_party_invite", "t0k=n", json!({}));
    assert_eq!(ask(&good), bad("M_FORBIDDEN"));
}
