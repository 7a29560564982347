//! What other servers say of rooms and spaces that this server is not in: asked of them, and remembered for some minutes.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::error::Result;
use crate::federation::calls::HierarchyAnswer;
use crate::locks::lock;
use crate::order;
use crate::protocol::json::{read, read_object};
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::limits::request_permits::{Asker, AskerId, RequestPermit};
use crate::service::limits::silent_servers::{AskedFor, PROBE_TIMEOUT, SILENT_AFTER, took_all_of};
use crate::service::rooms::Rooms;
use crate::service::rooms::space_room::{CHILDREN_MAX, SpaceChild, SpaceRoom};

/// How many servers are heard about one room.
const SERVERS_HEARD_MAX: usize = 3;
/// A server that would have less time than this is not asked any more.
pub(super) const ASK_TIME_MIN: Duration = Duration::from_secs(1);
/// For how long an answer of another server is good.
const CACHED_FOR_MS: Millis = 300_000;
/// A server that made us wait so long for nothing is not asked the same again for so long: whoever looks again would wait as
/// long. (One that does not answer at all is known for that, whatever it is asked.)
const IN_VAIN_AFTER_MS: u128 = 2_000;
const IN_VAIN_FOR_MS: Millis = 60_000;
/// How many answers are remembered, how large each may be, and all together, in bytes.
const CACHED_MAX: usize = 1024;
const CACHED_BYTES_MAX: usize = 512 << 10;
const ALL_CACHED_BYTES_MAX: usize = 8 << 20;

/// What a name that is kept takes, beside its letters.
pub(super) const NAME_BYTES: usize = 60;

/// What another server said of a room and its children.
pub(in crate::service) struct SpaceAnswer {
    /// The room.
    pub room: Arc<SpaceRoom>,
    pub(super) children: Vec<ToldChild>,
    pub(super) inaccessible: Vec<RoomId>,
}

/// What was said of a child with its space.
#[derive(Clone)]
pub(super) struct ToldChild {
    pub room: Arc<SpaceRoom>,
    /// Whether that is all; else it is a space whose own children are not known.
    pub is_whole: bool,
}

impl SpaceAnswer {
    /// None unless the answer is about this room. Of the children only the room's own are believed; those of which far too
    /// much is said are left out.
    fn of(answer: HierarchyAnswer, id: &RoomId, suggested_only: bool) -> Option<Self> {
        let room: SpaceRoom = read_object(answer.room.get().as_bytes()).ok()?;
        let is_right = room.id() == id && !room.is_too_large();
        let room = is_right.then(|| room.tidied(suggested_only))?;
        let own: HashSet<&RoomId> = room.children_state.iter().map(|child| &child.state_key).collect();
        let children = answer.children.into_iter().take(CHILDREN_MAX).filter_map(|child| {
            let (child, is_whole) = read_object::<SpaceChild>(child.get().as_bytes()).ok()?.into_room();
            let is_right = own.contains(child.id()) && !child.is_too_large();
            is_right.then(|| ToldChild { room: Arc::new(child.tidied(suggested_only)), is_whole })
        });
        let children = children.collect();
        let barred =
            answer.inaccessible_children.iter().filter_map(|id| read::<RoomId>(id.get().as_bytes()).ok());
        let inaccessible = barred.filter(|id| own.contains(id)).take(CHILDREN_MAX).collect();
        Some(Self { room: Arc::new(room), children, inaccessible })
    }

    /// About how many bytes it takes.
    pub(super) fn weight(&self) -> usize {
        let children: usize = self.children.iter().map(|child| child.room.weight()).sum();
        let inaccessible: usize = self.inaccessible.iter().map(|id| NAME_BYTES + id.as_str().len()).sum();
        self.room.weight() + children + inaccessible
    }
}

/// Who was asked about which room, and whether for its suggested children alone.
type Question = (ServerName, RoomId, bool);

/// What a server said, if it said anything; how many bytes that was, and until when it is good.
struct CachedAnswer {
    told: Option<Arc<SpaceAnswer>>,
    bytes: usize,
    until: Steady,
}

/// What other servers said of spaces. "Responses to this endpoint should be cached for a period of time." What one of them
/// said is told to nobody who would not have asked that very server: anybody can say anything of any room, and whoever asks
/// chooses whom.
#[derive(Default)]
pub struct SpaceCache(Mutex<BoundedMap<Question, CachedAnswer, CACHED_MAX>>);

