//! What a room's events decide beside who may send what.
//!
//! - `server_acl`: which servers may take part; `policy_server`: who signs what is sent.
//! - `visibility`: who may see what; `stripped_state`: what those are shown who are not in the room.
//! - `relations`: threads, edits and their kind.

pub mod policy_server;
pub mod relations;
pub mod server_acl;
pub mod stripped_state;
pub mod visibility;
