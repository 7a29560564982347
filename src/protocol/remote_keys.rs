//! What other servers say of the keys of their users. Taken over is what is of a size to be kept and is said of the user
//! and the device that it stands under. Whether the signatures are good is for clients to find out, who alone know whom
//! they trust.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::json;

use crate::protocol::UserId;
use crate::protocol::cross_signing::{CrossSigningKey, KeyUsage};
use crate::protocol::json::{self, CanonicalObject, member_of, read_object};

/// Devices of one user of another server that are looked at.
pub const REMOTE_DEVICES_MAX: usize = 1000;
/// Longest device id and device name, in bytes; the identity keys of one device as JSON.
const DEVICE_ID_BYTES_MAX: usize = 255;
const DEVICE_NAME_BYTES_MAX: usize = 512;
const DEVICE_KEYS_BYTES_MAX: usize = 16 << 10;
/// The longest text of which it is looked at whether it is a cross-signing key.
const CROSS_SIGNING_TEXT_BYTES_MAX: usize = 128 << 10;
/// Longest one-time key, as JSON.
const ONE_TIME_KEY_BYTES_MAX: usize = 4 << 10;
/// White space and escapes do not count, but there is an end to them: so many times as long may a text be before it is
/// canonical.
const SLACK: usize = 4;

/// A device of another server's user, its parts of a size to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteDevice {
    /// Its id.
    pub device_id: String,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// Its identity keys, a JSON object without `unsigned`, if it has any.
    pub keys: Option<String>,
}

/// The devices and the cross-signing keys of another server's user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteKeys {
    /// The devices, each once, in the order of their ids.
    pub devices: Vec<RemoteDevice>,
    /// The cross-signing keys.
    pub cross_signing: ShownKeys,
}

impl RemoteKeys {
    /// Takes over a device that was listed, see [`RemoteDevice::new`].
    pub fn add_listed(&mut self, user: &UserId, device_id: &str, name: Option<&str>, keys: Option<&str>) {
        self.add(RemoteDevice::new(user, device_id, name, keys));
    }

    /// Takes over a device as `user/keys/query` tells it, see [`RemoteDevice::queried`].
    pub fn add_queried(&mut self, user: &UserId, device_id: &str, keys: &str) {
        self.add(RemoteDevice::queried(user, device_id, keys));
    }

    /// About what they take in memory.
    pub fn bytes(&self) -> usize {
        let of_device = |device: &RemoteDevice| {
            let texts = [device.display_name.as_ref(), device.keys.as_ref()].into_iter().flatten();
            device.device_id.len() + texts.map(String::len).sum::<usize>() + 100
        };
        self.devices.iter().map(of_device).sum()
    }

    /// Of several of one id the last one counts.
    fn add(&mut self, device: Option<RemoteDevice>) {
        let Some(device) = device else { return };
        match self.devices.binary_search_by(|known| known.device_id.cmp(&device.device_id)) {
            Ok(at) => self.devices[at] = device,
            Err(at) => self.devices.insert(at, device),
        }
    }
}

/// The cross-signing keys that a user shows to everybody. Their signatures are the user's own: those that others made are
/// for nobody but who made them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShownKeys {
    /// The master key.
    pub master: Option<CrossSigningKey>,
    /// The self-signing key.
    pub self_signing: Option<CrossSigningKey>,
}

impl ShownKeys {
    /// Those of these texts that are keys of this user, for their use.
    pub fn read(user: &UserId, master: Option<&str>, self_signing: Option<&str>) -> Self {
        let key = |usage, text: Option<&str>| {
            let text = text.filter(|text| text.len() <= CROSS_SIGNING_TEXT_BYTES_MAX)?;
            CrossSigningKey::read(text.as_bytes(), user, usage).ok()
        };
        Self { master: key(KeyUsage::Master, master), self_signing: key(KeyUsage::SelfSigning, self_signing) }
    }
}

