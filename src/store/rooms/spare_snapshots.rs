//! States that no event has (see `spare_snapshots` in `schema.sql`): how they are told from those that are needed, and go.
//!
//! What is made for an event, and its state then, is needed as long as the event is. Beside those there is only what the forks
//! of a room came to. It is noted when it is made, and is not spare any more once an event has it.

use rusqlite::{OptionalExtension, params};

use crate::error::Result;
use crate::store::{Db, RoomKey, SnapshotId, Tx};

/// More are not counted for who wants to know how many there are.
const COUNTED_MAX: i64 = 100_000;

/// Those that nothing needs: no other state, and their room has another one now.
const SPARE: &str = "FROM spare_snapshots s LEFT JOIN rooms r USING (room_key)
     WHERE s.children = 0 AND r.state IS NOT s.snapshot";

impl Db<'_> {
    /// So many states that nothing needs.
    pub fn spare_states(&self, most: usize) -> Result<Vec<SnapshotId>> {
        let sql = format!("SELECT s.snapshot {SPARE} ORDER BY s.snapshot LIMIT ?1");
        let mut statement = self.conn().prepare_cached(&sql)?;
        let rows = statement.query_map([most as i64], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// How many there are of those, up to a bound, and what they take in bytes, without what stands in rows of its own.
    pub fn spare_states_sum(&self) -> Result<(u64, u64)> {
        let sql = format!(
            "SELECT count(*), coalesce(sum(coalesce(length(p.delta), 0)), 0)
             FROM (SELECT s.snapshot {SPARE} LIMIT ?1) JOIN snapshots p USING (snapshot)"
        );
        let (states, bytes): (i64, i64) = self
            .conn()
            .prepare_cached(&sql)?
            .query_row([COUNTED_MAX], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok((states.unsigned_abs(), bytes.unsigned_abs()))
    }
}

impl Tx<'_> {
    /// A state was made that no event has.
    pub(in crate::store) fn note_spare_state(&mut self, room: RoomKey, state: SnapshotId) -> Result<()> {
        self.conn()
            .prepare_cached("INSERT INTO spare_snapshots (snapshot, room_key) VALUES (?1, ?2)")?
            .execute(params![state, room])?;
        self.remember_may_be_spare(state, true);
        Ok(())
    }

    /// An event has this state from now on. Errors: it is gone. Whoever decided by it has to decide anew.
    pub(in crate::store) fn event_has_state(&mut self, state: SnapshotId) -> Result<()> {
        self.snapshot_link(state)?;
        if self.is_known_not_to_be_spare(state)? {
            return Ok(());
        }
        self.conn().prepare_cached("DELETE FROM spare_snapshots WHERE snapshot = ?1")?.execute([state])?;
        self.remember_may_be_spare(state, false);
        Ok(())
    }

    fn remember_may_be_spare(&self, state: SnapshotId, may_be: bool) {
        self.recall(|cache| cache.events.row(state)).inspect(|row| row.set_may_be_spare(may_be));
    }

    /// Whether nothing need be looked for: nearly all that is made and built upon is a state of events.
    fn is_known_not_to_be_spare(&self, state: SnapshotId) -> Result<bool> {
        let is_known = self.recall(|cache| cache.events.row(state)).is_some_and(|row| !row.may_be_spare());
        if cfg!(debug_assertions) && is_known {
            let mut there =
                self.conn().prepare_cached("SELECT 1 FROM spare_snapshots WHERE snapshot = ?1")?;
            assert!(!there.exists([state])?, "state {state} is spare, and is remembered not to be");
        }
        Ok(is_known)
    }

    /// So many more states have this one as their parent.
    pub(in crate::store) fn count_child_of_spare_state(
        &mut self,
        state: SnapshotId,
        more: i64,
    ) -> Result<()> {
        if self.is_known_not_to_be_spare(state)? {
            return Ok(());
        }
        self.conn()
            .prepare_cached("UPDATE spare_snapshots SET children = children + ?2 WHERE snapshot = ?1")?
            .execute([state, more])?;
        Ok(())
    }

    /// Takes away those of these states that nothing needs, so many rows at most; gives how many of them were gone through.
    /// Of one that has more rows some are left for the next time.
    ///
    /// Nobody may have one in mind still who looked before it ceased to be its room's current state.
    pub fn remove_spare_states(&mut self, states: &[SnapshotId], most: usize) -> Result<usize> {
        let mut left = most;
        for (done, state) in states.iter().enumerate() {
            let is_spare = format!("SELECT 1 {SPARE} AND s.snapshot = ?1");
            if self.conn().prepare_cached(&is_spare)?.exists([state])?
                && !self.remove_state(*state, &mut left)?
            {
                return Ok(done);
            }
        }
        Ok(states.len())
    }

    /// Takes away the states that no event of a room has that is being deleted, so many rows at most. Whether there was none
    /// left.
    pub fn purge_spare_states(&mut self, room: RoomKey, most: usize) -> Result<bool> {
        let states: Vec<SnapshotId> = self
            .conn()
            .prepare_cached("SELECT snapshot FROM spare_snapshots WHERE room_key = ?1 LIMIT ?2")?
            .query_map(params![room, most as i64], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut left = most;
        for state in &states {
            if !self.remove_state(*state, &mut left)? {
                break;
            }
        }
        Ok(states.is_empty())
    }

    /// Takes a state that is spare: at once, so that nobody finds half of it; and of its entries, so many rows at most with it.
    /// Whether all of it is gone. Its number is never given to another.
    fn remove_state(&mut self, state: SnapshotId, left: &mut usize) -> Result<bool> {
        if *left == 0 {
            return Ok(false);
        }
        self.remember(|cache| cache.events.forget_states());
        let parent: Option<Option<SnapshotId>> = self
            .conn()
            .prepare_cached("DELETE FROM snapshots WHERE snapshot = ?1 RETURNING parent")?
            .query_row([state], |row| row.get(0))
            .optional()?;
        if let Some(parent) = parent {
            *left -= 1;
            self.execute("UPDATE retired_keys SET snapshot = max(snapshot, ?1)", params![state])?;
            if let Some(parent) = parent {
                self.count_child_of_spare_state(parent, -1)?;
            }
        }
        *left -= self.execute(
            "DELETE FROM snapshot_entries WHERE snapshot = ?1 AND tuple_id IN
               (SELECT tuple_id FROM snapshot_entries WHERE snapshot = ?1 LIMIT ?2)",
            params![state, *left as i64],
        )?;
        if *left == 0 {
            return Ok(false);
        }
        self.execute("DELETE FROM spare_snapshots WHERE snapshot = ?1", params![state])?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::store::rooms::snapshots::Delta;
    use crate::store::tests::in_memory;

    #[test]
    fn a_state_that_is_being_taken_away_is_nobodys_any_more_from_the_first_of_its_rows_on() {
        let store = in_memory("us.example");
        let entries: BTreeMap<i64, i64> = (1..=1000).map(|n| (n, n)).collect();
        let [below, state] = store
            .write(move |tx| {
                let below = tx.root_snapshot(&BTreeMap::from([(1, 1)]))?;
                let change: Delta =
                    entries.into_iter().map(|(tuple_id, event)| (tuple_id, Some(event))).collect();
                let state = tx.snapshot_after(below, &change)?;
                tx.note_spare_state(1, below)?;
                tx.count_child_of_spare_state(below, 1)?;
                tx.note_spare_state(1, state)?;
                Ok([below, state])
            })
            .unwrap();
        let mut portions = 0;
        let number = |sql: &str| {
            store.read(|db| Ok(db.conn().query_row(sql, [], |row| row.get::<_, i64>(0))?)).unwrap()
        };
        while number("SELECT count(*) FROM spare_snapshots") == 2 {
            let before = number("SELECT count(*) FROM snapshot_entries");
            store.write(move |tx| tx.remove_spare_states(&[state], 300)).unwrap();
            assert!(before - number("SELECT count(*) FROM snapshot_entries") <= 300);
            portions += 1;
            // Whoever had it in mind still is refused, instead of being given what is left of it.
            store.write(move |tx| tx.event_has_state(state)).unwrap_err();
            store.write(move |tx| tx.snapshot_after(state, &Delta::from([(1, Some(2))]))).unwrap_err();
        }
        assert!((3..=6).contains(&portions), "{portions}");
        assert_eq!(number("SELECT count(*) FROM snapshot_entries"), 0);
        assert_eq!(number("SELECT children FROM spare_snapshots"), 0);
        let next = store.write(|tx| tx.root_snapshot(&BTreeMap::new())).unwrap();
        assert!(next > state && below < state);
    }
}
