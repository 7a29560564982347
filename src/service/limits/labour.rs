//! How much work the events of a room, and those of a server, may cause: resolving the branches of a room that somebody has
//! made heavy costs the same for each event that follows, however small that is.
//!
//! What counts are the events that a verdict looks at. A room has an allowance of them that fills up again; when it is
//! spent, further events are taken in without such work where that is possible (as late heads, which are caught up with
//! together), and wait on disk where it is not. Other rooms notice nothing. No server spends more than half of a room's
//! allowance, and none of that for the late heads, which would never be caught up with otherwise.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::locks::lock;
use crate::protocol::{RoomId, ServerName};

/// Events that a room may cost at once, and in a second from then on.
const OF_ROOM: Allowance = Allowance { most: 4000, a_second: 1500 };
/// Half of that is what one server may cost.
const OF_SERVER_IN_ROOM: Allowance = Allowance { most: 2000, a_second: 750 };
/// What catching up with the late heads of a room may cost.
const OF_LATE: Allowance = Allowance { most: 2000, a_second: 1000 };
/// The same of a server in all rooms together.
const OF_SERVER: Allowance = Allowance { most: 12_000, a_second: 3000 };
/// Of each resolution so many are free: the forks of people who speak at the same moment are no labour.
const FREE: usize = 64;
/// Of how many rooms and servers it is remembered what they have spent.
const MOST_KNOWN: usize = 10_000;

struct Allowance {
    most: i64,
    a_second: i64,
}

/// What is left of an allowance, less than nothing if a single resolution took more, and when that was so.
struct Left {
    events: i64,
    at: Instant,
}

impl Allowance {
    /// What is left by now.
    fn left(&self, left: Option<&Left>, now: Instant) -> i64 {
        let Some(left) = left else { return self.most };
        let ms = i64::try_from(now.saturating_duration_since(left.at).as_millis()).unwrap_or(i64::MAX);
        left.events.saturating_add(ms.saturating_mul(self.a_second) / 1000).min(self.most)
    }

    /// How long until so much is left.
    fn until(&self, wanted: i64, left: i64) -> Duration {
        let ms = (wanted - left).max(0).saturating_mul(1000) / self.a_second;
        Duration::from_millis(ms.unsigned_abs())
    }

    /// How long until something is left to whoever it is. None: something is.
    fn rest<K: Eq + Hash>(&self, all: &Mutex<HashMap<K, Left>>, who: &K) -> Option<Duration> {
        let left = self.left(lock(all).get(who), Instant::now());
        (left <= 0).then(|| self.until(1, left))
    }

    /// Takes so many events from it.
    fn pay<K: Clone + Eq + Hash>(&self, all: &Mutex<HashMap<K, Left>>, who: &K, events: usize) {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        if events == 0 {
            return;
        }
        let (mut all, now) = (lock(all), Instant::now());
        if all.len() >= MOST_KNOWN && !all.contains_key(who) {
            all.retain(|_, left| self.left(Some(left), now) < self.most);
            if all.len() >= MOST_KNOWN {
                // Nobody can owe so much in so many rooms: those who owe least are let off.
                all.retain(|_, left| self.left(Some(left), now) <= 0);
            }
        }
        let left = self.left(all.get(who), now).saturating_sub(events);
        all.insert(who.clone(), Left { events: left, at: now });
    }
}

/// The allowances.
#[derive(Default)]
pub struct Labour {
    rooms: Mutex<HashMap<RoomId, Left>>,
    late: Mutex<HashMap<RoomId, Left>>,
    servers: Mutex<HashMap<ServerName, Left>>,
    servers_in_rooms: Mutex<HashMap<(RoomId, ServerName), Left>>,
    turn: Mutex<()>,
}

impl Labour {
    /// For one resolution at a time: each holds a reader, of which there are few.
    pub(in crate::service) fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// How long until more may be done for an event of the server in the room. None: now.
    pub(in crate::service) fn rest(&self, room: &RoomId, server: &ServerName) -> Option<Duration> {
        let both = (room.clone(), server.clone());
        self.rest_of_room(room)
            .max(OF_SERVER.rest(&self.servers, server))
            .max(OF_SERVER_IN_ROOM.rest(&self.servers_in_rooms, &both))
    }

    /// The same for whatever event in the room.
    pub(in crate::service) fn rest_of_room(&self, room: &RoomId) -> Option<Duration> {
        OF_ROOM.rest(&self.rooms, room)
    }

    /// How long until the room's late heads may be caught up with: the more come until then, the better.
    pub(in crate::service) fn rest_of_late(&self, room: &RoomId) -> Option<Duration> {
        OF_LATE.rest(&self.late, room)
    }

    /// So many events were looked at, on behalf of a server unless of all.
    pub(in crate::service) fn pay(&self, room: &RoomId, server: Option<&ServerName>, events: usize) {
        let events = events.saturating_sub(FREE);
        OF_ROOM.pay(&self.rooms, room, events);
        if let Some(server) = server {
            OF_SERVER.pay(&self.servers, server, events);
            OF_SERVER_IN_ROOM.pay(&self.servers_in_rooms, &(room.clone(), server.clone()), events);
        }
    }

    /// So many events were looked at to catch up with the room's late heads.
    pub(in crate::service) fn pay_for_late(&self, room: &RoomId, events: usize) {
        OF_LATE.pay(&self.late, room, events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_spent_an_allowance_rests_and_nobody_else_does() {
        let labour = Labour::default();
        let room = |n: u32| RoomId::parse(&format!("!{n}:x")).expect("a room id");
        let (busy, other) = (ServerName::parse("busy.x"), ServerName::parse("other.x"));
        let (busy, other) = (busy.expect("a name"), other.expect("a name"));
        assert_eq!(labour.rest(&room(1), &busy), None);
        labour.pay(&room(1), Some(&busy), 8000);
        let rest = labour.rest(&room(1), &other).expect("the room has spent its allowance");
        assert!(Duration::from_secs(2) < rest && rest < Duration::from_secs(3), "{rest:?}");
        assert_eq!(labour.rest(&room(2), &busy), None);
        labour.pay(&room(2), Some(&busy), 5000);
        assert!(labour.rest(&room(3), &busy).is_some(), "in however many rooms it does it");
        assert_eq!(labour.rest(&room(3), &other), None);
    }
    #[test]
    fn nobody_spends_what_late_heads_have_nor_more_of_a_room_than_half() {
        let labour = Labour::default();
        let room = RoomId::parse("!1:x").expect("a room id");
        let (busy, other) = (ServerName::parse("busy.x"), ServerName::parse("other.x"));
        let (busy, other) = (busy.expect("a name"), other.expect("a name"));
        // One that spends as soon as it may.
        labour.pay(&room, Some(&busy), 2300);
        assert!(labour.rest(&room, &busy).is_some());
        assert_eq!((labour.rest(&room, &other), labour.rest_of_room(&room)), (None, None));
        labour.pay(&room, Some(&other), 100_000);
        assert!(labour.rest_of_room(&room).is_some());
        assert_eq!(labour.rest_of_late(&room), None, "they have their turn however much others do");
        labour.pay_for_late(&room, 4000);
        let rest = labour.rest_of_late(&room).expect("that was more than they have");
        assert!(Duration::from_secs(1) < rest && rest < Duration::from_secs(3), "{rest:?}");
    }
}
