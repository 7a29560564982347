//! `POST /rooms/{roomId}/upgrade` (client-server API, "Room Upgrades"): one transaction makes the new room, says so in the
//! old one by a tombstone, and moves what names or holds it. So there is all of it or nothing, whatever happens meanwhile.
//!
//! - here: the verb; `plan`: what the new room is made of.
//! - `bans`: those beyond what comes with the new room.
//! - `ties`: the spaces and rooms that speak of the old room, and the old room's own events that end it.
//! - `service/membership/replaced_rooms.rs`: what moves for each local user who comes into the new room, and for this server.

mod bans;
mod plan;
mod ties;

use std::sync::mpsc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::plan::{OldState, SETTINGS, TIES, Wishes, plan};
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::json::object_of;
use crate::protocol::pdu::Membership;
use crate::protocol::room_version::room_version;
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, UserId, VerifiedPdu};
use crate::service::events::accept::{Sent, too_much_work};
use crate::service::events::build::{EventSigner, send_within};
use crate::service::events::draft::Draft;
use crate::service::events::power_levels::may_send_state;
use crate::service::membership::{follow_upgrade, replacement_of};
use crate::service::rooms::Rooms;
use crate::service::rooms::create::{
    PlannedEvent, additional_creators, append_room, new_room_id, sign_room_events,
};
use crate::store::rooms::memberships::RoomMember;
use crate::store::rooms::owed_bans::OwedBans;
use crate::store::{Db, Room, Tx};

/// How often an upgrade is begun anew because the old room changed meanwhile.
const UPGRADE_ATTEMPTS_MAX: usize = 5;
/// For how long the same request of the same user is a repeat, and makes no other room: they may not have got the answer.
const REPEAT_MS: Millis = 10 * 60 * 1000;
/// So many bans come with the new room. Of a room with more, the others follow one by one, in the background.
const BANS_AT_ONCE_MAX: usize = 1000;
/// So many rooms and spaces of a space, or spaces of a room, are taken over: each is an event.
const TIES_MAX: usize = 1000;
/// Most additional creators of a new room: their names fill its first event, which has 64 KiB.
const ADDITIONAL_CREATORS_MAX: usize = 100;
/// What the tombstone says to people.
const TOMBSTONE_BODY: &str = "This room has been replaced";

/// The body of `POST /rooms/{roomId}/upgrade`.
#[derive(Debug, Deserialize)]
pub struct UpgradeRoom {
    /// The version of the new room.
    new_version: Option<String>,
    /// Who else is a creator, in versions that have that.
    additional_creators: Option<Value>,
}

/// The old room as it was read.
struct OldRoom {
    room: Room,
    /// The stream position before it was read.
    position: i64,
    state: OldState,
    /// The last of the bans that come with the new room, if there are more.
    last_ban: Option<BanPlace>,
    tombstone: Option<Pdu>,
    /// The aliases of this server that name it.
    aliases: Vec<String>,
    canonical_alias: Option<Map<String, Value>>,
    profile: Map<String, Value>,
    /// What is to be said in other rooms; for the new room's id there is a placeholder.
    ties: Vec<ties::Tie>,
}

/// What came of an attempt.
enum Attempt {
    Done(RoomId),
    /// The old room changed since it was read.
    Moved,
}

/// What the transaction says while it is undone, or beside what it gives.
enum Note {
    Moved,
    Unsent(Draft),
}

