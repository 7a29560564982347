//! The transaction that a service is sent: made of what waits for it, written down with its id before it is first sent, and sent
//! as it is until the service has taken it, but for what was redacted meanwhile. Only then there is a next one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::interest::ToldService;
use crate::backoff::Backoff;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::federation::appservices::{ServiceAnswer, ServiceError, ServiceRequest};
use crate::metrics::Ending;
use crate::protocol::UserId;
use crate::protocol::json::{parse_object, read_stored};
use crate::service::Homeserver;
use crate::service::events::erasure::Erasure;
use crate::service::rooms::client_format::{self, ClientFormat, Json};
use crate::service::sync::device_lists_between;
use crate::store::appservices::queue::{QueuedEvent, ServiceTransaction, Withdrawn};
use crate::store::{Db, Tx};

/// Pauses of a service that does not take what it is sent.
pub(in crate::service) const PAUSES: Backoff = Backoff::doubling(2_000, 512_000);
/// A service may have much to do with what it is sent before it says that it has it.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Events of one transaction.
const EVENTS_MAX: usize = 100;
/// Messages to devices of one transaction.
const MESSAGES_MAX: usize = 100;
/// Of so many devices of a service's users it is told how many keys they have left: of those that have the fewest.
const DEVICES_MAX: usize = 100;
/// Behind so many bytes a transaction gets no further event.
const BODY_BYTES_MAX: usize = 4 << 20;

/// What became of a look at a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It has taken a transaction: there may be more.
    Taken,
    /// There is nothing for it.
    Nothing,
    /// It has not taken what there is, and is tried again later.
    PutOff,
}

/// Sends a service the transaction that it has not taken yet, or the next one. `forced`: also if that is put off.
/// `ephemeral`: what is fleeting and goes with the next one.
pub(super) fn deliver(
    hs: &Homeserver,
    told: &ToldService,
    forced: bool,
    ephemeral: impl FnOnce() -> Vec<Value>,
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
        None => begin(hs, told, &ephemeral(), now)?,
    };
    let Some(transaction) = transaction else {
        return Ok(Delivery::Nothing);
    };
    let body = hs.store.read(|db| whole_body(db, told, &transaction))?;
    let ServiceTransaction { txn_id, events_upto, .. } = transaction;
    let request = ServiceRequest {
        method: "PUT",
        path: &format!("/_matrix/app/v1/transactions/{txn_id}"),
        legacy_path: Some(&format!("/transactions/{txn_id}")),
        body: Some(&body),
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
            // What the disk does not get is sent again, under the same id.
            hs.store.write_lightly(move |tx| tx.appservice_took(key, (&txn_id, events_upto), now))?;
            return Ok(Delivery::Taken);
        }
        Ok(answer) => format!("it answers with status {}", answer.status),
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

/// What goes into a transaction.
#[derive(Default)]
struct Contents {
    /// How many events.
    events: usize,
    to_device: Vec<Json>,
    encryption: Option<Encryption>,
    withdrawn: Withdrawn,
}

/// Something of each device of each user.
type OfDevices<T> = BTreeMap<UserId, BTreeMap<String, T>>;

/// What end-to-end encryption of a service's users takes (MSC3202).
struct Encryption {
    device_lists: DeviceLists,
    one_time_keys: OfDevices<BTreeMap<String, u64>>,
    fallback_keys: OfDevices<Vec<String>>,
}

/// Whose keys are to be looked at anew, and whose no more.
#[derive(Default, Serialize)]
struct DeviceLists {
    changed: BTreeSet<UserId>,
    left: BTreeSet<UserId>,
}

/// The body of a transaction but for its events, under the names that services know. What is fleeting stands there twice: libraries
/// read the one name or the other, or the older one where the other is not there, and none takes both.
#[derive(Serialize)]
struct Body<'b> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ephemeral: &'b [Value],
    #[serde(rename = "de.sorunome.msc2409.ephemeral", skip_serializing_if = "<[_]>::is_empty")]
    older_ephemeral: &'b [Value],
    #[serde(rename = "de.sorunome.msc2409.to_device", skip_serializing_if = "<[_]>::is_empty")]
    to_device: &'b [Json],
    #[serde(rename = "org.matrix.msc3202.device_lists", skip_serializing_if = "Option::is_none")]
    device_lists: Option<&'b DeviceLists>,
    #[serde(
        rename = "org.matrix.msc3202.device_one_time_keys_count",
        skip_serializing_if = "Option::is_none"
    )]
    one_time_keys: Option<&'b OfDevices<BTreeMap<String, u64>>>,
    #[serde(
        rename = "org.matrix.msc3202.device_unused_fallback_key_types",
        skip_serializing_if = "Option::is_none"
    )]
    fallback_keys: Option<&'b OfDevices<Vec<String>>>,
}

