//! The machine: what a fact makes of a row.

use serde_json::value::RawValue;

use super::{
    Effect, Fact, Fields, InviteAnswer, InviteOrder, JoinFailure, LeaveAnswer, Prepared, PriorMembership,
    Refusal, RemoteMembership, RemoteState, RemovalBearing,
};
use crate::backoff::Backoff;
use crate::protocol::pdu::{Membership, Pdu};
use crate::protocol::{EventId, Millis, ServerName, UserId};

/// After how many attempts nothing more is tried: about a week.
pub const ATTEMPTS_MAX: u32 = 60;

/// When the room is asked once more about an invite that it does not know, in milliseconds: its server may be slow to
/// take in what we signed. After the last the invite is over.
const INVITE_LOOK_PAUSES_MS: [Millis; INVITE_LOOKS_MAX as usize] = [500, 1_500, 4_000];
/// So often it need not be asked where a ban speaks against the invite as well.
const INVITE_LOOKS_MAX: u32 = 3;
/// How often that is tried if no server can tell.
const UNANSWERED_LOOKS_MAX: u32 = 6;

/// How often a leave behind a join that may have been taken is tried although every server says that there is nothing
/// to leave: for about half an hour.
const ATTEMPTS_BEHIND_A_JOIN_MAX: u32 = 5;

/// Pauses of what is tried again: seconds at first, three hours in the end.
const PAUSES: Backoff = Backoff { first_ms: 5_000, factor: 4, longest_ms: 3 * 3_600_000 };

/// When something is tried again after this many attempts that failed, and a first one.
pub fn backoff_ms(attempts: u32) -> Millis {
    PAUSES.pause_ms(attempts.saturating_add(1))
}

/// What becomes of a row.
enum Next {
    /// It stays as it is.
    Same,
    /// It becomes this.
    Row(Fields),
    /// It goes.
    Gone,
}

/// What a fact makes of a row, at this time. What the local user asks for can be refused, and an invite that a leave
/// has overtaken. Of the answers only those have an effect that are about the event which is in the row now, in the
/// state that waits for them.
pub fn apply(row: Option<RemoteMembership>, fact: Fact, now: Millis) -> Result<Effect, Refusal> {
    let next = match (&row, fact) {
        (row, Fact::UserKnocks(knock)) => user_knocks(row.as_ref(), knock, now)?,
        (row, Fact::UserJoins { join, may_be_in }) => user_joins(row.as_ref(), join, may_be_in, now)?,
        (row, Fact::InviteArrives { invite, invitee, stripped_state, from }) => {
            invite_arrives(row.as_ref(), invite, &invitee, stripped_state, from, now)?
        }
        (None, Fact::UserLeaves(_) | Fact::UserForgets) => return Err(Refusal::NotInRoom),
        (None, _) => Next::Same,
        (Some(row), fact) => happens_to(row.0.clone(), fact, now)?,
    };
    Ok(match (next, row) {
        (Next::Row(after), before) => {
            // What is shown no more cannot be told. What was only read from a room's last state was not told by this
            // row.
            let after = RemoteMembership(after);
            let before = before.filter(|_| after.stream > 0);
            let is_known = before.as_ref().is_some_and(|b| after.shows_all_of(b) || after.repeats(b));
            let tell = after.section().is_some() && !is_known;
            let rings = !before.is_some_and(|b| after.is_of_same_inviter(&b));
            Effect::Save { row: Box::new(after), tell, rings }
        }
        (Next::Gone, Some(row)) => Effect::Delete(Box::new(row)),
        (Next::Same, _) | (Next::Gone, None) => Effect::Unchanged,
    })
}

/// Facts that need a row.
fn happens_to(row: Fields, fact: Fact, now: Millis) -> Result<Next, Refusal> {
    Ok(match fact {
        Fact::UserKnocks(_) | Fact::UserJoins { .. } | Fact::InviteArrives { .. } => Next::Same,
        Fact::KnockTaken { knock, by, stripped_state } => row.knock_taken(&knock, by, stripped_state, now),
        Fact::KnockRefused { knock, leave } => row.knock_refused(&knock, leave, now),
        Fact::KnockUnanswered { knock } => {
            let waits = row.state == RemoteState::Knocking && row.told() == Some(&knock);
            if waits { row.unanswered(now) } else { Next::Same }
        }
        Fact::InviteDoubted if row.state == RemoteState::Invited && row.due_ms.is_none() => {
            row.doubted(0, now)
        }
        Fact::InviteDoubted => Next::Same,
        Fact::InviteLookedUp { invite, answer, leave } => row.invite_looked_up(&invite, answer, leave, now),
        Fact::JoinFailed { join, how, leave } => row.join_failed(&join, how, leave, now),
        Fact::UserLeaves(leave) => row.user_leaves(leave, now),
        Fact::LeaveSigned { told, leave, to } => row.leave_signed(&told, leave, to),
        Fact::LeaveAnswered { told, answer } => row.leave_answered(&told, answer, now),
        Fact::LeaveMayGoThrough(server) => row.leave_may_go_through(server),
        Fact::Removed(removal) => row.removed(removal, now),
        Fact::UserForgets if row.state.is_over() => Next::Row(Fields { forgotten: true, ..row }),
        Fact::UserForgets => return Err(Refusal::NotLeft),
        // From now on the room's own state says who is a member. Only a leave that is still to be told stays, to be
        // put into the room now.
        Fact::NowResident if row.state == RemoteState::Leaving => {
            Next::Row(Fields { due_ms: Some(now), ..row })
        }
        Fact::NowResident | Fact::AskedInRoom => Next::Gone,
    })
}

