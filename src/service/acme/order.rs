//! One attempt to get a certificate (RFC 8555, 7.4): an account, an order, the proof of each name, the request, the chain. An
//! order outlives the process that made it: whoever is killed in the middle goes on with it, so that no certificate is made
//! for nothing and no limit of the authority's is used up.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::Worker;
use super::files::PendingOrder;
use crate::clock::Millis;
use crate::error::Error;
use crate::federation::acme::{AccountKey, AcmeAnswer, AcmeError, AcmeResult, AcmeSession};
use crate::locks::lock;
use crate::protocol::certificates::CertificateFacts;
use crate::protocol::certificates::acme::{
    AcmeStatus, ChallengeKind, authorized_name, choose_challenge, text, told_failure, told_problem,
};
use crate::served_certificate::{CheckedCertificate, new_key, signing_request};

/// An order that is older is not gone on with: authorities forget them after a week.
const ORDER_AGE_MAX_MS: Millis = 24 * 3_600_000;
/// How long an authority may take for a proof, or for the certificate, within one attempt.
const STEP_TIMEOUT: Duration = Duration::from_secs(300);
/// The pauses between two looks, whatever it says: the first is also the shortest.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(500);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The longest of ours where it says nothing.
const LOOK_PAUSE_USUAL_MAX: Duration = Duration::from_secs(8);

/// Why an order was not fulfilled.
enum Unfulfilled {
    /// It never will be: another is made.
    Over(AcmeError),
    /// Perhaps later.
    Yet(AcmeError),
}

impl From<AcmeError> for Unfulfilled {
    /// Who answers with an error of a kind has looked at what was asked, and will say the same again.
    fn from(e: AcmeError) -> Self {
        match e.kind.as_deref() {
            None | Some("badNonce" | "rateLimited" | "serverInternal") => Self::Yet(e),
            Some(_) => Self::Over(e),
        }
    }
}

impl From<Error> for Unfulfilled {
    fn from(e: Error) -> Self {
        Self::Yet(e.into())
    }
}

fn over(why: impl Into<String>) -> Unfulfilled {
    Unfulfilled::Over(AcmeError::new(why))
}

impl Worker {
    /// Gets a certificate, keeps it and serves it.
    pub(super) fn attempt(&self) -> AcmeResult<CertificateFacts> {
        let key = AccountKey::read(&self.folder.account_key()?)?;
        let server = self.reach_server()?;
        let mut session = server.connect(&key)?;
        session.log_in(self.settings.contact.as_deref(), self.customer.as_ref())?;
        let (pending, order) = self.open_order(&mut session)?;
        match self.fulfil(&mut session, &key, &pending, order) {
            Ok(facts) => {
                self.folder.drop_order();
                Ok(facts)
            }
            Err(Unfulfilled::Over(e)) => {
                self.folder.drop_order();
                Err(e)
            }
            Err(Unfulfilled::Yet(e)) => Err(e),
        }
    }

    /// The order that is under way, or a new one.
    fn open_order(&self, session: &mut AcmeSession<'_>) -> AcmeResult<(PendingOrder, AcmeAnswer)> {
        let kept = self.folder.certificate().ok().flatten();
        if let Some(pending) = self.folder.order() {
            // One whose certificate is here has been fulfilled, and whoever did it was killed right then.
            let is_fulfilled = kept.as_ref().is_some_and(|kept| kept.is_of(&pending.key));
            let age = self.clock.now_ms().saturating_sub(pending.made);
            let is_this =
                pending.directory == self.settings.directory && pending.names == self.settings.names;
            if is_this && !is_fulfilled && (0..ORDER_AGE_MAX_MS).contains(&age) {
                match session.look(&pending.url) {
                    Ok(order) if AcmeStatus::of(&order.object) != AcmeStatus::Invalid => {
                        return Ok((pending, order));
                    }
                    Err(e) if e.kind.is_none() || e.retry_after.is_some() => return Err(e),
                    Ok(_) | Err(_) => {}
                }
            }
            self.folder.drop_order();
        }
        let key = new_key()?;
        let (names, directory) = (self.settings.names.clone(), self.settings.directory.clone());
        let replaces = kept.and_then(|kept| kept.facts.renewal_id);
        let (url, order) = match session.order(&names, replaces.as_deref()) {
            // It is asked for by a hint of ours, and may be refused for no better reason.
            Err(e) if replaces.is_some() && e.kind.as_deref().is_some_and(|kind| kind != "rateLimited") => {
                session.order(&names, None)?
            }
            answer => answer?,
        };
        let pending = PendingOrder { directory, names, url, key, made: self.clock.now_ms() };
        self.folder.keep_order(&pending)?;
        Ok((pending, order))
    }

