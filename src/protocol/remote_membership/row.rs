//! One row, and what can be read from it.

use std::ops::Deref;

use serde_json::value::RawValue;

use super::{InviteOrder, Refusal, RemoteState, RemovalBearing, backoff_ms, bearing, order_of_invite};
use crate::protocol::pdu::{Membership, Pdu};
use crate::protocol::{EventId, Millis, RoomId, RoomVersion, ServerName, UserId};

/// A local user's membership in a room that this server is not in. Anybody may read its fields; only
/// [`apply`](super::apply) changes them.
#[derive(Debug, Clone)]
pub struct RemoteMembership(pub(super) Fields);

/// What a remote membership consists of. See `schema.sql` for what the fields mean.
#[derive(Debug, Clone)]
pub struct Fields {
    /// The room that this server is not in.
    pub room_id: RoomId,
    /// The local user.
    pub user_id: UserId,
    /// Where the membership stands.
    pub state: RemoteState,
    /// The room's version, as the other side said it.
    pub room_version: RoomVersion,
    /// The member event that clients are told.
    pub event: Option<Pdu>,
    /// The member event before that one.
    pub previous: Option<Pdu>,
    /// The signed join that is being sent; while leaving and afterwards, the leave that a server was handed. While
    /// leaving a room that was being joined, that join, until a leave is handed in; and where somebody else ended it, that
    /// join, for whoever took it may bring us in yet, also if they were invited anew since.
    pub pending: Option<Pdu>,
    /// Somebody else's removal of the user that nobody has vouched for yet whose word counts: the room is asked about it,
    /// or decides once the user has come in.
    pub removal: Option<Pdu>,
    /// What the user is to the room if the invite in `event` is worth nothing; while leaving, the other way round: the
    /// invite whose server has to be told too.
    pub covered: Option<CoveredMembership>,
    /// Stripped state for clients, without the user's own member event. Who has left is shown nothing more of the room.
    pub stripped_state: Vec<Box<RawValue>>,
    /// Servers worth asking, best first.
    pub via: Vec<ServerName>,
    /// How often the scheduler tried in this state.
    pub attempts: u32,
    /// When it tries next.
    pub due_ms: Option<Millis>,
    /// Of one that somebody else's removal ended: whether the server that invited, or took the knock, may not know of that, for
    /// others have confirmed it. It is told if the user leaves.
    pub host_unaware: bool,
    /// Whether the user asked to forget the room.
    pub forgotten: bool,
    /// When it came to its end.
    pub ended_ms: Option<Millis>,
    /// While joining: whether a server may have taken a join that was handed in before the pending one; while leaving,
    /// whether it may take one yet, or a knock.
    pub may_be_in: bool,
    /// Position of the last change that clients can see; 0 if they have seen none.
    pub stream: i64,
}

/// A knock, or an invite, which a newer invite covers that comes from elsewhere: a stranger can make one for any room, as can
/// who is in the room and keeps it to themselves, and ends nothing by that. It is one, however many invites come: the first
/// that was covered.
#[derive(Debug, Clone)]
pub struct CoveredMembership {
    /// The knock or invite.
    pub event: Pdu,
    /// What clients were shown of the room with it.
    pub stripped_state: Vec<Box<RawValue>>,
}

/// The section of `/sync` that shows a remote membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncSection {
    /// `rooms.invite`.
    Invite,
    /// `rooms.knock`.
    Knock,
    /// `rooms.leave`.
    Leave,
}

/// How many servers worth asking are remembered.
const VIA_MAX: usize = 20;

impl Deref for RemoteMembership {
    type Target = Fields;

    fn deref(&self) -> &Fields {
        &self.0
    }
}

impl RemoteMembership {
    /// A row as it was written.
    pub fn from_store(fields: Fields) -> Self {
        Self(fields)
    }

    /// What only the last state that we know of a room speaks of: the local user was invited, or knocked, while
    /// another local user was in the room, and that other one has left since. `event`: the user's member event there;
    /// `via`: servers that were in the room. None if there is nothing to answer or to take back.
    pub fn left_behind(
        event: Pdu,
        user: &UserId,
        stripped_state: Vec<Box<RawValue>>,
        via: Vec<ServerName>,
    ) -> Option<Self> {
        let state = match event.membership()? {
            Membership::Invite => RemoteState::Invited,
            Membership::Knock => RemoteState::Knocked,
            Membership::Join | Membership::Leave | Membership::Ban => return None,
        };
        let mut fields = Fields::blank(event.room_id(), user, event.version());
        (fields.state, fields.event, fields.stripped_state) = (state, Some(event), stripped_state);
        fields.prefer(via);
        Some(Self(fields))
    }
}

