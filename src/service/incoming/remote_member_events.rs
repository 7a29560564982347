//! What a room that we are not in tells us about a local user: that somebody removed them (a knock refused, an
//! invite rescinded, a ban), or invites them. It comes by transaction, like any event, and nobody sends it a second
//! time.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::protocol::json::read_object;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{Fact, RemoteMembership, RemoteState, RemovalBearing};
use crate::protocol::rooms::stripped_state;
use crate::protocol::{Pdu, RoomId, RoomVersion, ServerName, UserId, VerifiedPdu};
use crate::service::events::server_acl::RoomAcl;
use crate::service::incoming::Incoming;
use crate::service::keys::attempts::KeyPurpose;
use crate::service::keys::verify::Checked;
use crate::service::membership::rows::{check_not_resident, note, remote_membership_or_state};
use crate::service::membership::stripped_state_for_servers;
use crate::store::Db;
use crate::store::rooms::not_resident;

/// What became of a PDU of a room that we are not in.
pub(in crate::service) enum RemoteOutcome {
    /// It took effect, or there was nothing left to do.
    Settled,
    /// It would concern us, if it is what it says: the keys of these servers could not be had.
    NoKey(Vec<ServerName>),
}

/// A member event about a local user, and what we know of that membership.
struct MemberNews {
    event: VerifiedPdu,
    user: UserId,
    row: Option<RemoteMembership>,
}

impl Incoming<'_> {
    /// A PDU of a room that we are not in came by `PUT /send`. Two kinds concern us, if they are what they say
    /// (format, signatures): one that removes a local user from the room, and an invite that we signed while we
    /// were still in the room. `origin` sent it; `json` is the PDU as received; `within`: the time to find keys.
    /// Errors, for the PDU's entry in the answer: 404 `M_NOT_FOUND` if it does not concern us, 403 `M_FORBIDDEN`, 400
    /// `M_INVALID_PARAM`.
    pub(in crate::service) fn remote_member_event(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        json: &[u8],
        within: Duration,
    ) -> Result<RemoteOutcome> {
        let head: MemberEventHead = read_object(json).map_err(|_| not_resident())?;
        let user = UserId::parse(&head.state_key).map_err(|_| not_resident())?;
        if head.event_type != "m.room.member" || !self.is_local(&user) {
            return Err(not_resident());
        }
        let version =
            self.store.read(|db| remote_room_version(db, room_id, &user, json))?.ok_or_else(not_resident)?;
        // Whether it concerns us shows before its signatures do: what does not is worth neither a key nor a place to
        // wait.
        if self.of_concern(origin, room_id, &user, &Pdu::parse(json, version)?)?.is_none() {
            return Ok(RemoteOutcome::Settled);
        }
        match self.keys().check_received(origin, &[json], version, within).pop() {
            Some(Checked::Passed(event)) => {
                // The room may have said more while the key was fetched.
                if let Some(row) = self.of_concern(origin, room_id, &user, &event)? {
                    self.apply_news(MemberNews { event, user, row: *row }, origin)?;
                }
                Ok(RemoteOutcome::Settled)
            }
            Some(Checked::NoKey(_, servers)) => Ok(RemoteOutcome::NoKey(servers)),
            Some(Checked::Dropped(e)) => Err(e),
            None => Err(Error::internal("one event in, none out")),
        }
    }

    /// Whether an event changes what we know of a user's membership, provided that it is signed by its sender; with
    /// what we know of it. None: no more. Errors as for [`Incoming::remote_member_event`].
    fn of_concern(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        user: &UserId,
        event: &Pdu,
    ) -> Result<Option<Box<Option<RemoteMembership>>>> {
        if !event.is("m.room.member", user.as_str()) || event.room_id() != room_id {
            return Err(Error::invalid_param("Not a member event of this user in this room"));
        }
        let (row, known) = self.store.read(|db| {
            Ok((remote_membership_or_state(db, room_id, user)?, db.event_key(event.event_id())?.is_some()))
        })?;
        let told = row.as_ref().and_then(|row| row.event.as_ref());
        if told.is_some_and(|told| told.event_id() == event.event_id()) {
            return Ok(None);
        }
        match event.membership() {
            Some(Membership::Invite) if known => return Ok(None),
            Some(Membership::Invite) if self.store.read(|db| db.is_room_shut(room_id))? => return Ok(None),
            // One that we signed when it was offered, but left to the room to tell us of; since then we have left it.
            Some(Membership::Invite) => {
                let ours = self.server_name();
                drop(self.membership().check_signature_of(event, ours, KeyPurpose::Received(ours))?);
            }
            Some(Membership::Leave | Membership::Ban) if event.sender() != user => {
                let row = row.as_ref().ok_or_else(not_resident)?;
                if !comes_from_the_room(row, event, origin) {
                    return Err(Error::forbidden("Nothing shows that this event is of that room"));
                }
                if row.bearing_of(event) == RemovalBearing::Over {
                    return Ok(None);
                }
            }
            _ => return Err(not_resident()),
        }
        Ok(Some(Box::new(row)))
    }

    fn apply_news(&self, news: MemberNews, origin: &ServerName) -> Result<()> {
        let MemberNews { event, user, row } = news;
        if event.membership() == Some(Membership::Invite) {
            return self.invite_by_transaction(event, &user);
        }
        row.map_or(Ok(()), |row| self.remove_by_transaction(event, user, row.room_id.clone(), origin))
    }

    fn invite_by_transaction(&self, invite: VerifiedPdu, user: &UserId) -> Result<()> {
        let shown = self.store.read(|db| {
            let room = db.room(invite.room_id())?;
            room.map(|room| stripped_state_for_servers(db, &room, None)).transpose()
        })?;
        let (room_id, inviter) = (invite.room_id(), Some(invite.sender()));
        let shown = stripped_state::usable(&shown.unwrap_or_default(), room_id, invite.version(), inviter);
        self.membership().note_invite(&invite, user, &shown, None)
    }

    /// Closes a membership, or has the room asked whether it is over. Errors: 403 `M_FORBIDDEN` if this server is in the room by
    /// now, which keeps the one out that says so.
    pub(in crate::service) fn remove_by_transaction(
        &self,
        event: VerifiedPdu,
        user: UserId,
        room_id: RoomId,
        origin: &ServerName,
    ) -> Result<()> {
        let (removal, from, now) = (event.clone(), origin.clone(), self.clock.now_ms());
        let outside = self.store.write(move |tx| {
            if check_not_resident(tx, &room_id).is_err() {
                return Ok(false);
            }
            let fact = Fact::Removed { removal: event.into(), from };
            note(tx, &room_id, &user, fact, now).map(|_| true)
        })?;
        self.scheduler.wake();
        if outside {
            return Ok(());
        }
        // We have come in since, and it is an event like any other.
        self.store.read(|db| RoomAcl::of(db, &db.known_room(removal.room_id())?)?.check(origin))?;
        self.events().receive_pdu(&removal.sender().server(), removal)
    }
}

