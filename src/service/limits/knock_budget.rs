//! The budget of knocks: before anything of a knock is made or kept, a permit is taken here.
//!
//! What waits for an answer, and who was refused, is read from the room's state. What was taken within the hour is
//! remembered in memory alone: a restart begins a new hour, and gives nobody more than one hour's share more. What is
//! under way counts as if it were taken, so that those who come at the same moment are no exception.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::clock::{Millis, Steady};
use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::order;
use crate::protocol::limits::fair_share::ServerStanding;
use crate::protocol::limits::knock_budget::{HOUR_MS, KnockFacts, KnockLimits, Wait, check_budget, over};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, Pdu, RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::store::{Db, Room};

/// Of how many that wait it is looked up who they are, for each that may wait: there may be more where other servers
/// of the room take knocks without end.
const KNOCKERS_READ_FACTOR: usize = 10;
/// With so many entries it is time to let go of those that are over.
const ENTRIES_SWEPT_ABOVE: usize = 1000;

/// What was knocked within the hour.
#[derive(Default)]
pub struct KnockBudget {
    log: Mutex<KnockLog>,
}

#[derive(Default)]
struct KnockLog {
    /// Upon rooms of this server, and by local users upon others.
    knocks: HashMap<KnockScope, Vec<CountedKnock>>,
    last: u64,
}

/// Where knocks are counted together.
#[derive(Clone, PartialEq, Eq, Hash)]
enum KnockScope {
    /// A room of this server: whoever knocks upon it.
    Room(RoomId),
    /// A local user: whatever remote room they knock upon.
    User(UserId),
}

struct CountedKnock {
    number: u64,
    at: Steady,
    /// The knocker, or the room.
    what: String,
    under_way: bool,
}

impl KnockLog {
    /// The knocks of the last hour, oldest first.
    fn of(&mut self, scope: &KnockScope, now: Steady) -> &[CountedKnock] {
        if self.knocks.len() > ENTRIES_SWEPT_ABOVE {
            self.knocks.retain(|_, knocks| {
                knocks.retain(|knock| is_recent(knock, now));
                !knocks.is_empty()
            });
        }
        let Some(knocks) = self.knocks.get_mut(scope) else { return &[] };
        knocks.retain(|knock| is_recent(knock, now));
        knocks
    }

    fn add(&mut self, scope: &KnockScope, what: &str, now: Steady) -> u64 {
        self.last += 1;
        let knock = CountedKnock { number: self.last, at: now, what: what.to_owned(), under_way: true };
        self.knocks.entry(scope.clone()).or_default().push(knock);
        self.last
    }
}

fn is_recent(knock: &CountedKnock, now: Steady) -> bool {
    knock.under_way || knock.at + HOUR_MS > now
}

/// A permit that was taken for a knock which is under way; given back when dropped, unless it is kept.
pub(in crate::service) struct KnockPermit<'b> {
    budget: &'b KnockBudget,
    scope: KnockScope,
    number: u64,
    /// Whether knocks are counted by the hour; otherwise one is looked for in the room alone once it is there.
    counts: bool,
    kept: bool,
}

impl KnockPermit<'_> {
    /// The knock was made: it counts for an hour.
    pub(in crate::service) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for KnockPermit<'_> {
    fn drop(&mut self) {
        let mut log = lock(&self.budget.log);
        let Some(knocks) = log.knocks.get_mut(&self.scope) else { return };
        if self.kept && self.counts {
            knocks.iter_mut().filter(|knock| knock.number == self.number).for_each(|k| k.under_way = false);
        } else {
            knocks.retain(|knock| knock.number != self.number);
        }
    }
}

/// What a permit is taken for.
#[derive(Clone, Copy)]
enum PermitFor<'e> {
    /// None is: it is only asked whether there would be one.
    Nothing,
    /// A knock that has no event yet.
    New,
    /// A knock by this event, which may be here already.
    Event(&'e EventId),
}

impl KnockBudget {
    /// Whether there are any limits.
    pub(in crate::service) fn counts_any(&self, hs: &Homeserver) -> bool {
        limits_of(hs).are_any()
    }

