//! Spaces: the tree of rooms below one, this server's and others'.
//!
//! A page ends where it is full, and where the time or the questions to other servers that it has are used up: whoever
//! waits has what there is, and the next page goes on there (`space_walks`). Rooms elsewhere that are to come next are asked
//! about side by side, so that servers which never answer hold up none of the others: what could not be asked about in its
//! time is set aside, and comes later than its place is, or not at all.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::space_cache::{ASK_TIME_MIN, RoomKnowledge, RoomQuestion};
use super::space_walks::{SpaceStep, SpaceWalk, USER_BYTES_MAX};
use crate::error::{ErrCode, Error, Result};
use crate::locks::{into_inner, lock};
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::membership::JoinTarget;
use crate::service::rooms::Rooms;
use crate::service::rooms::space_room::SpaceRoom;
use crate::service::rooms::summary::{Visitor, may_know, servers_are_silent, space_room};

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
/// How many rooms one page makes us ask other servers about, how many at a time, and until when: clients give a request up
/// after half a minute.
const ASKS_MAX: usize = 50;
const ASKS_AT_ONCE_MAX: usize = 8;
const PAGE_TIMEOUT: Duration = Duration::from_secs(9);
/// So much of that is enough for one room: what its servers did not tell by then is left out of the walk.
const TIME_PER_ROOM: Duration = Duration::from_secs(5);
/// So many rooms are left for the next page, while those are shown that need not be asked about.
const SET_ASIDE_MAX: usize = 1000;
/// Among so many rooms that come next are those that are asked about with one.
const LOOK_AHEAD_MAX: usize = 200;
/// How many servers are known of each room that is yet to be looked at.
const VIA_MAX: usize = 8;

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

/// A place in a walk: what is asked for, how many rooms were shown before, and the number of the walk if it is kept. As a
/// token: `h1_50_100_7`.
#[derive(Clone, Copy)]
struct WalkPosition {
    suggested_only: bool,
    max_depth: u64,
    shown: usize,
    walk: u64,
}

impl WalkPosition {
    fn token(self) -> String {
        format!("h{}_{}_{}_{}", u8::from(self.suggested_only), self.max_depth, self.shown, self.walk)
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
        let walk = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self { suggested_only, max_depth, shown, walk })
    }
}

