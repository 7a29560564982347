//! The fuzz targets without a fuzzer: every committed input, and some thousands of mutations of them that are the same
//! in every run. `DOORSTEP_FUZZ_ROUNDS` says how many mutations of each target, `DOORSTEP_FUZZ_SEED` where they begin.
//! How to look for new inputs with coverage: `tests/fuzz/src/lib.rs`.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use crate::common::random::{Random, number};

/// The committed inputs of a target by their file names, in order.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut inputs: Vec<_> = files
        .map(|file| {
            let path = file.expect("a file").path();
            (
                path.file_name().expect("a name").to_string_lossy().into_owned(),
                fs::read(&path).expect("an input"),
            )
        })
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{target} has no inputs");
    inputs
}

/// Bytes that mean something to one target or another.
const TOKENS: &[u8] = b"\0\"{}[]:,\r\n\\0-";

/// A few small changes: a bit, a byte, bytes repeated, left out, or taken from another input.
fn mutate(random: &mut Random, seeds: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].1.clone();
    for _ in 0..=random.below(4) {
        let at = random.below(data.len() + 1);
        let length = random.below(24).min(data.len() - at);
        match random.below(7) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 if at < data.len() => data[at] = random.next_u64() as u8,
            2 => data.insert(at, TOKENS[random.below(TOKENS.len())]),
            3 => drop(data.drain(at..at + length)),
            4 => {
                let part = data[at..at + length].to_vec();
                let to = random.below(data.len() + 1);
                data.splice(to..to, part);
            }
            5 => {
                let other = &seeds[random.below(seeds.len())].1;
                let from = random.below(other.len() + 1);
                let part = other[from..(from + random.below(60)).min(other.len())].to_vec();
                data.splice(at..at, part);
            }
            _ => data.truncate(at.max(1)),
        }
    }
    data
}

fn replay(name: &str, rounds: u64) {
    let (_, target) = *targets::TARGETS.iter().find(|(n, _)| *n == name).expect("a target");
    let run = |what: &str, data: &[u8]| {
        assert!(catch_unwind(|| target(data)).is_ok(), "{name}: {what}: {}", data.escape_ascii());
    };
    let seeds = inputs(name);
    for (file, data) in &seeds {
        run(file, data);
    }
    let first = number("DOORSTEP_FUZZ_SEED", 1);
    for seed in first..first + number("DOORSTEP_FUZZ_ROUNDS", rounds) {
        run(&format!("mutation {seed}"), &mutate(&mut Random::new(seed), &seeds));
    }
}

#[test]
fn any_bytes_on_a_connection_are_answered_or_refused() {
    replay("http_connection", 1500);
}

#[test]
fn any_event_is_refused_or_stays_what_it_is() {
    replay("pdu", 4000);
}

#[test]
fn any_events_are_judged_alike_however_they_are_asked_about() {
    replay("event_auth", 400);
}

#[test]
fn any_branches_resolve_to_one_state() {
    replay("state_resolution", 600);
}

#[test]
fn any_authorization_header_is_refused_or_read_as_it_was_written() {
    replay("x_matrix", 1500);
}

#[test]
fn any_json_has_one_canonical_form() {
    replay("canonical_json", 8000);
}

#[test]
fn any_identifier_is_refused_or_stays_what_it_is() {
    replay("names", 8000);
}

#[test]
fn any_request_is_answered_in_json_and_the_homeserver_goes_on() {
    replay("router", 100);
}

#[test]
fn whatever_other_servers_answer_our_users_get_answers_and_the_homeserver_goes_on() {
    replay("peer_answers", 100);
}

#[test]
fn any_file_is_refused_or_becomes_a_thumbnail_no_larger_than_it_is() {
    replay("pictures", 1500);
}

#[test]
fn any_page_has_a_small_preview_and_any_address_stays_what_it_is() {
    replay("pages", 4000);
}
