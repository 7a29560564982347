//! A room is deleted: its local users leave (and may be brought to another room), its servers are told, and then
//! everything there is of it goes. What is asked for is a row, and how far it is too, so that whatever happens in between it
//! goes on where it was (`store/rooms/deletions.rs`, `store/rooms/purge.rs`). Nobody comes into the room meanwhile.
//!
//! Files that were shared in it stay, as with Synapse: whoever uploaded one may show it in other rooms too, and in encrypted ones
//! nobody here could see that.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::json::object_of;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::RemoteState;
use crate::protocol::{Pdu, RoomId, RoomVersion, UserId, json};
use crate::random;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::Admin;
use crate::service::events::draft::Draft;
use crate::service::membership::JoinTarget;
use crate::service::rooms::create::CreateRoom;
use crate::store::rooms::OtherServers;
use crate::store::rooms::deletions::{DeletionStage, RoomDeletion};
use crate::store::rooms::purge::PurgedEvent;
use crate::store::{Db, EventKey, Room};

/// Who deletes a room while it answers the request keeps the timer from it for so long.
const LEASE_MS: Millis = 30 * 60 * 1000;
/// When a deletion goes on that failed for a reason of ours.
const RETRY_MS: Millis = 60_000;
/// For how long the room's servers are given to hear that we have left, before that cannot be told any more.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
/// Users who leave between two notes of how far it is.
const USERS_AT_ONCE_MAX: usize = 25;
/// Rows that one commit takes away, and events, each of which has a handful.
const ROWS_AT_ONCE_MAX: usize = 500;
const EVENTS_AT_ONCE_MAX: usize = 50;
/// Rows of events of whatever room that are looked at in one go for those of this one.
const EVENTS_LOOKED_AT_MAX: EventKey = 10_000;
/// The name of the new room, and what is said in it, as the JSON that they are sent as. What else an event consists of has room
/// beside it, so that nobody has left before this is refused.
const WORDS_BYTES_MAX: usize = 60_000;
/// What is said where nothing else is, as by Synapse.
const ROOM_NAME: &str = "Content Violation Notification";
const MESSAGE: &str =
    "Sharing illegal content on this server is not permitted and rooms in violation will be blocked.";

/// What is to become of a room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionOrder {
    /// Who makes a room for the users to go to; none: they go nowhere.
    pub new_room_user_id: Option<UserId>,
    /// What that room is called.
    pub room_name: Option<String>,
    /// What is said in it.
    pub message: Option<String>,
    /// Whether nobody may come into the room any more.
    pub block: bool,
    /// Whether everything that there is of it goes, or it is only left.
    pub purge: bool,
    /// Also if some of our users cannot be made to leave.
    pub force_purge: bool,
}

/// What has become of the users and aliases of a room that is deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownResult {
    /// Who has left.
    pub kicked_users: Vec<UserId>,
    /// Who could not.
    pub failed_to_kick_users: Vec<UserId>,
    /// The aliases that lead to the new room now.
    pub local_aliases: Vec<String>,
    /// The new room.
    pub new_room_id: Option<RoomId>,
}

/// A deletion that is under way.
struct Deletion {
    row: RoomDeletion,
    order: DeletionOrder,
    result: ShutdownResult,
}

impl Deletion {
    fn of(row: RoomDeletion) -> Result<Self> {
        let order = json::read_object(row.order.as_bytes()).map_err(Error::internal)?;
        let result = json::read_object(row.result.as_bytes()).map_err(Error::internal)?;
        Ok(Self { row, order, result })
    }

    /// The row as it is now.
    fn row_now(&self) -> Result<RoomDeletion> {
        let result = serde_json::to_string(&self.result).map_err(Error::internal)?;
        Ok(RoomDeletion { result, ..self.row.clone() })
    }
}

