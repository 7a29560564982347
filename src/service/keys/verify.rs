//! Signatures of other servers: on requests, and on events as they arrive.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::pdu::ParsedPdu;
use crate::protocol::room_version::RoomVersion;
use crate::protocol::signatures::verify::{self, ReceiptError, SignatureError};
use crate::protocol::signatures::x_matrix;
use crate::protocol::unchecked_event::UncheckedEvent;
use crate::protocol::{Pdu, ServerName, VerifiedPdu};
use crate::service::keys::Keys;
use crate::service::keys::attempts::KeyPurpose;
use crate::service::keys::doubts::{CLOCK_SKEW_MS, Doubts};
use crate::service::keys::fetch::{FoundKeys, WantedKey, too_many_asked};
use crate::service::keys::ring::KnownKey;
use crate::service::limits::request_permits::Asker;

/// Time to find the key of a request's sender, who waits for us.
const REQUEST_KEY_TIMEOUT: Duration = Duration::from_secs(15);
/// Time to find the keys of a few events, and of a whole room's.
const EVENT_KEYS_TIMEOUT: Duration = Duration::from_secs(30);
const ROOM_KEYS_TIMEOUT: Duration = Duration::from_secs(90);
/// More events than this are a whole room.
const FEW_EVENTS_MAX: usize = 100;
/// So many events are read before the keys that they want are summed up.
const EVENTS_READ_AT_ONCE_MAX: usize = 4096;
/// So many are read by one thread.
const EVENTS_READ_BY_THREAD_MAX: usize = 512;

/// A retired key verifies old events, not new requests.
fn is_good_for_requests(key: &KnownKey, now: Millis) -> bool {
    !key.retired && key.valid_until_ms >= now
}

