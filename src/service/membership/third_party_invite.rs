//! Invites of people of whom only an e-mail address is known (server-server and client-server API, "Third-party
//! invites"), all three homeservers of them: the inviter's, the invitee's, and one in the room. Identity servers know
//! whose address it is; the user names one, and we trust none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::federation::CallError;
use crate::federation::identity::{IdentityServer, StoredInvite, ThirdPartyId};
use crate::protocol::event_auth::third_party::keys_that_signed;
use crate::protocol::json::{First, read_object};
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::events::draft::Draft;
use crate::service::events::server_acl::RoomAcl;
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::service::membership::Memberships;
use crate::service::membership::invite::check_invitee;
use crate::store::rooms::not_resident;
use crate::store::{Db, Room};

const ISSUED: &str = "m.room.third_party_invite";

/// Pending invites of one notification that are looked at.
const PENDING_INVITES_MAX: usize = 50;
/// Time to have all of them made invites of, and the pauses in which servers that could not be reached may come back.
const PENDING_INVITES_TIMEOUT: Duration = Duration::from_secs(90);
const PENDING_INVITE_PAUSES: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(30)];
/// Time for the server of an inviter whose invite a local user holds in hand.
const REDEEM_TIMEOUT: Duration = Duration::from_secs(40);

/// Whom a client wants invited, as it names them in `/invite` and in `invite_3pid` of `/createRoom`.
#[derive(Debug, Clone, Deserialize)]
pub struct ThirdPartyInvitee {
    id_server: String,
    id_access_token: Option<String>,
    medium: String,
    address: String,
}

impl ThirdPartyInvitee {
    fn server(&self) -> Result<IdentityServer> {
        let name = ServerName::parse(&self.id_server)
            .map_err(|_| Error::invalid_param("id_server is no host name, with or without a port"))?;
        let token = self.id_access_token.clone().filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| Error::missing_param("Missing id_access_token"))?;
        if token.chars().any(|c| !c.is_ascii_graphic()) {
            return Err(Error::invalid_param("id_access_token is no access token"));
        }
        Ok(IdentityServer { name, token })
    }

    fn id(&self) -> ThirdPartyId {
        // Addresses are compared without regard to case, and hashed.
        let address = if self.medium == "email" { self.address.to_lowercase() } else { self.address.clone() };
        ThirdPartyId { medium: self.medium.clone(), address }
    }
}

/// What a notification of `3pid/onbind` says.
#[derive(Deserialize)]
pub struct AddressBound {
    /// Whom the address belongs to now.
    pub mxid: UserId,
    invites: First<Box<RawValue>, PENDING_INVITES_MAX>,
}

#[derive(Deserialize)]
struct PendingInvite {
    room_id: RoomId,
    sender: UserId,
    signed: Map<String, Value>,
}

// ----- a local user invites an address -----

