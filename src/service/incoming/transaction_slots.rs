//! How many transactions of one server are received at the same time. A server that sends faster than we receive
//! waits, and then hears that it should come again: it is slowed, and nobody else is.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::locks::{lock, wait_timeout};
use crate::protocol::ServerName;

/// Transactions of one server that are worked on at once. ("The sending server must wait and retry for a 200 OK
/// response before sending a transaction with a different txnId": some send from several processes.)
const TRANSACTIONS_PER_ORIGIN_MAX: usize = 8;
/// Those that wait behind them.
const WAITING_PER_ORIGIN_MAX: usize = 24;
/// For how long they wait.
const SLOT_TIMEOUT: Duration = Duration::from_secs(10);

/// The transactions that are being received, by origin.
#[derive(Default)]
pub struct TransactionSlots {
    origins: Mutex<HashMap<ServerName, OriginTransactions>>,
    moved: Condvar,
}

#[derive(Default)]
struct OriginTransactions {
    under_way: Vec<String>,
    waiting: usize,
}

impl TransactionSlots {
    /// Waits for the origin's turn. A transaction that is under way already is waited for, so that its repeat finds the
    /// answer. None if that takes too long, or too many wait.
    pub(in crate::service) fn enter(&self, origin: &ServerName, txn_id: &str) -> Option<TransactionSlot<'_>> {
        let until = Instant::now() + SLOT_TIMEOUT;
        let mut origins = lock(&self.origins);
        let mut waits = false;
        loop {
            let transactions = origins.entry(origin.clone()).or_default();
            let repeated = transactions.under_way.iter().any(|other| other == txn_id);
            if !repeated && transactions.under_way.len() < TRANSACTIONS_PER_ORIGIN_MAX {
                transactions.under_way.push(txn_id.to_owned());
                transactions.waiting -= usize::from(waits);
                return Some(TransactionSlot {
                    slots: self,
                    origin: origin.clone(),
                    txn_id: txn_id.to_owned(),
                });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || (!waits && transactions.waiting >= WAITING_PER_ORIGIN_MAX) {
                transactions.waiting -= usize::from(waits);
                return None;
            }
            transactions.waiting += usize::from(!waits);
            waits = true;
            origins = wait_timeout(&self.moved, origins, left);
        }
    }
}

/// A transaction that is being received; another one of its server may take its place once this is dropped.
pub(in crate::service) struct TransactionSlot<'i> {
    slots: &'i TransactionSlots,
    origin: ServerName,
    txn_id: String,
}

impl Drop for TransactionSlot<'_> {
    fn drop(&mut self) {
        let mut origins = lock(&self.slots.origins);
        if let Some(transactions) = origins.get_mut(&self.origin) {
            transactions.under_way.retain(|txn_id| *txn_id != self.txn_id);
            if transactions.under_way.is_empty() && transactions.waiting == 0 {
                origins.remove(&self.origin);
            }
        }
        drop(origins);
        self.slots.moved.notify_all();
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
        let slots = TransactionSlots::default();
        let (busy, polite) = (server("busy.example"), server("polite.example"));
        let mut slots_taken: Vec<_> = (0..TRANSACTIONS_PER_ORIGIN_MAX)
            .map(|n| slots.enter(&busy, &n.to_string()).expect("a slot"))
            .collect();
        assert!(slots.enter(&polite, "1").is_some());
        std::thread::scope(|scope| {
            let next = scope.spawn(|| slots.enter(&busy, "next").is_some());
            slots_taken.pop();
            assert!(next.join().expect("no panic"), "it waited for one to end");
        });
        drop(slots_taken);
        assert!(lock(&slots.origins).is_empty());
    }

    #[test]
    fn a_repeat_waits_for_the_first_to_end() {
        let slots = TransactionSlots::default();
        let origin = server("peer.example");
        let first = slots.enter(&origin, "same").expect("a slot");
        std::thread::scope(|scope| {
            let repeat = scope.spawn(|| slots.enter(&origin, "same").is_some());
            while lock(&slots.origins).get(&origin).is_none_or(|transactions| transactions.waiting == 0) {
                std::thread::yield_now();
            }
            drop(first);
            assert!(repeat.join().expect("no panic"));
        });
    }
}