impl Keys<'_> {
    /// Checks the X-Matrix signature of a request (server-server API, "Request Authentication"). `uri` is path and
    /// query as on the request line; `body` none if it was empty. Gives the server that sent it, which from now on
    /// counts as reachable.
    ///
    /// Errors: 401 `M_UNAUTHORIZED`; 429 `M_LIMIT_EXCEEDED` if so many servers are being asked for their keys on
    /// behalf of `asker`, who made the request, that this one cannot be; 403 `M_FORBIDDEN` for a server that we do not
    /// talk to; `M_NOT_JSON` or `M_BAD_JSON` for a body that cannot have been signed.
    pub fn verify_request(
        &self,
        authorization: &str,
        method: &str,
        uri: &str,
        body: Option<&[u8]>,
        asker: &Asker,
    ) -> Result<ServerName> {
        let claim = self.claim_of_request(authorization)?;
        let (now, deadline) = (self.clock.now_ms(), Instant::now() + REQUEST_KEY_TIMEOUT);
        let is_good = |k: &KnownKey| is_good_for_requests(k, now);
        let key = self.key_of_request(&claim, asker)?;
        let verify = |key: &KnownKey| claim.verify(method, uri, self.server_name(), body, &key.key);
        if let Err(e) = verify(&key) {
            let is_wrong = e.errcode() == ErrCode::Unauthorized;
            let purpose = KeyPurpose::Request(asker);
            let instead =
                is_wrong.then(|| self.key_instead_of(&claim.origin, key, purpose, deadline)).flatten();
            verify(&instead.filter(is_good).ok_or(e)?)?;
        }
        self.peer_spoke(&claim.origin);
        Ok(claim.origin)
    }

    /// Whether there is a key with which such a request can be signed, which is asked for if need be: before the body is read,
    /// if that is much to take of who may be nobody. Errors: those of [`Self::verify_request`].
    pub fn expect_request(&self, authorization: &str, asker: &Asker) -> Result<()> {
        let claim = self.claim_of_request(authorization)?;
        self.key_of_request(&claim, asker).map(|_| ())
    }

    /// What a request says of who has signed it.
    fn claim_of_request(&self, authorization: &str) -> Result<x_matrix::Authorization> {
        let claim = x_matrix::parse(authorization)?;
        if claim.destination.as_ref().is_some_and(|d| d != self.server_name()) {
            return Err(unauthorized("The request was meant for another server"));
        }
        if claim.origin == *self.server_name() {
            return Err(unauthorized("The request says that it comes from this server itself"));
        }
        if !self.config.peers.allows(claim.origin.as_str()) {
            return Err(Error::forbidden("This server does not talk to yours"));
        }
        Ok(claim)
    }

    /// The key that a request says it is signed with.
    fn key_of_request(&self, claim: &x_matrix::Authorization, asker: &Asker) -> Result<KnownKey> {
        let now = self.clock.now_ms();
        let known = || {
            let known = self.key_ring.in_memory(claim.origin.as_str(), &claim.key);
            known.filter(|key| is_good_for_requests(key, now))
        };
        if let Some(key) = known() {
            return Ok(key);
        }
        let wanted = WantedKey { server: claim.origin.clone(), key_id: claim.key.clone(), valid_at: now };
        let found = self.gather_keys(&[wanted], &[], KeyPurpose::Request(asker), REQUEST_KEY_TIMEOUT);
        known().ok_or_else(|| match found.lacks_slots() {
            true => too_many_asked(),
            false => unauthorized(format!("{} has no valid key {}", claim.origin, claim.key)),
        })
    }

    /// Checks 1 to 3 on receipt of a PDU for one event: format, signatures, hash. The keys are fetched if need be. A
    /// wrong hash gives the event's redacted self. Errors: 400 `M_BAD_JSON`, `M_INVALID_PARAM`, `M_TOO_LARGE`;
    /// 403 `M_FORBIDDEN` where a signature is lacking.
    pub fn check_pdu(&self, event: &[u8], version: RoomVersion) -> Result<VerifiedPdu> {
        let deadline = Instant::now() + EVENT_KEYS_TIMEOUT;
        let mut found = self.keys_for(&[event], version, &[], EVENT_KEYS_TIMEOUT);
        self.check_with(&mut found, KeyPurpose::Events, deadline, |found, doubts| {
            check(event, version, found, doubts)
        })
    }

    /// [`Self::check_pdu`] for the events of a transaction, in their order, whose sender waits for the answer: it is
    /// told apart where no key could be had in this time. `origin`: who sent them.
    pub(in crate::service) fn check_received(
        &self,
        origin: &ServerName,
        events: &[&[u8]],
        version: RoomVersion,
        within: Duration,
    ) -> Vec<Checked> {
        let started = Instant::now();
        let wanted = self.wanted_keys(events, version, |_, _| {});
        let within = within.min(usual_timeout(events.len()));
        let purpose = KeyPurpose::Received(origin);
        let mut found = self.gather_keys(&wanted, &[], purpose, within);
        self.check_with(&mut found, purpose, started + within, |found, doubts| {
            in_bulk(events, |event| self.conclude_check(event, version, (found, doubts), started))
        })
    }

    /// Checks 2 and 3 alone, for an event that was parsed before. `purpose`: of an event that was handed to us it is
    /// that one, whatever it is for: whoever hands it in chooses which servers are asked for keys.
    pub(in crate::service) fn check_parsed_pdu(
        &self,
        event: ParsedPdu,
        purpose: KeyPurpose<'_>,
    ) -> Result<VerifiedPdu> {
        let mut uses = self.key_uses(event.pdu.version());
        uses.add_all(&event.pdu, verify::wanted_keys_of(&event.pdu, &event.object));
        let deadline = Instant::now() + EVENT_KEYS_TIMEOUT;
        let mut found = self.gather_keys(&uses.wanted(), &[], purpose, EVENT_KEYS_TIMEOUT);
        let (pdu, parsed) = (event.pdu.clone(), Cell::new(Some(event)));
        let checked = self.check_with(&mut found, purpose, deadline, |found, doubts| {
            let event = parsed.take().unwrap_or_else(|| ParsedPdu::of(&pdu));
            let keys = |server: &str, key_id: &str| found.get(server, key_id);
            doubts.noted(verify::check_whole(event, &keys))
        });
        checked.map_err(Error::from)
    }

    /// The keys that it takes to check these events, as far as they can be had in this time.
    ///
    /// `residents` are for the state of a room that we are joining through the first of them. Of servers that are gone, which
    /// any old room has some of, it is asked for the keys, and then the others. That gives it no power that it has not:
    /// whoever is joined through can show any room that it likes. It would for events that come later, and so is done for
    /// no others.
    pub(in crate::service) fn keys_for(
        &self,
        events: &[&[u8]],
        version: RoomVersion,
        residents: &[ServerName],
        within: Duration,
    ) -> FoundKeys {
        let wanted = self.wanted_keys(events, version, |_, _| {});
        self.gather_keys(&wanted, residents, KeyPurpose::Events, within)
    }

    /// Looks events over: gives the keys that it takes to check them, and tells `note` of each by its index; of one
    /// that is written oddly, or none, that there is nothing to see at a glance.
    pub(in crate::service) fn wanted_keys<'e>(
        &self,
        events: &[&'e [u8]],
        version: RoomVersion,
        mut note: impl FnMut(usize, Option<UncheckedEvent<'e>>),
    ) -> Vec<WantedKey> {
        let mut all = self.key_uses(version);
        let latest = all.latest;
        let read = |few: &[&'e [u8]]| {
            let mut uses = KeyUses { version, latest, keys: HashMap::new() };
            let unchecked = few.iter().map(|event| uses.read(event)).collect::<Vec<_>>();
            (unchecked, uses)
        };
        let mut indices = 0..;
        for group in events.chunks(EVENTS_READ_AT_ONCE_MAX) {
            let seen: Vec<_> = match group.len() <= EVENTS_READ_BY_THREAD_MAX {
                true => vec![read(group)],
                false => group.par_chunks(EVENTS_READ_BY_THREAD_MAX).map(read).collect(),
            };
            for (unchecked, uses) in seen {
                indices.by_ref().zip(unchecked).for_each(|(index, unchecked)| note(index, unchecked));
                all.absorb(uses);
            }
        }
        all.wanted()
    }

    fn key_uses(&self, version: RoomVersion) -> KeyUses {
        // No key is valid in the far future, and asking for one would be in vain.
        let latest = self.clock.now_ms() + CLOCK_SKEW_MS;
        KeyUses { version, latest, keys: HashMap::new() }
    }

    fn conclude_check(
        &self,
        event: &[u8],
        version: RoomVersion,
        (found, doubts): (&FoundKeys, &Doubts),
        started: Instant,
    ) -> Checked {
        match check_received(event, version, found, doubts) {
            Ok(pdu) => Checked::Passed(pdu),
            Err(ReceiptError::Signature(SignatureError::NoKey(keys))) => {
                // A key that its server does not state does not exist, and the end of a retired one is settled.
                let is_settled = |(server, key_id): &(ServerName, String)| {
                    self.key_ring.in_memory(server.as_str(), key_id).is_some_and(|known| known.retired)
                        || self.key_ring.attempts.has_stated_since(server, started)
                };
                let is_hopeless =
                    |server: &ServerName| keys.iter().filter(|(of, _)| of == server).all(is_settled);
                match (keys.iter().any(|(server, _)| is_hopeless(server)), Pdu::parse(event, version)) {
                    (false, Ok(pdu)) => {
                        Checked::NoKey(pdu, keys.into_iter().map(|(server, _)| server).collect())
                    }
                    _ => Checked::Dropped(SignatureError::NoKey(keys).into()),
                }
            }
            Err(e) => Checked::Dropped(e.into()),
        }
    }
}

