//! Where the keys of other servers come from: memory, the database, the server itself, notaries; in this order.
//!
//! When a server may be asked is a matter of `attempts.rs`.
//!
//! Whom to believe: a server's own answer, and what the notaries of our settings pass on, are remembered. Any other
//! notary could forge the keys of a server that cannot be reached, by inventing a key that signs itself. The server
//! through which we join a room is asked as a notary for the state of that room alone, where nothing better can be had,
//! and what it says is not remembered. Where it is no notary, a few of the others whom it names are
//! asked likewise: it chose them, and so their word is worth what its own is. An event that was checked with such a key
//! says so ([`Proof::Vouched`]), and the database keeps that.
//!
//! Of our own keys nobody knows more than we do, unless we lost them with everything else: an event with one that we do not
//! have is of a server of our name that was here before. Its keys are had in the same way, for what was made before our
//! first key, and are never remembered: whoever has an account here now made nothing that they signed.
//!
//! [`Proof::Vouched`]: crate::protocol::signatures::verify::Proof::Vouched

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::order::{self, Gather};
use crate::protocol::ServerName;
use crate::protocol::json::CanonicalObject;
use crate::protocol::signatures::sign::{KeyAt, VerifyKey};
use crate::service::keys::Keys;
use crate::service::keys::attempts::{
    AttemptOutcome, AttemptPermission, KeyPurpose, KeyQuestion, NOTARY_ATTEMPTS_PER_ADDRESS_MAX,
};
use crate::service::keys::ring::{KnownKey, read_statement, signed_part, statement_bytes};
use crate::store::Db;
use crate::store::servers::server_keys::{StatementSource, StoredKey, StoredReplacedKey};

/// Servers that are asked at the same time for one bulk of keys.
const SERVERS_AT_ONCE_MAX: usize = 32;
/// Servers in one question to a notary, and questions to it at a time.
const NOTARY_QUERY_SERVERS_MAX: usize = 100;
const NOTARY_QUERIES_AT_ONCE_MAX: usize = 8;
/// From so many servers on, the notaries of our settings are asked before the servers themselves.
const BULK_SERVERS_MIN: usize = 8;
/// Time for the server that shows us a room to say the keys of others.
const RESIDENT_TIMEOUT_MIN: Duration = Duration::from_secs(40);
/// How many of the others whom it names are asked, and in which time, where it is no notary.
const OTHERS_ASKED_MAX: usize = 4;
const OTHERS_TIMEOUT: Duration = Duration::from_secs(20);
/// Most keys of a notary's own that its signatures are checked with.
const NOTARY_KEYS_MAX: usize = 4;
/// When who found no slot for a question should come again.
const RETRY_AFTER_MS: i64 = 5_000;

/// A key that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::service) struct WantedKey {
    pub(in crate::service) server: ServerName,
    pub(in crate::service) key_id: String,
    /// It should be valid at this time; 0 where validity does not matter.
    pub(in crate::service) valid_at: Millis,
}

/// The keys that were found.
#[derive(Default)]
pub(in crate::service) struct FoundKeys {
    keys: HashMap<ServerName, HashMap<String, KnownKey>>,
    refused: bool,
}

impl FoundKeys {
    pub(in crate::service) fn get(&self, server: &str, key_id: &str) -> Option<KeyAt<'_>> {
        self.keys.get(server)?.get(key_id).map(KnownKey::at)
    }

    /// Whether asking anew could not give more.
    pub(in crate::service) fn has(&self, wanted: &WantedKey) -> bool {
        self.keys
            .get(&wanted.server)
            .and_then(|keys| keys.get(&wanted.key_id))
            .is_some_and(|key| key.serves(wanted.valid_at))
    }

    /// Whether a server was not asked for want of a slot: another time there may be one.
    pub(in crate::service) fn lacks_slots(&self) -> bool {
        self.refused
    }

    /// What was found elsewhere, too.
    pub(in crate::service) fn extend(&mut self, other: Self) {
        for (server, keys) in other.keys {
            self.keys.entry(server).or_default().extend(keys);
        }
        self.refused |= other.refused;
    }

    pub(super) fn put(&mut self, server: &ServerName, key: KnownKey) {
        self.keys.entry(server.clone()).or_default().insert(key.key_id.clone(), key);
    }
}

