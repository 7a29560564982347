//! The devices of application services' users, and the messages that wait for them. Which devices are a service's is no matter of
//! the database: whoever asks says so of each.

use rusqlite::{OptionalExtension, Row, params};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::UserId;
use crate::store::devices::to_device::LineKey;
use crate::store::{Db, Tx};

/// A message that waits for a device of a service's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceMessage {
    /// The line in which it waits.
    pub line: LineKey,
    /// Whose device it is.
    pub user_id: String,
    /// Its id.
    pub device_id: String,
    /// When the device last read its messages by itself, if it ever did.
    pub synced_ms: Option<Millis>,
    /// The position of the message.
    pub stream: i64,
    /// The event: a JSON object.
    pub message: String,
}

fn text<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<&'r str> {
    Ok(row.get_ref(column)?.as_str()?)
}

fn maker<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<Option<&'r str>> {
    Ok(row.get_ref(column)?.as_str_or_null()?)
}

impl Db<'_> {
    /// The lines with messages of which no service was told, of devices of which this holds, for their user and the id of the
    /// service that made them, if one did.
    pub fn untold_lines(&self, mut is_its: impl FnMut(&str, Option<&str>) -> bool) -> Result<Vec<LineKey>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT l.line, l.user_id, d.appservice FROM to_device_lines l
               CROSS JOIN devices d ON d.user_id = l.user_id AND d.device_id = l.device_id
             WHERE l.messages > 0 AND EXISTS (SELECT 1 FROM to_device t WHERE t.line = l.line AND t.stream > l.told)",
        )?;
        let (mut rows, mut lines) = (statement.query([])?, Vec::new());
        while let Some(row) = rows.next()? {
            if is_its(text(row, 1)?, maker(row, 2)?) {
                lines.push(row.get(0)?);
            }
        }
        Ok(lines)
    }

    /// The first messages in these lines of which no service was told, oldest first.
    pub fn untold_messages(&self, lines: &[LineKey], limit: usize) -> Result<Vec<ServiceMessage>> {
        let lines = serde_json::to_string(lines).map_err(Error::internal)?;
        self.rows(
            "SELECT l.line, l.user_id, l.device_id, d.synced_ms, t.stream, t.message FROM json_each(?1) j
               CROSS JOIN to_device_lines l ON l.line = j.value
               JOIN devices d ON d.user_id = l.user_id AND d.device_id = l.device_id
               JOIN to_device t ON t.line = l.line
             WHERE t.stream > l.told ORDER BY t.stream LIMIT ?2",
            params![lines, limit as i64],
            |row| {
                Ok(ServiceMessage {
                    line: row.get(0)?,
                    user_id: row.get(1)?,
                    device_id: row.get(2)?,
                    synced_ms: row.get(3)?,
                    stream: row.get(4)?,
                    message: row.get(5)?,
                })
            },
        )
    }

    /// The devices of which this holds, as of [`Db::untold_lines`].
    pub fn devices_where(
        &self,
        mut is_its: impl FnMut(&str, Option<&str>) -> bool,
    ) -> Result<Vec<(UserId, String)>> {
        let sql = "SELECT user_id, device_id, appservice FROM devices ORDER BY user_id, device_id";
        let mut statement = self.conn().prepare_cached(sql)?;
        let (mut rows, mut devices) = (statement.query([])?, Vec::new());
        while let Some(row) = rows.next()? {
            if is_its(text(row, 0)?, maker(row, 2)?) {
                devices.push((UserId::parse(text(row, 0)?)?, row.get(1)?));
            }
        }
        Ok(devices)
    }

    /// How many one-time keys a device has left; none if it has no keys at all yet.
    pub fn one_time_keys_left(&self, user: &UserId, device: &str) -> Result<Option<i64>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT (SELECT coalesce(sum(last - issued), 0) FROM one_time_key_pools p
                     WHERE p.user_id = d.user_id AND p.device_id = d.device_id)
             FROM device_keys d WHERE user_id = ?1 AND device_id = ?2",
        )?;
        Ok(statement.query_row([user.as_str(), device], |row| row.get(0)).optional()?)
    }

    /// When a device last read its messages by itself, as far as that is noted.
    pub fn device_synced_ms(&self, user: &UserId, device: &str) -> Result<Option<Millis>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT synced_ms FROM devices WHERE user_id = ?1 AND device_id = ?2")?;
        Ok(statement.query_row([user.as_str(), device], |row| row.get(0)).optional()?.flatten())
    }
}

impl Tx<'_> {
    /// A device reads its messages by itself.
    pub fn device_synced(&mut self, user: &UserId, device: &str, now: Millis) -> Result<()> {
        self.execute(
            "UPDATE devices SET synced_ms = ?3 WHERE user_id = ?1 AND device_id = ?2",
            params![user.as_str(), device, now],
        )?;
        Ok(())
    }
}
