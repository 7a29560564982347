//! Tells what commits have changed, on a thread of its own: waking a thousand who wait must not keep the next commit.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::clock::Millis;
use crate::protocol::{ServerName, UserId};
use crate::store::RoomKey;
use crate::store::cache::presences::PresenceChange;

/// What a group of commits changed, for those who wait. Hints: whoever misses them loses time, never data.
#[derive(Debug, Default)]
pub struct Changes {
    /// The published stream position: everything up to here is on disk.
    pub position: i64,
    /// Our users whose `/sync` has something new, beside those of `audiences`.
    pub users: HashSet<UserId>,
    /// Our users who see that somebody's presence changed. That is worth no wake of its own each time.
    pub woken_soon: HashSet<UserId>,
    /// Rooms that all local users who are in them have something new of, each with these users.
    pub audiences: HashMap<RoomKey, Arc<[UserId]>>,
    /// Rooms with an event that we owe to other servers.
    pub outgoing_rooms: HashSet<RoomKey>,
    /// Servers that are owed something beside room events.
    pub destinations: HashSet<ServerName>,
    /// Servers that have come into a room.
    pub newcomers: HashSet<(RoomKey, ServerName)>,
    /// Rooms with a new event or other state.
    pub rooms: HashSet<RoomKey>,
    /// Rooms with a user of ours who has read more of them.
    pub(in crate::store) reads: HashSet<(RoomKey, UserId)>,
    /// Rooms in which something that was counted is nothing any more.
    pub(in crate::store) recounted: HashSet<RoomKey>,
    /// Whose presence changed, the latest last.
    pub(in crate::store) presences: Vec<Arc<PresenceChange>>,
    /// When something is due that the timer looks after, if it may not know that yet.
    pub due: Option<Millis>,
    /// Rooms with more forward extremities than is good.
    pub forked: HashSet<RoomKey>,
    /// Rooms whose current state does not know of all that came.
    pub behind: HashSet<RoomKey>,
    /// Whether a session, its device or its user has changed.
    pub(in crate::store) sessions: bool,
    /// Whether something that a room shows to somebody outside has changed.
    pub(in crate::store) fronts: bool,
    /// Whether an event has changed, which a redaction does.
    pub(in crate::store) redacted: bool,
}

impl Changes {
    /// All local users whose `/sync` has something new. Some come more than once.
    pub fn all_users(&self) -> impl Iterator<Item = &UserId> {
        self.users.iter().chain(self.audiences.values().flat_map(|audience| audience.iter()))
    }

    /// Those of them who were woken by themselves, and not since they are in a room.
    pub fn woken_users(&self) -> impl Iterator<Item = &UserId> {
        self.users.iter()
    }

    /// Whether there is anything in it of which clients are told.
    pub fn concern_clients(&self) -> bool {
        !(self.users.is_empty()
            && self.audiences.is_empty()
            && self.rooms.is_empty()
            && self.presences.is_empty())
    }

    pub(in crate::store) fn tell_audience(&mut self, room: RoomKey, audience: Arc<[UserId]>) {
        if let Some(before) = self.audiences.insert(room, audience.clone())
            && !Arc::ptr_eq(&before, &audience)
        {
            self.users.extend(before.iter().cloned());
        }
    }

    /// Whether nobody waits for any of this: there is only a new position.
    fn concern_nobody(&self) -> bool {
        self.users.is_empty()
            && self.woken_soon.is_empty()
            && self.audiences.is_empty()
            && self.outgoing_rooms.is_empty()
            && self.destinations.is_empty()
            && self.newcomers.is_empty()
            && self.rooms.is_empty()
            && self.forked.is_empty()
            && self.behind.is_empty()
            && self.due.is_none()
    }

    /// Adds what changed later.
    pub(in crate::store) fn absorb(&mut self, other: Changes) {
        self.position = self.position.max(other.position);
        self.users.extend(other.users);
        self.woken_soon.extend(other.woken_soon);
        self.presences.extend(other.presences);
        for (room, audience) in other.audiences {
            self.tell_audience(room, audience);
        }
        self.outgoing_rooms.extend(other.outgoing_rooms);
        self.destinations.extend(other.destinations);
        self.newcomers.extend(other.newcomers);
        self.rooms.extend(other.rooms);
        self.reads.extend(other.reads);
        self.recounted.extend(other.recounted);
        self.due = self.due.into_iter().chain(other.due).min();
        self.forked.extend(other.forked);
        self.behind.extend(other.behind);
        self.sessions |= other.sessions;
        self.fronts |= other.fronts;
        self.redacted |= other.redacted;
    }
}

/// Called after each commit, on a thread of its own if anybody is to be told, so that it holds nobody up. Commits that
/// follow each other closely are told of together.
pub type OnCommit = Box<dyn Fn(&Changes) + Send + Sync>;

/// Dropping it tells what is left to be told first.
pub(in crate::store) struct CommitFeed {
    on_commit: Arc<OnCommit>,
    /// The thread that tells, and what it has not heard of. There is none before there is somebody to be told.
    teller: Option<(mpsc::Sender<Changes>, JoinHandle<()>)>,
}

impl CommitFeed {
    pub(in crate::store) fn new(on_commit: OnCommit) -> CommitFeed {
        CommitFeed { on_commit: Arc::new(on_commit), teller: None }
    }

    /// Everything in it is on disk.
    pub(in crate::store) fn tell(&mut self, changes: Changes) {
        if self.teller.is_none() && !changes.concern_nobody() {
            match self.start() {
                Ok(teller) => self.teller = Some(teller),
                Err(e) => log::error!("no thread to tell of commits: {e}"),
            }
        }
        match &self.teller {
            Some((news, _)) => drop(news.send(changes)),
            None => tell(&self.on_commit, &changes),
        }
    }

    fn start(&self) -> std::io::Result<(mpsc::Sender<Changes>, JoinHandle<()>)> {
        let (news, told) = mpsc::channel::<Changes>();
        let on_commit = Arc::clone(&self.on_commit);
        let body = move || {
            while let Ok(mut changes) = told.recv() {
                // What was committed during the last telling is told at once.
                for later in told.try_iter() {
                    changes.absorb(later);
                }
                tell(&on_commit, &changes);
            }
        };
        let thread = std::thread::Builder::new().name("store-feed".into()).spawn(body)?;
        Ok((news, thread))
    }
}

fn tell(on_commit: &OnCommit, changes: &Changes) {
    if catch_unwind(AssertUnwindSafe(|| on_commit(changes))).is_err() {
        log::error!("the notifier panicked");
    }
}

impl Drop for CommitFeed {
    fn drop(&mut self) {
        if let Some((news, thread)) = self.teller.take() {
            drop(news);
            let _ = thread.join();
        }
    }
}
