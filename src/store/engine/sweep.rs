//! The one way in which tables that other servers fill, and whose rows are numbered as they come, are kept short. Such
//! a table has `number`, `origin`, `stranger` (1 if the origin shared no room with a local user) and `received_ms`.

use rusqlite::params;

use crate::clock::Millis;
use crate::error::Result;
use crate::store::Tx;

/// What of a table is kept.
pub(in crate::store) struct Sweep {
    pub table: &'static str,
    /// Of one origin the last so many.
    pub per_origin_max: u32,
    /// Of all strangers together the last so many.
    pub of_strangers_max: u32,
    /// For so long.
    pub kept_ms: Millis,
    /// So many go of each kind, so that no single commit has much to do.
    pub rows_max: u32,
}

impl Sweep {
    /// Lets go of what is beyond the bounds, after something of an origin came.
    pub(in crate::store) fn after(
        &self,
        tx: &mut Tx<'_>,
        origin: &str,
        stranger: bool,
        now: Millis,
    ) -> Result<()> {
        // Row ids grow with time.
        let beyond = |whose: &str| {
            let table = self.table;
            format!(
                "DELETE FROM {table} WHERE number IN (SELECT number FROM {table}
                   WHERE {whose} ORDER BY number DESC LIMIT ?2 OFFSET ?1)"
            )
        };
        tx.execute(&beyond("origin = ?3"), params![self.per_origin_max, self.rows_max, origin])?;
        if stranger {
            tx.execute(&beyond("stranger = 1"), params![self.of_strangers_max, self.rows_max])?;
        }
        let table = self.table;
        tx.execute(
            &format!(
                "DELETE FROM {table} WHERE received_ms < ?1
                   AND number IN (SELECT number FROM {table} ORDER BY number LIMIT ?2)"
            ),
            params![now - self.kept_ms, self.rows_max],
        )?;
        Ok(())
    }
}
