//! Files of peers that do what peers should not do.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use super::*;
use crate::config::Config;
use crate::federation::client::scripted_peer::{AskedOfPeer, ScriptedAnswer, ScriptedPeer};
use crate::protocol::UserId;
use crate::protocol::media::MediaId;
use crate::protocol::media::multipart::envelope;
use crate::service::accounts::moderation::Administrator;
use crate::testing::TestServer;

fn small(config: &mut Config) {
    config.media_max_upload = 100_000;
}

fn uri(peer: &ScriptedPeer, id: &str) -> MxcUri {
    MxcUri { server: peer.name.clone(), media_id: MediaId::parse(id).expect("an id") }
}

fn asker(name: &str) -> Asker {
    Asker::new(AskerId::User(UserId::parse(&format!("@{name}:us.example")).expect("a user id")))
}

type BoxedScript = Box<dyn Fn(&AskedOfPeer) -> ScriptedAnswer + Send + Sync>;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

fn answer(headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    [format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {length}\r\n\r\n").as_bytes(), body].concat()
}

fn with_headers(headers: &[(&str, &str)], file: &[u8]) -> ScriptedAnswer {
    let made = envelope("cut-here", headers);
    let head = format!("Content-Type: {}\r\n", made.content_type);
    ScriptedAnswer::Raw(answer(&head, &[&made.before, file, &made.after].concat()))
}

fn file_of(bytes: &[u8]) -> ScriptedAnswer {
    with_headers(&[("Content-Type", "image/png")], bytes)
}

fn error(status: u16, errcode: &str) -> ScriptedAnswer {
    ScriptedAnswer::Json(status, json!({ "errcode": errcode, "error": "<b>their own words</b>" }))
}

fn read(mut file: MediaFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.file.read_to_end(&mut bytes).expect("a file that can be read");
    bytes
}

#[track_caller]
fn fetched(server: &TestServer, uri: &MxcUri) -> Vec<u8> {
    read(server.homeserver().media().fetch(uri, &asker("alice"), soon()).expect("a file"))
}

#[track_caller]
fn refusal(server: &TestServer, uri: &MxcUri) -> (u16, ErrCode, String) {
    let refused = server.homeserver().media().fetch(uri, &asker("alice"), soon());
    let error = refused.err().expect("no file");
    (error.status(), error.errcode(), error.message().to_owned())
}

/// How many files are in the folder, finished or not.
fn files_in(folder: &std::path::Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let count = |path: std::path::PathBuf| if path.is_dir() { files_in(&path) } else { 1 };
    entries.map(|entry| count(entry.expect("an entry").path())).sum()
}

#[test]
fn a_file_is_fetched_once_however_many_ask_for_it() {
    let (begun, waits) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let (begins, still) = (begun.clone(), waits.clone());
    let peer = ScriptedPeer::start(move |_| {
        begins.fetch_add(1, Ordering::SeqCst);
        while still.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        file_of(b"picture")
    });
    let server = TestServer::start_with(small);
    let wanted = uri(&peer, "abc");
    std::thread::scope(|scope| {
        for n in 0..20 {
            let (server, wanted) = (&server, &wanted);
            scope.spawn(move || {
                let who = asker(&format!("u{}", n % 4));
                let found = server.homeserver().media().fetch(wanted, &who, soon()).expect("a file");
                assert_eq!(found.row.content_type.as_deref(), Some("image/png"));
                assert_eq!(read(found), b"picture");
            });
        }
        peer.wait_for("/_matrix/federation/v1/media/download/abc", 1);
        waits.store(false, Ordering::SeqCst);
    });
    assert_eq!(fetched(&server, &wanted), b"picture");
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_kept_stays_as_it_was_whatever_its_server_says_later() {
    let count = AtomicUsize::new(0);
    let peer = ScriptedPeer::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => file_of(b"first"),
        _ => file_of(b"another"),
    });
    let server = TestServer::start_with(small);
    let wanted = uri(&peer, "abc");
    assert_eq!([fetched(&server, &wanted), fetched(&server, &wanted)], [b"first", b"first"]);
    assert_eq!(peer.asked().len(), 1);
}

