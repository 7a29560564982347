//! End-to-end keys of our users' devices: identity keys, one-time keys and what was given out of them, fallback keys.
//! All go with their device.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use rusqlite::{OptionalExtension, params};

use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::keys::device::{OneTimeKey, SIGNED_CURVE25519, SignedObject};
use crate::store::{Db, Tx};

/// Keys of one device that were given out and are known again: more than a client uploads before it learns what became
/// of them.
pub(in crate::store) const ISSUED_MAX: i64 = 1000;
/// Beyond, the oldest are forgotten; so many claims apart.
const ISSUED_TIDIED_AT_ONCE: i64 = 64;

/// A device with its identity keys.
#[derive(Debug, Clone)]
pub struct DeviceWithKeys {
    /// Its id.
    pub device_id: String,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// The keys.
    pub keys: SignedObject,
}

/// The row id of the one-time keys of a device and algorithm.
pub type PoolKey = i64;

/// What can be claimed of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyToClaim {
    /// A one-time key of this pool.
    OneTime(PoolKey),
    /// The fallback key.
    Fallback,
}

/// How far the one-time keys of a device and algorithm were given out.
struct Pool {
    pool: PoolKey,
    issued: i64,
    last: i64,
    /// Whether some were added.
    is_changed: bool,
}

/// What became of a one-time key that was uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OneTimeKeyOutcome {
    /// It is there to be claimed.
    Added,
    /// It was there already, or was given out before: nothing has changed.
    Repeated,
    /// There is, or was, another key of this id. With the other one, if it was not given out yet.
    Taken(Option<String>),
}

impl Db<'_> {
    /// How many one-time keys of each algorithm the device has left. That for Olm is always told, since clients make new
    /// ones by it.
    pub fn one_time_key_counts(&self, user: &UserId, device: &str) -> Result<BTreeMap<String, u64>> {
        let mut counts = BTreeMap::from([(SIGNED_CURVE25519.to_owned(), 0)]);
        let mut statement = self.conn().prepare_cached(
            "SELECT algorithm, last - issued FROM one_time_key_pools
             WHERE user_id = ?1 AND device_id = ?2 AND last > issued",
        )?;
        let rows =
            statement.query_map([user.as_str(), device], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
        for row in rows {
            let (algorithm, count) = row?;
            counts.insert(algorithm, count.unsigned_abs());
        }
        Ok(counts)
    }

    /// Of how many algorithms the device has one-time keys, or had, or fallback keys, whichever is more.
    pub fn most_algorithms_of_keys(&self, user: &UserId, device: &str) -> Result<usize> {
        let mut statement = self.conn().prepare_cached(
            "SELECT max((SELECT count(*) FROM one_time_key_pools WHERE user_id = ?1 AND device_id = ?2),
                        (SELECT count(*) FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2))",
        )?;
        let most: i64 = statement.query_row([user.as_str(), device], |row| row.get(0))?;
        Ok(usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// The algorithms of which the device has a fallback key that was never given out.
    pub fn unused_fallback_key_types(&self, user: &UserId, device: &str) -> Result<Vec<String>> {
        self.rows(
            "SELECT algorithm FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2 AND used = 0 ORDER BY 1",
            params![user.as_str(), device],
            |row| row.get(0),
        )
    }

    /// The identity keys of one of our users' devices.
    pub fn keys_of_device(&self, user: &UserId, device: &str) -> Result<Option<SignedObject>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT keys, signatures FROM device_keys WHERE user_id = ?1 AND device_id = ?2",
        )?;
        let keys = statement.query_row([user.as_str(), device], |row| {
            Ok(SignedObject { object: row.get(0)?, signatures: row.get(1)? })
        });
        Ok(keys.optional()?)
    }

    /// The devices of one of our users that have identity keys, in the order of their ids.
    pub fn devices_with_keys(&self, user: &UserId) -> Result<Vec<DeviceWithKeys>> {
        self.rows(
            "SELECT k.device_id, d.display_name, k.keys, k.signatures
             FROM device_keys k JOIN devices d USING (user_id, device_id) WHERE k.user_id = ?1 ORDER BY 1",
            params![user.as_str()],
            |row| {
                Ok(DeviceWithKeys {
                    device_id: row.get(0)?,
                    display_name: row.get(1)?,
                    keys: SignedObject { object: row.get(2)?, signatures: row.get(3)? },
                })
            },
        )
    }

    /// What can be claimed of the device at the moment, of this algorithm.
    pub fn key_to_claim(&self, user: &UserId, device: &str, algorithm: &str) -> Result<Option<KeyToClaim>> {
        let of_device = [user.as_str(), device, algorithm];
        if let Some(pool) = self.pool(of_device)?
            && pool.issued < pool.last
        {
            return Ok(Some(KeyToClaim::OneTime(pool.pool)));
        }
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3",
        )?;
        Ok(statement.exists(of_device)?.then_some(KeyToClaim::Fallback))
    }

    /// The pool of a user's device and an algorithm.
    fn pool(&self, of_device: [&str; 3]) -> Result<Option<Pool>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT pool, issued, last FROM one_time_key_pools
             WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3",
        )?;
        let pool = statement.query_row(of_device, |row| {
            Ok(Pool { pool: row.get(0)?, issued: row.get(1)?, last: row.get(2)?, is_changed: false })
        });
        Ok(pool.optional()?)
    }
}

