//! The certificate of the HTTPS listeners, got from an authority that speaks ACME (RFC 8555) and renewed in time, where
//! `--acme` is set. One thread sleeps until it is due; nothing waits for it, neither a start nor a request. Until there is a
//! certificate the listeners serve one that signs itself: whoever connects sees what is the matter, and the authority can
//! look for its proof there.
//!
//! Here: when it is due, and what follows a failure; `order`: from an order to a certificate; `files`: what is kept in the data
//! folder.

mod files;
mod order;

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use self::files::AcmeFolder;
use crate::backoff::Backoff;
use crate::clock::{Clock, Millis};
use crate::config::{AcmeSettings, Config, Data};
use crate::error::Result;
use crate::federation::acme::{AccountKey, AcmeAnswer, AcmeError, AcmeResult, AcmeServer, ExternalAccount};
use crate::locks::{lock, wait_timeout};
use crate::protocol::certificates::CertificateFacts;
use crate::protocol::certificates::acme::{ChallengeKind, suggested_window};
use crate::protocol::certificates::calendar::utc;
use crate::random;
use crate::served_certificate::{CheckedCertificate, ServedCertificate};
use crate::service::Homeserver;

/// After a failure. Let's Encrypt lets five proofs fail within an hour, and what is wrong is mostly for the operator to mend.
const FAILURE_BACKOFF: Backoff = Backoff { first_ms: 2 * 60_000, factor: 3, longest_ms: 12 * 3_600_000 };
/// However long an authority wants to be left alone, it is asked again after this time.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// However short a certificate's life, there is a pause between two.
const BETWEEN_CERTIFICATES_MIN_MS: Millis = 10_000;
/// How often the authority is asked whether a certificate should be renewed early (RFC 9773, 4.3): as it says, within these.
const RENEWAL_INFO_MIN_MS: Millis = 3_600_000;
const RENEWAL_INFO_MAX_MS: Millis = 24 * 3_600_000;
/// How often the clock is looked at while nothing is due.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);

/// The certificate that the server of a data folder has got, if there is one. Errors: it cannot be read, or is of no use.
pub fn kept_certificate(data: &Path) -> Result<Option<CheckedCertificate>> {
    AcmeFolder::new(data).certificate()
}

/// What proves names, and the thread. Does nothing unless it is started.
#[derive(Default)]
pub struct Acme {
    shared: Arc<AcmeShared>,
}

#[derive(Default)]
struct AcmeShared {
    state: Mutex<AcmeState>,
    moved: Condvar,
    /// What the listeners serve, once they do.
    served: OnceLock<Arc<ServedCertificate>>,
}

