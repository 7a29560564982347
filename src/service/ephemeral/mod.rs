//! What is no part of a room's history and of which only the last counts: typing, receipts, presence.
//!
//! - `typing`, `receipts`, `presence`: each as local users do it and as other servers tell it.
//! - `newcomers`: presence that is told before somebody of ours is in the room.
//! - `incoming`: what the three ask of the server whose EDUs are received; `kept`: what of that waits until we are in a room.

pub(super) mod incoming;
pub mod kept;
mod newcomers;
pub mod presence;
pub mod receipts;
pub mod typing;

use std::ops::Deref;

use crate::clock::Millis;
use crate::service::Homeserver;

/// What is no part of a room's history: typing, receipts, presence.
#[derive(Clone, Copy)]
pub struct Ephemeral<'h>(&'h Homeserver);

impl Ephemeral<'_> {
    /// The wall clock was set back.
    pub(in crate::service) fn clock_set_back(&self, now: Millis) {
        self.local_presence.clock_set_back(now);
    }
}

impl Deref for Ephemeral<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// What is no part of a room's history: typing, receipts, presence.
    pub fn ephemeral(&self) -> Ephemeral<'_> {
        Ephemeral(self)
    }
}
