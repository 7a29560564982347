//! What is kept in memory of what is in the database.
//!
//! - here: the writer's cache of rooms, so that an event need not ask for them again: the room, its forward
//!   extremities, the local users who hear it, its current state as far as it was asked for;
//! - `events`: the part of the writer's cache that is about events and states;
//! - `pdus`: events, for readers;
//! - `news`: what the last commits were news of; `presences`: whose presence they changed;
//! - `resolutions`: what resolving states came to;
//! - `sessions`: the sessions of access tokens; `fronts`: what rooms show to somebody outside;
//! - `tuple_ids`: the numbers of state tuples;
//! - `bounded`: the map that they are made of; `row_hasher`: how it finds what it keeps by a row's number.
//!
//! The writer's cache is its own: nobody else changes the database, so it knows what to forget and when. It holds what
//! its transaction has read, committed or not; if a closure that wrote something is undone, everything is forgotten.

pub(super) mod bounded;
pub(super) mod events;
pub mod fronts;
pub mod news;
pub(super) mod pdus;
pub mod presences;
pub mod resolutions;
pub(super) mod row_hasher;
pub(super) mod sessions;
pub(super) mod tuple_ids;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::{Db, EventKey, Room, RoomKey, SnapshotId};
use crate::error::{Error, Result};
use crate::protocol::event_auth::AuthChecker;
use crate::protocol::push_rules::Names;
use crate::protocol::{RoomId, RoomVersion, UserId};
use crate::store::cache::events::EventCache;
use crate::store::cache::row_hasher::ByRow;
use crate::store::push::recipients::{Absent, DisplayNames, Settings, SpecialRecipients};
use crate::store::rooms::OtherServers;
use crate::store::rooms::events::ForwardExtremity;
use crate::store::rooms::thread_subscriptions::ThreadFollowers;

/// Rooms that are cached, and entries of the current states of all of them together.
const ROOMS_MAX: usize = 256;
const ENTRIES_MAX: usize = 20_000;
/// Users of whom it is known what notifies them.
const SETTINGS_MAX: usize = 10_000;
/// Names of users in rooms, of all rooms together.
const NAMES_MAX: usize = 20_000;
/// Other states of a room of which it is known who is not joined in them: a room has few forks at once.
const ABSENT_STATES_MAX: usize = 4;

/// What the writer keeps in memory.
#[derive(Default)]
pub(super) struct WriterCache {
    keys: RefCell<HashMap<RoomId, RoomKey>>,
    rooms: RefCell<HashMap<RoomKey, CachedRoom, ByRow>>,
    entries: Cell<usize>,
    /// Whether any event is pending.
    is_anything_pending: Cell<Option<bool>>,
    /// Whether any event is to be sent later.
    is_anything_delayed: Cell<Option<bool>>,
    /// By room version; they remember power levels, which most events of a room share.
    checkers: RefCell<HashMap<&'static str, Rc<AuthChecker>>>,
    /// What users have in their push rules and ignored users that is not usual; none: nothing.
    settings: RefCell<HashMap<UserId, Option<Rc<Settings>>>>,
    /// Our users who follow threads.
    thread_followers: RefCell<Option<ThreadFollowers>>,
    /// Of events and states.
    pub(super) events: EventCache,
}

#[derive(Default)]
struct CachedRoom {
    row: Option<Room>,
    extremities: Option<Arc<[ForwardExtremity]>>,
    /// Our users who are joined.
    audience: Option<Arc<[UserId]>>,
    /// Those of them who have such settings.
    special: Option<SpecialRecipients>,
    /// Their names, as they are looked for in what is said, and what these are made of.
    names: Option<Rc<Names>>,
    display_names: DisplayNames,
    /// Those of them who are not joined in these other states, the last that were asked for.
    absent: Vec<(SnapshotId, Absent)>,
    /// The other servers that were ever in it.
    other_servers: Option<OtherServers>,
    /// The current state by type and state key; none where it has no event.
    state: HashMap<String, HashMap<String, Option<EventKey>>>,
}

