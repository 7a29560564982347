//! Kills two real servers (SIGKILL) at random moments while everything happens at once: messages and forks in a shared
//! room, knocks, invites, joins, leaves, kicks and bans across servers, rooms made, and a third server (scripted, never
//! killed) that sends and is sent to. After each start: the database is whole, and what was acknowledged is there. In
//! the end all sides agree without anybody's help.
//!
//! `DOORSTEP_CRASH_KILLS` says how many kills instead of the dozen that suits every run, `DOORSTEP_CRASH_SEED` which
//! moments (the moments are the seed's, what happens in them is the machine's).

#![allow(clippy::print_stdout, reason = "the seed, and what was done, for those who ask with --nocapture")]

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::random::{Random, number};
use crate::common::wait::wait_until;
use crate::common::{ProcessServer, invariants};
use doorstep::protocol::Pdu;
use doorstep::testing::{TestUser, segment};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

#[allow(clippy::disallowed_methods, reason = "random moments are what this is about")]
fn let_pass(milliseconds: usize) {
    std::thread::sleep(Duration::from_millis(milliseconds as u64));
}

/// Everybody who does something, and what they were told.
struct Load {
    over: AtomicBool,
    /// Server 0 or 1, room, event id: of each event that this server's client was told of.
    acknowledged: Mutex<Vec<(usize, String, String)>>,
    /// Events of the scripted server that the first server answered for.
    taken: Mutex<Vec<String>>,
    /// Requests that were answered at all.
    answers: AtomicUsize,
    /// Answers that nobody may ever get.
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// One request of a user whose server may be dead.
    fn request(&self, user: &TestUser, method: &str, path: &str, body: &Value) -> Option<Value> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .into();
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}/_matrix/client/v3/{path}", user.url()))
            .header("Authorization", format!("Bearer {}", user.token()));
        let mut response = agent.run(request.body(body.to_string()).expect("a request")).ok()?;
        let status = response.status().as_u16();
        let answer: Value = serde_json::from_str(&response.body_mut().read_to_string().ok()?).ok()?;
        self.answers.fetch_add(1, Ordering::Relaxed);
        if status == 500 {
            let failure = format!("{} {method} {path}: {answer}", user.id());
            self.failures.lock().expect("no panic").push(failure);
        }
        (status == 200).then_some(answer)
    }

    /// Messages, and now and then a topic, which both sides set at once.
    fn talk(&self, server: usize, user: &TestUser, room: &str, topics: bool) {
        for n in 0.. {
            let_pass(20);
            if self.is_over() {
                return;
            }
            let room_path = format!("rooms/{}", segment(room));
            let answer = if topics && n % 6 == 5 {
                let content = json!({ "topic": format!("{n} by {}", user.id()) });
                self.request(user, "PUT", &format!("{room_path}/state/m.room.topic/"), &content)
            } else {
                let content = json!({ "msgtype": "m.text", "body": format!("{n}") });
                self.request(user, "PUT", &format!("{room_path}/send/m.room.message/{n}"), &content)
            };
            if let Some(id) = answer.and_then(|answer| answer["event_id"].as_str().map(str::to_owned)) {
                self.acknowledged.lock().expect("no panic").push((server, room.to_owned(), id));
            }
        }
    }

    /// A user who comes to a room of another server and goes, in every way there is; and its owner, who lets them in
    /// or not.
    fn come_and_go(&self, owner: &TestUser, user: &TestUser, room: &str, host: &str, seed: u64) {
        let mut random = Random::new(seed);
        while !self.is_over() {
            let_pass(5);
            let (room_path, via) = (segment(room), segment(host));
            let body = json!({ "user_id": user.id() });
            let _ = match random.below(10) {
                0 | 1 => self.request(user, "POST", &format!("knock/{room_path}?via={via}"), &json!({})),
                2..=4 => self.request(user, "POST", &format!("join/{room_path}?via={via}"), &json!({})),
                5 => self.request(user, "POST", &format!("rooms/{room_path}/leave"), &json!({})),
                6 | 7 => self.request(owner, "POST", &format!("rooms/{room_path}/invite"), &body),
                8 => {
                    let verb = random.pick(&["kick", "ban"]);
                    self.request(owner, "POST", &format!("rooms/{room_path}/{verb}"), &body)
                }
                _ => self.request(owner, "POST", &format!("rooms/{room_path}/unban"), &body),
            };
        }
    }

    /// Rooms are made whole or not at all. Not so many that looking at them all takes long.
    fn make_rooms(&self, user: &TestUser) {
        for n in 0..200 {
            let_pass(40 + 10 * n);
            if self.is_over() {
                return;
            }
            let _ =
                self.request(user, "POST", "createRoom", &json!({ "preset": "public_chat", "name": "x" }));
        }
    }

    /// The scripted server repeats a transaction until it is answered, as every server does.
    fn send_from(&self, peer: &Peer, room: &mut FakeRoom, to: &str) {
        for n in 0.. {
            let pdus: Vec<Pdu> = (0..1 + n % 3)
                .map(|m| {
                    let creator = room.creator.clone();
                    room.add(peer, "org.example.x", &format!("{n}-{m}"), &creator, json!({ "n": n }))
                })
                .collect();
            let body = json!({
                "origin": peer.name(), "origin_server_ts": now_ms(), "edus": [],
                "pdus": pdus.iter().map(|pdu| Value::Object(pdu.to_object())).collect::<Vec<_>>(),
            });
            loop {
                if self.is_over() {
                    return;
                }
                let_pass(15);
                let Some((200, answer)) =
                    peer.try_put(to, &format!("/_matrix/federation/v1/send/{n}"), &body)
                else {
                    continue;
                };
                for pdu in &pdus {
                    let id = pdu.event_id().to_string();
                    match answer["pdus"][&id]["error"].as_str() {
                        None => self.taken.lock().expect("no panic").push(id),
                        Some(error) => self.failures.lock().expect("no panic").push(format!("{id}: {error}")),
                    }
                }
                break;
            }
        }
    }
}

