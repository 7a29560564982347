//! The rules of room versions 1 to 12 as data: each version by its difference to the one before.
//!
//! Nothing else in the crate asks "is this version at least 6?": it asks for the rule by its name here.

/// What a room version says. Compare two by `id`; get one with [`room_version`].
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The version as it is written in `m.room.create`.
    pub id: &'static str,

    // The event format.
    /// How an event is named, and with it whether `prev_events` and `auth_events` are pairs of id and hashes
    /// (`InEvent`) or plain ids.
    pub event_id_format: EventIdFormat,
    /// Events must be canonical JSON as the appendices have it: no floats, integers within ±(2^53-1) (6+).
    pub strict_canonical_json: bool,
    /// The room id is the create event's id with the other sigil, and the create event has no `room_id` (12+).
    pub room_id_is_create_hash: bool,
    /// `m.room.create` names the creator in its content (1 to 10); later it is its sender.
    pub creator_in_content: bool,
    /// `m.room.redaction` names its victim in its content (11+) instead of at the top level.
    pub redacts_in_content: bool,

    // Signatures.
    /// A key must be valid at the event's `origin_server_ts` (5+).
    pub enforce_key_validity: bool,

    // State resolution.
    /// Which algorithm.
    pub state_resolution: StateResolution,

    // Authorisation.
    /// Rule 4 on `m.room.aliases` exists (1 to 5).
    pub special_aliases: bool,
    /// Rule 11 on `m.room.redaction` exists (1, 2); later servers decide when they apply a redaction.
    pub redactions_authorised: bool,
    /// Changes of `notifications` in power levels are checked like those of `events` (6+).
    pub limit_notifications_power: bool,
    /// `membership: knock` and `join_rule: knock` exist (7+).
    pub knock: bool,
    /// `join_rule: restricted` exists (8+).
    pub restricted_join: bool,
    /// `join_rule: knock_restricted` exists (10+).
    pub knock_restricted: bool,
    /// Power levels must be integers, not strings of digits (10+).
    pub integer_power_levels: bool,
    /// Creators stand above all power levels, and `additional_creators` exist (12+).
    pub privileged_creators: bool,

    // Redaction: what is kept.
    /// `m.room.aliases` keeps `aliases` (1 to 5).
    pub redact_keeps_aliases: bool,
    /// `m.room.join_rules` keeps `allow` (8+).
    pub redact_keeps_allow: bool,
    /// `m.room.member` keeps `join_authorised_via_users_server` (9+).
    pub redact_keeps_authoriser: bool,
    /// The changes of version 11: top-level `origin`, `membership` and `prev_state` go; `m.room.create` keeps its
    /// whole content, `m.room.redaction` its `redacts`, `m.room.power_levels` its `invite`, `m.room.member` the
    /// `signed` of its `third_party_invite`.
    pub redact_by_version_11: bool,
}

/// How an event of this version is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventIdFormat {
    /// `event_id` is a key of the event (1, 2).
    InEvent,
    /// `$` and the reference hash in standard unpadded base64 (3).
    HashStandardBase64,
    /// `$` and the reference hash in URL-safe unpadded base64 (4+).
    HashUrlSafeBase64,
}

/// Which algorithm resolves conflicting states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateResolution {
    /// Version 1: by depth and SHA-1.
    V1,
    /// Versions 2 to 11.
    V2,
    /// Version 12: starts from nothing, with the conflicted state subgraph.
    V2_1,
}

/// A reference to a version's rules; copies are free.
pub type RoomVersion = &'static Rules;

const V1: Rules = Rules {
    id: "1",
    event_id_format: EventIdFormat::InEvent,
    strict_canonical_json: false,
    room_id_is_create_hash: false,
    creator_in_content: true,
    redacts_in_content: false,
    enforce_key_validity: false,
    state_resolution: StateResolution::V1,
    special_aliases: true,
    redactions_authorised: true,
    limit_notifications_power: false,
    knock: false,
    restricted_join: false,
    knock_restricted: false,
    integer_power_levels: false,
    privileged_creators: false,
    redact_keeps_aliases: true,
    redact_keeps_allow: false,
    redact_keeps_authoriser: false,
    redact_by_version_11: false,
};
const V2: Rules = Rules { id: "2", state_resolution: StateResolution::V2, ..V1 };
const V3: Rules =
    Rules { id: "3", event_id_format: EventIdFormat::HashStandardBase64, redactions_authorised: false, ..V2 };
