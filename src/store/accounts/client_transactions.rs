//! Transaction ids of clients: which event a request made.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};
use sha2::{Digest, Sha256};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::{EventId, UserId};
use crate::store::{Db, EventKey, Tx};

/// A repeat that comes later than this makes a new event.
const KEPT_MS: Millis = 7 * 24 * 3600 * 1000;

/// Events are looked up together as long as there are no more than so many rows for each of them between the first and the
/// last.
const APART_MAX: usize = 4;

/// After so many new rows, the oldest ones are looked at.
const SWEEP_EVERY: i64 = 32;

/// One request, as clients identify it. "The scope of a transaction ID is for a single device, and a single HTTP
/// endpoint" (client-server API, "Transaction identifiers").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTxn {
    /// Whose request it is.
    pub user_id: UserId,
    /// The device; empty for requests that come without one.
    pub device_id: String,
    /// The endpoint and its path without the transaction id.
    pub scope: String,
    /// What the client chose.
    pub txn_id: String,
}

impl ClientTxn {
    /// What is stored of it for finding it again: 16 bytes. Lengths keep the parts apart.
    pub(in crate::store) fn digest(&self) -> Vec<u8> {
        digest_of(&[self.user_id.as_str(), &self.device_id, &self.scope, &self.txn_id])
    }
}

/// By what an event of its sender's came about.
#[derive(Debug, Default)]
pub struct SentBy {
    /// The transaction id of the request.
    pub transaction_id: Option<String>,
    /// The id of the delayed event that it was.
    pub delay_id: Option<String>,
}

/// What became of a delayed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayedOutcome {
    /// It was sent.
    Sent,
    /// It was not, and is not any more.
    Cancelled,
}

impl DelayedOutcome {
    /// That this became of a delayed event stands where requests do, and is forgotten with them: no request has such parts.
    fn digest(self, delay_id: &str) -> Vec<u8> {
        let how = match self {
            Self::Sent => "sent",
            Self::Cancelled => "cancelled",
        };
        digest_of(&["delayed", how, delay_id])
    }
}

fn digest_of(parts: &[&str]) -> Vec<u8> {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize()[..16].to_vec()
}

