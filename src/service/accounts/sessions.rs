//! Sessions: logging in, staying logged in, logging out.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::token_hash;
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::appservice::Appservice;
use crate::protocol::{ServerName, UserId};
use crate::random;
use crate::service::accounts::Accounts;
use crate::service::accounts::moderation::{Administrator, check_still_admin, locked};
use crate::service::accounts::passwords::PasswordProof;
use crate::service::devices::device_lists::{tell_of_device, tell_of_devices};
use crate::store::Tx;
use crate::store::accounts::devices::{NewSession, Session};

/// How long an access token is good for a client that can refresh it.
const ACCESS_TOKEN_LIFE_MS: Millis = 24 * 60 * 60 * 1000;
/// A device's last-seen time is written again when it is this old.
const LAST_SEEN_LAG_MS: Millis = 10 * 60 * 1000;
/// Most devices of one user.
const DEVICES_MAX: i64 = 1000;
/// Longest device id, in bytes.
const DEVICE_ID_BYTES_MAX: usize = 255;
/// Longest name of a device, in bytes.
pub(in crate::service) const DEVICE_NAME_BYTES_MAX: usize = 256;

/// What a client gets when it has logged in.
#[derive(Debug, Clone)]
pub struct Login {
    /// Who.
    pub user_id: UserId,
    /// On which device.
    pub device_id: String,
    /// The token for its requests.
    pub access_token: String,
    /// The token for new tokens, if the client can use one.
    pub refresh_token: Option<String>,
    /// How long the access token is good; none: without end.
    pub expires_in_ms: Option<Millis>,
}

impl Login {
    /// What the client is told.
    pub fn for_client(&self, server: &ServerName) -> Value {
        let mut body = json!({
            "user_id": self.user_id,
            "access_token": self.access_token,
            "device_id": self.device_id,
            // Deprecated, and still read by some clients.
            "home_server": server,
        });
        if let (Some(refresh), Some(life)) = (&self.refresh_token, self.expires_in_ms) {
            body["refresh_token"] = json!(refresh);
            body["expires_in_ms"] = json!(life);
        }
        body
    }
}

/// What a client asks for that logs in.
#[derive(Debug, Default, Clone, Copy)]
pub struct NewLogin<'a> {
    /// The device to log in on; none: a new one.
    pub device_id: Option<&'a str>,
    /// What a new device is called.
    pub display_name: Option<&'a str>,
    /// Whether the client can refresh its access token.
    pub refreshable: bool,
    /// How long the access token is good for a client that cannot refresh it; none: without end.
    pub life_ms: Option<Millis>,
    /// The client's address, the first that is noted of the device; none: it is not known.
    pub from: Option<IpAddr>,
    /// The password by which the user logs in; none: it is not by a password.
    pub proof: Option<&'a PasswordProof>,
    /// Who logs in in the user's name; none: the user.
    pub opened_by: Option<&'a Administrator>,
    /// The application service that logs in in the user's name, if one does.
    pub service: Option<&'a Appservice>,
}

impl NewLogin<'_> {
    /// Makes the tokens. Errors: 400 `M_INVALID_PARAM` for a device id or name that cannot be.
    pub(in crate::service) fn prepared(&self, now: Millis) -> Result<PreparedLogin> {
        let device_id = match self.device_id {
            Some(id) => checked_device_id(id)?.to_owned(),
            None => random::letters(10).to_ascii_uppercase(),
        };
        Ok(PreparedLogin {
            device_id,
            display_name: self.display_name.map(checked_device_name).transpose()?,
            tokens: Tokens::new(self.refreshable, self.life_ms),
            seen: self.from.map(|ip| (now, ip.to_canonical().to_string())),
            proof: self.proof.cloned(),
            opened_by: self.opened_by.cloned(),
            service: self.service.map(|service| service.id.clone()),
            now,
        })
    }
}

/// A login with its tokens made, before it is stored.
#[derive(Clone)]
pub(in crate::service) struct PreparedLogin {
    device_id: String,
    display_name: Option<String>,
    tokens: Tokens,
    /// When and where from the device is seen by logging in.
    seen: Option<(Millis, String)>,
    proof: Option<PasswordProof>,
    opened_by: Option<Administrator>,
    service: Option<String>,
    now: Millis,
}

