//! Whose presence changed of late, in memory: of whoever is told what came into a room, anybody's presence may be news as
//! well, and of a thousand who are told at once nobody is to look for it in the database.
//!
//! As in `news`, a commit's changes are put in before it can be seen, and taken out if it fails; what is not remembered any
//! more is asked of the database.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};

use crate::error::Result;
use crate::locks::lock;
use crate::protocol::UserId;
use crate::store::ephemeral::presence::Presence;
use crate::store::{RoomKey, Store};

/// Changes that are remembered, and rooms of each of these users, at most.
const CHANGES_MAX: usize = 1024;
const ROOMS_MAX: usize = 256;

/// That somebody's presence changed.
#[derive(Debug)]
pub struct PresenceChange {
    /// At this position of the stream.
    pub stream: i64,
    /// Whose.
    pub user: UserId,
    /// What it is since then.
    pub presence: Presence,
    /// The rooms that they are joined to, in order, once somebody asked; none if they are very many.
    rooms: OnceLock<Option<Box<[RoomKey]>>>,
}

impl PresenceChange {
    pub(in crate::store) fn new(stream: i64, user: UserId, presence: Presence) -> Self {
        Self { stream, user, presence, rooms: OnceLock::new() }
    }

    /// The rooms that the user was joined to, in order, at some time since the change. None if they are very many. Only whoever
    /// asks first looks for them; for the others it is so as long as nobody came to their own rooms, or left them, since then.
    pub fn rooms(&self, store: &Store) -> Result<Option<&[RoomKey]>> {
        if self.rooms.get().is_none() {
            let rooms = store.read(|db| db.some_joined_rooms(&self.user, ROOMS_MAX + 1))?;
            let _ = self.rooms.set((rooms.len() <= ROOMS_MAX).then(|| rooms.into()));
        }
        Ok(self.rooms.get().and_then(Option::as_deref))
    }
}

pub(in crate::store) struct RecentPresences(Mutex<PresenceLog>);

struct PresenceLog {
    /// Of what came up to here nothing is known.
    floor: i64,
    changes: VecDeque<Arc<PresenceChange>>,
}

impl RecentPresences {
    pub(in crate::store) fn new(position: i64) -> Self {
        Self(Mutex::new(PresenceLog { floor: position, changes: VecDeque::new() }))
    }

    /// Before the commit that made these changes can be seen.
    pub(in crate::store) fn put(&self, changes: &[Arc<PresenceChange>]) {
        if changes.is_empty() {
            return;
        }
        let mut log = lock(&self.0);
        log.changes.extend(changes.iter().cloned());
        while log.changes.len() > CHANGES_MAX {
            log.floor = log.changes.pop_front().map_or(log.floor, |oldest| oldest.stream);
        }
    }

    /// The commit of what comes after this position has failed.
    pub(in crate::store) fn take_back(&self, from: i64) {
        let mut log = lock(&self.0);
        while log.changes.back().is_some_and(|last| last.stream > from) {
            log.changes.pop_back();
        }
        log.floor = log.floor.min(from);
    }

    fn between(&self, after: i64, upto: i64) -> Option<Vec<Arc<PresenceChange>>> {
        let log = lock(&self.0);
        if after < log.floor {
            return None;
        }
        let first = log.changes.partition_point(|change| change.stream <= after);
        Some(log.changes.range(first..).take_while(|change| change.stream <= upto).cloned().collect())
    }
}

impl Store {
    /// The changes of presence at positions in `(after, upto]`, the latest last, of which `upto` was published. None: it is not
    /// remembered, so there may be any.
    pub fn presences_between(&self, after: i64, upto: i64) -> Option<Vec<Arc<PresenceChange>>> {
        self.shared.presences.between(after, upto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ephemeral::presence::PresenceState;

    fn changes(streams: &[i64]) -> Vec<Arc<PresenceChange>> {
        let presence = Presence {
            state: PresenceState::Online,
            status: None,
            last_active_ms: 0,
            active: true,
            until_ms: None,
        };
        let user = UserId::parse("@alice:a.example").expect("a user id");
        let change = |stream: &i64| Arc::new(PresenceChange::new(*stream, user.clone(), presence.clone()));
        streams.iter().map(change).collect()
    }

    fn streams(log: &RecentPresences, after: i64, upto: i64) -> Option<Vec<i64>> {
        Some(log.between(after, upto)?.iter().map(|change| change.stream).collect())
    }

    #[test]
    fn changes_are_told_from_a_position_to_another_as_long_as_they_are_remembered() {
        let log = RecentPresences::new(10);
        log.put(&changes(&[12, 13]));
        log.put(&changes(&[20]));
        assert_eq!(streams(&log, 10, 19), Some(vec![12, 13]));
        assert_eq!(streams(&log, 12, 20), Some(vec![13, 20]));
        assert_eq!(streams(&log, 20, 30), Some(vec![]));
        assert_eq!(streams(&log, 9, 30), None, "what was before the start is not known");
        let many: Vec<i64> = (100..100 + i64::try_from(CHANGES_MAX).expect("few")).collect();
        log.put(&changes(&many));
        assert_eq!(streams(&log, 19, 200), None);
        assert_eq!(streams(&log, 20, 101), Some(vec![100, 101]));
        assert_eq!(lock(&log.0).changes.len(), CHANGES_MAX);
    }

    #[test]
    fn what_was_not_committed_did_not_change() {
        let log = RecentPresences::new(10);
        log.put(&changes(&[12]));
        log.put(&changes(&[13, 14]));
        log.take_back(12);
        log.put(&changes(&[13]));
        assert_eq!(streams(&log, 10, 99), Some(vec![12, 13]));
    }
}
