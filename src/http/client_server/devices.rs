//! One's own devices.

use std::sync::Arc;

use serde_json::{Value, json};

use super::interactive::{PASSWORD, prove};
use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::store::devices::Device;

fn device_json(device: &Device) -> Value {
    let mut body = json!({ "device_id": device.device_id });
    if let Some(name) = &device.display_name {
        body["display_name"] = json!(name);
    }
    if let (Some(at), Some(ip)) = (device.last_seen_ms, &device.last_seen_ip) {
        body["last_seen_ts"] = json!(at);
        body["last_seen_ip"] = json!(ip);
    }
    body
}

/// `GET /_matrix/client/v3/devices`
pub fn list(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    let devices = hs.store.read(|db| db.devices(&requester.user_id))?;
    Ok(Reply::json(&json!({ "devices": devices.iter().map(device_json).collect::<Vec<_>>() })))
}

/// `GET /_matrix/client/v3/devices/{deviceId}`
pub fn get(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let device = hs.store.read(|db| db.device(&requester.user_id, request.param("deviceId")))?;
    let device = device.ok_or_else(|| Error::not_found("You have no such device"))?;
    Ok(Reply::json(&device_json(&device)))
}

/// `PUT /_matrix/client/v3/devices/{deviceId}`
pub fn update(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (user, device) = (&requester.user_id, request.param("deviceId"));
    match request.json_object()?.get("display_name") {
        Some(Value::String(name)) => hs.rename_device(user, device, name)?,
        None | Some(Value::Null) if hs.store.read(|db| db.device(user, device))?.is_some() => {}
        None | Some(Value::Null) => return Err(Error::not_found("You have no such device")),
        Some(_) => return Err(Error::bad_json("display_name must be a string")),
    }
    Ok(Reply::empty())
}

/// `DELETE /_matrix/client/v3/devices/{deviceId}`
pub fn delete(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body = request.json_object_or_empty()?;
    let proof = match prove(hs, "delete devices", PASSWORD, Some(requester), &body)? {
        Ok(proof) => proof,
        Err(ask) => return Ok(ask),
    };
    hs.delete_devices(&requester.user_id, vec![request.param("deviceId").to_owned()])?;
    hs.auth_is_spent(&proof);
    Ok(Reply::empty())
}

/// `POST /_matrix/client/v3/delete_devices`
pub fn delete_many(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body = request.json_object()?;
    let devices = body.get("devices").ok_or_else(|| Error::missing_param("Missing devices"))?;
    let wrong = || Error::bad_json("devices must be a list of strings");
    let devices: Option<Vec<String>> =
        devices.as_array().ok_or_else(wrong)?.iter().map(|d| d.as_str().map(str::to_owned)).collect();
    let devices = devices.ok_or_else(wrong)?;
    let proof = match prove(hs, "delete devices", PASSWORD, Some(requester), &body)? {
        Ok(proof) => proof,
        Err(ask) => return Ok(ask),
    };
    hs.delete_devices(&requester.user_id, devices)?;
    hs.auth_is_spent(&proof);
    Ok(Reply::empty())
}
