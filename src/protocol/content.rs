//! Reading the contents of state events that more than one part of the server asks about, tolerantly: what is not of
//! the right type counts as absent. What the authorisation rules read is in `event_auth`, which is strict.

use serde_json::{Map, Value};

use crate::protocol::ids::{RoomAlias, RoomId, UserId};
use crate::protocol::pdu::Pdu;

/// A content, parsed.
pub type StateContent = Map<String, Value>;

/// A text.
pub fn text<'a>(content: &'a StateContent, key: &str) -> Option<&'a str> {
    content.get(key).and_then(Value::as_str)
}

/// A text that is not empty: a name, a topic, an avatar.
pub fn nonempty<'a>(content: &'a StateContent, key: &str) -> Option<&'a str> {
    text(content, key).filter(|text| !text.is_empty())
}

/// Of `m.room.create`: whether users of other servers may take part.
pub fn federates(content: &StateContent) -> bool {
    content.get("m.federate").and_then(Value::as_bool).unwrap_or(true)
}

/// Of `m.room.create`: `m.space` and the like.
pub fn room_type(content: &StateContent) -> Option<&str> {
    text(content, "type")
}

/// Who created a room: the create event's sender, in room versions 1 to 10 its `creator` instead, from 12 on its
/// `additional_creators` too.
pub fn creators(create: &Pdu) -> Vec<UserId> {
    let (content, version) = (create.content(), create.version());
    let user = |value: &Value| value.as_str().and_then(|text| UserId::parse(text).ok());
    let mut creators = Vec::new();
    match content.get("creator").and_then(user).filter(|_| version.creator_in_content) {
        Some(creator) => creators.push(creator),
        None => creators.push(create.sender().clone()),
    }
    if version.privileged_creators {
        let more = content.get("additional_creators").and_then(Value::as_array);
        creators.extend(more.into_iter().flatten().filter_map(user));
    }
    creators
}

/// Of `m.room.join_rules`: the rule; `invite` where there is none.
pub fn join_rule(content: Option<&StateContent>) -> &str {
    content.and_then(|content| text(content, "join_rule")).unwrap_or("invite")
}

/// Of `m.room.join_rules`: the rooms whose members may join a `restricted` or `knock_restricted` room.
pub fn allowed_rooms(content: &StateContent) -> Vec<RoomId> {
    let conditions = content.get("allow").and_then(Value::as_array);
    let rooms = conditions.into_iter().flatten().filter(|condition| condition["type"] == "m.room_membership");
    rooms.filter_map(|condition| RoomId::parse(condition["room_id"].as_str()?).ok()).collect()
}

/// Of `m.room.canonical_alias`: the alias, if it is one.
pub fn canonical_alias(content: &StateContent) -> Option<RoomAlias> {
    nonempty(content, "alias").and_then(|alias| RoomAlias::parse(alias).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: Value) -> StateContent {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn what_is_of_the_wrong_type_counts_as_absent() {
        let odd = of(json!({"join_rule": 1, "alias": "x", "type": {}, "m.federate": "no",
            "allow": {"x": 1}, "name": ""}));
        assert_eq!(join_rule(Some(&odd)), "invite");
        assert!(federates(&odd));
        assert_eq!((canonical_alias(&odd), room_type(&odd), nonempty(&odd, "name")), (None, None, None));
        assert!(allowed_rooms(&odd).is_empty());
    }

    #[test]
    fn restricted_rooms_name_the_rooms_whose_members_may_join() {
        let content = of(json!({"join_rule": "restricted", "allow": [
            {"type": "m.room_membership", "room_id": "!a:b"}, {"type": "other", "room_id": "!c:d"}, 7,
            {"type": "m.room_membership"}, {"type": "m.room_membership", "room_id": "x"}]}));
        assert_eq!(allowed_rooms(&content), [RoomId::parse("!a:b").expect("id")]);
    }
}
