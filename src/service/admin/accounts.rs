//! Accounts, as whoever operates this server sees them, makes them and changes them.

use serde_json::{Value, json};

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::{UserId, json};
use crate::service::accounts::moderation::{Administrator, check_moderated, check_still_admin};
use crate::service::accounts::passwords::check_strength;
use crate::service::accounts::profile::{check_text, put_profile_text};
use crate::service::accounts::sessions::{
    DEVICE_NAME_BYTES_MAX, NewLogin, checked_device_name, log_out_devices, log_out_of_others, log_out_some,
    put_device_name,
};
use crate::service::accounts::{NewAccount, check_not_last_admin};
use crate::service::admin::{Admin, next_place};
use crate::service::devices::device_lists::tell_of_devices;
use crate::store::accounts::account_data::AccountData;
use crate::store::accounts::listed::{AccountFilter, AccountOrder, ListedAccount};
use crate::store::accounts::{Account, OwnRate, Standing};
use crate::store::{Db, Tx};

/// Most accounts of one page.
const PAGE_MAX: i64 = 1000;

/// A page of accounts that is asked for.
#[derive(Debug, Default)]
pub struct AccountsPage {
    /// Which accounts.
    pub filter: AccountFilter,
    /// By what they are sorted.
    pub order: AccountOrder,
    /// Whether they are sorted the other way round.
    pub backwards: bool,
    /// How many come before.
    pub from: i64,
    /// How many at most; no more than a thousand are given.
    pub limit: i64,
}

/// What is to be changed of an account; what is not given stays as it is.
#[derive(Debug, Clone, Default)]
pub struct AccountChange {
    /// The new password.
    pub password: Option<String>,
    /// Whether a new password logs all devices out.
    pub logout_devices: bool,
    /// What the user is called; empty: nothing.
    pub displayname: Option<String>,
    /// Where the user's picture is; empty: there is none.
    pub avatar_url: Option<String>,
    /// Whether the user is an administrator.
    pub admin: Option<bool>,
    /// Whether the account is locked.
    pub locked: Option<bool>,
    /// Whether it is closed, which it then is for good.
    pub deactivated: Option<bool>,
}