#[derive(Default)]
struct AcmeState {
    stop: bool,
    /// The operator wants a try now.
    hurry: bool,
    /// The pages that prove names (HTTP-01), by their tokens.
    pages: HashMap<String, String>,
    /// The authority that is being spoken to.
    server: Option<Arc<AcmeServer>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Acme {
    /// What the listeners are to serve: the certificate that is kept, or one that signs itself. None: `--acme` is not set.
    pub fn certificate(&self, config: &Config) -> Result<Option<Arc<ServedCertificate>>> {
        let (true, Data::Folder(data)) = (config.acme.is_on, &config.data) else { return Ok(None) };
        if let Some(served) = self.shared.served.get() {
            return Ok(Some(served.clone()));
        }
        let kept = AcmeFolder::new(data).certificate().unwrap_or_else(|e| {
            log::error!("the certificate that was kept cannot be used, another is got: {e}");
            None
        });
        let first = match kept {
            Some(kept) => kept,
            None => CheckedCertificate::signed_by_itself(&config.acme.names)?,
        };
        Ok(Some(self.shared.served.get_or_init(|| Arc::new(ServedCertificate::new(first))).clone()))
    }

    /// The page that proves a name to an authority that asks for it by this token (RFC 8555, 8.3).
    pub fn page(&self, token: &str) -> Option<String> {
        lock(&self.shared.state).pages.get(token).cloned()
    }

    /// Tries again at once what has failed, unless the authority said when: the operator may have mended what was wrong.
    pub fn hurry(&self) {
        lock(&self.shared.state).hurry = true;
        self.shared.moved.notify_all();
    }

    /// Begins to see to the certificate, if the listeners serve one of its.
    pub(super) fn start(&self, hs: &Homeserver) -> Result<()> {
        let (Some(served), Data::Folder(data)) = (self.shared.served.get(), &hs.config.data) else {
            return Ok(());
        };
        let settings = hs.config.acme.clone();
        // What is wrong with the settings is said now, and not to the log tonight.
        AcmeServer::new(&settings.directory, &settings.trust_ca, hs.clock.clone())?;
        let customer = settings.external_account.as_ref();
        let customer = customer.map(|(id, file)| ExternalAccount::read(id, file)).transpose()?;
        let worker = Worker {
            customer,
            kinds: challenge_kinds(&hs.config),
            settings,
            clock: hs.clock.clone(),
            shared: self.shared.clone(),
            served: served.clone(),
            folder: AcmeFolder::new(data),
            failures: 0,
            failed_proofs: Cell::new(0),
        };
        let thread = thread::Builder::new().name("acme".to_owned()).spawn(move || worker.run())?;
        lock(&self.shared.state).thread = Some(thread);
        Ok(())
    }

    /// Ends it: what it had left to do is begun again with the next start.
    pub(super) fn stop(&self) {
        let (thread, server) = {
            let mut state = lock(&self.shared.state);
            state.stop = true;
            (state.thread.take(), state.server.take())
        };
        self.shared.moved.notify_all();
        server.into_iter().for_each(|server| server.shutdown());
        thread.into_iter().for_each(|thread| drop(thread.join()));
    }

    /// The clock was moved.
    pub(super) fn wake(&self) {
        // So that nobody is between looking at the clock and waiting.
        drop(lock(&self.shared.state));
        self.shared.moved.notify_all();
    }
}

impl AcmeShared {
    /// Waits so long at most. False: it is to stop.
    fn rest(&self, how_long: Duration) -> bool {
        let until = Instant::now() + how_long;
        let mut state = lock(&self.state);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.stop || left.is_zero() {
                return !state.stop;
            }
            state = wait_timeout(&self.moved, state, left);
        }
    }

    /// Waits until a time of the wall clock, or until somebody is in a hurry and may be. False: it is to stop.
    fn rest_until(&self, clock: &Clock, due: &Due) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.stop {
                return false;
            }
            let hurry = std::mem::take(&mut state.hurry) && due.may_hurry;
            let left = due.at.min(due.ask_at).saturating_sub(clock.now_ms());
            let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
            let left = due.latest.map_or(left, |at| left.min(at.saturating_duration_since(Instant::now())));
            if left.is_zero() || hurry {
                return true;
            }
            state = wait_timeout(&self.moved, state, left.min(CLOCK_INTERVAL));
        }
    }
}

/// When a certificate is to be got.
struct Due {
    at: Millis,
    /// Whether it may be done before if the operator wants it.
    may_hurry: bool,
    /// When the authority is asked whether it should be done before.
    ask_at: Millis,
    /// When at the latest, wherever the clock was set meanwhile: one that was ahead, and was put right once something had
    /// failed for that very reason, would have us wait until it is there again.
    latest: Option<Instant>,
}

impl Due {
    fn at(at: Millis, may_hurry: bool) -> Self {
        Self { at, may_hurry, ask_at: Millis::MAX, latest: None }
    }
}

