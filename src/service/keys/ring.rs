//! Keys at hand: our own, which sign and are published, and other servers', as far as they are in memory. How a
//! statement of keys is read and checked is here too; where missing keys come from is in `fetch.rs`.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, RwLock};

use arc_swap::ArcSwap;
use serde_json::{Map, Value, json};

use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Clock, Millis};
use crate::error::{Error, Result};
use crate::locks::{lock, read, write};
use crate::order::Gather;
use crate::protocol::json::CanonicalObject;
use crate::protocol::signatures::sign::{self, KeyAt, ReplacedKey, SigningKey, VerifyKey};
use crate::protocol::{ServerName, json};
use crate::random;
use crate::service::keys::Keys;
use crate::service::keys::attempts::KeyAttempts;
use crate::store::Store;
use crate::store::servers::server_keys::{StoredKey, StoredReplacedKey};

/// Other servers whose keys are kept in memory.
const SERVERS_IN_MEMORY_MAX: usize = 4096;
/// Most current and most old keys of one statement that are looked at: more than a rotation a month for eight years.
const STATEMENT_KEYS_MAX: usize = 100;
/// "Servers MUST use the lesser of this field and 7 days into the future when determining if a key is valid."
const VALIDITY_MAX_MS: Millis = 7 * DAY_MS;
/// How long our own statement may be relied upon. It is made anew at half of it, so it never has less than an hour
/// left.
const OWN_VALIDITY_MS: Millis = DAY_MS;
const DAY_MS: Millis = 24 * 3_600_000;

/// Our keys, and the ones that we know of others.
pub struct KeyRing {
    server_name: ServerName,
    clock: Clock,
    signer: Arc<ArcSwap<SigningKey>>,
    own: RwLock<Vec<KnownKey>>,
    /// When the first of our own was made, or came to be here: what is older was not signed with any of them.
    since_ms: Millis,
    published: Mutex<Option<OwnStatement>>,
    known: RwLock<BoundedMap<ServerName, ServerKeys, SERVERS_IN_MEMORY_MAX>>,
    pub(in crate::service) attempts: KeyAttempts,
}

/// A public key of some server.
#[derive(Debug, Clone)]
pub(in crate::service) struct KnownKey {
    pub(in crate::service) key_id: String,
    pub(in crate::service) key: VerifyKey,
    pub(in crate::service) valid_until_ms: Millis,
    /// See [`KeyAt`].
    pub(in crate::service) stated_until_ms: Option<Millis>,
    pub(in crate::service) retired: bool,
    /// When we were told of it.
    pub(in crate::service) stated_ms: Millis,
    /// See [`KeyAt`].
    pub(in crate::service) replaced: Vec<ReplacedKey>,
}

impl KnownKey {
    pub(in crate::service) fn at(&self) -> KeyAt<'_> {
        let Self { key, valid_until_ms, stated_until_ms, ref replaced, .. } = *self;
        KeyAt { key, valid_until_ms, stated_until_ms, replaced }
    }

    /// Whether asking anew could not give more: the key is valid then, or its end is settled.
    pub(in crate::service) fn serves(&self, moment: Millis) -> bool {
        self.retired || self.valid_until_ms >= moment
    }
}

/// All known keys of one server; never changed, only replaced.
pub(in crate::service) type ServerKeys = Arc<Vec<KnownKey>>;

struct OwnStatement {
    until: Millis,
    statement: Arc<Map<String, Value>>,
}

impl KeyRing {
    /// Reads our keys from the database; makes the first one at the first start.
    pub fn open(store: &Store, server_name: &ServerName, clock: &Clock) -> Result<Self> {
        let now = clock.now_ms();
        // On the writer's connection, which knows the schema by now: nobody waits for another one to read it.
        let stored = store.write(move |tx| {
            let stored = tx.own_keys()?;
            if stored.iter().any(|key| key.expired_ms.is_none()) {
                return Ok(stored);
            }
            let key = new_key();
            tx.replace_own_key(key.key_id(), &key.seed(), now)?;
            tx.own_keys()
        })?;
        let since_ms = stored.iter().map(|key| key.made_ms).min().unwrap_or(now);
        let (mut own, mut signer) = (Vec::new(), None);
        for stored in stored {
            let key = SigningKey::from_seed(&stored.key_id, stored.seed)?;
            own.push(KnownKey {
                key_id: stored.key_id,
                key: key.verify_key(),
                valid_until_ms: stored.expired_ms.unwrap_or(Millis::MAX),
                stated_until_ms: Some(stored.expired_ms.unwrap_or(Millis::MAX)),
                retired: stored.expired_ms.is_some(),
                stated_ms: now,
                replaced: Vec::new(),
            });
            if stored.expired_ms.is_none() {
                signer = Some(key);
            }
        }
        let signer =
            signer.ok_or_else(|| Error::internal("the signing key that was just made is not there"))?;
        Ok(Self {
            server_name: server_name.clone(),
            clock: clock.clone(),
            signer: Arc::new(ArcSwap::from_pointee(signer)),
            own: RwLock::new(own),
            since_ms,
            published: Mutex::new(None),
            known: RwLock::default(),
            attempts: KeyAttempts::default(),
        })
    }

