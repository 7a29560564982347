//! Ignored users (client-server API, "Ignoring Users"): whom a reader does not want to hear.
//!
//! A `RoomView` hides their events by itself; what is no event of a room (typing, receipts, presence, invites) asks
//! here.

use std::collections::HashSet;

use serde_json::Value;

use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::json::parse_object;
use crate::store::Db;

/// The users whom a local user ignores. Never themselves, whatever their list says.
#[derive(Debug, Default)]
pub struct Ignored(HashSet<String>);

impl Ignored {
    /// The users of somebody's `m.ignored_user_list`, as it is now.
    pub fn of(db: &Db<'_>, reader: &UserId) -> Result<Self> {
        let content = db.account_data(reader, None, "m.ignored_user_list")?;
        Ok(content.map(|content| Self::listed(&content, reader)).unwrap_or_default())
    }

    /// Clients write the list, so it need not be what it should be.
    fn listed(content: &str, reader: &UserId) -> Self {
        let Ok(content) = parse_object(content.as_bytes()) else { return Self::default() };
        let users = content.get("ignored_users").and_then(Value::as_object);
        let others =
            users.into_iter().flatten().map(|(user, _)| user).filter(|user| *user != reader.as_str());
        Self(others.cloned().collect())
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
            assert!(Ignored::listed(odd, &reader).0.is_empty(), "{odd}");
        }
    }
}
