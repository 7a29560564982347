//! Account data and tags: what clients keep here for themselves.

use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::json::parse_object;
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::Accounts;
use crate::service::push::rules::{PUSH_RULES, push_rules_content};

/// "The name of a tag MUST NOT exceed 255 bytes"; types of account data are held to the same.
const NAME_BYTES_MAX: usize = 255;
/// Tags of one room.
const TAGS_MAX: usize = 100;

/// The types that the server manages: "Servers MUST reject setting account data for event types that the server manages
/// by using a 405 error response."
const RESERVED: [&str; 2] = ["m.fully_read", PUSH_RULES];

impl Accounts<'_> {
    /// Sets account data, global if no room is given. Errors: 405 `M_BAD_JSON` for types that the server manages, 400
    /// `M_INVALID_PARAM`.
    pub fn set_account_data(
        &self,
        user: &UserId,
        room: Option<&RoomId>,
        event_type: &str,
        content: &Map<String, Value>,
    ) -> Result<()> {
        if RESERVED.contains(&event_type) {
            return Err(
                Error::bad_json(format!("Cannot set {event_type} through this API.")).with_status(405)
            );
        }
        if event_type.is_empty() || event_type.len() > NAME_BYTES_MAX {
            return Err(Error::invalid_param("The type must have between 1 and 255 bytes"));
        }
        let (user, room, event_type) = (user.clone(), room.cloned(), event_type.to_owned());
        let content = Value::from(content.clone()).to_string();
        self.store.write(move |tx| tx.set_account_data(&user, room.as_ref(), &event_type, &content))
    }

    /// The content of account data as JSON, global if no room is given. Errors: 404 `M_NOT_FOUND`.
    pub fn account_data(&self, user: &UserId, room: Option<&RoomId>, event_type: &str) -> Result<String> {
        if room.is_none() && event_type == PUSH_RULES {
            return self.store.read(|db| push_rules_content(db, user));
        }
        self.store
            .read(|db| db.account_data(user, room, event_type))?
            .ok_or_else(|| Error::not_found("There is no account data of this type"))
    }

    /// The tags that the user has put on a room, by name.
    pub fn tags(&self, user: &UserId, room: &RoomId) -> Result<Map<String, Value>> {
        let content = self.store.read(|db| db.account_data(user, Some(room), "m.tag"))?;
        Ok(tags_of(content.as_deref()))
    }

    /// Puts a tag on a room, or replaces it. Errors: 400 `M_INVALID_PARAM` for a bad name or order.
    pub fn set_tag(&self, user: &UserId, room: &RoomId, tag: &str, body: Map<String, Value>) -> Result<()> {
        if tag.is_empty() || tag.len() > NAME_BYTES_MAX {
            return Err(Error::invalid_param("The name of a tag must have between 1 and 255 bytes"));
        }
        if let Some(order) = body.get("order").filter(|order| !order.is_null()) {
            let order = order.as_f64().ok_or_else(|| Error::bad_json("order must be a number"))?;
            if !(0.0..=1.0).contains(&order) {
                return Err(Error::invalid_param("order must be between 0 and 1"));
            }
        }
        self.change_tags(user, room, tag.to_owned(), Some(body.into()))
    }

    /// Takes a tag off a room, if it is there.
    pub fn delete_tag(&self, user: &UserId, room: &RoomId, tag: &str) -> Result<()> {
        self.change_tags(user, room, tag.to_owned(), None)
    }

    fn change_tags(&self, user: &UserId, room: &RoomId, tag: String, to: Option<Value>) -> Result<()> {
        let (user, room) = (user.clone(), room.clone());
        self.store.write(move |tx| {
            // Read inside the write, so that two clients' tags do not overwrite each other.
            let mut tags = tags_of(tx.account_data(&user, Some(&room), "m.tag")?.as_deref());
            let before = tags.clone();
            match to {
                Some(value) => tags.insert(tag, value),
                None => tags.remove(&tag),
            };
            if tags == before {
                return Ok(());
            }
            if tags.len() > TAGS_MAX && tags.len() > before.len() {
                return Err(Error::new(ErrCode::ResourceLimitExceeded, "The room has too many tags"));
            }
            tx.set_account_data(&user, Some(&room), "m.tag", &json!({"tags": tags}).to_string())
        })
    }
}

/// The tags in the content of `m.tag`. Clients may have written anything there.
fn tags_of(content: Option<&str>) -> Map<String, Value> {
    let content = content.and_then(|content| parse_object(content.as_bytes()).ok());
    match content.and_then(|mut content| content.remove("tags")) {
        Some(Value::Object(tags)) => tags,
        _ => Map::new(),
    }
}