impl WriterCache {
    fn recall<T>(&self, room: RoomKey, what: impl FnOnce(&CachedRoom) -> Option<T>) -> Option<T> {
        self.rooms.borrow().get(&room).and_then(what)
    }

    fn keep(&self, room: RoomKey, what: impl FnOnce(&mut CachedRoom)) {
        let mut rooms = self.rooms.borrow_mut();
        if rooms.len() >= ROOMS_MAX && !rooms.contains_key(&room) {
            rooms.clear();
            self.keys.borrow_mut().clear();
            self.entries.set(0);
        }
        what(rooms.entry(room).or_default());
    }

    fn forget(&self, room: RoomKey, what: impl FnOnce(&mut CachedRoom)) {
        if let Some(about) = self.rooms.borrow_mut().get_mut(&room) {
            what(about);
        }
    }

    pub(super) fn room(&self, id: &RoomId) -> Option<Room> {
        let key = *self.keys.borrow().get(id)?;
        self.room_by_key(key)
    }

    pub(super) fn room_by_key(&self, room: RoomKey) -> Option<Room> {
        self.recall(room, |about| about.row.clone())
    }

    pub(super) fn keep_room(&self, room: &Room) {
        self.keep(room.key, |about| about.row = Some(room.clone()));
        self.keys.borrow_mut().insert(room.room_id.clone(), room.key);
    }

    /// The room's row has changed, in this way.
    pub(super) fn change_room(&self, room: RoomKey, change: impl FnOnce(&mut Room)) {
        self.forget(room, |about| {
            if let Some(row) = &mut about.row {
                change(row);
            }
        });
    }

    /// The room's row has changed.
    pub(super) fn forget_room(&self, room: RoomKey) {
        self.forget(room, |about| about.row = None);
    }

    /// The forward extremities.
    pub(super) fn extremities(&self, room: RoomKey) -> Option<Arc<[ForwardExtremity]>> {
        self.recall(room, |about| about.extremities.clone())
    }

    pub(super) fn keep_extremities(&self, room: RoomKey, extremities: Arc<[ForwardExtremity]>) {
        self.keep(room, |about| about.extremities = Some(extremities));
    }

    pub(super) fn forget_extremities(&self, room: RoomKey) {
        self.forget(room, |about| about.extremities = None);
    }

    /// Our users who are joined to the room.
    pub(super) fn audience(&self, room: RoomKey) -> Option<Arc<[UserId]>> {
        self.recall(room, |about| about.audience.clone())
    }

    pub(super) fn keep_audience(&self, room: RoomKey, audience: Arc<[UserId]>) {
        self.keep(room, |about| about.audience = Some(audience));
    }

    /// Somebody came to the room, or left it.
    pub(super) fn forget_audience(&self, room: RoomKey) {
        self.forget(room, |about| {
            (about.audience, about.special, about.names) = (None, None, None);
            about.absent.clear();
        });
    }

    /// What a user has that is not usual. The outer `None`: it is not remembered.
    pub(super) fn push_settings(&self, user: &UserId) -> Option<Option<Rc<Settings>>> {
        self.settings.borrow().get(user).cloned()
    }

    pub(super) fn keep_push_settings(&self, user: &UserId, own: Option<Rc<Settings>>) {
        let mut settings = self.settings.borrow_mut();
        if settings.len() >= SETTINGS_MAX {
            settings.clear();
        }
        settings.insert(user.clone(), own);
    }

    /// A user has other rules, or ignores others.
    pub(super) fn forget_push_settings(&self, user: &UserId) {
        self.settings.borrow_mut().remove(user);
        self.rooms.borrow_mut().values_mut().for_each(|about| about.special = None);
    }

    /// Our users who follow threads. None: it is not remembered.
    pub(super) fn thread_followers(&self) -> Option<ThreadFollowers> {
        self.thread_followers.borrow().clone()
    }

    pub(super) fn keep_thread_followers(&self, followers: ThreadFollowers) {
        *self.thread_followers.borrow_mut() = Some(followers);
    }

