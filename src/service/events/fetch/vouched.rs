//! Auth events that nobody can be asked for the keys of: those of a server that acted while we were away, and is gone.
//! Whatever happened in the room since rests on them.
//!
//! Once their server has been asked in vain for some minutes, and once more, those are asked for its keys who could have made the
//! same themselves (`vouchers.rs`): they gain nothing by lying. Of a key that we know only how long it held is news, and anybody
//! who may vouch at all is believed about that. Their word counts for the auth events that something needs which waits; for no
//! message, and no key at large: what is taken by it is known as such (`store/rooms/vouched_events.rs`).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Fetch;
use super::vouchers::{Voucher, Vouching};
use crate::clock::Millis;
use crate::error::Result;
use crate::order;
use crate::protocol::event_auth::is_auth_type;
use crate::protocol::signatures::verify::counts;
use crate::protocol::{EventId, Pdu, RoomId, ServerName, VerifiedPdu};
use crate::service::keys::doubts::Doubts;
use crate::service::keys::fetch::{FoundKeys, WantedKey};
use crate::service::keys::verify::check;

/// How many such events of one fetch are kept at hand, and their bytes.
const KEYLESS_EVENTS_MAX: usize = 200;
const KEYLESS_BYTES_MAX: usize = 2 << 20;
/// For how long each of their servers has to be silent, and how often in a row.
const SILENCE_MIN_MS: Millis = 3 * 60_000;
const SILENCES_MIN: u32 = 3;
/// Of more servers at once nobody is asked: whoever makes up events makes up servers.
const GONE_SERVERS_MAX: usize = 20;
/// How many of those who may vouch are asked.
const VOUCHERS_ASKED_MAX: usize = 4;
/// Time for the servers that are silent, and for those who vouch.
const SILENT_TIMEOUT: Duration = Duration::from_secs(10);
const VOUCHERS_TIMEOUT: Duration = Duration::from_secs(15);

/// Auth events at hand that could not be checked for want of a key.
#[derive(Default)]
pub(in crate::service) struct KeylessEvents {
    events: Vec<Pdu>,
    bytes: usize,
}

impl KeylessEvents {
    pub(super) fn add(&mut self, pdu: &Pdu) {
        let is_needed = pdu.is_state() && is_auth_type(pdu.event_type()) && !pdu.is("m.room.create", "");
        let is_known = || self.find(pdu.event_id()).is_some();
        if !is_needed || self.events.len() >= KEYLESS_EVENTS_MAX || is_known() {
            return;
        }
        self.bytes += pdu.json().len();
        if self.bytes <= KEYLESS_BYTES_MAX {
            self.events.push(pdu.clone());
        }
    }

    fn find(&self, id: &EventId) -> Option<&Pdu> {
        self.events.iter().find(|event| event.event_id() == id)
    }
}

