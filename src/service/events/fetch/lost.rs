//! What was said in a room since the backup that this server was restored from. The next event that somebody sends rests on it,
//! and brings it back; in a room where nobody speaks the servers are asked once on which events the next one would rest, and those
//! are received as if they had sent them. That is what the template of a leave says (server-server API, `make_leave`), which
//! changes nothing where it is asked for; where a server gives none, it is asked for its last event (`timestamp_to_event`).

use std::time::{Duration, Instant};

use super::{Fetch, RECEIVE_TIMEOUT};
use serde_json::Value;

use crate::backoff::Backoff;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::federation::calls::HandshakeKind;
use crate::protocol::{EventId, ServerName};
use crate::service::events::Events;
use crate::store::{Room, RoomKey};

/// So many servers of a room are asked: they may differ in what is the last. It is over once one has answered.
const SERVERS_ASKED_MAX: usize = 3;
/// Time for each answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// While none of them answers.
const SILENCE_BACKOFF: Backoff = Backoff::doubling(60_000, 6 * 3_600_000);
/// After so many attempts it is left to who speaks next: some two days.
const ATTEMPTS_MAX: u32 = 16;
/// So far the clock of another server may be ahead of ours.
const CLOCKS_DIFFER_MAX_MS: Millis = 3_600_000;
/// No event rests on more.
const LAST_EVENTS_MAX: usize = 20;

impl Events<'_> {
    /// Asks the servers of a room for what was said last, if there is anybody to be asked.
    /// What fails for a reason of ours is an attempt as well.
    pub(in crate::service) fn ask_for_lost_events(&self, key: RoomKey, attempts: u32) -> Result<()> {
        let asked = self.ask_servers_for_lost_events(key, attempts);
        if self.scheduler.is_stopping() {
            return asked.map(drop);
        }
        let is_over = matches!(asked, Ok(true)) || attempts + 1 >= ATTEMPTS_MAX;
        let due = self.clock.now_ms() + SILENCE_BACKOFF.pause_ms(attempts + 1);
        self.store.write(move |tx| match is_over {
            true => tx.end_room_behind_backup(key),
            false => tx.put_off_room_behind_backup(key, due, attempts + 1),
        })?;
        asked.map(drop)
    }

    /// Whether one has answered, or there is none. Errors: those that are ours.
    fn ask_servers_for_lost_events(&self, key: RoomKey, attempts: u32) -> Result<bool> {
        let room = self.store.read(|db| db.room_by_key(key))?;
        let servers = if room.resident { self.backfill_servers(&room, attempts)? } else { Vec::new() };
        let mut is_over = servers.is_empty();
        for peer in servers.iter().take(SERVERS_ASKED_MAX) {
            if self.scheduler.is_stopping() {
                break;
            }
            match self.receive_last_events(&room, peer) {
                Ok(()) => is_over = true,
                Err(e) if e.is_own_failure() => return Err(e),
                Err(e) => log::debug!("{peer} does not say what was said last in {}: {e}", room.room_id),
            }
        }
        Ok(is_over)
    }

    /// Receives the last events that a server has of a room, and with them what they rest on. Errors: it does not answer.
    fn receive_last_events(&self, room: &Room, peer: &ServerName) -> Result<()> {
        let mut last = self.last_events(room, peer)?;
        self.store.read(|db| {
            for at in (0..last.len()).rev() {
                if db.event(&last[at])?.is_some_and(|event| event.state_before.is_some()) {
                    last.swap_remove(at);
                }
            }
            Ok(())
        })?;
        if last.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + RECEIVE_TIMEOUT;
        let mut events = Fetch::new(self, peer, room, until).fetch_events(&last)?;
        if !self.with_policy_signatures(&mut [(room, &mut events)], Some(until))?.is_empty() {
            return Err(Error::bad_gateway("the room's policy server does not answer"));
        }
        for event in events {
            if Instant::now() >= until {
                // Each of them may keep us asking for as long: the rest is for the next time.
                return Err(Error::bad_gateway("what was said last rests on too much").with_status(504));
            }
            let id = event.event_id().clone();
            match self.receive_pdu(peer, event) {
                Err(e) if e.is_own_failure() => return Err(e),
                Err(e) => log::debug!("{id} of {peer} is not taken: {e}"),
                Ok(()) => log::info!("{peer} had {id} of {}, which the backup had not", room.room_id),
            }
        }
        Ok(())
    }

    /// The events on which the next one that a server sends would rest, or the last one of them; none if it does not say.
    fn last_events(&self, room: &Room, peer: &ServerName) -> Result<Vec<EventId>> {
        if let Some(member) = self.store.read(|db| db.joined_local_users(room.key))?.first() {
            match self.federation.make_membership(
                peer,
                HandshakeKind::Leave,
                &room.room_id,
                member,
                &[],
                ANSWER_TIMEOUT,
            ) {
                Ok(template) => {
                    let named = template.event.get("prev_events").and_then(Value::as_array);
                    let last: Vec<_> = named.into_iter().flatten().filter_map(named_event).collect();
                    if !last.is_empty() {
                        return Ok(last.into_iter().take(LAST_EVENTS_MAX).collect());
                    }
                }
                Err(e) if e.is_transient() => return Err(e.into_client_error(peer)),
                Err(e) => log::debug!("{peer} gives {member} no leave from {}: {e}", room.room_id),
            }
        }
        let ts = self.clock.now_ms() + CLOCKS_DIFFER_MAX_MS;
        match self.federation.timestamp_to_event(peer, &room.room_id, ts, false, ANSWER_TIMEOUT) {
            Ok((id, _)) => Ok(vec![id]),
            Err(e) if e.is_transient() => Err(e.into_client_error(peer)),
            // It has nothing to tell us, or does not know the question.
            Err(_) => Ok(Vec::new()),
        }
    }
}

