//! The transaction that a service is sent: made of what waits for it, written down with its id before it is first sent, and sent
//! as it is until the service has taken it, but for what was redacted meanwhile. Only then there is a next one. One that a service
//! finds too large is sent in halves, and what is too large alone is left out: else nothing would ever follow it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::value::{RawValue, to_raw_value};

use super::body::{Body, DeviceLists, OfDevices, Smaller};
use super::interest::ToldService;
use crate::backoff::Backoff;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::federation::appservices::{ServiceAnswer, ServiceError, ServiceRequest};
use crate::metrics::Ending;
use crate::order;
use crate::protocol::UserId;
use crate::protocol::json::parse_object;
use crate::protocol::pdu::Membership;
use crate::service::Homeserver;
use crate::service::events::erasure::Erasure;
use crate::service::membership::stripped_state_for_client;
use crate::service::rooms::client_format::{self, ClientFormat, Json};
use crate::service::sync::device_lists_between;
use crate::store::appservices::queue::{QueuedEvent, ServiceTransaction, Withdrawn};
use crate::store::devices::to_device::LineKey;
use crate::store::{Db, Tx};

/// Pauses of a service that does not take what it is sent.
pub(in crate::service) const PAUSES: Backoff = Backoff::doubling(2_000, 512_000);
/// A service may have much to do with what it is sent before it says that it has it.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Events of one transaction.
const EVENTS_MAX: usize = 100;
/// Messages to devices of one transaction.
const MESSAGES_MAX: usize = 100;
/// Of so many devices of a service's users it is told how many keys they have left: of those that have the fewest. And so many are
/// told that have none yet.
const DEVICES_MAX: usize = 100;
/// What the events of one transaction come to in bytes, and the messages to devices, unless one alone has more.
const EVENTS_BYTES_MAX: usize = 256 << 10;
const MESSAGES_BYTES_MAX: usize = 128 << 10;
/// What is fleeting fills a body up to here. Services in Python take a mebibyte: that is the default of aiohttp, which mautrix's
/// library and heisenbridge leave as it is.
const BODY_BYTES_MAX: usize = 512 << 10;
/// A service that calls a body bad, again and again, may mean by that that it is large, if it is larger than any event.
const BAD_BODY_BYTES_MIN: usize = 128 << 10;
const BAD_BODY_FAILURES_MIN: u32 = 3;
/// A device that has not fetched its messages by itself for so long does not do so any more.
const SYNCS_NO_MORE_AFTER_MS: Millis = 30 * 24 * 3_600_000;

/// What became of a look at a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It has taken a transaction: there may be more.
    Taken,
    /// There is nothing for it.
    Nothing,
    /// What there is was too large for it: it is sent something smaller.
    MadeSmaller,
    /// It has not taken what there is, and is tried again later.
    PutOff,
}

