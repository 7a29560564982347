//! Messages that wait for devices, and which ones other servers have sent us already.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Rows, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::{ServerName, UserId};
use crate::store::engine::sweep::Sweep;
use crate::store::{Db, Tx};

/// For how long it is remembered that a message of another server was received, and how many of one server, and of all
/// strangers together: repeated is what got no answer, a few transactions at once.
const KEPT_MS: Millis = 7 * 24 * 3_600_000;
const RECEIVED_MAX: u32 = 2000;
/// More go at once than one transaction can have.
const RECEIVED: Sweep = Sweep {
    table: "to_device_received",
    per_origin_max: RECEIVED_MAX,
    of_strangers_max: RECEIVED_MAX,
    kept_ms: KEPT_MS,
    rows_max: 200,
};
/// A device that was not heard of for so long is asleep, and may never wake.
const ASLEEP_AFTER_MS: Millis = 7 * 24 * 3_600_000;
/// For so long a server may be made to wait for a device, with everything else that it has for us.
const HOLD_MAX_MS: Millis = 10 * 60_000;

/// A number of messages, and of their bytes.
#[derive(Debug, Clone, Copy)]
struct InboxAmount {
    messages: i64,
    bytes: i64,
}

const fn amount(messages: i64, bytes: i64) -> InboxAmount {
    InboxAmount { messages, bytes }
}

impl InboxAmount {
    fn has_room_for(self, waiting: Self, bytes: i64) -> bool {
        waiting.messages < self.messages && waiting.bytes + bytes <= self.bytes
    }

    fn and_one_of(self, bytes: i64) -> Self {
        amount(self.messages + 1, self.bytes + bytes)
    }
}

/// From whom a message to a device comes: whose share of the device's line it takes. What was taken in is never given
/// up for what comes later, so that whoever fills a share shuts out nobody but themselves. Each user of a server has a
/// part of the server's share only, so that none of them takes it all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageOrigin<'a> {
    /// One of our users.
    User(&'a UserId),
    /// A server that is in a room with one of us.
    Neighbour(&'a ServerName),
    /// Any other server.
    Stranger(&'a ServerName),
}

/// What may wait for one device of such origins.
struct InboxLimits {
    /// Of each.
    each: InboxAmount,
    /// Of all together.
    all: InboxAmount,
    /// Of each even when all together have what they may.
    fair: InboxAmount,
    /// Of each user of a server.
    sender: InboxAmount,
}

impl MessageOrigin<'_> {
    /// The number of the share, and who takes of it.
    fn of(&self) -> (i64, &str) {
        match self {
            Self::User(user) => (0, user.as_str()),
            Self::Neighbour(server) => (1, server.as_str()),
            Self::Stranger(server) => (2, server.as_str()),
        }
    }

    fn limits(&self) -> InboxLimits {
        match self {
            Self::User(_) | Self::Neighbour(_) => InboxLimits {
                each: amount(10_000, 16 << 20),
                all: amount(50_000, 64 << 20),
                fair: amount(500, 1 << 20),
                sender: amount(2500, 4 << 20),
            },
            // As many as one transaction can have.
            Self::Stranger(_) => InboxLimits {
                each: amount(100, 256 << 10),
                all: amount(1000, 2 << 20),
                fair: amount(0, 0),
                sender: amount(75, 192 << 10),
            },
        }
    }

    /// A line with no more than this, of all origins together, can be full for none of this kind: nobody has to know from whom
    /// its messages are. That is so of nearly all lines, and counting costs more than the message.
    fn short_line(&self) -> InboxAmount {
        let InboxLimits { fair, sender, .. } = self.limits();
        match self {
            Self::User(_) | Self::Neighbour(_) => fair,
            Self::Stranger(_) => sender,
        }
    }
}

/// The row id of the line in which messages wait for a device.
pub type LineKey = i64;

/// One of our devices that is to get a message.
#[derive(Debug, Clone)]
pub struct Recipient {
    /// Its id.
    pub device_id: String,
    /// Its line, if it ever had a message.
    pub line: Option<LineKey>,
}

/// What became of a message to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxOutcome {
    /// It waits for the device.
    Waits,
    /// Too many wait of the same origin: it should come again when the device has fetched some.
    Full,
    /// The same, and the device was not heard of for long, or has let some wait for longer than a server can be held
    /// up: the message is lost, since nobody can be made to wait for a device that may never come back.
    Asleep,
    /// Too many wait of one user of another server: the message is lost, since the server and its other users are not
    /// to wait for what that one has done.
    Beyond,
    /// There is no such device any more.
    Gone,
}

