//! Threads that a user wants to hear of (MSC4306): subscribing and unsubscribing, and what has changed in that (MSC4308).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{ErrCode, Error, Result};
use crate::protocol::{EventId, RoomId, UserId};
use crate::service::rooms::Rooms;
use crate::service::rooms::messages::{found_or_not, visible_event};
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::view::RoomView;
use crate::store::rooms::thread_subscriptions::{Subscription, SubscriptionChange};
use crate::store::{Db, RoomKey};

/// Changes in an answer if the client does not say how many, and whatever it says.
pub const PAGE_USUAL: usize = 100;
pub const PAGE_MAX: usize = 512;

/// A subscription, as clients read it.
#[derive(Debug, Serialize)]
pub struct ThreadSubscription {
    /// Whether a client subscribed by itself.
    automatic: bool,
}

/// What has changed in a user's subscriptions, by room and thread.
#[derive(Debug, Default, Serialize)]
pub struct SubscriptionChanges {
    subscribed: BTreeMap<RoomId, BTreeMap<EventId, Subscribed>>,
    unsubscribed: BTreeMap<RoomId, BTreeMap<EventId, Unsubscribed>>,
    /// From where to go on backwards, if there is more.
    #[serde(skip)]
    pub more: Option<PaginationToken>,
}

#[derive(Debug, Serialize)]
struct Subscribed {
    automatic: bool,
    /// Of two changes the one with the larger is the later one.
    bump_stamp: i64,
}

#[derive(Debug, Serialize)]
struct Unsubscribed {
    bump_stamp: i64,
}

impl SubscriptionChanges {
    /// What changed after a position and up to another, the latest so many of it.
    pub fn between(db: &Db<'_>, user: &UserId, (after, upto): (i64, i64), limit: usize) -> Result<Self> {
        // One more than wanted, to know whether something is left.
        let mut rows = db.thread_subscription_changes(user, (after, upto), limit.saturating_add(1))?;
        let mut changes = Self::default();
        if rows.len() > limit {
            rows.truncate(limit);
            changes.more = rows.last().map(|last| PaginationToken::at(last.stream - 1));
        }
        for SubscriptionChange { stream, room_id, root, subscription } in rows {
            let automatic = subscription == Subscription::Automatic;
            match subscription {
                Subscription::Ended => {
                    let change = Unsubscribed { bump_stamp: stream };
                    changes.unsubscribed.entry(room_id).or_default().insert(root, change);
                }
                Subscription::Automatic | Subscription::Manual => {
                    let change = Subscribed { automatic, bump_stamp: stream };
                    changes.subscribed.entry(room_id).or_default().insert(root, change);
                }
            }
        }
        Ok(changes)
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.subscribed.is_empty() && self.unsubscribed.is_empty()
    }
}

impl Rooms<'_> {
    /// Whether a user is subscribed to the thread of this root. Errors: 404 `M_NOT_FOUND`, also if they are not in the room or do
    /// not see the root.
    pub fn thread_subscription(
        &self,
        user: &UserId,
        room: &RoomId,
        root: &EventId,
    ) -> Result<ThreadSubscription> {
        let found = self.view(user, room, |db, view| {
            visible_root(view, root)?;
            db.thread_subscription(user, view.room.key, root)
        });
        match found_or_not(found.map(Some))? {
            Some((Subscription::Automatic, _)) => Ok(ThreadSubscription { automatic: true }),
            Some((Subscription::Manual, _)) => Ok(ThreadSubscription { automatic: false }),
            Some((Subscription::Ended, _)) | None => {
                Err(Error::not_found("You are not subscribed to this thread"))
            }
        }
    }

    /// Subscribes to a thread. `cause`: the event of the thread for which a client does so by itself; what the user has wished
    /// themselves stays as it is. Errors: 404 `M_NOT_FOUND` for a root or a cause that the user does not see, or if they are not
    /// in the room; 400 `IO.ELEMENT.MSC4306.M_NOT_IN_THREAD` for a cause that is not in the thread; 409
    /// `IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION` for one that was there when the user unsubscribed.
    pub fn subscribe_to_thread(
        &self,
        user: &UserId,
        room: &RoomId,
        root: &EventId,
        cause: Option<&EventId>,
    ) -> Result<()> {
        let found = self.view(user, room, |db, view| {
            visible_root(view, root)?;
            let cause = cause.map(|cause| position_in_thread(db, view, root, cause)).transpose()?;
            Ok(Some((view.room.key, cause)))
        });
        let (room, cause) = found_or_not(found)?;
        let (user, root) = (user.clone(), root.clone());
        self.store.write(move |tx| {
            let subscription = match (tx.thread_subscription(&user, room, &root)?, cause) {
                (Some((Subscription::Manual, _)), _) | (Some((Subscription::Automatic, _)), Some(_)) => {
                    return Ok(());
                }
                // History that is fetched later stands at the position of what it stands before.
                (Some((Subscription::Ended, ended)), Some(position)) if position <= ended => {
                    let why = "You have unsubscribed from this thread since";
                    return Err(Error::new(ErrCode::ConflictingUnsubscription, why));
                }
                (_, Some(_)) => Subscription::Automatic,
                (_, None) => Subscription::Manual,
            };
            tx.set_thread_subscription(&user, (room, &root), subscription)
        })
    }

    /// Unsubscribes from a thread; nothing happens if the user is not subscribed to it. Errors: 404 `M_NOT_FOUND`, as above.
    pub fn unsubscribe_from_thread(&self, user: &UserId, room: &RoomId, root: &EventId) -> Result<()> {
        let found = self.view(user, room, |_, view| {
            visible_root(view, root)?;
            Ok(Some(view.room.key))
        });
        let room: RoomKey = found_or_not(found)?;
        let (user, root) = (user.clone(), root.clone());
        self.store.write(move |tx| match tx.thread_subscription(&user, room, &root)? {
            Some((Subscription::Automatic | Subscription::Manual, _)) => {
                tx.set_thread_subscription(&user, (room, &root), Subscription::Ended)
            }
            Some((Subscription::Ended, _)) | None => Ok(()),
        })
    }

    /// What has changed in the user's subscriptions, backwards from one token or from now, as far as another, so much of it.
    pub fn thread_subscription_changes(
        &self,
        user: &UserId,
        (from, to): (Option<PaginationToken>, Option<PaginationToken>),
        limit: usize,
    ) -> Result<SubscriptionChanges> {
        let position = |token: PaginationToken| token.0.stream;
        let upto = from.map_or(i64::MAX, position);
        let after = to.map_or(0, position);
        self.store.read(|db| SubscriptionChanges::between(db, user, (after, upto), limit.min(PAGE_MAX)))
    }
}

/// Errors unless the user is in the room and sees the root: 403 `M_FORBIDDEN`, 404 `M_NOT_FOUND`.
fn visible_root(view: &RoomView<'_>, root: &EventId) -> Result<()> {
    view.require_joined()?;
    visible_event(view, root)?.map(drop).ok_or_else(|| Error::not_found("The thread was not found"))
}

/// The position of an event of a thread, by way of what it relates to if need be.
fn position_in_thread(db: &Db<'_>, view: &RoomView<'_>, root: &EventId, event: &EventId) -> Result<i64> {
    let (event, _) =
        visible_event(view, event)?.ok_or_else(|| Error::not_found("The event was not found"))?;
    if db.thread_root_of(event.key)?.as_ref() != Some(root) {
        return Err(Error::new(ErrCode::NotInThread, "The event is not in this thread"));
    }
    Ok(event.place.map_or(0, |place| place.stream))
}