/// Sends a service the transaction that it has not taken yet, or the next one. `forced`: also if that is put off.
/// `ephemeral`: what is fleeting and goes with the next one, up to so many bytes.
pub(super) fn deliver(
    hs: &Homeserver,
    told: &ToldService,
    forced: bool,
    ephemeral: impl Fn(usize) -> Vec<Json>,
) -> Result<Delivery> {
    let now = hs.clock.now_ms();
    let (row, begun) =
        hs.store.read(|db| Ok((db.appservice(told.key)?, db.appservice_transaction(told.key)?)))?;
    let Some(row) = row else { return Ok(Delivery::Nothing) };
    if !forced && row.due_ms.is_some_and(|due| due > now) {
        return Ok(Delivery::PutOff);
    }
    let transaction = match begun {
        Some(begun) => Some(begun),
        None => begin(hs, told, ephemeral, now)?,
    };
    let Some(transaction) = transaction else {
        return Ok(Delivery::Nothing);
    };
    let (body, positions) = hs.store.read(|db| whole_body(db, told, &transaction))?;
    let (text, txn_id) = (body.to_text()?, &transaction.txn_id);
    let request = ServiceRequest {
        method: "PUT",
        path: &format!("/_matrix/app/v1/transactions/{txn_id}"),
        legacy_path: Some(&format!("/transactions/{txn_id}")),
        body: Some(&text),
        timeout: TRANSACTION_TIMEOUT,
    };
    let answer = hs.federation.ask_service(&told.service, &request);
    if hs.service_sender.is_stopping() && !matches!(&answer, Ok(answer) if answer.is_success()) {
        return Ok(Delivery::PutOff);
    }
    if let Some(metrics) = &hs.metrics {
        metrics.service_transactions.add(ending_of(&answer));
    }
    let why = match answer {
        Ok(answer) if answer.is_success() => {
            let (key, now) = (told.key, hs.clock.now_ms());
            let ServiceTransaction { txn_id, events_upto, .. } = transaction;
            // What the disk does not get is sent again, under the same id.
            hs.store.write_lightly(move |tx| tx.appservice_took(key, (&txn_id, events_upto), now))?;
            return Ok(Delivery::Taken);
        }
        Ok(answer) => {
            let status = answer.status;
            if let Some(smaller) = smaller(status, (body, text.len()), row.failures) {
                make_smaller(hs, told, (transaction, &positions), smaller)?;
                return Ok(Delivery::MadeSmaller);
            }
            format!("it answers with status {status}")
        }
        Err(error) => error.to_string(),
    };
    let failures = row.failures.saturating_add(1);
    let id = &told.service.id;
    log::warn!("the application service {id:?} does not take what it is sent ({failures} in a row): {why}");
    let (key, due) = (told.key, hs.clock.now_ms() + PAUSES.pause_ms(failures));
    hs.store.write_lightly(move |tx| tx.appservice_failed(key, failures, due))?;
    Ok(Delivery::PutOff)
}

/// How the sending of a transaction ended, for who watches the server.
fn ending_of(answer: &Result<ServiceAnswer, ServiceError>) -> Ending {
    match answer {
        Ok(answer) if answer.is_success() => Ending::Done,
        Ok(ServiceAnswer { status: 429, .. }) => Ending::Limited,
        Ok(ServiceAnswer { status: ..=499, .. }) => Ending::Refused,
        Ok(_) => Ending::Failed,
        Err(_) => Ending::Unreachable,
    }
}

/// What is sent instead of a body of which a service says by its status that it is too large. One that only calls it bad may mean
/// that; nothing is left out for it.
fn smaller(status: u16, (body, bytes): (Body, usize), failures: u32) -> Option<Smaller> {
    let is_bad = status == 400 && failures >= BAD_BODY_FAILURES_MIN && bytes >= BAD_BODY_BYTES_MIN;
    let smaller = (status == 413 || is_bad).then(|| body.halve())?;
    Some(smaller).filter(|smaller| status == 413 || matches!(smaller, Smaller::Parts(_)))
}

/// Makes the next transaction, if there is anything for the service: `ephemeral` too, which it is worth no wait for the disk.
fn begin(
    hs: &Homeserver,
    told: &ToldService,
    ephemeral: impl Fn(usize) -> Vec<Json>,
    now: Millis,
) -> Result<Option<ServiceTransaction>> {
    loop {
        let (mut body, withdrawn) = hs.store.read(|db| contents(hs, db, told, now))?;
        let (key, lasts) = (told.key, !body.is_fleeting());
        let written = body.to_text()?.len();
        body.ephemeral = ephemeral(BODY_BYTES_MAX.saturating_sub(written) / 2);
        body.older_ephemeral.clone_from(&body.ephemeral);
        if !lasts && body.ephemeral.is_empty() {
            // What waited may be gone with its room.
            if withdrawn.events_upto == 0 {
                return Ok(None);
            }
            hs.store.write_lightly(move |tx| tx.drop_appservice_events(key, withdrawn.events_upto))?;
            continue;
        }
        // The events are written when they are sent.
        body.events.clear();
        let body = body.to_text()?;
        let begin = move |tx: &mut Tx<'_>| tx.begin_appservice_transaction(key, body, &withdrawn, now);
        return if lasts { hs.store.write(begin) } else { hs.store.write_lightly(begin) }.map(Some);
    }
}

