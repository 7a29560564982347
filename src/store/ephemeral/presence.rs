//! Who is there: local users, and users of other servers who share a room with one.

use rusqlite::{Row, params};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::{ServerName, UserId};
use crate::store::{Db, RoomKey, Tx};

/// Whether somebody is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresenceState {
    /// At a client.
    Online,
    /// At a client, and doing nothing.
    Unavailable,
    /// At no client, or hiding.
    Offline,
}

impl PresenceState {
    /// The state of this name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "online" => Some(Self::Online),
            "unavailable" => Some(Self::Unavailable),
            "offline" => Some(Self::Offline),
            _ => None,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Unavailable => "unavailable",
            Self::Offline => "offline",
        }
    }
}

/// What is known of somebody's presence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// Whether they are there.
    pub state: PresenceState,
    /// What they say of themselves.
    pub status: Option<String>,
    /// When they last did something.
    pub last_active_ms: Millis,
    /// Whether they may be taken to do something all the time until more is said.
    pub active: bool,
    /// When a user of another server counts as offline, unless that server says more.
    pub until_ms: Option<Millis>,
}

/// More users than that are not woken for somebody's presence: they are told with whatever comes next. A crowd that
/// comes online would otherwise wake itself over and over.
const WOKEN_MAX: usize = 100;

const COLUMNS: &str = "SELECT user_id, state, status, last_active_ms, active, until_ms FROM presence";

fn presence_of(row: &Row<'_>) -> Result<(UserId, Presence)> {
    let state: String = row.get(1)?;
    let state =
        PresenceState::parse(&state).ok_or_else(|| Error::internal(format!("a presence of {state}")))?;
    let presence = Presence {
        state,
        status: row.get(2)?,
        last_active_ms: row.get(3)?,
        active: row.get(4)?,
        until_ms: row.get(5)?,
    };
    Ok((UserId::parse(&row.get::<_, String>(0)?)?, presence))
}

impl Db<'_> {
    /// What is known of a user.
    pub fn presence(&self, user: &UserId) -> Result<Option<Presence>> {
        let mut statement = self.conn().prepare_cached(&format!("{COLUMNS} WHERE user_id = ?1"))?;
        let mut rows = statement.query([user.as_str()])?;
        Ok(rows.next()?.map(presence_of).transpose()?.map(|(_, presence)| presence))
    }

    /// Whose presence changed at positions in `(after, upto]`, latest first, at most `limit`.
    pub fn presence_between(&self, after: i64, upto: i64, limit: usize) -> Result<Vec<(UserId, Presence)>> {
        let sql = format!("{COLUMNS} WHERE stream > ?1 AND stream <= ?2 ORDER BY stream DESC LIMIT ?3");
        let mut statement = self.conn().prepare_cached(&sql)?;
        let mut rows = statement.query(params![after, upto, limit as i64])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(presence_of(row)?);
        }
        Ok(all)
    }

    /// The local users in a room who are not offline, at most `limit`: those who did something last.
    pub fn present_local_users(&self, room: RoomKey, limit: usize) -> Result<Vec<UserId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT m.user_id FROM memberships m CROSS JOIN presence p ON p.user_id = m.user_id
             WHERE m.room_key = ?1 AND m.membership = 'join' AND m.local = 1 AND p.state <> 'offline'
             ORDER BY p.last_active_ms DESC, m.user_id LIMIT ?2",
        )?;
        let rows = statement.query_map(params![room, limit as i64], |row| row.get::<_, String>(0))?;
        let mut users = Vec::new();
        for user in rows {
            users.extend(UserId::parse(&user?).ok());
        }
        Ok(users)
    }

    /// Whether a local user and a server are in a common room with no more than `most` servers.
    pub fn share_a_room_of_few_servers(
        &self,
        local: &UserId,
        server: &ServerName,
        most: usize,
    ) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM memberships m
               CROSS JOIN resident_servers s ON s.room_key = m.room_key AND s.server = ?2 AND s.until IS NULL
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join' AND (
               SELECT count(*) FROM (
                 SELECT 1 FROM resident_servers o WHERE o.room_key = m.room_key AND o.until IS NULL LIMIT ?3 + 1)
             ) <= ?3 LIMIT 1",
        )?;
        Ok(statement.exists(params![local.as_str(), server.as_str(), most as i64])?)
    }

    /// Which users of other servers have not been heard of for too long.
    pub fn presence_expired(&self, now: Millis, limit: usize) -> Result<Vec<(UserId, Presence)>> {
        let sql = format!("{COLUMNS} WHERE until_ms <= ?1 ORDER BY until_ms LIMIT ?2");
        let mut statement = self.conn().prepare_cached(&sql)?;
        let mut rows = statement.query(params![now, limit as i64])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(presence_of(row)?);
        }
        Ok(all)
    }

    /// When the next of them will not have been.
    pub fn next_presence_expiry(&self) -> Result<Option<Millis>> {
        let mut statement =
            self.conn().prepare_cached("SELECT min(until_ms) FROM presence WHERE until_ms IS NOT NULL")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Keeps a user's presence, and soon wakes those who may see it, unless they are many. Of whom nothing is kept any more it
    /// keeps none: that they are offline turns out when their account is gone.
    pub fn set_presence(&mut self, user: &UserId, presence: &Presence) -> Result<()> {
        if self.is_nothing_kept_of(user)? {
            return Ok(());
        }
        let stream = self.next_stream();
        self.execute(
            "INSERT OR REPLACE INTO presence (user_id, state, status, last_active_ms, active, until_ms, stream)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                user.as_str(),
                presence.state.as_str(),
                presence.status,
                presence.last_active_ms,
                presence.active,
                presence.until_ms,
                stream,
            ],
        )?;
        let mut audience = self.local_users_who_share_rooms(user, WOKEN_MAX + 1)?;
        if audience.len() > WOKEN_MAX {
            audience.clear();
        }
        audience.retain(|sharer| sharer != user);
        self.presence_changed((stream, user, presence), audience);
        Ok(())
    }

    /// Puts off when a user of another server counts as offline: nothing else is new.
    pub fn prolong_presence(&mut self, user: &UserId, until: Millis) -> Result<()> {
        self.execute("UPDATE presence SET until_ms = ?2 WHERE user_id = ?1", params![user.as_str(), until])?;
        Ok(())
    }
}
