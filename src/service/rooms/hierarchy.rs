//! Spaces: the tree of rooms below one, this server's and others'.
//!
//! A page of the tree is found by walking it again from its root: nothing is remembered between pages but what other
//! servers said, for some minutes.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::error::{Error, Result};
use crate::federation::calls::HierarchyAnswer;
use crate::locks::lock;
use crate::protocol::json::{read, read_object};
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::service::membership::JoinTarget;
use crate::service::rooms::Rooms;
use crate::service::rooms::summary::{CHILDREN_MAX, SpaceRoom, Visitor, may_know, space_room};

/// Rooms of a page if the client names no limit.
const PAGE_DEFAULT: u64 = 50;
/// Rooms of a page whatever the client asks for.
const PAGE_MAX: u64 = 100;
/// How many bytes a page, or an answer to another server, takes, about.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// How deep a walk goes whatever the client asks for.
const DEPTH_MAX: u64 = 50;
/// How many rooms, and links to rooms, a walk looks at.
const STEPS_MAX: usize = 20_000;
/// How many servers are asked about one room.
const SERVERS_ASKED_MAX: usize = 3;
/// How many rooms one request makes us ask other servers about, and until when.
const REMOTE_ROOMS_MAX: usize = 30;
const WALK_TIMEOUT: Duration = Duration::from_secs(30);

/// For how long an answer of another server is good.
const CACHED_FOR_MS: Millis = 300_000;
/// A server that made us wait so long in vain is not asked the same again for so long: the next page of a walk would wait
/// as long.
const IN_VAIN_AFTER: Duration = Duration::from_secs(2);
const IN_VAIN_FOR_MS: Millis = 60_000;
/// How many answers are remembered, and how large each may be in bytes.
const CACHED_MAX: usize = 64;
const CACHED_BYTES_MAX: usize = 128 << 10;

/// What another server said of a room and its children.
pub(in crate::service) struct SpaceAnswer {
    /// The room.
    pub room: SpaceRoom,
    children: Vec<SpaceRoom>,
    inaccessible: Vec<RoomId>,
}

impl SpaceAnswer {
    /// None unless the answer is about this room. Of the children only the room's own are believed.
    fn of(answer: HierarchyAnswer, id: &RoomId, suggested_only: bool) -> Option<Self> {
        let read_room = |room: Box<RawValue>| read_object::<SpaceRoom>(room.get().as_bytes()).ok();
        let room = read_room(answer.room).filter(|room| room.id() == id)?.tidied(suggested_only);
        let own: HashSet<&RoomId> = room.children_state.iter().map(|child| &child.state_key).collect();
        let children = answer.children.into_iter().take(CHILDREN_MAX).filter_map(read_room);
        let children = children.filter(|child| own.contains(child.id()));
        let children = children.map(|child| child.tidied(suggested_only)).collect();
        let barred =
            answer.inaccessible_children.iter().filter_map(|id| read::<RoomId>(id.get().as_bytes()).ok());
        let inaccessible = barred.filter(|id| own.contains(id)).take(CHILDREN_MAX).collect();
        Some(Self { room, children, inaccessible })
    }
}

/// Who was asked about which room, and whether for its suggested children alone.
type Question = (ServerName, RoomId, bool);

/// Until when an answer is good, and the answer; none if there was none.
type CachedAnswers = BoundedMap<Question, (Steady, Option<Arc<SpaceAnswer>>), CACHED_MAX>;

/// What other servers said of spaces. "Responses to this endpoint should be cached for a period of time." What one of them
/// said is told to nobody who would not have asked that very server: anybody can say anything of any room, and whoever asks
/// chooses whom.
#[derive(Default)]
pub struct SpaceCache(Mutex<CachedAnswers>);

impl SpaceCache {
    /// What this server said; none if it is to be asked.
    fn of(&self, question: &Question, now: Steady) -> Option<Option<Arc<SpaceAnswer>>> {
        let told = lock(&self.0);
        let (until, told) = told.get(question)?;
        (*until > now).then(|| told.clone())
    }

