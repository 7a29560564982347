//! A connection that is parked: it waits for news or for its next request, on a thread that does nothing else and holds next to
//! nothing.
//!
//! When many wait for the same, waking each of these threads takes longer than what there is to tell. So while its thread sleeps
//! a connection lies where another finds it, who was woken already and tells it, too, as far as its socket takes that at once.
//! The rest is for its own thread, as is whatever may take a while.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::http::transport::connection::{Connection, NextStep, WaitingRequest, Written};
use crate::http::transport::registry::ConnectionSlot;
use crate::http::transport::service::{Poll, Tell, WakeTurn};
use crate::http::transport::socket::is_gone;
use crate::locks::lock;

/// A connection whose request waits, for whoever tells it: another while its thread sleeps, else its own.
struct Parked {
    connection: Connection,
    waiting: Box<WaitingRequest>,
    /// What it was told.
    told: Option<Written>,
}

type ParkedPlace = Arc<Mutex<Option<Parked>>>;

impl Connection {
    /// Waits, holding next to nothing, until there is something to work on. `None`: there never will be.
    pub(super) fn park(mut self) -> Option<Self> {
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
        let Some(waiting) = self.waiting.take() else { return self.park_idle() };
        let shared = self.slot.shared.clone();
        let place = ParkedPlace::new(Mutex::new(Some(Parked { connection: self, waiting, told: None })));
        let parked = Instant::now();
        let (poll, turn) = wait(&place)?;
        if poll == Poll::Again {
            tell(&place);
        }
        // The next one is at it while this one is told, who may be slow to listen.
        drop(turn);
        let Parked { mut connection, mut waiting, told } = lock(&place).take()?;
        connection.patience.rested(parked.elapsed());
        if let Some(written) = told {
            drop(waiting);
            return match connection.write_rest(written) {
                Ok(NextStep::Request) if connection.pending.is_empty() => connection.park_idle(),
                Ok(NextStep::Request) => Some(connection),
                Ok(NextStep::Park | NextStep::Close) => {
                    connection.end();
                    None
                }
                Err(_) => None,
            };
        }
        waiting.poll = poll;
        if connection.transport.is_gone() {
            // Or it has only closed its sending half and still listens: then this is an early answer.
            waiting.poll = Poll::Last;
            waiting.reply_framing.keep_alive = false;
        }
        waiting.woken = Some(shared.bounds.permit_woken());
        connection.waiting = Some(waiting);
        Some(connection)
    }

    /// Waits for the next request.
    fn park_idle(mut self) -> Option<Self> {
        let until = self.idle_since + self.slot.shared.limits.idle_timeout;
        let readable = self.transport.wait_readable(until).unwrap_or(false);
        self.patience.rested(self.idle_since.elapsed());
        (readable && !self.slot.is_retired()).then_some(self)
    }
}

/// Waits for news, looking now and then whether the client is still there.
fn wait(place: &ParkedPlace) -> Option<(Poll, Option<WakeTurn>)> {
    let (peer, shared, wait_place, user, after, until) = {
        let parked = lock(place);
        let Parked { connection: Connection { slot: ConnectionSlot { peer, shared }, .. }, waiting, .. } =
            parked.as_ref()?;
        let (wait_place, until) = (waiting.place.clone(), waiting.place.until(waiting.until));
        (peer.clone(), shared.clone(), wait_place, waiting.user.clone(), waiting.after, until)
    };
    let told_by_others = place.clone();
    let tell: Tell = Arc::new(move || tell(&told_by_others));
    wait_place.is_told_by(&tell);
    while !wait_place.is_over() {
        let check = (Instant::now() + shared.limits.hang_up_check_interval).min(until);
        let (next, turn) = shared.service.wait_in_turn(&user, after, check, &tell);
        let over = next == Some(Poll::Last) || Instant::now() >= until || shared.is_stopping();
        if over || next.is_none() && is_gone(&peer.tcp) {
            return Some((Poll::Last, None));
        }
        if let Some(poll) = next {
            return Some((poll, turn));
        }
    }
    Some((Poll::Last, None))
}

/// Tells a waiting request what there is for it, if that is something that many are told at once: no worker has to take it over then.
/// Who has gone meanwhile is not looked for, since that shows when they are told. False: a worker has to look.
fn tell(place: &ParkedPlace) -> bool {
    let mut place = lock(place);
    let Some(Parked { connection, waiting, told }) = place.as_mut() else { return false };
    if told.is_none() {
        let light = catch_unwind(AssertUnwindSafe(|| waiting.request.light_answer())).ok().flatten();
        // Whose thread sleeps is waited for by nobody but the one who tells them: no panic may keep that from an end.
        *told = light.map(|reply| {
            let write = AssertUnwindSafe(|| connection.write_now(reply, waiting.reply_framing));
            catch_unwind(write).unwrap_or(Written::Failed)
        });
    }
    told.is_some()
}
