//! Messages that wait for devices, and which ones other servers have sent us already.

use rusqlite::{OptionalExtension, params};

use super::{Db, Tx};
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::{ServerName, UserId};

/// Messages that wait for one device, and what they come to in bytes. Further ones are dropped: what was taken in is
/// never given up for what comes later, or a flood could wash it away.
const MOST_WAITING: i64 = 10_000;
const MOST_BYTES: i64 = 16 << 20;
/// For how long it is remembered that a message of another server was received.
const KEPT: Millis = 7 * 24 * 3_600_000;
/// Memories that go when one comes, so that no single commit has much to do.
const SWEPT_AT_ONCE: u32 = 5;

/// A message that waits for a device.
#[derive(Debug, Clone)]
pub struct ToDevice {
    /// Its place in the device's line.
    pub number: i64,
    /// The event: a JSON object.
    pub message: String,
}

impl Db<'_> {
    /// Up to which message a device has proved, by the `since` of its `/sync`, that it has them; none if nothing that
    /// waits is proved. An answer that had to leave some out proves those only that it had.
    pub fn to_device_proved(&self, user: &UserId, device: &str, since: i64) -> Result<Option<i64>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT number FROM to_device_portions WHERE user_id = ?1 AND device_id = ?2 AND stream > ?3
             ORDER BY stream LIMIT 1",
        )?;
        let key = params![user.as_str(), device, since];
        let portion: Option<i64> = statement.query_row(key, |row| row.get(0)).optional()?;
        let mut statement = self.conn().prepare_cached(
            "SELECT max(number) FROM to_device WHERE user_id = ?1 AND device_id = ?2 AND stream <= ?3 AND number <= ?4",
        )?;
        let key = params![user.as_str(), device, since, portion.unwrap_or(i64::MAX)];
        Ok(statement.query_row(key, |row| row.get(0))?)
    }

    /// The first messages that wait for a device behind that number.
    pub fn to_device_after(
        &self,
        user: &UserId,
        device: &str,
        after: i64,
        limit: usize,
    ) -> Result<Vec<ToDevice>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT number, message FROM to_device WHERE user_id = ?1 AND device_id = ?2 AND number > ?3
             ORDER BY number LIMIT ?4",
        )?;
        let rows = statement.query_map(params![user.as_str(), device, after, limit as i64], |row| {
            Ok(ToDevice { number: row.get(0)?, message: row.get(1)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// The number of the next message in a line of messages, and what all up to it come to in bytes. None: too many wait.
/// `ends`: those two of the first that waits and of the last; `most`: how many may wait, and how many bytes behind the
/// first.
pub(super) fn place_in_line(
    ends: Option<((i64, i64), (i64, i64))>,
    size: usize,
    most: (i64, i64),
) -> Option<(i64, i64)> {
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let Some(((first, before), (last, bytes))) = ends else { return Some((1, size)) };
    let is_full = last - first + 1 >= most.0 || bytes - before + size > most.1;
    (!is_full).then_some((last + 1, bytes + size))
}

impl Tx<'_> {
    /// Lets a message wait for one of our devices, which exists. False: too many do, and this one is dropped.
    pub fn add_to_device(&mut self, user: &UserId, device: &str, message: &str) -> Result<bool> {
        let end = |order: &str| -> Result<Option<(i64, i64)>> {
            let mut statement = self.conn().prepare_cached(&format!(
                "SELECT number, bytes FROM to_device WHERE user_id = ?1 AND device_id = ?2 ORDER BY number {order} LIMIT 1"
            ))?;
            let ends = params![user.as_str(), device];
            Ok(statement.query_row(ends, |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        };
        let ends = end("ASC")?.zip(end("DESC")?);
        let Some((number, bytes)) = place_in_line(ends, message.len(), (MOST_WAITING, MOST_BYTES)) else {
            return Ok(false);
        };
        let stream = self.next_stream();
        self.conn()
            .prepare_cached(
                "INSERT INTO to_device (user_id, device_id, number, stream, bytes, message)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![user.as_str(), device, number, stream, bytes, message])?;
        self.wake_user(user);
        Ok(true)
    }

    /// Lets go of what a device has proved to have: its messages up to that number, and what was noted of answers whose
    /// tokens are not behind `since`.
    pub fn forget_to_device(&mut self, user: &UserId, device: &str, upto: i64, since: i64) -> Result<()> {
        self.conn()
            .prepare_cached("DELETE FROM to_device WHERE user_id = ?1 AND device_id = ?2 AND number <= ?3")?
            .execute(params![user.as_str(), device, upto])?;
        self.conn()
            .prepare_cached(
                "DELETE FROM to_device_portions WHERE user_id = ?1 AND device_id = ?2 AND stream <= ?3",
            )?
            .execute(params![user.as_str(), device, since])?;
        Ok(())
    }

    /// Notes that the answers whose tokens are before the present position had messages up to that number only.
    pub fn note_to_device_portion(&mut self, user: &UserId, device: &str, upto: i64) -> Result<()> {
        // The device may have been logged out while its answer was made.
        if self.device(user, device)?.is_none() {
            return Ok(());
        }
        let stream = self.next_stream();
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO to_device_portions (user_id, device_id, number, stream) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![user.as_str(), device, upto, stream])?;
        Ok(())
    }

    /// Notes that a message of another server was received. False: it was before.
    pub fn receive_to_device(&mut self, origin: &ServerName, message_id: &str, now: Millis) -> Result<bool> {
        let added = self
            .conn()
            .prepare_cached(
                "INSERT INTO to_device_received (origin, message_id, received_ms) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![origin.as_str(), message_id, now])?;
        self.conn()
            .prepare_cached(
                "DELETE FROM to_device_received WHERE (origin, message_id) IN
                   (SELECT origin, message_id FROM to_device_received WHERE received_ms < ?1 LIMIT ?2)",
            )?
            .execute((now - KEPT, SWEPT_AT_ONCE))?;
        Ok(added > 0)
    }
}
