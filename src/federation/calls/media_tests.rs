//! Downloads from a peer on a real socket that does what peers should not do.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::json;

use super::*;
use crate::clock::Clock;
use crate::federation::ClientSettings;
use crate::federation::client::scripted_peer::{AskedOfPeer, ScriptedAnswer, ScriptedPeer};
use crate::protocol::media::multipart::envelope;
use crate::protocol::signatures::sign::SigningKey;
use crate::testing::certificates;

const SIGNED: &str = "/_matrix/federation/v1/media/download/";
const LEGACY: &str = "/_matrix/media/v3/download/";

fn client_that_allows(allow_private_addresses: bool) -> Client {
    let settings = ClientSettings {
        server_name: ServerName::parse("us.example").expect("a name"),
        trust_ca: vec![certificates().ca.clone()],
        allow_private_addresses,
        names: Default::default(),
        clock: Clock::new(),
    };
    Client::new(settings, Arc::new(ArcSwap::from_pointee(SigningKey::generate([1; 32], "k1"))))
        .expect("a client")
}

fn client() -> Client {
    client_that_allows(true)
}

fn request(peer: &ScriptedPeer) -> MediaRequest<'_> {
    MediaRequest {
        peer: &peer.name,
        media_id: "abc",
        upload_wait: Duration::from_secs(5),
        within: Duration::from_secs(20),
        max_bytes: 100_000,
    }
}

/// An answer with these headers, and its body in one piece of a known length.
fn http(status: u16, headers: &[(&str, &str)], body: &[u8]) -> ScriptedAnswer {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    ScriptedAnswer::Raw([head.as_bytes(), body].concat())
}

/// The answer of a good peer.
fn with_parts(headers: &[(&str, &str)], file: &[u8]) -> ScriptedAnswer {
    let made = envelope("cut-here", headers);
    http(200, &[("Content-Type", &made.content_type)], &[&made.before, file, &made.after].concat())
}

/// The head of an answer in parts whose body goes on for as long as anybody reads, up to where its file begins.
fn endless(file: &[u8]) -> ScriptedAnswer {
    let made = envelope("cut-here", &[]);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {}\r\n\r\n", made.content_type);
    ScriptedAnswer::Endless([head.as_bytes(), &made.before].concat(), file.to_vec())
}

fn elsewhere(peer_name: &str, path: &str) -> ScriptedAnswer {
    with_parts(&[("Location", &format!("https://{peer_name}{path}"))], b"")
}

fn host(asked: &AskedOfPeer) -> String {
    asked.header("host").expect("a host").to_owned()
}

fn all_of(media: CallResult<PeerMedia>) -> CallResult<(PeerMedia, Vec<u8>)> {
    let (mut media, mut file) = (media?, Vec::new());
    match media.read_to_end(&mut file) {
        Ok(_) => Ok((media, file)),
        Err(_) => Err(media.take_failure().expect("it is the peer's doing")),
    }
}

fn download(peer: &ScriptedPeer) -> CallResult<(PeerMedia, Vec<u8>)> {
    all_of(client().download_media(request(peer)))
}

#[track_caller]
fn failure(peer: &ScriptedPeer) -> CallError {
    match download(peer) {
        Ok((_, file)) => panic!("a file of {} bytes", file.len()),
        Err(CallError::AfterSuccess(error)) => *error,
        Err(error) => error,
    }
}

#[track_caller]
fn bad_answer(peer: &ScriptedPeer) -> String {
    match failure(peer) {
        CallError::BadAnswer(why) => why,
        other => panic!("another failure: {other}"),
    }
}

