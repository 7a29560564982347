//! Bodies of requests out of bytes: JSON that speaks of what there is, under the names that the handlers look for.

use doorstep::protocol::RoomId;
use doorstep::protocol::room_version::EventIdFormat;
use serde_json::{Map, Value, json};

use super::house::{ALICE, BOB, CAROL, DAVE, House, OWN, PASSWORD, PEER, Room};
use super::source::Source;

pub const USERS: [&str; 7] =
    [ALICE, BOB, CAROL, DAVE, "@nobody:own.example", "@x:elsewhere.example", "@:[::1]:8448"];

/// Which names belong into the body of which requests.
const EXPECTED: &[(&str, &str)] = &[
    (
        "/createRoom",
        "preset name topic visibility room_alias_name room_version invite invite_3pid is_direct \
         initial_state creation_content power_level_content_override",
    ),
    ("/register", "username password auth device_id inhibit_login refresh_token nonce admin mac"),
    ("/login", "type identifier user password token device_id refresh_token"),
    ("/account/", "auth new_password logout_devices erase id_server"),
    ("/refresh", "refresh_token"),
    ("devices", "display_name devices auth"),
    ("/join", "reason third_party_signed via"),
    ("/knock", "reason via"),
    ("/invite", "user_id reason id_server medium address id_access_token"),
    ("/kick", "user_id reason"),
    ("/ban", "user_id reason"),
    ("/unban", "user_id reason"),
    ("/typing/", "typing timeout"),
    ("/receipt/", "thread_id"),
    ("/read_markers", "m.fully_read m.read m.read.private"),
    ("/presence/", "presence status_msg"),
    ("/sendToDevice/", "messages"),
    ("/filter", "room presence account_data event_fields event_format timeline state"),
    ("/tags/", "order"),
    ("/profile/", "displayname avatar_url"),
    ("/directory/room", "room_id servers"),
    ("/directory/list", "visibility"),
    ("publicRooms", "limit since filter include_all_networks third_party_instance_id"),
    ("/key/v2/query", "server_keys"),
    ("/3pid/onbind", "medium address mxid invites token signed"),
    ("/exchange_third_party_invite/", "type room_id sender state_key content"),
    ("/get_missing_events/", "earliest_events latest_events limit min_depth"),
    ("/state/", "topic name alias alt_aliases join_rule membership users allow deny"),
    ("/send/", "msgtype body m.relates_to event_id redacts"),
];

/// What stands inside.
const KEYS: &str = "content type state_key sender room_id event_id user_id users events users_default state_default \
     events_default invite kick ban redact notifications room membership join_rule allow deny \
     allow_ip_literals via history_visibility guest_access alias alt_aliases topic name url displayname \
     avatar_url reason third_party_invite signed mxid token signatures public_key public_keys \
     key_validity_url display_name join_authorised_via_users_server m.federate room_version predecessor \
     additional_creators creator limit types not_types senders not_senders rooms not_rooms lazy_load_members \
     include_redundant_members include_leave timeline state ephemeral account_data contains_url \
     unread_thread_notifications generic_search_term room_types body msgtype m.relates_to rel_type key \
     minimum_valid_until_ts m.read data ts thread_id event_ids device_id stream_id prev_id deleted keys \
     device_display_name push presence currently_active last_active_ago typing message_id messages identifier \
     user session password ignored_users tags order unsigned age redacts users_server ed25519:k";

/// What is one of the values that the specification names, here or there.
const WORDS: &str = "* join leave invite ban knock public private restricted knock_restricted public_chat private_chat \
     trusted_private_chat shared joined invited world_readable can_join forbidden m.room.create m.room.member \
     m.room.power_levels m.room.join_rules m.room.name m.room.topic m.room.message m.room.redaction \
     m.room.aliases m.room.canonical_alias m.room.server_acl m.room.history_visibility m.room.guest_access \
     m.room.third_party_invite m.room.tombstone m.room.encryption m.room.policy m.space m.space.child \
     m.space.parent m.tag m.push_rules m.direct m.ignored_user_list m.fully_read m.read m.read.private main \
     m.reaction m.annotation m.thread m.text m.login.password m.login.dummy m.login.token m.id.user online \
     offline unavailable email user password 1 2 6 10 12 99 m.room_membership override underride content \
     sender global client federation event mxc://own.example/a ed25519:k ed25519:x displayname avatar_url \
     m.tz f b s0 true false 0";

pub const NUMBERS: [i64; 14] = [
    0,
    1,
    -1,
    2,
    10,
    50,
    100,
    1000,
    30_000,
    4_102_444_800_000,
    9_007_199_254_740_991,
    -9_007_199_254_740_991,
    i64::MAX,
    i64::MIN,
];

const EDUS: &str =
    "m.typing m.receipt m.presence m.direct_to_device m.device_list_update m.signing_key_update m.odd";

