//! Signing keys, this server's and others', and the signatures that are checked with them.
//!
//! - `ring.rs`: the keys at hand: our own, and those of other servers that are in memory.
//! - `fetch.rs`: where other servers' keys come from.
//! - `doubts.rs`: keys that signatures contradict, as those do of a server that began anew.
//! - `notary.rs`: what this server says of other servers' keys, as a notary.
//! - `attempts.rs`: which servers are being asked, and which are not to be asked before when.
//! - `verify.rs`: the signatures of requests, and the first three checks on received events.

pub(super) mod attempts;
pub(super) mod doubts;
pub mod fetch;
pub mod notary;
pub mod ring;
pub(super) mod verify;

use std::ops::Deref;

use crate::service::Homeserver;

/// Signing keys, and the signatures that are checked with them.
#[derive(Clone, Copy)]
pub struct Keys<'h>(&'h Homeserver);

impl Deref for Keys<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// Signing keys, and the signatures that are checked with them.
    pub fn keys(&self) -> Keys<'_> {
        Keys(self)
    }
}