impl Admin<'_> {
    /// The user whom somebody names by their id, or by its localpart, in whatever case: none of ours has capitals, but for those of
    /// application services, who are named exactly. Errors: 400
    /// `M_INVALID_PARAM` for what is neither; 400 `M_UNKNOWN` for another server's user.
    pub fn named_user(&self, name: &str) -> Result<UserId> {
        if !self.appservices.is_empty()
            && let Ok(exact) = self.exact_user(name)
            && self.store.read(|db| db.account(&exact))?.is_some()
        {
            return Ok(exact);
        }
        let localpart = match name.starts_with('@') {
            true => {
                let user = UserId::parse(name)?;
                if !self.is_local(&user) {
                    return Err(wrong("This endpoint is for users of this server only"));
                }
                user.localpart().to_ascii_lowercase()
            }
            false => name.to_ascii_lowercase(),
        };
        UserId::parse(&format!("@{localpart}:{}", self.server_name()))
    }

    fn exact_user(&self, name: &str) -> Result<UserId> {
        let user = match name.starts_with('@') {
            true => UserId::parse(name)?,
            false => UserId::parse(&format!("@{name}:{}", self.server_name()))?,
        };
        if self.is_local(&user) { Ok(user) } else { Err(no_user()) }
    }

    /// The account of a user of this server, closed or not. Errors: 404 `M_NOT_FOUND`.
    fn account(&self, user: &UserId) -> Result<Account> {
        self.store.read(|db| db.account(user))?.ok_or_else(no_user)
    }

    /// A page of the accounts that fit: `users`, how many there are in all as `total`, and `next_token` if there are
    /// more, which is the next page's `from`.
    pub fn list_accounts(&self, page: &AccountsPage) -> Result<Value> {
        let limit = page.limit.min(PAGE_MAX);
        let (users, total) = self
            .store
            .read(|db| db.listed_accounts(&page.filter, (page.order, page.backwards), (page.from, limit)))?;
        let next = next_place(page.from, users.len(), total);
        let users: Vec<Value> = users.iter().map(listed).collect();
        let mut answer = json!({ "users": users, "total": total });
        if let Some(next) = next {
            answer["next_token"] = next.to_string().into();
        }
        Ok(answer)
    }

    /// One account of this server, deactivated or not. Errors: 404 `M_NOT_FOUND`.
    pub fn account_details(&self, user: &UserId) -> Result<Value> {
        let found = self.store.read(|db| db.listed_account(user))?;
        let found = found.ok_or_else(no_user)?;
        let mut details = listed(&found);
        for (field, value) in [
            ("threepids", json!([])),
            ("external_ids", json!([])),
            ("appservice_id", self.store.read(|db| db.service_of(user))?.into()),
            ("consent_server_notice_sent", Value::Null),
            ("consent_version", Value::Null),
            ("consent_ts", Value::Null),
        ] {
            details[field] = value;
        }
        Ok(details)
    }

    /// Makes an account. Errors: as [`crate::service::accounts::Accounts::create_account`].
    pub fn add_account(&self, admin: &Administrator, new: &NewAccount<'_>) -> Result<Value> {
        self.make_account(admin, new, &AccountChange::default())
    }

    /// Makes an account and changes it: all of that, or nothing, in one transaction.
    fn make_account(
        &self,
        admin: &Administrator,
        new: &NewAccount<'_>,
        change: &AccountChange,
    ) -> Result<Value> {
        let (by, wanted, now) = (admin.clone(), change.clone(), self.clock.now_ms());
        let also =
            move |tx: &mut Tx<'_>, user: &UserId| put_change(tx, &by, user, &wanted, (None, now)).map(drop);
        let (user, _) = self.accounts().create_account_with(new, None, Box::new(also))?;
        log::info!("{admin} has made the account {user}");
        if change.deactivated == Some(true) {
            self.leave_all_rooms(&user);
        }
        self.account_details(&user)
    }

    /// An account as it is to be: it is changed if there is one, else made. The account, and whether it was made. Errors: those of
    /// [`Admin::change_account`] and of [`Admin::add_account`].
    pub fn put_account(
        &self,
        admin: &Administrator,
        user: &UserId,
        wanted: &AccountChange,
    ) -> Result<(Value, bool)> {
        if self.store.read(|db| db.account(user))?.is_some() {
            return Ok((self.change_account(admin, user, wanted)?, false));
        }
        check_profile(wanted.displayname.as_deref(), wanted.avatar_url.as_deref())?;
        let new = NewAccount {
            localpart: Some(user.localpart()),
            password: wanted.password.as_deref(),
            admin: wanted.admin.unwrap_or(false),
            display_name: wanted.displayname.as_deref(),
            avatar_url: wanted.avatar_url.as_deref(),
            ..NewAccount::default()
        };
        let standing = AccountChange {
            locked: wanted.locked,
            deactivated: wanted.deactivated,
            ..AccountChange::default()
        };
        Ok((self.make_account(admin, &new, &standing)?, true))
    }

    /// Changes an account: all of it, or nothing, in one transaction. Rooms are told and left after that.
    ///
    /// Errors: 404 `M_NOT_FOUND`; 400 `M_UNKNOWN` for what cannot be, as to open an account that was closed; those of
    /// [`Admin::set_admin`], [`Admin::deactivate_account`], of profiles, passwords and locks.
    pub fn change_account(
        &self,
        admin: &Administrator,
        user: &UserId,
        change: &AccountChange,
    ) -> Result<Value> {
        let account = self.account(user)?;
        self.store.read(|db| check_change(db, admin, &account, change))?;
        // Takes its time, which nobody is to wait for who writes.
        let hash =
            change.password.as_deref().map(|new| self.accounts().hash_password(new, None)).transpose()?;
        let (by, changed, wanted, now) = (admin.clone(), user.clone(), change.clone(), self.clock.now_ms());
        let done =
            self.store.write(move |tx| put_change(tx, &by, &changed, &wanted, (hash.as_deref(), now)))?;
        if !done.words.is_empty() {
            log::info!("{admin} has changed {user}: {}", done.words.join(", "));
        }
        // Of a guest who has left there is nothing to be told.
        let details = self.account_details(user)?;
        if done.is_closed {
            self.leave_all_rooms(user);
        } else if done.tells_rooms {
            self.accounts().tell_rooms_of_profile(user);
        }
        Ok(details)
    }

    /// Sets a user's password, and logs all their devices out if that is wished. Errors: 404 `M_NOT_FOUND`, 400
    /// `M_WEAK_PASSWORD`, 400 `M_UNKNOWN` for an account that was deactivated or is a guest's.
    pub fn reset_password(
        &self,
        admin: &Administrator,
        user: &UserId,
        password: &str,
        logout_devices: bool,
    ) -> Result<()> {
        let account = self.account(user)?;
        check_new_password(&account, password)?;
        let (by, log_out) = (admin.clone(), logout_devices.then_some(None));
        // Working the new one out takes its time, in which a guest may become a user, and anybody's account be closed.
        self.accounts().put_password(user, password, log_out, None, move |db, user| {
            check_still_admin(db, &by)?;
            check_has_password(&db.account(user)?.ok_or_else(no_user)?)
        })?;
        log::info!("{admin} has set a new password of {user}");
        Ok(())
    }

    /// Whether a user is an administrator. Errors: 404 `M_NOT_FOUND`.
    pub fn is_admin(&self, user: &UserId) -> Result<bool> {
        Ok(self.account(user)?.admin)
    }

    /// Makes a user an administrator, or makes them one no more. Errors: 404 `M_NOT_FOUND`; 400 `M_UNKNOWN` for who would make
    /// themselves one no more, for a guest, and for an account that was deactivated, is locked or suspended (which nobody
    /// could lift any more); 403 `M_FORBIDDEN` for the only administrator there is.
    pub fn set_admin(&self, admin: &Administrator, user: &UserId, to: bool) -> Result<()> {
        if !to {
            check_demotion(admin, user)?;
        }
        let changed = user.clone();
        self.write_as(admin, move |tx: &mut Tx<'_>| {
            let account = tx.account(&changed)?.ok_or_else(no_user)?;
            match to {
                true => check_promotion(&account, account.standing)?,
                false => check_not_last_admin(tx, &changed)?,
            }
            tx.set_admin(&changed, to)?;
            if to { Ok(()) } else { log_out_of_others(tx, &changed) }
        })?;
        let what = if to { "an administrator" } else { "no administrator any more" };
        log::info!("{admin} has made {user} {what}");
        Ok(())
    }

    /// Closes an account for good: see [`crate::service::Homeserver::deactivate`]. Errors: 404 `M_NOT_FOUND`; 403
    /// `M_FORBIDDEN` for the only administrator there is.
    pub fn deactivate_account(&self, admin: &Administrator, user: &UserId, erase: bool) -> Result<()> {
        self.account(user)?;
        self.deactivate_by_admin(admin, user, erase)?;
        log::info!("{admin} has deactivated {user}");
        Ok(())
    }

    /// The devices of a user, each as Synapse's API has it. Errors: 404 `M_NOT_FOUND`.
    pub fn devices_of(&self, user: &UserId) -> Result<Vec<Value>> {
        self.account(user)?;
        let (devices, dehydrated) =
            self.store.read(|db| Ok((db.devices(user)?, db.dehydrated_device(user)?)))?;
        let dehydrated = dehydrated.map(|device| device.device_id);
        let shown = devices.into_iter().map(|device| {
            json!({
                "user_id": user,
                "dehydrated": dehydrated.as_deref() == Some(device.device_id.as_str()),
                "device_id": device.device_id,
                "display_name": device.display_name,
                "last_seen_ip": device.last_seen_ip,
                "last_seen_ts": device.last_seen_ms,
                // Which program it was is not kept.
                "last_seen_user_agent": null,
            })
        });
        Ok(shown.collect())
    }

    /// Logs devices out; none are named: all. Those that there are not are fine. How many were. Errors: 404 `M_NOT_FOUND` for
    /// the user.
    pub fn log_out(
        &self,
        admin: &Administrator,
        user: &UserId,
        devices: Option<Vec<String>>,
    ) -> Result<usize> {
        self.account(user)?;
        let of = user.clone();
        let ended = self.write_as(admin, move |tx| match devices {
            Some(devices) => log_out_some(tx, &of, devices),
            None => log_out_devices(tx, &of, None),
        })?;
        log::info!("{admin} has logged {ended} devices of {user} out");
        Ok(ended)
    }

    /// Renames a user's device. Errors: 404 `M_NOT_FOUND`, and those of
    /// [`crate::service::accounts::Accounts::rename_device`].
    pub fn rename_device(
        &self,
        admin: &Administrator,
        user: &UserId,
        device: &str,
        name: &str,
    ) -> Result<()> {
        let (user, device, name) = (user.clone(), device.to_owned(), checked_device_name(name)?);
        self.write_as(admin, move |tx| put_device_name(tx, &user, &device, &name))
    }

    /// A session in the name of a user, for an administrator: the access token, good until this time if one is given. It is a
    /// device among those of the user, who sees whose it is; it ends too when all of the administrator's own do, or they are none
    /// any more, and nothing can be done by it that only administrators may. Errors: 404 `M_NOT_FOUND`; 400 `M_UNKNOWN` for oneself; 400
    /// `M_INVALID_PARAM` for a time that is over; 403 `M_FORBIDDEN` for an account that was closed, 401 `M_USER_LOCKED`.
    pub fn log_in_as(&self, admin: &Administrator, user: &UserId, until: Option<Millis>) -> Result<String> {
        self.account(user)?;
        if admin.user_id() == Some(user) {
            return Err(wrong("Cannot use admin API to login as self"));
        }
        let life_ms = until.map(|until| until.saturating_sub(self.clock.now_ms()));
        if life_ms.is_some_and(|life| life <= 0) {
            return Err(Error::invalid_param("'valid_until_ms' is over"));
        }
        let name = format!("{admin}, who administrates this server");
        // The longest user id leaves no room for more.
        let name = if name.len() > DEVICE_NAME_BYTES_MAX { admin.to_string() } else { name };
        let login =
            NewLogin { display_name: Some(&name), life_ms, opened_by: Some(admin), ..NewLogin::default() };
        let login = self.accounts().log_in_with(user, &login)?;
        log::info!("{admin} has logged in as {user}, on the device {}", login.device_id);
        Ok(login.access_token)
    }

    /// How often a user may ask; none: as everybody. Errors: 404 `M_NOT_FOUND`.
    pub fn own_rate(&self, user: &UserId) -> Result<Option<OwnRate>> {
        self.account(user)?;
        self.store.read(|db| db.own_rate(user))
    }

    /// Sets it. Errors: 404 `M_NOT_FOUND`.
    pub fn set_own_rate(&self, admin: &Administrator, user: &UserId, rate: Option<OwnRate>) -> Result<()> {
        self.account(user)?;
        let of = user.clone();
        self.write_as(admin, move |tx| tx.set_own_rate(&of, rate))?;
        log::info!("{admin} has said how often {user} may ask: {rate:?}");
        Ok(())
    }

    /// What a user's clients keep here: `global`, and by room in `rooms`, each content by its type. Errors: 404 `M_NOT_FOUND`.
    pub fn account_data_of(&self, user: &UserId) -> Result<Value> {
        self.account(user)?;
        let data = self.store.read(|db| db.account_data_since(user, -1, i64::MAX))?;
        let mut told = json!({ "global": {}, "rooms": {} });
        for AccountData { room_id, event_type, content } in data {
            let content = json::tree(&content).map_err(Error::internal)?;
            match room_id {
                None => told["global"][event_type] = content,
                Some(room) => told["rooms"][room.as_str()][event_type] = content,
            }
        }
        Ok(told)
    }

    /// The memberships of a user in rooms, each room's id with what it is. Errors: 404 `M_NOT_FOUND`.
    pub fn memberships_of(&self, user: &UserId) -> Result<Vec<(String, Membership)>> {
        self.account(user)?;
        let rooms = self.store.read(|db| db.rooms_of(user))?;
        Ok(rooms.into_iter().map(|room| (room.room_id.to_string(), room.membership)).collect())
    }
}

