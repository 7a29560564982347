//! Registration tokens, as whoever operates this server makes and revokes them. Of a token only the hash is kept: it is told
//! once, when it is made, and from then on has a name that is made of the hash. Where one is asked for, either will do.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::random;
use crate::service::accounts::moderation::Administrator;
use crate::service::accounts::token_hash;
use crate::service::admin::Admin;
use crate::store::accounts::TokenHash;
use crate::store::accounts::registration_tokens::RegistrationToken;
use crate::store::{Db, Tx};

/// What the name of a token begins with.
const NAME: &str = "sha256-";
/// How many bytes of the hash are in it, each as two digits.
const NAME_BYTES: usize = 6;
/// Longest token.
const TOKEN_CHARS_MAX: usize = 64;
/// Length of a token if nothing is said.
const TOKEN_CHARS_USUAL: usize = 16;
/// Most tokens that are kept.
const TOKENS_MAX: usize = 10_000;

/// A token that is to be made.
#[derive(Debug, Default)]
pub struct NewToken<'a> {
    /// The token itself; none: a random one.
    pub token: Option<&'a str>,
    /// How long a random one is.
    pub length: Option<i64>,
    /// What it is good for.
    pub terms: TokenTerms,
}

/// What a token is good for; what is not given stays as it is, or has no end for a new one.
#[derive(Debug, Default, Clone, Copy)]
pub struct TokenTerms {
    /// How many accounts may be made with it; `Some(None)`: any number.
    pub uses_allowed: Option<Option<i64>>,
    /// Until when it is good; `Some(None)`: without end.
    pub expires_ms: Option<Option<Millis>>,
}

impl TokenTerms {
    /// Errors: 400 `M_INVALID_PARAM`.
    fn check(&self, now: Millis) -> Result<()> {
        if self.uses_allowed.flatten().is_some_and(|uses| uses < 0) {
            return Err(Error::invalid_param("uses_allowed must be a non-negative integer or null"));
        }
        if self.expires_ms.flatten().is_some_and(|at| at < now) {
            return Err(Error::invalid_param("expiry_time must not be in the past"));
        }
        Ok(())
    }

    fn apply(&self, token: &mut RegistrationToken) {
        token.uses_allowed = self.uses_allowed.unwrap_or(token.uses_allowed);
        token.expires_ms = self.expires_ms.unwrap_or(token.expires_ms);
    }
}

