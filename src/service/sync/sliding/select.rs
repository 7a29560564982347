//! Which rooms an answer has to look at, and in which lists they are.
//!
//! As long as the same is asked, these are the rooms in which something happened since the last answer. Only where the
//! request or the lists themselves have changed, everything that the lists show is gone through.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::MutexGuard;

use super::connection::Connection;
use super::request::{RoomConfig, SlidingRequest};
use super::room_list::{ListedRoom, RoomList, Window, look_at};
use crate::error::Result;
use crate::order::{self, Gather};
use crate::protocol::RoomId;
use crate::service::sync::SyncContext;
use crate::store::RoomKey;

/// A room to be looked at.
pub struct Selected {
    /// Its id.
    pub room_id: RoomId,
    /// How it stands in the user's lists; none if it does not (any more).
    pub room: Option<ListedRoom>,
    /// Whether it is a direct room.
    pub is_dm: bool,
    /// The lists that show it, by their numbers in the request.
    pub lists: Vec<usize>,
    /// Whether it is subscribed to.
    pub subscribed: bool,
}

/// The rooms to be looked at.
pub struct Selection {
    /// How many rooms each list has, in the order of the request.
    pub counts: Vec<usize>,
    /// The rooms, those with the latest activity first.
    pub rooms: Vec<Selected>,
    /// When other things than events changed in the rooms, if these are many.
    pub changes: Option<RoomChanges>,
}

/// The last changes in a user's rooms, for those that have any.
pub struct RoomChanges {
    /// Of what is fleeting.
    pub ephemeral: HashMap<RoomId, i64>,
    /// Of the user's account data.
    pub account_data: HashMap<RoomId, i64>,
    /// Of what the user has read.
    pub reads: HashMap<RoomKey, i64>,
}

/// More rooms than these are not looked up one by one: what is known of all of the user's is read at once.
const ONE_BY_ONE_MAX: usize = 150;

/// The rooms that an answer has to look at. `list`: the user's, which nobody else has now; none if none are asked for.
pub fn select(
    context: &SyncContext<'_>,
    list: Option<MutexGuard<'_, Option<RoomList>>>,
    request: &SlidingRequest,
    connection: &Connection,
) -> Result<Selection> {
    let since = connection.since;
    let Some(list) = list else {
        return Ok(Selection { counts: Vec::new(), rooms: Vec::new(), changes: None });
    };
    look_at(list, context, |list| {
        let mut windows = Vec::with_capacity(request.lists.len());
        for wanted in request.lists.values() {
            windows.push(list.window(context, &wanted.filters, wanted.ranges.as_deref())?);
        }
        let only_news =
            connection.is_same_shape() && !windows.iter().any(|window| list.may_show_others(window, since));
        let mut rooms: BTreeSet<RoomId> = request.subscriptions.keys().cloned().gather();
        rooms.extend(connection.owed().filter_map(|room_id| RoomId::parse(room_id).ok()));
        if since > 0 {
            rooms.extend(list.moved_since(since).cloned());
            rooms_with_other_news(context, request, list, since, &mut rooms)?;
        }
        let mut changes = None;
        if !only_news {
            for window in &windows {
                rooms.extend(list.rooms_of(window));
            }
        }
        if rooms.len() > ONE_BY_ONE_MAX {
            changes = Some(RoomChanges {
                ephemeral: context.db.ephemeral_changes_of_rooms(context.user)?.into_iter().collect(),
                account_data: context.db.account_data_changes_of_rooms(context.user)?.into_iter().collect(),
                reads: context.db.last_reads(context.user)?.into_iter().collect(),
            });
        }
        let mut selected: Vec<Selected> =
            rooms.into_iter().filter_map(|room_id| placed(list, &windows, request, room_id)).collect();
        order::sort_by_key(&mut selected, |selected| {
            std::cmp::Reverse(selected.room.as_ref().map_or(i64::MAX, |r| r.activity))
        });
        Ok(Selection {
            counts: windows.iter().map(|window| window.count).collect(),
            rooms: selected,
            changes,
        })
    })
}

/// Rooms in which something else than an event is new, and rooms that the user left.
fn rooms_with_other_news(
    context: &SyncContext<'_>,
    request: &SlidingRequest,
    list: &RoomList,
    since: i64,
    rooms: &mut BTreeSet<RoomId>,
) -> Result<()> {
    rooms.extend(context.db.rooms_of_since(context.user, since)?.into_iter().map(|of_user| of_user.room_id));
    rooms.extend(context.db.rooms_lost_since(context.user, since)?.into_iter().map(|(room_id, _)| room_id));
    let remote = context.db.remote_memberships_of(context.user, since, true)?;
    rooms.extend(remote.into_iter().map(|row| row.room_id.clone()));
    let read = context.db.rooms_read_since(context.user, since)?;
    rooms.extend(read.iter().filter_map(|key| list.room_id(*key)).cloned());
    if request.extensions.receipts.is_some() || request.extensions.typing.is_some() {
        let keys = context.db.joined_rooms_with_ephemeral(context.user, since)?;
        rooms.extend(keys.iter().filter_map(|key| list.room_id(*key)).cloned());
    }
    if request.extensions.account_data.is_some() {
        let data = context.db.account_data_since(context.user, since, context.position)?;
        rooms.extend(data.into_iter().filter_map(|entry| entry.room_id));
    }
    Ok(())
}

/// A room with the lists that show it; none if nothing that the client asked for does.
fn placed(
    list: &RoomList,
    windows: &[Window],
    request: &SlidingRequest,
    room_id: RoomId,
) -> Option<Selected> {
    let room = list.room(&room_id).cloned();
    let shows = |(number, window): (usize, &Window)| list.shows(window, &room_id).then_some(number);
    let lists: Vec<usize> = windows.iter().enumerate().filter_map(shows).collect();
    let subscribed = request.subscriptions.contains_key(&room_id);
    // Of a room that is in no list any more the client is told that, if it knows of the room.
    let wanted = room.is_none() || subscribed || !lists.is_empty();
    let is_dm = list.is_dm(&room_id);
    wanted.then_some(Selected { room_id, room, is_dm, lists, subscribed })
}

/// What is wanted of rooms, by the lists that show them: few different ones for many rooms.
pub struct Configs<'r> {
    request: &'r SlidingRequest,
    of_lists: BTreeMap<Vec<usize>, (RoomConfig, u64)>,
}

impl<'r> Configs<'r> {
    /// Of the lists of a request.
    pub fn new(request: &'r SlidingRequest) -> Self {
        Self { request, of_lists: BTreeMap::new() }
    }

    /// What is wanted of a room, and the digest of which state that is.
    pub fn of(&mut self, selected: &Selected) -> (RoomConfig, u64) {
        let request = self.request;
        let (config, digest) = self.of_lists.entry(selected.lists.clone()).or_insert_with(|| {
            let mut config = RoomConfig::default();
            let lists = request.lists.values().enumerate();
            for (_, list) in lists.filter(|(number, _)| selected.lists.contains(number)) {
                config.or(&list.config);
            }
            let digest = config.required_state.digest();
            (config, digest)
        });
        match self.request.subscriptions.get(&selected.room_id) {
            None => (config.clone(), *digest),
            Some(subscription) => {
                let mut config = config.clone();
                config.or(subscription);
                let digest = config.required_state.digest();
                (config, digest)
            }
        }
    }
}
