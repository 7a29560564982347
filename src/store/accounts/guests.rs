//! Accounts of guests, and the rooms that they are to leave since no guests are let in any more.

use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension, params};

use super::first;
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::{Db, EventKey, RoomKey, Tx};

/// Whether there are any guests: most servers have none, and are to pay nothing for those that others have.
pub(in crate::store) fn are_there_any(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM users WHERE guest = 1)", [], |row| row.get(0))
}

/// What the names of guests begin with.
pub const NAME_BEGINS: &str = "guest-";
/// How many random small letters follow.
pub const NAME_LETTERS: usize = 12;

/// Whether this id of a user has a name such as guests are given.
pub(super) fn is_guest_name(user: &str) -> bool {
    let name = user.strip_prefix('@').and_then(|user| user.split(':').next());
    let letters = name.and_then(|name| name.strip_prefix(NAME_BEGINS)).unwrap_or_default();
    letters.len() == NAME_LETTERS && letters.bytes().all(|letter| letter.is_ascii_lowercase())
}

impl Db<'_> {
    /// Whether this is a guest of this server.
    pub fn is_guest(&self, user: &UserId) -> Result<bool> {
        if !self.shared.any_guests.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let mut query = self.conn().prepare_cached("SELECT 1 FROM users WHERE user_id = ?1 AND guest = 1")?;
        Ok(query.exists([user.as_str()])?)
    }

    /// Whether this is a user of ours of whom nothing is kept any more: a guest who was forgotten, or one whose account was erased.
    pub(in crate::store) fn is_nothing_kept_of(&self, user: &UserId) -> Result<bool> {
        if !self.is_local(user.as_str()) {
            return Ok(false);
        }
        let mut query =
            self.conn().prepare_cached("SELECT erased_at IS NOT NULL FROM users WHERE user_id = ?1")?;
        Ok(first(&mut query, [user.as_str()])?.unwrap_or_else(|| is_guest_name(user.as_str())))
    }

    /// How many guests there are, those included that are leaving.
    pub fn count_guests(&self) -> Result<i64> {
        let mut query = self.conn().prepare_cached(
            "SELECT count(*) FROM users WHERE guest = 1 AND (deactivated = 0 OR leaving_due_ms IS NOT NULL)",
        )?;
        Ok(first(&mut query, [])?.unwrap_or(0))
    }

    /// The guest who was heard of least lately.
    pub fn quietest_guest(&self) -> Result<Option<UserId>> {
        let mut query = self.conn().prepare_cached(
            "SELECT u.user_id FROM users u LEFT JOIN devices d ON d.user_id = u.user_id
             WHERE u.guest = 1 AND u.deactivated = 0 ORDER BY coalesce(d.last_seen_ms, u.created_ms) LIMIT 1",
        )?;
        let user: Option<String> = first(&mut query, [])?;
        user.map(|user| UserId::parse(&user)).transpose()
    }

    /// Local guests who are joined to this room.
    pub fn guests_in(&self, room: RoomKey) -> Result<Vec<UserId>> {
        let mut query = self.conn().prepare_cached(
            "SELECT m.user_id FROM memberships m JOIN users u ON u.user_id = m.user_id AND u.guest = 1
             WHERE m.room_key = ?1 AND m.local = 1 AND m.membership = 'join'",
        )?;
        let ids = query.query_map([room], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        ids.iter().map(|id| UserId::parse(id)).collect()
    }

    /// A room whose guests are to leave now.
    pub fn due_guest_removal(&self, now: Millis) -> Result<Option<RoomKey>> {
        let mut query = self.conn().prepare_cached(
            "SELECT room_key FROM guest_removals WHERE due_ms <= ?1 ORDER BY due_ms LIMIT 1",
        )?;
        first(&mut query, [now])
    }

    /// When a room's guests are to leave next.
    pub fn next_guest_removal_due(&self) -> Result<Option<Millis>> {
        let mut query = self.conn().prepare_cached("SELECT min(due_ms) FROM guest_removals")?;
        Ok(query.query_row([], |row| row.get(0)).optional()?.flatten())
    }
}

impl Tx<'_> {
    /// Makes an account of a guest. False: the name is taken.
    pub fn create_guest(&mut self, user: &UserId, now: Millis) -> Result<bool> {
        self.shared.any_guests.store(true, Ordering::Relaxed);
        let made = self.execute(
            "INSERT INTO users (user_id, guest, created_ms) VALUES (?1, 1, ?2) ON CONFLICT DO NOTHING",
            params![user.as_str(), now],
        )?;
        Ok(made == 1)
    }

    /// Makes a user of a guest; the first of all users is the administrator.
    pub fn end_guest(&mut self, user: &UserId) -> Result<()> {
        self.sessions_changed();
        let is_first = self.begin_first_account()?;
        self.execute(
            "UPDATE users SET guest = 0, admin = ?2 WHERE user_id = ?1",
            params![user.as_str(), is_first],
        )?;
        Ok(())
    }

    /// Forgets this user if they are a guest whose account was closed and who has left their rooms: nobody else will ever have
    /// the name. That what they wrote is to be hidden is remembered.
    pub(super) fn forget_guest(&mut self, user: &UserId) -> Result<()> {
        let gone = self.execute(
            "DELETE FROM users
             WHERE user_id = ?1 AND guest = 1 AND deactivated = 1 AND leaving_due_ms IS NULL
               AND erased_at IS NULL",
            params![user.as_str()],
        )?;
        if gone == 0 {
            return Ok(());
        }
        for table in ["account_data", "profile_fields", "filters", "presence"] {
            self.execute(&format!("DELETE FROM {table} WHERE user_id = ?1"), params![user.as_str()])?;
        }
        Ok(())
    }

    /// A room's guest access is this event now (none: there is none any more). Has its guests leave if it lets none in: "the
    /// server MUST set those users' `m.room.member` state to `leave`".
    pub(in crate::store) fn guest_access_changed(
        &mut self,
        room: RoomKey,
        event: Option<EventKey>,
    ) -> Result<()> {
        if !self.shared.any_guests.load(Ordering::Relaxed) {
            return Ok(());
        }
        let access = match event {
            Some(event) => self.pdu_by_key(event)?.content_str("guest_access"),
            None => None,
        };
        if access.as_deref() == Some("can_join") || self.guests_in(room)?.is_empty() {
            return Ok(());
        }
        self.execute(
            "INSERT OR REPLACE INTO guest_removals (room_key, due_ms) VALUES (?1, 0)",
            params![room],
        )?;
        self.wake_timer();
        Ok(())
    }

    /// Puts off the removal of a room's guests.
    pub fn put_off_guest_removal(&mut self, room: RoomKey, due: Millis) -> Result<()> {
        self.execute("UPDATE guest_removals SET due_ms = ?2 WHERE room_key = ?1", params![room, due])?;
        self.is_due(due);
        Ok(())
    }

    /// A room's guests have left, or may stay.
    pub fn end_guest_removal(&mut self, room: RoomKey) -> Result<()> {
        self.execute("DELETE FROM guest_removals WHERE room_key = ?1", params![room])?;
        Ok(())
    }
}