#[test]
fn whoever_answers_with_anything_but_the_file_leaves_nothing_behind_and_is_not_asked_again_at_once() {
    fn endless() -> ScriptedAnswer {
        let made = envelope("b", &[]);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {}\r\n\r\n", made.content_type);
        ScriptedAnswer::Endless([head.as_bytes(), &made.before].concat(), vec![0; 60_000])
    }
    fn cut(asked: &AskedOfPeer) -> ScriptedAnswer {
        match file_of(&[1; 90_000]) {
            ScriptedAnswer::Raw(bytes) => ScriptedAnswer::CutOff(bytes[..50_000].to_vec()),
            _ => error(500, &asked.target),
        }
    }
    let inside = "https://127.0.0.1:1/secret";
    let cases: Vec<(&str, u16, ErrCode, BoxedScript)> = vec![
        ("endless", 502, ErrCode::TooLarge, Box::new(|_| endless())),
        ("cut off", 504, ErrCode::Unknown, Box::new(cut)),
        (
            "html",
            502,
            ErrCode::Unknown,
            Box::new(|_| ScriptedAnswer::Raw(answer("Content-Type: text/html\r\n", b"<html>"))),
        ),
        ("inside", 504, ErrCode::Unknown, Box::new(move |_| with_headers(&[("Location", inside)], b""))),
        ("not there", 404, ErrCode::NotFound, Box::new(|_| error(404, "M_NOT_FOUND"))),
        ("forbidden", 502, ErrCode::Unknown, Box::new(|_| error(403, "M_FORBIDDEN"))),
        ("another room", 502, ErrCode::Unknown, Box::new(|_| error(400, "M_INCOMPATIBLE_ROOM_VERSION"))),
        ("their fault", 502, ErrCode::Unknown, Box::new(|_| error(500, "M_UNKNOWN"))),
        ("too large there", 502, ErrCode::TooLarge, Box::new(|_| error(502, "M_TOO_LARGE"))),
        ("too often", 429, ErrCode::LimitExceeded, Box::new(|_| error(429, "M_LIMIT_EXCEEDED"))),
    ];
    for (what, status, errcode, script) in cases {
        let peer = ScriptedPeer::start(script);
        let server = TestServer::start_with(small);
        let wanted = uri(&peer, "abc");
        let first = refusal(&server, &wanted);
        assert_eq!((first.0, first.1), (status, errcode), "{what}");
        assert!(!first.2.contains("their own words"), "{what}");
        let asked = peer.asked().len();
        let second = refusal(&server, &wanted);
        assert_eq!((second.0, second.1), (status, errcode), "{what}, asked again");
        assert_eq!(peer.asked().len(), asked, "{what}, asked again");
        let media = server.homeserver().media();
        assert!(matches!(media.find(&wanted), Ok(FoundMedia::Absent)), "{what}");
        assert_eq!(files_in(&server.folder().join("media")), 0, "{what}");
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_left_alone_for_a_moment_and_one_that_answers_is_not() {
    let peer = ScriptedPeer::start(|asked| match asked.target.contains("good") {
        true => file_of(b"x"),
        false => ScriptedAnswer::HangUp,
    });
    let server = TestServer::start_with(small);
    assert_eq!(refusal(&server, &uri(&peer, "abc")).0, 504);
    let asked = peer.asked().len();
    assert_eq!(refusal(&server, &uri(&peer, "good")).0, 504);
    assert_eq!(peer.asked().len(), asked, "it is not asked for anything");
    let fetches = &server.homeserver().media_fetches;
    lock(&fetches.peers).get_mut(&peer.name).expect("it is remembered").until = None;
    assert_eq!(fetched(&server, &uri(&peer, "good")), b"x");
    assert!(lock(&fetches.peers).is_empty());
}

#[test]
fn an_upload_is_waited_for_as_long_as_somebody_wants_to_and_its_lack_is_not_remembered() {
    let count = AtomicUsize::new(0);
    let peer = ScriptedPeer::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0..=2 => error(504, "M_NOT_YET_UPLOADED"),
        _ => file_of(b"late"),
    });
    let server = TestServer::start_with(small);
    let wanted = uri(&peer, "abc");
    let early = refusal(&server, &wanted);
    assert_eq!((early.0, early.1), (504, ErrCode::NotYetUploaded));
    let until = Instant::now() + Duration::from_secs(20);
    let found = server.homeserver().media().fetch(&wanted, &asker("alice"), until).expect("a file");
    assert_eq!(read(found), b"late");
    assert_eq!(peer.asked().len(), 4);
}

#[test]
fn what_a_peer_says_of_a_file_is_kept_if_it_can_do_no_harm() {
    let long = format!("attachment; filename={}.png", "a".repeat(10_000));
    for (content_type, disposition, kept_type, kept_name) in [
        (
            "image/png",
            "inline; filename*=utf-8''gr%C3%BC%C3%9Fe.png",
            Some("image/png"),
            Some("grüße.png".to_owned()),
        ),
        ("text/html\u{7f}", "attachment; filename=\"../../etc/passwd\"", None, Some("passwd".to_owned())),
        (
            "nonsense",
            "attachment; filename*=utf-8''a%0D%0ASet-Cookie:b",
            None,
            Some("aSet-Cookie:b".to_owned()),
        ),
        ("image/png, text/html", "attachment", None, None),
        ("image/png", &long, Some("image/png"), Some(format!("{}.png", "a".repeat(1016)))),
    ] {
        let headers =
            [("Content-Type", content_type.to_owned()), ("Content-Disposition", disposition.to_owned())];
        let peer = ScriptedPeer::start(move |_| {
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            with_headers(&headers, b"x")
        });
        let server = TestServer::start_with(small);
        let found =
            server.homeserver().media().fetch(&uri(&peer, "abc"), &asker("alice"), soon()).expect("a file");
        assert_eq!(found.row.content_type.as_deref(), kept_type, "{content_type}");
        assert_eq!(found.row.upload_name, kept_name);
        assert_eq!(found.row.uploader, None);
    }
}

