//! A stage that is completed in a browser, for a client that does not know it ("Fallback"). The client knows the session and
//! asks again with nothing else; so whoever has the session's id may complete its stages, here as by the client's requests.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::UiaClient;
use super::sessions::{SessionPhase, UiaSession};
use super::stages::{Stage, StageProgress};
use crate::error::{Error, Result};
use crate::locks::lock;
use crate::protocol::UserId;
use crate::protocol::json::parse_object;
use crate::service::accounts::Accounts;

/// A stage that a session asks for, or has asked for.
#[derive(Debug)]
pub struct AskedStage {
    /// Which.
    pub stage: Stage,
    /// Whether it was completed.
    pub is_complete: bool,
    /// What is done once all stages are, for people.
    pub action: &'static str,
    /// On whose behalf, if the client has said it.
    pub user: Option<UserId>,
    /// The devices that it is about, and what the user calls them, if the client has said which.
    pub devices: Vec<(String, Option<String>)>,
}

fn unknown() -> Error {
    Error::not_found("This is over, or was never asked for. Please begin anew in your client")
}

/// The devices that a client's requests have named.
fn devices_in(said: &str) -> Vec<(String, Option<String>)> {
    let said = parse_object(said.as_bytes()).unwrap_or_default();
    let devices = said.get("devices").and_then(Value::as_array).into_iter().flatten();
    devices.filter_map(|device| Some((device.as_str()?.to_owned(), None))).collect()
}

impl Accounts<'_> {
    /// What a session asks for under the name of a stage, to be shown to somebody: from then on it is for nothing else. Errors: 404
    /// `M_NOT_FOUND`.
    pub fn asked_stage(&self, id: &str, stage: &str) -> Result<AskedStage> {
        let mut asked = self.with_open_session(id, |session, open| {
            let is_complete = |wanted: &Stage| open.completed.contains(wanted);
            let mut stages = session.flows.iter().copied().flatten().copied();
            let stage = stages.find(|asked| asked.as_str() == stage).ok_or_else(unknown)?;
            let user = session.token.as_ref().map(|(_, user)| user.clone());
            open.is_shown = true;
            let is_complete = is_complete(&stage);
            Ok(AskedStage { stage, is_complete, action: session.name, user, devices: devices_in(&open.said) })
        })?;
        if let Some(user) = asked.user.as_ref().filter(|_| !asked.devices.is_empty()) {
            let known = self.store.read(|db| db.devices(user))?;
            for (id, name) in &mut asked.devices {
                let device = known.iter().find(|device| device.device_id == *id);
                *name = device.and_then(|device| device.display_name.clone());
            }
        }
        Ok(asked)
    }

    /// Completes the stage that `auth` names, with what proves it. Errors: 404 `M_NOT_FOUND` for a session that is not open
    /// any more; what the proof lacks.
    pub fn complete_stage(&self, id: &str, auth: &Map<String, Value>, from: IpAddr) -> Result<()> {
        let (flows, user, open) = self.with_open_session(id, |session, open| {
            Ok((session.flows, session.token.as_ref().map(|(_, user)| user.clone()), open.clone()))
        })?;
        let mut open = self.store.read(|db| open.still_good(db))?;
        let client = UiaClient { user: user.as_ref(), token: None, ended: false, from };
        self.take_stage(&mut open, flows, &client, auth)??;
        self.with_open_session(id, |_, before| {
            if open.completed.len() < before.completed.len() || open.acts_upon != before.acts_upon {
                // A request of the client's was faster, which knows nothing of this.
                return Err(unknown());
            }
            *before = StageProgress { said: std::mem::take(&mut before.said), ..open };
            Ok(())
        })
    }

    fn with_open_session<T>(
        &self,
        id: &str,
        what: impl FnOnce(&UiaSession, &mut StageProgress) -> Result<T>,
    ) -> Result<T> {
        let now = self.clock.steady();
        let mut sessions = lock(&self.uia_sessions.sessions);
        let session = sessions.all.get_mut(id).filter(|session| now < session.until);
        let session = session.ok_or_else(unknown)?;
        let SessionPhase::Open(open) = &mut session.phase else { return Err(unknown()) };
        let mut progress = std::mem::take(open);
        let outcome = what(session, &mut progress);
        session.phase = SessionPhase::Open(progress);
        outcome
    }
}
