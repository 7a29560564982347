//! By what a repeated request is known, so that only who asks for the same gets the answer that was lost.

use std::collections::HashMap;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::GuardedAction;

/// Each parameter of a request as its hash with the session's id, which nobody else knows.
pub(super) type Fingerprints = HashMap<String, [u8; 32]>;

pub(super) fn fingerprints(id: &str, params: &Map<String, Value>) -> Fingerprints {
    let hash = |name: &str, value: &Value| -> [u8; 32] {
        // An id has no zero bytes, and neither has JSON.
        Sha256::digest([id, name, &value.to_string()].join("\0").as_bytes()).into()
    };
    params.iter().map(|(name, value)| (name.clone(), hash(name, value))).collect()
}

/// Whether a request asks for what was asked for before: what it names must be what it was, and what it leaves out is.
pub(super) fn is_same(
    id: &str,
    params: &Map<String, Value>,
    before: &Fingerprints,
    action: &GuardedAction,
) -> bool {
    let named = fingerprints(id, params);
    named.iter().all(|(name, hash)| {
        action.incidental.contains(&name.as_str()) || before.get(name).is_some_and(|was| was == hash)
    })
}
