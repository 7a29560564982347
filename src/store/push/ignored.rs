//! What is unread of users whom its reader ignores from now on: it is not shown any more, and so could not be read.

use std::collections::BTreeMap;

use rusqlite::{Row, params};

use super::notifications::{NOTIFICATIONS_BY_THREAD, NewNotification, OwnNotification};
use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::ignored_users::Ignored;
use crate::protocol::pdu::Membership;
use crate::protocol::push_rules::{Actions, Outcome};
use crate::store::{EventKey, RoomKey, Tx};

/// So many unread notifications of each kind are looked at, the latest of the rooms that were joined last.
const UNREAD_LOOKED_AT_MAX: usize = 500;

/// An unread notification.
struct UnreadRow {
    event: EventKey,
    thread: Option<String>,
    /// What the event is to the others.
    usual: u8,
}

fn unread_of(row: &Row<'_>) -> rusqlite::Result<(i64, UnreadRow)> {
    Ok((row.get(0)?, UnreadRow { event: row.get(1)?, thread: row.get(2)?, usual: row.get(3)? }))
}

impl Tx<'_> {
    /// Has what users said whom a user ignores from now on count as nothing to that user. Clients are told where that makes a
    /// difference.
    pub(in crate::store) fn forget_unread_of_ignored(
        &mut self,
        user: &UserId,
        ignored: &Ignored,
    ) -> Result<()> {
        let mut left = UNREAD_LOOKED_AT_MAX;
        let rooms = self.rooms_of(user)?;
        for room in rooms.iter().rev().filter(|room| room.membership == Membership::Join) {
            let unread = self.unread_rows(user, room.room, left)?;
            left = left.saturating_sub(unread.len());
            let before = if unread.is_empty() { None } else { Some(self.unread_counts(user, room.room)?) };
            for (stream, row) in unread {
                if ignored.has(self.pdu_by_key(row.event)?.sender().as_str()) {
                    let new = NewNotification {
                        stream,
                        room: room.room,
                        event: Some(row.event),
                        room_id: None,
                        thread: row.thread.as_deref(),
                    };
                    let (actions, instead_of) = (&Actions::default(), Outcome::of_code(row.usual));
                    self.add_own_notification(&new, &OwnNotification { user, actions, instead_of })?;
                }
            }
            if let Some(before) = before
                && before != self.unread_counts(user, room.room)?
            {
                self.note_recounted(user, room.room)?;
            }
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// What may be unread for a user in a room, by position.
    fn unread_rows(&self, user: &UserId, room: RoomKey, limit: usize) -> Result<BTreeMap<i64, UnreadRow>> {
        let Some(read) = self.read_positions(room, user)? else { return Ok(BTreeMap::new()) };
        let (after, limit) = (read.base(), limit as i64);
        let mut unread = BTreeMap::new();
        for (index, condition) in NOTIFICATIONS_BY_THREAD {
            let mut statement = self.conn().prepare_cached(&format!(
                "SELECT stream, event_key, thread, outcome FROM notifications {index}
                 WHERE room_key = ?1 AND stream > ?2 AND thread {condition} ORDER BY stream DESC LIMIT ?3"
            ))?;
            for row in statement.query_map([room, after, limit], unread_of)? {
                unread.extend([row?]);
            }
        }
        let mut statement = self.conn().prepare_cached(
            "SELECT stream, event_key, thread, instead_of FROM notifications_of_users
             WHERE user_id = ?1 AND room_key = ?2 AND stream > ?3 AND event_key IS NOT NULL
             ORDER BY stream DESC LIMIT ?4",
        )?;
        for row in statement.query_map(params![user.as_str(), room, after, limit], unread_of)? {
            unread.extend([row?]);
        }
        Ok(unread)
    }
}
