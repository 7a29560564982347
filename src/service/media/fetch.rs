//! Files of other servers: fetched when one of our users asks for them, and kept as long as the cache has room.
//!
//! A file is fetched once at a time, whoever asks: the others wait for it. Each that asks keeps a thread, so there are so
//! many of them in all and for each user; each that is fetched keeps a connection and room on the disk, so there are so
//! many of them in all and from each server, and what comes too slowly is given up, sooner when others wait. What failed is
//! remembered for a while, since clients ask again at once.
//!
//! A thumbnail is made here from the whole file (one fetch is enough for every size, and what comes out of our decoder has
//! nothing in it but the picture), unless the file is larger than what is fetched: then the other server is asked for one.

use std::io::{self, Read};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::fetch_rate::FetchRate;
use super::{FoundMedia, Media, MediaFile, no_such_media, not_yet_uploaded};
use crate::backoff::Backoff;
use crate::bounded::{BoundedMap, Worth};
use crate::error::{ErrCode, Error, Result};
use crate::federation::calls::{MediaRequest, PeerMedia, ThumbnailQuery};
use crate::federation::{CallError, CallResult};
use crate::locks::{KeyedLock, lock};
use crate::protocol::ServerName;
use crate::protocol::media::MxcUri;
use crate::service::limits::fair_slots::{FairSlot, FairSlots};
use crate::service::limits::request_permits::{Asker, AskerId};

/// Requests for files that are not here, those that wait in line included: of all, and of each. A page of a gallery is a few
/// dozen.
const REQUESTS_MAX: usize = 1024;
const REQUESTS_PER_ASKER_MAX: usize = 96;
const REQUESTS_IN_LINE_PER_ASKER_MAX: usize = 16;
/// Of these so many ask at once: of all, of each, and of each for files of one server, so that one that hangs leaves room for
/// others.
const ASKS_MAX: usize = 128;
const ASKS_PER_ASKER_MAX: usize = 16;
const ASKS_PER_ASKER_AND_SERVER_MAX: usize = 4;
/// Files that are fetched at once: of all servers, and of one.
const FETCHES_MAX: usize = 24;
const FETCHES_PER_SERVER_MAX: usize = 6;
/// How long one waits for each of these slots, and for somebody else who fetches the same.
const SLOT_TIMEOUT: Duration = Duration::from_secs(20);
const SAME_FILE_TIMEOUT: Duration = Duration::from_secs(90);
/// Time for a file, however large.
const FETCH_TIMEOUT: Duration = Duration::from_secs(600);
/// Slowest rate behind a grace, in bytes a second: while nobody waits, and while somebody does.
const RATE_GRACE: Duration = Duration::from_secs(30);
const RATE_MIN: u64 = 4 << 10;
const CROWDED_RATE_MIN: u64 = 64 << 10;
/// Between two questions for a file that is to be uploaded, if the other server does not wait for it.
const UPLOAD_PAUSE: Duration = Duration::from_secs(1);
/// What one asker may have fetched in an hour, in bytes: of the cache this part, so that nobody empties it alone; and
/// bounds of that, the lower in files of the largest size.
const CACHE_PART: u64 = 4;
const LARGEST_FILES_AN_HOUR_MIN: u64 = 4;
const BYTES_AN_HOUR_MAX: u64 = 16 << 30;
const HOUR_SECONDS: u64 = 3600;
/// What a file counts for at least, since asking costs something too.
pub(super) const COUNTED_BYTES_MIN: u64 = 16 << 10;
/// Largest thumbnail that another server may send, in bytes.
const THUMBNAIL_BYTES_MAX: u64 = 8 << 20;
/// For how long it is remembered that a file could not be had: for most reasons, and where it was too large.
const FAILURE_PAUSE: Duration = Duration::from_secs(30);
const TOO_LARGE_PAUSE: Duration = Duration::from_secs(600);
const LIMIT_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How many such files are remembered, how many servers that could not be reached, and how many askers.
const FAILURES_MAX: usize = 4096;
const PEERS_MAX: usize = 1024;
const ASKERS_MAX: usize = 4096;
/// Pauses after a server could not be reached.
const PEER_BACKOFF: Backoff = Backoff::doubling(5_000, 120_000);
/// When who found no slot should come again.
const RETRY_AFTER_MS: u64 = 3_000;

