//! Events of rooms: made here, received, authorised, resolved, fetched and served.

pub mod accept;
pub(super) mod authorise;
pub mod build;
pub(super) mod erasure;
pub(super) mod extremities;
pub mod fetch;
pub mod late_extremities;
pub(super) mod merge_forks;
pub mod nearest_event;
pub mod policy_server;
pub(super) mod power_levels;
pub(super) mod resolve;
pub mod serve;
pub(super) mod server_acl;
pub(super) mod state_view;
#[cfg(test)]
pub(super) mod tests;

use std::ops::Deref;

use crate::service::Homeserver;

/// Events of rooms: made here, received, authorised, fetched and served.
#[derive(Clone, Copy)]
pub struct Events<'h>(&'h Homeserver);

impl Deref for Events<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// Events of rooms: made here, received, authorised, fetched and served.
    pub fn events(&self) -> Events<'_> {
        Events(self)
    }
}