/// A message that waits for a device.
#[derive(Debug, Clone)]
pub struct ToDevice {
    /// Its position in the stream, by which it has its place in the device's line.
    pub number: i64,
    /// The event: a JSON object.
    pub message: String,
}

impl Db<'_> {
    /// One of the user's devices, if there is one of this id.
    pub fn device_recipient(&self, user: &UserId, device: &str) -> Result<Option<Recipient>> {
        let line = self.to_device_line(user, device)?;
        let exists = line.is_some() || self.device(user, device)?.is_some();
        Ok(exists.then(|| Recipient { device_id: device.to_owned(), line }))
    }

    /// All of the user's devices.
    pub fn device_recipients(&self, user: &UserId) -> Result<Vec<Recipient>> {
        self.rows(
            "SELECT d.device_id, l.line FROM devices d LEFT JOIN to_device_lines l USING (user_id, device_id)
             WHERE d.user_id = ?1 ORDER BY 1",
            params![user.as_str()],
            |row| Ok(Recipient { device_id: row.get(0)?, line: row.get(1)? }),
        )
    }

    /// Whether messages are left of devices that were logged out.
    pub fn has_ended_lines(&self) -> Result<bool> {
        Ok(self
            .conn()
            .prepare_cached("SELECT 1 FROM to_device_lines WHERE user_id IS NULL LIMIT 1")?
            .exists([])?)
    }

    fn to_device_line(&self, user: &UserId, device: &str) -> Result<Option<LineKey>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT line FROM to_device_lines WHERE user_id = ?1 AND device_id = ?2")?;
        Ok(statement.query_row([user.as_str(), device], |row| row.get(0)).optional()?)
    }

    /// Up to which message a device has proved, by the `since` of its `/sync`, that it has them; none if nothing that
    /// waits is proved. An answer that had to leave some out proves those only that it had.
    pub fn to_device_proved(&self, user: &UserId, device: &str, since: i64) -> Result<Option<i64>> {
        let Some(line) = self.to_device_line(user, device)? else { return Ok(None) };
        let mut statement = self.conn().prepare_cached(
            "SELECT number FROM to_device_portions WHERE user_id = ?1 AND device_id = ?2 AND stream > ?3
             ORDER BY stream LIMIT 1",
        )?;
        let key = params![user.as_str(), device, since];
        let portion: Option<i64> = statement.query_row(key, |row| row.get(0)).optional()?;
        self.last_to_device(line, portion.map_or(since, |portion| portion.min(since)))
    }

    /// The last message that waits in a line and had come by a position.
    fn last_to_device(&self, line: LineKey, position: i64) -> Result<Option<i64>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT max(stream) FROM to_device WHERE line = ?1 AND stream <= ?2")?;
        Ok(statement.query_row([line, position], |row| row.get(0))?)
    }

    /// The last message that waits for a device and had come by a position.
    pub fn to_device_upto(&self, user: &UserId, device: &str, position: i64) -> Result<Option<i64>> {
        match self.to_device_line(user, device)? {
            Some(line) => self.last_to_device(line, position),
            None => Ok(None),
        }
    }

    /// The first messages that came for a device after a position and still wait.
    pub fn to_device_after(
        &self,
        user: &UserId,
        device: &str,
        after: i64,
        limit: usize,
    ) -> Result<Vec<ToDevice>> {
        let Some(line) = self.to_device_line(user, device)? else { return Ok(Vec::new()) };
        self.rows(
            "SELECT stream, message FROM to_device WHERE line = ?1 AND stream > ?2 ORDER BY stream LIMIT ?3",
            params![line, after, limit as i64],
            |row| Ok(ToDevice { number: row.get(0)?, message: row.get(1)? }),
        )
    }
}

/// For whom a message of this user counts: the user, their server if it is another, and all of the share.
fn counted_for(share: i64, sender: &str) -> impl Iterator<Item = &str> {
    let server = sender.split_once(':').map(|(_, server)| server).filter(|_| share != 0);
    [Some(sender), server, Some("")].into_iter().flatten()
}

