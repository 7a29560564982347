//! The requests that wait for news: apart from those that are worked for, so that however many wait others are answered. There
//! are so many in all, of them a share for each whom they are made for, and of that a few for each place of theirs, such as one
//! device that asks by one endpoint. Who waits once more than that has their oldest answered with what there is, if that has
//! waited for long: clients that begin anew have often forgotten it. Otherwise they all ask again as soon as they are answered,
//! and would end each other without a pause: so the one that came last waits briefly then, beyond the share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::http::transport::bounds::{ConnectionLimits, RequestOwner};
use crate::http::transport::service::{Service, Tell};
use crate::locks::lock;
use crate::protocol::UserId;

/// For one user, or server. A thread each.
const OF_OWNER_MAX: usize = 32;
/// For one place of theirs: some share a session between several windows, of which each waits.
const OF_PLACE_MAX: usize = 8;
/// For one user, or server, beyond either: a pause each for the devices of who has very many.
const BRIEF_OF_OWNER_MAX: usize = 96;

/// Who waits, and where.
pub(super) struct Waiter {
    pub(super) owner: RequestOwner,
    pub(super) place: Option<String>,
    /// Whether there is a share for each like them.
    pub(super) has_share: bool,
    /// Whose events they wait for.
    pub(super) user: UserId,
}

/// All that wait.
pub(super) struct Waits {
    most: usize,
    long: Duration,
    brief: Duration,
    book: Mutex<WaitBook>,
}

#[derive(Default)]
struct WaitBook {
    in_all: usize,
    /// Those of each owner, in the order they came.
    of_owner: HashMap<RequestOwner, Vec<Arc<Wait>>>,
}

/// One that waits.
struct Wait {
    place: Option<String>,
    user: UserId,
    began: Instant,
    /// It is beyond a share, and waits until then and no longer.
    brief_until: Option<Instant>,
    /// Another has its place.
    is_over: AtomicBool,
    /// How its wait is called where it waits.
    told_by: Mutex<Option<Weak<dyn Fn() -> bool + Send + Sync>>>,
}

/// The place of one that waits, over when it is dropped.
pub(super) struct WaitPlace {
    waits: Arc<Waits>,
    owner: RequestOwner,
    wait: Arc<Wait>,
}

/// What one more of an owner comes to.
enum Room {
    /// A place as long as they like.
    Long,
    /// The place of this one of theirs, who has had it for long.
    Of(Arc<Wait>),
    /// A place for a moment.
    Brief,
}

impl Waits {
    pub(super) fn new(limits: &ConnectionLimits) -> Self {
        let ConnectionLimits { in_flight: most, long_wait: long, brief_wait: brief, .. } = *limits;
        Self { most, long, brief, book: Mutex::default() }
    }

    /// A place for one more. None: all are taken, by such as have no more than they, or all that are theirs.
    pub(super) fn begin(self: &Arc<Self>, waiter: Waiter, service: &dyn Service) -> Option<WaitPlace> {
        let Waiter { owner, place, has_share, user } = waiter;
        let began = Instant::now();
        let mut book = lock(&self.book);
        let room = book.room_for(&owner, &place, has_share, began.checked_sub(self.long))?;
        let brief_until = matches!(room, Room::Brief).then(|| began + self.brief);
        let makes_way = match room {
            Room::Of(oldest) => Some((owner.clone(), oldest)),
            Room::Long | Room::Brief if book.in_all < self.most => None,
            Room::Long | Room::Brief => Some(book.first_of_most(book.of(&owner).len() + 1)?),
        };
        if let Some((owner, oldest)) = &makes_way {
            book.remove(owner, oldest);
        }
        let (is_over, told_by) = (AtomicBool::new(false), Mutex::new(None));
        let wait = Arc::new(Wait { place, user, began, brief_until, is_over, told_by });
        book.in_all += 1;
        book.of_owner.entry(owner.clone()).or_default().push(wait.clone());
        drop(book);
        if let Some((_, oldest)) = makes_way {
            oldest.end(service);
        }
        Some(WaitPlace { waits: self.clone(), owner, wait })
    }
}

impl WaitBook {
    fn of(&self, owner: &RequestOwner) -> &[Arc<Wait>] {
        self.of_owner.get(owner).map_or(&[], Vec::as_slice)
    }

    /// What there is for one more of theirs there. Who is there for long came before that moment. None: nothing.
    fn room_for(
        &self,
        owner: &RequestOwner,
        place: &Option<String>,
        has_share: bool,
        long_ago: Option<Instant>,
    ) -> Option<Room> {
        let theirs = self.of(owner);
        let long = || theirs.iter().filter(|wait| wait.brief_until.is_none());
        let here = || long().filter(|wait| place.is_some() && wait.place == *place);
        let oldest = match has_share && long().count() >= OF_OWNER_MAX {
            _ if here().count() >= OF_PLACE_MAX => here().next(),
            true => long().next(),
            false => return Some(Room::Long),
        };
        if let Some(oldest) = oldest.filter(|oldest| long_ago.is_some_and(|ago| oldest.began <= ago)) {
            return Some(Room::Of(oldest.clone()));
        }
        (theirs.len() - long().count() < BRIEF_OF_OWNER_MAX).then_some(Room::Brief)
    }

    /// The oldest of whoever has most, if that is more than so many.
    fn first_of_most(&self, more_than: usize) -> Option<(RequestOwner, Arc<Wait>)> {
        let (owner, theirs) = self.of_owner.iter().max_by_key(|(_, theirs)| theirs.len())?;
        let oldest = theirs.first().filter(|_| theirs.len() > more_than)?;
        Some((owner.clone(), oldest.clone()))
    }

    fn remove(&mut self, owner: &RequestOwner, wait: &Arc<Wait>) {
        let Some(theirs) = self.of_owner.get_mut(owner) else { return };
        let before = theirs.len();
        theirs.retain(|other| !Arc::ptr_eq(other, wait));
        self.in_all -= before - theirs.len();
        if theirs.is_empty() {
            self.of_owner.remove(owner);
        }
    }
}

impl Wait {
    fn end(&self, service: &dyn Service) {
        self.is_over.store(true, Ordering::SeqCst);
        let told_by = lock(&self.told_by).as_ref().and_then(Weak::upgrade);
        if let Some(tell) = told_by {
            service.end_wait(&self.user, &tell);
        }
    }
}

impl WaitPlace {
    /// Whether another has its place: it is to be answered with what there is.
    pub(super) fn is_over(&self) -> bool {
        self.wait.is_over.load(Ordering::SeqCst)
    }

    /// Until when it waits that would wait until then.
    pub(super) fn until(&self, until: Instant) -> Instant {
        self.wait.brief_until.map_or(until, |brief| brief.min(until))
    }

    /// Where it waits it is told by this.
    pub(super) fn is_told_by(&self, tell: &Tell) {
        *lock(&self.wait.told_by) = Some(Arc::downgrade(tell));
    }
}

impl Drop for WaitPlace {
    fn drop(&mut self) {
        lock(&self.waits.book).remove(&self.owner, &self.wait);
    }
}
