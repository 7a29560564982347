//! Two handshakes of one user in one room that meet: every pair, in both orders and at once, between two real servers.
//! Whatever the two answers were, both servers agree afterwards, and the user can act on what is shown.
//!
//! A few rounds of each by default; `DOORSTEP_ROUNDS=20` for more, `DOORSTEP_SEED` for others, `DOORSTEP_ONLY=withdraw` for
//! those pairs alone in which this has a part. With rounds of its own it prints what it saw of each pair.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use crate::common::client::post;
use crate::common::peer::{Peer, now_ms};
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::{Pdu, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// How long two servers may take to agree.
const AGREE_WITHIN: Duration = Duration::from_secs(40);
/// A long run tells of those that took so long.
const SLOW: Duration = Duration::from_secs(3);
/// Both agree when they said the same so often, a moment apart: what is still on its way would have arrived.
const LOOKS: usize = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(25);
/// The pairs that meet at a time.
const AT_A_TIME: usize = 5;

/// What the guest is to the room before the two meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Start {
    Out,
    Knocked,
    Invited,
    Joined,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verb {
    Knock,
    Withdraw,
    Invite,
    Reject,
    Rescind,
    Join,
    Leave,
    Kick,
    Ban,
}

use Start::{Invited, Joined, Knocked, Out};
use Verb::{Ban, Invite, Join, Kick, Knock, Leave, Reject, Rescind, Withdraw};

impl Verb {
    const ALL: [Self; 9] = [Knock, Withdraw, Invite, Reject, Rescind, Join, Leave, Kick, Ban];

    /// Where it is worth something by itself.
    fn starts(self) -> &'static [Start] {
        match self {
            Knock => &[Out],
            Withdraw => &[Knocked],
            Invite => &[Out, Knocked],
            Reject | Rescind | Join => &[Invited],
            Leave => &[Joined],
            Kick => &[Knocked, Joined],
            Ban => &[Out, Knocked, Invited, Joined],
        }
    }

    /// The endpoint: several verbs are one request, whose meaning is what the guest was.
    fn endpoint(self) -> &'static str {
        match self {
            Knock => "knock",
            Withdraw | Reject | Leave => "leave",
            Join => "join",
            Invite => "invite",
            Rescind | Kick => "kick",
            Ban => "ban",
        }
    }

    fn is_by_the_host(self) -> bool {
        matches!(self, Invite | Rescind | Kick | Ban)
    }
}

/// When the second of the two is asked for.
#[derive(Debug, Clone, Copy)]
enum Timing {
    /// So many milliseconds after the first.
    After(u64),
    /// When the first is answered.
    Answered,
}

#[derive(Debug, Clone, Copy)]
struct Meeting {
    start: Start,
    first: Verb,
    second: Verb,
    timing: Timing,
    version: &'static str,
}

impl fmt::Display for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, first, second, timing, version } = self;
        write!(f, "{start:?}: {first:?}, then {second:?} {timing:?}, version {version}")
    }
}

/// A room of the host, and a guest of another server.
struct Scene<'s> {
    alice: &'s TestUser,
    bob: TestUser,
    via: &'s str,
    room: String,
}

