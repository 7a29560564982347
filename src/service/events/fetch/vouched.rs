//! Auth events that nobody can be asked for the keys of: those of a server that acted while we were away, and is gone.
//! Whatever happened in the room since rests on them.
//!
//! Once their server has been asked in vain for some minutes, those are asked for its keys who have most power in the room,
//! by the state that we ourselves hold, and may do all there that power is needed for: they gain nothing by lying about
//! somebody with less, since what they would have them do they could do as well. (Nobody can have been given more power
//! meanwhile than the mightiest had.) Of somebody who has as much by what we know, whoever gave it them is believed, who
//! could have given it to a friend, as long as they are not in the room as we know it; of others nothing but that a key
//! that we know held for longer. Their word counts for the auth events that something needs which waits; for no message, and no key at
//! large: what is taken by it is known as such (`store/rooms/vouched_events.rs`).

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::Fetch;
use super::limits::KeylessRoom;
use crate::clock::Millis;
use crate::error::Result;
use crate::order;
use crate::protocol::event_auth::{PowerLevels, is_auth_type};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, Pdu, RoomId, ServerName, UserId};
use crate::service::events::power_levels::power_levels;
use crate::service::events::server_acl::RoomAcl;
use crate::service::keys::doubts::Doubts;
use crate::service::keys::fetch::WantedKey;
use crate::service::keys::verify::check;
use crate::store::{Db, Room};

