//! What services are asked: whether they are there, and whether there is a user or an alias that nobody has made yet ("Querying").

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Appservice;
use crate::bounded::{BoundedMap, Worth};
use crate::error::{ErrCode, Error, Result};
use crate::federation::appservices::{ServiceError, ServiceRequest};
use crate::federation::calls::enc;
use crate::locks::{KeyedLock, lock};
use crate::protocol::{RoomAlias, UserId};
use crate::service::Homeserver;
use crate::service::limits::fair_slots::{FairSlot, FairSlots};
use crate::service::limits::request_permits::{Asker, AskerId};

/// How long a service has for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a service has to make what it is asked for, or to say what it knows.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// So many questions are put to one service at a time for our users, for other servers and for who has no name: in all of a kind,
/// and for each. What strangers ask takes no place of our users'.
const USERS_MAX: usize = 4;
const USERS_PER_USER_MAX: usize = 2;
const STRANGERS_MAX: usize = 2;
const STRANGERS_PER_ASKER_MAX: usize = 1;
/// When who found no place should come again.
const RETRY_AFTER_MS: i64 = 5_000;
/// For so long it is believed that a service does not know a name, and that one that did not answer will not.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);
/// Of so many names that is remembered.
const UNKNOWN_MAX: usize = 1000;
/// Of what a service answers to a ping, so much is told.
const ECHOED_BYTES_MAX: usize = 4096;

/// Which service, and the name for which it is asked.
type Question = (String, String);

/// On whose behalf services are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AskerKind {
    User,
    Peer,
    Unnamed,
}

impl AskerKind {
    fn of(asker: &Asker) -> Self {
        match asker.who() {
            AskerId::User(_) => Self::User,
            AskerId::Peer(_) => Self::Peer,
            AskerId::Address(_) => Self::Unnamed,
        }
    }
}

/// Questions that are being put to services, and those that were in vain lately.
#[derive(Default)]
pub struct ServiceQueries {
    one_at_a_time: KeyedLock<Question>,
    /// What services said that they do not know.
    unknown: Mutex<BoundedMap<Question, Instant, UNKNOWN_MAX>>,
    services: Mutex<HashMap<(String, AskerKind), Arc<ServicePlaces>>>,
}

/// Questions to one service, of one kind of askers.
struct ServicePlaces {
    slots: FairSlots<AskerId>,
    /// It did not answer: it is left alone until then, but not by askers of another kind. What a stranger asks for may take longer
    /// than what a user of ours does.
    silent_until: Mutex<Option<Instant>>,
}

impl ServicePlaces {
    fn new(kind: AskerKind) -> Self {
        let slots = match kind {
            AskerKind::User => FairSlots::new(USERS_MAX, USERS_PER_USER_MAX),
            AskerKind::Peer | AskerKind::Unnamed => FairSlots::new(STRANGERS_MAX, STRANGERS_PER_ASKER_MAX),
        };
        Self { slots, silent_until: Mutex::default() }
    }

    fn is_silent(&self) -> bool {
        lock(&self.silent_until).is_some_and(|until| Instant::now() < until)
    }
}

/// A place for a question to a service.
pub(super) struct QueryPlace {
    places: Arc<ServicePlaces>,
    _slot: FairSlot<AskerId>,
}

impl QueryPlace {
    /// The service did not answer: it is left alone for a while.
    pub(super) fn unanswered(&self) {
        *lock(&self.places.silent_until) = Some(Instant::now() + UNKNOWN_FOR);
    }
}

impl ServiceQueries {
    /// Whether a service said lately that it does not know this name.
    fn is_unknown(&self, question: &Question) -> bool {
        lock(&self.unknown).get(question).is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&self, question: Question) {
        let now = Instant::now();
        let worth = |until: &Instant| if *until <= now { Worth::Nothing } else { Worth::Little };
        lock(&self.unknown).insert(question, now + UNKNOWN_FOR, worth);
    }

    /// A place for a question, waited for until then. None: the service did not answer lately. Errors: 429 `M_LIMIT_EXCEEDED` if
    /// there is no place by then.
    pub(super) fn begin(
        &self,
        service: &Appservice,
        asker: &Asker,
        until: Instant,
    ) -> Result<Option<QueryPlace>> {
        let kind = AskerKind::of(asker);
        let places = Arc::clone(
            lock(&self.services)
                .entry((service.id.clone(), kind))
                .or_insert_with(|| Arc::new(ServicePlaces::new(kind))),
        );
        if places.is_silent() {
            return Ok(None);
        }
        let slot = places.slots.take(asker.who(), until, || !asker.is_gone()).ok_or_else(busy)?;
        // Who waited need not find out for themselves.
        let is_silent = places.is_silent();
        Ok((!is_silent).then_some(QueryPlace { places, _slot: slot }))
    }
}

fn busy() -> Error {
    Error::new(
        ErrCode::LimitExceeded,
        "The application service that may know this has enough questions at present",
    )
    .with_field("retry_after_ms", RETRY_AFTER_MS)
}

