//! Presence across servers where somebody has come into a room: nothing has changed in it, and yet it is news to those who did not
//! share a room before. And what servers say of it before we are in the room ourselves.

use std::collections::BTreeSet;

use serde_json::json;
use serde_json::value::RawValue;

use super::Ephemeral;
use super::incoming::EduOrigin;
use super::kept::EduKind;
use super::presence::{SERVERS_IN_ROOM_MAX, ToldPresence};
use crate::error::{Error, Result};
use crate::protocol::{ServerName, UserId};
use crate::store::ephemeral::presence::PresenceState;
use crate::store::{Db, RoomKey};

/// Users of a room of whom a server is told that comes into it.
const USERS_OF_ROOM_MAX: usize = 50;
/// Users in one message, and such messages in one transaction.
const PUSHES_MAX: usize = 25;
const EDUS_MAX: usize = 10;
/// Rooms that are being joined for which what is said of strangers is kept.
const ROOMS_MAX: usize = 8;

impl Ephemeral<'_> {
    /// `m.presence` for a server, of those local users who are there: of those who have come to share a room with it
    /// (`newly_shared`), and of those in rooms that it has come into itself.
    pub(in crate::service) fn presence_for_newcomer(
        &self,
        db: &Db<'_>,
        server: &ServerName,
        newly_shared: &[UserId],
        entered: &BTreeSet<RoomKey>,
    ) -> Result<Vec<String>> {
        if !self.config.presence || newly_shared.is_empty() && entered.is_empty() {
            return Ok(Vec::new());
        }
        let mut users = BTreeSet::new();
        for user in newly_shared {
            if self.local_presence.is_there(user)
                && db.share_a_room_of_few_servers(user, server, SERVERS_IN_ROOM_MAX)?
            {
                users.insert(user.clone());
            }
        }
        for room in entered {
            if db.is_resident(*room, server)? && db.resident_servers(*room)?.len() <= SERVERS_IN_ROOM_MAX {
                users.extend(db.present_local_users(*room, USERS_OF_ROOM_MAX)?);
            }
        }
        let now = self.clock.now_ms();
        let mut pushes = Vec::new();
        for user in users {
            let known = self.local_presence.presence_of(&user);
            if let Some(presence) = known.filter(|known| known.state != PresenceState::Offline) {
                let told = ToldPresence::for_server(&user, &presence, now);
                pushes.push(serde_json::to_value(told).map_err(Error::internal)?);
            }
        }
        let edu = |push| json!({ "edu_type": "m.presence", "content": { "push": push } }).to_string();
        Ok(pushes.chunks(PUSHES_MAX).take(EDUS_MAX).map(edu).collect())
    }

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