impl SpaceCache {
    /// What this server said; none if it is to be asked.
    fn of(&self, question: &Question, now: Steady) -> Option<Option<Arc<SpaceAnswer>>> {
        let answers = lock(&self.0);
        let answer = answers.get(question)?;
        (answer.until > now).then(|| answer.told.clone())
    }

    fn put(&self, question: Question, told: Option<Arc<SpaceAnswer>>, bytes: usize, now: Steady) {
        if bytes > CACHED_BYTES_MAX {
            return;
        }
        let mut answers = lock(&self.0);
        let held = |answers: &BoundedMap<Question, CachedAnswer, CACHED_MAX>| -> usize {
            answers.values().map(|answer| answer.bytes).sum()
        };
        if held(&answers) + bytes > ALL_CACHED_BYTES_MAX {
            answers.retain(|_, answer| answer.until > now);
        }
        while held(&answers) + bytes > ALL_CACHED_BYTES_MAX {
            // Any half, so that nobody who fills it can tell which.
            let mut keep = false;
            answers.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        let worth = |answer: &CachedAnswer| if answer.until > now { Worth::Little } else { Worth::Nothing };
        let until = now + if told.is_some() { CACHED_FOR_MS } else { IN_VAIN_FOR_MS };
        answers.insert(question, CachedAnswer { told, bytes, until }, worth);
    }
}

impl SpaceCache {
    /// Forgets what is not good any more. When that is so of something else.
    fn sweep(&self, now: Steady) -> Option<Steady> {
        let mut answers = lock(&self.0);
        answers.retain(|_, answer| answer.until > now);
        answers.values().map(|answer| answer.until).min()
    }
}

impl Rooms<'_> {
    /// Forgets what was remembered of spaces for long enough. In how long there is more of that; none if nothing is
    /// remembered.
    pub(in crate::service) fn sweep_spaces(&self) -> Option<Millis> {
        let now = self.clock.steady();
        let due = [self.space_cache.sweep(now), self.space_walks.sweep(now)];
        due.into_iter().flatten().min().map(|due| due - now)
    }
}

/// A room that somebody wants to know of, and the servers that may tell of it.
pub(in crate::service) struct RoomQuestion {
    pub room: RoomId,
    pub servers: Vec<ServerName>,
    /// Of its children the suggested ones alone.
    pub suggested_only: bool,
    /// Whether it is what somebody wants to know of, and no room among others.
    pub insists: bool,
}

/// What there is to know of a room that this server is not in.
#[derive(Clone)]
pub(in crate::service) enum RoomKnowledge {
    /// A server's answer.
    Answered(Arc<SpaceAnswer>),
    /// None of them knows it.
    Unknown,
    /// None of them says anything.
    Unanswered,
    /// Somebody would have had to be asked, or was given too little time.
    Unasked,
}

impl RoomKnowledge {
    /// About how many bytes it takes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Answered(answer) => answer.weight(),
            Self::Unknown | Self::Unanswered | Self::Unasked => 0,
        }
    }
}

