//! `GET /threads`: the threads of a room, that with the latest reply first (client-server API, "Querying threads in a
//! room").

use std::collections::HashSet;

use serde::Serialize;

use crate::error::Result;
use crate::protocol::rooms::relations::may_be_thread_root;
use crate::protocol::{EventId, RoomId};
use crate::service::rooms::Rooms;
use crate::service::rooms::bundles::{latest_reply, write_with_bundles};
use crate::service::rooms::client_format::{ClientFormat, Json};
use crate::service::rooms::messages::visible_event;
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::timeline::{PAGE_BYTES_MAX, TimelineEvent};
use crate::service::rooms::view::{RoomView, readable_room};
use crate::store::Place;

/// Threads in an answer if the client does not say how many, and whatever it says.
const PAGE_USUAL: usize = 20;
const PAGE_MAX: usize = 100;
/// Threads that are read together.
const THREADS_AT_ONCE: usize = 100;
/// One answer looks at no more threads than these for those that the user took part in.
const THREADS_LOOKED_AT_MAX: usize = 5000;
/// Replies that are read together, and looked at in one answer, for a user who may not see all of them.
const REPLIES_AT_ONCE: usize = 200;
const REPLIES_LOOKED_AT_MAX: usize = 5000;

/// What a client asks of `/threads`.
#[derive(Default)]
pub struct ThreadsRequest {
    /// Only those that the user took part in.
    pub participated: bool,
    /// Where the last page ended.
    pub from: Option<PaginationToken>,
    /// At most so many threads.
    pub limit: Option<usize>,
}

/// A page of threads.
#[derive(Serialize)]
pub struct Threads {
    chunk: Vec<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

impl Rooms<'_> {
    /// The roots of a room's threads, with their bundles, by their latest replies, newest first. A thread whose root the
    /// user may not see is left out, and so is one whose root is by a user whom they ignore. (The specification wants that
    /// root "returned redacted"; like Synapse, we do not tell of an event that we give in no other way.) Errors: 403
    /// `M_FORBIDDEN`.
    pub fn threads(
        &self,
        format: &ClientFormat<'_>,
        room: &RoomId,
        request: &ThreadsRequest,
    ) -> Result<Threads> {
        self.store.read(|db| {
            let room = readable_room(db, room)?;
            let view = RoomView::new(db, &room, format.user)?;
            view.require_readable()?;
            let mut page = ThreadPage {
                view: &view,
                participated: request.participated,
                limit: request.limit.unwrap_or(PAGE_USUAL).min(PAGE_MAX),
                roots: Vec::new(),
                bytes: 0,
                looks_left: REPLIES_LOOKED_AT_MAX,
                at: match request.from {
                    Some(from) => from.start_back().min(view.end_exclusive()),
                    None => view.end_exclusive(),
                },
            };
            let sees_all =
                view.sees_all_since_joining() && view.ignored().is_empty() && view.was_always_open()?;
            let is_left = if sees_all { page.by_threads()? } else { page.by_replies()? };
            let next = is_left.then(|| PaginationToken::before(page.at).to_string());
            Ok(Threads { chunk: write_with_bundles(&view, format, &page.roots)?, next_batch: next })
        })
    }
}

/// A page in the making.
struct ThreadPage<'p> {
    view: &'p RoomView<'p>,
    participated: bool,
    limit: usize,
    roots: Vec<TimelineEvent>,
    bytes: usize,
    /// So many more replies are looked at.
    looks_left: usize,
    /// The place of the reply that was looked at last; the next page has the threads whose latest stand before it.
    at: Place,
}

impl ThreadPage<'_> {
    /// The threads as they are counted, for whoever sees all that is said in them. True: there may be more.
    fn by_threads(&mut self) -> Result<bool> {
        let (db, room, user) = (self.view.db(), self.view.room.key, self.view.user.as_str());
        for _ in 0..THREADS_LOOKED_AT_MAX / THREADS_AT_ONCE {
            let at_once = if self.participated { THREADS_AT_ONCE } else { self.limit + 1 };
            let threads = db.threads_before(room, self.at, user, at_once)?;
            for thread in &threads {
                if self.participated && !thread.participated {
                    self.at = thread.latest;
                    continue;
                }
                if self.roots.len() == self.limit {
                    return Ok(true);
                }
                self.at = thread.latest;
                self.add(&thread.root)?;
            }
            if threads.len() < at_once {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The threads by what is said in them, for whoever may not see all of it: the order is that of the latest replies
    /// that they see. True: there may be more.
    fn by_replies(&mut self) -> Result<bool> {
        let (db, room) = (self.view.db(), self.view.room.key);
        let mut looked_at = HashSet::new();
        for _ in 0..REPLIES_LOOKED_AT_MAX / REPLIES_AT_ONCE {
            let replies = db.replies_before(room, self.at, REPLIES_AT_ONCE)?;
            for reply in &replies {
                let is_seen = !self.view.ignored().has(&reply.sender) && !looked_at.contains(&reply.root);
                if !is_seen || !self.view.look(&db.event_by_key(reply.key)?)?.visible {
                    self.at = reply.place;
                    continue;
                }
                if self.roots.len() == self.limit {
                    return Ok(true);
                }
                self.at = reply.place;
                let root = EventId::parse(&reply.root)?;
                looked_at.insert(reply.root.clone());
                // One that has a later reply was on an earlier page.
                let latest = latest_reply(self.view, &root, &mut self.looks_left)?
                    .and_then(|latest| latest.event.place);
                let is_wanted =
                    !self.participated || db.has_participated(room, &root, self.view.user.as_str())?;
                if latest == Some(reply.place) && is_wanted && db.thread_replies(room, &root)?.is_some() {
                    self.add(&root)?;
                }
            }
            if replies.len() < REPLIES_AT_ONCE {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn add(&mut self, root: &EventId) -> Result<()> {
        if let Some((event, membership)) = visible_event(self.view, root)?
            && may_be_thread_root(&event.pdu)
            && latest_reply(self.view, root, &mut self.looks_left)?.is_some()
        {
            self.bytes += event.pdu.json().len();
            self.roots.push(TimelineEvent { event, membership });
            if self.bytes >= PAGE_BYTES_MAX {
                self.limit = self.roots.len();
            }
        }
        Ok(())
    }
}