/// The body's names and values, for a request on this path.
pub fn object(source: &mut Source<'_>, house: &House, path: &str) -> Value {
    let hints = EXPECTED.iter().rfind(|(part, _)| path.contains(part)).map_or(KEYS, |(_, keys)| keys);
    let mut object = Map::new();
    for _ in 0..source.below(8) {
        let key = if source.chance(40) { source.word(KEYS) } else { source.word(hints) };
        object.insert(key.to_owned(), value_of(key, source, house, 0));
    }
    Value::Object(object)
}

/// Mostly what usually has this name.
pub fn value_of(key: &str, source: &mut Source<'_>, house: &House, depth: usize) -> Value {
    if source.chance(60) {
        return any(source, house, depth);
    }
    match key {
        "user_id" | "sender" | "mxid" | "creator" | "join_authorised_via_users_server" => {
            json!(source.pick(&USERS))
        }
        "room_id" => json!(room(source, house).id),
        "event_id" | "redacts" | "m.fully_read" => json!(event(source, house)),
        "earliest_events" | "latest_events" | "event_ids" => {
            (0..source.below(4)).map(|_| json!(event(source, house))).collect()
        }
        "invite" | "users" | "senders" | "additional_creators" if depth == 0 => {
            (0..source.below(4)).map(|_| json!(source.pick(&USERS))).collect()
        }
        "users" | "messages" | "ignored_users" | "server_keys" | "one_time_keys" => {
            table(source, house, depth)
        }
        "alias" => json!(room(source, house).alias),
        "membership" => json!(source.pick(&["join", "leave", "invite", "ban", "knock"])),
        "join_rule" => json!(source.pick(&["public", "invite", "knock", "restricted", "knock_restricted"])),
        "room_version" => json!(source.pick(&["1", "2", "6", "10", "11", "12", "99"])),
        "limit" | "timeout" | "ts" | "age" | "min_depth" | "order" | "users_default" | "state_default" => {
            json!(source.pick(&NUMBERS))
        }
        "content" | "signed" | "filter" | "room" | "timeline" | "state" | "creation_content" | "unsigned" => {
            inner(source, house, depth)
        }
        "auth" => json!({
            "type": source.pick(&["m.login.password", "m.login.dummy"]),
            "identifier": { "type": "m.id.user", "user": source.pick(&[BOB, BOB, ALICE]) }, "password": PASSWORD,
            "session": house.given.get("session"),
        }),
        "identifier" => json!({ "type": "m.id.user", "user": source.pick(&USERS) }),
        "password" => json!(PASSWORD),
        "devices" => json!([house.device]),
        "refresh_token" | "session" => json!(house.given.get(key)),
        _ => json!(text(source, house)),
    }
}

fn any(source: &mut Source<'_>, house: &House, depth: usize) -> Value {
    match source.below(if depth < 4 { 12 } else { 8 }) {
        0 => Value::Null,
        1 => json!(source.chance(128)),
        2 | 3 => json!(source.pick(&NUMBERS)),
        4 => json!(1.5),
        5..=7 => json!(text(source, house)),
        8 => (0..source.below(4)).map(|_| any(source, house, depth + 1)).collect(),
        9 => table(source, house, depth),
        _ => inner(source, house, depth),
    }
}

fn inner(source: &mut Source<'_>, house: &House, depth: usize) -> Value {
    if depth > 4 {
        return json!({});
    }
    let keys = (0..source.below(5)).map(|_| {
        let key = source.word(KEYS);
        (key.to_owned(), value_of(key, source, house, depth + 1))
    });
    Value::Object(keys.collect())
}

/// An object whose names are ids.
fn table(source: &mut Source<'_>, house: &House, depth: usize) -> Value {
    if depth > 4 {
        return json!({});
    }
    let keys = (0..source.below(4)).map(|_| (text(source, house), any(source, house, depth + 1)));
    Value::Object(keys.collect())
}

