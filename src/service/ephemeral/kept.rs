//! Typing and receipts of a room into which a user of ours is coming right now, and the presence of those who may be in it.
//! Nothing can be made of them before we are in, and nobody says them again: so they wait until then, in memory, for the
//! little that they are worth.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use super::Ephemeral;
use super::incoming::{EduKind, EduOrigin};
use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::error::Result;
use crate::locks::lock;
use crate::protocol::{RoomId, ServerName};

/// Rooms that are being joined and of which something is kept.
const ROOMS_MAX: usize = 32;
/// What is kept of one room: of each server, and of all. Of whoever has most what came first goes first.
const OF_SERVER_MAX: usize = 20;
const OF_SERVER_BYTES_MAX: usize = 8 << 10;
const OF_ROOM_MAX: usize = 200;
const OF_ROOM_BYTES_MAX: usize = 64 << 10;
/// No join takes longer than this, and nobody types for so long.
const KEPT_MS: Millis = 600_000;
/// Typing that is older says nothing any more.
const TYPING_KEPT_MS: Millis = 30_000;

/// What waits for joins.
#[derive(Default)]
pub struct KeptEdus(Mutex<BoundedMap<RoomId, VecDeque<KeptEdu>, ROOMS_MAX>>);

/// One that waits.
#[derive(Debug)]
struct KeptEdu {
    server: ServerName,
    kind: EduKind,
    /// Its content, of this room alone, but for presence.
    content: Vec<u8>,
    came: Steady,
}

/// What some of them come to.
#[derive(Clone, Copy, Default)]
struct Weight {
    count: usize,
    bytes: usize,
}

impl Weight {
    fn add(&mut self, edu: &KeptEdu) {
        self.count += 1;
        self.bytes += edu.content.len();
    }
}

/// Who has most: they lose what came first of theirs, and nobody who has said little loses it to who says much.
fn heaviest(of_each: &HashMap<&ServerName, Weight>, by: impl Fn(&Weight) -> usize) -> ServerName {
    let most = of_each.iter().max_by_key(|(_, weight)| by(weight));
    most.map(|(server, _)| (*server).clone()).expect("there are too many, so there is one")
}

impl KeptEdus {
    /// Keeps one.
    fn keep(&self, room_id: &RoomId, edu: KeptEdu) {
        if edu.content.len() > OF_SERVER_BYTES_MAX {
            return;
        }
        let now = edu.came;
        let is_over = move |edu: &KeptEdu| now - edu.came > KEPT_MS;
        let mut rooms = lock(&self.0);
        let kept = rooms.get_or_default(room_id.clone(), |kept| match kept.iter().all(is_over) {
            true => Worth::Nothing,
            false => Worth::Little,
        });
        kept.retain(|edu| !is_over(edu));
        let server = edu.server.clone();
        kept.push_back(edu);
        loop {
            let (mut of_all, mut of_each) = (Weight::default(), HashMap::<&ServerName, Weight>::new());
            for edu in kept.iter() {
                of_all.add(edu);
                of_each.entry(&edu.server).or_default().add(edu);
            }
            let of_server = of_each.get(&server).copied().unwrap_or_default();
            let loser = if of_server.count > OF_SERVER_MAX || of_server.bytes > OF_SERVER_BYTES_MAX {
                server.clone()
            } else if of_all.bytes > OF_ROOM_BYTES_MAX {
                heaviest(&of_each, |weight| weight.bytes)
            } else if of_all.count > OF_ROOM_MAX {
                heaviest(&of_each, |weight| weight.count)
            } else {
                return;
            };
            let Some(first) = kept.iter().position(|edu| edu.server == loser) else { return };
            kept.remove(first);
        }
    }

    fn take(&self, room_id: &RoomId) -> VecDeque<KeptEdu> {
        lock(&self.0).remove(room_id).unwrap_or_default()
    }
}

impl Ephemeral<'_> {
    /// Keeps what a server says of a room that somebody of ours is joining.
    pub(super) fn keep_edu(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        (kind, content): (EduKind, Vec<u8>),
    ) -> Result<()> {
        let edu = KeptEdu { server: server.clone(), kind, content, came: self.clock.steady() };
        self.kept_edus.keep(room_id, edu);
        // Whoever was joining may have come in at this moment, after what waited by then was taken.
        if self.store.read(|db| db.resident_room(room_id))?.is_some() {
            self.receive_kept(room_id)
        } else {
            Ok(())
        }
    }

    /// We are in the room: what waited for that is received.
    pub(in crate::service) fn receive_kept(&self, room_id: &RoomId) -> Result<()> {
        let now = self.clock.steady();
        for KeptEdu { server, kind, content, came } in self.kept_edus.take(room_id) {
            let mut origin = EduOrigin::new(&server);
            match kind {
                EduKind::Typing if now - came > TYPING_KEPT_MS => {}
                EduKind::Typing => self.receive_typing(&mut origin, &content)?,
                EduKind::Receipt => self.receive_receipts(&mut origin, &content)?,
                EduKind::Presence => drop(self.take_presence(&origin, &content)?),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_room_is_bounded_for_each_server_and_for_all() {
        let (kept, room) = (KeptEdus::default(), RoomId::parse("!r:a.example").unwrap());
        let keep = |server: &str, n: Millis, bytes: usize| {
            let server = ServerName::parse(server).unwrap();
            let edu =
                KeptEdu { server, kind: EduKind::Receipt, content: vec![b'x'; bytes], came: Steady::at(n) };
            kept.keep(&room, edu);
        };
        keep("b.example", 0, 10);
        for n in 0..1000 {
            keep("a.example", n, 10);
        }
        keep("a.example", 1000, OF_SERVER_BYTES_MAX + 1);
        let of_both = kept.take(&room);
        let of = |name: &str| of_both.iter().filter(|edu| edu.server.as_str() == name).collect::<Vec<_>>();
        assert_eq!((of("a.example").len(), of("b.example").len()), (OF_SERVER_MAX, 1));
        assert_eq!(of("a.example").last().unwrap().came, Steady::at(999));
        // Who says little is not pushed out by a dozen who say much, in bytes or in number.
        for (size, most) in [(1000, OF_ROOM_BYTES_MAX / 1000 + 1), (1, OF_ROOM_MAX)] {
            keep("b.example", 0, 10);
            for n in 0..1000 {
                keep(&format!("s{}.example", n % 12), n, size);
            }
            let of_all = kept.take(&room);
            assert_eq!(of_all.len(), most);
            assert!(of_all.iter().any(|edu| edu.server.as_str() == "b.example"), "{size}");
            assert_eq!(of_all.back().unwrap().came, Steady::at(999));
        }
        keep("a.example", 0, 10);
        keep("a.example", KEPT_MS + 1, 10);
        assert_eq!(kept.take(&room).len(), 1);
        for n in 0..1000 {
            let edu = KeptEdu {
                server: ServerName::parse("a.example").unwrap(),
                kind: EduKind::Typing,
                content: Vec::new(),
                came: Steady::at(0),
            };
            kept.keep(&RoomId::parse(&format!("!r{n}:a.example")).unwrap(), edu);
        }
        assert!(lock(&kept.0).len() <= ROOMS_MAX);
    }
}