/// The row that begins, or goes on, with this event.
fn row_for(row: Option<&RemoteMembership>, event: &Pdu, user: &UserId) -> Fields {
    let mut row =
        row.map_or_else(|| Fields::blank(event.room_id(), user, event.version()), |row| row.0.clone());
    row.room_version = event.version();
    row
}

fn user_knocks(row: Option<&RemoteMembership>, knock: Prepared, now: Millis) -> Result<Next, Refusal> {
    let Prepared { event, before, via } = knock;
    before.check(row, &event)?;
    PriorMembership::of(row).may_knock()?;
    // Knocking again while the first knock waits for its answer is the same event again; while another server has it, a
    // new one.
    if row.is_some_and(|row| row.state == RemoteState::Knocking) {
        return Ok(Next::Same);
    }
    let mut row = row_for(row, &event, event.sender());
    // It is handed in at once. If that does not come to an end, it is repeated.
    row.enter(RemoteState::Knocking, Some(now + backoff_ms(1)));
    row.tell(event);
    row.prefer(via);
    Ok(Next::Row(row))
}

fn user_joins(
    row: Option<&RemoteMembership>,
    join: Prepared,
    may_be_in: bool,
    now: Millis,
) -> Result<Next, Refusal> {
    let Prepared { event, before, via } = join;
    before.check(row, &event)?;
    let mut row = row_for(row, &event, event.sender());
    let (was, attempts) = (row.state, row.attempts);
    // One that was handed in before a leave may land yet, too.
    let may_be_in = may_be_in || row.may_be_in;
    row.enter(RemoteState::Joining, Some(now + backoff_ms(3)));
    if was == RemoteState::Joining {
        row.attempts = attempts;
    }
    row.may_be_in = may_be_in;
    row.pending = Some(event);
    row.prefer(via);
    Ok(Next::Row(row))
}

fn invite_arrives(
    row: Option<&RemoteMembership>,
    invite: Pdu,
    invitee: &UserId,
    stripped_state: Vec<Box<RawValue>>,
    from: ServerName,
    now: Millis,
) -> Result<Next, Refusal> {
    if row.is_some_and(|row| row.has_seen(&invite)) {
        return Ok(Next::Same);
    }
    let order = row.map_or(InviteOrder::After, |row| row.order_of(&invite));
    let mut row = row_for(row, &invite, invitee);
    match (row.state, order) {
        // A leave that the room has, or may have at any moment, is not undone by an invite from before it: whoever
        // invites is told, and may invite anew.
        (RemoteState::Leaving, InviteOrder::Meets) => return Err(Refusal::LeaveUnderWay),
        (RemoteState::Leaving | RemoteState::Closed, InviteOrder::Before) => {
            return Err(Refusal::LeftSince);
        }
        // The join goes on; the invite is what is fallen back on if it fails.
        (RemoteState::Joining, _) => row.forgotten = false,
        // Newer wins; also over a leave that nobody was told yet, and over what was closed. That is a new beginning:
        // what was before has nothing to do with this invite.
        (was, order) => {
            if was.is_over() {
                row.event = None;
            }
            row.enter(RemoteState::Invited, (order == InviteOrder::Unclear).then_some(now));
        }
    }
    row.tell(invite);
    if !stripped_state.is_empty() {
        row.stripped_state = stripped_state;
    }
    // An invite answers the knock before it: the specification leaves it to us to see that. The server that we knocked
    // through stays in front then: the inviter's is surely in the room, but may not be the one that answered us.
    let first = row.via.first().cloned().filter(|_| row.answers().is_some());
    row.prefer(first.into_iter().chain([from]));
    Ok(Next::Row(row))
}