impl RemoteMembership {
    /// What becomes of a local user whose join is not in the room's state any more, though nobody has removed them: what
    /// several servers did at one moment came out so here, and we are out of the room with them. Others may know more, by
    /// which they are in it, and would go on telling a server that takes nothing. They join once more, and the room says
    /// whether they may. Not at once if it happens again: whoever can bring it about would have us come in without end.
    pub fn lost(join: Pdu, via: Vec<ServerName>) -> Self {
        let mut fields = Fields::blank(join.room_id(), join.sender(), join.version());
        (fields.state, fields.due_ms) = (RemoteState::Joining, Some(join.origin_server_ts() + backoff_ms(0)));
        (fields.event, fields.pending) = (Some(join.clone()), Some(join));
        fields.prefer(via);
        Self(fields)
    }

    /// What is left of a local user's membership in a room that is deleted here: that they have left, by this event, at
    /// this position of the stream, for clients that do not know it yet.
    pub fn ended(event: Pdu, user: &UserId, stream: i64, now: Millis) -> Self {
        let mut fields = Fields::blank(event.room_id(), user, event.version());
        (fields.event, fields.stream, fields.ended_ms) = (Some(event), stream, Some(now));
        Self(fields)
    }
}

impl Fields {
    /// A room that the user has nothing to do with.
    pub(super) fn blank(room_id: &RoomId, user_id: &UserId, room_version: RoomVersion) -> Self {
        Self {
            room_id: room_id.clone(),
            user_id: user_id.clone(),
            state: RemoteState::Closed,
            room_version,
            event: None,
            previous: None,
            pending: None,
            removal: None,
            covered: None,
            stripped_state: Vec::new(),
            via: Vec::new(),
            attempts: 0,
            due_ms: None,
            host_unaware: false,
            forgotten: false,
            ended_ms: None,
            may_be_in: false,
            stream: 0,
        }
    }

    /// Who invited, while nobody has answered.
    pub fn inviter(&self) -> Option<&UserId> {
        let invite = self.event.as_ref().filter(|_| self.state == RemoteState::Invited)?;
        Some(invite.sender())
    }

    /// Where clients see this row. None: nowhere, because there is nothing to show yet (a knock that no server has
    /// taken, a join out of the blue) or because the user forgot the room.
    pub fn section(&self) -> Option<SyncSection> {
        if self.forgotten {
            return None;
        }
        // A knock that a server has taken and shows nothing of is shown until something else happens to it.
        let is_seen = !self.stripped_state.is_empty();
        match self.state {
            RemoteState::Knocking => is_seen.then_some(SyncSection::Knock),
            RemoteState::Knocked => Some(SyncSection::Knock),
            RemoteState::Invited => Some(SyncSection::Invite),
            RemoteState::Joining => match self.event.as_ref()?.membership()? {
                Membership::Invite => Some(SyncSection::Invite),
                Membership::Knock => is_seen.then_some(SyncSection::Knock),
                // The user has left until the join has succeeded.
                Membership::Leave | Membership::Ban => Some(SyncSection::Leave),
                Membership::Join => None,
            },
            RemoteState::Leaving | RemoteState::Closed => Some(SyncSection::Leave),
        }
    }

    /// Where clients see this row that have been shown it: that it has ended they are to hear though the user has
    /// forgotten the room.
    pub fn section_of_who_knows_it(&self) -> Option<SyncSection> {
        self.section().or(self.forgotten.then_some(SyncSection::Leave))
    }

    /// Whether clients who know this of the row know all that another shows.
    pub(super) fn shows_all_of(&self, other: &Self) -> bool {
        self.section() == other.section() && self.told() == other.told() && self.shows_room_as(other)
    }

    fn shows_room_as(&self, other: &Self) -> bool {
        let (own, others) = (self.stripped_state.iter(), other.stripped_state.iter());
        own.map(|entry| entry.get()).eq(others.map(|entry| entry.get()))
    }

    /// Whether this is an invite, as the other is, of the user who invited before. Whoever repeats themselves rings once.
    pub(super) fn is_of_same_inviter(&self, other: &Self) -> bool {
        self.inviter().is_some() && self.inviter() == other.inviter()
    }

