//! Turns: at most one handshake at a time for one user in one room, so that a double click is one knock; and one of us at
//! a time who enters a room, so that a large one is fetched once. Only a convenience: what must hold after a crash is held
//! by the rows in the database.
//!
//! Others may wait for the end of a turn without taking one: for a moment, and never many of them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::locks::{lock, wait_timeout};
use crate::protocol::{RoomId, UserId};

/// One user in one room.
type UserInRoom = (RoomId, UserId);

/// Who is having a handshake.
pub struct Turns<K = UserInRoom> {
    state: Mutex<State<K>>,
    freed: Condvar,
}

struct State<K> {
    /// The turns that are taken.
    busy: HashMap<K, Taken>,
    /// How many turns have been taken, and how many have ended.
    taken: u64,
    ended: u64,
}

/// A turn that somebody has.
struct Taken {
    number: u64,
    /// How many wait for its end without wanting it.
    onlookers: usize,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { state: Mutex::new(State { busy: HashMap::new(), taken: 0, ended: 0 }), freed: Condvar::new() }
    }
}

/// A turn; over when dropped.
pub struct Turn<'t, K: Eq + Hash = UserInRoom> {
    turns: &'t Turns<K>,
    key: K,
}

/// How long somebody waits for the same user's handshake before theirs.
const PATIENCE: Duration = Duration::from_secs(100);
/// So many may wait for the end of one turn; others can hold no more threads by it.
const MOST_ONLOOKERS: usize = 4;

impl Turns<UserInRoom> {
    /// Waits for the user's other handshake in the room, if there is one. Errors: 502 if that takes too long.
    pub fn take(&self, room: &RoomId, user: &UserId) -> Result<Turn<'_>> {
        let turn = self.wait((room.clone(), user.clone()));
        turn.ok_or_else(|| Error::bad_gateway("An earlier request for this room is still being worked on"))
    }

    /// A turn if nobody has it.
    pub fn try_take(&self, room: &RoomId, user: &UserId) -> Option<Turn<'_>> {
        let key = (room.clone(), user.clone());
        let is_free = lock(&self.state).enter(key.clone());
        // Not `then_some`: a turn that is made and dropped would end the other's.
        is_free.then(|| Turn { turns: self, key })
    }

    /// Waits for the end of the user's handshake in the room, so long at most. Whether there was one and it has ended.
    pub fn wait_for_end(&self, room: &RoomId, user: &UserId, within: Duration) -> bool {
        let key = (room.clone(), user.clone());
        let until = Instant::now() + within;
        let mut state = lock(&self.state);
        let number = match state.busy.get_mut(&key) {
            Some(taken) if taken.onlookers < MOST_ONLOOKERS => {
                taken.onlookers += 1;
                taken.number
            }
            _ => return false,
        };
        // Another turn of theirs may follow at once, and is not waited for.
        while state.busy.get(&key).is_some_and(|taken| taken.number == number) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.busy.entry(key).and_modify(|taken| taken.onlookers -= 1);
                return false;
            }
            state = wait_timeout(&self.freed, state, left);
        }
        true
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// Waits for whoever has this turn. None if that takes too long.
    pub fn wait(&self, key: K) -> Option<Turn<'_, K>> {
        let until = Instant::now() + PATIENCE;
        let mut state = lock(&self.state);
        while !state.enter(key.clone()) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = wait_timeout(&self.freed, state, left);
        }
        Some(Turn { turns: self, key })
    }
}

impl<K: Eq + Hash> State<K> {
    /// Takes a turn if nobody has it.
    fn enter(&mut self, key: K) -> bool {
        let is_free = !self.busy.contains_key(&key);
        if is_free {
            self.taken += 1;
            self.busy.insert(key, Taken { number: self.taken, onlookers: 0 });
        }
        is_free
    }
}

impl<K> Turns<K> {
    /// Looks again whenever a turn has ended, until there is something to see or the time is up.
    pub fn watch<T>(&self, until: Instant, mut look: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
        loop {
            let seen = lock(&self.state).ended;
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            let mut state = lock(&self.state);
            while state.ended == seen {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                state = wait_timeout(&self.freed, state, left);
            }
        }
    }
}

impl<K: Eq + Hash> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        let mut state = lock(&self.turns.state);
        state.busy.remove(&self.key);
        state.ended += 1;
        drop(state);
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

    #[test]
    fn the_end_of_a_turn_is_waited_for_by_a_few_and_not_for_ever() {
        let turns = Arc::new(Turns::default());
        let (room, user) = (RoomId::parse("!a:b").unwrap(), UserId::parse("@u:b").unwrap());
        let long = Duration::from_secs(60);
        assert!(!turns.wait_for_end(&room, &user, long), "nobody has it");
        let first = turns.take(&room, &user).unwrap();
        assert!(!turns.wait_for_end(&room, &user, Duration::from_millis(1)));
        let onlookers: Vec<_> = (0..MOST_ONLOOKERS)
            .map(|_| {
                let (turns, room, user) = (turns.clone(), room.clone(), user.clone());
                std::thread::spawn(move || turns.wait_for_end(&room, &user, long))
            })
            .collect();
        let waiting = || lock(&turns.state).busy.values().map(|taken| taken.onlookers).sum::<usize>();
        while waiting() < MOST_ONLOOKERS {
            std::thread::yield_now();
        }
        assert!(!turns.wait_for_end(&room, &user, long), "one too many");
        drop(first);
        assert!(onlookers.into_iter().all(|one| one.join().unwrap()));
        // Whoever watches looks again at the end of a turn, and only then.
        let mut looks = 0;
        let second = turns.take(&room, &user).unwrap();
        let ending = std::thread::scope(|scope| {
            let mut second = Some(second);
            let turns = &turns;
            scope
                .spawn(move || {
                    turns.watch(Instant::now() + long, || {
                        looks += 1;
                        drop(second.take().filter(|_| looks == 1));
                        Ok((looks == 2).then_some(looks))
                    })
                })
                .join()
                .unwrap()
        });
        assert_eq!(ending.unwrap(), Some(2));
        assert_eq!(turns.watch(Instant::now(), || Ok(None::<()>)).unwrap(), None);
    }
}