#[test]
fn a_file_comes_with_its_type_and_name_and_leaves_the_connection_usable() {
    let file: Vec<u8> = (0..90_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let sent = file.clone();
    let peer = ScriptedPeer::start(move |_| {
        with_parts(
            &[("Content-Type", "image/png"), ("Content-Disposition", "inline; filename*=utf-8''%C3%BC.png")],
            &sent,
        )
    });
    let client = client();
    for _ in 0..3 {
        let (media, got) = all_of(client.download_media(request(&peer))).expect("a file");
        assert!(got == file);
        assert_eq!(
            (media.content_type.as_deref(), media.name.as_deref()),
            (Some("image/png"), Some("ü.png"))
        );
    }
    let asked = peer.asked();
    assert_eq!(asked[0].target, format!("{SIGNED}abc?timeout_ms=5000"));
    assert!(asked.iter().all(|a| a.header("authorization").is_some_and(|a| a.starts_with("X-Matrix "))));
    assert_eq!(asked[2].connection, 0, "one connection does for all");
}

#[test]
fn a_file_is_read_in_pieces_of_any_size() {
    let file = b"\r\n--cut-her\r\n--cut-her".repeat(100);
    let sent = file.clone();
    let peer = ScriptedPeer::start(move |_| with_parts(&[], &sent));
    let mut media = client().download_media(request(&peer)).expect("a file");
    let mut got = Vec::new();
    for size in [1, 2, 0, 3, 50].into_iter().cycle() {
        let mut piece = vec![0; size];
        let count = media.read(&mut piece).expect("more");
        got.extend_from_slice(&piece[..count]);
        if count == 0 && size > 0 {
            break;
        }
    }
    assert!(got == file);
}

#[test]
fn what_is_too_large_is_known_by_its_length_or_by_its_bytes() {
    let announced = ScriptedPeer::start(|asked| match asked.target.starts_with(SIGNED) {
        true => http(200, &[("Content-Type", "multipart/mixed; boundary=b")], &[b'-'; 200_000]),
        false => ScriptedAnswer::HangUp,
    });
    // Its parts are looked at first: this one has none.
    assert!(bad_answer(&announced).contains("before the first part"));
    let made = envelope("b", &[]);
    let large = [&made.before[..], &[7; 200_000], &made.after].concat();
    let announced =
        ScriptedPeer::start(move |_| http(200, &[("Content-Type", "multipart/mixed; boundary=b")], &large));
    assert!(
        client()
            .download_media(request(&announced))
            .is_err_and(|e| matches!(e, CallError::TooLarge(100_000)))
    );
    let without_end = ScriptedPeer::start(|_| endless(&[b'x'; 60_000]));
    assert!(matches!(failure(&without_end), CallError::TooLarge(100_000)));
    let exact = ScriptedPeer::start(|_| with_parts(&[], &[1; 100_000]));
    assert_eq!(download(&exact).expect("a file").1.len(), 100_000);
    let one_more = ScriptedPeer::start(|_| with_parts(&[], &[1; 100_001]));
    assert!(matches!(failure(&one_more), CallError::TooLarge(_)));
}

#[test]
fn a_file_that_does_not_end_where_it_said_is_none() {
    let made = envelope("b", &[]);
    let begun = [&made.before[..], &[7; 5000]].concat();
    let cut = |length: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=b\r\n{length}\r\n");
        [head.as_bytes(), body].concat()
    };
    for length in ["Content-Length: 50000\r\n", ""] {
        let answer = cut(length, &begun);
        let peer = ScriptedPeer::start(move |_| ScriptedAnswer::CutOff(answer.clone()));
        assert!(failure(&peer).is_unreachable(), "{length}");
    }
    // Shorter than its parts: what follows is no answer of ours.
    let answer = cut("Content-Length: 4000\r\n", &begun);
    let peer = ScriptedPeer::start(move |_| ScriptedAnswer::Raw(answer.clone()));
    assert!(failure(&peer).is_unreachable());
    let whole = [&begun[..], &made.after].concat();
    let answer = cut("Transfer-Encoding: chunked\r\n", &[b"ffffffff\r\n", &whole[..]].concat());
    let peer = ScriptedPeer::start(move |_| ScriptedAnswer::CutOff(answer.clone()));
    assert_eq!(download(&peer).expect("the parts are whole").1.len(), 5000);
}