/// Reads a server's database from outside.
fn database(server: &ProcessServer) -> Connection {
    let path = server.folder().join("doorstep.db");
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the database");
    database.busy_timeout(Duration::from_secs(10)).expect("a time-out");
    database
}

fn accepted(database: &Connection, id: &str) -> bool {
    let sql = "SELECT 1 FROM events WHERE event_id = ?1 AND status = 0 AND state_after IS NOT NULL";
    database.prepare_cached(sql).and_then(|mut s| s.exists([id])).expect("a look")
}

/// Whether an event was put by until it can be judged.
fn waits(database: &Connection, id: &str) -> bool {
    let sql = "SELECT 1 FROM pending_events WHERE event_id = ?1";
    database.prepare_cached(sql).and_then(|mut s| s.exists([id])).expect("a look")
}

/// The events of a room's current state; none if the server is not in it.
fn state_of(database: &Connection, room: &str) -> Option<Vec<String>> {
    let sql =
        "SELECT e.event_id FROM rooms r JOIN current_state c USING (room_key) JOIN events e USING (event_key)
               WHERE r.room_id = ?1 AND r.resident = 1 ORDER BY 1";
    let mut statement = database.prepare_cached(sql).expect("a statement");
    let ids: Vec<String> =
        statement.query_map([room], |r| r.get(0)).and_then(Iterator::collect).expect("a state");
    (!ids.is_empty()).then_some(ids)
}

/// What has to hold of each server after each start.
#[derive(Default)]
struct Looks {
    /// Of each server, up to which event the bytes were looked at.
    read: [i64; 2],
    /// How many of the acknowledged events were looked for.
    found: usize,
    found_taken: usize,
}

