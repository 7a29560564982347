//! How much state resolution the events of a room, and those of a server, may cause: resolving the forks of a room that
//! somebody has made heavy costs the same for each event that follows, however small that is.
//!
//! What counts are the events that a verdict looks at. A room has an allowance of them that fills up again; when it is
//! spent, further events are received without such work where that is possible (as late extremities, which are caught
//! up with together), and wait on disk where it is not. Other rooms notice nothing. No server spends more than half of
//! a room's allowance, and none of that for the late extremities, which would never be caught up with otherwise.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::locks::lock;
use crate::protocol::{RoomId, ServerName};

/// Events that a room may cost at once, and in a second from then on.
const ROOM_RATE: EventRate = EventRate { at_once_max: 4000, per_second: 1500 };
/// Half of that is what one server may cost.
const SERVER_IN_ROOM_RATE: EventRate = EventRate { at_once_max: 2000, per_second: 750 };
/// What catching up with the late extremities of a room may cost.
const LATE_RATE: EventRate = EventRate { at_once_max: 2000, per_second: 1000 };
/// What one server may cost in all rooms together.
const SERVER_RATE: EventRate = EventRate { at_once_max: 12_000, per_second: 3000 };
/// Of each resolution so many are free: the forks of people who speak at the same moment cost nothing.
const FREE_EVENTS: usize = 64;
/// Of how many rooms and servers it is remembered what they have spent.
const KNOWN_MAX: usize = 10_000;

/// So many events at once, and so many a second from then on.
struct EventRate {
    at_once_max: i64,
    per_second: i64,
}

/// What is left of a rate, less than nothing if a single resolution took more, and when that was so.
struct EventsLeft {
    events: i64,
    at: Instant,
}

impl EventRate {
    /// What is left by now.
    fn left(&self, left: Option<&EventsLeft>, now: Instant) -> i64 {
        let Some(left) = left else { return self.at_once_max };
        let ms = i64::try_from(now.saturating_duration_since(left.at).as_millis()).unwrap_or(i64::MAX);
        left.events.saturating_add(ms.saturating_mul(self.per_second) / 1000).min(self.at_once_max)
    }

    /// How long until so much is left.
    fn until(&self, wanted: i64, left: i64) -> Duration {
        let ms = (wanted - left).max(0).saturating_mul(1000) / self.per_second;
        Duration::from_millis(ms.unsigned_abs())
    }

    /// How long until something is left to whoever it is. None: something is.
    fn pause<K: Eq + Hash>(&self, all: &Mutex<HashMap<K, EventsLeft>>, who: &K) -> Option<Duration> {
        let left = self.left(lock(all).get(who), Instant::now());
        (left <= 0).then(|| self.until(1, left))
    }

    /// Takes so many events from it.
    fn spend<K: Clone + Eq + Hash>(&self, all: &Mutex<HashMap<K, EventsLeft>>, who: &K, events: usize) {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        if events == 0 {
            return;
        }
        let (mut all, now) = (lock(all), Instant::now());
        if all.len() >= KNOWN_MAX && !all.contains_key(who) {
            all.retain(|_, left| self.left(Some(left), now) < self.at_once_max);
            if all.len() >= KNOWN_MAX {
                // Nobody can owe so much in so many rooms: those who owe least are let off.
                all.retain(|_, left| self.left(Some(left), now) <= 0);
            }
        }
        let left = self.left(all.get(who), now).saturating_sub(events);
        all.insert(who.clone(), EventsLeft { events: left, at: now });
    }
}

/// What rooms, servers, and servers in rooms have left.
#[derive(Default)]
pub struct ResolutionAllowance {
    rooms: Mutex<HashMap<RoomId, EventsLeft>>,
    late: Mutex<HashMap<RoomId, EventsLeft>>,
    servers: Mutex<HashMap<ServerName, EventsLeft>>,
    servers_in_rooms: Mutex<HashMap<(RoomId, ServerName), EventsLeft>>,
    turn: Mutex<()>,
}