/// What the first three checks on receipt found.
pub(in crate::service) enum Checked {
    /// The event passed; in its redacted form if its hash was wrong.
    Passed(VerifiedPdu),
    /// It is well-formed, and nobody could be asked for the keys of these servers: nothing can be said of it now.
    NoKey(Pdu, Vec<ServerName>),
    /// "Otherwise it is dropped."
    Dropped(Error),
}

fn usual_timeout(events: usize) -> Duration {
    if events > FEW_EVENTS_MAX { ROOM_KEYS_TIMEOUT } else { EVENT_KEYS_TIMEOUT }
}

/// Checks 1 to 3 for one event, with the keys at hand.
pub(in crate::service) fn check(
    event: &[u8],
    version: RoomVersion,
    keys: &FoundKeys,
    doubts: &Doubts,
) -> Result<VerifiedPdu> {
    check_received(event, version, keys, doubts).map_err(Error::from)
}

fn check_received(
    event: &[u8],
    version: RoomVersion,
    keys: &FoundKeys,
    doubts: &Doubts,
) -> std::result::Result<VerifiedPdu, ReceiptError> {
    let checked = verify::check_received(event, version, &|server, key_id| keys.get(server, key_id));
    match checked {
        Err(ReceiptError::Signature(e)) => doubts.noted(Err(e)).map_err(ReceiptError::Signature),
        other => other,
    }
}

