//! `PUT /send`: what other servers send us.

pub mod edus;
pub(super) mod pending;
pub(in crate::service) mod remote_member_events;
pub mod transaction;
pub mod transaction_slots;

use std::ops::Deref;

use crate::service::Homeserver;

/// What other servers send: transactions, and what had to wait.
#[derive(Clone, Copy)]
pub struct Incoming<'h>(&'h Homeserver);

impl Deref for Incoming<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// What other servers send: transactions, and what had to wait.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming(self)
    }
}