/// Makes the next transaction, if there is anything for the service: `ephemeral` too, which it is worth no wait for the disk.
fn begin(
    hs: &Homeserver,
    told: &ToldService,
    ephemeral: &[Value],
    now: Millis,
) -> Result<Option<ServiceTransaction>> {
    loop {
        let Contents { events, to_device, encryption, withdrawn } =
            hs.store.read(|db| contents(db, told, now))?;
        let key = told.key;
        let device_lists = encryption.as_ref().map(|encryption| &encryption.device_lists);
        let device_lists = device_lists.filter(|lists| !lists.changed.is_empty() || !lists.left.is_empty());
        let lasts = events > 0 || !to_device.is_empty() || device_lists.is_some();
        if !lasts && ephemeral.is_empty() {
            // What waited may be gone with its room.
            if withdrawn.events_upto == 0 {
                return Ok(None);
            }
            hs.store.write_lightly(move |tx| tx.drop_appservice_events(key, withdrawn.events_upto))?;
            continue;
        }
        let body = Body {
            ephemeral,
            older_ephemeral: ephemeral,
            to_device: &to_device,
            device_lists,
            one_time_keys: encryption.as_ref().map(|encryption| &encryption.one_time_keys),
            fallback_keys: encryption.as_ref().map(|encryption| &encryption.fallback_keys),
        };
        let body = serde_json::to_string(&body).map_err(Error::internal)?;
        let begin = move |tx: &mut Tx<'_>| tx.begin_appservice_transaction(key, body, &withdrawn, now);
        return if lasts { hs.store.write(begin) } else { hs.store.write_lightly(begin) }.map(Some);
    }
}

fn contents(db: &Db<'_>, told: &ToldService, now: Millis) -> Result<Contents> {
    let (mut events, mut bytes) = (0, 0);
    let mut withdrawn = Withdrawn::default();
    let service = &told.service;
    for queued in db.appservice_events(told.key, EVENTS_MAX)? {
        if bytes > BODY_BYTES_MAX {
            break;
        }
        withdrawn.events_upto = queued.stream;
        let Some(event) = event_json(db, told, queued, now)? else { continue };
        bytes += event.get().len();
        events += 1;
    }
    let to_device = match service.receive_ephemeral || service.msc3202 {
        true => messages(db, &service.id, &mut withdrawn)?,
        false => Vec::new(),
    };
    let encryption = match service.msc3202 {
        true => Some(encryption(db, told, &mut withdrawn)?),
        false => None,
    };
    Ok(Contents { events, to_device, encryption, withdrawn })
}

/// The body of a transaction with its events as they stand now, and as old as they were when it was made.
fn whole_body(db: &Db<'_>, told: &ToldService, transaction: &ServiceTransaction) -> Result<String> {
    let mut body: BTreeMap<&str, Json> = read_stored(&transaction.body).map_err(Error::internal)?;
    let mut events = Vec::new();
    for queued in db.appservice_events_upto(told.key, transaction.events_upto)? {
        events.extend(event_json(db, told, queued, transaction.begun_ms)?);
    }
    body.insert("events", to_raw_value(&events).map_err(Error::internal)?);
    serde_json::to_string(&body).map_err(Error::internal)
}

/// Messages to devices of the service's users, each with whom it is for (MSC4203).
fn messages(db: &Db<'_>, id: &str, withdrawn: &mut Withdrawn) -> Result<Vec<Json>> {
    let (mut messages, mut upto) = (Vec::new(), BTreeMap::new());
    for waiting in db.to_device_of_service(id, MESSAGES_MAX)? {
        let mut message = parse_object(waiting.message.as_bytes())?;
        message.insert("to_user_id".to_owned(), waiting.user_id.into());
        message.insert("to_device_id".to_owned(), waiting.device_id.into());
        messages.push(to_raw_value(&message).map_err(Error::internal)?);
        upto.insert(waiting.line, waiting.stream);
    }
    withdrawn.messages = upto.into_iter().collect();
    Ok(messages)
}

fn encryption(db: &Db<'_>, told: &ToldService, withdrawn: &mut Withdrawn) -> Result<Encryption> {
    let position = db.snapshot_position()?;
    let since = db.appservice(told.key)?.map_or(position, |row| row.devices_upto);
    let mut found = Encryption {
        device_lists: DeviceLists::default(),
        one_time_keys: BTreeMap::new(),
        fallback_keys: BTreeMap::new(),
    };
    // All of them: of what is not told now nobody will be told later.
    for user in db.encrypting_users_of_service(&told.service.id)? {
        let lists = device_lists_between(db, &user, since, position, None)?;
        found.device_lists.changed.extend(lists.changed);
        found.device_lists.left.extend(lists.left);
    }
    for (user, device) in db.devices_of_service(&told.service.id, DEVICES_MAX)? {
        let counts = db.one_time_key_counts(&user, &device)?;
        let unused = db.unused_fallback_key_types(&user, &device)?;
        found.one_time_keys.entry(user.clone()).or_default().insert(device.clone(), counts);
        found.fallback_keys.entry(user).or_default().insert(device, unused);
    }
    let DeviceLists { changed, left } = &mut found.device_lists;
    left.retain(|user| !changed.contains(user));
    withdrawn.devices_upto = Some(position);
    Ok(found)
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
    client_format::for_service(&erasure, &ClientFormat::usual(reader, None, now), &event).map(Some)
}