    /// What who asks these servers one after the other is told; none if one of them has to be asked for that.
    fn get(
        &self,
        servers: &[ServerName],
        room: &RoomId,
        suggested_only: bool,
        now: Steady,
    ) -> Option<Option<Arc<SpaceAnswer>>> {
        for server in servers.iter().take(SERVERS_ASKED_MAX) {
            let told = self.of(&(server.clone(), room.clone(), suggested_only), now)?;
            if told.is_some() {
                return Some(told);
            }
        }
        Some(None)
    }

    fn put(&self, question: Question, told: Option<Arc<SpaceAnswer>>, now: Steady) {
        let worth = |(until, _): &(Steady, Option<Arc<SpaceAnswer>>)| {
            if *until > now { Worth::Little } else { Worth::Nothing }
        };
        let good_for = if told.is_some() { CACHED_FOR_MS } else { IN_VAIN_FOR_MS };
        lock(&self.0).insert(question, (now + good_for, told), worth);
    }
}

/// What a client asks of `/hierarchy`. What is not said on a later page stays as it was on the first.
#[derive(Debug, Default)]
pub struct HierarchyRequest {
    /// Suggested children only.
    pub suggested_only: Option<bool>,
    /// At most so many rooms in this page.
    pub limit: Option<u64>,
    /// Only so far down; the root alone at 0.
    pub max_depth: Option<u64>,
    /// The token of another page.
    pub from: Option<String>,
}

/// A page of a hierarchy.
#[derive(Debug, Serialize)]
pub struct Hierarchy {
    rooms: Vec<SpaceRoom>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

/// A hierarchy as other servers get it.
#[derive(Debug, Serialize)]
pub struct HierarchyForPeer {
    room: SpaceRoom,
    children: Vec<SpaceRoom>,
    inaccessible_children: Vec<RoomId>,
}

/// A place in a walk: what is asked for, and how many rooms were shown before. As a token: `h1_50_100`.
#[derive(Clone, Copy)]
struct WalkPosition {
    suggested_only: bool,
    max_depth: u64,
    shown: usize,
}

impl WalkPosition {
    fn token(self) -> String {
        format!("h{}_{}_{}", u8::from(self.suggested_only), self.max_depth, self.shown)
    }

    fn parse(token: &str) -> Option<Self> {
        let mut parts = token.strip_prefix('h')?.split('_');
        let suggested_only = match parts.next()? {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        let max_depth = parts.next()?.parse().ok().filter(|depth| *depth <= DEPTH_MAX)?;
        let shown = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self { suggested_only, max_depth, shown })
    }
}

impl HierarchyRequest {
    /// Errors: 400 `M_INVALID_PARAM` for a token that is none, or of another question.
    fn position(&self) -> Result<WalkPosition> {
        let max_depth = self.max_depth.map(|depth| depth.min(DEPTH_MAX));
        let Some(token) = self.from.as_deref().filter(|token| !token.is_empty()) else {
            let suggested_only = self.suggested_only.unwrap_or(false);
            return Ok(WalkPosition { suggested_only, max_depth: max_depth.unwrap_or(DEPTH_MAX), shown: 0 });
        };
        let position = WalkPosition::parse(token)
            .ok_or_else(|| Error::invalid_param("The from token is none of this server's"))?;
        let changed = self.suggested_only.is_some_and(|only| only != position.suggested_only)
            || max_depth.is_some_and(|depth| depth != position.max_depth);
        if changed {
            let message = "suggested_only and max_depth cannot change on paginated requests";
            return Err(Error::invalid_param(message));
        }
        Ok(position)
    }
}

/// One request's walk through a tree.
struct SpaceWalk<'a> {
    hs: &'a Homeserver,
    user: &'a UserId,
    suggested_only: bool,
    until: Instant,
    remote_rooms_left: usize,
    /// Children that another server described.
    told: HashMap<RoomId, SpaceRoom>,
    /// Children that nobody may tell us of.
    inaccessible: HashSet<RoomId>,
}