/// What is being fetched, and what could not be.
pub struct MediaFetches {
    /// Before the others, since in their lines is room for all of these: nobody fills one alone, by however many servers.
    requests: FairSlots<AskerId>,
    asks: FairSlots<AskerId>,
    asks_of_server: FairSlots<(AskerId, ServerName)>,
    fetches: FairSlots<ServerName>,
    busy: KeyedLock<MxcUri>,
    failures: Mutex<BoundedMap<MxcUri, RememberedFailure, FAILURES_MAX>>,
    peers: Mutex<BoundedMap<ServerName, PeerPause, PEERS_MAX>>,
    spent: Mutex<BoundedMap<AskerId, SpentBytes, ASKERS_MAX>>,
    rate: FetchRate,
}

/// Why a file could not be had, as whoever asks again is told.
struct RememberedFailure {
    errcode: ErrCode,
    status: u16,
    message: String,
    until: Instant,
}

#[derive(Default)]
struct PeerPause {
    failures: u32,
    until: Option<Instant>,
}

/// How much was fetched for somebody, less what an hour gives back by and by.
struct SpentBytes {
    bytes: u64,
    at: Instant,
}

/// Somebody's turn to ask a server for something.
struct Ask {
    _of_asker: FairSlot<AskerId>,
    _of_server: FairSlot<(AskerId, ServerName)>,
    _request: FairSlot<AskerId>,
}

/// Which form of a file is wanted of its server.
#[derive(Clone, Copy)]
enum WantedForm {
    File,
    Thumbnail(ThumbnailQuery),
}

impl Default for MediaFetches {
    fn default() -> Self {
        Self {
            requests: FairSlots::with_line(
                REQUESTS_MAX,
                REQUESTS_PER_ASKER_MAX,
                REQUESTS_MAX,
                REQUESTS_IN_LINE_PER_ASKER_MAX,
            ),
            asks: FairSlots::with_line(ASKS_MAX, ASKS_PER_ASKER_MAX, REQUESTS_MAX, REQUESTS_MAX),
            asks_of_server: FairSlots::with_line(
                REQUESTS_MAX,
                ASKS_PER_ASKER_AND_SERVER_MAX,
                REQUESTS_MAX,
                REQUESTS_MAX,
            ),
            fetches: FairSlots::new(FETCHES_MAX, FETCHES_PER_SERVER_MAX),
            busy: KeyedLock::default(),
            failures: Mutex::default(),
            peers: Mutex::default(),
            spent: Mutex::default(),
            rate: FetchRate::default(),
        }
    }
}