fn no_user() -> Error {
    Error::not_found("User not found")
}

/// 400 `M_UNKNOWN`: what Synapse's API says of most mistakes.
fn wrong(message: &'static str) -> Error {
    Error::new(ErrCode::Unknown, message).with_status(400)
}

/// Errors: 400 `M_UNKNOWN`.
fn check_demotion(admin: &Administrator, user: &UserId) -> Result<()> {
    if admin.user_id() == Some(user) { Err(wrong("You may not demote yourself.")) } else { Ok(()) }
}

/// Errors: 400 `M_UNKNOWN` for who could not do what administrators do, and could not be helped by them any more.
fn check_promotion(account: &Account, standing: Standing) -> Result<()> {
    if account.deactivated || standing != Standing::default() {
        return Err(wrong("This account was deactivated, is locked or suspended, or is a guest's"));
    }
    Ok(())
}

/// Errors: 400 `M_UNKNOWN` for an account that has no password; 400 `M_WEAK_PASSWORD`.
fn check_new_password(account: &Account, password: &str) -> Result<()> {
    check_has_password(account)?;
    check_strength(password)
}

/// Errors: 400 `M_UNKNOWN`.
fn check_has_password(account: &Account) -> Result<()> {
    if account.deactivated || account.standing.guest {
        return Err(wrong("This account was deactivated, or is a guest's, and has no password"));
    }
    Ok(())
}

