//! Previews of links, made of pages of a web server that does as a test says.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use crate::common::client::V3;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

type Pages = dyn Fn(&str, &mut TcpStream) + Send + Sync;

/// A web server. A page is told its path, and writes all of its answer.
struct Web {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Web {
    fn start(pages: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (heard, stopped): (Arc<Mutex<Vec<String>>>, _) = (asked.clone(), stop.clone());
        let pages: Arc<Pages> = Arc::new(pages);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(mut stream), heard, pages) = (stream, heard.clone(), pages.clone()) else { continue };
                std::thread::spawn(move || {
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    heard.lock().expect("no panic").push(head);
                    pages(&path, &mut stream);
                });
            }
        });
        Self { port, asked, stop }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Paths that were asked for.
    fn paths(&self) -> Vec<String> {
        let asked = self.asked.lock().expect("no panic");
        asked.iter().map(|head| head.split(' ').nth(1).unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn write(stream: &mut TcpStream, head: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)));
}

fn html(stream: &mut TcpStream, page: &str) {
    write(stream, "200 OK\r\nContent-Type: text/html; charset=utf-8", page.as_bytes());
}

fn server() -> TestServer {
    TestServer::start_with(|config| config.url_previews = true)
}

fn preview(user: &TestUser, url: &str) -> (u16, Value) {
    user.request("GET", &format!("/_matrix/client/v1/media/preview_url?url={}", segment(url)), None)
}

const PICTURE: &[u8] = include_bytes!("../pictures/baseline.jpg");

#[test]
fn a_page_has_a_preview_with_its_picture_as_media_of_this_server() {
    let server = server();
    let alice = server.user("alice");
    let web = Web::start(|path, stream| {
        match path {
        "/a/page?x" => html(
            stream,
            "<title>T</title><meta property='og:title' content='Graph &amp; T'><meta property='og:image' content='../pic'>
             <meta property='og:image:secure_url' content='https://elsewhere.example/pic'>",
        ),
        "/pic" => write(stream, "200 OK\r\nContent-Type: image/whatever", PICTURE),
        _ => write(stream, "404 Not Found", b""),
    }
    });
    let (status, mut shown) = preview(&alice, &web.url("/a/page?x#part"));
    assert_eq!(status, 200, "{shown}");
    let uri = shown["og:image"].take();
    let uri = uri.as_str().and_then(|uri| uri.strip_prefix("mxc://")).expect("a picture").to_owned();
    assert!(uri.starts_with(server.name()), "{uri}");
    let wanted = json!({ "og:title": "Graph & T", "og:image": null, "og:image:type": "image/jpeg", "og:image:width": 64,
        "og:image:height": 48, "matrix:image:size": PICTURE.len() });
    assert_eq!(shown, wanted);
    let (name, id) = uri.split_once('/').expect("server and id");
    let url = format!("{}/_matrix/client/v1/media/download/{}/{id}", server.url(), segment(name));
    let request = ureq::get(url).header("Authorization", format!("Bearer {}", alice.token()));
    let picture = request.call().expect("a picture").into_body().read_to_vec().expect("a picture");
    assert_eq!(picture, PICTURE);
    let head = web.asked.lock().expect("no panic")[0].to_ascii_lowercase();
    assert!(head.contains("accept-encoding: identity") && head.contains("bot"), "{head}");
    assert!(!head.contains("alice") && !head.contains("authorization") && !head.contains("cookie"), "{head}");
}

#[test]
fn a_page_that_names_nothing_has_what_it_shows_and_the_first_picture_that_can_be_had() {
    let server = server();
    let alice = server.user("alice");
    let web = Web::start(|path, stream| match path {
        "/plain" => html(stream, "<body><h1>Head</h1><p>Text</p><img src=pic.jpg><img src=other.jpg>"),
        "/many" => html(
            stream,
            "<title>T</title><meta property=og:image content=/gone><meta property=og:image content=/text>
             <meta property=og:image content=/pic.jpg><meta property=og:image content=/other.jpg>
             <meta property=og:url content='javascript:alert(1)'><meta property=og:video content=/video>",
        ),
        "/cyrillic" => write(
            stream,
            "200 OK\r\nContent-Type: text/html; charset=windows-1251",
            b"<title>\xcf\xf0\xe8\xe2\xe5\xf2</title>",
        ),
        "/text" => write(stream, "200 OK\r\nContent-Type: image/png", b"no picture"),
        "/pic.jpg" => write(stream, "200 OK\r\nContent-Type: image/jpeg", PICTURE),
        _ => write(stream, "404 Not Found", b""),
    });
    let (status, shown) = preview(&alice, &web.url("/plain"));
    assert_eq!((status, &shown["og:title"], &shown["og:description"]), (200, &json!("Head"), &json!("Text")));
    assert_eq!(shown["og:image:width"], 64, "{shown}");
    let (status, shown) = preview(&alice, &web.url("/many"));
    assert_eq!((status, &shown["og:image:width"], shown.get("og:url")), (200, &json!(64), None), "{shown}");
    assert_eq!(shown["og:video"], web.url("/video"));
    assert_eq!(preview(&alice, &web.url("/cyrillic")), (200, json!({ "og:title": "Привет" })));
    assert_eq!(web.paths(), ["/plain", "/pic.jpg", "/many", "/gone", "/text", "/pic.jpg", "/cyrillic"]);
}

