//! Thumbnails of what clients upload ("Thumbnails"), over a real socket.

use std::io::Cursor;
use std::sync::{Arc, Barrier};

use crate::common::client::V3;
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::thumbnail;
use doorstep::testing::{TestUser, segment};
use serde_json::Value;
use ureq::http::Response;

const LEGACY: &str = "/_matrix/media/v3";
const MEDIA: &str = "/_matrix/client/v1/media";

struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn errcode(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errcode"].as_str().unwrap_or_default().to_owned()
    }

    /// Width and height of the picture.
    fn size(&self) -> (u32, u32) {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        thumbnail::look(&mut Cursor::new(&self.body)).expect("a picture").upright()
    }
}

fn answer(response: Response<ureq::Body>) -> Answer {
    let (head, body) = response.into_parts();
    let body = body.into_with_config().limit(64 << 20).read_to_vec().expect("a body");
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}

fn agent() -> ureq::Agent {
    ureq::config::Config::builder().http_status_as_error(false).build().into()
}

fn get(user: &TestUser, path: &str) -> Answer {
    let request = agent().get(format!("{}{path}", user.url()));
    answer(request.header("Authorization", format!("Bearer {}", user.token())).call().expect("an answer"))
}

/// Uploads, and gives server name and media id as they stand in paths.
fn upload(user: &TestUser, content_type: &str, bytes: &[u8]) -> String {
    let request = agent().post(format!("{}{LEGACY}/upload", user.url())).header("Content-Type", content_type);
    let sent = request.header("Authorization", format!("Bearer {}", user.token())).send(bytes);
    let sent = answer(sent.expect("an answer"));
    let body: Value = serde_json::from_slice(&sent.body).expect("JSON");
    let uri = body["content_uri"].as_str().unwrap_or_else(|| panic!("no URI: {body}"));
    let (server, id) = uri.strip_prefix("mxc://").and_then(|rest| rest.split_once('/')).expect("an mxc URI");
    format!("{}/{id}", segment(server))
}

fn thumbnail_of(user: &TestUser, media: &str, query: &str) -> Answer {
    get(user, &format!("{MEDIA}/thumbnail/{media}?{query}"))
}

/// A PNG of this size: grey, darker towards the right, or random if it is to be large as a file.
fn png(width: u32, height: u32, noise: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().expect("a header");
    let mut state = 1_u32;
    let mut pixel = |n: u32| {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        if noise { (state >> 24) as u8 } else { (255 - n % width * 255 / width) as u8 }
    };
    writer.write_image_data(&(0..width * height).map(&mut pixel).collect::<Vec<_>>()).expect("rows");
    writer.finish().expect("an end");
    file
}

#[test]
fn a_picture_has_thumbnails_of_the_sizes_that_there_are_with_the_headers_of_downloads() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let media = upload(&alice, "image/png", &png(1000, 500, false));
    let crop = thumbnail_of(&alice, &media, "width=30&height=30&method=crop");
    assert_eq!((crop.size(), crop.header("content-type")), ((32, 32), "image/jpeg"));
    assert_eq!(crop.header("content-disposition"), "inline; filename=thumbnail.jpg");
    assert!(crop.header("content-security-policy").contains("sandbox"), "{:?}", crop.headers);
    assert_eq!(crop.header("cross-origin-resource-policy"), "cross-origin");
    assert_eq!(crop.header("x-content-type-options"), "nosniff");
    let scaled = thumbnail_of(&alice, &media, "width=100&height=100");
    assert_eq!(scaled.size(), (320, 160), "method is scale where none is named");
    let again = thumbnail_of(&alice, &media, "width=320&height=200&method=scale&animated=false");
    assert_eq!((&again.body, again.header("etag")), (&scaled.body, scaled.header("etag")));
    // Never larger than it is: the original.
    let original = thumbnail_of(&alice, &media, "width=1000&height=500&method=scale");
    assert_eq!((original.size(), original.header("content-type")), ((1000, 500), "image/png"));
}

