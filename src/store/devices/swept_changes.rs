//! Changes of the devices of other servers' users whom nobody here shares a room with any more: they go after a while.
//!
//! Such a change may still be due: to a client that was away all the time, if its user comes to share a room with the other
//! again. So it is kept for a month, and when it goes it is noted up to where changes have gone. Of who looked last before
//! that, everybody who may have come to share a room with them since counts as changed.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::{Db, Tx};

/// For so long changes are kept that are of interest to nobody, at least.
pub const KEPT_MS: Millis = 30 * 24 * 3_600_000;

/// What the next round takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextSweep {
    /// Changes up to this position.
    pub upto: i64,
    /// When.
    pub due_ms: Millis,
}

/// Some of the changes, looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ChangesPortion {
    /// Whose changes are of interest to nobody.
    pub users: Vec<UserId>,
    /// Behind which position the next portion begins; none: these were the last.
    pub next: Option<i64>,
}

/// Up to where changes have gone.
pub(in crate::store) fn swept_upto(connection: &Connection) -> rusqlite::Result<i64> {
    let upto = connection.query_row("SELECT swept_upto FROM device_changes_sweep", [], |row| row.get(0));
    Ok(upto.optional()?.unwrap_or(0))
}

impl Db<'_> {
    /// What the next round takes; none if there was none to be.
    pub fn next_changes_sweep(&self) -> Result<Option<NextSweep>> {
        let mut statement = self.conn().prepare_cached("SELECT upto, next_ms FROM device_changes_sweep")?;
        let next = statement.query_row([], |row| Ok(NextSweep { upto: row.get(0)?, due_ms: row.get(1)? }));
        Ok(next.optional()?)
    }

    /// Looks through the changes at positions in `(after, upto]`, so many at most, for those that nobody needs.
    pub fn changes_to_sweep(&self, (after, upto): (i64, i64), most: usize) -> Result<ChangesPortion> {
        let changes: Vec<(String, i64)> = self.rows(
            "SELECT user_id, stream FROM device_changes WHERE stream > ?1 AND stream <= ?2 ORDER BY stream LIMIT ?3",
            params![after, upto, most as i64],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let last = changes.last().filter(|_| changes.len() == most).map(|(_, stream)| *stream);
        let mut portion = ChangesPortion { users: Vec::new(), next: last };
        for (user, _) in changes {
            // Of ours the numbers go on that other servers know.
            let Some(user) = UserId::parse(&user).ok().filter(|user| !self.is_local(user.as_str())) else {
                continue;
            };
            if !self.is_of_interest(&user)? {
                portion.users.push(user);
            }
        }
        Ok(portion)
    }

    /// Other servers' users whose changes since a position may have gone, and who are in a room with one of us: all who may
    /// have come to be since changes went.
    pub fn sharers_of_swept_changes(&self, local: &UserId, since: i64) -> Result<BTreeSet<UserId>> {
        let swept_upto = self.shared.changes_swept_upto.load(Ordering::Acquire);
        if since >= swept_upto {
            return Ok(BTreeSet::new());
        }
        let users: Vec<String> = self.rows(
            "SELECT DISTINCT o.user_id FROM memberships m
               CROSS JOIN memberships o ON o.room_key = m.room_key AND o.membership = 'join'
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join' AND o.local = 0
               AND (o.stream > ?2 OR coalesce(m.joined_since, m.stream) > ?2)",
            params![local.as_str(), swept_upto],
            |row| row.get(0),
        )?;
        Ok(users.iter().filter_map(|user| UserId::parse(user).ok()).collect())
    }
}

impl Tx<'_> {
    /// Says what the next round takes.
    pub fn plan_changes_sweep(&mut self, next: NextSweep) -> Result<()> {
        self.execute(
            "INSERT INTO device_changes_sweep (one, swept_upto, upto, next_ms) VALUES (1, 0, ?1, ?2)
             ON CONFLICT DO UPDATE SET upto = excluded.upto, next_ms = excluded.next_ms",
            params![next.upto, next.due_ms],
        )?;
        Ok(())
    }

    /// Takes out the changes of these users up to the position of this round. Who came back meanwhile is told of as others
    /// are whose changes went.
    pub fn sweep_device_changes(&mut self, users: &[UserId], upto: i64) -> Result<()> {
        // Before any reader can miss them.
        self.db.shared.changes_swept_upto.fetch_max(upto, Ordering::AcqRel);
        self.execute("UPDATE device_changes_sweep SET swept_upto = ?1 WHERE swept_upto < ?1", params![upto])?;
        for user in users {
            self.execute(
                "DELETE FROM device_changes WHERE user_id = ?1 AND stream <= ?2",
                params![user.as_str(), upto],
            )?;
        }
        Ok(())
    }
}
