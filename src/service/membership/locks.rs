//! Locks: at most one handshake at a time for one user in one room, so that a double click is one knock.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::locks::{KeyGuard, KeyedLock};
use crate::protocol::{RoomId, UserId};

/// One user in one room.
type UserInRoom = (RoomId, UserId);

/// Held while a handshake is under way; released when dropped.
pub type HandshakeGuard<'t> = KeyGuard<'t, UserInRoom>;

/// How long somebody waits for the same user's handshake before theirs; and for another local user who enters the room.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(100);
/// So many may wait for the end of one handshake; others can hold no more threads by it.
const ONLOOKERS_MAX: usize = 4;

/// Who has a handshake under way.
#[derive(Default)]
pub struct HandshakeLocks(KeyedLock<UserInRoom>);

impl HandshakeLocks {
    /// Waits for the user's other handshake in the room, if there is one. Errors: 502 if that takes too long.
    pub fn take(&self, room: &RoomId, user: &UserId) -> Result<HandshakeGuard<'_>> {
        let guard = self.0.lock_until((room.clone(), user.clone()), Instant::now() + LOCK_TIMEOUT);
        guard.ok_or_else(|| Error::bad_gateway("An earlier request for this room is still being worked on"))
    }

    /// The lock if nobody holds it.
    pub fn try_take(&self, room: &RoomId, user: &UserId) -> Option<HandshakeGuard<'_>> {
        self.0.try_lock((room.clone(), user.clone()))
    }

    /// The lock once nobody holds it, so long at most.
    pub fn take_within(&self, room: &RoomId, user: &UserId, within: Duration) -> Option<HandshakeGuard<'_>> {
        self.0.lock_until((room.clone(), user.clone()), Instant::now() + within)
    }

    /// Whether a handshake of the user's in the room is under way.
    pub fn is_under_way(&self, room: &RoomId, user: &UserId) -> bool {
        self.0.is_held(&(room.clone(), user.clone()))
    }

    /// Waits for the end of the user's handshake in the room, so long at most. Whether there was one and it has ended.
    pub fn wait_for_end(&self, room: &RoomId, user: &UserId, within: Duration) -> bool {
        self.0.wait_for_end(&(room.clone(), user.clone()), Instant::now() + within, ONLOOKERS_MAX)
    }

    /// Looks again whenever a handshake has ended, until there is something to see or the time is up.
    pub fn watch<T>(&self, until: Instant, look: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
        self.0.watch(until, look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_second_handshake_of_the_same_user_waits_and_others_do_not() {
        let locks = Arc::new(HandshakeLocks::default());
        let (room, other) = (RoomId::parse("!a:b").unwrap(), RoomId::parse("!c:b").unwrap());
        let user = UserId::parse("@u:b").unwrap();
        let first = locks.take(&room, &user).unwrap();
        assert!(locks.try_take(&room, &user).is_none());
        assert!(locks.try_take(&other, &user).is_some());
        let waiting = {
            let (locks, room, user) = (locks.clone(), room.clone(), user.clone());
            std::thread::spawn(move || locks.take(&room, &user).is_ok())
        };
        drop(first);
        assert!(waiting.join().unwrap());
        assert!(locks.try_take(&room, &user).is_some());
    }
}
