//! Thumbnails of media (client-server API, "Thumbnails"): which file answers a request, the original, one that was made before, or one that is made
//! now. What is made becomes a file like any other, found by the picture's file and its size, so that the same picture has one
//! thumbnail by however many URIs it is known; it goes with the picture.
//!
//! Two are made at a time for our users, one for each who asks, and one for other servers, since the pictures are other people's
//! and the machine is small; one of the pictures of each server, however many ask for them, so that a server with pictures
//! that take long leaves room for others. What could not be made is not tried again for an hour: clients ask again at once.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::files::BlobFile;
use super::thumbnail::{self, Picture, ThumbnailError, ThumbnailRequest, ThumbnailSize};
use super::{Media, MediaFile, no_such_media};
use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::error::{ErrCode, Error, Result};
use crate::federation::calls::ThumbnailQuery;
use crate::locks::{KeyedLock, lock};
use crate::protocol::ServerName;
use crate::protocol::media::MxcUri;
use crate::service::limits::fair_slots::FairSlots;
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::store::media::BlobHash;
use crate::store::media::thumbnails::{ThumbnailKey, ThumbnailRow};

/// Pictures that are decoded at once: in all, and for each who asks.
const DECODES_MAX: usize = 2;
const DECODES_PER_ASKER_MAX: usize = 1;
/// A client that opens a room wants the pictures of a whole page.
const WAITING_MAX: usize = 256;
const WAITING_PER_ASKER_MAX: usize = 32;
/// Of the pictures of one other server; as many wait as for all.
const DECODES_PER_ORIGIN_MAX: usize = 1;
/// Requests that wait for a thumbnail, their own or one that is made for somebody else: in all, and of each.
const REQUESTS_MAX: usize = 512;
const REQUESTS_PER_ASKER_MAX: usize = WAITING_PER_ASKER_MAX + DECODES_PER_ASKER_MAX;
/// The same for all other servers together, so that they keep none of our users waiting.
const PEER_DECODES_MAX: usize = 1;
const PEERS_WAITING_MAX: usize = 64;
const WAITING_PER_PEER_MAX: usize = 8;
const PEER_REQUESTS_MAX: usize = 128;
const REQUESTS_PER_PEER_MAX: usize = 2 * WAITING_PER_PEER_MAX;
/// Of pictures of more pixels than this, one is decoded at a time.
const LARGE_PIXELS: u64 = 16 << 20;
/// Time for a picture, and for those before it.
const MAKE_TIMEOUT: Duration = Duration::from_secs(10);
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// What moves is given as it is up to this size, where it was asked for.
const ANIMATED_BYTES_MAX: u64 = 1 << 20;
/// How long what could not be made is not tried again, and of how many pictures that is known.
const FAILURE_MS: Millis = 3_600_000;
/// The same for what took too long: the machine may have been busy.
const TOO_SLOW_MS: Millis = 300_000;
const FAILURES_MAX: usize = 10_000;
/// The largest thumbnail in bytes: no compression at all of the largest size.
const THUMBNAIL_BYTES_MAX: u64 = 8 << 20;
/// When who found no place should come again.
const RETRY_AFTER_MS: i64 = 2_000;

/// What is being made, and what could not be.
pub struct Thumbnails {
    requests: FairSlots<AskerId>,
    peer_requests: FairSlots<AskerId>,
    slots: FairSlots<AskerId>,
    peer_slots: FairSlots<AskerId>,
    origin_slots: FairSlots<ServerName>,
    under_way: KeyedLock<ThumbnailKey>,
    large: Mutex<()>,
    failures: Mutex<BoundedMap<BlobHash, (Steady, ThumbnailError), FAILURES_MAX>>,
}

impl Default for Thumbnails {
    fn default() -> Self {
        let (line, line_each) = (WAITING_MAX, WAITING_PER_ASKER_MAX);
        let slots = FairSlots::with_line(DECODES_MAX, DECODES_PER_ASKER_MAX, line, line_each);
        let (line, line_each) = (PEERS_WAITING_MAX, WAITING_PER_PEER_MAX);
        let peer_slots = FairSlots::with_line(PEER_DECODES_MAX, PEER_DECODES_MAX, line, line_each);
        let origins = DECODES_MAX * DECODES_PER_ORIGIN_MAX;
        let origin_slots = FairSlots::with_line(origins, DECODES_PER_ORIGIN_MAX, REQUESTS_MAX, WAITING_MAX);
        Self {
            requests: FairSlots::new(REQUESTS_MAX, REQUESTS_PER_ASKER_MAX),
            peer_requests: FairSlots::new(PEER_REQUESTS_MAX, REQUESTS_PER_PEER_MAX),
            slots,
            peer_slots,
            origin_slots,
            under_way: KeyedLock::default(),
            large: Mutex::default(),
            failures: Mutex::default(),
        }
    }
}

