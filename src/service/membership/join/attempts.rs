//! What comes of asking one server after the other to let a local user in.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::federation::CallError;
use crate::protocol::remote_membership::{JoinFailure, RemoteMembership, RemoteState};
use crate::protocol::{Pdu, ServerName};
use crate::service::membership::candidates::HandshakeAnswers;

/// The server whose refusal ends a join that nobody clicks on: the one that the knock went through. Anybody can send an invite that
/// names the knock, and show another room than the one that was knocked upon. `by_itself`: whether it is such a join; one that is
/// taken up again may be.
pub(super) fn host_of(row: Option<&RemoteMembership>, by_itself: bool) -> Option<&ServerName> {
    let resumed = |row: &&RemoteMembership| row.state == RemoteState::Joining && row.answers().is_some();
    row.filter(|row| by_itself || resumed(row))?.via.first()
}

/// Who waits for a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiter {
    Client,
    /// Nobody: it is taken up again.
    Timer,
}

impl Waiter {
    /// How long all servers together may take. One that has to work through a large room may need minutes for it.
    fn time(self) -> Duration {
        Duration::from_secs(match self {
            Self::Client => 180,
            Self::Timer => 360,
        })
    }
}

/// What came of the attempts to join so far.
pub(super) struct JoinAttempts {
    /// See [`host_of`].
    host: Option<ServerName>,
    /// It has refused the join.
    pub shut_out: bool,
    pub answers: HandshakeAnswers,
    /// The join that was handed in last.
    pub last: Option<Pdu>,
    /// Whether a server may have taken a join without our hearing of it.
    unsure: bool,
    /// Whether the join is one that was in the room before and has been lost: as long as a server can be asked that says
    /// nothing, nobody has refused it.
    was_in: bool,
    /// Servers that took a join, and told of a room that cannot be entered.
    taken_by: Vec<ServerName>,
}

impl JoinAttempts {
    pub fn new(now: Instant, host: Option<ServerName>, waiter: Waiter) -> Self {
        let answers = HandshakeAnswers::within(now, waiter.time());
        Self {
            host,
            shut_out: false,
            answers,
            last: None,
            unsure: false,
            was_in: false,
            taken_by: Vec::new(),
        }
    }

    /// Whether there is a server whose refusal ends it: then it is not to be asked after others.
    pub fn has_host(&self) -> bool {
        self.host.is_some()
    }

    /// Takes down what a server said.
    pub fn add(&mut self, peer: &ServerName, error: CallError) {
        let refuses = matches!(&error, CallError::Refused(refusal) if refusal.status == 403);
        self.shut_out |= refuses && self.host.as_ref() == Some(peer);
        self.answers.add(peer, error);
    }

    /// Takes down that a server did not let us in.
    pub fn not_in(&mut self, peer: &ServerName, join: Pdu, error: CallError) {
        if error.is_after_success() {
            self.taken_by.push(peer.clone());
        } else {
            self.unsure |= error.is_transient();
        }
        self.last = Some(join);
        self.add(peer, error);
    }

    /// Takes down that this join was handed in before, and that nobody knows whether it was taken.
    pub fn began_with(&mut self, join: Pdu) {
        self.unsure = true;
        self.last = Some(join);
    }

    /// Takes down that this join was in the room before, and is so no more.
    pub fn began_with_lost(&mut self, join: Pdu) {
        self.was_in = true;
        self.last = Some(join);
    }

    /// How long the next server may take over a join, with so many that are asked after it.
    pub fn share(&self, now: Instant, others: usize) -> Duration {
        self.answers.share(now, others)
    }

    /// Whether the local user may be in the room, to the knowledge of others.
    pub fn may_be_in(&self) -> bool {
        self.unsure || !self.taken_by.is_empty()
    }

    /// In what way nobody let us in.
    pub fn failure(&self) -> JoinFailure {
        match (self.taken_by.is_empty(), self.unsure || (self.was_in && self.answers.undecided())) {
            (false, _) => JoinFailure::Taken(self.taken_by.clone()),
            (true, true) => JoinFailure::Unanswered,
            (true, false) => JoinFailure::Refused,
        }
    }

    /// What the client is told. 502 where a server took the join.
    pub fn into_error(self) -> Error {
        let error = self.answers.into_error();
        match self.taken_by.first() {
            Some(peer) => Error::bad_gateway(format!(
                "{peer} took the join, but the room cannot be entered by what it tells of it: it is being left again"
            ))
            .with_cause(error),
            None => error,
        }
    }
}
