//! What application services are told of the devices of their users: the messages that wait for them, and how many keys they
//! have left.

use doorstep::TestServer;
use doorstep::testing::TestUser;
use serde_json::{Value, json};

use crate::common::bridge::Bridge;
use crate::common::wait::wait_until;

const OWN: &str = "namespaces: {users: [{regex: '@irc_', exclusive: true}]}";
const SHARED: &str = "namespaces: {users: [{regex: '@irc_', exclusive: false}]}";
const ENCRYPTED: &str = "receive_ephemeral: true\norg.matrix.msc3202: true\n";
const TO_DEVICE: &str = "de.sorunome.msc2409.to_device";
const COUNTS: &str = "org.matrix.msc3202.device_one_time_keys_count";

fn with(bridges: &[(&Bridge, String)]) -> TestServer {
    let registrations: Vec<_> = bridges.iter().map(|(bridge, more)| bridge.registration(more)).collect();
    TestServer::start_with(|config| config.appservices.extend(registrations))
}

/// What a service does by its own token.
fn act(server: &TestServer, token: &str, method: &str, path: &str, body: Value) -> Value {
    let service = TestUser::new(server.url(), "@nobody:here", token);
    let (status, answer) = service.request(method, path, Some(body));
    assert!(status < 300, "{method} {path}: {status} {answer}");
    answer
}

fn make_device(server: &TestServer, token: &str, user: &str, device: &str) {
    let path = format!("/_matrix/client/v3/devices/{device}?user_id={user}");
    act(server, token, "PUT", &path, json!({}));
}

/// Logs a service's user in, as bridges do that read messages by `/sync`.
fn log_in(server: &TestServer, token: &str, user: &str, device: &str) -> TestUser {
    let login = json!({ "type": "m.login.application_service", "device_id": device,
        "identifier": { "type": "m.id.user", "user": user } });
    let login = act(server, token, "POST", "/_matrix/client/v3/login", login);
    TestUser::new(server.url(), user, login["access_token"].as_str().expect("a token"))
}

fn say(alice: &TestUser, user: &str, device: &str, number: usize) {
    let path = format!("/_matrix/client/v3/sendToDevice/m.x/{user}{device}{number}");
    alice.put(&path, json!({ "messages": { user: { device: { "n": number } } } }));
}

fn numbers<'v>(messages: impl IntoIterator<Item = &'v Value>) -> Vec<u64> {
    messages.into_iter().filter_map(|message| message["content"]["n"].as_u64()).collect()
}

/// What a service is told for a device.
fn told(bridge: &Bridge, user: &str, device: &str) -> Vec<u64> {
    let told = bridge.told(TO_DEVICE);
    let is_for = |message: &&Value| message["to_user_id"] == user && message["to_device_id"] == device;
    numbers(told.iter().filter(is_for))
}

fn synced(client: &TestUser) -> Vec<u64> {
    let answer = client.sync(std::time::Duration::ZERO);
    numbers(answer["to_device"]["events"].as_array().into_iter().flatten())
}

#[test]
fn messages_stay_with_the_device_where_a_service_does_not_ask_for_them() {
    let bridge = Bridge::start("irc");
    let server = with(&[(&bridge, format!("receive_ephemeral: true\n{OWN}"))]);
    let (alice, bot) = (server.user("alice"), format!("@ircbot:{}", server.name()));
    let client = log_in(&server, "as_irc", &bot, "DEV");
    for number in 0..3 {
        say(&alice, &bot, "DEV", number);
        let room = alice.create_room();
        alice.invite(&room, &bot);
        bridge.wait_for("events", "the invite", |event| event["room_id"] == *room);
    }
    assert_eq!(synced(&client), [0, 1, 2]);
    assert!(synced(&client).is_empty());
    assert!(bridge.told(TO_DEVICE).is_empty());
}