#[test]
fn what_nobody_is_to_be_given_is_not_fetched_nor_a_thumbnail_of_it() {
    let peer = ScriptedPeer::start(|_| file_of(b"x"));
    let server = TestServer::start_with(small);
    let (wanted, media) = (uri(&peer, "abc"), server.homeserver().media());
    media.quarantine(&Administrator::Operator, &wanted, true).expect("quarantined");
    assert_eq!(refusal(&server, &wanted).0, 404);
    let query = ThumbnailQuery { width: 96, height: 96, method: "crop", animated: false };
    let thumbnail = media.fetch_thumbnail(&wanted, query, &asker("alice"), soon());
    assert_eq!(thumbnail.err().expect("no thumbnail").status(), 404);
    assert!(peer.asked().is_empty());
}

#[test]
fn a_thumbnail_of_what_is_too_large_is_its_servers_and_is_kept_beside_it() {
    let peer = ScriptedPeer::start(|asked| match asked.target.contains("/thumbnail/") {
        true => with_headers(&[("Content-Type", "image/jpeg")], b"small"),
        false => file_of(&[0; 100_001]),
    });
    let server = TestServer::start_with(small);
    let (wanted, media) = (uri(&peer, "abc"), server.homeserver().media());
    assert_eq!(refusal(&server, &wanted).1, ErrCode::TooLarge);
    let query = ThumbnailQuery { width: 96, height: 96, method: "crop", animated: false };
    for _ in 0..2 {
        let found = media.fetch_thumbnail(&wanted, query, &asker("alice"), soon()).expect("a thumbnail");
        assert_eq!(read(found), b"small");
    }
    assert_eq!(peer.asked().iter().filter(|a| a.target.contains("/thumbnail/")).count(), 1);
    let other = ThumbnailQuery { animated: true, ..query };
    media.fetch_thumbnail(&wanted, other, &asker("alice"), soon()).expect("another thumbnail");
    assert_eq!(peer.asked().iter().filter(|a| a.target.contains("/thumbnail/")).count(), 2);
    assert!(matches!(media.find(&wanted), Ok(FoundMedia::Absent)), "it is not the file");
}

#[test]
fn who_has_much_fetched_waits_and_nobody_else_does() {
    let peer = ScriptedPeer::start(|_| file_of(&[7; 90_000]));
    let server = TestServer::start_with(|config| {
        small(config);
        config.media_cache_bytes = 1;
    });
    let media = server.homeserver().media();
    let budget = media.bytes_an_hour();
    assert_eq!(budget, 400_000);
    let mut refused = None;
    for n in 0..20 {
        let asked = media.fetch(&uri(&peer, &format!("m{n}")), &asker("greedy"), soon());
        if let Err(e) = asked {
            refused = Some((n, e));
            break;
        }
    }
    let (had, refusal) = refused.expect("a refusal");
    assert_eq!((had, refusal.status(), refusal.errcode()), (5, 429, ErrCode::LimitExceeded));
    let wait = refusal.field("retry_after_ms").and_then(serde_json::Value::as_u64).expect("a time");
    assert!((1000..=3_600_000).contains(&wait), "{wait}");
    media.fetch(&uri(&peer, "m19"), &asker("modest"), soon()).expect("a file for somebody else");
    let fetches = &server.homeserver().media_fetches;
    let hour_ago =
        Instant::now().checked_sub(Duration::from_secs(HOUR_SECONDS)).expect("the clock has run for longer");
    lock(&fetches.spent).get_mut(asker("greedy").who()).expect("it is counted").at = hour_ago;
    media.fetch(&uri(&peer, "m19"), &asker("greedy"), soon()).expect("a file, an hour later");
}

#[test]
fn a_rate_is_asked_for_behind_a_grace() {
    let second = Duration::from_secs(1);
    assert!(keeps_up(RATE_GRACE, 0, RATE_MIN));
    assert!(!keeps_up(RATE_GRACE + second, 0, RATE_MIN));
    assert!(keeps_up(RATE_GRACE + second, RATE_MIN, RATE_MIN));
    assert!(!keeps_up(RATE_GRACE + 10 * second, 10 * CROWDED_RATE_MIN - 1, CROWDED_RATE_MIN));
    assert!(!keeps_up(Duration::MAX, u64::MAX - 1, u64::MAX));
}

