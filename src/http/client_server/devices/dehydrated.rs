//! Dehydrated devices, by the unstable paths of MSC3814, which are those that clients call.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::http::client_server::reply;
use crate::http::{Reply, Request, Requester};
use crate::protocol::json::{ObjectText, read_object};
use crate::protocol::keys::device::KeyUpload;
use crate::service::Homeserver;
use crate::service::devices::dehydrated::NewDehydratedDevice;

#[derive(Deserialize)]
struct DehydratedDeviceBody {
    device_id: Option<String>,
    #[serde(default)]
    initial_device_display_name: Option<String>,
    device_data: Option<ObjectText>,
}

/// What is known of `device_data`; the rest is for clients.
#[derive(Deserialize)]
struct DeviceData {
    algorithm: Option<String>,
}

/// `PUT /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device`.
pub fn put(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body: DehydratedDeviceBody = request.json()?;
    let device_id = body.device_id.ok_or_else(|| Error::missing_param("Missing device_id"))?;
    let device_data = body.device_data.ok_or_else(|| Error::missing_param("Missing device_data"))?;
    let known: DeviceData = read_object(device_data.get().as_bytes())?;
    if known.algorithm.is_none_or(|algorithm| algorithm.is_empty()) {
        return Err(Error::missing_param("Missing algorithm in device_data"));
    }
    let keys = KeyUpload::read(request.body(), &requester.user_id, &device_id)?;
    let display_name = body.initial_device_display_name;
    let answer = json!({ "device_id": device_id });
    let new = NewDehydratedDevice { device_id, display_name, device_data, keys };
    hs.devices().put_dehydrated_device(&requester.user_id, new)?;
    Ok(Reply::json(&answer))
}

/// `GET /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device`.
pub fn get(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    let device = hs.devices().dehydrated_device(&requester.user_id)?;
    let text =
        format!("{{\"device_data\":{},\"device_id\":{}}}", device.device_data, json!(device.device_id));
    Ok(Reply::raw_json(text.into_bytes()))
}

/// `DELETE /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device`.
pub fn delete(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    let device_id = hs.devices().delete_dehydrated_device(&requester.user_id)?;
    Ok(Reply::json(&json!({ "device_id": device_id })))
}

#[derive(Serialize)]
struct EventsAnswer<'e> {
    events: &'e [Box<RawValue>],
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<&'e str>,
}

#[derive(Deserialize)]
struct EventsBody {
    #[serde(default)]
    next_batch: Option<String>,
}

/// `POST /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{deviceId}/events`, which clients call until
/// there are no more events: `next_batch` is always there.
pub fn events(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body: EventsBody = request.json_or_empty()?;
    let (device, limit) = (request.param("deviceId"), request.query_int("limit")?);
    let found =
        hs.devices().dehydrated_events(&requester.user_id, device, body.next_batch.as_deref(), limit)?;
    reply(&EventsAnswer { events: &found.events, next_batch: Some(&found.next_batch) })
}

/// `GET` of the same, as the proposal has it by now: `next_batch` is there if there are more events.
pub fn events_from(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (device, limit) = (request.param("deviceId"), request.query_int("limit")?);
    let found = hs.devices().dehydrated_events(&requester.user_id, device, request.query("from"), limit)?;
    let next_batch = found.limited.then_some(found.next_batch.as_str());
    reply(&EventsAnswer { events: &found.events, next_batch })
}
