//! The machine: what a fact makes of a row.

use serde_json::value::RawValue;

use super::{
    CoveredMembership, Effect, Fact, Fields, InviteOrder, JoinFailure, LeaveAnswer, Prepared,
    PriorMembership, Refusal, RemoteMembership, RemoteState, RemovalBearing, order_of_invite,
};
use crate::backoff::Backoff;
use crate::protocol::pdu::{Membership, Pdu};
use crate::protocol::{EventId, Millis, ServerName, UserId};

/// After how many attempts nothing more is tried: about a week.
pub const ATTEMPTS_MAX: u32 = 60;

/// How often a leave is tried where nobody has anything to leave, but a join or knock may land yet: half an hour.
const ATTEMPTS_WHILE_IT_MAY_LAND_MAX: u32 = 5;
/// How often a join is tried that no server answers, where the invite covers something else that waits.
const COVERING_JOINS_MAX: u32 = 5;

/// Pauses of what is tried again: seconds at first, three hours in the end.
const PAUSES: Backoff = Backoff { first_ms: 5_000, factor: 4, longest_ms: 3 * 3_600_000 };

/// When something is tried again after this many attempts that failed, and a first one.
pub fn backoff_ms(attempts: u32) -> Millis {
    PAUSES.pause_ms(attempts.saturating_add(1))
}

/// What becomes of a row.
pub(super) enum Next {
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
        (row, Fact::InviteArrives { invite, invitee, stripped_state, from, left }) => {
            let left = left.as_ref().map(|leave| (leave, true));
            let order = match row {
                Some(row) => row.order_of(&invite),
                None => order_of_invite(&invite, left, None),
            };
            invite_arrives(row.as_ref(), (invite, order), &invitee, stripped_state, from, now)?
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
            if waits { row.knock_unanswered(now) } else { Next::Same }
        }
        Fact::Doubted
            if matches!(row.state, RemoteState::Invited | RemoteState::Knocked) && row.is_standing() =>
        {
            row.doubted(now)
        }
        Fact::Doubted => Next::Same,
        Fact::LookedUp { about, answer, by, leave } => row.looked_up(&about, (answer, by), leave, now),
        Fact::JoinFailed { join, how, leave } => row.join_failed(&join, how, leave, now),
        Fact::UserLeaves(leave) => row.user_leaves(leave, now),
        Fact::LeaveSigned { told, leave, to } => row.leave_signed(&told, leave, to),
        Fact::LeaveAnswered { told, answer } => row.leave_answered(&told, answer, now),
        Fact::LeaveMayGoThrough(server) => row.leave_may_go_through(server),
        Fact::Removed { removal, from } => row.removed(removal, &from, now),
        Fact::UserForgets if row.state.is_over() => Next::Row(Fields { forgotten: true, ..row }),
        Fact::UserForgets => return Err(Refusal::NotLeft),
        // From now on the room's own state says who is a member. Only a leave that is still to be told stays, to be
        // put into the room now; or that a server has taken, and the room that we came into does not know.
        Fact::NowResident { .. } if row.state == RemoteState::Leaving => {
            Next::Row(Fields { due_ms: Some(now), ..row })
        }
        Fact::NowResident { lacks_leave: true } if row.state == RemoteState::Closed => row.leave_anew(now),
        Fact::NowResident { .. } | Fact::AskedInRoom => Next::Gone,
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
    row.covered = None;
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
    row.covered.take_if(|_| was.is_over());
    if was == RemoteState::Joining {
        row.attempts = attempts;
    }
    row.may_be_in = may_be_in;
    row.pending = Some(event);
    // What is covered is to be found by its own servers, should it come to that.
    if row.covered.is_none() {
        row.prefer(via);
    }
    Ok(Next::Row(row))
}

fn invite_arrives(
    row: Option<&RemoteMembership>,
    (invite, order): (Pdu, InviteOrder),
    invitee: &UserId,
    stripped_state: Vec<Box<RawValue>>,
    from: ServerName,
    now: Millis,
) -> Result<Next, Refusal> {
    if row.is_some_and(|row| row.has_seen(&invite)) {
        return Ok(Next::Same);
    }
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
            let join = row.take_join_that_may_land();
            if was.is_over() {
                (row.event, row.covered) = (None, None);
            }
            row.enter(RemoteState::Invited, (order == InviteOrder::Unclear).then_some(now));
            row.pending = join;
        }
    }
    row.show_invite(invite, &from, stripped_state);
    if row.state == RemoteState::Invited && row.due_ms.is_none() {
        row.stand(now);
    }
    // The inviter's server is asked in any case; what is covered is found by those that are known already.
    if row.covered.is_some() {
        return Ok(Next::Row(row));
    }
    // An invite answers the knock before it: the specification leaves it to us to see that. The server that we knocked
    // through stays in front then: the inviter's is surely in the room, but may not be the one that answered us.
    let first = row.via.first().cloned().filter(|_| row.answers().is_some());
    row.prefer(first.into_iter().chain([from]));
    Ok(Next::Row(row))
}

