//! Events of our own: from a draft to a signed event in its room.
//!
//! A draft becomes an event on the writer's thread, where the room's order is known and what it takes is remembered:
//! so however many speak at once, nothing is built twice. What would hold the writer up (the signature of a policy
//! server, a resolution of forks) is done before, against a snapshot; the transaction that commits such an event first
//! looks whether the room's forward extremities are still those that it was authorised by, and builds it anew if not.
//! No room is ever locked.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{accept, authorise, policy_server, resolve};
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::event_auth::{self, PowerLevels};
use crate::protocol::json::{CanonicalObject, object_of};
use crate::protocol::pdu::PREV_EVENTS_MAX;
use crate::protocol::room_version::EventIdFormat;
use crate::protocol::rooms::server_acl::ServerAcl;
use crate::protocol::signatures::sign::SigningKey;
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, ServerName, VerifiedPdu, json as matrix_json};
use crate::random;
use crate::service::events::Events;
use crate::service::events::accept::Sent;
use crate::service::events::authorise::{AuthContext, RoomExtremities};
use crate::service::events::draft::Draft;
use crate::service::events::entry::{check_entry, check_puts_nobody_out};
use crate::service::events::extremities::may_be_late;
use crate::service::events::resolve::{ResolutionBudget, StateSet};
use crate::service::events::state_view::StateView;
use crate::store::accounts::client_transactions::ClientTxn;
use crate::store::rooms::append::{Append, Appended, Current};
use crate::store::rooms::events::ForwardExtremity;
use crate::store::rooms::not_resident;
use crate::store::rooms::state::StateRef;
use crate::store::{Db, EventKey, Room, Status, Tx};

/// What it takes to make an event of this server.
#[derive(Clone)]
pub(in crate::service) struct EventSigner {
    pub server: ServerName,
    pub key: Arc<SigningKey>,
    pub now: Millis,
}

impl EventSigner {
    /// A signed event of this server.
    pub(in crate::service) fn write(
        &self,
        mut object: Map<String, Value>,
        version: RoomVersion,
    ) -> Result<VerifiedPdu> {
        if version.event_id_format == EventIdFormat::InEvent {
            let id = format!("${}:{}", random::letters(18), self.server);
            object.insert("event_id".into(), id.into());
        }
        let pdu = VerifiedPdu::seal(&object, &self.server, &self.key, version)?;
        if pdu.is(ACL, "") {
            check_server_acl(&self.server, &pdu.content())?;
        }
        Ok(pdu)
    }
}

/// A server ACL that keeps this server out could never be taken back: nobody would hear us any more. Errors: 400
/// `M_BAD_JSON`.
pub(in crate::service) fn check_server_acl(server: &ServerName, content: &Map<String, Value>) -> Result<()> {
    match ServerAcl::from_content(content).allows(server.as_str()) {
        true => Ok(()),
        false => Err(Error::bad_json("This server ACL would keep your own server out of the room, for good")),
    }
}

/// The type of the setting that says which servers may take part in a room.
const ACL: &str = "m.room.server_acl";

/// How often an event is built beforehand, if it takes much resolution of states and the room moves on meanwhile.
const BUILD_ATTEMPTS_MAX: usize = 3;
/// When whoever wants to speak in a room that never stands still should try again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a room makes of a draft.
struct BuiltEvent<T> {
    room: Room,
    /// The event as it was written, authorised.
    event: T,
    /// All forward extremities of the room.
    extremities: Vec<EventKey>,
    /// Those that stay beside the event, because it cannot name them all.
    kept: Vec<EventKey>,
    /// The state before it.
    state: StateRef,
}