#[test]
fn what_makes_no_sense_or_is_no_picture_or_is_too_large_is_told_so() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let media = upload(&alice, "image/png", &png(1000, 500, false));
    for query in [
        "width=0&height=10",
        "width=-1&height=10",
        "width=x&height=10",
        "width=10",
        "height=10",
        "width=10&height=99999999999999999999",
        "width=10&height=10&method=stretch",
        "width=10&height=10&animated=perhaps",
    ] {
        let refused = thumbnail_of(&alice, &media, query);
        assert_eq!(refused.status, 400, "{query}: {}", refused.errcode());
        assert!(
            ["M_INVALID_PARAM", "M_MISSING_PARAM"].contains(&&*refused.errcode()),
            "{query}: {}",
            refused.errcode()
        );
    }
    let size = "width=32&height=32&method=crop";
    let unreadable: [(&str, &[u8]); 5] = [
        ("text/html", b"<script>alert(1)</script>"),
        ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"),
        ("image/avif", b"\0\0\0\x20ftypavif\0\0\0\0avifmif1"),
        ("image/png", b""),
        ("image/png", &png(1000, 500, false)[..60]),
    ];
    for (kind, bytes) in unreadable {
        let refused = thumbnail_of(&alice, &upload(&alice, kind, bytes), size);
        assert_eq!((refused.status, &*refused.errcode()), (400, "M_UNKNOWN"), "{kind}");
    }
    // It is what it is, whatever it is called.
    let called = upload(&alice, "text/html", &png(1000, 500, false));
    assert_eq!(thumbnail_of(&alice, &called, size).header("content-type"), "image/jpeg");
    // A hundred million pixels in fifty kilobytes.
    let mut bomb = png(1000, 500, false);
    bomb[16..24].copy_from_slice(&[0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10]);
    let bomb = upload(&alice, "image/png", &bomb);
    for _ in 0..3 {
        let refused = thumbnail_of(&alice, &bomb, size);
        assert_eq!((refused.status, &*refused.errcode()), (413, "M_TOO_LARGE"));
    }
    let nothing = thumbnail_of(&alice, &media.replace('/', "/x"), size);
    assert_eq!((nothing.status, &*nothing.errcode()), (404, "M_NOT_FOUND"));
}

#[test]
fn what_moves_is_given_as_it_is_only_to_who_asks_for_it() {
    let server = TestServer::start();
    let alice = server.user("alice");
    for (kind, bytes) in [
        ("image/gif", include_bytes!("../pictures/animated.gif").as_slice()),
        ("image/png", include_bytes!("../pictures/animated.png")),
        ("image/webp", include_bytes!("../pictures/animated.webp")),
    ] {
        let media = upload(&alice, kind, bytes);
        for size in ["width=32&height=32&method=crop", "width=640&height=480&method=scale"] {
            let moving = thumbnail_of(&alice, &media, &format!("{size}&animated=true"));
            assert_eq!((moving.header("content-type"), &*moving.body), (kind, bytes));
            for query in [size.to_owned(), format!("{size}&animated=false")] {
                let still = thumbnail_of(&alice, &media, &query);
                assert_eq!(still.header("content-type"), "image/jpeg", "{kind} {query}");
                let sides = if size.contains("crop") { (32, 32) } else { (64, 48) };
                assert_eq!(still.size(), sides, "{kind} {query}");
            }
        }
    }
    // What stands still does so for everybody.
    let media = upload(&alice, "image/png", &png(1000, 500, false));
    let still = thumbnail_of(&alice, &media, "width=32&height=32&method=crop&animated=true");
    assert_eq!((still.size(), still.header("content-type")), ((32, 32), "image/jpeg"));
}

#[test]
fn thumbnails_need_a_token_and_are_not_to_be_had_by_the_old_paths() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let media = upload(&alice, "image/png", &png(1000, 500, false));
    let size = "width=32&height=32&method=crop";
    let unnamed =
        |path: &str| answer(agent().get(format!("{}{path}", server.url())).call().expect("an answer"));
    let refused = unnamed(&format!("{MEDIA}/thumbnail/{media}?{size}"));
    assert_eq!((refused.status, &*refused.errcode()), (401, "M_MISSING_TOKEN"));
    assert_eq!(thumbnail_of(&alice, &media, size).status, 200);
    for version in ["v3", "r0", "v1"] {
        let frozen = unnamed(&format!("/_matrix/media/{version}/thumbnail/{media}?{size}"));
        assert_eq!((frozen.status, &*frozen.errcode()), (404, "M_NOT_FOUND"), "{version}");
    }
}

