//! What the room is asked, and when: about an invite or a knock that something speaks against, and now and then about one that
//! nothing speaks against.

use super::apply::{ATTEMPTS_MAX, Next, backoff_ms};
use super::{Fields, RemoteState, RoomAnswer};
use crate::protocol::pdu::{Membership, Pdu};
use crate::protocol::{EventId, Millis, ServerName};

/// When the room is asked once more about an invite that it does not know, or a removal, in milliseconds: its server may be
/// slow to take in what we signed, or what others say. After the last it is as it says.
const LOOK_PAUSES_MS: [Millis; 3] = [500, 1_500, 4_000];
/// How often that is tried if no server can tell, and nobody said that the user was removed.
pub const UNANSWERED_LOOKS_MAX: u32 = 6;

/// When a knock or an invite that stands is looked up: not every server tells when it is refused, or taken back. About once a
/// day, and each at its own hour, so that many that were made at once are not asked about at once.
const STANDING_LOOK_MS: Millis = 20 * 3_600_000;
const STANDING_LOOK_SPREAD_MS: Millis = 8 * 3_600_000;

impl Fields {
    /// The room is to be asked.
    pub(super) fn doubted(mut self, now: Millis) -> Next {
        (self.attempts, self.due_ms) = (0, Some(now));
        Next::Row(self)
    }

    /// Whether nothing speaks against the invite or knock, as far as this server knows: it is looked up some day, if at all.
    /// An invite that does begins to be asked about anew, from no attempt on.
    pub fn is_standing(&self) -> bool {
        let is_asked = self.state == RemoteState::Invited && self.attempts < UNANSWERED_LOOKS_MAX;
        self.due_ms.is_none() || (self.removal.is_none() && !is_asked)
    }

    /// Nothing speaks against it any more, or yet: when it is looked up next.
    pub(super) fn stand(&mut self, now: Millis) {
        self.attempts = if self.state == RemoteState::Invited { UNANSWERED_LOOKS_MAX } else { 0 };
        (self.due_ms, self.removal) = (Some(self.standing_look(now)), None);
    }

    /// When a knock or an invite that stands is looked up next. It is spread by its id, which is as good as random.
    pub(super) fn standing_look(&self, now: Millis) -> Millis {
        let id = self.told().map_or("", EventId::as_str);
        let spread =
            id.bytes().fold(0, |sum: Millis, byte| (sum * 31 + Millis::from(byte)) % STANDING_LOOK_SPREAD_MS);
        now + STANDING_LOOK_MS + spread
    }

    pub(super) fn looked_up(
        mut self,
        about: &EventId,
        (answer, by): (RoomAnswer, Option<ServerName>),
        leave: Pdu,
        now: Millis,
    ) -> Next {
        // What is asked about has a time: if there is none, the matter is settled.
        let waits = matches!(self.state, RemoteState::Invited | RemoteState::Knocked);
        if !waits || self.told() != Some(about) || self.due_ms.is_none() {
            return Next::Same;
        }
        let is_invite = self.state == RemoteState::Invited;
        if matches!(answer, RoomAnswer::Void(_)) && is_invite && self.is_standing() {
            // That is the first thing that speaks against it.
            self.attempts = 0;
        }
        let looks = self.attempts + 1;
        let pause = usize::try_from(self.attempts).ok().and_then(|done| LOOK_PAUSES_MS.get(done));
        // Whoever removes what the room knows has seen that it does; and a ban speaks against an invite from before it.
        let is_ended = self.removal.as_ref().is_some_and(|removal| {
            removal.membership() == Some(Membership::Ban) || removal.auth_events().contains(about)
        });
        match (answer, pause) {
            (RoomAnswer::Stands, Some(pause)) if self.removal.is_some() => {
                (self.attempts, self.due_ms) = (looks, Some(now + pause));
            }
            (RoomAnswer::Stands, _) => {
                self.stand(now);
                // Where there was nobody to ask there will be nobody.
                self.due_ms.take_if(|_| is_invite && by.is_none());
            }
            (RoomAnswer::Unanswered, _) => {
                let most = if self.removal.is_some() { ATTEMPTS_MAX } else { UNANSWERED_LOOKS_MAX };
                self.attempts = looks.min(most);
                self.due_ms =
                    Some(if looks < most { now + backoff_ms(looks) } else { self.standing_look(now) });
                self.removal.take_if(|_| looks >= most);
            }
            (RoomAnswer::Void(_), Some(pause)) if !is_ended => {
                (self.attempts, self.due_ms) = (looks, Some(now + pause));
            }
            (RoomAnswer::Void(Some(Membership::Knock)), _)
                if self.covered.is_none() && self.answers().is_some() =>
            {
                self.event = self.previous.take();
                self.restore_version();
                self.enter(RemoteState::Knocked, Some(self.standing_look(now)));
            }
            (RoomAnswer::Void(_), _) => {
                if !self.uncover(now) {
                    let is_other = |host: ServerName| by.as_ref() != Some(&host);
                    let host_unaware = self.removal.is_some() && self.other_host().is_some_and(is_other);
                    let end = self.removal.take().unwrap_or(leave);
                    self.tell(end);
                    self.close(now);
                    self.host_unaware = host_unaware;
                }
            }
        }
        Next::Row(self)
    }
}
