//! Accounts: who may have one, how a password is kept, how an account ends.

use std::sync::Mutex;

use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use sha2::{Digest, Sha256};

use super::device_lists::tell_of_devices;
use super::{Homeserver, random};
use crate::config::Registration;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::protocol::pdu::Membership;
use crate::store::users::{Account, TokenHash};

/// The work for one password: 19 MiB and two passes, which a Raspberry Pi does in a fraction of a second. (The least
/// that OWASP recommends for argon2id.)
const HASH_MEMORY_KIB: u32 = 19 * 1024;
const HASH_PASSES: u32 = 2;
/// Longest password in bytes: nobody types more, and hashing must not be a way to load the server.
const LONGEST_PASSWORD: usize = 512;

/// One password at a time is hashed, so that a crowd at the door costs one hash's memory.
static HASHING: Mutex<()> = Mutex::new(());

/// A hash that no password has: checked where there is no account, so that guessing takes the same time.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm90IGFueWJvZHkncw$QOdOZQsoAOxXnxGsYr2SNdG8Efe3zlArPkUbCUAyCHk";

/// What a new account is made from.
#[derive(Debug, Default)]
pub struct NewAccount<'a> {
    /// The part of the user id before the colon; none: a random one.
    pub localpart: Option<&'a str>,
    /// The password; none: nobody can log in with one.
    pub password: Option<&'a str>,
    /// Whether to make an administrator. The very first account is one in any case.
    pub admin: bool,
    /// The registration token that is used up with it.
    pub token: Option<&'a str>,
}

impl Homeserver {
    /// The user id that somebody who asks for this localpart would get. Errors: 400 `M_INVALID_USERNAME`, 400
    /// `M_USER_IN_USE`.
    pub fn available_user_id(&self, localpart: &str) -> Result<UserId> {
        let user = new_user_id(localpart, self.server_name().as_str())?;
        match self.store.read(|db| db.account(&user))? {
            Some(_) => Err(in_use()),
            None => Ok(user),
        }
    }

    /// Makes an account. Errors: as `available_user_id`, 400 `M_WEAK_PASSWORD`, 401 `M_UNAUTHORIZED` for a
    /// registration token that is not good any more.
    pub fn create_account(&self, new: &NewAccount<'_>) -> Result<UserId> {
        let localpart = new.localpart.map_or_else(|| random::letters(12).to_ascii_lowercase(), str::to_owned);
        let user = self.available_user_id(&localpart)?;
        let password = new.password.map(hash_password).transpose()?;
        let token = new.token.map(token_hash);
        let (admin, now) = (new.admin, self.clock.now_ms());
        let created = user.clone();
        self.store.write(move |tx| {
            if let Some(token) = &token
                && !tx.use_registration_token(token, now)?
            {
                return Err(Error::new(
                    ErrCode::Unauthorized,
                    "This registration token cannot be used any more",
                ));
            }
            if tx.create_account(&created, password.as_deref(), admin, now)? { Ok(()) } else { Err(in_use()) }
        })?;
        Ok(user)
    }

    /// An account with one device that is logged in: for fixtures and tests. Returns the user and an access token.
    pub fn register_user(&self, localpart: &str, password: Option<&str>) -> Result<(UserId, String)> {
        let user = self.create_account(&NewAccount {
            localpart: Some(localpart),
            password,
            ..NewAccount::default()
        })?;
        let login = self.log_in(&user, None, None, false)?;
        Ok((user, login.access_token))
    }

    /// The one-time registration token for the first account, made anew at each start until there is an account.
    /// None: there are accounts, or registration does not ask for tokens.
    pub fn ensure_first_token(&self) -> Result<Option<String>> {
        if self.config.registration != Registration::Token || self.store.read(|db| db.has_accounts())? {
            return Ok(None);
        }
        let token = random::token();
        let hash = token_hash(&token);
        self.store.write(move |tx| tx.replace_first_token(&hash))?;
        Ok(Some(token))
    }

