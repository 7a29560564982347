//! What goes next to a destination: the events and ephemeral messages of one transaction.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::locks::lock;
use crate::protocol::ServerName;
use crate::service::Homeserver;
use crate::service::outgoing::edus::lost_receipts;
use crate::service::outgoing::presence::presence_for_newcomer;
use crate::service::outgoing::queue::CulpritSearch;
use crate::service::outgoing::transaction::{OutgoingTransaction, OwedBatch, TransactionEdus};
use crate::service::outgoing::{
    EDU_BYTES_MAX, EDUS_MAX, MISSED_EVENTS_KEPT, MISSED_EVENTS_MAX, Outgoing, TRANSACTION_TIMEOUT,
    UNPROVEN_TRANSACTION_TIMEOUT,
};
use crate::store::RoomKey;
use crate::store::servers::owed::OwedEdu;

impl Outgoing {
    /// Once a destination that was away has taken in the transaction that had failed: of the rooms in which it missed
    /// much it is owed no more than the last events. They rest on the others, so that it learns of those.
    fn shorten_long_backlogs(&self, hs: &Homeserver, server: &ServerName) -> Result<()> {
        let cursor = match lock(&self.0.state).destinations.get_mut(server) {
            Some(peer) if peer.was_away && peer.kept.attempt_upto.is_none() => {
                peer.was_away = false;
                peer.kept.cursor
            }
            _ => return Ok(()),
        };
        let long =
            hs.store.read(|db| db.long_backlogs(server, cursor, MISSED_EVENTS_MAX, MISSED_EVENTS_KEPT))?;
        if long.is_empty() {
            return Ok(());
        }
        log::info!(
            "{server} was away: of {} rooms in which it missed much it gets the last events",
            long.len()
        );
        let server = server.clone();
        hs.store.write(move |tx| tx.shorten_backlogs(&server, cursor, &long))
    }

    /// Puts the next transaction together; none if nothing is owed.
    pub(super) fn prepare(
        &self,
        hs: &Homeserver,
        server: &ServerName,
    ) -> Result<Option<OutgoingTransaction>> {
        if !hs.config.peers.allows(server.as_str()) {
            // It stays owed, for the day when we talk to it again.
            return Ok(None);
        }
        self.shorten_long_backlogs(hs, server)?;
        let (kept, edus_upto, search, failed_edus, within) = {
            let mut state = lock(&self.0.state);
            let peer = state.destinations.entry(server.clone()).or_default();
            let within = if peer.reached { TRANSACTION_TIMEOUT } else { UNPROVEN_TRANSACTION_TIMEOUT };
            (peer.kept.clone(), peer.edus_upto, peer.search, peer.failed_edus.clone(), within)
        };
        let is_repeat = failed_edus.is_some() || kept.attempt_upto.is_some();
        if let CulpritSearch::Edus { most, upto } = search
            && !is_repeat
        {
            let durable = hs.store.read(|db| db.owed_edus(server, edus_upto, upto, most))?;
            if !durable.is_empty() {
                let edus = self.gather_edus(server, (Vec::new(), None), durable, (edus_upto, true)).0;
                let upto = kept.cursor;
                return Ok(Some(OutgoingTransaction { upto, events: Vec::new(), edus, more: true, within }));
            }
        }
        // Behind the ephemeral messages among which something was looked for there may be others: they come later. What is
        // said of device lists goes without: who misses it asks when it needs them.
        let is_searched = search != CulpritSearch::None;
        let without_edus = is_repeat || is_searched;
        let position = hs.store.position();
        let receipts_from = kept.receipts_from.filter(|_| !without_edus);
        let entered = match without_edus {
            true => BTreeSet::new(),
            false => self.take_entered_rooms(server),
        };
        let (mut owed, durable, receipts, presence) = hs.store.read(|db| {
            let upto = kept.attempt_upto.unwrap_or(position);
            let owed = OwedBatch::read(db, server, (kept.cursor, upto), search.max_pdus())?;
            // A repeat goes without what has become owed since it failed, ephemeral messages too.
            let durable = match without_edus {
                true => Vec::new(),
                false => db.owed_edus(server, edus_upto, position, EDUS_MAX)?,
            };
            let receipts = receipts_from.map(|after| lost_receipts(db, server, after)).transpose()?;
            let presence = match without_edus || !hs.config.presence {
                true => Vec::new(),
                false => presence_for_newcomer(db, server, &owed.newly_shared, &entered, hs.clock.now_ms())?,
            };
            Ok((owed, durable, receipts.unwrap_or_default(), presence))
        })?;
        let mut others = std::mem::take(&mut owed.device_lists);
        if is_searched && !is_repeat {
            others.clear();
        }
        others.extend(receipts);
        others.extend(presence);
        let (edus, more_edus) = match failed_edus {
            Some(failed) => (failed, false),
            None => {
                let others = (others, receipts_from.map(|_| position));
                self.gather_edus(server, others, durable, (edus_upto, without_edus))
            }
        };
        let more = kept.attempt_upto.is_some() || owed.more || more_edus || is_searched;
        let OwedBatch { events, upto, .. } = owed;
        if !events.is_empty() || !edus.edus.is_empty() {
            return Ok(Some(OutgoingTransaction { upto, events, edus, more, within }));
        }
        // Nothing owed up to here: next time the search begins here.
        let mut state = lock(&self.0.state);
        if receipts_from.is_some() {
            state.unflushed.insert(server.clone());
        }
        if let Some(peer) = state.destinations.get_mut(server) {
            peer.kept.cursor = peer.kept.cursor.max(upto);
            peer.failed_edus = None;
            if receipts_from.is_some() {
                // There were none, up to here.
                peer.kept.receipts_from = (peer.kept.failures > 0).then_some(position);
            }
            peer.search = CulpritSearch::None;
            peer.again |= more;
            if peer.kept.attempt_upto.take().is_some() {
                // The transaction that failed in an earlier run had nothing but ephemeral messages: look what is left.
                peer.again = true;
            } else if peer.kept.failures > 0 {
                peer.kept.failures = 0;
                state.unflushed.insert(server.clone());
            }
        }
        Ok(None)
    }