/// An event as `prev_events` name it: by its id, or in room versions 1 and 2 by a pair of id and hashes.
fn named_event(named: &Value) -> Option<EventId> {
    EventId::parse(named.as_str().or_else(|| named.get(0)?.as_str())?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::testing::secluded;

    #[test]
    fn what_fails_for_a_reason_of_ours_is_tried_so_often_and_less_and_less_and_no_more_than_what_nobody_answers()
     {
        let hs = secluded(Config::for_name(ServerName::parse("here.example").expect("a name")));
        // A room of which the database has nothing but that.
        let lost: RoomKey = 7777;
        let row = "INSERT INTO rooms_behind_backup (room_key, due_ms, attempts) VALUES (?1, 0, 0)";
        let put = move |tx: &mut crate::store::Tx<'_>| {
            tx.wake_timer();
            Ok(tx.conn().execute(row, [lost])?)
        };
        hs.store.write(put).expect("written");
        let due = |at: Millis| hs.store.read(|db| db.due_room_behind_backup(at)).expect("read");
        let (mut now, mut pauses) = (hs.clock.now_ms(), Vec::new());
        for attempts in 0..ATTEMPTS_MAX {
            assert_eq!(due(now), Some((lost, attempts)));
            let before = hs.clock.now_ms();
            let e = hs.events().ask_for_lost_events(lost, attempts).expect_err("there is no such room");
            assert!(e.is_own_failure(), "{e}");
            let next = hs.store.read(|db| db.next_room_behind_backup_due()).expect("read");
            let Some(next) = next else { break };
            assert_eq!(due(next - 1), None);
            // In minutes: writing takes some milliseconds of them.
            pauses.push((next - before) / 60_000);
            now = next;
        }
        assert_eq!(due(Millis::MAX), None, "after two days it is left to who speaks next");
        assert_eq!(pauses.len(), ATTEMPTS_MAX as usize - 1);
        assert!(pauses.is_sorted() && pauses[0] > 0 && pauses.iter().sum::<Millis>() > 24 * 60, "{pauses:?}");
    }
}
