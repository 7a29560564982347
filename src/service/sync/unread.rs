//! What is unread, remembered from answer to answer: a client that hears of each message is told a sum with each, and
//! what it was before is known. It is a sum over rows all the same (`store/push/unread.rs`): it is only taken further where
//! nothing but new events came since, and in debug builds, and so in every test, compared with the rows.

use std::sync::{Arc, Mutex};

use crate::bounded::{BoundedMap, Worth};
use crate::error::Result;
use crate::locks::lock;
use crate::protocol::UserId;
use crate::store::cache::news::{News, RoomNews};
use crate::store::push::unread::{KnownCounts, NotifyingEvent, UnreadCounts};
use crate::store::{Db, RoomKey};

/// Of so many rooms of users it is remembered.
const KNOWN_MAX: usize = 20_000;
/// Of a room with more unread threads than this it is not.
const THREADS_KNOWN_MAX: usize = 50;

/// What was unread when it was last told.
#[derive(Default)]
pub struct UnreadMemory(Mutex<BoundedMap<(UserId, RoomKey), Arc<KnownCounts>, KNOWN_MAX>>);

impl UnreadMemory {
    fn get(&self, user: &UserId, room: RoomKey) -> Option<Arc<KnownCounts>> {
        lock(&self.0).get(&(user.clone(), room)).cloned()
    }

    fn keep(&self, user: &UserId, room: RoomKey, known: KnownCounts) {
        // Anybody can begin a thread with each message, and it would be kept for each member.
        if known.counts.threads.len() > THREADS_KNOWN_MAX {
            return;
        }
        let mut all = lock(&self.0);
        let key = (user.clone(), room);
        if all.get(&key).is_none_or(|before| before.position < known.position) {
            all.insert(key, Arc::new(known), |_| Worth::Little);
        }
    }

    /// What is unread in a room for a user, in a snapshot of this position.
    pub fn counts(&self, db: &Db<'_>, user: &UserId, room: RoomKey, position: i64) -> Result<UnreadCounts> {
        let known = self.get(user, room).filter(|known| known.position <= position);
        let news = known.as_ref().and_then(|known| db.news_since(user, known.position, position));
        let known = known.filter(|_| news.as_ref().is_some_and(|news| only_events_came(news, room)));
        let has_news = news.is_none_or(|news| news.rooms.iter().any(|changed| changed.room == room));
        let counts = match &known {
            Some(known) if !has_news => known.counts.clone(),
            _ => db.unread_counts_since(user, room, known.as_deref())?,
        };
        if cfg!(debug_assertions) && known.is_some() {
            let whole = db.unread_counts(user, room)?;
            assert!(counts == whole, "{user} is told {counts:?} of room {room}, and has {whole:?} unread");
        }
        self.keep(user, room, KnownCounts { position, counts: counts.clone() });
        Ok(counts)
    }

    /// What is unread for a user when some events came that are none of theirs, without a look into the database. None: it
    /// is not known what was before.
    pub fn counts_after(
        &self,
        (user, position): (&UserId, i64),
        changed: &RoomNews,
        since: impl Fn(i64) -> Option<News>,
        events: &[NotifyingEvent],
    ) -> Option<UnreadCounts> {
        let known = self.get(user, changed.room)?;
        if known.position > position {
            return None;
        }
        let news = since(known.position)?;
        let mut counts = known.counts.clone();
        match news.rooms.iter().find(|news| news.room == changed.room) {
            _ if !only_events_came(&news, changed.room) => return None,
            None => {}
            Some(later) if later == changed => {
                events.iter().for_each(|event| event.add_to(&mut counts, user))
            }
            Some(_) => return None,
        }
        self.keep(user, changed.room, KnownCounts { position, counts: counts.clone() });
        Some(counts)
    }
}

fn only_events_came(news: &News, room: RoomKey) -> bool {
    !news.own && !news.rooms.iter().any(|changed| changed.room == room && changed.recounted)
}