/// A room to look at.
struct SpaceStep {
    room: RoomId,
    via: Vec<ServerName>,
    depth: u64,
}

impl SpaceWalk<'_> {
    /// The room, if the user may be told of it and anybody can.
    fn look(&mut self, step: &SpaceStep) -> Result<Option<SpaceRoom>> {
        let here = self.hs.store.read(|db| {
            let Some(room) = db.resident_room(&step.room)? else { return Ok(None) };
            Ok(Some(match may_know(db, &room, Visitor::User(self.user))? {
                true => Some(space_room(db, &room, self.suggested_only)?),
                false => None,
            }))
        })?;
        if let Some(here) = here {
            return Ok(here);
        }
        let target = JoinTarget { room_id: step.room.clone(), via: step.via.clone() };
        let (membership, servers) = self.hs.membership().remote_view(self.user, &target)?;
        let room = match self.told.remove(&step.room) {
            Some(told) => Some(told),
            None if self.inaccessible.contains(&step.room) => None,
            None => self.ask(&step.room, &servers),
        };
        Ok(match room {
            Some(room) if self.hs.rooms().may_know_remote(self.user, membership, &room.summary)? => {
                Some(room)
            }
            _ => None,
        })
    }

    fn ask(&mut self, room: &RoomId, servers: &[ServerName]) -> Option<SpaceRoom> {
        let now = self.hs.clock.steady();
        let told = match self.hs.space_cache.get(servers, room, self.suggested_only, now) {
            Some(told) => told?,
            None => {
                if self.remote_rooms_left == 0 || Instant::now() >= self.until {
                    return None;
                }
                self.remote_rooms_left -= 1;
                self.hs.rooms().ask_about(self.user, room, servers, self.suggested_only).ok()??
            }
        };
        self.inaccessible.extend(told.inaccessible.iter().cloned());
        self.told.extend(told.children.iter().map(|child| (child.id().clone(), child.clone())));
        Some(told.room.clone())
    }
}