#[test]
fn who_hangs_or_trickles_is_left_when_the_time_is_over() {
    let silent = ScriptedPeer::start(|_| ScriptedAnswer::Silence);
    let trickle = ScriptedPeer::start(|_| {
        ScriptedAnswer::Drip([b"HTTP/1.1 200 OK\r\nX: ", &[b'x'; 10_000][..]].concat())
    });
    let stuck = ScriptedPeer::start(|_| {
        let made = envelope("b", &[]);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: 90000\r\n\r\n",
            made.content_type
        );
        ScriptedAnswer::Raw([head.as_bytes(), &made.before, &[1; 100]].concat())
    });
    for peer in [&silent, &trickle, &stuck] {
        let began = Instant::now();
        let asked = client().download_media(MediaRequest { within: Duration::from_secs(1), ..request(peer) });
        assert!(all_of(asked).is_err_and(|e| e.is_unreachable()));
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn answers_that_are_no_files_are_refused() {
    let html = ScriptedPeer::start(|_| http(200, &[("Content-Type", "text/html")], b"<html>hello</html>"));
    assert!(bad_answer(&html).contains("not multipart/mixed"));
    let none = ScriptedPeer::start(|_| http(200, &[], b"{}"));
    assert!(bad_answer(&none).contains("not multipart/mixed"));
    let encoded =
        ScriptedPeer::start(|_| http(200, &[("Content-Encoding", "gzip"), ("Content-Type", "x/y")], b"x"));
    assert!(bad_answer(&encoded).contains("encoded"));
    let redirect = ScriptedPeer::start(|_| http(307, &[("Location", "https://localhost/")], b""));
    assert!(bad_answer(&redirect).contains("redirect"));
    let partial =
        ScriptedPeer::start(|_| http(206, &[("Content-Type", "multipart/mixed; boundary=b")], b"--b"));
    assert!(bad_answer(&partial).contains("206"));
    let million = ScriptedPeer::start(|_| {
        let made = envelope("b", &[]);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {}\r\n\r\n", made.content_type);
        ScriptedAnswer::Endless(head.into_bytes(), b"--b\r\nA: b\r\n\r\n{}\r\n".to_vec())
    });
    assert_eq!(
        download(&million).expect("the second part").1,
        b"{}",
        "what follows the second part is not read"
    );
    let heads = ScriptedPeer::start(|_| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n".to_vec();
        ScriptedAnswer::Endless(head, b"A: bcdefgh\r\n".repeat(1000))
    });
    assert!(bad_answer(&heads).contains("headers of a part are too large"));
}

#[test]
fn a_file_elsewhere_is_fetched_without_saying_who_asks() {
    let peer = ScriptedPeer::start(|asked| match asked.target.as_str() {
        "/cdn/file?key=1" => http(307, &[("Location", "/moved")], b""),
        "/moved" => http(200, &[("Content-Disposition", "attachment; filename=a.txt")], b"hello"),
        _ => with_parts(
            &[
                ("Location", &format!("https://{}/cdn/file?key=1", host(asked))),
                ("Content-Type", "text/plain"),
            ],
            b"",
        ),
    });
    let (media, file) = download(&peer).expect("a file");
    assert_eq!(file, b"hello");
    assert_eq!((media.content_type.as_deref(), media.name.as_deref()), (Some("text/plain"), Some("a.txt")));
    for asked in peer.asked().iter().filter(|asked| !asked.target.starts_with(SIGNED)) {
        assert_eq!((asked.header("authorization"), asked.header("cookie")), (None, None), "{}", asked.target);
    }
}

#[test]
fn a_file_elsewhere_is_as_bounded_as_one_of_the_peers() {
    for (path, why) in [
        ("/again", "one redirect too many"),
        ("/plain-http", "no https address"),
        ("/gone", "status 404 where the file is said to be"),
        ("/unrecognized", "status 404 where the file is said to be"),
    ] {
        let peer = ScriptedPeer::start(move |asked| match asked.target.as_str() {
            "/again" => http(302, &[("Location", "/again")], b""),
            "/plain-http" => http(302, &[("Location", "http://localhost/")], b""),
            "/gone" => http(404, &[], b""),
            "/unrecognized" => ScriptedAnswer::Json(404, json!({ "errcode": "M_UNRECOGNIZED" })),
            _ => elsewhere(&host(asked), path),
        });
        assert!(bad_answer(&peer).contains(why), "{path}");
        assert!(
            !peer.asked().iter().any(|a| a.target.starts_with(LEGACY)),
            "{path} says nothing of the peer"
        );
    }
    let large = ScriptedPeer::start(|asked| match asked.target.as_str() {
        "/large" => http(200, &[], &[0; 100_001]),
        _ => elsewhere(&host(asked), "/large"),
    });
    assert!(matches!(failure(&large), CallError::TooLarge(_)));
    for url in ["http://localhost/x", "file:///etc/passwd", "/x", "https://user@localhost/", "https://", "x"]
    {
        let peer = ScriptedPeer::start(move |_| with_parts(&[("Location", url)], b"a file as well"));
        assert!(bad_answer(&peer).contains("no https address"), "{url}");
    }
}

