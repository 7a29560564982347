//! Presence as it is told, and to servers that have not heard of somebody's because they shared no room with them: nothing has
//! changed in it when they come to share one, and yet it is news.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::json;

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::{ServerName, UserId};
use crate::store::ephemeral::presence::{Presence, PresenceState};
use crate::store::{Db, RoomKey};

/// In rooms with more servers than that, presence is of no interest to all of them, and costs a request to each.
pub(in crate::service) const SERVERS_IN_ROOM_MAX: usize = 500;
/// Users of a room of whom a server is told that comes into it.
const USERS_OF_ROOM_MAX: usize = 50;
/// Users in one message, and such messages in one transaction.
const PUSHES_MAX: usize = 25;
const PRESENCE_EDUS_MAX: usize = 10;

/// `m.presence` for a server, of those local users who are there: of those who have come to share a room with it
/// (`newly_shared`), and of those in rooms that it has come into itself.
pub(super) fn presence_for_newcomer(
    db: &Db<'_>,
    server: &ServerName,
    newly_shared: &[UserId],
    entered: &BTreeSet<RoomKey>,
    now: Millis,
) -> Result<Vec<String>> {
    let mut users: BTreeSet<UserId> = newly_shared.iter().cloned().collect();
    for room in entered {
        if db.is_resident(*room, server)? {
            users.extend(db.present_local_users(*room, USERS_OF_ROOM_MAX)?);
        }
    }
    let mut pushes = Vec::new();
    for user in users {
        let known = db.presence(&user)?.filter(|known| known.state != PresenceState::Offline);
        if let Some(presence) = known
            && db.share_a_room_of_few_servers(&user, server, SERVERS_IN_ROOM_MAX)?
        {
            let told = ToldPresence::for_server(&user, &presence, now);
            pushes.push(serde_json::to_value(told).map_err(Error::internal)?);
        }
    }
    let edu = |push| json!({ "edu_type": "m.presence", "content": { "push": push } }).to_string();
    Ok(pushes.chunks(PUSHES_MAX).take(PRESENCE_EDUS_MAX).map(edu).collect())
}

/// What clients and servers are told.
#[derive(Serialize)]
pub(in crate::service) struct ToldPresence<'p> {
    currently_active: bool,
    last_active_ago: Millis,
    presence: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_msg: Option<&'p str>,
    /// Told to servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'p UserId>,
}

impl<'p> ToldPresence<'p> {
    pub(in crate::service) fn new(presence: &'p Presence, now: Millis) -> Self {
        Self {
            currently_active: presence.active,
            last_active_ago: (now - presence.last_active_ms).max(0),
            presence: presence.state.as_str(),
            status_msg: presence.status.as_deref(),
            user_id: None,
        }
    }

    /// The same for a server.
    pub(in crate::service) fn for_server(user: &'p UserId, presence: &'p Presence, now: Millis) -> Self {
        Self { user_id: Some(user), ..Self::new(presence, now) }
    }
}
