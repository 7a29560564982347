//! Tags: what users file their rooms under. Those of a room are one entry of account data, `m.tag`, which clients may also write
//! as such.

use serde_json::{Map, Value};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::json::parse_object;
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::Accounts;
use crate::service::accounts::account_data::NAME_BYTES_MAX;
use crate::store::Tx;

/// The type of account data that the tags of a room are.
const TAGS: &str = "m.tag";

/// Tags of one room, the bytes of what one says (usually `order` alone), and of all together: with each change they are read and
/// written as a whole.
const TAGS_MAX: usize = 100;
const TAG_BYTES_MAX: usize = 1024;
const TAGS_BYTES_MAX: usize = 64 * 1024;

/// The content of `m.tag`.
#[derive(Debug, Clone, Default, PartialEq)]
struct Tags {
    by_name: Map<String, Value>,
    /// Whatever else a client has written there.
    others: Map<String, Value>,
}

impl Tags {
    /// Reads what is stored. Errors: it cannot be read, and so must not be written over.
    fn read(stored: Option<&str>) -> Result<Self> {
        let Some(stored) = stored else { return Ok(Self::default()) };
        let mut others = parse_object(stored.as_bytes())?;
        let by_name = match others.remove("tags") {
            Some(Value::Object(tags)) => tags,
            _ => Map::new(),
        };
        Ok(Self { by_name, others })
    }

    /// What is stored. Errors: 403 `M_RESOURCE_LIMIT_EXCEEDED` for more than there may be, unless it is no more than it was `before`.
    fn to_json(&self, before: &Self) -> Result<String> {
        let too_many = || Error::new(ErrCode::ResourceLimitExceeded, "The room has too many tags");
        if self.by_name.len() > before.by_name.len().max(TAGS_MAX) {
            return Err(too_many());
        }
        let json = |tags: &Self| {
            let mut content = tags.others.clone();
            content.insert("tags".to_owned(), tags.by_name.clone().into());
            Value::from(content).to_string()
        };
        let content = json(self);
        if content.len() > TAGS_BYTES_MAX && content.len() > json(before).len() {
            return Err(too_many());
        }
        Ok(content)
    }
}

impl Accounts<'_> {
    /// The tags that the user has put on a room, by name.
    pub fn tags(&self, user: &UserId, room: &RoomId) -> Result<Map<String, Value>> {
        let stored = self.store.read(|db| db.account_data(user, Some(room), TAGS))?;
        Ok(Tags::read(stored.as_deref())?.by_name)
    }

    /// Puts a tag on a room, or replaces it. Errors: 400 `M_INVALID_PARAM` for a bad name or order, 413 `M_TOO_LARGE` for one that
    /// says too much, 403 `M_RESOURCE_LIMIT_EXCEEDED` for too many.
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
        let body = Value::from(body);
        if body.to_string().len() > TAG_BYTES_MAX {
            let why = format!("What a tag says has at most {TAG_BYTES_MAX} bytes");
            return Err(Error::new(ErrCode::TooLarge, why));
        }
        self.change_tags(user, room, |tags| drop(tags.insert(tag.to_owned(), body.clone())))
    }

    /// Takes a tag off a room, if it is there.
    pub fn delete_tag(&self, user: &UserId, room: &RoomId, tag: &str) -> Result<()> {
        self.change_tags(user, room, |tags| drop(tags.remove(tag)))
    }

    /// Changes the tags. They are read where that holds up nobody; if another change was first, this one is made again upon it.
    fn change_tags(
        &self,
        user: &UserId,
        room: &RoomId,
        change: impl Fn(&mut Map<String, Value>),
    ) -> Result<()> {
        loop {
            let stored = self.store.read(|db| db.account_data(user, Some(room), TAGS))?;
            let before = Tags::read(stored.as_deref())?;
            let mut tags = before.clone();
            change(&mut tags.by_name);
            if tags == before {
                return Ok(());
            }
            let (of, room, content) = (user.clone(), room.clone(), tags.to_json(&before)?);
            let written = self.store.write(move |tx| {
                let is_current = tx.account_data(&of, Some(&room), TAGS)? == stored;
                if is_current {
                    tx.set_account_data(&of, Some(&room), TAGS, &content)?;
                }
                Ok(is_current)
            })?;
            if written {
                return Ok(());
            }
        }
    }
}

/// Puts the tags of a room on the one that replaces it, but where that has its own. What cannot be read, or would be too much, stays
/// as it is: it keeps nobody out of the room.
pub(in crate::service) fn copy_tags(
    tx: &mut Tx<'_>,
    user: &UserId,
    old: &RoomId,
    new: &RoomId,
) -> Result<()> {
    let tags = |tx: &Tx<'_>, room| -> Result<Option<Tags>> {
        Ok(Tags::read(tx.account_data(user, Some(room), TAGS)?.as_deref()).ok())
    };
    let (Some(old), Some(own)) = (tags(tx, old)?, tags(tx, new)?) else { return Ok(()) };
    let mut all = own.clone();
    for (tag, says) in old.by_name {
        all.by_name.entry(tag).or_insert(says);
    }
    match all.to_json(&own) {
        Ok(content) if all != own => tx.set_account_data(user, Some(new), TAGS, &content),
        _ => Ok(()),
    }
}
