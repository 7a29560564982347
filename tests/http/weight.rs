//! What strangers send weighs about what its bytes weigh: the memory of a server of its own process, while it is sent the
//! worst that fits into a request or an answer.
//!
//! The bounds separate what is proportional to the bytes from trees of values, which take some twenty to a hundred times
//! as much: an array of six million numbers would be 200 MiB of them, one of small objects a gigabyte.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::ProcessServer;
use crate::common::media::{UPLOAD, begin, download_path};
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::ServerName;
use doorstep::protocol::json::parse_object;
use doorstep::protocol::signatures::x_matrix;
use doorstep::testing::{TestUser, segment};
use serde_json::{Map, Value, json};

const MIB: usize = 1 << 20;
/// As large as a transaction may be.
const LARGEST: usize = 12 * MIB;
/// What one of those may take, beyond what the idle server has; and three at once.
const ONE: usize = 64 * MIB;
const THREE: usize = 160 * MIB;
/// What may stay of it: caches, stacks, and what the allocator does not give back.
const LEFT: usize = 32 * MIB;

/// The memory of a server.
struct Scales {
    pid: u32,
    idle: usize,
}

impl Scales {
    fn new(server: &ProcessServer) -> Self {
        let mut new = Self { pid: server.pid().expect("it runs"), idle: 0 };
        new.idle = new.of_status("VmRSS:");
        new
    }

    fn of_status(&self, field: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux says so");
        let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }

    /// The most memory that the server had meanwhile, beyond what it had when it was idle.
    fn most(&self, meanwhile: impl FnOnce()) -> usize {
        // "5": sets the most to what there is now.
        fs::write(format!("/proc/{}/clear_refs", self.pid), "5").expect("a process of ours");
        meanwhile();
        self.of_status("VmHWM:").saturating_sub(self.idle)
    }

    #[track_caller]
    fn weigh(&self, what: &str, allowed: usize, meanwhile: impl FnOnce()) {
        let most = self.most(meanwhile);
        assert!(most <= allowed, "{what}: {} MiB of memory, of {} MiB allowed", most / MIB, allowed / MIB);
        wait_until(&format!("the memory of {what} is given back"), || {
            self.of_status("VmRSS:").saturating_sub(self.idle) <= LEFT
        });
    }
}

/// JSON text of this size: a beginning, the same again and again with a comma in between, an end.
fn filled(begin: &str, piece: &str, end: &str, size: usize) -> String {
    let count = size.saturating_sub(begin.len() + end.len()) / (piece.len() + 1);
    let mut text = String::with_capacity(size);
    text.push_str(begin);
    for n in 0..count.max(1) {
        if n > 0 {
            text.push(',');
        }
        text.push_str(piece);
    }
    text.push_str(end);
    text
}

/// The same of an object whose keys differ, in this order or the other way round.
fn of_keys(begin: &str, value: &str, end: &str, size: usize, backwards: bool) -> String {
    let count = size / (value.len() + 10);
    let key = |n: usize| format!("\"{:06x}\":{value}", if backwards { count - n } else { n });
    let all: Vec<String> = (0..count).map(key).collect();
    format!("{begin}{}{end}", all.join(","))
}

fn edu(edu_type: &str, content: &str) -> String {
    transaction(&format!("[{{\"edu_type\":\"{edu_type}\",\"content\":{content}}}]"), "[]")
}

fn transaction(edus: &str, pdus: &str) -> String {
    format!("{{\"edus\":{edus},\"origin\":\"x\",\"origin_server_ts\":{},\"pdus\":{pdus}}}", now_ms())
}

/// A server that knows the peer, so that what follows is not about that.
fn acquainted(peers: &[&Peer]) -> (ProcessServer, Scales) {
    let server = ProcessServer::start(&[]);
    for peer in peers {
        peer.send_transaction(server.name(), "first", &[]);
    }
    let scales = Scales::new(&server);
    (server, scales)
}