impl Rooms<'_> {
    /// What the first of some servers that knows the room says of it. Those that did not answer lately are asked when nobody
    /// else is left, one of them and for less time; `until`: nobody is asked from then on, or at all. Errors: 429
    /// `M_LIMIT_EXCEEDED` if enough is being asked for the user.
    pub(in crate::service) fn know_of(
        &self,
        user: &UserId,
        question: &RoomQuestion,
        until: Option<Instant>,
    ) -> Result<RoomKnowledge> {
        let RoomQuestion { room, suggested_only, insists, .. } = question;
        let mut servers = question.servers.clone();
        order::sort_by_cached_key(&mut servers, |server| self.likelihood(server));
        let (mut permit, mut said) = (None, WhatServersSaid::default());
        let mut silent = Vec::new();
        for peer in servers {
            let (now, key) = (self.clock.steady(), (peer.clone(), room.clone(), *suggested_only));
            match self.space_cache.of(&key, now) {
                Some(Some(told)) => return Ok(RoomKnowledge::Answered(told)),
                Some(None) => {
                    said.no = true;
                    continue;
                }
                None if said.heard == SERVERS_HEARD_MAX => continue,
                None if self.silent_servers.is_silent(&peer, AskedFor::Space, now) => {
                    silent.push(peer);
                    continue;
                }
                None => {}
            }
            let Some(until) = until else { return Ok(RoomKnowledge::Unasked) };
            self.wait_for_permit(user, &mut permit, until)?;
            let within = until.saturating_duration_since(Instant::now()).min(SILENT_AFTER);
            if within < ASK_TIME_MIN {
                return Ok(RoomKnowledge::Unasked);
            }
            if let Some(told) = self.ask_about_room(&peer, question, within, &mut said) {
                return Ok(RoomKnowledge::Answered(told));
            }
        }
        if said.cut_short {
            return Ok(RoomKnowledge::Unasked);
        }
        // Where somebody said no, it is known without the others; and one that did not answer was enough to wait for.
        if said.no || silent.is_empty() || (said.silence && !insists) {
            return Ok(said.nothing());
        }
        let probe = silent.iter().find_map(|peer| {
            let probe = self.silent_servers.probe(peer, *insists, self.clock.steady())?;
            Some((peer, probe))
        });
        let Some((peer, _probe)) = probe else { return Ok(RoomKnowledge::Unanswered) };
        let Some(until) = until else { return Ok(RoomKnowledge::Unasked) };
        self.wait_for_permit(user, &mut permit, until)?;
        let within = until.saturating_duration_since(Instant::now()).min(PROBE_TIMEOUT);
        if within < ASK_TIME_MIN {
            return Ok(RoomKnowledge::Unanswered);
        }
        let told = self.ask_about_room(peer, question, within, &mut said);
        Ok(told.map_or_else(|| said.nothing(), RoomKnowledge::Answered))
    }

    fn wait_for_permit(
        &self,
        user: &UserId,
        permit: &mut Option<RequestPermit>,
        until: Instant,
    ) -> Result<()> {
        if permit.is_none() {
            let asker = Asker::new(AskerId::User(user.clone()));
            *permit = Some(self.request_permits.ask_until(&asker, Some(until))?);
        }
        Ok(())
    }

    /// What a server says of a room, if it says anything.
    fn ask_about_room(
        &self,
        peer: &ServerName,
        question: &RoomQuestion,
        within: Duration,
        said: &mut WhatServersSaid,
    ) -> Option<Arc<SpaceAnswer>> {
        let RoomQuestion { room, suggested_only, .. } = question;
        let (now, key) = (self.clock.steady(), (peer.clone(), room.clone(), *suggested_only));
        let began = Instant::now();
        let answer = self.ask_peer(peer, AskedFor::Space, within, |within| {
            self.federation.hierarchy(peer, room, *suggested_only, within)
        });
        let answer = match answer {
            Ok(answer) => answer,
            Err(e) if e.is_unreachable() => {
                said.silence = true;
                said.cut_short |= within < SILENT_AFTER && took_all_of(within, began);
                log::debug!("about {room}: {}", e.into_client_error(peer));
                return None;
            }
            Err(e) => {
                said.refused();
                log::debug!("about {room}: {}", e.into_client_error(peer));
                if began.elapsed().as_millis() >= IN_VAIN_AFTER_MS {
                    self.space_cache.put(key, None, 0, now);
                }
                return None;
            }
        };
        let bytes = answer.size;
        let Some(told) = SpaceAnswer::of(answer, room, *suggested_only) else {
            said.refused();
            log::debug!("{peer} was asked about {room} and told of something else");
            return None;
        };
        let told = Arc::new(told);
        self.space_cache.put(key, Some(told.clone()), bytes, now);
        Some(told)
    }
}

/// What came of asking servers about a room of which none has told yet.
#[derive(Default)]
struct WhatServersSaid {
    /// So many said something else.
    heard: usize,
    /// One of them did, or had before.
    no: bool,
    /// One did not answer.
    silence: bool,
    /// One had little time for that.
    cut_short: bool,
}

impl WhatServersSaid {
    fn refused(&mut self) {
        self.heard += 1;
        self.no = true;
    }

    fn nothing(&self) -> RoomKnowledge {
        if self.silence && !self.no { RoomKnowledge::Unanswered } else { RoomKnowledge::Unknown }
    }
}
