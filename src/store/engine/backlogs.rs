//! How much there is still to be done, for who watches the server.

use crate::error::Result;
use crate::store::Db;

/// Rows of one kind that are counted.
const COUNTED_MAX: i64 = 100_000;

/// The tables whose rows wait for something, each under the name of what waits.
const BACKLOGS: [(&str, &str); 7] = [
    ("events owed to servers", "owed_events"),
    ("messages owed to servers", "owed_edus"),
    ("invites owed", "owed_invites"),
    ("joins owed", "owed_joins"),
    ("events that lack something", "pending_events"),
    ("events to be sent later", "delayed_events"),
    ("messages for devices", "to_device"),
];

impl Db<'_> {
    /// How many rows wait, by kind; of many, no more than 100 000 are counted.
    pub fn backlogs(&self) -> Result<Vec<(&'static str, i64)>> {
        let count = |(kind, table): &(&'static str, &str)| {
            let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT {COUNTED_MAX})");
            Ok((*kind, self.conn().prepare_cached(&sql)?.query_row([], |row| row.get(0))?))
        };
        BACKLOGS.iter().map(count).collect()
    }

    /// How many memberships of local users in rooms elsewhere are in which state.
    pub fn remote_memberships_by_state(&self) -> Result<Vec<(String, i64)>> {
        self.rows("SELECT state, count(*) FROM remote_memberships GROUP BY state", &[], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
    }
}
