//! Who may have how many transactions taken in at the same time. A server that sends faster than we take in waits, and
//! then hears that it should come again: it is slowed, and nobody else is.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::locks::{lock, wait_timeout};
use crate::protocol::ServerName;

/// Transactions of one server that are worked on at once. ("The sending server must wait and retry for a 200 OK response
/// before sending a transaction with a different txnId": some send from several processes.)
const AT_ONCE: usize = 8;
/// Those that wait behind them.
const MOST_WAITING: usize = 24;
/// For how long they wait.
const WAIT: Duration = Duration::from_secs(10);

/// The transactions that are being taken in, by origin.
#[derive(Default)]
pub struct Intake {
    lines: Mutex<HashMap<ServerName, Line>>,
    moved: Condvar,
}

#[derive(Default)]
struct Line {
    under_way: Vec<String>,
    waiting: usize,
}

impl Intake {
    /// Waits for the origin's turn. A transaction that is under way already is waited for, so that its repeat finds the
    /// answer. None if that takes too long, or too many wait.
    pub(in crate::service) fn enter(&self, origin: &ServerName, txn_id: &str) -> Option<Turn<'_>> {
        let until = Instant::now() + WAIT;
        let mut lines = lock(&self.lines);
        let mut waits = false;
        loop {
            let line = lines.entry(origin.clone()).or_default();
            let repeated = line.under_way.iter().any(|other| other == txn_id);
            if !repeated && line.under_way.len() < AT_ONCE {
                line.under_way.push(txn_id.to_owned());
                line.waiting -= usize::from(waits);
                return Some(Turn { intake: self, origin: origin.clone(), txn_id: txn_id.to_owned() });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || (!waits && line.waiting >= MOST_WAITING) {
                line.waiting -= usize::from(waits);
                return None;
            }
            line.waiting += usize::from(!waits);
            waits = true;
            lines = wait_timeout(&self.moved, lines, left);
        }
    }
}

/// A transaction that is being taken in.
pub(in crate::service) struct Turn<'i> {
    intake: &'i Intake,
    origin: ServerName,
    txn_id: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut lines = lock(&self.intake.lines);
        if let Some(line) = lines.get_mut(&self.origin) {
            line.under_way.retain(|txn_id| *txn_id != self.txn_id);
            if line.under_way.is_empty() && line.waiting == 0 {
                lines.remove(&self.origin);
            }
        }
        drop(lines);
        self.intake.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str) -> ServerName {
        ServerName::parse(name).expect("a name")
    }

    #[test]
    fn one_server_has_some_transactions_at_once_and_others_are_not_kept_waiting_by_it() {
        let intake = Intake::default();
        let (busy, polite) = (server("busy.example"), server("polite.example"));
        let mut turns: Vec<_> =
            (0..AT_ONCE).map(|n| intake.enter(&busy, &n.to_string()).expect("a turn")).collect();
        assert!(intake.enter(&polite, "1").is_some());
        std::thread::scope(|scope| {
            let next = scope.spawn(|| intake.enter(&busy, "next").is_some());
            turns.pop();
            assert!(next.join().expect("no panic"), "it waited for one to end");
        });
        drop(turns);
        assert!(lock(&intake.lines).is_empty());
    }

    #[test]
    fn a_repeat_waits_for_the_first_to_end() {
        let intake = Intake::default();
        let origin = server("peer.example");
        let first = intake.enter(&origin, "same").expect("a turn");
        std::thread::scope(|scope| {
            let repeat = scope.spawn(|| intake.enter(&origin, "same").is_some());
            while lock(&intake.lines).get(&origin).is_none_or(|line| line.waiting == 0) {
                std::thread::yield_now();
            }
            drop(first);
            assert!(repeat.join().expect("no panic"));
        });
    }
}