impl PreparedLogin {
    /// Stores it; tokens that the device had end. Errors: 403 `M_FORBIDDEN` for an account that is none, or has another password
    /// by now, or too many devices, and for the name of a cross-signing key.
    pub(in crate::service) fn begin(&self, tx: &mut Tx<'_>, owner: &UserId) -> Result<()> {
        // The user may have been deactivated or locked since the password was checked.
        let account = tx.account(owner)?.filter(|account| !account.deactivated);
        let account = account.ok_or_else(|| Error::forbidden("There is no such account any more"))?;
        if account.standing.locked {
            return Err(locked());
        }
        self.proof.iter().try_for_each(|proof| proof.check(tx))?;
        if self.opened_by.is_some() {
            // Tools log in again and again, and the user may have so many devices only.
            let over = tx.opened_devices_over(owner, self.now)?;
            over.iter().try_for_each(|device| tx.delete_device(owner, device).map(drop))?;
            tell_of_devices(tx, owner, &over)?;
        }
        let device = &self.device_id;
        let is_new = tx.device(owner, device)?.is_none();
        if is_new {
            check_new_device(tx, owner, device)?;
        } else if tx.dehydrated_device(owner)?.is_some_and(|dehydrated| dehydrated.device_id == *device) {
            return Err(Error::forbidden("Nobody can log in on a dehydrated device"));
        }
        tx.log_in_device(owner, device, self.display_name.as_deref(), &self.tokens.stored(self.now))?;
        if let Some(by) = &self.opened_by {
            check_still_admin(tx, by)?;
            tx.device_opened_by(owner, device, by.user_id())?;
        }
        if let Some(service) = &self.service {
            tx.device_of_service(owner, device, service)?;
        }
        if let Some((at, ip)) = &self.seen {
            tx.device_seen(owner, device, *at, ip)?;
        }
        if is_new { tell_of_device(tx, owner, device) } else { Ok(()) }
    }

    /// What the client is told.
    pub(in crate::service) fn into_login(self, user: &UserId) -> Login {
        Login {
            user_id: user.clone(),
            device_id: self.device_id,
            access_token: self.tokens.access,
            refresh_token: self.tokens.refresh,
            expires_in_ms: self.tokens.expires_in_ms,
        }
    }
}

#[derive(Clone)]
struct Tokens {
    access: String,
    refresh: Option<String>,
    expires_in_ms: Option<Millis>,
}

impl Tokens {
    fn new(refreshable: bool, life_ms: Option<Millis>) -> Self {
        Self {
            access: random::token(),
            refresh: refreshable.then(random::token),
            expires_in_ms: if refreshable { Some(ACCESS_TOKEN_LIFE_MS) } else { life_ms },
        }
    }

    fn stored(&self, now: Millis) -> NewSession {
        NewSession {
            access: token_hash(&self.access),
            refresh: self.refresh.as_deref().map(token_hash),
            expires_ms: self.expires_in_ms.map(|life| now.saturating_add(life)),
        }
    }
}

