//! Keys that signatures contradict. A server that begins anew under the id that its key always has (some give all keys the
//! same) signs with another key than the one that we have of it, and would be refused until that one ends.
//!
//! Only the server itself may say that it has another key, asked by its name over TLS; no notary, and none that shows us a
//! room. And since anybody can make wrong signatures in its name, it is asked no more often than every few minutes
//! (`attempts.rs`), in the slots of who brought the signature, and not about events that are older than the statement
//! that its key is from: what came later does not explain them. What it signed before stays good
//! ([`ReplacedKey`](crate::protocol::signatures::sign::ReplacedKey)).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use crate::clock::Millis;
use crate::locks::{into_inner, lock};
use crate::protocol::ServerName;
use crate::protocol::signatures::verify::SignatureError;
use crate::service::keys::Keys;
use crate::service::keys::attempts::{DOUBT_PAUSE_MS, KeyPurpose, KeyQuestion};
use crate::service::keys::fetch::{FoundKeys, MissingKeys, WantedKey};
use crate::service::keys::ring::KnownKey;
use crate::service::limits::silent_servers::AskedFor;

/// Clocks differ by so much: keys are asked for that are valid so much later than now, and none is doubted for less.
pub(super) const CLOCK_SKEW_MS: Millis = 10 * 60_000;

/// Wrong signatures: whose, with which key, and when the last of what has one was made.
#[derive(Default)]
pub(in crate::service) struct Doubts(Mutex<HashMap<(ServerName, String), Millis>>);

impl Doubts {
    /// Passes on what came of a check, and takes down whether it was a signature that was wrong.
    pub(in crate::service) fn noted<T>(
        &self,
        checked: Result<T, SignatureError>,
    ) -> Result<T, SignatureError> {
        if let Err(SignatureError::Wrong(server, key_id, at)) = &checked {
            let mut all = lock(&self.0);
            let latest = all.entry((server.clone(), key_id.clone())).or_insert(*at);
            *latest = (*latest).max(*at);
        }
        checked
    }
}

impl Keys<'_> {
    /// Checks something with the keys that were found for it; if signatures are wrong because keys were replaced, once
    /// more with those that their servers have now. `purpose`: what it says of who brought it.
    pub(in crate::service) fn check_with<T>(
        &self,
        found: &mut FoundKeys,
        purpose: KeyPurpose<'_>,
        deadline: Instant,
        check: impl Fn(&FoundKeys, &Doubts) -> T,
    ) -> T {
        let doubts = Doubts::default();
        let checked = check(found, &doubts);
        if self.replace_keys(doubts, found, purpose, deadline) {
            return check(found, &Doubts::default());
        }
        checked
    }

    /// The key that a server signs requests with instead of this one, which its request is not signed with.
    pub(super) fn key_instead_of(
        &self,
        server: &ServerName,
        known: KnownKey,
        purpose: KeyPurpose<'_>,
        deadline: Instant,
    ) -> Option<KnownKey> {
        let (key_id, mut found) = (known.key_id.clone(), FoundKeys::default());
        found.put(server, known);
        let doubts = HashMap::from([((server.clone(), key_id.clone()), self.clock.now_ms())]);
        let is_another = self.replace_keys(Doubts(Mutex::new(doubts)), &mut found, purpose, deadline);
        is_another.then(|| self.key_ring.in_memory(server.as_str(), &key_id)).flatten()
    }

    /// Asks the servers about keys that are in doubt. Whether one of those that were found is another now.
    fn replace_keys(
        &self,
        doubts: Doubts,
        found: &mut FoundKeys,
        purpose: KeyPurpose<'_>,
        deadline: Instant,
    ) -> bool {
        let doubts = into_inner(doubts.0);
        let mut doubted = MissingKeys::new();
        for ((server, key_id), at) in &doubts {
            if self.is_doubtful(server, key_id, *at, purpose) {
                let (key_id, valid_at) = (key_id.clone(), *at);
                let wanted = WantedKey { server: server.clone(), key_id, valid_at };
                doubted.entry(server.clone()).or_default().push(wanted);
            }
        }
        if !doubted.is_empty() {
            self.ask_servers(&mut doubted, &mut FoundKeys::default(), (purpose, true), deadline);
        }
        let mut replaced = false;
        for (server, key_id) in doubts.into_keys() {
            let known = self.key_ring.in_memory(server.as_str(), &key_id);
            let before = found.get(server.as_str(), &key_id).map(|before| before.key);
            if let Some(known) = known.filter(|known| before.is_some_and(|before| before != known.key)) {
                log::info!("{server} has another key {key_id} than it had: it seems to have begun anew");
                found.put(&server, known);
                replaced = true;
            }
        }
        replaced
    }

    /// Whether a wrong signature on something of this time says that a server may have another key by now.
    fn is_doubtful(&self, server: &ServerName, key_id: &str, at: Millis, purpose: KeyPurpose<'_>) -> bool {
        let is_theirs = *server != *self.server_name();
        let Some(known) = self.key_ring.in_memory(server.as_str(), key_id).filter(|_| is_theirs) else {
            return false;
        };
        let now = self.clock.now_ms();
        // A clock that was ahead has us think that they are not stated yet.
        let is_older = at.saturating_add(CLOCK_SKEW_MS) < known.stated_ms.min(now);
        let is_fresh = (0..DOUBT_PAUSE_MS).contains(&(now - known.stated_ms));
        // Who seems to speak to us may be back.
        let is_silent = !matches!(purpose, KeyPurpose::Request(_))
            && self.silent_servers.is_silent(server, AskedFor::SigningKeys, self.clock.steady());
        let question = KeyQuestion { server, neighbour: false, doubted: true, purpose };
        !is_older && !is_fresh && !is_silent && self.key_ring.attempts.may_ask(&question, &self.clock)
    }
}