/// Whether all of a change can be: nobody is given half of what was asked for. Errors: those of its parts.
fn check_change(db: &Db<'_>, by: &Administrator, account: &Account, change: &AccountChange) -> Result<()> {
    let user = &account.user_id;
    let close = change.deactivated == Some(true) && !account.deactivated;
    if account.deactivated && change.deactivated == Some(false) {
        return Err(wrong("An account that was deactivated stays so: its keys and rooms are gone"));
    }
    if close && change.locked == Some(true) {
        return Err(wrong("A user can't be deactivated and locked"));
    }
    check_profile(change.displayname.as_deref(), change.avatar_url.as_deref())?;
    if change.admin == Some(false) {
        check_demotion(by, user)?;
    }
    let standing = Standing { locked: change.locked.unwrap_or(account.standing.locked), ..account.standing };
    let is_admin = change.admin.unwrap_or(account.admin);
    if is_admin && !account.admin {
        // With a lock that comes at the same time they would be both.
        check_promotion(account, standing)?;
    }
    if !is_admin && account.admin || close {
        check_not_last_admin(db, user)?;
    }
    if standing.locked != account.standing.locked {
        // A lock is lifted before somebody becomes an administrator, and put once they are none.
        check_moderated(account, if standing.locked { is_admin } else { account.admin })?;
    }
    change.password.iter().try_for_each(|password| check_new_password(account, password))
}