impl Accounts<'_> {
    /// Logs a user in on a device; tokens that the device had end. Errors: 400 `M_INVALID_PARAM` for a device id or
    /// name that cannot be, 403 `M_FORBIDDEN` for too many devices.
    pub fn log_in_with(&self, user: &UserId, login: &NewLogin<'_>) -> Result<Login> {
        let prepared = login.prepared(self.clock.now_ms())?;
        let (owner, session) = (user.clone(), prepared.clone());
        self.store.write(move |tx| session.begin(tx, &owner))?;
        Ok(prepared.into_login(user))
    }

    /// [`Self::log_in_with`] from no address in particular: for fixtures and tests.
    pub fn log_in(
        &self,
        user: &UserId,
        device_id: Option<&str>,
        display_name: Option<&str>,
        refreshable: bool,
    ) -> Result<Login> {
        self.log_in_with(user, &NewLogin { device_id, display_name, refreshable, ..NewLogin::default() })
    }

    /// Who an access token belongs to. Errors: 401 `M_UNKNOWN_TOKEN`, with `soft_logout` if it has only expired.
    pub fn authenticate(&self, access_token: &str, ip: IpAddr) -> Result<Session> {
        self.authenticated(access_token, ip, false)
    }

    /// [`Self::authenticate`] for who logs out, which may also be done with a token that has expired: else the device would stay
    /// that the user wants to be gone.
    pub fn authenticate_even_expired(&self, access_token: &str, ip: IpAddr) -> Result<Session> {
        self.authenticated(access_token, ip, true)
    }

    fn authenticated(&self, access_token: &str, ip: IpAddr, even_expired: bool) -> Result<Session> {
        let hash = token_hash(access_token);
        let session = self.store.session(&hash)?;
        let Some(session) = session else {
            return Err(
                Error::new(ErrCode::UnknownToken, "Unknown access token").with_field("soft_logout", false)
            );
        };
        let now = self.clock.now_ms();
        let has_expired = session.expires_ms.is_some_and(|at| at <= now);
        if has_expired && (!even_expired || session.has_ended()) {
            let expired = Error::new(ErrCode::UnknownToken, "The access token has expired");
            return Err(expired.with_field("soft_logout", true));
        }
        let unseen = session.last_seen_ms.is_none_or(|seen| !(0..LAST_SEEN_LAG_MS).contains(&(now - seen)));
        if unseen || session.replaces.is_some() {
            let used = session.clone();
            self.store.write(move |tx| {
                tx.confirm_session(&used)?;
                tx.device_seen(&used.user_id, &used.device_id, now, &ip.to_string())
            })?;
        }
        Ok(session)
    }

    /// New tokens for a refresh token, which stays good until one of the new ones is used. Errors: 401
    /// `M_UNKNOWN_TOKEN`, 401 `M_USER_LOCKED`.
    pub fn refresh(&self, refresh_token: &str) -> Result<Login> {
        let hash = token_hash(refresh_token);
        let tokens = Tokens::new(true, None);
        let new = tokens.stored(self.clock.now_ms());
        let session = self.store.write(move |tx| {
            let unknown = || Error::new(ErrCode::UnknownToken, "Unknown refresh token");
            let session =
                tx.session_by_refresh(&hash)?.ok_or_else(|| unknown().with_field("soft_logout", false))?;
            if session.has_ended() {
                // Another program of the same device has used the new tokens: whoever has these may log in there again.
                return Err(unknown().with_field("soft_logout", true));
            }
            if session.standing.locked {
                return Err(locked());
            }
            tx.confirm_session(&session)?;
            tx.refresh_session(&session, &new)?;
            Ok(session)
        })?;
        Ok(Login {
            user_id: session.user_id,
            device_id: session.device_id,
            access_token: tokens.access,
            refresh_token: tokens.refresh,
            expires_in_ms: tokens.expires_in_ms,
        })
    }

    /// Logs devices out and forgets them. Those that do not exist are fine.
    pub fn delete_devices(&self, user: &UserId, devices: Vec<String>) -> Result<()> {
        let user = user.clone();
        self.store.write(move |tx| log_out_some(tx, &user, devices).map(drop))
    }

    /// Logs all of a user's devices out.
    pub fn delete_all_devices(&self, user: &UserId) -> Result<()> {
        let user = user.clone();
        self.store.write(move |tx| log_out_devices(tx, &user, None).map(drop))
    }

    /// Makes a device without a session, on which an application service acts by its own token. False: the user has it already.
    /// Errors: 400 `M_INVALID_PARAM` for an id or a name that cannot be, 403 `M_FORBIDDEN` for too many devices, and for the name
    /// of a cross-signing key.
    pub fn add_device(
        &self,
        service: &Appservice,
        user: &UserId,
        device: &str,
        name: Option<&str>,
    ) -> Result<bool> {
        let service = service.id.clone();
        let (user, device) = (user.clone(), checked_device_id(device)?.to_owned());
        let name = name.map(checked_device_name).transpose()?;
        self.store.write(move |tx| {
            if tx.device(&user, &device)?.is_some() {
                return Ok(false);
            }
            if !tx.is_active_user(&user)? {
                return Err(Error::forbidden("There is no such account any more"));
            }
            check_new_device(tx, &user, &device)?;
            tx.add_device(&user, &device, name.as_deref(), &service)?;
            tell_of_device(tx, &user, &device).map(|()| true)
        })
    }

    /// Renames a device. Errors: 404 `M_NOT_FOUND`, 400 `M_INVALID_PARAM`, 403 `M_FORBIDDEN` where an administrator has logged in
    /// in the user's name, who is to see whose it is.
    pub fn rename_device(&self, user: &UserId, device: &str, name: &str) -> Result<()> {
        let (user, device, name) = (user.clone(), device.to_owned(), checked_device_name(name)?);
        self.store.write(move |tx| put_device_name(tx, &user, &device, &name))
    }
}

