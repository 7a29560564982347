//! Guests ("Guest Access"): accounts that anybody gets without a name or a password, if the server gives them out. They may
//! be in the rooms that let guests in, and go when a room does so no more. It stands above `accounts` and `membership`, as
//! deactivation does.

use std::net::IpAddr;

use super::Homeserver;
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::random;
use crate::service::accounts::moderation::not_for_guests;
use crate::service::accounts::sessions::{Login, NewLogin};
use crate::service::accounts::{NewAccount, token_hash};
use crate::store::RoomKey;
use crate::store::accounts::guests::{NAME_BEGINS, NAME_LETTERS};

/// Most guests at a time. Beyond, the one goes who was heard of least lately: strangers make them.
const GUESTS_MAX: i64 = 2000;
/// When it is tried again to have a room's guests leave, if they could not.
const REMOVAL_RETRY_MS: Millis = 60_000;

impl Homeserver {
    /// `POST /register?kind=guest`. Errors: 403 `M_GUEST_ACCESS_FORBIDDEN` if this server has no guests.
    pub fn register_guest(&self, login: &NewLogin<'_>) -> Result<Login> {
        if !self.config.guests {
            return Err(not_for_guests("This homeserver has no guests"));
        }
        let (count, quietest) = self.store.read(|db| match db.count_guests()? {
            count if count < GUESTS_MAX => Ok((count, None)),
            count => Ok((count, db.quietest_guest()?)),
        })?;
        if let Some(quietest) = quietest {
            log::info!("{quietest} makes place for another guest");
            self.end_guest_account(&quietest)?;
        } else if count >= GUESTS_MAX {
            return Err(too_many_guests());
        }
        let name = format!("{NAME_BEGINS}{}", random::letters(NAME_LETTERS).to_ascii_lowercase());
        let user = UserId::parse(&format!("@{name}:{}", self.server_name()))?;
        self.appservices.check_new_user(None, &user)?;
        let now = self.clock.now_ms();
        let prepared = login.prepared(now)?;
        let (made, session) = (user.clone(), prepared.clone());
        self.store.write(move |tx| match tx.create_guest(&made, now)? {
            true => session.begin(tx, &made),
            false => Err(Error::internal("a guest of this name")),
        })?;
        Ok(prepared.into_login(&user))
    }

    /// Closes the account of a guest, who has been chosen before. Errors: 429 `M_LIMIT_EXCEEDED` if they have become a user
    /// meanwhile: those make place for nobody.
    pub(super) fn end_guest_account(&self, guest: &UserId) -> Result<()> {
        self.accounts().close(guest, false, |db, user| match db.is_guest(user)? {
            true => Ok(()),
            false => Err(too_many_guests()),
        })?;
        self.leave_all_rooms(guest);
        Ok(())
    }

    /// The guest who shows this access token. Errors: 403 `M_FORBIDDEN` if it is no guest's.
    pub fn guest_of_token(&self, token: &str, from: IpAddr) -> Result<UserId> {
        let session = self.accounts().authenticate(token, from);
        let session = session.ok().filter(|session| session.standing.guest && !session.standing.locked);
        let none = || Error::forbidden("guest_access_token is not the token of a guest");
        session.map(|session| session.user_id).ok_or_else(none)
    }

    /// Makes a user of a guest, with a password ("Guest users can also upgrade their account"). Errors: as
    /// `Accounts::create_account`.
    pub fn upgrade_guest(
        &self,
        guest: &UserId,
        new: &NewAccount<'_>,
        login: Option<&NewLogin<'_>>,
    ) -> Result<Option<Login>> {
        let now = self.clock.now_ms();
        let password = new.password.ok_or_else(|| Error::missing_param("Missing password"))?;
        let password = self.accounts().hash_password(password, new.from)?;
        let login = login.map(|login| login.prepared(now)).transpose()?;
        let (user, token, session) = (guest.clone(), new.token.map(token_hash), login.clone());
        self.store.write(move |tx| {
            if !tx.is_guest(&user)? || !tx.is_active_user(&user)? {
                return Err(Error::forbidden("There is no such guest any more"));
            }
            if let Some(token) = &token
                && !tx.use_registration_token(token, now)?
            {
                let used = "This registration token cannot be used any more";
                return Err(Error::new(ErrCode::Unauthorized, used));
            }
            tx.end_guest(&user)?;
            tx.set_password(&user, &password)?;
            session.map_or(Ok(()), |session| session.begin(tx, &user))
        })?;
        Ok(login.map(|login| login.into_login(guest)))
    }

    /// Has the guests of one room leave that lets none in any more. What cannot be done now is done later.
    pub(in crate::service) fn remove_guests(&self, room: RoomKey) -> Result<()> {
        let (room_id, guests) = self.store.read(|db| {
            let room = db.room_by_key(room)?;
            let access = db.state_event(room.key, "m.room.guest_access", "")?;
            let is_open =
                access.and_then(|access| access.content_str("guest_access")).as_deref() == Some("can_join");
            let guests = if is_open { Vec::new() } else { db.guests_in(room.key)? };
            Ok((room.room_id, guests))
        })?;
        let mut done = true;
        for guest in guests {
            if let Err(error) = self.membership().leave(&guest, &room_id, None) {
                log::log!(error.level(log::Level::Warn), "the guest {guest} cannot leave {room_id}: {error}");
                done = false;
            }
        }
        let again = self.clock.now_ms() + REMOVAL_RETRY_MS;
        self.store.write(move |tx| match done {
            true => tx.end_guest_removal(room),
            false => tx.put_off_guest_removal(room, again),
        })
    }
}

fn too_many_guests() -> Error {
    Error::new(ErrCode::LimitExceeded, "There are too many guests, please try again later")
}
