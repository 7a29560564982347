//! Join rules: who may come in.

use serde_json::Value;

use super::StateLookup;
use crate::protocol::ids::RoomId;
use crate::protocol::pdu::Pdu;
use crate::protocol::room_version::RoomVersion;

/// `join_rule` of `m.room.join_rules`, as written: whether the room's version knows it is another question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinRule {
    /// Anybody.
    Public,
    /// Invited users. Also holds where the event is missing.
    Invite,
    /// Invited users; others may knock (from version 7 on).
    Knock,
    /// Invited users and members of other rooms (from version 8 on).
    Restricted,
    /// `Knock` and `Restricted` together (from version 10 on).
    KnockRestricted,
    /// Reserved, and anything else: nobody can join.
    Private,
}

impl JoinRule {
    /// The rule that an event states.
    pub fn of(event: &Pdu) -> Self {
        // Without the key Synapse takes the rule to be `invite`, as where the event is missing.
        match event.content().get("join_rule") {
            None => Self::Invite,
            Some(Value::String(rule)) => Self::parse(rule),
            Some(_) => Self::Private,
        }
    }

    fn parse(rule: &str) -> Self {
        match rule {
            "public" => Self::Public,
            "invite" => Self::Invite,
            "knock" => Self::Knock,
            "restricted" => Self::Restricted,
            "knock_restricted" => Self::KnockRestricted,
            _ => Self::Private,
        }
    }

    /// Whether a room of this version with this rule takes knocks.
    pub fn takes_knocks(self, version: RoomVersion) -> bool {
        match self {
            Self::Knock => version.knock,
            Self::KnockRestricted => version.knock_restricted,
            _ => false,
        }
    }

    /// Whether a room of this version with this rule lets members of other rooms in.
    pub fn is_restricted(self, version: RoomVersion) -> bool {
        match self {
            Self::Restricted => version.restricted_join,
            Self::KnockRestricted => version.knock_restricted,
            _ => false,
        }
    }
}

/// The join rules in force in one state, for services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRules {
    /// The rule.
    pub rule: JoinRule,
    /// The rooms whose members a restricted rule lets in (entries of type `m.room_membership`); else empty.
    pub allowed_rooms: Vec<RoomId>,
}

impl JoinRules {
    /// The join rules in force in a state. Malformed entries of the list allow nobody.
    pub fn of(version: RoomVersion, state: StateLookup<'_>) -> Self {
        let Some(event) = state("m.room.join_rules", "") else {
            return Self { rule: JoinRule::Invite, allowed_rooms: Vec::new() };
        };
        let rule = JoinRule::of(&event);
        let content = event.content();
        let allowed_rooms = match content.get("allow") {
            Some(Value::Array(conditions)) if rule.is_restricted(version) => {
                conditions.iter().filter_map(allowed_room).collect()
            }
            _ => Vec::new(),
        };
        Self { rule, allowed_rooms }
    }
}

fn allowed_room(condition: &Value) -> Option<RoomId> {
    if condition.get("type")?.as_str()? != "m.room_membership" {
        return None;
    }
    RoomId::parse(condition.get("room_id")?.as_str()?).ok()
}
