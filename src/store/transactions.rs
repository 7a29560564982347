//! Transactions of other servers that were answered: a repeat gets the same answer and does nothing.

use rusqlite::OptionalExtension;

use super::{Db, Tx};
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::ServerName;

/// For how long an answer is kept. A peer that repeats a transaction after a longer time finds the events known.
const KEPT: Millis = 3 * 24 * 3_600_000;
/// Old answers that go when one comes, so that no single commit has much to do.
const SWEPT_AT_ONCE: u32 = 20;

impl Db<'_> {
    /// The stored answer of a transaction, if it was received before.
    pub fn transaction_answer(&self, origin: &ServerName, txn_id: &str) -> Result<Option<Vec<u8>>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT answer FROM transactions WHERE origin = ?1 AND txn_id = ?2")?;
        Ok(statement.query_row([origin.as_str(), txn_id], |row| row.get(0)).optional()?)
    }
}

impl Tx<'_> {
    /// Keeps the answer of a transaction, and lets go of a few old ones. If two repeats were worked on at the same
    /// time, the first answer stays.
    pub fn save_transaction_answer(
        &mut self,
        origin: &ServerName,
        txn_id: &str,
        answer: &[u8],
        now: Millis,
    ) -> Result<()> {
        self.conn()
            .prepare_cached(
                "INSERT INTO transactions (origin, txn_id, received_ms, answer) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )?
            .execute((origin.as_str(), txn_id, now, answer))?;
        self.conn()
            .prepare_cached(
                "DELETE FROM transactions WHERE (origin, txn_id) IN
                   (SELECT origin, txn_id FROM transactions WHERE received_ms < ?1 LIMIT ?2)",
            )?
            .execute((now - KEPT, SWEPT_AT_ONCE))?;
        Ok(())
    }
}
