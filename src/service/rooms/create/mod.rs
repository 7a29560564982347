//! `POST /createRoom`: what is asked for becomes a list of events (`plan.rs`), which are signed one on top of the
//! other and make the room in one transaction, with the invitations of local users; those that travel follow on their own.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Map;

pub use self::plan::{CreateRoom, PlannedEvent, Visibility};
pub(in crate::service::rooms) use self::plan::{additional_creators, join_content};
use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::protocol::event_auth;
use crate::protocol::room_version::room_version;
use crate::protocol::{Pdu, RoomId, RoomVersion, UserId, VerifiedPdu};
use crate::random;
use crate::service::events::build::{EventSigner, draft_object, references};
use crate::service::events::draft::Draft;
use crate::service::events::entry::check_not_closed;
use crate::service::membership::third_party_invite::ThirdPartyInvitee;
use crate::service::membership::{FirstRefusal, check_invitee};
use crate::service::rooms::Rooms;
use crate::store::rooms::append::{Append, Current};
use crate::store::rooms::state::StateRef;
use crate::store::{Room, Status, Tx};

impl Rooms<'_> {
    /// `POST /createRoom`: the room with all its events and the invitations of local users in one transaction, then the
    /// other invitations. Once there is a room the answer is its id, whatever becomes of them: who asked again would make
    /// a second room. An invitee's server that cannot be reached within seconds gets the invite in the background. Only a
    /// direct chat whose one invitee is refused for good is of no use to anybody: its maker leaves it again, and is told why.
    ///
    /// Errors: 400 `M_UNSUPPORTED_ROOM_VERSION`, `M_ROOM_IN_USE` (the alias), `M_INVALID_ROOM_STATE`, `M_BAD_ALIAS`,
    /// `M_INVALID_PARAM`, `M_BAD_JSON`; 403 if a local user cannot be invited, or another server's to a room that does not
    /// federate; what the server of a direct chat's invitee says; 429 if too many invites are owed already; those of identity
    /// servers that are asked whom addresses belong to.
    pub fn create_room(&self, creator: &UserId, request: &CreateRoom) -> Result<RoomId> {
        let version = match request.room_version.as_deref() {
            None => self.config.default_room_version,
            Some(id) => room_version(id).ok_or_else(|| {
                Error::new(ErrCode::UnsupportedRoomVersion, "This server does not support the room version")
            })?,
        };
        let (invitees, addresses) = self.invited(creator, request)?;
        let alias = request.room_alias_name.as_deref().map(|name| self.own_alias(name)).transpose()?;
        let in_use = || Error::new(ErrCode::RoomInUse, "There is a room with this alias already");
        let (profile, taken) = self.store.read(|db| {
            let taken = alias.as_ref().map(|alias| db.alias(alias)).transpose()?.flatten();
            Ok((db.profile(creator)?, taken.is_some()))
        })?;
        if taken {
            return Err(in_use());
        }
        let events = request.plan(creator, &profile, version, alias.as_ref())?;
        let published = request.visibility == Some(Visibility::Public);
        let mut extra = Map::new();
        if request.is_direct == Some(true) {
            extra.insert("is_direct".to_owned(), true.into());
        }
        let (ours, elsewhere): (Vec<UserId>, Vec<UserId>) =
            invitees.into_iter().partition(|user| self.is_local(user));
        let invites = ours.iter().map(|invitee| {
            let content = self.membership().invite_content(invitee, None, extra.clone())?;
            Ok(PlannedEvent::invite(invitee, content))
        });
        let invites = invites.collect::<Result<Vec<_>>>()?;
        let is_owed_any = !elsewhere.is_empty();
        // Without whom nobody will ever be in the room, or find it.
        let is_for_one = request.is_direct == Some(true) && elsewhere.len() == 1 && ours.is_empty();
        let is_for_one = is_for_one && addresses.is_empty() && alias.is_none() && !published;
        let refusal = Arc::new(FirstRefusal::default());
        let (watched, first_invites) = (Arc::downgrade(&refusal), Arc::clone(&self.first_invites));
        let (owner, said, now) = (creator.clone(), extra, self.clock.now_ms());
        let room_id = self
            .make_room(version, creator, (&events, &invites), move |tx, room| {
                if let Some(alias) = &alias
                    && !tx.add_alias(alias, &room.room_id, &owner)?
                {
                    return Err(in_use());
                }
                if published {
                    tx.set_published(&room.room_id, true)?;
                }
                // Once more: an account may have been closed since.
                ours.iter().try_for_each(|invitee| check_invitee(tx, invitee))?;
                if is_for_one {
                    first_invites.watch(&room.room_id, watched);
                }
                // With the room, so that no crash can come between.
                elsewhere
                    .iter()
                    .try_for_each(|invitee| tx.owe_invite((&room.room_id, &owner, invitee), &said, now))
            })
            .map_err(as_room_state_error)?;
        for _ in &invites {
            self.count_ending(|metrics| &metrics.invites_out, &Ok::<_, Error>(()));
        }
        if is_owed_any {
            self.membership().await_first_invites(&room_id);
        }
        let refused = lock(&refusal).take();
        if let Some(refused) = refused.filter(|_| self.take_back(creator, &room_id)) {
            // "Not found" is what this server would say of itself.
            return Err(if refused.status() == 404 { refused.with_status(403) } else { refused });
        }
        for address in addresses {
            if let Err(error) = self.membership().invite_third_party(creator, &room_id, address) {
                log::log!(error.level(log::Level::Warn), "an address is not invited to {room_id}: {error}");
            }
        }
        Ok(room_id)
    }

    /// Who is to be invited, and the addresses of which nobody knows whose they are. All that can be said against it is said
    /// before there is a room, so that a mistyped name leaves none behind.
    fn invited<'r>(
        &self,
        creator: &UserId,
        request: &'r CreateRoom,
    ) -> Result<(Vec<UserId>, Vec<&'r ThirdPartyInvitee>)> {
        let (mut invitees, mut addresses) = (request.invitees()?, Vec::new());
        for address in request.third_party_invitees()? {
            match self.membership().look_up_third_party(address)? {
                Some(user) if !invitees.contains(&user) => invitees.push(user),
                Some(_) => {}
                None => addresses.push(address),
            }
        }
        if invitees.contains(creator) {
            return Err(Error::forbidden("You are in the room that you make, and cannot be invited to it"));
        }
        if let Some(user) = invitees.iter().find(|user| !request.federates() && !self.is_local(user)) {
            return Err(Error::forbidden(format!("{user} cannot come into a room that does not federate")));
        }
        self.membership().check_own_invitees(creator, &invitees)?;
        Ok((invitees, addresses))
    }

    /// Has the creator out of a room again in which nobody else is. Whether that worked.
    fn take_back(&self, creator: &UserId, room_id: &RoomId) -> bool {
        let left = self.membership().leave(creator, room_id, None);
        let gone = left.and_then(|()| self.membership().forget(creator, room_id));
        if let Err(error) = &gone {
            log::log!(
                error.level(log::Level::Warn),
                "{creator} stays in {room_id}, with nobody else: {error}"
            );
        }
        gone.is_ok()
    }

    /// Makes a room of the events that its creator sends, the first of which is `m.room.create`, in one transaction;
    /// `extra` adds what else belongs to it. Errors: 403 `M_FORBIDDEN` if one of the events is not allowed on top of
    /// those before, 400 `M_BAD_JSON`, 413 `M_TOO_LARGE`.
    pub fn create_room_with(
        &self,
        version: RoomVersion,
        creator: &UserId,
        events: &[PlannedEvent],
        extra: impl FnOnce(&mut Tx<'_>, &Room) -> Result<()> + Send + 'static,
    ) -> Result<RoomId> {
        self.make_room(version, creator, (events, &[]), extra)
    }

    /// [`Rooms::create_room_with`] with invitations of local users. Those that the room's own rules do not allow are left out.
    fn make_room(
        &self,
        version: RoomVersion,
        creator: &UserId,
        (events, invites): (&[PlannedEvent], &[PlannedEvent]),
        extra: impl FnOnce(&mut Tx<'_>, &Room) -> Result<()> + Send + 'static,
    ) -> Result<RoomId> {
        let (mut signer, mut extra) = (self.events().signer(), extra);
        loop {
            let planned = (events, invites);
            let pdus = sign_events_and_invites(&signer, version, creator, &new_room_id(&signer)?, planned)?;
            let made = self.store.write(move |tx| match append_room(tx, version, &pdus)? {
                None => Ok(Err(extra)),
                Some(room) => {
                    extra(tx, &room)?;
                    Ok(Ok(room.room_id))
                }
            })?;
            match made {
                Ok(room_id) => return Ok(room_id),
                // From version 12 on a room's id is the hash of its first event: two rooms that one user makes alike in
                // the same millisecond would be one.
                Err(unused) => (signer.now, extra) = (signer.now + 1, unused),
            }
        }
    }
}

/// The id of a new room; in versions that make it of the create event, what stands in its place until there is that.
pub(super) fn new_room_id(signer: &EventSigner) -> Result<RoomId> {
    RoomId::parse(&format!("!{}:{}", random::letters(18), signer.server))
}

/// Stores a new room. None if there is one with its id.
pub(super) fn append_room(
    tx: &mut Tx<'_>,
    version: RoomVersion,
    pdus: &[VerifiedPdu],
) -> Result<Option<Room>> {
    let Some(create) = pdus.first() else { return Err(Error::bad_json("A room needs a create event")) };
    check_not_closed(tx, create.sender().as_str())?;
    if tx.room(create.room_id())?.is_some() {
        return Ok(None);
    }
    let key = tx.make_room(create.room_id(), version)?.key;
    let mut state = tx.root_snapshot(&BTreeMap::new())?;
    let mut extremities = Vec::new();
    for pdu in pdus {
        let room = tx.room_by_key(key)?;
        let appended = tx.append(&Append {
            room: &room,
            pdu,
            status: Status::Accepted,
            outgoing: true,
            state_before: StateRef::snapshot(state),
            given: false,
            old_extremities: &extremities,
            kept_extremities: Vec::new(),
            overtakes: Vec::new(),
            becomes_extremity: true,
            current: Current::AfterThis,
            missing: Vec::new(),
            history: None,
        })?;
        (state, extremities) = (appended.state_after, vec![appended.key]);
    }
    tx.room_by_key(key).map(Some)
}

/// Signs the events of a new room with this id, each judged against the state that those before it make.
pub(super) fn sign_room_events(
    signer: &EventSigner,
    version: RoomVersion,
    creator: &UserId,
    room_id: &RoomId,
    events: &[PlannedEvent],
) -> Result<Vec<VerifiedPdu>> {
    sign_events_and_invites(signer, version, creator, room_id, (events, &[]))
}

/// The same with invitations at the end, of which those are left out that the state before them does not allow.
fn sign_events_and_invites(
    signer: &EventSigner,
    version: RoomVersion,
    creator: &UserId,
    room_id: &RoomId,
    (events, invites): (&[PlannedEvent], &[PlannedEvent]),
) -> Result<Vec<VerifiedPdu>> {
    let mut state: BTreeMap<(String, String), Pdu> = BTreeMap::new();
    let mut pdus: Vec<VerifiedPdu> = Vec::new();
    // The create event of version 12 has no room id: it becomes it. What stands here until then is not looked at.
    let mut room = room_id.clone();
    let planned =
        events.iter().map(|event| (event, false)).chain(invites.iter().map(|invite| (invite, true)));
    for (event, may_be_refused) in planned {
        let draft = Draft {
            room: room.clone(),
            sender: creator.clone(),
            event_type: event.event_type.clone(),
            state_key: Some(event.state_key.clone()),
            content: event.content.clone(),
            redacts: None,
            origin_server_ts: None,
        };
        let wanted = event_auth::auth_types(
            &draft.event_type,
            creator.as_str(),
            draft.state_key.as_deref(),
            &draft.content,
            version,
        );
        let auth: Vec<Pdu> = wanted.iter().filter_map(|key| state.get(key).cloned()).collect();
        let mut object = draft_object(&draft, version, signer.now);
        object.insert("prev_events".into(), references(pdus.last().map(|pdu| Pdu::clone(pdu)).as_slice()));
        object.insert("auth_events".into(), references(&auth));
        object.insert("depth".into(), (pdus.len() + 1).into());
        let pdu = signer.write(object, version)?;
        let allowed = match pdu.event_type() {
            "m.room.create" => event_auth::check_auth_events(&pdu, &[], &|_| false, version),
            _ => event_auth::check(&pdu, version, &|kind, key| {
                state.get(&(kind.to_owned(), key.to_owned())).cloned()
            }),
        };
        let allowed = match pdu.is("m.room.power_levels", "") {
            true => allowed.and_then(|()| event_auth::check_written(&pdu, None, version)),
            false => allowed,
        };
        if let Err(refused) = allowed {
            if may_be_refused {
                log::warn!("{} is not invited to {room}: {refused}", event.state_key);
                continue;
            }
            return Err(Error::forbidden(refused.to_string()));
        }
        if pdus.is_empty() {
            if pdu.event_type() != "m.room.create" {
                return Err(Error::bad_json("A room begins with its create event"));
            }
            room = pdu.room_id().clone();
        }
        state.insert((event.event_type.clone(), event.state_key.clone()), Pdu::clone(&pdu));
        pdus.push(pdu);
    }
    Ok(pdus)
}

/// "The initial state implied by the parameters to the request is invalid": what the auth rules of a new room refuse.
fn as_room_state_error(error: Error) -> Error {
    if error.errcode() == ErrCode::Forbidden {
        return Error::new(ErrCode::InvalidRoomState, error.message().to_owned());
    }
    error
}
