//! End-to-end keys across servers, both ends: those of our users for other servers; those of other servers' users for our
//! users' clients, from here where their server has told us everything, asked of their server otherwise.
//!
//! Servers are asked at the same time and within one deadline, so that none holds up the others' answers. Who is known to
//! be out of reach is not asked, but told as a failure at once; and so is who does not answer. A list of devices in which
//! something is missing is never answered from: whoever encrypts for it would leave out devices, and nobody would know
//! why they cannot read.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::federation::calls::ClaimedKeys;
use crate::federation::{CallError, CallResult};
use crate::locks::{into_inner, lock};
use crate::order::{self, Gather};
use crate::protocol::keys::cross_signing::CrossSigningKey;
use crate::protocol::keys::device::KeySignature;
use crate::protocol::keys::remote::{REMOTE_DEVICES_BYTES_MAX, REMOTE_DEVICES_MAX, RemoteKeys, ShownKeys};
use crate::protocol::{ServerName, UserId};
use crate::service::devices::Devices;
use crate::service::devices::device_lists::UPDATES_AT_ONCE_MAX;
use crate::service::devices::keys::{ClaimTerms, KeysAsker, Members, QueriedKeys, USERS_AT_ONCE_MAX};
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::service::limits::silent_servers::{AskedFor, PROBE_TIMEOUT, unanswered};
use crate::store::devices::cross_signing::SignatureOfKey;
use crate::store::devices::device_lists::RemoteDeviceList;

/// Servers that are asked at once for one request.
const SERVERS_AT_ONCE_MAX: usize = 16;
/// Users whom one call asks for.
const USERS_PER_CALL_MAX: usize = 1000;
/// What all of them together may answer, with what is known already, in bytes.
const ANSWERS_BYTES_MAX: usize = 64 << 20;
/// What is said of those whose keys are left out for that.
const TOO_MANY: &str = "together with those of others these are too many keys";
/// A server that did not take our last transaction is known to be out of reach for so long; after that somebody may try
/// whether it still is, for a shorter time than others get.
const OUT_OF_REACH_MS: Millis = 5 * 60_000;
/// When a list is fetched first whose server did not answer.
const MISSED_PAUSE_MS: Millis = 20_000;

/// What is known of users' keys.
#[derive(Default)]
pub struct KeysElsewhere {
    /// The devices by user, with whose identity keys are wanted, JSON objects.
    device_keys: BTreeMap<UserId, BTreeMap<String, String>>,
    /// The cross-signing keys.
    cross_signing: BTreeMap<UserId, ShownKeys>,
    /// The signatures that who asks has made of their master keys.
    signatures: BTreeMap<UserId, Vec<SignatureOfKey>>,
    /// The servers that could not be asked or did not answer.
    failures: BTreeMap<ServerName, Error>,
}

/// What is known of the master keys of users of other servers.
#[derive(Default)]
pub struct MasterKeysElsewhere {
    /// The keys.
    pub(super) keys: BTreeMap<UserId, CrossSigningKey>,
    /// As in [`KeysElsewhere`].
    failures: BTreeMap<ServerName, Error>,
}

impl MasterKeysElsewhere {
    /// Why a user's server did not tell their key, if it did not.
    pub(super) fn failure_of(&self, user: &UserId) -> Option<Error> {
        let error = self.failures.get(&user.server())?;
        Some(Error::new(error.errcode(), error.message().to_owned()).with_status(error.status()))
    }
}

/// What was claimed.
pub struct ClaimedElsewhere {
    /// One-time keys by user and device.
    one_time_keys: ClaimedKeys,
    /// As in [`KeysElsewhere`].
    failures: BTreeMap<ServerName, Error>,
}

/// Something about each of some users, by their servers.
type ByServer<T> = BTreeMap<ServerName, BTreeMap<UserId, T>>;

/// One call to one server.
struct KeyCall<W> {
    server: ServerName,
    wanted: W,
}

/// What became of calls.
struct CallOutcomes<W, A> {
    answered: Vec<(KeyCall<W>, A)>,
    failed: Vec<(KeyCall<W>, Error)>,
}

/// A user whose server is asked for their keys.
struct QueriedUser {
    /// The devices that are wanted; none: all.
    device_ids: Vec<String>,
    /// Of whom shares a room with one of us: what was known of their list before. Others are not remembered.
    tracked: Option<Option<RemoteDeviceList>>,
}

