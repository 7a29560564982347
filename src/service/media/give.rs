//! Files as our users are given them: of large ones a few at once for each, since each keeps a connection and a thread for as long
//! as the client takes. There is no bound for all: who is slow would keep others out by it.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::Media;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::service::limits::fair_slots::{FairSlot, FairSlots};

/// What is no larger is given at once: it is on its way soon.
const LARGE_BYTES_MIN: u64 = 1 << 20;
/// Large files that one user is given at once; and that wait, of one and of all. Clients that speak by a proxy ask for a hundred
/// pictures together.
const OF_USER_MAX: usize = 32;
const WAITING_OF_USER_MAX: usize = 256;
const WAITING_MAX: usize = 4096;
/// How long one waits.
const SLOT_TIMEOUT: Duration = Duration::from_secs(20);
/// When who found no slot should come again.
const RETRY_AFTER_MS: u64 = 3_000;

/// The slots of large files that users are being given.
pub struct MediaGiving(FairSlots<UserId>);

impl Default for MediaGiving {
    fn default() -> Self {
        Self(FairSlots::with_line(usize::MAX, OF_USER_MAX, WAITING_MAX, WAITING_OF_USER_MAX))
    }
}

/// A file, or a part of one, that is given in a slot.
struct GivenMedia<R> {
    file: R,
    _slot: FairSlot<UserId>,
}

impl<R: Read> Read for GivenMedia<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Media<'_> {
    /// So many bytes of a file as an answer to a user, in a slot if they are many, which is waited for while the answer is
    /// `wanted`. Errors: 429 `M_LIMIT_EXCEEDED`.
    pub fn give(
        &self,
        user: &UserId,
        bytes: u64,
        file: impl Read + Send + 'static,
        wanted: impl Fn() -> bool,
    ) -> Result<Box<dyn Read + Send>> {
        if bytes <= LARGE_BYTES_MIN {
            return Ok(Box::new(file));
        }
        let slot = self.media_giving.0.take(user, Instant::now() + SLOT_TIMEOUT, wanted);
        let slot = slot.ok_or_else(|| {
            let error =
                Error::new(ErrCode::LimitExceeded, "You are being given enough files at once already");
            error.with_field("retry_after_ms", RETRY_AFTER_MS)
        })?;
        Ok(Box::new(GivenMedia { file, _slot: slot }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestServer;

    #[test]
    fn a_user_is_given_a_few_large_files_at_once_and_any_small_ones_and_others_are_given_theirs() {
        let server = TestServer::start();
        let media = server.homeserver().media();
        let user = |name: &str| UserId::parse(&format!("@{name}:a.example")).expect("an id");
        // Who does not wait is refused at once.
        let give = |name: &str, bytes| media.give(&user(name), bytes, io::empty(), || false);
        let large = LARGE_BYTES_MIN + 1;
        let mut held: Vec<_> = (0..100).map_while(|_| give("greedy", large).ok()).collect();
        assert_eq!(held.len(), OF_USER_MAX);
        assert_eq!(give("greedy", large).err().expect("no slot").status(), 429);
        held.push(give("greedy", LARGE_BYTES_MIN).expect("a small one"));
        held.push(give("modest", large).expect("theirs"));
        held.remove(0);
        held.push(give("greedy", large).expect("one when another is over"));
    }
}
