//! Transaction ids of clients: which event a request made.

use rusqlite::{OptionalExtension, params};

use super::{Db, Tx};
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::{EventId, UserId};

/// A repeat that comes later than this makes a new event.
const KEPT_MS: Millis = 7 * 24 * 3600 * 1000;

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

impl Db<'_> {
    /// The event that this request has made before.
    pub fn client_txn_event(&self, txn: &ClientTxn) -> Result<Option<EventId>> {
        let event_id: Option<String> = self
            .conn()
            .prepare_cached(
                "SELECT event_id FROM client_transactions
                 WHERE user_id = ? AND device_id = ? AND scope = ? AND txn_id = ?",
            )?
            .query_row([txn.user_id.as_str(), &txn.device_id, &txn.scope, &txn.txn_id], |row| row.get(0))
            .optional()?;
        event_id.map(|id| EventId::parse(&id)).transpose()
    }

    /// Whether this request has been worked off before, whatever it made.
    pub fn has_client_txn(&self, txn: &ClientTxn) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM client_transactions
             WHERE user_id = ? AND device_id = ? AND scope = ? AND txn_id = ?",
        )?;
        Ok(statement.exists([txn.user_id.as_str(), &txn.device_id, &txn.scope, &txn.txn_id])?)
    }

    /// The transaction id with which this device sent the event.
    pub fn txn_of_event(&self, user: &UserId, device_id: &str, event: &EventId) -> Result<Option<String>> {
        Ok(self
            .conn()
            .prepare_cached(
                "SELECT txn_id FROM client_transactions WHERE event_id = ? AND user_id = ? AND device_id = ?",
            )?
            .query_row([event.as_str(), user.as_str(), device_id], |row| row.get(0))
            .optional()?)
    }
}

impl Tx<'_> {
    /// Notes a request that was worked off, and the event that it made if it made one; and drops a few rows that are too old to matter.
    pub fn add_client_txn(&mut self, txn: &ClientTxn, event: Option<&EventId>, now: Millis) -> Result<()> {
        self.conn()
            .prepare_cached(
                "INSERT INTO client_transactions (sent_ms, user_id, device_id, scope, txn_id, event_id)
                 VALUES (?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                now,
                txn.user_id.as_str(),
                txn.device_id,
                txn.scope,
                txn.txn_id,
                event.map_or("", EventId::as_str)
            ])?;
        // Row ids grow with time, so the first rows are the oldest. More out than in keeps the table bounded.
        if self.conn().last_insert_rowid() % SWEEP_EVERY == 0 {
            self.conn()
                .prepare_cached(
                    "DELETE FROM client_transactions
                     WHERE sent_ms < ? AND rowid IN (SELECT rowid FROM client_transactions ORDER BY rowid LIMIT ?)",
                )?
                .execute([now - KEPT_MS, 2 * SWEEP_EVERY])?;
        }
        Ok(())
    }
}
