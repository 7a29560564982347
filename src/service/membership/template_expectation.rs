//! What the room's servers know of the local user by the time that they are asked: whether a template rests on what
//! is over, and whether an invite that we hold stands in the room.
//!
//! A server shows nobody its room from outside, but a template for a leave names the member event that it would
//! replace, and is refused to whoever has nothing to leave. Asking for one changes nothing.

use std::time::Duration;

use serde_json::{Map, Value};

use super::JoinTarget;
use super::template::TEMPLATE_TIMEOUT;
use crate::error::{ErrCode, Result};
use crate::federation::calls::HandshakeKind;
use crate::federation::{CallError, CallResult};
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{
    Fact, RemoteMembership, RemoteState, RoomAnswer, UNANSWERED_LOOKS_MAX,
};
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, ServerName, UserId};
use crate::service::limits::silent_servers::{AskedFor, Likelihood};
use crate::service::membership::Memberships;
use crate::store::Db;

/// How long a server is left alone that does not know of something yet that it is about to learn (an invite that we
/// have just signed, a leave that we owe it), again and again in one handshake: a second and a half in all.
const TEMPLATE_PAUSES: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(60),
    Duration::from_millis(150),
    Duration::from_millis(300),
    Duration::from_millis(450),
    Duration::from_millis(550),
];

/// How many servers are asked.
const SERVERS_ASKED_MAX: usize = 3;

/// What a server that is asked for a template should know of the local user by now; and how long it may take to.
#[derive(Default)]
pub(super) struct TemplateExpectation {
    /// A template that rests on this was made before the local user left.
    over: Option<EventId>,
    /// A template that does not rest on this was made before the room had it.
    on: Option<EventId>,
    /// Even a refusal may only mean that the server does not know yet.
    refusal_may_pass: bool,
    /// How often it was asked again.
    pauses: usize,
}

impl TemplateExpectation {
    /// Of a join or a knock.
    pub(super) fn to_enter(
        db: &Db<'_>,
        kind: HandshakeKind,
        room_id: &RoomId,
        user: &UserId,
        row: Option<&RemoteMembership>,
    ) -> Result<Self> {
        let id = |event: &Option<Pdu>| event.as_ref().map(|event| event.event_id().clone());
        match row {
            Some(row) if row.state == RemoteState::Invited => {
                Ok(Self { refusal_may_pass: kind == HandshakeKind::Join, ..Self::default() })
            }
            Some(row) if row.state.is_over() => Ok(Self { over: id(&row.previous), ..Self::default() }),
            Some(_) => Ok(Self::default()),
            None => {
                let over = left_as_resident(db, room_id, user)?;
                Ok(Self {
                    refusal_may_pass: kind == HandshakeKind::Knock && over.is_some(),
                    over,
                    ..Self::default()
                })
            }
        }
    }

    /// Of the leave that this row is about.
    pub(super) fn to_leave(row: &RemoteMembership) -> Self {
        let left = row
            .previous
            .as_ref()
            // Of two each server knows its own.
            .filter(|_| row.covered.is_none())
            .filter(|left| matches!(left.membership(), Some(Membership::Invite | Membership::Knock)));
        // Where somebody else has ended it, a refusal says that the server has heard of that.
        let is_invite = left.is_some_and(|left| left.membership() == Some(Membership::Invite));
        Self {
            on: left.map(|left| left.event_id().clone()),
            refusal_may_pass: is_invite && !row.is_ended_by_others(),
            ..Self::default()
        }
    }

    fn is_behind(&self, answer: &CallResult<(Map<String, Value>, RoomVersion)>) -> bool {
        match answer {
            Ok((template, _)) => {
                self.over.as_ref().is_some_and(|over| rests_on(template, over))
                    || self.on.as_ref().is_some_and(|on| !rests_on(template, on))
            }
            Err(error) => self.refusal_may_pass && error.errcode() == Some(ErrCode::Forbidden),
        }
    }
}

/// The membership that the local user gave up by leaving the room when we were in it: its servers may not know of
/// that yet.
fn left_as_resident(db: &Db<'_>, room_id: &RoomId, user: &UserId) -> Result<Option<EventId>> {
    let Some(room) = db.room(room_id)?.filter(|room| !room.resident) else { return Ok(None) };
    let own = |event: &Pdu| event.sender() == user && event.membership() == Some(Membership::Leave);
    let leave = db.state_event(room.key, "m.room.member", user.as_str())?.filter(own);
    for id in leave.as_ref().map_or(&[][..], |leave| leave.auth_events()) {
        if db.event(id)?.is_some_and(|event| event.pdu.is("m.room.member", user.as_str())) {
            return Ok(Some(id.clone()));
        }
    }
    Ok(None)
}

/// Whether a template names this event among those that it rests on; in versions 1 and 2 with its hash beside it.
fn rests_on(template: &Map<String, Value>, event: &EventId) -> bool {
    let named = template.get("auth_events").and_then(Value::as_array);
    named.is_some_and(|named| named.iter().any(|one| one == event.as_str() || one[0] == event.as_str()))
}