#[test]
fn a_peer_sends_us_to_no_address_of_our_own_network() {
    let peer = ScriptedPeer::start(|asked| match asked.target.as_str() {
        "/inside" => http(200, &[], b"secret"),
        _ => elsewhere(&host(asked), "/inside"),
    });
    let mut client = client();
    client.web = client_that_allows(false).web;
    let refused = client.download_media(request(&peer)).err().expect("the address is private");
    assert!(refused.to_string().contains("may connect to"), "{refused}");
    assert!(!peer.asked().iter().any(|asked| asked.target == "/inside"));
}

#[test]
fn older_servers_are_asked_by_the_paths_that_they_know() {
    let unrecognized = || ScriptedAnswer::Json(404, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" }));
    let file = || {
        http(
            200,
            &[("Content-Type", "image/gif"), ("Content-Disposition", "inline; filename=\"a b.gif\"")],
            b"GIF",
        )
    };
    let newer = ScriptedPeer::start(
        move |asked| if asked.target.starts_with(LEGACY) { file() } else { unrecognized() },
    );
    let (media, got) = download(&newer).expect("a file");
    assert_eq!(
        (got.as_slice(), media.content_type.as_deref(), media.name.as_deref()),
        (&b"GIF"[..], Some("image/gif"), Some("a b.gif"))
    );
    let legacy = &newer.asked()[1];
    let name = enc(&newer.name);
    assert_eq!(legacy.target, format!("{LEGACY}{name}/abc?allow_remote=false&timeout_ms=5000"));
    assert!(legacy.header("authorization").is_none());
    let older =
        ScriptedPeer::start(move |asked| match asked.target.starts_with("/_matrix/media/r0/download/") {
            true => file(),
            false => http(404, &[("Content-Type", "text/html")], b"<h1>not found</h1>"),
        });
    assert_eq!(download(&older).expect("a file").1, b"GIF");
    let elsewhere = ScriptedPeer::start(move |asked| match asked.target.as_str() {
        "/cdn" => http(200, &[], b"GIF"),
        legacy if legacy.starts_with(LEGACY) => {
            http(307, &[("Location", &format!("https://{}/cdn", host(asked)))], b"")
        }
        _ => unrecognized(),
    });
    assert_eq!(download(&elsewhere).expect("a file").1, b"GIF");
}

#[test]
fn a_peer_that_knows_the_path_and_has_not_the_file_is_not_asked_twice() {
    for (status, code) in
        [(404, "M_NOT_FOUND"), (504, "M_NOT_YET_UPLOADED"), (403, "M_FORBIDDEN"), (429, "M_LIMIT_EXCEEDED")]
    {
        let peer = ScriptedPeer::start(move |_| {
            ScriptedAnswer::Json(status, json!({ "errcode": code, "error": "no" }))
        });
        let failure = failure(&peer);
        assert_eq!(failure.refusal().and_then(|r| r.errcode.as_deref()), Some(code));
        assert_eq!(peer.asked().len(), 1);
    }
    let nobody = ScriptedPeer::start(|_| ScriptedAnswer::Json(404, json!({ "errcode": "M_UNRECOGNIZED" })));
    assert_eq!(failure(&nobody).refusal().map(|r| r.status), Some(404));
    assert_eq!(nobody.asked().len(), 3);
}

#[test]
fn a_thumbnail_is_asked_for_in_the_size_that_is_wanted() {
    let peer = ScriptedPeer::start(|_| with_parts(&[("Content-Type", "image/jpeg")], b"small"));
    let wanted = ThumbnailQuery { width: 96, height: 32, method: "crop", animated: false };
    let (_, got) = all_of(client().media_thumbnail(request(&peer), wanted)).expect("a thumbnail");
    assert_eq!(got, b"small");
    let path = "/_matrix/federation/v1/media/thumbnail/abc";
    let query = "width=96&height=32&method=crop&animated=false&timeout_ms=5000";
    assert_eq!(peer.asked()[0].target, format!("{path}?{query}"));
}
