//! Rooms as who runs the server looks at them, in the form of Synapse's admin API: all of them, and one with its members
//! and its state; blocked ones; and what is done to members in the name of others.

use std::cmp::Ordering;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::order;
use crate::protocol::content::{federates, nonempty};
use crate::protocol::event_auth::PowerLevel;
use crate::protocol::pdu::Membership;
use crate::protocol::search_text::fold;
use crate::protocol::{EventId, RoomId, UserId};
use crate::service::accounts::moderation::{Administrator, check_still_admin};
use crate::service::admin::{Admin, next_place, number};
use crate::service::events::draft::Draft;
use crate::service::events::power_levels::{mightiest_local_member, power_levels};
use crate::service::membership::JoinTarget;
use crate::service::rooms::client_format::{Json, for_operator};
use crate::store::{Db, Room};

/// A page has no more rooms than this, however many are asked for.
const PAGE_MAX: usize = 1000;
/// The level that somebody gets who is made a room's administrator by one who stands above all levels.
const ADMIN_LEVEL: i64 = 100;

/// By what rooms are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomOrder {
    /// `name`, and `alphabetical` of older clients.
    Name,
    /// `canonical_alias`
    CanonicalAlias,
    /// `joined_members`, and `size` of older clients; the largest first.
    JoinedMembers,
    /// `joined_local_members`; the largest first.
    JoinedLocalMembers,
    /// `version`; the highest first.
    Version,
    /// `creator`
    Creator,
    /// `encryption`
    Encryption,
    /// `federatable`
    Federatable,
    /// `public`
    Public,
    /// `join_rules`
    JoinRules,
    /// `guest_access`
    GuestAccess,
    /// `history_visibility`
    HistoryVisibility,
    /// `state_events`; the most first.
    StateEvents,
}

impl RoomOrder {
    /// The order of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "name" | "alphabetical" => Self::Name,
            "canonical_alias" => Self::CanonicalAlias,
            "joined_members" | "size" => Self::JoinedMembers,
            "joined_local_members" => Self::JoinedLocalMembers,
            "version" => Self::Version,
            "creator" => Self::Creator,
            "encryption" => Self::Encryption,
            "federatable" => Self::Federatable,
            "public" => Self::Public,
            "join_rules" => Self::JoinRules,
            "guest_access" => Self::GuestAccess,
            "history_visibility" => Self::HistoryVisibility,
            "state_events" => Self::StateEvents,
            _ => return None,
        })
    }

    /// Whether what is greatest comes first.
    fn descends(self) -> bool {
        matches!(self, Self::JoinedMembers | Self::JoinedLocalMembers | Self::Version | Self::StateEvents)
    }
}

/// Which rooms are listed, and how.
#[derive(Debug)]
pub struct RoomsPage {
    /// How many of them are passed over.
    pub from: usize,
    /// How many are told at most.
    pub limit: usize,
    /// By what they are sorted.
    pub order: RoomOrder,
    /// The other way round.
    pub backwards: bool,
    /// Part of a name or of a canonical alias, or a whole room id.
    pub search: Option<String>,
    /// Only those that are in the directory, or only the others.
    pub public: Option<bool>,
    /// Only those that nobody is joined to, or only the others.
    pub empty: Option<bool>,
}

/// A room as it is listed.
#[derive(Debug, Serialize)]
pub struct ListedRoom {
    room_id: RoomId,
    name: Option<String>,
    canonical_alias: Option<String>,
    joined_members: u64,
    joined_local_members: u64,
    version: &'static str,
    creator: Option<String>,
    encryption: Option<String>,
    federatable: bool,
    public: bool,
    join_rules: Option<String>,
    guest_access: Option<String>,
    history_visibility: Option<String>,
    state_events: u64,
    room_type: Option<String>,
    /// Synapse does not tell.
    blocked: bool,
}

/// What a room is sorted by: a text or a number, none first.
type SortKey = (Option<String>, u64);