/// Gives a draft everything that the room adds to it, and authorises it against the room's current state. `write`
/// makes of it what is wanted, and an event to be authorised. None if the room has more forks than an event can join,
/// and resolving their states is more work than wanted.
fn build<T>(
    db: &Db<'_>,
    now: Millis,
    room: Room,
    draft: &Draft,
    budget: ResolutionBudget,
    write: impl FnOnce(Map<String, Value>, RoomVersion) -> Result<(T, Pdu)>,
) -> Result<Option<BuiltEvent<T>>> {
    check_speakable(db, &room)?;
    check_entry(db, &room, draft)?;
    let mut prev_extremities = db.forward_extremities(room.key)?;
    let extremities = prev_extremities.iter().map(|extremity| extremity.key).collect();
    // More than an event can name: it follows the latest, and the next events take the others up.
    let kept: Vec<EventKey> = prev_extremities
        .drain(..prev_extremities.len().saturating_sub(PREV_EVENTS_MAX))
        .map(|extremity| extremity.key)
        .collect();
    if !kept.is_empty() && budget == ResolutionBudget::None {
        return Ok(None);
    }
    let depth = prev_extremities.iter().map(|extremity| extremity.depth).max().unwrap_or(0);
    let Some(state) = state_after(db, &room, &prev_extremities, kept.is_empty(), budget)? else {
        return Ok(None);
    };
    let view = match kept.is_empty() {
        true => StateView::current(db, room.key),
        false => StateView::new(|event_type, state_key| db.state_event_of(&state, event_type, state_key)),
    };
    let wanted = event_auth::selection(
        &draft.event_type,
        draft.sender.as_str(),
        draft.state_key.as_deref(),
        &draft.content,
        room.version,
    );
    let auth: Vec<Pdu> = wanted.iter().filter_map(|(event_type, key)| view.get(event_type, key)).collect();
    let prev = match room.version.event_id_format {
        EventIdFormat::InEvent => prev_extremities
            .iter()
            .map(|extremity| db.pdu_by_key(extremity.key))
            .collect::<Result<Vec<_>>>()?,
        _ => Vec::new(),
    };
    let prev_events = match room.version.event_id_format {
        EventIdFormat::InEvent => references(&prev),
        _ => prev_extremities.iter().map(|extremity| Value::from(extremity.event_id.as_str())).collect(),
    };
    let mut object = draft_object(draft, room.version, now);
    object.insert("prev_events".into(), prev_events);
    object.insert("auth_events".into(), references(&auth));
    object.insert("depth".into(), depth.saturating_add(1).min(room.version.max_depth()).into());
    let (event, pdu) = write(object, room.version)?;
    authorise_draft(db, &room, &pdu, &view, &state)?;
    check_puts_nobody_out(db, &room, draft)?;
    drop(view);
    Ok(Some(BuiltEvent { room, event, extremities, kept, state }))
}

/// The state after the extremities that an event follows: the current state if those are all. None if that is more
/// work than wanted.
fn state_after(
    db: &Db<'_>,
    room: &Room,
    prev_extremities: &[ForwardExtremity],
    all: bool,
    budget: ResolutionBudget,
) -> Result<Option<StateRef>> {
    if all {
        let state = room.state.ok_or_else(|| Error::internal("a room without a state"))?;
        return Ok(Some(StateRef::snapshot(state)));
    }
    let set = |extremity: &ForwardExtremity| StateSet {
        state: StateRef::snapshot(extremity.state_after),
        unstored: None,
    };
    resolve::resolve(db, room.version, prev_extremities.iter().map(set).collect(), budget)
}

/// Everything of an event that does not depend on the room's graph.
pub(in crate::service) fn draft_object(
    draft: &Draft,
    version: RoomVersion,
    now: Millis,
) -> Map<String, Value> {
    let mut object = object_of([
        ("type", Value::from(draft.event_type.as_str())),
        ("sender", draft.sender.as_str().into()),
        ("origin_server_ts", draft.origin_server_ts.unwrap_or(now).into()),
        ("content", Value::Object(draft.content.clone())),
    ]);
    if !(version.room_id_is_create_hash && draft.event_type == "m.room.create") {
        object.insert("room_id".into(), draft.room.as_str().into());
    }
    if let Some(state_key) = &draft.state_key {
        object.insert("state_key".into(), state_key.as_str().into());
    }
    if let Some(redacts) = &draft.redacts {
        match (version.redacts_in_content, object.get_mut("content")) {
            (true, Some(Value::Object(content))) => content.insert("redacts".into(), redacts.as_str().into()),
            _ => object.insert("redacts".into(), redacts.as_str().into()),
        };
    }
    object
}

