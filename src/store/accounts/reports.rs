//! What users have told the administrators of.

use rusqlite::params;

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::Tx;

/// Most reports of one user that are kept.
const REPORTS_MAX: i64 = 100;

/// A report.
#[derive(Debug, Clone)]
pub struct NewReport {
    /// Whose.
    pub reporter: UserId,
    /// Of a room, or of an event in it.
    pub room: Option<String>,
    /// Of this event.
    pub event: Option<String>,
    /// Of a user.
    pub user: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

impl Tx<'_> {
    /// Keeps a report, in place of what the same user said of the same thing before. Beyond 100 of one user their oldest go.
    pub fn add_report(&mut self, new: &NewReport, now: Millis) -> Result<()> {
        let reporter = new.reporter.as_str();
        self.execute(
            "DELETE FROM reports WHERE reporter = ?1 AND room_id IS ?2 AND event_id IS ?3 AND user_id IS ?4",
            params![reporter, new.room, new.event, new.user],
        )?;
        self.execute(
            "INSERT INTO reports (reporter, room_id, event_id, user_id, reason, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![reporter, new.room, new.event, new.user, new.reason, now],
        )?;
        self.execute(
            "DELETE FROM reports WHERE report IN
             (SELECT report FROM reports WHERE reporter = ?1 ORDER BY report DESC LIMIT -1 OFFSET ?2)",
            params![reporter, REPORTS_MAX],
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ServerName;
    use crate::store::{Location, Options, Store};

    #[test]
    fn reports_are_bounded_and_one_of_each_thing() {
        let us = ServerName::parse("us.example").expect("a name");
        let store =
            Store::open(Location::Memory, &us, Box::new(|_| ()), &Options { durable: false, readers: 1 })
                .expect("a store");
        let report = |reporter: &str, room: String, reason: &str| NewReport {
            reporter: UserId::parse(reporter).expect("a user"),
            room: Some(room),
            event: None,
            user: None,
            reason: Some(reason.to_owned()),
        };
        let kept = || {
            let all = "SELECT reporter, room_id, reason FROM reports ORDER BY report";
            let rows = store.read(|db| {
                let mut query = db.conn().prepare(all)?;
                let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
                Ok(rows.collect::<rusqlite::Result<Vec<(String, String, String)>>>()?)
            });
            rows.expect("rows")
        };
        store
            .write(move |tx| {
                for user in ["@alice:us.example", "@bob:us.example"] {
                    tx.create_account(&UserId::parse(user)?, None, false, 1)?;
                }
                tx.add_report(&report("@bob:us.example", "!0:x".into(), "first"), 1)?;
                tx.add_report(&report("@bob:us.example", "!0:x".into(), "second"), 2)?;
                for room in 0..150 {
                    tx.add_report(&report("@alice:us.example", format!("!{room}:x"), ""), 3)?;
                }
                Ok(())
            })
            .expect("reports");
        let kept = kept();
        assert_eq!(kept[0], ("@bob:us.example".into(), "!0:x".into(), "second".into()));
        assert_eq!(kept.len(), 101);
        assert_eq!((kept[1].1.as_str(), kept[100].1.as_str()), ("!50:x", "!149:x"));
    }
}
