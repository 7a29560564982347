//! How much there is still to be done, for who watches the server.

use rusqlite::params;

use crate::error::Result;
use crate::protocol::remote_membership::RemoteState;
use crate::store::Db;

/// Rows of one kind that are counted.
const COUNTED_MAX: i64 = 100_000;

/// The tables whose rows wait for something, each under the name of what waits.
const BACKLOGS: [(&str, &str); 8] = [
    ("events owed to servers", "owed_events"),
    ("messages owed to servers", "owed_edus"),
    ("invites owed", "owed_invites"),
    ("joins owed", "owed_joins"),
    ("events that lack something", "pending_events"),
    ("events to be sent later", "delayed_events"),
    ("messages for devices", "to_device"),
    ("events for application services", "appservice_events"),
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

    /// How many memberships of local users in rooms elsewhere are in which state; of many, no more than 100 000 are counted.
    pub fn remote_memberships_by_state(&self) -> Result<Vec<(&'static str, i64)>> {
        let mut statement = self.conn().prepare_cached(OF_STATE)?;
        let mut found = Vec::new();
        for state in RemoteState::ALL {
            let count: i64 = statement.query_row(params![state.as_str(), COUNTED_MAX], |row| row.get(0))?;
            if count > 0 {
                found.push((state.as_str(), count));
            }
        }
        Ok(found)
    }
}

const OF_STATE: &str = "SELECT count(*) FROM (SELECT 1 FROM remote_memberships WHERE state = ?1 LIMIT ?2)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::in_memory;

    #[test]
    fn memberships_elsewhere_are_counted_without_being_read() {
        let store = in_memory("example.org");
        let plan = store.read(|db| {
            let mut explain = db.conn().prepare(&format!("EXPLAIN QUERY PLAN {OF_STATE}"))?;
            let lines = explain.query_map(params!["invited", 5], |row| row.get::<_, String>(3))?;
            Ok(lines.collect::<rusqlite::Result<Vec<_>>>()?.join("; "))
        });
        let plan = plan.unwrap();
        assert!(plan.contains("USING COVERING INDEX remote_memberships_by_state (state=?)"), "{plan}");
    }
}