/// How an event refers to others: by id, or in versions 1 and 2 by id and hash.
pub(in crate::service) fn references(events: &[Pdu]) -> Value {
    let reference = |event: &Pdu| match event.version().event_id_format {
        EventIdFormat::InEvent => {
            let hash = matrix_json::base64(&event.canonical().reference_hash(event.version()));
            json!([event.event_id(), { "sha256": hash }])
        }
        _ => event.event_id().as_str().into(),
    };
    events.iter().map(reference).collect()
}

/// A room can be spoken in if its events reach us, or if there is nobody left elsewhere whose word would count more.
fn check_speakable(db: &Db<'_>, room: &Room) -> Result<()> {
    if room.state.is_some() && (room.resident || db.resident_servers(room.key)?.is_empty()) {
        return Ok(());
    }
    Err(not_resident())
}

fn authorise_draft(
    db: &Db<'_>,
    room: &Room,
    pdu: &Pdu,
    view: &StateView<'_>,
    state: &StateRef,
) -> Result<()> {
    if pdu.event_type() == "m.room.create" {
        // Rule 1.1: a room has one, and before it there is nothing. The rules that look at a state let it pass.
        event_auth::check_auth_events(pdu, &[], &|_| false, room.version).map_err(Error::from)?;
    }
    view.authorise(&db.auth_checker(room.version), pdu)?.map_err(Error::from)?;
    if pdu.is("m.room.power_levels", "") {
        let before = view.get("m.room.power_levels", "");
        event_auth::check_written(pdu, before.as_ref(), room.version).map_err(Error::from)?;
    }
    // From room version 3 on the auth rules let every redaction pass, and servers then ignore those that may not act. All of
    // them take the word of the sender's server for what its other users have sent: so that is asked here.
    if pdu.event_type() == "m.room.redaction"
        && let Some(redacts) = pdu.redacts()
    {
        let levels = PowerLevels::of(room.version, &|event_type, key| view.get(event_type, key));
        let may_redact_any = levels.may_redact(pdu.sender().as_str());
        let refused = |why: &'static str| Err(Error::forbidden(why));
        return match db.event(&redacts)? {
            // When it comes, everybody asks for that level.
            None if !may_redact_any => refused("You may not redact what this server does not have"),
            None => Ok(()),
            Some(target) if target.room != room.key || !db.may_redact(pdu, &target.pdu, state)? => {
                refused("You may not redact this event")
            }
            Some(target) if target.pdu.sender() != pdu.sender() && !may_redact_any => {
                refused("You may not redact the events of others in this room")
            }
            // What is left would keep out every server, this one too.
            Some(target) if target.pdu.is(ACL, "") => {
                refused("A server ACL is not redacted but replaced by another one")
            }
            Some(_) => Ok(()),
        };
    }
    Ok(())
}

/// An event that is only looked at: its hash and signatures are to come.
fn provisional(object: &Map<String, Value>, version: RoomVersion) -> Result<Pdu> {
    let event_id = match version.event_id_format {
        EventIdFormat::InEvent => {
            // Rule 11.2 of versions 1 and 2 compares the server in this id with that of the event to be redacted.
            let sender = object.get("sender").and_then(Value::as_str);
            let server =
                sender.and_then(|sender| sender.split_once(':')).map_or("localhost", |(_, server)| server);
            EventId::parse(&format!("$provisional:{server}"))?
        }
        _ => EventId::parse("$provisional")?,
    };
    Pdu::trusted(event_id, CanonicalObject::of(object).into_bytes(), version)
}

/// An event for others to sign, and the version of its room.
pub(in crate::service) type UnsignedEvent = (Map<String, Value>, RoomVersion);

/// [`Events::template`] within a look at the room. None if that is more work than wanted.
pub(in crate::service) fn build_unsigned(
    db: &Db<'_>,
    now: Millis,
    room: Room,
    draft: &Draft,
    budget: ResolutionBudget,
) -> Result<Option<UnsignedEvent>> {
    let built = build(db, now, room, draft, budget, |object, version| {
        let pdu = provisional(&object, version)?;
        Ok((object, pdu))
    })?;
    Ok(built.map(|built| (built.event, built.room.version)))
}