/// The status of the answer to a transaction. One that is too bad to be signed has the signature of another.
fn send(peer: &Peer, server: &ProcessServer, txn: &str, body: &str) -> u16 {
    let path = format!("/_matrix/federation/v1/send/{txn}");
    let to = ServerName::parse(server.name()).expect("a name");
    let sign = |body: &str| {
        x_matrix::build("PUT", &path, peer.name(), &to, Some(body.as_bytes()), peer.signing_key())
    };
    let authorization = sign(body).or_else(|_| sign("{}")).expect("JSON");
    let answer = ureq::put(format!("{}{path}", server.url()))
        .config()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .header("Authorization", authorization)
        .header("Content-Type", "application/json")
        .send(body);
    answer.expect("an answer").status().as_u16()
}

/// Counts what a thread has allocated, and the most that it had.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let now = NOW.get() + bytes;
    NOW.set(now);
    MOST.set(MOST.get().max(now));
}

// SAFETY: everything is the system's allocator's; the counters are plain numbers of the thread, which allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_text_becomes_values_that_weigh_more_than_is_allowed_for_its_size() {
    let pieces = [
        "1",
        "\"\"",
        "\"a\"",
        "[]",
        "[1]",
        "[1,2,3,4,5]",
        "{}",
        "{\"\":0}",
        "{\"a\":\"b\"}",
        "{\"a\":{\"b\":{}}}",
        "[[[[]]]]",
        "{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7,\"h\":8,\"i\":9,\"j\":10,\"k\":11,\"l\":12}",
    ];
    let (mut taken, mut given_up) = (0, 0);
    for size in [100, 4 << 10, 64 << 10, 1 << 20, 4 << 20] {
        let mut texts: Vec<String> =
            pieces.iter().map(|piece| filled("{\"a\":[", piece, "]}", size)).collect();
        texts.extend(["0", "{}", "[1]", "\"a\""].map(|value| of_keys("{", value, "}", size, true)));
        for text in texts {
            let before = NOW.get();
            MOST.set(before);
            let read = parse_object(text.as_bytes());
            let most = usize::try_from(MOST.get() - before).expect("not less than nothing");
            // A list that grows is there twice for a moment.
            let allowed = (256 << 10).max(text.len() * 32).min(16 << 20) * 2 + (512 << 10);
            let start = &text[..text.len().min(60)];
            assert!(most <= allowed, "{most} bytes for {} bytes of {start}, of {allowed}", text.len());
            if read.is_ok() { taken += 1 } else { given_up += 1 }
        }
    }
    assert!(taken > 20 && given_up > 10, "{taken} taken, {given_up} given up");
}

#[test]
fn an_ephemeral_message_of_an_unknown_type_is_dropped_unread() {
    let peer = Peer::start();
    let (server, scales) = acquainted(&[&peer]);
    for (n, piece) in ["1", "{}", "{\"\":[0]}"].into_iter().enumerate() {
        let body = edu("org.example.unknown", &filled("{\"a\":[", piece, "]}", LARGEST - 4096));
        scales.weigh(&format!("an array of {piece}"), ONE, || {
            assert_eq!(send(&peer, &server, &format!("u{n}"), &body), 200, "{piece}");
        });
    }
}

#[test]
fn whatever_a_transaction_is_full_of_it_weighs_its_bytes() {
    let peer = Peer::start();
    let (server, scales) = acquainted(&[&peer]);
    let size = LARGEST - 4096;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(size / 2 - 64), "]".repeat(size / 2 - 64));
    let bodies = [
        ("messages that are none", transaction(&filled("[", "1", "]", size), "[]")),
        ("events that are none", transaction("[]", &filled("[", "1", "]", size))),
        (
            "one event",
            transaction("[]", &filled("[{\"room_id\":\"!a:b\",\"content\":{\"a\":[", "[0]", "]}}]", size)),
        ),
        ("floats", edu("org.example.unknown", &filled("{\"a\":[", "1e15", "]}", size))),
        ("keys in order", edu("org.example.unknown", &of_keys("{", "0", "}", size, false))),
        ("keys in no order", edu("org.example.unknown", &of_keys("{", "0", "}", size, true))),
        ("the same key again and again", edu("org.example.unknown", &filled("{", "\"\":0", "}", size))),
        ("depth", edu("org.example.unknown", &deep)),
    ];
    for (n, (what, body)) in bodies.iter().enumerate() {
        scales.weigh(what, ONE, || {
            let status = send(&peer, &server, &format!("f{n}"), body);
            assert!([200, 400].contains(&status), "{what}: {status}");
        });
    }
    // And it goes on.
    assert_eq!(send(&peer, &server, "last", &transaction("[]", "[]")), 200);
}

