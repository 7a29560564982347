//! Ephemeral data units (server-server API, "EDUs"): the forms in which servers tell each other what is no part of a
//! room's history. Their contents stay text until somebody who knows the type reads them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::protocol::ids::{EventId, RoomId, UserId};
use crate::protocol::json::{AtMost, First, FirstMembers, ObjectText};
use crate::protocol::keys::remote::{RemoteDevice, ShownKeys};

/// Rooms of one `m.receipt`, and receipts of one room, that are looked at.
pub const RECEIPTS_MAX: usize = 1000;
/// Users of one `m.presence` that are looked at.
const PRESENCES_MAX: usize = 100;
/// `prev_id`s of one `m.device_list_update`.
const PREVIOUS_UPDATES_MAX: usize = 1000;

/// An EDU of another server. Nobody reads the content of an unknown type.
#[derive(Deserialize)]
pub struct ReceivedEdu<'t> {
    /// `edu_type`.
    #[serde(borrow)]
    pub edu_type: Cow<'t, str>,
    /// `content`.
    #[serde(borrow)]
    pub content: &'t RawValue,
}

/// An EDU for another server, which is worth nothing later.
#[derive(Debug, Clone)]
pub struct Edu {
    /// Of several waiting EDUs with the same key only the last is sent: `typing` of a room and user, for example.
    pub replaces: Option<String>,
    /// `{"edu_type": …, "content": …}`.
    pub json: String,
}

/// The content of `m.typing`.
#[derive(Deserialize)]
pub struct TypingContent {
    /// Where.
    pub room_id: RoomId,
    /// Who.
    pub user_id: UserId,
    /// Whether they type from now on.
    pub typing: bool,
}

/// The content of `m.receipt`: [`RoomReceipts`] by room.
pub type ReceiptContent<'t> = FirstMembers<Cow<'t, str>, &'t RawValue, RECEIPTS_MAX>;

/// The receipts of one room. Private ones "MUST NOT appear"; other types are unknown.
#[derive(Deserialize)]
pub struct RoomReceipts<'t> {
    /// A [`UserReceipt`] each, by user.
    #[serde(borrow, rename = "m.read", default)]
    pub read: FirstMembers<Cow<'t, str>, &'t RawValue, RECEIPTS_MAX>,
}

/// The receipt of one user in one room.
#[derive(Deserialize)]
pub struct UserReceipt {
    /// "The extremity event IDs that the user has read up to."
    pub event_ids: Vec<EventId>,
    /// The rest.
    #[serde(default)]
    pub data: ReceiptData,
}

/// What is said of a receipt beside its event.
#[derive(Deserialize, Default)]
pub struct ReceiptData {
    /// When the user read the event, in milliseconds since 1970.
    #[serde(default)]
    pub ts: Option<i64>,
    /// `main`, or the root of a thread.
    #[serde(default)]
    pub thread_id: Option<String>,
}

/// The content of `m.presence`.
#[derive(Deserialize)]
pub struct PresenceContent<'t> {
    /// A [`UserPresence`] each.
    #[serde(borrow)]
    pub push: First<&'t RawValue, PRESENCES_MAX>,
}

/// The presence of one user.
#[derive(Deserialize)]
pub struct UserPresence {
    /// Whose.
    pub user_id: UserId,
    /// `online`, `unavailable` or `offline`.
    pub presence: String,
    /// What they say of it.
    #[serde(default)]
    pub status_msg: Option<String>,
    /// In milliseconds.
    #[serde(default)]
    pub last_active_ago: Option<i64>,
    /// Whether they are at it right now.
    #[serde(default)]
    pub currently_active: bool,
}

/// The content of `m.signing_key_update`.
#[derive(Deserialize)]
pub struct SigningKeyUpdate<'t> {
    /// Whose keys.
    pub user_id: UserId,
    /// The master key.
    #[serde(borrow)]
    pub master_key: Option<&'t RawValue>,
    /// The self-signing key.
    #[serde(borrow)]
    pub self_signing_key: Option<&'t RawValue>,
}

/// Contents of messages by user and device.
pub type DeviceMessages = BTreeMap<String, BTreeMap<String, ObjectText>>;

/// The content of `m.direct_to_device`.
#[derive(Serialize, Deserialize)]
pub struct DirectToDevice {
    /// Who sends.
    pub sender: UserId,
    /// The type of the messages.
    #[serde(rename = "type")]
    pub event_type: String,
    /// By which a repeat is known: "Arbitrary utf8 string, of maximum length 32 codepoints."
    pub message_id: String,
    /// The messages.
    pub messages: DeviceMessages,
}

/// The content of `m.device_list_update`, as far as it is of interest.
#[derive(Deserialize)]
pub struct DeviceListUpdate<'t> {
    /// Whose device it is.
    pub user_id: UserId,
    /// Its id.
    #[serde(borrow)]
    pub device_id: Cow<'t, str>,
    /// What its user calls it.
    #[serde(borrow)]
    pub device_display_name: Option<Cow<'t, str>>,
    /// The number of the update in the chain of the user's.
    pub stream_id: i64,
    /// The updates before it.
    #[serde(default)]
    pub prev_id: AtMost<i64, PREVIOUS_UPDATES_MAX>,
    /// Whether the device is gone.
    #[serde(default)]
    pub deleted: bool,
    /// Its identity keys.
    #[serde(borrow)]
    pub keys: Option<&'t RawValue>,
}

/// What a server told of its users' devices and keys.
pub enum DeviceNews {
    /// One device.
    Update(DeviceUpdate),
    /// The keys with which a user signs their devices, as far as they were told.
    SigningKeys(UserId, ShownKeys),
}

/// What is taken over of a [`DeviceListUpdate`].
pub struct DeviceUpdate {
    /// Whose device it is.
    pub user_id: UserId,
    /// The device.
    pub device: RemoteDevice,
    /// The number of the update in the chain of the user's.
    pub stream_id: i64,
    /// The updates before it.
    pub prev_id: Vec<i64>,
    /// Whether the device is gone.
    pub deleted: bool,
}
