//! What administrators do to accounts ("Account moderation", "Server Administration"): lock, suspend, look at.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::service::Homeserver;
use crate::service::accounts::Accounts;
use crate::store::accounts::{Account, Standing};
use crate::store::{Db, Tx};

/// On whose behalf something is done that only administrators may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Administrator {
    /// A user whose account is an administrator's.
    User(UserId),
    /// Whoever can open the data folder, or the socket in it.
    Operator,
}

impl Administrator {
    /// The user; none for the operator, who may have no account.
    pub fn user_id(&self) -> Option<&UserId> {
        match self {
            Self::User(user) => Some(user),
            Self::Operator => None,
        }
    }

    /// Their name in what is written down; '' is the operator's.
    pub fn name(&self) -> &str {
        self.user_id().map_or("", UserId::as_str)
    }
}

/// As the log names them.
impl fmt::Display for Administrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => f.write_str(user.as_str()),
            Self::Operator => f.write_str("the operator"),
        }
    }
}

impl Homeserver {
    /// [`crate::store::Store::write`] on behalf of an administrator: whether they are one is looked at again in the transaction,
    /// since between the look at their token and this there may be a long body, a password to be hashed, a wait for the writer, or
    /// a portion of the same deed. Errors: 403 `M_FORBIDDEN` for who is none any more.
    pub(in crate::service) fn write_as<T: Send + 'static>(
        &self,
        by: &Administrator,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let by = by.clone();
        self.store.write(move |tx| {
            check_still_admin(tx, &by)?;
            f(tx)
        })
    }
}

/// What waited, for a password to be hashed say, is done for administrators alone. Errors: 403 `M_FORBIDDEN` for who is none any
/// more.
pub(in crate::service) fn check_still_admin(db: &Db<'_>, by: &Administrator) -> Result<()> {
    let Some(user) = by.user_id() else { return Ok(()) };
    match db.account(user)? {
        Some(account) if account.admin && !account.deactivated => Ok(()),
        _ => Err(Error::forbidden("You are no administrator of this server any more")),
    }
}

/// What a user is told whose account is locked. "Servers SHOULD NOT invalidate access tokens on locked accounts": the
/// client keeps its state, and the session is there again when the lock is lifted.
pub fn locked() -> Error {
    Error::new(ErrCode::UserLocked, "This account has been locked").with_field("soft_logout", true)
}

/// What a user is told whose account is suspended.
pub fn suspended() -> Error {
    Error::new(ErrCode::UserSuspended, "You cannot perform this action while suspended.")
}

/// What a guest is told who asks for what is not for guests.
pub fn not_for_guests(message: &'static str) -> Error {
    Error::new(ErrCode::GuestAccessForbidden, message)
}

impl Accounts<'_> {
    /// What was done to a user's account, for an administrator. Errors: 400 `M_INVALID_PARAM` for another server's user,
    /// 404 `M_NOT_FOUND` for an account that there is not (any more), 403 `M_FORBIDDEN` for another administrator's.
    pub fn standing(&self, user: &UserId) -> Result<Standing> {
        self.store.read(|db| Ok(moderated(db, user)?.standing))
    }

    /// Changes it. Errors as [`Accounts::standing`], and of [`Homeserver::write_as`]; nobody can do it to themselves, since
    /// whoever may is an administrator.
    pub fn change_standing(
        &self,
        admin: &Administrator,
        user: &UserId,
        change: impl FnOnce(&mut Standing) + Send + 'static,
    ) -> Result<Standing> {
        let changed = user.clone();
        let (before, after) = self.write_as(admin, move |tx: &mut Tx<'_>| {
            let before = moderated(tx, &changed)?.standing;
            let mut after = before;
            change(&mut after);
            tx.set_standing(&changed, after)?;
            // Whoever waits is to hear of it.
            tx.wake_user(&changed);
            Ok((before, after))
        })?;
        if before != after {
            log::info!("{admin} has made {user} locked: {}, suspended: {}", after.locked, after.suspended);
        }
        Ok(after)
    }

    /// `GET /admin/whois/{userId}`: the user's devices, and where each was heard from last. For the user themselves or an
    /// administrator, whom the caller has seen to be one. What client it was is not kept. Errors: 404 `M_NOT_FOUND`.
    pub fn whois(&self, user: &UserId) -> Result<Value> {
        let devices = self.store.read(|db| {
            let account = db.account(user)?.filter(|account| !account.deactivated);
            account.ok_or_else(no_user)?;
            db.devices(user)
        })?;
        let devices: Map<String, Value> = devices
            .into_iter()
            .map(|device| {
                let mut connection = Map::new();
                if let Some(ip) = device.last_seen_ip {
                    connection.insert("ip".to_owned(), ip.into());
                }
                if let Some(seen) = device.last_seen_ms {
                    connection.insert("last_seen".to_owned(), seen.into());
                }
                let connections = if connection.is_empty() { json!([]) } else { json!([connection]) };
                (device.device_id, json!({ "sessions": [{ "connections": connections }] }))
            })
            .collect();
        Ok(json!({ "user_id": user, "devices": devices }))
    }
}

fn no_user() -> Error {
    Error::not_found("User not found.")
}

/// An account that an administrator may lock or suspend.
fn moderated(db: &Db<'_>, user: &UserId) -> Result<Account> {
    if !db.is_local(user.as_str()) {
        return Err(Error::invalid_param("User does not belong to the local server."));
    }
    let account = db.account(user)?.ok_or_else(no_user)?;
    check_moderated(&account, account.admin)?;
    Ok(account)
}

/// Whether an account may be locked or suspended, or that be undone, while its user is an administrator or is none. Errors: 404
/// `M_NOT_FOUND` for one that was closed, 403 `M_FORBIDDEN` for an administrator's.
pub(in crate::service) fn check_moderated(account: &Account, is_admin: bool) -> Result<()> {
    match (account.deactivated, is_admin) {
        (true, _) => Err(no_user()),
        (false, true) => Err(Error::forbidden("This user is an administrator of this server.")),
        (false, false) => Ok(()),
    }
}
