//! The page of numbers: a strict reader of the format takes it, what is counted is what happened, and nobody is named in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use doorstep::TestServer;
use doorstep::config::Config;
use serde_json::json;

use crate::common::bridge::{Bridge, BridgeAnswer};
use crate::common::client::{V3, post};
use crate::common::wait::wait_until;

/// A server that counts.
fn watched() -> TestServer {
    TestServer::start_with(|config: &mut Config| {
        config.metrics = vec!["127.0.0.1:0".parse().expect("an address")]
    })
}

fn fetch(url: &str) -> (u16, String, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut answer = agent.get(url).call().expect("an answer");
    let header = answer.headers().get("content-type").map(|v| v.to_str().expect("text").to_owned());
    let text = answer.body_mut().read_to_string().expect("text");
    (answer.status().as_u16(), header.unwrap_or_default(), text)
}

/// The page, read by the rules of the text format 0.0.4, and by those of histograms.
struct Page {
    text: String,
    samples: BTreeMap<String, f64>,
}

impl Page {
    fn of(server: &TestServer) -> Self {
        let (status, content_type, text) = fetch(&server.metrics_url().expect("it counts"));
        assert_eq!((status, content_type.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
        let samples = read(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
        Self { text, samples }
    }

    /// The sum of all samples of this name whose labels have all of these parts.
    fn sum(&self, name: &str, parts: &[&str]) -> f64 {
        let of_name = |key: &str| key == name || key.starts_with(&format!("{name}{{"));
        let found = self
            .samples
            .iter()
            .filter(|(key, _)| of_name(key) && parts.iter().all(|part| key.contains(part)));
        found.map(|(_, value)| value).sum()
    }
}

fn is_name(text: &str) -> bool {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Every sample by its name and labels as they are written. Errors: the first line that is not as it should be, and why.
fn read(text: &str) -> Result<BTreeMap<String, f64>, String> {
    let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::<String, String>::new());
    let (mut family, mut helped) = (String::new(), BTreeSet::new());
    if !text.ends_with('\n') {
        return Err("the last line does not end".into());
    }
    for line in text.lines() {
        let wrong = |why: &str| format!("{why}: {line:?}");
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').ok_or_else(|| wrong("a help without text"))?;
            if !is_name(name) || text.is_empty() || !helped.insert(name.to_owned()) {
                return Err(wrong("a help that is none, or the second of its family"));
            }
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').ok_or_else(|| wrong("a type without a kind"))?;
            if !["counter", "gauge", "histogram"].contains(&kind) || !helped.contains(name) {
                return Err(wrong("a kind that there is not, or a type before its help"));
            }
            if families.insert(name.to_owned(), kind.to_owned()).is_some() {
                return Err(wrong("the family comes twice"));
            }
            if kind == "counter" && !name.ends_with("_total") {
                return Err(wrong("a counter that is not called so"));
            }
            name.clone_into(&mut family);
        } else {
            let (name, labels, value) = sample(line).ok_or_else(|| wrong("no sample"))?;
            let base = match families.get(&family).map(String::as_str) {
                Some("histogram") => {
                    ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end))
                }
                _ => Some(name),
            };
            if base != Some(&family) {
                return Err(wrong("a sample outside its family"));
            }
            let mut seen = BTreeSet::new();
            if !labels.iter().all(|(label, _)| is_name(label) && seen.insert(*label)) {
                return Err(wrong("a label that is none, or comes twice"));
            }
            let key = line.rsplit_once(' ').map_or(line, |(key, _)| key);
            if samples.insert(key.to_owned(), value).is_some() {
                return Err(wrong("the sample comes twice"));
            }
        }
    }
    check_histograms(&samples, &families)?;
    Ok(samples)
}

/// Labels by their names.
type Labels<'l> = Vec<(&'l str, String)>;

/// `name{label="value",…} number`.
fn sample(line: &str) -> Option<(&str, Labels<'_>, f64)> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, value) = rest.split_once("=\"")?;
            let (mut text, mut chars) = (String::new(), value.char_indices());
            let end = loop {
                match chars.next()? {
                    (_, '\\') => text.push(match chars.next()?.1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        _ => return None,
                    }),
                    (at, '"') => break at,
                    (_, c) => text.push(c),
                }
            };
            labels.push((label, text));
            rest = &value[end + 1..];
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => break,
            }
        }
        rest = rest.strip_prefix('}')?;
    }
    let value: f64 = rest.strip_prefix(' ')?.parse().ok()?;
    (is_name(name) && value.is_finite() && value >= 0.0).then_some((name, labels, value))
}

