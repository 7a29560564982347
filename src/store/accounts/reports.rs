//! What users have told the administrators of.

use rusqlite::types::ToSql;
use rusqlite::{OptionalExtension, Row, params, params_from_iter};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::{Db, Tx};

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

/// Of what reports are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// Of events.
    Event,
    /// Of users.
    User,
    /// Of whole rooms.
    Room,
}

impl ReportKind {
    fn condition(self) -> &'static str {
        match self {
            Self::Event => "r.event_id IS NOT NULL",
            Self::User => "r.user_id IS NOT NULL",
            Self::Room => "r.room_id IS NOT NULL AND r.event_id IS NULL",
        }
    }
}

/// A report that is kept.
#[derive(Debug, Clone)]
pub struct KeptReport {
    /// Its number.
    pub id: i64,
    /// Whose.
    pub reporter: String,
    /// Of a room, or of an event in it.
    pub room: Option<String>,
    /// Of this event.
    pub event: Option<String>,
    /// Of this user.
    pub user: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// When it was made.
    pub created_ms: Millis,
}

/// Which reports of a kind are meant: all, but for what is said here.
#[derive(Debug, Clone, Default)]
pub struct ReportFilter {
    /// Those of users with this in their ids.
    pub reporter: Option<String>,
    /// Those of rooms, or of events in rooms, with this in their ids.
    pub room: Option<String>,
    /// Those of users with this in their ids.
    pub user: Option<String>,
    /// Those of events that this user sent, as far as these are here.
    pub sender: Option<String>,
}

impl ReportFilter {
    /// The conditions, and what is bound in them.
    fn conditions(&self, kind: ReportKind) -> (String, Vec<&dyn ToSql>) {
        let (mut all, mut bound) = (vec![kind.condition()], Vec::<&dyn ToSql>::new());
        for (condition, wanted) in [
            ("instr(r.reporter, ?)", &self.reporter),
            ("instr(r.room_id, ?)", &self.room),
            ("instr(r.user_id, ?)", &self.user),
            (
                "(SELECT CAST(e.json AS TEXT) ->> '$.sender' FROM events e WHERE e.event_id = r.event_id) = ?",
                &self.sender,
            ),
        ] {
            if let Some(wanted) = wanted {
                all.push(condition);
                bound.push(wanted);
            }
        }
        (all.join(" AND "), bound)
    }
}

const KEPT: &str =
    "SELECT r.report, r.reporter, r.room_id, r.event_id, r.user_id, r.reason, r.created_ms FROM reports r";

fn kept(row: &Row<'_>) -> rusqlite::Result<KeptReport> {
    Ok(KeptReport {
        id: row.get(0)?,
        reporter: row.get(1)?,
        room: row.get(2)?,
        event: row.get(3)?,
        user: row.get(4)?,
        reason: row.get(5)?,
        created_ms: row.get(6)?,
    })
}

impl Db<'_> {
    /// A page of the reports that fit: `limit` of them, from the `from`th on, the newest first or, if it `ascends`, the oldest;
    /// and how many there are in all.
    pub fn reports(
        &self,
        kind: ReportKind,
        filter: &ReportFilter,
        ascends: bool,
        (from, limit): (i64, i64),
    ) -> Result<(Vec<KeptReport>, i64)> {
        let (conditions, mut bound) = filter.conditions(kind);
        let total = self
            .conn()
            .prepare(&format!("SELECT count(*) FROM reports r WHERE {conditions}"))?
            .query_row(params_from_iter(&bound), |row| row.get(0))?;
        let direction = if ascends { "ASC" } else { "DESC" };
        let page = format!("{KEPT} WHERE {conditions} ORDER BY r.report {direction} LIMIT ? OFFSET ?");
        bound.extend([&limit as &dyn ToSql, &from]);
        let mut query = self.conn().prepare(&page)?;
        let rows = query.query_map(params_from_iter(&bound), kept)?;
        Ok((rows.collect::<rusqlite::Result<_>>()?, total))
    }

    /// One report of this kind.
    pub fn report(&self, kind: ReportKind, id: i64) -> Result<Option<KeptReport>> {
        let mut query =
            self.conn().prepare(&format!("{KEPT} WHERE {} AND r.report = ?1", kind.condition()))?;
        Ok(query.query_row([id], kept).optional()?)
    }
}

impl Tx<'_> {
    /// Puts a report of this kind away. False: there is none.
    pub fn delete_report(&mut self, kind: ReportKind, id: i64) -> Result<bool> {
        let condition = kind.condition();
        let delete = format!("DELETE FROM reports AS r WHERE {condition} AND r.report = ?1");
        Ok(self.execute(&delete, params![id])? > 0)
    }

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
        let store = Store::open(
            Location::Memory,
            &us,
            Box::new(|_| ()),
            &Options { durable: false, readers: 1, ..Options::default() },
        )
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