    fn take_entered_rooms(&self, server: &ServerName) -> BTreeSet<RoomKey> {
        let mut state = lock(&self.0.state);
        let peer = state.destinations.get_mut(server);
        peer.map(|peer| std::mem::take(&mut peer.entered_rooms)).unwrap_or_default()
    }

    /// The ephemeral part of a transaction: what was read for it now (device lists, presence, and receipts up to some
    /// position), as many of the durable messages as fit, and of those that wait in memory. After a restart nothing is known
    /// of the latter two parts of what failed: the repeat goes without. Also whether there are more.
    fn gather_edus(
        &self,
        server: &ServerName,
        (others, receipts_upto): (Vec<String>, Option<i64>),
        mut durable: Vec<OwedEdu>,
        (edus_upto, durable_alone): (i64, bool),
    ) -> (TransactionEdus, bool) {
        let most = EDUS_MAX - others.len();
        let sums = durable.iter().scan(0, |sum, owed| {
            *sum += owed.edu.len();
            Some(*sum)
        });
        let fitting = sums.take_while(|sum| *sum <= EDU_BYTES_MAX).count().clamp(1, most);
        let mut more = fitting < durable.len() || durable.len() == EDUS_MAX;
        durable.truncate(fitting);
        let (count, durable_upto) = (durable.len(), durable.last().map_or(edus_upto, |e| e.stream));
        let mut edus: Vec<String> = durable.into_iter().map(|e| e.edu).collect();
        for other in others {
            // The change of a device may have come after the join.
            if !edus.contains(&other) {
                edus.push(other);
            }
        }
        let mut state = lock(&self.0.state);
        state.serial += 1;
        let serial = state.serial;
        if let Some(peer) = state.destinations.get_mut(server).filter(|_| !durable_alone) {
            let room = (EDUS_MAX - edus.len()).min(peer.edus.len());
            edus.extend(peer.edus.drain(..room).map(|e| e.json));
            more |= !peer.edus.is_empty();
        }
        (TransactionEdus { edus, durable: count, durable_upto, receipts_upto, serial }, more)
    }
}
