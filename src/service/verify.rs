//! Signatures of other servers: on requests, and on events as they arrive.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Homeserver;
use super::key_fetch::{Purpose, Wanted};
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::room_version::RoomVersion;
use crate::protocol::sign::{self, KeyAt, SignatureError};
use crate::protocol::x_matrix;
use crate::protocol::{Pdu, ServerName};

/// Time to find the key of a request's sender, who waits for us.
const REQUEST_KEY_WITHIN: Duration = Duration::from_secs(15);
/// Time to find the keys of a few events, and of a whole room's.
const EVENT_KEYS_WITHIN: Duration = Duration::from_secs(30);
const ROOM_KEYS_WITHIN: Duration = Duration::from_secs(90);
/// Clocks differ: keys are asked for that are valid so much later than now.
const FUTURE: Millis = 10 * 60_000;
/// More events than this are a whole room.
const FEW: usize = 100;

impl Homeserver {
    /// Checks the X-Matrix signature of a request (server-server API, "Request Authentication"). `uri` is path and
    /// query as on the request line; `body` none if it was empty. Gives the server that sent it, which from now on
    /// counts as reachable.
    ///
    /// Errors: 401 `M_UNAUTHORIZED`; 403 `M_FORBIDDEN` for a server that we do not talk to; `M_NOT_JSON` or `M_BAD_JSON` for a body that cannot have been signed.
    pub fn verify_request(
        &self,
        authorization: &str,
        method: &str,
        uri: &str,
        body: Option<&[u8]>,
    ) -> Result<ServerName> {
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
        let now = self.clock.now_ms();
        // A retired key verifies old events, not new requests.
        let is_good = |k: &super::key_ring::KnownKey| !k.retired && k.valid_until_ms >= now;
        let key = match self.key_ring.in_memory(claim.origin.as_str(), &claim.key).filter(is_good) {
            Some(key) => key,
            None => {
                let wanted =
                    Wanted { server: claim.origin.clone(), key_id: claim.key.clone(), valid_at: now };
                self.gather_keys(&[wanted], None, Purpose::Request, REQUEST_KEY_WITHIN);
                let key = self.key_ring.in_memory(claim.origin.as_str(), &claim.key).filter(is_good);
                key.ok_or_else(|| unauthorized(format!("{} has no valid key {}", claim.origin, claim.key)))?
            }
        };
        claim.verify(method, uri, self.server_name(), body, &key.key)?;
        self.sender.peer_spoke(&claim.origin);
        self.scheduler.peer_spoke(self, &claim.origin);
        Ok(claim.origin)
    }

    /// Steps 1 to 3 of the checks on receipt of a PDU for one event: format, signatures, hash. The keys are fetched if
    /// need be. A wrong hash gives the event's redacted self. Errors: 400 `M_BAD_JSON`, `M_INVALID_PARAM`, `M_TOO_LARGE`.
    pub fn check_pdu(&self, event: &[u8], version: RoomVersion) -> Result<Pdu> {
        let mut checked = self.check_pdus(&[event], version);
        checked.pop().unwrap_or_else(|| Err(Error::internal("one event in, none out")))
    }

    /// The same for many events at once, in their order.
    pub fn check_pdus(&self, events: &[&[u8]], version: RoomVersion) -> Vec<Result<Pdu>> {
        let parsed = in_bulk(events, |event| Pdu::parse(event, version));
        only_checked(self.check_parsed(parsed, None, usual_patience(events.len())))
    }

    /// The same for events of a transaction, whose sender waits for the answer: it is told apart where no key could be
    /// had in this time.
    pub(super) fn check_received(
        &self,
        events: &[&[u8]],
        version: RoomVersion,
        within: Duration,
    ) -> Vec<Checked> {
        let within = within.min(usual_patience(events.len()));
        self.check_parsed(in_bulk(events, |event| Pdu::parse(event, version)), None, within)
    }

    /// The same for the state of a room that we are joining through `resident`. Of servers that are gone, which any old
    /// room has some of, the resident is asked for the keys. That gives it no power that it has not: whoever is joined
    /// through can show any room that it likes. It would for events that come later, and so is done for no others.
    pub fn check_joined_state(
        &self,
        events: &[&[u8]],
        version: RoomVersion,
        resident: &ServerName,
    ) -> Vec<Result<Pdu>> {
        let parsed = in_bulk(events, |event| Pdu::parse(event, version));
        only_checked(self.check_parsed(parsed, Some(resident), usual_patience(events.len())))
    }

    /// Steps 2 and 3 alone, for an event that was parsed before.
    pub fn check_parsed_pdu(&self, pdu: Pdu) -> Result<Pdu> {
        let mut checked = only_checked(self.check_parsed(vec![Ok(pdu)], None, EVENT_KEYS_WITHIN));
        checked.pop().unwrap_or_else(|| Err(Error::internal("one event in, none out")))
    }