impl Admin<'_> {
    /// Begins to delete a room, on behalf of an administrator: the id to ask by what becomes of
    /// it. Errors: 404 `M_NOT_FOUND` for a room that is not known here, unless it is to be blocked; 400 `M_UNKNOWN` if it is
    /// being deleted already, or the new room's user is not one of ours; 400 `M_INVALID_PARAM` if what is to be said there is more
    /// than an event holds.
    pub fn begin_room_deletion(
        &self,
        room_id: &RoomId,
        order: DeletionOrder,
        by: &Administrator,
    ) -> Result<String> {
        self.add_room_deletion(room_id, &order, by, false)
    }

    /// Deletes a room. Errors: as of [`Admin::begin_room_deletion`]; 400 `M_UNKNOWN` if not all of our users could leave.
    /// Where nothing runs in the background to tell other servers of it, the room's rows go after the next start.
    pub fn delete_room(
        &self,
        room_id: &RoomId,
        order: DeletionOrder,
        by: &Administrator,
    ) -> Result<ShutdownResult> {
        let delete_id = self.add_room_deletion(room_id, &order, by, true)?;
        self.pursue_room_deletion(&delete_id)?;
        let deletion = self.room_deletion(&delete_id)?;
        match deletion.row.stage {
            DeletionStage::Failed => Err(unknown(deletion.row.error.unwrap_or_default())),
            _ => Ok(deletion.result),
        }
    }

    fn add_room_deletion(
        &self,
        room_id: &RoomId,
        order: &DeletionOrder,
        by: &Administrator,
        leased: bool,
    ) -> Result<String> {
        let now = self.clock.now_ms();
        if let Some(user) = &order.new_room_user_id
            && !(self.is_local(user) && self.store.read(|db| db.is_active_user(user))?)
        {
            return Err(unknown(format!("User must be our own: {user}")));
        }
        for (what, words) in [("message", &order.message), ("room_name", &order.room_name)] {
            if serde_json::to_string(words).map_err(Error::internal)?.len() > WORDS_BYTES_MAX {
                return Err(Error::invalid_param(format!("The {what} is longer than an event can be")));
            }
        }
        let row = RoomDeletion {
            delete_id: random::letters(16),
            room_id: room_id.clone(),
            order: serde_json::to_string(order).map_err(Error::internal)?,
            result: serde_json::to_string(&ShutdownResult::default()).map_err(Error::internal)?,
            stage: DeletionStage::Leaving,
            error: None,
            entered_anew: false,
        };
        let (delete_id, block, name) = (row.delete_id.clone(), order.block, by.name().to_owned());
        self.write_as(by, move |tx| {
            let is_known =
                tx.room(&row.room_id)?.is_some() || !tx.remote_memberships_in(&row.room_id)?.is_empty();
            if !is_known && !block {
                return Err(Error::not_found("Room not found"));
            }
            if block {
                tx.block_room(&row.room_id, &name, now)?;
            }
            let due = if leased { now + LEASE_MS } else { now };
            match tx.add_room_deletion(&row, due, now)? {
                true => Ok(()),
                false => Err(unknown(format!("Purge already in progress for {}", row.room_id))),
            }
        })?;
        let too = if block { ", and blocks it" } else { "" };
        log::info!("{by} deletes {room_id}{too}");
        Ok(delete_id)
    }

    fn room_deletion(&self, delete_id: &str) -> Result<Deletion> {
        let row = self.store.read(|db| db.room_deletion(delete_id))?;
        Deletion::of(row.ok_or_else(|| Error::not_found(format!("delete id '{delete_id}' not found")))?)
    }

    /// What became of a deletion, as Synapse tells it. Errors: 404 `M_NOT_FOUND`.
    pub fn room_deletion_status(&self, delete_id: &str) -> Result<Value> {
        Ok(status_of(&self.room_deletion(delete_id)?))
    }

    /// The same of all deletions of a room. Errors: 404 `M_NOT_FOUND` if there is none.
    pub fn room_deletion_statuses(&self, room_id: &RoomId) -> Result<Vec<Value>> {
        let rows = self.store.read(|db| db.room_deletions_of(room_id))?;
        if rows.is_empty() {
            return Err(Error::not_found(format!("No delete task for room_id '{room_id}' found")));
        }
        rows.into_iter().map(|row| Ok(status_of(&Deletion::of(row)?))).collect()
    }

    /// Goes on with a deletion to its end, or until the stop. What fails for a reason of ours is tried again later.
    pub(in crate::service) fn pursue_room_deletion(&self, delete_id: &str) -> Result<()> {
        let mut deletion = self.room_deletion(delete_id)?;
        let done = self.go_on(&mut deletion);
        if let Err(error) = &done {
            if error.is_own_failure() {
                let (delete_id, later) = (delete_id.to_owned(), self.clock.now_ms() + RETRY_MS);
                self.store.write(move |tx| tx.put_off_room_deletion(&delete_id, later))?;
            } else {
                deletion.row.error = Some(error.message().to_owned());
                return self.move_on(&mut deletion, DeletionStage::Failed);
            }
        }
        done
    }

    fn go_on(&self, deletion: &mut Deletion) -> Result<()> {
        if deletion.row.stage == DeletionStage::Leaving {
            self.have_all_leave(deletion)?;
        }
        if deletion.row.stage == DeletionStage::Purging && self.purge_room(deletion)? {
            self.move_on(deletion, DeletionStage::Complete)?;
        }
        Ok(())
    }

    fn move_on(&self, deletion: &mut Deletion, stage: DeletionStage) -> Result<()> {
        deletion.row.stage = stage;
        let (row, now) = (deletion.row_now()?, self.clock.now_ms());
        self.store.write(move |tx| tx.save_room_deletion(&row, now))
    }

    /// Whether this server goes on running.
    fn check_running(&self) -> Result<()> {
        match self.scheduler.rest(Duration::ZERO) {
            true => Ok(()),
            false => Err(Error::internal("the server stops")),
        }
    }
}