#[test]
fn who_trickles_is_given_up_however_long_it_would_go_on() {
    let peer = ScriptedPeer::start(|_| match file_of(&[7; 90_000]) {
        ScriptedAnswer::Raw(bytes) => ScriptedAnswer::Drip(bytes),
        other => other,
    });
    let server = TestServer::start_with(small);
    let wanted = uri(&peer, "abc");
    let request = MediaRequest {
        peer: &wanted.server,
        media_id: wanted.media_id.as_str(),
        upload_wait: Duration::ZERO,
        within: Duration::from_secs(60),
        max_bytes: 100_000,
    };
    let media = server.homeserver().federation.download_media(request).expect("it begins");
    let fetches = &server.homeserver().media_fetches;
    let began = Instant::now().checked_sub(2 * RATE_GRACE).expect("the clock has run for longer");
    let mut incoming = IncomingMedia { media, fetches, began, bytes: 0, is_slow: false };
    let stored = server.homeserver().media().store_stream(&mut incoming, 100_000);
    assert!(stored.is_err() && incoming.is_slow);
    assert_eq!(files_in(&server.folder().join("media")), 0);
}

#[test]
fn a_server_whose_files_never_come_keeps_nobody_from_those_of_others() {
    let (silent, good) =
        (ScriptedPeer::start(|_| ScriptedAnswer::Silence), ScriptedPeer::start(|_| file_of(b"x")));
    let server = TestServer::start_with(small);
    std::thread::scope(|scope| {
        for n in 0..2 * FETCHES_PER_SERVER_MAX {
            let (wanted, server) = (uri(&silent, &format!("m{n}")), &server);
            scope.spawn(move || {
                let who = asker(&format!("u{}", n % 2));
                drop(server.homeserver().media().fetch(&wanted, &who, soon()));
            });
        }
        silent.wait_for("/_matrix/federation/v1/media/download/", FETCHES_PER_SERVER_MAX);
        assert_eq!(fetched(&server, &uri(&good, "abc")), b"x");
        // So that the threads come back.
        server.homeserver().federation.shutdown();
    });
    let asked = silent.asked();
    assert_eq!(asked.len(), FETCHES_PER_SERVER_MAX, "so many at once, and none behind them");
}

#[test]
fn what_is_remembered_of_others_is_bounded() {
    let fetches = MediaFetches::default();
    let server = |n: usize| ServerName::parse(&format!("s{n}.example")).expect("a name");
    for n in 0..2 * FAILURES_MAX {
        let uri = MxcUri { server: server(n), media_id: MediaId::parse("abc").expect("an id") };
        fetches.note(&uri, CallError::bad("nonsense"));
        fetches.note(&uri, CallError::Unreachable("gone".into()));
        fetches.spend(asker(&format!("u{n}")).who(), 1 << 20, 1 << 30);
    }
    assert!(lock(&fetches.failures).len() <= FAILURES_MAX);
    assert!(lock(&fetches.peers).len() <= PEERS_MAX);
    assert!(lock(&fetches.spent).len() <= ASKERS_MAX);
}

#[test]
fn who_asks_many_servers_for_much_at_once_keeps_nobody_else_from_asking() {
    const ASKED: usize = 400;
    let fetches = MediaFetches::default();
    let server = |n: usize| ServerName::parse(&format!("s{n}.example")).expect("a name");
    let (over, settled) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for n in 0..ASKED {
            let (fetches, over, settled, server) = (&fetches, &over, &settled, server(n % 100));
            scope.spawn(move || {
                let turn = fetches.line_up(&asker("greedy"), &server, Instant::now() + SLOT_TIMEOUT);
                settled.fetch_add(1, Ordering::SeqCst);
                while turn.is_some() && !over.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            });
        }
        let waiting = || {
            let lines =
                [fetches.requests.waiting(), fetches.asks.waiting(), fetches.asks_of_server.waiting()];
            lines.iter().sum::<usize>()
        };
        while settled.load(Ordering::SeqCst) + waiting() < ASKED {
            std::thread::yield_now();
        }
        let others = (0..20)
            .filter(|n| fetches.line_up(&asker(&format!("u{n}")), &server(1000), Instant::now()).is_some());
        let served = others.count();
        let held_up = waiting();
        over.store(true, Ordering::SeqCst);
        assert_eq!(served, 20, "of 20 others");
        assert!(held_up <= 120, "{held_up} threads wait for one asker");
    });
}