/// The keys that it takes to verify events.
struct KeyUses {
    version: RoomVersion,
    /// No key need be valid later than this.
    latest: Millis,
    /// Of each the latest time at which it should be valid, which serves the earlier ones too.
    keys: HashMap<ServerName, HashMap<String, Millis>>,
}

impl KeyUses {
    /// What is seen of an event; notes whose keys would serve to verify it.
    fn read<'e>(&mut self, event: &'e [u8]) -> Option<UncheckedEvent<'e>> {
        if let Some(mut unchecked) = UncheckedEvent::at(event) {
            let at = unchecked.origin_server_ts;
            unchecked.wanted_keys(self.version).for_each(|(server, id)| self.add(server, id, at));
            unchecked.forget_signatures();
            return Some(unchecked);
        }
        // No event, perhaps, which the check will say.
        let pdu = Pdu::parse(event, self.version).ok()?;
        self.add_all(&pdu, verify::wanted_keys(&pdu));
        None
    }

    fn add_all(&mut self, pdu: &Pdu, wanted: Vec<(ServerName, String)>) {
        let at = pdu.origin_server_ts();
        wanted.into_iter().for_each(|(server, id)| self.add(server, &id, at));
    }

    fn add(&mut self, server: ServerName, id: &str, at: Millis) {
        let at = if self.version.enforce_key_validity { at.min(self.latest) } else { 0 };
        let of_server = self.keys.entry(server).or_default();
        match of_server.get_mut(id) {
            Some(known) => *known = at.max(*known),
            None => drop(of_server.insert(id.to_owned(), at)),
        }
    }

    fn absorb(&mut self, other: Self) {
        for (server, keys) in other.keys {
            keys.iter().for_each(|(id, at)| self.add(server.clone(), id, *at));
        }
    }

    fn wanted(self) -> Vec<WantedKey> {
        let of_server = |(server, keys): (ServerName, HashMap<String, Millis>)| {
            keys.into_iter().map(move |(key_id, valid_at)| WantedKey {
                server: server.clone(),
                key_id,
                valid_at,
            })
        };
        self.keys.into_iter().flat_map(of_server).collect()
    }
}

/// On all processors if it is worth the hand-over.
pub(in crate::service) fn in_bulk<T: Sync, R: Send>(
    items: &[T],
    f: impl Fn(&T) -> R + Sync + Send,
) -> Vec<R> {
    if items.len() < 4 { items.iter().map(f).collect() } else { items.par_iter().map(f).collect() }
}

fn unauthorized(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrCode::Unauthorized, message)
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "replaced_key_tests.rs"]
mod replaced_key_tests;