/// What was changed.
struct Changed {
    /// For the log.
    words: Vec<&'static str>,
    /// Whether rooms are to be told of another name or picture.
    tells_rooms: bool,
    /// Whether the account was closed, and its rooms are to be left.
    is_closed: bool,
}

/// Makes a change, if it can still be made as a whole. `hash`: of the new password. Errors: those of [`check_change`].
fn put_change(
    tx: &mut Tx<'_>,
    by: &Administrator,
    user: &UserId,
    change: &AccountChange,
    (hash, now): (Option<&str>, Millis),
) -> Result<Changed> {
    check_still_admin(tx, by)?;
    let account = tx.account(user)?.ok_or_else(no_user)?;
    check_change(tx, by, &account, change)?;
    let mut changed = Changed { words: Vec::new(), tells_rooms: false, is_closed: false };
    for (field, value) in [("displayname", &change.displayname), ("avatar_url", &change.avatar_url)] {
        if let Some(value) = value {
            changed.tells_rooms |= put_profile_text(tx, user, field, (value, now))?;
        }
    }
    if let Some(to) = change.admin.filter(|to| *to != account.admin) {
        tx.set_admin(user, to)?;
        if !to {
            log_out_of_others(tx, user)?;
        }
        changed.words.push(if to { "made an administrator" } else { "made no administrator any more" });
    }
    if let Some(locked) = change.locked.filter(|locked| *locked != account.standing.locked) {
        tx.set_standing(user, Standing { locked, ..account.standing })?;
        // Whoever waits is to hear of it.
        tx.wake_user(user);
        changed.words.push(if locked { "locked" } else { "unlocked" });
    }
    if let Some(hash) = hash {
        tx.set_password(user, hash)?;
        changed.words.push("a new password");
        if change.logout_devices {
            log_out_devices(tx, user, None)?;
            changed.words.push("logged out");
        }
    }
    if change.deactivated == Some(true) && !account.deactivated {
        let gone = tx.deactivate(user, now)?;
        tell_of_devices(tx, user, &gone)?;
        log_out_of_others(tx, user)?;
        changed.is_closed = true;
        changed.words.push("deactivated");
    }
    Ok(changed)
}

/// Errors: 400 `M_INVALID_PARAM` for what is too long.
fn check_profile(displayname: Option<&str>, avatar_url: Option<&str>) -> Result<()> {
    let fields = [("displayname", displayname), ("avatar_url", avatar_url)];
    fields.iter().filter_map(|(field, text)| Some((field, (*text)?))).try_for_each(|(f, t)| check_text(f, t))
}

/// An account as Synapse's lists have it. What this server has nothing of is null or false.
fn listed(found: &ListedAccount) -> Value {
    let account = &found.account;
    json!({
        "name": account.user_id,
        "displayname": found.displayname,
        "avatar_url": found.avatar_url,
        "admin": account.admin,
        "is_guest": account.standing.guest,
        "deactivated": account.deactivated,
        "locked": account.standing.locked,
        "suspended": account.standing.suspended,
        "erased": found.erased,
        "creation_ts": account.created_ms,
        "last_seen_ts": found.last_seen_ms,
        "shadow_banned": false,
        "user_type": null,
    })
}
