//! Profiles: of local users, kept here; of others, asked of their server.

use serde_json::{Map, Value};

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::protocol::json::object_of;
use crate::protocol::pdu::Membership;
use crate::service::accounts::Accounts;
use crate::service::limits::request_permits::Asker;
use crate::service::limits::silent_servers::{AskedFor, unanswered};
use crate::store::Tx;

/// "The total profile MUST be under 64 KiB."
const PROFILE_BYTES_MAX: usize = 65_536;
/// "The maximum allowed key length of 255 bytes."
const KEY_BYTES_MAX: usize = 255;
/// Display names go into every member event, so they must leave room for the rest of it.
const NAME_CHARS_MAX: usize = 256;
/// So do URLs of avatars.
const AVATAR_CHARS_MAX: usize = 1000;

impl Accounts<'_> {
    /// A user's whole profile, for who asks. Errors: 404 `M_NOT_FOUND` for a user who does not exist, and what their
    /// server says; 504 if it does not answer, at once if it did not lately; 429 `M_LIMIT_EXCEEDED`.
    pub fn profile(&self, asker: &Asker, user: &UserId) -> Result<Map<String, Value>> {
        match self.is_local(user) {
            true => self.own_profile(asker, user),
            false => self.remote_profile(asker, user, None),
        }
    }

    /// The whole profile of a local user, whom an application service may make now. Errors: 404 `M_NOT_FOUND`, 429
    /// `M_LIMIT_EXCEEDED`.
    pub fn own_profile(&self, asker: &Asker, user: &UserId) -> Result<Map<String, Value>> {
        match self.known_profile(user) {
            Err(e) if e.errcode() == ErrCode::NotFound => match self.ask_services_for_user(asker, user)? {
                true => self.known_profile(user),
                false => Err(e),
            },
            known => known,
        }
    }

    fn known_profile(&self, user: &UserId) -> Result<Map<String, Value>> {
        self.store.read(|db| {
            if !db.is_active_user(user)? {
                return Err(Error::not_found("Profile not found"));
            }
            db.profile(user)
        })
    }

    /// One field of a user's profile as an object, for who asks. Errors: 404 `M_NOT_FOUND`, and what their server says;
    /// 429 `M_LIMIT_EXCEEDED`.
    pub fn profile_field(&self, asker: &Asker, user: &UserId, field: &str) -> Result<Map<String, Value>> {
        let value = match self.is_local(user) {
            true => self.own_profile(asker, user)?.remove(field),
            false => self.remote_profile(asker, user, Some(field))?.remove(field),
        };
        let value = value.ok_or_else(|| Error::not_found("The profile has no such field"))?;
        Ok(object_of([(field, value)]))
    }

    fn remote_profile(
        &self,
        asker: &Asker,
        user: &UserId,
        field: Option<&str>,
    ) -> Result<Map<String, Value>> {
        let peer = user.server();
        // Whole lists of members are asked for: the others of a server that hangs need not wait for it as well.
        let is_silent = || self.silent_servers.is_silent(&peer, AskedFor::Profile, self.clock.steady());
        let permit = if is_silent() { None } else { Some(self.request_permits.ask(asker)?) };
        let Some(permit) = permit.filter(|_| !is_silent()) else {
            return Err(unanswered(&peer, "could not be reached lately"));
        };
        let asked = self.ask_peer(&peer, AskedFor::Profile, permit.within, |within| {
            self.federation.query_profile(&peer, user, field, within)
        });
        let mut profile = asked.map_err(|e| e.into_client_error(&peer))?;
        // Other servers may say `null` for a name that is not set, of which clients are not told. Elsewhere it is a value.
        profile.retain(|field, value| !(value.is_null() && text_chars_max(field).is_some()));
        Ok(profile)
    }

    /// Sets a field of a profile, and tells the user's rooms of a new name or avatar. An empty name or avatar is none.
    /// Errors: 400 `M_INVALID_PARAM`, `M_KEY_TOO_LARGE`, `M_PROFILE_TOO_LARGE`.
    pub fn set_profile_field(&self, user: &UserId, field: &str, value: Value) -> Result<()> {
        check_field(field)?;
        if let Some(max) = text_chars_max(field) {
            let text = value.as_str().ok_or_else(|| Error::bad_json(format!("{field} must be a string")))?;
            check_length(field, text, max)?;
            if text.is_empty() {
                return self.delete_profile_field(user, field);
            }
        } else if field == TIME_ZONE && !value.is_string() {
            return Err(Error::bad_json(format!("{field} must be a string")));
        }
        let (owner, name, now) = (user.clone(), field.to_owned(), self.clock.now_ms());
        if self.store.write(move |tx| put_profile_field(tx, &owner, &name, (value, now)))? {
            self.tell_rooms_of_profile(user);
        }
        Ok(())
    }

    /// Removes a field of a profile, if it is there, and tells the user's rooms. Errors: 400 `M_INVALID_PARAM`,
    /// `M_KEY_TOO_LARGE`.
    pub fn delete_profile_field(&self, user: &UserId, field: &str) -> Result<()> {
        check_field(field)?;
        let (owner, name, now) = (user.clone(), field.to_owned(), self.clock.now_ms());
        if self.store.write(move |tx| remove_profile_field(tx, &owner, &name, now))? {
            self.tell_rooms_of_profile(user);
        }
        Ok(())
    }
}

