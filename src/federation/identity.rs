//! What identity servers are asked (identity service API v2): whom an e-mail address belongs to, to keep an invite for
//! whoever it will belong to, and whether a key of theirs is still good. They are found by name like web servers, and
//! whom to trust is the user's choice, not ours.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use ureq::http;

use crate::federation::answer_memory::HeldMemory;
use crate::federation::call_error::{CallError, CallResult};
use crate::federation::calls::enc;
use crate::federation::client::exchange::{ExchangeFailure, read_answer};
use crate::federation::client::{Client, Response};
use crate::protocol::json::{base64_url, read_object};
use crate::protocol::{ServerName, UserId};

const IDENTITY_TIMEOUT: Duration = Duration::from_secs(20);
const IDENTITY_ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Keys of one stored invite; real ones have two.
const INVITE_KEYS_MAX: usize = 16;

/// An identity server and the token by which it knows the local user.
pub struct IdentityServer {
    /// Host, and port if it is not 443.
    pub name: ServerName,
    /// The user's access token there.
    pub token: String,
}

/// How somebody is known outside of Matrix: `email` and an address.
#[derive(Debug, Clone)]
pub struct ThirdPartyId {
    /// The kind.
    pub medium: String,
    /// The address.
    pub address: String,
}

/// What an identity server gives for an invite that it keeps.
#[derive(Debug, Deserialize)]
pub struct StoredInvite {
    /// What whoever the address will belong to has to have signed.
    pub token: String,
    /// The keys that it may be signed with.
    pub public_keys: Vec<InviteKey>,
    /// What the room is shown in place of the address.
    pub display_name: String,
}

/// One of them.
#[derive(Debug, Clone, Deserialize)]
pub struct InviteKey {
    /// Base64, standard or URL-safe.
    pub public_key: String,
    /// Where to ask whether it is still good.
    pub key_validity_url: String,
}

impl Client {
    /// `GET /hash_details` and `POST /lookup`: the Matrix user that an address is bound to, if any.
    pub fn identity_lookup(&self, server: &IdentityServer, id: &ThirdPartyId) -> CallResult<Option<UserId>> {
        #[derive(Deserialize)]
        struct Details {
            lookup_pepper: String,
            algorithms: Vec<String>,
        }
        let details: Details = self.ask_identity(server, "hash_details", None)?;
        let plain = format!("{} {}", id.address, id.medium);
        let (algorithm, address) = if details.algorithms.iter().any(|name| name == "sha256") {
            ("sha256", base64_url(&Sha256::digest(format!("{plain} {}", details.lookup_pepper))))
        } else if details.algorithms.iter().any(|name| name == "none") {
            ("none", plain)
        } else {
            return Err(CallError::bad("no way of looking up that we know"));
        };
        let body = json!({ "algorithm": algorithm, "pepper": details.lookup_pepper, "addresses": [address] });
        let answer: Map<String, Value> = self.ask_identity(server, "lookup", Some(&body))?;
        let found = answer.get("mappings").and_then(|mappings| mappings.get(&address));
        match found {
            None => Ok(None),
            Some(user) => {
                let user = user.as_str().and_then(|user| UserId::parse(user).ok());
                user.map(Some).ok_or_else(|| CallError::bad("a mapping to something that is no user"))
            }
        }
    }

    /// `POST /store-invite`. `about` is the body: `medium`, `address`, `room_id`, `sender`, and what the invitee may be
    /// shown.
    pub fn identity_store_invite(&self, server: &IdentityServer, about: &Value) -> CallResult<StoredInvite> {
        let stored: StoredInvite = self.ask_identity(server, "store-invite", Some(about))?;
        let is_token = |c: char| c.is_ascii_alphanumeric() || ".=_-".contains(c);
        let good_token =
            !stored.token.is_empty() && stored.token.len() <= 255 && stored.token.chars().all(is_token);
        if !good_token || stored.public_keys.is_empty() || stored.public_keys.len() > INVITE_KEYS_MAX {
            return Err(CallError::bad("a stored invite without a proper token or keys"));
        }
        Ok(stored)
    }

    /// Asks at a `key_validity_url` of a room whether a key is still good.
    pub fn is_key_valid(&self, url: &str, public_key: &str) -> CallResult<bool> {
        #[derive(Deserialize)]
        struct Validity {
            valid: bool,
        }
        if !url.starts_with("https://") || url.contains('#') {
            return Err(CallError::bad("a key_validity_url that is none"));
        }
        let separator = if url.contains('?') { '&' } else { '?' };
        let request = http::Request::get(format!("{url}{separator}public_key={}", enc(public_key)));
        let request = request.header("Accept", "application/json").body(());
        let answer: Validity = parsed(self.web(request.map_err(|e| CallError::bad(e.to_string()))?)?)?;
        Ok(answer.valid)
    }

    fn ask_identity<T: serde::de::DeserializeOwned>(
        &self,
        server: &IdentityServer,
        what: &str,
        body: Option<&Value>,
    ) -> CallResult<T> {
        let head = http::Request::builder()
            .uri(format!("https://{}/_matrix/identity/v2/{what}", server.name))
            .header("Accept", "application/json")
            .header("Authorization", format!("Bearer {}", server.token));
        let ours = |e: http::Error| CallError::bad(format!("our own request is not valid HTTP: {e}"));
        let answer = match body {
            None => self.web(head.method("GET").body(()).map_err(ours)?)?,
            Some(body) => {
                let head = head.method("POST").header("Content-Type", "application/json");
                self.web(head.body(body.to_string()).map_err(ours)?)?
            }
        };
        parsed(answer)
    }

    fn web(&self, request: http::Request<impl ureq::AsSendBody>) -> CallResult<Response> {
        let request = self.web.configure_request(request).timeout_global(Some(IDENTITY_TIMEOUT)).build();
        let answer = self.web.run(request).map_err(ExchangeFailure::from_ureq);
        answer
            .and_then(|answer| read_answer(answer, IDENTITY_ANSWER_BYTES_MAX, HeldMemory::default()))
            .map_err(ExchangeFailure::into_call_error)
    }
}

fn parsed<T: serde::de::DeserializeOwned>(answer: Response) -> CallResult<T> {
    let read = read_object(&answer.body);
    read.map_err(|e| CallError::bad(format!("an answer of another shape: {}", e.message())))
}