    /// A user follows a thread.
    pub(super) fn add_thread_follower(&self, user: &UserId) {
        if let Some(followers) = &mut *self.thread_followers.borrow_mut()
            && !followers.contains(user)
        {
            Rc::make_mut(followers).insert(user.clone());
        }
    }

    /// Somebody may follow none any more.
    pub(super) fn forget_thread_followers(&self) {
        *self.thread_followers.borrow_mut() = None;
    }

    /// Our users in the room who have something that is not usual.
    pub(super) fn special_recipients(&self, room: RoomKey) -> Option<SpecialRecipients> {
        self.recall(room, |about| about.special.clone())
    }

    pub(super) fn keep_special_recipients(&self, room: RoomKey, special: SpecialRecipients) {
        self.keep(room, |about| about.special = Some(special));
    }

    /// The names of our users in the room.
    pub(super) fn names(&self, room: RoomKey) -> Option<Rc<Names>> {
        self.recall(room, |about| about.names.clone())
    }

    /// What of that is remembered, which is taken: all of it is to be put back.
    pub(super) fn display_names(&self, room: RoomKey) -> DisplayNames {
        let mut rooms = self.rooms.borrow_mut();
        rooms.get_mut(&room).map(|about| std::mem::take(&mut about.display_names)).unwrap_or_default()
    }

    pub(super) fn keep_names(&self, room: RoomKey, names: Rc<Names>, display_names: DisplayNames) {
        let count = |about: &CachedRoom| about.display_names.len();
        let there: usize = self.rooms.borrow().values().map(count).sum();
        if there + display_names.len() > NAMES_MAX {
            let forget = |about: &mut CachedRoom| (about.names, about.display_names) = Default::default();
            self.rooms.borrow_mut().values_mut().for_each(forget);
        }
        self.keep(room, |about| (about.names, about.display_names) = (Some(names), display_names));
    }

    /// Our users in the room who are not joined in another state.
    pub(super) fn absent_recipients(&self, room: RoomKey, state: SnapshotId) -> Option<Absent> {
        self.recall(room, |about| {
            about.absent.iter().find(|(other, _)| *other == state).map(|(_, absent)| absent.clone())
        })
    }

    pub(super) fn keep_absent_recipients(&self, room: RoomKey, state: SnapshotId, absent: Absent) {
        self.keep(room, |about| {
            if about.absent.len() >= ABSENT_STATES_MAX {
                about.absent.remove(0);
            }
            about.absent.push((state, absent));
        });
    }

    /// The other servers that were ever in the room.
    pub(super) fn other_servers(&self, room: RoomKey) -> Option<OtherServers> {
        self.recall(room, |about| about.other_servers.clone())
    }

    pub(super) fn keep_other_servers(&self, room: RoomKey, others: OtherServers) {
        self.keep(room, |about| about.other_servers = Some(others));
    }

    /// A server came to the room.
    pub(super) fn forget_other_servers(&self, room: RoomKey) {
        self.forget(room, |about| about.other_servers = None);
    }

    /// The event in the room's current state. The outer `None`: it is not remembered.
    pub(super) fn state_event_key(
        &self,
        room: RoomKey,
        event_type: &str,
        state_key: &str,
    ) -> Option<Option<EventKey>> {
        self.recall(room, |about| about.state.get(event_type)?.get(state_key).copied())
    }

    pub(super) fn keep_state_event_key(
        &self,
        room: RoomKey,
        event_type: &str,
        state_key: &str,
        event: Option<EventKey>,
    ) {
        if self.entries.get() >= ENTRIES_MAX {
            self.rooms.borrow_mut().values_mut().for_each(|about| about.state.clear());
            self.entries.set(0);
        }
        self.entries.set(self.entries.get() + 1);
        self.keep(room, |about| {
            about.state.entry(event_type.to_owned()).or_default().insert(state_key.to_owned(), event);
        });
    }

    /// One entry of the room's current state has changed.
    pub(super) fn forget_state_event(&self, room: RoomKey, event_type: &str, state_key: &str) {
        self.forget(room, |about| {
            about.state.get_mut(event_type).and_then(|of_type| of_type.remove(state_key));
            if event_type == "m.room.member" && about.display_names.remove(state_key).is_some() {
                about.names = None;
            }
        });
    }

