//! Signing keys, ours and other servers', and the signatures that are checked with them.

pub(super) mod attempts;
pub mod fetch;
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
