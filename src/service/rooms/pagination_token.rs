//! The tokens that stand for the places between events.

use std::fmt;

use crate::error::{Error, Result};
use crate::store::Place;

/// A place between two events: right after the event that stands (or would stand) at this place. Written as `s` and the
/// stream position; inside history that was fetched later also `_` and the number of events further back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PaginationToken(pub Place);

impl PaginationToken {
    /// Right after everything up to this stream position: what `next_batch` means.
    pub fn at(position: i64) -> Self {
        Self(Place::live(position))
    }

    /// Right before an event.
    pub fn before(place: Place) -> Self {
        Self(Place { stream: place.stream, sub: place.sub.saturating_sub(1) })
    }

    /// Right after an event.
    pub fn after(place: Place) -> Self {
        Self(place)
    }

    /// Reads a token of `/sync` or `/messages`, or the `pos` of a sliding sync, which has more behind a `~`. Errors: 400
    /// `M_INVALID_PARAM`.
    pub fn parse(token: &str) -> Result<Self> {
        let token = token.split_once('~').map_or(token, |(place, _)| place);
        let parse = || {
            let rest = token.strip_prefix('s')?;
            let (stream, back) = rest.split_once('_').unwrap_or((rest, "0"));
            let number = |text: &str| -> Option<i64> {
                text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
            };
            Some(Self(Place { stream: number(stream)?, sub: -number(back)? }))
        };
        parse().ok_or_else(|| Error::invalid_param("The token is none of this server's"))
    }

    /// The exclusive end from which a walk backwards starts here.
    pub fn start_back(self) -> Place {
        Place { stream: self.0.stream, sub: self.0.sub.saturating_add(1) }
    }
}

impl fmt::Display for PaginationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0.stream.max(0))?;
        if self.0.sub < 0 { write!(f, "_{}", self.0.sub.unsigned_abs()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_as_it_was_written() {
        for (stream, sub, text) in [(7, 0, "s7"), (7, -3, "s7_3"), (0, 0, "s0")] {
            let token = PaginationToken(Place { stream, sub });
            assert_eq!(token.to_string(), text);
            assert_eq!(PaginationToken::parse(text).unwrap(), token);
        }
        for wrong in ["", "s", "7", "s7_", "s7_-1", "s_1", "s7_1_1", "t7"] {
            assert!(PaginationToken::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn right_before_an_event_is_right_after_what_stands_before_it() {
        let event = Place { stream: 5, sub: 0 };
        assert!(PaginationToken::before(event) < PaginationToken::after(event));
        assert!(PaginationToken::at(4) < PaginationToken::before(event));
        assert_eq!(PaginationToken::after(event), PaginationToken::at(5));
    }
}
