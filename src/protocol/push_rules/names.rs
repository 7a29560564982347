//! The names of many users, looked for in the text of a message all at once: how long that takes depends on the text and
//! hardly on the number of users.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::protocol::glob::{Glob, Steps, is_word_char};

/// A name that is longer is not looked for: a profile has none such, and messages do not speak to anybody by it.
const NAME_CHARS_MAX: usize = 256;

/// By which of their names a text speaks of somebody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NamedBy {
    /// By the display name.
    pub display_name: bool,
    /// By the local part of the id.
    pub localpart: bool,
}

/// A name, folded, with the place of its user, and whether it is the local part of the id.
type Name = (Box<[char]>, usize, bool);

/// Names, in order.
#[derive(Debug, Default)]
pub struct Names {
    names: Vec<Name>,
    /// Where those begin and end that have the same first character.
    by_first: HashMap<char, Range<usize>>,
}

impl Names {
    /// Of users in the order of their places: the local parts of their ids, and their display names.
    pub fn new<'n>(users: impl Iterator<Item = (&'n str, Option<&'n str>)>) -> Self {
        let mut names: Vec<Name> = Vec::new();
        for (place, (localpart, display_name)) in users.enumerate() {
            for (name, is_localpart) in [(Some(localpart), true), (display_name, false)] {
                let folded = name.map(Glob::fold).unwrap_or_default();
                if !folded.is_empty() && folded.len() <= NAME_CHARS_MAX {
                    names.push((folded.into(), place, is_localpart));
                }
            }
        }
        crate::order::sort(&mut names);
        let mut by_first: HashMap<char, Range<usize>> = HashMap::new();
        for (at, (name, ..)) in names.iter().enumerate() {
            let first = name.first().copied().unwrap_or_default();
            by_first.entry(first).or_insert(at..at).end = at + 1;
        }
        Self { names, by_first }
    }

    /// Whom a folded text names, by their places: where the name stands between two word boundaries. Where the steps are used
    /// up, nobody more is found.
    pub(super) fn found_in(&self, text: &[char], steps: &Steps) -> BTreeMap<usize, NamedBy> {
        let boundary = |at: usize| {
            at == 0 || at == text.len() || !(is_word_char(text[at - 1]) && is_word_char(text[at]))
        };
        let mut found: BTreeMap<usize, NamedBy> = BTreeMap::new();
        if !steps.take(text.len()) {
            return found;
        }
        for (start, first) in text.iter().enumerate() {
            if !boundary(start) {
                continue;
            }
            let Some(mut range) = self.by_first.get(first).cloned() else { continue };
            let mut length = 1;
            // What is left in the range begins with so many characters of the text from here on.
            while !range.is_empty() {
                let ending = range.start;
                let is_whole = |name: &Name| name.0.len() == length;
                while range.start < range.end && is_whole(&self.names[range.start]) {
                    range.start += 1;
                }
                if !steps.take(1 + range.start - ending) {
                    return found;
                }
                if boundary(start + length) {
                    for (_, place, is_localpart) in &self.names[ending..range.start] {
                        let by = found.entry(*place).or_default();
                        *(if *is_localpart { &mut by.localpart } else { &mut by.display_name }) = true;
                    }
                }
                let Some(next) = text.get(start + length) else { break };
                let longer = &self.names[range.clone()];
                let from = longer.partition_point(|(name, ..)| name[length] < *next);
                let to = longer.partition_point(|(name, ..)| name[length] <= *next);
                range = range.start + from..range.start + to;
                length += 1;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whom a text names, with `d` for the display name and `l` for the local part.
    fn found(users: &[(&str, Option<&str>)], text: &str) -> Vec<(usize, &'static str)> {
        let found = Names::new(users.iter().copied()).found_in(&Glob::fold(text), &Steps::new(1_000_000));
        let how = |by: NamedBy| match (by.display_name, by.localpart) {
            (true, true) => "dl",
            (true, false) => "d",
            _ => "l",
        };
        found.into_iter().map(|(place, by)| (place, how(by))).collect()
    }

    #[test]
    fn names_are_found_between_word_boundaries_whatever_their_case() {
        let users =
            [("alice", Some("Alice")), ("al", Some("Alice B.")), ("x.y", Some("日本")), ("bob", None)];
        for (text, expected) in [
            ("hi ALICE!", vec![(0, "dl")]),
            ("alice", vec![(0, "dl")]),
            ("alice b. and bob", vec![(0, "dl"), (1, "d"), (3, "l")]),
            ("alice b", vec![(0, "dl")]),
            ("malice alicex my_alice alice_", vec![]),
            ("al", vec![(1, "l")]),
            ("x.y.", vec![(2, "l")]),
            ("in日本x", vec![(2, "d")]),
            ("bobbob bob", vec![(3, "l")]),
            ("", vec![]),
        ] {
            assert_eq!(found(&users, text), expected, "{text}");
        }
        // Whatever somebody calls themselves is looked for as it is written.
        let odd = [("1", Some(" ")), ("2", Some("(.*)+$")), ("3", Some("\u{200f}dov")), ("4", Some("?"))];
        for (text, expected) in [
            ("one two", vec![(0, "d")]),
            ("oneword", vec![]),
            ("x(.*)+$", vec![(1, "d")]),
            ("x", vec![]),
            ("dov", vec![]),
            ("hi\u{200f}dov!", vec![(2, "d")]),
            ("what?", vec![(3, "d")]),
        ] {
            assert_eq!(found(&odd, text), expected, "{text}");
        }
        assert_eq!(found(&[("", Some("")), ("a", Some(&"x".repeat(257)))], &"x".repeat(257)), []);
    }

    #[test]
    fn a_name_is_found_here_where_its_pattern_matches_and_nowhere_else() {
        let parts = ["a", "ab", "b", " ", "-", "日", "_", "A", "1"];
        let mut seed = 7_usize;
        let mut text = |length: usize| {
            (0..length)
                .map(|_| {
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    parts[(seed >> 33) % parts.len()]
                })
                .collect::<String>()
        };
        for round in 0..300 {
            let names: Vec<String> = (0..8).map(|n| text(1 + (n + round) % 4)).collect();
            let said = text(12);
            let index = Names::new(names.iter().map(|name| (name.as_str(), None)));
            let found = index.found_in(&Glob::fold(&said), &Steps::new(1_000_000));
            for (place, name) in names.iter().enumerate() {
                let matches = Glob::literal(name).matches_words(&Glob::fold(&said), &Steps::new(1_000_000));
                assert_eq!(found.contains_key(&place), matches, "{name:?} in {said:?}");
            }
        }
    }

    #[test]
    fn looking_for_names_ends_where_the_steps_do() {
        let long = "日".repeat(NAME_CHARS_MAX);
        let index = Names::new([(long.as_str(), None), ("b", None)].into_iter());
        let steps = Steps::new(100_000);
        let text = Glob::fold(&format!("{} b", "日".repeat(20_000)));
        assert_eq!(index.found_in(&text, &steps).len(), 1);
        assert!(steps.are_used_up());
    }
}