impl Rooms<'_> {
    /// Replaces a room by one of another version (or the same): the new room's id. A repeat within some minutes gets the
    /// first answer, and so does who asks for the same at the same moment as somebody else.
    ///
    /// Errors: 400 `M_UNSUPPORTED_ROOM_VERSION`, `M_MISSING_PARAM`, `M_INVALID_PARAM`; 404 `M_NOT_FOUND` for a room that
    /// this server does not know; 403 `M_FORBIDDEN` unless the user is in the room and may send tombstones; 429
    /// `M_LIMIT_EXCEEDED` if the room does not stand still; what a policy server of the room says.
    pub fn upgrade(&self, user: &UserId, old_id: &RoomId, request: &UpgradeRoom) -> Result<RoomId> {
        let wanted =
            request.new_version.as_deref().ok_or_else(|| Error::missing_param("Missing new_version"))?;
        let version = room_version(wanted).ok_or_else(|| {
            Error::new(ErrCode::UnsupportedRoomVersion, "This server does not support that room version")
        })?;
        let creators = request.creators(version)?;
        let mut first_tombstone = None;
        for _ in 0..UPGRADE_ATTEMPTS_MAX {
            let position = self.store.position();
            let old = self.store.read(|db| OldRoom::read(db, user, old_id, position))?;
            let tombstone = old.tombstone.as_ref().map(|tombstone| tombstone.event_id().clone());
            let before = first_tombstone.get_or_insert_with(|| tombstone.clone());
            if let Some(done) = self.done_before(user, version, &old, *before != tombstone)? {
                return Ok(done);
            }
            match self.try_upgrade(user, old, version, &creators)? {
                Attempt::Done(new_id) => {
                    log::info!("{user} has upgraded {old_id} to {new_id}, version {}", version.id);
                    return Ok(new_id);
                }
                Attempt::Moved => {}
            }
        }
        Err(too_much_work(std::time::Duration::from_secs(1)))
    }

    /// The room that another request has made of this one: somebody else's at the same moment, or the same user's whose
    /// answer they did not get. Errors: 403 `M_FORBIDDEN` if somebody else's was for another version.
    fn done_before(
        &self,
        user: &UserId,
        version: RoomVersion,
        old: &OldRoom,
        at_same_moment: bool,
    ) -> Result<Option<RoomId>> {
        let Some(tombstone) = &old.tombstone else { return Ok(None) };
        let age = self.clock.now_ms() - tombstone.origin_server_ts();
        let is_repeat = tombstone.sender() == user && (0..REPEAT_MS).contains(&age);
        if !is_repeat && !at_same_moment {
            return Ok(None);
        }
        let new = replacement_of(tombstone);
        let new = self.store.read(|db| new.map(|new| db.resident_room(&new)).transpose())?.flatten();
        match new.filter(|new| new.version == version) {
            Some(new) => Ok(Some(new.room_id)),
            None if at_same_moment => {
                Err(Error::forbidden("Somebody else has upgraded this room at the same moment"))
            }
            None => Ok(None),
        }
    }

    fn try_upgrade(
        &self,
        user: &UserId,
        old: OldRoom,
        version: RoomVersion,
        creators: &[UserId],
    ) -> Result<Attempt> {
        let new = NewRoom::of(&old, user, version, creators, self.events().signer())?;
        let (new_id, tombstone) = (new.room_id.clone(), new.tombstone(&old.room.room_id));
        let owed = old.last_ban.clone().map(|(stream, last)| OwedBans {
            room_id: new_id.clone(),
            old_room_id: old.room.room_id.clone(),
            sender: user.clone(),
            stream,
            user_id: last,
            attempts: 0,
        });
        let now = self.clock.now_ms();
        let (note, notes) = mpsc::channel();
        let done = self.events().send_with(tombstone, move |tx, sent| {
            // Nobody is left to hear it only if we stopped waiting for the commit.
            let say = |what: Note| drop(note.send(what));
            if has_moved(tx, &old, sent)? {
                say(Note::Moved);
                return Err(Error::internal("undone: the room has changed"));
            }
            new.put_in_place(tx, &old, sent)?;
            if let Some(owed) = &owed {
                tx.owe_bans(owed, now)?;
            }
            for draft in old.farewell(&new) {
                if !send_if_allowed(tx, &new.signer, &draft)? {
                    say(Note::Unsent(draft));
                }
            }
            Ok(())
        });
        let notes: Vec<Note> = notes.try_iter().collect();
        if notes.iter().any(|note| matches!(note, Note::Moved)) {
            return Ok(Attempt::Moved);
        }
        done?;
        // What takes longer than a transaction may: a policy server that is asked.
        let unsent = notes.into_iter().filter_map(|note| match note {
            Note::Unsent(draft) => Some(draft),
            Note::Moved => None,
        });
        for draft in unsent {
            let room = draft.room.clone();
            if let Err(error) = self.events().send(draft) {
                log::log!(
                    error.level(log::Level::Info),
                    "an upgrade left something undone in {room}: {error}"
                );
            }
        }
        Ok(Attempt::Done(new_id))
    }
}