    /// Where our key in use is to be found at any time, for the federation client.
    pub fn signer(&self) -> Arc<ArcSwap<SigningKey>> {
        self.signer.clone()
    }

    /// Our key in use.
    pub fn signing_key(&self) -> Arc<SigningKey> {
        self.signer.load_full()
    }

    /// When the first of our keys was made, or came to be here.
    pub(in crate::service) fn since_ms(&self) -> Millis {
        self.since_ms
    }

    /// Our own statement of keys, signed, as `GET /_matrix/key/v2/server` answers.
    pub fn own_statement(&self) -> Arc<Map<String, Value>> {
        let now = self.clock.now_ms();
        let mut published = lock(&self.published);
        if let Some(current) = published.as_ref()
            && (OWN_VALIDITY_MS / 2..=OWN_VALIDITY_MS).contains(&(current.until - now))
        {
            return current.statement.clone();
        }
        let until = now + OWN_VALIDITY_MS;
        let (mut current, mut old) = (Map::new(), Map::new());
        for key in read(&self.own).iter() {
            let public = key.key.to_base64();
            if key.retired {
                old.insert(key.key_id.clone(), json!({ "key": public, "expired_ts": key.valid_until_ms }));
            } else {
                current.insert(key.key_id.clone(), json!({ "key": public }));
            }
        }
        let mut statement = Map::new();
        statement.insert("server_name".into(), self.server_name.as_str().into());
        statement.insert("verify_keys".into(), current.into());
        statement.insert("old_verify_keys".into(), old.into());
        statement.insert("valid_until_ts".into(), until.into());
        sign::sign_json(&mut statement, &self.server_name, &self.signer.load());
        let statement = Arc::new(statement);
        *published = Some(OwnStatement { until, statement: statement.clone() });
        statement
    }

    /// A key of any server, ours included, if it is in memory.
    pub(in crate::service) fn in_memory(&self, server: &str, key_id: &str) -> Option<KnownKey> {
        if server == self.server_name.as_str() {
            let own = read(&self.own);
            return own.iter().find(|k| k.key_id == key_id).cloned();
        }
        let known = read(&self.known);
        known.get(server)?.iter().find(|k| k.key_id == key_id).cloned()
    }

    /// Whether the database need not be asked for this server's keys.
    pub(in crate::service) fn knows(&self, server: &str) -> bool {
        read(&self.known).contains_key(server)
    }

    /// Puts what the database has of a server into memory.
    pub(in crate::service) fn remember(
        &self,
        server: &ServerName,
        (stored, replaced): (&[StoredKey], &[StoredReplacedKey]),
    ) {
        let replaced_by = |key_id: &str| {
            let of_that_id = replaced.iter().filter(|old| old.key_id == key_id);
            let read = |old: &StoredReplacedKey| {
                let key = VerifyKey::from_base64(&old.public_key).ok()?;
                Some(ReplacedKey { key, until_ms: old.valid_until_ms })
            };
            of_that_id.filter_map(read).collect()
        };
        let keys = stored.iter().filter_map(|stored| {
            Some(KnownKey {
                key_id: stored.key_id.clone(),
                key: VerifyKey::from_base64(&stored.public_key).ok()?,
                valid_until_ms: stored.valid_until_ms,
                stated_until_ms: Some(stored.valid_until_ms),
                retired: stored.retired,
                stated_ms: stored.stated_ms,
                replaced: replaced_by(&stored.key_id),
            })
        });
        let keys = Arc::new(keys.collect::<Vec<_>>());
        let mut known = write(&self.known);
        // What is needed again is in the database.
        known.insert(server.clone(), keys, |_| Worth::Little);
    }
}

fn new_key() -> SigningKey {
    SigningKey::generate(random::bytes(), &format!("d_{}", random::letters(6)))
}