impl Looks {
    fn look(&mut self, servers: &[ProcessServer; 2], load: &Load, when: &str) {
        for (at, server) in servers.iter().enumerate() {
            let (wrong, last) = invariants::check(server.folder(), self.read[at]);
            assert!(wrong.is_empty(), "{when}, server {at} in {}: {wrong:#?}", server.folder().display());
            self.read[at] = last;
            let half_made = "SELECT r.room_id FROM rooms r WHERE r.resident = 1 AND 4 >
                (SELECT count(DISTINCT s.type) FROM current_state c JOIN state_tuples s USING (tuple_id)
                 WHERE c.room_key = r.room_key AND s.type IN
                   ('m.room.create', 'm.room.member', 'm.room.power_levels', 'm.room.join_rules'))";
            assert!(
                !database(server).prepare(half_made).and_then(|mut s| s.exists([])).expect("a look"),
                "{when}"
            );
        }
        let databases = servers.each_ref().map(database);
        let acknowledged = load.acknowledged.lock().expect("no panic").clone();
        for (server, room, id) in &acknowledged[self.found..] {
            assert!(accepted(&databases[*server], id), "{when}: {id} of {room} was acknowledged by {server}");
        }
        self.found = acknowledged.len();
        let taken = load.taken.lock().expect("no panic").clone();
        for id in &taken[self.found_taken..] {
            let there = accepted(&databases[0], id) || waits(&databases[0], id);
            assert!(there, "{when}: {id} of another server was answered for");
        }
        self.found_taken = taken.len();
        let failures = load.failures.lock().expect("no panic");
        assert!(failures.is_empty(), "{when}: {failures:#?}");
    }
}

/// One kill or two at moments of the seed's choice. Returns how many.
fn kill(servers: &mut [ProcessServer; 2], random: &mut Random) -> (u64, String) {
    let at = random.below(2);
    let_pass(random.below(250));
    match random.below(6) {
        0 => {
            servers[at].kill();
            servers[at].spawn();
            let moment = random.below(120);
            let_pass(moment);
            servers[at].kill();
            servers[at].resume();
            (2, format!("{at}, and again {moment} ms into its start"))
        }
        1 => {
            let moment = random.below(150) as u64;
            servers[at].terminate();
            let ended = servers[at].wait_for_end(Duration::from_millis(moment));
            servers[at].kill();
            servers[at].resume();
            (u64::from(!ended), format!("{at}, {moment} ms into its stop (ended: {ended})"))
        }
        2 => {
            servers[at].kill();
            let_pass(random.below(60));
            servers[1 - at].kill();
            servers[1 - at].resume();
            let_pass(random.below(60));
            servers[at].resume();
            (2, format!("{at} and then {}", 1 - at))
        }
        _ => {
            servers[at].kill();
            let_pass(random.below(80));
            servers[at].resume();
            (1, format!("{at}"))
        }
    }
}

#[test]
fn killed_at_random_moments_nothing_acknowledged_is_lost_and_all_sides_agree() {
    let (kills, seed) = (number("DOORSTEP_CRASH_KILLS", 12), number("DOORSTEP_CRASH_SEED", now_ms() as u64));
    println!("DOORSTEP_CRASH_SEED={seed} DOORSTEP_CRASH_KILLS={kills}");
    let mut servers = [ProcessServer::start(&[]), ProcessServer::start(&[])];
    let [alice, anna, otto] = ["alice", "anna", "otto"].map(|name| servers[0].user(name));
    let [bob, berta, olga] = ["bob", "berta", "olga"].map(|name| servers[1].user(name));
    let names = servers.each_ref().map(|server| server.name().to_owned());

    // The shared room, where both sides may set the topic.
    let shared = alice.create_room_with(json!({
        "preset": "public_chat", "room_version": if seed % 2 == 0 { "12" } else { "10" },
        "power_level_content_override": { "events": { "m.room.topic": 0 } },
    }));
    bob.join_via(&shared, &[&names[0]]);
    // A room to knock on at each of them.
    let knocks = json!({
        "preset": "private_chat",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    });
    let (his, hers) = (otto.create_room_with(knocks.clone()), olga.create_room_with(knocks));
    // And one of the scripted server's.
    let (peer, mut fake) = scripted_room(&alice);
    let fake_id = fake.id.to_string();

    let load = Load {
        over: AtomicBool::new(false),
        acknowledged: Mutex::default(),
        taken: Mutex::default(),
        answers: AtomicUsize::new(0),
        failures: Mutex::default(),
    };
    let mut looks = Looks::default();
    let started = Instant::now();
    std::thread::scope(|scope| {
        // Whatever happens here, the others come to an end.
        let _end = End(&load);
        let load = &load;
        scope.spawn(|| load.talk(0, &alice, &shared, true));
        scope.spawn(|| load.talk(1, &bob, &shared, true));
        scope.spawn(|| load.talk(0, &alice, &fake_id, false));
        scope.spawn(|| load.come_and_go(&otto, &berta, &his, &names[0], seed));
        scope.spawn(|| load.come_and_go(&olga, &anna, &hers, &names[1], seed + 1));
        scope.spawn(|| load.make_rooms(&anna));
        scope.spawn(|| load.send_from(&peer, &mut fake, &names[0]));
        let (mut random, mut done) = (Random::new(seed), 0);
        while done < kills {
            let (killed, what) = kill(&mut servers, &mut random);
            done += killed;
            looks.look(&servers, load, &format!("after kill {done}: {what}"));
            println!("kill {done} at {:?}: {what}", started.elapsed());
        }
        println!("{done} kills in {:?}", started.elapsed());
    });
    println!(
        "{} answers, {} events acknowledged to clients, {} to the scripted server",
        load.answers.load(Ordering::Relaxed),
        load.acknowledged.lock().expect("no panic").len(),
        load.taken.lock().expect("no panic").len()
    );
    looks.look(&servers, &load, "in the end");
    agree(&servers, &load, &shared, &fake_id, &peer, [&alice, &bob]);
    for (room, owner, user, host, guest) in [(&his, &otto, &berta, 0, 1), (&hers, &olga, &anna, 1, 0)] {
        wait_until(&format!("both sides agree on what {} is in {room}", user.id()), || {
            let at_host = owner.membership_of(room, user.id());
            let at_guest = section_of(user, room);
            let wanted = at_host.filter(|m| ["join", "invite", "knock"].contains(&m.as_str()));
            let both = [host, guest].map(|at: usize| state_of(&database(&servers[at]), room));
            wanted == at_guest && (at_guest.as_deref() != Some("join") || both[0] == both[1])
        });
    }
    // Once more from the first event on.
    looks.read = [0, 0];
    looks.look(&servers, &load, "once all agreed");
    println!("agreed after {:?}", started.elapsed());
}