impl Scene<'_> {
    fn ask(&self, verb: Verb) -> (u16, Value) {
        let endpoint = verb.endpoint();
        let (user, path) = match verb {
            Knock | Join => {
                (&self.bob, format!("{endpoint}/{}?via={}", segment(&self.room), segment(self.via)))
            }
            _ if verb.is_by_the_host() => (self.alice, format!("rooms/{}/{endpoint}", segment(&self.room))),
            _ => (&self.bob, format!("rooms/{}/{endpoint}", segment(&self.room))),
        };
        let body = if verb.is_by_the_host() { json!({ "user_id": self.bob.id() }) } else { json!({}) };
        user.request("POST", &format!("/_matrix/client/v3/{path}"), Some(body))
    }

    fn bring_to(&self, start: Start) -> Result<(), String> {
        let verbs: &[Verb] = match start {
            Out => &[],
            Knocked => &[Knock],
            Invited => &[Invite],
            Joined => &[Invite, Join],
        };
        for verb in verbs {
            let (status, body) = self.ask(*verb);
            if status != 200 {
                return Err(format!("{verb:?} to begin with: {status} {body}"));
            }
        }
        let wanted = match start {
            Out => None,
            Knocked => Some("knock"),
            Invited => Some("invite"),
            Joined => Some("join"),
        };
        self.settle(Some(wanted)).map(drop)
    }

    /// What the room says of the guest, by a member of it on the host's server.
    fn by_the_host(&self) -> Option<String> {
        self.alice.membership_of(&self.room, self.bob.id())
    }

    /// What the guest's `/sync` shows.
    fn by_the_guest(&self) -> Option<&'static str> {
        let rooms = self.bob.initial_sync()["rooms"].clone();
        ["join", "invite", "knock"].into_iter().find(|section| rooms[section].get(&self.room).is_some())
    }

    /// Waits until both say the same, which is this if anything particular is expected. What it is.
    fn settle(&self, expected: Option<Option<&str>>) -> Result<Option<&'static str>, String> {
        let (began, mut agreed) = (Instant::now(), 0);
        loop {
            let (host, guest) = (self.by_the_host(), self.by_the_guest());
            let host = host.filter(|m| m != "leave" && m != "ban");
            let as_expected = expected.is_none_or(|expected| expected == guest);
            agreed = if host.as_deref() == guest && as_expected { agreed + 1 } else { 0 };
            if agreed == LOOKS {
                return Ok(guest);
            }
            if began.elapsed() > AGREE_WITHIN {
                return Err(format!(
                    "the room says {host:?}, the guest is shown {guest:?}, not {expected:?}"
                ));
            }
            self.bob.sync(BETWEEN_LOOKS);
        }
    }

    fn must(&self, verb: Verb) -> Result<(), String> {
        let (status, body) = self.ask(verb);
        if status == 200 { Ok(()) } else { Err(format!("then {verb:?} is answered {status} {body}")) }
    }

    /// The guest does what one can do with what is shown.
    fn act_on(&self, shown: Option<&str>, other_way: bool) -> Result<(), String> {
        let after = match (shown, other_way) {
            (Some("invite"), false) => self.must(Join).map(|()| Some("join")),
            (Some("invite"), true) => self.must(Reject).map(|()| None),
            (Some("knock"), false) => self.must(Withdraw).map(|()| None),
            (Some("knock"), true) => self.must(Invite).map(|()| Some("invite")),
            (Some("join"), _) => self.must(Leave).map(|()| None),
            _ => {
                if self.by_the_host().as_deref() == Some("ban") {
                    let (status, body) = self.ask(Knock);
                    if status != 403 {
                        return Err(format!("a banned user's knock is answered {status} {body}"));
                    }
                    self.alice.act_on("unban", &self.room, self.bob.id());
                }
                self.must(Knock).map(|()| Some("knock"))
            }
        }?;
        self.settle(Some(after)).map(drop)
    }
}

/// What they were answered, and why it went wrong if it did.
#[allow(clippy::disallowed_methods, reason = "how far apart the two are is what is being tried here")]
fn meet(scene: &Scene<'_>, meeting: Meeting, other_way: bool) -> Result<(), String> {
    scene.bring_to(meeting.start)?;
    let (first, second) = match meeting.timing {
        Timing::Answered => {
            let first = scene.ask(meeting.first);
            (first, scene.ask(meeting.second))
        }
        Timing::After(gap) => std::thread::scope(|scope| {
            let first = scope.spawn(|| scene.ask(meeting.first));
            std::thread::sleep(Duration::from_millis(gap));
            let second = scene.ask(meeting.second);
            (first.join().expect("no panic"), second)
        }),
    };
    let answers = format!("answered {} and {}", first.0, second.0);
    let told = |why: String| format!("{answers}: {why}");
    for (status, body) in [&first, &second] {
        // Both are of a room that both servers know: whatever is in the way, it is not that there is no such room.
        if *status >= 500 || *status == 404 {
            return Err(told(body.to_string()));
        }
    }
    let expected = outcome(meeting, first.0, second.0);
    let shown = scene.settle(expected).map_err(told)?;
    scene.act_on(shown, other_way).map_err(|why| told(format!("shown {shown:?}: {why}")))
}