    /// Whether somebody could register with this token now. Errors: 403 `M_FORBIDDEN` if nobody can register.
    pub fn registration_token_is_valid(&self, token: &str) -> Result<bool> {
        if self.config.registration == Registration::Closed {
            return Err(Error::forbidden("Registration is not enabled on this homeserver"));
        }
        let (hash, now) = (token_hash(token), self.clock.now_ms());
        self.store.read(|db| db.registration_token_is_valid(&hash, now))
    }

    /// Allows `uses` registrations (none: any number) with this token, until `expires_ms` (none: without end).
    pub fn add_registration_token(
        &self,
        token: &str,
        uses: Option<i64>,
        expires_ms: Option<i64>,
    ) -> Result<()> {
        let hash = token_hash(token);
        self.store.write(move |tx| tx.add_registration_token(&hash, uses, expires_ms))
    }

    /// Checks a user's password, in the same time whether or not there is such an account. Errors: 403 `M_FORBIDDEN`
    /// if it is not theirs, or there is no such account, or it is deactivated.
    pub fn check_password(&self, user: &UserId, password: &str) -> Result<Account> {
        let account = self.store.read(|db| db.account(user))?;
        let stored = account.as_ref().and_then(|a| a.password.as_deref());
        let right = {
            let _one_at_a_time = HASHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            hasher()?.verify_password(password.as_bytes(), stored.unwrap_or(NOBODY)).is_ok()
        };
        match account {
            Some(account) if right && stored_is(&account) => Ok(account),
            _ => Err(Error::forbidden("Wrong user name or password")),
        }
    }

    /// Sets a password. With `keep`, all other devices of the user are logged out. Errors: 400 `M_WEAK_PASSWORD`.
    pub fn set_password(
        &self,
        user: &UserId,
        password: &str,
        log_out_except: Option<Option<&str>>,
    ) -> Result<()> {
        let hash = hash_password(password)?;
        let user = user.clone();
        let keep = log_out_except.map(|keep| keep.map(str::to_owned));
        self.store.write(move |tx| {
            tx.set_password(&user, &hash)?;
            match keep {
                Some(keep) => {
                    let gone = tx.delete_devices_except(&user, keep.as_deref())?;
                    tell_of_devices(tx, &user, &gone)
                }
                None => Ok(()),
            }
        })
    }

    /// Closes an account for good, and leaves its rooms. Its name stays taken.
    pub fn deactivate(&self, user: &UserId) -> Result<()> {
        let closed = user.clone();
        self.store.write(move |tx| {
            let gone = tx.deactivate(&closed)?;
            tell_of_devices(tx, &closed, &gone)
        })?;
        self.leave_all_rooms(user)
    }

    /// Finishes the deactivations that the last stop cut short.
    pub fn finish_deactivations(&self) -> Result<()> {
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
            if let Err(e) = self.leave(user, &room, None) {
                // One odd room must not keep the user in all the others.
                log::warn!("{user} was deactivated and cannot leave {room}: {e}");
            }
        }
        let user = user.clone();
        self.store.write(move |tx| tx.deactivated_user_left(&user))
    }
}

fn stored_is(account: &Account) -> bool {
    account.password.is_some() && !account.deactivated
}

fn in_use() -> Error {
    Error::new(ErrCode::UserInUse, "This user name is taken")
}

/// The user id of a new account (appendices, "User Identifiers": the grammar of today, not the historical one).
fn new_user_id(localpart: &str, server: &str) -> Result<UserId> {
    let wrong = |message: &'static str| Error::new(ErrCode::InvalidUsername, message);
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'=' | b'-' | b'/' | b'+');
    if localpart.is_empty() || !localpart.bytes().all(allowed) {
        return Err(wrong("A user name has the letters a to z, digits, and . _ = - / + only"));
    }
    if localpart.starts_with('_') {
        return Err(wrong("User names that begin with _ are reserved for application services"));
    }
    UserId::parse(&format!("@{localpart}:{server}")).map_err(|_| wrong("This user name is too long"))
}

