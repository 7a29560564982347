//! Turns: at most one handshake at a time for one user in one room, so that a double click is one knock; and one of us at
//! a time who enters a room, so that a large one is fetched once. Only a convenience: what must hold after a crash is held
//! by the rows in the database.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::protocol::{RoomId, UserId};

/// One user in one room.
type UserInRoom = (RoomId, UserId);

/// Who is having a handshake.
pub struct Turns<K = UserInRoom> {
    busy: Mutex<HashSet<K>>,
    freed: Condvar,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { busy: Mutex::default(), freed: Condvar::new() }
    }
}

/// A turn; over when dropped.
pub struct Turn<'t, K: Eq + Hash = UserInRoom> {
    turns: &'t Turns<K>,
    key: K,
}

/// How long somebody waits for the same user's handshake before theirs.
const PATIENCE: Duration = Duration::from_secs(100);

impl Turns<UserInRoom> {
    /// Waits for the user's other handshake in the room, if there is one. Errors: 502 if that takes too long.
    pub fn take(&self, room: &RoomId, user: &UserId) -> Result<Turn<'_>> {
        let turn = self.wait((room.clone(), user.clone()));
        turn.ok_or_else(|| Error::bad_gateway("An earlier request for this room is still being worked on"))
    }

    /// A turn if nobody has it.
    pub fn try_take(&self, room: &RoomId, user: &UserId) -> Option<Turn<'_>> {
        let key = (room.clone(), user.clone());
        let is_free = self.lock().insert(key.clone());
        // Not `then_some`: a turn that is made and dropped would end the other's.
        is_free.then(|| Turn { turns: self, key })
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// Waits for whoever has this turn. None if that takes too long.
    pub fn wait(&self, key: K) -> Option<Turn<'_, K>> {
        let until = Instant::now() + PATIENCE;
        let mut busy = self.lock();
        while busy.contains(&key) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            busy = self.freed.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        busy.insert(key.clone());
        Some(Turn { turns: self, key })
    }
}

impl<K> Turns<K> {
    fn lock(&self) -> MutexGuard<'_, HashSet<K>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        self.turns.lock().remove(&self.key);
        self.turns.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_second_handshake_of_the_same_user_waits_and_others_do_not() {
        let turns = Arc::new(Turns::default());
        let (room, other) = (RoomId::parse("!a:b").unwrap(), RoomId::parse("!c:b").unwrap());
        let user = UserId::parse("@u:b").unwrap();
        let first = turns.take(&room, &user).unwrap();
        assert!(turns.try_take(&room, &user).is_none());
        assert!(turns.try_take(&other, &user).is_some());
        let waiting = {
            let (turns, room, user) = (turns.clone(), room.clone(), user.clone());
            std::thread::spawn(move || turns.take(&room, &user).is_ok())
        };
        drop(first);
        assert!(waiting.join().unwrap());
        assert!(turns.try_take(&room, &user).is_some());
    }
}
