//! Tells what commits have changed, on a thread of its own: waking a thousand who wait must not keep the next commit.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::error::Result;
use crate::protocol::{ServerName, UserId};
use crate::store::RoomKey;

/// What a group of commits changed, for those who wait. Hints: whoever misses them loses time, never data.
#[derive(Debug, Default)]
pub struct Changes {
    /// The published stream position: everything up to here is on disk.
    pub position: i64,
    /// Our users whose `/sync` has something new, beside those of `audiences`.
    pub users: HashSet<UserId>,
    /// Rooms that all local users who are in them have something new of, each with these users.
    pub audiences: HashMap<RoomKey, Arc<[UserId]>>,
    /// Rooms with an event that we owe to other servers.
    pub outgoing_rooms: HashSet<RoomKey>,
    /// Servers that are owed something beside room events.
    pub destinations: HashSet<ServerName>,
    /// Rooms with a new event or other state.
    pub rooms: HashSet<RoomKey>,
    /// Rooms with a user of ours who has read more of them.
    pub(in crate::store) reads: HashSet<(RoomKey, UserId)>,
    /// Rooms in which something that was counted is nothing any more.
    pub(in crate::store) recounted: HashSet<RoomKey>,
    /// Whether something is due now that the timer looks after.
    pub due: bool,
    /// Rooms with more forward extremities than is good.
    pub forked: HashSet<RoomKey>,
    /// Rooms whose current state does not know of all that came.
    pub behind: HashSet<RoomKey>,
    /// Whether a session, its device or its user has changed.
    pub(in crate::store) sessions: bool,
    /// Whether an event has changed, which a redaction does.
    pub(in crate::store) redacted: bool,
}

impl Changes {
    /// All local users whose `/sync` has something new. Some come more than once.
    pub fn all_users(&self) -> impl Iterator<Item = &UserId> {
        self.users.iter().chain(self.audiences.values().flat_map(|audience| audience.iter()))
    }

    pub(in crate::store) fn tell_audience(&mut self, room: RoomKey, audience: Arc<[UserId]>) {
        if let Some(before) = self.audiences.insert(room, audience.clone())
            && !Arc::ptr_eq(&before, &audience)
        {
            self.users.extend(before.iter().cloned());
        }
    }

    /// Adds what changed later.
    pub(in crate::store) fn absorb(&mut self, other: Changes) {
        self.position = self.position.max(other.position);
        self.users.extend(other.users);
        for (room, audience) in other.audiences {
            self.tell_audience(room, audience);
        }
        self.outgoing_rooms.extend(other.outgoing_rooms);
        self.destinations.extend(other.destinations);
        self.rooms.extend(other.rooms);
        self.reads.extend(other.reads);
        self.recounted.extend(other.recounted);
        self.due |= other.due;
        self.forked.extend(other.forked);
        self.behind.extend(other.behind);
        self.sessions |= other.sessions;
        self.redacted |= other.redacted;
    }
}

/// Called after each commit, on a thread of its own, so that it holds nobody up. Commits that follow each other
/// closely are told of together.
pub type OnCommit = Box<dyn Fn(&Changes) + Send + Sync>;

/// Dropping it tells what is left to be told first.
pub(in crate::store) struct CommitFeed {
    news: Option<mpsc::Sender<Changes>>,
    thread: Option<JoinHandle<()>>,
}

impl CommitFeed {
    pub(in crate::store) fn start(on_commit: OnCommit) -> Result<CommitFeed> {
        let (news, told) = mpsc::channel::<Changes>();
        let body = move || {
            while let Ok(mut changes) = told.recv() {
                // What was committed during the last telling is told at once.
                for later in told.try_iter() {
                    changes.absorb(later);
                }
                if catch_unwind(AssertUnwindSafe(|| on_commit(&changes))).is_err() {
                    log::error!("the notifier panicked");
                }
            }
        };
        let thread = std::thread::Builder::new().name("store-feed".into()).spawn(body)?;
        Ok(CommitFeed { news: Some(news), thread: Some(thread) })
    }

    /// Everything in it is on disk.
    pub(in crate::store) fn tell(&self, changes: Changes) {
        if let Some(news) = &self.news {
            let _ = news.send(changes);
        }
    }
}

impl Drop for CommitFeed {
    fn drop(&mut self) {
        self.news = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