#[test]
fn the_known_ephemeral_messages_weigh_their_bytes() {
    let peer = Peer::start();
    let (server, scales) = acquainted(&[&peer]);
    let (size, user) = (6 * MIB, peer.user("a"));
    // As many of them as an object may have fill it.
    let full = filled("{\"\":[", "[0]", "]}", 105);
    let sender = format!("{{\"sender\":\"{user}\",\"type\":\"m.x\",\"message_id\":\"m\",\"messages\":{{");
    let device = format!("{{\"user_id\":\"{user}\",\"device_id\":\"D\",\"stream_id\":1,\"keys\":{{\"a\":[");
    let previous = format!("{{\"user_id\":\"{user}\",\"device_id\":\"D\",\"stream_id\":1,\"prev_id\":[");
    let typing = format!("{{\"user_id\":\"{user}\",\"room_id\":\"!a:b\",\"typing\":true,\"a\":[");
    let bodies = [
        (
            "m.presence",
            filled("{\"push\":[", "{\"user_id\":\"@a:b\",\"presence\":\"online\",\"a\":{}}", "]}", size),
        ),
        ("m.presence", filled("{\"push\":[{\"a\":[", "{\"\":0}", "]}]}", size)),
        ("m.receipt", of_keys("{", "{}", "}", size, false)),
        ("m.receipt", of_keys("{", &full, "}", size, false)),
        ("m.receipt", of_keys("{\"!a:b\":{\"m.read\":{", &full, "}}}", size, false)),
        ("m.direct_to_device", of_keys(&sender, &full, "}}", size, false)),
        ("m.direct_to_device", of_keys(&format!("{sender}\"@a:b\":{{"), &full, "}}}", size, false)),
        ("m.direct_to_device", filled(&format!("{sender}\"@a:b\":{{\"D\":{{\"a\":["), "[0]", "]}}}}", size)),
        ("m.device_list_update", filled(&device, "[0]", "]}}", size)),
        ("m.device_list_update", filled(&previous, "1", "]}", size)),
        ("m.signing_key_update", filled(&device, "[0]", "]}}", size)),
        ("m.typing", filled(&typing, "{}", "]}", size)),
    ];
    for (n, (edu_type, content)) in bodies.iter().enumerate() {
        let what = format!("{edu_type} {}…", &content[..content.len().min(160)]);
        let body = edu(edu_type, content);
        scales.weigh(&what, ONE * 3 / 4, || {
            let status = send(&peer, &server, &format!("k{n}"), &body);
            assert!([200, 400].contains(&status), "{what}: {status}");
        });
    }
}

#[test]
fn three_transactions_at_once_weigh_three_times_their_bytes() {
    let peers = [Peer::start(), Peer::start(), Peer::start()];
    let (server, scales) = acquainted(&peers.each_ref());
    for (n, piece) in ["[]", "{}"].into_iter().enumerate() {
        let body = edu("org.example.unknown", &filled("{\"a\":[", piece, "]}", LARGEST - 4096));
        scales.weigh(&format!("three arrays of {piece}"), THREE, || {
            std::thread::scope(|scope| {
                for peer in &peers {
                    let (body, server) = (&body, &server);
                    scope.spawn(move || assert_eq!(send(peer, server, &format!("t{n}"), body), 200));
                }
            });
        });
    }
}

