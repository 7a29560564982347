//! What policy servers are asked.

use serde_json::{Map, Value};

use super::super::client::{CallResult, Client, SignedRequest};
use super::{SMALL, object};
use crate::protocol::ServerName;
use std::time::Duration;

/// Policy servers may look at what an event refers to, media for example; and a client waits for them.
const WITHIN: Duration = Duration::from_secs(30);

impl Client {
    /// `POST /_matrix/policy/v1/sign`: asks a policy server to sign an event. Gives its signatures, server → key id →
    /// signature, unchecked.
    pub fn policy_sign(&self, peer: &ServerName, event: &[u8]) -> CallResult<Map<String, Value>> {
        object(self.request(SignedRequest {
            method: "POST",
            destination: peer,
            path_and_query: "/_matrix/policy/v1/sign".into(),
            body: Some(event),
            timeout: WITHIN,
            max_bytes: SMALL,
        })?)
    }
}
