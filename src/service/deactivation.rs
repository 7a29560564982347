//! Deactivation (client-server API, "Account deactivation"): an account is closed, and its user leaves all rooms. It
//! stands above `accounts` and `membership`, of which neither knows the other.

use super::Homeserver;
use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::pdu::Membership;

impl Homeserver {
    /// Closes an account for good, and leaves its rooms. Its name stays taken. With `erase`, what it sent is shown
    /// redacted to those who come later (see `service/events/erasure.rs`), and what else there is of it is deleted.
    pub fn deactivate(&self, user: &UserId, erase: bool) -> Result<()> {
        if self.store.read(|db| db.is_last_admin(user))? {
            log::warn!(
                "{user}, the only administrator, closes the account: `doorstep user admin` makes another"
            );
        }
        self.accounts().close(user, erase, false)?;
        self.leave_all_rooms(user)
    }

    /// The same for an administrator. Errors: 403 `M_FORBIDDEN` for the only administrator there is.
    pub(super) fn deactivate_by_admin(&self, user: &UserId, erase: bool) -> Result<()> {
        self.accounts().close(user, erase, true)?;
        self.leave_all_rooms(user)
    }

    /// Finishes the deactivations that the last stop cut short.
    pub(super) fn finish_deactivations(&self) -> Result<()> {
        let users = self.store.read(|db| db.deactivated_users_in_rooms())?;
        users.iter().try_for_each(|user| self.leave_all_rooms(user))
    }

    fn leave_all_rooms(&self, user: &UserId) -> Result<()> {
        let present = |m: Membership| matches!(m, Membership::Join | Membership::Invite | Membership::Knock);
        let rooms = self.store.read(|db| {
            let here = db.rooms_of(user)?.into_iter().filter(|room| present(room.membership));
            let elsewhere = db.rooms_dealt_with_from_outside(user)?;
            Ok(here.map(|room| room.room_id).chain(elsewhere).collect::<Vec<_>>())
        })?;
        for room in rooms {
            if let Err(e) = self.membership().leave(user, &room, None) {
                // One odd room must not keep the user in all the others.
                log::log!(e.level(log::Level::Warn), "{user} was deactivated and cannot leave {room}: {e}");
            }
        }
        let user = user.clone();
        self.store.write(move |tx| {
            tx.delete_pending_media_of(&user)?;
            tx.deactivated_user_left(&user)
        })
    }
}
