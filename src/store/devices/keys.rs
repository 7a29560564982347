//! End-to-end keys of our users' devices: identity keys, one-time keys and what was given out of them, fallback keys.
//! All go with their device.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{OptionalExtension, params};

use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::keys::device::{OneTimeKey, SIGNED_CURVE25519, SignedObject};
use crate::store::{Db, Tx};

/// Keys of one device that were given out and are known again: more than a client uploads before it learns what became
/// of them.
pub(in crate::store) const ISSUED_MAX: i64 = 1000;
/// Beyond, the oldest are forgotten, so many at a time.
const ISSUED_FORGOTTEN_AT_ONCE: i64 = 64;

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
            "SELECT algorithm, count(*) FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2 GROUP BY algorithm",
        )?;
        let rows =
            statement.query_map([user.as_str(), device], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
        for row in rows {
            let (algorithm, count) = row?;
            counts.insert(algorithm, count.unsigned_abs());
        }
        Ok(counts)
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

    /// Whether a key of this algorithm can be claimed of the device, at the moment.
    pub fn has_key_to_claim(&self, user: &UserId, device: &str, algorithm: &str) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3)
                 OR EXISTS (SELECT 1 FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3)",
        )?;
        Ok(statement.query_row([user.as_str(), device, algorithm], |row| row.get(0))?)
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
        for table in ["one_time_keys", "issued_one_time_keys", "fallback_keys"] {
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
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut waiting = self.waiting_one_time_keys(user, device)?;
        let mut issued = self.conn().prepare_cached(
            "SELECT digest FROM issued_one_time_keys
             WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3 AND key_id = ?4",
        )?;
        // Behind those that were given out, too, where none is left.
        let mut last = self.conn().prepare_cached(
            "SELECT coalesce(
               (SELECT max(number) FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3),
               (SELECT max(number) FROM issued_one_time_keys WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3),
               0)",
        )?;
        let mut insert = self.conn().prepare_cached(
            "INSERT INTO one_time_keys (user_id, device_id, algorithm, number, key_id, digest, key)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        let (mut numbers, mut outcomes): (HashMap<&str, i64>, _) = (HashMap::new(), Vec::new());
        for key in keys {
            let OneTimeKey { algorithm, key_id, digest, key: text } = key;
            let named = (algorithm.clone(), key_id.clone());
            let is_waiting = waiting.contains_key(&named);
            let known: Option<[u8; 32]> = match waiting.get(&named) {
                Some(known) => Some(*known),
                None => issued
                    .query_row([user.as_str(), device, algorithm, key_id], |row| row.get(0))
                    .optional()?,
            };
            outcomes.push(match known {
                Some(known) if known == *digest => OneTimeKeyOutcome::Repeated,
                Some(_) if is_waiting => {
                    OneTimeKeyOutcome::Taken(self.waiting_one_time_key(user, device, key)?)
                }
                Some(_) => OneTimeKeyOutcome::Taken(None),
                None => {
                    let number = match numbers.get(algorithm.as_str()) {
                        Some(number) => number + 1,
                        None => {
                            let last = last
                                .query_row([user.as_str(), device, algorithm], |row| row.get::<_, i64>(0))?;
                            last + 1
                        }
                    };
                    insert.execute(params![
                        user.as_str(),
                        device,
                        algorithm,
                        number,
                        key_id,
                        digest,
                        text
                    ])?;
                    numbers.insert(algorithm, number);
                    waiting.insert(named, *digest);
                    OneTimeKeyOutcome::Added
                }
            });
        }
        drop((issued, last, insert));
        if !numbers.is_empty() {
            self.key_counts_changed(user);
        }
        Ok(outcomes)
    }

    /// The digests of the one-time keys of a device that wait to be claimed, by algorithm and id.
    fn waiting_one_time_keys(
        &self,
        user: &UserId,
        device: &str,
    ) -> Result<HashMap<(String, String), [u8; 32]>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT algorithm, key_id, digest FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2",
        )?;
        let rows = statement.query_map([user.as_str(), device], |row| {
            Ok(((row.get(0)?, row.get(1)?), row.get::<_, [u8; 32]>(2)?))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The key that waits under the id of another.
    fn waiting_one_time_key(
        &self,
        user: &UserId,
        device: &str,
        other: &OneTimeKey,
    ) -> Result<Option<String>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT key FROM one_time_keys
             WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3 AND key_id = ?4",
        )?;
        let named = [user.as_str(), device, &other.algorithm, &other.key_id];
        Ok(statement.query_row(named, |row| row.get(0)).optional()?)
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

    /// Gives out a key of a device: its oldest one-time key, which nobody gets again, or else its fallback key. Id and key
    /// (a JSON object); none if there is neither.
    pub fn claim_one_time_key(
        &mut self,
        user: &UserId,
        device: &str,
        algorithm: &str,
    ) -> Result<Option<(String, String)>> {
        let of_device = params![user.as_str(), device, algorithm];
        let mut statement = self.conn().prepare_cached(
            "DELETE FROM one_time_keys
             WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3 AND number =
               (SELECT min(number) FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3)
             RETURNING key_id, key, digest, number",
        )?;
        let claimed: Option<(String, String, [u8; 32], i64)> = statement
            .query_row(of_device, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .optional()?;
        if let Some((key_id, key, digest, number)) = claimed {
            drop(statement);
            self.note_issued(user, device, (algorithm, &key_id, number), &digest)?;
            self.key_counts_changed(user);
            return Ok(Some((key_id, key)));
        }
        self.give_fallback_key(user, device, algorithm)
    }

    /// Gives out the fallback key of a device, again and again. Id and key (a JSON object); none if there is none.
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

    /// Remembers that a one-time key was given out, and now and then forgets those that were longest ago if there are many.
    fn note_issued(
        &mut self,
        user: &UserId,
        device: &str,
        (algorithm, key_id, number): (&str, &str, i64),
        digest: &[u8; 32],
    ) -> Result<()> {
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO issued_one_time_keys (user_id, device_id, algorithm, key_id, number, digest)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![user.as_str(), device, algorithm, key_id, number, digest])?;
        if number % ISSUED_FORGOTTEN_AT_ONCE == 0 {
            self.conn()
                .prepare_cached(
                    "DELETE FROM issued_one_time_keys
                     WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3 AND number <= ?4",
                )?
                .execute(params![user.as_str(), device, algorithm, number - ISSUED_MAX])?;
        }
        Ok(())
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

    #[test]
    fn of_the_keys_that_were_given_out_the_last_are_known_again() {
        let (store, alice) = store_with_device();
        let (most, at_once) = (ISSUED_MAX as usize, ISSUED_FORGOTTEN_AT_ONCE as usize);
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
                    let given = tx.claim_one_time_key(&user, "PHONE", SIGNED_CURVE25519)?;
                    assert_eq!(given.map(|(id, _)| id), Some(key.key_id));
                }
            }
            let mut count = tx.conn().prepare("SELECT count(*) FROM issued_one_time_keys")?;
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
                given.extend(tx.claim_one_time_key(&user, "PHONE", SIGNED_CURVE25519)?.map(|(id, _)| id));
            }
            assert_eq!(tx.claim_one_time_key(&user, "PHONE", "other")?, None);
            assert_eq!(tx.claim_one_time_key(&user, "TABLET", SIGNED_CURVE25519)?, None);
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
            tx.claim_one_time_key(&user, "PHONE", SIGNED_CURVE25519)?;
            tx.set_fallback_key(&user, "PHONE", &key(9, 1))?;
            tx.delete_device(&user, "PHONE")?;
            let mut left = 0;
            for table in ["device_keys", "one_time_keys", "issued_one_time_keys", "fallback_keys"] {
                let count = format!("SELECT count(*) FROM {table}");
                left += tx.conn().query_row(&count, [], |row| row.get::<_, i64>(0))?;
            }
            assert!(tx.set_device_keys(&user, "PHONE", &keys).is_err(), "there is no such device");
            Ok(left)
        });
        assert_eq!(left.expect("written"), 0);
    }
}