#[test]
fn what_clients_send_weighs_its_bytes() {
    let server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    alice.create_room();
    let scales = Scales::new(&server);
    let (me, put) = (segment(alice.id()), |text: &str| text.to_owned());
    let requests = [
        ("PUT", format!("/user/{me}/account_data/org.example.a"), 250 << 10, put("{\"a\":[")),
        ("POST", format!("/user/{me}/filter"), 250 << 10, put("{\"a\":[")),
        ("PUT", "/sendToDevice/m.x/1".to_owned(), 2000 << 10, put("{\"messages\":{},\"a\":[")),
        ("POST", "/createRoom".to_owned(), 2000 << 10, put("{\"initial_state\":[")),
        ("POST", "/createRoom".to_owned(), 2000 << 10, put("{\"a\":[")),
    ];
    for (method, path, size, begin) in requests {
        for piece in ["1", "[0]", "{\"\":0}", "{\"type\":\"a\",\"content\":{\"\":{}}}"] {
            let body = filled(&begin, piece, "]}", size);
            scales.weigh(&format!("{method} {path} with {piece}"), ONE / 2, || {
                let url = format!("{}/_matrix/client/v3{path}", server.url());
                let head = ureq::http::Request::builder().method(method).uri(url);
                let head = head.header("Authorization", format!("Bearer {}", alice.token()));
                let config = ureq::Agent::config_builder().http_status_as_error(false).build();
                let answer = ureq::Agent::from(config).run(head.body(body.as_str()).expect("a request"));
                let status = answer.expect("an answer").status().as_u16();
                assert!([200, 400, 413].contains(&status), "{path}: {status}");
            });
        }
    }
}

#[test]
fn what_peers_answer_weighs_its_bytes() {
    let (server, peer) = (ProcessServer::start(&[]), Peer::start());
    let alice = server.user("alice");
    let room = FakeRoom::new(&peer, "11", "public");
    peer.answer_json("make_join", 200, room.template(alice.id(), "join"));
    peer.answer_json("make_knock", 200, room.template(alice.id(), "knock"));
    alice.request("GET", &format!("/_matrix/client/v3/profile/{}", segment(peer.user("a").as_str())), None);
    let scales = Scales::new(&server);
    let (id, name) = (segment(room.id.as_str()), peer.name().clone());
    let list = 12 << 20;
    let asked = [
        ("GET", format!("/v3/publicRooms?server={name}"), "publicRooms", "{\"chunk\":[", list),
        ("GET", format!("/v1/rooms/{id}/hierarchy"), "hierarchy", "{\"room\":{},\"children\":[", list),
        ("GET", format!("/v1/rooms/{id}/hierarchy"), "hierarchy", "{\"children\":[],\"room\":[", list),
        ("GET", format!("/v3/profile/{}", segment(&format!("@b:{name}"))), "query/profile", "{\"a\":[", MIB),
        (
            "GET",
            format!("/v3/directory/room/{}", segment(&format!("#b:{name}"))),
            "query/directory",
            "{\"servers\":[",
            MIB,
        ),
        ("POST", format!("/v3/knock/{id}?via={name}"), "send_knock", "{\"knock_room_state\":[", list),
        (
            "POST",
            format!("/v3/join/{id}?via={name}"),
            "send_join",
            "{\"auth_chain\":[],\"state\":[",
            2 * list,
        ),
        ("POST", format!("/v3/join/{id}?via={name}"), "make_join", "{\"event\":{\"a\":[", MIB),
    ];
    for (method, path, call, begin, size) in asked {
        for piece in ["1", "{\"\":0}"] {
            let depth = begin.matches('{').count() - begin.matches('}').count();
            let answer: Arc<str> = filled(begin, piece, &format!("]{}", "}".repeat(depth)), size - 64).into();
            peer.answer(call, move |_| Reply::raw_json(answer.as_bytes().to_vec()));
            scales.weigh(&format!("{call} full of {piece}"), ONE, || {
                let body = (method == "POST").then(|| json!({}));
                let (status, _) = alice.request(method, &format!("/_matrix/client{path}"), body);
                assert!([200, 400, 403, 404, 502].contains(&status), "{call}: {status}");
            });
        }
    }
}

