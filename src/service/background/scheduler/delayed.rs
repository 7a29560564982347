//! Delayed events that are due.

use std::sync::Arc;

use super::{SchedulerShared, UNWRITTEN_REST};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;

/// How many delayed events are sent at once.
pub(super) const SENDERS_MAX: usize = 8;

/// Sends the delayed events that are due, on threads of their own: whoever is in a call waits for them. Of each user one
/// after the other, since what is sent may ask other servers, as many as the user likes, and those may be silent.
pub(super) fn send_delayed_events(
    shared: &Arc<SchedulerShared>,
    hs: &Arc<Homeserver>,
    now: Millis,
) -> Result<()> {
    loop {
        let busy: Vec<_> = lock(&shared.state).sending.values().cloned().collect();
        if busy.len() >= SENDERS_MAX {
            return Ok(());
        }
        let due = hs.store.read(|db| db.first_due_delayed_event(now, &busy))?;
        let Some((delay_id, user)) = due else { return Ok(()) };
        lock(&shared.state).sending.insert(delay_id.clone(), user);
        let (sending, hs) = (SendingGuard(shared.clone(), delay_id.clone()), hs.clone());
        let begun = shared.begin("delayed", move || {
            if let Err(error) = hs.rooms().send_due_delayed_event(&delay_id) {
                log::log!(error.level(log::Level::Info), "a delayed event was not sent: {error}");
                if error.status() >= 500 {
                    // If not even that could be written down, it is still due.
                    sending.0.rest(UNWRITTEN_REST);
                }
            }
            drop(hs);
            drop(sending);
        });
        if !begun {
            return Ok(());
        }
    }
}

/// A delayed event that is being sent, given back also when its thread panics.
struct SendingGuard(Arc<SchedulerShared>, String);

impl Drop for SendingGuard {
    fn drop(&mut self) {
        lock(&self.0.state).sending.remove(&self.1);
        self.0.wake();
    }
}