impl Memberships<'_> {
    /// Whom the identity server knows by that address. Errors: 400 `M_MISSING_PARAM`, `M_INVALID_PARAM`; what the
    /// identity server says.
    pub fn look_up_third_party(&self, invitee: &ThirdPartyInvitee) -> Result<Option<UserId>> {
        let server = invitee.server()?;
        let found = self.federation.identity_lookup(&server, &invitee.id());
        found.map_err(|e| as_told(e, &server.name))
    }

    /// `POST /invite` of an address: of whom it belongs to, if the identity server knows that; else the room is given a
    /// third-party invite, which whoever will own the address can make an invite of.
    ///
    /// Errors: those of [`Memberships::invite`] and of the identity server.
    pub fn invite_third_party(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        invitee: &ThirdPartyInvitee,
    ) -> Result<()> {
        let server = invitee.server()?;
        // Before anybody is asked or gets mail: only who may invite can find out whose address it is.
        let room = self.resident_room(room_id)?.ok_or_else(Error::not_in_room)?;
        self.events().template(&issued_draft(room_id, sender, "token", Map::new()))?;
        // The user says who the identity server is.
        let _permit = self.request_permits.ask(&Asker::new(AskerId::User(sender.clone())))?;
        if let Some(user) = self.look_up_third_party(invitee)? {
            return self.invite(sender, room_id, &user, None, Map::new());
        }
        let about = self.store.read(|db| about(db, &room, sender, &invitee.id()))?;
        let StoredInvite { token, public_keys, display_name } =
            match self.federation.identity_store_invite(&server, &about) {
                Ok(stored) => stored,
                Err(error) => match bound_meanwhile(&error) {
                    Some(user) => return self.invite(sender, room_id, &user, None, Map::new()),
                    None => return Err(as_told(error, &server.name)),
                },
            };
        let keys: Vec<Value> = public_keys
            .iter()
            .map(|key| json!({ "public_key": key.public_key, "key_validity_url": key.key_validity_url }))
            .collect();
        let mut content = Map::new();
        content.insert("display_name".into(), display_name.into());
        // "This exists for backwards compatibility": the first of them.
        for (field, value) in keys.first().and_then(Value::as_object).into_iter().flatten() {
            content.insert(field.clone(), value.clone());
        }
        content.insert("public_keys".into(), keys.into());
        self.events().send(issued_draft(room_id, sender, &token, content)).map(drop)
    }
}

fn issued_draft(room: &RoomId, sender: &UserId, token: &str, content: Map<String, Value>) -> Draft {
    Draft {
        room: room.clone(),
        sender: sender.clone(),
        event_type: ISSUED.to_owned(),
        state_key: Some(token.to_owned()),
        content,
        redacts: None,
        origin_server_ts: None,
    }
}

/// What the identity server is told of an invite, for its mail to the invitee.
fn about(db: &Db<'_>, room: &Room, sender: &UserId, id: &ThirdPartyId) -> Result<Value> {
    let mut about = json!({
        "medium": id.medium, "address": id.address, "room_id": room.room_id, "sender": sender,
    });
    for (field, event_type, state_key, key) in [
        ("room_alias", "m.room.canonical_alias", "", "alias"),
        ("room_avatar_url", "m.room.avatar", "", "url"),
        ("room_join_rules", "m.room.join_rules", "", "join_rule"),
        ("room_name", "m.room.name", "", "name"),
        ("room_type", "m.room.create", "", "type"),
        ("sender_display_name", "m.room.member", sender.as_str(), "displayname"),
        ("sender_avatar_url", "m.room.member", sender.as_str(), "avatar_url"),
    ] {
        let event = db.state_event(room.key, event_type, state_key)?;
        if let Some(value) = event.and_then(|event| event.content_str(key)) {
            about[field] = value.into();
        }
    }
    Ok(about)
}

/// The user that an address was bound to between the look-up and the wish to keep an invite for it.
fn bound_meanwhile(error: &CallError) -> Option<UserId> {
    let refusal = error.refusal().filter(|r| r.errcode.as_deref() == Some("M_THREEPID_IN_USE"))?;
    UserId::parse(refusal.body.get("mxid")?.as_str()?).ok()
}

/// An identity server's error for our client. Its word about its access token must not be taken for one about ours.
fn as_told(error: CallError, server: &ServerName) -> Error {
    let Some(refusal) = error.refusal() else { return error.into_client_error(server) };
    let why = format!("The identity server {server} refused: {}", refusal.message);
    match (refusal.status, refusal.errcode.as_deref()) {
        (_, Some("M_TERMS_NOT_SIGNED")) => Error::new(ErrCode::TermsNotSigned, refusal.message.clone()),
        (401 | 403, _) => Error::forbidden(why),
        (400, Some("M_UNRECOGNIZED" | "M_INVALID_EMAIL" | "M_INVALID_PARAM")) => Error::invalid_param(why),
        _ => Error::bad_gateway(why),
    }
}