/// What a client or a peer asks for.
#[derive(Debug, Clone)]
pub struct WantedThumbnail {
    /// How large.
    pub size: ThumbnailRequest,
    /// Whether it may move. It must not where that was not said.
    pub animated: bool,
}

impl Media<'_> {
    /// The file that answers for one that is `from` a server: a thumbnail, or the original where it is no larger than asked
    /// for or may move. Its type is what it is, whatever the original was said to be. Errors: 400 `M_UNKNOWN` for what is no picture that we read; 413 `M_TOO_LARGE` (502 for
    /// another server's) for one that is too large; 429 where too many are waited for.
    pub fn thumbnail(
        &self,
        asker: &Asker,
        (from, original): (&ServerName, MediaFile),
        wanted: &WantedThumbnail,
    ) -> Result<MediaFile> {
        let is_ours = original.row.uploader.is_some();
        let refused = |e: ThumbnailError| self.refusal(e, is_ours);
        let source = original.row.hash.ok_or_else(no_such_media)?;
        if let Some(failure) = self.known_failure(&source) {
            return Err(refused(failure));
        }
        let mut file = SeekableFile::new(&original.file);
        let looked = thumbnail::look(&mut file).and_then(|picture| {
            let size = wanted.size.answer(&picture);
            // Whoever wants a picture that stands still may not get one that moves.
            let matters = size.is_none() || wanted.animated && original.file.size() <= ANIMATED_BYTES_MAX;
            Ok((matters && thumbnail::is_animated(&mut file, &picture)?, size, picture))
        });
        let (moves, size, picture) = looked.map_err(|e| refused(self.note_failure(source, e)))?;
        let size = match size {
            _ if moves && wanted.animated && original.file.size() <= ANIMATED_BYTES_MAX => None,
            None if moves => Some(ThumbnailSize::of_still(&picture)),
            size => size,
        };
        let Some(size) = size else {
            return Ok(named(original, picture.format.content_type()));
        };
        let key =
            ThumbnailKey { source, width: size.width, height: size.height, method: size.method.as_str() };
        let made = match self.made_thumbnail(&key)? {
            Some(made) => made,
            None => self.make_thumbnail((asker, from), key, (&mut file, &picture), size, &refused)?,
        };
        let (row, file) = made;
        let mut answer = named(original, &row.content_type);
        answer.row.hash = Some(row.hash);
        answer.row.bytes = row.bytes;
        answer.file = file;
        Ok(answer)
    }

    /// A picture of another server: the file, or where that is larger than what is fetched, a thumbnail of its own. Errors:
    /// those of [`Media::fetch`].
    pub fn fetch_picture(
        &self,
        uri: &MxcUri,
        wanted: &WantedThumbnail,
        asker: &Asker,
        until: Instant,
    ) -> Result<MediaFile> {
        match self.fetch(uri, asker, until) {
            Err(e) if e.errcode() == ErrCode::TooLarge => {
                // What moves may be too large for us to know that it does.
                let ThumbnailRequest { width, height, method } = wanted.size.of_other_server();
                let method = method.as_str();
                let query = ThumbnailQuery { width, height, method, animated: wanted.animated };
                self.fetch_thumbnail(uri, query, asker, until)
            }
            fetched => fetched,
        }
    }

    fn made_thumbnail(&self, key: &ThumbnailKey) -> Result<Option<(ThumbnailRow, BlobFile)>> {
        let Some(row) = self.store.read(|db| db.thumbnail(key))? else { return Ok(None) };
        let file = self.media_files.open_blob(&row.hash)?;
        Ok(file.filter(|file| file.size() == row.bytes).map(|file| (row, file)))
    }

    fn make_thumbnail(
        &self,
        (asker, from): (&Asker, &ServerName),
        key: ThumbnailKey,
        (file, picture): (&mut SeekableFile, &Picture),
        size: ThumbnailSize,
        refused: &dyn Fn(ThumbnailError) -> Error,
    ) -> Result<(ThumbnailRow, BlobFile)> {
        let state = &self.thumbnails;
        let (now, until) = (Instant::now(), Instant::now() + WAIT_TIMEOUT);
        let (requests, slots) = match asker.who() {
            AskerId::Peer(_) => (&state.peer_requests, &state.peer_slots),
            AskerId::User(_) | AskerId::Address(_) => (&state.requests, &state.slots),
        };
        // Each keeps a thread, whatever it waits for.
        let _request = requests.take(asker.who(), now, || true).ok_or_else(busy)?;
        // Who wants the same thing has it from whoever was first.
        let _under_way = state.under_way.lock_until(key, until).ok_or_else(busy)?;
        if let Some(made) = self.made_thumbnail(&key)? {
            return Ok(made);
        }
        if let Some(failure) = self.known_failure(&key.source) {
            return Err(refused(failure));
        }
        let made = {
            let wanted = || !asker.is_gone();
            // Before the asker's, which nobody else could have while this one is waited for.
            let is_ours = from == self.server_name();
            let of_origin = (!is_ours).then(|| state.origin_slots.take(from, until, wanted).ok_or_else(busy));
            let _of_origin = of_origin.transpose()?;
            let _slot = slots.take(asker.who(), until, wanted).ok_or_else(busy)?;
            let _large = (picture.pixels() > LARGE_PIXELS).then(|| lock(&state.large));
            thumbnail::make(file, picture, size, Instant::now() + MAKE_TIMEOUT)
        };
        let made = made.map_err(|e| refused(self.note_failure(key.source, e)))?;
        let stored = self.store_stream(&mut &made.bytes[..], THUMBNAIL_BYTES_MAX)?;
        let content_type = made.content_type.to_owned();
        let row = ThumbnailRow { hash: stored.hash, bytes: stored.bytes, content_type };
        let written = row.clone();
        self.store.write_lightly(move |tx| tx.add_thumbnail(&key, &written))?;
        let file = self.media_files.open_blob(&row.hash)?.ok_or_else(no_such_media)?;
        drop(stored);
        Ok((row, file))
    }

    fn known_failure(&self, source: &BlobHash) -> Option<ThumbnailError> {
        let now = self.clock.steady();
        let failures = lock(&self.thumbnails.failures);
        failures.get(source).filter(|(until, _)| *until > now).map(|(_, failure)| failure.clone())
    }

    fn note_failure(&self, source: BlobHash, failure: ThumbnailError) -> ThumbnailError {
        // To see that something is no picture costs nothing.
        if failure != ThumbnailError::Unsupported {
            log::debug!("no thumbnail of {source}: {failure:?}");
            let now = self.clock.steady();
            let pause = if failure == ThumbnailError::TooSlow { TOO_SLOW_MS } else { FAILURE_MS };
            let worth = |(until, _): &(Steady, ThumbnailError)| match *until <= now {
                true => Worth::Nothing,
                false => Worth::Little,
            };
            lock(&self.thumbnails.failures).insert(source, (now + pause, failure.clone()), worth);
        }
        failure
    }

    fn refusal(&self, failure: ThumbnailError, is_ours: bool) -> Error {
        match failure {
            ThumbnailError::TooLarge | ThumbnailError::TooSlow => {
                let status = if is_ours { 413 } else { 502 };
                Error::new(ErrCode::TooLarge, "Content is too large to thumbnail").with_status(status)
            }
            ThumbnailError::Unsupported | ThumbnailError::Broken(_) => {
                Error::new(ErrCode::Unknown, "Cannot generate thumbnails for the requested content")
                    .with_status(400)
            }
        }
    }

    /// A file that is there, to be looked into.
    pub(super) fn seekable(&self, hash: &BlobHash) -> Result<SeekableFile> {
        let file = self.media_files.open_blob(hash)?.ok_or_else(no_such_media)?;
        Ok(SeekableFile::new(&file))
    }
}