    pub(super) fn is_anything_pending(&self) -> Option<bool> {
        self.is_anything_pending.get()
    }

    pub(super) fn keep_is_anything_pending(&self, anything: Option<bool>) {
        self.is_anything_pending.set(anything);
    }

    pub(super) fn is_anything_delayed(&self) -> Option<bool> {
        self.is_anything_delayed.get()
    }

    pub(super) fn keep_is_anything_delayed(&self, anything: Option<bool>) {
        self.is_anything_delayed.set(anything);
    }

    pub(super) fn auth_checker(&self, version: RoomVersion) -> Rc<AuthChecker> {
        self.checkers
            .borrow_mut()
            .entry(version.id)
            .or_insert_with(|| Rc::new(AuthChecker::new(version)))
            .clone()
    }

    /// What they have read was redacted.
    pub(super) fn forget_auth_checkers(&self) {
        self.checkers.borrow_mut().clear();
    }

    /// Much of the room's current state has changed.
    pub(super) fn forget_state(&self, room: RoomKey) {
        self.forget(room, |about| about.state.clear());
        self.forget_names(room);
    }

    /// A member event of this user has another content.
    pub(super) fn forget_name(&self, user: &str) {
        for about in self.rooms.borrow_mut().values_mut() {
            if about.display_names.remove(user).is_some() {
                about.names = None;
            }
        }
    }

    /// Somebody in the room may have another name.
    pub(super) fn forget_names(&self, room: RoomKey) {
        self.forget(room, |about| (about.names, about.display_names) = Default::default());
    }

    /// Compares what is remembered of a room with what is stored: an assertion of debug builds, and so of every test.
    /// What is not so, if anything.
    pub(super) fn untrue(&self, db: &Db<'_>, room: RoomKey) -> Result<Option<String>> {
        let rooms = self.rooms.borrow();
        let Some(about) = rooms.get(&room) else { return Ok(None) };
        let row = about.row.as_ref().map_or(Ok(true), |row| Ok::<_, Error>(*row == db.room_by_key(room)?));
        let extremities = about
            .extremities
            .as_ref()
            .map_or(Ok(true), |extremities| Ok::<_, Error>(**extremities == *db.forward_extremities(room)?));
        let audience = about
            .audience
            .as_ref()
            .map_or(Ok(true), |users| Ok::<_, Error>(**users == *db.joined_local_users(room)?));
        for (event_type, of_type) in &about.state {
            for (state_key, event) in of_type {
                if *event != db.state_event_key(room, event_type, state_key)? {
                    return Ok(Some(format!("the current {event_type} of {state_key:?}")));
                }
            }
        }
        for (user, name) in &about.display_names {
            if *name != db.display_name_in(room, user)? {
                return Ok(Some(format!("the name of {user}")));
            }
        }
        let followers = match self.thread_followers() {
            Some(followers) => *followers == *db.stored_thread_followers()?,
            None => true,
        };
        let others = about
            .other_servers
            .as_ref()
            .map_or(Ok(true), |others| Ok::<_, Error>(*others == db.other_servers(room)?));
        let parts = [
            ("its row", row?),
            ("its forward extremities", extremities?),
            ("its local users", audience?),
            ("the other servers that were ever in it", others?),
            ("who follows threads", followers),
            ("some event", self.events.is_true(db)?),
        ];
        Ok(parts.into_iter().find(|(_, is_true)| !is_true).map(|(what, _)| what.to_owned()))
    }

    /// What was read may never have been: row ids of an undone transaction are given out again.
    pub(super) fn forget_all(&self) {
        self.keys.borrow_mut().clear();
        self.rooms.borrow_mut().clear();
        self.entries.set(0);
        self.is_anything_pending.set(None);
        self.is_anything_delayed.set(None);
        self.checkers.borrow_mut().clear();
        self.settings.borrow_mut().clear();
        self.forget_thread_followers();
        self.events.forget_all();
    }
}
