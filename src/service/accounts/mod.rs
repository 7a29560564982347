//! Accounts: who may have one, what proves whose it is, and what people keep in it.
//!
//! - here: making and closing accounts, registration tokens; `registration_nonces`: those of the shared secret.
//! - `sessions`: logging in, refreshing tokens, logging out.
//! - `interactive_auth`: what a client has to prove before something is done; `passwords`: how often one may be tried.
//! - `page_sessions`: logging in on the page, and the first account.
//! - `moderation`: what administrators do to accounts.
//! - `profile`: names, avatars and other fields; `owed_profiles`: the rooms that are told of them; `account_data`: what clients
//!   keep here; `tags`: of this, what rooms are filed under.
//! - `ignored_users`: whom a user does not want to hear.
//! - `login_tokens`: with which who is logged in lets another device log in.
//! - `openid`: tokens by which third parties learn who somebody is.

pub mod account_data;
pub(super) mod ignored_users;
pub mod interactive_auth;
pub mod login_tokens;
pub mod moderation;
pub mod openid;
pub(super) mod owed_profiles;
pub mod page_sessions;
pub mod passwords;
pub mod profile;
pub mod registration_nonces;
pub mod sessions;
pub mod tags;

use std::net::IpAddr;
use std::ops::Deref;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Homeserver;
use crate::config::Registration;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::protocol::appservice::Appservice;
use crate::random;
use crate::service::accounts::page_sessions::no_first_token;
use crate::service::accounts::passwords::PasswordProof;
use crate::service::accounts::profile::checked_display_name;
use crate::service::accounts::sessions::{Login, NewLogin, log_out_devices, log_out_of_others};
use crate::service::devices::device_lists::tell_of_devices;
use crate::store::accounts::TokenHash;
use crate::store::accounts::registration_tokens::RegistrationToken;
use crate::store::{Db, Tx};

/// Accounts, their sessions and what they prove who they are with; profiles and account data.
#[derive(Clone, Copy)]
pub struct Accounts<'h>(&'h Homeserver);

impl Deref for Accounts<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// Accounts, their sessions and what they prove who they are with; profiles and account data.
    pub fn accounts(&self) -> Accounts<'_> {
        Accounts(self)
    }
}

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
    /// The application service whose user it is to be.
    pub service: Option<&'a Appservice>,
    /// The one-time token of the first account, which is used up with it.
    pub first_token: Option<&'a str>,
    /// The display name to begin with, an empty one for none. Not said: the localpart that was asked for, since clients show
    /// the whole user id of who has no name.
    pub display_name: Option<&'a str>,
    /// Where their picture is, which the caller has found to be short enough.
    pub avatar_url: Option<&'a str>,
    /// The address of who asks for it; none: made on this machine, not limited.
    pub from: Option<IpAddr>,
}

