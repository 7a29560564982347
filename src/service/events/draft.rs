//! What somebody wants to say in a room, before it is an event.

use serde_json::{Map, Value};

use crate::protocol::{EventId, Millis, RoomId, UserId};

/// An event that somebody wants to send. What is missing, the room decides: its place in the graph and its auth events.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The room.
    pub room: RoomId,
    /// Who sends it.
    pub sender: UserId,
    /// `type`.
    pub event_type: String,
    /// `state_key`, for state events.
    pub state_key: Option<String>,
    /// `content`; that of a redaction without `redacts`.
    pub content: Map<String, Value>,
    /// What a redaction redacts; it is put where the room version has it.
    pub redacts: Option<EventId>,
    /// When it says that it was sent, which application services may say of what they bring from elsewhere; none: now.
    pub origin_server_ts: Option<Millis>,
}