/// Messages that came or went, of all and by the share and for whom they count.
struct Tally {
    of_all: InboxAmount,
    shares: BTreeMap<(i64, String), InboxAmount>,
}

impl Tally {
    /// Of rows of `share`, `origin`, `bytes`.
    fn of(rows: &mut Rows<'_>) -> Result<Self> {
        let mut tally = Self { of_all: amount(0, 0), shares: BTreeMap::new() };
        while let Some(row) = rows.next()? {
            let (share, origin, bytes): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            tally.of_all = tally.of_all.and_one_of(bytes);
            for origin in counted_for(share, &origin) {
                let of = tally.shares.entry((share, origin.to_owned())).or_insert(amount(0, 0));
                *of = of.and_one_of(bytes);
            }
        }
        Ok(tally)
    }
}

impl Tx<'_> {
    /// Lets a message of `sender`, who belongs to the origin, wait for one of our devices, if their share of its line is not
    /// full.
    pub fn add_to_device(
        &mut self,
        user: &UserId,
        recipient: &Recipient,
        (sender, message): (&UserId, &str),
        origin: MessageOrigin<'_>,
        now: Millis,
    ) -> Result<InboxOutcome> {
        let line = match recipient.line {
            Some(line) => line,
            None => match self.begin_line(user, &recipient.device_id)? {
                Some(line) => line,
                None => return Ok(InboxOutcome::Gone),
            },
        };
        let size = i64::try_from(message.len()).unwrap_or(i64::MAX);
        if !self.has_joined_short_line(line, size, origin)? {
            let outcome = self.take_share(line, (sender, size), origin, now)?;
            if outcome != InboxOutcome::Waits {
                return Ok(outcome);
            }
        }
        let stream = self.next_stream();
        self.execute(
            "INSERT INTO to_device (stream, line, share, origin, bytes, message) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![stream, line, origin.of().0, sender.as_str(), size, message],
        )?;
        self.wake_user(user);
        Ok(InboxOutcome::Waits)
    }

    /// The line of a device, which has none as far as is known. None: there is no such device.
    fn begin_line(&mut self, user: &UserId, device: &str) -> Result<Option<LineKey>> {
        if let Some(line) = self.to_device_line(user, device)? {
            return Ok(Some(line));
        }
        let line = self.next_stream();
        let begun = self.execute(
            "INSERT INTO to_device_lines (line, user_id, device_id)
             SELECT ?1, user_id, device_id FROM devices WHERE user_id = ?2 AND device_id = ?3",
            params![line, user.as_str(), device],
        )?;
        Ok((begun == 1).then_some(line))
    }

    /// Counts a message in, where that needs no share of the line: it is there, and short.
    fn has_joined_short_line(&self, line: LineKey, size: i64, origin: MessageOrigin<'_>) -> Result<bool> {
        let short = origin.short_line();
        let joined = self.execute(
            "UPDATE to_device_lines SET messages = messages + 1, bytes = bytes + ?2
             WHERE line = ?1 AND user_id IS NOT NULL AND counted = 0 AND messages < ?3 AND bytes + ?2 <= ?4",
            params![line, size, short.messages, short.bytes],
        )?;
        Ok(joined == 1)
    }

    /// Counts a message in, if there is room for it in the share of its origin.
    fn take_share(
        &mut self,
        line: LineKey,
        (sender, size): (&UserId, i64),
        origin: MessageOrigin<'_>,
        now: Millis,
    ) -> Result<InboxOutcome> {
        match self.is_counted(line)? {
            Some(true) => {}
            Some(false) => self.count_line(line, now)?,
            None => return Ok(InboxOutcome::Gone),
        }
        let (share, name) = origin.of();
        let limits = origin.limits();
        let elsewhere = !matches!(origin, MessageOrigin::User(_));
        if elsewhere {
            let (of_sender, _) = self.to_device_share(line, share, sender.as_str())?;
            if !limits.sender.has_room_for(of_sender, size) {
                return Ok(InboxOutcome::Beyond);
            }
        }
        let (of_origin, origin_since) = self.to_device_share(line, share, name)?;
        let (of_all, all_since) = self.to_device_share(line, share, "")?;
        let each_fits = limits.each.has_room_for(of_origin, size);
        let fits =
            each_fits && (limits.all.has_room_for(of_all, size) || limits.fair.has_room_for(of_origin, size));
        if !fits {
            let seen = self.owner_seen(line)?;
            let asleep = seen.is_some_and(|seen| now - seen > ASLEEP_AFTER_MS);
            let since = if each_fits { all_since } else { origin_since };
            let held = elsewhere && since.is_some_and(|since| now - since > HOLD_MAX_MS);
            return Ok(if asleep || held { InboxOutcome::Asleep } else { InboxOutcome::Full });
        }
        for name in counted_for(share, sender.as_str()) {
            self.add_to_share(line, (share, name), amount(1, size), now)?;
        }
        self.execute(
            "UPDATE to_device_lines SET messages = messages + 1, bytes = bytes + ?2 WHERE line = ?1",
            params![line, size],
        )?;
        Ok(InboxOutcome::Waits)
    }

    /// Whether it is known from whom the messages of a line are; none if it is no device's.
    fn is_counted(&self, line: LineKey) -> Result<Option<bool>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT counted FROM to_device_lines WHERE line = ?1 AND user_id IS NOT NULL")?;
        Ok(statement.query_row([line], |row| row.get(0)).optional()?)
    }

    /// Counts from whom the messages of a line are, which are few. Nobody knows when the first of each came: whom the device
    /// makes wait waits from now on.
    fn count_line(&mut self, line: LineKey, now: Millis) -> Result<()> {
        let tally = {
            let mut statement =
                self.conn().prepare_cached("SELECT share, origin, bytes FROM to_device WHERE line = ?1")?;
            Tally::of(&mut statement.query([line])?)?
        };
        for ((share, origin), waiting) in &tally.shares {
            self.add_to_share(line, (*share, origin), *waiting, now)?;
        }
        self.execute("UPDATE to_device_lines SET counted = 1 WHERE line = ?1", params![line])?;
        Ok(())
    }

    fn add_to_share(
        &mut self,
        line: LineKey,
        (share, origin): (i64, &str),
        more: InboxAmount,
        now: Millis,
    ) -> Result<()> {
        self.execute(
            "INSERT INTO to_device_shares (line, share, origin, messages, bytes, since_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO UPDATE SET messages = messages + excluded.messages, bytes = bytes + excluded.bytes",
            params![line, share, origin, more.messages, more.bytes, now],
        )?;
        Ok(())
    }

    /// When the device was heard of last.
    fn owner_seen(&self, line: LineKey) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT last_seen_ms FROM to_device_lines JOIN devices USING (user_id, device_id) WHERE line = ?1",
        )?;
        Ok(statement.query_row([line], |row| row.get(0)).optional()?.flatten())
    }

    /// What waits, and since when some has.
    fn to_device_share(
        &self,
        line: LineKey,
        share: i64,
        origin: &str,
    ) -> Result<(InboxAmount, Option<Millis>)> {
        let mut statement = self.conn().prepare_cached(
            "SELECT messages, bytes, since_ms FROM to_device_shares WHERE line = ?1 AND share = ?2 AND origin = ?3",
        )?;
        let found = statement
            .query_row(params![line, share, origin], |row| {
                Ok((amount(row.get(0)?, row.get(1)?), Some(row.get(2)?)))
            })
            .optional()?;
        Ok(found.unwrap_or((amount(0, 0), None)))
    }

    /// Lets go of what a device has proved to have: its messages up to that one, and what was noted of answers whose tokens are
    /// not behind `since`.
    pub fn forget_to_device(&mut self, user: &UserId, device: &str, upto: i64, since: i64) -> Result<()> {
        if let Some(line) = self.to_device_line(user, device)? {
            self.shorten_line(line, upto)?;
        }
        self.execute(
            "DELETE FROM to_device_portions WHERE user_id = ?1 AND device_id = ?2 AND stream <= ?3",
            params![user.as_str(), device, since],
        )?;
        Ok(())
    }

    /// Nobody waits for these messages any more. They may be very many: the timer sees to them.
    pub(in crate::store) fn end_to_device_line(&mut self, user: &UserId, device: &str) -> Result<()> {
        let ended = self.execute(
            "UPDATE to_device_lines SET user_id = NULL, device_id = NULL WHERE user_id = ?1 AND device_id = ?2",
            params![user.as_str(), device],
        )?;
        if ended > 0 {
            self.wake_timer();
        }
        Ok(())
    }

    /// Takes out messages of devices that were logged out, so many at most. Whether there may be more.
    pub fn empty_ended_lines(&mut self, most: usize) -> Result<bool> {
        let next: Option<LineKey> = self
            .conn()
            .prepare_cached("SELECT line FROM to_device_lines WHERE user_id IS NULL LIMIT 1")?
            .query_row([], |row| row.get(0))
            .optional()?;
        let Some(line) = next else { return Ok(false) };
        for of_line in [
            "DELETE FROM to_device WHERE stream IN (SELECT stream FROM to_device WHERE line = ?1 LIMIT ?2)",
            "DELETE FROM to_device_shares WHERE line = ?1 AND (share, origin) IN
               (SELECT share, origin FROM to_device_shares WHERE line = ?1 LIMIT ?2)",
        ] {
            if self.execute(of_line, params![line, most as i64])? == most {
                return Ok(true);
            }
        }
        self.execute("DELETE FROM to_device_lines WHERE line = ?1", params![line])?;
        Ok(true)
    }

    pub(in crate::store) fn shorten_line(&mut self, line: LineKey, upto: i64) -> Result<()> {
        let gone = {
            let mut statement = self.conn().prepare_cached(
                "DELETE FROM to_device WHERE line = ?1 AND stream <= ?2 RETURNING share, origin, bytes",
            )?;
            Tally::of(&mut statement.query([line, upto])?)?
        };
        let InboxAmount { messages, bytes } = gone.of_all;
        if messages == 0 {
            return Ok(());
        }
        if self.is_counted(line)? == Some(true) {
            self.take_from_shares(line, gone.shares)?;
        }
        // An empty one is counted by nobody.
        self.execute(
            "UPDATE to_device_lines
             SET messages = messages - ?2, bytes = bytes - ?3, counted = counted AND messages > ?2 WHERE line = ?1",
            params![line, messages, bytes],
        )?;
        Ok(())
    }

    fn take_from_shares(&mut self, line: LineKey, gone: BTreeMap<(i64, String), InboxAmount>) -> Result<()> {
        for ((share, origin), InboxAmount { messages, bytes }) in gone {
            self.execute(
                "UPDATE to_device_shares SET messages = messages - ?4, bytes = bytes - ?5
                 WHERE line = ?1 AND share = ?2 AND origin = ?3",
                params![line, share, origin, messages, bytes],
            )?;
            // Of these alone: a line may be shared by many who are not concerned.
            self.execute(
                "DELETE FROM to_device_shares WHERE line = ?1 AND share = ?2 AND origin = ?3 AND messages = 0",
                params![line, share, origin],
            )?;
        }
        Ok(())
    }

    /// Notes that the answers whose tokens are before the present position had messages up to that number only.
    pub fn note_to_device_portion(&mut self, user: &UserId, device: &str, upto: i64) -> Result<()> {
        // The device may have been logged out while its answer was made.
        if self.device(user, device)?.is_none() {
            return Ok(());
        }
        let stream = self.next_stream();
        self.execute(
            "INSERT OR REPLACE INTO to_device_portions (user_id, device_id, number, stream) VALUES (?1, ?2, ?3, ?4)",
            params![user.as_str(), device, upto, stream],
        )?;
        Ok(())
    }

    /// Notes that a message of another server was received. False: it was before.
    pub fn receive_to_device(
        &mut self,
        origin: MessageOrigin<'_>,
        message_id: &str,
        now: Millis,
    ) -> Result<bool> {
        let stranger = matches!(origin, MessageOrigin::Stranger(_));
        let (_, origin) = origin.of();
        let added = self.execute(
            "INSERT INTO to_device_received (origin, message_id, received_ms, stranger) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO NOTHING",
            params![origin, message_id, now, stranger],
        )?;
        Ok(added > 0)
    }

    /// Forgets old messages that were received, after some of this origin were.
    pub fn sweep_received_to_device(&mut self, origin: MessageOrigin<'_>, now: Millis) -> Result<()> {
        RECEIVED.after(self, origin.of().1, matches!(origin, MessageOrigin::Stranger(_)), now)
    }
}

#[cfg(test)]
#[path = "to_device_tests.rs"]
mod tests;