impl ResolutionAllowance {
    /// For one resolution at a time: each holds a reader, of which there are few.
    pub(in crate::service) fn wait_for_turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// How long until more may be done for an event of the server in the room. None: now.
    pub(in crate::service) fn pause(&self, room: &RoomId, server: &ServerName) -> Option<Duration> {
        let both = (room.clone(), server.clone());
        self.pause_of_room(room)
            .max(SERVER_RATE.pause(&self.servers, server))
            .max(SERVER_IN_ROOM_RATE.pause(&self.servers_in_rooms, &both))
    }

    /// How long until more may be done for whatever event in the room. None: now.
    pub(in crate::service) fn pause_of_room(&self, room: &RoomId) -> Option<Duration> {
        ROOM_RATE.pause(&self.rooms, room)
    }

    /// How long until the room's late extremities may be caught up with: the more come until then, the better.
    pub(in crate::service) fn pause_of_late(&self, room: &RoomId) -> Option<Duration> {
        LATE_RATE.pause(&self.late, room)
    }

    /// So many events were looked at, on behalf of a server unless of all.
    pub(in crate::service) fn spend(&self, room: &RoomId, server: Option<&ServerName>, events: usize) {
        let events = events.saturating_sub(FREE_EVENTS);
        ROOM_RATE.spend(&self.rooms, room, events);
        if let Some(server) = server {
            SERVER_RATE.spend(&self.servers, server, events);
            SERVER_IN_ROOM_RATE.spend(&self.servers_in_rooms, &(room.clone(), server.clone()), events);
        }
    }

    /// So many events were looked at to catch up with the room's late extremities.
    pub(in crate::service) fn spend_on_late(&self, room: &RoomId, events: usize) {
        LATE_RATE.spend(&self.late, room, events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_spent_an_allowance_rests_and_nobody_else_does() {
        let allowance = ResolutionAllowance::default();
        let room = |n: u32| RoomId::parse(&format!("!{n}:x")).expect("a room id");
        let (busy, other) = (ServerName::parse("busy.x"), ServerName::parse("other.x"));
        let (busy, other) = (busy.expect("a name"), other.expect("a name"));
        assert_eq!(allowance.pause(&room(1), &busy), None);
        allowance.spend(&room(1), Some(&busy), 8000);
        let rest = allowance.pause(&room(1), &other).expect("the room has spent its allowance");
        assert!(Duration::from_secs(2) < rest && rest < Duration::from_secs(3), "{rest:?}");
        assert_eq!(allowance.pause(&room(2), &busy), None);
        allowance.spend(&room(2), Some(&busy), 5000);
        assert!(allowance.pause(&room(3), &busy).is_some(), "in however many rooms it does it");
        assert_eq!(allowance.pause(&room(3), &other), None);
    }
    #[test]
    fn nobody_spends_what_late_extremities_have_nor_more_of_a_room_than_half() {
        let allowance = ResolutionAllowance::default();
        let room = RoomId::parse("!1:x").expect("a room id");
        let (busy, other) = (ServerName::parse("busy.x"), ServerName::parse("other.x"));
        let (busy, other) = (busy.expect("a name"), other.expect("a name"));
        // One that spends as soon as it may.
        allowance.spend(&room, Some(&busy), 2300);
        assert!(allowance.pause(&room, &busy).is_some());
        assert_eq!((allowance.pause(&room, &other), allowance.pause_of_room(&room)), (None, None));
        allowance.spend(&room, Some(&other), 100_000);
        assert!(allowance.pause_of_room(&room).is_some());
        assert_eq!(allowance.pause_of_late(&room), None, "they have their turn however much others do");
        allowance.spend_on_late(&room, 4000);
        let rest = allowance.pause_of_late(&room).expect("that was more than they have");
        assert!(Duration::from_secs(1) < rest && rest < Duration::from_secs(3), "{rest:?}");
    }
}
