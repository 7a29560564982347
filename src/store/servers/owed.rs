//! What servers are owed in particular: events that their residence in a room does not entitle them to, and ephemeral
//! messages that must not be lost on the way. All of it is bounded: a server may never come back.

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::{ServerName, UserId};
use crate::store::{Db, EventKey, Tx};

/// Messages to devices that one server is owed, and what they come to in bytes. Further ones are dropped, as they are
/// for a single device: what was taken in is never given up for what comes later.
const MESSAGES_MAX: i64 = 10_000;
const MESSAGES_BYTES_MAX: i64 = 64 << 20;
/// For how long they are owed.
const OWED_FOR_MS: Millis = 30 * 24 * 3_600_000;
/// Old ones that go when one comes, so that no single commit has much to do.
const SWEPT_ROWS_MAX: u32 = 5;
/// Updates of one user's devices that one server is owed. Of more only the last: it says that there is a gap. What is
/// said of the user's cross-signing keys stands in no chain, and is owed beside them.
const UPDATES_MAX: i64 = 50;
/// Events that one server is owed in particular.
const EVENTS_MAX: i64 = 10_000;

/// An ephemeral message that a server is owed.
#[derive(Debug)]
pub struct OwedEdu {
    /// Its position.
    pub stream: i64,
    /// `{"edu_type": …, "content": …}`.
    pub edu: String,
}

impl Db<'_> {
    /// The first durable ephemeral messages that a server is owed with positions in `(after, upto]`.
    pub fn owed_edus(
        &self,
        server: &ServerName,
        after: i64,
        upto: i64,
        limit: usize,
    ) -> Result<Vec<OwedEdu>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT stream, edu FROM owed_edus WHERE server = ?1 AND stream > ?2 AND stream <= ?3
             ORDER BY stream LIMIT ?4",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map((server.as_str(), after, upto, limit), |row| {
            Ok(OwedEdu { stream: row.get(0)?, edu: row.get(1)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether a server is owed an event in particular at this position: it has room for one.
    pub(in crate::store) fn is_owed_at(&self, server: &ServerName, stream: i64) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM owed_events WHERE server = ?1 AND stream = ?2)";
        Ok(self.conn().prepare_cached(sql)?.query_row((server.as_str(), stream), |row| row.get(0))?)
    }
}

