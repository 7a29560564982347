//! What debug builds hold every write against: whoever makes a row due has told the timer (`Tx::is_due`). Otherwise it would
//! wait until the timer next looks by itself, which is late for a user, and no test that moves the clock by hand would see it,
//! since that has the timer look.

use rusqlite::Connection;

use crate::clock::Millis;
use crate::error::Result;

/// Every table with rows that the timer takes up at their time, and the column that has it.
const TABLES: [(&str, &str); 12] = [
    ("delayed_events", "due_ms"),
    ("guest_removals", "due_ms"),
    ("owed_bans", "due_ms"),
    ("owed_invites", "due_ms"),
    ("owed_joins", "due_ms"),
    ("owed_profiles", "due_ms"),
    ("pending_events", "due_ms"),
    ("remote_device_lists", "due_ms"),
    ("remote_memberships", "due_ms"),
    ("room_deletions", "due_ms"),
    ("rooms_behind_backup", "due_ms"),
    ("users", "leaving_due_ms"),
];

/// When the first row of each table is due.
#[derive(Debug)]
pub(super) struct FirstDue([Option<Millis>; TABLES.len()]);

impl FirstDue {
    pub(super) fn read(connection: &Connection) -> Result<Self> {
        let mut first = [None; TABLES.len()];
        for ((table, due), first) in TABLES.iter().zip(&mut first) {
            let sql = format!("SELECT min({due}) FROM {table} WHERE {due} IS NOT NULL");
            *first = connection.prepare_cached(&sql)?.query_row([], |row| row.get(0))?;
        }
        Ok(Self(first))
    }

    /// A table in which something is due sooner than before, and when: of several what is due first.
    pub(super) fn sooner_in(&self, after: &Self) -> Option<(&'static str, Millis)> {
        let sooner = |before: Option<Millis>, after: &Millis| before.is_none_or(|before| *after < before);
        let firsts = self.0.iter().zip(&after.0).zip(TABLES);
        firsts
            .filter_map(|((before, after), (table, _))| {
                after.filter(|after| sooner(*before, after)).map(|due| (table, due))
            })
            .min_by_key(|(_, due)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_due_sooner_is_found_and_what_was_put_off_or_done_is_not() {
        let first = |due: &[(usize, Millis)]| {
            let mut first = [None; TABLES.len()];
            due.iter().for_each(|(table, at)| first[*table] = Some(*at));
            FirstDue(first)
        };
        let before = first(&[(0, 10), (3, 5)]);
        for (after, sooner) in [
            (first(&[(0, 10), (3, 5)]), None),
            (first(&[(0, 11)]), None),
            (first(&[]), None),
            (first(&[(0, 9), (3, 5)]), Some((TABLES[0].0, 9))),
            (first(&[(0, 10), (3, 5), (1, 70)]), Some((TABLES[1].0, 70))),
            (first(&[(0, 9), (3, 4)]), Some((TABLES[3].0, 4))),
        ] {
            assert_eq!(before.sooner_in(&after), sooner, "{after:?}");
        }
    }

    #[test]
    fn every_table_with_rows_that_become_due_is_held_against_what_the_timer_is_told() {
        let schema = Connection::open_in_memory().expect("a database");
        schema.execute_batch(include_str!("../../../schema.sql")).expect("the schema");
        let mut statement = schema
            .prepare(
                "SELECT t.name, c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c
                 WHERE t.type = 'table' AND c.name LIKE '%due_ms' ORDER BY t.name",
            )
            .expect("prepared");
        let names = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("asked");
        let names: Vec<(String, String)> = names.map(|name| name.expect("a name")).collect();
        // The sweep of changes is planned by the timer itself.
        let planned = names.iter().filter(|(table, _)| table != "device_changes_sweep");
        let planned: Vec<_> = planned.map(|(table, due)| (table.as_str(), due.as_str())).collect();
        assert_eq!(planned, TABLES);
    }
}