impl Media<'_> {
    /// A file of another server: what is here of it, or else fetched now. Its upload is waited for until then, if it is to
    /// be uploaded. Errors: 404 `M_NOT_FOUND`; 504 `M_NOT_YET_UPLOADED`; 502 `M_TOO_LARGE`; 502 and 504 `M_UNKNOWN` for what
    /// the other server gives instead of it; 429 `M_LIMIT_EXCEEDED` for who has much fetched.
    pub fn fetch(&self, uri: &MxcUri, asker: &Asker, until: Instant) -> Result<MediaFile> {
        self.fetch_form(uri, WantedForm::File, asker, until)
    }

    /// A thumbnail of a file of another server that is too large to be fetched. Errors: those of [`Media::fetch`].
    pub fn fetch_thumbnail(
        &self,
        uri: &MxcUri,
        wanted: ThumbnailQuery,
        asker: &Asker,
        until: Instant,
    ) -> Result<MediaFile> {
        self.fetch_form(uri, WantedForm::Thumbnail(wanted), asker, until)
    }

    fn fetch_form(&self, uri: &MxcUri, form: WantedForm, asker: &Asker, until: Instant) -> Result<MediaFile> {
        if self.is_own(uri) {
            return self.open(uri);
        }
        // What is kept of it has a name of its own.
        let kept_as = match form {
            WantedForm::File => uri.clone(),
            WantedForm::Thumbnail(ThumbnailQuery { width, height, method, animated }) => {
                // Nobody is given the thumbnail of what nobody is given.
                self.find(uri)?;
                let moves = if animated { "moving" } else { "still" };
                let media_id = uri.media_id.with_suffix(&format!("{width}x{height}.{method}.{moves}"));
                MxcUri { media_id, ..uri.clone() }
            }
        };
        if let FoundMedia::Here(found) = self.find(&kept_as)? {
            return Ok(*found);
        }
        let fetches = &self.media_fetches;
        fetches.check(&kept_as)?;
        let in_line = Instant::now() + SLOT_TIMEOUT;
        let wanted = || !asker.is_gone();
        let _ask = fetches.line_up(asker, &uri.server, in_line).ok_or_else(too_many)?;
        let same = Instant::now() + SAME_FILE_TIMEOUT;
        let _only = fetches.busy.lock_until(kept_as.clone(), same).ok_or_else(under_way)?;
        // Whoever had the lock before has fetched it, or found out that it cannot be had.
        if let FoundMedia::Here(found) = self.find(&kept_as)? {
            return Ok(*found);
        }
        fetches.check(&kept_as)?;
        let budget = self.bytes_an_hour();
        fetches.check_budget(asker.who(), budget)?;
        fetches.rate.count(&uri.server, asker.who(), Instant::now())?;
        let in_line = Instant::now() + SLOT_TIMEOUT;
        let slot = fetches.fetches.take(&uri.server, in_line, wanted).ok_or_else(too_many)?;
        let came = self.bring(uri, &kept_as, form, asker, until);
        drop(slot);
        fetches.spend(asker.who(), came.bytes.max(COUNTED_BYTES_MIN), budget);
        match came.outcome {
            Ok(file) => {
                lock(&fetches.peers).remove(&uri.server);
                Ok(file)
            }
            Err(FetchFailure::Ours(error)) => Err(error),
            Err(FetchFailure::Theirs(error)) => {
                log::info!("{kept_as} could not be fetched: {error}");
                Err(fetches.note(&kept_as, error))
            }
        }
    }

    /// Asks the other server, and puts what comes where it belongs.
    fn bring(
        &self,
        uri: &MxcUri,
        kept_as: &MxcUri,
        form: WantedForm,
        asker: &Asker,
        until: Instant,
    ) -> BroughtMedia {
        let deadline = Instant::now() + FETCH_TIMEOUT;
        let bytes_max = match form {
            WantedForm::File => self.config.media_max_upload,
            WantedForm::Thumbnail(_) => THUMBNAIL_BYTES_MAX.min(self.config.media_max_upload),
        };
        let media = match self.ask_peer(uri, form, asker, (until, deadline), bytes_max) {
            Ok(media) => media,
            Err(error) => return BroughtMedia { bytes: 0, outcome: Err(FetchFailure::Theirs(error)) },
        };
        let began = Instant::now();
        let mut incoming =
            IncomingMedia { media, fetches: &self.media_fetches, began, bytes: 0, is_slow: false };
        let stored = self.store_stream(&mut incoming, bytes_max);
        let IncomingMedia { mut media, bytes, is_slow, .. } = incoming;
        let outcome = match stored {
            Ok(blob) => {
                let (content_type, name) = (media.content_type.as_deref(), media.name.as_deref());
                self.insert_remote(kept_as, blob, content_type, name).map_err(FetchFailure::Ours)
            }
            Err(_) if is_slow => Err(FetchFailure::Theirs(
                CallError::Unreachable("it sends too slowly".into()).after_success(),
            )),
            Err(error) => Err(match media.take_failure() {
                Some(failure) => FetchFailure::Theirs(failure),
                None => FetchFailure::Ours(error),
            }),
        };
        BroughtMedia { bytes, outcome }
    }

    /// Asks until the file was uploaded, somebody has waited long enough, or nobody waits any more.
    fn ask_peer(
        &self,
        uri: &MxcUri,
        form: WantedForm,
        asker: &Asker,
        (until, deadline): (Instant, Instant),
        max_bytes: u64,
    ) -> CallResult<PeerMedia> {
        loop {
            let left = |until: Instant| until.saturating_duration_since(Instant::now());
            let request = MediaRequest {
                peer: &uri.server,
                media_id: uri.media_id.as_str(),
                upload_wait: left(until),
                within: left(deadline),
                max_bytes,
            };
            let asked = match form {
                WantedForm::File => self.federation.download_media(request),
                WantedForm::Thumbnail(wanted) => self.federation.media_thumbnail(request, wanted),
            };
            let is_pending = asked.as_ref().is_err_and(is_not_yet_uploaded);
            let goes_on = is_pending && left(until) > UPLOAD_PAUSE && !asker.is_gone();
            if !goes_on || !self.request_permits.rest(UPLOAD_PAUSE) {
                return asked;
            }
        }
    }

    /// What one asker may have fetched in an hour.
    pub(super) fn bytes_an_hour(&self) -> u64 {
        let least = self.config.media_max_upload.saturating_mul(LARGEST_FILES_AN_HOUR_MIN);
        (self.config.media_cache_bytes / CACHE_PART).max(least).min(BYTES_AN_HOUR_MAX.max(least))
    }
}

