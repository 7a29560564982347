//! Accounts.
//!
//! - here: accounts; `registration_tokens`: the tokens that let somebody make one;
//! - `devices`: devices that are logged in, and their sessions; `openid`: tokens that prove to others who a user is;
//!   `login_tokens`: those that let another device log in;
//! - `profiles`, `account_data`, `filters`: what a user's clients keep here; `owed_profiles`: whose rooms are to be told of it;
//! - `pushers`: where users have what they are notified of sent;
//! - `sliding_connections`: what each connection of sliding sync was told of its rooms;
//! - `guests`: accounts of guests, and the rooms that they are to leave;
//! - `reports`: what users have told the administrators of;
//! - `listed`: accounts as an administrator sees them;
//! - `client_transactions`: which event a client's request made, so that a repeat makes no second one.

pub mod account_data;
pub mod client_transactions;
pub mod devices;
pub mod filters;
pub mod guests;
pub mod listed;
pub mod login_tokens;
pub mod openid;
pub mod owed_profiles;
pub mod profiles;
pub mod pushers;
pub mod registration_tokens;
pub mod reports;
pub mod sliding_connections;

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Db, Tx};
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;

/// So long the timer leaves the rooms of a closed account to the request that closed it.
const LEAVING_LEFT_TO_REQUEST_MS: Millis = 5 * 60_000;

/// SHA-256 of a secret token: what is stored instead of the token.
pub type TokenHash = [u8; 32];

/// What keeps an account from being used like any other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its user can do nothing but log out.
    pub locked: bool,
    /// Its user can read, and leave, but not speak.
    pub suspended: bool,
    /// Its user is a guest, and can do what the specification lists for guests.
    pub guest: bool,
}

/// How often a user may ask, where an administrator has said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnRate {
    /// How many requests a second; 0: as many as they like, of every kind.
    pub per_second: u32,
    /// And how many at once.
    pub burst: u32,
}

