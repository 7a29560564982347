//! Ignored users (client-server API, "Ignoring Users"): whom a reader does not want to hear, as their list says.

use std::collections::HashSet;

use serde_json::Value;

use crate::protocol::UserId;
use crate::protocol::json::parse_object;

/// The users whom a local user ignores. Never themselves, whatever their list says.
#[derive(Debug, Default)]
pub struct Ignored(HashSet<String>);

impl Ignored {
    /// The users of the content of `m.ignored_user_list`. Clients write the list, so it need not be what it should be.
    pub fn listed(content: &str, reader: &UserId) -> Self {
        let Ok(content) = parse_object(content.as_bytes()) else { return Self::default() };
        let users = content.get("ignored_users").and_then(Value::as_object);
        let others =
            users.into_iter().flatten().map(|(user, _)| user).filter(|user| *user != reader.as_str());
        Self(others.cloned().collect())
    }

    /// Those whom another list does not have.
    pub fn without(mut self, other: &Self) -> Self {
        self.0.retain(|user| !other.has(user));
        self
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who they are.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether this user is among them.
    pub fn has(&self, user: &str) -> bool {
        self.0.contains(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_any_shape_is_read_and_nobody_ignores_themselves() {
        let reader = UserId::parse("@me:a.org").unwrap();
        let ignored =
            Ignored::listed(r#"{"ignored_users":{"@x:b.org":{},"@y:b.org":7,"@me:a.org":{}}}"#, &reader);
        assert!(ignored.has("@x:b.org") && ignored.has("@y:b.org"));
        assert!(!ignored.has("@me:a.org") && !ignored.has("@z:b.org"));
        for odd in ["", "[]", "null", "{}", r#"{"ignored_users":["@x:b.org"]}"#, r#"{"ignored_users":null}"#]
        {
            assert!(Ignored::listed(odd, &reader).is_empty(), "{odd}");
        }
    }
}
