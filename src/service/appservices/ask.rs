//! What services are asked: whether they are there, and whether there is a user or an alias that nobody has made yet ("Querying").

use std::collections::HashMap;
use std::sync::Mutex;
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

/// How long a service has for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a service has to make what it is asked for, or to say what it knows.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// So many questions are put to one service at a time; what is asked beyond that is not there.
const QUERIES_MAX: usize = 8;
/// For so long it is believed that a service does not know a name, and that one that did not answer will not.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);
/// Of so many names that is remembered.
const UNKNOWN_MAX: usize = 1000;
/// Of what a service answers to a ping, so much is told.
const ECHOED_BYTES_MAX: usize = 4096;

/// Questions that are being put to services, and those that were in vain lately.
#[derive(Default)]
pub struct ServiceQueries {
    one_at_a_time: KeyedLock<String>,
    unknown: Mutex<BoundedMap<String, Instant, UNKNOWN_MAX>>,
    at_work: Mutex<HashMap<String, usize>>,
}

/// A question that is being put to a service.
pub(super) struct QueryGuard<'q> {
    queries: &'q ServiceQueries,
    service: &'q str,
}

impl Drop for QueryGuard<'_> {
    fn drop(&mut self) {
        if let Some(count) = lock(&self.queries.at_work).get_mut(self.service) {
            *count -= 1;
        }
    }
}

impl ServiceQueries {
    /// Whether a question was in vain lately.
    fn is_unknown(&self, question: &str, now: Instant) -> bool {
        lock(&self.unknown).get(question).is_some_and(|until| now < *until)
    }

    fn remember(&self, question: String, now: Instant) {
        let worth = |until: &Instant| if *until <= now { Worth::Nothing } else { Worth::Little };
        lock(&self.unknown).insert(question, now + UNKNOWN_FOR, worth);
    }

    /// A place for one more question. None: the service has enough of them, or did not answer lately.
    pub(super) fn begin<'q>(&'q self, service: &'q Appservice, now: Instant) -> Option<QueryGuard<'q>> {
        if self.is_unknown(&service.id, now) {
            return None;
        }
        let mut at_work = lock(&self.at_work);
        let count = at_work.entry(service.id.clone()).or_default();
        if *count >= QUERIES_MAX {
            return None;
        }
        *count += 1;
        Some(QueryGuard { queries: self, service: &service.id })
    }

    /// A service did not answer: it is left alone for a while.
    pub(super) fn unanswered(&self, service: &Appservice, now: Instant) {
        self.remember(service.id.clone(), now);
    }
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

    /// Asks services for a local user that there is not, in case one makes it now. Whether to look again.
    pub fn ask_services_for_user(&self, user: &UserId) -> bool {
        let wants = |service: &Appservice| service.sender != *user && service.may_be(user);
        let is_there = || self.store.read(|db| Ok(db.account(user)?.is_some()));
        self.ask_services("users", user.as_str(), wants, is_there)
    }

    /// Local users whom nobody has made yet may be such as a service makes when it is asked for them.
    pub(in crate::service) fn let_services_make(&self, users: &[&UserId]) -> Result<()> {
        if self.appservices.is_empty() {
            return Ok(());
        }
        for user in users {
            if self.store.read(|db| db.account(user))?.is_none() {
                self.ask_services_for_user(user);
            }
        }
        Ok(())
    }

    /// Asks services for an alias of this server that there is not, in case one makes it now. Whether to look again.
    pub fn ask_services_for_alias(&self, alias: &RoomAlias) -> bool {
        let wants = |service: &Appservice| service.wants_alias(alias);
        let is_there = || self.store.read(|db| Ok(db.alias(alias)?.is_some()));
        self.ask_services("rooms", alias.as_str(), wants, is_there)
    }

    fn ask_services(
        &self,
        kind: &str,
        name: &str,
        wants: impl Fn(&Appservice) -> bool,
        is_there: impl Fn() -> Result<bool>,
    ) -> bool {
        let asked = |service: &&std::sync::Arc<Appservice>| service.url.is_some() && wants(service);
        let services: Vec<_> = self.appservices.iter().filter(asked).collect();
        if services.is_empty() || self.service_queries.is_unknown(name, Instant::now()) {
            return false;
        }
        let until = Instant::now() + QUERY_TIMEOUT;
        let Some(_one) = self.service_queries.one_at_a_time.lock_until(name.to_owned(), until) else {
            return false;
        };
        // Whoever asked before may have brought it about, or found that it cannot be.
        if is_there().unwrap_or(false) {
            return true;
        }
        if self.service_queries.is_unknown(name, Instant::now()) {
            return false;
        }
        for service in services {
            let legacy = format!("/{kind}/{}", enc(name));
            let request = ServiceRequest {
                method: "GET",
                path: &format!("/_matrix/app/v1{legacy}"),
                legacy_path: Some(&legacy),
                body: None,
                timeout: QUERY_TIMEOUT,
            };
            let Some(_query) = self.service_queries.begin(service, Instant::now()) else { continue };
            match self.federation.ask_service(service, &request) {
                Ok(answer) if answer.is_success() => return true,
                Ok(_) => {}
                Err(error) => {
                    log::info!("the application service {:?} was asked for {name}: {error}", service.id);
                    self.service_queries.unanswered(service, Instant::now());
                }
            }
        }
        self.service_queries.remember(name.to_owned(), Instant::now());
        false
    }
}
