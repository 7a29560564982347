//! Account data: what clients keep here for themselves.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::Accounts;
use crate::service::push::rules::{PUSH_RULES, push_rules_content};

/// "The name of a tag MUST NOT exceed 255 bytes"; types of account data are held to the same.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// The types that the server manages: "Servers MUST reject setting account data for event types that the server manages
/// by using a 405 error response."
const RESERVED: [&str; 2] = ["m.fully_read", PUSH_RULES];

impl Accounts<'_> {
    /// Sets account data, global if no room is given. Errors: 405 `M_BAD_JSON` for types that the server manages, 400
    /// `M_INVALID_PARAM`, 413 `M_TOO_LARGE` for more than one user may have.
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
}
