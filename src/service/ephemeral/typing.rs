//! Who is typing: of local users, told to the other servers of the room; of others, as their servers say.
//!
//! What is known is in the database like everything else, but written lightly: it is worth nothing after a minute.

use serde_json::json;

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::edu::{Edu, TypingContent};
use crate::protocol::json::read_object;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::ephemeral::Ephemeral;
use crate::service::ephemeral::incoming::{EduKind, EduOrigin};
use crate::store::RoomKey;

/// How long somebody types who does not say for how long, and the longest.
const TIMEOUT_MS_USUAL: Millis = 30_000;
/// Other servers do not say for how long. They say it again in time if it lasts; so nobody types for longer without saying so
/// again, and it ends here and there at the same time.
pub(in crate::service) const TIMEOUT_MS_MAX: Millis = 60_000;
const REMOTE_TIMEOUT_MS: Millis = TIMEOUT_MS_MAX;
/// So often other servers are told again of somebody who goes on typing: before they take it to be over.
const TELL_INTERVAL_MS: Millis = 25_000;
/// Users who type in one room at the same time, and of one server: more would tell nobody anything. Local users have
/// places beside those.
const IN_ROOM_MAX: usize = 100;
const OF_SERVER_MAX: usize = 20;
const LOCAL_IN_ROOM_MAX: usize = 50;
/// Ends of typing that are worked on at once.
const EXPIRED_AT_ONCE_MAX: usize = 100;

impl Ephemeral<'_> {
    /// A local user begins to type, goes on, or (no time given) stops. Errors: 400 `M_INVALID_PARAM` for a negative
    /// time, 403 `M_FORBIDDEN` for who is not in the room.
    pub fn set_typing(&self, user: &UserId, room: &RoomId, typing: Option<Option<Millis>>) -> Result<()> {
        let lasting = match typing {
            Some(Some(asked)) if asked < 0 => {
                return Err(Error::invalid_param("timeout must not be negative"));
            }
            Some(asked) => Some(asked.unwrap_or(TIMEOUT_MS_USUAL).min(TIMEOUT_MS_MAX)),
            None => None,
        };
        let key = self.store.read(|db| match db.room(room)? {
            Some(room) if db.membership(room.key, user)? == Some(Membership::Join) => Ok(room.key),
            _ => Err(Error::not_in_room()),
        })?;
        self.note_activity(user);
        let now = self.clock.now_ms();
        let name = user.clone();
        let tell = match lasting {
            Some(lasting) => {
                let times = (now, now + lasting);
                let change = self.store.write_lightly(move |tx| {
                    tx.start_typing(
                        key,
                        name.as_str(),
                        times,
                        TELL_INTERVAL_MS,
                        (IN_ROOM_MAX + LOCAL_IN_ROOM_MAX, LOCAL_IN_ROOM_MAX),
                    )
                })?;
                self.scheduler.no_later_than(now + lasting);
                change.changed || change.tell_again
            }
            None => self.store.write_lightly(move |tx| tx.stop_typing(key, name.as_str()))?,
        };
        if tell {
            self.tell_of_typing(key, room, user.as_str(), lasting.is_some())?;
        }
        Ok(())
    }

    fn tell_of_typing(&self, key: RoomKey, room: &RoomId, user: &str, typing: bool) -> Result<()> {
        let content = json!({ "room_id": room, "user_id": user, "typing": typing });
        let edu = Edu {
            replaces: Some(format!("typing {room} {user}")),
            json: json!({ "edu_type": "m.typing", "content": content }).to_string(),
        };
        self.outgoing.send_edu_to_room(self, key, &edu)
    }

    /// Ends what has lasted long enough; gives when to look again.
    pub fn expire_typing(&self, now: Millis) -> Result<Option<Millis>> {
        for (room, user) in self.store.read(|db| db.typing_expired(now, EXPIRED_AT_ONCE_MAX))? {
            let name = user.clone();
            let stopped = self.store.write_lightly(move |tx| tx.let_typing_expire(room, &name, now))?;
            let ours = UserId::parse(&user).is_ok_and(|user| self.is_local(&user));
            if stopped && ours {
                let room_id = self.store.read(|db| Ok(db.room_by_key(room)?.room_id))?;
                self.tell_of_typing(room, &room_id, &user, false)?;
            }
        }
        self.store.read(|db| db.next_typing_expiry())
    }

    /// `m.typing` of another server. "Receiving servers should verify that the user is in the room, and is a user
    /// belonging to the sending server."
    pub(in crate::service) fn receive_typing(
        &self,
        origin: &mut EduOrigin<'_>,
        content: &[u8],
    ) -> Result<()> {
        let Ok(TypingContent { room_id, user_id, typing }) = read_object(content) else { return Ok(()) };
        let edu = || (EduKind::Typing, content.to_vec());
        let Some(room) = origin.room_or_keep(self, &room_id, edu)? else { return Ok(()) };
        let in_room = || self.store.read(|db| db.membership(room, &user_id));
        if !origin.owns(&user_id) || in_room()? != Some(Membership::Join) {
            return Ok(());
        }
        let now = self.clock.now_ms();
        let until = now + REMOTE_TIMEOUT_MS;
        if typing {
            // Nobody is told of it again by us.
            let (times, never) = ((now, until), Millis::MAX);
            self.store.write_lightly(move |tx| {
                tx.start_typing(room, user_id.as_str(), times, never, (IN_ROOM_MAX, OF_SERVER_MAX))
            })?;
            self.scheduler.no_later_than(until);
        } else {
            self.store.write_lightly(move |tx| tx.stop_typing(room, user_id.as_str()))?;
        }
        Ok(())
    }
}