/// What a fetch brought, and how many bytes that was, whatever became of them.
struct BroughtMedia {
    bytes: u64,
    outcome: Result<MediaFile, FetchFailure>,
}

enum FetchFailure {
    Ours(Error),
    Theirs(CallError),
}

/// A file on its way from another server to the disk.
struct IncomingMedia<'f> {
    media: PeerMedia,
    fetches: &'f MediaFetches,
    began: Instant,
    bytes: u64,
    is_slow: bool,
}

impl Read for IncomingMedia<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rate = if self.fetches.fetches.is_crowded() { CROWDED_RATE_MIN } else { RATE_MIN };
        if !keeps_up(self.began.elapsed(), self.bytes, rate) {
            self.is_slow = true;
            return Err(io::ErrorKind::TimedOut.into());
        }
        let count = self.media.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Whether so many bytes in this time are enough.
pub(super) fn keeps_up(elapsed: Duration, bytes: u64, rate: u64) -> bool {
    let counted = elapsed.saturating_sub(RATE_GRACE).as_secs();
    bytes >= counted.saturating_mul(rate)
}

fn is_not_yet_uploaded(error: &CallError) -> bool {
    error.errcode() == Some(ErrCode::NotYetUploaded)
}

fn too_many() -> Error {
    let error = Error::new(ErrCode::LimitExceeded, "Too many files are being fetched from other servers");
    error.with_field("retry_after_ms", RETRY_AFTER_MS)
}

fn under_way() -> Error {
    let error = Error::new(ErrCode::LimitExceeded, "This file is being fetched, ask again in a moment");
    error.with_field("retry_after_ms", RETRY_AFTER_MS)
}

impl MediaFetches {
    /// Waits until it is the asker's turn to ask this server for something. None: it did not come in time, or too many wait.
    fn line_up(&self, asker: &Asker, server: &ServerName, until: Instant) -> Option<Ask> {
        let wanted = || !asker.is_gone();
        let request = self.requests.take(asker.who(), until, wanted)?;
        let of_server = self.asks_of_server.take(&(asker.who().clone(), server.clone()), until, wanted)?;
        let of_asker = self.asks.take(asker.who(), until, wanted)?;
        Some(Ask { _of_asker: of_asker, _of_server: of_server, _request: request })
    }

    /// Errors: those of the last attempt to have this, or to reach its server, if that was not long ago.
    fn check(&self, uri: &MxcUri) -> Result<()> {
        let now = Instant::now();
        if let Some(failed) = lock(&self.failures).get(uri).filter(|failed| failed.until > now) {
            return Err(failed.told());
        }
        let pauses =
            lock(&self.peers).get(&uri.server).is_some_and(|peer| peer.until.is_some_and(|at| at > now));
        if pauses {
            let silent = CallError::Unreachable("it was not a moment ago".into());
            return Err(silent.into_client_error(&uri.server));
        }
        Ok(())
    }

