//! A certificate from an authority, by itself: how it is got, kept, renewed, and what an authority cannot do to the server.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use doorstep::TestServer;
use doorstep::config::AcmeSettings;
use doorstep::internals::Reply;
use serde_json::json;

use crate::authority::{Authority, problem, speak};
use crate::common::wait::{Gate, wait_until};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A server whose certificate this authority gives.
fn server(authority: &Authority) -> TestServer {
    server_with(authority, |_| {})
}

fn server_with(authority: &Authority, change: impl FnOnce(&mut AcmeSettings)) -> TestServer {
    TestServer::start_with(|config| {
        config.tls = None;
        config.acme = authority.settings();
        change(&mut config.acme);
        authority.names_lead_to([config.listen[0].port(), config.listen_tls[0].port()]);
    })
}

fn tls_port(server: &TestServer) -> u16 {
    server.name().rsplit(':').next().unwrap().parse().unwrap()
}

/// The certificate that is served.
fn served(server: &TestServer) -> Vec<u8> {
    speak(tls_port(server), "localhost", &[b"http/1.1"]).expect("TLS is spoken").1
}

/// Whether the certificate that is served is the one that the authority gave last.
fn serves_the_last(server: &TestServer, authority: &Authority) -> bool {
    let served = served(server);
    authority.chain().is_some_and(|chain| pem(&chain) == served)
}

fn pem(text: &str) -> Vec<u8> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    CertificateDer::from_pem_slice(text.as_bytes()).unwrap().to_vec()
}

#[track_caller]
fn wait_for_certificate(server: &TestServer, authority: &Authority) {
    wait_until("the certificate of the authority is served", || serves_the_last(server, authority));
}

/// Lets time pass for both.
fn advance(server: &TestServer, authority: &Authority, by: Duration) {
    authority.clock.advance(by);
    server.advance(by);
}

/// Lets time pass for both, step by step, until it holds.
#[track_caller]
fn pass_until(
    what: &str,
    step: Duration,
    server: &TestServer,
    authority: &Authority,
    mut holds: impl FnMut() -> bool,
) {
    wait_until(what, || {
        advance(server, authority, step);
        holds()
    });
}

