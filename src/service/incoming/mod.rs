//! `PUT /send`: what other servers send, a file a part. The head of `service/events/mod.rs` has the checks that each
//! event goes through.
//!
//! - `transaction.rs`: one transaction, from its bytes to its answer.
//! - `transaction_slots.rs`: how many transactions of one server are received at the same time.
//! - `edus.rs`: ephemeral data units, handed to who knows their type.
//! - `pending.rs`: events that cannot be authorised yet.
//! - `remote_member_events.rs`: what a room that this server is not in says of a local user.

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
