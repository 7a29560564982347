//! The walls of the house, read from its source: which layer may use what, and where SQL, output and the reading of JSON may
//! be.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::rust_files;

/// What the files under a folder may not mention (tests within them may).
struct Wall {
    folder: &'static str,
    forbidden: &'static [&'static str],
    why: &'static str,
}

const WALLS: &[Wall] = &[
    Wall {
        folder: "src/protocol",
        forbidden: &[
            "crate::store",
            "crate::service",
            "crate::http",
            "crate::federation",
            "crate::config",
            "crate::clock",
            "crate::testing",
            "crate::launch",
            "rusqlite",
            "ureq",
            "tiny_http",
            "rustls",
            "getrandom",
            "std::net::TcpStream",
            "std::net::TcpListener",
            "std::net::UdpSocket",
            "std::net::ToSocketAddrs",
            "std::fs",
            "std::io",
            "std::thread",
            "std::process",
            "std::env",
            "std::time",
            "std::sync::Mutex",
            "std::sync::RwLock",
        ],
        why: "the protocol is pure: no I/O, no clock, no randomness, no locks, no other layer",
    },
    Wall {
        folder: "src/store",
        forbidden: &[
            "crate::http",
            "crate::federation",
            "crate::service",
            "crate::testing",
            "ureq",
            "tiny_http",
        ],
        why: "the store knows data, not why it is written",
    },
    Wall {
        folder: "src/federation",
        forbidden: &[
            "crate::store",
            "crate::service",
            "crate::http",
            "crate::testing",
            "rusqlite",
            "tiny_http",
        ],
        why: "federation has no memory: it is given keys, names and time-outs",
    },
    Wall {
        folder: "src/service",
        forbidden: &[
            "crate::http",
            "crate::testing",
            "crate::launch",
            "rusqlite",
            "tiny_http",
            "httparse",
            "rustls",
        ],
        why: "services know nothing of HTTP types and of SQL",
    },
    Wall {
        folder: "src/http",
        forbidden: &["rusqlite", "ureq", "crate::federation", "crate::testing", "crate::launch"],
        why: "HTTP parses, calls the homeserver and answers",
    },
    Wall {
        folder: "src/http/transport",
        forbidden: &[
            "crate::http::auth",
            "crate::http::client_server",
            "crate::http::params",
            "crate::http::rate_limit",
            "crate::http::route",
            "crate::http::router",
            "crate::http::routes",
            "crate::http::server_server",
            "crate::service",
            "super::super",
        ],
        why: "the transport serves whatever it is given and knows no endpoint",
    },
    Wall {
        folder: "src/http/client_server",
        forbidden: &["crate::http::server_server", "super::super"],
        why: "what both APIs read of a request is in http/params.rs",
    },
    Wall {
        folder: "src/http/server_server",
        forbidden: &["crate::http::client_server", "super::super"],
        why: "what both APIs read of a request is in http/params.rs",
    },
    Wall {
        folder: "src/http/page",
        forbidden: &["crate::http::client_server", "crate::http::server_server", "super::super"],
        why: "the page asks the homeserver itself, and answers people",
    },
    Wall {
        folder: "src/protocol/json",
        forbidden: &[
            "crate::protocol::event_auth",
            "crate::protocol::ids",
            "crate::protocol::pdu",
            "crate::protocol::room_version",
            "crate::protocol::state_res",
            "super::super",
        ],
        why: "JSON knows no events",
    },
    Wall {
        folder: "src/protocol/event_auth",
        forbidden: &[
            "crate::protocol::handshake",
            "crate::protocol::remote_membership",
            "crate::protocol::state_res",
            "super::super",
        ],
        why: "the authorisation rules are given a state and do not ask how it came about",
    },
    Wall {
        folder: "src/protocol/state_res",
        forbidden: &["crate::protocol::handshake", "crate::protocol::remote_membership", "super::super"],
        why: "state resolution rests on events and the authorisation rules alone",
    },
    Wall {
        folder: "src/federation/calls",
        forbidden: &[
            "crate::federation::client::agent",
            "crate::federation::connections",
            "crate::federation::discovery",
        ],
        why: "calls go through the client, which knows how servers are reached",
    },
];

/// Files under `src` with their text; what they test themselves with is left out.
fn code_under(folder: &str) -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut paths);
    let tests: Vec<PathBuf> = paths.iter().flat_map(|path| test_files_of(path)).collect();
    paths.retain(|path| !tests.contains(path));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned();
        (path, code)
    };
    paths.into_iter().map(read).collect()
}

