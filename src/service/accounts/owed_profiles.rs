//! A new name or avatar in the rooms of its user: each room has it by a member event. That they are to be told is written down with
//! the change. Who asked for that has them told at once; what cannot be told then, or is cut short, the timer does, until every
//! room has it or has refused it. A room in which the user has said since how they want to be called there keeps that.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::locks::lock;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{ATTEMPTS_MAX, backoff_ms};
use crate::protocol::{EventId, RoomId, UserId};
use crate::service::accounts::Accounts;
use crate::service::events::accept::Sent;
use crate::service::events::draft::Draft;
use crate::store::{Db, EventKey};

/// So many rooms are told of a new name or avatar at the same time.
const ROOMS_TOLD_AT_ONCE: usize = 8;
/// What of a profile rooms are told.
const TOLD_FIELDS: [&str; 2] = ["displayname", "avatar_url"];

impl Accounts<'_> {
    /// Tells a user's rooms of what was just changed in their profile. What is not done by that is owed.
    pub(in crate::service) fn tell_rooms_of_profile(&self, user: &UserId) {
        if let Err(error) = self.pursue_owed_profile(user) {
            let level = error.level(log::Level::Warn);
            log::log!(level, "rooms will be told of the new profile of {user} later: {error}");
        }
    }

    /// Tells the rooms that are owed it of a user's profile. "An m.room.member event (with a join membership) is sent to every room
    /// the user is a member of." Errors: 500, 507.
    pub(in crate::service) fn pursue_owed_profile(&self, user: &UserId) -> Result<()> {
        let found = self.store.read(|db| {
            let Some(owed) = db.owed_profile(user)? else { return Ok(None) };
            let mut rooms = db.rooms_of(user)?;
            // At the first time some may have been entered with the old one just now. Later on what is newer was told then, or
            // is what the user wants there.
            rooms.retain(|room| {
                room.membership == Membership::Join && (owed.attempts == 0 || room.stream < owed.stream)
            });
            Ok(Some((owed, rooms.into_iter().map(|room| (room.room_id, room.event)).collect::<Vec<_>>())))
        })?;
        let Some((owed, rooms)) = found else { return Ok(()) };
        let are_told = self.tell_rooms(user, rooms);
        let (told, stream) = (user.clone(), owed.stream);
        if are_told || owed.attempts + 1 >= ATTEMPTS_MAX {
            // Told once more, they would have it already.
            return self.store.write_lightly(move |tx| tx.end_owed_profile(&told, stream));
        }
        if self.scheduler.is_stopping() {
            return Ok(());
        }
        let due = self.clock.now_ms() + backoff_ms(owed.attempts);
        self.store.write(move |tx| tx.put_off_owed_profile(&told, stream, (due, true)))
    }

    /// Whether all of these rooms have it now, or have refused it.
    fn tell_rooms(&self, user: &UserId, rooms: Vec<(RoomId, EventKey)>) -> bool {
        let at_once = ROOMS_TOLD_AT_ONCE.min(rooms.len());
        let (next, are_told) = (Mutex::new(rooms.into_iter()), AtomicBool::new(true));
        let work = || {
            loop {
                // Taken in a statement of its own, so that the lock is not held while the room is told.
                let room = lock(&next).next();
                let Some((room, event)) = room else { return };
                if self.scheduler.is_stopping() {
                    are_told.store(false, Ordering::Relaxed);
                    return;
                }
                let Err(error) = self.tell_room_of_profile(user, &room, event) else { continue };
                let level = error.level(log::Level::Warn);
                log::log!(level, "{room} was not told of the new profile of {user}: {error}");
                if error.status() == 429 || error.status() >= 500 {
                    are_told.store(false, Ordering::Relaxed);
                }
            }
        };
        // Several at once, because the writer commits together what comes together.
        std::thread::scope(|scope| {
            for _ in 1..at_once {
                let _ = std::thread::Builder::new().name("profile".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
        are_told.into_inner()
    }

    fn tell_room_of_profile(&self, user: &UserId, room: &RoomId, event: EventKey) -> Result<()> {
        let (profile, said) = self.store.read(|db| Ok((db.profile(user)?, db.pdu_by_key(event)?)))?;
        let before = said.content();
        let mut content = before.clone();
        // What belongs to the way in, and not to being in.
        for gone in ["reason", "is_direct", "third_party_invite", "join_authorised_via_users_server"] {
            content.remove(gone);
        }
        for field in TOLD_FIELDS {
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
            origin_server_ts: None,
        };
        let (user, said) = (user.clone(), said.event_id().clone());
        let sent =
            self.events().send_with(draft, move |tx, sent| check_is_news(tx, sent, &user, (&said, &profile)));
        sent.map(drop)
    }
}

/// Who has left meanwhile, or was put out, does not come in again by it, and what the user has changed since is told by whoever
/// changed that. Errors: 403 `M_FORBIDDEN`.
fn check_is_news(
    db: &Db<'_>,
    sent: &Sent,
    user: &UserId,
    (said, profile): (&EventId, &Map<String, Value>),
) -> Result<()> {
    let before = match db.event_by_key(sent.key)?.state_before {
        Some(state) => db.state_event_in(state, "m.room.member", user.as_str())?,
        None => None,
    };
    if before.is_none_or(|before| before.event_id() != said) {
        return Err(Error::forbidden("undone: something else was said of them there meanwhile"));
    }
    let now = db.profile(user)?;
    if TOLD_FIELDS.iter().any(|field| now.get(*field) != profile.get(*field)) {
        return Err(Error::forbidden("undone: the profile is another one again"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::protocol::ServerName;
    use crate::service::Homeserver;
    use crate::service::rooms::create::CreateRoom;

    #[test]
    fn who_leaves_while_the_room_is_told_of_their_new_name_stays_out_of_it() {
        let config = Config::for_name(ServerName::parse("here.example").expect("a name"));
        let hs = Homeserver::open(config, Clock::new()).expect("a server");
        let (alice, _) = hs.accounts().register_user("alice", None).expect("an account");
        let open: CreateRoom = serde_json::from_value(json!({ "preset": "public_chat" })).expect("a room");
        let rooms = [(); 2].map(|()| hs.rooms().create_room(&alice, &open).expect("made"));
        let found = hs.store.read(|db| db.rooms_of(&alice)).expect("read");
        let event_in =
            |room: &RoomId| found.iter().find(|found| found.room_id == *room).expect("in it").event;
        let call = |name: &str| {
            let (alice, name) = (alice.clone(), Value::from(name));
            hs.store.write(move |tx| tx.set_profile_field(&alice, "displayname", &name)).expect("written");
        };
        call("Alice");
        let [left, stays] = &rooms;
        hs.membership().leave(&alice, left, None).expect("left");
        let told = hs.accounts().tell_room_of_profile(&alice, left, event_in(left)).expect_err("undone");
        assert_eq!(told.status(), 403, "{told}");
        hs.accounts().tell_room_of_profile(&alice, stays, event_in(stays)).expect("told");
        let again = hs.accounts().tell_room_of_profile(&alice, stays, event_in(stays)).expect_err("undone");
        assert_eq!(again.status(), 403, "{again}");
        let is = |room: &RoomId| {
            hs.store.read(|db| db.membership(db.known_room(room)?.key, &alice)).expect("read")
        };
        assert_eq!(rooms.each_ref().map(is), [Some(Membership::Leave), Some(Membership::Join)]);
    }
}