/// A draft as a signed event. None if that is more work than wanted.
fn build_signed(
    db: &Db<'_>,
    signer: &EventSigner,
    draft: &Draft,
    budget: ResolutionBudget,
) -> Result<Option<BuiltEvent<VerifiedPdu>>> {
    build(db, signer.now, db.known_room(&draft.room)?, draft, budget, |object, version| {
        let pdu = signer.write(object, version)?;
        Ok((pdu.clone(), pdu.into()))
    })
}

/// A draft as a signed event, whatever it takes.
fn build_signed_fully(db: &Db<'_>, signer: &EventSigner, draft: &Draft) -> Result<BuiltEvent<VerifiedPdu>> {
    build_signed(db, signer, draft, ResolutionBudget::Unlimited)?
        .ok_or_else(|| Error::internal("nothing resolved"))
}

/// A built event, or a fresh one if the room has moved on since. None if that is more work than there is time for.
fn brought_up_to_date(
    tx: &Tx<'_>,
    signer: &EventSigner,
    draft: &Draft,
    built: BuiltEvent<VerifiedPdu>,
) -> Result<Option<BuiltEvent<VerifiedPdu>>> {
    let moved = tx.extremity_keys(built.room.key)? != built.extremities;
    let built = if moved { build_signed(tx, signer, draft, ResolutionBudget::Bounded)? } else { Some(built) };
    let Some(mut built) = built else { return Ok(None) };
    built.room = tx.room_by_key(built.room.key)?;
    Ok(Some(built))
}

/// Sends an event within a transaction that does more than that. None if it takes more than the writer has time for. Errors
/// as [`Events::send`].
pub(in crate::service) fn send_within(
    tx: &mut Tx<'_>,
    signer: &EventSigner,
    draft: &Draft,
) -> Result<Option<Sent>> {
    match build_signed(tx, signer, draft, ResolutionBudget::None)? {
        Some(built) if policy_server::policy_server_to_ask(tx, &built.room, &built.event)?.is_none() => {
            append_local(tx, built).map(Some)
        }
        _ => Ok(None),
    }
}

/// Puts an event into its room that was built by the room as it is, and has it sent to the other servers there.
fn append_local(tx: &mut Tx<'_>, built: BuiltEvent<VerifiedPdu>) -> Result<Sent> {
    let pdu = Pdu::clone(&built.event);
    let appended = append_built(tx, built, true)?;
    if appended.stream.is_none() {
        return Err(Error::internal("an event of ours without a place"));
    }
    Ok(Sent { event_id: pdu.event_id().clone(), pdu, key: appended.key })
}

/// Puts an event into its room that was built by the room as it is; `outgoing`: other servers are sent it. Errors: 429
/// `M_LIMIT_EXCEEDED` if the room's forks take more work than there is time for, and too much is late in it already.
fn append_built(tx: &mut Tx<'_>, built: BuiltEvent<VerifiedPdu>, outgoing: bool) -> Result<Appended> {
    let BuiltEvent { room, event: pdu, extremities, kept, state } = built;
    let around = RoomExtremities { room: &room, extremities: &extremities };
    let current = authorise::current_after(tx, &around, &state, &pdu, &kept, ResolutionBudget::Bounded)?;
    let current = match current {
        Some(current) => current,
        None if may_be_late(tx, &room, &[])? => Current::Later(
            extremities.iter().filter(|extremity| !kept.contains(extremity)).copied().collect(),
        ),
        None => return Err(accept::too_much_work(RETRY_PAUSE)),
    };
    tx.append(&Append {
        room: &room,
        pdu: &pdu,
        status: Status::Accepted,
        outgoing,
        state_before: state,
        given: false,
        old_extremities: &extremities,
        kept_extremities: kept,
        overtakes: Vec::new(),
        becomes_extremity: true,
        current,
        missing: Vec::new(),
        history: None,
    })
}

