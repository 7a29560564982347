//! The rows that say of what users are notified. The outcome of an event for a user is the row of theirs, or else that of
//! all, if they were in the room by then and did not send it.

use std::collections::BTreeSet;

use rusqlite::{Row, params};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::order::{self, Gather};
use crate::protocol::pdu::Membership;
use crate::protocol::push_rules::{Actions, Outcome};
use crate::protocol::remote_membership::RemoteMembership;
use crate::protocol::{RoomId, UserId};
use crate::store::{Db, EventKey, RoomKey, StoredEvent, Tx};

/// How the rows of a room are found that are in no thread, and those that are in one: the index, the condition.
pub(super) const NOTIFICATIONS_BY_THREAD: [(&str, &str); 2] =
    [("NOT INDEXED", "IS NULL"), ("INDEXED BY notifications_in_threads", "IS NOT NULL")];

/// What one look at a user's notifications goes through in one room, at most: rows, and events that may be the user's own.
const ROWS_LOOKED_AT_MAX: usize = 2000;
const EVENTS_LOOKED_AT_MAX: usize = 200;

/// An event that notifies somebody.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct NewNotification<'n> {
    pub stream: i64,
    pub room: RoomKey,
    /// None of an invite to a room that we are not in.
    pub event: Option<EventKey>,
    /// Of such an invite.
    pub room_id: Option<&'n RoomId>,
    pub thread: Option<&'n str>,
}

/// What it is to one user.
pub(in crate::store) struct OwnNotification<'n> {
    pub user: &'n UserId,
    pub actions: &'n Actions,
    /// What it is to the others.
    pub instead_of: Outcome,
}

/// Something that a user is notified of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Its place in the stream.
    pub stream: i64,
    /// The room's row; 0 for an invite to a room that this server is not in.
    pub room: RoomKey,
    /// The room.
    pub room_id: RoomId,
    /// The event; none for such an invite: it is the event of the user's remote membership.
    pub event: Option<EventKey>,
    /// The root of the thread that it is in.
    pub thread: Option<String>,
    /// What it is.
    pub outcome: Outcome,
    /// The actions of the rule, a JSON array, if they are not [`Outcome::usual_actions`].
    pub unusual: Option<String>,
}

impl Notification {
    /// The actions of the rule.
    pub fn actions(&self) -> Result<Vec<Value>> {
        match &self.unusual {
            None => Ok(self.outcome.usual_actions()),
            Some(actions) => serde_json::from_str(actions).map_err(Error::internal),
        }
    }
}

/// Some of what a user is notified of.
#[derive(Debug, Default)]
pub struct FoundNotifications {
    /// In the order that was asked for.
    pub found: Vec<Notification>,
    /// It was looked no further than to this position, which is among what was looked at; none: everything was.
    pub stopped_at: Option<i64>,
}

/// Which of a user's notifications are wanted.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// Those behind a position, the first ones first.
    After(i64),
    /// Those before a position, the last ones first; only highlights?
    Before(i64, bool),
}

impl Wanted {
    /// The ends, both exclusive, the order, and which bits of the outcome there must be.
    fn parts(self) -> (i64, i64, &'static str, u8) {
        match self {
            Self::After(after) => (after, i64::MAX, "", 1),
            Self::Before(before, highlights) => (0, before, "DESC", if highlights { 3 } else { 1 }),
        }
    }

    /// How far down the order a position is.
    fn rank(self, stream: i64) -> i64 {
        match self {
            Self::After(_) => stream,
            Self::Before(..) => -stream,
        }
    }

    /// The one of two places to stop at that comes first.
    fn sooner(self, one: Option<i64>, other: Option<i64>) -> Option<i64> {
        one.into_iter().chain(other).min_by_key(|stream| self.rank(*stream))
    }
}

/// A row: stream, event, thread, outcome, actions.
fn read(row: &Row<'_>, room: RoomKey, room_id: &RoomId) -> rusqlite::Result<Notification> {
    Ok(Notification {
        stream: row.get(0)?,
        room,
        room_id: room_id.clone(),
        event: row.get(1)?,
        thread: row.get(2)?,
        outcome: Outcome::of_code(row.get(3)?),
        unusual: row.get(4)?,
    })
}