// ----- an address turns out to belong to somebody -----

impl Memberships<'_> {
    /// JoinAttempts to make an invite of a pending one. Whether to try again: a server could not be reached.
    fn is_owed_yet(
        &self,
        user: &UserId,
        invite: &PendingInvite,
        (within, until): (Duration, Instant),
    ) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        let PendingInvite { room_id, sender, signed } = invite;
        match self.redeem_within(room_id, sender, user, signed.clone(), within.min(left)) {
            Ok(()) => false,
            Err(e) => {
                log::info!("a pending invite of {user} to {room_id} came to nothing: {e}");
                e.status() >= 500
            }
        }
    }

    /// Makes an invite of a third-party invite for a local user, here if this server is in the room, else through the
    /// inviter's server. Errors: 403 `M_FORBIDDEN`; 502, 504 if nobody could be asked.
    pub fn redeem_third_party_invite(
        &self,
        room_id: &RoomId,
        sender: &UserId,
        target: &UserId,
        signed: Map<String, Value>,
    ) -> Result<()> {
        self.redeem_within(room_id, sender, target, signed, REDEEM_TIMEOUT)
    }

    fn redeem_within(
        &self,
        room_id: &RoomId,
        sender: &UserId,
        target: &UserId,
        signed: Map<String, Value>,
        within: Duration,
    ) -> Result<()> {
        if signed.get("mxid").and_then(Value::as_str) != Some(target.as_str()) {
            return Err(Error::forbidden("The third-party invite is for another user"));
        }
        if let Some(room) = self.resident_room(room_id)? {
            return self.issue(&room, sender, target, signed);
        }
        let event = json!({
            "type": "m.room.member", "room_id": room_id, "sender": sender, "state_key": target,
            "content": {
                "membership": "invite",
                // The inviter's server knows the name, and no other one counts.
                "third_party_invite": { "display_name": "", "signed": signed },
            },
        });
        let peer = sender.server();
        let asked = self.federation.exchange_third_party_invite(&peer, room_id, &event, within);
        asked.map_err(|e| e.into_client_error(&peer))
    }

    /// `PUT /exchange_third_party_invite`: another server shows that a third-party invite of a local user is for its
    /// user. Errors: 400 `M_INVALID_PARAM`, 404 `M_NOT_FOUND`, 403 `M_FORBIDDEN`, 429 `M_LIMIT_EXCEEDED`; those of
    /// invites.
    pub fn exchange_third_party_invite(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        event: &Map<String, Value>,
    ) -> Result<()> {
        let room = self.resident_room(room_id)?.ok_or_else(not_resident)?;
        self.store.read(|db| RoomAcl::of(db, &room)?.check(origin))?;
        let text = |key: &str| event.get(key).and_then(Value::as_str);
        let user = |key: &str| UserId::parse(text(key).unwrap_or_default());
        let content = event.get("content");
        let says_invite = content.is_some_and(|content| content["membership"] == "invite");
        if text("type") != Some("m.room.member") || text("room_id") != Some(room_id.as_str()) || !says_invite
        {
            return Err(Error::invalid_param("The event is not an invite to the room of the path"));
        }
        let signed =
            content.and_then(|content| content.get("third_party_invite")?.get("signed")?.as_object());
        let signed = signed.ok_or_else(|| Error::invalid_param("The third-party invite is not signed"))?;
        let (sender, target) = (user("sender")?, user("state_key")?);
        if !self.is_local(&sender) {
            return Err(Error::forbidden("The third-party invite was not issued by a user of this server"));
        }
        // The room says who is asked whether the key is still good.
        let _permit = self.request_permits.ask(&Asker::new(AskerId::Peer(origin.clone())))?;
        self.issue(&room, &sender, &target, signed.clone())
    }

    /// Puts the invite into a room that this server is in. The signature is a matter of the authorisation rules too;
    /// whether its key was revoked is for us alone to find out.
    fn issue(&self, room: &Room, sender: &UserId, target: &UserId, signed: Map<String, Value>) -> Result<()> {
        let _guard = self.handshake_locks.take(&room.room_id, target)?;
        let token = signed.get("token").and_then(Value::as_str).unwrap_or_default();
        let (present, issued) = self
            .store
            .read(|db| Ok((db.membership(room.key, target)?, db.state_event(room.key, ISSUED, token)?)))?;
        match present {
            Some(Membership::Invite) => return Ok(()),
            // No rule says so, but nobody who is in a room is to be put out of it by an invite.
            Some(Membership::Join) => {
                return Err(Error::forbidden(format!("{target} is already in the room")));
            }
            _ => {}
        }
        let issued = issued.filter(|issued| issued.sender() == sender);
        let issued =
            issued.ok_or_else(|| Error::forbidden("The room has no such third-party invite"))?.content();
        self.check_not_revoked(&signed, &issued)?;
        let name = issued.get("display_name").and_then(Value::as_str).unwrap_or_default();
        let mut content = Membership::Invite.content();
        content.insert("third_party_invite".into(), json!({ "display_name": name, "signed": signed }));
        self.invite_with(room, sender, target, content).map(drop)
    }

    /// "MUST validate that the public key used for signing is still valid, by checking `key_validity_url`". One key
    /// that signed and is good is enough. Errors: 403 `M_FORBIDDEN`; 502, 504 if it cannot be found out.
    fn check_not_revoked(&self, signed: &Map<String, Value>, issued: &Map<String, Value>) -> Result<()> {
        let mut verdict =
            Error::forbidden("No signature of the third-party invite matches a public key in the room");
        for key in keys_that_signed(signed, issued) {
            let Some(url) = key.key_validity_url else { return Ok(()) };
            verdict = match self.federation.is_key_valid(&url, &key.public_key) {
                Ok(true) => return Ok(()),
                Ok(false) => Error::forbidden("The key of the third-party invite was revoked"),
                Err(e) => {
                    Error::bad_gateway("The identity server does not say whether its key is still good")
                        .with_cause(e.to_string())
                }
            };
        }
        Err(verdict)
    }
}