/// 400 `M_UNKNOWN`, as Synapse refuses here.
fn unknown(why: String) -> Error {
    Error::new(ErrCode::Unknown, why).with_status(400)
}

fn status_of(deletion: &Deletion) -> Value {
    let status = match deletion.row.stage {
        DeletionStage::Leaving | DeletionStage::Purging => "active",
        DeletionStage::Complete => "complete",
        DeletionStage::Failed => "failed",
    };
    let mut told = json!({
        "delete_id": deletion.row.delete_id,
        "room_id": deletion.row.room_id,
        "status": status,
        "shutdown_room": deletion.result,
    });
    if let Some(error) = &deletion.row.error {
        told["error"] = error.as_str().into();
    }
    told
}

// ----- our users leave -----

impl Admin<'_> {
    fn have_all_leave(&self, deletion: &mut Deletion) -> Result<()> {
        if deletion.order.new_room_user_id.is_some() && deletion.result.new_room_id.is_none() {
            self.make_new_room(deletion)?;
        }
        // Who has answered an invite from outside stays in the state that was left behind.
        let mut done = HashSet::new();
        loop {
            self.check_running()?;
            let room_id = deletion.row.room_id.clone();
            let failed = deletion.result.failed_to_kick_users.clone();
            let mut users = self.store.read(|db| users_in(db, &room_id))?;
            users.retain(|(user, _)| !failed.contains(user) && !done.contains(user));
            users.truncate(USERS_AT_ONCE_MAX);
            done.extend(users.iter().map(|(user, _)| user.clone()));
            if users.is_empty() {
                break;
            }
            // Before they leave: who has left is found in no list any more.
            for (user, _) in &users {
                if !deletion.result.kicked_users.contains(user) {
                    deletion.result.kicked_users.push(user.clone());
                }
            }
            self.move_on(deletion, DeletionStage::Leaving)?;
            for (user, membership) in users {
                if let Err(error) = self.have_leave(deletion, &user, membership) {
                    log::log!(error.level(log::Level::Warn), "{user} cannot leave {room_id}: {error}");
                    deletion.result.kicked_users.retain(|kicked| *kicked != user);
                    deletion.result.failed_to_kick_users.push(user);
                }
            }
        }
        self.say_where_to(deletion)?;
        let stage = if deletion.order.purge { DeletionStage::Purging } else { DeletionStage::Complete };
        self.move_on(deletion, stage)
    }

    fn have_leave(&self, deletion: &Deletion, user: &UserId, membership: Membership) -> Result<()> {
        // In this order: who has come to the new room is still found here, if it ends in between.
        if let Some(new_room) = deletion.result.new_room_id.clone().filter(|_| membership == Membership::Join)
        {
            let target = JoinTarget { room_id: new_room, via: Vec::new() };
            self.membership().join(user, &target, None)?;
        }
        self.membership().leave(user, &deletion.row.room_id, None)?;
        if !deletion.order.purge {
            self.membership().forget(user, &deletion.row.room_id)?;
        }
        Ok(())
    }

    /// The room that users are brought to, in one transaction with the note of it.
    fn make_new_room(&self, deletion: &mut Deletion) -> Result<()> {
        let Some(creator) = deletion.order.new_room_user_id.clone() else { return Ok(()) };
        let name = deletion.order.room_name.as_deref().unwrap_or(ROOM_NAME);
        let request = json!({
            "preset": "public_chat",
            "name": name,
            "power_level_content_override": { "users_default": -10 },
        });
        let request: CreateRoom = json::read(request.to_string().as_bytes())?;
        let version = self.config.default_room_version;
        let profile = self.store.read(|db| db.profile(&creator))?;
        let events = request.plan(&creator, &profile, version, None)?;
        let (row, result, now) = (deletion.row.clone(), deletion.result.clone(), self.clock.now_ms());
        let new_room = self.rooms().create_room_with(version, &creator, &events, move |tx, room| {
            let result = ShutdownResult { new_room_id: Some(room.room_id.clone()), ..result };
            let result = serde_json::to_string(&result).map_err(Error::internal)?;
            tx.save_room_deletion(&RoomDeletion { result, ..row }, now)
        })?;
        deletion.result.new_room_id = Some(new_room);
        Ok(())
    }

    /// In one transaction: what is said in the new room, and that the aliases lead there.
    fn say_where_to(&self, deletion: &mut Deletion) -> Result<()> {
        let (Some(creator), Some(new_room)) =
            (deletion.order.new_room_user_id.clone(), deletion.result.new_room_id.clone())
        else {
            return Ok(());
        };
        let old = deletion.row.room_id.clone();
        let body = deletion.order.message.as_deref().unwrap_or(MESSAGE);
        let content = object_of([("msgtype", "m.text".into()), ("body", body.into())]);
        let draft = Draft {
            room: new_room.clone(),
            sender: creator,
            event_type: "m.room.message".to_owned(),
            state_key: None,
            content,
            redacts: None,
            origin_server_ts: None,
        };
        deletion.result.local_aliases = self.store.read(|db| db.aliases_of(&old))?;
        let mut row = deletion.row_now()?;
        row.stage = if deletion.order.purge { DeletionStage::Purging } else { DeletionStage::Complete };
        let now = self.clock.now_ms();
        self.events().send_with(draft, move |tx, _| {
            tx.move_aliases(&old, &new_room)?;
            tx.save_room_deletion(&row, now)
        })?;
        Ok(())
    }
}

