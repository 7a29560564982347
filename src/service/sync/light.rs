//! The light answer: what a client that waits is told when nothing but messages (and who types, and has read) came into
//! its rooms, and users came and went. That is what wakes a thousand at once, and it is the same for all of them: so it is
//! read and written once, as the room's tail, and each reader's answer is put together from it without a look into the
//! database.
//!
//! Whatever is not as simple as that gets no light answer: then the request is looked at as if it came in now. In debug
//! builds, and so in every test, each light answer is compared with what that look gives.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::Value;
use serde_json::value::RawValue;

use super::joined::JoinedRoom;
use super::presence::remembered_presence;
use super::{
    EventList, RoomSections, StateSection, SyncAnswer, SyncBody, SyncRequest, Syncing, TIMELINE_MAX,
    TIMELINE_USUAL, Timeline, ephemeral,
};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::protocol::filter::{EventFilter, EventFormat, Filter};
use crate::protocol::json::parse_object;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::Homeserver;
use crate::service::rooms::client_format::{self, ClientFormat, Json};
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::view::everybody_sees_what_comes;
use crate::store::cache::news::RoomNews;
use crate::store::push::unread::{NotifyingEvent, UnreadCounts};
use crate::store::rooms::events::TimelineRange;
use crate::store::{Db, EventKey, Place, RoomKey};

/// Events of a tail, and their bytes, at most.
const TAIL_EVENTS_MAX: usize = TIMELINE_USUAL;
const TAIL_BYTES_MAX: usize = 64 << 10;
/// Tails that are kept: those of the last changes.
const TAILS_MAX: usize = 128;
/// Rooms of one light answer.
const ROOMS_MAX: usize = 8;

/// What the last changes in rooms were, for all who are there.
#[derive(Default)]
pub struct RoomTails(Mutex<KeptTails>);

#[derive(Default)]
struct KeptTails {
    tails: HashMap<RoomNews, SharedTail>,
    order: VecDeque<RoomNews>,
}

/// Read by whoever needs it first, while others who need it wait. None: it is not that simple.
type SharedTail = Arc<OnceLock<Option<Tail>>>;

/// What came into a room between two positions, as every member of long standing is told.
struct Tail {
    room_id: RoomId,
    /// Newest last.
    events: Vec<TailEvent>,
    prev_batch: Option<String>,
    ephemeral: Vec<String>,
    /// What of it notifies anybody.
    notifying: Vec<NotifyingEvent>,
}

struct TailEvent {
    sender: UserId,
    /// The sender's membership event.
    member: Option<EventKey>,
    origin_server_ts: Millis,
    /// The event as clients read it, up to its age.
    json: String,
}

/// The end of an event as [`client_format`] writes it, from its age on, and what stands there then.
const WRITTEN_END: &str = "0,\"membership\":\"join\"}}";
const END: &str = ",\"membership\":\"join\"}}";

/// A request that waits and may get a light answer.
pub struct LightSync {
    user: UserId,
    device: Option<String>,
    request: SyncRequest,
    since: i64,
    looked_upto: i64,
    one_time_keys: Option<BTreeMap<String, u64>>,
    fallback_keys: Option<Vec<String>>,
}

/// Whether the filter lets everything through that a light answer may have.
fn is_simple(filter: &Filter) -> bool {
    let all = |events: &EventFilter| {
        events.wants_everything()
            && !events.wants_none()
            && events.rooms.is_none()
            && events.not_rooms.is_empty()
    };
    let room = &filter.room;
    filter.event_format == EventFormat::Client
        && filter.event_fields.is_none()
        && room.rooms.is_none()
        && room.not_rooms.is_empty()
        && all(&room.timeline)
        && all(&room.ephemeral)
        && !(room.state.lazy_load_members && room.state.include_redundant_members)
}

