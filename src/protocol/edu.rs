//! Ephemeral data units (server-server API, "EDUs"): the forms in which servers tell each other what is no part of a
//! room's history. Their contents stay text until somebody who knows the type reads them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::protocol::ids::UserId;
use crate::protocol::json::{AtMost, ObjectText};

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

/// A device of another server's user, its parts of a size to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteDevice {
    /// Its id.
    pub device_id: String,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// Its identity keys, a JSON object, if it has any.
    pub keys: Option<String>,
}

/// What a server told of its users' devices and keys.
pub enum DeviceNews {
    /// One device.
    Update(DeviceUpdate),
    /// The keys with which a user signs their devices.
    SigningKeys(UserId),
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