impl Rooms<'_> {
    /// A page of the rooms below a room and itself, depth first, children in the order of "Ordering of children
    /// within a space"; those that the user is in or could join, knock on or peek into. Errors: 403 `M_FORBIDDEN` if
    /// the root is none of those, 400 `M_INVALID_PARAM`.
    pub fn hierarchy(&self, user: &UserId, root: &RoomId, request: &HierarchyRequest) -> Result<Hierarchy> {
        let from = request.position()?;
        let limit = usize::try_from(request.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX)).unwrap_or(1);
        let mut walk = SpaceWalk {
            hs: self,
            user,
            suggested_only: from.suggested_only,
            until: Instant::now() + WALK_TIMEOUT,
            remote_rooms_left: REMOTE_ROOMS_MAX,
            told: HashMap::new(),
            inaccessible: HashSet::new(),
        };
        let mut stack = vec![SpaceStep { room: root.clone(), via: Vec::new(), depth: 0 }];
        let (mut seen, mut steps) = (HashSet::new(), 0);
        let (mut shown, mut rooms, mut bytes) = (0, Vec::new(), 0);
        while let Some(step) = stack.pop() {
            if !seen.insert(step.room.clone()) {
                continue;
            }
            let Some(room) = walk.look(&step)? else {
                if step.depth == 0 {
                    return Err(Error::forbidden("You are not allowed to view this room."));
                }
                continue;
            };
            if rooms.len() == limit || bytes > ANSWER_BYTES_MAX {
                let next_batch = Some(WalkPosition { shown, ..from }.token());
                return Ok(Hierarchy { rooms, next_batch });
            }
            if step.depth < from.max_depth {
                for child in room.children_state.iter().rev() {
                    steps += 1;
                    if steps <= STEPS_MAX && !seen.contains(&child.state_key) {
                        let (room, via) = (child.state_key.clone(), child.via());
                        stack.push(SpaceStep { room, via, depth: step.depth + 1 });
                    }
                }
            }
            shown += 1;
            if shown > from.shown {
                bytes += room.weight();
                rooms.push(room);
            }
        }
        Ok(Hierarchy { rooms, next_batch: None })
    }

    /// `GET /hierarchy` of another server: the room and its children, as far as its users could join, knock on or peek
    /// into them. Errors: 404 `M_NOT_FOUND`.
    pub fn hierarchy_for_peer(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<HierarchyForPeer> {
        let visitor = Visitor::Server(origin);
        self.store.read(|db| {
            let room = match db.resident_room(room_id)? {
                Some(room) if may_know(db, &room, visitor)? => space_room(db, &room, suggested_only)?,
                _ => return Err(Error::not_found("Room does not exist.")),
            };
            let (mut children, mut inaccessible_children) = (Vec::new(), Vec::new());
            let mut bytes = room.weight();
            for child in &room.children_state {
                // "Rooms which the responding server cannot provide details on will be outright excluded."
                let Some(known) = db.resident_room(&child.state_key)? else { continue };
                if !may_know(db, &known, visitor)? {
                    inaccessible_children.push(known.room_id);
                    continue;
                }
                // What is too much is left out: it can be asked for by itself.
                let child = space_room(db, &known, suggested_only)?;
                bytes += child.weight();
                if bytes <= ANSWER_BYTES_MAX {
                    children.push(child);
                }
            }
            Ok(HierarchyForPeer { room, children, inaccessible_children })
        })
    }

    /// What the first of these servers that knows the room says of it; none if none of them does. Errors: 429
    /// `M_LIMIT_EXCEEDED` if enough is being asked for the user.
    pub(in crate::service) fn ask_about(
        &self,
        user: &UserId,
        room: &RoomId,
        servers: &[ServerName],
        suggested_only: bool,
    ) -> Result<Option<Arc<SpaceAnswer>>> {
        let now = self.clock.steady();
        if let Some(told) = self.space_cache.get(servers, room, suggested_only, now) {
            return Ok(told);
        }
        let _permit = self.request_permits.ask(&Asker::new(AskerId::User(user.clone())))?;
        for peer in servers.iter().take(SERVERS_ASKED_MAX) {
            let question = (peer.clone(), room.clone(), suggested_only);
            match self.space_cache.of(&question, now) {
                Some(None) => continue,
                Some(told) => return Ok(told),
                None => {}
            }
            let asked = self.clock.instant();
            let answer = match self.federation.hierarchy(peer, room, suggested_only) {
                Ok(answer) => answer,
                Err(e) => {
                    log::debug!("about {room}: {}", e.into_client_error(peer));
                    if self.clock.instant().duration_since(asked) >= IN_VAIN_AFTER {
                        self.space_cache.put(question, None, now);
                    }
                    continue;
                }
            };
            let size = answer.size;
            let Some(told) = SpaceAnswer::of(answer, room, suggested_only) else {
                log::debug!("{peer} was asked about {room} and told of something else");
                continue;
            };
            let told = Arc::new(told);
            if size <= CACHED_BYTES_MAX {
                self.space_cache.put(question, Some(told.clone()), now);
            }
            return Ok(Some(told));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_brings_back_its_question_and_no_other() {
        let token = WalkPosition { suggested_only: true, max_depth: 3, shown: 50 }.token();
        let ask = |suggested_only, max_depth, from: &str| {
            let from = Some(from.to_owned());
            HierarchyRequest { suggested_only, max_depth, from, limit: None }.position()
        };
        assert_eq!(ask(None, None, &token).unwrap().token(), token);
        assert_eq!(ask(Some(true), Some(3), &token).unwrap().shown, 50);
        assert!(ask(Some(false), None, &token).is_err() && ask(None, Some(4), &token).is_err());
        for wrong in ["h", "h2_3_4", "h1_51_0", "h1_3", "h1_3_4_5", "h1_-3_4", "x"] {
            assert_eq!(ask(None, None, wrong).err().map(|e| e.status()), Some(400), "{wrong}");
        }
    }
}
