//! Pushers (client-server API, "Push notifications"): where users have what they are notified of sent.

use serde_json::{Map, Value, json};

use super::Push;
use crate::error::{Error, Result};
use crate::federation::push_gateway::check_gateway_url;
use crate::protocol::json::object_of;
use crate::protocol::{UserId, json as matrix_json};
use crate::store::accounts::pushers::{NewPusher, Pusher, PusherChange};

/// "Max length, 64 chars", "Max length, 512 bytes".
const APP_ID_CHARS_MAX: usize = 64;
const PUSHKEY_BYTES_MAX: usize = 512;
/// Names, language and profile tag are held to this; `data` to what gateways can be expected to take.
const TEXT_BYTES_MAX: usize = 1024;
const DATA_BYTES_MAX: usize = 16 * 1024;
/// Whether a pusher is switched on (MSC3881), and the device whose it is.
const ENABLED: &str = "org.matrix.msc3881.enabled";
const DEVICE_ID: &str = "org.matrix.msc3881.device_id";

/// The body of `POST /pushers/set`.
#[derive(Debug)]
pub struct PusherRequest {
    app_id: String,
    pushkey: String,
    /// None: it is to be removed.
    set: Option<SetPusher>,
}

#[derive(Debug)]
struct SetPusher {
    url: String,
    details: String,
    enabled: Option<bool>,
    device_id: Option<String>,
    append: bool,
}

impl PusherRequest {
    /// Reads it. Errors: 400 `M_MISSING_PARAM` that names what is missing, `M_INVALID_PARAM`.
    pub fn read(body: &Map<String, Value>) -> Result<Self> {
        let kind = body.get("kind");
        let is_set = |name: &str| body.get(name).is_some_and(|value| !value.is_null());
        let needed: &[&str] = match kind {
            Some(Value::Null) => &["app_id", "pushkey"],
            _ => &["kind", "app_id", "pushkey", "app_display_name", "device_display_name", "lang", "data"],
        };
        let missing: Vec<&str> = needed.iter().copied().filter(|name| !is_set(name)).collect();
        if !missing.is_empty() {
            return Err(Error::missing_param(format!("Missing parameters: {}", missing.join(", "))));
        }
        let app_id = text(body, "app_id")?.unwrap_or_default();
        let pushkey = text(body, "pushkey")?.unwrap_or_default();
        if app_id.is_empty() || app_id.chars().count() > APP_ID_CHARS_MAX {
            return Err(Error::invalid_param("app_id must have between 1 and 64 characters"));
        }
        if pushkey.is_empty() || pushkey.len() > PUSHKEY_BYTES_MAX {
            return Err(Error::invalid_param("pushkey must have between 1 and 512 bytes"));
        }
        let set = if kind == Some(&Value::Null) { None } else { Some(SetPusher::read(body)?) };
        Ok(Self { app_id, pushkey, set })
    }
}

impl SetPusher {
    fn read(body: &Map<String, Value>) -> Result<Self> {
        if text(body, "kind")?.as_deref() != Some("http") {
            return Err(Error::invalid_param("The only kind of pusher that this server has is http"));
        }
        let mut details = object_of([("kind", Value::from("http"))]);
        for name in ["app_display_name", "device_display_name", "lang", "profile_tag"] {
            if let Some(value) = text(body, name)? {
                if value.len() > TEXT_BYTES_MAX {
                    return Err(Error::invalid_param(format!("{name} has at most {TEXT_BYTES_MAX} bytes")));
                }
                details.insert(name.to_owned(), value.into());
            }
        }
        let data = body.get("data").and_then(Value::as_object);
        let data = data.ok_or_else(|| Error::bad_json("data must be an object"))?;
        let url = data.get("url").filter(|url| !url.is_null());
        let url = url.ok_or_else(|| Error::missing_param("Missing parameters: data.url"))?;
        let url = url.as_str().ok_or_else(|| Error::bad_json("data.url must be a string"))?;
        let format = data.get("format").filter(|format| !format.is_null());
        if format.is_some_and(|format| !format.is_string()) {
            return Err(Error::bad_json("data.format must be a string"));
        }
        if Value::from(data.clone()).to_string().len() > DATA_BYTES_MAX {
            return Err(Error::invalid_param(format!("data has at most {DATA_BYTES_MAX} bytes")));
        }
        details.insert("data".to_owned(), data.clone().into());
        Ok(Self {
            url: url.to_owned(),
            details: Value::from(details).to_string(),
            enabled: flag(body, ENABLED)?,
            // It is told by who has read the pusher to switch it on or off, and is no way to give it to somebody.
            device_id: body.get(DEVICE_ID).and_then(Value::as_str).map(str::to_owned),
            append: flag(body, "append")?.unwrap_or(false),
        })
    }
}

fn text(body: &Map<String, Value>, name: &str) -> Result<Option<String>> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Error::bad_json(format!("{name} must be a string"))),
    }
}

fn flag(body: &Map<String, Value>, name: &str) -> Result<Option<bool>> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(Error::bad_json(format!("{name} must be true or false"))),
    }
}

impl Push<'_> {
    /// The user's pushers, as clients read them.
    pub fn pushers(&self, user: &UserId) -> Result<Vec<Value>> {
        self.store.read(|db| db.pushers_of(user)?.iter().map(shown).collect())
    }

    /// Sets a pusher of the user's, or removes it; it goes with the device that sets it, and not with one that only switches it
    /// on or off. Errors: 400 `M_INVALID_PARAM` for a
    /// gateway that may not be sent anything; 403 `M_FORBIDDEN` if there are too many, or the requester has no device.
    pub fn set_pusher(&self, user: &UserId, device: &Option<String>, asked: PusherRequest) -> Result<()> {
        let PusherRequest { app_id, pushkey, set } = asked;
        let (owner, now) = (user.clone(), self.clock.now_ms());
        match set {
            None => self.store.write(move |tx| tx.delete_pusher(&owner, &app_id, &pushkey))?,
            Some(set) => {
                check_gateway_url(&set.url, self.config.allow_private_addresses)
                    .map_err(|wrong| Error::invalid_param(format!("data.url {wrong}")))?;
                let device_id =
                    device.clone().ok_or_else(|| Error::forbidden("Only devices can have pushers"))?;
                let change = PusherChange {
                    alone: !set.append,
                    says_enabled: set.enabled.is_some(),
                    named_device: set.device_id,
                };
                let (details, enabled) = (set.details, set.enabled.unwrap_or(true));
                let new = NewPusher { user_id: owner, device_id, app_id, pushkey, enabled, details };
                self.store.write(move |tx| tx.set_pusher(&new, &change, now))?;
            }
        }
        self.push_sender.pushers_changed(user);
        Ok(())
    }
}

fn shown(pusher: &Pusher) -> Result<Value> {
    let mut shown = matrix_json::parse_object(pusher.set.details.as_bytes())?;
    shown.insert("app_id".to_owned(), pusher.set.app_id.clone().into());
    shown.insert("pushkey".to_owned(), pusher.set.pushkey.clone().into());
    shown.insert(ENABLED.to_owned(), pusher.set.enabled.into());
    shown.insert(DEVICE_ID.to_owned(), json!(pusher.set.device_id));
    Ok(shown.into())
}