impl HierarchyRequest {
    /// Errors: 400 `M_INVALID_PARAM` for a token that is none, or of another question.
    fn position(&self) -> Result<WalkPosition> {
        let max_depth = self.max_depth.map(|depth| depth.min(DEPTH_MAX));
        let Some(token) = self.from.as_deref().filter(|token| !token.is_empty()) else {
            let suggested_only = self.suggested_only.unwrap_or(false);
            let max_depth = max_depth.unwrap_or(DEPTH_MAX);
            return Ok(WalkPosition { suggested_only, max_depth, shown: 0, walk: 0 });
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

/// A page that is being filled.
struct SpacePage<'a> {
    hs: &'a Homeserver,
    user: &'a UserId,
    from: WalkPosition,
    walk: SpaceWalk,
    limit: usize,
    until: Instant,
    asks_left: usize,
    rooms: Vec<SpaceRoom>,
    bytes: usize,
    /// What is left for the next page since the time of this one is over.
    set_aside: Vec<SpaceStep>,
}

/// What there is to show of a room.
enum Look {
    Shown(Box<SpaceRoom>),
    /// Nothing: nobody knows it, or it is not for the user.
    Hidden,
    /// Other servers have to be asked first, and this page asks no more of them.
    Unasked,
}

impl SpacePage<'_> {
    /// Fills the page. Whether that is the end of the walk. Errors: of the root; 429 `M_LIMIT_EXCEEDED` if nothing is shown for
    /// that.
    fn fill(&mut self) -> Result<bool> {
        let is_over = self.walk_on()? && self.set_aside.is_empty();
        while let Some(step) = self.set_aside.pop() {
            self.walk.put_back(step);
        }
        Ok(is_over)
    }

    /// Walks on until the page ends. Whether that is at the end of the walk, but for what was set aside.
    fn walk_on(&mut self) -> Result<bool> {
        while let Some(step) = self.walk.left.pop() {
            if !self.walk.seen.insert(step.room.clone()) {
                continue;
            }
            let is_full = self.rooms.len() == self.limit || self.bytes > ANSWER_BYTES_MAX;
            if is_full {
                self.asks_left = 0;
            }
            match self.look(&step) {
                Ok(Look::Hidden) if step.depth == 0 => {
                    return Err(Error::forbidden("You are not allowed to view this room."));
                }
                Ok(Look::Hidden) => {}
                Ok(Look::Shown(room)) if !is_full => self.show(&step, *room),
                Err(error) if error.errcode() != ErrCode::LimitExceeded || self.rooms.is_empty() => {
                    return Err(error);
                }
                // Its siblings need not wait for it.
                Ok(Look::Unasked) if !is_full && self.is_late() && self.set_aside.len() < SET_ASIDE_MAX => {
                    self.set_aside.push(step);
                }
                Ok(Look::Shown(_) | Look::Unasked) | Err(_) => {
                    self.walk.put_back(step);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether it is too late to ask anybody.
    fn is_late(&self) -> bool {
        self.until.saturating_duration_since(Instant::now()) < ASK_TIME_MIN
    }

    fn show(&mut self, step: &SpaceStep, room: SpaceRoom) {
        if step.depth < self.from.max_depth {
            for child in room.children_state.iter().rev() {
                self.walk.links += 1;
                if self.walk.links <= STEPS_MAX && !self.walk.seen.contains(&child.state_key) {
                    let (room, mut via) = (child.state_key.clone(), child.via());
                    via.truncate(VIA_MAX);
                    self.walk.left.push(SpaceStep { room, via, depth: step.depth + 1 });
                }
            }
        }
        self.walk.found += 1;
        if self.walk.found > self.from.shown {
            self.bytes += room.weight();
            self.rooms.push(room);
        }
    }

    /// The room, if the user may be told of it and anybody can.
    fn look(&mut self, step: &SpaceStep) -> Result<Look> {
        let here = self.hs.store.read(|db| {
            let Some(room) = db.resident_room(&step.room)? else { return Ok(None) };
            Ok(Some(match may_know(db, &room, Visitor::User(self.user))? {
                true => Look::Shown(Box::new(space_room(db, &room, self.from.suggested_only)?)),
                false => Look::Hidden,
            }))
        })?;
        if let Some(here) = here {
            return Ok(here);
        }
        let target = JoinTarget { room_id: step.room.clone(), via: step.via.clone() };
        let (membership, servers) = self.hs.membership().remote_view(self.user, &target)?;
        let told = self.walk.told.get(&step.room).map(|child| child.room.clone());
        let room = if self.is_told_enough(step) {
            told
        } else {
            match self.ask(step, servers)? {
                RoomKnowledge::Answered(answer) => {
                    self.walk.learn(&answer);
                    Some(answer.room.clone())
                }
                RoomKnowledge::Unanswered | RoomKnowledge::Unasked if step.depth == 0 => {
                    return Err(servers_are_silent());
                }
                RoomKnowledge::Unknown | RoomKnowledge::Unanswered => told,
                RoomKnowledge::Unasked => return Ok(Look::Unasked),
            }
        };
        Ok(match room {
            Some(room) if self.hs.rooms().may_know_remote(self.user, membership, &room.summary)? => {
                Look::Shown(Box::new(SpaceRoom::clone(&room)))
            }
            _ => Look::Hidden,
        })
    }

    /// Whether what was said of a room with the space above it is enough. At most it says which children a space has, and
    /// nothing of them: who is asked about the space tells of all.
    fn is_told_enough(&self, step: &SpaceStep) -> bool {
        match self.walk.told.get(&step.room) {
            Some(child) if !child.is_whole => false,
            Some(child) => child.room.children_state.is_empty() || step.depth >= self.from.max_depth,
            None => self.walk.inaccessible.contains(&step.room),
        }
    }

    /// What other servers say of a room. If they have to be asked, then also about those that are to come.
    fn ask(&mut self, step: &SpaceStep, servers: Vec<ServerName>) -> Result<RoomKnowledge> {
        if let Some(answer) = self.walk.answers.get(&step.room) {
            return Ok(answer.clone());
        }
        let first = self.question(step, servers);
        let known = self.hs.rooms().know_of(self.user, &first, None)?;
        let asks = self.asks_left.min((self.limit - self.rooms.len()).max(1));
        if !matches!(known, RoomKnowledge::Unasked) || asks == 0 || self.is_late() {
            return Ok(known);
        }
        let mut questions = vec![first];
        for next in self.walk.left.iter().rev().take(LOOK_AHEAD_MAX) {
            if questions.len() == asks {
                break;
            }
            if !questions.iter().any(|question| question.room == next.room) {
                questions.extend(self.question_about(next)?);
            }
        }
        self.asks_left -= questions.len();
        let mut answers = self.ask_side_by_side(questions);
        for (_, answer, took) in &mut answers {
            // What had its time is not waited for on the next page as well.
            if matches!(answer, Ok(RoomKnowledge::Unasked)) && *took >= TIME_PER_ROOM {
                *answer = Ok(RoomKnowledge::Unanswered);
            }
        }
        let first =
            answers.iter().position(|(room, ..)| *room == step.room).map(|at| answers.swap_remove(at));
        for (room, answer, _) in answers {
            match answer {
                Ok(RoomKnowledge::Unasked) | Err(_) => {}
                Ok(answer) => drop(self.walk.answers.insert(room, answer)),
            }
        }
        let first = first.map_or(Ok(RoomKnowledge::Unasked), |(_, answer, _)| answer)?;
        if !matches!(first, RoomKnowledge::Unasked) {
            self.walk.answers.insert(step.room.clone(), first.clone());
        }
        if self.walk.is_full() {
            // However much strangers say of each room: this page asks no more.
            self.asks_left = 0;
        }
        Ok(first)
    }

    fn question(&self, step: &SpaceStep, servers: Vec<ServerName>) -> RoomQuestion {
        let (room, suggested_only, insists) = (step.room.clone(), self.from.suggested_only, step.depth == 0);
        RoomQuestion { room, servers, suggested_only, insists }
    }

    /// What others will have to be asked about a room that is yet to come, if they will.
    fn question_about(&self, step: &SpaceStep) -> Result<Option<RoomQuestion>> {
        let is_known = self.walk.seen.contains(&step.room)
            || self.walk.answers.contains_key(&step.room)
            || self.is_told_enough(step)
            || self.hs.store.read(|db| db.resident_room(&step.room))?.is_some();
        if is_known {
            return Ok(None);
        }
        let target = JoinTarget { room_id: step.room.clone(), via: step.via.clone() };
        let question = self.question(step, self.hs.membership().remote_view(self.user, &target)?.1);
        let known = self.hs.rooms().know_of(self.user, &question, None)?;
        Ok(matches!(known, RoomKnowledge::Unasked).then_some(question))
    }

    /// Asks until it has been told as much as a walk may hold; what is left then is not answered.
    fn ask_side_by_side(
        &self,
        questions: Vec<RoomQuestion>,
    ) -> Vec<(RoomId, Result<RoomKnowledge>, Duration)> {
        let (count, told) = (questions.len(), AtomicUsize::new(0));
        let (next, answers) = (Mutex::new(questions.into_iter()), Mutex::new(Vec::new()));
        let work = || {
            loop {
                // Taken in a statement of its own, so that the lock is not held while others are asked.
                let question = lock(&next).next();
                let Some(question) = question.filter(|_| told.load(Ordering::Relaxed) <= USER_BYTES_MAX)
                else {
                    return;
                };
                let began = Instant::now();
                let answer = self.hs.rooms().know_of(self.user, &question, Some(self.until));
                told.fetch_add(answer.as_ref().map_or(0, RoomKnowledge::weight), Ordering::Relaxed);
                lock(&answers).push((question.room, answer, began.elapsed()));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..ASKS_AT_ONCE_MAX.min(count) {
                let _ = std::thread::Builder::new().name("space".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
        into_inner(answers)
    }
}

impl Rooms<'_> {
    /// A page of the rooms below a room and itself, depth first, children in the order of "Ordering of children
    /// within a space"; those that the user is in or could join, knock on or peek into. It may be short, or even empty,
    /// and have a `next_batch`. Errors: 403 `M_FORBIDDEN` if the root is none of those, 504 if its servers do not say,
    /// 429 `M_LIMIT_EXCEEDED`, 400 `M_INVALID_PARAM`.
    pub fn hierarchy(&self, user: &UserId, root: &RoomId, request: &HierarchyRequest) -> Result<Hierarchy> {
        let from = request.position()?;
        let limit = usize::try_from(request.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX)).unwrap_or(1);
        let kept = self.space_walks.get(from.walk, (user, root), from.shown, self.clock.steady());
        let mut page = SpacePage {
            hs: self,
            user,
            from,
            walk: kept.unwrap_or_else(|| SpaceWalk::from(root)),
            limit,
            until: Instant::now() + PAGE_TIMEOUT,
            asks_left: ASKS_MAX,
            rooms: Vec::new(),
            bytes: 0,
            set_aside: Vec::new(),
        };
        let is_over = page.fill()?;
        let SpacePage { walk, rooms, .. } = page;
        if is_over {
            return Ok(Hierarchy { rooms, next_batch: None });
        }
        let shown = from.shown.max(walk.found);
        let kept = self.space_walks.keep(walk, (user, root), self.clock.steady());
        if kept.is_none() && rooms.is_empty() {
            // The next page would not come further either.
            log::info!("the space {root} is too large for {user} to see all of it");
            return Ok(Hierarchy { rooms, next_batch: None });
        }
        let next_batch = Some(WalkPosition { shown, walk: kept.unwrap_or(0), ..from }.token());
        Ok(Hierarchy { rooms, next_batch })
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_brings_back_its_question_and_no_other() {
        let token = WalkPosition { suggested_only: true, max_depth: 3, shown: 50, walk: 7 }.token();
        let ask = |suggested_only, max_depth, from: &str| {
            let from = Some(from.to_owned());
            HierarchyRequest { suggested_only, max_depth, from, limit: None }.position()
        };
        assert_eq!(ask(None, None, &token).unwrap().token(), token);
        assert_eq!(ask(Some(true), Some(3), &token).unwrap().shown, 50);
        assert!(ask(Some(false), None, &token).is_err() && ask(None, Some(4), &token).is_err());
        for wrong in ["h", "h2_3_4_0", "h1_51_0_0", "h1_3", "h1_3_4", "h1_3_4_5_6", "h1_-3_4_0", "x"] {
            assert_eq!(ask(None, None, wrong).err().map(|e| e.status()), Some(400), "{wrong}");
        }
    }
}
