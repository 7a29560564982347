//! Signing keys: our own with their secrets, and the public ones of other servers.

use rusqlite::{named_params, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::ServerName;
use crate::store::{Db, Tx};

/// One of our own keys.
pub struct OwnKey {
    /// `ed25519:version`.
    pub key_id: String,
    /// The secret.
    pub seed: [u8; 32],
    /// When it was made here, or brought here.
    pub made_ms: Millis,
    /// When it stopped to sign; none for the one in use.
    pub expired_ms: Option<Millis>,
}

/// A key of another server, as it is kept.
#[derive(Debug, Clone)]
pub struct StoredKey {
    /// `ed25519:version`.
    pub key_id: String,
    /// Unpadded base64.
    pub public_key: String,
    /// Signatures made later do not count.
    pub valid_until_ms: Millis,
    /// Whether it may only verify old events.
    pub retired: bool,
    /// When we were told so.
    pub stated_ms: Millis,
}

/// A key that its server replaced by another of the same id.
#[derive(Debug, Clone)]
pub struct StoredReplacedKey {
    /// `ed25519:version`.
    pub key_id: String,
    /// Unpadded base64.
    pub public_key: String,
    /// Of later than this it signed nothing.
    pub valid_until_ms: Millis,
}

/// Where a statement of keys comes from, and for whom it was fetched.
#[derive(Debug, Clone, Copy)]
pub struct StatementSource {
    /// The server itself said so; else a notary.
    pub direct: bool,
    /// It was fetched for the sake of a server that is in no room with us: the first to go when there are many.
    pub stranger: bool,
}

/// What is known of a signed statement of keys, as a notary passes it on; its text by itself.
pub struct StoredStatement {
    /// The key that the statement was looked up by.
    pub key_id: String,
    /// Its validity.
    pub valid_until_ms: Millis,
    /// Whether it is an old key, whose validity no newer statement extends.
    pub retired: bool,
    /// When the statement was fetched.
    pub fetched_ms: Millis,
    /// Its number. Later ones have higher numbers.
    pub statement: i64,
}

impl Db<'_> {
    /// Our own keys, oldest first.
    pub fn own_keys(&self) -> Result<Vec<OwnKey>> {
        self.rows(
            "SELECT key_id, seed, made_ms, expired_ms FROM signing_keys ORDER BY made_ms, key_id",
            &[],
            |row| {
                Ok(OwnKey {
                    key_id: row.get(0)?,
                    seed: row.get(1)?,
                    made_ms: row.get(2)?,
                    expired_ms: row.get(3)?,
                })
            },
        )
    }

    /// The known keys of a server.
    pub fn server_keys(&self, server: &ServerName) -> Result<Vec<StoredKey>> {
        self.rows(
            "SELECT k.key_id, k.public_key, k.valid_until_ms, k.retired, s.fetched_ms
             FROM server_keys k JOIN key_statements s USING (statement) WHERE k.server = ?1",
            params![server.as_str()],
            |row| {
                Ok(StoredKey {
                    key_id: row.get(0)?,
                    public_key: row.get(1)?,
                    valid_until_ms: row.get(2)?,
                    retired: row.get(3)?,
                    stated_ms: row.get(4)?,
                })
            },
        )
    }

    /// The keys that a server replaced by others of the same id.
    pub fn replaced_server_keys(&self, server: &ServerName) -> Result<Vec<StoredReplacedKey>> {
        self.rows(
            "SELECT key_id, public_key, valid_until_ms FROM replaced_server_keys WHERE server = ?1",
            params![server.as_str()],
            |row| {
                Ok(StoredReplacedKey {
                    key_id: row.get(0)?,
                    public_key: row.get(1)?,
                    valid_until_ms: row.get(2)?,
                })
            },
        )
    }

    /// The statements that a server's known keys come from.
    pub fn key_statements(&self, server: &ServerName) -> Result<Vec<StoredStatement>> {
        self.rows(
            "SELECT k.key_id, k.valid_until_ms, k.retired, s.fetched_ms, s.statement
             FROM server_keys k JOIN key_statements s USING (statement) WHERE k.server = ?1",
            params![server.as_str()],
            |row| {
                Ok(StoredStatement {
                    key_id: row.get(0)?,
                    valid_until_ms: row.get(1)?,
                    retired: row.get(2)?,
                    fetched_ms: row.get(3)?,
                    statement: row.get(4)?,
                })
            },
        )
    }

    /// The text of a statement: JSON as its server signed it.
    pub fn key_statement(&self, number: i64) -> Result<Vec<u8>> {
        let mut statement =
            self.conn().prepare_cached("SELECT json FROM key_statements WHERE statement = ?1")?;
        Ok(statement.query_row([number], |row| row.get(0))?)
    }
}