impl RemoteDevice {
    /// A device, if its id is of a size to be kept. A name that is too long, and keys that are too large or are those of
    /// another device, are none.
    pub fn new(
        user: &UserId,
        device_id: &str,
        display_name: Option<&str>,
        keys: Option<&str>,
    ) -> Option<Self> {
        if device_id.is_empty() || device_id.len() > DEVICE_ID_BYTES_MAX {
            return None;
        }
        let display_name = display_name.filter(|name| name.len() <= DEVICE_NAME_BYTES_MAX).map(str::to_owned);
        let keys = keys.and_then(|keys| device_keys(user, device_id, keys));
        Some(Self { device_id: device_id.to_owned(), display_name, keys })
    }

    /// A device as the answer of `user/keys/query` has it: its identity keys, and its name as what is `unsigned`. None
    /// if there is anything wrong with the keys.
    pub fn queried(user: &UserId, device_id: &str, keys: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Queried<'t> {
            #[serde(borrow, default)]
            unsigned: Option<QueriedUnsigned<'t>>,
        }
        #[derive(Deserialize)]
        struct QueriedUnsigned<'t> {
            #[serde(borrow, default)]
            device_display_name: Option<Cow<'t, str>>,
        }
        let unsigned = read_object::<Queried<'_>>(keys.as_bytes()).ok().and_then(|read| read.unsigned);
        let name = unsigned.and_then(|unsigned| unsigned.device_display_name);
        Self::new(user, device_id, name.as_deref(), Some(keys)).filter(|device| device.keys.is_some())
    }

    /// The identity keys as clients get them, with the device's name as what is `unsigned`; none if it has none.
    pub fn keys_for_clients(&self) -> Option<String> {
        let keys = self.keys.as_ref()?;
        let Some(name) = &self.display_name else { return Some(keys.clone()) };
        let (object, _) = CanonicalObject::read(keys.as_bytes()).ok()?;
        let unsigned = json!({ "device_display_name": name }).to_string();
        Some(object.with("unsigned", unsigned.as_bytes()).into_text())
    }
}

/// Whether a one-time key, as the answer of `user/keys/claim` has it by its name, is of this algorithm and of a size to be
/// passed on: a JSON object or string.
pub fn is_one_time_key(algorithm: &str, key_id: &str, key: &str) -> bool {
    let fits = key.len() <= ONE_TIME_KEY_BYTES_MAX && key_id.len() <= DEVICE_ID_BYTES_MAX + algorithm.len();
    let shaped = json::is_object(key.as_bytes()) || key.trim_start().starts_with('"');
    fits && shaped && key_id.split_once(':').is_some_and(|(of, id)| of == algorithm && !id.is_empty())
}

fn device_keys(user: &UserId, device_id: &str, text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct DeviceKeys<'t> {
        user_id: UserId,
        #[serde(borrow)]
        device_id: Cow<'t, str>,
    }
    let object = own(user, text, DEVICE_KEYS_BYTES_MAX)?;
    let read = read_object::<DeviceKeys<'_>>(object.as_bytes()).ok()?;
    (read.user_id == *user && read.device_id == device_id).then(|| object.into_text())
}

