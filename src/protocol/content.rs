//! Reading the contents of state events that more than one part of the server asks about, tolerantly: what is not of
//! the right type counts as absent. What the authorisation rules read is in `event_auth`, which is strict.

use serde_json::{Map, Value};

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

/// Of `m.invite_permission_config`, which is account data: whether the user wants no invites at all.
pub fn blocks_invites(content: &StateContent) -> bool {
    text(content, "default_action") == Some("block")
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
        let odd = of(json!({"topic": 1, "m.federate": "no", "name": ""}));
        assert!(federates(&odd));
        assert_eq!((text(&odd, "topic"), text(&odd, "name"), nonempty(&odd, "name")), (None, Some(""), None));
    }
}
