//! What the last commits were news of: for which of our users, and in which rooms. So a `/sync` that goes on from a
//! moment ago looks where something changed, and not into every room that its user is in.
//!
//! A commit is put in before it can be seen by readers, and taken out if it fails: whoever sees a position finds all
//! commits up to it. One that is not remembered any more (there were too many since, or the server was started anew)
//! is no loss: then the database is asked.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use crate::locks::lock;
use crate::protocol::UserId;
use crate::store::engine::commit_feed::Changes;
use crate::store::{Db, RoomKey, Store};

/// Commits that are remembered, and users named by them, at most.
const COMMITS_MAX: usize = 4096;
const USERS_MAX: usize = 50_000;

/// What is news for one user since a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Something may have changed that is theirs alone: their account data, their memberships, messages to their
    /// devices, whose devices changed. If not, there is nothing but what these rooms have.
    pub own: bool,
    /// Rooms to which they were joined when something changed there, each once.
    pub rooms: Vec<RoomNews>,
}

/// That something changed in a room: an event, the state, or what is ephemeral.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoomNews {
    /// The room.
    pub room: RoomKey,
    /// The position before the first change.
    pub from: i64,
    /// The position of the last.
    pub upto: i64,
    /// Whether something that was counted as unread is not any more, other than by being read.
    pub recounted: bool,
}

pub(in crate::store) struct RecentNews(Mutex<NewsLog>);

struct NewsLog {
    /// Of what came up to here nothing is known.
    floor: i64,
    commits: VecDeque<Commit>,
    /// Users named in all of them, lists that several have in common once.
    users: usize,
}

struct Commit {
    /// The positions that it covers: after the one, up to the other.
    from: i64,
    upto: i64,
    users: HashSet<UserId>,
    /// Each with the users who are in the room, in order.
    rooms: Vec<(RoomKey, Arc<[UserId]>)>,
    /// Rooms of which somebody has read more.
    reads: Vec<(RoomKey, UserId)>,
    recounted: HashSet<RoomKey>,
    /// What it adds to the users of the log.
    weight: usize,
}

impl RecentNews {
    pub(in crate::store) fn new(position: i64) -> Self {
        Self(Mutex::new(NewsLog { floor: position, commits: VecDeque::new(), users: 0 }))
    }

    /// Before a commit can be seen.
    pub(in crate::store) fn put(&self, (from, upto): (i64, i64), changes: &Changes) {
        if upto <= from || (changes.users.is_empty() && changes.audiences.is_empty()) {
            return;
        }
        // A list that is new is held by its room's cache and by these changes; an older one by other commits, too.
        let of_room = |audience: &Arc<[UserId]>| match Arc::strong_count(audience) {
            0..=2 => audience.len(),
            _ => 1,
        };
        let weight = changes.users.len() + changes.audiences.values().map(of_room).sum::<usize>();
        let rooms = changes.audiences.iter().map(|(room, audience)| (*room, audience.clone())).collect();
        let mut log = lock(&self.0);
        log.users += weight;
        log.commits.push_back(Commit {
            from,
            upto,
            users: changes.users.clone(),
            rooms,
            reads: changes.reads.iter().cloned().collect(),
            recounted: changes.recounted.clone(),
            weight,
        });
        while log.commits.len() > COMMITS_MAX || log.users > USERS_MAX {
            let Some(oldest) = log.commits.pop_front() else { break };
            log.users -= oldest.weight;
            log.floor = oldest.upto;
        }
    }

    /// The commit with these positions has failed; they are given out again.
    pub(in crate::store) fn take_back(&self, from: i64) {
        let mut log = lock(&self.0);
        while log.commits.back().is_some_and(|last| last.from >= from) {
            let gone = log.commits.pop_back().map_or(0, |last| last.weight);
            log.users -= gone;
        }
        // It may have been the last that was there.
        log.floor = log.floor.min(from);
    }

    fn since(&self, user: &UserId, since: i64, upto: i64) -> Option<News> {
        let log = lock(&self.0);
        if since < log.floor {
            return None;
        }
        let mut news = News { own: false, rooms: Vec::new() };
        let first = log.commits.partition_point(|commit| commit.upto <= since);
        for commit in log.commits.range(first..).take_while(|commit| commit.upto <= upto) {
            news.own |= commit.users.contains(user);
            let heard = commit.rooms.iter().filter(|(_, audience)| audience.binary_search(user).is_ok());
            let read = commit.reads.iter().filter(|(_, reader)| reader == user);
            for room in heard.map(|(room, _)| *room).chain(read.map(|(room, _)| *room)) {
                let recounted = commit.recounted.contains(&room);
                match news.rooms.iter_mut().find(|known| known.room == room) {
                    Some(known) => {
                        known.upto = commit.upto;
                        known.recounted |= recounted;
                    }
                    None => {
                        let (from, upto) = (commit.from, commit.upto);
                        news.rooms.push(RoomNews { room, from, upto, recounted });
                    }
                }
            }
        }
        Some(news)
    }
}

