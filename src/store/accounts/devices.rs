//! Devices and the sessions (pairs of tokens) of their clients. Sessions are remembered outside of the database:
//! whatever changes what a [`Session`] tells calls `sessions_changed`.

use rusqlite::{Row, params};

use super::{OwnRate, Standing, TokenHash, first, own_rate_of};
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::{Db, Tx};

/// The row id of a session.
pub type SessionKey = i64;

/// One device.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its id, unique among its user's devices.
    pub device_id: String,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// When it was last heard of, a few minutes late.
    pub last_seen_ms: Option<Millis>,
    /// Where from.
    pub last_seen_ip: Option<String>,
}

/// What a token stands for.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its row.
    pub key: SessionKey,
    /// Whose it is.
    pub user_id: UserId,
    /// On which device.
    pub device_id: String,
    /// Until when the access token is good; none: without end.
    pub expires_ms: Option<Millis>,
    /// The session that ends with this one's first use.
    pub replaces: Option<SessionKey>,
    /// Whether it is an administrator's of this server: of one who logged in, not of another one in their name.
    pub admin: bool,
    /// What keeps the user from doing what others may.
    pub standing: Standing,
    /// How often the user may ask, if that is not as for everybody.
    pub own_rate: Option<OwnRate>,
    /// When the device was last heard of, as it is stored.
    pub last_seen_ms: Option<Millis>,
}

impl Session {
    /// Whether another session of its device has replaced it.
    pub fn has_ended(&self) -> bool {
        self.expires_ms == Some(0)
    }
}

/// The tokens of a new session, as they are stored.
#[derive(Debug, Clone, Copy)]
pub struct NewSession {
    /// SHA-256 of the access token.
    pub access: TokenHash,
    /// SHA-256 of the refresh token.
    pub refresh: Option<TokenHash>,
    /// Until when the access token is good.
    pub expires_ms: Option<Millis>,
}

fn device_of(row: &Row<'_>) -> rusqlite::Result<Device> {
    Ok(Device {
        device_id: row.get(0)?,
        display_name: row.get(1)?,
        last_seen_ms: row.get(2)?,
        last_seen_ip: row.get(3)?,
    })
}

fn session_of(row: &Row<'_>) -> Result<Session> {
    Ok(Session {
        key: row.get(0)?,
        user_id: UserId::parse(&row.get::<_, String>(1)?)?,
        device_id: row.get(2)?,
        expires_ms: row.get(3)?,
        replaces: row.get(4)?,
        admin: row.get(5)?,
        last_seen_ms: row.get(6)?,
        standing: Standing { locked: row.get(7)?, suspended: row.get(8)?, guest: row.get(9)? },
        own_rate: own_rate_of(row, 10)?,
    })
}

const SESSION: &str =
    "SELECT s.session, s.user_id, s.device_id, s.expires_ms, s.replaces, u.admin AND d.opened_by IS NULL AND d.appservice IS NULL, d.last_seen_ms, u.locked, u.suspended, u.guest,
       u.requests_per_second, u.requests_burst
     FROM sessions s JOIN users u USING (user_id) JOIN devices d USING (user_id, device_id)";