/// Buckets grow, end with infinity, and agree with the count.
fn check_histograms(
    samples: &BTreeMap<String, f64>,
    families: &BTreeMap<String, String>,
) -> Result<(), String> {
    for name in families.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name) {
        let mut series = BTreeMap::<String, Vec<(f64, f64)>>::new();
        for (key, value) in samples.iter().filter(|(key, _)| key.starts_with(&format!("{name}_bucket{{"))) {
            let (before, bound) = key.split_once("le=\"").ok_or("a bucket without a bound")?;
            let bound = bound.trim_end_matches("\"}");
            let bound =
                if bound == "+Inf" { f64::INFINITY } else { bound.parse().map_err(|_| key.clone())? };
            let labels = before.trim_end_matches(['{', ',']).replacen("_bucket", "", 1);
            series.entry(labels).or_default().push((bound, *value));
        }
        for (labels, mut buckets) in series {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            let rest = labels.strip_prefix(name.as_str()).unwrap_or_default();
            let of = |end: &str| {
                let key =
                    if rest.is_empty() { format!("{name}{end}") } else { format!("{name}{end}{rest}}}") };
                samples.get(&key).copied().ok_or(key)
            };
            let (last, count, sum) = (buckets[buckets.len() - 1], of("_count")?, of("_sum")?);
            let grows = buckets.windows(2).all(|two| two[0].1 <= two[1].1);
            if !grows || last.0 != f64::INFINITY || last.1 != count || (count == 0.0 && sum > 0.0) {
                return Err(format!("the histogram {labels} does not add up: {buckets:?}, {count}"));
            }
        }
    }
    Ok(())
}

#[test]
fn the_reader_of_this_test_refuses_what_is_not_the_format() {
    let good = "# HELP a_total x\n# TYPE a_total counter\na_total{l=\"x\\\"\\\\\\n\"} 1\na_total 2\n";
    assert_eq!(read(good).expect("it is good").len(), 2);
    for wrong in [
        "a_total 1\n",
        "# HELP a x\n# TYPE a gauge\na 1",
        "# HELP a x\n# TYPE a gauge\na 1\na 1\n",
        "# HELP a x\n# TYPE a gauge\na -1\n",
        "# HELP a x\n# TYPE a gauge\na NaN\n",
        "# HELP a x\n# TYPE a gauge\nb 1\n",
        "# HELP a x\n# TYPE a gauge\na{l=\"x} 1\n",
        "# HELP a x\n# TYPE a gauge\na{l=\"x\",l=\"y\"} 1\n",
        "# HELP a x\n# TYPE a gauge\na{1=\"x\"} 1\n",
        "# HELP a x\n# TYPE a counter\na 1\n",
        "# TYPE a gauge\na 1\n",
        "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
        "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n",
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_happens_is_counted_and_nobody_is_named() {
    let (here, there) = (watched(), TestServer::start());
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "initial_state": [
        { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }));
    bob.knock_via(&room, &[here.name()]);
    alice.post(
        &format!("{V3}/rooms/{}/invite", doorstep::testing::segment(&room)),
        json!({ "user_id": bob.id() }),
    );
    bob.wait_for_room("invite", &room);
    bob.join_via(&room, &[here.name()]);
    for text in ["one", "two", "three"] {
        alice.send(&room, text);
    }
    // Refused in different ways.
    assert_eq!(post(&alice, "rooms/!no:where/invite", json!({ "user_id": bob.id() })).0, 403);
    assert_eq!(fetch(&format!("{}/no/such/path", here.url())).0, 404);
    assert_eq!(alice.request("DELETE", &format!("{V3}/sync"), None).0, 405);
    wait_until("transactions went out", || {
        Page::of(&here).sum("doorstep_federation_transactions_total", &["out", "done"]) > 0.0
    });

    let page = Page::of(&here);
    let requests = |parts: &[&str]| page.sum("doorstep_http_requests_total", parts);
    let send = "route=\"/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}\"";
    assert_eq!(requests(&[send, "status=\"200\"", "method=\"PUT\""]), 3.0, "{}", page.text);
    assert_eq!(page.sum("doorstep_http_request_seconds_count", &[send]), 3.0);
    assert_eq!(requests(&["route=\"none\"", "404"]), 1.0);
    assert_eq!(requests(&["route=\"none\"", "405"]), 1.0);
    assert_eq!(requests(&["/rooms/{roomId}/invite", "403"]), 1.0);
    assert_eq!(page.sum("doorstep_handshakes_total", &["knock", "\"in\"", "done"]), 1.0);
    assert_eq!(page.sum("doorstep_handshakes_total", &["invite", "\"out\"", "done"]), 1.0);
    assert_eq!(page.sum("doorstep_handshakes_total", &["invite", "\"out\"", "refused"]), 1.0);
    let out = Page::of(&here);
    assert!(
        out.sum("doorstep_commit_seconds_count", &[]) > 5.0 && out.sum("doorstep_writes_total", &[]) > 5.0
    );
    assert_eq!(out.sum("doorstep_writer_queue", &[]), 0.0);
    for gauge in ["doorstep_connections", "process_resident_memory_bytes", "doorstep_database_bytes"] {
        assert!(out.sum(gauge, &[]) > 0.0, "{gauge}");
    }
    // Nobody, and no room, is named; nor is a token.
    let names =
        ["alice", "bob", &room, room.trim_start_matches('!'), there.name(), here.name(), alice.token()];
    for name in names {
        assert!(!page.text.contains(name), "{name} in {}", page.text);
    }
}

#[test]
fn who_waits_for_news_is_counted_while_they_wait_and_their_wait_is_no_work() {
    let server = watched();
    let alice = server.user("alice");
    let room = alice.create_room();
    let first = alice.get(&format!("{V3}/sync?timeout=0"));
    let since = first["next_batch"].as_str().expect("a token");
    let waiting = || Page::of(&server).sum("doorstep_sync_waiting", &[]);
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| alice.get(&format!("{V3}/sync?timeout=600000&since={since}")));
        wait_until("it waits", || waiting() > 0.0);
        // Longer than anything that a sync has to do.
        std::thread::park_timeout(std::time::Duration::from_millis(1500));
        alice.send(&room, "news");
        sync.join().expect("an answer");
    });
    wait_until("nobody waits", || waiting() == 0.0);
    let page = Page::of(&server);
    let sync = "route=\"/_matrix/client/v3/sync\"";
    assert!(page.sum("doorstep_http_requests_total", &[sync, "200"]) >= 2.0, "{}", page.text);
    assert_eq!(page.sum("doorstep_http_requests_total", &[sync, "none"]), 0.0);
    assert!(page.sum("doorstep_http_request_seconds_sum", &[sync]) < 1.5, "{}", page.text);
}