/// Words that mean something, ids of what there is, or a few of the bytes.
pub fn text(source: &mut Source<'_>, house: &House) -> String {
    match source.below(8) {
        0..=1 => source.word(WORDS).to_owned(),
        2 => String::new(),
        3 => source.pick(&USERS).to_owned(),
        4 => room(source, house).id.to_string(),
        5 => event(source, house),
        6 => source.pick(&[OWN, PEER, "elsewhere.example", "#1:own.example", "#x:peer.example"]).to_owned(),
        _ => {
            let bytes: Vec<u8> = (0..source.below(24)).map(|_| source.byte()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }
}

pub fn room(source: &mut Source<'_>, house: &House) -> Room {
    let mut room = house.rooms[source.below(house.rooms.len())].clone();
    if source.chance(16) {
        room.id = RoomId::parse("!unknown:peer.example").expect("a room id");
    }
    room
}

pub fn event(source: &mut Source<'_>, house: &House) -> String {
    if source.chance(16) {
        return source
            .pick(&["$unknown:peer.example", "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "$"])
            .to_owned();
    }
    house.events[source.below(house.events.len())].clone()
}

/// An event of the other server's: mostly as it should be, signed, with its id. For a membership (`kind`) or anything.
pub fn peer_event(source: &mut Source<'_>, house: &House, membership: Option<&str>) -> (Room, String, Value) {
    let mut room = room(source, house);
    if membership == Some("invite") && source.chance(128) {
        // Who is invited need not be in a room that we know.
        room.id = RoomId::parse("!elsewhere:peer.example").expect("a room id");
    }
    let sender = if source.chance(20) { source.pick(&USERS) } else { source.pick(&[CAROL, CAROL, DAVE]) };
    let (kind, state_key, content) = match membership {
        Some(membership) => {
            let target = if membership == "invite" { source.pick(&USERS) } else { sender };
            ("m.room.member", Some(target), json!({ "membership": membership }))
        }
        None => anything(source, house, sender),
    };
    let mut event = house.draft(&room, sender, (kind, state_key), content);
    if source.chance(60) {
        let other = self::event(source, house);
        let other = if room.version.event_id_format == EventIdFormat::InEvent {
            json!([other, {}])
        } else {
            json!(other)
        };
        let key = source.pick(&["prev_events", "auth_events"]);
        match event.get_mut(key).and_then(Value::as_array_mut) {
            Some(list) if source.chance(128) => list.push(other),
            Some(list) => *list = vec![other],
            None => {}
        }
    }
    if source.chance(40) {
        let key =
            source.pick(&["depth", "origin_server_ts", "redacts", "unsigned", "origin", "room_id", "sender"]);
        event.insert(key.to_owned(), value_of(key, source, house, 1));
    }
    let (id, mut event) = house
        .signed(&event, room.version)
        .unwrap_or_else(|| ("$no:peer.example".to_owned(), Value::Object(event.clone())));
    if source.chance(20) {
        // After it was hashed and signed.
        let key = source.pick(&["content", "signatures", "hashes", "type", "state_key", "unsigned"]);
        event[key] = value_of(key, source, house, 1);
    }
    (room, id, event)
}

fn anything<'s>(
    source: &mut Source<'_>,
    house: &House,
    sender: &'s str,
) -> (&'s str, Option<&'s str>, Value) {
    match source.below(6) {
        0 => ("m.room.message", None, inner(source, house, 0)),
        1 => {
            let membership = source.pick(&["join", "leave", "invite", "ban", "knock"]);
            ("m.room.member", Some(sender), json!({ "membership": membership }))
        }
        2 => ("m.room.redaction", None, json!({ "redacts": event(source, house) })),
        3 => ("m.room.member", Some(source.pick(&USERS)), inner(source, house, 0)),
        4 => (source.word(WORDS), Some(""), inner(source, house, 0)),
        _ => (source.word(WORDS), None, inner(source, house, 0)),
    }
}

/// What one server sends to another of its own accord.
pub fn transaction(source: &mut Source<'_>, house: &mut House) -> Value {
    let mut pdus = Vec::new();
    for _ in 0..source.below(4) {
        let (_, id, event) = peer_event(source, house, None);
        house.learn(id);
        pdus.push(event);
    }
    let edus: Value = (0..source.below(4)).map(|_| edu(source, house)).collect();
    let mut body =
        json!({ "origin": PEER, "origin_server_ts": source.pick(&NUMBERS), "pdus": pdus, "edus": edus });
    if source.chance(20) {
        body[source.pick(&["origin", "pdus", "edus", "origin_server_ts"])] = any(source, house, 0);
    }
    body
}

fn edu(source: &mut Source<'_>, house: &House) -> Value {
    let kind = source.word(EDUS);
    let (room, user) = (room(source, house).id, source.pick(&USERS));
    let mut content = match kind {
        "m.typing" => json!({ "room_id": room, "user_id": user, "typing": source.chance(128) }),
        "m.receipt" => {
            let receipt =
                json!({ "event_ids": [event(source, house)], "data": { "ts": source.pick(&NUMBERS) } });
            json!({ room.as_str(): { "m.read": { user: receipt } } })
        }
        "m.presence" => json!({ "push": [{
            "user_id": user, "presence": "online", "last_active_ago": source.pick(&NUMBERS), "currently_active": true,
        }] }),
        "m.direct_to_device" => json!({
            "sender": user, "type": "m.room_key_request", "message_id": source.byte().to_string(),
            "messages": { source.pick(&USERS): { "*": { "a": source.byte() } } },
        }),
        "m.device_list_update" => json!({
            "user_id": user, "device_id": "D", "stream_id": source.pick(&NUMBERS), "prev_id": [source.pick(&NUMBERS)],
            "keys": { "user_id": user, "device_id": "D", "algorithms": [], "keys": {}, "signatures": {} },
        }),
        _ => inner(source, house, 0),
    };
    if source.chance(60) {
        let keys: Vec<String> =
            content.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
        if !keys.is_empty() {
            let key = &keys[source.below(keys.len())];
            content[key] = any(source, house, 1);
        }
    }
    json!({ "edu_type": kind, "content": content })
}
