//! Synapse's admin API, "User devices".

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::users::user;
use crate::error::{Error, Result};
use crate::http::{Reply, Request};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;

/// `GET /_synapse/admin/v2/users/{userId}/devices`
pub fn list(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let devices = hs.admin().devices_of(&user(hs, request)?)?;
    Ok(Reply::json(&json!({ "total": devices.len(), "devices": devices })))
}

/// `GET /_synapse/admin/v2/users/{userId}/devices/{deviceId}`
pub fn get(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let devices = hs.admin().devices_of(&user(hs, request)?)?;
    let device = devices.into_iter().find(|device| device["device_id"] == request.param("deviceId"));
    Ok(Reply::json(&device.ok_or_else(|| Error::not_found("No device found"))?))
}

#[derive(Deserialize)]
struct RenameBody {
    display_name: String,
}

/// `PUT /_synapse/admin/v2/users/{userId}/devices/{deviceId}`
pub fn update(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let RenameBody { display_name } = request.json()?;
    hs.admin().rename_device(admin, &user(hs, request)?, request.param("deviceId"), &display_name)?;
    Ok(Reply::empty())
}

/// `DELETE /_synapse/admin/v2/users/{userId}/devices/{deviceId}`
pub fn delete(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    hs.admin().log_out(admin, &user(hs, request)?, Some(vec![request.param("deviceId").to_owned()]))?;
    Ok(Reply::empty())
}

#[derive(Deserialize)]
struct DeleteBody {
    devices: Vec<String>,
}

/// `POST /_synapse/admin/v2/users/{userId}/delete_devices`
pub fn delete_many(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let DeleteBody { devices } = request.json()?;
    hs.admin().log_out(admin, &user(hs, request)?, Some(devices))?;
    Ok(Reply::empty())
}

/// `POST /_synapse/admin/v1/users/{userId}/login`: a session in the user's name, until `valid_until_ms` if that is given.
pub fn log_in(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let until = match request.json_object_or_empty()?.get("valid_until_ms") {
        None | Some(Value::Null) => None,
        Some(until) => {
            Some(until.as_i64().ok_or_else(|| Error::bad_json("'valid_until_ms' must be an integer"))?)
        }
    };
    let token = hs.admin().log_in_as(admin, &user(hs, request)?, until)?;
    Ok(Reply::json(&json!({ "access_token": token })))
}

/// `POST /_doorstep/admin/v1/users/{userId}/logout`: all devices; how many those were as `total`.
pub fn log_out(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let ended = hs.admin().log_out(admin, &user(hs, request)?, None)?;
    Ok(Reply::json(&json!({ "total": ended })))
}
