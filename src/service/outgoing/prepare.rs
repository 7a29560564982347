//! What goes next to a destination: the events and ephemeral messages of one transaction.

use crate::error::Result;
use crate::locks::lock;
use crate::protocol::ServerName;
use crate::service::Homeserver;
use crate::service::outgoing::queue::CulpritSearch;
use crate::service::outgoing::transaction::{OutgoingTransaction, OwedBatch, TransactionEdus};
use crate::service::outgoing::{
    EDU_BYTES_MAX, EDUS_MAX, MISSED_EVENTS_KEPT, MISSED_EVENTS_MAX, Outgoing, TRANSACTION_TIMEOUT,
    UNPROVEN_TRANSACTION_TIMEOUT,
};
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
                let edus = self.gather_edus(server, Vec::new(), durable, (edus_upto, true)).0;
                let upto = kept.cursor;
                return Ok(Some(OutgoingTransaction { upto, events: Vec::new(), edus, more: true, within }));
            }
        }
        // Behind the ephemeral messages among which something was looked for there may be others: they come later. What is
        // said of device lists goes without: who misses it asks when it needs them.
        let is_searched = search != CulpritSearch::None;
        let without_edus = is_repeat || is_searched;
        let position = hs.store.position();
        let (mut owed, durable) = hs.store.read(|db| {
            let upto = kept.attempt_upto.unwrap_or(position);
            let owed = OwedBatch::read(db, server, (kept.cursor, upto), search.max_pdus())?;
            // A repeat goes without what has become owed since it failed, ephemeral messages too.
            let durable = match without_edus {
                true => Vec::new(),
                false => db.owed_edus(server, edus_upto, position, EDUS_MAX)?,
            };
            Ok((owed, durable))
        })?;
        let mut device_lists = std::mem::take(&mut owed.device_lists);
        if is_searched && !is_repeat {
            device_lists.clear();
        }
        let (edus, more_edus) = match failed_edus {
            Some(failed) => (failed, false),
            None => self.gather_edus(server, device_lists, durable, (edus_upto, without_edus)),
        };
        let more = kept.attempt_upto.is_some() || owed.more || more_edus || is_searched;
        let OwedBatch { events, upto, .. } = owed;
        if !events.is_empty() || !edus.edus.is_empty() {
            return Ok(Some(OutgoingTransaction { upto, events, edus, more, within }));
        }
        // Nothing owed up to here: next time the search begins here.
        let mut state = lock(&self.0.state);
        if let Some(peer) = state.destinations.get_mut(server) {
            peer.kept.cursor = peer.kept.cursor.max(upto);
            peer.failed_edus = None;
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

    /// The ephemeral part of a transaction: the device lists, as many of the durable messages as fit, and of those that
    /// wait in memory. After a restart nothing is known of the latter two parts of what failed: the repeat goes
    /// without. Also whether there are more.
    fn gather_edus(
        &self,
        server: &ServerName,
        device_lists: Vec<String>,
        mut durable: Vec<OwedEdu>,
        (edus_upto, durable_alone): (i64, bool),
    ) -> (TransactionEdus, bool) {
        let most = EDUS_MAX - device_lists.len();
        let sums = durable.iter().scan(0, |sum, owed| {
            *sum += owed.edu.len();
            Some(*sum)
        });
        let fitting = sums.take_while(|sum| *sum <= EDU_BYTES_MAX).count().clamp(1, most);
        let mut more = fitting < durable.len() || durable.len() == EDUS_MAX;
        durable.truncate(fitting);
        let (count, durable_upto) = (durable.len(), durable.last().map_or(edus_upto, |e| e.stream));
        let mut edus: Vec<String> = durable.into_iter().map(|e| e.edu).collect();
        for list in device_lists {
            // The change may have come after the join.
            if !edus.contains(&list) {
                edus.push(list);
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
        (TransactionEdus { edus, durable: count, durable_upto, serial }, more)
    }
}