    /// Remembers why something could not be had; what whoever asked for it is told.
    fn note(&self, uri: &MxcUri, error: CallError) -> Error {
        if error.is_unreachable() && !error.is_after_success() {
            let mut peers = lock(&self.peers);
            let peer = peers.get_or_default(uri.server.clone(), |_| Worth::Little);
            peer.failures = peer.failures.saturating_add(1);
            peer.until = Some(Instant::now() + PEER_BACKOFF.pause(peer.failures));
            return error.into_client_error(&uri.server);
        }
        lock(&self.peers).remove(&uri.server);
        let Some((told, pause)) = told_of(error, &uri.server) else { return not_yet_uploaded() };
        let until = Instant::now() + pause;
        let message = told.message().to_owned();
        let failed = RememberedFailure { errcode: told.errcode(), status: told.status(), message, until };
        lock(&self.failures).insert(uri.clone(), failed, |failed| {
            if failed.until <= Instant::now() { Worth::Nothing } else { Worth::Little }
        });
        told
    }

    /// Errors: 429 `M_LIMIT_EXCEEDED` for who has had enough fetched.
    pub(super) fn check_budget(&self, who: &AskerId, budget: u64) -> Result<()> {
        let spent = lock(&self.spent).get(who).map_or(0, |spent| spent.left(budget));
        if spent <= budget {
            return Ok(());
        }
        let seconds = u128::from(spent - budget) * u128::from(HOUR_SECONDS) / u128::from(budget.max(1)) + 1;
        let error = Error::new(ErrCode::LimitExceeded, "You have had much fetched from other servers");
        let wait = u64::try_from(seconds).unwrap_or(HOUR_SECONDS).min(HOUR_SECONDS);
        Err(error.with_field("retry_after_ms", wait * 1000))
    }

    /// Counts what was fetched for somebody.
    pub(super) fn spend(&self, who: &AskerId, bytes: u64, budget: u64) {
        let mut all = lock(&self.spent);
        let spent = all.get(who).map_or(0, |spent| spent.left(budget));
        let new = SpentBytes { bytes: spent.saturating_add(bytes), at: Instant::now() };
        all.insert(who.clone(), new, |spent| match spent.left(budget) {
            0 => Worth::Nothing,
            left if left < budget => Worth::Little,
            _ => Worth::More,
        });
    }
}

impl SpentBytes {
    /// What of it counts now, if an hour gives so much back.
    fn left(&self, an_hour: u64) -> u64 {
        let given = u128::from(an_hour) * self.at.elapsed().as_millis() / u128::from(HOUR_SECONDS * 1000);
        self.bytes.saturating_sub(u64::try_from(given).unwrap_or(u64::MAX))
    }
}

impl RememberedFailure {
    fn told(&self) -> Error {
        let error = Error::new(self.errcode, self.message.clone()).with_status(self.status);
        match self.errcode {
            ErrCode::LimitExceeded => {
                let left = self.until.saturating_duration_since(Instant::now()).as_millis();
                error.with_field("retry_after_ms", u64::try_from(left).unwrap_or(RETRY_AFTER_MS))
            }
            _ => error,
        }
    }
}

/// What a failure means to whoever asked, in our own words, and for how long it is worth remembering. None: that the file
/// is to be uploaded yet.
fn told_of(error: CallError, peer: &ServerName) -> Option<(Error, Duration)> {
    if is_not_yet_uploaded(&error) {
        return None;
    }
    if let Some(limit) = error.as_limit(peer) {
        let pause = error.retry_after().unwrap_or(FAILURE_PAUSE).min(LIMIT_PAUSE_MAX);
        return Some((limit, pause));
    }
    let Some(refusal) = error.refusal() else {
        let pause = if matches!(error, CallError::TooLarge(_)) { TOO_LARGE_PAUSE } else { FAILURE_PAUSE };
        return Some((error.into_client_error(peer), pause));
    };
    let is_too_large = refusal.status == 413 || error.errcode() == Some(ErrCode::TooLarge);
    Some(match refusal.status {
        _ if is_too_large => {
            let told =
                Error::new(ErrCode::TooLarge, format!("{peer} says that this is too large to be served"));
            (told.with_status(502), TOO_LARGE_PAUSE)
        }
        404 => (no_such_media(), FAILURE_PAUSE),
        status => {
            let errcode = refusal.errcode.as_deref().unwrap_or("no errcode");
            let cause = format!("{status} {errcode}: {}", refusal.message);
            let told = Error::bad_gateway(format!("{peer} does not give this file to this server"));
            (told.with_cause(cause), FAILURE_PAUSE)
        }
    })
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