/// Where the second followed the first's answer, and both were granted, there is but one outcome.
fn outcome(meeting: Meeting, first: u16, second: u16) -> Option<Option<&'static str>> {
    if !matches!(meeting.timing, Timing::Answered) || (first, second) != (200, 200) {
        return None;
    }
    match meeting.second {
        Invite if meeting.first != Join => Some(Some("invite")),
        Join if meeting.first == Invite => Some(Some("join")),
        Withdraw | Reject | Leave | Rescind | Kick | Ban => Some(None),
        _ => None,
    }
}

/// Numbers that look like chance and are the same each time (a linear congruential generator).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % sides as u64).expect("few sides")
    }
}

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no good")))
}

fn all_meetings(rounds: usize, seed: u64, only: &str) -> Vec<Meeting> {
    let mut dice = Dice(seed);
    let mut all = Vec::new();
    for round in 0..rounds {
        for first in Verb::ALL {
            for second in Verb::ALL {
                let named = [first, second].map(|verb| format!("{verb:?}").to_lowercase());
                if !only.is_empty() && !named.iter().any(|name| name == only) {
                    continue;
                }
                for start in [Out, Knocked, Invited, Joined] {
                    if !first.starts().contains(&start) && !second.starts().contains(&start) {
                        continue;
                    }
                    let timing = match (round + dice.roll(3)) % 3 {
                        0 => Timing::Answered,
                        1 => Timing::After(0),
                        _ => Timing::After(dice.roll(20) as u64 + 1),
                    };
                    let version = ["7", "10", "11", "12"][dice.roll(4)];
                    all.push(Meeting { start, first, second, timing, version });
                }
            }
        }
    }
    all
}

