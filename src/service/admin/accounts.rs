//! Accounts, as whoever operates this server sees them.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::protocol::UserId;
use crate::service::admin::Admin;
use crate::store::accounts::listed::{AccountFilter, AccountOrder, ListedAccount};

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

impl Admin<'_> {
    /// A page of the accounts that fit: `users`, how many there are in all as `total`, and `next_token` if there are
    /// more, which is the next page's `from`.
    pub fn list_accounts(&self, page: &AccountsPage) -> Result<Value> {
        let limit = page.limit.min(PAGE_MAX);
        let (users, total) = self
            .store
            .read(|db| db.listed_accounts(&page.filter, (page.order, page.backwards), (page.from, limit)))?;
        let next = page.from.saturating_add(i64::try_from(users.len()).unwrap_or(i64::MAX));
        let users: Vec<Value> = users.iter().map(listed).collect();
        let mut answer = json!({ "users": users, "total": total });
        if next < total && next > page.from {
            answer["next_token"] = next.to_string().into();
        }
        Ok(answer)
    }

    /// One account of this server, deactivated or not. Errors: 400 `M_UNKNOWN` for another server's user, 404
    /// `M_NOT_FOUND`.
    pub fn account_details(&self, user: &UserId) -> Result<Value> {
        let found = self.store.read(|db| db.listed_account(user))?;
        let found = found.ok_or_else(|| Error::not_found("User not found"))?;
        let mut details = listed(&found);
        for (field, value) in [
            ("suspended", found.account.standing.suspended.into()),
            ("threepids", json!([])),
            ("external_ids", json!([])),
            ("appservice_id", Value::Null),
            ("consent_server_notice_sent", Value::Null),
            ("consent_version", Value::Null),
            ("consent_ts", Value::Null),
        ] {
            details[field] = value;
        }
        Ok(details)
    }
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
        "erased": found.erased,
        "creation_ts": account.created_ms,
        "last_seen_ts": found.last_seen_ms,
        "shadow_banned": false,
        "user_type": null,
    })
}
