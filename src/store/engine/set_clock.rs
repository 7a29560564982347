//! Every time that the database keeps, and what becomes of it when a clock that was ahead is set right: what was put off until it
//! would be there again would wait for that. The same is done after a start, when nobody is at anything any more.
//!
//! Only what is to happen is put right here. How old something is stays as it was told: what seems to be younger than it is stays
//! longer, and a clock that is behind, and not right yet, would make everything old at the next step.

use rusqlite::params;

use crate::clock::Millis;
use crate::error::Result;
use crate::store::{Db, Tx};

/// Nobody minds what a clock that was ahead for a moment has left.
const SLACK_MS: Millis = 60_000;

/// What becomes of a time when the clock is set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetBack {
    /// What is to be done then is done now.
    Now,
    /// The same, but after a start it is left alone as long as it is no further off than this (SQL, in milliseconds).
    NowIfBehind(&'static str),
    /// Something ends, or is done again, then: no later than so much from now.
    Within(&'static str),
    /// It is left alone: why.
    Stays(&'static str),
}

use SetBack::{Now, NowIfBehind, Stays, Within};

/// Why a time stays that says how old something is.
const AN_AGE: SetBack = Stays("how old something is: it stays for longer");

/// A column with a time, or with some milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeColumn {
    pub(super) table: &'static str,
    pub(super) column: &'static str,
    set_back: SetBack,
}

const fn time(table: &'static str, column: &'static str, set_back: SetBack) -> TimeColumn {
    TimeColumn { table, column, set_back }
}

impl TimeColumn {
    /// Whether the timer takes rows up at this time, and so has to be told of it.
    pub(super) fn is_taken_up(&self) -> bool {
        self.column.ends_with("due_ms")
    }

    /// How far off it may be after a start, and how far off it is once it was put right, in SQL.
    fn most(&self) -> Option<(String, &'static str)> {
        match self.set_back {
            Now => Some(("0".to_owned(), "0")),
            NowIfBehind(most) => Some((format!("{most} + {SLACK_MS}"), "0")),
            Within(most) => Some((format!("{most} + {SLACK_MS}"), most)),
            Stays(_) => None,
        }
    }
}

/// All of them, in the order of the schema.
pub(super) const TIMES: [TimeColumn; 60] = [
    time("pending_events", "received_ms", AN_AGE),
    time("pending_events", "retry_ms", Now),
    time("pending_events", "due_ms", Now),
    time("remote_memberships", "due_ms", Now),
    time("remote_memberships", "ended_ms", AN_AGE),
    time("owed_invites", "due_ms", Now),
    time("offered_invites", "made_ms", AN_AGE),
    time("owed_joins", "due_ms", Now),
    time("owed_bans", "due_ms", Now),
    time("owed_upgrades", "due_ms", Now),
    time("delayed_events", "delay_ms", Stays("no time, but how long a delay is")),
    time("delayed_events", "since_ms", AN_AGE),
    time("delayed_events", "due_ms", Within("delay_ms")),
    time("blocked_rooms", "blocked_ms", AN_AGE),
    time("room_deletions", "asked_ms", AN_AGE),
    time("room_deletions", "due_ms", Now),
    time("room_deletions", "ended_ms", AN_AGE),
    time("rooms_behind_backup", "due_ms", Now),
    time("signing_keys", "made_ms", AN_AGE),
    time("signing_keys", "expired_ms", Stays("what was signed by then stays good")),
    time(
        "server_keys",
        "valid_until_ms",
        Stays(
            "of servers that are gone it says which events are good, and under a clock that is behind none would be",
        ),
    ),
    time("replaced_server_keys", "valid_until_ms", Stays("what was signed by then stays good")),
    time("key_statements", "fetched_ms", AN_AGE),
    time(
        "destinations",
        "retry_ms",
        Stays("who sends has it, and puts it right when it is read and when the clock is set"),
    ),
    time("destinations", "failing_since_ms", Stays("as its `retry_ms`")),
    time("owed_edus", "made_ms", AN_AGE),
    time("transactions", "received_ms", AN_AGE),
    time("users", "leaving_due_ms", Now),
    time("users", "created_ms", AN_AGE),
    time("guest_removals", "due_ms", Now),
    time("devices", "last_seen_ms", AN_AGE),
    time("devices", "synced_ms", AN_AGE),
    time(
        "sessions",
        "expires_ms",
        Stays("nothing waits for the end of a token, and whoever has one can end it"),
    ),
    time("login_tokens", "expires_ms", Within("120000")),
    time("registration_tokens", "expires_ms", Stays("the time that whoever made the token has named")),
    time("openid_tokens", "expires_ms", Within("3600000")),
    time("reports", "created_ms", AN_AGE),
    time("owed_profiles", "due_ms", Now),
    time("pushers", "set_ms", AN_AGE),
    time("pushers", "retry_ms", NowIfBehind("3600000")),
    time("pushers", "failing_since_ms", AN_AGE),
    time("bells", "until_ms", Within("60000")),
    time("sliding_connections", "used_ms", AN_AGE),
    time("client_transactions", "sent_ms", AN_AGE),
    time("to_device_shares", "since_ms", Within("0")),
    time("to_device_received", "received_ms", AN_AGE),
    time("device_changes_sweep", "next_ms", Within("2592000000")),
    time("remote_device_lists", "due_ms", Now),
    time("remote_device_lists", "fetched_ms", AN_AGE),
    time("typing", "until_ms", Within("60000")),
    time("typing", "told_ms", Within("0")),
    time(
        "presence",
        "last_active_ms",
        Stays("nobody is told a time, and what is heard of the user next replaces it"),
    ),
    time("presence", "until_ms", Within("1800000")),
    time("media", "created_ms", AN_AGE),
    time("media", "expires_ms", Within("86400000")),
    time("media", "used_ms", AN_AGE),
    time("appservices", "due_ms", Now),
    time("appservices", "taken_ms", AN_AGE),
    time("appservices", "forget_due_ms", Within("604800000")),
    time("appservice_transactions", "begun_ms", AN_AGE),
];

impl Db<'_> {
    /// Whether something was put off that nobody is at after a start, or is further off than any that is ever written.
    pub fn is_anything_put_off(&self, now: Millis) -> Result<bool> {
        let late = |time: &TimeColumn| {
            let (most, _) = time.most()?;
            Some(format!("EXISTS (SELECT 1 FROM {} WHERE {} > ?1 + {most})", time.table, time.column))
        };
        let late: Vec<String> = TIMES.iter().filter_map(late).collect();
        let found = format!("SELECT {}", late.join(" OR "));
        Ok(self.conn().query_row(&found, [now], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Brings all that is to happen as near as it can be.
    pub fn hasten_all(&mut self, now: Millis) -> Result<()> {
        self.wake_timer();
        for time in &TIMES {
            let Some((_, most)) = time.most() else { continue };
            let TimeColumn { table, column, .. } = time;
            let sql = format!("UPDATE {table} SET {column} = ?1 + {most} WHERE {column} > ?1 + {most}");
            self.execute(&sql, params![now])?;
        }
        Ok(())
    }
}

/// The furthest that a time of each column may be off, as it is said here; none where that is an expression.
#[cfg(test)]
pub(crate) fn furthest() -> impl Iterator<Item = (&'static str, &'static str, Option<Millis>)> {
    TIMES.iter().filter_map(|time| match time.set_back {
        NowIfBehind(most) | Within(most) => Some((time.table, time.column, most.parse().ok())),
        Now | Stays(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::store::engine::migrate::SCHEMA;
    use crate::store::tests::with_device_of_bob;

    const DAY_MS: Millis = 24 * 3_600_000;
    const NOW: Millis = 1_000 * DAY_MS;

    /// All that these columns hold.
    fn times(db: &Db<'_>, columns: &str, table: &str) -> Vec<Millis> {
        let mut statement = db.conn().prepare(&format!("SELECT {columns} FROM {table}")).expect("prepared");
        let count = statement.column_count();
        let read = statement.query_row([], |row| (0..count).map(|column| row.get(column)).collect());
        read.expect("one row")
    }

    #[test]
    fn what_becomes_of_every_time_in_the_schema_when_the_clock_is_set_back_is_said() {
        let schema = Connection::open_in_memory().expect("a database");
        schema.execute_batch(SCHEMA).expect("the schema");
        let mut statement = schema
            .prepare(
                "SELECT t.name, c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c
                 WHERE t.type = 'table' AND c.name GLOB '*_ms' ORDER BY t.rowid, c.cid",
            )
            .expect("prepared");
        let names = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("asked");
        let names: Vec<(String, String)> = names.map(|name| name.expect("a name")).collect();
        let names: Vec<_> = names.iter().map(|(table, column)| (table.as_str(), column.as_str())).collect();
        let said: Vec<_> = TIMES.iter().map(|time| (time.table, time.column)).collect();
        assert_eq!(said, names);
    }

    #[test]
    fn what_was_put_off_is_due_and_what_ends_does_so_as_soon_as_if_it_had_begun_now() {
        let late = NOW + 300 * DAY_MS;
        with_device_of_bob()
            .write(move |tx| {
                assert!(!tx.is_anything_put_off(NOW)?);
                tx.wake_timer();
                for row in [
                    // It was hastened, and is put off again if that was in vain.
                    "pending_events (room_key, event_id, origin, verified, received_ms, attempts, retry_ms, due_ms, bytes, json)
                     VALUES (0, '$a', 'a.example', 1, ?1, 1, ?1, 0, 0, x'')",
                    "device_changes_sweep (one, swept_upto, upto, next_ms) VALUES (1, 0, 0, ?1)",
                    "guest_removals (room_key, due_ms) VALUES (1, ?1)",
                    "registration_tokens (hash, expires_ms) VALUES (x'00', ?1)",
                ] {
                    tx.conn().execute("PRAGMA defer_foreign_keys = 1", [])?;
                    tx.conn().execute(&format!("INSERT INTO {row}"), [late])?;
                }
                assert!(tx.is_anything_put_off(NOW)?);
                tx.hasten_all(NOW)?;
                assert_eq!(times(tx, "received_ms, retry_ms, due_ms", "pending_events"), [late, NOW, 0]);
                assert_eq!(times(tx, "next_ms", "device_changes_sweep"), [NOW + 30 * DAY_MS]);
                assert_eq!(times(tx, "due_ms", "guest_removals"), [NOW]);
                assert_eq!(times(tx, "expires_ms", "registration_tokens"), [late]);
                assert!(!tx.is_anything_put_off(NOW)?);
                tx.conn().execute("DELETE FROM pending_events", [])?;
                Ok(())
            })
            .expect("written");
    }

    #[test]
    fn whoever_leaves_a_time_alone_says_why_and_nothing_that_the_timer_takes_up_is_left_alone() {
        for time in &TIMES {
            if let Stays(why) = time.set_back {
                assert!(!why.is_empty() && !time.is_taken_up(), "{time:?}");
            }
        }
    }
}