#[test]
#[allow(clippy::print_stderr, reason = "a long run tells what it saw of each pair")]
fn whichever_two_meet_both_servers_agree_afterwards_and_the_user_can_act_on_what_is_shown() {
    let (here, there) = TestServer::pair();
    let rounds = from_environment::<usize>("DOORSTEP_ROUNDS");
    let seed = from_environment("DOORSTEP_SEED").unwrap_or(20_261_129);
    let only = std::env::var("DOORSTEP_ONLY").unwrap_or_default();
    let meetings = all_meetings(rounds.unwrap_or(1), seed, &only);
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<String, Vec<String>>::new()));
    std::thread::scope(|scope| {
        for worker in 0..AT_A_TIME {
            let (here, there, next, wrong, meetings) = (&here, &there, &next, &wrong, &meetings);
            scope.spawn(move || {
                let alice = here.user(&format!("alice{worker}"));
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(meeting) = meetings.get(number) else { return };
                    let room = alice.create_room_with(json!({
                        "preset": "private_chat",
                        "room_version": meeting.version,
                        "initial_state": [
                            { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } },
                        ],
                    }));
                    let bob = there.user(&format!("bob{number}"));
                    let scene = Scene { alice: &alice, bob, via: here.name(), room };
                    let began = Instant::now();
                    let met = meet(&scene, *meeting, number % 2 == 1);
                    if began.elapsed() > SLOW && rounds.is_some() {
                        eprintln!("{:.1?} for {meeting}", began.elapsed());
                    }
                    if let Err(why) = met {
                        let pair = format!("{:?}: {:?} and {:?}", meeting.start, meeting.first, meeting.second);
                        let told = format!("{meeting}: {why} ({})", scene.room);
                        eprintln!("{told}");
                        wrong.lock().expect("no panic").entry(pair).or_default().push(told);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("no panic");
    let count: usize = wrong.values().map(Vec::len).sum();
    if rounds.is_some() {
        for (pair, cases) in &wrong {
            eprintln!("{:4}  {pair}", cases.len());
        }
        eprintln!("{count} of {} went wrong", meetings.len());
    }
    assert!(wrong.is_empty(), "{count} of {} went wrong: {wrong:#?}", meetings.len());
}

/// A room of alice's that takes knocks, and bob of the other server.
fn scene<'s>(alice: &'s TestUser, bob: TestUser, via: &'s str, version: &str) -> Scene<'s> {
    let room = alice.create_room_with(json!({
        "preset": "private_chat",
        "room_version": version,
        "initial_state": [
            { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } },
        ],
    }));
    Scene { alice, bob, via, room }
}

/// How often each of the next tests tries.
const TRIES: usize = 30;

#[test]
fn whoever_joins_the_moment_the_invite_is_shown_comes_in() {
    let (here, there) = TestServer::pair();
    let alice = here.user("alice");
    let mut refused = Vec::new();
    for number in 0..TRIES {
        let scene = scene(&alice, there.user(&format!("bob{number}")), here.name(), "11");
        if number % 2 == 1 {
            scene.must(Knock).expect("a knock");
        }
        scene.bob.sync(Duration::ZERO);
        std::thread::scope(|scope| {
            let inviting = scope.spawn(|| scene.ask(Invite));
            scene.bob.wait_for_room("invite", &scene.room);
            refused.extend(scene.must(Join).err());
            assert_eq!(inviting.join().expect("no panic").0, 200);
        });
    }
    assert!(refused.is_empty(), "{} of {TRIES} refused: {refused:?}", refused.len());
}

#[test]
fn whoever_rejects_an_invite_the_moment_it_is_shown_is_out_on_both_sides() {
    let (here, there) = TestServer::pair();
    let alice = here.user("alice");
    for number in 0..TRIES {
        let scene = scene(&alice, there.user(&format!("bob{number}")), here.name(), "11");
        scene.bob.sync(Duration::ZERO);
        std::thread::scope(|scope| {
            let inviting = scope.spawn(|| scene.ask(Invite));
            scene.bob.wait_for_room("invite", &scene.room);
            scene.must(Reject).expect("a rejection");
            assert_eq!(inviting.join().expect("no panic").0, 200);
        });
        scene.settle(Some(None)).expect("out on both sides");
    }
}

#[test]
fn an_invite_that_follows_a_rejection_at_once_is_an_invite() {
    let (here, there) = TestServer::pair();
    let alice = here.user("alice");
    let mut lost = Vec::new();
    for number in 0..TRIES {
        let scene = scene(&alice, there.user(&format!("bob{number}")), here.name(), "11");
        scene.bring_to(if number % 2 == 1 { Knocked } else { Invited }).expect("a beginning");
        scene.must(Reject).expect("the room is left");
        scene.must(Invite).expect("an invite");
        lost.extend(scene.settle(Some(Some("invite"))).err());
    }
    assert!(lost.is_empty(), "{} of {TRIES} were lost: {lost:?}", lost.len());
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a peer that takes its time is what is tried here")]
fn an_invite_that_rests_on_a_kick_is_offered_once_the_kick_was_heard_of() {
    let (server, peer) = (TestServer::start(), Arc::new(Peer::start()));
    let alice = server.user("alice");
    // What the guest's server has taken in, and the invites that rest on something else of the room.
    let heard = Arc::new(Mutex::new(Vec::<Value>::new()));
    let early = Arc::new(Mutex::new(Vec::<Value>::new()));
    let hears = Arc::clone(&heard);
    peer.answer("/send/", move |asked| {
        let pdus = asked.body["pdus"].as_array().cloned().unwrap_or_default();
        // A peer that takes its time.
        std::thread::sleep(BETWEEN_LOOKS);
        hears.lock().expect("no test panics here").extend(pdus);
        Reply::json_status(200, &json!({ "pdus": {} }))
    });
    let (signer, knows, late) = (Arc::downgrade(&peer), Arc::clone(&heard), Arc::clone(&early));
    peer.answer("v2/invite", move |asked| {
        let invite = &asked.body["event"];
        let kicked =
            knows.lock().expect("no test panics here").iter().any(|event| {
                event["room_id"] == invite["room_id"] && event["content"]["membership"] == "leave"
            });
        if !kicked {
            late.lock().expect("no test panics here").push(invite.clone());
        }
        let version = room_version("11").expect("a known version");
        Reply::json_status(
            200,
            &json!({ "event": signer.upgrade().expect("it runs").countersign(invite, version) }),
        )
    });
    let rooms: Vec<_> = (0..5 * TRIES)
        .map(|number| {
            let guest = peer.user(&format!("bob{number}"));
            let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": "11" }));
            let (_, (status, answer)) = peer.hand_in(server.name(), "join", &room, &guest);
            assert_eq!(status, 200, "{answer}");
            (room, guest)
        })
        .collect();
    std::thread::scope(|scope| {
        for (room, guest) in &rooms {
            let barrier = Arc::new(Barrier::new(2));
            let (alice, starts) = (&alice, Arc::clone(&barrier));
            let ask = move |verb: &str| {
                post(alice, &format!("rooms/{}/{verb}", segment(room)), json!({ "user_id": guest })).0
            };
            let kick = scope.spawn(move || {
                starts.wait();
                assert_eq!(ask("kick"), 200);
            });
            scope.spawn(move || {
                barrier.wait();
                let until = Instant::now() + AGREE_WITHIN;
                // Until they are kicked they are in the room.
                while ask("invite") != 200 {
                    assert!(Instant::now() < until, "the guest is not invited");
                }
            });
            kick.join().expect("the kick is granted");
        }
    });
    let early = early.lock().expect("no test panics here");
    assert!(early.is_empty(), "{} invites came before the kick: {early:?}", early.len());
}

/// A template for a user of the scripted server, signed as of then.
fn signed(peer: &Peer, server: &str, kind: &str, (room, user): (&str, &UserId), at_ms: i64) -> Pdu {
    let path =
        format!("/_matrix/federation/v1/make_{kind}/{}/{}?ver=11", segment(room), segment(user.as_str()));
    let (status, made) = peer.ask(server, "GET", &path, None);
    assert_eq!(status, 200, "make_{kind}: {made}");
    let mut event = made["event"].as_object().expect("a template is an object").clone();
    event.insert("origin_server_ts".into(), at_ms.into());
    peer.sign(event, room_version("11").expect("a known version"))
}

fn send_knock(peer: &Peer, server: &str, knock: &Pdu) -> (u16, Value) {
    peer.put_event(server, "v1/send_knock", knock.room_id(), knock, &Value::Object(knock.to_object()))
}

#[test]
fn knocks_of_one_user_that_are_handed_in_at_the_same_moment_are_each_judged_once_and_shown_the_room() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    for number in 0..TRIES / 3 {
        let scene = scene(&alice, server.user(&format!("bob{number}")), server.name(), "11");
        let user = peer.user(&format!("u{number}"));
        let mut knocks: Vec<Pdu> = (0..3)
            .map(|later| signed(&peer, server.name(), "knock", (&scene.room, &user), now_ms() + later))
            .collect();
        // The same one twice, too.
        knocks.push(knocks[0].clone());
        let start = Barrier::new(knocks.len());
        std::thread::scope(|scope| {
            let handing_in = |knock| {
                start.wait();
                send_knock(&peer, server.name(), knock)
            };
            let all: Vec<_> = knocks.iter().map(|knock| scope.spawn(move || handing_in(knock))).collect();
            for answer in all {
                let (status, body) = answer.join().expect("no panic");
                assert_eq!(status, 200, "{body}");
                let shown = body["knock_room_state"].as_array().expect("a list").iter();
                let kinds: Vec<_> = shown.map(|event| event["type"].as_str().expect("a type")).collect();
                assert_eq!(kinds, ["m.room.create", "m.room.join_rules"]);
            }
        });
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100", segment(&scene.room));
        let messages = alice.get(&path);
        let seen = messages["chunk"].as_array().expect("a list").iter();
        let mut seen: Vec<_> =
            seen.filter(|e| e["state_key"] == user.as_str()).map(|e| &e["event_id"]).collect();
        let mut made: Vec<Value> = knocks[..3].iter().map(|knock| knock.event_id().as_str().into()).collect();
        seen.sort_by_key(|id| id.to_string());
        made.sort_by_key(Value::to_string);
        assert_eq!(seen, made.iter().collect::<Vec<_>>());
        assert_eq!(alice.membership_of(&scene.room, user.as_str()).as_deref(), Some("knock"));
    }
}

#[test]
fn who_is_banned_while_their_knock_is_handed_in_stays_banned() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    for number in 0..TRIES {
        let scene = scene(&alice, server.user(&format!("bob{number}")), server.name(), "11");
        let user = peer.user(&format!("u{number}"));
        let knock = signed(&peer, server.name(), "knock", (&scene.room, &user), now_ms());
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            let banning = scope.spawn(|| {
                start.wait();
                let path = format!("/_matrix/client/v3/rooms/{}/ban", segment(&scene.room));
                alice.request("POST", &path, Some(json!({ "user_id": user.as_str() }))).0
            });
            start.wait();
            let said = send_knock(&peer, server.name(), &knock).0;
            assert!([200, 403].contains(&said), "{said}");
            assert_eq!(banning.join().expect("no panic"), 200);
            assert_eq!(send_knock(&peer, server.name(), &knock).0, 403, "the same event once more");
        });
        assert_eq!(alice.membership_of(&scene.room, user.as_str()).as_deref(), Some("ban"), "{number}");
    }
}