impl UpgradeRoom {
    /// "When upgrading to a room version which doesn't support additional creators, this field is ignored."
    fn creators(&self, version: RoomVersion) -> Result<Vec<UserId>> {
        let Some(asked) = self.additional_creators.as_ref().filter(|asked| !asked.is_null()) else {
            return Ok(Vec::new());
        };
        if !version.privileged_creators {
            return Ok(Vec::new());
        }
        let content = object_of([("additional_creators", asked.clone())]);
        let creators = additional_creators(&content)?;
        if creators.len() > ADDITIONAL_CREATORS_MAX {
            return Err(Error::invalid_param("Too many additional creators"));
        }
        Ok(creators)
    }
}

impl OldRoom {
    /// Reads it, if the user may upgrade it. Errors: those of [`Rooms::upgrade`].
    fn read(db: &Db<'_>, user: &UserId, room_id: &RoomId, position: i64) -> Result<Self> {
        let room = db.known_room(room_id)?;
        if !room.resident || db.membership(room.key, user)? != Some(Membership::Join) {
            return Err(Error::not_in_room());
        }
        if !may_send_state(db, &room, user, "m.room.tombstone")? {
            return Err(Error::forbidden("You cannot upgrade this room"));
        }
        let content = |event_type: &str| -> Result<Option<Map<String, Value>>> {
            Ok(db.state_event(room.key, event_type, "")?.map(|event| event.content()))
        };
        let create = db.state_event(room.key, "m.room.create", "")?;
        let create = create.ok_or_else(|| Error::internal("a room without a create event"))?;
        let (bans, last_ban) = bans_of(db, &room)?;
        let state = OldState {
            room_id: room_id.clone(),
            version: room.version,
            creators: creators_of(&create, room.version),
            create: create.content(),
            power_levels: content("m.room.power_levels")?,
            state: taken_over(db, &room)?,
            bans,
        };
        Ok(Self {
            position,
            tombstone: db.state_event(room.key, "m.room.tombstone", "")?,
            aliases: db.aliases_of(room_id)?,
            canonical_alias: content("m.room.canonical_alias")?,
            profile: db.profile(user)?,
            ties: ties::of_others(db, user, room_id)?,
            room,
            state,
            last_ban,
        })
    }

    /// The aliases that the old room shows, apart: those of ours, which move, and the others, which we cannot move.
    fn shown_aliases(&self) -> (Map<String, Value>, Map<String, Value>) {
        let (mut moved, mut left) = (Map::new(), Map::new());
        for (key, value) in self.canonical_alias.iter().flatten() {
            let is_ours =
                |alias: &Value| alias.as_str().is_some_and(|alias| self.aliases.iter().any(|a| a == alias));
            match (key.as_str(), value) {
                ("alias", alias) if is_ours(alias) => drop(moved.insert(key.clone(), alias.clone())),
                ("alt_aliases", Value::Array(all)) => {
                    let (ours, others): (Vec<Value>, Vec<Value>) = all.iter().cloned().partition(is_ours);
                    for (to, aliases) in [(&mut moved, ours), (&mut left, others)] {
                        if !aliases.is_empty() {
                            to.insert(key.clone(), aliases.into());
                        }
                    }
                }
                _ => drop(left.insert(key.clone(), value.clone())),
            }
        }
        (moved, left)
    }