const V4: Rules = Rules { id: "4", event_id_format: EventIdFormat::HashUrlSafeBase64, ..V3 };
const V5: Rules = Rules { id: "5", enforce_key_validity: true, ..V4 };
const V6: Rules = Rules {
    id: "6",
    strict_canonical_json: true,
    special_aliases: false,
    limit_notifications_power: true,
    redact_keeps_aliases: false,
    ..V5
};
const V7: Rules = Rules { id: "7", knock: true, ..V6 };
const V8: Rules = Rules { id: "8", restricted_join: true, redact_keeps_allow: true, ..V7 };
const V9: Rules = Rules { id: "9", redact_keeps_authoriser: true, ..V8 };
const V10: Rules = Rules { id: "10", knock_restricted: true, integer_power_levels: true, ..V9 };
const V11: Rules = Rules {
    id: "11",
    creator_in_content: false,
    redacts_in_content: true,
    redact_by_version_11: true,
    ..V10
};
const V12: Rules = Rules {
    id: "12",
    room_id_is_create_hash: true,
    state_resolution: StateResolution::V2_1,
    privileged_creators: true,
    ..V11
};

static ALL: [Rules; 12] = [V1, V2, V3, V4, V5, V6, V7, V8, V9, V10, V11, V12];

/// Every version that this server speaks, in order 1 to 12.
pub fn all() -> &'static [Rules] {
    &ALL
}

/// The rules of a version by its id; none if this server does not speak it.
pub fn room_version(id: &str) -> Option<RoomVersion> {
    ALL.iter().find(|rules| rules.id == id)
}

/// The version that new rooms get when nobody says otherwise: 12.
pub fn default_version() -> RoomVersion {
    &ALL[ALL.len() - 1]
}

impl Default for RoomVersion {
    /// What the specification recommends for new rooms.
    fn default() -> Self {
        default_version()
    }
}

impl Rules {
    /// The largest `depth` that an event may have; a deeper room stays at it.
    pub fn max_depth(&self) -> i64 {
        if self.strict_canonical_json { crate::protocol::json::INTEGER_MAX } else { i64::MAX }
    }
}

impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}
impl Eq for Rules {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_1_to_12_and_the_default_is_one_of_them() {
        let ids: Vec<_> = all().iter().map(|rules| rules.id).collect();
        assert_eq!(ids, ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"]);
        assert_eq!(room_version("12"), Some(default_version()));
        assert!(room_version("13").is_none() && room_version("01").is_none() && room_version("").is_none());
    }

    #[test]
    fn each_rule_begins_or_ends_with_the_version_that_says_so() {
        let from = |rule: fn(&Rules) -> bool| {
            let held: Vec<_> = all().iter().filter(|r| rule(r)).map(|r| r.id).collect();
            held.join(" ")
        };
        assert_eq!(from(|r| r.redactions_authorised), "1 2");
        assert_eq!(from(|r| r.event_id_format == EventIdFormat::InEvent), "1 2");
        assert_eq!(
            from(|r| r.special_aliases && r.redact_keeps_aliases && !r.strict_canonical_json),
            "1 2 3 4 5"
        );
        assert_eq!(from(|r| r.enforce_key_validity), "5 6 7 8 9 10 11 12");
        assert_eq!(from(|r| r.knock), "7 8 9 10 11 12");
        assert_eq!(from(|r| r.restricted_join && r.redact_keeps_allow), "8 9 10 11 12");
        assert_eq!(from(|r| r.redact_keeps_authoriser), "9 10 11 12");
        assert_eq!(from(|r| r.knock_restricted && r.integer_power_levels), "10 11 12");
        assert_eq!(from(|r| r.redacts_in_content && !r.creator_in_content), "11 12");
        assert_eq!(from(|r| r.room_id_is_create_hash && r.privileged_creators), "12");
    }
}