    /// Whether somebody may knock upon a room of this server, as far as the budget goes: what is asked before a knock
    /// is made. Errors: 429 (of another server: 403) `M_LIMIT_EXCEEDED` with `retry_after_ms`.
    pub(in crate::service) fn may_knock(&self, hs: &Homeserver, room: &Room, knocker: &UserId) -> Result<()> {
        self.find_permit(hs, room, knocker, limits_of(hs), PermitFor::Nothing).map(drop)
    }

    /// As [`KnockBudget::may_knock`], and a permit is taken for the knock that is about to be made. None if there are
    /// no limits, or if `event` is in the room already: a repeat.
    pub(in crate::service) fn permit_knock(
        &self,
        hs: &Homeserver,
        room: &Room,
        knocker: &UserId,
        event: Option<&EventId>,
    ) -> Result<Option<KnockPermit<'_>>> {
        let limits = limits_of(hs);
        if !limits.are_any() {
            return Ok(None);
        }
        self.find_permit(hs, room, knocker, limits, event.map_or(PermitFor::New, PermitFor::Event))
    }

    /// As far as the budget goes, with a permit unless it is for nothing.
    fn find_permit(
        &self,
        hs: &Homeserver,
        room: &Room,
        knocker: &UserId,
        limits: KnockLimits,
        permit_for: PermitFor<'_>,
    ) -> Result<Option<KnockPermit<'_>>> {
        if !limits.are_any() {
            return Ok(None);
        }
        let (now, steady) = (hs.clock.now_ms(), hs.clock.steady());
        let scope = KnockScope::Room(room.room_id.clone());
        // Held while the room is read: what is no longer under way is in its state.
        let mut log = lock(&self.log);
        let look = hs.store.read(|db| {
            if let PermitFor::Event(event) = permit_for
                && db.event_key(event)?.is_some()
            {
                return Ok(None);
            }
            let waiting = db.waiting_knocks(room.key, limits.waiting.saturating_mul(KNOCKERS_READ_FACTOR))?;
            Ok(Some((waiting, refused_at(db, room, knocker)?, standing(hs, db, room, knocker)?)))
        })?;
        let Some((mut waiting, refused_at, standing)) = look else { return Ok(None) };
        let knocks = log.of(&scope, steady);
        let under_way = knocks.iter().filter(|knock| knock.under_way).map(|knock| knock.what.clone());
        waiting.extend(under_way);
        order::sort(&mut waiting);
        waiting.dedup();
        waiting.retain(|user| user != knocker.as_str());
        let waiting: Vec<&str> = waiting.iter().map(String::as_str).collect();
        let lately: Vec<(Millis, &str)> =
            knocks.iter().map(|knock| (now - (steady - knock.at), knock.what.as_str())).collect();
        let facts = KnockFacts { now, knocker, standing, lately: &lately, waiting: &waiting, refused_at };
        let told = if hs.is_local(knocker) { limited } else { limited_at_peer };
        check_budget(limits, &facts).map_err(told)?;
        if matches!(permit_for, PermitFor::Nothing) {
            return Ok(None);
        }
        let number = log.add(&scope, knocker.as_str(), steady);
        let counts = limits.per_hour > 0;
        Ok(Some(KnockPermit { budget: self, scope, number, counts, kept: false }))
    }

    /// Takes a permit for a local user's knock upon a remote room, so that nobody uses us to fill others' rooms, and
    /// they have no reason to refuse us all. Errors: 429 `M_LIMIT_EXCEEDED` with `retry_after_ms`.
    pub(in crate::service) fn permit_remote_knock(
        &self,
        hs: &Homeserver,
        user: &UserId,
        room: &RoomId,
    ) -> Result<Option<KnockPermit<'_>>> {
        let limits = limits_of(hs);
        if limits.per_hour == 0 {
            return Ok(None);
        }
        let (now, scope) = (hs.clock.steady(), KnockScope::User(user.clone()));
        let mut log = lock(&self.log);
        let knocks = log.of(&scope, now);
        let here = knocks.iter().filter(|knock| knock.what == room.as_str()).map(|knock| knock.at - now);
        let wait = over(here, limits.of_one_knocker(), 0)
            .or_else(|| over(knocks.iter().map(|knock| knock.at - now), limits.of_one_user(), 0));
        if let Some(ms) = wait {
            return Err(limited(Wait { ms, why: "You knocked too often" }));
        }
        let number = log.add(&scope, room.as_str(), now);
        Ok(Some(KnockPermit { budget: self, scope, number, counts: true, kept: false }))
    }

    /// An event that came with a transaction, or as one that another refers to. Knocks and their withdrawals are
    /// handed in by `send_knock` and `send_leave`, and the room's servers pass on what they took; one that comes from
    /// a server which is not in the room is counted as if it had been handed in, or `send_knock` would be the front
    /// door of a house without walls. A withdrawal that is handed in rests on a knock that was counted; any number
    /// may be sent along. `is_signed`: whether its signature could be checked. Errors: 429 `M_LIMIT_EXCEEDED`.
    pub(in crate::service) fn count_knock_from(
        &self,
        hs: &Homeserver,
        from: &ServerName,
        room: &Room,
        event: &Pdu,
        is_signed: bool,
    ) -> Result<()> {
        let user = event.sender();
        let limits = match event.membership().filter(|_| event.is("m.room.member", user.as_str())) {
            Some(Membership::Knock) => limits_of(hs),
            Some(Membership::Leave) => KnockLimits { waiting: 0, ..limits_of(hs) },
            _ => return Ok(()),
        };
        let counts =
            |db: &Db<'_>| Ok(!db.is_resident(room.key, from)? && db.event_key(event.event_id())?.is_none());
        if !limits.are_any() || !hs.store.read(counts)? {
            return Ok(());
        }
        if !is_signed {
            // Counted it would be at the cost of whoever is said to have knocked.
            return Err(limited(Wait { ms: HOUR_MS, why: "Nothing shows yet who this is" }));
        }
        if let Some(permit) = self.find_permit(hs, room, user, limits, PermitFor::New)? {
            permit.keep();
        }
        Ok(())
    }
}