pub(in crate::store) fn own_rate_of(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<OwnRate>> {
    let (per_second, burst): (Option<u32>, Option<u32>) = (row.get(first)?, row.get(first + 1)?);
    Ok(per_second.map(|per_second| OwnRate { per_second, burst: burst.unwrap_or(0) }))
}

/// One account.
#[derive(Debug, Clone)]
pub struct Account {
    /// Whose it is.
    pub user_id: UserId,
    /// The password's hash in PHC format, if there is a password.
    pub password: Option<String>,
    /// Whether the user is an administrator of this server.
    pub admin: bool,
    /// Whether the account was closed for good.
    pub deactivated: bool,
    /// What an administrator has done to it.
    pub standing: Standing,
    /// When it was made.
    pub created_ms: Millis,
}

fn account_of(row: &Row<'_>) -> Result<Account> {
    Ok(Account {
        user_id: UserId::parse(&row.get::<_, String>(0)?)?,
        password: row.get(1)?,
        admin: row.get(2)?,
        deactivated: row.get(3)?,
        created_ms: row.get(4)?,
        standing: Standing { locked: row.get(5)?, suspended: row.get(6)?, guest: row.get(7)? },
    })
}

/// Whether any of our users asked to be erased.
pub(in crate::store) fn are_any_erased(connection: &Connection) -> rusqlite::Result<bool> {
    let any = "SELECT EXISTS (SELECT 1 FROM users WHERE erased_at IS NOT NULL)";
    connection.query_row(any, [], |row| row.get(0))
}

impl Db<'_> {
    /// The account of this user, deactivated or not.
    pub fn account(&self, user: &UserId) -> Result<Option<Account>> {
        let mut query = self.conn().prepare_cached(
            "SELECT user_id, password, admin, deactivated, created_ms, locked, suspended, guest FROM users WHERE user_id = ?1",
        )?;
        let mut rows = query.query([user.as_str()])?;
        rows.next()?.map(account_of).transpose()
    }

    /// Whether this user is one of ours and can be reached: an account that is not deactivated.
    pub fn is_active_user(&self, user: &UserId) -> Result<bool> {
        let mut query =
            self.conn().prepare_cached("SELECT 1 FROM users WHERE user_id = ?1 AND deactivated = 0")?;
        Ok(query.exists([user.as_str()])?)
    }

    /// The id of the application service that made a user's account, if one did.
    pub fn service_of(&self, user: &UserId) -> Result<Option<String>> {
        let mut query = self.conn().prepare_cached("SELECT appservice FROM users WHERE user_id = ?1")?;
        Ok(first(&mut query, [user.as_str()])?.flatten())
    }

    /// How often a user may ask, if that is not as for everybody.
    pub fn own_rate(&self, user: &UserId) -> Result<Option<OwnRate>> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT requests_per_second, requests_burst FROM users WHERE user_id = ?1")?;
        Ok(query.query_row([user.as_str()], |row| own_rate_of(row, 0)).optional()?.flatten())
    }

    /// Whether this user is one of ours whose account was closed; of a guest's there may be nothing left but the name.
    pub fn is_closed_user(&self, user: &str) -> Result<bool> {
        let mut query = self.conn().prepare_cached("SELECT deactivated FROM users WHERE user_id = ?1")?;
        Ok(first(&mut query, [user])?.unwrap_or_else(|| self.is_local(user) && guests::is_guest_name(user)))
    }

    /// Accounts that are not deactivated, in the order of their ids, at most so many.
    pub fn active_users(&self, limit: usize) -> Result<Vec<UserId>> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT user_id FROM users WHERE deactivated = 0 ORDER BY user_id LIMIT ?1")?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let ids = query.query_map([limit], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        ids.iter().map(|id| UserId::parse(id)).collect()
    }

    /// Every account, in the order of their ids.
    pub fn accounts(&self) -> Result<Vec<Account>> {
        let mut query = self.conn().prepare_cached(
            "SELECT user_id, password, admin, deactivated, created_ms, locked, suspended, guest FROM users ORDER BY 1",
        )?;
        let mut rows = query.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(account_of(row)?);
        }
        Ok(all)
    }

    /// Whether there is any account yet, but for guests and the users of application services.
    pub fn has_accounts(&self) -> Result<bool> {
        Ok(self
            .conn()
            .prepare_cached("SELECT 1 FROM users WHERE guest = 0 AND appservice IS NULL LIMIT 1")?
            .exists([])?)
    }

    /// Whether this user is an administrator, and the only one who can do anything.
    pub fn is_last_admin(&self, user: &UserId) -> Result<bool> {
        let mut query = self.conn().prepare_cached(
            "SELECT user_id FROM users WHERE admin = 1 AND deactivated = 0 AND locked = 0 LIMIT 2",
        )?;
        let admins = query.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        Ok(admins == [user.as_str()])
    }

    /// A deactivated user who is to leave their rooms now.
    pub fn due_deactivation(&self, now: Millis) -> Result<Option<UserId>> {
        let mut query = self.conn().prepare_cached(
            "SELECT user_id FROM users WHERE leaving_due_ms <= ?1 ORDER BY leaving_due_ms LIMIT 1",
        )?;
        let user: Option<String> = first(&mut query, [now])?;
        user.map(|user| UserId::parse(&user)).transpose()
    }

    /// When the next one is.
    pub fn next_deactivation_due(&self) -> Result<Option<Millis>> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT min(leaving_due_ms) FROM users WHERE leaving_due_ms IS NOT NULL")?;
        Ok(query.query_row([], |row| row.get(0))?)
    }

    /// Deactivated users who still have rooms to leave, and guests of whom there is still more than the name.
    pub fn unfinished_deactivations(&self) -> Result<Vec<UserId>> {
        let mut query = self.conn().prepare_cached(
            "SELECT user_id FROM users WHERE leaving_due_ms IS NOT NULL
             UNION SELECT user_id FROM users WHERE guest = 1 AND deactivated = 1 AND erased_at IS NULL
             UNION SELECT u.user_id FROM users u CROSS JOIN memberships m USING (user_id)
               WHERE u.deactivated = 1 AND m.local = 1 AND m.membership IN ('join', 'invite', 'knock')",
        )?;
        let ids = query.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        ids.iter().map(|id| UserId::parse(id)).collect()
    }

    /// Users of whom others are shown no more than they have seen, and the stream positions from which on.
    pub fn erased_users(&self) -> Result<HashMap<String, i64>> {
        // Every look into a room asks this, and hardly ever is there any.
        if !self.shared.any_erased_users.load(Ordering::Relaxed) {
            return Ok(HashMap::new());
        }
        let erased = "SELECT user_id, erased_at FROM users WHERE erased_at IS NOT NULL";
        Ok(self.rows(erased, &[], |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect())
    }
}

