//! One transaction: what is in it, its id, and how it is sent.

use std::time::Duration;

use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{DEVICE_LISTS_MAX, device_list_update};
use crate::clock::{Clock, Millis};
use crate::error::Result;
use crate::federation::{CallError, CallResult, Client};
use crate::protocol::json::read;
use crate::protocol::{ServerName, UserId, json};
use crate::random;
use crate::store::Db;
use crate::store::servers::destinations::OwedEvent;

/// The ephemeral part.
#[derive(Clone, Default)]
pub(super) struct TransactionEdus {
    pub(super) edus: Vec<String>,
    /// How many of them are durable, and up to which position these are among them.
    pub(super) durable: usize,
    pub(super) durable_upto: i64,
    /// If receipts are among them that may have been lost before: up to which position.
    pub(super) receipts_upto: Option<i64>,
    /// Tells transactions with equal ephemeral content apart.
    pub(super) serial: u64,
}

/// What a destination is owed in the stream up to a position: as much as goes into one transaction.
pub(super) struct OwedBatch {
    pub(super) events: Vec<OwedEvent>,
    /// Those local users whom it has come to share a room with, and the last updates of their device lists.
    pub(super) newly_shared: Vec<UserId>,
    pub(super) device_lists: Vec<String>,
    pub(super) upto: i64,
    /// Whether more is owed before the position that was asked for.
    pub(super) more: bool,
}

impl OwedBatch {
    pub(super) fn read(
        db: &Db<'_>,
        server: &ServerName,
        (after, mut upto): (i64, i64),
        max_pdus: usize,
    ) -> Result<Self> {
        let mut more = false;
        let mut events = db.owed_events(server, after, upto, max_pdus + 1)?;
        if events.len() > max_pdus {
            events.truncate(max_pdus);
            (more, upto) = (true, events.last().map_or(upto, |event| event.stream));
        }
        let mut users = db.newly_shared_users(server, (after, upto), DEVICE_LISTS_MAX + 1)?;
        if users.len() > DEVICE_LISTS_MAX {
            users.truncate(DEVICE_LISTS_MAX);
            (more, upto) = (true, users.last().map_or(upto, |(at, _)| *at));
            events.retain(|event| event.stream <= upto);
        }
        let newly_shared: Vec<UserId> = users.into_iter().map(|(_, user)| user).collect();
        let mut device_lists = Vec::new();
        for user in &newly_shared {
            device_lists.extend(device_list_update(db, user)?);
        }
        Ok(Self { events, newly_shared, device_lists, upto, more })
    }
}

/// A transaction that is ready to go.
pub(super) struct OutgoingTransaction {
    pub(super) upto: i64,
    pub(super) events: Vec<OwedEvent>,
    pub(super) edus: TransactionEdus,
    /// Whether more is owed beyond it.
    pub(super) more: bool,
    /// Time for the peer to take it in.
    pub(super) within: Duration,
}

/// Delivers a transaction. What single events came to on the other side is logged here and nowhere else.
pub(super) fn send(
    client: &Client,
    clock: &Clock,
    server: &ServerName,
    transaction: &OutgoingTransaction,
) -> CallResult<()> {
    #[derive(serde::Serialize)]
    struct Body<'a> {
        origin: &'a ServerName,
        origin_server_ts: Millis,
        pdus: Vec<&'a RawValue>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        edus: Vec<&'a RawValue>,
    }
    let mut pdus = Vec::with_capacity(transaction.events.len());
    for event in &transaction.events {
        // Its own events come back to nobody; we hand them on for a server that handed them in to us.
        if !is_from(event, server) {
            pdus.push(raw(&event.json)?);
        }
    }
    let edus = transaction.edus.edus.iter().map(|e| raw(e.as_bytes())).collect::<CallResult<Vec<_>>>()?;
    if pdus.is_empty() && edus.is_empty() {
        return Ok(());
    }
    let body = Body { origin: client.server_name(), origin_server_ts: clock.now_ms(), pdus, edus };
    let body = serde_json::to_vec(&body).map_err(|e| CallError::bad(e.to_string()))?;
    let refused = client.send_transaction(server, &transaction.id(), &body, transaction.within)?;
    for (event, why) in refused {
        let why: String = why.chars().take(300).collect();
        log::warn!("{server} could not process {event}: {why}");
    }
    Ok(())
}

fn raw(bytes: &[u8]) -> CallResult<&RawValue> {
    read(bytes).map_err(|e| CallError::bad(format!("what we owe is not JSON: {}", e.message())))
}

fn is_from(event: &OwedEvent, server: &ServerName) -> bool {
    #[derive(serde::Deserialize)]
    struct OfEvent<'a> {
        #[serde(borrow)]
        sender: std::borrow::Cow<'a, str>,
    }
    read::<OfEvent<'_>>(&event.json)
        .is_ok_and(|e| e.sender.split_once(':').is_some_and(|(_, of)| of == server.as_str()))
}

impl OutgoingTransaction {
    /// The transaction's id: the same for the same content, also after a restart, and never the same for another.
    pub(super) fn id(&self) -> String {
        let mut hash = Sha256::new();
        for event in &self.events {
            hash.update(event.stream.to_be_bytes());
            hash.update(event.event_id.as_str());
        }
        if !self.edus.edus.is_empty() {
            hash.update(json!([self.edus.serial, self.edus.edus, run_id()]).to_string());
        }
        json::base64_url(&hash.finalize())
    }
}

/// Tells the transactions of this run of the program apart from those of others.
fn run_id() -> &'static str {
    static RUN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    RUN.get_or_init(random::token)
}