/// In which order names are proven. By TLS on port 443 if that is ours, which needs no plain listener; or else by a page on
/// port 80. Where neither port is, something in front of this server leads here, and who knows which: then both, in turn.
fn challenge_kinds(config: &Config) -> Vec<ChallengeKind> {
    use ChallengeKind::{Http, TlsAlpn};
    let has = |addresses: &[std::net::SocketAddr], port| addresses.iter().any(|a| a.port() == port);
    match (has(&config.listen_tls, 443), has(&config.listen, 80)) {
        (false, true) => vec![Http, TlsAlpn],
        _ if config.listen.is_empty() => vec![TlsAlpn],
        _ => vec![TlsAlpn, Http],
    }
}

/// What it gives, or that it panicked.
fn caught<T>(attempt: impl FnOnce() -> AcmeResult<T>) -> AcmeResult<T> {
    let attempt = catch_unwind(AssertUnwindSafe(attempt));
    attempt.unwrap_or_else(|_| Err(AcmeError::new("something of ours is broken")))
}

/// What the thread has.
struct Worker {
    customer: Option<ExternalAccount>,
    settings: AcmeSettings,
    kinds: Vec<ChallengeKind>,
    clock: Clock,
    shared: Arc<AcmeShared>,
    served: Arc<ServedCertificate>,
    folder: AcmeFolder,
    /// In a row.
    failures: u32,
    /// How many proofs have failed: each time the next way is tried.
    failed_proofs: Cell<usize>,
}

impl Worker {
    fn run(mut self) {
        let mut due = self.first_due();
        while self.shared.rest_until(&self.clock, &due) {
            if due.ask_at < due.at && self.clock.now_ms() < due.at {
                let asked = caught(|| self.ask_for_renewal_info());
                self.end_proofs();
                self.heed(asked, &mut due);
                continue;
            }
            let began = self.clock.now_ms();
            log::info!(
                "{} is asked for a certificate for {}",
                self.settings.directory,
                self.settings.names.join(", ")
            );
            let attempt = caught(|| self.attempt());
            self.end_proofs();
            if lock(&self.shared.state).stop {
                return;
            }
            due = match attempt {
                Ok(facts) => {
                    self.failures = 0;
                    // Not at once, however old it was when it was made.
                    let left = facts.not_after.saturating_sub(began);
                    self.due_by(&facts, began, began.saturating_add(left / 3))
                }
                Err(e) => self.due_after(&e),
            };
        }
    }

    /// At once if there is no certificate that is for these names.
    fn first_due(&self) -> Due {
        // Who was told to wait does so across a restart.
        let wait = self.folder.wait(&self.settings.directory).min(self.wait_until_max());
        match self.folder.certificate() {
            Ok(Some(kept)) if kept.is_for(&self.settings.names) => {
                self.due_by(&kept.facts, self.clock.now_ms(), wait)
            }
            _ => Due::at(wait, false),
        }
    }

    /// `since`: when it was begun to get it, or when it was found.
    fn due_by(&self, facts: &CertificateFacts, since: Millis, not_before: Millis) -> Due {
        let [chance] = random::bytes::<1>();
        let soonest = since.saturating_add(BETWEEN_CERTIFICATES_MIN_MS);
        let at = facts.renewal(chance).max(not_before).max(soonest);
        log::info!(
            "the certificate for {} is good until {}; another is got at {}",
            self.settings.names.join(", "),
            utc(facts.not_after),
            utc(at)
        );
        let ask_at = match facts.renewal_id {
            Some(_) => since.saturating_add(RENEWAL_INFO_MIN_MS),
            None => Millis::MAX,
        };
        Due { ask_at, ..Due::at(at, false) }
    }

    /// What the authority suggests for the certificate that is kept, and when to ask again. None: it suggests nothing.
    fn ask_for_renewal_info(&self) -> AcmeResult<Option<AcmeAnswer>> {
        let kept = self.folder.certificate()?.and_then(|kept| kept.facts.renewal_id);
        let Some(id) = kept else { return Ok(None) };
        let key = AccountKey::read(&self.folder.account_key()?)?;
        self.reach_server()?.connect(&key)?.renewal_info(&id)
    }

