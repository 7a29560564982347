//! EDUs on their way out that several subjects send: to whom one goes that is local to a room, and the last word on a
//! user's devices and cross-signing keys, and on what local users have read.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{LOST_RECEIPTS_EDUS_MAX, LOST_RECEIPTS_MAX, Outgoing};
use crate::error::{Error, Result};
use crate::protocol::edu::Edu;
use crate::protocol::keys::cross_signing::CrossSigningKey;
use crate::protocol::keys::device::{KeySignature, SignedObject};
use crate::protocol::{EventId, RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::store::devices::cross_signing::{CrossSigningKeys, SignatureOfKey};
use crate::store::devices::device_lists::OwnChange;
use crate::store::ephemeral::receipts::{READ, Receipt};
use crate::store::{Db, RoomKey};

impl Outgoing {
    /// Sends an EDU to all other servers in a room, as far as they can be reached at the moment.
    pub(in crate::service) fn send_edu_to_room(
        &self,
        hs: &Homeserver,
        room: RoomKey,
        edu: &Edu,
    ) -> Result<()> {
        for server in hs.store.read(|db| db.resident_servers(room))? {
            if server != *hs.server_name() {
                self.send_edu(&server, edu.clone());
            }
        }
        Ok(())
    }
}

/// `m.receipt`s of what local users have read behind a position in rooms that they share with a server: of more than some, the last.
/// One message says of each user in each room one thing; of several threads there are several.
pub(super) fn lost_receipts(db: &Db<'_>, server: &ServerName, after: i64) -> Result<Vec<String>> {
    let mut contents: Vec<BTreeMap<RoomId, BTreeMap<String, Value>>> = Vec::new();
    for (room, receipt) in db.receipts_for_server(server, after, LOST_RECEIPTS_MAX)? {
        let Ok(event) = EventId::parse(&receipt.event_id) else { continue };
        let event = db.event(&event)?;
        // "Read receipts for events that a user sent do not need to be sent."
        if event.is_some_and(|event| event.pdu.sender().as_str() == receipt.user_id) {
            continue;
        }
        let is_free = |content: &BTreeMap<RoomId, BTreeMap<String, Value>>| {
            content.get(&room).is_none_or(|of_room| !of_room.contains_key(&receipt.user_id))
        };
        let at = contents.iter().position(is_free).unwrap_or(contents.len());
        if at == LOST_RECEIPTS_EDUS_MAX {
            continue;
        }
        if at == contents.len() {
            contents.push(BTreeMap::new());
        }
        let of_user = told_receipt(&receipt);
        contents[at].entry(room).or_default().insert(receipt.user_id, of_user);
    }
    let edus = contents.into_iter().map(|content| {
        let rooms = content.into_iter().map(|(room, users)| (room.to_string(), json!({ READ: users })));
        edu("m.receipt", &Value::from_iter(rooms))
    });
    edus.collect()
}

/// What an `m.receipt` says of one user.
pub(in crate::service) fn told_receipt(receipt: &Receipt) -> Value {
    let mut data = json!({ "ts": receipt.ts });
    if !receipt.thread.is_empty() {
        data["thread_id"] = json!(receipt.thread);
    }
    json!({ "event_ids": [receipt.event_id], "data": data })
}

/// `m.device_list_update` of a local user's last change; none if there never was one. It is told to servers that share
/// a room with the user from now on, too: who has it knows that its list is right, and who lacks what it rests on
/// fetches the list.
pub(in crate::service) fn device_list_update(db: &Db<'_>, user: &UserId) -> Result<Option<String>> {
    #[derive(Serialize)]
    struct Content<'a> {
        user_id: &'a UserId,
        device_id: &'a str,
        stream_id: i64,
        prev_id: &'a [i64],
        #[serde(skip_serializing_if = "Option::is_none")]
        device_display_name: Option<&'a str>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        deleted: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        keys: Option<Box<RawValue>>,
    }
    let Some(OwnChange { stream_id, previous, device_id }) = db.own_device_change(user)? else {
        return Ok(None);
    };
    let device = db.device(user, &device_id)?;
    let content = Content {
        user_id: user,
        device_id: &device_id,
        stream_id,
        prev_id: previous.as_slice(),
        device_display_name: device.as_ref().and_then(|device| device.display_name.as_deref()),
        deleted: device.is_none(),
        keys: keys_of_device(db, user, &device_id)?,
    };
    edu("m.device_list_update", &content).map(Some)
}

/// `m.signing_key_update` of a local user's cross-signing keys, those that are shown to everybody; none if there are none.
pub(in crate::service) fn signing_key_update(db: &Db<'_>, user: &UserId) -> Result<Option<String>> {
    #[derive(Serialize)]
    struct Content<'a> {
        user_id: &'a UserId,
        #[serde(flatten)]
        keys: ShownOwnKeys,
    }
    let keys = shown_own_keys(db, user)?;
    if keys.master_key.is_none() && keys.self_signing_key.is_none() {
        return Ok(None);
    }
    edu("m.signing_key_update", &Content { user_id: user, keys }).map(Some)
}

fn edu(edu_type: &str, content: &impl Serialize) -> Result<String> {
    let content = serde_json::to_string(content).map_err(Error::internal)?;
    Ok(format!("{{\"content\":{content},\"edu_type\":\"{edu_type}\"}}"))
}

/// The cross-signing keys of a local user as other servers are told them.
#[derive(Serialize)]
pub(in crate::service) struct ShownOwnKeys {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::service) master_key: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::service) self_signing_key: Option<Box<RawValue>>,
}

/// The cross-signing keys of a local user, with the user's own signatures: those that others made of them are for who made
/// them.
pub(in crate::service) fn shown_own_keys(db: &Db<'_>, user: &UserId) -> Result<ShownOwnKeys> {
    let CrossSigningKeys { master, self_signing, .. } = db.cross_signing_keys(user)?;
    let signatures = db.signatures_of_keys(user, None)?;
    let key = |key: Option<CrossSigningKey>| {
        key.map(|key| signed(&key.signed, user, &signatures, &key.public_key)).transpose()
    };
    Ok(ShownOwnKeys { master_key: key(master)?, self_signing_key: key(self_signing)? })
}

/// The identity keys of a local user's device, with the signature of the user's self-signing key if it has one.
fn keys_of_device(db: &Db<'_>, user: &UserId, device: &str) -> Result<Option<Box<RawValue>>> {
    let Some(keys) = db.keys_of_device(user, device)? else { return Ok(None) };
    signed(&keys, user, &db.signatures_of_keys(user, None)?, device).map(Some)
}

/// A signed object as others are told it, with those of the signatures that are of it.
pub(in crate::service) fn signed(
    object: &SignedObject,
    owner: &UserId,
    signatures: &[SignatureOfKey],
    target: &str,
) -> Result<Box<RawValue>> {
    let of_it = signatures.iter().filter(|signed| signed.target == target);
    let of_it: Vec<KeySignature> = of_it.map(|signed| signed.signature.clone()).collect();
    let mut text = String::new();
    object.write(&mut text, owner, &of_it, None);
    RawValue::from_string(text).map_err(Error::internal)
}
