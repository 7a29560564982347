//! Messages from device to device: kept for ours until they have them, owed durably to the servers of others.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::edus::Intake;
use super::{Homeserver, random};
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::{ServerName, UserId};
use crate::store::Tx;
use crate::store::client_transactions::ClientTxn;
use crate::store::to_device::{Line, Origin};

/// The device id that stands for all of a user's devices.
const ALL: &str = "*";
/// The largest content of one message, in bytes: as much as an event may have.
const LARGEST: usize = 65_536;
/// Longest type of a message, in bytes.
const LONGEST_TYPE: usize = 255;
/// Messages in one request, or in one ephemeral message of another server.
const MOST_MESSAGES: usize = 10_000;
/// Bytes of messages that share an ephemeral message to another server, unless one alone has more.
const SHARE: usize = 50_000;
/// "Arbitrary utf8 string, of maximum length 32 codepoints."
const LONGEST_ID: usize = 32;
/// When who has sent a device more than it fetches should come again.
const COME_AGAIN: Millis = 20_000;

/// Messages by user and device: a JSON object each.
type Messages = BTreeMap<String, BTreeMap<String, Map<String, Value>>>;

/// `m.direct_to_device` between servers.
#[derive(Deserialize)]
pub(super) struct DirectToDevice {
    sender: UserId,
    #[serde(rename = "type")]
    event_type: String,
    message_id: String,
    messages: Messages,
}

impl Homeserver {
    /// Sends messages to devices, here and elsewhere; the same transaction id again sends nothing. Users and devices
    /// that do not exist are passed over. Errors: 400 `M_BAD_JSON` for what are no messages, 413 `M_TOO_LARGE`, 429
    /// `M_LIMIT_EXCEEDED` if too many of the sender's messages wait for one of the devices; then none was sent.
    pub fn send_to_device(&self, event_type: &str, messages: Value, txn: ClientTxn) -> Result<()> {
        let messages = Messages::deserialize(messages).map_err(|e| {
            Error::bad_json(format!("messages must have users, their devices and objects: {e}"))
        })?;
        if event_type.is_empty() || event_type.len() > LONGEST_TYPE {
            return Err(Error::invalid_param("The type of a message has between 1 and 255 bytes"));
        }
        let mut here: Vec<(UserId, String, String)> = Vec::new();
        let mut elsewhere: BTreeMap<ServerName, Messages> = BTreeMap::new();
        let mut count = 0;
        for (user, devices) in messages {
            let user = UserId::parse(&user)?;
            for (device, content) in devices {
                count += 1;
                if count > MOST_MESSAGES {
                    return Err(Error::new(ErrCode::TooLarge, "These are too many messages"));
                }
                let message = written(txn.user_id.as_str(), event_type, &content)
                    .ok_or_else(|| Error::new(ErrCode::TooLarge, "One of the messages is too large"))?;
                if self.is_ours(&user) {
                    here.push((user.clone(), device, message));
                } else {
                    let of_user = elsewhere.entry(user.server()).or_default().entry(user.to_string());
                    of_user.or_default().insert(device, content);
                }
            }
        }
        let mut owed = Vec::new();
        for (server, messages) in elsewhere {
            for share in shares(messages) {
                let content = json!({
                    "sender": txn.user_id, "type": event_type, "message_id": random::letters(16), "messages": share,
                });
                let edu = json!({ "edu_type": "m.direct_to_device", "content": content });
                owed.push((server.clone(), edu.to_string()));
            }
        }
        let now = self.clock.now_ms();
        self.store.write(move |tx| {
            if tx.has_client_txn(&txn)? {
                return Ok(());
            }
            tx.add_client_txn(&txn, None, now)?;
            let origin = Origin::User(&txn.user_id);
            for (user, device, message) in &here {
                deliver(tx, (user, device), message, origin, now)?;
            }
            for (server, edu) in &owed {
                if !tx.owe_message(server, edu, now)? {
                    log::warn!("too many messages wait for {server}: one was dropped");
                }
            }
            Ok(())
        })
    }

    /// `m.direct_to_device` of another server, to be taken in at the end of the transaction.
    pub(super) fn receive_to_device(&self, intake: &mut Intake<'_>, content: Value) {
        let Ok(said) = DirectToDevice::deserialize(content) else { return };
        let id_fits = !said.message_id.is_empty() && said.message_id.chars().count() <= LONGEST_ID;
        let type_fits = !said.event_type.is_empty() && said.event_type.len() <= LONGEST_TYPE;
        let count: usize = said.messages.values().map(BTreeMap::len).sum();
        if intake.owns(&said.sender) && id_fits && type_fits && count <= MOST_MESSAGES {
            intake.to_device.push(said);
        } else {
            log::debug!("{} sent messages to devices that are none", intake.origin());
        }
    }