/// Errors: those of [`Accounts::rename_device`].
pub(in crate::service) fn put_device_name(
    tx: &mut Tx<'_>,
    user: &UserId,
    device: &str,
    name: &str,
) -> Result<()> {
    if tx.is_opened_device(user, device)? {
        return Err(Error::forbidden("The name says which administrator has this device"));
    }
    match tx.rename_device(user, device, name)? {
        true => tell_of_device(tx, user, device),
        false => Err(Error::not_found("There is no such device")),
    }
}

/// Logs these of a user's devices out and forgets them; gives how many those were. Those that do not exist are fine.
pub(in crate::service) fn log_out_some(
    tx: &mut Tx<'_>,
    user: &UserId,
    devices: Vec<String>,
) -> Result<usize> {
    let mut gone = Vec::new();
    for device in devices {
        if tx.delete_device(user, &device)? {
            gone.push(device);
        }
    }
    tell_of_devices(tx, user, &gone)?;
    Ok(gone.len())
}

/// Logs all of a user's devices out but this one, and those on which they are logged in in the names of others; gives how many of
/// their own those were.
pub(in crate::service) fn log_out_devices(
    tx: &mut Tx<'_>,
    user: &UserId,
    keep: Option<&str>,
) -> Result<usize> {
    let gone = tx.delete_devices_except(user, keep)?;
    tell_of_devices(tx, user, &gone)?;
    log_out_of_others(tx, user)?;
    Ok(gone.len())
}

/// Logs the devices out on which an administrator is logged in in the names of others.
pub(in crate::service) fn log_out_of_others(tx: &mut Tx<'_>, admin: &UserId) -> Result<()> {
    for (user, device) in tx.devices_opened_by(admin)? {
        tx.delete_device(&user, &device)?;
        tell_of_devices(tx, &user, &[device])?;
    }
    Ok(())
}

/// Whether the user may have one more device, of this id. Errors: 403 `M_FORBIDDEN`.
pub(in crate::service) fn check_new_device(tx: &Tx<'_>, owner: &UserId, device: &str) -> Result<()> {
    if tx.count_devices(owner)? >= DEVICES_MAX {
        return Err(Error::forbidden("This account has too many devices"));
    }
    // "Servers must ensure that device IDs will not collide with cross-signing public keys."
    if tx.is_cross_signing_key(owner, device)? {
        return Err(Error::forbidden("One of your cross-signing keys has this name"));
    }
    Ok(())
}

pub(in crate::service) fn checked_device_id(id: &str) -> Result<&str> {
    let fits = !id.is_empty() && id.len() <= DEVICE_ID_BYTES_MAX && !id.chars().any(char::is_control);
    if fits { Ok(id) } else { Err(Error::invalid_param("A device id has 1 to 255 bytes")) }
}

