//! Redactions as they are stored: which were accepted, which of them wait for their target, and what is left of that.

use rusqlite::params;

use crate::error::Result;
use crate::protocol::{EventId, Pdu};
use crate::store::{Db, EventKey, Tx};

/// Redactions of one server that wait for the same event.
const REDACTIONS_AWAITING_MAX: usize = 20;

impl Db<'_> {
    /// The redactions of an event that were accepted, whether or not they took effect.
    pub(crate) fn redactions_of(&self, id: &EventId) -> Result<Vec<EventKey>> {
        self.rows(
            "SELECT event_key FROM redactions WHERE redacts = ?1 ORDER BY event_key",
            params![id.as_str()],
            |r| r.get(0),
        )
    }
}

impl Tx<'_> {
    /// Notes an accepted redaction.
    pub(crate) fn note_redaction(&mut self, redacts: &EventId, by: EventKey) -> Result<()> {
        self.execute(
            "INSERT OR IGNORE INTO redactions (redacts, event_key) VALUES (?1, ?2)",
            params![redacts.as_str(), by],
        )?;
        Ok(())
    }

    /// Lets an accepted redaction wait for its target. When that comes, all that wait for it are looked at: so of
    /// those of one server no more wait than make a difference.
    pub(crate) fn let_redaction_wait(&mut self, target: &EventId, by: EventKey, server: &str) -> Result<()> {
        let mut others = 0;
        for key in self.redactions_of(target)? {
            others += usize::from(self.pdu_by_key(key)?.sender().server_name() == server);
        }
        if others < REDACTIONS_AWAITING_MAX {
            return self.note_redaction(target, by);
        }
        log::info!("too many redactions of {server} wait for {target}: one will not take effect");
        Ok(())
    }

    /// Lets a redaction take effect: only the redacted form stays.
    pub(crate) fn redact_event(&mut self, event: EventKey, by: EventKey, redacted: &Pdu) -> Result<()> {
        self.remember(|cache| {
            cache.events.forget_event(redacted.event_id());
            cache.forget_auth_checkers();
            cache.forget_name(redacted.state_key().unwrap_or_default());
        });
        self.changes.redacted = true;
        self.forget_redacted_text(event)?;
        self.remove_relation(event)?;
        self.execute(
            "UPDATE events SET redacted_by = ?2, json = ?3 WHERE event_key = ?1",
            params![event, by, redacted.json()],
        )?;
        Ok(())
    }
}