fn limits_of(hs: &Homeserver) -> KnockLimits {
    if hs.config.rate_limits {
        KnockLimits { per_hour: hs.config.knocks_per_hour, waiting: hs.config.knocks_waiting }
    } else {
        KnockLimits::default()
    }
}

fn standing(hs: &Homeserver, db: &Db<'_>, room: &Room, user: &UserId) -> Result<ServerStanding> {
    if hs.is_local(user) {
        return Ok(ServerStanding::Ours);
    }
    let known = db.is_resident(room.key, &user.server())?;
    Ok(if known { ServerStanding::Known } else { ServerStanding::Stranger })
}

/// When the user's knock upon the room was refused, if nothing came after that: somebody else made them leave, whose
/// event rests on the knock.
fn refused_at(db: &Db<'_>, room: &Room, user: &UserId) -> Result<Option<Millis>> {
    let Some(last) = db.state_event(room.key, "m.room.member", user.as_str())? else { return Ok(None) };
    if last.membership() != Some(Membership::Leave) || last.sender() == user {
        return Ok(None);
    }
    for id in last.auth_events() {
        let is_knock = |event: &Pdu| {
            event.is("m.room.member", user.as_str()) && event.membership() == Some(Membership::Knock)
        };
        if db.pdu(id)?.as_ref().is_some_and(is_knock) {
            return Ok(Some(last.origin_server_ts()));
        }
    }
    Ok(None)
}

/// The refusal as a user of another server gets it: 403, with the code and time of [`limited`]. A server that gets
/// 429 takes that to be about itself, and speaks to us no more for a while (Synapse, for minutes): then one of its
/// users who knocks too often would have cut off all the others.
fn limited_at_peer(wait: Wait) -> Error {
    limited(wait).with_status(403)
}

/// 429, with the time after which to come again.
fn limited(wait: Wait) -> Error {
    Error::new(ErrCode::LimitExceeded, wait.why).with_field("retry_after_ms", wait.ms)
}
