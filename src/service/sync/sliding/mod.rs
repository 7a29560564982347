//! Sliding sync (MSC4186): what is new in the rooms that a client looks at. One engine for both of its dialects, which
//! `http/client_server/sync/sliding.rs` translates. The numbers of rules in these files are:
//!
//! 1. the last two answers of a connection can be gone on from, whatever the body; any other token is unknown;
//! 2. without `pos` or `timeout` nothing is waited for;
//! 3. what a changed request yields is answered at once;
//! 4. lists are in the order of the last event;
//! 5. `bump_stamp`;
//! 6. `initial` and `num_live`;
//! 7. `limited`;
//! 8. members as they are needed;
//! 9. heroes;
//! 10. counts and `is_dm`;
//! 11. invites, knocks, rooms left;
//! 12. state that no event of the timeline tells;
//! 13. what was not delivered is not taken to be;
//! 14. nothing after the user is out;
//! 15. filters.
//!
//! - `request`: what is asked; `connection`: what the client knows; `room_list`: a user's rooms in order, in memory;
//! - `select`: the rooms to look at; `rooms`, `required_state`: what is told of one; `extensions`: the rest.

mod connection;
mod extensions;
pub mod request;
mod required_state;
mod room_list;
mod rooms;
mod select;

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use self::connection::{Connection, ConnectionStep, unknown_pos, unknown_to};
use self::extensions::RoomScope;
use self::request::SlidingRequest;
use self::room_list::{RoomList, RoomLists};
use self::rooms::{RoomNews, RoomTeller, may_have_news};
use self::select::{Configs, RoomChanges, Selected, Selection};
use super::{SyncContext, SyncRequest, Syncing};
use crate::bounded::{BoundedMap, Worth};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::order::Gather;
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::ignored_users::Ignored;
use crate::service::membership::blocks_invites;
use crate::service::rooms::client_format::ClientFormat;

pub use self::extensions::ExtensionsAnswer;
pub use self::rooms::{Hero, RoomAnswer};

/// Rooms of one answer; the others come with the next one, which is not waited for.
const ROOMS_MAX: usize = 1000;
/// Bytes of events in one answer, after which no further room is begun.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The time of a connection's last use lags behind by no more than this.
const USE_NOTED_EVERY_MS: Millis = 5 * 60_000;
/// Connections that nobody uses are looked for so often.
const SWEEP_EVERY_MS: Millis = 3_600_000;
/// A request that loses against another one of the same connection is made again so often.
const TRIES_MAX: usize = 3;
/// Of so many connections it is remembered which request was the last.
const LATEST_MAX: usize = 10_000;

/// What sliding sync keeps in memory; nothing of it is missed after a restart.
#[derive(Default)]
pub struct SlidingState {
    room_lists: RoomLists,
    latest: LatestRequests,
    /// When connections that are not used are next looked for.
    sweep_ms: AtomicI64,
}

impl SlidingState {
    /// Has the rooms of a user read again: something changed that no position of the stream tells.
    pub(in crate::service) fn read_rooms_anew(&self, user: &UserId) {
        self.room_lists.forget(user);
    }
}

/// The last request of each connection: a client that changes its mind sends another one and forgets the first, which may
/// wait here yet and must not take away what is meant for the second.
#[derive(Default)]
struct LatestRequests(Mutex<BoundedMap<(UserId, String, String), LatestRequest, LATEST_MAX>>);

struct LatestRequest {
    came: Instant,
    /// What it asked of which rooms, as a digest.
    wishes: u64,
}

impl LatestRequests {
    /// Whether no later request of the same connection has come.
    fn is_latest(&self, user: &UserId, device: &str, request: &SlidingRequest, came: Instant) -> bool {
        let key = (user.clone(), device.to_owned(), request.conn_id.clone());
        let this = LatestRequest { came, wishes: request.wishes() };
        let mut latest = lock(&self.0);
        match latest.get_mut(&key) {
            Some(known) if known.came > came => return false,
            Some(known) => *known = this,
            None => latest.insert(key, this, |_| Worth::Little),
        }
        true
    }

    /// Whether the last request of the same connection asked the same of the same rooms.
    fn wishes_the_same(&self, user: &UserId, device: &str, request: &SlidingRequest) -> bool {
        let key = (user.clone(), device.to_owned(), request.conn_id.clone());
        lock(&self.0).get_mut(&key).is_some_and(|known| known.wishes == request.wishes())
    }
}