impl Db<'_> {
    /// The event that this request has made before.
    pub fn client_txn_event(&self, txn: &ClientTxn) -> Result<Option<EventId>> {
        let event_id: Option<String> = self
            .conn()
            .prepare_cached(
                "SELECT e.event_id FROM client_transactions t JOIN events e USING (event_key) WHERE t.request = ?",
            )?
            .query_row([txn.digest()], |row| row.get(0))
            .optional()?;
        event_id.map(|id| EventId::parse(&id)).transpose()
    }

    /// Whether this request has been worked off before, whatever it made.
    pub fn has_client_txn(&self, txn: &ClientTxn) -> Result<bool> {
        let mut statement =
            self.conn().prepare_cached("SELECT 1 FROM client_transactions WHERE request = ?")?;
        Ok(statement.exists([txn.digest()])?)
    }

    /// The delayed event that this request has asked for before, which may be gone.
    pub fn client_txn_delayed_event(&self, txn: &ClientTxn) -> Result<Option<String>> {
        let mut statement =
            self.conn().prepare_cached("SELECT delay_id FROM client_transactions WHERE request = ?")?;
        Ok(statement.query_row([txn.digest()], |row| row.get(0)).optional()?.flatten())
    }

    /// What became of a delayed event, as long as that is remembered.
    pub fn delayed_outcome(&self, delay_id: &str) -> Result<Option<DelayedOutcome>> {
        let mut statement =
            self.conn().prepare_cached("SELECT 1 FROM client_transactions WHERE request = ?")?;
        for outcome in [DelayedOutcome::Sent, DelayedOutcome::Cancelled] {
            if statement.exists([outcome.digest(delay_id)])? {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    /// By what these events of one sender came about: the transaction ids of those that this device sent, if one asks, and the
    /// ids of the delayed events that some of them were.
    pub fn txns_of_events(
        &self,
        device_id: Option<&str>,
        events: impl Iterator<Item = EventKey>,
    ) -> Result<HashMap<EventKey, SentBy>> {
        let (mut events, mut txns) = (events.collect::<Vec<_>>(), HashMap::<EventKey, SentBy>::new());
        events.sort_unstable();
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(txns) };
        // What was said in one go stands together; else each is found by itself.
        let together = (last - first).unsigned_abs() < (APART_MAX * events.len()) as u64;
        let ranges =
            if together { vec![(*first, *last)] } else { events.iter().map(|key| (*key, *key)).collect() };
        let mut statement = self.conn().prepare_cached(
            "SELECT event_key, txn_id, delay_id FROM client_transactions
             WHERE event_key >= ?1 AND event_key <= ?2 AND (device_id = ?3 OR delay_id IS NOT NULL)",
        )?;
        for (first, last) in ranges {
            let mut rows = statement.query(params![first, last, device_id])?;
            while let Some(row) = rows.next()? {
                // Between them are those of others, who may call their devices the same.
                let event = row.get(0)?;
                if events.binary_search(&event).is_ok() {
                    let sent_by = txns.entry(event).or_default();
                    match row.get(2)? {
                        Some(delay_id) => sent_by.delay_id = Some(delay_id),
                        None => sent_by.transaction_id = Some(row.get(1)?),
                    }
                }
            }
        }
        Ok(txns)
    }
}

impl Tx<'_> {
    /// Notes a request that was worked off, and the event that it made if it made one; and drops a few rows that are
    /// too old to matter.
    pub fn add_client_txn(&mut self, txn: &ClientTxn, event: Option<EventKey>, now: Millis) -> Result<()> {
        self.note_client_txn(txn, (event, None), now)
    }

    /// Notes a request that asked for a delayed event, in the same way.
    pub(in crate::store) fn add_client_txn_delayed(
        &mut self,
        txn: &ClientTxn,
        delay_id: &str,
        now: Millis,
    ) -> Result<()> {
        self.note_client_txn(txn, (None, Some(delay_id)), now)
    }

    /// Notes what became of a delayed event, and which event it is if it is one.
    pub(in crate::store) fn note_delayed_outcome(
        &mut self,
        delay_id: &str,
        outcome: DelayedOutcome,
        event: Option<EventKey>,
        now: Millis,
    ) -> Result<()> {
        self.note_request((&outcome.digest(delay_id), "", ""), (event, Some(delay_id)), now)
    }

    fn note_client_txn(
        &mut self,
        txn: &ClientTxn,
        made: (Option<EventKey>, Option<&str>),
        now: Millis,
    ) -> Result<()> {
        self.note_request((&txn.digest(), &txn.device_id, &txn.txn_id), made, now)
    }

    fn note_request(
        &mut self,
        (request, device_id, txn_id): (&[u8], &str, &str),
        (event, delay_id): (Option<EventKey>, Option<&str>),
        now: Millis,
    ) -> Result<()> {
        self.execute(
            "INSERT INTO client_transactions (sent_ms, request, device_id, txn_id, event_key, delay_id)
             VALUES (?, ?, ?, ?, ?, ?)",
            params![now, request, device_id, txn_id, event, delay_id],
        )?;
        // Row ids grow with time, so the first rows are the oldest. More out than in keeps the table bounded.
        if self.conn().last_insert_rowid() % SWEEP_EVERY == 0 {
            self.execute(
                "DELETE FROM client_transactions
                 WHERE sent_ms < ? AND txn IN (SELECT txn FROM client_transactions ORDER BY txn LIMIT ?)",
                params![now - KEPT_MS, 2 * SWEEP_EVERY],
            )?;
        }
        Ok(())
    }
}
