//! Delayed events (MSC4140): events that a client asks to be sent later, and whose delay it begins anew as long as it
//! lives. So a call knows who has fallen out of it: whoever does not come back in time has sent their leave before.
//!
//! A delayed event is a row with a time, so that it is sent across a restart of the server; it goes in the very
//! transaction in which its event comes into the room, so that it is sent at most once. Which request asked for it is kept
//! for longer, since a client that never had the answer asks again, if need be when the event was sent or cancelled. What
//! the room thinks of it is asked when it is sent, and not before; what is wrong with it by itself is said at once.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, UserId};
use crate::random;
use crate::service::events::accept::Sent;
use crate::service::events::draft::Draft;
use crate::service::rooms::Rooms;
use crate::service::rooms::send::{MembershipWay, not_there_as_forbidden};
use crate::service::rooms::view::readable_room;
use crate::store::Tx;
use crate::store::accounts::client_transactions::{ClientTxn, DelayedOutcome};
use crate::store::rooms::delayed_events::DelayedEvent;

/// Longest delay. Whoever watches over a call for its members restarts their leaves every few hours.
pub const DELAY_MAX_MS: Millis = 24 * 3600 * 1000;
/// Delayed events of one user.
pub const DELAYED_EVENTS_MAX: usize = 100;
/// Largest content, in bytes: an event has at most 65 536, and some of them are not content.
const CONTENT_BYTES_MAX: usize = 60 * 1024;
/// When one is tried again that could not be sent for a reason that passes,
const RETRY_MS: Millis = 5_000;
/// and for how long after it was due.
const TRIED_FOR_MS: Millis = 10 * 60 * 1000;
/// Letters of an id: it is all that is needed to cancel an event.
const ID_LETTERS: usize = 32;

/// What may be done with a delayed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Restart,
    Cancel,
    Send,
}

/// What a client is told of a delayed event of its user. Some have other names in earlier and in later drafts.
#[derive(Debug, Serialize)]
pub struct DelayedEventInfo {
    delay_id: String,
    room_id: String,
    #[serde(rename = "type")]
    event_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<String>,
    content: Map<String, Value>,
    delay: Millis,
    delay_ms: Millis,
    running_since: Millis,
    delayed_since_ts: Millis,
}

impl From<DelayedEvent> for DelayedEventInfo {
    fn from(event: DelayedEvent) -> Self {
        Self {
            delay_id: event.delay_id,
            room_id: event.room_id.to_string(),
            event_type: event.event_type,
            state_key: event.state_key,
            content: event.content,
            delay: event.delay_ms,
            delay_ms: event.delay_ms,
            running_since: event.since_ms,
            delayed_since_ts: event.since_ms,
        }
    }
}

fn unknown() -> Error {
    Error::not_found("There is no such delayed event, any more or yet")
}

