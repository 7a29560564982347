//! What who runs this server can do: the verbs behind the commands, the admin API and the page.
//!
//! - `knocks`: who waits before which room's door, and the answer to them.

pub mod knocks;

use std::ops::Deref;

use crate::service::Homeserver;

/// What who runs this server can do.
#[derive(Clone, Copy)]
pub struct Admin<'h>(&'h Homeserver);

impl Deref for Admin<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// What who runs this server can do.
    pub fn admin(&self) -> Admin<'_> {
        Admin(self)
    }
}