/// An answer.
pub struct SlidingAnswer {
    /// The token of the next request.
    pub pos: String,
    /// How many rooms each list has, by its name.
    pub counts: BTreeMap<String, usize>,
    /// What is told of rooms.
    pub rooms: BTreeMap<RoomId, RoomAnswer>,
    /// What the extensions tell.
    pub extensions: ExtensionsAnswer,
}

/// What became of a request.
pub enum SlidingOutcome {
    /// The answer.
    Answer(Box<SlidingAnswer>),
    /// There is nothing new up to this position of the stream, and the request may wait.
    Nothing(i64),
}

/// An answer that nothing was written for yet.
struct Draft {
    position: i64,
    counts: BTreeMap<String, usize>,
    rooms: BTreeMap<RoomId, RoomAnswer>,
    extensions: ExtensionsAnswer,
    step: ConnectionStep,
}

impl Draft {
    fn is_empty(&self) -> bool {
        self.rooms.is_empty() && self.extensions.is_empty()
    }
}

impl Syncing<'_> {
    /// Whether a request may have much to be told, which is to be done in its turn (`limits::large_answers`): it begins
    /// anew, or asks for other rooms or for other things of them than the last one. What comes in by and by is little.
    pub fn may_be_large(&self, user: &UserId, device: &str, request: &SlidingRequest) -> bool {
        let same = || self.sliding.latest.wishes_the_same(user, device, request);
        request.asks_for_rooms() && (request.pos.is_none() || !same())
    }

    /// What is new for one connection of a device. `came`: when the request came; `may_wait`: whether it waits if there
    /// is nothing. Errors: 400 `M_INVALID_PARAM` for what goes beyond the bounds, 400 `M_UNKNOWN_POS`.
    pub fn sliding(
        &self,
        user: &UserId,
        device: &str,
        request: &SlidingRequest,
        (came, may_wait): (Instant, bool),
    ) -> Result<SlidingOutcome> {
        request.check()?;
        for _ in 0..TRIES_MAX {
            if !self.sliding.latest.is_latest(user, device, request, came) {
                return given_up(request);
            }
            let draft = self.draft(user, device, request)?;
            if draft.extensions.to_device.is_some() {
                self.note_reader(user, device)?;
            }
            self.forget_proved(user, device, &draft)?;
            if may_wait && draft.is_empty() {
                return Ok(SlidingOutcome::Nothing(draft.position));
            }
            let Some(pos) = self.take_step(user, device, request, &draft)? else { continue };
            let Draft { counts, rooms, extensions, .. } = draft;
            let answer = SlidingAnswer { pos, counts, rooms, extensions };
            return Ok(SlidingOutcome::Answer(Box::new(answer)));
        }
        given_up(request)
    }

    /// What is new, from one snapshot.
    fn draft(&self, user: &UserId, device: &str, request: &SlidingRequest) -> Result<Draft> {
        let now = self.clock.now_ms();
        let list = request.asks_for_rooms().then(|| self.sliding.room_lists.of(user));
        let list = list.as_ref().map(|list| lock(list));
        self.store.read(|db| {
            let position = db.snapshot_position()?;
            let connection = Connection::of(db, user, device, request, (position, now))?;
            let as_sync = SyncRequest {
                filter: Arc::default(),
                since: (!connection.is_new()).then_some(connection.since),
                full_state: false,
                state_after: true,
                older_name: false,
                looked_upto: None,
            };
            let format = ClientFormat { room_ids: false, ..ClientFormat::usual(user, Some(device), now) };
            // A new connection of a client that has device lists of before this database was restored.
            let proved = request.extensions.to_device.as_ref().and_then(|wanted| wanted.since);
            let is_of_before = as_sync.since.is_none() && proved.is_some_and(|since| db.was_lost(since));
            let devices_since = if is_of_before { Some(0) } else { as_sync.since };
            let (ignored, blocks_invites) = (Arc::new(Ignored::of(db, user)?), blocks_invites(db, user)?);
            let context = SyncContext {
                db,
                user,
                request: &as_sync,
                format,
                position,
                devices_since,
                ignored,
                blocks_invites,
                unread: &self.unread_memory,
                news: None,
                known_members: Arc::default(),
                told_members: RefCell::default(),
                begun_anew: RefCell::default(),
                ephemeral_changes: OnceCell::new(),
            };
            self.draft_in(&context, list, request, connection)
        })
    }

    fn draft_in(
        &self,
        context: &SyncContext<'_>,
        list: Option<MutexGuard<'_, Option<RoomList>>>,
        request: &SlidingRequest,
        mut connection: Connection,
    ) -> Result<Draft> {
        let mut extensions = extensions::of_no_room(context, request, &mut connection)?;
        let selection = select::select(context, list, request, &connection)?;
        if selection.changes.is_some() {
            connection.read_whole(context.db)?;
        }
        let (mut rooms, mut configs, mut asked) = (BTreeMap::new(), Configs::new(request), Vec::new());
        let (mut bytes, since) = (0, connection.since);
        let Selection { counts, rooms: selected, changes } = selection;
        for selected in &selected {
            if rooms.len() >= ROOMS_MAX || bytes > ANSWER_BYTES_MAX {
                connection.note_behind();
                break;
            }
            let (config, digest) = configs.of(selected);
            let looked =
                look(context, &mut connection, (selected, changes.as_ref()), (&config, digest), &mut asked);
            let told_news = looked.and_then(|(before, news)| {
                let mut told = news.told;
                if let Some(told) = &mut told {
                    let room = RoomScope { request, selected, changes: changes.as_ref(), since };
                    room.add(context, news.answer.as_ref(), told, &mut extensions)?;
                }
                if told != before {
                    connection.note(&selected.room_id, told.as_ref())?;
                }
                Ok(news.answer)
            });
            match told_news {
                Ok(answer) => {
                    bytes += answer.as_ref().map_or(0, RoomAnswer::bytes);
                    rooms.extend(answer.map(|answer| (selected.room_id.clone(), answer)));
                }
                // "Advance a room's cursor only if it was delivered" (rule 13).
                Err(e) => {
                    log::error!(
                        "{} cannot be told to {}: {}",
                        selected.room_id,
                        context.user,
                        e.for_people()
                    );
                    connection.note_owed(&selected.room_id);
                }
            }
        }
        let counts = request.lists.keys().cloned().zip(counts).gather();
        let step = connection.into_step(&asked)?;
        Ok(Draft { position: context.position, counts, rooms, extensions, step })
    }

    /// Forgets the messages that the device has proved to have by its own token for them.
    fn forget_proved(&self, user: &UserId, device: &str, draft: &Draft) -> Result<()> {
        let proved = draft.extensions.to_device.as_ref().and_then(|to_device| to_device.proved);
        let Some((upto, since)) = proved else { return Ok(()) };
        let (user, device) = (user.clone(), device.to_owned());
        // If the disk does not get it, the same proof comes again.
        self.store.write_lightly(move |tx| tx.forget_to_device(&user, &device, upto, since))
    }

    /// Writes what the client knows with this answer, and gives the token that names it. None if another request of the
    /// connection was first. What a power cut takes is only such versions: their tokens are unknown then.
    fn take_step(
        &self,
        user: &UserId,
        device: &str,
        request: &SlidingRequest,
        draft: &Draft,
    ) -> Result<Option<String>> {
        let (now, position) = (self.clock.now_ms(), draft.position);
        let noted = draft.step.noted.clone();
        match draft.step.row.clone() {
            None => {
                let (user, device, conn_id) = (user.clone(), device.to_owned(), request.conn_id.clone());
                self.store.write_lightly(move |tx| {
                    if tx.device(&user, &device)?.is_none() {
                        return Err(unknown_to(&user, &device, tx)?);
                    }
                    let opened = tx.open_sliding_connection(&user, &device, &conn_id, now)?;
                    let version = tx.issue_sliding_version(&opened, 0, &noted, now)?;
                    Ok(version.map(|version| ConnectionStep::pos(opened.connection, version, position)))
                })
            }
            Some((row, version)) if noted.is_empty() => {
                if now - row.used_ms > USE_NOTED_EVERY_MS {
                    self.store.write_lightly(move |tx| tx.touch_sliding_connection(row.connection, now))?;
                }
                Ok(Some(ConnectionStep::pos(row.connection, version, position)))
            }
            Some((row, version)) => self.store.write_lightly(move |tx| {
                let issued = tx.issue_sliding_version(&row, version, &noted, now)?;
                Ok(issued.map(|issued| ConnectionStep::pos(row.connection, issued, position)))
            }),
        }
    }

    /// Forgets connections that were not used for long, a portion at a time. Returns when to go on.
    pub(in crate::service) fn sweep_sliding_connections(&self, now: Millis) -> Result<Option<Millis>> {
        // A clock that was ahead and was put right is no reason to wait.
        let due = self.sliding.sweep_ms.load(Ordering::Relaxed).min(now + SWEEP_EVERY_MS);
        if now < due {
            return Ok(Some(due));
        }
        let is_more = self.store.read(|db| db.are_there_unused_sliding_connections(now))?
            && self.store.write_lightly(move |tx| tx.sweep_sliding_connections(now))?;
        let due = if is_more { now } else { now + SWEEP_EVERY_MS };
        self.sliding.sweep_ms.store(due, Ordering::Relaxed);
        Ok(Some(due))
    }
}

