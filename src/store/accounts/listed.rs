//! Accounts as an administrator sees them: a page of those that fit, with what their users are called and when they were
//! last heard of.

use rusqlite::types::ToSql;
use rusqlite::{Row, params_from_iter};
use serde_json::Value;

use super::{Account, account_of};
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::{UserId, json};
use crate::store::Db;

/// An account with what is told of it beside.
#[derive(Debug, Clone)]
pub struct ListedAccount {
    /// The account, without its password.
    pub account: Account,
    /// Whether its user asked to be erased.
    pub erased: bool,
    /// What its user is called.
    pub displayname: Option<Value>,
    /// Where its user's picture is.
    pub avatar_url: Option<Value>,
    /// When one of its devices was last heard of, a few minutes late.
    pub last_seen_ms: Option<Millis>,
}

/// What accounts are sorted by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AccountOrder {
    /// The user id.
    #[default]
    Name,
    /// What users are called.
    Displayname,
    /// Where their pictures are.
    AvatarUrl,
    /// Whether they are guests.
    Guest,
    /// Whether they are administrators.
    Admin,
    /// Whether the account was closed.
    Deactivated,
    /// Whether it is locked.
    Locked,
    /// When it was made.
    Created,
    /// When it was last heard of.
    LastSeen,
}

impl AccountOrder {
    fn column(self) -> &'static str {
        match self {
            Self::Name => "u.user_id",
            Self::Displayname => "n.value",
            Self::AvatarUrl => "a.value",
            Self::Guest => "u.guest",
            Self::Admin => "u.admin",
            Self::Deactivated => "u.deactivated",
            Self::Locked => "u.locked",
            Self::Created => "u.created_ms",
            Self::LastSeen => "9",
        }
    }
}

/// Which accounts are meant: all, but for what is said here.
#[derive(Debug, Clone, Default)]
pub struct AccountFilter {
    /// Those with this in the localpart or in what they are called, in whatever case of ASCII.
    pub name: Option<String>,
    /// Those with this in their user id.
    pub user_id: Option<String>,
    /// Guests or users with a name only.
    pub guest: Option<bool>,
    /// Administrators, or the others.
    pub admin: Option<bool>,
    /// Those that were closed, or the others.
    pub deactivated: Option<bool>,
    /// Those that are locked, or the others.
    pub locked: Option<bool>,
}

impl AccountFilter {
    /// The conditions, and what is bound in them.
    fn conditions(&self) -> (String, Vec<Box<dyn ToSql>>) {
        let (mut all, mut bound): (Vec<&str>, Vec<Box<dyn ToSql>>) = (Vec::new(), Vec::new());
        if let Some(name) = &self.name {
            let name = name.to_ascii_lowercase();
            // A profile's fields are JSON, so what is looked for has to be written as it would be there.
            let quoted = Value::from(name.as_str()).to_string();
            all.push(
                "(instr(lower(substr(u.user_id, 2, instr(u.user_id, ':') - 2)), ?) OR instr(lower(n.value), ?))",
            );
            bound.push(Box::new(name));
            bound.push(Box::new(quoted[1..quoted.len() - 1].to_owned()));
        }
        if let Some(part) = &self.user_id {
            all.push("instr(lower(u.user_id), ?)");
            bound.push(Box::new(part.to_ascii_lowercase()));
        }
        for (condition, wanted) in [
            ("u.guest = ?", self.guest),
            ("u.admin = ?", self.admin),
            ("u.deactivated = ?", self.deactivated),
            ("u.locked = ?", self.locked),
        ] {
            if let Some(wanted) = wanted {
                all.push(condition);
                bound.push(Box::new(wanted));
            }
        }
        let conditions = if all.is_empty() { String::new() } else { format!("WHERE {}", all.join(" AND ")) };
        (conditions, bound)
    }
}

const LISTED: &str =
    "SELECT u.user_id, NULL, u.admin, u.deactivated, u.created_ms, u.locked, u.suspended, u.guest,
       (SELECT max(d.last_seen_ms) FROM devices d WHERE d.user_id = u.user_id),
       u.erased_at IS NOT NULL, n.value, a.value";

const FROM: &str = "FROM users u
     LEFT JOIN profile_fields n ON n.user_id = u.user_id AND n.field = 'displayname'
     LEFT JOIN profile_fields a ON a.user_id = u.user_id AND a.field = 'avatar_url'";

fn listed_of(row: &Row<'_>) -> Result<ListedAccount> {
    let field = |column: usize| -> Result<Option<Value>> {
        let text: Option<String> = row.get(column)?;
        text.map(|text| json::tree(&text).map_err(Error::internal)).transpose()
    };
    Ok(ListedAccount {
        account: account_of(row)?,
        last_seen_ms: row.get(8)?,
        erased: row.get(9)?,
        displayname: field(10)?,
        avatar_url: field(11)?,
    })
}

impl Db<'_> {
    /// One account, deactivated or not.
    pub fn listed_account(&self, user: &UserId) -> Result<Option<ListedAccount>> {
        let mut query = self.conn().prepare(&format!("{LISTED} {FROM} WHERE u.user_id = ?"))?;
        let mut rows = query.query([user.as_str()])?;
        rows.next()?.map(listed_of).transpose()
    }

    /// A page of the accounts that fit: `limit` of them, from the `from`th on, and how many there are in all.
    pub fn listed_accounts(
        &self,
        filter: &AccountFilter,
        (order, backwards): (AccountOrder, bool),
        (from, limit): (i64, i64),
    ) -> Result<(Vec<ListedAccount>, i64)> {
        let (conditions, mut bound) = filter.conditions();
        let total: i64 = self
            .conn()
            .prepare(&format!("SELECT count(*) {FROM} {conditions}"))?
            .query_row(params_from_iter(&bound), |row| row.get(0))?;
        let (column, direction) = (order.column(), if backwards { "DESC" } else { "ASC" });
        let mut query = self.conn().prepare(&format!(
            "{LISTED} {FROM} {conditions} ORDER BY {column} {direction}, u.user_id LIMIT ? OFFSET ?"
        ))?;
        bound.push(Box::new(limit));
        bound.push(Box::new(from));
        let mut rows = query.query(params_from_iter(&bound))?;
        let mut page = Vec::new();
        while let Some(row) = rows.next()? {
            page.push(listed_of(row)?);
        }
        Ok((page, total))
    }
}
