//! The Matrix protocol as pure code: data in, decision out. No I/O, no clock, no randomness, no locks.

pub mod content;
pub mod edu;
pub mod event_auth;
pub mod fair_share;
pub mod filter;
pub mod handshake;
pub mod hash;
pub mod ids;
pub mod json;
pub mod knock_budget;
pub mod pdu;
pub mod policy_server;
pub mod redact;
pub mod remote_membership;
pub mod room_version;
pub mod server_acl;
pub mod sign;
pub mod state_res;
pub mod stripped_state;
#[cfg(test)]
mod test_events;
pub mod unchecked_event;
pub mod verify;
pub mod visibility;
pub mod x_matrix;

pub use ids::{EventId, RoomAlias, RoomId, ServerName, UserId};
pub use pdu::{Membership, Pdu};
pub use room_version::RoomVersion;
pub use verify::VerifiedPdu;

/// Milliseconds since the Unix epoch, as Matrix counts time; and a number of them.
pub type Millis = i64;