    fn check_parsed(
        &self,
        parsed: Vec<Result<Pdu>>,
        resident: Option<&ServerName>,
        within: Duration,
    ) -> Vec<Checked> {
        let (now, started) = (self.clock.now_ms(), Instant::now());
        let wanted_of = |pdu: &Result<Pdu>| -> Vec<Wanted> {
            let Ok(pdu) = pdu else { return Vec::new() };
            // No key is valid in the far future, and asking for one would be in vain.
            let latest = now + FUTURE;
            let enforced = pdu.version().enforce_key_validity;
            let valid_at = if enforced { pdu.origin_server_ts().min(latest) } else { 0 };
            let keys = sign::wanted_keys(pdu).into_iter();
            keys.map(|(server, key_id)| Wanted { server, key_id, valid_at }).collect()
        };
        let wanted: Vec<Wanted> = in_bulk(&parsed, wanted_of).into_iter().flatten().collect();
        let wanted = newest_only(wanted);
        let found = self.gather_keys(&wanted, resident, Purpose::Events, within);
        let keys = |server: &str, key_id: &str| -> Option<KeyAt> { found.get(server, key_id) };
        let checked = in_bulk(&parsed, |pdu| match pdu {
            Ok(pdu) => Ok(sign::check_parsed(pdu, &keys)),
            Err(e) => Err(Error::new(e.errcode(), e.message().to_owned()).with_status(e.status())),
        });
        let together = parsed.into_iter().zip(checked);
        together.map(|(parsed, checked)| self.conclude_check(parsed, checked, started)).collect()
    }

    fn conclude_check(
        &self,
        parsed: Result<Pdu>,
        checked: Result<Result<Pdu, SignatureError>>,
        started: Instant,
    ) -> Checked {
        match (checked, parsed) {
            (Err(e), _) | (_, Err(e)) => Checked::Dropped(e),
            (Ok(Ok(pdu)), _) => Checked::Passed(pdu),
            (Ok(Err(SignatureError::NoKey(keys))), Ok(pdu)) => {
                // A key that its server does not state does not exist, and the end of a retired one is settled.
                let is_settled = |(server, key_id): &(ServerName, String)| {
                    self.key_ring.in_memory(server.as_str(), key_id).is_some_and(|known| known.retired)
                        || self.key_ring.attempts.has_stated_since(server, started)
                };
                let is_hopeless =
                    |server: &ServerName| keys.iter().filter(|(of, _)| of == server).all(is_settled);
                match keys.iter().any(|(server, _)| is_hopeless(server)) {
                    true => Checked::Dropped(SignatureError::NoKey(keys).into()),
                    false => Checked::NoKey(pdu, keys.into_iter().map(|(server, _)| server).collect()),
                }
            }
            (Ok(Err(e)), Ok(_)) => Checked::Dropped(e.into()),
        }
    }
}

/// What the first three checks on receipt found.
pub(super) enum Checked {
    /// The event passed; in its redacted form if its hash was wrong.
    Passed(Pdu),
    /// It is well-formed, and nobody could be asked for the keys of these servers: nothing can be said of it now.
    NoKey(Pdu, Vec<ServerName>),
    /// "Otherwise it is dropped."
    Dropped(Error),
}

fn only_checked(checked: Vec<Checked>) -> Vec<Result<Pdu>> {
    let result = |checked| match checked {
        Checked::Passed(pdu) => Ok(pdu),
        Checked::NoKey(_, servers) => {
            let names: Vec<&str> = servers.iter().take(3).map(ServerName::as_str).collect();
            Err(Error::invalid_param(format!("no valid key could be had for {}", names.join(" "))))
        }
        Checked::Dropped(e) => Err(e),
    };
    checked.into_iter().map(result).collect()
}

fn usual_patience(events: usize) -> Duration {
    if events > FEW { ROOM_KEYS_WITHIN } else { EVENT_KEYS_WITHIN }
}

/// One wish a key: the one for the latest time, which serves the earlier ones too.
fn newest_only(mut wanted: Vec<Wanted>) -> Vec<Wanted> {
    wanted.sort_unstable_by(|a, b| {
        (&a.server, &a.key_id).cmp(&(&b.server, &b.key_id)).then(b.valid_at.cmp(&a.valid_at))
    });
    wanted.dedup_by(|later, first| later.server == first.server && later.key_id == first.key_id);
    wanted
}

/// On all processors if it is worth the hand-over.
fn in_bulk<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> R + Sync + Send) -> Vec<R> {
    if items.len() < 4 { items.iter().map(f).collect() } else { items.par_iter().map(f).collect() }
}

fn unauthorized(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrCode::Unauthorized, message)
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
