//! Times that are further off than any that is ever written: a clock that was ahead has left them, and what waits for them would
//! wait until it is there again.
//!
//! Only what is to happen is put right here. How old something is stays as it was told: what seems to be younger than it is stays
//! longer, and a clock that is behind, and not right yet, would make everything old at the next step.

use rusqlite::params;

use crate::clock::Millis;
use crate::error::Result;
use crate::store::{Db, Tx};

const MINUTE_MS: Millis = 60_000;

/// Tables with times at which something ends or is done again; how far from now such a time is at most, and how far it is once it was
/// put right.
const LATEST: [(&str, &str, &str, &str); 8] = [
    ("pushers", "retry_ms", "3600000", "0"),
    ("bells", "until_ms", "60000", "60000"),
    ("typing", "until_ms", "120000", "120000"),
    ("typing", "told_ms", "0", "0"),
    ("presence", "until_ms", "1800000", "1800000"),
    ("delayed_events", "due_ms", "delay_ms", "delay_ms"),
    ("login_tokens", "expires_ms", "120000", "120000"),
    ("openid_tokens", "expires_ms", "3600000", "3600000"),
];

impl Db<'_> {
    /// Whether there is such a time.
    pub fn is_anything_too_late(&self, now: Millis) -> Result<bool> {
        let each = LATEST.map(|(table, time, most, _)| {
            format!("EXISTS (SELECT 1 FROM {table} WHERE {time} > ?1 + {most})")
        });
        // Nobody minds what a clock that was ahead for a moment has left.
        let found = format!("SELECT {}", each.join(" OR "));
        Ok(self.conn().query_row(&found, [now + MINUTE_MS], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Brings such times as near as they can be.
    pub fn put_lateness_right(&mut self, now: Millis) -> Result<()> {
        for (table, time, _, right) in LATEST {
            let sql = format!("UPDATE {table} SET {time} = ?1 + {right} WHERE {time} > ?1 + {right}");
            self.execute(&sql, params![now])?;
        }
        Ok(())
    }
}