/// Whose rows of a user go when they are erased, beside those that go with the account and its devices.
const ERASED: [&str; 6] =
    ["account_data", "profile_fields", "filters", "presence", "openid_tokens", "read_positions"];

impl Tx<'_> {
    /// Makes an account; the first one of all is the administrator. False: the name is taken, or was a guest's for all that is
    /// known: of those who are gone there is nothing left, and what they did goes by it.
    pub fn create_account(
        &mut self,
        user: &UserId,
        password: Option<&str>,
        admin: bool,
        now: Millis,
    ) -> Result<bool> {
        if guests::is_guest_name(user.as_str()) {
            return Ok(false);
        }
        let admin = self.begin_first_account()? || admin;
        let made = self.execute(
            "INSERT INTO users (user_id, password, admin, created_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO NOTHING",
            params![user.as_str(), password, admin, now],
        )?;
        Ok(made == 1)
    }

    /// Makes an account of a user that an application service speaks for: it is no administrator's, were it the first of all. False:
    /// the name is taken, or was a guest's for all that is known.
    pub fn create_service_user(&mut self, user: &UserId, service: &str, now: Millis) -> Result<bool> {
        if guests::is_guest_name(user.as_str()) {
            return Ok(false);
        }
        let made = self.execute(
            "INSERT INTO users (user_id, appservice, created_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![user.as_str(), service, now],
        )?;
        Ok(made == 1)
    }

    /// Whether the account that is made in this transaction is the first one, by whatever way: then the token that was printed
    /// for it is good for no second one.
    fn begin_first_account(&mut self) -> Result<bool> {
        let is_first = !self.has_accounts()?;
        if is_first {
            self.execute("DELETE FROM registration_tokens WHERE first = 1", &[])?;
        }
        Ok(is_first)
    }

    /// Locks or suspends an account, or undoes that.
    pub fn set_standing(&mut self, user: &UserId, standing: Standing) -> Result<()> {
        self.sessions_changed();
        self.execute(
            "UPDATE users SET locked = ?2, suspended = ?3 WHERE user_id = ?1",
            params![user.as_str(), standing.locked, standing.suspended],
        )?;
        Ok(())
    }

    /// Sets how often a user may ask; none: as everybody.
    pub fn set_own_rate(&mut self, user: &UserId, rate: Option<OwnRate>) -> Result<()> {
        self.sessions_changed();
        self.execute(
            "UPDATE users SET requests_per_second = ?2, requests_burst = ?3 WHERE user_id = ?1",
            params![user.as_str(), rate.map(|rate| rate.per_second), rate.map(|rate| rate.burst)],
        )?;
        Ok(())
    }

    /// Makes the user an administrator, or makes them one no more.
    pub fn set_admin(&mut self, user: &UserId, admin: bool) -> Result<()> {
        self.sessions_changed();
        self.execute("UPDATE users SET admin = ?2 WHERE user_id = ?1", params![user.as_str(), admin])?;
        Ok(())
    }

    /// Replaces the password's hash.
    pub fn set_password(&mut self, user: &UserId, password: &str) -> Result<()> {
        let mut query = self.conn().prepare_cached("UPDATE users SET password = ?2 WHERE user_id = ?1")?;
        query.execute([user.as_str(), password])?;
        Ok(())
    }

    /// Closes an account for good: no password, no devices, no tokens, no keys. Its rooms are to be left by whoever closes it.
    /// Gives the ids of the devices that are gone.
    pub fn deactivate(&mut self, user: &UserId, now: Millis) -> Result<Vec<String>> {
        self.execute(
            "UPDATE users SET deactivated = 1, leaving_due_ms = ?2, password = NULL WHERE user_id = ?1",
            params![user.as_str(), now + LEAVING_LEFT_TO_REQUEST_MS],
        )?;
        self.is_due(now + LEAVING_LEFT_TO_REQUEST_MS);
        self.execute("DELETE FROM owed_profiles WHERE user_id = ?1", params![user.as_str()])?;
        self.forget_own_cross_signing(user)?;
        self.delete_key_backups(user)?;
        self.delete_delayed_events_of(user)?;
        self.delete_thread_subscriptions(user, None)?;
        self.delete_devices_except(user, None)
    }

    /// Marks what the user sent as erased from now on, and deletes what we have of them that is no event.
    pub fn erase(&mut self, user: &UserId) -> Result<()> {
        let now = self.stream();
        self.shared.any_erased_users.store(true, Ordering::Relaxed);
        self.execute("UPDATE users SET erased_at = ?2 WHERE user_id = ?1", params![user.as_str(), now])?;
        self.execute(
            "DELETE FROM receipts WHERE user_id = ?1 AND room_key IN
             (SELECT room_key FROM memberships WHERE user_id = ?1 AND local = 1)",
            params![user.as_str()],
        )?;
        for table in ERASED {
            self.execute(&format!("DELETE FROM {table} WHERE user_id = ?1"), params![user.as_str()])?;
        }
        Ok(())
    }

    /// A deactivated user is to leave the rooms that are left then.
    pub fn put_off_deactivation(&mut self, user: &UserId, due: Millis) -> Result<()> {
        self.execute(
            "UPDATE users SET leaving_due_ms = ?2 WHERE user_id = ?1 AND deactivated = 1",
            params![user.as_str(), due],
        )?;
        self.is_due(due);
        Ok(())
    }

    /// After a start nobody is at them.
    pub fn hasten_deactivations(&mut self, now: Millis) -> Result<()> {
        self.unfinished_deactivations()?.iter().try_for_each(|user| self.put_off_deactivation(user, now))
    }

    /// A deactivated user has left every room; a guest is forgotten with that.
    pub fn deactivated_user_left(&mut self, user: &UserId) -> Result<()> {
        self.execute("UPDATE users SET leaving_due_ms = NULL WHERE user_id = ?1", params![user.as_str()])?;
        self.forget_guest(user)
    }
}