impl Fields {
    /// Goes over to a state, or begins it anew. `due`: when something is to be done in it.
    fn enter(&mut self, state: RemoteState, due: Option<Millis>) {
        (self.state, self.attempts, self.due_ms) = (state, 0, due);
        self.ended_ms = None;
        match state {
            RemoteState::Knocking | RemoteState::Knocked | RemoteState::Invited => {
                (self.pending, self.may_be_in, self.forgotten) = (None, false, false);
            }
            // What was before the join may be again: a room that was forgotten stays so until the join has succeeded.
            RemoteState::Joining => {}
            RemoteState::Leaving | RemoteState::Closed => self.stripped_state.clear(),
        }
    }

    /// It has come to its end; it is kept for a while from now. So is a leave that was handed in, since what it rests
    /// on tells which invites are older.
    fn close(&mut self, now: Millis) {
        self.enter(RemoteState::Closed, None);
        self.pending.take_if(|event| event.membership() != Some(Membership::Leave));
        (self.may_be_in, self.ended_ms) = (false, Some(now));
    }

    /// No server said yes or no: it is tried again later, and after a week no more.
    fn unanswered(mut self, now: Millis) -> Next {
        self.attempts = (self.attempts + 1).min(ATTEMPTS_MAX);
        self.due_ms = (self.attempts < ATTEMPTS_MAX).then(|| now + backoff_ms(self.attempts));
        if self.due_ms.is_none() && self.state == RemoteState::Leaving {
            self.close(now);
        }
        Next::Row(self)
    }

    fn knock_taken(
        mut self,
        knock: &EventId,
        by: ServerName,
        stripped_state: Vec<Box<RawValue>>,
        now: Millis,
    ) -> Next {
        if self.state == RemoteState::Knocking && self.told() == Some(knock) {
            self.enter(RemoteState::Knocked, None);
            self.stripped_state = stripped_state;
            self.prefer([by]);
            return Next::Row(self);
        }
        // Withdrawn while it was on its way: what the room was told of that before it had the knock counts for nothing.
        let withdrawn = self.previous.as_ref().is_some_and(|event| event.event_id() == knock)
            && self.event.as_ref().is_some_and(|leave| leave.sender() == &self.user_id);
        if !withdrawn || !self.state.is_over() {
            return Next::Same;
        }
        self.enter(RemoteState::Leaving, Some(now));
        self.pending = None;
        self.prefer([by]);
        Next::Row(self)
    }

    fn knock_refused(mut self, knock: &EventId, leave: Pdu, now: Millis) -> Next {
        if self.state != RemoteState::Knocking || self.told() != Some(knock) {
            return Next::Same;
        }
        if self.stream == 0 {
            return Next::Gone;
        }
        // Clients were shown an earlier knock, or something before it, and must be told that it is over.
        self.tell(leave);
        self.close(now);
        Next::Row(self)
    }

    /// The room is to be asked about the invite, which it need not know for so many looks.
    fn doubted(mut self, looks: u32, now: Millis) -> Next {
        (self.attempts, self.due_ms) = (looks, Some(now));
        Next::Row(self)
    }

    fn invite_looked_up(mut self, invite: &EventId, answer: InviteAnswer, leave: Pdu, now: Millis) -> Next {
        // Who is asked has a time: if there is none, the matter is settled.
        if self.state != RemoteState::Invited || self.told() != Some(invite) || self.due_ms.is_none() {
            return Next::Same;
        }
        let looks = self.attempts + 1;
        let pause = usize::try_from(self.attempts).ok().and_then(|done| INVITE_LOOK_PAUSES_MS.get(done));
        match (answer, pause) {
            (InviteAnswer::Stands, _) => (self.attempts, self.due_ms) = (0, None),
            (InviteAnswer::Unanswered, _) => {
                (self.attempts, self.due_ms) =
                    (looks, (looks < UNANSWERED_LOOKS_MAX).then(|| now + backoff_ms(looks)));
            }
            (InviteAnswer::Void(_), Some(pause)) => (self.attempts, self.due_ms) = (looks, Some(now + pause)),
            (InviteAnswer::Void(Some(Membership::Knock)), None) if self.answers().is_some() => {
                self.event = self.previous.take();
                self.restore_version();
                self.enter(RemoteState::Knocked, None);
            }
            (InviteAnswer::Void(_), None) => {
                self.tell(leave);
                self.close(now);
            }
        }
        Next::Row(self)
    }

