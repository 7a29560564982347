//! Turns: at most one handshake at a time for one user in one room, so that a double click is one knock. Only a
//! convenience: what must hold after a crash is held by the rows in the database.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::protocol::{RoomId, UserId};

type Key = (RoomId, UserId);

/// Who is having a handshake.
#[derive(Default)]
pub struct Turns {
    busy: Mutex<HashSet<Key>>,
    freed: Condvar,
}

/// A turn; over when dropped.
pub struct Turn<'t> {
    turns: &'t Turns,
    key: Key,
}

/// How long somebody waits for the same user's handshake before theirs.
const PATIENCE: Duration = Duration::from_secs(100);

impl Turns {
    /// Waits for the user's other handshake in the room, if there is one. Errors: 502 if that takes too long.
    pub fn take(&self, room: &RoomId, user: &UserId) -> Result<Turn<'_>> {
        let key = (room.clone(), user.clone());
        let until = Instant::now() + PATIENCE;
        let mut busy = self.lock();
        while busy.contains(&key) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::bad_gateway("An earlier request for this room is still being worked on"));
            }
            busy = self.freed.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        busy.insert(key.clone());
        Ok(Turn { turns: self, key })
    }

    /// A turn if nobody has it.
    pub fn try_take(&self, room: &RoomId, user: &UserId) -> Option<Turn<'_>> {
        let key = (room.clone(), user.clone());
        let is_free = self.lock().insert(key.clone());
        // Not `then_some`: a turn that is made and dropped would end the other's.
        is_free.then(|| Turn { turns: self, key })
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
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