/// Puts what is sent instead in the place of a transaction that is too large. `positions`: those of its events.
fn make_smaller(
    hs: &Homeserver,
    told: &ToldService,
    (transaction, positions): (ServiceTransaction, &[i64]),
    smaller: Smaller,
) -> Result<()> {
    let id = &told.service.id;
    let parts = match smaller {
        Smaller::Parts(parts) => {
            log::info!("a transaction is too large for the application service {id:?}: it is sent in parts");
            parts
        }
        Smaller::Alone(what) => {
            log::warn!("{what} is too large for the application service {id:?}: it is left out");
            Vec::new()
        }
    };
    let (count, mut told_events) = (parts.len(), 0);
    let mut written = Vec::new();
    for (number, mut part) in parts.into_iter().enumerate() {
        told_events += part.events.len();
        let last = told_events.checked_sub(1).and_then(|last| positions.get(last));
        // Those that are gone meanwhile go with the last part.
        let upto = if number + 1 == count { Some(&transaction.events_upto) } else { last };
        part.events.clear();
        written.push((upto.copied().unwrap_or(0), part.to_text()?));
    }
    let (key, now) = (told.key, hs.clock.now_ms());
    hs.store.write(move |tx| tx.replace_appservice_transaction(key, &transaction, written, now))
}

/// The body of a transaction with its events as they stand now, and as old as they were when it was made; and their positions.
fn whole_body(db: &Db<'_>, told: &ToldService, transaction: &ServiceTransaction) -> Result<(Body, Vec<i64>)> {
    let (mut body, mut positions) = (Body::parse(&transaction.body)?, Vec::new());
    for queued in db.appservice_events_upto(told.key, transaction.events_upto)? {
        let stream = queued.stream;
        if let Some(event) = event_json(db, told, queued, transaction.begun_ms)? {
            body.events.push(event);
            positions.push(stream);
        }
    }
    Ok((body, positions))
}

fn contents(hs: &Homeserver, db: &Db<'_>, told: &ToldService, now: Millis) -> Result<(Body, Withdrawn)> {
    let (mut body, mut bytes) = (Body::default(), 0);
    let mut withdrawn = Withdrawn::default();
    for queued in db.appservice_events(told.key, EVENTS_MAX)? {
        let stream = queued.stream;
        if let Some(event) = event_json(db, told, queued, now)? {
            bytes += event.get().len();
            if bytes > EVENTS_BYTES_MAX && !body.events.is_empty() {
                break;
            }
            body.events.push(event);
        }
        withdrawn.events_upto = stream;
    }
    if told.service.msc3202 {
        let is_its = |user: &str, maker: Option<&str>| hs.appservices.has_device(&told.service, user, maker);
        body.to_device = messages(db, &db.untold_lines(is_its)?, &mut withdrawn, now)?;
        encryption(db, told, is_its, (&mut body, &mut withdrawn))?;
    }
    Ok((body, withdrawn))
}

/// Messages to devices of the service's users, each with whom it is for (MSC4203). Those that their device fetches by itself too
/// stay until it has.
fn messages(db: &Db<'_>, lines: &[LineKey], withdrawn: &mut Withdrawn, now: Millis) -> Result<Vec<Json>> {
    let (mut messages, mut bytes) = (Vec::new(), 0);
    let (mut told, mut had) = (BTreeMap::new(), BTreeMap::new());
    for waiting in db.untold_messages(lines, MESSAGES_MAX)? {
        let mut message = parse_object(waiting.message.as_bytes())?;
        message.insert("to_user_id".to_owned(), waiting.user_id.into());
        message.insert("to_device_id".to_owned(), waiting.device_id.into());
        let message = to_raw_value(&message).map_err(Error::internal)?;
        bytes += message.get().len();
        if bytes > MESSAGES_BYTES_MAX && !messages.is_empty() {
            break;
        }
        messages.push(message);
        let syncs = waiting.synced_ms.is_some_and(|synced| now - synced < SYNCS_NO_MORE_AFTER_MS);
        if syncs { &mut told } else { &mut had }.insert(waiting.line, waiting.stream);
    }
    (withdrawn.told, withdrawn.messages) = (told.into_iter().collect(), had.into_iter().collect());
    Ok(messages)
}