impl Db<'_> {
    /// The newest time that our own clock has left here: when a device was last heard of, an account or a signing key made.
    pub fn newest_time(&self) -> Result<Option<Millis>> {
        let newest = "SELECT max(at) FROM (SELECT max(last_seen_ms) AS at FROM devices
             UNION ALL SELECT max(created_ms) FROM users UNION ALL SELECT max(made_ms) FROM signing_keys)";
        Ok(self.conn().query_row(newest, [], |row| row.get(0))?)
    }

    /// The session of an access token.
    pub fn session_by_access(&self, hash: &TokenHash) -> Result<Option<Session>> {
        self.session(&format!("{SESSION} WHERE s.access = ?1"), hash)
    }

    /// The session of a refresh token.
    pub fn session_by_refresh(&self, hash: &TokenHash) -> Result<Option<Session>> {
        self.session(&format!("{SESSION} WHERE s.refresh = ?1"), hash)
    }

    fn session(&self, sql: &str, hash: &TokenHash) -> Result<Option<Session>> {
        let mut query = self.conn().prepare_cached(sql)?;
        let mut rows = query.query([hash])?;
        rows.next()?.map(session_of).transpose()
    }

    /// The user's devices, in the order of their ids.
    pub fn devices(&self, user: &UserId) -> Result<Vec<Device>> {
        let mut query = self.conn().prepare_cached(
            "SELECT device_id, display_name, last_seen_ms, last_seen_ip FROM devices WHERE user_id = ?1 ORDER BY 1",
        )?;
        Ok(query.query_map([user.as_str()], device_of)?.collect::<Result<_, _>>()?)
    }

    /// One of the user's devices.
    pub fn device(&self, user: &UserId, device: &str) -> Result<Option<Device>> {
        let mut query = self.conn().prepare_cached(
            "SELECT device_id, display_name, last_seen_ms, last_seen_ip FROM devices
             WHERE user_id = ?1 AND device_id = ?2",
        )?;
        let mut rows = query.query_map([user.as_str(), device], device_of)?;
        Ok(rows.next().transpose()?)
    }

    /// The user's devices that have nothing but sessions which ended before a time and cannot be refreshed.
    pub fn abandoned_devices(&self, user: &UserId, before: Millis) -> Result<Vec<String>> {
        self.rows(
            "SELECT device_id FROM sessions WHERE user_id = ?1 GROUP BY device_id
             HAVING min(refresh IS NULL AND coalesce(expires_ms, ?2) < ?2) = 1",
            params![user.as_str(), before],
            |row| row.get(0),
        )
    }

    /// The devices on which an administrator has logged in in the names of others.
    pub fn devices_opened_by(&self, by: &UserId) -> Result<Vec<(UserId, String)>> {
        let all = "SELECT user_id, device_id FROM devices WHERE opened_by = ?1";
        let devices = self.rows(all, &[&by.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        devices.into_iter().map(|(user, device)| Ok((UserId::parse(&user)?, device))).collect()
    }

    /// Those of a user's devices on which an administrator was logged in until before a time.
    pub fn opened_devices_over(&self, user: &UserId, now: Millis) -> Result<Vec<String>> {
        self.rows(
            "SELECT device_id FROM devices d WHERE user_id = ?1 AND opened_by IS NOT NULL AND NOT EXISTS (
               SELECT 1 FROM sessions s WHERE s.user_id = d.user_id AND s.device_id = d.device_id
                 AND coalesce(s.expires_ms, ?2) >= ?2)",
            params![user.as_str(), now],
            |row| row.get(0),
        )
    }

    /// Whether somebody else has logged in there in the user's name.
    pub fn is_opened_device(&self, user: &UserId, device: &str) -> Result<bool> {
        let mut query = self.conn().prepare_cached(
            "SELECT 1 FROM devices WHERE user_id = ?1 AND device_id = ?2 AND opened_by IS NOT NULL",
        )?;
        Ok(query.exists([user.as_str(), device])?)
    }

    /// How many devices the user has.
    pub fn count_devices(&self, user: &UserId) -> Result<i64> {
        let mut query = self.conn().prepare_cached("SELECT count(*) FROM devices WHERE user_id = ?1")?;
        Ok(first(&mut query, [user.as_str()])?.unwrap_or(0))
    }
}

