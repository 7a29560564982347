//! Previews of links ("GET /_matrix/client/v1/media/preview_url"): the page is fetched by this server, so that its users need not. Off unless the
//! setting `--url-previews` says otherwise: whoever links to a page has this server ask for it.
//!
//! - here: who may, how often, what is remembered, and the picture of a page, which becomes media of ours that can be had again.
//! - `page`: what a page says of itself; `elements`: where it says it. - `encoding`: its letters. The fetching, hop by hop: `federation/web_pages.rs`.
//!
//! A page is fetched once at a time and remembered by its address without the fragment: for a day, failures for an hour. A user has
//! a share of the few fetches that are under way at once, and of what is fetched in an hour. What the client says of time (`ts`) is not looked at: there is the newest version
//! or the one that is remembered.

mod elements;
mod encoding;
mod page;

pub use self::page::PagePreview;

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::Media;
use super::fetch::COUNTED_BYTES_MIN;
use super::thumbnail;
use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::error::{ErrCode, Error, Result};
use crate::federation::web_pages::{WebAnswer, WebRequest};
use crate::locks::{KeyedLock, lock};
use crate::protocol::UserId;
use crate::protocol::media::web_url::WebUrl;
use crate::service::limits::fair_slots::{FairSlot, FairSlots};
use crate::service::limits::request_permits::AskerId;

/// Time for a page and its picture, redirects and all.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long who asks waits for others who are before them.
const SLOT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pages that are fetched at once: in all, and for one user.
const FETCHES_MAX: usize = 8;
const FETCHES_PER_USER_MAX: usize = 2;
/// Previews that are waited for: in all, and by one user. A message has a few links.
const REQUESTS_MAX: usize = 256;
const REQUESTS_PER_USER_MAX: usize = 24;
/// So much of a page is read: large ones have what is looked for late.
const PAGE_BYTES_MAX: u64 = 768 << 10;
/// The largest picture that is kept.
const IMAGE_BYTES_MAX: u64 = 10 << 20;
/// How long a preview is remembered, and that there was none.
const PREVIEW_MS: Millis = 24 * 3_600_000;
const FAILURE_MS: Millis = 3_600_000;
/// Previews that are remembered. Each is a few kilobytes.
const PREVIEWS_MAX: usize = 2_000;
/// When who found no slot should come again.
const RETRY_AFTER_MS: i64 = 5_000;

/// What is remembered of previews, and who fetches.
pub struct UrlPreviews {
    known: Mutex<BoundedMap<String, KnownPreview, PREVIEWS_MAX>>,
    under_way: KeyedLock<String>,
    requests: FairSlots<UserId>,
    slots: FairSlots<UserId>,
}

impl Default for UrlPreviews {
    fn default() -> Self {
        let slots = FairSlots::new(FETCHES_MAX, FETCHES_PER_USER_MAX);
        let requests = FairSlots::new(REQUESTS_MAX, REQUESTS_PER_USER_MAX);
        Self { known: Mutex::default(), under_way: KeyedLock::default(), requests, slots }
    }
}

struct KnownPreview {
    until: Steady,
    /// None: the page could not be had.
    preview: Option<Arc<Map<String, Value>>>,
}