    /// What else is said by the user who upgrades, where they may: in the old room, and in those that speak of it.
    fn farewell(&self, new: &NewRoom) -> Vec<Draft> {
        let in_old_room = |event_type: &str, content| Draft {
            room: self.room.room_id.clone(),
            sender: new.creator.clone(),
            event_type: event_type.to_owned(),
            state_key: Some(String::new()),
            content,
            redacts: None,
            origin_server_ts: None,
        };
        let (moved, left) = self.shown_aliases();
        let mut drafts = Vec::new();
        if !moved.is_empty() {
            drafts.push(in_old_room("m.room.canonical_alias", left));
        }
        let levels = self.state.power_levels.as_ref().and_then(plan::restricted_levels);
        drafts.extend(levels.map(|levels| in_old_room("m.room.power_levels", levels)));
        for tie in &self.ties {
            drafts.extend(tie.moved(&new.creator, &self.room.room_id, &new.room_id, &new.signer.server));
        }
        drafts
    }
}

fn creators_of(create: &Pdu, version: RoomVersion) -> Vec<String> {
    let content = create.content();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut creators = match version.creator_in_content {
        true => content.get("creator").and_then(text).into_iter().collect(),
        false => vec![create.sender().to_string()],
    };
    if let Some(Value::Array(others)) =
        content.get("additional_creators").filter(|_| version.privileged_creators)
    {
        creators.extend(others.iter().filter_map(text));
    }
    creators
}

/// The old room's state that the new one takes over, but for its power levels.
fn taken_over(db: &Db<'_>, room: &Room) -> Result<Vec<PlannedEvent>> {
    let mut state = Vec::new();
    for event_type in SETTINGS {
        if let Some(event) = db.state_event(room.key, event_type, "")? {
            state.push(PlannedEvent {
                event_type: event_type.to_owned(),
                state_key: String::new(),
                content: event.content(),
            });
        }
    }
    for event_type in TIES {
        for (state_key, event) in db.state_of_type(room.key, event_type)?.into_iter().take(TIES_MAX) {
            let content = db.pdu_by_key(event)?.content();
            // Without `via` it was taken back.
            if ties::holds(&content) {
                state.push(PlannedEvent { event_type: event_type.to_owned(), state_key, content });
            }
        }
    }
    Ok(state)
}

/// A ban, and its reason.
type Ban = (UserId, Option<String>);
/// Where a ban stands among the others: its position, and who is banned.
type BanPlace = (i64, String);

/// Who was banned last, the last ones first; and the last of these, if there are more.
fn bans_of(db: &Db<'_>, room: &Room) -> Result<(Vec<Ban>, Option<BanPlace>)> {
    let mut members = db.bans_before(room.key, (i64::MAX, ""), BANS_AT_ONCE_MAX + 1)?;
    let has_more = members.len() > BANS_AT_ONCE_MAX;
    members.truncate(BANS_AT_ONCE_MAX);
    let last = members.last().filter(|_| has_more);
    let last = last.map(|member| (member.stream, member.user_id.to_string()));
    let ban = |member: RoomMember| Ok((member.user_id, db.pdu_by_key(member.event)?.content_str("reason")));
    Ok((members.into_iter().map(ban).collect::<Result<_>>()?, last))
}

