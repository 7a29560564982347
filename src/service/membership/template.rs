//! Templates of member events, both ends: what this server makes for others (`make_join`, `make_knock`,
//! `make_leave`), and how it asks for one, checks it and signs it; and the content of local users' own member events.

use std::time::Duration;

use serde_json::{Map, Value};

use super::guard::{HandshakeRequest, admit};
use super::restricted_join::{AUTHORISER, authoriser};
use crate::error::{ErrCode, Error, Result};
use crate::federation::calls::{HandshakeKind, Template};
use crate::federation::{CallError, CallResult};
use crate::protocol::json::object_of;
use crate::protocol::pdu::Membership;
use crate::protocol::{Pdu, RoomId, RoomVersion, ServerName, UserId, handshake, room_version};
use crate::service::accounts::profile::check_text;
use crate::service::events::build::{UnsignedEvent, build_unsigned};
use crate::service::events::draft::Draft;
use crate::service::events::resolve::ResolutionBudget;
use crate::service::membership::Memberships;
use crate::store::{Db, Room};

/// What of a profile is in member events.
const PROFILE_FIELDS: [&str; 2] = ["displayname", "avatar_url"];
/// So much of a client's own may be in a join: the whole event has 64 KiB.
const FIELDS_BYTES_MAX: usize = 16 * 1024;
/// So much is in a member event's content at most: of the 64 KiB of an event its template, with as many events as it may name,
/// and the signatures have some.
const CONTENT_BYTES_MAX: usize = 56 * 1024;
/// How long another server's user waits for the invite that is under way to them.
pub(super) const INVITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a server that is asked for a template.
pub(super) const TEMPLATE_TIMEOUT: Duration = Duration::from_secs(20);

// ----- for other servers -----

impl Memberships<'_> {
    /// `GET /make_join`, `/make_knock`, `/make_leave`: an event for the other server to sign, that would be accepted
    /// now. `versions`: what it sent as `ver`; none for a leave. Errors: 429 `M_LIMIT_EXCEEDED` for a knock that is
    /// beyond the budget (the specification names no errors for limits here; `make_join` is limited so elsewhere).
    pub fn make_template(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        user: &UserId,
        membership: Membership,
        versions: Option<&[&str]>,
    ) -> Result<(Map<String, Value>, RoomVersion)> {
        let request = HandshakeRequest { origin, room_id, membership, user: Some(user), versions };
        if membership == Membership::Join {
            // Who is not admitted waits for no invite.
            let mut first = Some(self.admitted_template(&request, user)?);
            return self.after_their_invite(room_id, user, || match first.take() {
                Some(made) => made,
                None => self.admitted_template(&request, user)?,
            });
        }
        let is_counted = membership == Membership::Knock && self.knock_budget.counts_any(self);
        if is_counted || self.handshake_locks.is_under_way(room_id, user) {
            let room = self.admit(&request)?;
            if is_counted {
                self.knock_budget.may_knock(self, &room, user)?;
            }
            self.handshake_locks.wait_for_end(room_id, user, INVITE_TIMEOUT);
        }
        self.admitted_template(&request, user)?
    }

    /// Does it, and if it is refused while an invite to this user of another server is under way, once more when that
    /// is in the room.
    pub(super) fn after_their_invite<T>(
        &self,
        room_id: &RoomId,
        user: &UserId,
        mut ask: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        match ask() {
            Err(e)
                if e.status() == 403 && self.handshake_locks.wait_for_end(room_id, user, INVITE_TIMEOUT) =>
            {
                ask()
            }
            other => other,
        }
    }

    /// The template for a request that is admitted, by one look at the room. The outer error: it is not admitted.
    fn admitted_template(
        &self,
        request: &HandshakeRequest<'_>,
        user: &UserId,
    ) -> Result<Result<UnsignedEvent>> {
        let seen = self.store.read(|db| {
            let room = admit(db, request)?;
            Ok(template_draft(db, &room, user, request.membership).and_then(|draft| {
                let made = build_unsigned(db, self.clock.now_ms(), room, &draft, ResolutionBudget::None)?;
                Ok((draft, made))
            }))
        })?;
        let made = seen.and_then(|(draft, made)| match made {
            Some(made) => Ok(made),
            None => self.events().template(&draft),
        });
        Ok(made.map(|(mut event, version)| {
            event.insert("origin".to_owned(), self.server_name().as_str().into());
            (event, version)
        }))
    }
}

/// What a template is to be made of.
fn template_draft(db: &Db<'_>, room: &Room, user: &UserId, membership: Membership) -> Result<Draft> {
    let mut content = membership.content();
    if membership == Membership::Join
        && let Some(authoriser) = authoriser(db, room, user)?
    {
        content.insert(AUTHORISER.to_owned(), authoriser.as_str().into());
    }
    Ok(member_draft(&room.room_id, user, user, content))
}

// ----- from other servers -----

