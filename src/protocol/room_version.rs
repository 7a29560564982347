//! The rules of room versions 1 to 12 as data: each version by its difference to the one before.

/// What a room version says. Compare with `==` by `id`; get one with `RoomVersion::get`.
#[derive(Debug)]
pub struct Rules {
    /// The version as it is written in `m.room.create`.
    pub id: &'static str,
    /// Event ids are in the event (1, 2), or `$` + hash in standard (3) or URL-safe (4+) base64.
    pub event_id_format: EventIdFormat,
    /// Which state resolution algorithm.
    pub state_resolution: StateResolution,
}

/// How an event of this version is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventIdFormat {
    InEvent,
    HashStandardBase64,
    HashUrlSafeBase64,
}

/// Which algorithm resolves conflicting states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateResolution {
    V1,
    V2,
    V2_1,
}

/// A reference to a version's rules; copies are free.
pub type RoomVersion = &'static Rules;

/// The rules of a version by its name.
pub fn room_version(_id: &str) -> Option<RoomVersion> {
    None
}
/// The version of new rooms.
pub fn default_version() -> RoomVersion {
    &Rules {
        id: "12",
        event_id_format: EventIdFormat::HashUrlSafeBase64,
        state_resolution: StateResolution::V2_1,
    }
}
