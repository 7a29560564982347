//! Which services an event concerns: "Events will be sent to the AS if a local user matching one of the namespaces is the target of
//! the event, or is a joined member of the room where the event occurred", or the room or one of its aliases is in a namespace.
//!
//! It is asked in the order of the stream, soon after the events came, so that who was in the room is who was so then. Which of
//! the members concern a service is remembered of each room that was looked at lately, and brought up to date by the changes of
//! its state: an event by itself makes nobody a member, nor ends that, since resolution may come to something else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::appservice::Appservice;
use crate::protocol::json::read;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::RemoteMembership;
use crate::protocol::{Pdu, RoomAlias, UserId};
use crate::service::outgoing::presence::ToldPresence;
use crate::service::rooms::client_format::{self, ClientFormat};
use crate::service::sync::by_thread;
use crate::store::appservices::queue::{QueuedEvent, ServiceKey};
use crate::store::{Db, EventKey, Room, RoomKey};

/// Of so many rooms it is remembered who in them concerns a service.
const ROOMS_MAX: usize = 2000;
/// So many positions of the stream are looked at together.
const WINDOW: i64 = 500;
/// Of one room so many receipts that came at once are told, and so many users' presence.
const RECEIPTS_MAX: usize = 1000;
const PRESENCES_MAX: usize = 200;
/// In so many rooms of a user is looked whether a service sees their presence there.
const PRESENCE_ROOMS_MAX: usize = 100;

/// A service that is told what concerns it.
#[derive(Debug, Clone)]
pub struct ToldService {
    /// Its row.
    pub key: ServiceKey,
    /// It is told what comes behind this position.
    pub since: i64,
    /// Its registration.
    pub service: Arc<Appservice>,
}

/// Some of the services, by their place in the list of those that are told.
pub type Services = BTreeSet<usize>;

/// Who concerns services in a room.
struct RoomMembers {
    /// The position behind which the state was not looked at.
    as_of: i64,
    /// The joined ones that concern any, and which.
    members: HashMap<UserId, Services>,
}

/// Finds which services are concerned.
pub struct Interest {
    services: Arc<[ToldService]>,
    any_aliases: bool,
    /// Those that want to hear of what is fleeting.
    ephemeral: Services,
    rooms: HashMap<RoomKey, RoomMembers>,
}

/// What came of a look at a piece of the stream.
#[derive(Debug, Default)]
pub struct Decision {
    /// Up to where it was looked.
    pub upto: i64,
    /// Whether there is more behind it.
    pub more: bool,
    /// Of which events which services are to be told.
    pub queued: Vec<(ServiceKey, QueuedEvent)>,
    /// Those services.
    pub told: Services,
    /// What is fleeting, for whom.
    pub ephemeral: Vec<(usize, Value)>,
}

impl Interest {
    pub fn new(services: Arc<[ToldService]>) -> Self {
        let any_aliases = services.iter().any(|told| !told.service.aliases.is_empty());
        let wants = |(_, told): &(usize, &ToldService)| told.service.receive_ephemeral;
        let ephemeral = services.iter().enumerate().filter(wants).map(|(number, _)| number).collect();
        Self { services, any_aliases, ephemeral, rooms: HashMap::new() }
    }

    /// Decides of the next piece of the stream, behind a position. `invites`: whether there may be any of users in rooms that this
    /// server is not in.
    pub fn decide(&mut self, db: &Db<'_>, after: i64, invites: bool, now: Millis) -> Result<Decision> {
        let position = db.snapshot_position()?;
        let upto = position.min(after + WINDOW);
        let mut found = BTreeMap::new();
        for room in db.rooms_moved_after(after)? {
            self.look_at_room(db, room, (after, upto, position), &mut found)?;
        }
        if invites {
            for row in db.remote_invites_between((after, upto))? {
                let services = self.of_user(row.user_id.as_str());
                if let (false, Some(event)) = (services.is_empty(), &row.event) {
                    found.insert(row.stream, (None, Some(invite_json(&row, event, now)?), services));
                }
            }
        }
        let mut decision = Decision { upto, more: upto < position, ..Decision::default() };
        for (stream, (key, json, services)) in found {
            for number in services {
                let told = &self.services[number];
                if stream > told.since {
                    decision.queued.push((told.key, QueuedEvent { stream, key, json: json.clone() }));
                    decision.told.insert(number);
                }
            }
        }
        if !decision.more && !self.ephemeral.is_empty() {
            // Of what is long past nobody wants to hear.
            decision.ephemeral = self.fleeting(db, (after, upto), now)?;
        }
        if self.rooms.len() > ROOMS_MAX {
            self.rooms.clear();
        }
        Ok(decision)
    }

