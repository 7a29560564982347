//! Ignored users (client-server API, "Ignoring Users"): whom a reader does not want to hear.
//!
//! A `RoomView` hides their events by itself; what is no event of a room (typing, receipts, presence, invites) asks
//! here.

pub use crate::protocol::ignored_users::Ignored;

use crate::error::Result;
use crate::protocol::UserId;
use crate::store::Db;

impl Ignored {
    /// The users of somebody's `m.ignored_user_list`, as it is now.
    pub fn of(db: &Db<'_>, reader: &UserId) -> Result<Self> {
        let content = db.account_data(reader, None, "m.ignored_user_list")?;
        Ok(content.map(|content| Self::listed(&content, reader)).unwrap_or_default())
    }
}