    /// Renews at some time within the window that is suggested, if that is before the certificate's own time.
    fn heed(&self, asked: AcmeResult<Option<AcmeAnswer>>, due: &mut Due) {
        let now = self.clock.now_ms();
        let answer = asked.unwrap_or_else(|e| {
            log::debug!("{} says nothing of when to renew: {}", self.settings.directory, e.what);
            None
        });
        let pause = answer.as_ref().and_then(|answer| answer.retry_after).unwrap_or(RETRY_AFTER_MAX);
        let pause = Millis::try_from(pause.as_millis()).unwrap_or(Millis::MAX);
        due.ask_at = now.saturating_add(pause.clamp(RENEWAL_INFO_MIN_MS, RENEWAL_INFO_MAX_MS));
        let Some((start, end)) = answer.and_then(|answer| suggested_window(&answer.object)) else { return };
        let [chance] = random::bytes::<1>();
        let at = start.saturating_add(end.saturating_sub(start) / 255 * Millis::from(chance));
        if at < due.at {
            log::info!("{} suggests to renew the certificate at {}", self.settings.directory, utc(at));
            due.at = at;
        }
    }

    /// The authority, with whoever stops this server able to cut it off.
    fn reach_server(&self) -> AcmeResult<Arc<AcmeServer>> {
        let AcmeSettings { directory, trust_ca, .. } = &self.settings;
        let server = Arc::new(AcmeServer::new(directory, trust_ca, self.clock.clone())?);
        let mut state = lock(&self.shared.state);
        if state.stop {
            return Err(AcmeError::new("this server stops"));
        }
        state.server = Some(server.clone());
        Ok(server)
    }

    fn due_after(&mut self, e: &AcmeError) -> Due {
        self.failures = self.failures.saturating_add(1);
        let [chance] = random::bytes::<1>();
        let asked = e.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        let asked = Millis::try_from(asked.as_millis()).unwrap_or(Millis::MAX);
        let wait = FAILURE_BACKOFF.spread_ms(self.failures, chance).max(asked);
        let at = self.clock.now_ms().saturating_add(wait);
        log::warn!(
            "no certificate for {} from {}: {}. The next try is at {}",
            self.settings.names.join(", "),
            self.settings.directory,
            e.what,
            utc(at)
        );
        if asked > 0
            && let Err(e) = self.folder.keep_wait(&self.settings.directory, at)
        {
            log::warn!("a restart will forget to wait: {e}");
        }
        let latest = Instant::now().checked_add(Duration::from_millis(wait.unsigned_abs()));
        Due { latest, ..Due::at(at, asked == 0) }
    }

    /// No wait is longer.
    fn wait_until_max(&self) -> Millis {
        let longest = Millis::try_from(RETRY_AFTER_MAX.as_millis()).unwrap_or(Millis::MAX);
        self.clock.now_ms().saturating_add(longest)
    }

    /// Takes away what proves names.
    fn end_proofs(&self) {
        self.served.end_proofs();
        let mut state = lock(&self.shared.state);
        state.pages = HashMap::new();
        state.server = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_after_a_failure_makes_nobody_wait_until_it_is_there_again() {
        let (shared, clock) = (Arc::new(AcmeShared::default()), Clock::new());
        // It was ten years ahead when the try failed.
        let at = clock.now_ms() + 10 * 365 * 24 * 3_600_000;
        let latest = Some(Instant::now() + Duration::from_millis(50));
        assert!(shared.rest_until(&clock, &Due { latest, ..Due::at(at, false) }));
        // What is due by the dates of a certificate waits for these.
        let waiting = shared.clone();
        let waits = thread::spawn(move || waiting.rest_until(&clock, &Due::at(at, false)));
        lock(&shared.state).stop = true;
        shared.moved.notify_all();
        assert!(!waits.join().unwrap());
    }
}