impl Devices<'_> {
    /// The identity keys of the devices of other servers' users, all or (not none) those with these ids, and their
    /// cross-signing keys, as far as they can be known until then. Who does not exist has no devices.
    pub fn query_elsewhere(
        &self,
        asker: &UserId,
        wanted: BTreeMap<ServerName, BTreeMap<UserId, Vec<String>>>,
        deadline: Instant,
    ) -> Result<KeysElsewhere> {
        let mut found = KeysElsewhere::default();
        let (unknown, known_bytes) = self.known_keys(wanted, &mut found)?;
        let calls = unknown.into_iter().flat_map(|(server, users)| calls_to(&server, users)).collect();
        let taken = AtomicUsize::new(known_bytes);
        let CallOutcomes { answered, failed } = self.ask_servers(asker, calls, deadline, |call, within| {
            // Of whom we keep the list, all of it is wanted.
            let ids = |user: &QueriedUser| match user.tracked {
                Some(_) => Vec::new(),
                None => user.device_ids.clone(),
            };
            let wanted: BTreeMap<UserId, Vec<String>> =
                call.wanted.iter().map(|(id, user)| (id.clone(), ids(user))).gather();
            let keys = self.federation.query_user_keys(&call.server, &wanted, within)?;
            let bytes = keys.values().map(RemoteKeys::bytes).sum();
            match taken.fetch_add(bytes, Ordering::Relaxed) + bytes <= ANSWERS_BYTES_MAX {
                true => Ok(keys),
                false => Err(CallError::bad(TOO_MANY)),
            }
        });
        let mut missed = Vec::new();
        for (call, error) in failed {
            missed.extend(call.wanted.into_iter().filter_map(|(id, user)| user.tracked.map(|_| id)));
            found.failures.insert(call.server, error);
        }
        let mut kept = Vec::new();
        for (call, mut keys) in answered {
            for (id, QueriedUser { device_ids, tracked }) in call.wanted {
                // Whom their server does not know has no devices. Saying nothing of them would have clients ask for ever.
                let keys = keys.remove(&id).unwrap_or_default();
                found.add(&id, &keys, &device_ids);
                if let Some(before) = tracked {
                    kept.push((id, before, keys));
                }
            }
        }
        self.keep_queried(kept)?;
        self.fetch_missed(missed)?;
        self.store.read(|db| {
            for user in found.cross_signing.keys() {
                found.signatures.insert(user.clone(), db.signatures_of_keys(user, Some(asker))?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Adds the keys of the users that are known completely, and what they come to in bytes; gives the others. Where they are
    /// too much for one answer, the largest are left out, so that nobody takes the others' place.
    fn known_keys(
        &self,
        wanted: ByServer<Vec<String>>,
        found: &mut KeysElsewhere,
    ) -> Result<(ByServer<QueriedUser>, usize)> {
        let users: Vec<(UserId, Vec<String>)> = wanted.into_values().flatten().collect();
        let (mut known, mut unknown) = (Vec::new(), ByServer::new());
        for some in users.chunks(USERS_AT_ONCE_MAX) {
            self.store.read(|db| {
                for (id, device_ids) in some {
                    let list = db.remote_device_list(id)?;
                    if list.as_ref().is_some_and(RemoteDeviceList::is_current) {
                        known.push((db.remote_devices_bytes(id)?, id, device_ids));
                        continue;
                    }
                    let tracked = db.is_of_interest(id)?.then_some(list);
                    let user = QueriedUser { device_ids: device_ids.clone(), tracked };
                    unknown.entry(id.server()).or_default().insert(id.clone(), user);
                }
                Ok(())
            })?;
        }
        order::sort(&mut known);
        let mut taken = 0;
        for some in known.chunks(USERS_AT_ONCE_MAX) {
            self.store.read(|db| {
                for (bytes, id, device_ids) in some {
                    if taken + bytes > ANSWERS_BYTES_MAX {
                        let error = Error::new(ErrCode::TooLarge, TOO_MANY);
                        found.failures.insert(id.server(), error);
                        continue;
                    }
                    let keys = db.remote_keys(id)?;
                    taken += keys.bytes();
                    found.add(id, &keys, device_ids);
                }
                Ok(())
            })?;
        }
        Ok((unknown, taken))
    }

    /// Keeps what servers answered of users with whom one of us shares a room, unless something else was heard of them
    /// meanwhile. Where in the chain of their updates that is they did not say, so that their lists are fetched after it:
    /// until then what is kept is only there to be compared with what comes. Whoever was told otherwise before, or is now,
    /// hears that there is news, since what is fetched may be no news to what is kept.
    fn keep_queried(&self, mut kept: Vec<(UserId, Option<RemoteDeviceList>, RemoteKeys)>) -> Result<()> {
        let due = !kept.is_empty();
        while !kept.is_empty() {
            let sums = kept.iter().scan((0, 0), |(devices, bytes), (_, _, keys)| {
                *devices += keys.devices.len();
                *bytes += keys.bytes();
                Some((*devices, *bytes))
            });
            let fits = |(devices, bytes): &(usize, usize)| {
                *devices <= REMOTE_DEVICES_MAX && *bytes <= REMOTE_DEVICES_BYTES_MAX
            };
            let fitting = sums.take(UPDATES_AT_ONCE_MAX).take_while(fits).count();
            let later = kept.split_off(fitting.max(1));
            let (some, now) = (std::mem::replace(&mut kept, later), self.clock.now_ms());
            self.store.write_lightly(move |tx| {
                for (user, before, keys) in &some {
                    if !tx.is_of_interest(user)? {
                        continue;
                    }
                    let known = tx.remote_device_list(user)?;
                    if known.is_some() && tx.remote_keys(user)? != *keys {
                        tx.devices_changed(user, None)?;
                    }
                    if known != *before {
                        continue;
                    }
                    tx.replace_remote_keys(user, keys)?;
                    let list = known.unwrap_or_default();
                    // What is to be fetched anyway is fetched when that is due.
                    let due_ms = list.due_ms.or(Some(now));
                    tx.set_remote_device_list(user, &RemoteDeviceList { due_ms, ..list })?;
                }
                Ok(())
            })?;
        }
        if due {
            self.scheduler.wake();
        }
        Ok(())
    }

    /// Has the lists of users fetched whose servers did not answer, as soon as these can be reached: clients hear of it then,
    /// and ask again.
    fn fetch_missed(&self, mut missed: Vec<UserId>) -> Result<()> {
        while !missed.is_empty() {
            let later = missed.split_off(missed.len().min(REMOTE_DEVICES_MAX));
            let some = std::mem::replace(&mut missed, later);
            let unknown: Vec<UserId> = self.store.read(|db| {
                let mut unknown = Vec::new();
                for user in some {
                    if db.remote_device_list(&user)?.is_none_or(|list| list.attempts == 0) {
                        unknown.push(user);
                    }
                }
                Ok(unknown)
            })?;
            if unknown.is_empty() {
                continue;
            }
            unknown.iter().for_each(|user| self.scheduler.lists_wait_for(&user.server()));
            let missed_ms = Some(self.clock.now_ms() + MISSED_PAUSE_MS);
            self.store.write_lightly(move |tx| {
                for user in &unknown {
                    let list = tx.remote_device_list(user)?.unwrap_or_default();
                    if !list.is_current() && list.attempts == 0 && tx.is_of_interest(user)? {
                        let due_ms = list.due_ms.or(missed_ms);
                        tx.set_remote_device_list(user, &RemoteDeviceList { due_ms, attempts: 1, ..list })?;
                    }
                }
                Ok(())
            })?;
            self.scheduler.wake();
        }
        Ok(())
    }

    /// Claims a one-time key of each of these devices, for an algorithm each, as far as their servers answer until then.
    /// Nothing is asked for twice: each key that is given out is gone.
    pub fn claim_elsewhere(
        &self,
        asker: &UserId,
        wanted: BTreeMap<ServerName, BTreeMap<UserId, BTreeMap<String, String>>>,
        deadline: Instant,
    ) -> ClaimedElsewhere {
        let calls = wanted.into_iter().flat_map(|(server, users)| calls_to(&server, users)).collect();
        let CallOutcomes { answered, failed } = self.ask_servers(asker, calls, deadline, |call, within| {
            self.federation.claim_user_keys(&call.server, &call.wanted, within)
        });
        let one_time_keys = answered.into_iter().flat_map(|(_, keys)| keys).gather();
        let failures = failed.into_iter().map(|(call, error)| (call.server, error)).gather();
        ClaimedElsewhere { one_time_keys, failures }
    }

    /// The keys of our users' devices for another server, JSON. Who is none of our users is left out. Errors: 413
    /// `M_TOO_LARGE` if that is too much for one answer.
    pub fn keys_for_server(
        &self,
        origin: &ServerName,
        wanted: BTreeMap<String, Vec<String>>,
    ) -> Result<String> {
        let wanted = self.known_here(wanted)?;
        Ok(self.keys_of_local_users(KeysAsker::Server(origin), &wanted)?.into_json(None))
    }

    /// Gives another server a key of each of these devices of our users, for an algorithm each: JSON. Errors: 413
    /// `M_TOO_LARGE` for too many devices. Of which it took too many before, and gets none, are left out: an error would have
    /// who asks there keep away from this server altogether.
    pub fn give_keys_to_server(
        &self,
        origin: &ServerName,
        wanted: BTreeMap<String, BTreeMap<String, String>>,
    ) -> Result<String> {
        let (wanted, now) = (self.known_here(wanted)?, self.clock.steady());
        let (claimed, refused) = self.claim_within(&wanted, |db, user, device| {
            let is_neighbour = db.shares_a_room_with_server(user, origin)?;
            Ok(match self.claim_budget.take(origin, (user, device), is_neighbour, now) {
                true => ClaimTerms::OneTimeKey,
                false if is_neighbour => ClaimTerms::FallbackKeyOrOneOfMany,
                false => ClaimTerms::FallbackKey,
            })
        })?;
        if refused > 0 {
            log::info!("{origin} took too many one-time keys of {refused} devices without a fallback key");
        }
        let mut answer = Members::default();
        answer.push("one_time_keys", |out| claimed.write(out));
        let mut text = String::new();
        answer.write(&mut text);
        Ok(text)
    }

    /// What is wanted of users that there are here.
    fn known_here<V>(&self, wanted: BTreeMap<String, V>) -> Result<BTreeMap<UserId, V>> {
        let ids = wanted.into_iter().filter_map(|(user, what)| Some((UserId::parse(&user).ok()?, what)));
        let mut local: Vec<(UserId, V)> = ids.filter(|(user, _)| self.is_local(user)).collect();
        let mut known = BTreeMap::new();
        while !local.is_empty() {
            let later = local.split_off(local.len().min(USERS_PER_CALL_MAX));
            let some = std::mem::replace(&mut local, later);
            self.store.read(|db| {
                for (user, what) in some {
                    if db.is_active_user(&user)? {
                        known.insert(user, what);
                    }
                }
                Ok(())
            })?;
        }
        Ok(known)
    }

    /// Makes calls to servers, several at the same time, until the deadline. What was answered, and what failed.
    fn ask_servers<W: Send + Sync, A: Send>(
        &self,
        asker: &UserId,
        calls: Vec<KeyCall<W>>,
        deadline: Instant,
        call: impl Fn(&KeyCall<W>, Duration) -> CallResult<A> + Sync,
    ) -> CallOutcomes<W, A> {
        let (down, mut up): (Vec<_>, Vec<_>) =
            calls.into_iter().partition(|call| self.is_out_of_reach(&call.server, AskedFor::Keys));
        let of_down = down.into_iter().map(|call| {
            let error = unanswered(&call.server, "could not be reached lately");
            (call, error)
        });
        let (mut answered, mut failed) = (Vec::new(), of_down.collect::<Vec<_>>());
        // Those that are likely to answer go first, so that they need not wait for those that never will.
        order::sort_by_key(&mut up, |call| !self.outgoing.is_proven(&call.server));
        let (next, answers) = (Mutex::new(up.into_iter()), Mutex::new(Vec::new()));
        let work = || {
            loop {
                // Taken in a statement of its own, so that the lock is not held while the server is asked.
                let asked = lock(&next).next();
                let Some(asked) = asked else { return };
                let answer = self.ask_server(asker, &asked.server, deadline, |within| call(&asked, within));
                lock(&answers).push((asked, answer));
            }
        };
        std::thread::scope(|scope| {
            let waiting = lock(&next).len();
            for _ in 1..SERVERS_AT_ONCE_MAX.min(waiting) {
                let _ = std::thread::Builder::new().name("keys".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
        for (call, answer) in into_inner(answers) {
            match answer {
                Ok(answer) => answered.push((call, answer)),
                Err(error) => failed.push((call, error)),
            }
        }
        CallOutcomes { answered, failed }
    }

    fn ask_server<A>(
        &self,
        asker: &UserId,
        server: &ServerName,
        deadline: Instant,
        call: impl FnOnce(Duration) -> CallResult<A>,
    ) -> Result<A> {
        let asker = Asker::new(AskerId::User(asker.clone()));
        let Some(_slot) = self.request_permits.ask_for_keys(&asker, deadline) else {
            return Err(unanswered(server, "was not asked: this server asks enough of others already"));
        };
        let was_failing = self.outgoing.is_pausing(server);
        let mut left = deadline.saturating_duration_since(Instant::now());
        if was_failing {
            left = left.min(PROBE_TIMEOUT);
        }
        if left.is_zero() {
            return Err(unanswered(server, "was not asked: there was no time left"));
        }
        let answer = self.ask_peer(server, AskedFor::Keys, left, call);
        if was_failing && !answer.as_ref().is_err_and(CallError::is_unreachable) {
            self.peer_spoke(server);
        }
        answer.map_err(|e| {
            log::info!("{server} does not tell keys: {e}");
            e.into_client_error(server)
        })
    }

    /// Whether it is known that a server does not answer this at the moment.
    pub(in crate::service) fn is_out_of_reach(&self, server: &ServerName, what: AskedFor) -> bool {
        let now = self.clock.now_ms();
        self.outgoing.failed_at(server).is_some_and(|at| now - at < OUT_OF_REACH_MS)
            || self.silent_servers.is_silent(server, what, self.clock.steady())
    }
}

/// The calls for what is wanted of a server: one, unless it is very much.
fn calls_to<V>(server: &ServerName, wanted: BTreeMap<UserId, V>) -> Vec<KeyCall<BTreeMap<UserId, V>>> {
    let (mut wanted, mut calls) = (wanted.into_iter().peekable(), Vec::new());
    while wanted.peek().is_some() {
        let some = wanted.by_ref().take(USERS_PER_CALL_MAX).gather();
        calls.push(KeyCall { server: server.clone(), wanted: some });
    }
    calls
}

impl KeysElsewhere {
    /// Adds what is wanted of a user's keys.
    fn add(&mut self, user: &UserId, keys: &RemoteKeys, device_ids: &[String]) {
        let mut devices = BTreeMap::new();
        let wanted: HashSet<&String> = device_ids.iter().collect();
        for device in &keys.devices {
            if device_ids.is_empty() || wanted.contains(&device.device_id) {
                let keys = device.keys_for_clients();
                devices.extend(keys.map(|keys| (device.device_id.clone(), keys)));
            }
        }
        self.device_keys.insert(user.clone(), devices);
        self.cross_signing.insert(user.clone(), keys.cross_signing.clone());
    }

    /// The master keys alone.
    pub(super) fn into_master_keys(self) -> MasterKeysElsewhere {
        let keys = self.cross_signing.into_iter().filter_map(|(user, keys)| Some((user, keys.master?)));
        MasterKeysElsewhere { keys: keys.gather(), failures: self.failures }
    }

    /// Writes the keys into an answer; the failures are given apart.
    pub(super) fn write_into(self, answer: &mut QueriedKeys) -> Members {
        // Each goes as it is written: together they may be large.
        for (user, devices) in self.device_keys {
            let mut of_user = Members::default();
            devices.iter().for_each(|(id, keys)| of_user.push(id, |out| out.push_str(keys)));
            answer.device_keys.push(user.as_str(), |out| of_user.write(out));
        }
        for (user, ShownKeys { master, self_signing }) in &self.cross_signing {
            let signatures = self.signatures.get(user).map(Vec::as_slice).unwrap_or_default();
            if let Some(key) = master {
                let of_it = signatures.iter().filter(|signed| signed.target == key.public_key);
                let of_it: Vec<KeySignature> = of_it.map(|signed| signed.signature.clone()).collect();
                answer.master_keys.push(user.as_str(), |out| key.signed.write(out, user, &of_it, None));
            }
            if let Some(key) = self_signing {
                answer.self_signing_keys.push(user.as_str(), |out| key.signed.write(out, user, &[], None));
            }
        }
        failures(&self.failures)
    }
}

impl ClaimedElsewhere {
    /// Writes the keys into an answer; the failures are given apart.
    pub(super) fn write_into(self, answer: &mut Members) -> Members {
        for (user, devices) in &self.one_time_keys {
            let mut of_user = Members::default();
            for (device, (key_id, key)) in devices {
                let mut keys = Members::default();
                keys.push(key_id, |out| out.push_str(key));
                of_user.push(device, |out| keys.write(out));
            }
            answer.push(user.as_str(), |out| of_user.write(out));
        }
        failures(&self.failures)
    }
}

/// "If any remote homeservers could not be reached, they are recorded here."
fn failures(of: &BTreeMap<ServerName, Error>) -> Members {
    let mut failures = Members::default();
    for (server, error) in of {
        let mut told = error.to_json();
        told["status"] = error.status().into();
        failures.push(server.as_str(), |out| out.push_str(&told.to_string()));
    }
    failures
}
