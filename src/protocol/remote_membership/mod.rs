//! A local user and a room that this server is not in: one small state machine for knocks, invites, joins and leaves.
//!
//! A [`RemoteMembership`] is a row of the `remote_memberships` table; no row means "nothing to do with that room".
//! [`apply`] says what a [`Fact`] makes of it, for every state and fact: the state, the events, what is still owed to
//! other servers and when it is tried again, and whether the user's clients are told. Nobody else can change a row,
//! so that no two places can disagree about it. `row` has what can be read from a row, `look_up` what the room is asked,
//! and when; `order` says what comes first of what two servers did at the same moment. The machine holds no clock and sends nothing: `service::membership`
//! does, and lets facts take effect inside the transaction that writes the result.
//!
//! Three properties are tested over the whole table: from every state both `Closed` and residence (no row) can be
//! reached; an answer that nobody waits for any more, or that is about another event than the row's, changes nothing;
//! and whatever clients are shown of a row that they were not shown before, they are told.

mod apply;
mod look_up;
mod order;
mod row;
#[cfg(test)]
mod tests;

use std::fmt;

use serde_json::value::RawValue;

pub use apply::{ATTEMPTS_MAX, apply, backoff_ms};
pub use look_up::UNANSWERED_LOOKS_MAX;
pub use order::{InviteOrder, RemovalBearing, bearing, order_of_invite};
pub use row::{CoveredMembership, Fields, PriorMembership, RemoteMembership, SyncSection};

use crate::error::{ErrCode, Error};
use crate::protocol::pdu::{Membership, Pdu};
use crate::protocol::{EventId, ServerName, UserId};

/// Where a remote membership stands. No row is `None` of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RemoteState {
    /// A knock is signed and committed; no server has taken it yet.
    Knocking,
    /// A server of the room has taken our knock.
    Knocked,
    /// Somebody in the room invited the local user.
    Invited,
    /// A join is signed and committed; we are not in the room yet.
    Joining,
    /// The local user left (withdrew, rejected); the room has not taken the leave yet.
    Leaving,
    /// It is over: left, refused, kicked or banned.
    Closed,
}

impl RemoteState {
    /// Every state, for tests and tables.
    pub const ALL: [Self; 6] =
        [Self::Knocking, Self::Knocked, Self::Invited, Self::Joining, Self::Leaving, Self::Closed];

    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Knocking => "knocking",
            Self::Knocked => "knocked",
            Self::Invited => "invited",
            Self::Joining => "joining",
            Self::Leaving => "leaving",
            Self::Closed => "closed",
        }
    }

    /// The state with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Whether the user has left, or somebody removed them: told to the room or not.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Leaving | Self::Closed)
    }
}

impl fmt::Display for RemoteState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that happened, with all that it brings. An answer names the event that it is about.
#[derive(Debug, Clone)]
pub enum Fact {
    /// The local user knocks.
    UserKnocks(Prepared),
    /// Answer: this server of the room took the knock, perhaps after the local user had withdrawn it.
    KnockTaken {
        /// The knock.
        knock: EventId,
        /// Who took it.
        by: ServerName,
        /// What it shows of the room.
        stripped_state: Vec<Box<RawValue>>,
    },
    /// Answer: every server that could be asked refused the knock.
    KnockRefused {
        /// The knock.
        knock: EventId,
        /// What clients are told if they were shown something.
        leave: Pdu,
    },
    /// No server said yes or no to the knock.
    KnockUnanswered {
        /// The knock.
        knock: EventId,
    },

    /// Another server invites the local user.
    InviteArrives {
        /// The invite.
        invite: Pdu,
        /// The local user.
        invitee: UserId,
        /// What it shows of the room.
        stripped_state: Vec<Box<RawValue>>,
        /// Who brought it.
        from: ServerName,
        /// The leave, by which the local user was out of the room when this server knew it, where nothing else is known.
        left: Option<Pdu>,
    },
    /// The room refused the local user's join, though they are invited, or their next knock: it has to be asked about the
    /// invite or the knock.
    Doubted,
    /// Answer: what the room says of the invite or knock that is in doubt.
    LookedUp {
        /// The invite or knock.
        about: EventId,
        /// What it says.
        answer: RoomAnswer,
        /// The server that says it.
        by: Option<ServerName>,
        /// What clients are told if it is void and nobody's removal has ended it.
        leave: Pdu,
    },

    /// The local user joins; or joins through another server than before.
    UserJoins {
        /// The join.
        join: Prepared,
        /// Whether a server may have taken one that was handed in before.
        may_be_in: bool,
    },
    /// Answer: the join did not bring us into the room.
    JoinFailed {
        /// The join.
        join: EventId,
        /// In what way.
        how: JoinFailure,
        /// What clients are told if the room is left again.
        leave: Pdu,
    },