impl Media<'_> {
    /// What a page says of itself: `og:` keys, `og:image` as an `mxc://` URI with `matrix:image:size`. Empty for what is neither a page
    /// nor a picture. Errors: 403 `M_FORBIDDEN` if previews are off; 400 `M_INVALID_PARAM` for what is no address of the web;
    /// 429; 502 `M_UNKNOWN` for what could not be had, which is remembered.
    pub fn url_preview(&self, user: &UserId, url: &str) -> Result<Arc<Map<String, Value>>> {
        if !self.config.url_previews {
            return Err(Error::forbidden("This server makes no previews of links"));
        }
        let url =
            WebUrl::parse(url).ok_or_else(|| Error::invalid_param("url: not an address of a web page"))?;
        let key = url.to_string();
        if let Some(known) = self.known_preview(&key) {
            return known.ok_or_else(no_preview);
        }
        // Each keeps a thread, whatever it waits for.
        let _request = self.url_previews.requests.take(user, Instant::now(), || true).ok_or_else(busy)?;
        let until = Instant::now() + SLOT_TIMEOUT;
        let _under_way = self.url_previews.under_way.lock_until(key.clone(), until).ok_or_else(busy)?;
        if let Some(known) = self.known_preview(&key) {
            return known.ok_or_else(no_preview);
        }
        let _slot: FairSlot<UserId> = self.url_previews.slots.take(user, until, || true).ok_or_else(busy)?;
        // Pictures of pages and files of other servers are in one cache, which nobody empties alone.
        let (asker, budget) = (AskerId::User(user.clone()), self.bytes_an_hour());
        self.media_fetches.check_budget(&asker, budget)?;
        let mut bytes = 0;
        let made = self.fetch_preview(&url, &mut bytes);
        self.media_fetches.spend(&asker, bytes.max(COUNTED_BYTES_MIN), budget);
        if let Err(e) = &made {
            log::debug!("no preview of {key}: {e}");
        }
        let preview = made.ok().map(Arc::new);
        let now = self.clock.steady();
        let until = now + if preview.is_some() { PREVIEW_MS } else { FAILURE_MS };
        let known = KnownPreview { until, preview: preview.clone() };
        let worth = |known: &KnownPreview| match known {
            known if known.until <= now => Worth::Nothing,
            KnownPreview { preview: None, .. } => Worth::Little,
            _ => Worth::More,
        };
        lock(&self.url_previews.known).insert(key, known, worth);
        preview.ok_or_else(no_preview)
    }

    fn known_preview(&self, key: &str) -> Option<Option<Arc<Map<String, Value>>>> {
        let now = self.clock.steady();
        let known = lock(&self.url_previews.known);
        known.get(key).filter(|known| known.until > now).map(|known| known.preview.clone())
    }

    /// Makes a preview; `came` is how many bytes of pictures came for it, whatever became of them.
    fn fetch_preview(&self, url: &WebUrl, came: &mut u64) -> Result<Map<String, Value>> {
        let until = Instant::now() + FETCH_TIMEOUT;
        let mut answer =
            self.get(url, "text/html, application/xhtml+xml, image/*;q=0.8, */*;q=0.1", until)?;
        let content_type = answer.content_type.clone().unwrap_or_default();
        let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind.starts_with("image/") {
            let mut preview = Map::new();
            self.put_image(&mut preview, answer, came)?;
            return Ok(preview);
        }
        if !matches!(kind.as_str(), "text/html" | "application/xhtml+xml") {
            return Ok(Map::new());
        }
        let mut bytes = Vec::new();
        let read = answer.by_ref().take(PAGE_BYTES_MAX).read_to_end(&mut bytes);
        // A page that breaks off has said what it is in its first lines.
        if let (Err(e), true) = (read, bytes.is_empty()) {
            return Err(Error::bad_gateway("The page broke off").with_cause(e));
        }
        let page_url = answer.url.clone();
        drop(answer);
        let PagePreview { said: mut preview, pictures } = read_page(&bytes, &content_type, &page_url);
        drop(bytes);
        for picture in pictures {
            let put = self
                .get(&picture, "image/*", until)
                .and_then(|answer| self.put_image(&mut preview, answer, came));
            match put {
                Ok(()) => break,
                Err(e) => log::debug!("a picture for the preview of {url} is none: {e}"),
            }
        }
        Ok(preview)
    }

    fn get(&self, url: &WebUrl, accept: &str, until: Instant) -> Result<WebAnswer> {
        let any_port = self.config.allow_private_addresses;
        let request = WebRequest { url, accept, until, any_port };
        self.federation
            .get_web(&request)
            .map_err(|e| Error::bad_gateway("The page could not be had").with_cause(e.to_string()))
    }

    /// Keeps a picture, and says so in the preview. Errors: it is none that we know, or too large.
    fn put_image(
        &self,
        preview: &mut Map<String, Value>,
        mut answer: WebAnswer,
        came: &mut u64,
    ) -> Result<()> {
        if answer.length.is_some_and(|length| length > IMAGE_BYTES_MAX) {
            return Err(Error::bad_gateway("The picture is too large"));
        }
        // All of it, until it is known how much that was.
        let before = *came;
        *came = before + IMAGE_BYTES_MAX;
        let stored = self.store_stream(&mut answer, IMAGE_BYTES_MAX)?;
        let bytes = stored.bytes;
        *came = before + bytes;
        let mut file = self.seekable(&stored.hash)?;
        // What it really is: nothing else is shown to anybody as a picture.
        let picture =
            thumbnail::look(&mut file).map_err(|e| Error::bad_gateway(format!("No picture: {e:?}")))?;
        let content_type = picture.format.content_type();
        let uri = self.new_uri()?;
        self.insert_remote(&uri, stored, Some(content_type), None)?;
        let (width, height) = picture.upright();
        preview.insert("og:image".into(), uri.to_string().into());
        preview.insert("og:image:type".into(), content_type.into());
        preview.insert("og:image:width".into(), width.into());
        preview.insert("og:image:height".into(), height.into());
        preview.insert("matrix:image:size".into(), bytes.into());
        Ok(())
    }
}

/// What a page from this address is shown as, without its picture.
pub fn read_page(bytes: &[u8], content_type: &str, from: &WebUrl) -> PagePreview {
    page::preview(&encoding::decode(bytes, encoding::charset_of(content_type).as_deref()), from)
}

/// The same whatever it was: else the answer would tell what there is in our own network.
fn no_preview() -> Error {
    Error::bad_gateway("There is no preview of this page")
}

fn busy() -> Error {
    Error::new(ErrCode::LimitExceeded, "Too many pages are being fetched")
        .with_field("retry_after_ms", RETRY_AFTER_MS)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::testing::TestServer;

    #[test]
    fn who_wants_the_same_preview_a_hundred_times_holds_a_few_threads() {
        let server = TestServer::start_with(|config| config.url_previews = true);
        let media = server.homeserver().media();
        let alice = UserId::parse("@alice:us.example").expect("a user id");
        let url = "http://page.invalid/";
        // Somebody fetches it, and that takes long.
        let fetching = server.homeserver().url_previews.under_way.try_lock(url.to_owned());
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..100 {
                let (tell, alice) = (tell.clone(), &alice);
                scope.spawn(move || {
                    tell.send(media.url_preview(alice, url).map(drop).map_err(|e| e.status()))
                });
            }
            let refused = (0..50).filter(|_| told.recv_timeout(SLOT_TIMEOUT / 2) == Ok(Err(429))).count();
            drop(fetching);
            assert_eq!(refused, 50);
        });
    }
}
