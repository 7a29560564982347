//! Whose devices changed when, and what is known of the devices of other servers' users.

use std::collections::BTreeSet;

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::order;
use crate::protocol::keys::cross_signing::KeyUsage;
use crate::protocol::keys::remote::{
    REMOTE_DEVICE_OVERHEAD_BYTES, REMOTE_DEVICES_BYTES_MAX, RemoteDevice, RemoteKeys, ShownKeys,
};
use crate::protocol::{ServerName, UserId};
use crate::store::devices::cross_signing::CrossSigningKeys;
use crate::store::{Db, RoomKey, Tx};

/// The last change to the devices of one of us: what the last update that other servers were told is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnChange {
    /// The number of the update.
    pub stream_id: i64,
    /// That of the one before it.
    pub previous: Option<i64>,
    /// The device that was added, renamed or logged out.
    pub device_id: String,
}

/// How well the devices of another server's user are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteDeviceList {
    /// The last update of their server that is in it; none if there never was one.
    pub stream_id: Option<i64>,
    /// When the whole list is to be fetched, if something is missing.
    pub due_ms: Option<Millis>,
    /// How often that has failed.
    pub attempts: u32,
    /// When the whole list was fetched last. Only if it ever was, what is not in it is not there.
    pub fetched_ms: Option<Millis>,
}

impl RemoteDeviceList {
    /// Whether the devices and keys that are kept are all that there are, as far as their server has told.
    pub fn is_current(&self) -> bool {
        self.fetched_ms.is_some() && self.due_ms.is_none()
    }
}