/// A text in the content of an event of the room's state.
pub(super) fn text_of(db: &Db<'_>, room: &Room, event_type: &str, field: &str) -> Result<Option<String>> {
    let event = db.state_event(room.key, event_type, "")?;
    Ok(event.and_then(|event| event.content_str(field)))
}

fn listed(db: &Db<'_>, room: &Room) -> Result<ListedRoom> {
    let create = db.state_event(room.key, "m.room.create", "")?;
    let content = create.as_ref().map(|create| create.content()).unwrap_or_default();
    Ok(ListedRoom {
        room_id: room.room_id.clone(),
        name: text_of(db, room, "m.room.name", "name")?,
        canonical_alias: text_of(db, room, "m.room.canonical_alias", "alias")?,
        joined_members: room.joined,
        joined_local_members: db.count_joined_local_users(room.key)?,
        version: room.version.id,
        creator: create.map(|create| create.sender().as_str().to_owned()),
        encryption: text_of(db, room, "m.room.encryption", "algorithm")?,
        federatable: federates(&content),
        public: db.is_published(&room.room_id)?,
        join_rules: text_of(db, room, "m.room.join_rules", "join_rule")?,
        guest_access: text_of(db, room, "m.room.guest_access", "guest_access")?,
        history_visibility: text_of(db, room, "m.room.history_visibility", "history_visibility")?,
        state_events: db.count_state_events(room.key)?,
        room_type: nonempty(&content, "type").map(str::to_owned),
        blocked: db.blocked_by(&room.room_id)?.is_some(),
    })
}

/// Only what the order asks for is looked up: of all rooms, not only of those on the page.
fn sort_key(db: &Db<'_>, room: &Room, order: RoomOrder) -> Result<SortKey> {
    let text = |event_type, field| Ok::<_, Error>((text_of(db, room, event_type, field)?, 0));
    match order {
        RoomOrder::Name => text("m.room.name", "name"),
        RoomOrder::CanonicalAlias => text("m.room.canonical_alias", "alias"),
        RoomOrder::Encryption => text("m.room.encryption", "algorithm"),
        RoomOrder::JoinRules => text("m.room.join_rules", "join_rule"),
        RoomOrder::GuestAccess => text("m.room.guest_access", "guest_access"),
        RoomOrder::HistoryVisibility => text("m.room.history_visibility", "history_visibility"),
        RoomOrder::Version => Ok((Some(room.version.id.to_owned()), 0)),
        RoomOrder::JoinedMembers => Ok((None, room.joined)),
        RoomOrder::JoinedLocalMembers => Ok((None, db.count_joined_local_users(room.key)?)),
        RoomOrder::StateEvents => Ok((None, db.count_state_events(room.key)?)),
        RoomOrder::Public => Ok((None, u64::from(db.is_published(&room.room_id)?))),
        RoomOrder::Creator | RoomOrder::Federatable => {
            let create = db.state_event(room.key, "m.room.create", "")?;
            let Some(create) = create else { return Ok((None, 0)) };
            match order {
                RoomOrder::Creator => Ok((Some(create.sender().as_str().to_owned()), 0)),
                _ => Ok((None, u64::from(federates(&create.content())))),
            }
        }
    }
}

impl RoomsPage {
    fn wants(&self, db: &Db<'_>, room: &Room) -> Result<bool> {
        if self.empty.is_some_and(|empty| empty != (room.joined == 0)) {
            return Ok(false);
        }
        if let Some(public) = self.public
            && public != db.is_published(&room.room_id)?
        {
            return Ok(false);
        }
        let Some(term) = &self.search else { return Ok(true) };
        let folded = fold(term);
        let name = text_of(db, room, "m.room.name", "name")?;
        let alias = text_of(db, room, "m.room.canonical_alias", "alias")?;
        // Of an alias only the part that is its own: everybody's has a server name.
        let local =
            alias.as_deref().and_then(|alias| alias.strip_prefix('#')?.split_once(':')).map(|part| part.0);
        Ok(room.room_id.as_str() == term
            || [name.as_deref(), local].into_iter().flatten().any(|text| fold(text).contains(&folded)))
    }
}