/// A signed object without what is unsigned, and with no signatures but this user's.
fn own(user: &UserId, text: &str, bytes_max: usize) -> Option<CanonicalObject> {
    if text.len() > SLACK * bytes_max {
        return None;
    }
    let (object, _) = CanonicalObject::read(text.as_bytes()).ok()?;
    let (object, _) = object.remove("unsigned");
    let object = match object.get("signatures").map(|all| member_of(all, user.as_str())) {
        None => object,
        Some(None) => object.remove("signatures").0,
        Some(Some(own)) => {
            let own = [b"{", json!(user).to_string().as_bytes(), b":", own, b"}"].concat();
            object.with("signatures", &own)
        }
    };
    (object.as_bytes().len() <= bytes_max).then_some(object)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn user() -> UserId {
        UserId::parse("@a:x.org").expect("a user id")
    }

    fn keys(of: &str, device: &str) -> Value {
        json!({
            "user_id": of, "device_id": device, "algorithms": ["m.megolm.v1.aes-sha2"],
            "keys": { format!("ed25519:{device}"): "abc" },
            "signatures": { "@a:x.org": { "ed25519:D": "s" }, "@b:x.org": { "ed25519:Z": "t" } },
            "unsigned": { "device_display_name": "phone", "other": 1 },
        })
    }

    #[test]
    fn the_keys_of_a_device_are_those_of_its_user_and_of_itself_and_go_with_its_name_alone() {
        let device = RemoteDevice::queried(&user(), "D", &keys("@a:x.org", "D").to_string());
        let device = device.expect("a device");
        assert_eq!(device.display_name.as_deref(), Some("phone"));
        let told: Value = serde_json::from_str(&device.keys_for_clients().expect("keys")).expect("JSON");
        assert_eq!(told["unsigned"], json!({ "device_display_name": "phone" }));
        assert_eq!(told["signatures"], json!({ "@a:x.org": { "ed25519:D": "s" } }));
        for (of, id) in [("@b:x.org", "D"), ("@a:x.org", "E")] {
            assert_eq!(RemoteDevice::queried(&user(), "D", &keys(of, id).to_string()), None, "{of} {id}");
        }
        for nonsense in ["[]", "null", "{}", "\"x\"", "{\"user_id\":5,\"device_id\":\"D\"}", "{"] {
            assert_eq!(RemoteDevice::queried(&user(), "D", nonsense), None, "{nonsense}");
        }
        let mut large = keys("@a:x.org", "D");
        large["x"] = "x".repeat(DEVICE_KEYS_BYTES_MAX).into();
        assert_eq!(RemoteDevice::queried(&user(), "D", &large.to_string()), None);
        assert_eq!(RemoteDevice::new(&user(), &"D".repeat(256), None, None), None);
    }

    #[test]
    fn cross_signing_keys_are_those_of_their_user_and_use_with_no_signatures_but_the_users() {
        let public = "nqOvzeuGWT/sRx3h7+MHoInYj3Uk2LD/unI9kDYcHwk";
        let key = |of: &str, usage: &str| {
            json!({
                "user_id": of, "usage": [usage], "keys": { format!("ed25519:{public}"): public },
                "signatures": { "@a:x.org": { "ed25519:D": "s" }, "@b:x.org": { "ed25519:Z": "t" } },
            })
            .to_string()
        };
        let (master, other) = (key("@a:x.org", "master"), key("@b:x.org", "self_signing"));
        let keys = ShownKeys::read(&user(), Some(&master), Some(&other));
        assert_eq!(keys.self_signing, None);
        assert_eq!(keys.master.expect("a key").signed.signatures, "{\"ed25519:D\":\"s\"}");
        assert_eq!(
            ShownKeys::read(&user(), Some(&key("@a:x.org", "self_signing")), None),
            ShownKeys::default()
        );
        let long = format!("{}{master}", " ".repeat(CROSS_SIGNING_TEXT_BYTES_MAX));
        assert_eq!(ShownKeys::read(&user(), Some(&long), Some("[]")), ShownKeys::default());
    }

    #[test]
    fn a_one_time_key_is_of_the_algorithm_that_was_asked_for() {
        let is = |id: &str, key: &str| is_one_time_key("signed_curve25519", id, key);
        assert!(is("signed_curve25519:AAAA", "{\"key\":\"x\"}") && is("signed_curve25519:AAAA", "\"x\""));
        for (id, key) in [
            ("curve25519:AAAA", "{}"),
            ("signed_curve25519:", "{}"),
            ("signed_curve25519", "{}"),
            ("signed_curve25519:AAAA", "[]"),
            ("signed_curve25519:AAAA", "5"),
        ] {
            assert!(!is(id, key), "{id} {key}");
        }
        assert!(!is("signed_curve25519:AAAA", &format!("\"{}\"", "x".repeat(ONE_TIME_KEY_BYTES_MAX))));
    }
}