impl Db<'_> {
    /// The last change to the devices of one of us.
    pub fn own_device_change(&self, user: &UserId) -> Result<Option<OwnChange>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT update_id, previous, device_id FROM device_changes WHERE user_id = ?1 AND update_id IS NOT NULL",
        )?;
        let change = statement.query_row([user.as_str()], |row| {
            Ok(OwnChange { stream_id: row.get(0)?, previous: row.get(1)?, device_id: row.get(2)? })
        });
        Ok(change.optional()?)
    }

    /// Which of us came at positions in `(after, upto]` into a room where a server was already that had no room with
    /// them until then: each with the position, in this order, at most `limit`.
    pub fn newly_shared_users(
        &self,
        server: &ServerName,
        (after, upto): (i64, i64),
        limit: usize,
    ) -> Result<Vec<(i64, UserId)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT m.joined_since, m.user_id FROM memberships m
               CROSS JOIN resident_servers r ON r.room_key = m.room_key
             WHERE m.joined_since > ?2 AND m.joined_since <= ?3
               AND r.server = ?1 AND r.until IS NULL AND r.since < m.joined_since
               AND NOT EXISTS (
                 SELECT 1 FROM memberships o CROSS JOIN resident_servers p ON p.room_key = o.room_key
                 WHERE o.local = 1 AND o.user_id = m.user_id AND o.joined_since < m.joined_since
                   AND p.server = ?1 AND p.until IS NULL AND p.since < m.joined_since)
             ORDER BY m.joined_since LIMIT ?4",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![server.as_str(), after, upto, limit], |row| {
            Ok((row.get(0)?, row.get::<_, String>(1)?))
        })?;
        let mut found = Vec::new();
        for row in rows {
            let (at, user) = row?;
            found.push((at, UserId::parse(&user)?));
        }
        Ok(found)
    }

    /// Whose devices changed at positions in `(after, upto]`. None: more than `most`.
    pub fn device_changes_between(&self, after: i64, upto: i64, most: usize) -> Result<Option<Vec<UserId>>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id FROM device_changes WHERE stream > ?1 AND stream <= ?2 LIMIT ?3",
        )?;
        let limit = i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1);
        let rows = statement.query_map([after, upto, limit], |row| row.get::<_, String>(0))?;
        let users = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        let parsed = |users: Vec<String>| users.iter().filter_map(|user| UserId::parse(user).ok()).collect();
        Ok((users.len() <= most).then_some(users).map(parsed))
    }

    /// The same of one of us and of who is in a room with them. What this costs grows with those rooms, however many others'
    /// devices changed.
    pub fn device_changes_among_sharers(
        &self,
        local: &UserId,
        after: i64,
        upto: i64,
    ) -> Result<BTreeSet<UserId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id FROM device_changes WHERE user_id = ?1 AND stream > ?2 AND stream <= ?3
             UNION
             SELECT d.user_id FROM memberships m
               CROSS JOIN memberships o ON o.room_key = m.room_key AND o.membership = 'join'
               CROSS JOIN device_changes d ON d.user_id = o.user_id
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join' AND d.stream > ?2 AND d.stream <= ?3",
        )?;
        let rows =
            statement.query_map(params![local.as_str(), after, upto], |row| row.get::<_, String>(0))?;
        let users = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(users.iter().filter_map(|user| UserId::parse(user).ok()).collect())
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
        let sql = if self.is_local(user.as_str()) {
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
            "SELECT stream_id, due_ms, attempts, fetched_ms FROM remote_device_lists WHERE user_id = ?1",
        )?;
        let list = statement.query_row([user.as_str()], |row| {
            Ok(RemoteDeviceList {
                stream_id: row.get(0)?,
                due_ms: row.get(1)?,
                attempts: row.get(2)?,
                fetched_ms: row.get(3)?,
            })
        });
        Ok(list.optional()?)
    }

    /// The known devices of another server's user.
    pub fn remote_devices(&self, user: &UserId) -> Result<Vec<RemoteDevice>> {
        self.rows(
            "SELECT device_id, display_name, keys FROM remote_devices WHERE user_id = ?1 ORDER BY device_id",
            params![user.as_str()],
            |row| Ok(RemoteDevice { device_id: row.get(0)?, display_name: row.get(1)?, keys: row.get(2)? }),
        )
    }

    /// One of them.
    pub fn remote_device(&self, user: &UserId, device: &str) -> Result<Option<RemoteDevice>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT device_id, display_name, keys FROM remote_devices WHERE user_id = ?1 AND device_id = ?2",
        )?;
        let device = statement.query_row([user.as_str(), device], |row| {
            Ok(RemoteDevice { device_id: row.get(0)?, display_name: row.get(1)?, keys: row.get(2)? })
        });
        Ok(device.optional()?)
    }

    /// What is known of another server's user: the devices and the cross-signing keys.
    pub fn remote_keys(&self, user: &UserId) -> Result<RemoteKeys> {
        let CrossSigningKeys { master, self_signing, .. } = self.cross_signing_keys(user)?;
        let cross_signing = ShownKeys { master, self_signing };
        Ok(RemoteKeys { devices: self.remote_devices(user)?, cross_signing })
    }

    /// What the known devices of another server's user come to, in bytes.
    pub fn remote_devices_bytes(&self, user: &UserId) -> Result<usize> {
        let (_, bytes) = self.count_remote_devices(user, "")?;
        Ok(bytes)
    }

    /// How many known devices another server's user has, and what they come to in bytes, apart from this one.
    fn count_remote_devices(&self, user: &UserId, except: &str) -> Result<(usize, usize)> {
        let mut statement = self.conn().prepare_cached(
            "SELECT count(*), coalesce(sum(octet_length(device_id) + coalesce(octet_length(display_name), 0)
               + coalesce(octet_length(keys), 0) + ?3), 0)
             FROM remote_devices WHERE user_id = ?1 AND device_id <> ?2",
        )?;
        let key = params![user.as_str(), except, REMOTE_DEVICE_OVERHEAD_BYTES as i64];
        let (count, bytes): (i64, i64) = statement.query_row(key, |row| Ok((row.get(0)?, row.get(1)?)))?;
        let size = |number: i64| usize::try_from(number).unwrap_or(0);
        Ok((size(count), size(bytes)))
    }

    /// Whose device lists are to be fetched by now, the longest due first; of each server no more than so many. What this
    /// costs grows with the servers of which there are any, however many lists that are.
    pub fn device_lists_due(&self, now: Millis, of_server: usize, limit: usize) -> Result<Vec<UserId>> {
        let mut servers = self.conn().prepare_cached(
            "WITH RECURSIVE waiting (server) AS (
               SELECT min(server) FROM remote_device_lists WHERE due_ms IS NOT NULL
               UNION ALL
               SELECT (SELECT min(server) FROM remote_device_lists WHERE due_ms IS NOT NULL AND server > w.server)
               FROM waiting w WHERE w.server IS NOT NULL)
             SELECT server FROM waiting WHERE server IS NOT NULL",
        )?;
        let mut of_one = self.conn().prepare_cached(
            "SELECT due_ms, user_id FROM remote_device_lists WHERE server = ?1 AND due_ms <= ?2
             ORDER BY due_ms LIMIT ?3",
        )?;
        let mut due: Vec<(Millis, String)> = Vec::new();
        let mut rows = servers.query([])?;
        while let Some(row) = rows.next()? {
            let server: String = row.get(0)?;
            let first = of_one
                .query_map(params![server, now, of_server as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
            for list in first {
                due.push(list?);
            }
        }
        order::sort(&mut due);
        Ok(due.into_iter().take(limit).filter_map(|(_, user)| UserId::parse(&user).ok()).collect())
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
    /// The devices of a user changed, or (`device` is none and it is one of us) their cross-signing keys alone: wakes them
    /// and those of us who share rooms with them. `device`: of one of us, the one that changed.
    pub fn devices_changed(&mut self, user: &UserId, device: Option<&str>) -> Result<()> {
        self.note_device_change(user, device)?;
        if self.is_local(user.as_str()) {
            self.wake_user(user);
        }
        for sharer in self.local_users_who_share_rooms(user, usize::MAX)? {
            self.wake_user(&sharer);
        }
        Ok(())
    }

    /// The same without waking anybody: another change follows, or nobody shares a room with them.
    pub fn note_device_change(&mut self, user: &UserId, device: Option<&str>) -> Result<()> {
        let at = self.next_stream();
        self.execute(
            "INSERT INTO device_changes (user_id, stream, update_id, device_id)
             VALUES (?1, ?2, iif(?3 IS NULL, NULL, ?2), ?3)
             ON CONFLICT DO UPDATE SET stream = excluded.stream,
               previous = iif(?3 IS NULL, previous, update_id),
               update_id = coalesce(excluded.update_id, update_id),
               device_id = coalesce(excluded.device_id, device_id)",
            params![user.as_str(), at, device],
        )?;
        Ok(())
    }

    /// Keeps how well the devices of another server's user are known.
    pub fn set_remote_device_list(&mut self, user: &UserId, list: &RemoteDeviceList) -> Result<()> {
        self.execute(
            "INSERT OR REPLACE INTO remote_device_lists (user_id, server, stream_id, due_ms, attempts, fetched_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                user.as_str(),
                user.server_name(),
                list.stream_id,
                list.due_ms,
                list.attempts,
                list.fetched_ms,
            ],
        )?;
        if let Some(due) = list.due_ms {
            self.is_due(due);
        }
        Ok(())
    }

    /// Lets the lists of a server's users that are to be fetched be fetched now.
    pub fn hasten_device_lists(&mut self, server: &ServerName, now: Millis) -> Result<()> {
        self.execute(
            "UPDATE remote_device_lists SET due_ms = ?2 WHERE server = ?1 AND due_ms > ?2",
            params![server.as_str(), now],
        )?;
        self.is_due(now);
        Ok(())
    }

    /// Keeps a device of another server's user. No more than `most` of one user are kept, and no more than
    /// [`REMOTE_DEVICES_BYTES_MAX`].
    pub fn set_remote_device(&mut self, user: &UserId, device: &RemoteDevice, most: usize) -> Result<()> {
        let (others, bytes) = self.count_remote_devices(user, &device.device_id)?;
        if others >= most || bytes + device.bytes() > REMOTE_DEVICES_BYTES_MAX {
            return self.forget_remote_devices(user, Some(&device.device_id));
        }
        self.put_remote_device(user, device)
    }

    /// Puts what was heard of a user's devices and cross-signing keys in the place of what was known.
    pub fn replace_remote_keys(&mut self, user: &UserId, keys: &RemoteKeys) -> Result<()> {
        self.forget_remote_devices(user, None)?;
        keys.devices.iter().try_for_each(|device| self.put_remote_device(user, device))?;
        self.replace_remote_cross_signing_keys(user, &keys.cross_signing)
    }

    /// The same of the cross-signing keys alone.
    pub fn replace_remote_cross_signing_keys(&mut self, user: &UserId, keys: &ShownKeys) -> Result<()> {
        // Another master key takes the others with it, so that it comes first.
        for (usage, key) in [(KeyUsage::Master, &keys.master), (KeyUsage::SelfSigning, &keys.self_signing)] {
            match key {
                Some(key) if self.cross_signing_key(user, usage)?.as_ref() == Some(key) => {}
                Some(key) => self.set_cross_signing_key(user, usage, key)?,
                None => self.forget_cross_signing_key(user, usage)?,
            }
        }
        Ok(())
    }

    fn put_remote_device(&mut self, user: &UserId, device: &RemoteDevice) -> Result<()> {
        self.execute(
            "INSERT OR REPLACE INTO remote_devices (user_id, device_id, display_name, keys)
             VALUES (?1, ?2, ?3, ?4)",
            params![user.as_str(), device.device_id, device.display_name, device.keys],
        )?;
        Ok(())
    }

    /// Forgets a device of another server's user, or (none named) all of them.
    pub fn forget_remote_devices(&mut self, user: &UserId, device: Option<&str>) -> Result<()> {
        self.execute(
            "DELETE FROM remote_devices WHERE user_id = ?1 AND (?2 IS NULL OR device_id = ?2)",
            params![user.as_str(), device],
        )?;
        Ok(())
    }

    /// A user of another server left a room: what is known of their devices is forgotten unless one of us is in another
    /// room with them, since nobody tells us of changes from now on. Whoever shares a room with them later, and did
    /// before, has to look at them anew: in between they may have come and gone without a trace.
    pub(crate) fn drop_device_list(&mut self, user: &str) -> Result<()> {
        let held = self
            .conn()
            .prepare_cached("SELECT 1 FROM remote_device_lists WHERE user_id = ?1")?
            .exists([user])?;
        if !held {
            return Ok(());
        }
        let user = UserId::parse(user)?;
        match self.is_of_interest(&user)? {
            true => Ok(()),
            false => {
                self.forget_remote_device_list(&user)?;
                self.note_device_change(&user, None)
            }
        }
    }

    /// One of us left a room: the same for all other servers' users in it, if nobody of us is left there. They may be many,
    /// and have much: what is known of them is not gone by until their lists are fetched again, which they are not, but
    /// forgotten, one by one.
    pub(crate) fn drop_device_lists_of_room(&mut self, room: RoomKey) -> Result<()> {
        if self.room_by_key(room)?.resident {
            return Ok(());
        }
        let users = {
            let mut statement = self.conn().prepare_cached(
                "SELECT l.user_id FROM remote_device_lists l CROSS JOIN memberships m
                   ON m.room_key = ?1 AND m.user_id = l.user_id AND m.membership = 'join'",
            )?;
            let rows = statement.query_map([room], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()?
        };
        for user in users {
            let user = UserId::parse(&user)?;
            if !self.is_of_interest(&user)? {
                let unknown = RemoteDeviceList { due_ms: Some(0), ..RemoteDeviceList::default() };
                self.set_remote_device_list(&user, &unknown)?;
                self.note_device_change(&user, None)?;
            }
        }
        Ok(())
    }

    /// Forgets all that is known of a user's devices: nobody here shares a room with them any more.
    pub fn forget_remote_device_list(&mut self, user: &UserId) -> Result<()> {
        self.forget_remote_devices(user, None)?;
        self.forget_remote_cross_signing_keys(user)?;
        self.execute("DELETE FROM remote_device_lists WHERE user_id = ?1", params![user.as_str()])?;
        Ok(())
    }
}