#[test]
fn many_who_want_the_same_at_once_have_the_same_and_one_user_has_a_page_of_pictures_at_once() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let pictures: Vec<String> =
        (0..12).map(|n| upload(&alice, "image/png", &png(700 + n, 500, true))).collect();
    let begin = Arc::new(Barrier::new(24));
    let asked: Vec<_> = (0..24)
        .map(|n| {
            let (alice, begin) = (TestUser::new(alice.url(), alice.id(), alice.token()), begin.clone());
            let media = pictures[n % 12].clone();
            std::thread::spawn(move || {
                begin.wait();
                thumbnail_of(&alice, &media, "width=320&height=240&method=scale")
            })
        })
        .collect();
    let answers: Vec<Answer> = asked.into_iter().map(|thread| thread.join().expect("no panic")).collect();
    for n in 0..12 {
        assert_eq!(answers[n].size().0, 320);
        assert_eq!(answers[n].body, answers[n + 12].body);
    }
    assert!(alice.get(&format!("{V3}/account/whoami")).is_object());
}

#[test]
fn another_servers_picture_has_thumbnails_here_and_one_that_is_too_large_to_be_fetched_has_its_own_servers() {
    let there = TestServer::start();
    let here = TestServer::start_with(|config| config.media_max_upload = 100 << 10);
    let (alice, bob) = (there.user("alice"), here.user("bob"));
    let size = "width=320&height=240&method=scale";
    let small = upload(&alice, "image/png", &png(1000, 500, false));
    let not_fetched = thumbnail_of(&bob, &small, &format!("{size}&allow_remote=false"));
    assert_eq!((not_fetched.status, &*not_fetched.errcode()), (404, "M_NOT_FOUND"));
    let thumbnail = thumbnail_of(&bob, &small, size);
    assert_eq!((thumbnail.size(), thumbnail.header("content-type")), ((320, 160), "image/jpeg"));
    assert_eq!(thumbnail.body, thumbnail_of(&alice, &small, size).body);
    // Half a megabyte.
    let large = upload(&alice, "image/png", &png(1000, 500, true));
    let whole = get(&bob, &format!("{MEDIA}/download/{large}"));
    assert_eq!((whole.status, &*whole.errcode()), (502, "M_TOO_LARGE"));
    let thumbnail = thumbnail_of(&bob, &large, size);
    assert_eq!((thumbnail.size(), thumbnail.header("content-type")), ((320, 160), "image/jpeg"));
    let nothing = thumbnail_of(&bob, &large.replace("%3A", "%3A1"), size);
    assert!([404, 502].contains(&nothing.status), "{}", nothing.status);
}

#[test]
fn a_picture_that_is_announced_is_waited_for_and_one_that_is_gone_has_no_thumbnails_any_more() {
    let server = TestServer::start();
    // The first user administers the server.
    let alice = server.user("alice");
    let uri = alice.post("/_matrix/media/v1/create", serde_json::json!({}));
    let uri = uri["content_uri"].as_str().and_then(|uri| uri.strip_prefix("mxc://")).expect("a URI");
    let (name, id) = uri.split_once('/').expect("server and id");
    let media = format!("{}/{id}", segment(name));
    let size = "width=32&height=32&method=crop";
    let none_yet = thumbnail_of(&alice, &media, &format!("{size}&timeout_ms=0"));
    assert_eq!((none_yet.status, &*none_yet.errcode()), (504, "M_NOT_YET_UPLOADED"));
    let waiting = {
        let (alice, media) = (TestUser::new(alice.url(), alice.id(), alice.token()), media.clone());
        std::thread::spawn(move || thumbnail_of(&alice, &media, &format!("{size}&timeout_ms=60000")))
    };
    let request =
        agent().put(format!("{}{LEGACY}/upload/{media}", server.url())).header("Content-Type", "image/png");
    let request = request.header("Authorization", format!("Bearer {}", alice.token()));
    assert_eq!(request.send(&png(1000, 500, false)[..]).expect("an answer").status().as_u16(), 200);
    assert_eq!(waiting.join().expect("no panic").size(), (32, 32));
    let left = || walk(&server.folder().join("media"));
    assert_eq!(left(), 2, "the picture and its thumbnail");
    let (deleted, _) = alice.request("DELETE", &format!("/_synapse/admin/v1/media/{media}"), None);
    assert_eq!(deleted, 200);
    let gone = thumbnail_of(&alice, &media, size);
    assert_eq!((gone.status, &*gone.errcode()), (404, "M_NOT_FOUND"));
    wait_until("the picture and its thumbnail are gone from the disk", || left() == 0);
}

/// How many files there are at any depth.
fn walk(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.map(|path| if path.is_dir() { walk(&path) } else { 1 }).sum()
}
