//! Walks through spaces that stop at the end of a page and go on with the next one: where each is, and what it was told on
//! its way. So a page neither repeats a room nor leaves one out, whatever becomes of the space meanwhile, and nobody is asked
//! twice. A walk that is forgotten is gone again from its root, past as many rooms as were shown.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use super::space_cache::{NAME_BYTES, RoomKnowledge, SpaceAnswer, ToldChild};
use crate::clock::{Millis, Steady};
use crate::locks::lock;
use crate::protocol::{RoomId, ServerName, UserId};

/// For how long a walk may stand still.
const KEPT_FOR_MS: Millis = 15 * 60_000;
/// How much is kept of one user's walks, and of all, in bytes; and how many of one user, a page each.
pub(super) const USER_BYTES_MAX: usize = 4 << 20;
const ALL_BYTES_MAX: usize = 16 << 20;
const WALKS_PER_USER_MAX: usize = 8;
/// What a walk takes at least.
const WALK_BYTES: usize = 500;

/// A room to look at.
#[derive(Clone)]
pub(super) struct SpaceStep {
    pub room: RoomId,
    pub via: Vec<ServerName>,
    pub depth: u64,
}

/// Where a walk is.
#[derive(Clone, Default)]
pub(super) struct SpaceWalk {
    /// What is left to look at, the next one last.
    pub left: Vec<SpaceStep>,
    /// What was looked at.
    pub seen: HashSet<RoomId>,
    /// How many links were followed.
    pub links: usize,
    /// How many rooms were found that may be shown.
    pub found: usize,
    /// Children that another server described with their space.
    pub told: HashMap<RoomId, ToldChild>,
    /// Children that nobody may tell us of.
    pub inaccessible: HashSet<RoomId>,
    /// What came of asking about rooms.
    pub answers: HashMap<RoomId, RoomKnowledge>,
}

impl SpaceWalk {
    pub fn from(root: &RoomId) -> Self {
        let root = SpaceStep { room: root.clone(), via: Vec::new(), depth: 0 };
        Self { left: vec![root], ..Self::default() }
    }

    /// Takes down what a server said of a space and its children.
    pub fn learn(&mut self, answer: &SpaceAnswer) {
        self.inaccessible.extend(answer.inaccessible.iter().cloned());
        self.told.extend(answer.children.iter().map(|child| (child.room.id().clone(), child.clone())));
    }

    /// This step is the next one after all.
    pub fn put_back(&mut self, step: SpaceStep) {
        self.seen.remove(&step.room);
        self.left.push(step);
    }

    /// Whether it has been told so much that nobody is to be asked more before that is shown.
    pub fn is_full(&self) -> bool {
        self.weight() > USER_BYTES_MAX
    }

    /// About how many bytes it takes.
    fn weight(&self) -> usize {
        let name = |name: &str| NAME_BYTES + name.len();
        let of_step = |step: &SpaceStep| {
            name(step.room.as_str()) + step.via.iter().map(|via| name(via.as_str())).sum::<usize>()
        };
        let left: usize = self.left.iter().map(of_step).sum();
        let ids = self.seen.iter().chain(&self.inaccessible).chain(self.answers.keys());
        let ids: usize = ids.map(|id| name(id.as_str())).sum();
        let told: usize = self.told.values().map(|child| child.room.weight()).sum();
        let answers = self.answers.values().map(RoomKnowledge::weight);
        WALK_BYTES + left + ids + told + answers.sum::<usize>()
    }
}

/// Whose walk it is, from which root.
pub(super) type WalkOf<'a> = (&'a UserId, &'a RoomId);

struct KeptWalk {
    number: u64,
    user: UserId,
    root: RoomId,
    until: Steady,
    bytes: usize,
    walk: Arc<SpaceWalk>,
}

/// The walks that may go on, the oldest first.
#[derive(Default)]
pub struct SpaceWalks(Mutex<KeptWalks>);

#[derive(Default)]
struct KeptWalks {
    last_number: u64,
    walks: VecDeque<KeptWalk>,
}

impl SpaceWalks {
    /// The walk of this number, if it is this one and has come so far. It stays, since a page may be asked for again.
    pub(super) fn get(&self, number: u64, of: WalkOf<'_>, found: usize, now: Steady) -> Option<SpaceWalk> {
        let mut kept = lock(&self.0);
        kept.walks.retain(|walk| walk.until > now);
        let walk = kept.walks.iter().find(|walk| walk.number == number && (&walk.user, &walk.root) == of)?;
        let walk = Some(walk.walk.clone()).filter(|walk| walk.found <= found);
        drop(kept);
        walk.map(Arc::unwrap_or_clone)
    }

