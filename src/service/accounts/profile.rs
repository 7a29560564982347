//! Profiles: of local users, kept here; of others, asked of their server.

use serde_json::{Map, Value};

use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::protocol::json::object_of;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::Accounts;
use crate::service::events::build::Draft;
use crate::service::limits::request_permits::Asker;
use crate::store::Tx;

/// "The total profile MUST be under 64 KiB."
const PROFILE_BYTES_MAX: usize = 65_536;
/// "The maximum allowed key length of 255 bytes."
const KEY_BYTES_MAX: usize = 255;
/// Display names go into every member event, so they must leave room for the rest of it.
const NAME_CHARS_MAX: usize = 256;
/// So do URLs of avatars.
const AVATAR_CHARS_MAX: usize = 1000;
/// So many rooms are told of a new name or avatar at the same time.
const ROOMS_TOLD_AT_ONCE: usize = 8;

impl Accounts<'_> {
    /// A user's whole profile, for who asks. Errors: 404 `M_NOT_FOUND` for a user who does not exist, and what their
    /// server says; 429 `M_LIMIT_EXCEEDED`.
    pub fn profile(&self, asker: &Asker, user: &UserId) -> Result<Map<String, Value>> {
        match self.is_local(user) {
            true => self.own_profile(user),
            false => self.remote_profile(asker, user, None),
        }
    }

    /// The whole profile of a local user. Errors: 404 `M_NOT_FOUND`.
    pub fn own_profile(&self, user: &UserId) -> Result<Map<String, Value>> {
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
            true => self.own_profile(user)?.remove(field),
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
        let permit = self.request_permits.ask(asker)?;
        let asked = self.federation.query_profile(&peer, user, field, permit.within);
        let mut profile = asked.map_err(|e| e.into_client_error(&peer))?;
        // Other servers may say `null` for what is not set; clients are not told such things.
        profile.retain(|_, value| !value.is_null());
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
        let (owner, name) = (user.clone(), field.to_owned());
        let changed = self.store.write(move |tx| put_profile_field(tx, &owner, &name, value))?;
        if changed && text_chars_max(field).is_some() {
            self.tell_rooms_of_profile(user)?;
        }
        Ok(())
    }

    /// Removes a field of a profile, if it is there, and tells the user's rooms. Errors: 400 `M_INVALID_PARAM`,
    /// `M_KEY_TOO_LARGE`.
    pub fn delete_profile_field(&self, user: &UserId, field: &str) -> Result<()> {
        check_field(field)?;
        let (owner, name) = (user.clone(), field.to_owned());
        let changed = self.store.write(move |tx| remove_profile_field(tx, &owner, &name))?;
        if changed && text_chars_max(field).is_some() {
            self.tell_rooms_of_profile(user)?;
        }
        Ok(())
    }

    /// "An m.room.member event (with a join membership) is sent to every room the user is a member of." A room that
    /// does not take it keeps the old profile; the others are told all the same.
    pub(in crate::service) fn tell_rooms_of_profile(&self, user: &UserId) -> Result<()> {
        let (profile, rooms) = self.store.read(|db| {
            let rooms = db.rooms_of(user)?.into_iter().filter(|room| room.membership == Membership::Join);
            Ok((db.profile(user)?, rooms.map(|room| (room.room_id, room.event)).collect::<Vec<_>>()))
        })?;
        let next = std::sync::Mutex::new(rooms.into_iter());
        let work = || {
            loop {
                // Taken in a statement of its own, so that the lock is not held while the room is told.
                let room = lock(&next).next();
                let Some((room, event)) = room else { return };
                if let Err(error) = self.tell_room_of_profile(user, &profile, &room, event) {
                    log::log!(
                        error.level(log::Level::Warn),
                        "{room} was not told of the new profile of {user}: {error}"
                    );
                }
            }
        };
        // Several at once, because the writer commits together what comes together.
        std::thread::scope(|scope| {
            let rooms = lock(&next).len();
            for _ in 1..ROOMS_TOLD_AT_ONCE.min(rooms) {
                let _ = std::thread::Builder::new().name("profile".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
        Ok(())
    }

    fn tell_room_of_profile(
        &self,
        user: &UserId,
        profile: &Map<String, Value>,
        room: &RoomId,
        event: crate::store::EventKey,
    ) -> Result<()> {
        let before = self.store.read(|db| db.pdu_by_key(event))?.content();
        let mut content = before.clone();
        // What belongs to the way in, and not to being in.
        for gone in ["reason", "is_direct", "third_party_invite", "join_authorised_via_users_server"] {
            content.remove(gone);
        }
        for field in ["displayname", "avatar_url"] {
            match profile.get(field) {
                Some(value) => content.insert(field.to_owned(), value.clone()),
                None => content.remove(field),
            };
        }
        if content == before {
            return Ok(());
        }
        let draft = Draft {
            room: room.clone(),
            sender: user.clone(),
            event_type: "m.room.member".to_owned(),
            state_key: Some(user.to_string()),
            content,
            redacts: None,
        };
        self.events().send(draft).map(|_| ())
    }
}

/// Whether a field is another one now. Errors: 400 `M_PROFILE_TOO_LARGE`.
fn put_profile_field(tx: &mut Tx<'_>, owner: &UserId, name: &str, value: Value) -> Result<bool> {
    let mut profile = tx.profile(owner)?;
    let before = profile.insert(name.to_owned(), value.clone());
    if Value::from(profile).to_string().len() >= PROFILE_BYTES_MAX {
        return Err(Error::new(ErrCode::ProfileTooLarge, "The profile would be too large"));
    }
    tx.set_profile_field(owner, name, &value)?;
    Ok(before != Some(value))
}

/// Whether the field was there.
fn remove_profile_field(tx: &mut Tx<'_>, owner: &UserId, name: &str) -> Result<bool> {
    let was_there = tx.profile_field(owner, name)?.is_some();
    tx.delete_profile_field(owner, name)?;
    Ok(was_there)
}

/// Sets a name or an avatar that [`check_text`] has found to be short enough; an empty one is none. Whether the user's rooms are
/// to be told of it. Errors: 400 `M_PROFILE_TOO_LARGE`.
pub(in crate::service) fn put_profile_text(
    tx: &mut Tx<'_>,
    owner: &UserId,
    field: &str,
    text: &str,
) -> Result<bool> {
    match text {
        "" => remove_profile_field(tx, owner, field),
        text => put_profile_field(tx, owner, field, text.into()),
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