/// What is new in a room, with what the client knew of it.
fn look(
    context: &SyncContext<'_>,
    connection: &mut Connection,
    (selected, changes): (&Selected, Option<&RoomChanges>),
    (config, digest): (&request::RoomConfig, u64),
    asked: &mut Vec<u64>,
) -> Result<(Option<connection::Told>, RoomNews)> {
    let before = connection.told(context.db, &selected.room_id)?;
    if selected.room.is_some() && !asked.contains(&digest) {
        connection.keep_config(digest, &config.required_state);
        asked.push(digest);
    }
    let read = match (selected.room.as_ref().and_then(|room| room.key), changes) {
        (Some(key), Some(changes)) => changes.reads.get(&key).copied().unwrap_or(0),
        (Some(key), None) => context.db.last_read(key, context.user)?,
        (None, _) => 0,
    };
    let news = match may_have_news(selected, before.as_ref(), (config, digest), read) {
        true => RoomTeller { context, connection }.news(selected, before.as_ref(), (config, digest))?,
        false => RoomNews { answer: None, told: before.clone() },
    };
    Ok((before, news))
}

/// The answer to a request that nobody waits for any more, or that was overtaken too often: nothing, and the token that
/// it had.
fn given_up(request: &SlidingRequest) -> Result<SlidingOutcome> {
    Ok(SlidingOutcome::Answer(Box::new(SlidingAnswer {
        pos: request.pos.clone().ok_or_else(unknown_pos)?,
        counts: BTreeMap::new(),
        rooms: BTreeMap::new(),
        extensions: ExtensionsAnswer::default(),
    })))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::request::{RoomConfig, RoomFilters, SlidingList};
    use super::*;
    use crate::TestServer;
    use crate::protocol::pdu::Membership;

    fn everything(pos: Option<String>) -> SlidingRequest {
        let config = RoomConfig { timeline_limit: 5, ..RoomConfig::default() };
        let list = SlidingList { ranges: None, config, filters: RoomFilters::default() };
        SlidingRequest { pos, lists: BTreeMap::from([("all".to_owned(), list)]), ..SlidingRequest::default() }
    }

    fn answer(server: &TestServer, user: &UserId, device: &str, pos: Option<String>) -> Box<SlidingAnswer> {
        let when = (Instant::now(), false);
        let outcome = server.homeserver().syncing().sliding(user, device, &everything(pos), when);
        match outcome.expect("an outcome") {
            SlidingOutcome::Answer(answer) => answer,
            SlidingOutcome::Nothing(_) => panic!("nobody waits"),
        }
    }

    #[test]
    fn who_waits_for_the_list_of_their_rooms_keeps_no_reader_from_others_and_looks_at_what_is_then() {
        const WAITING: usize = 8;
        let server = TestServer::start();
        let (alice, bob) = (server.user("alice"), server.user("bob"));
        let room = alice.create_room();
        bob.join(&room);
        let (user, device) = (UserId::parse(bob.id()).expect("a user id"), bob.device_id());
        let request = everything(Some(answer(&server, &user, &device, None).pos));
        let list = server.homeserver().sliding.room_lists.of(&user);
        let busy = lock(&list);
        thread::scope(|scope| {
            let draft = || server.homeserver().syncing().draft(&user, &device, &request);
            let waiting: Vec<_> = (0..WAITING).map(|_| scope.spawn(draft)).collect();
            while Arc::strong_count(&list) < 2 + WAITING {
                thread::yield_now();
            }
            // More of them wait than there are readers, and everybody else is served.
            alice.send(&room, "the last that bob sees");
            alice.act_on("kick", &room, bob.id());
            drop(busy);
            for one in waiting {
                let draft = one.join().expect("no panic").expect("a draft");
                let told = &draft.rooms[&RoomId::parse(&room).expect("a room id")];
                assert_eq!(told.membership, Some(Membership::Leave));
                assert!(told.timeline.iter().any(|event| event.get().contains("the last that bob sees")));
            }
        });
    }

    #[test]
    fn rule_13_a_room_that_could_not_be_told_is_told_with_the_next_answer_though_no_list_has_it_any_more() {
        let server = TestServer::start();
        let (alice, bob) = (server.user("alice"), server.user("bob"));
        let room = alice.create_room();
        bob.join(&room);
        let (user, device) = (UserId::parse(bob.id()).expect("a user id"), bob.device_id());
        let first = answer(&server, &user, &device, None);
        let store = &server.homeserver().store;
        let id = room.clone();
        let known = store.write(move |tx| {
            let told =
                tx.conn().query_row("SELECT told FROM sliding_rooms WHERE room_id = ?1", [&id], |row| {
                    row.get::<_, String>(0)
                })?;
            tx.conn().execute("UPDATE sliding_rooms SET told = 'damaged' WHERE room_id = ?1", [&id])?;
            Ok(told)
        });
        let known = known.expect("what bob's client knows");
        bob.leave(&room);
        let second = answer(&server, &user, &device, Some(first.pos));
        assert!(second.rooms.is_empty());
        let id = room.clone();
        let repaired = store.write(move |tx| {
            Ok(tx.conn().execute("UPDATE sliding_rooms SET told = ?2 WHERE room_id = ?1", [&id, &known])?)
        });
        assert_eq!(repaired.expect("written"), 1);
        let third = answer(&server, &user, &device, Some(second.pos));
        let told = &third.rooms[&RoomId::parse(&room).expect("a room id")];
        assert_eq!(told.membership, Some(Membership::Leave));
        assert!(answer(&server, &user, &device, Some(third.pos)).rooms.is_empty(), "once");
    }

    #[test]
    fn a_room_whose_state_has_no_word_of_the_user_any_more_is_told_to_be_left_once() {
        let server = TestServer::start();
        let (alice, bob) = (server.user("alice"), server.user("bob"));
        let (room, other) = (alice.create_room(), alice.create_room());
        bob.join(&room);
        bob.join(&other);
        let (user, device) = (UserId::parse(bob.id()).expect("a user id"), bob.device_id());
        let first = answer(&server, &user, &device, None);
        assert_eq!((first.counts["all"], first.rooms.len()), (2, 2));
        let since = bob.get("/_matrix/client/v3/sync")["next_batch"].as_str().expect("a token").to_owned();
        // As the resolution of a state may come to it.
        let (id, lost) = (RoomId::parse(&room).expect("a room id"), user.clone());
        let store = &server.homeserver().store;
        let reset = store.write(move |tx| {
            let room = tx.known_room(&id)?;
            let tuple_id = tx.make_state_tuple("m.room.member", lost.as_str())?;
            let at = tx.next_stream();
            for user in
                tx.move_current_state(room.key, &[(tuple_id, None)].into_iter().collect(), at, true)?
            {
                tx.wake_user(&user);
            }
            Ok(())
        });
        reset.expect("written");
        let id = RoomId::parse(&room).expect("a room id");
        for _ in 0..2 {
            // Also if the first answer was lost.
            let second = answer(&server, &user, &device, Some(first.pos.clone()));
            assert_eq!(second.rooms.keys().collect::<Vec<_>>(), [&id]);
            let told = &second.rooms[&id];
            assert_eq!((told.membership, told.initial), (Some(Membership::Leave), true));
            assert!(told.required_state.is_empty() && told.timeline.is_empty());
            assert_eq!(told.removed_state, [("m.room.member".to_owned(), bob.id().to_owned())]);
            assert_eq!(second.counts["all"], 1);
        }
        let second = answer(&server, &user, &device, Some(first.pos));
        assert!(answer(&server, &user, &device, Some(second.pos.clone())).rooms.is_empty(), "once");
        let left = bob.get(&format!("/_matrix/client/v3/sync?since={since}"));
        assert_eq!(left["rooms"]["leave"][&room]["timeline"]["events"], serde_json::json!([]));
        assert!(left["rooms"]["join"][&room].is_null());
        // Who comes back is in it.
        bob.join(&room);
        let back = answer(&server, &user, &device, Some(second.pos));
        assert_eq!((back.rooms[&id].membership, back.counts["all"]), (Some(Membership::Join), 2));
        let again = bob.get(&format!("/_matrix/client/v3/sync?since={since}"));
        assert!(again["rooms"]["leave"][&room].is_null() && again["rooms"]["join"][&room].is_object());
    }
}