/// Local users who have something to do with the room: who are joined, invited or knocking.
fn users_in(db: &Db<'_>, room_id: &RoomId) -> Result<Vec<(UserId, Membership)>> {
    let mut users = Vec::new();
    if let Some(room) = db.room(room_id)? {
        users = db.local_users_in(room.key)?;
    }
    for row in db.remote_memberships_in(room_id)? {
        if !row.state.is_over() && row.state != RemoteState::Leaving {
            users.retain(|(user, _)| *user != row.user_id);
            users.push((row.user_id.clone(), Membership::Invite));
        }
    }
    Ok(users)
}

// ----- everything goes -----

impl Admin<'_> {
    /// Takes everything there is of the room. False: not now, but after the next start. Errors: 400 `M_UNKNOWN` if some of our
    /// users are in it, unless it is to go all the same.
    fn purge_room(&self, deletion: &Deletion) -> Result<bool> {
        let room_id = &deletion.row.room_id;
        let Some(room) = self.store.read(|db| db.room(room_id))? else { return Ok(true) };
        if room.resident && !deletion.order.force_purge {
            return Err(unknown("Users are still joined to this room".to_owned()));
        }
        let told = self.store.read(|db| db.other_servers(room.key))? == OtherServers::None
            || self.tell_of_leaves(&room)?;
        if !told {
            let (delete_id, now) = (deletion.row.delete_id.clone(), self.clock.now_ms());
            self.store.write(move |tx| tx.put_off_room_deletion(&delete_id, now))?;
            return Ok(false);
        }
        let (key, entered_anew) = (room.key, deletion.row.entered_anew);
        self.purge_users(&room, entered_anew)?;
        self.store.write(move |tx| tx.begin_purge(key))?;
        self.until_done(|| self.store.write(move |tx| tx.purge_rows(key, ROWS_AT_ONCE_MAX, entered_anew)))?;
        self.until_done(|| self.store.write(move |tx| tx.purge_spare_states(key, ROWS_AT_ONCE_MAX)))?;
        self.purge_events(&room)?;
        self.until_done(|| self.store.write(move |tx| tx.purge_lost_owed_events(ROWS_AT_ONCE_MAX)))?;
        // What came meanwhile of a room that we are not in.
        self.until_done(|| self.store.write(move |tx| tx.purge_rows(key, ROWS_AT_ONCE_MAX, entered_anew)))?;
        let room_id = room_id.clone();
        self.store.write(move |tx| tx.finish_purge(key, &room_id, entered_anew))?;
        self.scheduler.wake();
        Ok(true)
    }

    /// Gives the room's servers a moment to hear that our users have left. False: nobody is there to tell them.
    fn tell_of_leaves(&self, room: &Room) -> Result<bool> {
        if !self.scheduler.is_running() {
            return Ok(false);
        }
        let until = self.clock.instant() + TELL_TIMEOUT;
        let Some(upto) = self.store.read(|db| db.last_outgoing_event(room.key))? else { return Ok(true) };
        for server in self.store.read(|db| db.resident_servers(room.key))? {
            let left = until.saturating_duration_since(self.clock.instant());
            if server != *self.server_name() && !left.is_zero() {
                self.outgoing.wait_for_delivery(&server, upto, left);
            }
        }
        Ok(true)
    }

    fn purge_users(&self, room: &Room, entered_anew: bool) -> Result<()> {
        let (key, now) = (room.key, self.clock.now_ms());
        loop {
            let users = self.store.read(|db| db.local_users_of(key, USERS_AT_ONCE_MAX))?;
            if users.is_empty() {
                return Ok(());
            }
            for user in users {
                let room_id = room.room_id.clone();
                self.until_done(|| {
                    let (user, room_id) = (user.clone(), room_id.clone());
                    self.store.write(move |tx| {
                        tx.purge_user_of_room((key, &room_id, entered_anew), &user, ROWS_AT_ONCE_MAX, now)
                    })
                })?;
            }
        }
    }

    fn purge_events(&self, room: &Room) -> Result<()> {
        loop {
            let events = self.store.read(|db| db.events_to_purge(room.key, EVENTS_AT_ONCE_MAX))?;
            if events.is_empty() {
                break;
            }
            self.purge_these(events, room.version)?;
        }
        // Those without a place are in no index.
        let (mut from, last) = (0, self.store.read(|db| db.last_event_key())?);
        while from <= last {
            let to = from + EVENTS_LOOKED_AT_MAX;
            let events =
                self.store.read(|db| db.events_to_purge_between(room.key, (from, to), EVENTS_AT_ONCE_MAX))?;
            if events.is_empty() {
                self.check_running()?;
                from = to + 1;
            } else {
                self.purge_these(events, room.version)?;
            }
        }
        Ok(())
    }

    fn purge_these(&self, events: Vec<PurgedEvent>, version: RoomVersion) -> Result<()> {
        let events = Arc::new(events);
        self.until_done(|| {
            let events = events.clone();
            self.store.write(move |tx| tx.purge_state_entries(&events, ROWS_AT_ONCE_MAX))
        })?;
        let events = Arc::into_inner(events).unwrap_or_default();
        let mut purged = Vec::new();
        for event in events {
            let redacts = Pdu::parse(event.json.as_bytes(), version).ok().and_then(|pdu| pdu.redacts());
            purged.push((event, redacts.map(|id| id.as_str().to_owned())));
        }
        self.store.write(move |tx| tx.purge_events(&purged))
    }

    /// Does something again and again until nothing is left to do, or the server stops.
    fn until_done(&self, mut portion: impl FnMut() -> Result<bool>) -> Result<()> {
        while !portion()? {
            self.check_running()?;
        }
        Ok(())
    }
}