    /// The local user leaves: withdraws a knock, rejects an invite, gives up a join. With what clients are told at
    /// once, and no server is given; unless they were told already that somebody else has ended it.
    UserLeaves(Pdu),
    /// The leave that a server is about to be handed.
    LeaveSigned {
        /// The one that clients were told.
        told: EventId,
        /// What is handed in.
        leave: Pdu,
        /// To whom.
        to: ServerName,
    },
    /// Answer: what became of the leave.
    LeaveAnswered {
        /// The one that clients were told.
        told: EventId,
        /// What became of it.
        answer: LeaveAnswer,
    },
    /// A server that could take the leave made itself known.
    LeaveMayGoThrough(ServerName),

    /// Somebody else in the room kicked or banned the local user, or did at some time: a refused knock, a rescinded
    /// invite.
    Removed {
        /// The removal.
        removal: Pdu,
        /// Who brought it.
        from: ServerName,
    },
    /// The local user asks to forget the room.
    UserForgets,
    /// This server came into the room, through this user or another local one.
    NowResident {
        /// Whether the room shows the user as what they have left: whoever let us in had not heard of that.
        lacks_leave: bool,
    },
    /// What the user wants was asked of the room itself, which this server is in by now.
    AskedInRoom,
}

/// What the local user asks for, signed. It is written before any server is handed it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The knock or join.
    pub event: Pdu,
    /// What the membership was when the event began to be prepared.
    pub before: PriorMembership,
    /// Servers to hand it to, best first.
    pub via: Vec<ServerName>,
}

/// What the room says of an invite or a knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomAnswer {
    /// It, or something else that there is to leave.
    Stands,
    /// The room does not know it (yet, or any more). With the membership that stands in its place.
    Void(Option<Membership>),
    /// No server can tell.
    Unanswered,
}

/// How a join came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinFailure {
    /// Every server said no.
    Refused,
    /// A server may have us in the room already.
    Unanswered,
    /// These servers took it, and the room cannot be entered by what they tell of it.
    Taken(Vec<ServerName>),
}

/// What became of a leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaveAnswer {
    /// A server of the room took it.
    Taken,
    /// Every server said no: as far as they know there is nothing to leave.
    Refused,
    /// A server may yet take it.
    Unanswered,
    /// This server is in the room by now, which knows of the leave.
    InRoom,
}

/// What is to be done with a row.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Nothing.
    Unchanged,
    /// It is written.
    Save {
        /// The row from now on.
        row: Box<RemoteMembership>,
        /// Whether the user's clients are told: it becomes the last change in the stream.
        tell: bool,
        /// Whether that may ring, if it is an invite.
        rings: bool,
    },
    /// It is deleted.
    Delete(Box<RemoteMembership>),
}

impl Effect {
    /// The row that was changed, unless it is no more.
    pub fn saved(&self) -> Option<&RemoteMembership> {
        match self {
            Self::Save { row, .. } => Some(row),
            Self::Unchanged | Self::Delete(_) => None,
        }
    }
}

/// Why a fact has no effect, and whoever brings it is told so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Who is invited need not knock: join.
    AlreadyInvited,
    /// A join is under way.
    JoinUnderWay,
    /// There is nothing to leave, or to forget.
    NotInRoom,
    /// What was not left cannot be forgotten.
    NotLeft,
    /// The user asked to leave while what they ask for was being prepared.
    LeftMeanwhile,
    /// Somebody else removed them meanwhile, of which what was prepared, or handed in, knows nothing.
    RemovedMeanwhile,
    /// The leave is being handed in: only its outcome tells what the invite is worth.
    LeaveUnderWay,
    /// The invite was made before the user left or was banned, and the room knows that they did.
    LeftSince,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AlreadyInvited => "you are invited to this room already: join it",
            Self::JoinUnderWay => "you are joining this room already",
            Self::NotInRoom => "you have nothing to do with this room",
            Self::NotLeft => "Leave the room first",
            Self::LeftMeanwhile => "The room was left in the meantime",
            Self::RemovedMeanwhile => "You were removed from the room in the meantime",
            Self::LeaveUnderWay => "the user is leaving the room at this very moment",
            Self::LeftSince => "the user has left the room since this invite was made",
        })
    }
}

impl std::error::Error for Refusal {}

/// 403 `M_FORBIDDEN`; 400 `M_UNKNOWN` for what was not left.
impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotLeft => Self::new(ErrCode::Unknown, refusal.to_string()).with_status(400),
            _ => Self::forbidden(refusal.to_string()),
        }
    }
}
