//! Invites that the invitee's server may hold though the room has none: its answer was lost, or nobody could say that it is its own,
//! or the room wanted the invite no more. That server shows it, and hears from us what becomes of its user in the room
//! (`store/rooms/offered_invites.rs`); if they are invited again, that takes its place.

use std::time::{Duration, Instant};

use crate::federation::CallError;
use crate::protocol::pdu::Membership;
use crate::protocol::signatures::verify::{SignatureError, SignedBy};
use crate::protocol::{Pdu, ServerName, UserId};
use crate::service::keys::attempts::KeyPurpose;
use crate::service::membership::Memberships;
use crate::store::Room;

/// How long to wait before a server is asked once more for the key by which it has signed an invite: a moment longer than every
/// server is left alone that was asked for a key in vain.
const KEY_PAUSE: Duration = Duration::from_millis(5_200);
/// How long the first question for it took at most, so that who invites can wait for a second one.
const FIRST_KEY_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a server to which an invite was offered may have it for all that its answer says.
pub(super) fn may_have_been_taken(error: &CallError) -> bool {
    match error {
        CallError::Unconnected(_) => false,
        // A server that says itself what it has against it has not taken it.
        CallError::Refused(refusal) => refusal.status >= 500 && refusal.errcode.is_none(),
        CallError::Unreachable(_)
        | CallError::BadAnswer(_)
        | CallError::TooLarge(_)
        | CallError::AfterSuccess(_) => true,
    }
}

impl Memberships<'_> {
    /// The invitee's server has this invite, or may have it, and the room has not. If somebody else removed or banned them
    /// since it was drafted, their server is told so at once; else once somebody does.
    pub(super) fn note_offered_invite(&self, room: &Room, invite: &Pdu) {
        let (room, invite, now) = (room.key, invite.clone(), self.clock.now_ms());
        let noted = self.store.write(move |tx| {
            let target = UserId::parse(invite.state_key().unwrap_or_default())?;
            let present = tx.state_event(room, "m.room.member", target.as_str())?;
            let moved = present.filter(|present| !invite.auth_events().contains(present.event_id()));
            let Some(present) = moved else {
                return tx.keep_offered_invite(room, (invite.sender(), &target), now);
            };
            let is_out = matches!(present.membership(), Some(Membership::Leave | Membership::Ban));
            let by_others = is_out && present.sender() != &target;
            match tx.event_key(present.event_id())?.filter(|_| by_others) {
                Some(key) => {
                    let stream = tx.next_stream();
                    tx.owe_event(&target.server(), key, stream)
                }
                None => Ok(()),
            }
        });
        if let Err(e) = noted {
            log::log!(e.level(log::Level::Error), "what became of an invite cannot be told: {e}");
        }
    }

    /// The evidence that a server has signed the invite that it gave back, whose key may be lacking for a moment.
    pub(super) fn signature_in_time(
        &self,
        invite: &Pdu,
        server: &ServerName,
    ) -> Result<SignedBy, SignatureError> {
        let began = Instant::now();
        match self.signature_of(invite, server, KeyPurpose::Events) {
            Err(SignatureError::NoKey(_))
                if began.elapsed() < FIRST_KEY_TIMEOUT && self.scheduler.rest(KEY_PAUSE) =>
            {
                self.signature_of(invite, server, KeyPurpose::Events)
            }
            other => other,
        }
    }
}
