//! What other servers say of the keys of their users. Taken over is what is of a size to be kept and is said of the user
//! and the device that it stands under. Whether the signatures are good is for clients to find out, who alone know whom
//! they trust.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use crate::protocol::UserId;
use crate::protocol::json::{CanonicalObject, member_of, read, read_object};
use crate::protocol::keys::cross_signing::{CrossSigningKey, KeyUsage};
use crate::protocol::keys::device::quoted;

/// Devices of one user of another server that are looked at.
pub const REMOTE_DEVICES_MAX: usize = 1000;
/// What those of one user may come to, in bytes: as much as so many devices have that are what clients make them.
pub const REMOTE_DEVICES_BYTES_MAX: usize = 1 << 20;
/// About what a device takes in memory and on disk beside its texts, in bytes.
pub const REMOTE_DEVICE_OVERHEAD_BYTES: usize = 100;
/// Longest device id and device name, in bytes; the identity keys of one device as JSON.
const DEVICE_ID_BYTES_MAX: usize = 255;
const DEVICE_NAME_BYTES_MAX: usize = 512;
const DEVICE_KEYS_BYTES_MAX: usize = 16 << 10;
/// The longest text of which it is looked at whether it is a cross-signing key.
const CROSS_SIGNING_TEXT_BYTES_MAX: usize = 128 << 10;
/// How the names of algorithms begin whose one-time keys are signed objects; others are strings.
const SIGNED: &str = "signed_";
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

    /// About what they take in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let of_key = |key: &CrossSigningKey| key.signed.object.len() + key.signed.signatures.len();
        let keys = [&self.cross_signing.master, &self.cross_signing.self_signing].into_iter().flatten();
        self.devices.iter().map(RemoteDevice::bytes).sum::<usize>() + keys.map(of_key).sum::<usize>()
    }

    /// The same without the devices that are too much for one user.
    pub fn within_bounds(mut self) -> Self {
        let sums = self.devices.iter().scan(0, |sum, device| {
            *sum += device.bytes();
            Some(*sum)
        });
        let fitting =
            sums.take(REMOTE_DEVICES_MAX).take_while(|sum| *sum <= REMOTE_DEVICES_BYTES_MAX).count();
        self.devices.truncate(fitting);
        self
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

    /// About what it takes in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let texts = [self.display_name.as_ref(), self.keys.as_ref()].into_iter().flatten();
        self.device_id.len() + texts.map(String::len).sum::<usize>() + REMOTE_DEVICE_OVERHEAD_BYTES
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

/// A one-time key as the answer of `user/keys/claim` has it by its name: in canonical form, if it is of this algorithm, and
/// of a size and a shape to be passed on. Clients read an answer as a whole, so that one key that is none would take
/// all others with it.
pub fn read_one_time_key(algorithm: &str, key_id: &str, text: &str) -> Option<String> {
    let (of, id) = key_id.split_once(':')?;
    let is_named = of == algorithm && !id.is_empty() && id.len() <= DEVICE_ID_BYTES_MAX;
    if !is_named || text.len() > SLACK * ONE_TIME_KEY_BYTES_MAX {
        return None;
    }
    let key = match algorithm.starts_with(SIGNED) {
        true => {
            let (object, _) = CanonicalObject::read(text.as_bytes()).ok()?;
            let (object, _) = object.remove("unsigned");
            object.string("key")?;
            read::<Signatures<'_>>(object.get("signatures")?).ok()?;
            object.into_text()
        }
        false if text.trim_start().starts_with('{') => {
            CanonicalObject::read(text.as_bytes()).ok()?.0.into_text()
        }
        false => quoted(&read::<Cow<'_, str>>(text.as_bytes()).ok()?),
    };
    (key.len() <= ONE_TIME_KEY_BYTES_MAX).then_some(key)
}

/// Signatures by key id and user.
type Signatures<'t> = BTreeMap<Cow<'t, str>, BTreeMap<Cow<'t, str>, Cow<'t, str>>>;

/// The identity keys of a device of this user, if they are what the specification requires ("Device keys"): clients read
/// an answer as a whole, so that one device that has something else would take all others with it.
fn device_keys(user: &UserId, device_id: &str, text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct DeviceKeys<'t> {
        user_id: UserId,
        #[serde(borrow)]
        device_id: Cow<'t, str>,
        #[serde(borrow, rename = "algorithms")]
        _algorithms: Vec<Cow<'t, str>>,
        #[serde(borrow, rename = "keys")]
        _keys: BTreeMap<Cow<'t, str>, Cow<'t, str>>,
        #[serde(borrow, rename = "signatures")]
        _signatures: Signatures<'t>,
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
        let read = |id: &str, key: &str| read_one_time_key("signed_curve25519", id, key);
        let key = "{ \"signatures\":{\"@a:x.org\":{\"ed25519:D\":\"s\"}}, \"key\":\"x\"}";
        let canonical = "{\"key\":\"x\",\"signatures\":{\"@a:x.org\":{\"ed25519:D\":\"s\"}}}";
        assert_eq!(read("signed_curve25519:AAAA", key).as_deref(), Some(canonical));
        assert_eq!(read_one_time_key("curve25519", "curve25519:A", " \"x\"").as_deref(), Some("\"x\""));
        let of_another = |key: &str| read_one_time_key("org.example.pq", "org.example.pq:A", key);
        assert_eq!(of_another("{\"b\":1, \"a\":[]}").as_deref(), Some("{\"a\":[],\"b\":1}"));
        for wrong in ["5", "[]", "{", "null"] {
            assert_eq!(of_another(wrong), None, "{wrong}");
        }
        for (id, key) in [
            ("curve25519:AAAA", key),
            ("signed_curve25519:", key),
            ("signed_curve25519", key),
            ("signed_curve25519:AAAA", "[]"),
            ("signed_curve25519:AAAA", "5"),
            ("signed_curve25519:AAAA", "\"x\""),
        ] {
            assert_eq!(read(id, key), None, "{id} {key}");
        }
        let long = key.replace("\"x\"", &format!("\"{}\"", "x".repeat(ONE_TIME_KEY_BYTES_MAX)));
        assert_eq!(read("signed_curve25519:AAAA", &long), None);
    }
}
