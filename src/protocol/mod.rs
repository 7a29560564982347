//! The Matrix protocol as pure code: data in, decision out. No I/O, no clock, no randomness, no locks.
//!
//! - Events: `pdu` (one event with its exact bytes), `unchecked_event` (a first look), `redact`, `content` (what state
//!   events say). `signatures/`: of events, whose type then says that they were verified, and of requests between servers.
//! - Rooms: `room_version` (how versions differ), `event_auth/` (the authorisation rules), `state_res/` (state
//!   resolution), `rooms/` (what else a room's state decides).
//! - Membership across servers: `handshake` (make and send), `remote_membership/` (the state machine of a membership in
//!   a room that we are not in), `limits/` (how much strangers may ask).
//! - Between servers: `edu` (ephemeral data units). For clients: `filter`, `search_text` (what is found, and by what),
//!   `push_rules/` (what notifies whom), `glob` (patterns), `ignored_users`.
//! - `keys/`: end-to-end keys, of devices and users, as other servers tell them, and kept for rooms.
//! - `media/`: mxc:// URIs, the headers and bodies that media come and go with, addresses of pages that are previewed.
//! - `appservice/`: how bridges and bots are registered, and whom they speak for.
//! - `certificates/`: what is read of one, and how an authority is asked for one.
//! - Beneath all: `ids` (identifiers), `json/` (canonical JSON, bounded parsing).

pub mod appservice;
pub mod certificates;
pub mod content;
pub mod edu;
pub mod event_auth;
pub mod filter;
pub mod glob;
pub mod handshake;
pub mod ids;
pub mod ignored_users;
pub mod json;
pub mod keys;
pub mod limits;
pub mod media;
pub mod pdu;
pub mod push_rules;
pub mod redact;
pub mod remote_membership;
pub mod room_version;
pub mod rooms;
pub mod search_text;
pub mod signatures;
pub mod state_res;
#[cfg(test)]
pub(crate) mod test_events;
pub mod unchecked_event;

pub use ids::{EventId, RoomAlias, RoomId, ServerName, UserId};
pub use pdu::{Membership, Pdu};
pub use room_version::RoomVersion;
pub use signatures::verify::VerifiedPdu;

/// Milliseconds since the Unix epoch, as Matrix counts time; and a number of them.
pub type Millis = i64;
