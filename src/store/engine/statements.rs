//! Statements as most are run: prepared once, given their values, done. None of it is compiled anew for each of them.

use rusqlite::{Row, ToSql};

use crate::error::Result;
use crate::store::Db;

impl Db<'_> {
    /// Runs a statement that gives no rows. Gives how many it changed.
    pub(in crate::store) fn execute(&self, sql: &str, values: &[&dyn ToSql]) -> Result<usize> {
        Ok(self.conn().prepare_cached(sql)?.execute(values)?)
    }

    /// What is read of each row, in their order.
    pub(in crate::store) fn rows<T>(
        &self,
        sql: &str,
        values: &[&dyn ToSql],
        mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut found = Vec::new();
        self.each_row(sql, values, &mut |row| {
            found.push(read(row)?);
            Ok(())
        })?;
        Ok(found)
    }

    fn each_row(
        &self,
        sql: &str,
        values: &[&dyn ToSql],
        look_at: &mut dyn FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<()> {
        let mut statement = self.conn().prepare_cached(sql)?;
        let mut rows = statement.query(values)?;
        while let Some(row) = rows.next()? {
            look_at(row)?;
        }
        Ok(())
    }
}
