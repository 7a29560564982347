//! One's own devices.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::http::client_server::accounts::interactive::{interactively, with_password};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::store::accounts::devices::Device;

/// A device as clients read it. All four fields are always there, since some clients take no answer without them: a
/// device without a name has its id for one, and `null` says where nothing is known.
fn device_json(device: &Device) -> Value {
    json!({
        "device_id": device.device_id,
        "display_name": device.display_name.as_deref().unwrap_or(&device.device_id),
        "last_seen_ts": device.last_seen_ms,
        "last_seen_ip": device.last_seen_ip,
    })
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
    let body = request.json_object()?;
    if let Some(service) = &requester.appservice {
        let name = match body.get("display_name") {
            None | Some(Value::Null) => None,
            Some(name) => {
                Some(name.as_str().ok_or_else(|| Error::bad_json("display_name must be a string"))?)
            }
        };
        // "The ability to create new devices is only available to application services."
        if hs.accounts().add_device(service, user, device, name)? {
            return Ok(Reply::empty().with_status(201));
        }
    }
    match body.get("display_name") {
        Some(Value::String(name)) => hs.accounts().rename_device(user, device, name)?,
        None | Some(Value::Null) if hs.store.read(|db| db.device(user, device))?.is_some() => {}
        None | Some(Value::Null) => return Err(Error::not_found("You have no such device")),
        Some(_) => return Err(Error::bad_json("display_name must be a string")),
    }
    Ok(Reply::empty())
}

/// `DELETE /_matrix/client/v3/devices/{deviceId}`
pub fn delete(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let mut params = request.json_object_or_empty()?;
    params.insert("devices".to_owned(), json!([request.param("deviceId")]));
    delete_named(hs, request, requester, params)
}

/// `POST /_matrix/client/v3/delete_devices`
pub fn delete_many(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    delete_named(hs, request, requester, request.json_object()?)
}

fn delete_named(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: &Requester,
    params: Map<String, Value>,
) -> Result<Reply> {
    let read = |params: &Map<String, Value>| {
        let devices = params.get("devices").ok_or_else(|| Error::missing_param("Missing devices"))?;
        let wrong = || Error::bad_json("devices must be a list of strings");
        let ids = devices.as_array().ok_or_else(wrong)?.iter().map(|d| d.as_str().map(str::to_owned));
        ids.collect::<Option<Vec<String>>>().ok_or_else(wrong)
    };
    if requester.is_service() {
        hs.accounts().delete_devices(&requester.user_id, read(&params)?)?;
        return Ok(Reply::empty());
    }
    let action = with_password("delete devices", &["devices"]);
    interactively(hs, request, Some(requester), &action, params, read, |ids, _| {
        hs.accounts().delete_devices(&requester.user_id, ids)?;
        Ok(json!({}))
    })
}
