//! Whose devices changed when, and what is known of the devices of other servers' users.

use rusqlite::{OptionalExtension, params};

use super::{Db, Tx};
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::{ServerName, UserId};

/// A device of another server's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteDevice {
    /// Its id.
    pub device_id: String,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// Its identity keys, a JSON object, if it has any.
    pub keys: Option<String>,
}

/// How well the devices of another server's user are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteDeviceList {
    /// The last update of their server that is in it; none if there never was one.
    pub stream_id: Option<i64>,
    /// When the whole list is to be fetched, if something is missing.
    pub due_ms: Option<Millis>,
    /// How often that has failed.
    pub attempts: u32,
}

impl Db<'_> {
    /// When a user's devices changed last.
    pub fn device_change(&self, user: &UserId) -> Result<Option<i64>> {
        let mut statement =
            self.conn().prepare_cached("SELECT stream FROM device_changes WHERE user_id = ?1")?;
        Ok(statement.query_row([user.as_str()], |row| row.get(0)).optional()?)
    }

    /// Whose devices changed at positions in `(after, upto]`.
    pub fn device_changes_between(&self, after: i64, upto: i64) -> Result<Vec<UserId>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT user_id FROM device_changes WHERE stream > ?1 AND stream <= ?2")?;
        let rows = statement.query_map([after, upto], |row| row.get::<_, String>(0))?;
        let mut users = Vec::new();
        for user in rows {
            users.extend(UserId::parse(&user?).ok());
        }
        Ok(users)
    }

    /// The other servers in the rooms to which one of our users is joined.
    pub fn servers_that_share_rooms(&self, user: &UserId) -> Result<Vec<ServerName>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT DISTINCT r.server FROM memberships m JOIN resident_servers r ON r.room_key = m.room_key
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join' AND r.until IS NULL AND r.server <> ?2",
        )?;
        let key = params![user.as_str(), self.server_name().as_str()];
        let rows = statement.query_map(key, |row| row.get::<_, String>(0))?;
        let mut servers = Vec::new();
        for server in rows {
            servers.extend(ServerName::parse(&server?).ok());
        }
        Ok(servers)
    }

    /// Which of our users are in a room with a user of any server, who is not among them unless one of us; at most
    /// `limit`.
    pub fn local_users_who_share_rooms(&self, user: &UserId, limit: usize) -> Result<Vec<UserId>> {
        let sql = if self.is_ours(user.as_str()) {
            "SELECT DISTINCT o.user_id FROM memberships m JOIN memberships o ON o.room_key = m.room_key
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join' AND o.local = 1 AND o.membership = 'join'
               AND ?2 <> '' LIMIT ?3"
        } else {
            // By way of the rooms that their server is in: memberships of others are not to be found by name alone.
            "SELECT DISTINCT o.user_id FROM resident_servers r
               CROSS JOIN memberships m ON m.room_key = r.room_key AND m.user_id = ?1
               CROSS JOIN memberships o ON o.room_key = r.room_key
             WHERE r.server = ?2 AND r.until IS NULL AND m.membership = 'join' AND o.local = 1 AND o.membership = 'join'
             LIMIT ?3"
        };
        let mut statement = self.conn().prepare_cached(sql)?;
        let key = params![user.as_str(), user.server_name(), i64::try_from(limit).unwrap_or(i64::MAX)];
        let rows = statement.query_map(key, |row| row.get::<_, String>(0))?;
        let mut users = Vec::new();
        for user in rows {
            users.extend(UserId::parse(&user?).ok());
        }
        Ok(users)
    }

    /// Whether one of our users is in a room with a user of another server.
    pub fn is_of_interest(&self, user: &UserId) -> Result<bool> {
        Ok(!self.local_users_who_share_rooms(user, 1)?.is_empty())
    }

    /// What is known of the device list of another server's user.
    pub fn remote_device_list(&self, user: &UserId) -> Result<Option<RemoteDeviceList>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT stream_id, due_ms, attempts FROM remote_device_lists WHERE user_id = ?1",
        )?;
        Ok(statement
            .query_row([user.as_str()], |row| {
                Ok(RemoteDeviceList { stream_id: row.get(0)?, due_ms: row.get(1)?, attempts: row.get(2)? })
            })
            .optional()?)
    }

    /// The known devices of another server's user.
    pub fn remote_devices(&self, user: &UserId) -> Result<Vec<RemoteDevice>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT device_id, display_name, keys FROM remote_devices WHERE user_id = ?1 ORDER BY device_id",
        )?;
        let rows = statement.query_map([user.as_str()], |row| {
            Ok(RemoteDevice { device_id: row.get(0)?, display_name: row.get(1)?, keys: row.get(2)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whose device lists are to be fetched by now.
    pub fn device_lists_due(&self, now: Millis, limit: usize) -> Result<Vec<UserId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id FROM remote_device_lists WHERE due_ms <= ?1 ORDER BY due_ms LIMIT ?2",
        )?;
        let rows = statement.query_map(params![now, limit as i64], |row| row.get::<_, String>(0))?;
        let mut users = Vec::new();
        for user in rows {
            users.extend(UserId::parse(&user?).ok());
        }
        Ok(users)
    }

    /// When the next device list is to be fetched.
    pub fn next_device_list_due(&self) -> Result<Option<Millis>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT min(due_ms) FROM remote_device_lists WHERE due_ms IS NOT NULL")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// The devices of a user changed: wakes them and those of us who share rooms with them. Gives the position.
    pub fn devices_changed(&mut self, user: &UserId) -> Result<i64> {
        let stream = self.next_stream();
        self.conn()
            .prepare_cached("INSERT OR REPLACE INTO device_changes (user_id, stream) VALUES (?1, ?2)")?
            .execute(params![user.as_str(), stream])?;
        if self.is_ours(user.as_str()) {
            self.wake_user(user);
        }
        for sharer in self.local_users_who_share_rooms(user, usize::MAX)? {
            self.wake_user(&sharer);
        }
        Ok(stream)
    }

    /// Keeps how well the devices of another server's user are known.
    pub fn set_remote_device_list(&mut self, user: &UserId, list: &RemoteDeviceList) -> Result<()> {
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO remote_device_lists (user_id, stream_id, due_ms, attempts)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![user.as_str(), list.stream_id, list.due_ms, list.attempts])?;
        Ok(())
    }

    /// Keeps a device of another server's user. No more than `most` of one user are kept.
    pub fn set_remote_device(&mut self, user: &UserId, device: &RemoteDevice, most: usize) -> Result<()> {
        let others: i64 = self
            .conn()
            .prepare_cached("SELECT count(*) FROM remote_devices WHERE user_id = ?1 AND device_id <> ?2")?
            .query_row(params![user.as_str(), device.device_id], |row| row.get(0))?;
        if others >= most as i64 {
            return Ok(());
        }
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO remote_devices (user_id, device_id, display_name, keys)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![user.as_str(), device.device_id, device.display_name, device.keys])?;
        Ok(())
    }

    /// Forgets a device of another server's user, or (none named) all of them.
    pub fn forget_remote_devices(&mut self, user: &UserId, device: Option<&str>) -> Result<()> {
        self.conn()
            .prepare_cached(
                "DELETE FROM remote_devices WHERE user_id = ?1 AND (?2 IS NULL OR device_id = ?2)",
            )?
            .execute(params![user.as_str(), device])?;
        Ok(())
    }

    /// Forgets all that is known of a user's devices: nobody here shares a room with them any more.
    pub fn forget_remote_device_list(&mut self, user: &UserId) -> Result<()> {
        self.forget_remote_devices(user, None)?;
        self.conn()
            .prepare_cached("DELETE FROM remote_device_lists WHERE user_id = ?1")?
            .execute([user.as_str()])?;
        Ok(())
    }
}
