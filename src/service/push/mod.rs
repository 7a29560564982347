//! Push: of what users are notified.
//!
//! - `rules`: the push rules of a user. What they make of an event is found in the transaction that accepts it
//!   (`store/push/evaluate.rs`).
//! - `pushers`: where users have it sent. Where they read it by themselves: `service/rooms/notifications.rs`.
//! - `sweep`: what was read long ago goes.
//! - `sender`: the threads that send; `next`: what goes next to a gateway; `payload`: what it is sent.

pub(super) mod next;
mod payload;
pub mod pushers;
pub mod rules;
pub mod sender;
pub mod sweep;
#[cfg(test)]
mod tests;

use std::ops::Deref;

use crate::service::Homeserver;

/// Of what users are notified.
#[derive(Clone, Copy)]
pub struct Push<'h>(&'h Homeserver);

impl Deref for Push<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// Of what users are notified.
    pub fn push(&self) -> Push<'_> {
        Push(self)
    }
}