    /// The services that a user concerns.
    pub fn of_user(&self, user: &str) -> Services {
        let Ok(user) = UserId::parse(user) else { return Services::new() };
        let wants = |(_, told): &(usize, &ToldService)| told.service.wants_user(&user);
        self.services.iter().enumerate().filter(wants).map(|(number, _)| number).collect()
    }

    /// The services that a room concerns by its id or an alias.
    fn of_room(&self, db: &Db<'_>, room: &Room) -> Result<Services> {
        let aliases = if self.any_aliases { db.aliases_of(&room.room_id)? } else { Vec::new() };
        let aliases: Vec<RoomAlias> =
            aliases.iter().filter_map(|alias| RoomAlias::parse(alias).ok()).collect();
        let wants = |(_, told): &(usize, &ToldService)| {
            told.service.wants_room(&room.room_id)
                || aliases.iter().any(|alias| told.service.wants_alias(alias))
        };
        Ok(self.services.iter().enumerate().filter(wants).map(|(number, _)| number).collect())
    }

    /// The services that a room concerns now, by whatever. Asked for what is fleeting there.
    pub fn of_room_now(&mut self, db: &Db<'_>, room: &Room) -> Result<Services> {
        let mut services = self.of_room(db, room)?;
        let current = match self.rooms.get(&room.key) {
            Some(known) => !db.has_state_changed_after(room.key, known.as_of)?,
            None => false,
        };
        if !current {
            let (as_of, members) = (db.snapshot_position()?, self.members_now(db, room.key)?);
            self.rooms.insert(room.key, RoomMembers { as_of, members });
        }
        let members = self.rooms.get(&room.key).into_iter().flat_map(|known| known.members.values());
        members.for_each(|of_member| services.extend(of_member));
        Ok(services)
    }

    /// What is fleeting and came at positions in `(after, upto]`: "under the same rules as regular events".
    fn fleeting(
        &mut self,
        db: &Db<'_>,
        (after, upto): (i64, i64),
        now: Millis,
    ) -> Result<Vec<(usize, Value)>> {
        let mut found = Vec::new();
        for key in db.rooms_with_ephemeral_after(after)? {
            let (Some(room), Some((_, typing))) = (db.room_with_state(key)?, db.ephemeral_change(key)?)
            else {
                continue;
            };
            let services = self.of_room_now(db, &room)?;
            let services: Services = services.intersection(&self.ephemeral).copied().collect();
            if services.is_empty() {
                continue;
            }
            let mut events = Vec::new();
            if typing > after {
                events.push(json!({ "type": "m.typing", "content": { "user_ids": db.typing_users(key)? } }));
            }
            let receipts = db.public_receipts_between(key, (after, upto), RECEIPTS_MAX)?;
            events.extend(by_thread(receipts).into_iter().map(receipts_event));
            let private = db.private_receipts_between(key, (after, upto), RECEIPTS_MAX)?;
            for number in services {
                let mut of_own = private.clone();
                of_own.retain(|receipt| self.of_user(&receipt.user_id).contains(&number));
                let of_own = by_thread(of_own).into_iter().map(receipts_event);
                for mut event in events.iter().cloned().chain(of_own) {
                    event["room_id"] = room.room_id.as_str().into();
                    found.push((number, event));
                }
            }
        }
        for (user, presence) in db.presence_between(after, upto, PRESENCES_MAX)? {
            for number in self.who_sees(db, &user)? {
                let content = ToldPresence::new(&presence, now);
                found.push((number, json!({ "type": "m.presence", "sender": user, "content": content })));
            }
        }
        Ok(found)
    }

    /// The services that hear of a user's presence: "a user an application service shares a room with, or matching one of the
    /// application service's namespaces".
    fn who_sees(&mut self, db: &Db<'_>, user: &UserId) -> Result<Services> {
        let mut services = self.of_user(user.as_str());
        for key in db.some_joined_rooms(user, PRESENCE_ROOMS_MAX)? {
            if let Some(room) = db.room_with_state(key)? {
                services.extend(self.of_room_now(db, &room)?);
            }
        }
        Ok(services.intersection(&self.ephemeral).copied().collect())
    }