    /// Takes in what [`Self::receive_to_device`] has put by, all in one commit. Errors: 429 `M_LIMIT_EXCEEDED` if too many
    /// of the server's messages wait for one of the devices, so that it keeps them until there is room; then none was
    /// taken in.
    pub(super) fn take_in_to_device(&self, origin: &ServerName, received: Vec<DirectToDevice>) -> Result<()> {
        if received.is_empty() {
            return Ok(());
        }
        let (origin, now) = (origin.clone(), self.clock.now_ms());
        self.store.write(move |tx| {
            let origin = match tx.is_neighbour(&origin)? {
                true => Origin::Neighbour(&origin),
                false => Origin::Stranger(&origin),
            };
            for said in &received {
                if !tx.receive_to_device(origin, &said.message_id, now)? {
                    continue;
                }
                for (user, devices) in &said.messages {
                    let Ok(user) = UserId::parse(user) else { continue };
                    if !tx.is_ours(user.as_str()) {
                        continue;
                    }
                    for (device, content) in devices {
                        match written(said.sender.as_str(), &said.event_type, content) {
                            Some(message) => deliver(tx, (&user, device), &message, origin, now)?,
                            None => log::info!("{} sent {user} a message that is too large", said.sender),
                        }
                    }
                }
            }
            tx.sweep_received_to_device(origin, now)
        })
    }
}

/// Lets a message wait for a device of ours, or for all of the user's. Who does not exist gets none. Errors: 429
/// `M_LIMIT_EXCEEDED` if the origin's share of the device's line is full.
fn deliver(
    tx: &mut Tx<'_>,
    (user, device): (&UserId, &str),
    message: &str,
    origin: Origin<'_>,
    now: Millis,
) -> Result<()> {
    let devices = match device {
        ALL => tx.devices(user)?,
        device => tx.device(user, device)?.into_iter().collect(),
    };
    for device in devices {
        match tx.add_to_device(user, &device, message, origin, now)? {
            Line::Waits => {}
            Line::Asleep => {
                log::warn!(
                    "a message of {origin:?} for {} of {user}, which is asleep, is dropped",
                    device.device_id
                );
            }
            Line::Full => {
                log::info!("too many messages of {origin:?} wait for {} of {user}", device.device_id);
                return Err(Error::new(
                    ErrCode::LimitExceeded,
                    "Too many of your messages wait for a device",
                )
                .with_field("retry_after_ms", COME_AGAIN));
            }
        }
    }
    Ok(())
}

/// A message as clients get it; none if it is too large.
fn written(sender: &str, event_type: &str, content: &Map<String, Value>) -> Option<String> {
    let message = json!({ "sender": sender, "type": event_type, "content": content }).to_string();
    (message.len() <= LARGEST).then_some(message)
}

/// The messages in portions that other servers take in.
fn shares(messages: Messages) -> Vec<Messages> {
    let mut shares = vec![Messages::new()];
    let mut bytes = 0;
    for (user, devices) in messages {
        for (device, content) in devices {
            let size = user.len() + device.len() + Value::Object(content.clone()).to_string().len();
            if bytes > 0 && bytes + size > SHARE {
                shares.push(Messages::new());
                bytes = 0;
            }
            bytes += size;
            if let Some(share) = shares.last_mut() {
                share.entry(user.clone()).or_default().insert(device, content);
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_messages_go_in_portions_and_none_is_lost_or_split() {
        let content = |n: usize| json!({ "n": n, "text": "x".repeat(20_000) }).as_object().unwrap().clone();
        let devices = |from: usize| (from..from + 3).map(|n| (format!("D{n}"), content(n))).collect();
        let messages = Messages::from([("@a:x".to_owned(), devices(0)), ("@b:x".to_owned(), devices(3))]);
        let shares = shares(messages.clone());
        assert_eq!(shares.len(), 3);
        let mut whole = Messages::new();
        for share in shares {
            for (user, devices) in share {
                whole.entry(user).or_default().extend(devices);
            }
        }
        assert_eq!(whole, messages);
    }
}