/// This file under the name that thumbnails have.
fn named(mut file: MediaFile, content_type: &str) -> MediaFile {
    let extension = content_type.rsplit('/').next().unwrap_or_default();
    file.row.upload_name = Some(format!("thumbnail.{}", if extension == "jpeg" { "jpg" } else { extension }));
    file.row.content_type = Some(content_type.to_owned());
    file
}

fn busy() -> Error {
    let e = Error::new(ErrCode::LimitExceeded, "Too many thumbnails are being made");
    e.with_field("retry_after_ms", RETRY_AFTER_MS)
}

/// An open file that is read from anywhere.
pub(super) struct SeekableFile {
    whole: BlobFile,
    at: u64,
}

impl SeekableFile {
    fn new(file: &BlobFile) -> Self {
        Self { whole: file.part(0, u64::MAX), at: 0 }
    }
}

impl Read for SeekableFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.whole.part(self.at, u64::MAX).read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for SeekableFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.whole.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::protocol::UserId;
    use crate::testing::TestServer;

    #[test]
    fn who_wants_the_same_thumbnail_a_hundred_times_holds_a_few_threads() {
        let server = TestServer::start();
        let media = server.homeserver().media();
        let peer = AskerId::Peer(ServerName::parse("peer.example").expect("a name"));
        let user = AskerId::User(UserId::parse("@alice:us.example").expect("a user id"));
        for (who, id) in [(user, "a"), (peer, "b")] {
            let uri = MxcUri::parse(&format!("mxc://away.example/{id}")).expect("a URI");
            // Each another file.
            let picture =
                [&include_bytes!("../../../tests/pictures/baseline.jpg")[..], id.as_bytes()].concat();
            let blob = media.store_stream(&mut &picture[..], 1 << 20).expect("a file");
            let key = ThumbnailKey { source: blob.hash, width: 32, height: 32, method: "crop" };
            drop(media.insert_remote(&uri, blob, None, None).expect("a row"));
            // Somebody makes it, and takes long.
            let making = server.homeserver().thumbnails.under_way.try_lock(key).expect("nobody does");
            let (tell, told) = mpsc::channel();
            std::thread::scope(|scope| {
                for _ in 0..100 {
                    let (who, tell, uri) = (who.clone(), tell.clone(), &uri);
                    scope.spawn(move || {
                        let size =
                            ThumbnailRequest { width: 32, height: 32, method: thumbnail::Method::Crop };
                        let wanted = WantedThumbnail { size, animated: false };
                        let found = media.open(uri).expect("a file");
                        let made = media.thumbnail(&Asker::new(who), (&uri.server, found), &wanted);
                        let _ = tell.send(made.map(drop).map_err(|e| e.status()));
                    });
                }
                let refused = (0..50).filter(|_| told.recv_timeout(WAIT_TIMEOUT / 2) == Ok(Err(429))).count();
                drop(making);
                assert_eq!(refused, 50, "{who:?}");
                assert!(told.iter().take(50).any(|made| made == Ok(())), "{who:?}");
            });
        }
    }

    #[test]
    fn the_pictures_of_one_server_are_made_one_after_the_other_and_hold_up_no_others() {
        let server = TestServer::start();
        let media = server.homeserver().media();
        let user = |name: &str| AskerId::User(UserId::parse(name).expect("a user id"));
        let picture_of = |name: &str| {
            let uri = MxcUri::parse(&format!("mxc://{name}/picture")).expect("a URI");
            let picture =
                [&include_bytes!("../../../tests/pictures/baseline.jpg")[..], name.as_bytes()].concat();
            let blob = media.store_stream(&mut &picture[..], 1 << 20).expect("a file");
            drop(media.insert_remote(&uri, blob, None, None).expect("a row"));
            uri
        };
        let (slow, other) = (picture_of("slow.example"), picture_of("other.example"));
        let thumbnail_for = |who: AskerId, uri: &MxcUri| {
            let size = ThumbnailRequest { width: 32, height: 32, method: thumbnail::Method::Crop };
            let found = media.open(uri).expect("a file");
            let wanted = WantedThumbnail { size, animated: false };
            media.thumbnail(&Asker::new(who), (&uri.server, found), &wanted).map(drop).map_err(|e| e.status())
        };
        // One of its pictures is being made for somebody, and takes long.
        let origins = &server.homeserver().thumbnails.origin_slots;
        let making = origins.take(&slow.server, Instant::now(), || true).expect("a slot");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| thumbnail_for(user("@alice:us.example"), &slow));
            while origins.waiting() == 0 {
                std::thread::yield_now();
            }
            for name in ["@alice:us.example", "@bob:us.example"] {
                assert_eq!(thumbnail_for(user(name), &other), Ok(()), "{name}");
            }
            assert!(!waiting.is_finished());
            drop(making);
            assert_eq!(waiting.join().expect("no panic"), Ok(()));
        });
    }
}
