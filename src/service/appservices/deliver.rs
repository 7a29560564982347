//! The transaction that a service is sent: made of what waits for it, written down with its id before it is first sent, and sent
//! as it is until the service has taken it. Only then there is a next one.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use super::interest::ToldService;
use crate::backoff::Backoff;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::federation::appservices::ServiceRequest;
use crate::service::Homeserver;
use crate::service::events::erasure::Erasure;
use crate::service::rooms::client_format::{self, ClientFormat, Json};
use crate::store::Db;
use crate::store::appservices::queue::{QueuedEvent, ServiceTransaction, Withdrawn};

/// Pauses of a service that does not take what it is sent.
pub(in crate::service) const PAUSES: Backoff = Backoff::doubling(2_000, 512_000);
/// A service may have much to do with what it is sent before it says that it has it.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Events of one transaction.
const EVENTS_MAX: usize = 100;
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
pub(super) fn deliver(hs: &Homeserver, told: &ToldService, forced: bool) -> Result<Delivery> {
    let now = hs.clock.now_ms();
    let (row, begun) =
        hs.store.read(|db| Ok((db.appservice(told.key)?, db.appservice_transaction(told.key)?)))?;
    let Some(row) = row else { return Ok(Delivery::Nothing) };
    if !forced && row.due_ms.is_some_and(|due| due > now) {
        return Ok(Delivery::PutOff);
    }
    let Some(transaction) = begun.map_or_else(|| begin(hs, told, now), |begun| Ok(Some(begun)))? else {
        return Ok(Delivery::Nothing);
    };
    let ServiceTransaction { txn_id, body, .. } = transaction;
    let request = ServiceRequest {
        method: "PUT",
        path: &format!("/_matrix/app/v1/transactions/{txn_id}"),
        legacy_path: Some(&format!("/transactions/{txn_id}")),
        body: Some(&body),
        timeout: TRANSACTION_TIMEOUT,
    };
    let why = match hs.federation.ask_service(&told.service, &request) {
        Ok(answer) if answer.is_success() => {
            let (key, now) = (told.key, hs.clock.now_ms());
            // What the disk does not get is sent again, under the same id.
            hs.store.write_lightly(move |tx| tx.appservice_took(key, &txn_id, now))?;
            return Ok(Delivery::Taken);
        }
        Ok(answer) => format!("it answers with status {}", answer.status),
        Err(error) => error.to_string(),
    };
    if hs.service_sender.is_stopping() {
        return Ok(Delivery::PutOff);
    }
    let failures = row.failures.saturating_add(1);
    let id = &told.service.id;
    log::warn!("the application service {id:?} does not take what it is sent ({failures} in a row): {why}");
    let (key, due) = (told.key, hs.clock.now_ms() + PAUSES.pause_ms(failures));
    hs.store.write_lightly(move |tx| tx.appservice_failed(key, failures, due))?;
    Ok(Delivery::PutOff)
}

/// What goes into a transaction.
struct Contents {
    events: Vec<Json>,
    withdrawn: Withdrawn,
}

/// Makes the next transaction, if there is anything for it.
fn begin(hs: &Homeserver, told: &ToldService, now: Millis) -> Result<Option<ServiceTransaction>> {
    loop {
        let Contents { events, withdrawn } = hs.store.read(|db| contents(db, told, now))?;
        let (key, count) = (told.key, events.len());
        if events.is_empty() {
            // What waited may be gone with its room.
            if withdrawn.events_upto == 0 {
                return Ok(None);
            }
            hs.store.write_lightly(move |tx| tx.withdraw_for_appservice(key, &withdrawn))?;
            continue;
        }
        let body = serde_json::to_string(&Body { events }).map_err(Error::internal)?;
        let txn_id = hs.store.write({
            let body = body.clone();
            move |tx| tx.begin_appservice_transaction(key, (count, &body), &withdrawn, now)
        })?;
        return Ok(Some(ServiceTransaction { txn_id, events: count, body }));
    }
}

/// The body of a transaction.
#[derive(Serialize)]
struct Body {
    events: Vec<Json>,
}

fn contents(db: &Db<'_>, told: &ToldService, now: Millis) -> Result<Contents> {
    let (mut events, mut bytes) = (Vec::new(), 0);
    let mut withdrawn = Withdrawn::default();
    for queued in db.appservice_events(told.key, EVENTS_MAX)? {
        if bytes > BODY_BYTES_MAX {
            break;
        }
        withdrawn.events_upto = queued.stream;
        let Some(event) = event_json(db, told, queued, now)? else { continue };
        bytes += event.get().len();
        events.push(event);
    }
    Ok(Contents { events, withdrawn })
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