/// Sets a field. Whether the user's rooms are to be told of it. Errors: 400 `M_PROFILE_TOO_LARGE`.
fn put_profile_field(
    tx: &mut Tx<'_>,
    owner: &UserId,
    name: &str,
    (value, now): (Value, Millis),
) -> Result<bool> {
    let mut profile = tx.profile(owner)?;
    let before = profile.insert(name.to_owned(), value.clone());
    if Value::from(profile).to_string().len() >= PROFILE_BYTES_MAX {
        return Err(Error::new(ErrCode::ProfileTooLarge, "The profile would be too large"));
    }
    tx.set_profile_field(owner, name, &value)?;
    owe_rooms(tx, owner, name, (before != Some(value), now))
}

/// Removes a field. Whether the user's rooms are to be told of it.
fn remove_profile_field(tx: &mut Tx<'_>, owner: &UserId, name: &str, now: Millis) -> Result<bool> {
    let was_there = tx.profile_field(owner, name)?.is_some();
    tx.delete_profile_field(owner, name)?;
    owe_rooms(tx, owner, name, (was_there, now))
}

/// With the change, so that nothing can come between; see `owed_profiles`. Whether a user's rooms are to be told: of a change, or
/// because some could not be told of one before, which whoever repeats a request may want.
fn owe_rooms(tx: &mut Tx<'_>, owner: &UserId, field: &str, (changed, now): (bool, Millis)) -> Result<bool> {
    if text_chars_max(field).is_none() {
        return Ok(false);
    }
    if !changed {
        return Ok(tx.owed_profile(owner)?.is_some());
    }
    let is_in_any = tx.rooms_of(owner)?.iter().any(|room| room.membership == Membership::Join);
    if is_in_any {
        tx.owe_profile(owner, now)?;
    }
    Ok(is_in_any)
}

/// Sets a name or an avatar that [`check_text`] has found to be short enough; an empty one is none. Whether the user's rooms are
/// to be told of it. Errors: 400 `M_PROFILE_TOO_LARGE`.
pub(in crate::service) fn put_profile_text(
    tx: &mut Tx<'_>,
    owner: &UserId,
    field: &str,
    (text, now): (&str, Millis),
) -> Result<bool> {
    match text {
        "" => remove_profile_field(tx, owner, field, now),
        text => put_profile_field(tx, owner, field, (text.into(), now)),
    }
}

/// A display name for a new account; an empty one is none. Errors: 400 `M_INVALID_PARAM` if it is too long.
pub(in crate::service) fn checked_display_name(name: &str) -> Result<Option<&str>> {
    check_text("displayname", name)?;
    Ok(Some(name).filter(|name| !name.is_empty()))
}

/// Whether a name or an avatar is short enough. Errors: 400 `M_INVALID_PARAM`.
pub(in crate::service) fn check_text(field: &str, text: &str) -> Result<()> {
    text_chars_max(field).map_or(Ok(()), |max| check_length(field, text, max))
}

fn check_length(field: &str, text: &str, max: usize) -> Result<()> {
    match text.chars().count() <= max {
        true => Ok(()),
        false => Err(Error::invalid_param(format!("{field} may have at most {max} characters"))),
    }
}

/// The field of the user's time zone, a string as the other two that the specification defines. Whether there is such a zone is not
/// asked: "Requesting servers MUST tolerate invalid or unknown values."
const TIME_ZONE: &str = "m.tz";

/// The two fields that rooms are told of, with the most characters that they may have.
fn text_chars_max(field: &str) -> Option<usize> {
    match field {
        "displayname" => Some(NAME_CHARS_MAX),
        "avatar_url" => Some(AVATAR_CHARS_MAX),
        _ => None,
    }
}

/// "This MUST be either avatar_url, displayname, m.tz, or a custom field following the Common Namespaced Identifier
/// Grammar." The grammar allows all three.
fn check_field(field: &str) -> Result<()> {
    if field.len() > KEY_BYTES_MAX {
        return Err(Error::new(
            ErrCode::KeyTooLarge,
            "The name of a profile field may have at most 255 bytes",
        ));
    }
    let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    if !field.starts_with(|c: char| c.is_ascii_lowercase()) || !field.bytes().all(letters) {
        return Err(Error::invalid_param("Invalid profile key."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_names_follow_the_grammar_of_namespaced_identifiers() {
        for good in ["displayname", "avatar_url", "m.tz", "org.example.pronouns", "a-b_c.1"] {
            assert!(check_field(good).is_ok(), "{good}");
        }
        for bad in ["", "M.tz", "1a", ".a", "a b", "é", "a/b"] {
            assert_eq!(check_field(bad).unwrap_err().errcode(), ErrCode::InvalidParam, "{bad}");
        }
        assert_eq!(check_field(&"a".repeat(256)).unwrap_err().errcode(), ErrCode::KeyTooLarge);
    }
}
