//! The requests that wait for news: apart from those that are worked for, so that however many wait others are answered. There
//! are so many in all, of them a share for each whom they are made for, and of that a few for each place of theirs, such as one
//! device that asks by one endpoint. Who waits once more than that has their oldest answered at once, with what there is: clients
//! that begin anew have often forgotten it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::http::transport::bounds::RequestOwner;
use crate::http::transport::service::{Service, Tell};
use crate::locks::lock;
use crate::protocol::UserId;

/// For one user, or server. A thread each.
const OF_OWNER_MAX: usize = 32;
/// For one place of theirs: some share a session between several windows, of which each waits.
const OF_PLACE_MAX: usize = 8;

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

impl Waits {
    pub(super) fn new(most: usize) -> Self {
        Self { most, book: Mutex::default() }
    }

    /// A place for one more. None: all are taken, by such as have no more than they.
    pub(super) fn begin(self: &Arc<Self>, waiter: Waiter, service: &dyn Service) -> Option<WaitPlace> {
        let Waiter { owner, place, has_share, user } = waiter;
        let (is_over, told_by) = (AtomicBool::new(false), Mutex::new(None));
        let wait = Arc::new(Wait { place, user, is_over, told_by });
        let mut book = lock(&self.book);
        let makes_way = match book.first_of(&owner, &wait.place, has_share) {
            Some(of_theirs) => Some(of_theirs),
            None if book.in_all < self.most => None,
            None => Some(book.first_of_most(book.count(&owner) + 1)?),
        };
        if let Some((owner, oldest)) = &makes_way {
            book.remove(owner, oldest);
        }
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
    fn count(&self, owner: &RequestOwner) -> usize {
        self.of_owner.get(owner).map_or(0, Vec::len)
    }

    /// The one of theirs that makes way for another there, if one has to.
    fn first_of(
        &self,
        owner: &RequestOwner,
        place: &Option<String>,
        has_share: bool,
    ) -> Option<(RequestOwner, Arc<Wait>)> {
        let theirs = self.of_owner.get(owner)?;
        let here = || theirs.iter().filter(|wait| place.is_some() && wait.place == *place);
        let oldest = match has_share && theirs.len() >= OF_OWNER_MAX {
            _ if here().count() >= OF_PLACE_MAX => here().next(),
            true => theirs.first(),
            false => None,
        };
        oldest.map(|oldest| (owner.clone(), oldest.clone()))
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