    fn look_at_room(
        &mut self,
        db: &Db<'_>,
        key: RoomKey,
        (after, upto, position): (i64, i64, i64),
        found: &mut BTreeMap<i64, (Option<EventKey>, Option<String>, Services)>,
    ) -> Result<()> {
        let events = db.live_events_between(key, (after, upto))?;
        // One that is being deleted concerns nobody.
        let Some(room) = db.room_with_state(key)? else { return Ok(()) };
        let of_room = self.of_room(db, &room)?;
        let known = self.rooms.remove(&key);
        let (since, mut members) = match known {
            Some(known) if known.as_of <= after => (known.as_of, known.members),
            _ => (after, self.members_as_of(db, key, after, position)?),
        };
        let changes = db.membership_changes_between(key, (since, upto))?;
        let mut changes = changes.into_iter().peekable();
        for (stream, event) in events {
            let Some(pdu) = db.find_event(event)?.map(|event| event.pdu) else { continue };
            while let Some((_, user, member)) = changes.next_if(|(at, ..)| *at < stream) {
                self.follow(db, &mut members, user, member)?;
            }
            let target = pdu.state_key().map(|key| self.of_user(key)).unwrap_or_default();
            let mut services = of_room.clone();
            members.values().for_each(|of_member| services.extend(of_member));
            services.extend(self.of_user(pdu.sender().as_str()));
            services.extend(&target);
            if !services.is_empty() {
                found.insert(stream, (Some(event), None, services));
            }
        }
        for (_, user, member) in changes {
            self.follow(db, &mut members, user, member)?;
        }
        self.rooms.insert(key, RoomMembers { as_of: upto, members });
        Ok(())
    }

    /// Who is joined and concerns services.
    fn members_now(&self, db: &Db<'_>, room: RoomKey) -> Result<HashMap<UserId, Services>> {
        let members = db.joined_local_users(room)?.into_iter();
        let concerns = |user: UserId| {
            let services = self.of_user(user.as_str());
            (!services.is_empty()).then_some((user, services))
        };
        Ok(members.filter_map(concerns).collect())
    }

    /// Who was so at a position.
    fn members_as_of(
        &self,
        db: &Db<'_>,
        room: RoomKey,
        after: i64,
        position: i64,
    ) -> Result<HashMap<UserId, Services>> {
        let mut members = self.members_now(db, room)?;
        for change in db.state_changes_between(room, after, position)? {
            if change.event_type != "m.room.member" {
                continue;
            }
            self.follow(db, &mut members, change.state_key, change.before)?;
        }
        Ok(members)
    }

    /// A user's membership is by this event now, or by none.
    fn follow(
        &self,
        db: &Db<'_>,
        members: &mut HashMap<UserId, Services>,
        user: String,
        member: Option<EventKey>,
    ) -> Result<()> {
        let services = self.of_user(&user);
        let Ok(user) = UserId::parse(&user) else { return Ok(()) };
        if services.is_empty() {
            return Ok(());
        }
        let member = member.map(|key| db.pdu_by_key(key)).transpose()?;
        match member.and_then(|pdu| pdu.membership()) {
            Some(Membership::Join) => drop(members.insert(user, services)),
            _ => drop(members.remove(&user)),
        }
        Ok(())
    }
}

fn receipts_event(content: Map<String, Value>) -> Value {
    json!({ "type": "m.receipt", "content": content })
}

/// An invite to a room that this server is not in, or what ended it, with what is known of the room.
fn invite_json(row: &RemoteMembership, event: &Pdu, now: Millis) -> Result<String> {
    let format = ClientFormat::usual(&row.user_id, None, now);
    let written = client_format::of_remote_room(&format, event, row.prior())?;
    let mut event: Value = read(written.get().as_bytes()).map_err(Error::internal)?;
    if event["content"]["membership"] == "invite" {
        let shown: Vec<&RawValue> = row.stripped_state.iter().map(|event| &**event).collect();
        event["unsigned"]["invite_room_state"] = json!(shown);
    }
    Ok(event.to_string())
}