/// The files that this one declares as modules for its tests, `mod name;` below `#[cfg(test)]`, or all files of a folder of
/// that name.
fn test_files_of(path: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(path).unwrap();
    let folder = match path.file_name().and_then(|n| n.to_str()) {
        Some("mod.rs" | "lib.rs" | "main.rs") => path.parent().unwrap().to_owned(),
        _ => path.with_extension(""),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let below = (0..lines.len()).filter(|n| lines[*n] == "#[cfg(test)]").flat_map(|n| {
        // An attribute in between may name the file.
        let named = lines[n + 1].strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]"));
        if let Some(file) = named {
            return vec![path.parent().unwrap().join(file)];
        }
        let module = lines[n + 1].split("mod ").nth(1).and_then(|rest| rest.strip_suffix(';'));
        let Some(module) = module else { return Vec::new() };
        let mut files = vec![folder.join(format!("{module}.rs"))];
        if folder.join(module).is_dir() {
            rust_files(&folder.join(module), &mut files);
        }
        files
    });
    below.collect()
}

/// The lines of code: comments are left out.
fn lines(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = code.lines().enumerate().map(|(n, line)| (n + 1, line));
    code.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether `line` names this path or crate: as a whole word, and as a path, not as a mere local name.
fn mentions(line: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let of_a_list = name.rsplit_once("::").and_then(|(parent, part)| {
        let (_, list) = line.split_once(&format!("use {parent}::{{"))?;
        Some((part, list))
    });
    if let Some((part, list)) = of_a_list {
        return list.split(|c: char| !is_word(c)).any(|word| word == part);
    }
    line.match_indices(name).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + name.len()..]);
        let starts = !before.ends_with(|c| is_word(c) || c == ':' || c == '"');
        let used = before.trim_end().ends_with("use") || after.starts_with("::") || name.contains("::");
        starts && used && !after.starts_with(is_word)
    })
}

fn report(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Who may say that an event is verified without a signature being verified: whoever signs it, and whoever kept it; and
/// who may say what a remote membership is without a fact.
const EVIDENCE: &[(&str, &str)] = &[
    ("VerifiedPdu::seal(", "src/service/events/build.rs"),
    ("VerifiedPdu::from_store(", "src/store/"),
    ("VerifiedPdu::unchecked(", "nowhere"),
    // A row that was not stored is made by facts, or by what the room's last state says.
    ("RemoteMembership::from_store(", "src/store/"),
    ("SignedBy(", "src/protocol/signatures/verify.rs"),
];

#[test]
fn nobody_calls_an_event_verified_but_who_signed_it_or_kept_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (path, code) in code_under("src") {
        let place = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        for (call, allowed) in EVIDENCE {
            assert!(!code.contains(call) || place.starts_with(allowed), "{place} has {call}");
        }
    }
}

#[test]
fn no_layer_reaches_where_it_may_not() {
    let mut found = Vec::new();
    for wall in WALLS {
        for (path, code) in code_under(wall.folder) {
            for (number, line) in lines(&code) {
                for name in wall.forbidden.iter().filter(|name| mentions(line, name)) {
                    found.push(format!("{}:{number} uses {name}, but {}", path.display(), wall.why));
                }
            }
        }
    }
    report(&found);
}

/// The floors of `service/`, from below: a folder may name, or ask through its handle, none that stands above it.
const SERVICE_FLOORS: [&[&str]; 8] = [
    &["acme", "limits", "outgoing"],
    &["keys"],
    &["events"],
    &["membership", "accounts", "devices", "ephemeral", "push", "media"],
    &["rooms"],
    &["sync", "incoming", "appservices"],
    &["admin"],
    &["background"],
];

#[test]
fn no_service_asks_one_that_stands_above_it() {
    let mut found = Vec::new();
    let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/service");
    for folder in
        fs::read_dir(services).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir())
    {
        let name = folder.file_name().to_string_lossy().into_owned();
        if !SERVICE_FLOORS.concat().contains(&name.as_str()) {
            found.push(format!("src/service/{name} has no place among the floors"));
        }
    }
    for (floor, folders) in SERVICE_FLOORS.iter().enumerate() {
        let above: Vec<&str> = SERVICE_FLOORS[floor + 1..].concat();
        for folder in *folders {
            for (path, code) in code_under(&format!("src/service/{folder}")) {
                for (number, line) in lines(&code) {
                    let asks = |name: &&&str| {
                        let handle = if **name == "sync" { "syncing" } else { name };
                        mentions(line, &format!("crate::service::{name}"))
                            || ["self", "hs"].iter().any(|hs| line.contains(&format!("{hs}.{handle}()")))
                    };
                    if let Some(name) = above.iter().find(asks) {
                        found.push(format!("{}:{number} asks {name}, which is above", path.display()));
                    }
                }
            }
        }
    }
    report(&found);
}