#[test]
fn what_a_knocker_is_shown_and_whether_they_are_let_knock_is_as_the_room_says_at_that_moment() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let (admin, alice) = (server.user("admin"), server.user("alice"));
    let scene = scene(&alice, server.user("bob"), server.name(), "11");
    let mut number = 0;
    let mut knock = || {
        number += 1;
        peer.hand_in(server.name(), "knock", &scene.room, &peer.user(&format!("u{number}"))).1
    };
    let name = |(status, body): (u16, Value)| -> Option<String> {
        assert_eq!(status, 200, "{body}");
        let mut shown = body["knock_room_state"].as_array().expect("a list").iter();
        let name = shown.rfind(|event| event["type"] == "m.room.name")?;
        Some(name["content"]["name"].as_str().unwrap_or_default().to_owned())
    };
    let call_it = |name: &str| alice.set_state(&scene.room, "m.room.name", "", json!({ "name": name }));
    assert_eq!((name(knock()), name(knock())), (None, None));
    call_it("one");
    assert_eq!((name(knock()), name(knock())), (Some("one".into()), Some("one".into())));
    let two = call_it("two");
    assert_eq!(name(knock()).as_deref(), Some("two"));
    let redact = format!("/_matrix/client/v3/rooms/{}/redact/{two}/1", segment(&scene.room));
    alice.put(&redact, json!({}));
    assert_eq!(name(knock()).as_deref(), Some(""), "it was redacted");

    let held = signed(&peer, server.name(), "knock", (&scene.room, &peer.user("held")), now_ms());
    let acl = |deny: &[&str]| {
        let content = json!({ "allow": ["*"], "deny": deny });
        alice.set_state(&scene.room, "m.room.server_acl", "", content);
    };
    acl(&[peer.name().as_str().split(':').next().expect("a host")]);
    let refused = send_knock(&peer, server.name(), &held);
    assert_eq!((refused.0, &refused.1["errcode"]), (403, &json!("M_FORBIDDEN")));
    acl(&[]);
    assert_eq!(name(knock()).as_deref(), Some(""));
    let block = format!("/_synapse/admin/v1/rooms/{}/block", segment(&scene.room));
    admin.put(&block, json!({ "block": true }));
    assert_eq!(send_knock(&peer, server.name(), &held).0, 403);
    admin.put(&block, json!({ "block": false }));
    assert_eq!(send_knock(&peer, server.name(), &held).0, 200, "it waited for that");

    let late = signed(&peer, server.name(), "knock", (&scene.room, &peer.user("late")), now_ms());
    alice.leave(&scene.room);
    let gone = send_knock(&peer, server.name(), &late);
    assert_eq!((gone.0, &gone.1["errcode"]), (404, &json!("M_NOT_FOUND")));
}
