//! Which servers are asked in a handshake, and what becomes of their answers: one after the other until one says yes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::rows;
use super::template::TEMPLATE_TIMEOUT;
use crate::error::{Error, Result};
use crate::federation::{CallError, CallResult};
use crate::order;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{RemoteMembership, RemoteState};
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::limits::silent_servers::{AskedFor, Likelihood, took_all_of};
use crate::service::membership::Memberships;

/// How many servers are asked in one handshake.
const CANDIDATES_MAX: usize = 12;

/// How long a client waits for a handshake at most: after this no further server is asked.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(90);

/// So long a server that is asked has in any case.
const SHARE_LEAST: Duration = Duration::from_secs(5);
/// How long a server is waited for at first that others can stand in for.
const FIRST_TRY_TIMEOUT: Duration = Duration::from_secs(3);

/// A room as somebody who is not in it knows it: its id, and servers that may let them in, best first.
#[derive(Debug, Clone)]
pub struct JoinTarget {
    /// The room.
    pub room_id: RoomId,
    /// Servers to go through.
    pub via: Vec<ServerName>,
}

impl Memberships<'_> {
    /// The servers to ask, best first and never ourselves: the one that we knocked through, the inviter's, those that
    /// the client named, others that were worth asking before, those that we saw in the room when we were in it, the
    /// one in the room's id. Where none holds a knock or an invite of the user's, those that the client names come first:
    /// what was asked before may be what they want to get away from. There are none of a room that nobody but this server was
    /// ever in, and of one that nobody has named a server of.
    pub(super) fn candidates(
        &self,
        target: &JoinTarget,
        row: Option<&RemoteMembership>,
    ) -> Result<Vec<ServerName>> {
        let known = row.map_or(&[][..], |row| &row.via);
        let inviter = row.and_then(|row| row.event.as_ref()).map(|event| event.sender().server());
        let seen = self.store.read(|db| match db.room(&target.room_id)? {
            Some(room) => db.resident_servers(room.key),
            None => Ok(Vec::new()),
        })?;
        let holds = |row: &RemoteMembership| {
            matches!(row.state, RemoteState::Knocking | RemoteState::Knocked | RemoteState::Invited)
        };
        let named = target.via.iter().cloned();
        let before = named.clone().filter(|_| !row.is_some_and(holds));
        let all = before.chain(known.iter().take(1).cloned()).chain(inviter).chain(named);
        let all = all.chain(known.iter().skip(1).cloned()).chain(seen);
        let all = all.chain(target.room_id.server_name().and_then(|name| ServerName::parse(name).ok()));
        let mut candidates: Vec<ServerName> = Vec::new();
        for server in all {
            if &server != self.server_name() && !candidates.contains(&server) {
                candidates.push(server);
            }
        }
        candidates.truncate(CANDIDATES_MAX);
        Ok(candidates)
    }

    /// [`Self::candidates`] for who wants to be let in. Errors: 404 `M_NOT_FOUND` if there are none.
    pub(super) fn candidates_to_enter(
        &self,
        target: &JoinTarget,
        row: Option<&RemoteMembership>,
    ) -> Result<Vec<ServerName>> {
        let candidates = self.candidates(target, row)?;
        match candidates.is_empty() {
            true => Err(Error::not_found("No server is known that is in that room; name one with `via`")),
            false => Ok(candidates),
        }
    }

    /// For a room that this server is not in: what the user is to it as far as we know, and the servers to ask about
    /// it.
    pub(in crate::service) fn remote_view(
        &self,
        user: &UserId,
        target: &JoinTarget,
    ) -> Result<(Option<Membership>, Vec<ServerName>)> {
        let row = self.store.read(|db| rows::remote_membership_or_state(db, &target.room_id, user))?;
        let membership = row.as_ref().and_then(|row| match row.state {
            RemoteState::Knocking | RemoteState::Knocked => Some(Membership::Knock),
            RemoteState::Invited => Some(Membership::Invite),
            RemoteState::Leaving | RemoteState::Closed => Some(Membership::Leave),
            RemoteState::Joining => None,
        });
        Ok((membership, self.candidates(target, row.as_ref())?))
    }
}