#[test]
fn the_transport_names_no_endpoint() {
    for (path, code) in code_under("src/http/transport") {
        let named = lines(&code).find(|(_, line)| line.contains("/_matrix"));
        assert!(named.is_none(), "{}: {named:?}", path.display());
    }
}

#[test]
fn sql_is_written_in_the_store_only() {
    const SQL: [&str; 6] =
        ["SELECT ", "INSERT INTO ", "DELETE FROM ", "CREATE TABLE ", "ON CONFLICT ", "PRAGMA "];
    let mut found = Vec::new();
    for (path, code) in code_under("src") {
        if path.components().any(|c| c.as_os_str() == "store") {
            continue;
        }
        for (number, line) in lines(&code) {
            if SQL.iter().any(|keyword| line.contains(keyword)) || mentions(line, "rusqlite") {
                found.push(format!("{}:{number} looks like SQL: {}", path.display(), line.trim()));
            }
        }
    }
    report(&found);
}

/// Where JSON text may be read without being weighed, and why.
const UNWEIGHED: &[(&str, &str)] = &[
    ("src/protocol/json", "it is the place that weighs"),
    ("src/protocol/pdu.rs", "the text of one event, whose size was looked at"),
    ("src/protocol/unchecked_event.rs", "the same, of which no tree is made"),
    ("src/protocol/event_auth/power_content.rs", "the same"),
    ("src/store", "what is stored was weighed when it came, and has to be read again whatever it weighs"),
    ("src/commands/ask.rs", "what this very server answers its operator"),
    ("src/federation/client/scripted_peer.rs", "it is for tests"),
    ("src/testing", "it is for tests"),
];

#[test]
fn text_of_strangers_becomes_values_in_one_place() {
    // A tree takes up to a hundred times its text: see `protocol/json/parse.rs` for what to call instead.
    const PARSERS: [&str; 5] = [
        "serde_json::from_slice",
        "serde_json::from_str",
        "serde_json::from_reader",
        "serde_json::Deserializer",
        "serde_json::StreamDeserializer",
    ];
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for (path, code) in code_under("src") {
        if UNWEIGHED.iter().any(|(place, _)| path.starts_with(top.join(place))) {
            continue;
        }
        for (number, line) in lines(&code) {
            let is_import = line.contains("use serde_json::") && !line.contains("::value::");
            let imports = is_import
                && line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| {
                    ["from_slice", "from_str", "from_reader", "Deserializer", "StreamDeserializer"]
                        .contains(&word)
                });
            // The standard library's `FromStr` is another.
            let renamed = line.contains("serde_json as ");
            if PARSERS.iter().any(|parser| line.contains(parser)) || imports || renamed {
                found.push(format!("{}:{number} reads JSON unweighed: {}", path.display(), line.trim()));
            }
        }
    }
    report(&found);
    for (place, why) in UNWEIGHED {
        assert!(top.join(place).exists(), "{place} ({why}) is no more");
    }
}

/// How a lock is taken by hand; whoever waits with one by hand names the first, too.
const LOCKS_BY_HAND: [&str; 2] = ["PoisonError", ".lock()"];

#[test]
fn locks_are_taken_in_one_way() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for (path, code) in code_under("src").into_iter().filter(|(path, _)| *path != top.join("src/locks.rs")) {
        for (number, line) in lines(&code) {
            let by_hand = LOCKS_BY_HAND.iter().find(|call| line.contains(*call));
            if let Some(call) = by_hand.filter(|_| !line.contains("stdin().lock()")) {
                found.push(format!("{}:{number} has {call}: see src/locks.rs", path.display()));
            }
        }
    }
    report(&found);
    let locks = fs::read_to_string(top.join("src/locks.rs")).unwrap();
    assert!(LOCKS_BY_HAND.iter().all(|call| locks.contains(call)), "what the wall looks for is no more");
}

/// What grows with the number of failures, spelled by hand.
const GROWTH_BY_HAND: [&str; 5] = ["pow(", "<<", "_shl(", "_mul(2", "* 2"];

