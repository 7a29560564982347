//! What was said in a room since the backup that this server was restored from. The next event that somebody sends rests on it,
//! and brings it back; in a room where nobody speaks the servers are asked once which event is the last (server-server API,
//! `timestamp_to_event`), and that one is received as if they had sent it. Where a room's history ends in several events that were
//! sent at the same moment, it is one of them; the others come with the next event.

use std::time::Instant;

use super::{Fetch, RECEIVE_TIMEOUT};
use crate::backoff::Backoff;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::ServerName;
use crate::service::events::Events;
use crate::store::{Room, RoomKey};

/// So many servers of a room are asked, and one that answers is enough.
const SERVERS_ASKED_MAX: usize = 3;
/// While none of them answers.
const SILENCE_BACKOFF: Backoff = Backoff::doubling(60_000, 6 * 3_600_000);
/// After so many attempts it is left to who speaks next: some two days.
const ATTEMPTS_MAX: u32 = 16;
/// So far the clock of another server may be ahead of ours.
const CLOCKS_DIFFER_MAX_MS: Millis = 3_600_000;

impl Events<'_> {
    /// Asks the servers of a room for what was said last, if there is anybody to be asked.
    pub(in crate::service) fn ask_for_lost_events(&self, key: RoomKey, attempts: u32) -> Result<()> {
        let room = self.store.read(|db| db.room_by_key(key))?;
        let servers = if room.resident { self.backfill_servers(&room)? } else { Vec::new() };
        let mut is_over = servers.is_empty() || attempts + 1 >= ATTEMPTS_MAX;
        for peer in servers.iter().take(SERVERS_ASKED_MAX) {
            if self.scheduler.is_stopping() {
                return Ok(());
            }
            match self.receive_last_event(&room, peer) {
                Ok(()) => is_over = true,
                Err(e) if e.is_own_failure() => return Err(e),
                Err(e) => log::debug!("{peer} does not say what was said last in {}: {e}", room.room_id),
            }
        }
        let due = self.clock.now_ms() + SILENCE_BACKOFF.pause_ms(attempts + 1);
        self.store.write(move |tx| match is_over {
            true => tx.end_room_behind_backup(key),
            false => tx.put_off_room_behind_backup(key, due, attempts + 1),
        })
    }

    /// Receives the last event that a server has of a room, and with it what it rests on. Errors: it does not answer.
    fn receive_last_event(&self, room: &Room, peer: &ServerName) -> Result<()> {
        let ts = self.clock.now_ms() + CLOCKS_DIFFER_MAX_MS;
        let id = match self.federation.timestamp_to_event(peer, &room.room_id, ts, false) {
            Ok((id, _)) => id,
            Err(e) if e.is_transient() => return Err(e.into_client_error(peer)),
            // It has nothing to tell us, or does not know the question.
            Err(_) => return Ok(()),
        };
        if self.store.read(|db| Ok(db.event(&id)?.is_some_and(|event| event.state_before.is_some())))? {
            return Ok(());
        }
        let until = Instant::now() + RECEIVE_TIMEOUT;
        let mut events = Fetch::new(self, peer, room, until).fetch_events(std::slice::from_ref(&id))?;
        if self.with_policy_signatures(&mut [(room, &mut events)], Some(until))? > 0 {
            return Err(Error::bad_gateway("the room's policy server does not answer"));
        }
        for event in events {
            match self.receive_pdu(peer, event) {
                Err(e) if e.is_own_failure() => return Err(e),
                Err(e) => log::debug!("{id} of {peer} is not taken: {e}"),
                Ok(()) => log::info!("{peer} had {id} of {}, which the backup had not", room.room_id),
            }
        }
        Ok(())
    }
}