/// Says that it is over when it goes.
struct End<'l>(&'l Load);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// A room of a scripted server that this user is in.
fn scripted_room(user: &TestUser) -> (Peer, FakeRoom) {
    let peer = Peer::start();
    let room = FakeRoom::joined_by(&peer, "11", user);
    (peer, room)
}

/// Messages to the shared room reach both sides, with equal state; those to the scripted room reach its server.
fn agree(
    servers: &[ProcessServer; 2],
    load: &Load,
    shared: &str,
    fake: &str,
    peer: &Peer,
    users: [&TestUser; 2],
) {
    // What is said last tells each side that the other is there.
    let last = users.map(|user| user.send(shared, "the last word"));
    let mut ids: HashSet<String> = last.into_iter().collect();
    let acknowledged = load.acknowledged.lock().expect("no panic").clone();
    ids.extend(acknowledged.iter().filter(|(_, room, _)| room == shared).map(|(.., id)| id.clone()));
    let databases = servers.each_ref().map(database);
    wait_until("both servers have every message of the shared room", || {
        ids.retain(|id| !databases.iter().all(|database| accepted(database, id)));
        ids.is_empty()
    });
    wait_until("the shared room has one state", || {
        let [here, there] = databases.each_ref().map(|database| state_of(database, shared));
        here.is_some() && here == there
    });
    let mut taken = load.taken.lock().expect("no panic").clone();
    wait_until("every event of the scripted server is in its room", || {
        taken.retain(|id| !accepted(&databases[0], id));
        taken.is_empty()
    });
    let sent: Vec<&String> =
        acknowledged.iter().filter(|(_, room, _)| room == fake).map(|(.., id)| id).collect();
    wait_until("the scripted server was sent everything", || {
        let mut got: HashSet<String> = HashSet::new();
        for asked in peer.asked("/send/") {
            let pdus = asked.body["pdus"].as_array().into_iter().flatten();
            let version = doorstep::protocol::room_version::room_version("11").expect("a version");
            got.extend(pdus.filter_map(|pdu| {
                Some(Pdu::from_object(pdu.as_object()?.clone(), version).ok()?.event_id().to_string())
            }));
        }
        sent.iter().all(|id| got.contains(*id))
    });
}

/// What a user is in a room, by their own `/sync`.
fn section_of(user: &TestUser, room: &str) -> Option<String> {
    let rooms = user.initial_sync()["rooms"].clone();
    ["join", "invite", "knock"].into_iter().find(|s| rooms[s].get(room).is_some()).map(str::to_owned)
}
