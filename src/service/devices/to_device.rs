//! Messages from device to device: kept for those of local users until they have them, owed durably to the servers of
//! others.

use std::collections::BTreeMap;

use serde_json::json;
use serde_json::value::RawValue;

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::edu::{DeviceMessages, DirectToDevice};
use crate::protocol::json::{AtMostMembers, ObjectText, read, read_object};
use crate::protocol::{ServerName, UserId};
use crate::random;
use crate::service::devices::{Devices, is_of};
use crate::store::accounts::client_transactions::ClientTxn;
use crate::store::devices::to_device::{InboxOutcome, MessageOrigin, Recipient};
use crate::store::{Db, Tx};

/// The device id that stands for all of a user's devices.
const ALL_DEVICES: &str = "*";
/// The largest message, in bytes: as much as an event may have.
const MESSAGE_BYTES_MAX: usize = 65_536;
/// Longest type of a message, in bytes.
const TYPE_BYTES_MAX: usize = 255;
/// Messages in one request, or in one ephemeral message of another server.
const MESSAGES_MAX: usize = 10_000;
/// Bytes of messages that share an ephemeral message to another server, unless one alone has more; and the largest such
/// message, as large as an event may be: others refuse whole transactions for the sake of what is larger.
const EDU_SHARE_BYTES: usize = 50_000;
const EDU_BYTES_MAX: usize = 65_536;
/// "Arbitrary utf8 string, of maximum length 32 codepoints."
const MESSAGE_ID_CHARS_MAX: usize = 32;
/// Messages that are looked up or written at once, and their bytes: so many hold up nobody. What is written of one
/// request or ephemeral message goes in portions that are noted one by one, so that a repeat of it goes on where it
/// stopped.
const MESSAGES_AT_ONCE_MAX: usize = 200;
const ROWS_AT_ONCE_MAX: usize = 500;
const BYTES_AT_ONCE_MAX: usize = 8 << 20;
/// What the messages of one request, or of one ephemeral message, come to in bytes for the devices that `*` stands for: twice what
/// a request can have that names each of them.
const TO_ALL_BYTES_MAX: usize = 4 << 20;
/// Messages of devices that were logged out which go in one commit, and how often the timer does so before it looks at what else is
/// due.
const ENDED_AT_ONCE_MAX: usize = 250;
const ENDED_COMMITS: usize = 8;
/// When who has sent a device more than it fetches should come again.
const RETRY_AFTER_MS: Millis = 20_000;