pub(in crate::service) fn checked_device_name(name: &str) -> Result<String> {
    let fits = name.len() <= DEVICE_NAME_BYTES_MAX;
    if fits {
        Ok(name.to_owned())
    } else {
        Err(Error::invalid_param("A device's name has at most 256 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::protocol::ServerName;
    use crate::service::Homeserver;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn homeserver() -> Arc<Homeserver> {
        Homeserver::open(Config::for_name(ServerName::parse("example.org").unwrap()), Clock::new()).unwrap()
    }

    fn knows(hs: &Homeserver, token: &str) -> bool {
        hs.accounts().authenticate(token, HERE).is_ok()
    }

    #[test]
    fn a_second_login_on_a_device_ends_the_first() {
        let hs = homeserver();
        let (alice, other) = hs.accounts().register_user("alice", None).unwrap();
        let first = hs.accounts().log_in(&alice, Some("PHONE"), Some("my phone"), false).unwrap();
        let second = hs.accounts().log_in(&alice, Some("PHONE"), Some("renamed"), false).unwrap();
        assert!(!knows(&hs, &first.access_token));
        assert!(knows(&hs, &second.access_token) && knows(&hs, &other));
        let device = hs.store.read(|db| db.device(&alice, "PHONE")).unwrap().unwrap();
        assert_eq!(device.display_name.as_deref(), Some("my phone"));
        assert_eq!(device.last_seen_ip.as_deref(), Some("127.0.0.1"));
    }

    #[test]
    fn who_proved_a_password_before_it_was_reset_is_not_logged_in_by_it_and_sets_no_other() {
        let hs = homeserver();
        let (alice, _) = hs.accounts().register_user("alice", Some("old")).unwrap();
        // As it is with who waits in the line for passwords meanwhile.
        let proof = hs.accounts().check_password(&alice, "old", None).unwrap();
        hs.admin().reset_password(&Administrator::Operator, &alice, "old", true).unwrap();
        let login = NewLogin { proof: Some(&proof), ..NewLogin::default() };
        assert_eq!(hs.accounts().log_in_with(&alice, &login).unwrap_err().errcode(), ErrCode::Forbidden);
        let changed = hs.accounts().change_password(&proof, "new", None, HERE);
        assert_eq!(changed.unwrap_err().errcode(), ErrCode::Forbidden);
        assert_eq!(hs.deactivate_own(&proof, false).unwrap_err().errcode(), ErrCode::Forbidden);
        assert_eq!(hs.store.read(|db| db.count_devices(&alice)).unwrap(), 0);
        let proof = hs.accounts().check_password(&alice, "old", None).unwrap();
        assert!(!format!("{proof:?}").contains("argon2"));
        let login = NewLogin { proof: Some(&proof), ..NewLogin::default() };
        hs.accounts().log_in_with(&alice, &login).unwrap();
        hs.accounts().change_password(&proof, "new", None, HERE).unwrap();
        hs.deactivate(&alice, false).unwrap();
        let reset = hs.admin().reset_password(&Administrator::Operator, &alice, "x", true);
        assert_eq!(reset.unwrap_err().status(), 400);
    }

    #[test]
    fn a_refresh_token_works_until_one_of_its_successors_is_used() {
        let hs = homeserver();
        let (alice, _) = hs.accounts().register_user("alice", None).unwrap();
        let login = hs.accounts().log_in(&alice, None, None, true).unwrap();
        let refresh = |login: &Login| hs.accounts().refresh(login.refresh_token.as_deref().unwrap());
        let lost = refresh(&login).unwrap();
        let kept = refresh(&login).unwrap();
        assert!(knows(&hs, &login.access_token), "the old one is good until a new one is used");
        assert!(!knows(&hs, &lost.access_token), "the answer that was asked for again is void");
        assert!(knows(&hs, &kept.access_token));
        assert!(!knows(&hs, &login.access_token));
        assert_eq!(refresh(&login).unwrap_err().errcode(), ErrCode::UnknownToken);
        let next = refresh(&kept).unwrap();
        let last = refresh(&next).unwrap();
        assert!(refresh(&kept).is_err(), "using the refresh token counts as well");
        assert_eq!(last.device_id, login.device_id);
    }

    #[test]
    fn an_expired_access_token_is_a_soft_logout() {
        let hs = homeserver();
        let (alice, endless) = hs.accounts().register_user("alice", None).unwrap();
        let login = hs.accounts().log_in(&alice, None, None, true).unwrap();
        assert!(knows(&hs, &login.access_token));
        hs.clock.advance(Duration::from_millis(ACCESS_TOKEN_LIFE_MS as u64));
        let error = hs.accounts().authenticate(&login.access_token, HERE).unwrap_err();
        assert_eq!(
            (error.errcode(), error.field("soft_logout").unwrap()),
            (ErrCode::UnknownToken, &true.into())
        );
        assert!(knows(&hs, &endless));
        assert!(knows(&hs, &hs.accounts().refresh(&login.refresh_token.unwrap()).unwrap().access_token));
    }

    #[test]
    fn who_is_logged_out_is_unknown() {
        let hs = homeserver();
        let (alice, first) = hs.accounts().register_user("alice", None).unwrap();
        let second = hs.accounts().log_in(&alice, Some("B"), None, false).unwrap();
        hs.accounts().delete_devices(&alice, vec!["B".into(), "none".into()]).unwrap();
        assert!(knows(&hs, &first) && !knows(&hs, &second.access_token));
        hs.accounts().delete_all_devices(&alice).unwrap();
        assert!(!knows(&hs, &first));
        assert!(hs.store.read(|db| db.devices(&alice)).unwrap().is_empty());
        hs.deactivate(&alice, false).unwrap();
        assert_eq!(
            hs.accounts().log_in(&alice, None, None, false).unwrap_err().errcode(),
            ErrCode::Forbidden
        );
    }
}