#[test]
fn servers_that_are_behind_are_counted_and_nothing_else_is_served_there() {
    let (here, mut there) = (watched(), TestServer::start());
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room();
    bob.join_via(&room, &[here.name()]);
    there.stop();
    alice.send(&room, "is anybody there?");
    let behind = || Page::of(&here).sum("doorstep_federation_destinations", &["failing"]);
    wait_until("one is behind", || behind() == 1.0);
    let page = Page::of(&here);
    assert!(
        page.sum("doorstep_federation_transactions_total", &["out", "unreachable"]) >= 1.0,
        "{}",
        page.text
    );
    there.resume();
    bob.send(&room, "again");
    wait_until("none is behind", || behind() == 0.0);

    let url = here.metrics_url().expect("it counts");
    let base = url.trim_end_matches("/metrics");
    for path in
        ["/", "/_matrix/client/versions", "/metrics/", "/metricsx", "/_synapse/admin/v1/server_version"]
    {
        assert_eq!(fetch(&format!("{base}{path}")).0, 404, "{path}");
    }
    // And where the rest is served, the page is not.
    assert_eq!(fetch(&format!("{}/metrics", here.url())).0, 404);
    assert!(TestServer::start().metrics_url().is_none());
}

/// Not a test: prints what the counting costs, with the processor's time of so many sends.
#[test]
#[ignore = "prints figures"]
#[allow(clippy::print_stderr, reason = "it prints figures")]
fn what_counting_costs() {
    use crate::common::process::cpu_ms;
    const SENDS: u32 = 3000;
    static ROUND: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    for _ in 0..3 {
        for (what, server) in [("off", TestServer::start()), ("on", watched())] {
            let alice = server.user("alice");
            let room = alice.create_room();
            let before = cpu_ms();
            (0..SENDS).for_each(|_| drop(alice.send(&room, "x")));
            let each = (cpu_ms() - before) * 1000.0 / f64::from(SENDS);
            eprintln!(
                "{} {what}: {each:.1} µs of processor time a send",
                ROUND.fetch_add(1, Ordering::Relaxed)
            );
        }
    }
}

#[test]
fn whether_bridges_take_what_they_are_sent_is_counted() {
    let bridge = Bridge::start("irc");
    let registration = bridge.registration("namespaces: {users: [{regex: '@irc_', exclusive: false}]}");
    let server = TestServer::start_with(|config: &mut Config| {
        config.metrics = vec!["127.0.0.1:0".parse().expect("an address")];
        config.appservices.push(registration);
    });
    let ghost = server.user("irc_bob");
    let room = ghost.create_room();
    let transactions = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        Page::of(&server).sum("doorstep_appservice_transactions_total", &[&outcome])
    };
    let services =
        |state: &str| Page::of(&server).sum("doorstep_appservices", &[&format!("state=\"{state}\"")]);
    wait_until("it has taken something", || transactions("done") > 0.0);
    assert_eq!((services("served"), services("failing"), transactions("failed")), (1.0, 0.0, 0.0));
    bridge.answer(BridgeAnswer::Json(503, json!({})));
    ghost.send(&room, "hello");
    wait_until("it is known to be down", || services("failing") > 0.0);
    assert!(transactions("failed") > 0.0 && services("served") == 0.0);
    let waiting = || Page::of(&server).sum("doorstep_backlog", &["kind=\"events for application services\""]);
    assert!(waiting() > 0.0, "what it has not taken waits");
    bridge.answer(BridgeAnswer::Json(200, json!({})));
    server.advance(std::time::Duration::from_secs(10));
    wait_until("it is there again", || services("served") > 0.0 && waiting() == 0.0);
}
