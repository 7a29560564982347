//! The calls between servers, typed: what goes out, what comes back, each with its bounds. Events come back as
//! their exact bytes, unchecked: their format, hashes and signatures are the caller's to check.
//!
//! - `handshakes`: `make_*`, `send_*`, invites.
//! - `events`: transactions, missing events, state, auth chains, backfill.
//! - `queries`: aliases, profiles; `user_keys`: devices and the keys of users; `finding`: events by date, directories of rooms, spaces.
//! - `media`: files and thumbnails, which are read as they come.
//! - `keys`: signing keys; `policy`: policy servers.

mod events;
mod finding;
mod handshakes;
pub(crate) mod keys;
mod media;
mod policy;
mod queries;
mod user_keys;

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

pub use finding::HierarchyAnswer;
pub use handshakes::{HandshakeKind, JoinAnswer, JoinBody, Template};
pub use media::{MediaRequest, PeerMedia, ThumbnailQuery};
pub use user_keys::{ClaimedKeys, UserDevicesAnswer};

use crate::error::Error;
use crate::federation::call_error::{CallError, CallResult};
use crate::federation::client::{Client, PeerRequest, Response};
use crate::protocol::ServerName;
use crate::protocol::json::{is_object, read, read_large};
use crate::protocol::media::web_url::percent_encoded;

/// An event as the peer sent it.
pub type RawEvent = Box<RawValue>;

/// Answers that are one event or a little information about one thing.
const SMALL_ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Answers that are a bounded list of events: 100 of the largest possible, and room for the rest.
const LIST_ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Answers that are the whole state of a room, which may have hundreds of thousands of members.
const STATE_ANSWER_BYTES_MAX: u64 = 256 << 20;
/// Most events of a state or an auth chain.
const STATE_EVENTS_MAX: usize = 1_000_000;
const QUICK_TIMEOUT: Duration = Duration::from_secs(20);
const ORDINARY_TIMEOUT: Duration = Duration::from_secs(40);
/// For calls after which the peer has to work through a room.
const LONG_TIMEOUT: Duration = Duration::from_secs(180);
// Where somebody waits for the caller, it says `within` which time the call has to end.

impl Client {
    fn get(
        &self,
        peer: &ServerName,
        path: String,
        timeout: Duration,
        max_bytes: u64,
    ) -> CallResult<Response> {
        let request = PeerRequest {
            method: "GET",
            destination: peer,
            path_and_query: path,
            body: None,
            timeout,
            max_bytes,
        };
        self.request(request)
    }

    fn put(
        &self,
        peer: &ServerName,
        path: String,
        body: &[u8],
        timeout: Duration,
        max: u64,
    ) -> CallResult<Response> {
        self.request(PeerRequest {
            method: "PUT",
            destination: peer,
            path_and_query: path,
            body: Some(body),
            timeout,
            max_bytes: max,
        })
    }
}

fn to_body(value: &impl serde::Serialize) -> CallResult<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| CallError::bad(format!("our own request is not JSON: {e}")))
}

/// The answer as the object that it has to be.
fn object<T: DeserializeOwned>(response: Response) -> CallResult<T> {
    object_in(&response.body)
}

fn object_in<'a, T: Deserialize<'a>>(body: &'a [u8]) -> CallResult<T> {
    // Derived structs would also be read from an array.
    if !is_object(body) {
        return Err(not_json(body));
    }
    read(body).map_err(another_shape)
}

/// [`object_in`] for an answer that tells of a whole room.
fn large_object_in<'a, T: Deserialize<'a>>(body: &'a [u8]) -> CallResult<T> {
    if !is_object(body) {
        return Err(not_json(body));
    }
    read_large(body).map_err(another_shape)
}

fn another_shape(e: Error) -> CallError {
    CallError::bad(format!("an answer of another shape: {}", e.message()))
}

/// The answer of version 1 calls that are arrays `[200, {…}]` by an accident of history.
fn in_array<T: DeserializeOwned>(response: Response) -> CallResult<T> {
    object_in(array_in(&response.body)?)
}

fn array_in(body: &[u8]) -> CallResult<&[u8]> {
    let (_, inside): (u16, &RawValue) = read(body).map_err(|_| not_json(body))?;
    Ok(inside.get().as_bytes())
}

fn not_json(body: &[u8]) -> CallError {
    let start = body.iter().find(|b| !b.is_ascii_whitespace());
    CallError::bad(if start == Some(&b'<') {
        "HTML instead of JSON"
    } else {
        "not the JSON that was asked for"
    })
}

/// A path segment or a query value, percent-encoded.
pub(crate) fn enc(text: impl AsRef<str>) -> String {
    percent_encoded(text.as_ref())
}

#[cfg(test)]
mod tests {
    use super::handshakes::EventAnswer;
    use super::queries::DirectoryAnswer;
    use super::*;
    use crate::federation::answer_memory::HeldMemory;

    fn answer(text: &str) -> Response {
        Response { status: 200, body: text.into(), held: HeldMemory::default() }
    }

    #[test]
    fn identifiers_are_encoded_in_paths() {
        assert_eq!(enc("!a/b?c:x.org"), "%21a%2Fb%3Fc%3Ax.org");
        assert_eq!(enc("$abc-_.~é"), "%24abc-_.~%C3%A9");
    }

    #[test]
    fn an_answer_that_is_not_the_asked_json_is_a_bad_answer() {
        for (body, word) in [
            ("<html>hello</html>", "HTML"),
            ("", "not the JSON"),
            ("[200, {}]", "not the JSON"),
            ("null", "not the JSON"),
            ("{\"event\": 1", "shape"),
            ("{\"room_version\": 3, \"event\": {}}", "shape"),
            ("{\"room_version\": \"9\"}", "shape"),
        ] {
            let e = object::<Template>(answer(body)).expect_err(body);
            assert!(matches!(&e, CallError::BadAnswer(why) if why.contains(word)), "{body}: {e}");
        }
        assert_eq!(object::<Template>(answer(" {\"event\":{}}")).expect("a template").room_version, "1");
    }

    #[test]
    fn an_array_of_version_1_is_unwrapped() {
        let event =
            in_array::<EventAnswer>(answer("[200, {\"event\": {\"a\":1.0}}]")).expect("an event").event;
        assert_eq!(event.get(), "{\"a\":1.0}");
        assert!(in_array::<EventAnswer>(answer("{\"event\": {}}")).is_err());
        assert!(in_array::<EventAnswer>(answer("[200]")).is_err());
    }

    #[test]
    fn servers_in_a_directory_answer_that_are_no_names_are_left_out() {
        let body = r#"{"room_id":"!a:b","servers":["good.org", 5, "", null]}"#;
        let found: DirectoryAnswer = object(answer(body)).expect("an answer");
        assert_eq!(found.servers.len(), 1);
        assert!(object::<DirectoryAnswer>(answer(r#"{"room_id":"nonsense","servers":[]}"#)).is_err());
    }
}
