//! Our files as other servers are given them (server-server API, "Content Repository"): in two parts, read from the disk
//! as they are written. Each keeps a thread and a connection, so there are so many of them in all and for each server, and
//! who takes too long over one is cut off, sooner when others wait.

use std::io::{self, Cursor, Read};
use std::time::{Duration, Instant};

use super::fetch::keeps_up;
use super::{Media, MediaFile};
use crate::error::{ErrCode, Error, Result};
use crate::protocol::ServerName;
use crate::protocol::media::multipart::{Envelope, envelope};
use crate::protocol::media::{UNKNOWN_MEDIA_TYPE, content_disposition};
use crate::random;
use crate::service::limits::fair_slots::{FairSlot, FairSlots};

/// Files that are given at once: to all servers, and to one.
const SERVED_MAX: usize = 96;
const SERVED_PER_SERVER_MAX: usize = 12;
/// How long one waits for such a slot. Not briefly: Synapse that is told to come later asks nothing at all for ten minutes.
const SLOT_TIMEOUT: Duration = Duration::from_secs(20);
/// Slowest rate behind a grace, in bytes a second: while nobody waits, and while somebody does. Who takes nothing at all is
/// found out by the connection, by the first of them.
pub const RATE_MIN: u64 = 16 << 10;
const CROWDED_RATE_MIN: u64 = 64 << 10;
/// When who found no slot should come again.
const RETRY_AFTER_MS: u64 = 3_000;
const BOUNDARY_LETTERS: usize = 32;

/// The slots of files that other servers are being given.
pub struct MediaServing(FairSlots<ServerName>);

impl Default for MediaServing {
    fn default() -> Self {
        Self(FairSlots::new(SERVED_MAX, SERVED_PER_SERVER_MAX))
    }
}

/// A file on its way to another server.
pub struct ServedMedia {
    /// The content type of the answer.
    pub content_type: String,
    /// How long the answer is, in bytes.
    pub bytes: u64,
    /// The answer.
    pub reader: Box<dyn Read + Send>,
}

impl Media<'_> {
    /// A file of ours as an answer to another server, in a slot that is waited for while the answer is `wanted`. Errors: 429
    /// `M_LIMIT_EXCEEDED`.
    pub fn serve(
        &self,
        peer: &ServerName,
        found: MediaFile,
        wanted: impl Fn() -> bool,
    ) -> Result<ServedMedia> {
        let slot = self.media_serving.0.take(peer, Instant::now() + SLOT_TIMEOUT, wanted);
        let slot = slot.ok_or_else(|| {
            let error =
                Error::new(ErrCode::LimitExceeded, "This server gives you enough files at once already");
            error.with_field("retry_after_ms", RETRY_AFTER_MS)
        })?;
        let MediaFile { row, file } = found;
        let content_type = row.content_type.as_deref().unwrap_or(UNKNOWN_MEDIA_TYPE);
        let disposition = content_disposition(content_type, row.upload_name.as_deref());
        let headers = [("Content-Type", content_type), ("Content-Disposition", disposition.as_str())];
        let Envelope { content_type, before, after } = envelope(&random::letters(BOUNDARY_LETTERS), &headers);
        let bytes = before.len() as u64 + file.size() + after.len() as u64;
        let parts = Cursor::new(before).chain(file).chain(Cursor::new(after));
        let reader = PacedFile { parts, slot, began: None, bytes: 0 };
        Ok(ServedMedia { content_type, bytes, reader: Box::new(reader) })
    }
}

/// A file that is read as fast as another server takes it, or not at all.
struct PacedFile<R> {
    parts: R,
    slot: FairSlot<ServerName>,
    began: Option<Instant>,
    bytes: u64,
}

impl<R: Read> Read for PacedFile<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let began = *self.began.get_or_insert_with(Instant::now);
        let rate = if self.slot.is_crowded() { CROWDED_RATE_MIN } else { RATE_MIN };
        if !keeps_up(began.elapsed(), self.bytes, rate) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a server takes a file too slowly"));
        }
        let count = self.parts.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::media::{MediaId, MxcUri};
    use crate::testing::TestServer;

    #[test]
    fn a_server_is_given_a_few_files_at_once_and_others_are_given_theirs() {
        let server = TestServer::start();
        let media = server.homeserver().media();
        let name = |name: &str| ServerName::parse(name).expect("a name");
        let uri = MxcUri { server: name("away.example"), media_id: MediaId::parse("abc").expect("an id") };
        let blob = media.store_stream(&mut &[7; 100_000][..], 1 << 20).expect("a file");
        drop(media.insert_remote(&uri, blob, None, None).expect("a row"));
        // Who does not wait is refused at once.
        let serve = |peer: &str| media.serve(&name(peer), media.open(&uri).expect("a file"), || false);
        let mut held = Vec::new();
        let refusal = loop {
            match serve("greedy.example") {
                Ok(served) => held.push(served),
                Err(refusal) => break refusal,
            }
        };
        assert_eq!((held.len(), refusal.status()), (SERVED_PER_SERVER_MAX, 429));
        let mut served = serve("modest.example").expect("a file");
        let mut bytes = Vec::new();
        served.reader.read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes.len() as u64, served.bytes);
        assert!(bytes.windows(1000).any(|w| w == [7; 1000]));
        held.pop();
        held.push(serve("greedy.example").expect("a file when another is over"));
    }

    #[test]
    fn who_takes_a_file_too_slowly_is_cut_off() {
        let slots = FairSlots::new(4, 4);
        let peer = ServerName::parse("slow.example").expect("a name");
        let slot = || slots.take(&peer, Instant::now(), || true).expect("a slot");
        let began = Instant::now().checked_sub(Duration::from_secs(32));
        let taken = |bytes| PacedFile { parts: &[1; 10][..], slot: slot(), began, bytes };
        let mut buffer = [0; 10];
        assert!(taken(0).read(&mut buffer).is_err());
        assert_eq!(taken(2 * RATE_MIN).read(&mut buffer).expect("fast enough while nobody waits"), 10);
        let _others = [slot(), slot()];
        assert!(taken(2 * RATE_MIN).read(&mut buffer).is_err(), "while others wait");
        assert_eq!(taken(2 * CROWDED_RATE_MIN).read(&mut buffer).expect("fast enough"), 10);
    }
}