/// Whom a handshake asks for a template, one after the other, and for how long. Making one changes nothing at a server, so
/// that whoever is slow may be asked twice: where somebody waits for the handshake and others can stand in for them, each
/// server has a moment at first, and all its time when nobody else is left.
pub(super) struct HandshakeQueue {
    next: VecDeque<ServerName>,
    /// What each of these has.
    within: Duration,
    cut_short: VecDeque<ServerName>,
}

impl HandshakeQueue {
    /// One server, and how long it has.
    pub fn next(&mut self) -> Option<(ServerName, Duration)> {
        if self.next.is_empty() {
            self.next = std::mem::take(&mut self.cut_short);
            self.within = TEMPLATE_TIMEOUT;
        }
        Some((self.next.pop_front()?, self.within))
    }

    /// How many have a turn yet.
    pub fn left(&self) -> usize {
        self.next.len() + self.cut_short.len()
    }
}

impl Memberships<'_> {
    /// These servers in this order, but those last that may be silent; unless it is about a join that one of them may have
    /// taken. Not `hurried`: each has all its time in this very order, since one of them has a say that others have not.
    pub(super) fn handshake_queue(
        &self,
        candidates: &[ServerName],
        row: Option<&RemoteMembership>,
        hurried: bool,
    ) -> HandshakeQueue {
        let mut next = candidates.to_vec();
        let hurried = hurried && next.len() > 1;
        if hurried && row.is_none_or(|row| row.state != RemoteState::Joining) {
            order::sort_by_cached_key(&mut next, |server| self.likelihood(server) == Likelihood::Doubtful);
        }
        let within = if hurried { FIRST_TRY_TIMEOUT } else { TEMPLATE_TIMEOUT };
        HandshakeQueue { next: next.into(), within, cut_short: VecDeque::new() }
    }

    /// Asks the server whose turn it is for a template. If its time was short, it has another turn.
    pub(super) fn ask_in_turn<A>(
        &self,
        queue: &mut HandshakeQueue,
        (peer, within): (&ServerName, Duration),
        ask: impl FnOnce(Duration) -> CallResult<A>,
    ) -> CallResult<A> {
        let began = Instant::now();
        let answer = self.ask_peer(peer, AskedFor::Template, within, ask);
        let unreachable = answer.as_ref().is_err_and(CallError::is_unreachable);
        if within < TEMPLATE_TIMEOUT && unreachable && took_all_of(within, began) {
            queue.cut_short.push_back(peer.clone());
        }
        answer
    }
}

/// What several servers said to the same question, as long as none said yes.
pub(super) struct HandshakeAnswers {
    until: Instant,
    refusal: Option<Error>,
    limit: Option<Error>,
    failure: Option<Error>,
    undecided: bool,
}

impl HandshakeAnswers {
    pub fn new(now: Instant) -> Self {
        Self::within(now, HANDSHAKE_TIMEOUT)
    }

    /// For a handshake that may take so long.
    pub fn within(now: Instant, time: Duration) -> Self {
        Self { until: now + time, refusal: None, limit: None, failure: None, undecided: false }
    }

    /// Whether there is time to ask another server.
    pub fn has_time(&self, now: Instant) -> bool {
        now < self.until
    }

    /// How long one server may take, with so many that are asked after it: half of what is left, so that one that hangs
    /// leaves some for each.
    pub fn share(&self, now: Instant, others: usize) -> Duration {
        let left = self.until.saturating_duration_since(now);
        (if others > 0 { left / 2 } else { left }).max(SHARE_LEAST)
    }

    /// Somebody was not asked for want of time, who may yet say yes.
    pub fn leaves_out_some(&mut self) {
        self.undecided = true;
    }