impl Homeserver {
    /// `PUT /3pid/onbind`: an identity server says that an address belongs to a local user now, and which invites
    /// wait for it. Anybody may say so: what counts are the signatures, which the rooms have the keys for. The
    /// inviters' servers are asked afterwards: how long they take is nothing to who says so.
    ///
    /// Errors: 400 `M_INVALID_PARAM` for somebody who is no local user; 429 `M_LIMIT_EXCEEDED`.
    pub fn third_party_bound(self: &Arc<Self>, asker: &Asker, bound: AddressBound) -> Result<()> {
        if !self.is_local(&bound.mxid) || !self.store.read(|db| db.is_active_user(&bound.mxid))? {
            return Err(Error::invalid_param("There is no such user here"));
        }
        self.store.read(|db| check_invitee(db, &bound.mxid))?;
        let mut pending = Vec::new();
        for invite in bound.invites.iter() {
            match read_object::<PendingInvite>(invite.get().as_bytes()) {
                Ok(invite) => pending.push(invite),
                Err(_) => log::info!("a pending invite of {} is none", bound.mxid),
            }
        }
        let user = bound.mxid;
        self.request_permits.later(self, asker, move |hs, within| {
            let until = Instant::now() + PENDING_INVITES_TIMEOUT;
            let mut pauses = PENDING_INVITE_PAUSES.iter();
            loop {
                pending.retain(|invite| hs.membership().is_owed_yet(&user, invite, (within, until)));
                match pauses.next() {
                    Some(pause) if !pending.is_empty() && hs.request_permits.rest(*pause) => {}
                    _ => break,
                }
            }
            if !pending.is_empty() {
                log::warn!("{} pending invites of {user} are given up", pending.len());
            }
        })
    }
}