/// The first column of the first row, if there is one.
pub(super) fn first<T: rusqlite::types::FromSql>(
    query: &mut rusqlite::CachedStatement<'_>,
    params: impl rusqlite::Params,
) -> Result<Option<T>> {
    Ok(query.query_row(params, |row| row.get(0)).optional()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::in_memory;

    /// The tables with users in them of which an erasure takes nothing, and why.
    const NOT_ERASED: [(&str, &[&str]); 6] = [
        (
            "they go when the account is closed",
            &[
                "devices",
                "sliding_connections",
                "cross_signing_keys",
                "key_signatures",
                "key_backups",
                "delayed_events",
                "owed_profiles",
                "thread_subscriptions",
            ],
        ),
        (
            "the name stays taken, and what was sent is hidden from whoever comes later",
            &["users", "event_relations"],
        ),
        (
            "the rooms are left, each by its event, and those of the user's events that are owed are told",
            &[
                "memberships",
                "lost_memberships",
                "remote_memberships",
                "owed_invites",
                "offered_invites",
                "owed_joins",
                "owed_bans",
                "typing",
                "notifications_of_users",
            ],
        ),
        ("those of rooms that the user was in are taken by a statement of their own", &["receipts"]),
        ("others are told that the devices are gone", &["device_changes", "owed_edus"]),
        (
            "they are other servers' users, reports for administrators, or files that others were sent",
            &["remote_device_lists", "remote_devices", "reports", "media", "media_shares"],
        ),
    ];

    #[test]
    fn of_every_table_with_a_user_in_it_it_is_said_what_an_erasure_does() {
        const COLUMNS: &str = "'user_id', 'sender', 'uploader', 'owner', 'inviter', 'reporter'";
        let tables = format!(
            "SELECT m.name FROM sqlite_schema m WHERE m.type = 'table'
               AND EXISTS (SELECT 1 FROM pragma_table_info(m.name) c WHERE c.name IN ({COLUMNS}))
               AND NOT EXISTS (SELECT 1 FROM pragma_foreign_key_list(m.name) k
                               WHERE k.\"table\" = 'devices' AND k.on_delete = 'CASCADE')
             ORDER BY 1"
        );
        let store = in_memory("example.org");
        let found = store.read(|db| db.rows(&tables, &[], |row| row.get::<_, String>(0))).unwrap();
        let said = NOT_ERASED.iter().flat_map(|(_, tables)| *tables).chain(&ERASED);
        let mut said: Vec<&str> = said.copied().collect();
        said.sort_unstable();
        assert_eq!(found, said, "a table with users in it belongs into ERASED, or here with why not");
    }
}
