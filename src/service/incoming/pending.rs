//! Pending events: they were handed to us and cannot be authorised yet. They are kept, so that the server that sent
//! them may forget them, and received once what they need is here: because it came by itself, or because some server
//! of the room had it when it was asked once more. A restart changes nothing.
//!
//! What is kept is bounded for each server and room. A server that is at its bound is told to come again later: its
//! transaction is not acknowledged, so that it keeps the events itself and is slowed. Nothing is dropped in silence.
//!
//! Of a room that we are not in nobody can tell who is in it, and anybody can send something of it. There the latest
//! word of each server takes the place of its oldest, and in a full room that of whoever has most: the transaction is
//! received in any case. Once we are in, what had to make place is fetched as the past of what was kept.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::order;
use crate::protocol::{EventId, RoomId, RoomVersion, ServerName};
use crate::service::events::accept;
use crate::service::events::accept::{EventSource, Received};
use crate::service::events::authorise::{AuthContext, Verdict};
use crate::service::events::fetch::Fetched;
use crate::service::events::resolve::ResolutionBudget;
use crate::service::events::server_acl::RoomAcl;
use crate::service::incoming::Incoming;
use crate::service::incoming::remote_member_events::RemoteOutcome;
use crate::service::keys::verify::Checked;
use crate::store::rooms::pending_events::{NewPendingEvent, PendingCounts, PendingEvent};
use crate::store::{Db, Room, RoomKey, Tx};

/// Events of one server that wait, and their bytes; of a server that is not in the room to our knowledge, less.
const PER_SERVER_EVENTS_MAX: usize = 2000;
const PER_SERVER_BYTES_MAX: usize = 16 << 20;
const PER_STRANGER_EVENTS_MAX: usize = 200;
/// Those whose signatures nobody could check: anybody can make such up in anybody's name.
const PER_SERVER_UNVERIFIED_MAX: usize = 200;
/// Events that wait in one room. However many others there are, each server of the room has its share; of other
/// servers, of which there is no end, none is kept beyond the smaller number.
const PER_ROOM_EVENTS_MAX: usize = 5000;
const PER_ROOM_WITH_STRANGERS_MAX: usize = 1000;
const FAIR_SHARE_EVENTS: usize = 500;
/// Of a room that we are not in: what is kept of one server, and of all, in bytes; and what an event counts for beyond
/// its own bytes.
const REMOTE_PER_SERVER_BYTES_MAX: usize = 512 << 10;
const REMOTE_BYTES_MAX: usize = 8 << 20;
const EVENT_OVERHEAD_BYTES: usize = 4 << 10;
/// When a server at its bound should come again.
const RETRY_AFTER_MS: Millis = 20_000;

/// Pauses between attempts, by how often an event was asked for.
pub(in crate::service) const PENDING_BACKOFF: Backoff = Backoff::doubling(10_000, 30 * 60_000);
/// When there is nobody to ask just now; and for how long the servers of a room are left in peace, as to the events of
/// one server, when they were asked in vain.
const QUIET_MS: Millis = 10_000;
/// An event is given up after this time.
const PENDING_AGE_MAX_MS: Millis = 3 * 24 * 3_600_000;
/// For how long one room is pursued before others have their turn.
const ROOM_TIMEOUT: Duration = Duration::from_secs(120);
/// For how long keys are asked for in one turn of a room that we are not in: whoever sends something of it chooses whose.
const KEY_ROUND_TIMEOUT: Duration = Duration::from_secs(20);
/// How many events are looked at in one commit.
const COMMIT_EVENTS_MAX: usize = 50;

/// What became of the events that were looked at.
struct ReadyPending {
    /// So many wait no longer.
    ended: usize,
    /// Whether there may be more that was not looked at.
    more: bool,
    /// The first of those that need others, or much work.
    next: Option<PendingEvent>,
}