impl Tx<'_> {
    /// Logs a device in: makes it if it is new (only then the name counts), and ends the sessions that it had, with the
    /// pushers that were set by them.
    pub fn log_in_device(
        &mut self,
        user: &UserId,
        device: &str,
        display_name: Option<&str>,
        session: &NewSession,
    ) -> Result<()> {
        self.sessions_changed();
        self.device_begins();
        self.execute(
            "INSERT INTO devices (user_id, device_id, display_name) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET opened_by = NULL, appservice = NULL",
            params![user.as_str(), device, display_name],
        )?;
        self.execute(
            "DELETE FROM sessions WHERE user_id = ?1 AND device_id = ?2",
            params![user.as_str(), device],
        )?;
        self.delete_pushers_of_device(user, device)?;
        self.add_session(user, device, session, None)
    }

    /// Makes a device that there is not yet, without a session, for an application service.
    pub fn add_device(
        &mut self,
        user: &UserId,
        device: &str,
        display_name: Option<&str>,
        service: &str,
    ) -> Result<()> {
        self.device_begins();
        self.execute(
            "INSERT INTO devices (user_id, device_id, display_name, appservice) VALUES (?1, ?2, ?3, ?4)",
            params![user.as_str(), device, display_name, service],
        )?;
        Ok(())
    }

    /// Notes that an application service has logged in there in the user's name.
    pub fn device_of_service(&mut self, user: &UserId, device: &str, service: &str) -> Result<()> {
        self.sessions_changed();
        self.execute(
            "UPDATE devices SET appservice = ?3 WHERE user_id = ?1 AND device_id = ?2",
            params![user.as_str(), device, service],
        )?;
        Ok(())
    }

    /// A session in place of `old`, which stays until the new one is used. Earlier ones that were made from `old` and
    /// never used are forgotten.
    pub fn refresh_session(&mut self, old: &Session, new: &NewSession) -> Result<()> {
        self.sessions_changed();
        self.execute("DELETE FROM sessions WHERE replaces = ?1", params![old.key])?;
        self.add_session(&old.user_id, &old.device_id, new, Some(old.key))
    }

    fn add_session(
        &mut self,
        user: &UserId,
        device: &str,
        new: &NewSession,
        replaces: Option<SessionKey>,
    ) -> Result<()> {
        self.execute(
            "INSERT INTO sessions (user_id, device_id, access, refresh, expires_ms, replaces)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![user.as_str(), device, new.access, new.refresh, new.expires_ms, replaces],
        )?;
        Ok(())
    }

    /// A token of this session was used: the one that it replaces ends. Of each device the last that ended is known, so that another
    /// program with the tokens of that one is not told that the device is gone.
    pub fn confirm_session(&mut self, session: &Session) -> Result<()> {
        let Some(replaced) = session.replaces else { return Ok(()) };
        self.sessions_changed();
        self.execute("UPDATE sessions SET replaces = NULL WHERE session = ?1", params![session.key])?;
        let (user, device) = (session.user_id.as_str(), &session.device_id);
        let before = "DELETE FROM sessions WHERE user_id = ?1 AND device_id = ?2 AND expires_ms = 0";
        self.execute(before, params![user, device])?;
        self.execute("UPDATE sessions SET expires_ms = 0 WHERE session = ?1", params![replaced])?;
        Ok(())
    }

    /// Notes that the device was heard of.
    pub fn device_seen(&mut self, user: &UserId, device: &str, now: Millis, ip: &str) -> Result<()> {
        self.sessions_changed();
        self.execute(
            "UPDATE devices SET last_seen_ms = ?3, last_seen_ip = ?4 WHERE user_id = ?1 AND device_id = ?2",
            params![user.as_str(), device, now, ip],
        )?;
        Ok(())
    }

    /// Notes that it was not the user who logged in there; nobody is named: the operator did.
    pub fn device_opened_by(&mut self, user: &UserId, device: &str, by: Option<&UserId>) -> Result<()> {
        self.sessions_changed();
        self.execute(
            "UPDATE devices SET opened_by = ?3 WHERE user_id = ?1 AND device_id = ?2",
            params![user.as_str(), device, by.map_or("", UserId::as_str)],
        )?;
        Ok(())
    }

    /// Renames a device. False: there is none of this id.
    pub fn rename_device(&mut self, user: &UserId, device: &str, display_name: &str) -> Result<bool> {
        let renamed = self.execute(
            "UPDATE devices SET display_name = ?3 WHERE user_id = ?1 AND device_id = ?2",
            params![user.as_str(), device, display_name],
        )?;
        Ok(renamed == 1)
    }

    /// Logs a device out and forgets it, with its keys; the timer sees to its messages, see [`Tx::empty_ended_lines`]. Whether there was one of this id.
    pub fn delete_device(&mut self, user: &UserId, device: &str) -> Result<bool> {
        self.sessions_changed();
        self.execute(
            "DELETE FROM sessions WHERE user_id = ?1 AND device_id = ?2",
            params![user.as_str(), device],
        )?;
        self.forget_signatures_of_device(user, device)?;
        self.delete_pushers_of_device(user, device)?;
        self.close_sliding_connections(user, device)?;
        self.end_to_device_line(user, device)?;
        let deleted = self.execute(
            "DELETE FROM devices WHERE user_id = ?1 AND device_id = ?2",
            params![user.as_str(), device],
        )?;
        Ok(deleted > 0)
    }

    /// The same for all of the user's devices but this one. Gives the ids of those that are gone.
    pub fn delete_devices_except(&mut self, user: &UserId, keep: Option<&str>) -> Result<Vec<String>> {
        let mut gone: Vec<String> = self.devices(user)?.into_iter().map(|device| device.device_id).collect();
        gone.retain(|device| Some(device.as_str()) != keep);
        for device in &gone {
            self.delete_device(user, device)?;
        }
        Ok(gone)
    }
}
