//! The server-server API, a file a subject. Thin: parse, call the homeserver, answer.
//!
//! `transactions` takes what other servers send; `events` gives what they ask of a room; `membership` and `third_party`
//! are the handshakes; `media` gives files; `query`, `public_rooms`, `spaces`, `devices`, `openid` answer questions; `keys` and `version`
//! are for anybody.

pub mod devices;
pub mod events;
pub mod keys;
pub mod media;
pub mod membership;
pub mod openid;
pub mod public_rooms;
pub mod query;
pub mod spaces;
pub mod third_party;
pub mod transactions;
pub mod version;

use std::sync::Arc;

use crate::http::Reply;
use crate::service::Homeserver;
use crate::service::events::serve::large_answer::LargeAnswer;

/// 200 with an answer that may be as large as a room.
fn large(hs: &Arc<Homeserver>, answer: LargeAnswer) -> Reply {
    let length = answer.length();
    Reply::stream("application/json", length, Box::new(answer.into_reader(hs.clone())))
}