impl Incoming<'_> {
    /// Keeps events of one room until they can be authorised. Errors: 429 `M_LIMIT_EXCEEDED` if too much waits
    /// already; then none of them is kept.
    pub(in crate::service) fn keep_pending(
        &self,
        origin: &ServerName,
        room: &Room,
        events: Vec<NewPendingEvent>,
    ) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let (origin, room, now) = (origin.clone(), room.key, self.clock.now_ms());
        self.store.write(move |tx| keep_in_room(tx, room, &origin, events, now))
    }

    /// Keeps an event of a room that we are not in: until these servers' keys can be had, which is all it takes to
    /// know what it says of a local user; and until one who is joining right now is in, since nothing can be made
    /// of it before. Nobody would send it again. Errors, for the event alone: 429 `M_LIMIT_EXCEEDED` if too much waits
    /// already.
    pub(in crate::service) fn keep_pending_remote(
        &self,
        origin: &ServerName,
        (room, version): (&RoomId, RoomVersion),
        (id, json): (EventId, &[u8]),
        keys_of: &[ServerName],
    ) -> Result<()> {
        let (origin, room, now) = (origin.clone(), room.clone(), self.clock.now_ms());
        let next =
            if keys_of.is_empty() { (0, now + QUIET_MS) } else { (1, now + PENDING_BACKOFF.pause_ms(1)) };
        // Its room has no number yet, perhaps.
        let mut event = NewPendingEvent::for_keys(0, (id, json), keys_of, next);
        let came_in = self.store.write(move |tx| {
            let room = tx.make_room(&room, version)?;
            event.room = room.key;
            if room.resident {
                // Whoever was joining came in at this moment, which hastened only what waited by then.
                keep_in_room(tx, room.key, &origin, vec![event], now)?;
                tx.hasten_pending_in(room.key)?;
            } else if !tx.is_pending_from(&event.event_id, &origin, false)? {
                make_place_remote(tx, &room, &origin, event.json.len())?;
                tx.add_pending(&event, &origin, now)?;
            }
            Ok(room.resident)
        })?;
        if came_in {
            self.scheduler.wake();
        }
        Ok(())
    }

    /// Receives what is pending in a room and due, and asks other servers for what it needs. Errors: 500.
    pub(in crate::service) fn pursue_pending(&self, room: RoomKey) -> Result<()> {
        let until = Instant::now() + ROOM_TIMEOUT;
        let keys_until = Instant::now() + KEY_ROUND_TIMEOUT;
        while Instant::now() < until {
            let now = self.clock.now_ms();
            let of = self.store.read(|db| db.room_by_key(room))?;
            if !of.resident {
                match self.pursue_remote(&of, now, keys_until)? {
                    0 => return Ok(()),
                    // What is left is due still, and has its next turn after those who wait for theirs.
                    _ if Instant::now() >= keys_until => return Ok(()),
                    _ => continue,
                }
            }
            let ready = self.store.write(move |tx| receive_ready(tx, room, now))?;
            match ready.next {
                _ if ready.ended > 0 => {}
                Some(next) => {
                    let again = PendingEvent { json: Vec::new(), ..next.clone() };
                    self.pursue(&of, next, until).or_else(|e| {
                        // Whatever is wrong with it, the others come first now.
                        self.put_off(&of, again, Vec::new(), true)?;
                        Err(e)
                    })?;
                }
                None if ready.more => {}
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// One event that needs others, or much work.
    fn pursue(&self, room: &Room, event: PendingEvent, until: Instant) -> Result<()> {
        if !event.verified {
            return self.check_again(room, event, until);
        }
        let pdu = event.verified_pdu(room.version)?;
        let mut received = self.events().receive_event(&pdu, EventSource::Transaction, None);
        let mut asked = false;
        let quiet = self.fetch_limits.quiet_for(room.key, &event.origin, self.clock.steady()).is_some();
        if matches!(received, Ok(Received::NeedsAuth(_) | Received::NeedsPrev)) && !quiet {
            let servers = self.events().servers_to_ask(room, (&event.origin, &pdu), event.attempts)?;
            match self.events().receive_with_missing(&servers, &pdu, until)? {
                Fetched::Received(now) => received = now,
                Fetched::Nothing { asked: so } => asked = so,
            }
        }
        match received {
            Err(e) if e.is_own_failure() => Err(e),
            Ok(Received::NeedsAuth(needs)) => self.put_off(room, event, names(&needs), asked),
            Ok(Received::NeedsPrev) => {
                let needs = self.store.read(|db| db.unplaced(pdu.prev_events()))?;
                self.put_off(room, event, names(&needs), asked)
            }
            Ok(Received::NeedsTime(rest)) => {
                // Those after it would each be told the same: of its server, or of all while the whole room rests.
                let whole = self.resolution_allowance.pause_of_room(&room.room_id);
                let now = self.clock.now_ms();
                let event = PendingEvent { retry_ms: now + millis(rest), ..event };
                self.store.write(move |tx| {
                    match whole {
                        Some(whole) => tx.retry_pending_later(event.room, None, now + millis(whole))?,
                        None => tx.retry_pending_later(event.room, Some(&event.origin), event.retry_ms)?,
                    }
                    tx.put_off_pending(&event, &[])
                })
            }
            outcome => {
                if let Err(e) = outcome {
                    log::info!("{} in {} is refused: {e}", event.event_id, room.room_id);
                }
                self.store.write(move |tx| tx.end_pending(event.key))
            }
        }
    }

    /// An event whose signatures could not be checked when it came.
    fn check_again(&self, room: &Room, event: PendingEvent, until: Instant) -> Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        match self.keys().check_received(&event.origin, &[&event.json], room.version, left).pop() {
            Some(Checked::Passed(_))
                if !self.store.read(|db| RoomAcl::of(db, room))?.allows(&event.origin) =>
            {
                log::info!(
                    "{} of {} is dropped: the room keeps that server out",
                    event.event_id,
                    event.origin
                );
                self.store.write(move |tx| tx.end_pending(event.key))
            }
            Some(Checked::Passed(pdu)) if *pdu.event_id() != event.event_id => {
                log::info!(
                    "{} of {} is dropped: it was not of this room version",
                    event.event_id,
                    event.origin
                );
                self.store.write(move |tx| tx.end_pending(event.key))
            }
            Some(Checked::Passed(pdu)) => {
                let mut signed = [pdu];
                self.events().with_policy_signatures(&mut [(room, &mut signed)], Some(until))?;
                self.store.write(move |tx| tx.pending_was_verified(event.key, &signed[0]))
            }
            Some(Checked::NoKey(_, servers)) => {
                self.put_off(room, event, servers.iter().map(ToString::to_string).collect(), true)
            }
            Some(Checked::Dropped(e)) => {
                log::info!("{} of {} is dropped: {e}", event.event_id, event.origin);
                self.store.write(move |tx| tx.end_pending(event.key))
            }
            None => Ok(()),
        }
    }

    /// What waits in a room that we are not in; keys are asked for until then. So many events were looked at.
    fn pursue_remote(&self, room: &Room, now: Millis, until: Instant) -> Result<usize> {
        let due = self.store.read(|db| db.due_pending(room.key, now, COMMIT_EVENTS_MAX))?;
        let count = due.len();
        let mut ready = Vec::with_capacity(count);
        for event in due {
            let within = until.saturating_duration_since(Instant::now());
            match self.remote_member_event(&event.origin, &room.room_id, &event.json, within) {
                Err(e) if e.is_own_failure() => return Err(e),
                Ok(RemoteOutcome::NoKey(servers)) => {
                    let servers = servers.iter().map(ToString::to_string).collect();
                    // Where there was no time left, nobody was asked.
                    self.put_off(room, event, servers, !within.is_zero())?;
                    continue;
                }
                Err(e) => {
                    log::info!("{} of {}, of a room that we are not in: {e}", event.event_id, event.origin)
                }
                Ok(RemoteOutcome::Settled) => {}
            }
            ready.push(event);
        }
        self.store.write(move |tx| ready.into_iter().try_for_each(|e| settle_remote(tx, e, now)))?;
        Ok(count)
    }

    fn put_off(&self, room: &Room, mut event: PendingEvent, needs: Vec<String>, asked: bool) -> Result<()> {
        let now = self.clock.now_ms();
        let age = now - event.received_ms;
        if age > PENDING_AGE_MAX_MS {
            log::warn!(
                "{} of {} in {} is given up: no server had what it needs for {} hours ({})",
                event.event_id,
                event.origin,
                room.room_id,
                age / 3_600_000,
                needs.join(" ")
            );
            return self.store.write(move |tx| tx.end_pending(event.key));
        }
        event.attempts = event.attempts.saturating_add(u32::from(asked));
        event.retry_ms = now + if asked { PENDING_BACKOFF.pause_ms(event.attempts) } else { 0 };
        if !event.verified {
            return self.store.write(move |tx| tx.put_off_pending(&event, &needs));
        }
        // Where one event gets nothing, those after it hardly get more.
        let steady = self.clock.steady();
        let left = self.fetch_limits.quiet_for(room.key, &event.origin, steady).unwrap_or(QUIET_MS);
        self.fetch_limits.note_quiet(room.key, &event.origin, steady + left, steady);
        let quiet = now + left;
        event.retry_ms = event.retry_ms.max(quiet);
        let key = room.key;
        self.store.write(move |tx| {
            tx.retry_pending_later(key, Some(&event.origin), quiet)?;
            tx.put_off_pending(&event, &needs)
        })
    }
}

/// Keeps events of a room that came from a server. Errors: as of [`Incoming::keep_pending`].
fn keep_in_room(
    tx: &mut Tx<'_>,
    room: RoomKey,
    origin: &ServerName,
    events: Vec<NewPendingEvent>,
    now: Millis,
) -> Result<()> {
    let mut new = Vec::with_capacity(events.len());
    for event in events {
        if !tx.is_pending_from(&event.event_id, origin, event.is_verified())? {
            new.push(event);
        } else if event.is_verified() {
            tx.complete_pending(&event)?;
        }
    }
    let queue = tx.pending_counts(room, origin)?;
    if !new.is_empty() && is_full(queue, &new, tx.is_resident(room, origin)?) {
        log::info!("{origin} has too many events that wait, and is told to come again");
        return Err(too_many());
    }
    new.iter().try_for_each(|event| tx.add_pending(event, origin, now))
}

fn too_many() -> Error {
    Error::new(ErrCode::LimitExceeded, "Too many of your events wait for others")
        .with_field("retry_after_ms", RETRY_AFTER_MS)
}

/// Makes place for one more event of so many bytes, of a room that we are not in: what goes is the oldest of the
/// server itself, if it has its share, and in a full room the oldest of the server that has most. Servers that we know
/// go last. Errors: 429 `M_LIMIT_EXCEEDED` if that is the server itself, and it has nothing else.
fn make_place_remote(tx: &mut Tx<'_>, room: &Room, origin: &ServerName, bytes: usize) -> Result<()> {
    let mut shares = tx
        .pending_shares(room.key)?
        .into_iter()
        .map(|(server, events, bytes)| (server, events * EVENT_OVERHEAD_BYTES + bytes))
        .collect::<HashMap<_, _>>();
    let mut all: usize = shares.values().sum::<usize>() + EVENT_OVERHEAD_BYTES + bytes;
    *shares.entry(origin.clone()).or_default() += EVENT_OVERHEAD_BYTES + bytes;
    loop {
        let victim = if shares[origin] > REMOTE_PER_SERVER_BYTES_MAX {
            origin.clone()
        } else if all > REMOTE_BYTES_MAX {
            who_yields(tx, room, &shares, origin)?
        } else {
            return Ok(());
        };
        let freed = tx.end_first_pending(room.key, &victim)?.ok_or_else(too_many)? + EVENT_OVERHEAD_BYTES;
        log::debug!("an event of {} from {victim} makes place for a later one", room.room_id);
        all -= freed;
        shares.entry(victim).and_modify(|share| *share -= freed);
    }
}

/// Whose event goes from a full room: of the strangers among those that have most, the first; of equals, `newcomer`,
/// so that a new name alone puts nobody out.
fn who_yields(
    db: &Db<'_>,
    room: &Room,
    shares: &HashMap<ServerName, usize>,
    newcomer: &ServerName,
) -> Result<ServerName> {
    let mut by_share: Vec<_> =
        shares.iter().map(|(server, share)| (*share, server == newcomer, server)).collect();
    order::sort_by(&mut by_share, |a, b| b.cmp(a));
    for (_, _, server) in &by_share {
        if !db.is_neighbour(server)? && !db.is_via_of(&room.room_id, server)? {
            return Ok((*server).clone());
        }
    }
    Ok(by_share.first().map_or(newcomer, |(_, _, server)| server).clone())
}

fn is_full(queue: PendingCounts, new: &[NewPendingEvent], resident: bool) -> bool {
    let unverified = new.iter().filter(|event| !event.is_verified()).count();
    let bytes: usize = new.iter().map(|event| event.json.len()).sum();
    is_full_for(queue, (new.len(), unverified, bytes), resident)
}

/// Whether there is no room for so many more, so many of them unverified, of so many bytes.
fn is_full_for(
    queue: PendingCounts,
    (new, unverified, bytes): (usize, usize, usize),
    resident: bool,
) -> bool {
    queue.of_origin + new > if resident { PER_SERVER_EVENTS_MAX } else { PER_STRANGER_EVENTS_MAX }
        || queue.bytes + bytes > PER_SERVER_BYTES_MAX
        || (unverified > 0 && queue.unverified + unverified > PER_SERVER_UNVERIFIED_MAX)
        || (queue.in_room + new > PER_ROOM_EVENTS_MAX && queue.of_origin_in_room + new > FAIR_SHARE_EVENTS)
        || (!resident && queue.in_room + new > PER_ROOM_WITH_STRANGERS_MAX)
}

/// An event of a room that we are not in, of which everything is known that can be without being in it.
fn settle_remote(tx: &mut Tx<'_>, event: PendingEvent, now: Millis) -> Result<()> {
    let room = tx.room_by_key(event.room)?;
    if room.resident {
        return tx.hasten_pending_in(room.key);
    }
    if tx.joining_version(&room.room_id)?.is_some() && !tx.is_placed(&event.event_id)? {
        // The room will have its own view of it.
        let event = PendingEvent { retry_ms: now + QUIET_MS, ..event };
        return tx.put_off_pending(&event, &[]);
    }
    tx.end_pending(event.key)
}

/// Receives what can be authorised by what is here now, without much work; the rest stays pending, but for those for
/// which others are to be asked.
fn receive_ready(tx: &mut Tx<'_>, room: RoomKey, now: Millis) -> Result<ReadyPending> {
    let due = tx.due_pending(room, now, COMMIT_EVENTS_MAX)?;
    let version = tx.room_by_key(room)?.version;
    let mut ready = ReadyPending { ended: 0, more: due.len() == COMMIT_EVENTS_MAX, next: None };
    for event in due {
        if !event.verified {
            if tx.is_placed(&event.event_id)? {
                // It came once more, checked, and this one no longer matters.
                tx.end_pending(event.key)?;
                ready.ended += 1;
            } else {
                ready.next.get_or_insert(event);
            }
            continue;
        }
        let received = event.verified_pdu(version)?;
        let pdu = tx.wholest(&received)?.unwrap_or(received);
        let context = AuthContext { budget: ResolutionBudget::None, ..AuthContext::live(None) };
        let needs = match accept::authorise_copy(tx, &pdu, context)? {
            Verdict::Decided(decision) => {
                accept::store_decision(tx, &pdu, *decision, EventSource::Transaction)?;
                None
            }
            Verdict::Known(_) => None,
            Verdict::Refused(e) => {
                log::info!("{} of {} is refused: {e}", event.event_id, event.origin);
                None
            }
            Verdict::MissingAuth(ids) => Some(ids),
            Verdict::MissingPrev => Some(tx.unplaced(pdu.prev_events())?),
            Verdict::NeedsWork | Verdict::IsBehind => {
                ready.next.get_or_insert(event);
                continue;
            }
        };
        match needs {
            None => {
                tx.end_pending(event.key)?;
                ready.ended += 1;
            }
            // Something that it waited for came, and something else is still missing.
            Some(needs) if event.retry_ms > now => tx.put_off_pending(&event, &names(&needs))?,
            Some(_) => drop(ready.next.get_or_insert(event)),
        }
    }
    Ok(ready)
}

pub(in crate::service) fn millis(of: Duration) -> Millis {
    Millis::try_from(of.as_millis()).unwrap_or(Millis::MAX)
}

pub(in crate::service) fn names(ids: &[EventId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_without_end_that_are_not_in_a_room_leave_room_for_those_that_are() {
        let in_room = |in_room: usize| PendingCounts { in_room, ..PendingCounts::default() };
        let one = |queue: PendingCounts, resident: bool| is_full_for(queue, (1, 0, 100), resident);
        assert!(!one(in_room(PER_ROOM_WITH_STRANGERS_MAX - 1), false));
        assert!(one(in_room(PER_ROOM_WITH_STRANGERS_MAX), false));
        assert!(!one(in_room(PER_ROOM_WITH_STRANGERS_MAX), true));
        assert!(!one(in_room(PER_ROOM_EVENTS_MAX), true), "a fair share in any case");
        let fair = PendingCounts {
            of_origin_in_room: FAIR_SHARE_EVENTS,
            of_origin: FAIR_SHARE_EVENTS,
            ..in_room(PER_ROOM_EVENTS_MAX)
        };
        assert!(one(fair, true));
    }

    fn name(n: &str) -> ServerName {
        ServerName::parse(n).expect("a name")
    }

    /// An event of no more than its weight, waiting in a room that we are not in. Whether it found a place.
    fn send_from(tx: &mut Tx<'_>, room: &Room, origin: &ServerName, n: usize) -> bool {
        let json = vec![b'x'; 60_000];
        if make_place_remote(tx, room, origin, json.len()).is_err() {
            return false;
        }
        let id = EventId::parse(&format!("$e{n}-{origin}")).expect("an id");
        tx.add_pending(&NewPendingEvent::for_keys(room.key, (id, &json), &[], (0, 0)), origin, 0)
            .expect("it waits");
        true
    }

    #[test]
    fn names_without_end_fill_a_room_that_we_are_not_in_without_an_event_of_a_server_that_we_know_going() {
        let options = crate::store::Options::default();
        let us = name("us.example");
        let location = crate::store::Location::Memory;
        let store = crate::store::Store::open(location, &us, Box::new(|_| {}), &options).expect("a store");
        let write = store.write(|tx| {
            let (friend, early, late) = (name("friend.example"), name("early.example"), name("late.example"));
            tx.pretend_room("!home:us.example", &[&friend])?;
            let id = RoomId::parse("!away:there.example")?;
            let room = tx.make_room(&id, crate::protocol::room_version::room_version("11").expect("11"))?;
            assert!((0..3).all(|n| send_from(tx, &room, &friend, n)));
            assert!(send_from(tx, &room, &early, 0));
            let names: Vec<_> = (0..20).map(|n| name(&format!("s{n}.example"))).collect();
            for n in 0..20 {
                assert!(
                    names.iter().all(|name| send_from(tx, &room, name, n)),
                    "the last word of each is kept"
                );
            }
            let shares = |tx: &Tx<'_>| tx.pending_shares(room.key).expect("shares");
            let weight = |tx: &Tx<'_>| -> usize {
                shares(tx).iter().map(|(_, events, bytes)| events * EVENT_OVERHEAD_BYTES + bytes).sum()
            };
            let held = |tx: &Tx<'_>, of: &ServerName| -> usize {
                shares(tx).iter().find(|(server, ..)| server == of).map_or(0, |(_, events, _)| *events)
            };
            assert!(weight(tx) <= REMOTE_BYTES_MAX);
            assert_eq!((held(tx, &friend), held(tx, &early)), (3, 1));
            assert!(names.iter().all(|name| (1..=8).contains(&held(tx, name))));
            // Whoever has nothing yet takes the place of one who has much.
            assert!(send_from(tx, &room, &late, 0));
            // New names alone put out nobody who has as little; nor do they ever put out one that we know.
            let refused =
                (0..500).filter(|n| !send_from(tx, &room, &name(&format!("n{n}.example")), 0)).count();
            assert!(refused > 300, "{refused}");
            assert_eq!((held(tx, &friend), held(tx, &early), held(tx, &late)), (3, 1, 1));
            assert!((3..50).all(|n| send_from(tx, &room, &friend, n)), "one that we know is never refused");
            assert!(weight(tx) <= REMOTE_BYTES_MAX && held(tx, &friend) > 3);
            // None of it counts against them in rooms that we are in.
            let queue = tx.pending_counts(room.key, &friend)?;
            assert_eq!((queue.of_origin, queue.bytes, queue.unverified), (0, 0, 0));
            assert_eq!(queue.of_origin_in_room, held(tx, &friend));
            Ok(())
        });
        write.expect("written");
    }
}