impl Db<'_> {
    /// What a user is notified of by events behind a position, the first ones first, at most `limit`. If there are fewer,
    /// these are all up to where it was looked, or up to the position of the snapshot. Nothing that the user sent, nothing of
    /// rooms that they are not in any more, and nothing that was redacted; what they have read is among it. Of each room
    /// so many rows are looked at, as [`Db::notifications_before`] has it.
    pub fn notifications_after(&self, user: &UserId, after: i64, limit: usize) -> Result<FoundNotifications> {
        let mut rooms: BTreeSet<RoomKey> = self.joined_rooms_with_news(user, after)?.into_iter().gather();
        let changed = self.rooms_of_since(user, after)?;
        let invited = changed.iter().filter(|room| room.membership == Membership::Invite);
        rooms.extend(invited.map(|room| room.room));
        self.merged(user, rooms, Wanted::After(after), limit)
    }

    /// What a user was notified of by events before a position, the last ones first, at most `limit`: all, or only what is
    /// highlighted. Of each room so many rows are looked at, however many there are of the user's own events, and of those
    /// that are nothing to them.
    pub fn notifications_before(
        &self,
        user: &UserId,
        before: i64,
        only_highlights: bool,
        limit: usize,
    ) -> Result<FoundNotifications> {
        let rooms = self.rooms_of(user)?;
        let rooms =
            rooms.iter().filter(|room| matches!(room.membership, Membership::Join | Membership::Invite));
        let rooms = rooms.map(|room| room.room).collect();
        self.merged(user, rooms, Wanted::Before(before, only_highlights), limit)
    }

    fn merged(
        &self,
        user: &UserId,
        rooms: BTreeSet<RoomKey>,
        wanted: Wanted,
        limit: usize,
    ) -> Result<FoundNotifications> {
        let mut all = self.remote_invites(user, wanted, limit)?;
        let mut stopped_at = None;
        for room in rooms {
            for stopped in [
                self.own_of_room(user, room, wanted, limit, &mut all)?,
                self.usual_of_room(user, room, wanted, limit, &mut all)?,
            ] {
                stopped_at = wanted.sooner(stopped_at, stopped);
            }
        }
        let is_further = |at: i64, stream| wanted.rank(stream) > wanted.rank(at);
        all.retain(|notification| !stopped_at.is_some_and(|at| is_further(at, notification.stream)));
        order::sort_by_key(&mut all, |notification| wanted.rank(notification.stream));
        all.truncate(limit);
        Ok(FoundNotifications { found: all, stopped_at })
    }

    /// Invites to rooms that we are not in, as long as they stand.
    fn remote_invites(&self, user: &UserId, wanted: Wanted, limit: usize) -> Result<Vec<Notification>> {
        let (after, before, order, bits) = wanted.parts();
        let mut statement = self.conn().prepare_cached(&format!(
            "SELECT n.stream, NULL, NULL, n.outcome, n.actions, n.room_id FROM notifications_of_users n
               JOIN remote_memberships r ON r.room_id = n.room_id AND r.user_id = n.user_id
             WHERE n.user_id = ?1 AND n.room_key = 0 AND n.stream > ?2 AND n.stream < ?3 AND n.outcome & ?4 = ?4
               AND r.state = 'invited' ORDER BY n.stream {order} LIMIT ?5"
        ))?;
        let mut rows = statement.query(params![user.as_str(), after, before, bits, limit as i64])?;
        let mut invites = Vec::new();
        while let Some(row) = rows.next()? {
            invites.push(read(row, 0, &RoomId::parse(&row.get::<_, String>(5)?)?)?);
        }
        Ok(invites)
    }

    /// What is the user's alone in a room. Where it stopped, if it did not look at everything.
    fn own_of_room(
        &self,
        user: &UserId,
        room: RoomKey,
        wanted: Wanted,
        limit: usize,
        all: &mut Vec<Notification>,
    ) -> Result<Option<i64>> {
        let (after, before, order, bits) = wanted.parts();
        let mut statement = self.conn().prepare_cached(&format!(
            "SELECT stream, event_key, thread, outcome, actions, outcome & ?5 = ?5 FROM notifications_of_users
             WHERE user_id = ?1 AND room_key = ?2 AND stream > ?3 AND stream < ?4 ORDER BY stream {order}"
        ))?;
        let since = match self.counts_since(room, user)? {
            Some(since) => since,
            // Of who is invited only the invite that stands.
            None => self.member(room, user)?.map_or(i64::MAX, |member| member.stream - 1),
        };
        let after = after.max(since);
        let room_id = self.room_by_key(room)?.room_id;
        let mut rows = statement.query(params![user.as_str(), room, after, before, bits])?;
        let (mut found, mut looked_at) = (0, 0);
        while let Some(row) = rows.next()?.filter(|_| found < limit) {
            looked_at += 1;
            if row.get(5)? {
                all.push(read(row, room, &room_id)?);
                found += 1;
            }
            if looked_at >= ROWS_LOOKED_AT_MAX {
                return Ok(Some(row.get(0)?));
            }
        }
        Ok(None)
    }

    /// What it has for everybody, where nothing else is so for the user. Where it stopped, if it did not look at everything.
    fn usual_of_room(
        &self,
        user: &UserId,
        room: RoomKey,
        wanted: Wanted,
        limit: usize,
        all: &mut Vec<Notification>,
    ) -> Result<Option<i64>> {
        let Some(since) = self.counts_since(room, user)? else { return Ok(None) };
        let (after, before, order, bits) = wanted.parts();
        let room_id = self.room_by_key(room)?.room_id;
        let mut stopped_at = None;
        for (index, condition) in NOTIFICATIONS_BY_THREAD {
            let mut statement = self.conn().prepare_cached(&format!(
                "SELECT stream, event_key, thread, outcome, actions,
                   EXISTS (SELECT 1 FROM notifications_of_users o
                     WHERE o.user_id = ?1 AND o.room_key = ?2 AND o.stream = n.stream)
                 FROM notifications n {index}
                 WHERE room_key = ?2 AND stream > ?3 AND stream < ?4 AND outcome & ?5 = ?5 AND thread {condition}
                 ORDER BY stream {order}"
            ))?;
            let mut rows = statement.query(params![user.as_str(), room, after.max(since), before, bits])?;
            let (mut found, mut looked_at, mut events) = (0, 0, 0);
            while let Some(row) = rows.next()?.filter(|_| found < limit) {
                looked_at += 1;
                if !row.get::<_, bool>(5)? {
                    events += 1;
                    if self.pdu_by_key(row.get::<_, EventKey>(1)?)?.sender() != user {
                        all.push(read(row, room, &room_id)?);
                        found += 1;
                    }
                }
                if looked_at >= ROWS_LOOKED_AT_MAX || events >= EVENTS_LOOKED_AT_MAX {
                    stopped_at = wanted.sooner(stopped_at, Some(row.get(0)?));
                    break;
                }
            }
        }
        Ok(stopped_at)
    }
}