impl Memberships<'_> {
    /// Asks one server for a template and checks it as the specification wants it: it is a member event of this room
    /// for this user and membership, in a room version that this server knows. What the user's row says of the version
    /// speaks neither for the template nor against it: that of an invite is its sender's word. The room's create event says
    /// which it is, when the user comes in.
    pub(super) fn ask_template(
        &self,
        peer: &ServerName,
        kind: HandshakeKind,
        room_id: &RoomId,
        user: &UserId,
        within: Duration,
    ) -> CallResult<(Map<String, Value>, RoomVersion)> {
        let membership = match kind {
            HandshakeKind::Join => Membership::Join,
            HandshakeKind::Knock => Membership::Knock,
            HandshakeKind::Leave => Membership::Leave,
        };
        let versions: Vec<RoomVersion> =
            room_version::all().iter().filter(|v| kind != HandshakeKind::Knock || v.knock).collect();
        let Template { room_version, event } =
            self.federation.make_membership(peer, kind, room_id, user, &versions, within)?;
        let version = versions.into_iter().find(|version| version.id == room_version);
        let version =
            version.ok_or_else(|| CallError::bad("a template of a room version that was not asked for"))?;
        handshake::check_template(&event, room_id, user, membership, version).map_err(|e| {
            CallError::bad(format!("a template that is not what was asked for: {}", e.message()))
        })?;
        Ok((event, version))
    }

    /// Makes an event of a template: with this content, and this server's time, name, hash and signature. Of its
    /// content nothing is taken over but the user that authorises a restricted join.
    pub(super) fn sign_template(
        &self,
        template: &Map<String, Value>,
        version: RoomVersion,
        content: &Map<String, Value>,
    ) -> Result<Pdu> {
        let mut content = content.clone();
        let authoriser = template.get("content").and_then(|c| c.get(AUTHORISER));
        if version.restricted_join
            && content.get("membership").is_some_and(|m| m == "join")
            && let Some(authoriser) = authoriser
        {
            content.insert(AUTHORISER.to_owned(), authoriser.clone());
        }
        handshake::finish(
            template,
            content,
            self.server_name(),
            &self.key_ring.signing_key(),
            self.clock.now_ms(),
            version,
        )
    }

    /// [`Self::sign_template`] of another server's. One that makes no event is that server's nonsense, and says nothing of what
    /// others have. The outer error: 413 `M_TOO_LARGE` if what the user wants to say is too much for any of them.
    pub(super) fn sign_template_of_peer(
        &self,
        template: &Map<String, Value>,
        version: RoomVersion,
        content: &Map<String, Value>,
    ) -> Result<CallResult<Pdu>> {
        if Value::Object(content.clone()).to_string().len() > CONTENT_BYTES_MAX {
            return Err(Error::new(ErrCode::TooLarge, "There is too much in the membership for an event"));
        }
        Ok(self
            .sign_template(template, version, content)
            .map_err(|e| CallError::bad(format!("a template that makes no event: {}", e.message()))))
    }
}

// ----- what it is about -----

impl Memberships<'_> {
    /// The content of the local user's own member event: profile and reason beside the membership.
    pub(super) fn member_content(
        &self,
        user: &UserId,
        membership: Membership,
        reason: Option<&str>,
    ) -> Result<Map<String, Value>> {
        let mut content = object_of([("membership", Value::from(membership.as_str()))]);
        if self.is_local(user)
            && matches!(membership, Membership::Join | Membership::Knock | Membership::Invite)
        {
            let profile = self.store.read(|db| db.profile(user))?;
            for field in PROFILE_FIELDS {
                if let Some(value) = profile.get(field).filter(|v| v.is_string()) {
                    content.insert(field.to_owned(), value.clone());
                }
            }
        }
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        Ok(content)
    }
}

/// A draft of a member event.
pub(super) fn member_draft(
    room: &RoomId,
    sender: &UserId,
    target: &UserId,
    content: Map<String, Value>,
) -> Draft {
    Draft {
        room: room.clone(),
        sender: sender.clone(),
        event_type: "m.room.member".to_owned(),
        state_key: Some(target.as_str().to_owned()),
        content,
        redacts: None,
        origin_server_ts: None,
    }
}

/// The name and the avatar that a member event's content says itself, as long as they may be in a profile. Errors: 400
/// `M_INVALID_PARAM`.
pub(super) fn own_names(content: &Map<String, Value>) -> Result<Map<String, Value>> {
    let mut names = Map::new();
    for field in PROFILE_FIELDS {
        if let Some(Value::String(text)) = content.get(field) {
            check_text(field, text)?;
            names.insert(field.to_owned(), text.as_str().into());
        }
    }
    Ok(names)
}

/// Whether a member event may be sent with the name and the avatar that its content says; null says that there is none.
/// Errors: 400 `M_INVALID_PARAM` for what is too long for a profile, `M_BAD_JSON` for what is no text.
pub(in crate::service) fn check_names(content: &Map<String, Value>) -> Result<()> {
    let is_text = |field: &str| content.get(field).is_none_or(|value| value.is_string() || value.is_null());
    if let Some(field) = PROFILE_FIELDS.into_iter().find(|field| !is_text(field)) {
        return Err(Error::bad_json(format!("{field} has to be a string")));
    }
    own_names(content).map(drop)
}

/// What of the fields of a client's request goes into its member event.
pub(super) fn own_fields(mut fields: Map<String, Value>) -> Result<Map<String, Value>> {
    const NOT_THEIRS: [&str; 9] = [
        "membership",
        "displayname",
        "avatar_url",
        "reason",
        "is_direct",
        "kind",
        "third_party_invite",
        "third_party_signed",
        AUTHORISER,
    ];
    for field in NOT_THEIRS {
        fields.remove(field);
    }
    if Value::Object(fields.clone()).to_string().len() > FIELDS_BYTES_MAX {
        return Err(Error::new(ErrCode::TooLarge, "There is too much beside the join"));
    }
    Ok(fields)
}
