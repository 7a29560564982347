//! By what a repeated request is known, so that only who asks for the same gets the answer that was lost; and what a proof was
//! given for, so that nothing else is done with it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::GuardedAction;
use super::stages::StageProgress;
use crate::protocol::json::parse_object;

/// Each parameter of a request as its hash with the session's id, which nobody else knows.
pub(super) type Fingerprints = HashMap<String, [u8; 32]>;

pub(super) fn fingerprints(id: &str, params: &Map<String, Value>) -> Fingerprints {
    let hash = |name: &str, value: &Value| -> [u8; 32] {
        // An id has no zero bytes, and neither has JSON.
        Sha256::digest([id, name, &value.to_string()].join("\0").as_bytes()).into()
    };
    params.iter().map(|(name, value)| (name.clone(), hash(name, value))).collect()
}

/// What a request acts upon, as the hash of its parameters that say so.
pub(super) fn acted_upon(id: &str, params: &Map<String, Value>, action: &GuardedAction) -> [u8; 32] {
    let named: Vec<_> = action.fixed.iter().map(|name| params.get(*name)).collect();
    Sha256::digest(json!([id, named]).to_string().as_bytes()).into()
}

/// How a request goes on in the session that it names: what was proved there, and the request's parameters with those that it
/// leaves out and an earlier one had ("subsequent attempts to authenticate in the same API call"). None: it acts upon something
/// else than what a stage was completed for, or somebody was shown that they would complete it for, and begins anew.
pub(super) fn resumed(
    id: &str,
    open: StageProgress,
    params: &Map<String, Value>,
    action: &GuardedAction,
) -> Option<(StageProgress, Map<String, Value>)> {
    let mut params = params.clone();
    if let Ok(before) = parse_object(open.said.as_bytes()) {
        for (name, value) in before {
            params.entry(name).or_insert(value);
        }
    }
    let is_settled = open.is_shown || !open.completed.is_empty();
    let is_same = open.acts_upon.is_none_or(|before| before == acted_upon(id, &params, action));
    (is_same || !is_settled).then_some((open, params))
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