impl Syncing<'_> {
    /// Prepares for a light answer to a request that has been looked at and waits now. None: it cannot get one.
    pub fn prepare_light(
        &self,
        user: &UserId,
        device: Option<&str>,
        request: &SyncRequest,
        answer: &SyncAnswer,
    ) -> Option<LightSync> {
        let since = request.since.filter(|_| !request.full_state && !answer.ignores_somebody)?;
        is_simple(&request.filter).then(|| LightSync {
            user: user.clone(),
            device: device.map(str::to_owned),
            request: request.clone(),
            since,
            looked_upto: answer.position,
            one_time_keys: answer.one_time_keys.clone(),
            fallback_keys: answer.fallback_keys.clone(),
        })
    }

    /// The answer, if it is simple.
    pub fn light_answer(&self, light: &LightSync) -> Option<Vec<u8>> {
        let (news, position) = self.store.news_since(&light.user, light.looked_upto)?;
        if news.own || news.rooms.len() > ROOMS_MAX {
            return None;
        }
        let (now, mut join) = (self.clock.now_ms(), BTreeMap::new());
        for changed in &news.rooms {
            let tail = self.room_tails.get(self, changed);
            let tail = tail.get().and_then(Option::as_ref)?;
            // One's own may have a transaction id, and are read.
            if tail.events.iter().any(|event| event.sender == light.user) {
                return None;
            }
            let unread = self.unread_memory.counts_after(
                (&light.user, position),
                changed,
                |since| self.store.news_upto(&light.user, since, position),
                &tail.notifying,
            )?;
            join.insert(tail.room_id.clone(), self.light_room(light, (changed.room, tail), &unread, now)?);
        }
        let rooms: Vec<RoomKey> = news.rooms.iter().map(|changed| changed.room).collect();
        let (reader, between) =
            ((&light.user, &light.request.filter.presence), (light.looked_upto, position));
        let presence = remembered_presence(&self.store, reader, between, &rooms, now).ok()??;
        if join.is_empty() && presence.is_empty() {
            return None;
        }
        if let (Some(device), true) = (&light.device, light.request.filter.room.state.lazy_load_members) {
            let known = self.told_members.known(&light.user, device, light.since);
            self.told_members.tell(&light.user, device, position, &known, HashSet::new());
        }
        let body = SyncBody {
            next_batch: format!("s{position}"),
            rooms: RoomSections { join, ..RoomSections::default() },
            presence,
            device_one_time_keys_count: light.one_time_keys.clone(),
            device_unused_fallback_key_types: light.fallback_keys.clone(),
            ..SyncBody::default()
        };
        let body = serde_json::to_vec(&body).ok()?;
        if cfg!(debug_assertions) {
            self.compare(light, position, &body);
        }
        Some(body)
    }

    fn light_room(
        &self,
        light: &LightSync,
        (room, tail): (RoomKey, &Tail),
        unread: &UnreadCounts,
        now: Millis,
    ) -> Option<JoinedRoom> {
        let filter = &light.request.filter.room;
        if tail.events.len() > filter.timeline.limit_or(TIMELINE_USUAL, TIMELINE_MAX) {
            return None;
        }
        if filter.state.lazy_load_members && !tail.events.is_empty() {
            let known = self.told_members.known(&light.user, light.device.as_deref()?, light.since);
            let has = |event: &TailEvent| event.member.is_some_and(|member| known.contains(&(room, member)));
            if !tail.events.iter().all(has) {
                return None;
            }
        }
        let mut events = Vec::with_capacity(tail.events.len());
        for event in &tail.events {
            let age = now.saturating_sub(event.origin_server_ts);
            events.push(RawValue::from_string(format!("{}{age}{END}", event.json)).ok()?);
        }
        let ephemeral: Vec<Json> =
            tail.ephemeral.iter().filter_map(|event| RawValue::from_string(event.clone()).ok()).collect();
        let prev_batch = tail.prev_batch.clone();
        let prev_batch = prev_batch.unwrap_or_else(|| PaginationToken::at(light.since).to_string());
        Some(JoinedRoom::of_tail(
            StateSection::new(&light.request, EventList::default()),
            Timeline { events: EventList::of(&events).events, limited: false, prev_batch },
            EventList::of(&ephemeral),
            (unread, filter.timeline.unread_thread_notifications),
        ))
    }

    /// Compares a light answer with that of a look into the database, but for the ages of its events.
    fn compare(&self, light: &LightSync, position: i64, body: &[u8]) {
        let request = SyncRequest { looked_upto: Some(light.looked_upto), ..light.request.clone() };
        let Ok(whole) = self.sync(&light.user, light.device.as_deref(), &request) else { return };
        let without_ages = |body: &[u8]| {
            let mut answer = Value::Object(parse_object(body).unwrap_or_default());
            for event in answer["presence"]["events"].as_array_mut().into_iter().flatten() {
                event["content"]["last_active_ago"] = Value::Null;
            }
            for (_, room) in answer["rooms"]["join"].as_object_mut().into_iter().flatten() {
                for event in room["timeline"]["events"].as_array_mut().into_iter().flatten() {
                    event["unsigned"]["age"] = Value::Null;
                }
            }
            answer
        };
        if whole.position == position {
            let (told, whole) = (without_ages(body), without_ages(&whole.body.into_bytes()));
            assert!(told == whole, "a light answer is another one:\n{told}\n{whole}");
        }
    }
}