impl Tx<'_> {
    /// Keeps the identity keys of a device that there is.
    pub fn set_device_keys(&mut self, user: &UserId, device: &str, keys: &SignedObject) -> Result<()> {
        self.execute(
            "INSERT OR REPLACE INTO device_keys (user_id, device_id, keys, signatures) VALUES (?1, ?2, ?3, ?4)",
            params![user.as_str(), device, &keys.object, &keys.signatures],
        )?;
        Ok(())
    }

    /// Forgets the one-time and fallback keys of a device, and which were given out: whoever has its identity keys now
    /// does not know them.
    pub fn forget_one_time_keys(&mut self, user: &UserId, device: &str) -> Result<()> {
        for table in ["one_time_key_pools", "fallback_keys"] {
            self.execute(
                &format!("DELETE FROM {table} WHERE user_id = ?1 AND device_id = ?2"),
                params![user.as_str(), device],
            )?;
        }
        self.key_counts_changed(user);
        Ok(())
    }

    /// Every answer of a `/sync` tells how many there are, that of one that waits now too.
    fn key_counts_changed(&mut self, user: &UserId) {
        self.next_stream();
        self.wake_user(user);
    }

    /// Puts one-time keys behind those that the device has uploaded before, but for those whose id is or was in use. What
    /// became of each.
    pub fn add_one_time_keys(
        &mut self,
        user: &UserId,
        device: &str,
        keys: &[OneTimeKey],
    ) -> Result<Vec<OneTimeKeyOutcome>> {
        let mut known = self.conn().prepare_cached(
            "SELECT number, digest, key FROM one_time_keys WHERE pool = ?1 AND key_id = ?2",
        )?;
        let mut insert = self.conn().prepare_cached(
            "INSERT INTO one_time_keys (pool, number, key_id, digest, key) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let (mut pools, mut outcomes): (HashMap<&str, Pool>, _) = (HashMap::new(), Vec::new());
        for key in keys {
            let OneTimeKey { algorithm, key_id, digest, key: text } = key;
            let pool = match pools.entry(algorithm.as_str()) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(free) => free.insert(self.begin_pool(user, device, algorithm)?),
            };
            let known: Option<(i64, [u8; 32], String)> = known
                .query_row(params![pool.pool, key_id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            outcomes.push(match known {
                Some((_, known, _)) if known == *digest => OneTimeKeyOutcome::Repeated,
                Some((number, _, known)) => {
                    OneTimeKeyOutcome::Taken(Some(known).filter(|_| number > pool.issued))
                }
                None => {
                    pool.last += 1;
                    pool.is_changed = true;
                    insert.execute(params![pool.pool, pool.last, key_id, digest, text])?;
                    OneTimeKeyOutcome::Added
                }
            });
        }
        drop((known, insert));
        for pool in pools.values().filter(|pool| pool.is_changed) {
            let last = params![pool.pool, pool.last];
            self.execute("UPDATE one_time_key_pools SET last = ?2 WHERE pool = ?1", last)?;
            self.key_counts_changed(user);
        }
        Ok(outcomes)
    }

    /// The pool of a device that there is.
    fn begin_pool(&mut self, user: &UserId, device: &str, algorithm: &str) -> Result<Pool> {
        let of_device = [user.as_str(), device, algorithm];
        if let Some(pool) = self.pool(of_device)? {
            return Ok(pool);
        }
        let pool = self.next_stream();
        self.execute(
            "INSERT INTO one_time_key_pools (pool, user_id, device_id, algorithm) VALUES (?1, ?2, ?3, ?4)",
            params![pool, user.as_str(), device, algorithm],
        )?;
        Ok(Pool { pool, issued: 0, last: 0, is_changed: false })
    }

    /// Puts a fallback key in the place of the one before it. The same again changes nothing, also not that it was used.
    pub fn set_fallback_key(&mut self, user: &UserId, device: &str, key: &OneTimeKey) -> Result<()> {
        self.execute(
            "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, key) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET key_id = excluded.key_id, key = excluded.key, used = 0
             WHERE key_id <> excluded.key_id OR key <> excluded.key",
            params![user.as_str(), device, &key.algorithm, &key.key_id, &key.key],
        )?;
        self.key_counts_changed(user);
        Ok(())
    }

    /// Gives out the oldest one-time key of a pool, which nobody gets again. Id and key (JSON); none if there is none any
    /// more beside those that are to be `left`.
    pub fn claim_one_time_key(
        &mut self,
        user: &UserId,
        pool: PoolKey,
        left: i64,
    ) -> Result<Option<(String, String)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT number, key_id, key FROM one_time_key_pools p JOIN one_time_keys k USING (pool)
             WHERE p.pool = ?1 AND number = issued + 1 AND last - issued > ?2",
        )?;
        let claimed: Option<(i64, String, String)> = statement
            .query_row([pool, left], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((number, key_id, key)) = claimed else { return Ok(None) };
        drop(statement);
        self.execute("UPDATE one_time_key_pools SET issued = ?2 WHERE pool = ?1", params![pool, number])?;
        if number % ISSUED_TIDIED_AT_ONCE == 0 {
            self.tidy_issued(pool, number)?;
        }
        self.key_counts_changed(user);
        Ok(Some((key_id, key)))
    }

    /// Keeps of keys that were given out what tells them again, and forgets those that were longest ago if there are many.
    fn tidy_issued(&mut self, pool: PoolKey, number: i64) -> Result<()> {
        self.execute(
            "UPDATE one_time_keys SET key = '' WHERE pool = ?1 AND number BETWEEN ?2 AND ?3",
            params![pool, number - ISSUED_TIDIED_AT_ONCE + 1, number],
        )?;
        self.execute(
            "DELETE FROM one_time_keys WHERE pool = ?1 AND number <= ?2",
            params![pool, number - ISSUED_MAX],
        )?;
        Ok(())
    }

    /// Gives out the fallback key of a device, again and again. Id and key (JSON); none if there is none.
    pub fn give_fallback_key(
        &mut self,
        user: &UserId,
        device: &str,
        algorithm: &str,
    ) -> Result<Option<(String, String)>> {
        let of_device = params![user.as_str(), device, algorithm];
        let mut statement = self.conn().prepare_cached(
            "SELECT key_id, key, used FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3",
        )?;
        let fallback: Option<(String, String, bool)> =
            statement.query_row(of_device, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
        let Some((key_id, key, used)) = fallback else { return Ok(None) };
        drop(statement);
        if !used {
            self.key_counts_changed(user);
            self.conn()
                .prepare_cached(
                    "UPDATE fallback_keys SET used = 1 WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3",
                )?
                .execute(of_device)?;
        }
        Ok(Some((key_id, key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ServerName;
    use crate::store::accounts::devices::NewSession;
    use crate::store::{Location, Options, Store};

    fn key(id: usize, version: u8) -> OneTimeKey {
        let key = format!("{{\"key\":\"{id}/{version}\"}}");
        OneTimeKey {
            algorithm: SIGNED_CURVE25519.to_owned(),
            key_id: format!("K{id}"),
            digest: [version; 32],
            key,
        }
    }

    fn store_with_device() -> (Store, UserId) {
        let us = ServerName::parse("us.example").expect("a name");
        let store =
            Store::open(Location::Memory, &us, Box::new(|_| {}), &Options::default()).expect("a store");
        let alice = UserId::parse("@alice:us.example").expect("an id");
        let (user, session) =
            (alice.clone(), NewSession { access: [1; 32], refresh: None, expires_ms: None });
        store
            .write(move |tx| {
                tx.create_account(&user, None, false, 0)?;
                tx.log_in_device(&user, "PHONE", None, &session)
            })
            .expect("a device");
        (store, alice)
    }

    /// Claims a key as the verb does.
    fn claim(
        tx: &mut Tx<'_>,
        user: &UserId,
        device: &str,
        algorithm: &str,
    ) -> Result<Option<(String, String)>> {
        match tx.key_to_claim(user, device, algorithm)? {
            Some(KeyToClaim::OneTime(pool)) => tx.claim_one_time_key(user, pool, 0),
            Some(KeyToClaim::Fallback) => tx.give_fallback_key(user, device, algorithm),
            None => Ok(None),
        }
    }

    #[test]
    fn of_the_keys_that_were_given_out_the_last_are_known_again() {
        let (store, alice) = store_with_device();
        let (most, at_once) = (ISSUED_MAX as usize, ISSUED_TIDIED_AT_ONCE as usize);
        let many = most + 5 * at_once - 1;
        let (user, rounds) = (alice.clone(), many);
        let issued = store.write(move |tx| {
            // By one and by several, so that the numbers go on where none is left, and where some are.
            let mut ids = 0..rounds;
            while let Some(id) = ids.next() {
                let more = if id % 3 == 0 { ids.next() } else { None };
                let keys: Vec<OneTimeKey> =
                    [Some(id), more].into_iter().flatten().map(|id| key(id, 1)).collect();
                tx.add_one_time_keys(&user, "PHONE", &keys)?;
                for key in keys {
                    let given = claim(tx, &user, "PHONE", SIGNED_CURVE25519)?;
                    assert_eq!(given.map(|(id, _)| id), Some(key.key_id));
                }
            }
            let mut count = tx.conn().prepare("SELECT count(*) FROM one_time_keys")?;
            Ok(count.query_row([], |row| row.get::<_, i64>(0))?)
        });
        let issued = issued.expect("written") as usize;
        assert!((most..most + at_once).contains(&issued), "{issued}");
        let user = alice.clone();
        let outcomes = store.write(move |tx| {
            let first = many - most;
            let keys = [key(0, 1), key(first, 1), key(first, 2), key(many - 1, 1)];
            tx.add_one_time_keys(&user, "PHONE", &keys)
        });
        use OneTimeKeyOutcome::{Added, Repeated, Taken};
        assert_eq!(outcomes.expect("written"), [Added, Repeated, Taken(None), Repeated]);
    }

    #[test]
    fn an_id_stands_for_one_key_within_an_upload_and_from_one_to_the_next() {
        let (store, alice) = store_with_device();
        let user = alice.clone();
        let outcomes = store.write(move |tx| {
            let first =
                tx.add_one_time_keys(&user, "PHONE", &[key(1, 1), key(1, 1), key(1, 2), key(2, 1)])?;
            let again = tx.add_one_time_keys(&user, "PHONE", &[key(2, 2), key(2, 1), key(3, 1)])?;
            assert_eq!(tx.one_time_key_counts(&user, "PHONE")?[SIGNED_CURVE25519], 3);
            assert!(tx.add_one_time_keys(&user, "PHONE", &[])?.is_empty());
            Ok((first, again))
        });
        use OneTimeKeyOutcome::{Added, Repeated, Taken};
        let (first, again) = outcomes.expect("written");
        assert_eq!(first, [Added, Repeated, Taken(Some(key(1, 1).key)), Added]);
        assert_eq!(again, [Taken(Some(key(2, 1).key)), Repeated, Added]);
    }

    #[test]
    fn keys_are_given_out_in_the_order_of_their_upload_and_then_the_fallback_key_again_and_again() {
        let (store, alice) = store_with_device();
        let user = alice.clone();
        let given = store.write(move |tx| {
            for id in [3, 1, 2] {
                let added = tx.add_one_time_keys(&user, "PHONE", &[key(id, 1)])?;
                assert_eq!(added, [OneTimeKeyOutcome::Added]);
            }
            tx.set_fallback_key(&user, "PHONE", &key(9, 1))?;
            assert_eq!(tx.one_time_key_counts(&user, "PHONE")?[SIGNED_CURVE25519], 3);
            assert_eq!(tx.unused_fallback_key_types(&user, "PHONE")?, [SIGNED_CURVE25519]);
            let mut given = Vec::new();
            for _ in 0..5 {
                given.extend(claim(tx, &user, "PHONE", SIGNED_CURVE25519)?.map(|(id, _)| id));
            }
            assert_eq!(claim(tx, &user, "PHONE", "other")?, None);
            assert_eq!(claim(tx, &user, "TABLET", SIGNED_CURVE25519)?, None);
            // The same fallback key again is still a used one; another one is not.
            tx.set_fallback_key(&user, "PHONE", &key(9, 1))?;
            assert!(tx.unused_fallback_key_types(&user, "PHONE")?.is_empty());
            tx.set_fallback_key(&user, "PHONE", &key(10, 1))?;
            assert_eq!(tx.unused_fallback_key_types(&user, "PHONE")?, [SIGNED_CURVE25519]);
            Ok(given)
        });
        assert_eq!(given.expect("written"), ["K3", "K1", "K2", "K9", "K9"]);
    }

    #[test]
    fn keys_go_with_their_device() {
        let (store, alice) = store_with_device();
        let user = alice.clone();
        let left = store.write(move |tx| {
            let keys = SignedObject { object: "{\"user_id\":\"x\"}".into(), signatures: "{}".into() };
            tx.set_device_keys(&user, "PHONE", &keys)?;
            tx.add_one_time_keys(&user, "PHONE", &[key(1, 1), key(2, 1)])?;
            claim(tx, &user, "PHONE", SIGNED_CURVE25519)?;
            tx.set_fallback_key(&user, "PHONE", &key(9, 1))?;
            tx.delete_device(&user, "PHONE")?;
            let mut left = 0;
            for table in ["device_keys", "one_time_key_pools", "one_time_keys", "fallback_keys"] {
                let count = format!("SELECT count(*) FROM {table}");
                left += tx.conn().query_row(&count, [], |row| row.get::<_, i64>(0))?;
            }
            assert!(tx.set_device_keys(&user, "PHONE", &keys).is_err(), "there is no such device");
            Ok(left)
        });
        assert_eq!(left.expect("written"), 0);
    }
}