    fn fulfil(
        &self,
        session: &mut AcmeSession<'_>,
        key: &AccountKey,
        pending: &PendingOrder,
        order: AcmeAnswer,
    ) -> Result<CertificateFacts, Unfulfilled> {
        if AcmeStatus::of(&order.object) == AcmeStatus::Pending {
            let authorizations = order.object.get("authorizations").and_then(Value::as_array);
            let authorizations = authorizations.filter(|all| all.len() <= pending.names.len());
            let none = || over("the order does not say what is to be proven");
            for url in authorizations.ok_or_else(none)? {
                self.prove(session, key, url.as_str().ok_or_else(none)?)?;
            }
        }
        let mut order = self.look_while(session, &pending.url, Some(order), AcmeStatus::Pending)?;
        if AcmeStatus::of(&order) == AcmeStatus::Ready {
            // A key that is none will be none next time.
            let request = signing_request(&pending.names, &pending.key).map_err(|e| over(e.to_string()))?;
            let request = URL_SAFE_NO_PAD.encode(request);
            let url = text(&order, "finalize").ok_or_else(|| over("the order has no end"))?;
            session.post(url, &json!({ "csr": request }).to_string())?;
            order = self.look_while(session, &pending.url, None, AcmeStatus::Ready)?;
        }
        order = match AcmeStatus::of(&order) {
            AcmeStatus::Processing => self.look_while(session, &pending.url, None, AcmeStatus::Processing)?,
            _ => order,
        };
        if AcmeStatus::of(&order) != AcmeStatus::Valid {
            let error = order.get("error").and_then(Value::as_object);
            let why = error.map_or_else(|| "it says nothing of why".to_owned(), told_problem);
            return Err(over(format!("the order has failed: {why}")));
        }
        let url = text(&order, "certificate").ok_or_else(|| over("the order has no certificate"))?;
        let chain = session.look(url)?.body;
        self.take(&chain, &pending.key)
    }

    /// Proves that a name is ours (RFC 8555, 7.5.1).
    fn prove(&self, session: &mut AcmeSession<'_>, key: &AccountKey, url: &str) -> Result<(), Unfulfilled> {
        let authorization = session.look(url)?.object;
        match AcmeStatus::of(&authorization) {
            AcmeStatus::Valid => return Ok(()),
            AcmeStatus::Pending => {}
            _ => return Err(over(told_failure(&authorization))),
        }
        let name = authorized_name(&authorization).filter(|name| self.settings.names.contains(name));
        let name = name.ok_or_else(|| over("it wants a name proven that nobody asked for"))?;
        // Where one way has failed, the other is tried.
        let mut kinds = self.kinds.clone();
        let count = kinds.len().max(1);
        kinds.rotate_left(self.failed_proofs.get() % count);
        let challenge = choose_challenge(&authorization, &kinds)
            .ok_or_else(|| over(format!("it offers no way to prove {name} that is open to this server")))?;
        let proof = key.authorize(&challenge.token);
        match challenge.kind {
            ChallengeKind::Http => drop(lock(&self.shared.state).pages.insert(challenge.token, proof)),
            ChallengeKind::TlsAlpn => self.served.prove(&name, &Sha256::digest(&proof).into())?,
        }
        if challenge.status == AcmeStatus::Pending {
            session.post(&challenge.url, "{}")?;
        }
        let authorization = self.look_while(session, url, None, AcmeStatus::Pending)?;
        match AcmeStatus::of(&authorization) {
            AcmeStatus::Valid => Ok(()),
            _ => {
                self.failed_proofs.set(self.failed_proofs.get().wrapping_add(1));
                let (kind, why) = (challenge.kind.as_str(), told_failure(&authorization));
                Err(over(format!("{name} was not proven by {kind}: {why}")))
            }
        }
    }

    /// Looks again and again, while something has this status.
    fn look_while(
        &self,
        session: &mut AcmeSession<'_>,
        url: &str,
        mut seen: Option<AcmeAnswer>,
        status: AcmeStatus,
    ) -> Result<Map<String, Value>, Unfulfilled> {
        let until = Instant::now() + STEP_TIMEOUT;
        let mut usual = LOOK_PAUSE_MIN;
        loop {
            let answer = match seen.take() {
                // What was seen before the proofs is old.
                Some(answer) if AcmeStatus::of(&answer.object) != status => answer,
                _ => session.look(url)?,
            };
            if AcmeStatus::of(&answer.object) != status {
                return Ok(answer.object);
            }
            let pause = answer.retry_after.unwrap_or(usual).clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX);
            usual = (usual * 2).min(LOOK_PAUSE_USUAL_MAX);
            if Instant::now() + pause > until {
                return Err(Unfulfilled::Yet(AcmeError::new("it takes too long")));
            }
            if !self.shared.rest(pause) {
                return Err(Unfulfilled::Yet(AcmeError::new("this server stops")));
            }
        }
    }

    /// Takes a chain that was given, if it is what was asked for: for our key and our names, and good for a while.
    fn take(&self, chain: &[u8], key: &str) -> Result<CertificateFacts, Unfulfilled> {
        let got = CheckedCertificate::read(chain, key.as_bytes()).map_err(|e| over(e.message()))?;
        if !got.is_for(&self.settings.names) {
            return Err(over("its certificate is for other names"));
        }
        if got.facts.not_after <= self.clock.now_ms() {
            return Err(over("its certificate has expired already, or the clock of this machine is wrong"));
        }
        let facts = got.facts.clone();
        self.folder.keep_certificate(&got, key)?;
        self.served.replace(got);
        Ok(facts)
    }
}
