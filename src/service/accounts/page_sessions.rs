//! Sessions of the page that this server shows in a browser: devices of their users like any other. Their tokens are
//! good for a day; the browser knows its device for longer, so that who logs in again does so on the same one.

use std::net::IpAddr;

use super::token_hash;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::UserId;
use crate::service::accounts::passwords::PasswordProof;
use crate::service::accounts::sessions::{Login, NewLogin};
use crate::service::accounts::{Accounts, NewAccount};
use crate::service::devices::device_lists::tell_of_devices;

/// How long a session of the page is good: who leaves a browser somewhere leaves it for a day at most.
const PAGE_SESSION_LIFE_MS: Millis = 24 * 60 * 60 * 1000;
/// How long the browser knows its device after that. Later nobody can come back to it, and it goes.
pub const PAGE_COOKIE_LIFE_MS: Millis = 30 * PAGE_SESSION_LIFE_MS;

/// What a device of the page is called.
const DEVICE_NAME: &str = "Doorstep in a browser";

impl Accounts<'_> {
    /// Logs in on the page, by a password: on the device of the token that the browser has, if that is of this user's and has
    /// expired, else on a new one. Devices of the page to which no browser can come back any more are forgotten. Errors: as
    /// [`Accounts::check_password`], 403 `M_FORBIDDEN` for too many devices.
    pub fn log_in_on_page(
        &self,
        user: &UserId,
        password: &str,
        last_token: Option<&str>,
        from: IpAddr,
    ) -> Result<Login> {
        let proof = self.check_password(user, password, Some(from))?;
        let user = proof.user().clone();
        let now = self.clock.now_ms();
        let last = match last_token {
            Some(token) => self.store.session(&token_hash(token))?,
            None => None,
        };
        let is_over = |at: Millis| at <= now;
        let last = last.filter(|last| last.user_id == user && last.expires_ms.is_some_and(is_over));
        let owner = user.clone();
        self.store.write(move |tx| {
            let gone = tx.abandoned_devices(&owner, now - PAGE_COOKIE_LIFE_MS)?;
            for device in &gone {
                tx.delete_device(&owner, device)?;
            }
            tell_of_devices(tx, &owner, &gone)
        })?;
        let login = page_login(last.as_ref().map(|last| last.device_id.as_str()), from);
        self.log_in_with(&user, &NewLogin { proof: Some(&proof), ..login })
    }

    /// Makes the first account, the administrator's, with the one-time token that was printed at the start, and logs it in on
    /// the page; however registration is set, since who has the token is the operator. Errors: as
    /// [`Accounts::create_account`]; 403 `M_FORBIDDEN` once there is an account.
    pub fn create_first_account(
        &self,
        localpart: &str,
        password: &str,
        token: &str,
        from: IpAddr,
    ) -> Result<Login> {
        // Before a password is worked on; whether it is good is decided where the account is made.
        let hash = token_hash(token);
        if !self.store.read(|db| db.is_first_token(&hash))? {
            return Err(no_first_token());
        }
        let new = NewAccount {
            localpart: Some(localpart),
            password: Some(password),
            first_token: Some(token),
            from: Some(from),
            ..NewAccount::default()
        };
        let (_, login) = self.create_account(&new, Some(&page_login(None, from)))?;
        login.ok_or_else(|| Error::internal("a new account was not logged in"))
    }

    /// Checks the password of a user who has shown that they are logged in. Errors: as [`Accounts::check_password`].
    pub fn check_own_password(&self, user: &UserId, password: &str, from: IpAddr) -> Result<PasswordProof> {
        self.check_password_of(user, password, Some(from), true)
    }
}

/// What is told to who has another token than the one that was printed last, or comes too late.
pub(super) fn no_first_token() -> Error {
    Error::forbidden("This link is not good any more. The server prints a new one when it starts")
}

fn page_login(device_id: Option<&str>, from: IpAddr) -> NewLogin<'_> {
    NewLogin {
        device_id,
        display_name: Some(DEVICE_NAME),
        life_ms: Some(PAGE_SESSION_LIFE_MS),
        from: Some(from),
        ..NewLogin::default()
    }
}