    /// Keeps a walk until its next page; its number. None if it is too large for that. Others of the user make room, then
    /// the oldest of all.
    pub(super) fn keep(&self, mut walk: SpaceWalk, (user, root): WalkOf<'_>, now: Steady) -> Option<u64> {
        let mut bytes = walk.weight();
        if bytes > USER_BYTES_MAX {
            // All that can be asked for again.
            walk.told.clear();
            walk.answers.clear();
            bytes = walk.weight();
        }
        if bytes > USER_BYTES_MAX {
            return None;
        }
        let mut kept = lock(&self.0);
        kept.walks.retain(|walk| walk.until > now);
        let held = |kept: &KeptWalks, of: Option<&UserId>| {
            let walks = kept.walks.iter().filter(|walk| of.is_none_or(|user| walk.user == *user));
            walks.fold((0, 0), |(walks, bytes), walk| (walks + 1, bytes + walk.bytes))
        };
        loop {
            let of_user = held(&kept, Some(user));
            let oldest = if of_user.0 >= WALKS_PER_USER_MAX || of_user.1 + bytes > USER_BYTES_MAX {
                kept.walks.iter().position(|walk| walk.user == *user)
            } else if held(&kept, None).1 + bytes > ALL_BYTES_MAX {
                Some(0)
            } else {
                None
            };
            let Some(oldest) = oldest else { break };
            kept.walks.remove(oldest);
        }
        kept.last_number += 1;
        let (number, until) = (kept.last_number, now + KEPT_FOR_MS);
        let (user, root, walk) = (user.clone(), root.clone(), Arc::new(walk));
        kept.walks.push_back(KeptWalk { number, user, root, until, bytes, walk });
        Some(number)
    }

    /// Forgets the walks that stood still for too long. When the next one does.
    pub(super) fn sweep(&self, now: Steady) -> Option<Steady> {
        let mut kept = lock(&self.0);
        kept.walks.retain(|walk| walk.until > now);
        kept.walks.iter().map(|walk| walk.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_are_kept_within_bounds_and_only_for_whom_and_as_long_as_they_are_of_use() {
        let walks = SpaceWalks::default();
        let user = |name: &str| UserId::parse(&format!("@{name}:b.org")).unwrap();
        let room = |name: usize| RoomId::parse(&format!("!{name}:b.org")).unwrap();
        let (alice, bob, root) = (user("alice"), user("bob"), room(0));
        let walk = |rooms: usize| {
            let mut walk = SpaceWalk::from(&root);
            walk.seen.extend((0..rooms).map(room));
            walk
        };
        assert!(walk(USER_BYTES_MAX / NAME_BYTES).is_full() && !walk(1).is_full());
        let is_kept = |number, who, now| walks.get(number, (who, &root), 0, Steady::at(now)).is_some();
        let first = walks.keep(walk(1), (&alice, &root), Steady::at(0)).unwrap();
        assert!(is_kept(first, &alice, 1) && !is_kept(first, &bob, 1));
        assert!(walks.get(first, (&alice, &room(1)), 0, Steady::at(1)).is_none(), "a walk from elsewhere");
        let bobs = walks.keep(walk(1), (&bob, &root), Steady::at(0)).unwrap();
        let last = (0..WALKS_PER_USER_MAX)
            .filter_map(|_| walks.keep(walk(1), (&alice, &root), Steady::at(0)))
            .last();
        assert!(!is_kept(first, &alice, 1) && is_kept(last.unwrap(), &alice, 1) && is_kept(bobs, &bob, 1));
        assert!(
            walks.keep(walk(USER_BYTES_MAX / NAME_BYTES), (&alice, &root), Steady::at(0)).is_none(),
            "too large"
        );
        let large = USER_BYTES_MAX / NAME_BYTES / 2;
        for n in 0..8 {
            assert!(walks.keep(walk(large), (&user(&format!("u{n}")), &root), Steady::at(0)).is_some());
        }
        let held: usize = lock(&walks.0).walks.iter().map(|walk| walk.bytes).sum();
        assert!(held <= ALL_BYTES_MAX && !is_kept(bobs, &bob, 1), "the oldest go");
        walks.sweep(Steady::at(KEPT_FOR_MS));
        assert!(lock(&walks.0).walks.is_empty());
    }
}