impl Rooms<'_> {
    /// Has an event sent after so many milliseconds, unless something comes in between; gives the id by which it is known.
    /// A repeat of the same transaction is answered as the first time. Errors: 400 `M_INVALID_PARAM` for a negative delay,
    /// `M_UNKNOWN` for one that is too long; those of [`Rooms::check_content`] and [`Rooms::check_new_aliases`]; 403
    /// `M_FORBIDDEN` for who is not in the room, and for what begins one; 413 `M_TOO_LARGE`; 429 `M_LIMIT_EXCEEDED`.
    pub fn delay_event(&self, draft: Draft, txn: Option<ClientTxn>, delay_ms: Millis) -> Result<String> {
        if delay_ms < 0 {
            return Err(Error::invalid_param("The delay must not be negative"));
        }
        if delay_ms > DELAY_MAX_MS {
            // The form of the first draft, which is the one that clients know to shorten their delay by.
            return Err(Error::new(ErrCode::Unknown, "The delay is longer than this server allows")
                .with_status(400)
                .with_field("org.matrix.msc4140.errcode", "M_MAX_DELAY_EXCEEDED")
                .with_field("org.matrix.msc4140.max_delay", DELAY_MAX_MS));
        }
        if Value::Object(draft.content.clone()).to_string().len() > CONTENT_BYTES_MAX {
            return Err(Error::new(ErrCode::TooLarge, "The event is too large"));
        }
        if draft.event_type == "m.room.create" {
            return Err(Error::forbidden("A room has its m.room.create already"));
        }
        // Before it is asked whether the user is there, as where the event is sent at once.
        self.check_content(&draft)?;
        let known = self.store.read(|db| {
            if let Some(txn) = &txn
                && let Some(known) = db.client_txn_delayed_event(txn)?
            {
                return Ok(Some(known));
            }
            let room = readable_room(db, &draft.room)?;
            match db.membership(room.key, &draft.sender)? {
                Some(Membership::Join) => Ok(None),
                _ => Err(Error::not_in_room()),
            }
        })?;
        if let Some(known) = known {
            return Ok(known);
        }
        self.check_new_aliases(&draft)?;
        let now = self.clock.now_ms();
        let event = DelayedEvent {
            delay_id: random::letters(ID_LETTERS),
            user_id: draft.sender,
            room_id: draft.room,
            event_type: draft.event_type,
            state_key: draft.state_key,
            content: draft.content,
            delay_ms,
            since_ms: now,
            due_ms: now + delay_ms,
        };
        let user = event.user_id.clone();
        let added =
            self.store.write(move |tx| tx.add_delayed_event(&event, txn.as_ref(), DELAYED_EVENTS_MAX))?;
        match added {
            Some(delay_id) => Ok(delay_id),
            None => Err(self.too_many(&user, now)?),
        }
    }

    /// "Too many": there is room again when the first of them is sent.
    fn too_many(&self, user: &UserId, now: Millis) -> Result<Error> {
        let first =
            self.store.read(|db| db.delayed_events_of(user))?.first().map_or(now, |event| event.due_ms);
        Ok(Error::new(ErrCode::LimitExceeded, "Too many events of yours are to be sent later")
            .with_field("org.matrix.msc4140.errcode", "M_MAX_DELAYED_EVENTS_EXCEEDED")
            .with_field("retry_after_ms", (first - now).max(1000)))
    }

    /// The delayed events of a user, that which is due first first.
    pub fn delayed_events(&self, user: &UserId) -> Result<Vec<DelayedEventInfo>> {
        let events = self.store.read(|db| db.delayed_events_of(user))?;
        Ok(events.into_iter().map(DelayedEventInfo::from).collect())
    }

    /// One delayed event of a user. Errors: 404 `M_NOT_FOUND`.
    pub fn delayed_event(&self, user: &UserId, delay_id: &str) -> Result<DelayedEventInfo> {
        let event = self.store.read(|db| db.delayed_event(delay_id))?;
        event.filter(|event| event.user_id == *user).map(DelayedEventInfo::from).ok_or_else(unknown)
    }

    /// Whether it is still to be sent; else what to answer. Anybody may ask, so who guesses ids costs the writer nothing.
    /// Errors: those of [`Rooms::finished`].
    fn is_scheduled(&self, delay_id: &str, action: Action) -> Result<bool> {
        match self.store.read(|db| db.has_delayed_event(delay_id))? {
            true => Ok(true),
            false => self.finished(delay_id, action).map(|()| false),
        }
    }

    /// What an action comes to that is too late: to nothing if that was done before. Errors: 409 `M_NOT_FOUND` if something else
    /// was, by which clients that restart their leave from a call know that they need another; 404 `M_NOT_FOUND` if it is not
    /// known any more what was done, or there never was such an event.
    fn finished(&self, delay_id: &str, action: Action) -> Result<()> {
        let outcome = self.store.read(|db| db.delayed_outcome(delay_id))?.ok_or_else(unknown)?;
        let conflict = |what: &'static str| Err(Error::new(ErrCode::NotFound, what).with_status(409));
        match (outcome, action) {
            (DelayedOutcome::Sent, Action::Send) | (DelayedOutcome::Cancelled, Action::Cancel) => Ok(()),
            (DelayedOutcome::Sent, _) => conflict("The delayed event was sent already"),
            (DelayedOutcome::Cancelled, _) => conflict("The delayed event was cancelled already"),
        }
    }

    /// Begins the delay anew. Errors: 404 and 409 `M_NOT_FOUND`.
    pub fn restart_delayed_event(&self, delay_id: &str) -> Result<()> {
        self.is_scheduled(delay_id, Action::Restart)?;
        let (id, now) = (delay_id.to_owned(), self.clock.now_ms());
        // Every member of a call does so every few seconds. A power cut that takes back the last of it sends the event a
        // little early, of somebody who was not to be reached just then.
        match self.store.write_lightly(move |tx| tx.restart_delayed_event(&id, now))? {
            true => Ok(()),
            false => self.finished(delay_id, Action::Restart),
        }
    }

    /// Has a delayed event not sent. Errors: 404 and 409 `M_NOT_FOUND`.
    pub fn cancel_delayed_event(&self, delay_id: &str) -> Result<()> {
        if !self.is_scheduled(delay_id, Action::Cancel)? {
            return Ok(());
        }
        let (id, now) = (delay_id.to_owned(), self.clock.now_ms());
        let outcome = (DelayedOutcome::Cancelled, None);
        match self.store.write(move |tx| tx.finish_delayed_event(&id, None, outcome, now))? {
            true => Ok(()),
            false => self.finished(delay_id, Action::Cancel),
        }
    }

    /// Sends a delayed event now. Errors: 404 and 409 `M_NOT_FOUND`; what the room has against it, and what passes: then
    /// it stays, and is sent when it is due.
    pub fn send_delayed_event_now(&self, delay_id: &str) -> Result<()> {
        let Some(event) = self.store.read(|db| db.delayed_event(delay_id))? else {
            return self.finished(delay_id, Action::Send);
        };
        match self.send_delayed(&event, None) {
            Err(error) if self.store.read(|db| db.has_delayed_event(delay_id))? => {
                Err(not_there_as_forbidden(error))
            }
            // Somebody else was faster.
            Err(_) => self.finished(delay_id, Action::Send),
            Ok(_) => Ok(()),
        }
    }

    /// Sends a delayed event that is due, unless it was restarted or cancelled meanwhile. Errors: what the room has
    /// against it; what passes, and then it is due again after a while.
    pub(in crate::service) fn send_due_delayed_event(&self, delay_id: &str) -> Result<()> {
        let now = self.clock.now_ms();
        let event = self.store.read(|db| db.delayed_event(delay_id))?;
        let Some(event) = event.filter(|event| event.due_ms <= now) else { return Ok(()) };
        match self.send_delayed(&event, Some(event.due_ms)) {
            Err(error) if error.errcode() != ErrCode::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Who was locked or suspended since says no more than they could now, and who is gone nothing. Errors: 403
    /// `M_USER_SUSPENDED`, `M_FORBIDDEN`.
    fn check_sender(&self, draft: &Draft) -> Result<()> {
        let account = self.store.read(|db| db.account(&draft.sender))?;
        let Some(account) = account.filter(|account| !account.deactivated) else {
            return Err(Error::forbidden("There is no such account any more"));
        };
        match account.standing.locked || account.standing.suspended {
            true => self.check_sent_while_suspended(draft),
            false => Ok(()),
        }
    }

    fn send_delayed(&self, event: &DelayedEvent, due: Option<Millis>) -> Result<EventId> {
        let draft = Draft {
            room: event.room_id.clone(),
            sender: event.user_id.clone(),
            event_type: event.event_type.clone(),
            state_key: event.state_key.clone(),
            content: event.content.clone(),
            redacts: None,
            origin_server_ts: None,
        };
        let sent = self.check_sender(&draft).and_then(|()| self.send_and_note(event, due, draft));
        let (Err(error), Some(due)) = (&sent, due) else { return sent };
        let (id, now) = (event.delay_id.clone(), self.clock.now_ms());
        let is_late = now > event.since_ms + event.delay_ms + TRIED_FOR_MS;
        if error.status() != 429 && error.status() < 500 || is_late {
            // Nothing that is so now will be otherwise.
            let outcome = (DelayedOutcome::Cancelled, None);
            let was_there =
                self.store.write(move |tx| tx.finish_delayed_event(&id, Some(due), outcome, now))?;
            return if was_there { sent.map_err(not_there_as_forbidden) } else { Err(unknown()) };
        }
        self.store.write(move |tx| tx.put_off_delayed_event(&id, (due, now + RETRY_MS)))?;
        sent
    }

    fn send_and_note(&self, event: &DelayedEvent, due: Option<Millis>, mut draft: Draft) -> Result<EventId> {
        let way = match &event.state_key {
            Some(target) if event.event_type == "m.room.member" => {
                Some(self.way_of_membership(&mut draft, target)?)
            }
            _ => None,
        };
        let (id, now) = (event.delay_id.clone(), self.clock.now_ms());
        let note = move |tx: &mut Tx<'_>, sent: &Sent| {
            let outcome = (DelayedOutcome::Sent, Some(sent.key));
            match tx.finish_delayed_event(&id, due, outcome, now)? {
                true => Ok(()),
                // It was cancelled, restarted or sent meanwhile: with this error the event is undone.
                false => Err(unknown()),
            }
        };
        match way {
            None => self.send_and_then(draft, note),
            Some(MembershipWay::Event) => self.events().send_with(draft, note),
            Some(MembershipWay::Handshake(target, membership)) => {
                self.send_delayed_handshake(event, due, || self.shake_hands(&draft, &target, membership))
            }
        }
    }

    /// What may take another server: what is to be done once is done before, and undone if it comes to nothing. That it was
    /// sent is noted when it was, so that nobody is told so of what a crash in between has lost.
    fn send_delayed_handshake(
        &self,
        event: &DelayedEvent,
        due: Option<Millis>,
        shake_hands: impl FnOnce() -> Result<EventId>,
    ) -> Result<EventId> {
        let id = event.delay_id.clone();
        if !self.store.write(move |tx| tx.take_delayed_event(&id, due))? {
            return Err(unknown());
        }
        let sent = shake_hands();
        let now = self.clock.now_ms();
        let (event, became) = (event.clone(), sent.as_ref().ok().cloned());
        self.store.write(move |tx| match became {
            Some(became) => tx.delayed_event_became(&event.delay_id, &became, now),
            None => tx.put_back_delayed_event(&event),
        })?;
        sent
    }
}