/// How many such events of one fetch are kept at hand, and their bytes.
const KEYLESS_EVENTS_MAX: usize = 200;
const KEYLESS_BYTES_MAX: usize = 2 << 20;
/// For how long a room has to lack keys, and how often in a row each of their servers has to fail to state them.
const KEYLESS_AGE_MIN_MS: Millis = 3 * 60_000;
const FAILURES_MIN: u32 = 3;
/// How many changes of the power levels are looked at to find out who gave somebody theirs.
const LEVELS_LOOKED_BACK_MAX: usize = 100;
/// Time for those who vouch.
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
    /// Takes what lacks a key of these auth events, and of what they rest on, by the word of the mightiest, if it is time
    /// for that. Whether there is anything new.
    pub(super) fn take_by_word(&mut self, missing: &[EventId]) -> Result<bool> {
        let Some(needed) = self.keyless_among(missing)? else { return Ok(false) };
        let (hs, room) = (self.hs, self.room.clone());
        let texts: Vec<&[u8]> = needed.iter().map(|pdu| pdu.json()).collect();
        let wanted = hs.keys().wanted_keys(&texts, room.version, |_, _| {});
        let lacking: Vec<&WantedKey> =
            wanted.iter().filter(|wanted| !hs.keys().has_key_for(wanted)).collect();
        let mut servers: Vec<ServerName> = lacking.iter().map(|wanted| wanted.server.clone()).collect();
        order::sort(&mut servers);
        servers.dedup();
        let keyless = hs.fetch_limits.note_keyless(room.key, hs.clock.steady());
        let are_gone = || servers.iter().all(|server| hs.key_ring.attempts.has_failed(server, FAILURES_MIN));
        if servers.is_empty() || keyless.age_ms < KEYLESS_AGE_MIN_MS || !are_gone() {
            return Ok(false);
        }
        // A key of theirs that we know can only turn out to have held for longer.
        let is_new = |pdu: &&Pdu| {
            let of_sender = |wanted: &&&WantedKey| wanted.server == pdu.sender().server();
            lacking.iter().filter(of_sender).any(|wanted| !hs.keys().knows_key(wanted))
        };
        let strangers: Vec<&Pdu> = needed.iter().filter(is_new).collect();
        let vouchers = hs.store.read(|db| vouchers(db, &room, (&servers, &strangers)))?;
        let vouchers: Vec<ServerName> = vouchers.into_iter().filter(|v| v != hs.server_name()).collect();
        if vouchers.is_empty() {
            warn_of(&keyless, &room.room_id, &servers);
            return Ok(false);
        }
        let until = Instant::now() + self.left()?.min(VOUCHERS_TIMEOUT);
        let found = hs.keys().keys_by_word_of(&vouchers, &wanted, until);
        let good: Vec<_> = texts
            .iter()
            .filter_map(|text| check(text, room.version, &found, &Doubts::default()).ok())
            .filter(|pdu| pdu.room_id() == &room.room_id)
            .collect();
        if good.is_empty() {
            warn_of(&keyless, &room.room_id, &servers);
            return Ok(false);
        }
        log::info!(
            "{}: {} events of {} that others rest on are taken by the word of {}",
            room.room_id,
            good.len(),
            names(&servers),
            names(&vouchers)
        );
        self.store_outliers(good)?;
        Ok(true)
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

/// The servers in the room of those who have most power there, if they may do all that power is needed for, and those of the
/// senders of these events who have as much have it from them.
fn vouchers(
    db: &Db<'_>,
    room: &Room,
    (gone, strangers): (&[ServerName], &[&Pdu]),
) -> Result<Vec<ServerName>> {
    let (levels, acl) = (power_levels(db, room)?, RoomAcl::of(db, room)?);
    let mut senders: Vec<&UserId> = strangers.iter().map(|pdu| pdu.sender()).collect();
    order::sort(&mut senders);
    senders.dedup();
    let mut givers: HashMap<&UserId, Option<UserId>> = HashMap::new();
    let mut servers: Vec<ServerName> = Vec::new();
    for user in levels.mightiest() {
        let Ok(user) = UserId::parse(&user) else { continue };
        let server = user.server();
        let may = levels.may_do_all(user.as_str())
            && db.membership_in_state(room.key, &user)? == Some(Membership::Join)
            && acl.allows(&server)
            && !gone.contains(&server)
            && !servers.contains(&server);
        let level = levels.user(user.as_str());
        let equals = senders.iter().filter(|sender| level <= levels.user(sender.as_str()));
        let mut gave_all = true;
        for equal in equals {
            if !givers.contains_key(equal) {
                givers.insert(*equal, giver_of(db, room, equal)?);
            }
            gave_all &= givers.get(equal).is_some_and(|giver| giver.as_ref() == Some(&user));
        }
        if may && gave_all {
            servers.push(server);
        }
    }
    Ok(servers)
}

/// Who gave somebody the power that they have, who is not in the room as we know it; none where we cannot tell.
fn giver_of(db: &Db<'_>, room: &Room, user: &UserId) -> Result<Option<UserId>> {
    if db.membership_in_state(room.key, user)? == Some(Membership::Join) {
        return Ok(None);
    }
    let create = db.state_event(room.key, "m.room.create", "")?;
    let power_by = |levels: &Pdu| {
        let levels = PowerLevels::of(room.version, &|event_type, _| match event_type {
            "m.room.create" => create.clone(),
            "m.room.power_levels" => Some(levels.clone()),
            _ => None,
        });
        levels.user(user.as_str())
    };
    let Some(mut levels) = db.state_event(room.key, "m.room.power_levels", "")? else { return Ok(None) };
    for _ in 0..LEVELS_LOOKED_BACK_MAX {
        let mut before = None;
        for id in levels.auth_events() {
            let event = db.event(id)?.map(|event| event.pdu);
            before = event.filter(|event| event.is("m.room.power_levels", "")).or(before);
        }
        match before {
            Some(before) if power_by(&before) >= power_by(&levels) => levels = before,
            _ => return Ok(Some(levels.sender().clone())),
        }
    }
    Ok(None)
}

fn warn_of(keyless: &KeylessRoom, room: &RoomId, servers: &[ServerName]) {
    let level = if keyless.is_first_warning() { log::Level::Warn } else { log::Level::Debug };
    log::log!(
        level,
        "{room}: what happens there rests on events of {}, whose keys cannot be had any more, and none of those who have \
         most power in the room vouches for them: nothing of it is taken until that server is back, or this one comes in anew",
        names(servers)
    );
}

fn names(servers: &[ServerName]) -> String {
    servers.iter().map(ServerName::as_str).collect::<Vec<_>>().join(", ")
}