#[test]
fn a_server_gets_its_certificate_by_a_proof_in_tls_and_serves_it_to_who_comes_next() {
    let authority = Authority::start();
    let gate = Gate::default();
    let held = gate.clone();
    authority.fault_once("/dir", move || {
        held.pass();
        Reply::json(&json!({})).with_status(503)
    });
    let started = Instant::now();
    let server = server(&authority);
    // It serves at once, with a certificate that it signed itself, and nobody waits for the authority.
    let (mut before, own) = speak(tls_port(&server), "localhost", &[b"http/1.1"]).unwrap();
    let alice = server.user("alice");
    let room = alice.create_room();
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    gate.open();
    wait_until("the failure is seen", || authority.asked("/dir") == 1);
    pass_until("it tries again", MINUTE, &server, &authority, || authority.asked("/dir") == 2);
    wait_for_certificate(&server, &authority);
    assert_ne!(served(&server), own);
    assert_eq!((authority.asked("/chall/0/0/tls-alpn-01"), authority.asked("/chall/")), (1, 1));

    // Who came before stays.
    before
        .write_all(b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut reply = String::new();
    before.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    alice.send(&room, "still here");

    // A proof is over with the order: nobody gets one any more, nor anything else by that protocol.
    wait_until("nothing is proven", || speak(tls_port(&server), "localhost", &[b"acme-tls/1"]).is_err());
    // Who speaks HTTP too is given HTTP.
    let (both, _) = speak(tls_port(&server), "localhost", &[b"acme-tls/1", b"http/1.1"]).unwrap();
    assert_eq!(both.conn.alpn_protocol(), Some(&b"http/1.1"[..]));

    let folder = server.folder().join("acme");
    for (file, mode) in [("", 0o700), ("account.pem", 0o600), ("certificate.pem", 0o600)] {
        let found = std::fs::metadata(folder.join(file)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{file}");
    }
    wait_until("the order is forgotten", || !folder.join("order.json").exists());
}

#[test]
fn a_certificate_is_trusted_by_who_trusts_the_authority() {
    let authority = Authority::start();
    let server = server(&authority);
    wait_for_certificate(&server, &authority);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.root().into()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    use rustls::client::danger::ServerCertVerifier;
    let served = served(&server).into();
    verifier.verify_server_cert(&served, &[], &name, &[], rustls::pki_types::UnixTime::now()).unwrap();
}

#[test]
fn a_name_is_proven_by_a_page_where_nothing_else_is_offered() {
    let authority = Authority::start();
    authority.offer(&["dns-01", "http-01"]);
    let server = server(&authority);
    wait_for_certificate(&server, &authority);
    assert_eq!(authority.asked("/chall/0/0/http-01"), 1);
    let page = |token: &str| {
        let port = server.url().rsplit(':').next().unwrap().parse::<u16>().unwrap();
        let mut tcp = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let path = format!("/.well-known/acme-challenge/{token}");
        write!(tcp, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        tcp.read_to_string(&mut reply).unwrap();
        reply
    };
    wait_until("the page is gone", || page("token_4-x").starts_with("HTTP/1.1 404 "));
    for odd in ["", "x", "%2e%2e%2fetc", "a%0d%0ab"] {
        assert!(page(odd).starts_with("HTTP/1.1 404 "), "{odd}");
    }
}

#[test]
fn where_one_proof_fails_the_other_is_tried_and_the_authority_is_given_time() {
    let authority = Authority::start();
    let server = server(&authority);
    // The TLS port leads elsewhere: nothing is there.
    let plain = server.url().rsplit(':').next().unwrap().parse::<u16>().unwrap();
    wait_for_certificate(&server, &authority);
    authority.names_lead_to([plain, 1]);
    advance(&server, &authority, 61 * DAY);
    wait_until("the proof by TLS fails", || authority.asked("/chall/1/0/tls-alpn-01") == 1);
    // Nothing more happens until it is time.
    wait_until("the failed order is dropped", || !server.folder().join("acme/order.json").exists());
    server.advance(Duration::from_secs(60));
    served(&server);
    assert_eq!(authority.asked("/chall/2/"), 0);
    pass_until("it is renewed by a page", MINUTE, &server, &authority, || {
        authority.asked("/chall/2/0/http-01") == 1
    });
    wait_for_certificate(&server, &authority);
}

#[test]
fn refused_nonces_are_replaced_and_who_refuses_all_of_them_is_left_alone() {
    let authority = Authority::start();
    let bad = |count: usize| {
        let left = AtomicUsize::new(count);
        move || {
            let some =
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            some.then(|| problem(400, "badNonce", "it is old"))
        }
    };
    for path in ["/account", "/order", "/authz", "/chall", "/finalize", "/cert"] {
        authority.fault(path, bad(3));
    }
    let server = server(&authority);
    wait_for_certificate(&server, &authority);

    authority.fault("/account", bad(usize::MAX));
    let before = authority.asked("/account");
    advance(&server, &authority, 61 * DAY);
    wait_until("it gives up", || authority.asked("/account") >= before + 10);
    authority.mend();
    let orders = authority.asked("/order");
    assert_eq!(authority.asked("/account"), before + 10);
    pass_until("it tries again", MINUTE, &server, &authority, || authority.asked("/order") > orders);
    wait_for_certificate(&server, &authority);
}

#[test]
fn an_authority_that_wants_to_be_left_alone_is_even_across_a_restart_and_for_a_week_at_most() {
    let authority = Authority::start();
    authority.fault("/order", || {
        Some(problem(429, "rateLimited", "too many certificates").with_header("Retry-After", "7200"))
    });
    let mut server = server(&authority);
    let waits = |server: &TestServer| server.folder().join("acme/wait.json").exists();
    wait_until("it is told to wait", || waits(&server));
    assert_eq!(authority.asked("/order"), 1);
    server.advance(Duration::from_secs(3600));
    // Neither the operator nor a restart makes it come sooner.
    server.homeserver().acme.hurry();
    server.restart();
    server.homeserver().acme.hurry();
    server.advance(Duration::from_secs(60));
    served(&server);
    assert_eq!((authority.asked("/order"), authority.asked("/dir")), (1, 1));
    authority.mend();
    authority.fault_once("/order", || {
        problem(429, "rateLimited", "never again").with_header("Retry-After", "99999999999")
    });
    std::fs::remove_file(server.folder().join("acme/wait.json")).unwrap();
    advance(&server, &authority, Duration::from_secs(3600));
    wait_until("it is told to wait for ever", || waits(&server));
    advance(&server, &authority, 6 * DAY);
    served(&server);
    assert_eq!(authority.asked("/order"), 2);
    advance(&server, &authority, 2 * DAY);
    wait_for_certificate(&server, &authority);

    // The same when there is a certificate that is to be renewed.
    let told = |server: &TestServer| std::fs::read(server.folder().join("acme/wait.json")).unwrap();
    let before = told(&server);
    authority
        .fault_once("/order", || problem(429, "rateLimited", "later").with_header("Retry-After", "172800"));
    // No time passes any more once it has asked, or the two days would be over.
    let orders = authority.asked("/order");
    pass_until("it asks again", DAY, &server, &authority, || authority.asked("/order") > orders);
    wait_until("it is told to wait again", || told(&server) != before);
    let requests = authority.asked("/dir");
    server.restart();
    // After an hour it would ask when to renew.
    server.advance(HOUR / 2);
    served(&server);
    assert_eq!(authority.asked("/dir"), requests);
}

#[test]
fn a_try_that_failed_is_repeated_at_once_when_the_operator_wants_it() {
    let authority = Authority::start();
    authority.fault_once("/account", || problem(500, "serverInternal", "a moment"));
    let server = server(&authority);
    wait_until("it failed", || authority.asked("/account") == 1);
    wait_until("a certificate comes", || {
        server.homeserver().acme.hurry();
        serves_the_last(&server, &authority)
    });
}

#[test]
fn a_restart_keeps_the_certificate_and_asks_nobody() {
    let authority = Authority::start();
    let mut server = server(&authority);
    wait_for_certificate(&server, &authority);
    wait_until("the order is forgotten", || !server.folder().join("acme/order.json").exists());
    let (requests, kept) = (authority.asked("/"), served(&server));
    server.restart();
    assert_eq!(served(&server), kept);
    advance(&server, &authority, 30 * DAY);
    server.restart();
    assert_eq!((served(&server), authority.asked("/")), (kept.clone(), requests));

    // What cannot be read is no reason not to start, and another takes its place.
    server.stop();
    std::fs::write(server.folder().join("acme/certificate.pem"), "-----BEGIN NONSENSE-----").unwrap();
    server.resume();
    wait_until("another is got", || {
        let now = served(&server);
        now != kept && authority.chain().is_some_and(|chain| pem(&chain) == now)
    });
}

#[test]
fn a_certificate_for_other_names_is_served_until_there_is_one_for_these() {
    let authority = Authority::start();
    let mut server = server_with(&authority, |acme| acme.names = vec!["other.example".into()]);
    wait_for_certificate(&server, &authority);
    let old = served(&server);
    server.stop();
    server.change(|config| config.acme.names = vec!["localhost".into(), "other.example".into()]);
    let gate = Gate::default();
    let held = gate.clone();
    authority.fault("/dir", move || {
        held.pass();
        None
    });
    server.resume();
    assert_eq!(served(&server), old);
    gate.open();
    wait_until("one for both is served", || served(&server) != old && serves_the_last(&server, &authority));
    assert_eq!(authority.asked("/chall/1/"), 2);
}

#[test]
fn a_certificate_is_renewed_at_two_thirds_of_its_life_and_not_before() {
    let authority = Authority::start();
    let server = server(&authority);
    wait_for_certificate(&server, &authority);
    let first = served(&server);
    advance(&server, &authority, 54 * DAY);
    served(&server);
    assert_eq!(authority.asked("/order"), authority.asked("/order/0") + 1);
    advance(&server, &authority, 6 * DAY);
    wait_until("it is renewed", || served(&server) != first && serves_the_last(&server, &authority));

    // Certificates of an hour are renewed within the hour, and never one upon the other.
    authority.set_life(Duration::from_secs(3600));
    advance(&server, &authority, 61 * DAY);
    wait_until("the short one is there", || authority.asked("/cert/2") == 1);
    wait_for_certificate(&server, &authority);
    advance(&server, &authority, Duration::from_secs(600));
    served(&server);
    assert_eq!(authority.asked("/cert/"), 3);
    advance(&server, &authority, Duration::from_secs(1800));
    wait_until("the next is there", || authority.asked("/cert/3") == 1);
}

#[test]
fn an_authority_can_have_a_certificate_renewed_early_and_is_told_which() {
    let authority = Authority::start();
    let far = json!({ "start": "2999-01-01T00:00:00Z", "end": "2999-01-02T00:00:00Z" });
    let past = json!({ "start": "2000-01-01T00:00:00Z", "end": "2000-01-02T00:00:00Z" });
    authority.suggest(far.clone());
    let server = server(&authority);
    wait_for_certificate(&server, &authority);
    let first = served(&server);
    assert_eq!(authority.replaced(), [None]);
    advance(&server, &authority, Duration::from_secs(3700));
    wait_until("it is asked", || authority.asked("/info/") == 1);
    // "21600" seconds it says.
    advance(&server, &authority, Duration::from_secs(3700));
    served(&server);
    assert_eq!((authority.asked("/info/"), authority.asked("/cert/")), (1, 1));
    for nonsense in
        [json!(null), json!({}), json!({ "start": "2000-01-02T00:00:00Z", "end": "2000-01-01T00:00:00Z" })]
    {
        let before = authority.asked("/info/");
        authority.suggest(nonsense);
        pass_until("it is asked again", HOUR, &server, &authority, || authority.asked("/info/") > before);
    }
    assert_eq!(authority.asked("/cert/"), 1);
    authority.suggest(past.clone());
    pass_until("it is renewed", HOUR, &server, &authority, || {
        served(&server) != first && serves_the_last(&server, &authority)
    });
    let replaced =
        authority.replaced().pop().flatten().expect("the order says which certificate it replaces");
    assert!(replaced.contains('.') && replaced.len() > 20, "{replaced}");

    // An authority that does not want to hear of that is asked without it. Who asks when it is to be renewed has no order
    // under way.
    authority.suggest(far);
    let before = authority.asked("/info/");
    pass_until("it is asked again", HOUR, &server, &authority, || authority.asked("/info/") > before);
    authority.suggest(past);
    authority.fault_once("/order", || problem(409, "alreadyReplaced", "it has been"));
    pass_until("it is renewed again", HOUR, &server, &authority, || {
        let without = authority.replaced().iter().skip(1).position(Option::is_none);
        without.is_some_and(|place| authority.asked(&format!("/cert/{}", place + 1)) > 0)
    });
}

#[test]
fn an_order_is_gone_on_with_by_who_comes_after_whoever_was_stopped_in_the_middle() {
    for (step, path) in [("ordered", "/authz/0/0"), ("proven", "/finalize/0"), ("issued", "/cert/0")] {
        let authority = Authority::start();
        let (gate, reached) = (Gate::default(), Gate::default());
        let (held, there) = (gate.clone(), reached.clone());
        authority.fault_once(path, move || {
            there.open();
            held.pass();
            problem(500, "serverInternal", "too late")
        });
        let mut server = server(&authority);
        reached.pass();
        assert!(server.folder().join("acme/order.json").exists(), "{step}");
        let started = Instant::now();
        server.stop();
        assert!(started.elapsed() < Duration::from_secs(10), "{step}: {:?}", started.elapsed());
        gate.open();
        authority.mend();
        server.resume();
        wait_for_certificate(&server, &authority);
        let orders = authority.asked("/order") - authority.asked("/order/");
        assert_eq!(orders, 1, "{step}");
    }
}

#[test]
fn an_order_that_is_over_or_that_nobody_knows_is_replaced() {
    for odd in [
        r#"{"directory":"D","names":["localhost"],"url":"U/order/77","key":"K","made":M}"#,
        r#"{"directory":"D","names":["localhost"],"url":"https://elsewhere.example/order/0","key":"K","made":M}"#,
        r#"{"directory":"D","names":["localhost"],"url":"U/order/0","key":"no key","made":0}"#,
        r#"{"directory":"https://another.example/","names":["localhost"],"url":"U/order/0","key":"K","made":M}"#,
        r#"{"directory":"D","names":["b.example"],"url":"U/order/0","key":"K","made":M}"#,
        "{}",
    ] {
        let authority = Authority::start();
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem().replace('\n', "\\n");
        let mut server = server_with(&authority, |acme| acme.directory = "https://localhost:1/".into());
        server.stop();
        let settings = authority.settings();
        let (now, base) = (authority.clock.now_ms().to_string(), settings.directory.trim_end_matches("/dir"));
        let order = odd.replace("\"D\"", &json!(settings.directory).to_string());
        let order = order
            .replace("U/", &format!("{base}/"))
            .replace("\"K\"", &format!("\"{key}\""))
            .replace("M}", &format!("{now}}}"));
        let folder = server.folder().join("acme");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("order.json"), order).unwrap();
        server.change(|config| config.acme = settings);
        server.resume();
        wait_until("a certificate comes all the same", || {
            server.homeserver().acme.hurry();
            serves_the_last(&server, &authority)
        });
    }
}

#[test]
fn an_account_is_told_whom_to_write_to_and_when_that_changes() {
    let authority = Authority::start();
    let mut server = server_with(&authority, |acme| acme.contact = Some("a@b.example".into()));
    wait_for_certificate(&server, &authority);
    assert_eq!(authority.contact(), json!(["mailto:a@b.example"]));
    server.stop();
    server.change(|config| config.acme.contact = Some("c@d.example".into()));
    server.resume();
    advance(&server, &authority, 61 * DAY);
    wait_until("it is renewed", || authority.asked("/cert/1") == 1);
    assert_eq!(authority.contact(), json!(["mailto:c@d.example"]));
}

#[test]
fn a_server_stops_at_once_while_an_authority_hangs() {
    for path in ["/dir", "/nonce", "/account", "/order", "/authz", "/chall", "/finalize", "/cert"] {
        let authority = Authority::start();
        let (gate, reached) = (Gate::default(), Gate::default());
        let (held, there) = (gate.clone(), reached.clone());
        authority.fault(path, move || {
            there.open();
            held.pass();
            None
        });
        let mut server = server(&authority);
        reached.pass();
        server.user("alice").create_room();
        let started = Instant::now();
        server.stop();
        assert!(started.elapsed() < Duration::from_secs(10), "{path}: {:?}", started.elapsed());
        gate.open();
    }
}

#[test]
fn a_certificate_that_is_of_no_use_is_not_taken_and_the_old_one_stays() {
    let authority = Authority::start();
    let server = server(&authority);
    wait_for_certificate(&server, &authority);
    let old = served(&server);
    let kept = std::fs::read(server.folder().join("acme/certificate.pem")).unwrap();
    let names = ["localhost".to_owned()];
    let chain = |text: String| Reply::bytes("application/pem-certificate-chain", text.into_bytes());
    let own_key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let bad: Vec<Box<dyn Fn() -> Reply + Send>> = vec![
        Box::new(move || chain(String::new())),
        Box::new(move || chain("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into())),
        Box::new(move || chain("\u{0}".repeat(1000))),
        Box::new(move || chain(own_key.clone())),
        Box::new(|| Reply::json(&json!({ "status": "valid" }))),
        Box::new({
            // For another key.
            let issued = authority.issue(&names, None, DAY);
            move || chain(issued.clone())
        }),
    ];
    advance(&server, &authority, 61 * DAY);
    // The first renewal takes place; the certificates after it are bad.
    wait_until("it is renewed", || served(&server) != old);
    let (old, kept) = (served(&server), {
        let _ = kept;
        std::fs::read(server.folder().join("acme/certificate.pem")).unwrap()
    });
    advance(&server, &authority, 59 * DAY);
    for (number, bad) in bad.into_iter().enumerate() {
        let before = authority.asked("/cert/");
        authority.fault("/cert/", move || Some(bad()));
        pass_until("it is asked for", HOUR, &server, &authority, || authority.asked("/cert/") > before);
        wait_until("it is given up", || !server.folder().join("acme/order.json").exists());
        assert_eq!(served(&server), old, "{number}");
        assert_eq!(std::fs::read(server.folder().join("acme/certificate.pem")).unwrap(), kept, "{number}");
    }
    authority.mend();
    pass_until("a good one is taken", HOUR, &server, &authority, || served(&server) != old);
    assert!(serves_the_last(&server, &authority));
}

#[test]
fn a_chain_that_does_not_come_through_is_asked_for_again_and_no_other_is_ordered() {
    let authority = Authority::start();
    let endless = || Reply::bytes("text/plain", vec![b'x'; 1 << 20]);
    let elsewhere = || Reply::empty().with_status(302).with_header("Location", "https://localhost:1/cert");
    authority.fault_once("/cert/", endless);
    authority.fault_once("/cert/", elsewhere);
    authority.fault_once("/cert/", || problem(503, "serverInternal", "a moment"));
    let server = server(&authority);
    pass_until("it is asked for again", MINUTE, &server, &authority, || authority.asked("/cert/0") == 4);
    wait_for_certificate(&server, &authority);
    assert_eq!(authority.asked("/order") - authority.asked("/order/"), 1);
}

#[test]
fn a_certificate_that_has_expired_or_is_for_other_names_is_not_taken() {
    let authority = Authority::start();
    authority.set_life(Duration::from_secs(30));
    let server = server(&authority);
    let own = served(&server);
    wait_until("an expired one is given", || authority.asked("/cert/0") == 1);
    wait_until("it is given up", || !server.folder().join("acme/order.json").exists());
    assert_eq!(served(&server), own);
    assert!(!server.folder().join("acme/certificate.pem").exists());
    authority.set_life(90 * DAY);
    pass_until("a good one is given", MINUTE, &server, &authority, || authority.asked("/cert/1") == 1);
    wait_for_certificate(&server, &authority);
}

#[test]
fn whatever_an_authority_answers_leads_nowhere_else_and_breaks_nothing() {
    let elsewhere = "https://127.0.0.1:1/";
    let lies: Vec<(&'static str, serde_json::Value)> = vec![
        ("/dir", json!([])),
        ("/dir", json!({ "newNonce": elsewhere, "newAccount": elsewhere, "newOrder": elsewhere })),
        ("/dir", json!({ "newNonce": "http://localhost/", "newAccount": 5, "newOrder": null })),
        ("/order", json!({ "status": "pending", "authorizations": [elsewhere], "finalize": elsewhere })),
        ("/order", json!({ "status": "pending", "authorizations": vec!["https://localhost/"; 5000] })),
        ("/order", json!({ "status": "pending", "authorizations": 5 })),
        ("/order", json!({ "status": "ready", "finalize": elsewhere })),
        ("/order", json!({ "status": "valid", "certificate": elsewhere })),
        ("/order", json!({ "status": "valid" })),
        ("/order", json!({ "status": "strange" })),
        ("/order", json!({ "status": "invalid", "error": { "detail": "no\u{7}" } })),
        ("/authz", json!({ "status": "pending" })),
        ("/authz", json!({ "status": "invalid", "challenges": [{ "error": 5 }] })),
        (
            "/authz",
            json!({ "status": "pending", "identifier": { "type": "dns", "value": "somebody.example" },
                "challenges": [{ "type": "tls-alpn-01", "status": "pending", "token": "t", "url": elsewhere }] }),
        ),
        (
            "/authz",
            json!({ "status": "pending", "identifier": { "type": "dns", "value": "localhost" },
                "challenges": [{ "type": "tls-alpn-01", "status": "pending", "token": "t", "url": elsewhere }] }),
        ),
        (
            "/authz",
            json!({ "status": "pending", "identifier": { "type": "dns", "value": "localhost" },
                "challenges": [{ "type": "http-01", "status": "pending", "token": "../../x", "url": elsewhere }] }),
        ),
    ];
    let authority = Authority::start();
    let server = server(&authority);
    wait_for_certificate(&server, &authority);
    let old = served(&server);
    advance(&server, &authority, 59 * DAY);
    for (path, lie) in lies {
        let before = authority.asked(path);
        let base = authority.settings().directory.replace("/dir", "");
        authority
            .fault_once(path, move || Reply::json(&lie).with_header("Location", &format!("{base}/order/0")));
        pass_until("the lie is told", HOUR, &server, &authority, || authority.asked(path) > before);
        served(&server);
    }
    pass_until("it is renewed in the end", HOUR, &server, &authority, || {
        served(&server) != old && serves_the_last(&server, &authority)
    });
}
