//! Rooms that an administrator has deleted, and those of which what there is from before goes so that they can be entered anew: what
//! was asked for, and how far it is. What is deleted: `purge`.

use rusqlite::{OptionalExtension, Row, params};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::RoomId;
use crate::store::{Db, Tx};

/// How long it is told what became of a deletion.
const ENDED_KEPT_MS: Millis = 7 * 24 * 3_600_000;
/// And of how many at most.
const ENDED_MAX: i64 = 1000;

/// How far the deletion of a room is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeletionStage {
    /// Local users are leaving.
    Leaving,
    /// Its rows go.
    Purging,
    /// It is done.
    Complete,
    /// It ended before it was done.
    Failed,
}

impl DeletionStage {
    const ALL: [Self; 4] = [Self::Leaving, Self::Purging, Self::Complete, Self::Failed];

    fn of(code: i64) -> Option<Self> {
        usize::try_from(code).ok().and_then(|code| Self::ALL.get(code)).copied()
    }

    /// Whether nothing more happens.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Complete | Self::Failed)
    }
}

/// The deletion of a room.
#[derive(Debug, Clone)]
pub struct RoomDeletion {
    /// Its id.
    pub delete_id: String,
    /// The room.
    pub room_id: RoomId,
    /// What was asked for, a JSON object.
    pub order: String,
    /// What has become of it, a JSON object.
    pub result: String,
    /// How far it is.
    pub stage: DeletionStage,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether it is no administrator who wants this: the room is being entered again, and what there is of it from before
    /// counts no more (`service/membership/join/import.rs`).
    pub entered_anew: bool,
}

const DELETION: &str =
    "SELECT delete_id, room_id, order_json, result, stage, error, entered_anew FROM room_deletions";

fn deletion_of(row: &Row<'_>) -> Result<RoomDeletion> {
    Ok(RoomDeletion {
        delete_id: row.get(0)?,
        room_id: RoomId::parse(&row.get::<_, String>(1)?)?,
        order: row.get(2)?,
        result: row.get(3)?,
        stage: DeletionStage::of(row.get(4)?).ok_or_else(|| Error::internal("an unknown stage"))?,
        error: row.get(5)?,
        entered_anew: row.get(6)?,
    })
}

impl Db<'_> {
    /// The deletion of this id.
    pub fn room_deletion(&self, delete_id: &str) -> Result<Option<RoomDeletion>> {
        let mut statement = self.conn().prepare_cached(&format!("{DELETION} WHERE delete_id = ?1"))?;
        let mut rows = statement.query([delete_id])?;
        rows.next()?.map(deletion_of).transpose()
    }

    /// The deletions of a room, the last that was asked for first.
    pub fn room_deletions_of(&self, room: &RoomId) -> Result<Vec<RoomDeletion>> {
        let mut statement =
            self.conn().prepare_cached(&format!("{DELETION} WHERE room_id = ?1 ORDER BY asked_ms DESC"))?;
        let mut rows = statement.query([room.as_str()])?;
        let mut deletions = Vec::new();
        while let Some(row) = rows.next()? {
            deletions.push(deletion_of(row)?);
        }
        Ok(deletions)
    }

    /// Whether what there is of a room from before is going, so that it can be entered anew.
    pub fn is_past_going(&self, room: &RoomId) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM room_deletions WHERE room_id = ?1 AND due_ms IS NOT NULL AND entered_anew = 1",
        )?;
        Ok(statement.exists([room.as_str()])?)
    }

    /// A deletion that is due.
    pub fn due_room_deletion(&self, now: Millis) -> Result<Option<String>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT delete_id FROM room_deletions WHERE due_ms <= ?1 ORDER BY due_ms LIMIT 1",
        )?;
        Ok(statement.query_row([now], |row| row.get(0)).optional()?)
    }

    /// When the next one is.
    pub fn next_room_deletion_due(&self) -> Result<Option<Millis>> {
        let mut statement =
            self.conn().prepare_cached("SELECT min(due_ms) FROM room_deletions WHERE due_ms IS NOT NULL")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Writes down that a room is to be deleted, to be taken up at `due`. False: it is being deleted already.
    pub fn add_room_deletion(&mut self, deletion: &RoomDeletion, due: Millis, now: Millis) -> Result<bool> {
        let mut under_way = self
            .conn()
            .prepare_cached("SELECT 1 FROM room_deletions WHERE room_id = ?1 AND due_ms IS NOT NULL")?;
        if under_way.exists([deletion.room_id.as_str()])? {
            return Ok(false);
        }
        drop(under_way);
        self.sweep_room_deletions(now)?;
        if !deletion.entered_anew {
            self.room_is_shut();
        }
        self.execute(
            "INSERT INTO room_deletions (delete_id, room_id, order_json, result, stage, entered_anew, asked_ms, due_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                deletion.delete_id,
                deletion.room_id.as_str(),
                deletion.order,
                deletion.result,
                deletion.stage as i64,
                deletion.entered_anew,
                now,
                due,
            ],
        )?;
        self.is_due(due);
        Ok(true)
    }

    fn sweep_room_deletions(&mut self, now: Millis) -> Result<()> {
        self.execute("DELETE FROM room_deletions WHERE ended_ms < ?1", params![now - ENDED_KEPT_MS])?;
        self.execute(
            "DELETE FROM room_deletions WHERE ended_ms <=
             (SELECT ended_ms FROM room_deletions WHERE ended_ms IS NOT NULL
              ORDER BY ended_ms DESC LIMIT 1 OFFSET ?1)",
            params![ENDED_MAX],
        )?;
        Ok(())
    }

    /// Puts off a deletion until then, because somebody is at it, or it cannot go on now.
    pub fn put_off_room_deletion(&mut self, delete_id: &str, due: Millis) -> Result<()> {
        self.execute(
            "UPDATE room_deletions SET due_ms = ?2 WHERE delete_id = ?1 AND due_ms IS NOT NULL",
            params![delete_id, due],
        )?;
        self.is_due(due);
        Ok(())
    }

    /// Writes down how far a deletion is.
    pub fn save_room_deletion(&mut self, deletion: &RoomDeletion, now: Millis) -> Result<()> {
        let over = deletion.stage.is_over();
        self.execute(
            "UPDATE room_deletions SET result = ?2, stage = ?3, error = ?4,
               due_ms = CASE WHEN ?5 THEN NULL ELSE due_ms END, ended_ms = CASE WHEN ?5 THEN ?6 END
             WHERE delete_id = ?1",
            params![deletion.delete_id, deletion.result, deletion.stage as i64, deletion.error, over, now],
        )?;
        Ok(())
    }
}