impl Events<'_> {
    pub(in crate::service) fn signer(&self) -> EventSigner {
        EventSigner {
            server: self.server_name().clone(),
            key: self.key_ring.signing_key(),
            now: self.clock.now_ms(),
        }
    }

    /// Sends an event: authorised, signed, in its room, and owed to the other servers there. Errors: 404 `M_NOT_FOUND`
    /// for a room that we are not in, 403 `M_FORBIDDEN` with the rule in words, 413 `M_TOO_LARGE`, 400 `M_BAD_JSON`.
    pub fn send(&self, draft: Draft) -> Result<EventId> {
        self.send_with(draft, |_, _| Ok(()))
    }

    /// [`Events::send`] with something else in the same transaction.
    pub fn send_with(
        &self,
        draft: Draft,
        extra: impl FnOnce(&mut Tx<'_>, &Sent) -> Result<()> + Send + 'static,
    ) -> Result<EventId> {
        self.send_once(draft, None, extra)
    }

    /// [`Events::send_with`] for a request of a client: a repeat of it sends nothing and gives the event that the
    /// first one sent.
    pub(in crate::service) fn send_once(
        &self,
        draft: Draft,
        txn: Option<ClientTxn>,
        extra: impl FnOnce(&mut Tx<'_>, &Sent) -> Result<()> + Send + 'static,
    ) -> Result<EventId> {
        let unsent = Unsent { signer: self.signer(), draft, txn, extra };
        let outcome = self.store.write(move |tx| {
            if let Some(event_id) = unsent.sent_before(tx)? {
                return Ok(SendOutcome::Sent(event_id));
            }
            match send_within(tx, &unsent.signer, &unsent.draft)? {
                Some(sent) => unsent.finish(tx, sent).map(SendOutcome::Sent),
                None => Ok(SendOutcome::NeedsWork(Box::new(unsent))),
            }
        })?;
        match outcome {
            SendOutcome::Sent(event_id) => Ok(event_id),
            SendOutcome::NeedsWork(unsent) => self.send_after_work(*unsent),
        }
    }

    /// Builds something by a snapshot. In a room with more forks than an event can join, that waits for its turn and
    /// is paid for by the room: it resolves some of them.
    fn read_in_turn<T>(&self, room: &RoomId, build_signed: impl Fn(&Db<'_>) -> Result<T>) -> Result<T> {
        let at_once = self.store.read(|db| {
            let extremities = match db.room(room)? {
                Some(room) => db.extremity_keys(room.key)?.len(),
                None => 0,
            };
            let built = (extremities <= PREV_EVENTS_MAX).then(|| build_signed(db)).transpose()?;
            Ok(built.map(|built| (built, db.events_examined())))
        })?;
        let (built, events_examined) = match at_once {
            Some(built) => built,
            None => {
                let _turn = self.resolution_allowance.wait_for_turn();
                self.store.read(|db| Ok((build_signed(db)?, db.events_examined())))?
            }
        };
        self.resolution_allowance.spend(room, None, events_examined);
        Ok(built)
    }

    /// Sends an event that takes more than the writer has time for.
    fn send_after_work(
        &self,
        mut unsent: Unsent<impl FnOnce(&mut Tx<'_>, &Sent) -> Result<()> + Send + 'static>,
    ) -> Result<EventId> {
        for _ in 0..BUILD_ATTEMPTS_MAX {
            let (built, policy) = self.read_in_turn(&unsent.draft.room, |db| {
                let built = build_signed_fully(db, &unsent.signer, &unsent.draft)?;
                let policy = policy_server::policy_server_to_ask(db, &built.room, &built.event)?;
                Ok((built, policy))
            })?;
            let signed = policy.map(|policy| self.ask_policy_server(&policy, &built.event)).transpose()?;
            if let Some(signed) = &signed {
                // If the room has moved on meanwhile: what it comes to is remembered.
                self.authorise_beforehand(signed, AuthContext::live(None), true)?;
            }
            let outcome = self.store.write(move |tx| {
                if let Some(event_id) = unsent.sent_before(tx)? {
                    return Ok(SendOutcome::Sent(event_id));
                }
                let sent = match signed {
                    // The policy server's signature is of this event: if the room moved on meanwhile, the event makes a
                    // fork.
                    Some(signed) => accept::append_signed(tx, &signed)?,
                    None => match brought_up_to_date(tx, &unsent.signer, &unsent.draft, built)? {
                        Some(built) => append_local(tx, built)?,
                        None => return Ok(SendOutcome::NeedsWork(Box::new(unsent))),
                    },
                };
                unsent.finish(tx, sent).map(SendOutcome::Sent)
            })?;
            match outcome {
                SendOutcome::Sent(event_id) => return Ok(event_id),
                SendOutcome::NeedsWork(still) => unsent = *still,
            }
        }
        Err(accept::too_much_work(RETRY_PAUSE))
    }

    /// Puts an event into its room that other servers are not sent: they get it when a later event refers to it. Errors
    /// as [`Events::send`]; 403 also where a policy server would have to be asked.
    pub(in crate::service) fn append_silent(&self, draft: Draft) -> Result<()> {
        let signer = self.signer();
        for _ in 0..BUILD_ATTEMPTS_MAX {
            let built = self.read_in_turn(&draft.room, |db| {
                let built = build_signed_fully(db, &signer, &draft)?;
                match policy_server::policy_server_to_ask(db, &built.room, &built.event)? {
                    None => Ok(built),
                    Some(_) => Err(Error::forbidden("The room's policy server is not asked about this")),
                }
            })?;
            let (signer, draft) = (signer.clone(), draft.clone());
            let append_local =
                self.store.write(move |tx| match brought_up_to_date(tx, &signer, &draft, built)? {
                    Some(built) => append_built(tx, built, false).map(|_| true),
                    None => Ok(false),
                })?;
            if append_local {
                return Ok(());
            }
        }
        Err(accept::too_much_work(RETRY_PAUSE))
    }

    /// An event that is authorised and signed but not in its room yet: an invite that another server is to sign first.
    /// Put it there with [`Events::commit_signed`]. Errors as [`Events::send`].
    pub fn draft_event(&self, draft: Draft) -> Result<VerifiedPdu> {
        let signer = self.signer();
        let event = self.read_in_turn(&draft.room, |db| build_signed_fully(db, &signer, &draft))?.event;
        self.with_policy_signature(event)
    }

    /// An unsigned event for `make_join`, `make_knock` and `make_leave`, that would be accepted now. Errors as
    /// [`Events::send`].
    pub fn template(&self, draft: &Draft) -> Result<UnsignedEvent> {
        let now = self.clock.now_ms();
        self.read_in_turn(&draft.room, |db| {
            let room = db.known_room(&draft.room)?;
            let built = build_unsigned(db, now, room, draft, ResolutionBudget::Unlimited)?;
            built.ok_or_else(|| Error::internal("nothing resolved"))
        })
    }
}

/// An event that is to be sent, with what belongs to it.
struct Unsent<F> {
    signer: EventSigner,
    draft: Draft,
    /// The request of a client that asks for it.
    txn: Option<ClientTxn>,
    /// What else is done in its transaction.
    extra: F,
}

/// What became of an event that was to be sent in one closure.
enum SendOutcome<F> {
    /// It is in its room, now or since the request first came.
    Sent(EventId),
    /// It takes more than the writer has time for: that is done before, on a snapshot.
    NeedsWork(Box<Unsent<F>>),
}

impl<F: FnOnce(&mut Tx<'_>, &Sent) -> Result<()>> Unsent<F> {
    /// The event that this request sent when it first came.
    fn sent_before(&self, tx: &Tx<'_>) -> Result<Option<EventId>> {
        self.txn.as_ref().map_or(Ok(None), |txn| tx.client_txn_event(txn))
    }

    /// What else belongs into the transaction of the event, which is in its room now.
    fn finish(self, tx: &mut Tx<'_>, sent: Sent) -> Result<EventId> {
        if let Some(txn) = &self.txn {
            tx.add_client_txn(txn, Some(sent.key), self.signer.now)?;
        }
        (self.extra)(tx, &sent)?;
        Ok(sent.event_id)
    }
}
