//! The order of the specification as a table, in a world of our own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;

use super::*;
use crate::locks::lock;

/// What the world has, and what was asked of it.
#[derive(Default)]
struct World {
    well_known: HashMap<String, WellKnown>,
    srv: HashMap<String, Vec<Srv>>,
    addresses: HashMap<String, Vec<IpAddr>>,
    asked: Vec<String>,
}

#[derive(Clone, Default)]
struct FakeLookups(Arc<Mutex<World>>);

impl FakeLookups {
    fn change(&self, f: impl FnOnce(&mut World)) {
        f(&mut self.0.lock().expect("no panic elsewhere"));
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("no panic elsewhere").asked)
    }
}

impl Lookups for FakeLookups {
    fn well_known(&self, host: &str, _: Duration) -> WellKnown {
        let mut world = self.0.lock().expect("no panic elsewhere");
        world.asked.push(format!("well-known {host}"));
        world.well_known.get(host).cloned().unwrap_or(WellKnown::Nothing)
    }

    fn srv(&self, name: &str, _: Duration) -> io::Result<Vec<Srv>> {
        let mut world = self.0.lock().expect("no panic elsewhere");
        world.asked.push(format!("srv {name}"));
        if name.ends_with("silent.example") {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(world.srv.get(name).cloned().unwrap_or_default())
    }

    fn addresses(&self, host: &str, _: Duration) -> io::Result<Vec<IpAddr>> {
        let mut world = self.0.lock().expect("no panic elsewhere");
        world.asked.push(format!("address {host}"));
        world.addresses.get(host).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn delegates(to: &str, max_age: Option<u64>) -> WellKnown {
    WellKnown::Delegates { to: to.into(), max_age: max_age.map(Duration::from_secs) }
}

fn record(target: &str, port: u16) -> Srv {
    Srv { priority: 10, weight: 0, port, target: target.into(), ttl: 300 }
}

/// Delegations to everything that the specification tells apart, and the addresses of all hosts.
fn world() -> FakeLookups {
    let lookups = FakeLookups::default();
    lookups.change(|world| {
        for (host, to) in [
            ("to-ip.example", "1.2.3.4"),
            ("to-ip-port.example", "1.2.3.4:99"),
            ("to-ip6.example", "[2606:4700::1]:99"),
            ("to-port.example", "matrix.example:4434"),
            ("to-fed-srv.example", "fed-srv.example"),
            ("to-old-srv.example", "old-srv.example"),
            ("to-plain.example", "plain.example"),
            ("to-nonsense.example", "https://plain.example/"),
            ("chain.example", "to-port.example"),
        ] {
            world.well_known.insert(host.into(), delegates(to, None));
        }
        world.srv.insert("_matrix-fed._tcp.fed-srv.example".into(), vec![record("target.example", 4443)]);
        world.srv.insert("_matrix._tcp.fed-srv.example".into(), vec![record("wrong.example", 1)]);
        world.srv.insert("_matrix._tcp.old-srv.example".into(), vec![record("target.example", 4444)]);
        world.srv.insert("_matrix-fed._tcp.not-there.example".into(), vec![record("", 0)]);
        for (at, host) in [
            "matrix.example",
            "target.example",
            "plain.example",
            "fed-srv.example",
            "old-srv.example",
            "silent.example",
            "to-nonsense.example",
            "to-port.example",
            "port.example",
        ]
        .iter()
        .enumerate()
        {
            let at = u8::try_from(at).expect("few");
            world.addresses.insert((*host).into(), vec![IpAddr::from([9, 9, 9, at])]);
        }
        world
            .addresses
            .insert("inside.example".into(), vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([10, 0, 0, 1])]);
        world.addresses.insert(
            "half-inside.example".into(),
            vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([9, 9, 9, 9])],
        );
    });
    lookups
}

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

fn discovery(lookups: &FakeLookups) -> Discovery {
    Discovery::new(Box::new(lookups.clone()), AddressGuard { allow_private: false }, Clock::new())
}

/// `authority -> address`, or why not.
fn find(discovery: &Discovery, server: &str) -> String {
    let found = discovery
        .authority(&ServerName::parse(server).expect("a server name"), LOOKUP_TIMEOUT)
        .and_then(|authority| {
            let addresses = discovery.socket_addresses(&authority, LOOKUP_TIMEOUT)?;
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            Ok(format!("{authority} -> {}", addresses.join(" ")))
        });
    found.unwrap_or_else(|no| format!("no: {}", no.0))
}

#[test]
fn servers_are_found_in_the_order_of_the_specification() {
    let lookups = world();
    for (step, server, expected, asked) in [
        ("1", "1.2.3.4", "1.2.3.4 -> 1.2.3.4:8448", ""),
        ("1", "1.2.3.4:5", "1.2.3.4:5 -> 1.2.3.4:5", ""),
        ("1", "[2606:4700::1]", "[2606:4700::1] -> [2606:4700::1]:8448", ""),
        ("1", "[2606:4700::1]:7", "[2606:4700::1]:7 -> [2606:4700::1]:7", ""),
        ("2", "port.example:80", "port.example:80 -> 9.9.9.8:80", "address port.example"),
        ("3.1", "to-ip.example", "1.2.3.4 -> 1.2.3.4:8448", "well-known to-ip.example"),
        ("3.1", "to-ip-port.example", "1.2.3.4:99 -> 1.2.3.4:99", "well-known to-ip-port.example"),
        ("3.1", "to-ip6.example", "[2606:4700::1]:99 -> [2606:4700::1]:99", "well-known to-ip6.example"),
        (
            "3.2",
            "to-port.example",
            "matrix.example:4434 -> 9.9.9.0:4434",
            "well-known to-port.example, address matrix.example",
        ),
        (
            "3.3",
            "to-fed-srv.example",
            "fed-srv.example -> 9.9.9.1:4443",
            "well-known to-fed-srv.example, srv _matrix-fed._tcp.fed-srv.example, address target.example",
        ),
        (
            "3.4",
            "to-old-srv.example",
            "old-srv.example -> 9.9.9.1:4444",
            "well-known to-old-srv.example, srv _matrix-fed._tcp.old-srv.example, srv _matrix._tcp.old-srv.example, \
             address target.example",
        ),
        (
            "3.5",
            "to-plain.example",
            "plain.example -> 9.9.9.2:8448",
            "well-known to-plain.example, srv _matrix-fed._tcp.plain.example, srv _matrix._tcp.plain.example, \
             address plain.example",
        ),
        (
            "3, a delegation is not followed twice",
            "chain.example",
            "to-port.example -> 9.9.9.7:8448",
            "well-known chain.example, srv _matrix-fed._tcp.to-port.example, srv _matrix._tcp.to-port.example, \
             address to-port.example",
        ),
        (
            "4",
            "fed-srv.example",
            "fed-srv.example -> 9.9.9.1:4443",
            "well-known fed-srv.example, srv _matrix-fed._tcp.fed-srv.example, address target.example",
        ),
        (
            "4, the well-known is invalid",
            "to-nonsense.example",
            "to-nonsense.example -> 9.9.9.6:8448",
            "well-known to-nonsense.example, srv _matrix-fed._tcp.to-nonsense.example, \
             srv _matrix._tcp.to-nonsense.example, address to-nonsense.example",
        ),
        (
            "5",
            "old-srv.example",
            "old-srv.example -> 9.9.9.1:4444",
            "well-known old-srv.example, srv _matrix-fed._tcp.old-srv.example, srv _matrix._tcp.old-srv.example, \
             address target.example",
        ),
        (
            "6",
            "plain.example",
            "plain.example -> 9.9.9.2:8448",
            "well-known plain.example, srv _matrix-fed._tcp.plain.example, srv _matrix._tcp.plain.example, \
             address plain.example",
        ),
        (
            "6, no name server answers",
            "silent.example",
            "silent.example -> 9.9.9.5:8448",
            "well-known silent.example, srv _matrix-fed._tcp.silent.example, srv _matrix._tcp.silent.example, \
             address silent.example",
        ),
    ] {
        // Each with a memory of its own, so that all questions are seen.
        assert_eq!(find(&discovery(&lookups), server), expected, "step {step}");
        assert_eq!(lookups.asked().join(", "), asked, "step {step}");
    }
}

#[test]
fn a_server_that_says_that_it_is_not_there_is_believed() {
    assert!(find(&discovery(&world()), "not-there.example").contains("does not federate"));
}

#[test]
fn names_that_lead_inside_lead_nowhere() {
    let lookups = world();
    lookups.change(|w| {
        w.well_known.insert("sly.example".into(), delegates("10.0.0.1:22", None));
        w.srv.insert("_matrix-fed._tcp.sly-srv.example".into(), vec![record("inside.example", 25)]);
    });
    let discovery = discovery(&lookups);
    for server in [
        "127.0.0.1:8008",
        "[::1]:1",
        "inside.example:8448",
        "inside.example",
        "sly.example",
        "sly-srv.example",
    ] {
        assert!(
            find(&discovery, server).contains("may connect to"),
            "{server}: {}",
            find(&discovery, server)
        );
    }
    // The addresses that are outside stay usable.
    assert_eq!(find(&discovery, "half-inside.example:1"), "half-inside.example:1 -> 9.9.9.9:1");
}

#[test]
fn what_was_learned_is_remembered_and_forgotten_again() {
    let lookups = world();
    let clock = Clock::new();
    let discovery =
        Discovery::new(Box::new(lookups.clone()), AddressGuard { allow_private: false }, clock.clone());
    find(&discovery, "to-plain.example");
    lookups.asked();
    find(&discovery, "To-Plain.example");
    assert_eq!(lookups.asked(), [] as [&str; 0]);

    // Addresses a minute, missing SRV records ten, the well-known a day.
    clock.advance(Duration::from_secs(61));
    find(&discovery, "to-plain.example");
    assert_eq!(lookups.asked(), ["address plain.example"]);
    clock.advance(Duration::from_secs(601));
    find(&discovery, "to-plain.example");
    assert_eq!(lookups.asked().len(), 3);
    clock.advance(Duration::from_secs(24 * 3600));
    find(&discovery, "to-plain.example");
    assert_eq!(lookups.asked()[0], "well-known to-plain.example");

    // A failed connection is a reason to look again.
    let server = ServerName::parse("to-plain.example").expect("a name");
    discovery.failed(&server, "plain.example");
    find(&discovery, "to-plain.example");
    assert_eq!(lookups.asked().len(), 3);
    // And soon to ask whether the delegation still holds.
    clock.advance(Duration::from_secs(301));
    find(&discovery, "to-plain.example");
    assert_eq!(lookups.asked()[0], "well-known to-plain.example");
}

#[test]
fn a_well_known_is_kept_as_long_as_it_says_within_limits() {
    for (max_age, kept) in
        [(Some(0), 300), (Some(3600), 3600), (Some(u64::MAX), 48 * 3600), (None, 24 * 3600)]
    {
        let (lookups, clock) = (world(), Clock::new());
        lookups.change(|w| {
            w.well_known.insert("aged.example".into(), delegates("plain.example:1", max_age));
        });
        let discovery =
            Discovery::new(Box::new(lookups.clone()), AddressGuard { allow_private: false }, clock.clone());
        let name = ServerName::parse("aged.example").expect("a name");
        let ask = || {
            discovery.authority(&name, LOOKUP_TIMEOUT).expect("an authority");
            lookups.asked().len()
        };
        assert_eq!(ask(), 1);
        clock.advance(Duration::from_secs(kept - 5));
        assert_eq!(ask(), 0, "{max_age:?}");
        clock.advance(Duration::from_secs(10));
        assert_eq!(ask(), 1, "{max_age:?}");
    }
}

#[test]
fn a_failing_well_known_is_asked_ever_more_seldom_but_at_least_hourly() {
    let (lookups, clock) = (world(), Clock::new());
    let discovery =
        Discovery::new(Box::new(lookups.clone()), AddressGuard { allow_private: false }, clock.clone());
    let name = ServerName::parse("none.example").expect("a name");
    let mut asked = 0;
    for _ in 0..10 * 60 {
        discovery.authority(&name, LOOKUP_TIMEOUT).expect("an authority");
        asked += lookups.asked().len();
        clock.advance(Duration::from_secs(60));
    }
    // 1, 2, 4 … 32 minutes, then every hour for the rest of ten hours.
    assert!((12..=16).contains(&asked), "asked {asked} times");
}

#[test]
fn a_good_delegation_outlives_a_passing_failure() {
    let (lookups, clock) = (world(), Clock::new());
    let discovery =
        Discovery::new(Box::new(lookups.clone()), AddressGuard { allow_private: false }, clock.clone());
    let name = ServerName::parse("to-port.example").expect("a name");
    let now = |at: &str| {
        assert_eq!(discovery.authority(&name, LOOKUP_TIMEOUT).expect("an authority"), at);
    };
    now("matrix.example:4434");
    lookups.change(|w| {
        w.well_known.insert("to-port.example".into(), WellKnown::Failed);
    });
    clock.advance(Duration::from_secs(30 * 3600));
    now("matrix.example:4434");
    // Not for ever.
    clock.advance(Duration::from_secs(20 * 3600));
    now("to-port.example");
    // And a definite answer counts at once.
    lookups.change(|w| {
        w.well_known.insert("to-port.example".into(), delegates("matrix.example:4434", None));
    });
    clock.advance(Duration::from_secs(3601));
    now("matrix.example:4434");
    lookups.change(|w| {
        w.well_known.insert("to-port.example".into(), WellKnown::Nothing);
    });
    clock.advance(Duration::from_secs(24 * 3600 + 5));
    now("to-port.example");
}

#[test]
fn memory_is_bounded() {
    let memory = KnownNames::default();
    for n in 0..3 * NAMES_MAX {
        memory.put(&n.to_string(), n, Steady::at(10), Steady::at(5));
    }
    assert!(lock(&memory.0).len() <= NAMES_MAX);
    assert!(memory.get(&(3 * NAMES_MAX - 1).to_string()).is_some());
}

#[test]
fn host_and_port_are_told_apart() {
    let parts = |text| HostPort::parse(text).map(|p| (p.host, p.port));
    assert_eq!(parts("a.example"), Some(("a.example", None)));
    assert_eq!(parts("a.example:80"), Some(("a.example", Some(80))));
    assert_eq!(parts("1.2.3.4:80"), Some(("1.2.3.4", Some(80))));
    assert_eq!(parts("[::1]"), Some(("[::1]", None)));
    assert_eq!(parts("[::1]:80"), Some(("[::1]", Some(80))));
    for wrong in [
        "",
        ":80",
        "a:",
        "a:0",
        "a:65536",
        "a:8x",
        "a:+8",
        "a b",
        "a/b",
        "a@b",
        "[::1",
        "[::1]80",
        "[::1]:",
        "[x]",
        "::1",
        ".example",
        "https://a",
        "a?b",
    ] {
        assert_eq!(parts(wrong), None, "{wrong}");
    }
}

#[test]
fn cache_headers_are_understood() {
    let now = 784_111_777_000 - 60_000;
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let age = |cc, expires| max_age(cc, expires, now).map(|d| d.as_secs());
    assert_eq!(http_date(date), Some(784_111_777_000));
    assert_eq!(http_date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800_000));
    assert_eq!(age(None, None), None);
    assert_eq!(age(Some("public, max-age=60"), Some(date)), Some(60));
    assert_eq!(age(Some("Max-Age=\"5\""), None), Some(5));
    assert_eq!(age(Some("no-store"), Some(date)), Some(0));
    assert_eq!(age(Some("public"), Some(date)), Some(60));
    assert_eq!(age(None, Some("0")), Some(0));
    assert_eq!(age(Some("max-age=soon"), None), None);
}

#[test]
fn what_failed_since_one_asker_had_no_time_is_looked_up_again_for_the_next() {
    let lookups = world();
    lookups.change(|world| {
        world.well_known.insert("plain.example".into(), WellKnown::Failed);
        world.addresses.remove("plain.example");
    });
    let discovery = discovery(&lookups);
    let server = ServerName::parse("plain.example").unwrap();
    let asked = |within| {
        let _ = discovery.authority(&server, within);
        let _ = discovery.socket_addresses("plain.example:1", within);
        lookups.asked().len()
    };
    let hardly_any = Duration::from_millis(1);
    assert_eq!((asked(hardly_any), asked(hardly_any)), (2, 2));
    assert_eq!((asked(LOOKUP_TIMEOUT), asked(hardly_any)), (2, 0));
}