    fn join_failed(mut self, join: &EventId, how: JoinFailure, leave: Pdu, now: Millis) -> Next {
        if !self.is_entered_by(join) {
            return Next::Same;
        }
        match self.state {
            RemoteState::Joining => {}
            // Somebody else ended it before, and now it will not come to be in the room either.
            RemoteState::Closed if how == JoinFailure::Refused => {
                self.pending = None;
                return Next::Row(self);
            }
            _ => return Next::Same,
        }
        let taken_by = match how {
            JoinFailure::Refused if !self.may_be_in => return self.fall_back(now),
            JoinFailure::Unanswered if self.attempts + 1 < ATTEMPTS_MAX => return self.unanswered(now),
            JoinFailure::Refused | JoinFailure::Unanswered => Vec::new(),
            JoinFailure::Taken(by) => by,
        };
        // A server took the join, or may have: the room is to be left again.
        self.tell(leave);
        self.prefer(taken_by);
        self.enter(RemoteState::Leaving, Some(now));
        (self.pending, self.may_be_in) = (None, false);
        Next::Row(self)
    }

    /// The row is about the event again that is told, and so is the version.
    fn restore_version(&mut self) {
        self.room_version = self.event.as_ref().map_or(self.room_version, Pdu::version);
    }

    /// What was before the join is again.
    fn fall_back(mut self, now: Millis) -> Next {
        self.restore_version();
        match self.event.as_ref().map(Pdu::membership) {
            None => return Next::Gone,
            Some(Some(Membership::Invite)) => self.enter(RemoteState::Invited, None),
            // It may not have been handed in yet: that is done (again) now, which harms nothing.
            Some(Some(Membership::Knock)) => self.enter(RemoteState::Knocking, Some(now)),
            Some(Some(Membership::Join | Membership::Leave | Membership::Ban) | None) => self.close(now),
        }
        Next::Row(self)
    }

    fn user_leaves(mut self, leave: Pdu, now: Millis) -> Next {
        let has_join = self.has_join_on_its_way();
        if self.state == RemoteState::Leaving || (self.state == RemoteState::Closed && !has_join) {
            return Next::Same;
        }
        // A join that was handed in may land yet, even if somebody removed the user meanwhile.
        self.may_be_in = has_join;
        self.tell(leave);
        self.enter(RemoteState::Leaving, Some(now));
        Next::Row(self)
    }

    /// Whether it is still about this leave.
    fn is_leaving(&self, told: &EventId) -> bool {
        self.state == RemoteState::Leaving && self.told() == Some(told)
    }

    fn leave_signed(mut self, told: &EventId, leave: Pdu, to: ServerName) -> Next {
        if !self.is_leaving(told) {
            return Next::Same;
        }
        self.pending = Some(leave);
        self.prefer([to]);
        Next::Row(self)
    }

    fn leave_may_go_through(mut self, server: ServerName) -> Next {
        if self.state != RemoteState::Leaving {
            return Next::Same;
        }
        self.prefer([server]);
        Next::Row(self)
    }

    fn leave_answered(mut self, told: &EventId, answer: LeaveAnswer, now: Millis) -> Next {
        if !self.is_leaving(told) {
            return Next::Same;
        }
        match answer {
            LeaveAnswer::InRoom => return Next::Gone,
            LeaveAnswer::Unanswered => return self.unanswered(now),
            LeaveAnswer::Refused => {
                // A server that does not know the invite may be slow to take it in, and is asked once more.
                let left = self.previous.as_ref().and_then(Pdu::membership);
                let is_slow = left == Some(Membership::Invite) && self.attempts == 0;
                // And a join that was on its way may still come to be in the room.
                let may_land = self.may_be_in && self.attempts < ATTEMPTS_BEHIND_A_JOIN_MAX;
                if is_slow || may_land {
                    return self.unanswered(now);
                }
                // The room has us as no member, and there is nothing to leave.
                self.pending = None;
            }
            LeaveAnswer::Taken => {}
        }
        self.close(now);
        Next::Row(self)
    }

    fn removed(mut self, removal: Pdu, now: Millis) -> Next {
        match self.bearing_of(&removal) {
            RemovalBearing::Over => return Next::Same,
            // The invite stays until the room has been asked about it.
            RemovalBearing::Unclear => {
                let is_ban = removal.membership() == Some(Membership::Ban);
                return self.doubted(if is_ban { INVITE_LOOKS_MAX } else { 0 }, now);
            }
            // Clients were told of their own leave, and there is nobody left to tell; unless a join of theirs is on its
            // way. What becomes of that beside a removal is up to the room, and it is to be left in any case.
            RemovalBearing::Ends if self.state == RemoteState::Leaving && self.has_join_on_its_way() => {
                return Next::Same;
            }
            RemovalBearing::Ends if self.state == RemoteState::Leaving => {}
            RemovalBearing::Ends => {
                // Whoever took the join may bring us into the room yet, which then decides.
                let join = self.pending.take().filter(|_| self.state == RemoteState::Joining);
                self.tell(removal);
                self.close(now);
                self.pending = join;
                return Next::Row(self);
            }
        }
        self.close(now);
        Next::Row(self)
    }
}