impl Admin<'_> {
    /// `GET /_synapse/admin/v1/rooms`: the rooms that this server knows, with `offset`, `total_rooms`, `next_batch` and
    /// `prev_batch`. A page has a thousand at most.
    pub fn list_rooms(&self, page: &RoomsPage) -> Result<Value> {
        let limit = page.limit.min(PAGE_MAX);
        let (rooms, total) = self.store.read(|db| {
            let mut sorted = Vec::new();
            for room in db.rooms_with_a_state()? {
                if page.wants(db, &room)? {
                    sorted.push((sort_key(db, &room, page.order)?, room));
                }
            }
            let ascending = page.order.descends() == page.backwards;
            order::sort_by(&mut sorted, |(a, one), (b, other)| -> Ordering {
                let order = a.cmp(b).then_with(|| one.room_id.as_str().cmp(other.room_id.as_str()));
                if ascending { order } else { order.reverse() }
            });
            let total = sorted.len();
            let shown = sorted.iter().skip(page.from).take(limit);
            Ok((shown.map(|(_, room)| listed(db, room)).collect::<Result<Vec<_>>>()?, total))
        })?;
        let next = next_place(number(page.from), rooms.len(), number(total));
        let mut answer = json!({ "offset": page.from, "rooms": rooms, "total_rooms": total });
        if let Some(next) = next {
            answer["next_batch"] = next.into();
        }
        if page.from > 0 && limit > 0 {
            answer["prev_batch"] = page.from.saturating_sub(limit).into();
        }
        Ok(answer)
    }

    /// `GET /_synapse/admin/v1/rooms/{roomId}`. Errors: 404 `M_NOT_FOUND`.
    pub fn room_details(&self, room_id: &RoomId) -> Result<Value> {
        self.store.read(|db| {
            let room = room_with_state(db, room_id)?;
            let mut told = serde_json::to_value(listed(db, &room)?).map_err(Error::internal)?;
            let tombstone = db.state_event(room.key, "m.room.tombstone", "")?;
            told["avatar"] = text_of(db, &room, "m.room.avatar", "url")?.into();
            told["topic"] = text_of(db, &room, "m.room.topic", "topic")?.into();
            told["joined_local_devices"] = db.count_devices_of_members(room.key)?.into();
            told["forgotten"] = db.is_forgotten_by_all(room.key)?.into();
            told["tombstoned"] = tombstone.is_some().into();
            told["replacement_room"] =
                tombstone.and_then(|tombstone| tombstone.content_str("replacement_room")).into();
            Ok(told)
        })
    }

    /// `GET /_synapse/admin/v1/rooms/{roomId}/members`: who is joined. Errors: 404 `M_NOT_FOUND`.
    pub fn room_members(&self, room_id: &RoomId) -> Result<Value> {
        let members = self.store.read(|db| {
            let room = room_with_state(db, room_id)?;
            db.members(room.key, Some(Membership::Join))
        })?;
        let members: Vec<UserId> = members.into_iter().map(|member| member.user_id).collect();
        Ok(json!({ "members": members, "total": members.len() }))
    }

    /// `GET /_synapse/admin/v1/rooms/{roomId}/state`: the current state, or of it the events of one type, as clients get
    /// them. Errors: 404 `M_NOT_FOUND`.
    pub fn room_state(&self, room_id: &RoomId, event_type: Option<&str>) -> Result<Vec<Json>> {
        let now = self.clock.now_ms();
        self.store.read(|db| {
            let room = room_with_state(db, room_id)?;
            let keys = match event_type {
                Some(event_type) => {
                    db.state_of_type(room.key, event_type)?.into_iter().map(|(_, key)| key).collect()
                }
                None => db.current_state_rows(room.key)?.into_values().collect::<Vec<_>>(),
            };
            keys.into_iter().map(|key| for_operator(db, key, now)).collect()
        })
    }

    /// `GET /_synapse/admin/v1/rooms/{roomIdOrAlias}/forward_extremities`: the events on which the next one will rest. The state
    /// after one is its `state_group`; when it came is not kept. Errors: 404 `M_NOT_FOUND`.
    pub fn forward_extremities(&self, room_id: &RoomId) -> Result<Vec<Value>> {
        self.store.read(|db| {
            let room = room_with_state(db, room_id)?;
            let ends = db.extremity_keys(room.key)?.into_iter().map(|key| {
                let event = db.event_by_key(key)?;
                Ok(json!({
                    "event_id": event.pdu.event_id(),
                    "state_group": event.state_after,
                    "depth": event.pdu.depth(),
                    "received_ts": null,
                }))
            });
            ends.collect()
        })
    }

    /// Any event of any room. Errors: 404 `M_NOT_FOUND`.
    pub fn event(&self, id: &EventId) -> Result<Json> {
        let now = self.clock.now_ms();
        self.store.read(|db| match db.event(id)? {
            Some(event) => for_operator(db, event.key, now),
            None => Err(Error::not_found("Event not found")),
        })
    }

    /// The rooms that a user is joined to, as far as this server is in them.
    pub fn rooms_joined_by(&self, user: &UserId) -> Result<Value> {
        let rooms = self.store.read(|db| db.rooms_joined_by(user))?;
        Ok(json!({ "joined_rooms": rooms, "total": rooms.len() }))
    }

    /// Who has blocked a room, as Synapse tells it.
    pub fn room_block(&self, room_id: &RoomId) -> Result<Value> {
        Ok(match self.store.read(|db| db.blocked_by(room_id))? {
            Some(by) => json!({ "block": true, "user_id": by }),
            None => json!({ "block": false }),
        })
    }

    /// Blocks a room, or does so no more: while it is, nobody of this server joins it or knocks upon it, nor is anybody
    /// invited there. Who is in it stays in it.
    pub fn set_room_block(&self, room_id: &RoomId, block: bool, by: &Administrator) -> Result<()> {
        let (room, name, now) = (room_id.clone(), by.name().to_owned(), self.clock.now_ms());
        self.write_as(by, move |tx| match block {
            true => tx.block_room(&room, &name, now),
            false => tx.unblock_room(&room),
        })?;
        log::info!("{by} has {} {room_id}", if block { "blocked" } else { "unblocked" });
        Ok(())
    }

    /// The blocked rooms behind one of them, a thousand at most.
    pub fn blocked_rooms(&self, behind: &str) -> Result<Value> {
        let rooms = self.store.read(|db| db.blocked_rooms(behind, PAGE_MAX))?;
        let next = (rooms.len() == PAGE_MAX).then(|| rooms.last().map(|(id, ..)| id.clone())).flatten();
        let told: Vec<Value> = rooms
            .iter()
            .map(|(id, by, when)| json!({ "room_id": id, "user_id": by, "blocked_ts": when }))
            .collect();
        Ok(json!({ "rooms": told, "next_batch": next }))
    }

    /// `POST /_synapse/admin/v1/join/{roomIdOrAlias}`: joins a local user to a room. If that is not open to everybody, they
    /// are invited first, by the administrator who asks or by a local member who may. Errors: 400 `M_INVALID_PARAM` for
    /// another server's user, 403 `M_FORBIDDEN` for who is no administrator any more, 404 `M_NOT_FOUND` for a user that there is
    /// not, and those of a join.
    pub fn join_user(&self, by: &Administrator, user: &UserId, target: &JoinTarget) -> Result<()> {
        if !self.is_local(user) {
            return Err(Error::invalid_param("This endpoint can only be used with local users"));
        }
        let inviter = self.store.read(|db| {
            // To find the room by its alias may have taken another server's time.
            check_still_admin(db, by)?;
            if !db.is_active_user(user)? {
                return Err(Error::not_found("User not found"));
            }
            let Some(room) = db.resident_room(&target.room_id)? else { return Ok(None) };
            let open = text_of(db, &room, "m.room.join_rules", "join_rule")?.as_deref() == Some("public");
            let present = db.membership(room.key, user)?;
            if open || matches!(present, Some(Membership::Join | Membership::Invite)) {
                return Ok(None);
            }
            let levels = power_levels(db, &room)?;
            let asker = by.user_id().filter(|asker| levels.may_invite(asker.as_str()));
            if let Some(asker) = asker
                && db.membership(room.key, asker)? == Some(Membership::Join)
            {
                return Ok(Some(asker.clone()));
            }
            mightiest_local_member(db, &room, |levels, member| Ok(levels.may_invite(member.as_str())))
        })?;
        if let Some(inviter) = inviter {
            self.membership().invite(&inviter, &target.room_id, user, None, Map::new())?;
        }
        self.membership().join(user, target, None)?;
        log::info!("{by} has joined {user} to {}", target.room_id);
        Ok(())
    }

    /// `POST …/make_room_admin`: gives somebody the power of the local member who has most, in that one's name, and
    /// invites them unless they are in the room or may join it. Errors: 400 `M_UNKNOWN` if no local member has the power, 403
    /// `M_FORBIDDEN` for who is no administrator any more.
    pub fn make_room_admin(&self, by: &Administrator, room_id: &RoomId, user: &UserId) -> Result<()> {
        let nobody = |why: &'static str| Error::new(ErrCode::Unknown, why).with_status(400);
        let (admin, content, invite) = self.store.read(|db| {
            check_still_admin(db, by)?;
            let room = db.resident_room(room_id)?.ok_or_else(|| nobody("Server not in room"))?;
            let levels = power_levels(db, &room)?;
            let may = |level: PowerLevel| level.reaches(levels.required("m.room.power_levels", true));
            let admin =
                mightiest_local_member(db, &room, |levels, member| Ok(may(levels.user(member.as_str()))))?;
            let admin = admin.ok_or_else(|| nobody("No local admin user in room"))?;
            let event = db.state_event(room.key, "m.room.power_levels", "")?;
            let mut content = event.map(|event| event.content()).unwrap_or_default();
            let level = match levels.user(admin.as_str()) {
                PowerLevel::Finite(level) => level,
                PowerLevel::Infinite => ADMIN_LEVEL,
            };
            // Who stands above all levels, or has this one, needs none.
            let has = levels.user(user.as_str()).reaches(level);
            let users = content.entry("users").or_insert_with(|| json!({}));
            users[user.as_str()] = level.into();
            let open = text_of(db, &room, "m.room.join_rules", "join_rule")?.as_deref() == Some("public");
            let present = db.membership(room.key, user)?;
            let invite = !open && !matches!(present, Some(Membership::Join | Membership::Invite));
            Ok((admin, (!has).then_some(content), invite))
        })?;
        if let Some(content) = content {
            let draft = Draft {
                room: room_id.clone(),
                sender: admin.clone(),
                event_type: "m.room.power_levels".to_owned(),
                state_key: Some(String::new()),
                content,
                redacts: None,
                origin_server_ts: None,
            };
            let by = by.clone();
            self.events().send_with(draft, move |tx, _| check_still_admin(tx, &by))?;
        }
        log::info!("{by} has made {user} an administrator of {room_id}, in the name of {admin}");
        match invite {
            true => self.membership().invite(&admin, room_id, user, None, Map::new()),
            false => Ok(()),
        }
    }
}

fn room_with_state(db: &Db<'_>, room_id: &RoomId) -> Result<Room> {
    let room = db.room(room_id)?.filter(|room| room.state.is_some());
    room.ok_or_else(|| Error::not_found("Room not found"))
}