/// Whether something that the new room takes over has changed since it was read, or somebody else has upgraded the room.
fn has_moved(tx: &Tx<'_>, old: &OldRoom, sent: &Sent) -> Result<bool> {
    let before = tx.event_by_key(sent.key)?.state_before;
    if before == old.room.state {
        return Ok(false);
    }
    let tombstone = before.map(|state| tx.state_id_in(state, "m.room.tombstone", "")).transpose()?.flatten();
    if tombstone.as_ref() != old.tombstone.as_ref().map(|tombstone| tombstone.event_id()) {
        return Ok(true);
    }
    let is_ban = |event: Option<crate::store::EventKey>| -> Result<bool> {
        Ok(match event {
            Some(event) => tx.pdu_by_key(event)?.membership() == Some(Membership::Ban),
            None => false,
        })
    };
    for change in tx.state_changes_between(old.room.key, old.position, tx.stream())? {
        let moved = match change.event_type.as_str() {
            "m.room.member" => is_ban(change.before)? || is_ban(change.after)?,
            "m.room.power_levels" | "m.room.canonical_alias" => true,
            kind => SETTINGS.contains(&kind) || TIES.contains(&kind),
        };
        if moved {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sends it now, unless the room does not let the user. False: it takes more than there is time for.
fn send_if_allowed(tx: &mut Tx<'_>, signer: &EventSigner, draft: &Draft) -> Result<bool> {
    match send_within(tx, signer, draft) {
        Ok(sent) => Ok(sent.is_some()),
        Err(error) if error.is_own_failure() => Err(error),
        Err(error) => {
            log::debug!("an upgrade changes no {} in {}: {error}", draft.event_type, draft.room);
            Ok(true)
        }
    }
}

/// The room that is to be.
struct NewRoom {
    room_id: RoomId,
    version: RoomVersion,
    creator: UserId,
    signer: EventSigner,
    events: Vec<PlannedEvent>,
    /// The events, signed before: in versions whose create event is the room's id, so that the tombstone can name it.
    signed: Option<Vec<VerifiedPdu>>,
}

impl NewRoom {
    fn of(
        old: &OldRoom,
        creator: &UserId,
        version: RoomVersion,
        additional_creators: &[UserId],
        signer: EventSigner,
    ) -> Result<Self> {
        let (moved, _) = old.shown_aliases();
        let wishes = Wishes {
            creator,
            profile: &old.profile,
            additional_creators,
            version,
            canonical_alias: Some(moved).filter(|moved| !moved.is_empty()),
        };
        let events = plan(&old.state, &wishes);
        let mut room_id = new_room_id(&signer)?;
        let mut signed = None;
        if version.room_id_is_create_hash {
            let pdus = sign_room_events(&signer, version, creator, &room_id, &events)?;
            let create = pdus.first().ok_or_else(|| Error::internal("a plan without events"))?;
            room_id = create.room_id().clone();
            signed = Some(pdus);
        }
        Ok(Self { room_id, version, creator: creator.clone(), signer, events, signed })
    }

    fn tombstone(&self, old: &RoomId) -> Draft {
        let content = json!({ "body": TOMBSTONE_BODY, "replacement_room": self.room_id });
        let Value::Object(content) = content else { unreachable!("written as an object") };
        Draft {
            room: old.clone(),
            sender: self.creator.clone(),
            event_type: "m.room.tombstone".to_owned(),
            state_key: Some(String::new()),
            content,
            redacts: None,
            origin_server_ts: None,
        }
    }

    /// The events, with the tombstone named as the last event of the old room. Where the tombstone names the create event,
    /// that cannot name the tombstone ("the `event_id` property inside `predecessor` MAY be omitted").
    fn signed(&self, tombstone: &EventId) -> Result<Vec<VerifiedPdu>> {
        if let Some(signed) = &self.signed {
            return Ok(signed.clone());
        }
        let mut events = self.events.clone();
        if let Some(predecessor) = events.first_mut().and_then(|create| create.content.get_mut("predecessor"))
        {
            predecessor["event_id"] = json!(tombstone);
        }
        sign_room_events(&self.signer, self.version, &self.creator, &self.room_id, &events)
    }

    /// Makes the room, and moves to it what this server and the user who upgrades keep of the old one.
    fn put_in_place(&self, tx: &mut Tx<'_>, old: &OldRoom, tombstone: &Sent) -> Result<()> {
        let pdus = self.signed(&tombstone.event_id)?;
        let made = append_room(tx, self.version, &pdus)?;
        let made = made.ok_or_else(|| Error::internal("a new room's id that was taken"))?;
        debug_assert_eq!(made.room_id, self.room_id, "the tombstone names the room");
        log::debug!("{} takes the place of {}", made.room_id, old.room.room_id);
        follow_upgrade(tx, &made, &self.creator)
    }
}