/// A statement of the peer's keys, signed, with a field that nobody knows.
fn fat_statement(peer: &Peer, size: usize) -> Value {
    let mut statement = json!({
        "server_name": peer.name(), "valid_until_ts": now_ms() + 86_400_000, "old_verify_keys": {},
        "verify_keys": { peer.signing_key().key_id(): { "key": peer.signing_key().public_base64() } },
        "fat": vec![json!([0]); size / 4],
    });
    peer.sign_object(statement.as_object_mut().expect("an object"));
    statement
}

#[test]
fn what_a_notary_is_told_and_repeats_weighs_its_bytes() {
    const SERVERS: usize = 48;
    let peers: Vec<Peer> = (0..SERVERS).map(|_| Peer::start()).collect();
    let (server, scales) = acquainted(&[]);
    for (n, peer) in peers.iter().enumerate() {
        // As fat as is still believed, and beyond.
        let size = if n % 2 == 0 { 24 << 10 } else { 60 << 10 };
        let statement = fat_statement(peer, size).to_string().into_bytes();
        peer.hide_keys(true);
        peer.answer("/_matrix/key/v2/server", move |_| Reply::raw_json(statement.clone()));
    }
    let asked: Map<String, Value> = peers.iter().map(|peer| (peer.name().to_string(), json!({}))).collect();
    let asked = json!({ "server_keys": asked }).to_string();
    assert!(asked.len() < 3600, "a small question");
    let mut told = Value::Null;
    for _ in 0..2 {
        scales.weigh("the answer of a notary", ONE, || {
            let answer = ureq::post(format!("{}/_matrix/key/v2/query", server.url()))
                .config()
                .timeout_global(Some(Duration::from_secs(60)))
                .build()
                .header("Content-Type", "application/json")
                .send(&asked);
            let answer =
                answer.expect("an answer").into_body().into_with_config().limit(64 << 20).read_to_vec();
            told = serde_json::from_slice(&answer.expect("a whole answer")).expect("JSON");
        });
    }
    let told = told["server_keys"].as_array().expect("statements");
    assert!(told.len() >= SERVERS / 2, "{} statements", told.len());
    // What is repeated is what was said: anybody can check it.
    for peer in &peers {
        let Some(of_peer) = told.iter().find(|statement| statement["server_name"] == peer.name().as_str())
        else {
            continue;
        };
        let key = peer.signing_key();
        let statement = of_peer.as_object().expect("an object");
        doorstep::protocol::signatures::sign::verify_json(
            statement,
            peer.name().as_str(),
            key.key_id(),
            &key.verify_key(),
        )
        .expect("signed by its server");
    }
}

#[test]
fn a_key_backup_weighs_what_is_sent_at_once_however_large_it_is() {
    const KEYS: usize = 60;
    const UPLOADS: usize = 20;
    /// What reading it back may take: some pages, and the buffers of the connections.
    const RESTORES: usize = 12 * MIB;
    let server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let v3 = "/_matrix/client/v3/room_keys";
    let backup = json!({ "algorithm": "m.test", "auth_data": {} });
    alice.post(&format!("{v3}/version"), backup);
    let path = format!("{v3}/keys?version=1");
    let scales = Scales::new(&server);
    let key = |data: &str| json!({"first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": {"a": data}});
    let large = key(&"x".repeat(60_000)).to_string();
    for n in 0..UPLOADS {
        let sessions: Vec<String> = (0..KEYS).map(|k| format!("\"{n}-{k}\":{large}")).collect();
        let body = format!("{{\"rooms\":{{\"!r:x\":{{\"sessions\":{{{}}}}}}}}}", sessions.join(","));
        let (status, answer) = put_text(&alice, &path, &body);
        assert_eq!((status, answer["count"].as_u64()), (200, Some(((n + 1) * KEYS) as u64)), "{answer}");
    }
    // As many bytes as may come, of the smallest keys, of what is none, and of rooms without any.
    let (small, end) = (key("").to_string(), "}}}}");
    let begin = "{\"rooms\":{\"!r:x\":{\"sessions\":{";
    for (what, body) in [
        ("small keys", of_keys(begin, &small, end, 7 * MIB, false)),
        ("no keys", of_keys(begin, "{}", end, 7 * MIB, true)),
        ("a key full of lists", format!("{begin}{}{end}", filled("\"a\":[", "[]", "]", 7 * MIB))),
        ("rooms without keys", of_keys("{\"rooms\":{", "{\"sessions\":{}}", "}}", 7 * MIB, false)),
    ] {
        scales.weigh(what, ONE, || {
            let (status, answer) = put_text(&alice, &path, &body);
            assert!(matches!(status, 400 | 413), "{what}: {status} {answer}");
        });
    }
    assert_eq!(alice.get(&format!("{v3}/version"))["count"], KEYS * UPLOADS);
    // 70 MiB, three times at once.
    let scales = Scales::new(&server);
    scales.weigh("a backup that is read back", RESTORES, || {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let answer = ureq::get(format!("{}{path}", server.url()))
                        .config()
                        .timeout_global(Some(Duration::from_secs(120)))
                        .build()
                        .header("Authorization", format!("Bearer {}", alice.token()))
                        .call()
                        .expect("an answer");
                    let bytes = std::io::copy(&mut answer.into_body().into_reader(), &mut std::io::sink());
                    assert!(bytes.expect("a whole answer") > (KEYS * UPLOADS * 60_000) as u64);
                });
            }
        });
    });
}