/// Whether keys are wanted for nobody of ours: what our rooms and local users need is kept in any case.
fn is_for_a_stranger(purpose: KeyPurpose<'_>, neighbour: bool) -> bool {
    !neighbour && !matches!(purpose, KeyPurpose::Events)
}

impl Keys<'_> {
    /// Finds as many of the wanted keys as can be had in the time. `residents`: the server that shows us the room whose
    /// state is to be checked, if that is what the keys are for, and others whom it names.
    pub(in crate::service) fn gather_keys(
        &self,
        wanted: &[WantedKey],
        residents: &[ServerName],
        purpose: KeyPurpose<'_>,
        within: Duration,
    ) -> FoundKeys {
        let deadline = Instant::now() + within;
        let mut found = FoundKeys::default();
        self.load_keys(wanted, &mut found);
        let mut missing = missing(wanted, &found);
        let trusted = self.config.notaries.iter().filter(|n| *n != self.server_name()).collect::<Vec<_>>();
        let in_bulk = missing.len() >= BULK_SERVERS_MIN;
        if in_bulk {
            self.ask_notaries(purpose, &trusted, &mut missing, &mut found, deadline);
        }
        let (resident, others) = match residents.split_first() {
            Some((first, others)) => (Some(first).filter(|_| !missing.is_empty()), others),
            None => (None, residents),
        };
        let is_notary = std::thread::scope(|scope| {
            // Of many some are gone, and others slow: what the resident knows is asked for meanwhile.
            let asked = missing.clone();
            // Whoever joins waits for it: it is worth a while even if everybody else takes too long.
            let patience = deadline.max(Instant::now() + RESIDENT_TIMEOUT_MIN);
            let told = resident.filter(|_| in_bulk).map(|resident| {
                let ask = move || self.ask_notary(resident, &asked, patience);
                std::thread::Builder::new().name("keys".into()).spawn_scoped(scope, ask)
            });
            self.ask_servers(&mut missing, &mut found, (purpose, false), deadline);
            if !in_bulk {
                self.ask_notaries_for(purpose, &trusted, &mut missing, &mut found, deadline);
            }
            let told = match (told, resident) {
                (Some(Ok(told)), _) => told.join().unwrap_or_default(),
                (_, Some(resident)) if !missing.is_empty() => {
                    let patience = deadline.max(Instant::now() + RESIDENT_TIMEOUT_MIN);
                    self.ask_notary(resident, &missing, patience)
                }
                _ => Vec::new(),
            };
            let is_notary = !told.is_empty();
            self.use_for_now(told, &mut missing, &mut found);
            is_notary
        });
        if !is_notary {
            self.ask_others(others, &mut missing, &mut found, Instant::now() + OTHERS_TIMEOUT);
        }
        found
    }

    /// Asks a few servers that are no notaries of ours for what is still missing, for now alone.
    fn ask_others(
        &self,
        others: &[ServerName],
        missing: &mut MissingKeys,
        found: &mut FoundKeys,
        deadline: Instant,
    ) {
        for (index, other) in others.iter().take(OTHERS_ASKED_MAX).enumerate() {
            let now = Instant::now();
            if missing.is_empty() || now >= deadline {
                return;
            }
            // Whoever lets us wait leaves time for the others.
            let left = OTHERS_ASKED_MAX.min(others.len()) - index;
            let share = deadline.saturating_duration_since(now) / u32::try_from(left).unwrap_or(u32::MAX);
            let told = self.ask_notary(other, missing, now + share);
            self.use_for_now(told, missing, found);
        }
    }

    /// The wanted keys as far as they are known, or this server says what they are: for who has reason to believe it about
    /// those, and asked everybody else before. Its word is good for now alone.
    pub(in crate::service) fn keys_by_word_of(
        &self,
        voucher: &ServerName,
        wanted: &[WantedKey],
        deadline: Instant,
    ) -> FoundKeys {
        let mut found = FoundKeys::default();
        self.load_keys(wanted, &mut found);
        let mut missing = missing(wanted, &found);
        missing.remove(self.server_name());
        self.ask_others(std::slice::from_ref(voucher), &mut missing, &mut found, deadline);
        found
    }

    /// Asks servers that were silent once more, unless that was done just now.
    pub(in crate::service) fn ask_once_more(&self, wanted: &[&WantedKey], deadline: Instant) {
        let wanted: Vec<WantedKey> = wanted.iter().map(|wanted| (*wanted).clone()).collect();
        let mut found = FoundKeys::default();
        let mut missing = missing(&wanted, &found);
        missing.keys().for_each(|server| self.key_ring.attempts.hasten(server));
        self.ask_servers(&mut missing, &mut found, (KeyPurpose::Events, false), deadline);
    }

    /// The wanted keys as far as they are known, whenever they were valid.
    pub(in crate::service) fn known_keys(&self, wanted: &[WantedKey]) -> FoundKeys {
        let mut found = FoundKeys::default();
        self.load_keys(wanted, &mut found);
        found
    }

    /// What is in memory or in the database.
    fn load_keys(&self, wanted: &[WantedKey], found: &mut FoundKeys) {
        let ring = &self.key_ring;
        let mut unknown: Vec<&ServerName> =
            wanted.iter().map(|w| &w.server).filter(|s| !ring.knows(s.as_str())).collect();
        unknown.retain(|s| *s != self.server_name());
        order::sort(&mut unknown);
        unknown.dedup();
        let stored = || {
            self.store.read(|db| {
                unknown.iter().map(|server| known_to_store(db, server)).collect::<Result<Vec<_>>>()
            })
        };
        // Mostly there is nothing to ask the database for.
        match if unknown.is_empty() { Ok(Vec::new()) } else { stored() } {
            Ok(stored) => self.remember_all(&stored),
            Err(e) => log::warn!("keys of other servers cannot be read: {e}"),
        }
        for wanted in wanted {
            if let Some(key) = ring.in_memory(wanted.server.as_str(), &wanted.key_id) {
                found.put(&wanted.server, key);
            }
        }
    }

    /// Asks the notaries of our settings, in a slot of who wants to know: anybody can name servers that nobody knows.
    fn ask_notaries_for(
        &self,
        purpose: KeyPurpose<'_>,
        notaries: &[&ServerName],
        missing: &mut MissingKeys,
        found: &mut FoundKeys,
        deadline: Instant,
    ) {
        if notaries.is_empty() || missing.is_empty() {
            return;
        }
        let _slot = match purpose {
            KeyPurpose::Request(asker) | KeyPurpose::Notary(asker) => {
                let Some(slot) = self.key_ring.attempts.slot_for_request(asker, deadline) else {
                    found.refused = true;
                    return;
                };
                Some(slot)
            }
            KeyPurpose::Received(_) | KeyPurpose::Events => None,
        };
        self.ask_notaries(purpose, notaries, missing, found, deadline);
    }

    /// Asks each server for its own keys, several at a time. `doubted`: see [`KeyQuestion`].
    pub(super) fn ask_servers(
        &self,
        missing: &mut MissingKeys,
        found: &mut FoundKeys,
        (purpose, doubted): (KeyPurpose<'_>, bool),
        deadline: Instant,
    ) {
        let jobs: Vec<(&ServerName, &Vec<WantedKey>)> =
            missing.iter().filter(|(server, _)| *server != self.server_name()).collect();
        let (next, refused) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            while let Some((server, wanted)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if Instant::now() >= deadline {
                    return;
                }
                if !self.ask_server((server, wanted), purpose, doubted, deadline) {
                    refused.store(true, Ordering::Relaxed);
                }
            }
        };
        let at_once = match purpose {
            KeyPurpose::Notary(_) => NOTARY_ATTEMPTS_PER_ADDRESS_MAX,
            KeyPurpose::Request(_) | KeyPurpose::Received(_) | KeyPurpose::Events => SERVERS_AT_ONCE_MAX,
        };
        if jobs.len() <= 1 {
            work();
        } else {
            std::thread::scope(|scope| {
                for _ in 0..jobs.len().min(at_once) {
                    let thread = std::thread::Builder::new().name("keys".into()).stack_size(512 * 1024);
                    if let Err(e) = thread.spawn_scoped(scope, work) {
                        log::warn!("no thread to fetch keys with: {e}");
                        break;
                    }
                }
            });
        }
        found.refused |= refused.into_inner();
        for (server, wanted) in missing.iter() {
            for wanted in wanted {
                if let Some(key) = self.key_ring.in_memory(server.as_str(), &wanted.key_id) {
                    found.put(server, key);
                }
            }
        }
        prune(missing, found);
    }

    /// Asks one server for its keys. False: there was no slot to do so.
    fn ask_server(
        &self,
        (server, wanted): (&ServerName, &[WantedKey]),
        purpose: KeyPurpose<'_>,
        doubted: bool,
        deadline: Instant,
    ) -> bool {
        let neighbour = self.is_neighbour(server);
        let question = KeyQuestion { server, neighbour, doubted, purpose };
        let mut under_way = match self.key_ring.attempts.begin(question, &self.clock, deadline) {
            AttemptPermission::Go(under_way) => under_way,
            AttemptPermission::Asked | AttemptPermission::NotNow => return true,
            AttemptPermission::NoSlot => return false,
        };
        let left = under_way.until.saturating_duration_since(Instant::now());
        let answer = match self.federation.server_keys(server, left) {
            Ok(answer) => answer,
            Err(e) => {
                log::debug!("keys of {server}: {e}");
                return true;
            }
        };
        let now = self.clock.now_ms();
        match read_statement(&answer, server, now) {
            Ok(keys) => {
                let stranger = is_for_a_stranger(purpose, neighbour);
                self.keep_keys(
                    vec![(server.clone(), keys, answer)],
                    now,
                    StatementSource { direct: true, stranger },
                );
                let helped = wanted.iter().all(|w| {
                    let known = self.key_ring.in_memory(server.as_str(), &w.key_id);
                    known.is_some_and(|k| k.serves(w.valid_at))
                });
                under_way.outcome = if helped { AttemptOutcome::Helped } else { AttemptOutcome::Useless };
            }
            Err(why) => log::warn!("the keys that {server} states are not believed: {why}"),
        }
        true
    }

    fn is_neighbour(&self, server: &ServerName) -> bool {
        self.store.read(|db| db.is_neighbour(server)).unwrap_or_else(|e| {
            log::warn!("whether {server} is in a room with us cannot be read: {e}");
            false
        })
    }

    /// Remembers what these statements say.
    fn keep_keys(&self, statements: Vec<StatedKeys>, now: Millis, source: StatementSource) {
        // What is lost can be asked for again.
        let kept = self.store.write_lightly(move |tx| {
            let mut all = Vec::with_capacity(statements.len());
            for (server, keys, statement) in statements {
                tx.save_server_keys(&server, &keys, &statement_bytes(&statement), now, source)?;
                all.push(known_to_store(tx, &server)?);
            }
            Ok(all)
        });
        match kept {
            Ok(all) => self.remember_all(&all),
            Err(e) => log::log!(e.level(log::Level::Warn), "keys of other servers cannot be kept: {e}"),
        }
    }

    fn remember_all(&self, all: &[KnownToStore]) {
        all.iter().for_each(|(server, keys, replaced)| self.key_ring.remember(server, (keys, replaced)));
    }

    /// Asks the notaries of our settings.
    fn ask_notaries(
        &self,
        purpose: KeyPurpose<'_>,
        notaries: &[&ServerName],
        missing: &mut MissingKeys,
        found: &mut FoundKeys,
        deadline: Instant,
    ) {
        for notary in notaries {
            if missing.is_empty() || Instant::now() >= deadline {
                return;
            }
            let now = self.clock.now_ms();
            let told = self.ask_notary(notary, missing, deadline).into_iter();
            let (ours, told): (Vec<_>, Vec<_>) = told.partition(|(server, ..)| server == self.server_name());
            self.use_for_now(ours, missing, found);
            // A notary has something to say of any server that exists, and anybody can make some.
            let (strangers, others): (Vec<_>, Vec<_>) = told
                .into_iter()
                .partition(|(server, ..)| is_for_a_stranger(purpose, self.is_neighbour(server)));
            for (stranger, told) in [(true, strangers), (false, others)] {
                if !told.is_empty() {
                    self.keep_keys(told, now, StatementSource { direct: false, stranger });
                }
            }
            for wanted in missing.values().flatten() {
                if let Some(key) = self.key_ring.in_memory(wanted.server.as_str(), &wanted.key_id) {
                    found.put(&wanted.server, key);
                }
            }
            prune(missing, found);
        }
    }

    /// Uses what the server says that shows us a room, for what cannot be had otherwise. See the head of this file.
    fn use_for_now(&self, told: Vec<StatedKeys>, missing: &mut MissingKeys, found: &mut FoundKeys) {
        // A key of our name from before us signed nothing that was made since.
        let before_us = self.key_ring.since_ms() - 1;
        for (server, keys, _) in told {
            let latest = if server == *self.server_name() { before_us } else { Millis::MAX };
            let Some(wanted) = missing.get(&server) else { continue };
            for stored in keys.into_iter().filter(|key| wanted.iter().any(|w| w.key_id == key.key_id)) {
                let Ok(key) = VerifyKey::from_base64(&stored.public_key) else { continue };
                let StoredKey { key_id, valid_until_ms, retired, stated_ms, .. } = stored;
                let valid_until_ms = valid_until_ms.min(latest);
                let ours = self.key_ring.in_memory(server.as_str(), &key_id);
                // Of a key that we know ourselves, only its validity may be news.
                if ours.as_ref().is_none_or(|ours| ours.key == key && !ours.retired) {
                    let (stated_until_ms, replaced) =
                        ours.map(|ours| (ours.stated_until_ms, ours.replaced)).unwrap_or_default();
                    let told = KnownKey {
                        key_id,
                        key,
                        valid_until_ms,
                        stated_until_ms,
                        retired,
                        stated_ms,
                        replaced,
                    };
                    found.put(&server, told);
                }
            }
        }
        prune(missing, found);
    }

    /// What a notary says of the missing keys: statements signed by their servers and by the notary.
    fn ask_notary(&self, notary: &ServerName, missing: &MissingKeys, deadline: Instant) -> Vec<StatedKeys> {
        let jobs: Vec<_> = missing.iter().filter(|(server, _)| *server != notary).collect();
        let batches: Vec<_> = jobs.chunks(NOTARY_QUERY_SERVERS_MAX).collect();
        let mut believed = Vec::new();
        for at_once in batches.chunks(NOTARY_QUERIES_AT_ONCE_MAX) {
            let answers: Vec<_> = std::thread::scope(|scope| {
                let left = deadline.saturating_duration_since(Instant::now());
                let ask = |batch| move || self.federation.notary_query(notary, &notary_query(batch), left);
                let (first, others) = (at_once.first(), at_once.iter().skip(1));
                let others: Vec<_> = others
                    .map(|batch| {
                        std::thread::Builder::new().name("keys".into()).spawn_scoped(scope, ask(batch))
                    })
                    .collect();
                let first = first.map(|batch| ask(batch)());
                let others = others.into_iter().filter_map(|thread| thread.ok()?.join().ok());
                first.into_iter().chain(others).collect()
            });
            let mut failed = false;
            for answer in answers {
                match answer {
                    Ok(statements) => believed.extend(self.believable(notary, missing, statements)),
                    Err(e) => {
                        log::debug!("notary {notary}: {e}");
                        failed = true;
                    }
                }
            }
            if failed {
                break;
            }
        }
        believed
    }

    /// The statements of an answer that were asked for and are signed as they should be.
    fn believable(
        &self,
        notary: &ServerName,
        missing: &MissingKeys,
        statements: Vec<CanonicalObject>,
    ) -> Vec<StatedKeys> {
        let keys = self.keys_of_notary(notary, &statements);
        let now = self.clock.now_ms();
        let read = |statement: CanonicalObject| {
            let server = ServerName::parse(&statement.string("server_name")?).ok()?;
            // Nobody asked: of no interest, and a way to fill our database.
            if !missing.contains_key(&server) || !is_signed_by_notary(&statement, notary, &keys) {
                return None;
            }
            match read_statement(&statement, &server, now) {
                Ok(keys) => Some((server, keys, statement)),
                Err(why) => {
                    log::debug!("keys of {server} from {notary} are not believed: {why}");
                    None
                }
            }
        };
        statements.into_par_iter().filter_map(read).collect()
    }

    /// The keys with which a notary signed these statements; asked for once, however many statements there are.
    fn keys_of_notary(&self, notary: &ServerName, statements: &[CanonicalObject]) -> FoundKeys {
        let valid_at = self.clock.now_ms();
        let ids = statements.iter().flat_map(|statement| statement.signatures_of(notary.as_str()));
        let ids: BTreeSet<String> = ids.map(|(id, _)| id.into_owned()).gather();
        let wanted = |key_id: String| WantedKey { server: notary.clone(), key_id, valid_at };
        let wanted: Vec<WantedKey> = ids.into_iter().take(NOTARY_KEYS_MAX).map(wanted).collect();
        let mut found = FoundKeys::default();
        self.load_keys(&wanted, &mut found);
        let mut missing = missing(&wanted, &found);
        let until = Instant::now() + Duration::from_secs(20);
        self.ask_servers(&mut missing, &mut found, (KeyPurpose::Events, false), until);
        found
    }
}

