//! Messages that wait for devices, and which ones other servers have sent us already.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::{ServerName, UserId};
use crate::store::accounts::devices::Device;
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
}

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

    /// The first messages that came for a device after a position and still wait, each with its own position.
    pub fn to_device_since(
        &self,
        user: &UserId,
        device: &str,
        since: i64,
        limit: usize,
    ) -> Result<Vec<(i64, String)>> {
        self.rows(
            "SELECT stream, message FROM to_device WHERE user_id = ?1 AND device_id = ?2 AND stream > ?3
             ORDER BY number LIMIT ?4",
            params![user.as_str(), device, since, limit as i64],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
    }

    /// The last message that waits for a device and had come by a position.
    pub fn to_device_upto(&self, user: &UserId, device: &str, position: i64) -> Result<Option<i64>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT max(number) FROM to_device WHERE user_id = ?1 AND device_id = ?2 AND stream <= ?3",
        )?;
        Ok(statement.query_row(params![user.as_str(), device, position], |row| row.get(0))?)
    }

    /// The first messages that wait for a device behind that number.
    pub fn to_device_after(
        &self,
        user: &UserId,
        device: &str,
        after: i64,
        limit: usize,
    ) -> Result<Vec<ToDevice>> {
        self.rows(
            "SELECT number, message FROM to_device WHERE user_id = ?1 AND device_id = ?2 AND number > ?3
             ORDER BY number LIMIT ?4",
            params![user.as_str(), device, after, limit as i64],
            |row| Ok(ToDevice { number: row.get(0)?, message: row.get(1)? }),
        )
    }
}

/// For whom a message of this user counts: the user, their server if it is another, and all of the share.
fn counted_for(share: i64, sender: &str) -> impl Iterator<Item = &str> {
    let server = sender.split_once(':').map(|(_, server)| server).filter(|_| share != 0);
    [Some(sender), server, Some("")].into_iter().flatten()
}