/// The SHA-256 of a token, which is what is stored: tokens are random, so that nothing slower is needed.
pub fn token_hash(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

fn hasher() -> Result<Argon2<'static>> {
    let params =
        Params::new(HASH_MEMORY_KIB, HASH_PASSES, 1, None).map_err(|e| Error::internal(e.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash_password(password: &str) -> Result<String> {
    if password.is_empty() || password.len() > LONGEST_PASSWORD {
        return Err(Error::new(ErrCode::WeakPassword, "A password has 1 to 512 bytes"));
    }
    let salt: [u8; 16] = random::bytes();
    let _one_at_a_time = HASHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let hash = hasher()?
        .hash_password_with_salt(password.as_bytes(), &salt)
        .map_err(|e| Error::internal(e.to_string()))?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::protocol::ServerName;

    fn homeserver(registration: Registration) -> Arc<Homeserver> {
        let mut config = Config::for_name(ServerName::parse("example.org").unwrap());
        config.registration = registration;
        Homeserver::open(config, Clock::new()).unwrap()
    }

    #[test]
    fn a_password_opens_its_own_account_only() {
        let hs = homeserver(Registration::Open);
        let (alice, _) = hs.register_user("alice", Some("open sesame")).unwrap();
        let (bob, _) = hs.register_user("bob", None).unwrap();
        assert!(hs.check_password(&alice, "open sesame").unwrap().admin);
        let nobody = UserId::parse("@nobody:example.org").unwrap();
        for (user, password) in [(&alice, "open sesam"), (&alice, ""), (&bob, ""), (&nobody, "open sesame")] {
            assert_eq!(hs.check_password(user, password).unwrap_err().errcode(), ErrCode::Forbidden);
        }
        hs.deactivate(&alice).unwrap();
        assert!(hs.check_password(&alice, "open sesame").is_err());
        assert_eq!(hs.register_user("alice", None).unwrap_err().errcode(), ErrCode::UserInUse);
    }

    #[test]
    fn the_hash_that_nobody_has_costs_as_much_as_a_real_one() {
        let real = hash_password("x").unwrap();
        let cost = |hash: &str| hash.split('$').take(4).collect::<Vec<_>>().join("$");
        assert_eq!(cost(&real), cost(NOBODY));
        assert!(hasher().unwrap().verify_password(b"x", real.as_str()).is_ok());
        // Well-formed, so that the work is done before the answer is no.
        let refused = hasher().unwrap().verify_password(b"x", NOBODY).unwrap_err();
        assert!(matches!(refused, argon2::password_hash::Error::PasswordInvalid), "{refused:?}");
    }

    #[test]
    fn user_names_follow_the_grammar_of_today() {
        let hs = homeserver(Registration::Open);
        for bad in ["", "Alice", "a b", "é", "a:b", "@a", "_bridge", &"a".repeat(250)] {
            assert_eq!(hs.available_user_id(bad).unwrap_err().errcode(), ErrCode::InvalidUsername, "{bad}");
        }
        assert_eq!(hs.available_user_id("a.b_c=d-e/f+1").unwrap().as_str(), "@a.b_c=d-e/f+1:example.org");
    }

    #[test]
    fn the_first_token_works_once_and_is_replaced_at_the_next_start() {
        let hs = homeserver(Registration::Token);
        let old = hs.ensure_first_token().unwrap().unwrap();
        let token = hs.ensure_first_token().unwrap().unwrap();
        assert!(!hs.registration_token_is_valid(&old).unwrap());
        assert!(hs.registration_token_is_valid(&token).unwrap());
        let new =
            |name, token| NewAccount { localpart: Some(name), token: Some(token), ..NewAccount::default() };
        assert_eq!(hs.create_account(&new("eve", &old)).unwrap_err().errcode(), ErrCode::Unauthorized);
        hs.create_account(&new("alice", &token)).unwrap();
        assert!(hs.create_account(&new("eve", &token)).is_err());
        assert_eq!(hs.ensure_first_token().unwrap(), None);
        let alice = UserId::parse("@alice:example.org").unwrap();
        assert!(hs.store.read(|db| db.account(&alice)).unwrap().unwrap().admin);
    }
}