/// A request with a body that is text.
/// What a file of any size takes while it goes through.
const FILE: usize = 20 * MIB;

#[test]
fn a_file_of_a_hundred_megabytes_goes_through_little_memory() {
    let server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let scales = Scales::new(&server);
    let size = 100 * MIB;
    let piece = vec![b'x'; MIB];
    let mut uri = String::new();
    scales.weigh("an upload", FILE, || {
        let mut connection = begin(&alice, "POST", UPLOAD, &format!("Content-Length: {size}\r\n"));
        (0..100).for_each(|_| connection.write_all(&piece).expect("it is taken"));
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer");
        let body = answer.rsplit("\r\n\r\n").next().expect("a body");
        let body: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"));
        uri = body["content_uri"].as_str().expect("a URI").to_owned();
    });
    scales.weigh("an upload in chunks, with three more", FILE, || {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (alice, piece) = (&alice, &piece);
                scope.spawn(move || {
                    let mut connection = begin(alice, "POST", UPLOAD, "Transfer-Encoding: chunked\r\n");
                    for _ in 0..30 {
                        write!(connection, "{:x}\r\n", piece.len()).expect("it is taken");
                        connection.write_all(piece).expect("it is taken");
                        write!(connection, "\r\n").expect("it is taken");
                    }
                    write!(connection, "0\r\n\r\n").expect("it is taken");
                    let mut answer = String::new();
                    connection.read_to_string(&mut answer).expect("an answer");
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                });
            }
        });
    });
    scales.weigh("four downloads", FILE, || {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let mut connection = begin(&alice, "GET", &download_path(&uri), "");
                scope.spawn(move || {
                    let read = std::io::copy(&mut connection, &mut std::io::sink()).expect("a file");
                    assert!(read > size as u64, "{read}");
                });
            }
        });
    });
}

#[test]
fn a_thread_with_nothing_to_do_gives_back_what_its_allocator_keeps() {
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    doorstep::allocator::on_rest(|| {
        TIMES.fetch_add(1, Ordering::Relaxed);
    });
    let server = TestServer::start();
    ureq::get(format!("{}/_matrix/client/versions", server.url())).call().expect("an answer");
    wait_until("the thread that answered gives back", || TIMES.load(Ordering::Relaxed) > 0);
}

fn put_text(user: &TestUser, path: &str, body: &str) -> (u16, Value) {
    let answer = ureq::put(format!("{}{path}", user.url()))
        .config()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .header("Authorization", format!("Bearer {}", user.token()))
        .header("Content-Type", "application/json")
        .send(body);
    let mut answer = answer.expect("an answer");
    let text = answer.body_mut().read_to_string().expect("a body");
    (answer.status().as_u16(), serde_json::from_str(&text).expect("JSON"))
}
