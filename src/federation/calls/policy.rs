//! What policy servers are asked.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{SMALL_ANSWER_BYTES_MAX, object};
use crate::federation::call_error::CallResult;
use crate::federation::client::{Client, PeerRequest};
use crate::protocol::ServerName;

impl Client {
    /// `POST /_matrix/policy/v1/sign`: asks a policy server to sign an event. Gives its signatures, server → key id →
    /// signature, unchecked.
    pub fn policy_sign(
        &self,
        peer: &ServerName,
        event: &[u8],
        within: Duration,
    ) -> CallResult<Map<String, Value>> {
        object(self.request(PeerRequest {
            method: "POST",
            destination: peer,
            path_and_query: "/_matrix/policy/v1/sign".into(),
            body: Some(event),
            timeout: within,
            max_bytes: SMALL_ANSWER_BYTES_MAX,
        })?)
    }
}