impl Db<'_> {
    /// What is news for one of our users after a position, up to the present of this snapshot. None: that is not
    /// remembered, so it may be anything.
    pub fn news_since(&self, user: &UserId, since: i64, position: i64) -> Option<News> {
        self.shared.news.since(user, since, position)
    }
}

impl Store {
    /// The same up to the published position, which comes with it, without a look into the database.
    pub fn news_since(&self, user: &UserId, since: i64) -> Option<(News, i64)> {
        let position = self.position();
        Some((self.news_upto(user, since, position)?, position))
    }

    /// The same up to a position that was published before.
    pub fn news_upto(&self, user: &UserId, since: i64, position: i64) -> Option<News> {
        self.shared.news.since(user, since, position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(&format!("@{name}:a.example")).unwrap()
    }

    fn changes(users: &[&str], rooms: &[(RoomKey, &[&str])]) -> Changes {
        let mut changes =
            Changes { users: users.iter().map(|name| user(name)).collect(), ..Changes::default() };
        for (room, audience) in rooms {
            let audience: Vec<UserId> = audience.iter().map(|name| user(name)).collect();
            changes.audiences.insert(*room, audience.into());
        }
        changes
    }

    #[test]
    fn a_user_hears_of_what_is_theirs_and_of_the_rooms_that_they_were_in() {
        let news = RecentNews::new(10);
        news.put((10, 12), &changes(&["alice"], &[(1, &["bob", "carol"])]));
        news.put((12, 13), &changes(&[], &[(1, &["bob"]), (2, &["bob"])]));
        let alice = news.since(&user("alice"), 10, 13).unwrap();
        assert_eq!(alice, News { own: true, rooms: Vec::new() });
        assert_eq!(news.since(&user("alice"), 12, 13).unwrap(), News { own: false, rooms: Vec::new() });
        let bob = news.since(&user("bob"), 11, 13).unwrap();
        assert!(!bob.own);
        assert!(bob.rooms.contains(&RoomNews { room: 1, from: 10, upto: 13, recounted: false }));
        assert!(bob.rooms.contains(&RoomNews { room: 2, from: 12, upto: 13, recounted: false }));
        let earlier = news.since(&user("bob"), 10, 12).unwrap().rooms;
        assert_eq!(
            earlier,
            [RoomNews { room: 1, from: 10, upto: 12, recounted: false }],
            "what is not seen yet is no news yet"
        );
    }

    #[test]
    fn of_what_is_forgotten_anything_may_be_news() {
        let news = RecentNews::new(10);
        assert!(news.since(&user("alice"), 9, 10).is_none());
        for at in 0..=i64::try_from(COMMITS_MAX).unwrap() {
            news.put((10 + at, 11 + at), &changes(&["bob"], &[]));
        }
        assert!(news.since(&user("alice"), 10, 20).is_none());
        assert!(news.since(&user("alice"), 11, 20).is_some_and(|news| !news.own));
        let many: Vec<String> = (0..USERS_MAX).map(|n| format!("u{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        news.put((9000, 9001), &changes(&many, &[]));
        assert!(news.since(&user("u7"), 4000, 9001).is_none());
        assert!(news.since(&user("u7"), 9000, 9001).is_some_and(|news| news.own));
        assert_eq!(lock(&news.0).commits.len(), 1);
    }

    #[test]
    fn a_commit_that_failed_is_no_news_and_its_positions_come_again() {
        let news = RecentNews::new(0);
        news.put((0, 1), &changes(&["alice"], &[]));
        news.put((1, 5), &changes(&["bob"], &[]));
        news.take_back(1);
        news.put((1, 2), &changes(&["carol"], &[]));
        assert!(!news.since(&user("bob"), 0, 9).unwrap().own);
        assert!(news.since(&user("alice"), 0, 9).unwrap().own);
        assert!(!news.since(&user("alice"), 1, 9).unwrap().own);
        assert!(news.since(&user("carol"), 1, 9).unwrap().own);
    }
}
