//! Joining the forks of a room.
//!
//! Every event follows the forward extremities that its server knows, so forks that others make are joined by the next
//! event of ours. In a room where no local user speaks they pile up, and each makes every further event dearer: its
//! state is resolved with those of all forks. So beyond a few of them we say something that means nothing, by a local
//! user who may, and that no client is shown. Other servers are not sent it, or every server in the room would send one
//! to every other, whose forks would have to be joined again; they fetch it when the next event of ours follows it.
//! Where no local user may speak, `authorise.rs` bounds what forks can cost.

use crate::error::Result;
use crate::protocol::UserId;
use crate::service::events::Events;
use crate::service::events::draft::Draft;
use crate::store::rooms::append::{DUMMY_EVENT, EXTREMITIES_WANTED_MAX};
use crate::store::{Room, RoomKey};

/// How many of us are tried.
const SENDERS_TRIED_MAX: usize = 20;

impl Events<'_> {
    /// Joins the forks of a room, if there are more than a few and a local user may speak there.
    pub(in crate::service) fn merge_forks(&self, room: RoomKey) {
        if let Err(e) = self.try_to_merge_forks(room) {
            log::log!(e.level(log::Level::Warn), "the forks of room {room} could not be merged: {e}");
        }
    }

    fn try_to_merge_forks(&self, key: RoomKey) -> Result<()> {
        let mut before = usize::MAX;
        loop {
            let (room, users, extremities) = self.store.read(|db| {
                Ok((db.room_by_key(key)?, db.joined_local_users(key)?, db.extremity_keys(key)?.len()))
            })?;
            // Each event joins as many as it can name.
            if extremities <= EXTREMITIES_WANTED_MAX || extremities >= before {
                return Ok(());
            }
            if !self.anybody_speaks(&room, users)? {
                log::debug!("{} has {extremities} forks, and none of us may speak there", room.room_id);
                return Ok(());
            }
            before = extremities;
        }
    }

    fn anybody_speaks(&self, room: &Room, users: Vec<UserId>) -> Result<bool> {
        for sender in users.into_iter().take(SENDERS_TRIED_MAX) {
            let draft = Draft {
                room: room.room_id.clone(),
                sender,
                event_type: DUMMY_EVENT.to_owned(),
                state_key: None,
                content: serde_json::Map::new(),
                redacts: None,
                origin_server_ts: None,
            };
            match self.append_silent(draft) {
                Ok(()) => return Ok(true),
                Err(e) if e.is_own_failure() => return Err(e),
                Err(_) => {}
            }
        }
        Ok(false)
    }
}
