//! The last lines of the log, for administrators who look at the page and not at a terminal. Whoever writes the log adds
//! them; what is no line for it (secrets above all) is none here either.

use std::collections::VecDeque;
use std::sync::Mutex;

use crate::clock::Millis;
use crate::locks::lock;

/// So many lines are kept, and of each so many bytes: 100 KB at most, and nothing before something was said.
const LINES_MAX: usize = 200;
const LINE_BYTES_MAX: usize = 500;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub at_ms: Millis,
    /// How grave it is.
    pub level: log::Level,
    /// What it says.
    pub text: String,
}

static TAIL: Mutex<VecDeque<LogLine>> = Mutex::new(VecDeque::new());

/// Keeps a line of the log; those that only developers want to see are not kept.
pub fn add(at_ms: Millis, level: log::Level, text: &str) {
    if level > log::Level::Info {
        return;
    }
    let cut =
        text.char_indices().map(|(at, _)| at).take_while(|at| *at <= LINE_BYTES_MAX).last().unwrap_or(0);
    let text = if text.len() <= LINE_BYTES_MAX { text.to_owned() } else { format!("{}…", &text[..cut]) };
    let mut tail = lock(&TAIL);
    if tail.len() >= LINES_MAX {
        tail.pop_front();
    }
    tail.push_back(LogLine { at_ms, level, text });
}

/// The last lines, the last first, up to so many.
pub fn last(most: usize) -> Vec<LogLine> {
    lock(&TAIL).iter().rev().take(most).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more_of_each_than_fits() {
        add(1, log::Level::Debug, "for developers");
        for n in 0..3 * LINES_MAX {
            add(2, log::Level::Warn, &format!("{n} {}", "ä".repeat(LINE_BYTES_MAX)));
        }
        let all = last(usize::MAX);
        assert_eq!(all.len(), LINES_MAX);
        assert!(all.iter().all(|line| line.text.len() <= LINE_BYTES_MAX + "…".len()));
        assert!(all[0].text.starts_with("599 ää") && all[0].text.ends_with("ä…"));
        assert!(last(1)[0] == all[0] && !all.iter().any(|line| line.text == "for developers"));
    }
}