impl Devices<'_> {
    /// Sends messages to devices, here and elsewhere; the same transaction id again sends nothing. Users and devices
    /// that do not exist are passed over. Errors: 400 `M_BAD_JSON` for what are no messages, 413 `M_TOO_LARGE` if one of
    /// them is larger than an event may be, alone in its ephemeral message where it goes to another server, or those for all of
    /// somebody's devices come to too much, 429
    /// `M_LIMIT_EXCEEDED` if too many of the sender's messages wait for one of the devices; then none was sent, or of
    /// many hundreds some, and the same request sends the others.
    pub fn send_to_device(&self, event_type: &str, messages: &RawValue, txn: ClientTxn) -> Result<()> {
        type OfUsers = AtMostMembers<BTreeMap<String, ObjectText>, MESSAGES_MAX>;
        let AtMostMembers(messages): OfUsers = read(messages.get().as_bytes()).map_err(|e| {
            let why = format!("messages must have users, their devices and objects: {}", e.message());
            Error::bad_json(why)
        })?;
        if event_type.is_empty() || event_type.len() > TYPE_BYTES_MAX {
            return Err(Error::invalid_param("The type of a message has between 1 and 255 bytes"));
        }
        let envelope = Envelope::of(txn.user_id.as_str(), event_type);
        let mut here: Vec<DeviceMessage> = Vec::new();
        let mut elsewhere: BTreeMap<ServerName, DeviceMessages> = BTreeMap::new();
        let mut count = 0;
        for (user, devices) in messages {
            let user = UserId::parse(&user)?;
            let is_here = self.is_local(&user);
            for (device, content) in devices {
                count += 1;
                if count > MESSAGES_MAX {
                    return Err(Error::new(ErrCode::TooLarge, "These are too many messages"));
                }
                let message = envelope.around(&content).ok_or_else(too_large)?;
                if is_here {
                    here.push(DeviceMessage { user: user.clone(), device, message, recipients: Vec::new() });
                } else {
                    let of_user = elsewhere.entry(user.server()).or_default().entry(user.to_string());
                    of_user.or_default().insert(device, content);
                }
            }
        }
        let owed = edus(&txn.user_id, event_type, elsewhere)?;
        let here = self.portions(&txn.txn_id, &txn.user_id, here)?;
        for portion in batches(here) {
            let (txn, now) = (txn.clone(), self.clock.now_ms());
            self.store.write(move |tx| {
                for portion in portion {
                    let txn = ClientTxn { txn_id: portion.mark.clone(), ..txn.clone() };
                    if tx.has_client_txn(&txn)? {
                        continue;
                    }
                    tx.add_client_txn(&txn, None, now)?;
                    deliver_all(tx, &portion, MessageOrigin::User(&txn.user_id), now)?;
                }
                Ok(())
            })?;
        }
        for (number, owed) in owed.chunks(MESSAGES_AT_ONCE_MAX).enumerate() {
            let txn_id = mark(&txn.txn_id, ELSEWHERE, number);
            let (txn, owed, now) = (ClientTxn { txn_id, ..txn.clone() }, owed.to_vec(), self.clock.now_ms());
            self.store.write(move |tx| {
                if tx.has_client_txn(&txn)? {
                    return Ok(());
                }
                tx.add_client_txn(&txn, None, now)?;
                for (server, edu) in &owed {
                    if !tx.owe_message(server, edu, now)? {
                        log::warn!("too many messages wait for {server}: one was dropped");
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Deletes some of the messages of devices that were logged out, for the timer. Whether there are more of them.
    pub(in crate::service) fn empty_ended_lines(&self) -> Result<bool> {
        if !self.store.read(|db| db.has_ended_lines())? {
            return Ok(false);
        }
        for _ in 0..ENDED_COMMITS {
            if !self.store.write(|tx| tx.empty_ended_lines(ENDED_AT_ONCE_MAX))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The messages for local devices that exist, in portions. They are looked up here, so that those for nobody cost
    /// the writer nothing, however many they are. Errors: 413 `M_TOO_LARGE` for too much for all of somebody's devices.
    fn portions(
        &self,
        id: &str,
        sender: &UserId,
        messages: Vec<DeviceMessage>,
    ) -> Result<Vec<MessagePortion>> {
        let (mut portions, mut number, mut bytes_to_all) = (Vec::new(), 0, 0);
        let mut messages = messages.into_iter();
        loop {
            let some: Vec<DeviceMessage> = messages.by_ref().take(MESSAGES_AT_ONCE_MAX).collect();
            if some.is_empty() {
                return Ok(portions);
            }
            let (messages, looked_upto) = self.store.read(|db| {
                let mut known = Vec::new();
                for mut message in some {
                    message.recipients = recipients_of(db, &message)?;
                    if !message.recipients.is_empty() {
                        known.push(message);
                    }
                }
                Ok((known, db.snapshot_position()?))
            })?;
            let to_all = messages.iter().filter(|message| message.device == ALL_DEVICES);
            bytes_to_all +=
                to_all.map(|message| message.recipients.len() * message.message.len()).sum::<usize>();
            if bytes_to_all > TO_ALL_BYTES_MAX {
                let why = "The messages are too large for so many devices";
                return Err(Error::new(ErrCode::TooLarge, why));
            }
            if !messages.is_empty() {
                portions.push(MessagePortion {
                    mark: mark(id, HERE, number),
                    sender: sender.clone(),
                    messages,
                    looked_upto,
                });
            }
            number += 1;
        }
    }

    /// Delivers what [`read_direct_to_device`] has read, in one commit unless it is much. Errors: 429
    /// `M_LIMIT_EXCEEDED` if too many of the server's messages wait for one of the devices, so that it keeps them until
    /// there is room, for some minutes at most; a repeat brings what was not taken in.
    pub(in crate::service) fn receive_to_device(
        &self,
        origin: &ServerName,
        received: Vec<DirectToDevice>,
    ) -> Result<()> {
        let mut portions = Vec::new();
        for said in received {
            let envelope = Envelope::of(said.sender.as_str(), &said.event_type);
            let mut messages = Vec::new();
            for (user, devices) in said.messages {
                let Some(user) = UserId::parse(&user).ok().filter(|user| self.is_local(user)) else {
                    continue;
                };
                for (device, content) in devices {
                    match envelope.around(&content) {
                        Some(message) => {
                            let (user, recipients) = (user.clone(), Vec::new());
                            messages.push(DeviceMessage { user, device, message, recipients })
                        }
                        None => log::info!("{} sent {user} a message that is too large", said.sender),
                    }
                }
            }
            match self.portions(&said.message_id, &said.sender, messages) {
                Ok(some) => portions.extend(some),
                Err(e) if e.errcode() == ErrCode::TooLarge => log::info!("messages of {}: {e}", said.sender),
                Err(e) => return Err(e),
            }
        }
        for portions in batches(portions) {
            let (origin, now) = (origin.clone(), self.clock.now_ms());
            self.store.write(move |tx| {
                let origin = match tx.is_neighbour(&origin)? {
                    true => MessageOrigin::Neighbour(&origin),
                    false => MessageOrigin::Stranger(&origin),
                };
                for portion in &portions {
                    if tx.receive_to_device(origin, &portion.mark, now)? {
                        deliver_all(tx, portion, origin, now)?;
                    }
                }
                tx.sweep_received_to_device(origin, now)
            })?;
        }
        Ok(())
    }
}

/// An `m.direct_to_device` of this server; none if there is anything wrong with it.
pub(in crate::service) fn read_direct_to_device(
    origin: &ServerName,
    content: &[u8],
) -> Option<DirectToDevice> {
    let read = read_object::<DirectToDevice>(content).ok()?;
    let id_fits = !read.message_id.is_empty() && read.message_id.chars().count() <= MESSAGE_ID_CHARS_MAX;
    let type_fits = !read.event_type.is_empty() && read.event_type.len() <= TYPE_BYTES_MAX;
    let count: usize = read.messages.values().map(BTreeMap::len).sum();
    if is_of(origin, &read.sender) && id_fits && type_fits && count <= MESSAGES_MAX {
        return Some(read);
    }
    log::debug!("{origin} sent messages to devices that are none");
    None
}

/// A message for one of a local user's devices, or for all of them.
struct DeviceMessage {
    user: UserId,
    device: String,
    /// As clients get it.
    message: String,
    /// The devices that get it: those that there were when they were looked up.
    recipients: Vec<Recipient>,
}

/// What is written at once of the messages that came together.
struct MessagePortion {
    /// By what it is known when it comes again.
    mark: String,
    sender: UserId,
    messages: Vec<DeviceMessage>,
    /// The position as of which their recipients were looked up.
    looked_upto: i64,
}

/// What [`mark`] tells apart.
const HERE: char = 'h';
const ELSEWHERE: char = 'e';

/// By what a portion is known. The first has the id that all came with. Whoever has such an id of their own confuses
/// nobody but themselves.
fn mark(id: &str, kind: char, number: usize) -> String {
    if (kind, number) == (HERE, 0) { id.to_owned() } else { format!("{id}\n{kind}{number}") }
}

/// Portions that are written together: as many as are little, in their order.
fn batches(portions: Vec<MessagePortion>) -> Vec<Vec<MessagePortion>> {
    let mut batches: Vec<Vec<MessagePortion>> = Vec::new();
    let (mut rows, mut bytes) = (0, 0);
    for portion in portions {
        let own: usize = portion.messages.iter().map(|message| message.recipients.len()).sum();
        let own_bytes: usize =
            portion.messages.iter().map(|message| message.recipients.len() * message.message.len()).sum();
        match batches.last_mut() {
            Some(last) if rows + own <= ROWS_AT_ONCE_MAX && bytes + own_bytes <= BYTES_AT_ONCE_MAX => {
                last.push(portion)
            }
            _ => {
                (rows, bytes) = (0, 0);
                batches.push(vec![portion]);
            }
        }
        (rows, bytes) = (rows + own, bytes + own_bytes);
    }
    batches
}

/// The local devices that a message is for.
fn recipients_of(db: &Db<'_>, message: &DeviceMessage) -> Result<Vec<Recipient>> {
    match message.device.as_str() {
        ALL_DEVICES => db.device_recipients(&message.user),
        device => Ok(db.device_recipient(&message.user, device)?.into_iter().collect()),
    }
}

/// Lets the messages of a portion wait for local devices. Who does not exist gets none; who has come since the recipients were
/// looked up gets what is for all devices of their user. Errors: 429 `M_LIMIT_EXCEEDED`
/// if the origin's share of a device's line is full.
fn deliver_all(
    tx: &mut Tx<'_>,
    portion: &MessagePortion,
    origin: MessageOrigin<'_>,
    now: Millis,
) -> Result<()> {
    let MessagePortion { sender, messages, looked_upto, .. } = portion;
    let any_new_devices = tx.are_devices_newer_than(*looked_upto);
    // Told in one line, however many they are.
    let mut lost: BTreeMap<(&UserId, String, &str), usize> = BTreeMap::new();
    for addressed in messages {
        let DeviceMessage { user, message, device, recipients } = addressed;
        let looked_up_anew;
        let present = if any_new_devices && device == ALL_DEVICES {
            looked_up_anew = recipients_of(tx, addressed)?;
            &looked_up_anew
        } else {
            recipients
        };
        for device in present {
            let why = match tx.add_to_device(user, device, (sender, message), origin, now)? {
                InboxOutcome::Waits | InboxOutcome::Gone => continue,
                InboxOutcome::Asleep => "which fetches nothing",
                InboxOutcome::Beyond => "for which too many of theirs wait",
                InboxOutcome::Full => {
                    log::info!("too many messages of {origin:?} wait for {} of {user}", device.device_id);
                    let why = "Too many of your messages wait for a device";
                    return Err(
                        Error::new(ErrCode::LimitExceeded, why).with_field("retry_after_ms", RETRY_AFTER_MS)
                    );
                }
            };
            *lost.entry((user, device.device_id.clone(), why)).or_default() += 1;
        }
    }
    for ((user, device, why), count) in lost {
        log::warn!("{count} messages of {sender} to {device} of {user}, {why}, are dropped");
    }
    Ok(())
}

/// What clients get around the content of a message.
struct Envelope(String);

impl Envelope {
    fn of(sender: &str, event_type: &str) -> Self {
        Self(format!(",\"sender\":{},\"type\":{}}}", json!(sender), json!(event_type)))
    }

    /// A message as clients get it; none if it is too large.
    fn around(&self, content: &ObjectText) -> Option<String> {
        let message = ["{\"content\":", content.get(), &self.0].concat();
        (message.len() <= MESSAGE_BYTES_MAX).then_some(message)
    }
}

fn too_large() -> Error {
    Error::new(ErrCode::TooLarge, "One of the messages is too large")
}

/// The ephemeral messages in which messages go to devices of other servers. Errors: 413 `M_TOO_LARGE` if one is too large
/// for one of its own.
fn edus(
    sender: &UserId,
    event_type: &str,
    elsewhere: BTreeMap<ServerName, DeviceMessages>,
) -> Result<Vec<(ServerName, String)>> {
    let mut edus = Vec::new();
    for (server, messages) in elsewhere {
        for messages in shares(messages) {
            let (sender, event_type) = (sender.clone(), event_type.to_owned());
            let content = DirectToDevice { sender, event_type, message_id: random::letters(16), messages };
            let content = serde_json::to_string(&content).map_err(Error::internal)?;
            let edu = format!("{{\"content\":{content},\"edu_type\":\"m.direct_to_device\"}}");
            if edu.len() > EDU_BYTES_MAX {
                return Err(too_large());
            }
            edus.push((server.clone(), edu));
        }
    }
    Ok(edus)
}

/// The messages in portions that other servers take in.
fn shares(messages: DeviceMessages) -> Vec<DeviceMessages> {
    let mut shares = vec![DeviceMessages::new()];
    let mut bytes = 0;
    // As they are written, with quotes and escapes, and what stands between them.
    let written = |id: &str| json!(id).to_string().len() + 4;
    for (user, devices) in messages {
        let of_user = written(&user);
        for (device, content) in devices {
            let size = of_user + written(&device) + content.get().len();
            if bytes > 0 && bytes + size > EDU_SHARE_BYTES {
                shares.push(DeviceMessages::new());
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
    use crate::TestServer;

    #[test]
    fn a_device_that_logs_in_while_a_message_to_all_devices_is_on_its_way_has_it() {
        let server = TestServer::start();
        let (alice, bob) = (server.user("alice"), server.user("bob"));
        let hs = server.homeserver();
        let id = |user: &crate::testing::TestUser| UserId::parse(user.id()).expect("a user id");
        let to = |device: &str| {
            let content = ObjectText::try_from(&b"{}"[..]).expect("an object");
            let message = Envelope::of(alice.id(), device).around(&content).expect("small");
            DeviceMessage { user: id(&bob), device: device.to_owned(), message, recipients: Vec::new() }
        };
        let sender = id(&alice);
        let portions = hs.devices().portions("t", &sender, vec![to(ALL_DEVICES), to("PHONE")]);
        let [portion] = portions.expect("looked up").try_into().ok().expect("few");
        let phone = server.device_of(&bob, "PHONE");
        let origin = sender.clone();
        let deliver = move |tx: &mut Tx<'_>| deliver_all(tx, &portion, MessageOrigin::User(&origin), 0);
        hs.store.write(deliver).expect("written");
        for device in [&bob, &phone] {
            let answer = device.initial_sync();
            let types: Vec<_> = answer["to_device"]["events"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|message| message["type"].as_str())
                .collect();
            assert_eq!(
                types,
                [Some(ALL_DEVICES)],
                "once, and nothing that was for a device that was not there"
            );
        }
    }

    #[test]
    fn many_messages_go_in_portions_and_none_is_lost_or_split() {
        let content = |n: usize| {
            let content = json!({ "n": n, "text": "x".repeat(20_000) }).to_string();
            ObjectText::try_from(content.as_bytes()).expect("an object")
        };
        let devices = |from: usize| (from..from + 3).map(|n| (format!("D{n}"), content(n))).collect();
        let messages =
            DeviceMessages::from([("@a:x".to_owned(), devices(0)), ("@b:x".to_owned(), devices(3))]);
        let text = |messages: &DeviceMessages| serde_json::to_string(messages).expect("JSON");
        let before = text(&messages);
        let shares = shares(messages);
        assert_eq!(shares.len(), 3);
        let mut whole = DeviceMessages::new();
        for share in shares {
            for (user, devices) in share {
                whole.entry(user).or_default().extend(devices);
            }
        }
        assert_eq!(text(&whole), before);
    }
}