/// So many keys are kept of one server: those that it named last.
const KEYS_PER_SERVER_MAX: u32 = 400;
/// So many of those that it replaced by others of the same id: who begins anew more often than that loses the past.
const REPLACED_KEYS_PER_SERVER_MAX: u32 = 8;
/// So many statements are kept of all servers together that are in no room with us: those that were fetched last.
const OF_STRANGERS_MAX: u32 = 500;
/// Strangers that go, or turn out to be none, when one comes, so that no single commit has much to do.
const SWEPT_ROWS_MAX: u32 = 5;

impl Tx<'_> {
    /// Retires the key in use, if there is one, and puts another in its place.
    pub fn replace_own_key(&mut self, key_id: &str, seed: &[u8; 32], now: Millis) -> Result<()> {
        self.execute("UPDATE signing_keys SET expired_ms = ?1 WHERE expired_ms IS NULL", params![now])?;
        self.execute(
            "INSERT INTO signing_keys (key_id, seed, made_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET expired_ms = NULL",
            params![key_id, seed, now],
        )?;
        Ok(())
    }

    /// Forgets our keys: nothing that they signed is with anybody.
    pub fn forget_own_keys(&mut self) -> Result<()> {
        self.conn().execute("DELETE FROM signing_keys", [])?;
        Ok(())
    }

    /// Whether nobody has ever had an account here, nor was there a room.
    pub fn has_done_nothing(&self) -> Result<bool> {
        let nobody = "SELECT NOT EXISTS (SELECT 1 FROM users) AND NOT EXISTS (SELECT 1 FROM rooms)";
        Ok(self.conn().query_row(nobody, [], |row| row.get(0))?)
    }

    /// Remembers the keys of a statement. What a server says itself replaces whatever was known of the same
    /// key (another key of that id stays good for what was signed with it before); what a notary passes on does so only
    /// if it is valid for longer, since it may be old. Of a server that never stops naming new keys the latest are kept,
    /// and of strangers without end those that came last.
    pub fn save_server_keys(
        &mut self,
        server: &ServerName,
        keys: &[StoredKey],
        statement: &[u8],
        fetched_ms: Millis,
        source: StatementSource,
    ) -> Result<()> {
        self.execute(
            "INSERT INTO key_statements (server, fetched_ms, stranger, json) VALUES (?1, ?2, ?3 AND NOT EXISTS
             (SELECT 1 FROM key_statements WHERE server = ?1 AND stranger = 0), ?4)",
            params![server.as_str(), fetched_ms, source.stranger, statement],
        )?;
        let id = self.conn().last_insert_rowid();
        if source.direct {
            self.keep_replaced_keys(server, keys, fetched_ms)?;
        }
        let mut save = self.conn().prepare_cached(
            "INSERT INTO server_keys (server, key_id, public_key, valid_until_ms, retired, statement)
             VALUES (:server, :key_id, :public_key, :valid_until, :retired, :statement)
             ON CONFLICT (server, key_id) DO UPDATE SET public_key = excluded.public_key,
               valid_until_ms = excluded.valid_until_ms, retired = excluded.retired, statement = excluded.statement
             WHERE :direct OR (excluded.valid_until_ms > server_keys.valid_until_ms
               AND excluded.public_key = server_keys.public_key AND NOT server_keys.retired)",
        )?;
        for key in keys {
            save.execute(named_params! {
                ":server": server.as_str(), ":key_id": key.key_id, ":public_key": key.public_key,
                ":valid_until": key.valid_until_ms, ":retired": key.retired, ":statement": id, ":direct": source.direct,
            })?;
        }
        drop(save);
        self.sweep_replaced_keys(server)?;
        self.execute(
            "DELETE FROM server_keys WHERE server = ?1 AND key_id IN
             (SELECT key_id FROM server_keys WHERE server = ?1
              ORDER BY statement DESC, retired, valid_until_ms DESC LIMIT -1 OFFSET ?2)",
            params![server.as_str(), KEYS_PER_SERVER_MAX],
        )?;
        self.execute(
            "DELETE FROM key_statements WHERE server = ?1
             AND statement NOT IN (SELECT statement FROM server_keys WHERE server = ?1)",
            params![server.as_str()],
        )?;
        if source.stranger {
            self.forget_strangers_keys()?;
        }
        self.hasten_pending_that_needs(server.as_str())
    }

    /// Takes down which keys are about to be replaced by these, which have the same ids.
    fn keep_replaced_keys(&mut self, server: &ServerName, keys: &[StoredKey], now: Millis) -> Result<()> {
        let mut keep = self.conn().prepare_cached(
            "INSERT INTO replaced_server_keys (server, key_id, public_key, valid_until_ms)
             SELECT server, key_id, public_key, min(valid_until_ms, ?4) FROM server_keys
             WHERE server = ?1 AND key_id = ?2 AND public_key <> ?3
             ON CONFLICT DO UPDATE SET valid_until_ms = excluded.valid_until_ms",
        )?;
        for key in keys {
            keep.execute(params![server.as_str(), key.key_id, key.public_key, now])?;
        }
        Ok(())
    }

    /// Forgets of a server's replaced keys those that are in use again, and if there are too many those that ended first.
    fn sweep_replaced_keys(&mut self, server: &ServerName) -> Result<()> {
        self.execute(
            "DELETE FROM replaced_server_keys WHERE server = ?1 AND (key_id, public_key) IN
             (SELECT key_id, public_key FROM server_keys WHERE server = ?1)",
            params![server.as_str()],
        )?;
        self.execute(
            "DELETE FROM replaced_server_keys WHERE server = ?1 AND (key_id, public_key) IN
             (SELECT key_id, public_key FROM replaced_server_keys WHERE server = ?1
              ORDER BY valid_until_ms DESC LIMIT -1 OFFSET ?2)",
            params![server.as_str(), REPLACED_KEYS_PER_SERVER_MAX],
        )?;
        Ok(())
    }

    /// Forgets the keys of the strangers that were fetched first, if there are too many. Whoever was ever in a room
    /// that we know is none: their events are there to be checked.
    fn forget_strangers_keys(&mut self) -> Result<()> {
        let too_many = {
            let mut statement = self.conn().prepare_cached(
                "SELECT s.server, s.statement, EXISTS (SELECT 1 FROM resident_servers r WHERE r.server = s.server)
                 FROM key_statements s WHERE s.stranger = 1 ORDER BY s.statement DESC LIMIT ?2 OFFSET ?1",
            )?;
            let rows = statement.query_map([OF_STRANGERS_MAX, SWEPT_ROWS_MAX], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, bool>(2)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()?
        };
        for (server, statement, in_a_room) in too_many {
            if in_a_room {
                self.execute(
                    "UPDATE key_statements SET stranger = 0 WHERE statement = ?1",
                    params![statement],
                )?;
                continue;
            }
            self.execute(
                "DELETE FROM server_keys WHERE statement = ?1 AND server = ?2",
                params![statement, server],
            )?;
            self.execute(
                "DELETE FROM replaced_server_keys WHERE server = ?1
                 AND NOT EXISTS (SELECT 1 FROM server_keys WHERE server = ?1)",
                params![server],
            )?;
            self.execute("DELETE FROM key_statements WHERE statement = ?1", params![statement])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Location, Options, Store};

    fn key(public_key: &str, valid_until_ms: Millis, retired: bool) -> StoredKey {
        StoredKey {
            key_id: "ed25519:a".into(),
            public_key: public_key.into(),
            valid_until_ms,
            retired,
            stated_ms: 7,
        }
    }

    #[test]
    fn what_a_server_says_replaces_what_is_known_and_what_a_notary_says_only_extends_it() {
        let us = ServerName::parse("us.example").expect("a name");
        let store =
            Store::open(Location::Memory, &us, Box::new(|_| {}), &Options::default()).expect("a store");
        let save = |key: StoredKey, statement: &'static [u8], direct: bool| {
            let peer = ServerName::parse("peer.example").expect("a name");
            let kept = store.write(move |tx| {
                let source = StatementSource { direct, stranger: false };
                tx.save_server_keys(&peer, &[key], statement, 7, source)?;
                let statement = tx.key_statements(&peer)?.remove(0).statement;
                Ok((tx.server_keys(&peer)?.remove(0), tx.key_statement(statement)?))
            });
            let (key, statement) = kept.expect("kept");
            (key.public_key, key.valid_until_ms, key.retired, String::from_utf8(statement).expect("text"))
        };
        let is =
            |public: &str, until, retired, from: &str| (public.to_owned(), until, retired, from.to_owned());
        assert_eq!(save(key("one", 100, false), b"notary 1", false), is("one", 100, false, "notary 1"));
        assert_eq!(save(key("one", 90, false), b"notary 2", false), is("one", 100, false, "notary 1"));
        assert_eq!(save(key("two", 200, false), b"notary 3", false), is("one", 100, false, "notary 1"));
        assert_eq!(save(key("one", 110, false), b"notary 4", false), is("one", 110, false, "notary 4"));
        assert_eq!(save(key("two", 50, false), b"direct 5", true), is("two", 50, false, "direct 5"));
        assert_eq!(save(key("two", 40, true), b"direct 6", true), is("two", 40, true, "direct 6"));
        assert_eq!(save(key("two", 300, false), b"notary 7", false), is("two", 40, true, "direct 6"));
        let statements = store.read(|db| {
            Ok(db.conn().query_row("SELECT count(*) FROM key_statements", [], |row| row.get::<_, i64>(0))?)
        });
        assert_eq!(statements.expect("a count"), 1, "statements that nothing refers to are gone");
    }

    #[test]
    fn a_server_that_names_ever_new_keys_fills_nothing() {
        let us = ServerName::parse("us.example").expect("a name");
        let store =
            Store::open(Location::Memory, &us, Box::new(|_| {}), &Options::default()).expect("a store");
        let peer = ServerName::parse("peer.example").expect("a name");
        for round in 0..8 {
            let peer = peer.clone();
            let keys: Vec<StoredKey> = (0..100)
                .map(|n| StoredKey { key_id: format!("ed25519:{round}_{n}"), ..key("one", 100, n % 2 == 0) })
                .collect();
            let source = StatementSource { direct: true, stranger: false };
            store.write(move |tx| tx.save_server_keys(&peer, &keys, b"statement", 7, source)).expect("kept");
        }
        let kept = store.read(|db| db.server_keys(&peer)).expect("keys");
        assert_eq!(kept.len(), 400);
        assert!(kept.iter().all(|key| !key.key_id.starts_with("ed25519:3_")), "the oldest are gone");
        assert!(kept.iter().any(|key| key.key_id == "ed25519:7_99"));
    }

    #[test]
    fn a_server_that_replaces_its_key_again_and_again_fills_nothing() {
        let us = ServerName::parse("us.example").expect("a name");
        let store =
            Store::open(Location::Memory, &us, Box::new(|_| {}), &Options::default()).expect("a store");
        let peer = ServerName::parse("peer.example").expect("a name");
        let save = |public_key: String, now: Millis, direct: bool| {
            let peer = peer.clone();
            let keys = [key(&public_key, now + 100, false)];
            let source = StatementSource { direct, stranger: false };
            store
                .write(move |tx| tx.save_server_keys(&peer, &keys, b"statement", now, source))
                .expect("kept");
        };
        let replaced = || {
            let mut replaced = store.read(|db| db.replaced_server_keys(&peer)).expect("keys");
            replaced.sort_by_key(|key| key.valid_until_ms);
            replaced.into_iter().map(|key| (key.public_key, key.valid_until_ms)).collect::<Vec<_>>()
        };
        save("one".into(), 0, true);
        save("two".into(), 50, false);
        assert!(replaced().is_empty(), "a notary replaces nothing");
        save("two".into(), 60, true);
        assert_eq!(replaced(), [("one".into(), 60)]);
        save("three".into(), 500, true);
        assert_eq!(replaced(), [("one".into(), 60), ("two".into(), 160)], "it had ended before");
        save("two".into(), 510, true);
        assert_eq!(replaced(), [("one".into(), 60), ("three".into(), 510)], "it is in use again");
        for n in 0..40 {
            save(format!("key {n}"), 1000 + n, true);
        }
        let last = (31..39).map(|n| (format!("key {n}"), 1001 + n));
        assert_eq!(replaced(), last.collect::<Vec<_>>());
    }

    #[test]
    fn strangers_without_end_take_the_place_of_strangers_and_of_nobody_who_was_in_a_room_with_us() {
        let name = |name: &str| ServerName::parse(name).expect("a name");
        let store = Store::open(
            Location::Memory,
            &name("us.example"),
            Box::new(|_| {}),
            &Options { durable: false, readers: 1, ..Options::default() },
        );
        let store = store.expect("a store");
        let source = |stranger| StatementSource { direct: true, stranger };
        let kept = store.write(move |tx| {
            let keys =
                [key("one", 100, false), StoredKey { key_id: "ed25519:b".into(), ..key("two", 100, false) }];
            // One in a room with us now, one before, one whose key one of us needed, one who comes into a room later.
            let (friend, gone) = (name("friend.example"), name("gone.example"));
            let (needed, late) = (name("needed.example"), name("late.example"));
            let room = tx.pretend_room("!r:us.example", &[&friend, &gone])?;
            tx.pretend_departure(room, &gone)?;
            tx.save_server_keys(&needed, &keys, b"statement", 7, source(false))?;
            for server in [&friend, &gone, &needed, &late] {
                tx.save_server_keys(server, &keys, b"statement", 7, source(true))?;
            }
            for n in 0..2000 {
                if n == 100 {
                    tx.pretend_room("!s:us.example", &[&late])?;
                }
                tx.save_server_keys(&name(&format!("s{n}.example")), &keys, b"statement", 7, source(true))?;
            }
            let count = |sql: &str| tx.conn().query_row(sql, [], |row| row.get::<_, i64>(0));
            let strangers = count("SELECT count(*) FROM key_statements WHERE stranger = 1")?;
            let (statements, all) =
                (count("SELECT count(*) FROM key_statements")?, count("SELECT count(*) FROM server_keys")?);
            for server in [&friend, &gone, &needed, &late, &name("s1999.example")] {
                assert_eq!(tx.server_keys(server)?.len(), 2, "{server}");
            }
            assert!(tx.server_keys(&name("s0.example"))?.is_empty());
            Ok((strangers, statements, all))
        });
        let (strangers, statements, keys) = kept.expect("kept");
        assert_eq!(strangers, i64::from(OF_STRANGERS_MAX));
        assert_eq!((statements, keys), (strangers + 4, 2 * (strangers + 4)));
    }
}
