//! Events that are to become forward extremities, and of which the current state of their room does not know yet.
//!
//! To the room they are as if they had not come: what is made here does not follow them, and they change nothing that
//! is current. Clients see them, other events may follow them, and nothing is lost: they are caught up with when there
//! is time.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use rusqlite::{Connection, params};

use crate::error::{Error, Result};
use crate::store::rooms::events::ForwardExtremity;
use crate::store::rooms::state::StateRef;
use crate::store::{Db, EventKey, Room, RoomKey, SnapshotId, Tx};

/// An event that is to become a forward extremity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateExtremity {
    /// Its row.
    pub key: EventKey,
    /// The state after it.
    pub state_after: SnapshotId,
    /// The forward extremities, and the late extremities that are being caught up with, that it follows.
    pub followed: Vec<EventKey>,
    /// Whether it is being caught up with.
    pub is_taken: bool,
    /// Whether another late extremity follows it, so that it is none any more but for whoever is catching up with it.
    pub is_overtaken: bool,
}

fn encode(followed: &[EventKey]) -> Vec<u8> {
    followed.iter().flat_map(|key| key.to_be_bytes()).collect()
}

fn decode(followed: &[u8]) -> Vec<EventKey> {
    followed.chunks_exact(8).map(|key| key.iter().fold(0, |n, byte| n << 8 | i64::from(*byte))).collect()
}

/// What a room's forward extremities become when these late extremities are among them.
pub fn extremities_with(
    extremities: &[ForwardExtremity],
    late: &[LateExtremity],
) -> Vec<(EventKey, SnapshotId)> {
    let followed: HashSet<EventKey> = late.iter().flat_map(|late| late.followed.iter().copied()).collect();
    let stay = extremities.iter().map(|extremity| (extremity.key, extremity.state_after));
    let come = late.iter().map(|late| (late.key, late.state_after));
    stay.chain(come).filter(|(key, _)| !followed.contains(key)).collect()
}

/// Whether any room has some.
pub(in crate::store) fn are_there_any(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM late_extremities)", [], |row| row.get(0))
}

impl Db<'_> {
    /// The late extremities of a room, in the order in which they came.
    pub fn late_extremities(&self, room: RoomKey) -> Result<Vec<LateExtremity>> {
        // Every event asks this, and hardly ever is there any.
        if !self.shared.any_late_extremities.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        self.rows(
            "SELECT l.event_key, e.state_after, l.followed, l.stage
             FROM late_extremities l JOIN events e USING (event_key)
             WHERE l.room_key = ?1 ORDER BY l.event_key",
            params![room],
            |row| {
                let (followed, stage) = (decode(row.get_ref(2)?.as_blob()?), row.get::<_, i64>(3)?);
                let (is_taken, is_overtaken) = (stage > 0, stage == 2);
                Ok(LateExtremity {
                    key: row.get(0)?,
                    state_after: row.get(1)?,
                    followed,
                    is_taken,
                    is_overtaken,
                })
            },
        )
    }

    /// The rooms that have some.
    pub fn rooms_with_late_extremities(&self) -> Result<Vec<RoomKey>> {
        self.rows("SELECT DISTINCT room_key FROM late_extremities", &[], |row| row.get(0))
    }
}

impl Tx<'_> {
    /// An event that has just been stored becomes a late extremity.
    pub(in crate::store) fn add_late_extremity(
        &mut self,
        room: RoomKey,
        key: EventKey,
        followed: &[EventKey],
    ) -> Result<()> {
        self.shared.any_late_extremities.store(true, Ordering::Relaxed);
        self.execute(
            "INSERT INTO late_extremities (room_key, event_key, followed) VALUES (?1, ?2, ?3)",
            params![room, key, encode(followed)],
        )?;
        self.room_is_behind(room);
        Ok(())
    }

    /// An event that follows these late extremities has been stored. If it is late itself, those that are being caught
    /// up with may become forward extremities yet, until it does.
    pub(in crate::store) fn overtake_late_extremities(
        &mut self,
        room: RoomKey,
        keys: &[EventKey],
        late: bool,
    ) -> Result<()> {
        for key in keys {
            self.execute(
                "DELETE FROM late_extremities WHERE room_key = ?1 AND event_key = ?2 AND (stage = 0 OR NOT ?3)",
                params![room, key, late],
            )?;
            self.execute(
                "UPDATE late_extremities SET stage = 2 WHERE room_key = ?1 AND event_key = ?2",
                params![room, *key],
            )?;
        }
        Ok(())
    }

    /// The first late extremities of a room, to be caught up with. They keep their rows until [`Tx::catch_up`] or the
    /// next attempt, whatever comes to follow them.
    pub(crate) fn take_late_extremities(
        &mut self,
        room: RoomKey,
        limit: usize,
    ) -> Result<Vec<LateExtremity>> {
        self.execute("DELETE FROM late_extremities WHERE room_key = ?1 AND stage = 2", params![room])?;
        let mut late = self.late_extremities(room)?;
        late.truncate(limit);
        for extremity in &late {
            self.execute(
                "UPDATE late_extremities SET stage = 1 WHERE room_key = ?1 AND event_key = ?2",
                params![room, extremity.key],
            )?;
        }
        Ok(late)
    }

    /// None of the room is one any more: it has come to us anew, or we have left it.
    pub(crate) fn forget_late_extremities(&mut self, room: RoomKey) -> Result<()> {
        self.execute("DELETE FROM late_extremities WHERE room_key = ?1", params![room])?;
        Ok(())
    }

    /// Makes late extremities forward extremities, `extremities` being all of them then, and `state` what the states
    /// after them come to.
    pub(crate) fn catch_up(
        &mut self,
        room: &Room,
        late: &[EventKey],
        extremities: &[EventKey],
        state: &StateRef,
    ) -> Result<()> {
        let (new, delta) = self.resolved_state(room, state)?;
        let old = room.state.ok_or_else(|| Error::internal("a room without a state"))?;
        let old_extremities = self.extremity_keys(room.key)?;
        for key in late {
            self.execute(
                "DELETE FROM late_extremities WHERE room_key = ?1 AND event_key = ?2",
                params![room.key, *key],
            )?;
        }
        self.set_extremities(room.key, &old_extremities, extremities)?;
        if new != old {
            let at = self.next_stream();
            self.set_room_state(room.key, new)?;
            self.note_activity(room.key, at, None)?;
            for user in self.move_current_state(room.key, &delta, at, true)? {
                self.wake_user(&user);
            }
        }
        self.room_changed(room.key)
    }
}
