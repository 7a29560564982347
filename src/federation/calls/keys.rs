//! The calls for signing keys: of a server itself, and of a notary.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{LIST_ANSWER_BYTES_MAX, ORDINARY_TIMEOUT, QUICK_TIMEOUT, object, to_body};
use crate::federation::call_error::{CallError, CallResult};
use crate::federation::client::{Client, PeerRequest};
use crate::protocol::ServerName;
use crate::protocol::json::{CanonicalObject, First};

/// A statement of keys, with whatever white space.
const STATEMENT_BYTES_MAX: u64 = 64 << 10;
/// The longest statement of keys that is looked at, in canonical form: room for two hundred keys and the signatures of
/// half of them.
pub const CANONICAL_STATEMENT_BYTES_MAX: usize = 32 << 10;
/// Most statements of keys of one answer: four of each server that is asked about at once.
const STATEMENTS_MAX: usize = 400;

impl Client {
    /// `GET /_matrix/key/v2/server`: the peer's own statement of its keys, unchecked.
    pub fn server_keys(&self, peer: &ServerName, within: Duration) -> CallResult<CanonicalObject> {
        let request = PeerRequest {
            method: "GET",
            destination: peer,
            path_and_query: "/_matrix/key/v2/server".into(),
            body: None,
            timeout: QUICK_TIMEOUT.min(within),
            max_bytes: STATEMENT_BYTES_MAX,
        };
        let answer = self.request_unsigned(request)?;
        statement(&answer.body).ok_or_else(|| CallError::bad("no statement of keys, or one that is too long"))
    }

    /// `POST /_matrix/key/v2/query`: what a notary knows of other servers' keys. `query` is the value of
    /// `server_keys` in the request: server → key id → criteria. Those that are none, or too long, are left out;
    /// all are unchecked.
    pub fn notary_query(
        &self,
        notary: &ServerName,
        query: &Map<String, Value>,
        within: Duration,
    ) -> CallResult<Vec<CanonicalObject>> {
        #[derive(Deserialize)]
        struct Notarised {
            server_keys: First<Box<RawValue>, STATEMENTS_MAX>,
        }
        let body = to_body(&json!({ "server_keys": query }))?;
        let request = PeerRequest {
            method: "POST",
            destination: notary,
            path_and_query: "/_matrix/key/v2/query".into(),
            body: Some(&body),
            // The notary may have to ask others in turn.
            timeout: ORDINARY_TIMEOUT.min(within),
            max_bytes: LIST_ANSWER_BYTES_MAX,
        };
        let answer: Notarised = object(self.request_unsigned(request)?)?;
        let texts = answer.server_keys.0;
        Ok(texts.iter().filter_map(|text| statement(text.get().as_bytes())).collect())
    }
}

/// A statement of keys as it came, in canonical form; no tree is made of it. None if it is no object, or too long.
fn statement(text: &[u8]) -> Option<CanonicalObject> {
    let (object, _) = CanonicalObject::read(text).ok()?;
    (object.as_bytes().len() <= CANONICAL_STATEMENT_BYTES_MAX).then_some(object)
}