/// The version by which an event about a local user is read that comes from a room which we are not in: that of what it
/// rests on, else what those said with whom the user deals there, what we know from a time when we were in it, or what
/// those say through whom a local user is joining.
pub(in crate::service) fn remote_room_version(
    db: &Db<'_>,
    room_id: &RoomId,
    user: &UserId,
    json: &[u8],
) -> Result<Option<RoomVersion>> {
    if let Some(row) = db.remote_membership(room_id, user)? {
        return Ok(Some(row.version_of_news(json)));
    }
    match db.room(room_id)? {
        Some(room) => Ok(Some(room.version)),
        None => db.joining_version(room_id),
    }
}

/// What must be known of a PDU before anything else is.
#[derive(serde::Deserialize)]
struct MemberEventHead {
    #[serde(rename = "type")]
    event_type: String,
    state_key: String,
}

/// Whoever removes a local user knows the member event that they remove (auth events selection names the target's), which
/// those do not who are not in the room; or else speaks for the server that invited them, or that took their knock, or is
/// passed on by it (`origin`): what somebody did who did not know of the knock yet may have won over it. Other
/// servers that we asked, perhaps in vain and because a link said so, have no say. Whether it is true is another question:
/// every server in the room is told that event, whatever its users may do there.
fn comes_from_the_room(row: &RemoteMembership, event: &Pdu, origin: &ServerName) -> bool {
    let rests_on_ours = row.events().any(|ours| event.auth_events().contains(ours.event_id()));
    let server = event.sender().server();
    let inviter = row.event.as_ref().map(|e| e.sender().server());
    let knocked = matches!(row.state, RemoteState::Knocking | RemoteState::Knocked);
    let knocked_through = row.via.first().filter(|_| knocked);
    let is_said_by = |host: Option<&ServerName>| host == Some(&server) || host == Some(origin);
    rests_on_ours || is_said_by(inviter.as_ref()) || is_said_by(knocked_through)
}