impl RoomTails {
    fn get(&self, hs: &Homeserver, news: &RoomNews) -> SharedTail {
        let tail = {
            let mut kept = lock(&self.0);
            match kept.tails.get(news) {
                Some(tail) => tail.clone(),
                None => {
                    let tail = SharedTail::default();
                    kept.tails.insert(*news, tail.clone());
                    kept.order.push_back(*news);
                    if kept.order.len() > TAILS_MAX
                        && let Some(oldest) = kept.order.pop_front()
                    {
                        kept.tails.remove(&oldest);
                    }
                    tail
                }
            }
        };
        tail.get_or_init(|| hs.store.read(|db| read_tail(db, news)).unwrap_or_default());
        tail
    }
}

/// Reads what came into a room, if it is simple.
fn read_tail(db: &Db<'_>, news: &RoomNews) -> Result<Option<Tail>> {
    let room = db.room_by_key(news.room)?;
    // "From" and "up to" are the ends of commits: live events stand right there or between.
    let (start, end) = (Place::live(news.from), Place { stream: news.upto + 1, sub: i64::MIN });
    let above = Place { stream: start.stream, sub: start.sub + 1 };
    if news.recounted
        || !everybody_sees_what_comes(db, &room)?
        || !db.erased_users()?.is_empty()
        || !db.state_changes_between(room.key, news.from, news.upto)?.is_empty()
        || (room.resident && !db.gaps_between(room.key, above, end, 1)?.is_empty())
    {
        return Ok(None);
    }
    let range = TimelineRange { from: start, to: end, limit: TAIL_EVENTS_MAX + 1, backwards: false };
    let stored = db.timeline(room.key, range)?;
    let prev_batch = stored.first().and_then(|event| event.place).map(PaginationToken::before);
    let nobody = UserId::parse(&format!("@nobody:{}", db.server_name()))?;
    let mut events = Vec::new();
    for event in &stored {
        if event.pdu.is_state()
            || event.redacted_by.is_some()
            || event.place.is_none_or(|place| place.sub != 0)
            || events.len() == TAIL_EVENTS_MAX
        {
            return Ok(None);
        }
        let origin_server_ts = event.pdu.origin_server_ts();
        let format = ClientFormat { room_ids: false, ..ClientFormat::usual(&nobody, None, origin_server_ts) };
        let written = client_format::message(&format, &event.pdu, Membership::Join)?;
        let Some(json) = written.get().strip_suffix(WRITTEN_END) else { return Ok(None) };
        let sender = event.pdu.sender().clone();
        let member = db.state_event_key(room.key, "m.room.member", sender.as_str())?;
        events.push(TailEvent { sender, member, origin_server_ts, json: json.to_owned() });
    }
    let Some(ephemeral) = ephemeral::of_everybody(db, &room, (news.from, news.upto))? else {
        return Ok(None);
    };
    if events.is_empty() && ephemeral.is_empty() {
        return Ok(None);
    }
    let ephemeral: Vec<String> = ephemeral.iter().map(|event| event.get().to_owned()).collect();
    let bytes = events.iter().map(|event| event.json.len()).chain(ephemeral.iter().map(String::len));
    if bytes.sum::<usize>() > TAIL_BYTES_MAX {
        return Ok(None);
    }
    let prev_batch = prev_batch.map(|token| token.to_string());
    let notifying = db.notifying_events(room.key, (news.from, news.upto))?;
    Ok(Some(Tail { room_id: room.room_id, events, prev_batch, ephemeral, notifying }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TestServer;
    use crate::testing::{TestUser, segment};

    fn id(user: &TestUser) -> UserId {
        UserId::parse(user.id()).expect("a user id")
    }

    fn says(user: &TestUser, presence: &str) {
        let path = format!("/_matrix/client/v3/presence/{}/status", segment(user.id()));
        user.put(&path, serde_json::json!({ "presence": presence }));
    }

    /// Somebody waits: they have looked, and found nothing.
    fn waits(hs: &Homeserver, user: &TestUser, filter: &str) -> LightSync {
        let (user, device) = (id(user), None);
        let filter = Filter::parse(filter).expect("a filter");
        let mut request = SyncRequest {
            filter: Arc::new(filter),
            since: Some(hs.store.position()),
            full_state: false,
            state_after: false,
            older_name: false,
            looked_upto: None,
        };
        let answer = hs.syncing().sync(&user, device, &request).expect("an answer");
        assert!(answer.is_empty);
        request.since = Some(answer.position);
        hs.syncing().prepare_light(&user, device, &request, &answer).expect("nothing is against it")
    }

    fn told(hs: &Homeserver, light: &LightSync) -> Value {
        let answer = hs.syncing().light_answer(light).expect("a light answer");
        serde_json::from_slice(&answer).expect("JSON")
    }

    /// Whose presence an answer tells, and what it is.
    fn presences<'a>(answer: &'a Value) -> Vec<(&'a str, &'a str)> {
        let events = answer["presence"]["events"].as_array().into_iter().flatten();
        let text = |value: &'a Value| value.as_str().expect("text");
        events.map(|event| (text(&event["sender"]), text(&event["content"]["presence"]))).collect()
    }

    #[test]
    fn who_came_and_went_is_told_without_a_look_into_the_database() {
        let server = TestServer::start();
        let hs = server.homeserver();
        let [alice, bob, carol, dan, eve] = ["alice", "bob", "carol", "dan", "eve"].map(|n| server.user(n));
        let room = alice.room_with(&[&bob, &carol], &[]);
        // Dan is known to bob from elsewhere, eve from nowhere.
        let elsewhere = dan.create_room();
        bob.join(&elsewhere);
        // What is unread goes on from what was told.
        bob.initial_sync();
        let (wants_all, wants_some) = (
            waits(hs, &bob, "{}"),
            waits(hs, &bob, &format!(r#"{{"presence":{{"not_senders":["{}"]}}}}"#, carol.id())),
        );
        let wants_none = waits(hs, &bob, r#"{"presence":{"types":[]}}"#);
        for (user, presence) in
            [(&carol, "online"), (&eve, "online"), (&dan, "unavailable"), (&carol, "unavailable")]
        {
            says(user, presence);
        }
        alice.send(&room, "hello");
        let answer = told(hs, &wants_all);
        assert_eq!(presences(&answer), [(carol.id(), "unavailable"), (dan.id(), "unavailable")]);
        assert_eq!(answer["rooms"]["join"][&room]["timeline"]["events"][0]["content"]["body"], "hello");
        assert_eq!(presences(&told(hs, &wants_some)), [(dan.id(), "unavailable")]);
        let answer = told(hs, &wants_none);
        assert!(answer.get("presence").is_none(), "{answer}");
    }
}