    /// Whether this is another invite of the user who invited before, which shows nothing else: clients are told of the first,
    /// and of this one when they begin anew.
    pub(super) fn repeats(&self, other: &Self) -> bool {
        let content = |row: &Self| row.event.as_ref().map(Pdu::content);
        self.is_of_same_inviter(other) && self.shows_room_as(other) && content(self) == content(other)
    }

    /// The member event that the one which clients are told follows, as far as it says so itself or comes from who knows.
    pub fn prior(&self) -> Option<&Pdu> {
        let covered = self.covered.as_ref().map(|covered| &covered.event).filter(|_| !self.state.is_over());
        match (covered, &self.event) {
            (Some(covered), Some(event)) => {
                Some(covered).filter(|covered| event.auth_events().contains(covered.event_id()))
            }
            _ => self.previous.as_ref(),
        }
    }

    /// The event id of the knock that this invite answers: the link of the two.
    pub fn answers(&self) -> Option<&EventId> {
        let knock = self.prior().filter(|p| p.membership() == Some(Membership::Knock))?;
        self.event.as_ref().filter(|e| e.membership() == Some(Membership::Invite))?;
        Some(knock.event_id())
    }

    /// Whether it is this invite that waits for an answer.
    pub fn is_invited_by(&self, invite: &EventId) -> bool {
        self.state == RemoteState::Invited && self.told() == Some(invite)
    }

    /// The event that clients are told.
    pub fn told(&self) -> Option<&EventId> {
        self.event.as_ref().map(Pdu::event_id)
    }

    /// The leave that a server of the room was handed, if it was.
    pub fn leave_handed_in(&self) -> Option<&Pdu> {
        self.pending
            .as_ref()
            .filter(|event| self.state.is_over() && event.membership() == Some(Membership::Leave))
    }

    /// Whether a server was handed a join whose outcome is not known; also if the user has left since, or was removed.
    pub fn has_join_on_its_way(&self) -> bool {
        self.pending.as_ref().and_then(Pdu::membership) == Some(Membership::Join)
    }

    /// Whether the room is entered by this join, now that a server of it has taken it: as long as the user waits for it,
    /// and also if they left or were removed meanwhile, which is then made good in the room. Not if something new has
    /// begun since: of that the answer to the join knows nothing.
    pub fn is_entered_by(&self, join: &EventId) -> bool {
        self.has_join_on_its_way() && self.pending.as_ref().is_some_and(|pending| pending.event_id() == join)
    }

    /// Whether somebody else ended it, which is also what clients are told if the user leaves after that.
    pub fn is_ended_by_others(&self) -> bool {
        self.state.is_over() && self.event.as_ref().is_some_and(|event| event.sender() != &self.user_id)
    }

    /// Whether the user has left already, or there is nothing that anybody would have to hear of if they do.
    pub fn is_left(&self) -> bool {
        match self.state {
            RemoteState::Leaving => !self.has_join_on_its_way(),
            RemoteState::Closed => !self.has_join_on_its_way() && !self.host_unaware,
            RemoteState::Knocking | RemoteState::Knocked | RemoteState::Invited | RemoteState::Joining => {
                false
            }
        }
    }

    /// Of one that somebody else ended before the user left: the server that has to hear of the leave, and that it is over.
    pub fn unaware_host(&self) -> Option<ServerName> {
        self.other_host().filter(|_| self.state == RemoteState::Leaving && self.is_ended_by_others())
    }

    /// What has overtaken a join that was handed in, if the user waits for it no more.
    pub fn overtaken_by(&self) -> Option<Refusal> {
        match self.state {
            RemoteState::Joining => None,
            RemoteState::Leaving => Some(Refusal::LeftMeanwhile),
            RemoteState::Closed if !self.has_join_on_its_way() => Some(Refusal::LeftMeanwhile),
            RemoteState::Closed | RemoteState::Knocking | RemoteState::Knocked | RemoteState::Invited => {
                Some(Refusal::RemovedMeanwhile)
            }
        }
    }

    /// The member events of the user that it knows.
    pub fn events(&self) -> impl Iterator<Item = &Pdu> {
        let covered = self.covered.as_ref().map(|covered| &covered.event);
        [self.event.as_ref(), covered, self.previous.as_ref(), self.pending.as_ref()].into_iter().flatten()
    }

