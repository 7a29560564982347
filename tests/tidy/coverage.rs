//! The specification's operations against the table of endpoints: each is served, or is missing for a reason that is
//! written down.

use std::collections::BTreeSet;

use doorstep::internals::ROUTES;

const OPERATIONS: &str = include_str!("coverage/operations.txt");
const MISSING: &str = include_str!("coverage/missing.txt");

/// Method and path with the parameters' names taken out, since each side names them as it likes.
fn endpoint(method: &str, path: &str) -> String {
    let mut out = format!("{method} ");
    let mut in_name = false;
    for c in path.trim_end_matches('/').chars() {
        match c {
            '{' => (in_name, ()) = (true, out.push_str("{}")),
            '}' => in_name = false,
            c if !in_name => out.push(c),
            _ => {}
        }
    }
    out
}

fn listed(list: &str) -> impl Iterator<Item = String> {
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| {
        let mut words = line.split(' ');
        endpoint(words.next().unwrap(), words.next().unwrap_or_else(|| panic!("no path in {line:?}")))
    })
}

#[test]
fn every_operation_of_the_specification_is_served_or_missing_for_a_reason() {
    let served: BTreeSet<String> = ROUTES.iter().map(|r| endpoint(r.method.as_str(), r.path)).collect();
    let missing: BTreeSet<String> = listed(MISSING).collect();
    assert_eq!(listed(OPERATIONS).count(), 204);
    let operations: BTreeSet<String> = listed(OPERATIONS).collect();
    let neither: Vec<_> =
        operations.iter().filter(|o| !served.contains(*o) && !missing.contains(*o)).collect();
    assert!(neither.is_empty(), "neither in ROUTES nor in tests/tidy/coverage/missing.txt: {neither:#?}");
    let both: Vec<_> = missing.intersection(&served).collect();
    assert!(both.is_empty(), "served, and still in tests/tidy/coverage/missing.txt: {both:#?}");
    let unknown: Vec<_> = missing.difference(&operations).collect();
    assert!(unknown.is_empty(), "in tests/tidy/coverage/missing.txt and no operation at all: {unknown:#?}");
}

#[test]
fn every_missing_operation_stands_under_a_reason() {
    let mut reason = "";
    for line in MISSING.lines() {
        match line.strip_prefix('#') {
            Some(text) => reason = text.trim(),
            None if line.is_empty() => reason = "",
            None => assert!(!reason.is_empty(), "{line} has no reason above it"),
        }
    }
}
