//! What debug builds hold every write against: whoever makes a row due has told the timer (`Tx::is_due`). Otherwise it would
//! wait until the timer next looks by itself, which is late for a user, and no test that moves the clock by hand would see it,
//! since that has the timer look.

use rusqlite::Connection;

use crate::clock::Millis;
use crate::error::Result;
use crate::store::engine::set_clock::{TIMES, TimeColumn};

/// Every table with rows that the timer takes up at their time.
fn taken_up() -> impl Iterator<Item = &'static TimeColumn> {
    TIMES.iter().filter(|time| time.is_taken_up())
}

/// When the first row of each of these tables is due.
#[derive(Debug)]
pub(super) struct FirstDue(Vec<Option<Millis>>);

impl FirstDue {
    pub(super) fn read(connection: &Connection) -> Result<Self> {
        let first = |time: &TimeColumn| {
            let TimeColumn { table, column, .. } = time;
            let sql = format!("SELECT min({column}) FROM {table} WHERE {column} IS NOT NULL");
            Ok(connection.prepare_cached(&sql)?.query_row([], |row| row.get(0))?)
        };
        taken_up().map(first).collect::<Result<_>>().map(Self)
    }

    /// A table in which something is due sooner than before, and when: of several what is due first.
    pub(super) fn sooner_in(&self, after: &Self) -> Option<(&'static str, Millis)> {
        let sooner = |before: Option<Millis>, after: &Millis| before.is_none_or(|before| *after < before);
        let firsts = self.0.iter().zip(&after.0).zip(taken_up());
        firsts
            .filter_map(|((before, after), time)| {
                after.filter(|after| sooner(*before, after)).map(|due| (time.table, due))
            })
            .min_by_key(|(_, due)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_due_sooner_is_found_and_what_was_put_off_or_done_is_not() {
        let tables: Vec<_> = taken_up().map(|time| time.table).collect();
        let first = |due: &[(usize, Millis)]| {
            let mut first = vec![None; tables.len()];
            due.iter().for_each(|(table, at)| first[*table] = Some(*at));
            FirstDue(first)
        };
        let before = first(&[(0, 10), (3, 5)]);
        for (after, sooner) in [
            (first(&[(0, 10), (3, 5)]), None),
            (first(&[(0, 11)]), None),
            (first(&[]), None),
            (first(&[(0, 9), (3, 5)]), Some((tables[0], 9))),
            (first(&[(0, 10), (3, 5), (1, 70)]), Some((tables[1], 70))),
            (first(&[(0, 9), (3, 4)]), Some((tables[3], 4))),
        ] {
            assert_eq!(before.sooner_in(&after), sooner, "{after:?}");
        }
    }
}
