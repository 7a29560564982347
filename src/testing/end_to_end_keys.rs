//! End-to-end keys for tests: a device's and a user's, with real signatures. What stands for curve points is random.

use serde_json::{Map, Value, json};

use super::TestUser;
use crate::order::Gather;
use crate::protocol::json::{base64, canonical_object};
use crate::protocol::signatures::sign::SigningKey;
use crate::random;

fn secret() -> SigningKey {
    SigningKey::generate(random::bytes(), "any")
}

/// The object with a signature of the user's more.
fn sign(mut object: Value, user: &str, key_id: &str, key: &SigningKey) -> Value {
    let members = object.as_object_mut().expect("an object");
    let signatures = members.remove("signatures");
    let unsigned: Map<String, Value> =
        members.iter().filter(|(name, _)| *name != "unsigned").map(|(n, v)| (n.clone(), v.clone())).gather();
    let signature = key.sign_bytes(&canonical_object(&unsigned));
    let mut signatures = signatures.unwrap_or_else(|| json!({}));
    signatures[user][key_id] = signature.into();
    object["signatures"] = signatures;
    object
}

/// The keys of one device.
pub struct TestDeviceKeys {
    user_id: String,
    device_id: String,
    key: SigningKey,
    curve: String,
}

impl TestDeviceKeys {
    /// New keys for a device.
    pub fn new(user_id: &str, device_id: &str) -> Self {
        let curve = base64(&random::bytes::<32>());
        Self { user_id: user_id.to_owned(), device_id: device_id.to_owned(), key: secret(), curve }
    }

    /// The id of the device.
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// By what the device's signatures are named.
    pub fn key_id(&self) -> String {
        format!("ed25519:{}", self.device_id)
    }

    /// The object with the device's signature.
    pub fn sign(&self, object: Value) -> Value {
        sign(object, &self.user_id, &self.key_id(), &self.key)
    }

    /// `device_keys`.
    pub fn identity(&self) -> Value {
        self.sign(json!({
            "user_id": self.user_id,
            "device_id": self.device_id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {
                self.key_id(): self.key.public_base64(),
                format!("curve25519:{}", self.device_id): self.curve,
            },
        }))
    }

    /// One-time keys by name.
    pub fn one_time_keys(&self, ids: &[&str]) -> Value {
        let key = |id: &&str| {
            let key = self.sign(json!({ "key": base64(&random::bytes::<32>()) }));
            (format!("signed_curve25519:{id}"), key)
        };
        Value::Object(ids.iter().map(key).gather())
    }

    /// A fallback key by name.
    pub fn fallback_key(&self, id: &str) -> Value {
        let key = self.sign(json!({ "key": base64(&random::bytes::<32>()), "fallback": true }));
        json!({ format!("signed_curve25519:{id}"): key })
    }
}

/// The cross-signing keys of one user.
pub struct TestSigningKeys {
    user_id: String,
    master: SigningKey,
    self_signing: SigningKey,
    user_signing: SigningKey,
}

impl TestSigningKeys {
    /// New keys for a user.
    pub fn new(user_id: &str) -> Self {
        let user_id = user_id.to_owned();
        Self { user_id, master: secret(), self_signing: secret(), user_signing: secret() }
    }

    fn object(&self, usage: &str, key: &SigningKey) -> Value {
        let public = key.public_base64();
        let keys = json!({ format!("ed25519:{public}"): public });
        json!({ "user_id": self.user_id, "usage": [usage], "keys": keys })
    }

    fn signed_with(&self, key: &SigningKey, object: Value) -> Value {
        sign(object, &self.user_id, &format!("ed25519:{}", key.public_base64()), key)
    }

    /// The public key of the master key, by which it is named as well.
    pub fn master_public(&self) -> String {
        self.master.public_base64()
    }

    /// The master key, unsigned.
    pub fn master(&self) -> Value {
        self.object("master", &self.master)
    }

    /// The self-signing key, signed by the master key.
    pub fn self_signing(&self) -> Value {
        self.signed_with(&self.master, self.object("self_signing", &self.self_signing))
    }

    /// The user-signing key, signed by the master key.
    pub fn user_signing(&self) -> Value {
        self.signed_with(&self.master, self.object("user_signing", &self.user_signing))
    }

    /// Another user-signing key, signed by the same master key.
    pub fn another_user_signing(&self) -> Value {
        self.signed_with(&self.master, self.object("user_signing", &secret()))
    }

    /// The body of `keys/device_signing/upload` with all three.
    pub fn upload(&self) -> Value {
        json!({
            "master_key": self.master(),
            "self_signing_key": self.self_signing(),
            "user_signing_key": self.user_signing(),
        })
    }

    /// The object with the self-signing key's signature.
    pub fn sign_device(&self, device_keys: Value) -> Value {
        self.signed_with(&self.self_signing, device_keys)
    }

    /// The object with the user-signing key's signature.
    pub fn sign_user(&self, master_key: Value) -> Value {
        self.signed_with(&self.user_signing, master_key)
    }
}

impl TestUser {
    /// The id of the device that this is.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// assert_eq!(server.device_of(&alice, "PHONE").device_id(), "PHONE");
    /// ```
    #[track_caller]
    pub fn device_id(&self) -> String {
        let answer = self.get("/_matrix/client/v3/account/whoami");
        answer["device_id"].as_str().expect("a device").to_owned()
    }

    /// Uploads new identity keys for this device, and one-time keys of these ids; the keys.
    #[track_caller]
    pub fn upload_keys(&self, one_time_keys: &[&str]) -> TestDeviceKeys {
        let keys = TestDeviceKeys::new(self.id(), &self.device_id());
        let body =
            json!({ "device_keys": keys.identity(), "one_time_keys": keys.one_time_keys(one_time_keys) });
        self.post("/_matrix/client/v3/keys/upload", body);
        keys
    }

    /// Uploads a first set of cross-signing keys; the keys.
    #[track_caller]
    pub fn upload_signing_keys(&self) -> TestSigningKeys {
        let keys = TestSigningKeys::new(self.id());
        self.post("/_matrix/client/v3/keys/device_signing/upload", keys.upload());
        keys
    }

    /// What `keys/query` answers for these users.
    #[track_caller]
    pub fn query_keys(&self, users: &[&str]) -> Value {
        let wanted: Map<String, Value> = users.iter().map(|user| ((*user).to_owned(), json!([]))).gather();
        self.post("/_matrix/client/v3/keys/query", json!({ "device_keys": wanted }))
    }

    /// What `keys/claim` answers for one device: the id of the key, and the key; none if there is none.
    #[track_caller]
    pub fn claim_key(&self, user: &str, device: &str) -> Option<(String, Value)> {
        let wanted = json!({ "one_time_keys": { user: { device: "signed_curve25519" } } });
        let answer = self.post("/_matrix/client/v3/keys/claim", wanted);
        let keys = answer["one_time_keys"][user][device].as_object()?;
        assert_eq!(keys.len(), 1, "{answer}");
        keys.iter().next().map(|(id, key)| (id.clone(), key.clone()))
    }
}