/// For who wants keys of servers that nobody can be asked about just now. 429 `M_LIMIT_EXCEEDED`.
pub(in crate::service) fn too_many_asked() -> Error {
    Error::new(ErrCode::LimitExceeded, "This server asks enough others for their keys already")
        .with_field("retry_after_ms", RETRY_AFTER_MS)
}

/// What the database has of a server: the keys that it states, and those that they replaced.
type KnownToStore = (ServerName, Vec<StoredKey>, Vec<StoredReplacedKey>);

fn known_to_store(db: &Db<'_>, server: &ServerName) -> Result<KnownToStore> {
    Ok((server.clone(), db.server_keys(server)?, db.replaced_server_keys(server)?))
}

/// A statement as a notary told it: whose it is, the keys in it, and itself.
type StatedKeys = (ServerName, Vec<StoredKey>, CanonicalObject);

/// The value of `server_keys` in a question to a notary.
fn notary_query(batch: &[(&ServerName, &Vec<WantedKey>)]) -> Map<String, Value> {
    let criteria =
        |wanted: &WantedKey| (wanted.key_id.clone(), json!({ "minimum_valid_until_ts": wanted.valid_at }));
    let of_server = |wanted: &Vec<WantedKey>| Value::Object(wanted.iter().map(criteria).gather());
    batch.iter().map(|(server, wanted)| (server.as_str().to_owned(), of_server(wanted))).gather()
}

fn is_signed_by_notary(statement: &CanonicalObject, notary: &ServerName, keys: &FoundKeys) -> bool {
    let signed = signed_part(statement);
    let signatures = statement.signatures_of(notary.as_str());
    signatures.iter().take(NOTARY_KEYS_MAX).any(|(id, signature)| {
        keys.get(notary.as_str(), id).is_some_and(|known| known.key.verifies(&signed, signature))
    })
}

/// Wanted keys that are not at hand, by server.
pub(super) type MissingKeys = BTreeMap<ServerName, Vec<WantedKey>>;

fn missing(wanted: &[WantedKey], found: &FoundKeys) -> MissingKeys {
    let mut missing = MissingKeys::new();
    for wanted in wanted.iter().filter(|w| !found.has(w)) {
        let of_server = missing.entry(wanted.server.clone()).or_default();
        if !of_server.contains(wanted) {
            of_server.push(wanted.clone());
        }
    }
    missing
}

fn prune(missing: &mut MissingKeys, found: &FoundKeys) {
    missing.retain(|_, wanted| {
        wanted.retain(|w| !found.has(w));
        !wanted.is_empty()
    });
}