impl Tx<'_> {
    /// Lets a room that this server is not in ring no more for an invite that was told before.
    pub(in crate::store) fn forget_remote_invite(&mut self, row: &RemoteMembership) -> Result<()> {
        self.execute(
            "DELETE FROM notifications_of_users WHERE user_id = ?1 AND room_key = 0 AND room_id = ?2",
            params![row.user_id.as_str(), row.room_id.as_str()],
        )?;
        Ok(())
    }

    /// Notes what an event is to those of whom nothing else is said.
    pub(in crate::store) fn add_notification(
        &mut self,
        new: &NewNotification<'_>,
        usual: &Actions,
    ) -> Result<()> {
        self.execute(
            "INSERT INTO notifications (room_key, stream, event_key, thread, outcome, actions)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![new.room, new.stream, new.event, new.thread, usual.outcome.code(), usual.unusual],
        )?;
        Ok(())
    }

    /// Notes what it is to one user.
    pub(in crate::store) fn add_own_notification(
        &mut self,
        new: &NewNotification<'_>,
        own: &OwnNotification<'_>,
    ) -> Result<()> {
        self.execute(
            "INSERT OR REPLACE INTO notifications_of_users
               (user_id, room_key, stream, event_key, room_id, thread, outcome, instead_of, actions)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                own.user.as_str(),
                new.room,
                new.stream,
                new.event,
                new.room_id.map(RoomId::as_str),
                new.thread,
                own.actions.outcome.code(),
                own.instead_of.code(),
                own.actions.unusual,
            ],
        )?;
        Ok(())
    }

    /// An event is nothing to anybody any more: it was redacted.
    pub(in crate::store) fn forget_notifications(&mut self, event: &StoredEvent) -> Result<()> {
        let Some(place) = event.place.filter(|place| place.sub == 0) else { return Ok(()) };
        let of_all = self.execute(
            "DELETE FROM notifications WHERE room_key = ?1 AND stream = ?2 AND event_key = ?3",
            params![event.room, place.stream, event.key],
        )?;
        let of_users = self.execute(
            "DELETE FROM notifications_of_users WHERE stream = ?1 AND event_key = ?2",
            params![place.stream, event.key],
        )?;
        if of_all + of_users > 0 {
            self.changes.recounted.insert(event.room);
        }
        Ok(())
    }
}
