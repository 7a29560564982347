//! Copies of one event. Whoever relays an event may alter its content: then its hash is wrong, and what is kept is the
//! redacted form. The whole copy, which comes from elsewhere, takes its place, authorised as if it had come first.

use std::collections::HashSet;

use rusqlite::params;

use crate::error::Result;
use crate::protocol::event_auth::{AuthError, check_auth_events};
use crate::protocol::rooms::server_acl::ServerAcl;
use crate::protocol::{EventId, Pdu, VerifiedPdu};
use crate::store::Room;
use crate::store::rooms::events::StoredEvent;
use crate::store::rooms::state::StateRef;
use crate::store::{Db, EventKey, Status, Tx};

const ACL: &str = "m.room.server_acl";
/// So many server ACLs are looked back at for one that is whole.
const ACLS_LOOKED_AT_MAX: u32 = 20;

impl Db<'_> {
    /// The copy of a received event that is to be authorised: the one that we have, if only that one is whole.
    pub fn wholest(&self, received: &VerifiedPdu) -> Result<Option<VerifiedPdu>> {
        if received.is_whole() {
            return Ok(None);
        }
        let Some(stored) = self.event(received.event_id())? else { return Ok(None) };
        let is_better = stored.redacted_by.is_none()
            && stored.pdu.room_id() == received.room_id()
            && stored.pdu.canonical().content_hash_matches()
            && is_same_event(received, &stored.pdu);
        Ok(is_better.then(|| VerifiedPdu::from_store(stored.pdu)))
    }

    /// The event of a room as we have it, which was verified when it came and has not been rejected; none that we do not have.
    pub fn verified_event(&self, room: &Room, id: &EventId) -> Result<Option<VerifiedPdu>> {
        let stored = self.event(id)?;
        let counts = |stored: &StoredEvent| stored.room == room.key && stored.status != Status::Rejected;
        Ok(stored.filter(counts).map(|stored| VerifiedPdu::from_store(stored.pdu)))
    }

    /// Whether an event has the content that the stored one of its id has lost on its way here.
    pub fn lacks_content_of(&self, whole: &VerifiedPdu) -> Result<bool> {
        Ok(self.event(whole.event_id())?.is_some_and(|stored| is_whole_copy_of(whole, &stored)))
    }

    /// The room's server ACL. Of one whose content was lost on its way to us redaction leaves nothing, and what is left
    /// would keep everybody out who could tell us what it says: then the one before it goes on to hold.
    pub fn server_acl(&self, room: &Room) -> Result<Option<ServerAcl>> {
        let Some(acl) = self.state_event(room.key, ACL, "")? else { return Ok(None) };
        if !self.has_lost_content(&acl)? {
            return Ok(Some(ServerAcl::from_content(&acl.content())));
        }
        let Some(tuple_id) = self.state_tuple_id(ACL, "")? else { return Ok(None) };
        let mut statement = self.conn().prepare_cached(
            "SELECT previous FROM state_changes WHERE room_key = ?1 AND tuple_id = ?2 AND previous IS NOT NULL
             ORDER BY stream DESC LIMIT ?3",
        )?;
        let before =
            statement.query_map(params![room.key, tuple_id, ACLS_LOOKED_AT_MAX], |row| row.get(0))?;
        for key in before {
            let acl = self.pdu_by_key(key?)?;
            if !self.has_lost_content(&acl)? {
                return Ok(Some(ServerAcl::from_content(&acl.content())));
            }
        }
        Ok(None)
    }

    /// Whether an event has nothing of its content although the room has not redacted it.
    fn has_lost_content(&self, event: &Pdu) -> Result<bool> {
        Ok(event.content().is_empty()
            && !event.canonical().content_hash_matches()
            && self.event(event.event_id())?.is_some_and(|stored| stored.redacted_by.is_none()))
    }

    /// The verdict on an event of this room by its own auth events; none if they are not all here.
    pub(crate) fn verdict_by_auth_events(
        &self,
        pdu: &Pdu,
        create: Option<&Pdu>,
    ) -> Result<Option<std::result::Result<(), AuthError>>> {
        let (mut auth, mut rejected) = (Vec::new(), HashSet::<EventId>::new());
        for id in pdu.auth_events() {
            let Some(event) = self.event(id)? else { return Ok(None) };
            // A room has one create event: another one, with all that rests on it, is of some other room of this id.
            let is_strange = |own: &Pdu| event.pdu.is("m.room.create", "") && own.event_id() != id;
            if event.status == Status::Rejected || create.is_some_and(is_strange) {
                rejected.insert(id.clone());
            }
            auth.push(event.pdu);
        }
        if pdu.version().room_id_is_create_hash {
            auth.extend(create.cloned());
        }
        let verdict = check_auth_events(pdu, &auth, &|id| rejected.contains(id), pdu.version())
            .and_then(|()| self.auth_checker(pdu.version()).check_against_auth_events(pdu, &auth));
        Ok(Some(verdict))
    }

    /// Whether the whole copy is allowed where the redacted one was: content that redaction removes may matter to the
    /// rules (the `invite` level before version 11).
    fn is_still_allowed(&self, whole: &Pdu, stored: &StoredEvent) -> Result<bool> {
        let create = match whole.event_type() {
            "m.room.create" => None,
            _ => self.state_event(stored.room, "m.room.create", "")?,
        };
        if !matches!(self.verdict_by_auth_events(whole, create.as_ref())?, Some(Ok(()))) {
            return Ok(false);
        }
        let Some(before) = stored.state_before else { return Ok(true) };
        let checker = self.auth_checker(whole.version());
        let (state, failure) = (StateRef::snapshot(before), std::cell::RefCell::new(None));
        let verdict = checker.check(whole, &|event_type, state_key| {
            self.state_event_of(&state, event_type, state_key).unwrap_or_else(|e| {
                failure.borrow_mut().get_or_insert(e);
                None
            })
        });
        match failure.into_inner() {
            Some(e) => Err(e),
            None => Ok(verdict.is_ok()),
        }
    }
}

