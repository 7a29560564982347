//! The tokens of a search: where its next page begins.

use std::fmt;

use crate::error::{Error, Result};
use crate::store::{EventKey, RoomKey};

/// Where a search goes on: in the window that begins with the event `top`, behind the first `skip` of it that may be
/// shown; `seen` were in the windows before. Nothing is trusted in it: whatever it says, only what the searcher may see
/// is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextBatch {
    /// The event that came last of the window.
    pub top: EventKey,
    /// So many of it were shown.
    pub skip: usize,
    /// So many were in the windows before.
    pub seen: usize,
    /// The group that goes on, if it is one.
    pub within: Option<GroupMember>,
}

/// The group that a token goes on in: that of a room, or of the sender of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupMember {
    /// A room.
    Room(RoomKey),
    /// Whoever sent an event.
    SenderOf(EventKey),
}

impl NextBatch {
    /// Where a search begins.
    pub const START: NextBatch = NextBatch { top: EventKey::MAX, skip: 0, seen: 0, within: None };

    /// Errors: 400 `M_INVALID_PARAM`.
    pub fn parse(token: &str) -> Result<Self> {
        let number = |text: &str| -> Option<i64> {
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        };
        let parse = || {
            let mut parts = token.split('_');
            let top = number(parts.next()?)?;
            let skip = usize::try_from(number(parts.next()?)?).ok()?;
            let seen = usize::try_from(number(parts.next()?)?).ok()?;
            let within = match parts.next() {
                None => None,
                Some(member) => match (member.strip_prefix('r'), member.strip_prefix('s')) {
                    (Some(room), _) => Some(GroupMember::Room(number(room)?)),
                    (_, Some(event)) => Some(GroupMember::SenderOf(number(event)?)),
                    _ => return None,
                },
            };
            parts.next().is_none().then_some(Self { top, skip, seen, within })
        };
        parse().ok_or_else(|| Error::invalid_param("next_batch is none of this server's"))
    }
}

impl fmt::Display for NextBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}", self.top, self.skip, self.seen)?;
        match self.within {
            None => Ok(()),
            Some(GroupMember::Room(room)) => write!(f, "_r{room}"),
            Some(GroupMember::SenderOf(event)) => write!(f, "_s{event}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_as_it_was_written_and_no_other_is_read() {
        for (within, text) in [
            (None, "7_3_20"),
            (Some(GroupMember::Room(5)), "7_3_20_r5"),
            (Some(GroupMember::SenderOf(9)), "7_3_20_s9"),
        ] {
            let token = NextBatch { top: 7, skip: 3, seen: 20, within };
            assert_eq!(token.to_string(), text);
            assert_eq!(NextBatch::parse(text).unwrap(), token);
        }
        for wrong in [
            "",
            "7",
            "7_3",
            "-7_3_1",
            "7_-3_1",
            "7_3_1_",
            "7_3_1_x5",
            "7_3_1_r5_1",
            "99999999999999999999_0_0",
        ] {
            assert!(NextBatch::parse(wrong).is_err(), "{wrong}");
        }
    }
}