impl Tx<'_> {
    /// Lets a message of `sender`, who belongs to the origin, wait for one of our devices, which exists, if their
    /// share of its line is not full.
    pub fn add_to_device(
        &mut self,
        user: &UserId,
        device: &Device,
        (sender, message): (&UserId, &str),
        origin: MessageOrigin<'_>,
        now: Millis,
    ) -> Result<InboxOutcome> {
        let (share, name) = origin.of();
        let size = i64::try_from(message.len()).unwrap_or(i64::MAX);
        let limits = origin.limits();
        let elsewhere = !matches!(origin, MessageOrigin::User(_));
        if elsewhere {
            let (of_sender, _) = self.to_device_share(user, &device.device_id, share, sender.as_str())?;
            if !limits.sender.has_room_for(of_sender, size) {
                return Ok(InboxOutcome::Beyond);
            }
        }
        let (of_origin, origin_since) = self.to_device_share(user, &device.device_id, share, name)?;
        let (of_all, all_since) = self.to_device_share(user, &device.device_id, share, "")?;
        let each_fits = limits.each.has_room_for(of_origin, size);
        let fits =
            each_fits && (limits.all.has_room_for(of_all, size) || limits.fair.has_room_for(of_origin, size));
        if !fits {
            let asleep = device.last_seen_ms.is_some_and(|seen| now - seen > ASLEEP_AFTER_MS);
            let since = if each_fits { all_since } else { origin_since };
            let held = elsewhere && since.is_some_and(|since| now - since > HOLD_MAX_MS);
            return Ok(if asleep || held { InboxOutcome::Asleep } else { InboxOutcome::Full });
        }
        for name in counted_for(share, sender.as_str()) {
            self.execute(
                "INSERT INTO to_device_shares (user_id, device_id, share, origin, messages, bytes, since_ms)
                 VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6)
                 ON CONFLICT DO UPDATE SET messages = messages + 1, bytes = bytes + excluded.bytes",
                params![user.as_str(), device.device_id, share, name, size, now],
            )?;
        }
        let stream = self.next_stream();
        self.execute(
            "INSERT INTO to_device (user_id, device_id, number, stream, share, origin, bytes, message)
             VALUES (?1, ?2, (SELECT coalesce(max(number), 0) + 1 FROM to_device WHERE user_id = ?1 AND device_id = ?2),
               ?3, ?4, ?5, ?6, ?7)",
            params![user.as_str(), device.device_id, stream, share, sender.as_str(), size, message],
        )?;
        self.wake_user(user);
        Ok(InboxOutcome::Waits)
    }

    /// What waits, and since when some has.
    fn to_device_share(
        &self,
        user: &UserId,
        device: &str,
        share: i64,
        origin: &str,
    ) -> Result<(InboxAmount, Option<Millis>)> {
        let mut statement = self.conn().prepare_cached(
            "SELECT messages, bytes, since_ms FROM to_device_shares
             WHERE user_id = ?1 AND device_id = ?2 AND share = ?3 AND origin = ?4",
        )?;
        let found = statement
            .query_row(params![user.as_str(), device, share, origin], |row| {
                Ok((amount(row.get(0)?, row.get(1)?), Some(row.get(2)?)))
            })
            .optional()?;
        Ok(found.unwrap_or((amount(0, 0), None)))
    }

    /// Lets go of what a device has proved to have: its messages up to that number, and what was noted of answers whose
    /// tokens are not behind `since`.
    pub fn forget_to_device(&mut self, user: &UserId, device: &str, upto: i64, since: i64) -> Result<()> {
        let mut gone: BTreeMap<(i64, String), InboxAmount> = BTreeMap::new();
        {
            let mut statement = self.conn().prepare_cached(
                "DELETE FROM to_device WHERE user_id = ?1 AND device_id = ?2 AND number <= ?3
                 RETURNING share, origin, bytes",
            )?;
            let mut rows = statement.query(params![user.as_str(), device, upto])?;
            while let Some(row) = rows.next()? {
                let (share, origin, bytes): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                for origin in counted_for(share, &origin) {
                    let of = gone.entry((share, origin.to_owned())).or_insert(amount(0, 0));
                    *of = amount(of.messages + 1, of.bytes + bytes);
                }
            }
        }
        for ((share, origin), InboxAmount { messages, bytes }) in gone {
            self.execute(
                "UPDATE to_device_shares SET messages = messages - ?5, bytes = bytes - ?6
                 WHERE user_id = ?1 AND device_id = ?2 AND share = ?3 AND origin = ?4",
                params![user.as_str(), device, share, origin, messages, bytes],
            )?;
            // Of these alone: a line may be shared by many who are not concerned.
            self.execute(
                "DELETE FROM to_device_shares
                 WHERE user_id = ?1 AND device_id = ?2 AND share = ?3 AND origin = ?4 AND messages = 0",
                params![user.as_str(), device, share, origin],
            )?;
        }
        self.execute(
            "DELETE FROM to_device_portions WHERE user_id = ?1 AND device_id = ?2 AND stream <= ?3",
            params![user.as_str(), device, since],
        )?;
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
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::tests::with_device_of_bob;

    const DAY: Millis = 24 * 3_600_000;
    /// When the first came of those that [`pretend`] has wait.
    const PRETENDED: Millis = DAY - 60_000;

    fn name(name: &str) -> ServerName {
        ServerName::parse(name).expect("a name")
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id).expect("a user id")
    }

    fn bob() -> UserId {
        user("@bob:us.example")
    }

    /// A user of an origin.
    fn of(origin: MessageOrigin<'_>) -> UserId {
        match origin {
            MessageOrigin::User(user) => user.clone(),
            MessageOrigin::Neighbour(server) | MessageOrigin::Stranger(server) => {
                user(&format!("@a:{server}"))
            }
        }
    }

    fn device(last_seen_ms: Option<Millis>) -> Device {
        Device { device_id: "D".into(), display_name: None, last_seen_ms, last_seen_ip: None }
    }

    /// As if so many messages waited of this share, and so many of them of the origin.
    fn pretend(tx: &mut Tx<'_>, share: i64, origin: &str, of_origin: i64, of_all: i64) -> Result<()> {
        for (origin, messages) in [(origin, of_origin), ("", of_all)] {
            tx.conn().execute(
                "INSERT OR REPLACE INTO to_device_shares (user_id, device_id, share, origin, messages, bytes, since_ms)
                 VALUES ('@bob:us.example', 'D', ?1, ?2, ?3, 0, ?4)",
                params![share, origin, messages, PRETENDED],
            )?;
        }
        Ok(())
    }

    #[test]
    fn each_origin_has_its_share_of_a_line_and_a_fair_one_however_many_others_there_are() {
        let (friend, stranger) = (name("friend.example"), name("stranger.example"));
        let alice = user("@alice:us.example");
        with_device_of_bob()
            .write(move |tx| {
                let mut add = |origin: MessageOrigin<'_>, counts: (i64, i64)| {
                    let (share, name) = origin.of();
                    pretend(tx, share, name, counts.0, counts.1)?;
                    tx.add_to_device(&bob(), &device(None), (&of(origin), "{}"), origin, DAY)
                };
                for origin in [MessageOrigin::User(&alice), MessageOrigin::Neighbour(&friend)] {
                    assert_eq!(add(origin, (9_999, 9_999))?, InboxOutcome::Waits);
                    assert_eq!(add(origin, (10_000, 10_000))?, InboxOutcome::Full, "{origin:?}");
                    assert_eq!(
                        add(origin, (499, 50_000))?,
                        InboxOutcome::Waits,
                        "{origin:?} has a fair share"
                    );
                    assert_eq!(add(origin, (500, 50_000))?, InboxOutcome::Full, "{origin:?}");
                }
                let origin = MessageOrigin::Stranger(&stranger);
                assert_eq!(add(origin, (99, 999))?, InboxOutcome::Waits);
                assert_eq!(add(origin, (100, 100))?, InboxOutcome::Full);
                assert_eq!(add(origin, (0, 1000))?, InboxOutcome::Full, "names have no end");
                Ok(())
            })
            .expect("written");
    }

    #[test]
    fn nobody_is_made_to_wait_for_a_device_that_sleeps() {
        let alice = user("@alice:us.example");
        with_device_of_bob()
            .write(move |tx| {
                pretend(tx, 0, "@alice:us.example", 10_000, 10_000)?;
                let mut add = |device: &Device| {
                    tx.add_to_device(&bob(), device, (&alice, "{}"), MessageOrigin::User(&alice), 100 * DAY)
                };
                assert_eq!(add(&device(Some(99 * DAY)))?, InboxOutcome::Full);
                assert_eq!(add(&device(Some(90 * DAY)))?, InboxOutcome::Asleep);
                Ok(())
            })
            .expect("written");
    }

    #[test]
    fn no_server_is_held_up_for_longer_than_minutes_by_a_device_that_fetches_nothing() {
        let (friend, stranger) = (name("friend.example"), name("stranger.example"));
        with_device_of_bob()
            .write(move |tx| {
                // Its own share is full, or the one of all.
                for (origin, counts) in [
                    (MessageOrigin::Neighbour(&friend), (10_000, 10_000)),
                    (MessageOrigin::Neighbour(&friend), (600, 50_000)),
                    (MessageOrigin::Stranger(&stranger), (100, 100)),
                    (MessageOrigin::Stranger(&stranger), (1, 1000)),
                ] {
                    let (share, name) = origin.of();
                    pretend(tx, share, name, counts.0, counts.1)?;
                    let mut add = |now: Millis| {
                        tx.add_to_device(&bob(), &device(Some(now)), (&of(origin), "{}"), origin, now)
                    };
                    assert_eq!(add(PRETENDED + HOLD_MAX_MS)?, InboxOutcome::Full, "{origin:?}");
                    assert_eq!(add(PRETENDED + HOLD_MAX_MS + 1)?, InboxOutcome::Asleep, "{origin:?}");
                    assert_eq!(add(PRETENDED + 3 * DAY)?, InboxOutcome::Asleep, "{origin:?}");
                }
                Ok(())
            })
            .expect("written");
    }

    #[test]
    fn one_user_of_a_server_takes_a_part_of_its_share_and_loses_what_goes_beyond() {
        let (friend, stranger) = (name("friend.example"), name("stranger.example"));
        with_device_of_bob()
            .write(move |tx| {
                for (origin, most) in
                    [(MessageOrigin::Neighbour(&friend), 2500), (MessageOrigin::Stranger(&stranger), 75)]
                {
                    let (_, server) = origin.of();
                    let mut add = |name: &str| {
                        let sender = user(&format!("@{name}:{server}"));
                        tx.add_to_device(&bob(), &device(None), (&sender, "{}"), origin, DAY)
                    };
                    for n in 0..most {
                        assert_eq!(add("loud")?, InboxOutcome::Waits, "{n}");
                    }
                    assert_eq!(add("loud")?, InboxOutcome::Beyond);
                    assert_eq!(add("quiet")?, InboxOutcome::Waits, "the others lose nothing");
                }
                Ok(())
            })
            .expect("written");
    }

    #[test]
    fn shares_are_counted_as_messages_come_and_go_and_end_with_the_device() {
        let store = with_device_of_bob();
        let left = |store: &Store| {
            let sql =
                "SELECT count(*), coalesce(sum(messages), 0), coalesce(sum(bytes), 0) FROM to_device_shares";
            store.read(|db| Ok(db.conn().query_row(sql, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?))
        };
        let counts = |store: &Store| -> (i64, i64, i64) { left(store).expect("counts") };
        let (friend, stranger) = (name("friend.example"), name("stranger.example"));
        let written = store.write(move |tx| {
            for n in 0..10 {
                let origin = if n % 2 == 0 {
                    MessageOrigin::Neighbour(&friend)
                } else {
                    MessageOrigin::Stranger(&stranger)
                };
                tx.add_to_device(&bob(), &device(None), (&of(origin), "0123456789"), origin, 0)?;
            }
            Ok(())
        });
        written.expect("written");
        let each = "each message counts for its sender, for the origin and for the share";
        assert_eq!(counts(&store), (6, 30, 300), "{each}");
        store.write(|tx| tx.forget_to_device(&bob(), "D", 4, 0)).expect("written");
        assert_eq!(counts(&store), (6, 18, 180));
        store.write(|tx| tx.forget_to_device(&bob(), "D", 10, 0)).expect("written");
        assert_eq!(counts(&store), (0, 0, 0));
        let friend = name("friend.example");
        let written = store.write(move |tx| {
            let origin = MessageOrigin::Neighbour(&friend);
            tx.add_to_device(&bob(), &device(None), (&of(origin), "{}"), origin, 0)?;
            tx.delete_device(&bob(), "D")
        });
        assert!(written.expect("written"));
        assert_eq!(counts(&store), (0, 0, 0));
    }

    #[test]
    fn of_the_messages_that_were_received_the_last_of_each_origin_are_known_again() {
        let store = with_device_of_bob();
        let friend = name("friend.example");
        let known = store.write(move |tx| {
            tx.receive_to_device(MessageOrigin::Neighbour(&friend), "m", 0)?;
            for n in 0..30 {
                let stranger = name(&format!("s{n}.example"));
                let origin = MessageOrigin::Stranger(&stranger);
                for m in 0..100 {
                    assert!(tx.receive_to_device(origin, &m.to_string(), 0)?);
                }
                tx.sweep_received_to_device(origin, 0)?;
                assert!(!tx.receive_to_device(origin, "99", 0)?);
            }
            assert!(
                !tx.receive_to_device(MessageOrigin::Neighbour(&friend), "m", 0)?,
                "strangers wash away only strangers"
            );
            for m in 0..3000 {
                tx.receive_to_device(MessageOrigin::Neighbour(&friend), &format!("m{m}"), 0)?;
                if m % 100 == 0 {
                    tx.sweep_received_to_device(MessageOrigin::Neighbour(&friend), 0)?;
                }
            }
            tx.sweep_received_to_device(MessageOrigin::Neighbour(&friend), 0)?;
            let count = "SELECT count(*) FROM to_device_received WHERE stranger = ?1";
            let count =
                |tx: &Tx<'_>, stranger: bool| tx.conn().query_row(count, [stranger], |row| row.get(0));
            let kept: (i64, i64) = (count(tx, true)?, count(tx, false)?);
            (0..20)
                .try_for_each(|_| tx.sweep_received_to_device(MessageOrigin::Neighbour(&friend), 8 * DAY))?;
            Ok((kept, count(tx, true)? + count(tx, false)?))
        });
        let most = i64::from(RECEIVED_MAX);
        assert_eq!(known.expect("written"), ((most, most), 0));
    }
}