impl Memberships<'_> {
    /// [`Memberships::ask_template`], asked again as long as the answer shows that the server is behind. If it stays
    /// so, its last answer.
    pub(super) fn ask_template_in_time(
        &self,
        peer: &ServerName,
        kind: HandshakeKind,
        room_id: &RoomId,
        user: &UserId,
        (expected, within): (&mut TemplateExpectation, Duration),
    ) -> CallResult<(Map<String, Value>, RoomVersion)> {
        loop {
            let answer = self.ask_template(peer, kind, room_id, user, within);
            if !expected.is_behind(&answer) {
                return answer;
            }
            let Some(pause) = TEMPLATE_PAUSES.get(expected.pauses) else { return answer };
            expected.pauses += 1;
            if !self.scheduler.rest(*pause) {
                return answer;
            }
        }
    }

    /// Has the room asked about an invite or a knock: it refused the user's join, or their next knock.
    pub(super) fn schedule_lookup(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        self.note_fact(room_id, user, Fact::Doubted).map(drop)
    }

    /// What the scheduler does with a row that is `invited` or `knocked` and in doubt, or has stood for a day: asks the room.
    pub(super) fn look_up(&self, row: &RemoteMembership) -> Result<()> {
        let (Some(about), Some(_)) = (row.told().cloned(), row.due_ms) else { return Ok(()) };
        let servers = self.servers_that_know(row)?;
        // Nobody waits for word of what nothing speaks against: the silent are not disturbed for it again and again.
        let is_pressing = !row.is_standing() || row.attempts == 0;
        let is_asked = |peer: &&ServerName| is_pressing || self.likelihood(peer) != Likelihood::Doubtful;
        // Where there is nobody to ask, nobody but this server was in the room, and it stands there as it is known here.
        let own_word = servers.is_empty().then_some((RoomAnswer::Stands, None));
        let said = servers.iter().take(SERVERS_ASKED_MAX).filter(is_asked).find_map(|peer| {
            let template = self.ask_peer(peer, AskedFor::Template, TEMPLATE_TIMEOUT, |within| {
                self.ask_template(peer, HandshakeKind::Leave, &row.room_id, &row.user_id, within)
            });
            let answer = answer_of(row, template)?;
            // Of an invite that nothing else speaks against only who is in the room can say so.
            let is_heard = !matches!(answer, RoomAnswer::Void(_))
                || row.state != RemoteState::Invited
                || !row.is_standing()
                || self.says_to_be_in(peer, row);
            is_heard.then(|| (answer, Some(peer.clone())))
        });
        let (answer, by) = said.or(own_word).unwrap_or((RoomAnswer::Unanswered, None));
        if answer == RoomAnswer::Unanswered && row.attempts < UNANSWERED_LOOKS_MAX {
            self.scheduler.waits_for(&servers, &row.room_id, &row.user_id);
        }
        let fact = Fact::LookedUp { about, answer, by, leave: self.local_leave(row, None)? };
        let effect = self.note_fact(&row.room_id, &row.user_id, fact)?;
        if effect.saved().is_some_and(|after| after.state != row.state) {
            log::info!("that {} is {} in {} is not known there", row.user_id, row.state, row.room_id);
        }
        Ok(())
    }

    /// Whether a server does not say that it is not in the room: some answer for what they have left by what it was then.
    fn says_to_be_in(&self, peer: &ServerName, row: &RemoteMembership) -> bool {
        let template = self.ask_peer(peer, AskedFor::Template, TEMPLATE_TIMEOUT, |within| {
            self.ask_template(peer, HandshakeKind::Join, &row.room_id, &row.user_id, within)
        });
        match template {
            Ok(_) => true,
            Err(error) => error.refusal().is_some_and(|refusal| matches!(refusal.status, 400 | 403)),
        }
    }

    /// Who is asked about what is in doubt: not the server whose word is the doubt. And of an invite that covers what
    /// others know, those know nothing.
    fn servers_that_know(&self, row: &RemoteMembership) -> Result<Vec<ServerName>> {
        if let (Some(_), Some(inviter)) = (&row.covered, row.inviter()) {
            return Ok(vec![inviter.server()]);
        }
        // Of an invite that nothing speaks against, the inviter's, whose word on it counts.
        if let Some(host) = row.inviter().filter(|_| row.is_standing()).map(UserId::server)
            && host != *self.server_name()
        {
            return Ok(vec![host]);
        }
        // Of a knock that nothing speaks against, who took it.
        if let (RemoteState::Knocked, None, Some(host)) = (row.state, &row.removal, row.via.first()) {
            return Ok(vec![host.clone()]);
        }
        let target = JoinTarget { room_id: row.room_id.clone(), via: Vec::new() };
        let mut servers = self.candidates(&target, Some(row))?;
        let accuser = row.removal.as_ref().map(|removal| removal.sender().server());
        if servers.iter().any(|server| Some(server) != accuser.as_ref()) {
            servers.retain(|server| Some(server) != accuser.as_ref());
        }
        Ok(servers)
    }
}

/// What an answer to `make_leave` says of the invite or knock in a row; none if nothing.
fn answer_of(
    row: &RemoteMembership,
    answer: CallResult<(Map<String, Value>, RoomVersion)>,
) -> Option<RoomAnswer> {
    let names = |template: &Map<String, Value>, event: &Option<Pdu>| {
        event.as_ref().is_some_and(|event| rests_on(template, event.event_id()))
    };
    match answer {
        Ok((template, _)) if names(&template, &row.event) => Some(RoomAnswer::Stands),
        Ok((template, _)) if names(&template, &row.previous) => {
            match row.previous.as_ref().and_then(Pdu::membership) {
                // Two invited at once, and the room took the other invite.
                Some(Membership::Invite) => Some(RoomAnswer::Stands),
                before => Some(RoomAnswer::Void(before)),
            }
        }
        Ok((template, _)) if names(&template, &row.covered.as_ref().map(|covered| covered.event.clone())) => {
            Some(RoomAnswer::Void(None))
        }
        // It is something there that we have not heard of: there is something to leave, at least.
        Ok(_) => Some(RoomAnswer::Stands),
        Err(CallError::Refused(refusal)) if refusal.errcode.as_deref() == Some("M_FORBIDDEN") => {
            Some(RoomAnswer::Void(None))
        }
        Err(_) => None,
    }
}