/// What end-to-end encryption of the service's users takes (MSC3202). Devices without keys are told too: by that some services know
/// that it is time for their first ones.
fn encryption(
    db: &Db<'_>,
    told: &ToldService,
    is_its: impl FnMut(&str, Option<&str>) -> bool,
    (body, withdrawn): (&mut Body, &mut Withdrawn),
) -> Result<()> {
    let position = db.snapshot_position()?;
    let since = db.appservice(told.key)?.map_or(position, |row| row.devices_upto);
    let mut one_time_keys: OfDevices<BTreeMap<String, u64>> = BTreeMap::new();
    let mut fallback_keys: OfDevices<Vec<String>> = BTreeMap::new();
    let (mut with_keys, mut without) = (Vec::new(), Vec::new());
    for (user, device) in db.devices_where(is_its)? {
        match db.one_time_keys_left(&user, &device)? {
            Some(left) => with_keys.push((left, user, device)),
            None => without.push((user, device)),
        }
    }
    // All of them: of what is not told now nobody will be told later.
    for user in with_keys.iter().map(|(_, user, _)| user).collect::<BTreeSet<_>>() {
        let lists = device_lists_between(db, user, since, position, None)?;
        body.device_lists.changed.extend(lists.changed);
        body.device_lists.left.extend(lists.left);
    }
    order::sort(&mut with_keys);
    let fewest = with_keys.into_iter().take(DEVICES_MAX).map(|(_, user, device)| (user, device));
    for (user, device) in fewest.chain(without.into_iter().take(DEVICES_MAX)) {
        let counts = db.one_time_key_counts(&user, &device)?;
        let unused = db.unused_fallback_key_types(&user, &device)?;
        one_time_keys.entry(user.clone()).or_default().insert(device.clone(), counts);
        fallback_keys.entry(user).or_default().insert(device, unused);
    }
    let DeviceLists { changed, left } = &mut body.device_lists;
    left.retain(|user| !changed.contains(user));
    body.one_time_keys = Some(to_raw_value(&one_time_keys).map_err(Error::internal)?);
    body.fallback_keys = Some(to_raw_value(&fallback_keys).map_err(Error::internal)?);
    withdrawn.devices_upto = Some(position);
    Ok(())
}

/// An event as it stands now. None: it is gone, with its room.
fn event_json(db: &Db<'_>, told: &ToldService, queued: QueuedEvent, now: Millis) -> Result<Option<Json>> {
    let QueuedEvent { stream, key, json } = queued;
    if let Some(json) = json {
        return RawValue::from_string(json).map(Some).map_err(Error::internal);
    }
    let event = key.map(|key| db.find_event(key)).transpose()?.flatten();
    // The row of one that is gone may be that of another by now.
    let Some(event) = event.filter(|event| event.place.is_some_and(|place| place.stream == stream)) else {
        return Ok(None);
    };
    let reader = &told.service.sender;
    let erasure = Erasure::for_user(db, event.room, reader);
    // Whom the service speaks for is shown what they are invited to.
    let invited = event.pdu.state_key().filter(|_| event.pdu.membership() == Some(Membership::Invite));
    let invited = invited.and_then(|user| UserId::parse(user).ok()).filter(|user| told.service.may_be(user));
    let shown = match invited {
        Some(user) => Some(stripped_state_for_client(db, event.room, &event, &user)?),
        None => None,
    };
    client_format::for_service(&erasure, &ClientFormat::usual(reader, None, now), &event, shown).map(Some)
}