#[test]
fn previews_are_off_unless_they_are_switched_on_and_capabilities_say_which() {
    let enabled = |user: &TestUser| {
        user.get(&format!("{V3}/capabilities"))["capabilities"]["io.element.msc4452.preview_url"]["enabled"]
            .clone()
    };
    let (off, on) = (TestServer::start(), server());
    let (alice, bob) = (off.user("alice"), on.user("bob"));
    let web = Web::start(|_, stream| html(stream, "<title>T</title>"));
    let (status, refused) = preview(&alice, &web.url("/"));
    assert_eq!((status, &refused["errcode"]), (403, &json!("M_FORBIDDEN")));
    assert_eq!(web.paths(), Vec::<String>::new());
    assert_eq!((enabled(&alice), enabled(&bob)), (json!(false), json!(true)));
    assert_eq!(preview(&bob, &web.url("/")), (200, json!({ "og:title": "T" })));
    let old = format!("/_matrix/media/v3/preview_url?url={}", segment(&web.url("/")));
    assert_eq!(bob.request("GET", &old, None), (200, json!({ "og:title": "T" })), "the old path has it too");
    let (status, refused) = bob.request("GET", "/_matrix/client/v1/media/preview_url", None);
    assert_eq!((status, &refused["errcode"]), (400, &json!("M_MISSING_PARAM")));
    for url in
        ["", "x", "ftp://example.org/", "file:///etc/passwd", "http://a@127.0.0.1/", "javascript:alert(1)"]
    {
        let (status, refused) = preview(&bob, url);
        assert_eq!((status, &refused["errcode"]), (400, &json!("M_INVALID_PARAM")), "{url}");
    }
}

#[test]
fn a_page_is_asked_for_once_however_many_want_it_and_what_failed_is_remembered_for_less_long() {
    let server = server();
    let alice = server.user("alice");
    let web = Web::start(|path, stream| match path {
        "/good" => html(stream, "<title>T</title>"),
        _ => write(stream, "500 Oops", b""),
    });
    let begin = Arc::new(Barrier::new(8));
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let (alice, begin) = (TestUser::new(alice.url(), alice.id(), alice.token()), begin.clone());
            let url = web.url("/good");
            std::thread::spawn(move || {
                begin.wait();
                preview(&alice, &url).0
            })
        })
        .collect();
    assert!(asked.into_iter().all(|thread| thread.join().expect("no panic") == 200));
    assert_eq!(web.paths(), ["/good"]);
    let mut count = 1;
    for (path, hours, more) in
        [("/bad", 0, 1), ("/bad", 0, 0), ("/good", 2, 0), ("/bad", 0, 1), ("/good", 25, 1)]
    {
        server.advance(Duration::from_secs(hours * 3600));
        let (status, _) = preview(&alice, &web.url(path));
        assert_eq!(status, if path == "/good" { 200 } else { 502 });
        count += more;
        assert_eq!(web.paths().len(), count, "{path} after {hours} hours");
    }
}

#[test]
fn nobody_has_this_server_ask_its_own_network_by_whatever_way() {
    let inside = Web::start(|_, stream| html(stream, "<title>secret</title>"));
    let port = inside.port;
    let server = TestServer::start_with(|config| {
        config.url_previews = true;
        config.allow_private_addresses = false;
    });
    let alice = server.user("alice");
    for host in [
        format!("127.0.0.1:{port}"),
        "127.0.0.1".into(),
        "localhost".into(),
        "2130706433".into(),
        "0x7f.1".into(),
        "0".into(),
        "[::1]".into(),
        "[::ffff:127.0.0.1]".into(),
        "[::ffff:7f00:1]".into(),
        "[64:ff9b::7f00:1]".into(),
        "[2002:7f00:1::]".into(),
        "[fec0::1]".into(),
        "[fe80::1]".into(),
        "10.0.0.1".into(),
        "100.64.0.1".into(),
        "169.254.169.254".into(),
        "192.168.0.1".into(),
        "224.0.0.1".into(),
        "255.255.255.255".into(),
    ] {
        let began = Instant::now();
        let (status, refused) = preview(&alice, &format!("http://{host}/"));
        assert_eq!((status, &refused["errcode"]), (502, &json!("M_UNKNOWN")), "{host}");
        assert!(
            !refused.to_string().contains("secret") && !refused.to_string().contains("address"),
            "{refused}"
        );
        assert!(began.elapsed() < Duration::from_secs(9), "{host}: somebody was asked");
    }
    assert_eq!(inside.paths(), Vec::<String>::new());
}

