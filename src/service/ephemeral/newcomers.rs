//! What servers say of the presence of users whom we may come to share a room with in a moment.

use serde_json::value::RawValue;

use super::Ephemeral;
use super::incoming::{EduKind, EduOrigin};
use crate::error::Result;

/// Rooms that are being joined for which what is said of strangers is kept.
const ROOMS_MAX: usize = 8;

impl Ephemeral<'_> {
    /// What a server says of users whom nobody here shares a room with is kept while somebody is joining one: they may be
    /// there, and it is not said again once we are in.
    pub(super) fn keep_presence(&self, origin: &EduOrigin<'_>, strangers: &[&RawValue]) -> Result<()> {
        if strangers.is_empty() {
            return Ok(());
        }
        for room_id in self.store.read(|db| db.rooms_being_joined(ROOMS_MAX))? {
            let pushes: Vec<&str> = strangers.iter().map(|push| push.get()).collect();
            let content = format!("{{\"push\":[{}]}}", pushes.join(",")).into_bytes();
            self.keep_edu(origin.server(), &room_id, (EduKind::Presence, content))?;
        }
        Ok(())
    }
}
