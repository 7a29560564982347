//! Rooms as their members see them: creating, sending, reading, finding.

pub mod client_format;
pub mod create;
pub mod directory;
pub mod hierarchy;
pub mod messages;
pub mod send;
pub mod summary;
pub mod timeline;
pub mod timestamp_to_event;
pub mod view;

use std::ops::Deref;

use crate::service::Homeserver;

/// Rooms as their members see them: creating, sending, reading, finding.
#[derive(Clone, Copy)]
pub struct Rooms<'h>(&'h Homeserver);

impl Deref for Rooms<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// Rooms as their members see them: creating, sending, reading, finding.
    pub fn rooms(&self) -> Rooms<'_> {
        Rooms(self)
    }
}