    /// Takes down what a server said.
    pub fn add(&mut self, peer: &ServerName, error: CallError) {
        log::info!("{peer} did not take part in a handshake: {error}");
        // 401 speaks of our keys, which the other server may have trouble to get; nonsense speaks of nothing.
        let undecided = match &error {
            CallError::Refused(refusal) => error.is_transient() || refusal.status == 401,
            CallError::Unreachable(_)
            | CallError::Unconnected(_)
            | CallError::BadAnswer(_)
            | CallError::TooLarge(_)
            | CallError::AfterSuccess(_) => true,
        };
        if let Some(limit) = error.as_limit(peer) {
            self.limit.get_or_insert(limit);
            return;
        }
        self.undecided |= undecided;
        let error = error.into_handshake_error(peer);
        let speaks_of_the_room = !undecided && error.errcode().is_relayable();
        // A server that is not in the room knows less of it than one that says no.
        let is_better =
            self.refusal.as_ref().is_none_or(|first| first.status() == 404 && error.status() != 404);
        if speaks_of_the_room && is_better {
            self.refusal = Some(error);
        } else if !speaks_of_the_room
            && self.failure.as_ref().is_none_or(|first| error.is_passed_on() && !first.is_passed_on())
        {
            self.failure = Some(error);
        }
    }

    /// Whether some server may yet say yes: it could not be reached, had trouble of its own, or wants to be asked
    /// later.
    pub fn undecided(&self) -> bool {
        self.undecided || self.limit.is_some()
    }

    /// Whether the only ones that may are those that want to be asked later.
    pub fn only_later(&self) -> bool {
        !self.undecided && self.limit.is_some()
    }

    /// What the client is told: the first refusal that speaks of the room, that it asked too often, else what a server says
    /// that did not help, or that none did.
    pub fn into_error(self) -> Error {
        let (unknown, refusal) = match self.refusal {
            Some(error) if error.status() == 404 => (Some(error), None),
            other => (None, other),
        };
        refusal
            .or(self.limit)
            .or(unknown)
            .or(self.failure)
            .unwrap_or_else(|| Error::bad_gateway("No server could be asked in time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    use crate::federation::PeerError;

    fn refusal(status: u16, errcode: &str) -> CallError {
        let (errcode, message) = (Some(errcode.to_owned()), "no".to_owned());
        CallError::Refused(Box::new(PeerError { status, errcode, message, body: Map::new() }))
    }

    fn told(said: Vec<CallError>) -> (u16, bool) {
        let peer = ServerName::parse("b.org").unwrap();
        let mut answers = HandshakeAnswers::new(Instant::now());
        said.into_iter().for_each(|error| answers.add(&peer, error));
        let undecided = answers.undecided();
        (answers.into_error().status(), undecided)
    }

    #[test]
    fn one_server_that_hangs_leaves_time_for_each_of_the_others() {
        let (mut now, time) = (Instant::now(), Duration::from_secs(180));
        let answers = HandshakeAnswers::within(now, time);
        assert_eq!(answers.share(now, 0), time);
        for others in (0..4).rev() {
            assert!(answers.has_time(now), "with {others} left");
            now += answers.share(now, others);
        }
        assert!(!answers.has_time(now));
        assert_eq!(answers.share(now, 1), SHARE_LEAST);
    }

    #[test]
    fn the_client_is_told_the_refusal_that_says_most_of_the_room() {
        let unreachable = || CallError::Unreachable("gone".into());
        assert_eq!(told(vec![refusal(404, "M_NOT_FOUND"), refusal(403, "M_FORBIDDEN")]), (403, false));
        assert_eq!(told(vec![refusal(403, "M_FORBIDDEN"), refusal(404, "M_NOT_FOUND")]), (403, false));
        assert_eq!(told(vec![unreachable(), refusal(404, "M_NOT_FOUND")]), (404, true));
        assert_eq!(told(vec![refusal(500, "M_UNKNOWN"), unreachable()]), (502, true));
        assert_eq!(told(vec![refusal(401, "M_UNAUTHORIZED")]), (502, true));
        let limit = || refusal(429, "M_LIMIT_EXCEEDED");
        assert_eq!(told(vec![unreachable(), refusal(404, "M_NOT_FOUND"), limit()]), (429, true));
        assert_eq!(told(vec![limit(), refusal(403, "M_FORBIDDEN")]), (403, true));
        assert_eq!(told(vec![refusal(404, "M_UNRECOGNIZED")]), (502, false));
        assert_eq!(told(vec![CallError::bad("HTML")]), (502, true));
        assert_eq!(told(Vec::new()), (502, false));
    }
}