impl Fetch<'_> {
    /// Takes what lacks a key of these auth events, and of what they rest on, by the word of who may vouch for it, if it is
    /// time for that. Whether there is anything new.
    pub(super) fn take_by_word(&mut self, missing: &[EventId]) -> Result<bool> {
        let Some(needed) = self.keyless_among(missing)? else { return Ok(false) };
        let (hs, room) = (self.hs, self.room.clone());
        let texts: Vec<&[u8]> = needed.iter().map(|pdu| pdu.json()).collect();
        let wanted = hs.keys().wanted_keys(&texts, room.version, |_, _| {});
        let known = hs.keys().known_keys(&wanted);
        let lacking: Vec<&WantedKey> = wanted.iter().filter(|wanted| !known.has(wanted)).collect();
        let mut gone: Vec<ServerName> = lacking.iter().map(|wanted| wanted.server.clone()).collect();
        order::sort(&mut gone);
        gone.dedup();
        let now = hs.clock.steady();
        let is_silent = |server| hs.key_ring.attempts.is_silent(server, (SILENCES_MIN, SILENCE_MIN_MS), now);
        if gone.is_empty() || gone.len() > GONE_SERVERS_MAX || !gone.iter().all(is_silent) {
            return Ok(false);
        }
        let vouchers = hs.store.read(|db| {
            let mut vouchers = Vouching::new(db, &room, &|_| None)?.vouchers(&gone)?;
            vouchers.truncate(VOUCHERS_ASKED_MAX);
            Ok(vouchers)
        })?;
        if vouchers.is_empty() {
            warn_of(hs.fetch_limits.is_newly_keyless(room.key, now), &room.room_id, &gone);
            return Ok(false);
        }
        if !hs.fetch_limits.may_ask_for_word(room.key, self.peer, now) {
            return Ok(false);
        }
        let until = Instant::now() + self.left()?.min(SILENT_TIMEOUT);
        hs.keys().ask_once_more(&lacking, until);
        if !gone.iter().all(is_silent) {
            return Ok(false);
        }
        let good = self.vouched_for(&vouchers, &needed, (&wanted, &known))?;
        if good.is_empty() {
            warn_of(hs.fetch_limits.is_newly_keyless(room.key, now), &room.room_id, &gone);
            return Ok(false);
        }
        self.store_outliers(good)?;
        Ok(true)
    }

    /// Those of the events for which somebody vouches whose word counts for them.
    fn vouched_for(
        &self,
        vouchers: &[Voucher],
        needed: &[Pdu],
        (wanted, known): (&[WantedKey], &FoundKeys),
    ) -> Result<Vec<VerifiedPdu>> {
        let (hs, room) = (self.hs, &self.room);
        let until = Instant::now() + self.left()?.min(VOUCHERS_TIMEOUT);
        let mut good: Vec<VerifiedPdu> = Vec::new();
        for (index, voucher) in vouchers.iter().enumerate() {
            let rest: Vec<&Pdu> = needed
                .iter()
                .filter(|pdu| !good.iter().any(|good| good.event_id() == pdu.event_id()))
                .collect();
            let theirs = hs.store.read(|db| {
                let at_hand = |id: &EventId| self.at_hand(id);
                let mut vouching = Vouching::new(db, room, &at_hand)?;
                let mut theirs = Vec::new();
                for pdu in rest {
                    if pdu.room_id() == &room.room_id
                        && (!needs_new_key(pdu, known) || vouching.may_vouch(voucher, pdu)?)
                    {
                        theirs.push(pdu);
                    }
                }
                Ok(theirs)
            })?;
            if theirs.is_empty() {
                continue;
            }
            // Whoever lets us wait leaves time for the others.
            let left = u32::try_from(vouchers.len() - index).unwrap_or(u32::MAX);
            let share = until.saturating_duration_since(Instant::now()) / left;
            let found = hs.keys().keys_by_word_of(&voucher.server, wanted, Instant::now() + share);
            let before = good.len();
            good.extend(
                theirs
                    .into_iter()
                    .filter_map(|pdu| check(pdu.json(), room.version, &found, &Doubts::default()).ok()),
            );
            if good.len() > before {
                log::info!(
                    "{}: {} events that others rest on, whose keys cannot be had any more, are taken by the word of {}",
                    room.room_id,
                    good.len() - before,
                    voucher.server
                );
            }
        }
        Ok(good)
    }

    /// An event that is here, and not stored.
    fn at_hand(&self, id: &EventId) -> Option<Pdu> {
        let undecided = self.undecided.get(id).map(|pdu| Pdu::clone(pdu));
        undecided.or_else(|| self.keyless.borrow().find(id).cloned())
    }

    /// Those of the events, and of what they rest on, that lack a key; none if something else is lacking as well, or
    /// nothing is.
    fn keyless_among(&self, missing: &[EventId]) -> Result<Option<Vec<Pdu>>> {
        let (mut needed, mut seen) = (Vec::new(), HashSet::new());
        let mut generation = self.lacking(missing)?;
        while !generation.is_empty() {
            let mut next = Vec::new();
            for id in generation.into_iter().filter(|id| seen.insert(id.clone())) {
                let keyless = self.keyless.borrow();
                let pdu: &Pdu = match (self.undecided.get(&id), keyless.find(&id)) {
                    (Some(undecided), _) => undecided,
                    (None, Some(pdu)) => {
                        needed.push(pdu.clone());
                        pdu
                    }
                    (None, None) => return Ok(None),
                };
                next.extend_from_slice(pdu.auth_events());
            }
            next.retain(|id| !seen.contains(id));
            generation = self.lacking(&next)?;
        }
        Ok((!needed.is_empty()).then_some(needed))
    }
}

/// Whether an event's own server may have signed it with a key that we do not know: one that we know can only turn out to have
/// held for longer.
fn needs_new_key(pdu: &Pdu, known: &FoundKeys) -> bool {
    let (server, object) = (pdu.sender().server_name(), pdu.canonical());
    let signatures = object.signatures_of(server);
    signatures.iter().any(|(id, _)| counts(id) && known.get(server, id).is_none())
}

fn warn_of(is_new: bool, room: &RoomId, servers: &[ServerName]) {
    let level = if is_new { log::Level::Warn } else { log::Level::Debug };
    log::log!(
        level,
        "{room}: what happens there rests on events of {}, whose keys cannot be had any more, and nobody in the room \
         who may vouch for them does: nothing of it is taken until that server is back, or this one comes in anew",
        names(servers)
    );
}

fn names(servers: &[ServerName]) -> String {
    servers.iter().map(ServerName::as_str).collect::<Vec<_>>().join(", ")
}