    /// The version by which an event about the user is read that comes from the room. Each event of a row has its own, since
    /// nothing keeps a server from naming another one with an invite: so it is that of the event which this one rests on. If
    /// it rests on none, it is one by which it can be read.
    pub fn version_of_news(&self, json: &[u8]) -> RoomVersion {
        let known = || self.events();
        if known().all(|event| event.version().id == self.room_version.id) {
            return self.room_version;
        }
        let rests_on = |event: &&Pdu| {
            Pdu::parse(json, event.version()).is_ok_and(|news| news.auth_events().contains(event.event_id()))
        };
        let mut versions = std::iter::once(self.room_version).chain(known().map(|event| event.version()));
        let by_event = known().find(rests_on).map(|event| event.version());
        by_event
            .or_else(|| versions.find(|version| Pdu::parse(json, version).is_ok()))
            .unwrap_or(self.room_version)
    }

    /// The room's version as a server of the room said it in a handshake of the user's, if it took their knock; or as one
    /// said it by whose template they are joining.
    pub fn version_by_handshake(&self) -> Option<RoomVersion> {
        let knock = match self.state {
            RemoteState::Knocked => self.event.as_ref(),
            RemoteState::Invited => {
                self.covered.as_ref().map(|covered| &covered.event).or(self.previous.as_ref())
            }
            RemoteState::Joining => return self.pending.as_ref().map(Pdu::version),
            RemoteState::Knocking | RemoteState::Leaving | RemoteState::Closed => None,
        };
        knock.filter(|event| event.membership() == Some(Membership::Knock)).map(Pdu::version)
    }

    /// Where an invite that comes in stands beside the user's last leave, or the ban that ended it.
    pub fn order_of(&self, invite: &Pdu) -> InviteOrder {
        let is_ban = |event: &&Pdu| self.state.is_over() && event.membership() == Some(Membership::Ban);
        let ban = self.event.as_ref().filter(is_ban);
        let is_known = ban.is_some() || self.state == RemoteState::Closed;
        let leave = ban.or(self.leave_handed_in()).map(|leave| (leave, is_known));
        order_of_invite(invite, leave, self.previous.as_ref())
    }

    /// Whether this very invite was seen before: it is what the user is looking at, what they answered, or what
    /// somebody took back.
    pub fn has_seen(&self, invite: &Pdu) -> bool {
        let covered = self.covered.as_ref().map(|covered| &covered.event);
        let mut seen = [self.event.as_ref(), covered, self.previous.as_ref()].into_iter().flatten();
        let seen = seen.any(|event| event.event_id() == invite.event_id());
        seen || self.event.as_ref().is_some_and(|e| e.auth_events().contains(invite.event_id()))
    }

    /// The server whose word on this knock or invite counts: the one that took the knock, or the inviter's.
    fn host_of(&self, member: &Pdu) -> Option<ServerName> {
        match member.membership()? {
            Membership::Invite => Some(member.sender().server()),
            Membership::Knock => self.via.first().cloned(),
            Membership::Join | Membership::Leave | Membership::Ban => None,
        }
    }

    /// The server whose word on what the user is, or was before they were removed, counts, if it is another than theirs.
    pub(super) fn other_host(&self) -> Option<ServerName> {
        let member = if self.is_ended_by_others() { &self.previous } else { &self.event };
        let host = member.as_ref().and_then(|member| self.host_of(member));
        host.filter(|host| *host != self.user_id.server())
    }

    /// Whether an invite that `from` brings comes from the host of this knock or invite, who can say what has become of it.
    /// Whoever else invites may be a stranger, or in the room and none whose invite gets there.
    fn is_by_the_host(&self, invite: &Pdu, from: &ServerName, member: &Pdu) -> bool {
        self.host_of(member).is_some_and(|host| host == invite.sender().server() || host == *from)
    }

    /// Whether the host of this knock or invite has made a removal itself, or passes it on, which it does with what its
    /// room allows. What others say of it anybody can say who is in the room, whatever they may do there.
    pub(super) fn is_vouched_for(&self, removal: &Pdu, from: &ServerName, member: &Pdu) -> bool {
        self.host_of(member).is_some_and(|host| host == removal.sender().server() || host == *from)
    }

    /// Whether somebody's removal ends the membership without the room being asked.
    pub(super) fn is_certain(&self, removal: &Pdu, from: &ServerName) -> bool {
        let present = if self.state == RemoteState::Leaving { &self.previous } else { &self.event };
        let Some(present) = present else { return false };
        // Who took a knock shows by the servers only until others are asked something else.
        let is_shown = self.state == RemoteState::Knocked || present.membership() != Some(Membership::Knock);
        is_shown && self.is_vouched_for(removal, from, present)
    }