impl Keys<'_> {
    /// Retires our signing key and makes another. The old one stays published, so that what it signed stays
    /// verifiable. Gives the new key's id.
    pub fn rotate_signing_key(&self) -> Result<String> {
        self.change_signing_key(new_key(), false)
    }

    /// The same with a key that was made elsewhere, or was in use before: the one of a server of this name whose database is
    /// lost, so that what it signed stays verifiable. Of a server that has done nothing yet the key that it has is forgotten.
    ///
    /// Errors: 400 `M_INVALID_PARAM` if another key had that id.
    pub fn sign_with(&self, key: SigningKey) -> Result<String> {
        self.change_signing_key(key, true)
    }

    /// `forgets`: whether the key of a server that has done nothing yet is forgotten.
    fn change_signing_key(&self, key: SigningKey, forgets: bool) -> Result<String> {
        let ring = &self.key_ring;
        let now = self.clock.now_ms();
        let (key_id, seed) = (key.key_id().to_owned(), key.seed());
        let known = read(&ring.own).iter().find(|own| own.key_id == key_id).cloned();
        match known {
            Some(known) if known.key != key.verify_key() => {
                return Err(Error::invalid_param("Another key of this server has that id"));
            }
            Some(known) if !known.retired => return Ok(key_id),
            _ => {}
        }
        let stored_id = key_id.clone();
        let is_first = self.store.write(move |tx| {
            let is_first = forgets && tx.has_done_nothing()?;
            if is_first {
                tx.forget_own_keys()?;
            }
            tx.replace_own_key(&stored_id, &seed, now)?;
            Ok(is_first)
        })?;
        let fresh = KnownKey {
            key_id: key_id.clone(),
            key: key.verify_key(),
            valid_until_ms: Millis::MAX,
            stated_until_ms: Some(Millis::MAX),
            retired: false,
            stated_ms: now,
            replaced: Vec::new(),
        };
        {
            let mut own = write(&ring.own);
            own.retain(|old| !is_first && old.key_id != key_id);
            for old in own.iter_mut().filter(|k| !k.retired) {
                old.retired = true;
                (old.valid_until_ms, old.stated_until_ms) = (now, Some(now));
            }
            own.push(fresh);
        }
        ring.signer.store(Arc::new(key));
        *lock(&ring.published) = None;
        log::info!("the signing key is now {key_id}");
        Ok(key_id)
    }
}

/// What the signatures of a statement cover.
pub(in crate::service) fn signed_part(statement: &CanonicalObject) -> Vec<u8> {
    statement.without(&["signatures", "unsigned"])
}

/// Reads a server's signed statement of its keys. It has to name the server, be signed by one of the keys that it
/// names as current, and by none of them wrongly; times have to be times. Keys of other algorithms are left out.
/// Validity is cut to seven days from `now`.
pub(crate) fn read_statement(
    statement: &CanonicalObject,
    server: &ServerName,
    now: Millis,
) -> std::result::Result<Vec<StoredKey>, String> {
    if statement.string("server_name").as_deref() != Some(server.as_str()) {
        return Err("it speaks for another server".into());
    }
    let until = statement.get("valid_until_ts").and_then(time);
    let until = until.ok_or("it does not say until when it is valid")?.min(now + VALIDITY_MAX_MS);
    let (signed, signatures) = (signed_part(statement), statement.signatures_of(server.as_str()));
    let mut keys = Vec::new();
    for (key_id, stated) in entries(statement, "verify_keys").ok_or("it has no keys")? {
        let Some((public_key, key)) = public_key(&key_id, stated) else { continue };
        if let Some((_, signature)) = signatures.iter().find(|(id, _)| *id == key_id) {
            if !key.verifies(&signed, signature) {
                return Err(format!("its signature with {key_id} is wrong"));
            }
            // The keys that signed come first.
            keys.insert(0, (true, key_id, public_key));
        } else {
            keys.push((false, key_id, public_key));
        }
    }
    if !keys.first().is_some_and(|(signed, ..)| *signed) {
        return Err("none of its keys signed it".into());
    }
    let mut all: Vec<StoredKey> = keys
        .into_iter()
        .map(|(_, key_id, public_key)| StoredKey {
            key_id: key_id.into_owned(),
            public_key,
            valid_until_ms: until,
            retired: false,
            stated_ms: now,
        })
        .collect();
    for (key_id, stated) in entries(statement, "old_verify_keys").into_iter().flatten() {
        let expired = json::member_of(stated, "expired_ts").and_then(time);
        // A key that is current as well is current; one that expires in the future is no old key.
        let is_current = all.iter().any(|k| k.key_id == key_id);
        if let (Some((public_key, _)), Some(expired), false) =
            (public_key(&key_id, stated), expired, is_current)
        {
            let valid_until_ms = expired.min(now);
            let key_id = key_id.into_owned();
            all.push(StoredKey { key_id, public_key, valid_until_ms, retired: true, stated_ms: now });
        }
    }
    Ok(all)
}