#[test]
fn pauses_grow_with_failures_in_one_way() {
    let by_hand = |line: &str| {
        ["attempts", "failures"].iter().any(|count| line.contains(count))
            && GROWTH_BY_HAND.iter().any(|growth| line.contains(growth))
    };
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for (path, code) in code_under("src").into_iter().filter(|(path, _)| *path != top.join("src/backoff.rs"))
    {
        for (number, _) in lines(&code).filter(|(_, line)| by_hand(line)) {
            found.push(format!("{}:{number} grows a pause by hand: see src/backoff.rs", path.display()));
        }
    }
    report(&found);
    assert!(by_hand("let pause = FIRST_MS << failures.min(10);"), "the wall knows what it looks for");
}

#[test]
fn who_is_not_in_a_room_is_told_so_in_one_way() {
    const SAID_ONCE: [&str; 3] = [
        "not_found(\"This server is not in the room\")",
        "forbidden(\"You are not in this room\")",
        "|room| room.resident)",
    ];
    let all = code_under("src");
    for words in SAID_ONCE {
        let said = all.iter().flat_map(|(path, code)| {
            let said = lines(code).filter(|(_, line)| line.contains(words));
            said.map(move |(number, _)| format!("{}:{number}", path.display()))
        });
        let places: Vec<_> = said.collect();
        assert_eq!(places.len(), 1, "{words}: {places:?}");
    }
    for (path, code) in &all {
        let other = lines(code)
            .find(|(_, line)| line.contains("not in that room") || line.contains("You are not in the room"));
        assert!(other.is_none(), "{}: {other:?}", path.display());
    }
}

/// Who may look up which servers a room lets take part, or read a list of them.
const ACL_READERS: &[(&str, &[&str])] = &[
    (".server_acl(", &["src/service/events/server_acl.rs"]),
    // An ACL of ours that would keep ourselves out is not sent.
    ("ServerAcl::from_content(", &["src/store/rooms/whole_copies.rs", "src/service/events/build.rs"]),
];

#[test]
fn one_place_says_which_servers_a_room_lets_take_part() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut readers = BTreeSet::new();
    for (path, code) in code_under("src") {
        let place = path.strip_prefix(top).unwrap().to_string_lossy().into_owned();
        for (call, allowed) in ACL_READERS {
            if lines(&code).any(|(_, line)| line.contains(call)) {
                assert!(
                    allowed.contains(&&*place),
                    "{place} has {call}: see src/service/events/server_acl.rs"
                );
                readers.insert(place.clone());
            }
        }
    }
    assert_eq!(readers.len(), 3, "what the wall looks for is no more: {readers:?}");
}

#[test]
fn only_the_command_line_prints() {
    let mut found = Vec::new();
    for (path, code) in code_under("src") {
        if path.ends_with("main.rs") || path.components().any(|c| c.as_os_str() == "commands") {
            continue;
        }
        for (number, line) in lines(&code) {
            if mentions_macro(line, "println!")
                || mentions_macro(line, "print!")
                || mentions_macro(line, "dbg!")
            {
                found.push(format!("{}:{number} prints", path.display()));
            }
        }
    }
    report(&found);
}

fn mentions_macro(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

#[test]
fn every_file_says_what_it_is_for_and_is_short_enough_to_read() {
    const LINES_MAX: usize = 600;
    let mut found = Vec::new();
    for (path, code) in code_under("src") {
        if !code.starts_with("//!") {
            found.push(format!("{} does not begin with what it is for", path.display()));
        }
        let length = code.lines().count();
        if length > LINES_MAX {
            found.push(format!(
                "{} has {length} lines: more than {LINES_MAX} is more than one thing",
                path.display()
            ));
        }
    }
    report(&found);
}

#[test]
fn the_test_itself_knows_a_use_from_a_mention() {
    assert!(mentions("use crate::store::Db;", "crate::store"));
    assert!(mentions("    let x = rusqlite::Connection::open();", "rusqlite"));
    assert!(mentions("use {ureq::Agent, std::io};", "ureq"));
    assert!(mentions("use crate::{error::Error, store};", "crate::store"));
    assert!(!mentions("use crate::{error::Error, storehouse};", "crate::store"));
    assert!(mentions("use crate::http::{auth::Origin, Reply};", "crate::http::auth"));
    assert!(!mentions("use crate::http::{Origin, Reply};", "crate::http::auth"));
    assert!(!mentions("use crate::storehouse;", "crate::store"));
    assert!(!mentions("let ureq = 1;", "ureq"));
    assert!(!mentions("let x = \"rusqlite::x\";", "rusqlite"));
}