impl Tx<'_> {
    /// Takes the whole copy of an event that we have in its redacted form only, because whoever relayed it to us had
    /// altered its content. Nothing happens if ours is whole or was redacted by the room, or if the whole one is not
    /// allowed. A redaction that had lost what it redacts takes effect now.
    pub(crate) fn complete_event(&mut self, whole: &VerifiedPdu) -> Result<()> {
        let Some(stored) = self.event(whole.event_id())? else { return Ok(()) };
        if stored.pdu.room_id() == whole.room_id() && is_same_event(whole, &stored.pdu) {
            self.note_proof_of_known(stored.room, stored.key, whole.proof())?;
        }
        if !is_whole_copy_of(whole, &stored) || stored.status == Status::Rejected {
            return Ok(());
        }
        if !self.is_still_allowed(whole, &stored)? {
            log::info!("{} is whole now, and not allowed: its content is not taken", whole.event_id());
            return Ok(());
        }
        log::info!("{} is whole now", whole.event_id());
        self.put_content(stored.key, whole)?;
        if let Some(place) = stored.place {
            self.note_relation(stored.room, (stored.key, place), whole, false)?;
        }
        if whole.event_type() == "m.room.redaction"
            && !whole.is_state()
            && stored.status == Status::Accepted
            && let Some(redacts) = whole.redacts()
        {
            self.let_redaction_wait(&redacts, stored.key, whole.sender().server_name())?;
            if let Some(target) = self.event(&redacts)?.filter(|target| target.room == stored.room) {
                self.redact_if_awaited(&target.pdu, target.key)?;
            }
        }
        Ok(())
    }

    /// Gives an outlier that is getting its place the form of the copy that was judged: its content, if there is none, and
    /// its signatures. The room's policy server may have signed it meanwhile, and whoever gets the event from us asks after
    /// that.
    pub(in crate::store) fn complete_outlier(&mut self, judged: &VerifiedPdu) -> Result<()> {
        match self.event(judged.event_id())? {
            Some(stored) if is_other_copy_of(judged, &stored) => self.put_content(stored.key, judged),
            _ => Ok(()),
        }
    }

    /// Takes back the rejection of an event of which only the redacted form was authorised, if its auth events allow
    /// the whole one: then it is one that is only referred to, and its place is to be authorised. True if it was so.
    pub(crate) fn unlearn_rejected(&mut self, whole: &VerifiedPdu) -> Result<bool> {
        let Some(stored) = self.event(whole.event_id())? else { return Ok(false) };
        if stored.status != Status::Rejected || !is_whole_copy_of(whole, &stored) {
            return Ok(false);
        }
        let create = self.state_event(stored.room, "m.room.create", "")?;
        if !matches!(self.verdict_by_auth_events(whole, create.as_ref())?, Some(Ok(()))) {
            return Ok(false);
        }
        self.put_content(stored.key, whole)?;
        self.execute(
            "UPDATE events SET status = 0, state_before = NULL, state_after = NULL WHERE event_key = ?1",
            params![stored.key],
        )?;
        Ok(true)
    }

    /// An event that was rejected here is allowed by a room that we come into, and has no place in it yet.
    pub(in crate::store) fn accept_after_all(&mut self, event: EventKey, id: &EventId) -> Result<()> {
        log::info!("{id} was rejected here, and is part of the room all the same");
        self.remember(|cache| {
            cache.events.forget_event(id);
            cache.forget_auth_checkers();
        });
        self.execute(
            "UPDATE events SET status = 0, given = 0, state_before = NULL, state_after = NULL
             WHERE event_key = ?1 AND status = 2",
            params![event],
        )?;
        Ok(())
    }

    fn put_content(&mut self, event: EventKey, whole: &VerifiedPdu) -> Result<()> {
        self.remember(|cache| {
            cache.events.forget_event(whole.event_id());
            cache.forget_auth_checkers();
            cache.forget_name(whole.state_key().unwrap_or_default());
        });
        self.changes.redacted = true;
        self.execute("UPDATE events SET json = ?2 WHERE event_key = ?1", params![event, whole.json()])?;
        self.index_again(event)
    }
}

fn is_whole_copy_of(event: &VerifiedPdu, stored: &StoredEvent) -> bool {
    is_other_copy_of(event, stored) && !stored.pdu.canonical().content_hash_matches()
}

/// Whether it is a whole copy of the stored event, and another one.
fn is_other_copy_of(event: &VerifiedPdu, stored: &StoredEvent) -> bool {
    event.is_whole()
        && stored.redacted_by.is_none()
        && stored.pdu.json() != event.json()
        && stored.pdu.room_id() == event.room_id()
        && is_same_event(event, &stored.pdu)
}

/// In room versions 1 and 2 a server may choose one id for two events.
fn is_same_event(one: &Pdu, other: &Pdu) -> bool {
    one.canonical().reference_hash(one.version()) == other.canonical().reference_hash(other.version())
}