impl Admin<'_> {
    /// The tokens that there are, or only those that are good (or are not).
    pub fn list_tokens(&self, valid: Option<bool>) -> Result<Value> {
        let now = self.clock.now_ms();
        let tokens = self.store.read(|db| db.registration_tokens())?;
        let fits = |token: &&RegistrationToken| valid.is_none_or(|valid| token.is_valid(now) == valid);
        let tokens: Vec<Value> = tokens.iter().filter(fits).map(|token| shown(token, None)).collect();
        Ok(json!({ "registration_tokens": tokens }))
    }

    /// Makes a token; this once it is told. Errors: 400 `M_INVALID_PARAM`, also for one that there is already; 403
    /// `M_FORBIDDEN` if there are too many.
    pub fn add_token(&self, admin: &Administrator, new: &NewToken<'_>) -> Result<Value> {
        new.terms.check(self.clock.now_ms())?;
        let token = match (new.token, new.length) {
            (Some(token), _) => checked_token(token)?.to_owned(),
            (None, length) => random_token(length)?,
        };
        let mut row = RegistrationToken {
            hash: token_hash(&token),
            uses_allowed: None,
            completed: 0,
            expires_ms: None,
        };
        new.terms.apply(&mut row);
        let made = row.clone();
        self.write_as(admin, move |tx| {
            if tx.registration_token(&made.hash)?.is_some() {
                return Err(Error::invalid_param("There is such a token already"));
            }
            if tx.registration_tokens()?.len() >= TOKENS_MAX {
                return Err(Error::forbidden("There are too many registration tokens: revoke some first"));
            }
            tx.put_registration_token(&made)
        })?;
        log::info!("{admin} has made the registration token {}", name_of(&row.hash));
        Ok(shown(&row, Some(&token)))
    }

    /// A token, by itself or by its name. Errors: 404 `M_NOT_FOUND`.
    pub fn token(&self, token: &str) -> Result<Value> {
        let found = self.store.read(|db| find(db, token))?;
        Ok(shown(&found, Some(token)))
    }

    /// Changes what a token is good for. Errors: 404 `M_NOT_FOUND`, 400 `M_INVALID_PARAM`.
    pub fn change_token(&self, admin: &Administrator, token: &str, terms: &TokenTerms) -> Result<Value> {
        terms.check(self.clock.now_ms())?;
        let (named, terms) = (token.to_owned(), *terms);
        let changed = self.write_as(admin, move |tx: &mut Tx<'_>| {
            let mut found = find(tx, &named)?;
            terms.apply(&mut found);
            tx.put_registration_token(&found)?;
            Ok(found)
        })?;
        log::info!("{admin} has changed the registration token {}", name_of(&changed.hash));
        Ok(shown(&changed, Some(token)))
    }

    /// Revokes a token. Errors: 404 `M_NOT_FOUND`.
    pub fn revoke_token(&self, admin: &Administrator, token: &str) -> Result<()> {
        let token = token.to_owned();
        let hash = self.write_as(admin, move |tx: &mut Tx<'_>| {
            let hash = find(tx, &token)?.hash;
            tx.delete_registration_token(&hash)?;
            Ok(hash)
        })?;
        log::info!("{admin} has revoked the registration token {}", name_of(&hash));
        Ok(())
    }
}

/// A token by itself, or by its name.
fn find(db: &Db<'_>, token: &str) -> Result<RegistrationToken> {
    if let Some(found) = db.registration_token(&token_hash(token))? {
        return Ok(found);
    }
    let named = match token.starts_with(NAME) {
        true => db.registration_tokens()?.into_iter().find(|found| name_of(&found.hash) == token),
        false => None,
    };
    // What was asked for may be a secret that is good elsewhere: it is not repeated.
    named.ok_or_else(|| Error::not_found("No such registration token"))
}

fn name_of(hash: &TokenHash) -> String {
    hash.iter().take(NAME_BYTES).fold(NAME.to_owned(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// A token as Synapse's API has it: as whoever asks has named it, else by its name. No registration is ever pending: a token is used in the
/// transaction that makes the account.
fn shown(row: &RegistrationToken, told: Option<&str>) -> Value {
    let name = name_of(&row.hash);
    json!({
        "token": told.unwrap_or(&name),
        "name": name,
        "uses_allowed": row.uses_allowed,
        "pending": 0,
        "completed": row.completed,
        "expiry_time": row.expires_ms,
    })
}

/// Errors: 400 `M_INVALID_PARAM` (client-server API, "Token-authenticated registration": the grammar of opaque
/// identifiers).
fn checked_token(token: &str) -> Result<&str> {
    if token.is_empty() || token.len() > TOKEN_CHARS_MAX {
        return Err(Error::invalid_param(
            "token must not be empty and must not be longer than 64 characters",
        ));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._~-".contains(c);
    if !token.chars().all(allowed) || token.starts_with(NAME) {
        return Err(Error::invalid_param("token must consist of A to Z, a to z, digits, and . _ ~ - only"));
    }
    Ok(token)
}

fn random_token(length: Option<i64>) -> Result<String> {
    let length = length.map_or(Ok(TOKEN_CHARS_USUAL), usize::try_from).unwrap_or(0);
    if !(1..=TOKEN_CHARS_MAX).contains(&length) {
        return Err(Error::invalid_param("length must be greater than zero and not greater than 64"));
    }
    Ok(random::letters(length))
}