/// What else is done in the transaction that makes an account.
pub(in crate::service) type Also = Box<dyn FnOnce(&mut Tx<'_>, &UserId) -> Result<()> + Send>;

impl Accounts<'_> {
    /// The user id that somebody who asks for this localpart would get: in lower case, since there are no others.
    /// Errors: 400 `M_INVALID_USERNAME`, 400 `M_EXCLUSIVE`, 400 `M_USER_IN_USE`.
    pub fn available_user_id(&self, localpart: &str) -> Result<UserId> {
        self.available_to(localpart, None)
    }

    /// The same for a service, whose users are called what it likes within its namespaces.
    fn available_to(&self, localpart: &str, service: Option<&Appservice>) -> Result<UserId> {
        let user = match service {
            Some(_) => service_user_id(localpart, self.server_name().as_str())?,
            None => new_user_id(localpart, self.server_name().as_str())?,
        };
        self.appservices.check_new_user(service, &user)?;
        if service.is_none() && user.localpart().starts_with('_') {
            let reserved = "User names that begin with _ are reserved for application services";
            return Err(Error::new(ErrCode::InvalidUsername, reserved));
        }
        match self.store.read(|db| Ok(db.account(&user)?.is_some() || db.is_closed_user(user.as_str())?))? {
            true => Err(in_use()),
            false => Ok(user),
        }
    }

    /// Makes an account, and logs it in if `login` is given: both, or neither. Errors: as `available_user_id`, 400
    /// `M_WEAK_PASSWORD`, 401 `M_UNAUTHORIZED` for a registration token that is not good any more, 429
    /// `M_LIMIT_EXCEEDED` if too many passwords are being worked on, and those of [`Accounts::log_in_with`].
    pub fn create_account(
        &self,
        new: &NewAccount<'_>,
        login: Option<&NewLogin<'_>>,
    ) -> Result<(UserId, Option<Login>)> {
        self.create_account_with(new, login, Box::new(|_, _| Ok(())))
    }

    /// [`Accounts::create_account`], with what else is done in its transaction, where that can be done.
    pub(in crate::service) fn create_account_with(
        &self,
        new: &NewAccount<'_>,
        login: Option<&NewLogin<'_>>,
        also: Also,
    ) -> Result<(UserId, Option<Login>)> {
        let localpart = new.localpart.map_or_else(|| random::letters(12).to_ascii_lowercase(), str::to_owned);
        let user = self.available_to(&localpart, new.service)?;
        let now = self.clock.now_ms();
        // A localpart that nobody chose is no name.
        let display_name = new.display_name.or_else(|| new.localpart.map(|_| user.localpart()));
        let display_name = display_name.map(checked_display_name).transpose()?.flatten().map(Value::from);
        let picture = new.avatar_url.filter(|picture| !picture.is_empty()).map(Value::from);
        let login = login.map(|login| login.prepared(now)).transpose()?;
        let password = new.password.map(|password| self.hash_password(password, new.from)).transpose()?;
        let token = new.token.map(token_hash);
        let first_token = new.first_token.map(token_hash);
        let (admin, service) = (new.admin, new.service.map(|service| service.id.clone()));
        let (created, session) = (user.clone(), login.clone());
        self.store.write(move |tx| {
            if let Some(token) = &token
                && !tx.use_registration_token(token, now)?
            {
                return Err(Error::new(
                    ErrCode::Unauthorized,
                    "This registration token cannot be used any more",
                ));
            }
            if let Some(token) = &first_token
                && !tx.use_first_token(token)?
            {
                return Err(no_first_token());
            }
            let made = match &service {
                Some(service) => tx.create_service_user(&created, service, now)?,
                None => tx.create_account(&created, password.as_deref(), admin, now)?,
            };
            if !made {
                return Err(in_use());
            }
            if let Some(name) = &display_name {
                tx.set_profile_field(&created, "displayname", name)?;
            }
            if let Some(picture) = &picture {
                tx.set_profile_field(&created, "avatar_url", picture)?;
            }
            session.map_or(Ok(()), |session| session.begin(tx, &created))?;
            also(tx, &created)
        })?;
        Ok((user.clone(), login.map(|login| login.into_login(&user))))
    }

    /// An account with one device that is logged in, and without a name: for tests. Returns the user and an access token.
    pub fn register_user(&self, localpart: &str, password: Option<&str>) -> Result<(UserId, String)> {
        let display_name = Some("");
        let new = NewAccount { localpart: Some(localpart), password, display_name, ..NewAccount::default() };
        let (user, login) = self.create_account(&new, Some(&NewLogin::default()))?;
        let login = login.ok_or_else(|| Error::internal("a new account was not logged in"))?;
        Ok((user, login.access_token))
    }

    /// The one-time token for the first account, made anew at each start until there is an account: good on the page, and
    /// for a registration where those ask for tokens. None: there are accounts.
    pub fn ensure_first_token(&self) -> Result<Option<String>> {
        if self.store.read(|db| db.has_accounts())? {
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
        let token =
            RegistrationToken { hash: token_hash(token), uses_allowed: uses, completed: 0, expires_ms };
        self.store.write(move |tx| tx.put_registration_token(&token))
    }

    /// Replaces the password that somebody at an address has proved to know. With `log_out_except`, all devices of the user but
    /// that one are logged out. Errors: 400 `M_WEAK_PASSWORD`, 429 `M_LIMIT_EXCEEDED` if too many passwords are being worked on,
    /// 403 `M_FORBIDDEN` if it is their password no more.
    pub fn change_password(
        &self,
        proof: &PasswordProof,
        password: &str,
        log_out_except: Option<Option<&str>>,
        from: IpAddr,
    ) -> Result<()> {
        let proved = proof.clone();
        self.put_password(proof.user(), password, log_out_except, Some(from), move |db, _| proved.check(db))
    }

    /// Sets a user's password, if it is `allowed`, which is asked in the transaction. `log_out_except`: all their devices are logged
    /// out, but for that one. Errors: 400 `M_WEAK_PASSWORD`, 429 `M_LIMIT_EXCEEDED`, those of `allowed`.
    pub(in crate::service) fn put_password(
        &self,
        user: &UserId,
        password: &str,
        log_out_except: Option<Option<&str>>,
        from: Option<IpAddr>,
        allowed: impl FnOnce(&Db<'_>, &UserId) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let hash = self.hash_password(password, from)?;
        let user = user.clone();
        let keep = log_out_except.map(|keep| keep.map(str::to_owned));
        self.store.write(move |tx| {
            allowed(tx, &user)?;
            tx.set_password(&user, &hash)?;
            match keep {
                Some(keep) => log_out_devices(tx, &user, keep.as_deref()).map(drop),
                None => Ok(()),
            }
        })
    }

    /// Closes an account for good. Its name stays taken. With `erase`, what it sent is shown redacted to those who come
    /// later (see `service/events/erasure.rs`), and what else there is of it is deleted. Errors: those of `allowed`, which is
    /// asked in the transaction.
    pub(in crate::service) fn close(
        &self,
        user: &UserId,
        erase: bool,
        allowed: impl FnOnce(&Db<'_>, &UserId) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (closed, now) = (user.clone(), self.clock.now_ms());
        self.store.write(move |tx| {
            allowed(tx, &closed)?;
            let gone = tx.deactivate(&closed, now)?;
            if erase {
                tx.erase(&closed)?;
            }
            tell_of_devices(tx, &closed, &gone)?;
            log_out_of_others(tx, &closed)
        })
    }
}

/// Errors: 403 `M_FORBIDDEN` for the only administrator whom this server has.
pub(in crate::service) fn check_not_last_admin(db: &Db<'_>, user: &UserId) -> Result<()> {
    if db.is_last_admin(user)? {
        let message =
            format!("{user} is the only administrator of this server: make somebody else one first");
        return Err(Error::forbidden(message));
    }
    Ok(())
}

fn in_use() -> Error {
    Error::new(ErrCode::UserInUse, "This user name is taken")
}

/// The user id of a new account (appendices, "User Identifiers": the grammar of today, not the historical one). "The
/// server MUST either map the provided username onto a user_id in a logical manner, or reject any username which does
/// not comply to the grammar": capitals are mapped.
fn new_user_id(localpart: &str, server: &str) -> Result<UserId> {
    let wrong = |message: &'static str| Error::new(ErrCode::InvalidUsername, message);
    let localpart = localpart.to_ascii_lowercase();
    if !UserId::is_allocatable_localpart(&localpart) {
        return Err(wrong("A user name has the letters a to z, digits, and . _ = - / + only"));
    }
    UserId::parse(&format!("@{localpart}:{server}")).map_err(|_| wrong("This user name is too long"))
}

/// The user id of a service's new user, as the service writes it: bridges name users by names from elsewhere, and have always
/// been let by Synapse to use whatever the historical grammar has, capitals included.
fn service_user_id(localpart: &str, server: &str) -> Result<UserId> {
    let user = UserId::parse(&format!("@{localpart}:{server}")).ok();
    let user = user.filter(|user| user.localpart() == localpart && user.is_compliant());
    user.ok_or_else(|| Error::new(ErrCode::InvalidUsername, "This is not the first part of a user id"))
}

/// The SHA-256 of a token, which is what is stored: tokens are random, so that nothing slower is needed.
pub fn token_hash(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
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
        let (alice, _) = hs.accounts().register_user("alice", Some("open sesame")).unwrap();
        let (bob, _) = hs.accounts().register_user("bob", None).unwrap();
        let proof = hs.accounts().check_password(&alice, "open sesame", None).unwrap();
        assert_eq!(proof.user(), &alice);
        let nobody = UserId::parse("@nobody:example.org").unwrap();
        for (user, password) in [(&alice, "open sesam"), (&alice, ""), (&bob, ""), (&nobody, "open sesame")] {
            assert_eq!(
                hs.accounts().check_password(user, password, None).unwrap_err().errcode(),
                ErrCode::Forbidden
            );
        }
        hs.deactivate(&alice, false).unwrap();
        assert!(hs.accounts().check_password(&alice, "open sesame", None).is_err());
        assert_eq!(hs.accounts().register_user("alice", None).unwrap_err().errcode(), ErrCode::UserInUse);
    }

    #[test]
    fn user_names_follow_the_grammar_of_today() {
        let hs = homeserver(Registration::Open);
        for bad in ["", "a b", "é", "É", "a\u{212a}", "a:b", "@a", "_bridge", &"a".repeat(250)] {
            assert_eq!(
                hs.accounts().available_user_id(bad).unwrap_err().errcode(),
                ErrCode::InvalidUsername,
                "{bad}"
            );
        }
        assert_eq!(
            hs.accounts().available_user_id("a.b_c=d-e/f+1").unwrap().as_str(),
            "@a.b_c=d-e/f+1:example.org"
        );
        assert_eq!(hs.accounts().available_user_id("AliCe").unwrap().as_str(), "@alice:example.org");
        hs.accounts().register_user("Alice", None).unwrap();
        assert_eq!(hs.accounts().available_user_id("ALICE").unwrap_err().errcode(), ErrCode::UserInUse);
    }

    #[test]
    fn the_first_token_is_void_when_the_first_account_was_made_without_it() {
        let hs = homeserver(Registration::Token);
        let token = hs.accounts().ensure_first_token().unwrap().unwrap();
        hs.accounts().register_user("made-by-command", None).unwrap();
        assert!(!hs.accounts().registration_token_is_valid(&token).unwrap());
    }

    #[test]
    fn the_first_token_works_once_and_is_replaced_at_the_next_start() {
        let hs = homeserver(Registration::Token);
        let old = hs.accounts().ensure_first_token().unwrap().unwrap();
        let token = hs.accounts().ensure_first_token().unwrap().unwrap();
        assert!(!hs.accounts().registration_token_is_valid(&old).unwrap());
        assert!(hs.accounts().registration_token_is_valid(&token).unwrap());
        let new =
            |name, token| NewAccount { localpart: Some(name), token: Some(token), ..NewAccount::default() };
        assert_eq!(
            hs.accounts().create_account(&new("eve", &old), None).unwrap_err().errcode(),
            ErrCode::Unauthorized
        );
        hs.accounts().create_account(&new("alice", &token), None).unwrap();
        assert!(hs.accounts().create_account(&new("eve", &token), None).is_err());
        assert_eq!(hs.accounts().ensure_first_token().unwrap(), None);
        let alice = UserId::parse("@alice:example.org").unwrap();
        assert!(hs.store.read(|db| db.account(&alice)).unwrap().unwrap().admin);
    }
}