#[test]
fn each_hop_and_each_picture_is_judged_like_the_first() {
    let server = server();
    let alice = server.user("alice");
    let web = Web::start(|path, stream| {
        let to =
            |stream: &mut TcpStream, to: &str| write(stream, &format!("302 Found\r\nLocation: {to}"), b"");
        match path {
            "/file" => to(stream, "file:///etc/passwd"),
            "/user" => to(stream, "http://user:password@127.0.0.1/"),
            // Even where private addresses are allowed, nobody is at these.
            "/unspecified" => to(stream, "http://0.0.0.0/"),
            "/multicast" => to(stream, "http://224.0.0.1/"),
            "/loop" => to(stream, "/loop"),
            "/nowhere" => write(stream, "302 Found", b""),
            "/relative" => to(stream, "there?y"),
            "/there?y" => {
                html(stream, "<title>there</title><meta property=og:image content='http://224.0.0.1/x'>")
            }
            path if path.starts_with("/hop") => match path[4..].parse::<u32>().expect("a number") {
                0 => html(stream, "<title>at last</title>"),
                n => to(stream, &format!("/hop{}", n - 1)),
            },
            _ => write(stream, "404 Not Found", b""),
        }
    });
    for path in ["/file", "/user", "/unspecified", "/multicast", "/loop", "/nowhere", "/hop6"] {
        let (status, refused) = preview(&alice, &web.url(path));
        assert_eq!((status, &refused["errcode"]), (502, &json!("M_UNKNOWN")), "{path}");
    }
    assert_eq!(preview(&alice, &web.url("/hop5")), (200, json!({ "og:title": "at last" })));
    assert_eq!(preview(&alice, &web.url("/relative")), (200, json!({ "og:title": "there" })));
}

#[test]
fn a_page_may_be_large_or_hang_or_be_something_else() {
    let server = server();
    let alice = server.user("alice");
    let web = Web::start(|path, stream| match path {
        "/late" => html(stream, &format!("{}<title>late</title>", " ".repeat(700 << 10))),
        "/endless" => {
            drop(
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<title>endless</title>"),
            );
            while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
        }
        "/broken" => {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 999\r\n\r\n<title>broken</title>"));
        }
        "/zipped" => {
            write(stream, "200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip", b"\x1f\x8b")
        }
        "/pdf" => write(stream, "200 OK\r\nContent-Type: application/pdf", b"%PDF"),
        "/svg" => {
            write(stream, "200 OK\r\nContent-Type: image/svg+xml", b"<svg><script>alert(1)</script></svg>")
        }
        "/picture" => write(stream, "200 OK\r\nContent-Type: image/jpeg", PICTURE),
        "/latin" => write(
            stream,
            "200 OK\r\nContent-Type: text/html; charset=ISO-8859-1",
            b"<title>Gr\xfc\xdfe</title>",
        ),
        "/huge-picture" => {
            html(stream, "<title>huge</title><meta property=og:image content=/endless-picture>")
        }
        "/endless-picture" => {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n"));
            while stream.write_all(&[0xff; 1 << 16]).is_ok() {}
        }
        "/no-picture" => html(stream, "<title>none</title><meta property=og:image content=/svg>"),
        _ => {
            // Until whoever asked has gone.
            drop(stream.read(&mut [0]));
        }
    });
    let titled = |path: &str, title: &str| {
        assert_eq!(preview(&alice, &web.url(path)), (200, json!({ "og:title": title })), "{path}");
    };
    titled("/late", "late");
    titled("/endless", "endless");
    titled("/broken", "broken");
    titled("/latin", "Grüße");
    titled("/huge-picture", "huge");
    titled("/no-picture", "none");
    assert_eq!(preview(&alice, &web.url("/pdf")), (200, json!({})));
    let (status, picture) = preview(&alice, &web.url("/picture"));
    assert_eq!((status, &picture["matrix:image:size"]), (200, &json!(PICTURE.len())));
    for path in ["/zipped", "/svg", "/hangs"] {
        let began = Instant::now();
        assert_eq!(preview(&alice, &web.url(path)).0, 502, "{path}");
        assert!(began.elapsed() < Duration::from_secs(60), "{path}");
    }
}

#[test]
fn pictures_of_pages_are_among_what_a_user_may_have_fetched_in_an_hour() {
    let server = TestServer::start_with(|config| {
        config.url_previews = true;
        config.media_max_upload = 20 << 10;
        config.media_cache_bytes = 1;
    });
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let web = Web::start(|_, stream| write(stream, "200 OK\r\nContent-Type: image/jpeg", PICTURE));
    let statuses: Vec<u16> = (0..20).map(|n| preview(&alice, &web.url(&format!("/{n}"))).0).collect();
    let had = statuses.iter().take_while(|status| **status == 200).count();
    assert!((4..8).contains(&had) && statuses[had..].iter().all(|status| *status == 429), "{statuses:?}");
    let (status, refused) = preview(&alice, &web.url("/more"));
    assert_eq!((status, &refused["errcode"]), (429, &json!("M_LIMIT_EXCEEDED")));
    assert!(refused["retry_after_ms"].as_u64().is_some_and(|ms| ms > 1000), "{refused}");
    // That was no page's fault, and what is known costs nothing.
    assert_eq!(preview(&bob, &web.url("/more")).0, 200);
    assert_eq!(preview(&alice, &web.url("/more")).0, 200);
}