#[test]
fn a_device_that_syncs_has_its_messages_there_and_the_service_is_told_each_once() {
    let bridge = Bridge::start("irc");
    let mut server = with(&[(&bridge, format!("{ENCRYPTED}{OWN}"))]);
    let (alice, bot) = (server.user("alice"), format!("@ircbot:{}", server.name()));
    let client = log_in(&server, "as_irc", &bot, "SYNCS");
    make_device(&server, "as_irc", &bot, "WAITS");
    assert!(synced(&client).is_empty());
    let all = |upto: usize| (0..upto as u64).collect::<Vec<_>>();
    for number in 0..3 {
        say(&alice, &bot, "SYNCS", number);
        say(&alice, &bot, "WAITS", number);
        wait_until("both are told", || {
            told(&bridge, &bot, "WAITS") == all(number + 1) && told(&bridge, &bot, "SYNCS") == all(number + 1)
        });
    }
    server.restart();
    assert_eq!(synced(&client), [0, 1, 2]);
    say(&alice, &bot, "SYNCS", 3);
    wait_until("it is told the next one", || told(&bridge, &bot, "SYNCS").contains(&3));
    assert_eq!(synced(&client), [3]);
    assert!(synced(&client).is_empty());
    assert_eq!((told(&bridge, &bot, "SYNCS"), told(&bridge, &bot, "WAITS")), (all(4), all(3)));
    // What a service has is not kept for a device that asks for it late.
    let path = format!("/_matrix/client/v3/sync?user_id={bot}&device_id=WAITS");
    let late = TestUser::new(server.url(), &bot, "as_irc").get(&path);
    assert!(late["to_device"]["events"].as_array().is_none_or(Vec::is_empty), "{late}");
}

#[test]
fn a_device_without_keys_is_told_with_none_so_that_it_makes_its_first_ones() {
    let bridge = Bridge::start("irc");
    let server = with(&[(&bridge, format!("{ENCRYPTED}{OWN}"))]);
    let (alice, bot) = (server.user("alice"), format!("@ircbot:{}", server.name()));
    make_device(&server, "as_irc", &bot, "NEW");
    let room = alice.create_room();
    alice.invite(&room, &bot);
    bridge.wait_for("events", "the invite", |event| event["room_id"] == *room);
    let sent = bridge.transactions().pop().expect("a transaction");
    assert_eq!(sent.body[COUNTS][&bot]["NEW"], json!({ "signed_curve25519": 0 }), "{}", sent.body);
}

#[test]
fn a_device_is_a_services_if_it_made_it_or_has_its_user_for_itself() {
    let (old, own, shared) = (Bridge::start("old"), Bridge::start("own"), Bridge::start("shared"));
    let helpers = "namespaces: {users: [{regex: '@help_', exclusive: false}]}";
    let mut server = with(&[(&old, format!("{ENCRYPTED}{SHARED}"))]);
    let name = server.name().to_owned();
    let made = json!({ "type": "m.login.application_service", "username": "irc_bob", "inhibit_login": true });
    act(&server, "as_old", "POST", "/_matrix/client/v3/register", made);
    let (alice, helper) = (server.user("alice"), server.user("help_me"));
    let (bob, helper_id) = (format!("@irc_bob:{name}"), helper.id().to_owned());
    make_device(&server, "as_old", &bob, "DEV");
    server.stop();
    // The service has another id now, and there is another one that has its users in common with others.
    let registrations = [
        own.registration(&format!("{ENCRYPTED}{OWN}")),
        shared.registration(&format!("{ENCRYPTED}{helpers}")),
    ];
    server.change(|config| config.appservices = registrations.to_vec());
    server.resume();
    make_device(&server, "as_shared", &helper_id, "MADE");
    say(&alice, &bob, "DEV", 1);
    wait_until("it is told", || told(&own, &bob, "DEV") == [1]);
    say(&alice, &helper_id, "*", 2);
    wait_until("it is told", || told(&shared, &helper_id, "MADE") == [2]);
    assert_eq!(numbers(&shared.told(TO_DEVICE)), [2], "a user's own device is not the service's");
    assert_eq!(synced(&helper), [2]);
    let of_both =
        |bridge: &Bridge, user: &str| bridge.transactions().pop().expect("one").body[COUNTS][user].clone();
    assert!(of_both(&own, &bob)["DEV"].is_object());
    let of_helper = of_both(&shared, &helper_id);
    assert!(
        of_helper["MADE"].is_object() && of_helper.as_object().is_some_and(|all| all.len() == 1),
        "{of_helper}"
    );
}