/// The bytes in which a statement is stored and passed on: all that its server signed, known or not, since nobody could
/// verify it otherwise; and of the signatures those of the keys that it names.
pub(in crate::service) fn statement_bytes(statement: &CanonicalObject) -> Vec<u8> {
    let server = statement.string("server_name").unwrap_or_default();
    let named: Vec<_> = entries(statement, "verify_keys").into_iter().flatten().map(|(id, _)| id).collect();
    let signatures = statement.signatures_of(&server).into_iter().filter(|(id, _)| named.contains(id));
    let signatures: Map<String, Value> =
        signatures.map(|(id, signature)| (id.into_owned(), signature.into_owned().into())).gather();
    let signatures = json::canonical(&json!({ server.as_ref(): signatures }));
    statement.clone().remove("unsigned").0.with("signatures", &signatures).into_bytes()
}

/// The members of an object in a statement. None if it is no object.
fn entries<'a>(
    statement: &'a CanonicalObject,
    field: &str,
) -> Option<impl Iterator<Item = (Cow<'a, str>, &'a [u8])>> {
    let object = statement.get(field).filter(|value| value.starts_with(b"{"))?;
    let named = |(key, value)| Some((json::string(key)?, value));
    Some(json::members_of(object).filter_map(named).take(STATEMENT_KEYS_MAX))
}

/// A time, which is a positive integer.
fn time(canonical: &[u8]) -> Option<Millis> {
    std::str::from_utf8(canonical).ok()?.parse().ok().filter(|time| *time > 0)
}

