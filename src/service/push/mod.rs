//! Push: of what users are notified.
//!
//! - `rules`: the push rules of a user. What they make of an event is found in the transaction that accepts it
//!   (`store/push/evaluate.rs`).

pub mod rules;
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