    /// Whether a removal ends what the local user is, or what they were: it may be a refusal of a knock that arrives
    /// after the invite, or once more after the next knock.
    pub fn bearing_of(&self, removal: &Pdu) -> RemovalBearing {
        // A leave that the room has not been told is not in the way; what was left is.
        let present = if self.state == RemoteState::Leaving { &self.previous } else { &self.event };
        bearing(self.state, removal, present.as_ref(), self.previous.as_ref())
    }

    /// Makes this the member event that clients are told; the one before becomes `previous`.
    pub(super) fn tell(&mut self, event: Pdu) {
        self.previous = self.event.replace(event);
    }

    /// Whether the user is what `event` says, or waits for a join that may still lead back to it.
    fn present(&self) -> Option<&Pdu> {
        let event = self.event.as_ref().filter(|_| !self.state.is_over())?;
        event.membership().filter(|m| matches!(m, Membership::Invite | Membership::Knock))?;
        Some(event)
    }

    /// Makes this invite the one that is shown. What is not its server's to end is covered by it, not ended.
    pub(super) fn show_invite(&mut self, invite: Pdu, from: &ServerName, stripped_state: Vec<Box<RawValue>>) {
        let is_its_host = |covered: &CoveredMembership| self.is_by_the_host(&invite, from, &covered.event);
        let takes_its_place = self.covered.as_ref().is_some_and(is_its_host);
        let is_beside = self.present().is_some_and(|present| !self.is_by_the_host(&invite, from, present));
        if takes_its_place {
            self.previous = self.covered.take().map(|covered| covered.event);
            self.event = Some(invite);
        } else if self.covered.is_some() {
            self.event = Some(invite);
        } else if is_beside {
            let stripped_state = std::mem::take(&mut self.stripped_state);
            self.covered =
                self.event.replace(invite).map(|event| CoveredMembership { event, stripped_state });
        } else {
            self.tell(invite);
        }
        if !stripped_state.is_empty() || self.covered.is_some() {
            self.stripped_state = stripped_state;
        }
    }

    /// Puts servers in front of those that are known to be worth asking, without repeats and without growing for ever.
    pub(super) fn prefer(&mut self, servers: impl IntoIterator<Item = ServerName>) {
        let mut via: Vec<ServerName> = Vec::new();
        for server in servers.into_iter().chain(std::mem::take(&mut self.via)) {
            if via.len() < VIA_MAX && !via.contains(&server) {
                via.push(server);
            }
        }
        self.via = via;
    }
}

/// What the user's remote membership was when their knock or join began to be prepared.
#[derive(Debug, Clone, Default)]
pub struct PriorMembership {
    /// Where it stood.
    pub state: Option<RemoteState>,
    told: Option<EventId>,
}

impl PriorMembership {
    /// As it is now.
    pub fn of(row: Option<&RemoteMembership>) -> Self {
        Self { state: row.map(|row| row.state), told: row.and_then(|row| row.told()).cloned() }
    }

    /// Whether the user may knock. Who waits for the answer to a knock is refused nothing: it is the same knock again.
    pub fn may_knock(&self) -> Result<(), Refusal> {
        match self.state {
            Some(RemoteState::Invited) => Err(Refusal::AlreadyInvited),
            Some(RemoteState::Joining) => Err(Refusal::JoinUnderWay),
            None
            | Some(
                RemoteState::Knocking | RemoteState::Knocked | RemoteState::Leaving | RemoteState::Closed,
            ) => Ok(()),
        }
    }

    /// Whether what was prepared since (`event`) still makes sense beside the row as it is now. A leave that the user
    /// asked for meanwhile ends it. So does the news that somebody removed them, unless what was prepared rests on
    /// that removal: then it is an answer to it, and the room decides.
    pub(super) fn check(&self, row: Option<&RemoteMembership>, event: &Pdu) -> Result<(), Refusal> {
        let Some(row) = row.filter(|row| row.state.is_over()) else { return Ok(()) };
        if row.unaware_host().is_some() && self.state != Some(RemoteState::Leaving) {
            return Err(Refusal::LeftMeanwhile);
        }
        if row.told() == self.told.as_ref() {
            return Ok(());
        }
        match row.event.as_ref().filter(|end| end.sender() != &row.user_id) {
            Some(removal) if event.auth_events().contains(removal.event_id()) => Ok(()),
            Some(_) => Err(Refusal::RemovedMeanwhile),
            None if self.state.is_some_and(RemoteState::is_over) => Ok(()),
            None => Err(Refusal::LeftMeanwhile),
        }
    }
}