/// The number of the next message in a line of messages, and what all up to it come to in bytes. None: too many wait.
/// `ends`: those two of the first that waits and of the last; `most`: how many may wait, and how many bytes behind the
/// first.
fn place_in_line(
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
    /// Owes an event to a server that its residence does not entitle to it.
    pub(crate) fn owe_event(&mut self, server: &ServerName, event: EventKey, stream: i64) -> Result<()> {
        self.execute(
            "INSERT OR IGNORE INTO owed_events (server, stream, event_key) VALUES (?1, ?2, ?3)",
            params![server.as_str(), stream, event],
        )?;
        let dropped = self.execute(
            "DELETE FROM owed_events WHERE server = ?1 AND stream <=
             (SELECT stream FROM owed_events WHERE server = ?1 ORDER BY stream DESC LIMIT 1 OFFSET ?2)",
            params![server.as_str(), EVENTS_MAX],
        )?;
        if dropped > 0 {
            log::warn!("{server} is owed too many events in particular: {dropped} are dropped");
        }
        self.wake_destination(server);
        Ok(())
    }

    /// Owes a server an ephemeral message with messages to devices. False: it is owed too many, and this one is
    /// dropped.
    pub fn owe_message(&mut self, server: &ServerName, edu: &str, now: Millis) -> Result<bool> {
        self.drop_old_messages(now)?;
        let end = |order: &str| -> Result<Option<(i64, i64)>> {
            let mut statement = self.conn().prepare_cached(&format!(
                "SELECT number, bytes FROM owed_edus WHERE server = ?1 AND number IS NOT NULL
                 ORDER BY number {order} LIMIT 1"
            ))?;
            let ends = statement.query_row([server.as_str()], |row| Ok((row.get(0)?, row.get(1)?)));
            Ok(ends.optional()?)
        };
        let ends = end("ASC")?.zip(end("DESC")?);
        let Some((number, bytes)) = place_in_line(ends, edu.len(), (MESSAGES_MAX, MESSAGES_BYTES_MAX)) else {
            return Ok(false);
        };
        let stream = self.next_stream();
        self.execute(
            "INSERT INTO owed_edus (server, stream, number, bytes, made_ms, edu) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![server.as_str(), stream, number, bytes, now, edu],
        )?;
        self.wake_destination(server);
        Ok(true)
    }

    fn drop_old_messages(&mut self, now: Millis) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "DELETE FROM owed_edus WHERE (server, stream) IN
               (SELECT server, stream FROM owed_edus WHERE made_ms < ?1 ORDER BY made_ms LIMIT ?2) RETURNING server",
        )?;
        let rows = statement.query_map((now - OWED_FOR_MS, SWEPT_ROWS_MAX), |row| row.get::<_, String>(0))?;
        for server in rows {
            log::warn!("a message to devices is dropped: {} was out of reach for too long", server?);
        }
        Ok(())
    }

    /// Owes a server an update of a local user's devices, in the place of those of the same device that it was not
    /// sent: "If a server receives an EDU which refers to a `prev_id` it does not recognise, it must resynchronise its
    /// list".
    pub fn owe_device_update(
        &mut self,
        server: &ServerName,
        (user, device): (&UserId, &str),
        edu: &str,
    ) -> Result<()> {
        let (server_name, user) = (server.as_str(), user.as_str());
        self.execute(
            "DELETE FROM owed_edus WHERE server = ?1 AND user_id = ?2 AND device_id = ?3",
            params![server_name, user, device],
        )?;
        let others: i64 = self
            .conn()
            .prepare_cached(
                "SELECT count(*) FROM owed_edus WHERE server = ?1 AND user_id = ?2 AND device_id <> ''",
            )?
            .query_row((server_name, user), |row| row.get(0))?;
        if others >= UPDATES_MAX && !device.is_empty() {
            self.execute(
                "DELETE FROM owed_edus WHERE server = ?1 AND user_id = ?2 AND device_id <> ''",
                params![server_name, user],
            )?;
        }
        let stream = self.next_stream();
        self.execute(
            "INSERT INTO owed_edus (server, stream, user_id, device_id, edu) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![server_name, stream, user, device, edu],
        )?;
        self.wake_destination(server);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::test_events::server as name;
    use crate::store::Store;
    use crate::store::tests::in_memory;

    const DAY: Millis = 24 * 3_600_000;

    fn store() -> Store {
        in_memory("a.org")
    }

    fn owed(store: &Store, server: &ServerName) -> Vec<String> {
        let owed = store.read(|db| db.owed_edus(server, 0, i64::MAX, 100_000)).expect("read");
        owed.into_iter().map(|owed| owed.edu).collect()
    }

    #[test]
    fn messages_for_a_server_that_never_returns_are_bounded_by_their_number_their_bytes_and_their_age() {
        let store = store();
        let (dead, other) = (name("dead.org"), name("other.org"));
        let (one, two) = (dead.clone(), other.clone());
        store
            .write(move |tx| {
                assert!(tx.owe_message(&one, "old", 0)? && tx.owe_message(&one, "newer", DAY)?);
                // As if there were many between them.
                tx.conn().execute("UPDATE owed_edus SET number = ?1 WHERE number = 2", [MESSAGES_MAX - 1])?;
                assert!(tx.owe_message(&one, "just so", DAY)?);
                assert!(!tx.owe_message(&one, "too much", DAY)?);
                let large = "x".repeat(1 << 20);
                tx.owe_message(&two, "the first", DAY)?;
                for n in 0..70 {
                    assert_eq!(tx.owe_message(&two, &large, DAY)?, n < 64, "{n}");
                }
                Ok(())
            })
            .expect("written");
        assert_eq!(owed(&store, &dead), ["old", "newer", "just so"]);
        // Whoever has something new to say sweeps out what is old.
        let one = dead.clone();
        assert!(store.write(move |tx| tx.owe_message(&one, "new", 30 * DAY + 1)).expect("written"));
        assert_eq!(owed(&store, &dead), ["newer", "just so", "new"]);
        assert_eq!(owed(&store, &other).len(), 65);
    }

    #[test]
    fn of_the_updates_of_one_device_the_last_is_owed_and_of_many_devices_of_a_user_the_last_of_all() {
        let store = store();
        let (server, user) = (name("dead.org"), UserId::parse("@u:a.org").expect("a user id"));
        let (one, us) = (server.clone(), user.clone());
        store
            .write(move |tx| {
                tx.owe_message(&one, "message", 0)?;
                for (device, edu) in [("A", "a1"), ("B", "b1"), ("A", "a2"), ("A", "a3")] {
                    tx.owe_device_update(&one, (&us, device), edu)?;
                }
                Ok(())
            })
            .expect("written");
        assert_eq!(owed(&store, &server), ["message", "b1", "a3"]);
        let one = server.clone();
        store
            .write(move |tx| {
                for n in 0..UPDATES_MAX {
                    tx.owe_device_update(&one, (&user, &format!("D{n}")), &format!("d{n}"))?;
                }
                Ok(())
            })
            .expect("written");
        let left = owed(&store, &server);
        assert_eq!(left.first().map(String::as_str), Some("message"));
        assert!(left.len() <= 1 + usize::try_from(UPDATES_MAX).expect("small"), "{left:?}");
        assert_eq!(left.last().map(String::as_str), Some("d49"));
    }

    #[test]
    fn what_a_server_is_owed_of_signing_keys_and_of_devices_does_not_take_each_others_place() {
        let store = store();
        let (server, user) = (name("dead.org"), UserId::parse("@u:a.org").expect("a user id"));
        let (one, us) = (server.clone(), user.clone());
        store
            .write(move |tx| {
                tx.owe_device_update(&one, (&us, ""), "signing keys")?;
                for n in 0..UPDATES_MAX {
                    tx.owe_device_update(&one, (&us, &format!("D{n}")), &format!("d{n}"))?;
                }
                tx.owe_device_update(&one, (&us, ""), "other signing keys")
            })
            .expect("written");
        let left = owed(&store, &server);
        assert_eq!(left.len(), 1 + usize::try_from(UPDATES_MAX).expect("small"));
        assert_eq!(left[left.len() - 2..], ["d49", "other signing keys"]);
        let one = server.clone();
        store.write(move |tx| tx.owe_device_update(&one, (&user, "MORE"), "more")).expect("written");
        assert_eq!(owed(&store, &server), ["other signing keys", "more"]);
    }

    #[test]
    fn events_in_particular_are_bounded_and_a_server_that_is_gone_for_good_is_forgotten() {
        let store = store();
        let (dead, room) = (name("dead.org"), name("room.org"));
        let (one, two) = (dead.clone(), room.clone());
        let forgotten = store
            .write(move |tx| {
                let failed = crate::store::servers::destinations::Destination {
                    failures: 9,
                    retry_ms: 5,
                    ..Default::default()
                };
                let key = tx.pretend_room("!r:a.org", &[&two])?;
                let (event, _) = tx.pretend_event(key, "$e", "@u:a.org")?;
                tx.conn().execute(
                    "WITH RECURSIVE n (stream) AS (SELECT 1 UNION ALL SELECT stream + 1 FROM n WHERE stream < ?3)
                     INSERT INTO owed_events (server, stream, event_key) SELECT ?1, stream, ?2 FROM n",
                    (one.as_str(), event, EVENTS_MAX),
                )?;
                for more in 1..=5 {
                    tx.owe_event(&one, event, EVENTS_MAX + more)?;
                }
                tx.save_destination(&one, &failed, 0)?;
                tx.save_destination(&two, &failed, 0)?;
                Ok((tx.forget_destinations(5)?, tx.forget_destinations(6)?))
            })
            .expect("written");
        assert_eq!(forgotten, (0, 0), "both are owed something");
        let count: i64 = store
            .read(|db| Ok(db.conn().query_row("SELECT count(*) FROM owed_events", [], |row| row.get(0))?))
            .expect("read");
        assert_eq!(count, EVENTS_MAX);
        let one = dead.clone();
        let forgotten = store
            .write(move |tx| {
                let delivered = crate::store::servers::destinations::Destination {
                    cursor: i64::MAX,
                    failures: 9,
                    retry_ms: 5,
                    ..Default::default()
                };
                tx.save_destination(&one, &delivered, i64::MAX)?;
                tx.forget_destinations(6)
            })
            .expect("written");
        assert_eq!(forgotten, 1);
        assert_eq!(store.read(|db| db.destination(&dead)).expect("read").failures, 0);
        assert_eq!(store.read(|db| db.destination(&room)).expect("read").failures, 9);
    }
}