fn public_key(key_id: &str, stated: &[u8]) -> Option<(String, VerifyKey)> {
    let version = key_id.strip_prefix("ed25519:")?;
    if version.is_empty() || key_id.len() > 255 {
        return None;
    }
    let key = VerifyKey::from_base64(&json::string(json::member_of(stated, "key")?)?).ok()?;
    Some((key.to_base64(), key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::calls::keys::CANONICAL_STATEMENT_BYTES_MAX;

    const NOW: Millis = 1_800_000_000_000;

    fn server() -> ServerName {
        ServerName::parse("peer.example").expect("a name")
    }

    fn statement(key: &SigningKey, change: impl FnOnce(&mut Map<String, Value>)) -> Map<String, Value> {
        let mut all = Map::new();
        all.insert("server_name".into(), "peer.example".into());
        all.insert("verify_keys".into(), json!({ key.key_id(): { "key": key.public_base64() } }));
        all.insert("valid_until_ts".into(), (NOW + DAY_MS).into());
        change(&mut all);
        sign::sign_json(&mut all, &server(), key);
        all
    }

    fn read_statement(
        statement: &Map<String, Value>,
        server: &ServerName,
        now: Millis,
    ) -> std::result::Result<Vec<StoredKey>, String> {
        let object = CanonicalObject::of(statement);
        let keys = super::read_statement(&object, server, now)?;
        // What is kept is what was signed.
        let (kept, _) = CanonicalObject::read(&statement_bytes(&object)).expect("an object");
        assert_eq!(signed_part(&kept), signed_part(&object));
        assert_eq!(super::read_statement(&kept, server, now).expect("as before").len(), keys.len());
        Ok(keys)
    }

    fn key(version: &str) -> SigningKey {
        SigningKey::generate([7; 32], version)
    }

    #[test]
    fn a_statement_gives_current_and_old_keys_with_their_validity() {
        let old = SigningKey::generate([8; 32], "old");
        let told = statement(&key("a"), |all| {
            let future = NOW + DAY_MS;
            all.insert(
                "old_verify_keys".into(),
                json!({
                    "ed25519:old": { "key": old.public_base64(), "expired_ts": NOW - DAY_MS },
                    "ed25519:odd": { "key": old.public_base64(), "expired_ts": future },
                    "ed25519:a": { "key": old.public_base64(), "expired_ts": 5 },
                    "ed25519:broken": { "key": "AAAA", "expired_ts": 5 },
                    "rsa:x": { "key": "AAAA", "expired_ts": 5 },
                }),
            );
        });
        let read = read_statement(&told, &server(), NOW).expect("a statement");
        let find = |id: &str| read.iter().find(|k| k.key_id == id).map(|k| (k.valid_until_ms, k.retired));
        assert_eq!(find("ed25519:a"), Some((NOW + DAY_MS, false)));
        assert_eq!(find("ed25519:old"), Some((NOW - DAY_MS, true)));
        assert_eq!(find("ed25519:odd"), Some((NOW, true)));
        assert_eq!(read.len(), 3);
    }

    #[test]
    fn what_is_kept_of_a_statement_is_what_its_server_signed() {
        let (own, notary) = (key("a"), ServerName::parse("notary.example").expect("a name"));
        let mut told = statement(&own, |all| {
            all.insert("org.example.field".into(), json!([{}, 1.0]));
        });
        sign::sign_json(&mut told, &notary, &SigningKey::generate([1; 32], "n"));
        told.insert("unsigned".into(), json!({ "age": [[], []] }));
        told["signatures"]["stranger.example"] = json!({ "ed25519:s": "x".repeat(1000) });
        told["signatures"]["peer.example"]["ed25519:other"] = json!("y");
        told["signatures"]["peer.example"]["more"] = json!([1]);
        let kept = statement_bytes(&CanonicalObject::of(&told));
        let kept = json::parse_object(&kept).expect("JSON");
        sign::verify_json(&kept, "peer.example", own.key_id(), &own.verify_key()).expect("still signed");
        assert_eq!(kept["org.example.field"], json!([{}, 1.0]));
        let ids = kept["signatures"]["peer.example"].as_object().expect("an object").keys();
        let ids: Vec<&str> = ids.map(String::as_str).collect();
        assert_eq!((ids, kept["signatures"].as_object().map(Map::len)), (vec!["ed25519:a"], Some(1)));
        assert_eq!(kept.get("unsigned"), None);
    }

    #[test]
    fn as_many_keys_as_are_looked_at_find_room_in_a_statement() {
        let keys: Vec<SigningKey> =
            (0..STATEMENT_KEYS_MAX).map(|n| SigningKey::generate([1; 32], &format!("k{n}"))).collect();
        let mut told = statement(&key("a"), |all| {
            let named = keys.iter().map(|k| (k.key_id().to_owned(), json!({ "key": k.public_base64() })));
            all.insert("verify_keys".into(), Value::Object(named.collect()));
            let old = (0..STATEMENT_KEYS_MAX).map(|n| {
                (format!("ed25519:o{n}"), json!({ "key": key("a").public_base64(), "expired_ts": NOW }))
            });
            all.insert("old_verify_keys".into(), Value::Object(old.collect()));
        });
        keys.iter().for_each(|key| sign::sign_json(&mut told, &server(), key));
        assert_eq!(read_statement(&told, &server(), NOW).expect("believed").len(), 2 * STATEMENT_KEYS_MAX);
        assert!(CanonicalObject::of(&told).as_bytes().len() <= CANONICAL_STATEMENT_BYTES_MAX);
    }

    #[test]
    fn validity_is_cut_to_seven_days() {
        let told = statement(&key("a"), |all| {
            all.insert("valid_until_ts".into(), i64::MAX.into());
        });
        assert_eq!(read_statement(&told, &server(), NOW).expect("read")[0].valid_until_ms, NOW + 7 * DAY_MS);
    }

    #[test]
    fn a_statement_that_is_not_the_servers_own_is_refused() {
        let good = statement(&key("a"), |_| {});
        let other = ServerName::parse("other.example").expect("a name");
        assert!(read_statement(&good, &other, NOW).is_err());

        let mut unsigned = good.clone();
        unsigned.remove("signatures");
        assert!(read_statement(&unsigned, &server(), NOW).is_err());

        let mut changed = good.clone();
        changed.insert("valid_until_ts".into(), (NOW + 2 * DAY_MS).into());
        assert!(read_statement(&changed, &server(), NOW).is_err());

        // Signed, but with a key that it does not name.
        let stranger = SigningKey::generate([9; 32], "stranger");
        let mut foreign = good;
        foreign.remove("signatures");
        sign::sign_json(&mut foreign, &server(), &stranger);
        assert!(read_statement(&foreign, &server(), NOW).is_err());

        for nonsense in [json!(null), json!("soon"), json!(-1), json!(0), json!(1.5)] {
            let told = statement(&key("a"), |all| {
                all.insert("valid_until_ts".into(), nonsense.clone());
            });
            assert!(read_statement(&told, &server(), NOW).is_err(), "{nonsense}");
        }
    }
}
