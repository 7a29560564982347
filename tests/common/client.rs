//! Paths and requests of the client-server API, for where a test wants to see the answer whatever it is.

use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// Where the paths of the client-server API begin.
pub const V3: &str = "/_matrix/client/v3";

/// A path about a room.
pub fn room_path(room: &str, rest: &str) -> String {
    format!("{V3}/rooms/{}/{rest}", segment(room))
}

/// A POST to a path below [`V3`]: the status and the body of the answer.
pub fn post(user: &TestUser, path: &str, body: Value) -> (u16, Value) {
    user.request("POST", &format!("{V3}/{path}"), Some(body))
}

/// Knocks through another server.
pub fn knock(user: &TestUser, room: &str, via: &str) -> (u16, Value) {
    post(user, &format!("knock/{}?via={}", segment(room), segment(via)), json!({}))
}

/// Joins, through another server if there is one to be named.
pub fn join(user: &TestUser, room: &str, via: Option<&str>) -> (u16, Value) {
    let via = via.map_or_else(String::new, |via| format!("?via={}", segment(via)));
    post(user, &format!("join/{}{via}", segment(room)), json!({}))
}

/// One `/sync` with these query parameters.
#[track_caller]
pub fn sync(user: &TestUser, query: &str) -> Value {
    user.get(&format!("{V3}/sync?{query}"))
}

/// Sliding sync, in the dialect that clients speak today.
pub const SLIDING: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

/// One request of sliding sync that goes on from an answer, or begins anew, and does not wait.
#[track_caller]
pub fn slide(user: &TestUser, last: Option<&Value>, body: &Value) -> Value {
    user.post(&sliding_path(last, 0), body.clone())
}

/// The path of a request that goes on from an answer and waits for so many milliseconds.
pub fn sliding_path(last: Option<&Value>, timeout: u64) -> String {
    let pos = last.map(|last| format!("&pos={}", segment(last["pos"].as_str().expect("a pos"))));
    format!("{SLIDING}?timeout={timeout}{}", pos.unwrap_or_default())
}

/// A body with one list, `all`, that shows its first rooms, with so many events of each.
pub fn one_list(rooms: u64, timeline_limit: u64, required_state: &Value) -> Value {
    json!({ "lists": { "all": {
        "ranges": [[0, rooms - 1]], "timeline_limit": timeline_limit, "required_state": required_state } } })
}

/// The query parameter for a filter.
pub fn filter(filter: &Value) -> String {
    format!("filter={}", segment(&filter.to_string()))
}