impl Fields {
    /// Goes over to a state, or begins it anew. `due`: when something is to be done in it.
    pub(super) fn enter(&mut self, state: RemoteState, due: Option<Millis>) {
        (self.state, self.attempts, self.due_ms) = (state, 0, due);
        (self.ended_ms, self.host_unaware) = (None, false);
        match state {
            RemoteState::Knocking | RemoteState::Knocked | RemoteState::Invited => {
                (self.pending, self.removal, self.may_be_in, self.forgotten) = (None, None, false, false);
            }
            // What was before the join may be again: a room that was forgotten stays so until the join has succeeded.
            RemoteState::Joining => {}
            RemoteState::Leaving | RemoteState::Closed => {
                self.removal = None;
                self.stripped_state.clear();
            }
        }
    }

    /// It has come to its end; it is kept for a while from now. So is a leave that was handed in, since what it rests
    /// on tells which invites are older.
    pub(super) fn close(&mut self, now: Millis) {
        self.enter(RemoteState::Closed, None);
        self.pending.take_if(|event| event.membership() != Some(Membership::Leave));
        (self.covered, self.may_be_in, self.ended_ms) = (None, false, Some(now));
    }

    /// The invite that was shown is worth nothing, and what it covered is what the user is: the room is asked whether it
    /// still is. False if there is nothing.
    pub(super) fn uncover(&mut self, now: Millis) -> bool {
        let knows_it = self.prior().is_some();
        let Some(CoveredMembership { event, stripped_state }) = self.covered.take() else { return false };
        // Who removes by what knows of it may speak of it as well.
        let removal = self.removal.take().filter(|_| knows_it);
        let inviter = self.event.replace(event).map(|invite| invite.sender().server());
        self.via.retain(|server| Some(server) != inviter.as_ref());
        self.restore_version();
        let is_knock = self.event.as_ref().and_then(Pdu::membership) == Some(Membership::Knock);
        match (is_knock, stripped_state.is_empty()) {
            (false, _) => self.enter(RemoteState::Invited, Some(now)),
            (true, false) => self.enter(RemoteState::Knocked, Some(now)),
            // Perhaps nobody has taken it yet. It is handed in again, which harms nothing, and was not the first time.
            (true, true) => {
                self.enter(RemoteState::Knocking, Some(now));
                self.attempts = 1;
            }
        }
        (self.stripped_state, self.removal) = (stripped_state, removal);
        true
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
            // What was handed in before may have been answered since, and is taken for a repeat all the same.
            let (removal, is_repeat) = (self.removal.take(), self.attempts > 0);
            let is_doubtful = is_repeat || removal.is_some();
            self.enter(RemoteState::Knocked, Some(if is_doubtful { now } else { self.standing_look(now) }));
            self.stripped_state = stripped_state;
            match removal {
                Some(removal) if removal.sender().server() == by && self.is_ended_by(&removal) => {
                    self.tell(removal);
                    self.close(now);
                }
                removal => self.removal = removal,
            }
            self.prefer([by]);
            return Next::Row(self);
        }
        if let Some(covered) = self.covered.as_mut().filter(|covered| covered.event.event_id() == knock)
            && !self.state.is_over()
        {
            covered.stripped_state = stripped_state;
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
        if self.covered.take_if(|covered| covered.event.event_id() == knock).is_some() {
            return Next::Row(self);
        }
        // Withdrawn while it was on its way, and now it will not come to be in the room.
        if self.state == RemoteState::Leaving
            && self.may_be_in
            && !self.has_join_on_its_way()
            && self.previous.as_ref().is_some_and(|event| event.event_id() == knock)
        {
            self.may_be_in = false;
            return Next::Row(self);
        }
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

    /// Whether a removal ends what the user is, if it is true.
    fn is_ended_by(&self, removal: &Pdu) -> bool {
        self.bearing_of(removal) == RemovalBearing::Ends
    }

    /// Nobody answers. If the server that was asked first has removed the user, that is its answer.
    fn knock_unanswered(mut self, now: Millis) -> Next {
        let is_answer =
            |removal: &Pdu| self.via.first() == Some(&removal.sender().server()) && self.is_ended_by(removal);
        match self.removal.clone().filter(is_answer) {
            Some(removal) => {
                self.tell(removal);
                self.close(now);
                Next::Row(self)
            }
            None => self.unanswered(now),
        }
    }

    fn join_failed(mut self, join: &EventId, how: JoinFailure, leave: Pdu, now: Millis) -> Next {
        if !self.is_entered_by(join) {
            return Next::Same;
        }
        match (self.state, &how) {
            (RemoteState::Joining, _) => {}
            // Somebody else ended it before, and now it will not come to be in the room either; or it is there, and is
            // taken back by whoever hands this in.
            (RemoteState::Closed, JoinFailure::Refused | JoinFailure::Taken(_))
            | (RemoteState::Invited, JoinFailure::Refused) => {
                self.pending = None;
                return Next::Row(self);
            }
            // What the room makes of the invite since is to be seen.
            (RemoteState::Invited, JoinFailure::Taken(_)) => {
                self.pending = None;
                return self.doubted(now);
            }
            _ => return Next::Same,
        }
        let is_covering = self.covered.is_some();
        let attempts_max = if is_covering { COVERING_JOINS_MAX } else { ATTEMPTS_MAX };
        let taken_by = match how {
            JoinFailure::Refused if !self.may_be_in => return self.fall_back(leave, now),
            JoinFailure::Unanswered if self.attempts + 1 < attempts_max => return self.unanswered(now),
            JoinFailure::Refused | JoinFailure::Unanswered => Vec::new(),
            JoinFailure::Taken(by) => by,
        };
        // What a stranger makes of a join of theirs is nothing that the room is to be left for.
        if is_covering {
            self.via.retain(|server| !taken_by.contains(server));
            self.uncover(now);
            return Next::Row(self);
        }
        // A server took the join, or may have: the room is to be left again.
        self.tell(leave);
        self.prefer(taken_by);
        self.enter(RemoteState::Leaving, Some(now));
        (self.pending, self.may_be_in) = (None, false);
        Next::Row(self)
    }

    /// The row is about the event again that is told, and so is the version.
    pub(super) fn restore_version(&mut self) {
        self.room_version = self.event.as_ref().map_or(self.room_version, Pdu::version);
    }

    /// What was before the join is again. Who was in the room before has been lost there, and is told that they are out.
    fn fall_back(mut self, leave: Pdu, now: Millis) -> Next {
        self.restore_version();
        let removal = self.removal.take();
        match self.event.as_ref().map(Pdu::membership) {
            None => return Next::Gone,
            Some(Some(Membership::Invite)) => {
                self.enter(RemoteState::Invited, removal.is_some().then_some(now));
                match removal {
                    Some(_) => self.removal = removal,
                    None => self.stand(now),
                }
            }
            // It may not have been handed in yet: that is done (again) now, which harms nothing.
            Some(Some(Membership::Knock)) => {
                self.enter(RemoteState::Knocking, Some(now));
                self.removal = removal;
            }
            Some(Some(Membership::Join)) => {
                self.tell(leave);
                self.close(now);
            }
            Some(Some(Membership::Leave | Membership::Ban) | None) => self.close(now),
        }
        Next::Row(self)
    }

    /// A join that was handed in and that somebody else ended who did not know yet that it was in the room. Where they did,
    /// or the user left it themselves, its answer says nothing new.
    fn take_join_that_may_land(&mut self) -> Option<Pdu> {
        let join = self.pending.take().filter(|event| event.membership() == Some(Membership::Join))?;
        let is_known = self.event.as_ref().is_some_and(|end| end.auth_events().contains(join.event_id()));
        let may_land = match self.state {
            RemoteState::Closed => self.is_ended_by_others() && !is_known,
            RemoteState::Invited => true,
            RemoteState::Knocking | RemoteState::Knocked | RemoteState::Joining | RemoteState::Leaving => {
                false
            }
        };
        may_land.then_some(join)
    }

    /// The room shows the user as what they have left: it is to have their leave, by this server now.
    fn leave_anew(mut self, now: Millis) -> Next {
        self.enter(RemoteState::Leaving, Some(now));
        Next::Row(self)
    }

    fn user_leaves(mut self, leave: Pdu, now: Millis) -> Next {
        let has_join = self.has_join_on_its_way();
        match self.state {
            RemoteState::Leaving => return Next::Same,
            // Clients know that it is over, and by whom.
            RemoteState::Closed if self.host_unaware => {
                self.enter(RemoteState::Leaving, Some(now));
                self.prefer(self.unaware_host());
                return Next::Row(self);
            }
            RemoteState::Closed if !has_join => return Next::Same,
            _ => {}
        }
        // A join that was handed in may land yet, whoever removed the user meanwhile; so may a knock that nobody has taken yet.
        self.may_be_in = has_join || self.state == RemoteState::Knocking;
        // It is left whatever there is: what was covered first, and whoever covered it is told too.
        if let Some(covered) = self.covered.take() {
            let covering = self.event.replace(covered.event);
            // One that knows of the other is in the room, and may pass the leave on.
            let knows = |event: &&Pdu| {
                self.event.as_ref().is_some_and(|e| event.auth_events().contains(e.event_id()))
            };
            let inviter = covering.as_ref().filter(knows).map(|event| event.sender().server());
            let known = std::mem::take(&mut self.via);
            self.prefer(known.into_iter().chain(inviter));
            self.covered = covering.map(|event| CoveredMembership { event, stripped_state: Vec::new() });
        }
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
        // The one that has to hear of it stays the first.
        self.prefer(self.unaware_host().into_iter().chain([to]));
        Next::Row(self)
    }

    fn leave_may_go_through(mut self, server: ServerName) -> Next {
        if self.state != RemoteState::Leaving {
            return Next::Same;
        }
        // It may be a stranger's, and the room's own servers come first.
        let known = std::mem::take(&mut self.via);
        self.prefer(known.into_iter().chain([server]));
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
                let left = self.previous.as_ref().filter(|_| !self.is_ended_by_others());
                let is_invite = left.and_then(Pdu::membership) == Some(Membership::Invite);
                let is_slow = is_invite && self.attempts == 0;
                // And a join or a knock that was on its way may still come to be in the room.
                let may_land = self.may_be_in && self.attempts < ATTEMPTS_WHILE_IT_MAY_LAND_MAX;
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

    fn removed(mut self, removal: Pdu, from: &ServerName, now: Millis) -> Next {
        let rests_on = |event: &Pdu| removal.auth_events().contains(event.event_id());
        if let Some(covered) = self.covered.as_ref().filter(|_| !self.state.is_over())
            && rests_on(&covered.event)
            && !self.event.as_ref().is_some_and(rests_on)
        {
            // Others' word on it is asked for once it is what the user is.
            return match self.is_vouched_for(&removal, from, &covered.event) {
                true => self.no_longer_covers(now),
                false => Next::Same,
            };
        }
        let (bearing, is_certain) = (self.bearing_of(&removal), self.is_certain(&removal, from));
        match (self.state, bearing) {
            (_, RemovalBearing::Over) => return Next::Same,
            // Clients were told of their own leave, and there is nobody left to tell; unless a join of theirs is on its
            // way. What becomes of that beside a removal is up to the room, and it is to be left in any case. So it is
            // where nobody vouches for the removal: at worst there is nothing to leave.
            (RemoteState::Leaving, _) if !is_certain || self.has_join_on_its_way() => return Next::Same,
            (RemoteState::Leaving, _) => self.close(now),
            (RemoteState::Knocking, _) => {
                self.doubt_by(removal, bearing);
                self.due_ms = Some(now);
                self.attempts = self.attempts.min(ATTEMPTS_MAX - 1);
            }
            (RemoteState::Invited, RemovalBearing::Ends) if is_certain && self.covered.is_some() => {
                self.removal = Some(removal);
                self.uncover(now);
            }
            (RemoteState::Joining, _) if !is_certain || self.covered.is_some() => {
                self.removal = Some(removal);
            }
            (_, RemovalBearing::Ends) if is_certain => {
                // Whoever took the join may bring us into the room yet, which then decides.
                let join = self.pending.take().filter(|event| event.membership() == Some(Membership::Join));
                self.tell(removal);
                self.close(now);
                self.pending = join;
            }
            // It stays until the room has been asked.
            (_, RemovalBearing::Ends | RemovalBearing::Unclear) => {
                // What nothing speaks against has a time too, which is far off.
                let is_asked = !self.is_standing();
                self.doubt_by(removal, bearing);
                return if is_asked { Next::Row(self) } else { self.doubted(now) };
            }
        }
        Next::Row(self)
    }

    /// Keeps a removal that nobody has vouched for yet. One that may be over takes the place of none that says more.
    fn doubt_by(&mut self, removal: Pdu, bearing: RemovalBearing) {
        if bearing == RemovalBearing::Ends || self.removal.is_none() {
            self.removal = Some(removal);
        }
    }

    /// What the invite covers is over, of which the inviter's server may know more.
    fn no_longer_covers(mut self, now: Millis) -> Next {
        let inviter = self.event.as_ref().map(|invite| invite.sender().server());
        self.covered = None;
        self.via.clear();
        self.prefer(inviter);
        if self.state == RemoteState::Invited && self.is_standing() {
            return self.doubted(now);
        }
        Next::Row(self)
    }
}