impl Homeserver {
    /// Asks a service whether it is there, on its own behalf; what it could not be sent is tried again then. How long it took, in
    /// milliseconds. Errors: 400 `M_URL_NOT_SET`, 502 `M_BAD_STATUS` and `M_CONNECTION_FAILED`, 504 `M_CONNECTION_TIMEOUT`.
    pub fn ping_service(&self, service: &Appservice, transaction_id: Option<&str>) -> Result<u64> {
        let body = match transaction_id {
            Some(id) => json!({ "transaction_id": id }),
            None => json!({}),
        };
        let request = ServiceRequest {
            method: "POST",
            path: "/_matrix/app/v1/ping",
            legacy_path: None,
            body: Some(&body.to_string()),
            timeout: PING_TIMEOUT,
        };
        let begun = Instant::now();
        let answer = match self.federation.ask_service(service, &request) {
            Ok(answer) => answer,
            Err(ServiceError::NoUrl) => {
                let message = "The application service has no URL";
                return Err(Error::new(ErrCode::UrlNotSet, message));
            }
            Err(ServiceError::Late(why)) => {
                let message = format!("The application service does not answer: {why}");
                return Err(Error::new(ErrCode::ConnectionTimeout, message));
            }
            Err(ServiceError::Connection(why)) => {
                let message = format!("The application service cannot be reached: {why}");
                return Err(Error::new(ErrCode::ConnectionFailed, message));
            }
        };
        let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !answer.is_success() {
            let message = format!("The application service answers with status {}", answer.status);
            let shown = &answer.body[..answer.body.len().min(ECHOED_BYTES_MAX)];
            return Err(Error::new(ErrCode::BadStatus, message)
                .with_field("status", answer.status)
                .with_field("body", String::from_utf8_lossy(shown).into_owned()));
        }
        self.service_sender.retry(&service.id);
        Ok(took)
    }

    /// Asks services for a local user that there is not, in case one makes it now. Whether to look again. Errors: 429
    /// `M_LIMIT_EXCEEDED` if one has too much to answer.
    pub fn ask_services_for_user(&self, asker: &Asker, user: &UserId) -> Result<bool> {
        let wants = |service: &Appservice| service.sender != *user && service.may_be(user);
        let is_there = || self.store.read(|db| Ok(db.account(user)?.is_some()));
        self.ask_services(asker, ("users", user.as_str()), wants, is_there)
    }

    /// Local users whom nobody has made yet may be such as a service makes when it is asked for them. Errors: those of
    /// [`Homeserver::ask_services_for_user`].
    pub(in crate::service) fn let_services_make(&self, asker: AskerId, users: &[&UserId]) -> Result<()> {
        if self.appservices.is_empty() {
            return Ok(());
        }
        let asker = Asker::new(asker);
        for user in users {
            if self.store.read(|db| db.account(user))?.is_none() {
                self.ask_services_for_user(&asker, user)?;
            }
        }
        Ok(())
    }

    /// Asks services for an alias of this server that there is not, in case one makes it now. Whether to look again. Errors: 429
    /// `M_LIMIT_EXCEEDED` if one has too much to answer.
    pub fn ask_services_for_alias(&self, asker: &Asker, alias: &RoomAlias) -> Result<bool> {
        let wants = |service: &Appservice| service.wants_alias(alias);
        let is_there = || self.store.read(|db| Ok(db.alias(alias)?.is_some()));
        self.ask_services(asker, ("rooms", alias.as_str()), wants, is_there)
    }

    fn ask_services(
        &self,
        asker: &Asker,
        (kind, name): (&str, &str),
        wants: impl Fn(&Appservice) -> bool,
        is_there: impl Fn() -> Result<bool>,
    ) -> Result<bool> {
        let until = Instant::now() + QUERY_TIMEOUT;
        for service in self.appservices.iter().filter(|service| service.url.is_some() && wants(service)) {
            let question = (service.id.clone(), name.to_owned());
            if self.service_queries.is_unknown(&question) {
                continue;
            }
            // In this order: who waits for a place keeps nobody from asking the same.
            let Some(place) = self.service_queries.begin(service, asker, until)? else { continue };
            let one = self.service_queries.one_at_a_time.lock_until(question.clone(), until);
            let _one = one.ok_or_else(busy)?;
            // Whoever asked before may have brought it about, or found that it cannot be.
            if is_there()? {
                return Ok(true);
            }
            if self.service_queries.is_unknown(&question) {
                continue;
            }
            let legacy = format!("/{kind}/{}", enc(name));
            let request = ServiceRequest {
                method: "GET",
                path: &format!("/_matrix/app/v1{legacy}"),
                legacy_path: Some(&legacy),
                body: None,
                timeout: QUERY_TIMEOUT,
            };
            match self.federation.ask_service(service, &request) {
                Ok(answer) if answer.is_success() => return Ok(true),
                Ok(_) => self.service_queries.remember(question),
                Err(error) => {
                    log::info!("the application service {:?} was asked for {name}: {error}", service.id);
                    place.unanswered();
                }
            }
        }
        Ok(false)
    }
}
