//! The stages: what a client can prove, what it has proved so far, and the body that asks for the rest.

use serde_json::{Map, Value, json};

use super::UiaClient;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::service::accounts::Accounts;
use crate::service::accounts::passwords::PasswordProof;
use crate::store::Db;

/// One thing that a client can prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing at all.
    Dummy,
    /// The password of the account.
    Password,
    /// A registration token.
    RegistrationToken,
}

impl Stage {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dummy => "m.login.dummy",
            Self::Password => "m.login.password",
            Self::RegistrationToken => "m.login.registration_token",
        }
    }
}

/// What one client is to prove, and what it has proved so far.
#[derive(Clone, Default)]
pub(super) struct StageProgress {
    pub(super) completed: Vec<Stage>,
    pub(super) password: Option<PasswordProof>,
    pub(super) registration_token: Option<String>,
    /// The parameters of the requests so far, JSON; empty: none, or too much to be remembered. There may be a password
    /// among them, so it goes as soon as the session runs.
    pub(super) said: String,
    /// What the last request acts upon, as a hash. None: there was none, or that was refused for its own fault, so that the next
    /// one says it.
    pub(super) acts_upon: Option<[u8; 32]>,
    /// Whether somebody was shown in a browser what they are to complete a stage for.
    pub(super) is_shown: bool,
}

impl StageProgress {
    /// What was proved and is still so: a password is proved no more once the account has another.
    pub(super) fn still_good(self, db: &Db<'_>) -> Result<Self> {
        match self.password.as_ref().map(|proof| proof.is_good(db)).transpose()? {
            Some(false) => Ok(self.unproved()),
            Some(true) | None => Ok(self),
        }
    }

    /// The same without anything that was proved.
    pub(super) fn unproved(self) -> Self {
        let Self { said, acts_upon, is_shown, .. } = self;
        Self { said, acts_upon, is_shown, ..Self::default() }
    }
}

impl Accounts<'_> {
    /// Tries the stage that `auth` names. The inner error is for the client, who may try again.
    pub(super) fn take_stage(
        &self,
        session: &mut StageProgress,
        flows: &[&[Stage]],
        client: &UiaClient<'_>,
        auth: &Map<String, Value>,
    ) -> Result<Result<()>> {
        let requester = client.user;
        let text = |name: &str| auth.get(name).and_then(Value::as_str);
        let wanted = text("type").unwrap_or_default();
        // A stage is next if some flow begins with what is complete and goes on with it.
        let next = |flow: &&[Stage]| match flow.strip_prefix(session.completed.as_slice()) {
            Some([stage, ..]) if stage.as_str() == wanted => Some(*stage),
            _ => None,
        };
        let Some(stage) = flows.iter().find_map(next) else {
            let repeated = session.completed.iter().any(|stage| stage.as_str() == wanted);
            let unknown = Error::new(ErrCode::Unrecognized, "This stage is not asked for now");
            return Ok(if repeated { Ok(()) } else { Err(unknown) });
        };
        match stage {
            Stage::Dummy => {}
            Stage::RegistrationToken => {
                let token = text("token").unwrap_or_default();
                if !self.registration_token_is_valid(token)? {
                    return Ok(Err(Error::new(
                        ErrCode::Unauthorized,
                        "This registration token is not valid",
                    )));
                }
                session.registration_token = Some(token.to_owned());
            }
            Stage::Password => {
                let user = match user_of_identifier(auth, self.server_name().as_str()) {
                    Some(user) => Some(user),
                    // The request's token says who it is.
                    None if !auth.contains_key("identifier") && !auth.contains_key("user") => {
                        requester.cloned()
                    }
                    None => None,
                };
                let user = user.filter(|user| requester.is_none_or(|requester| requester == user));
                let Some(user) = user else {
                    return Ok(Err(Error::forbidden("This is not the user whose account it is about")));
                };
                let (password, from) = (text("password").unwrap_or_default(), Some(client.from));
                // Who it is about was made sure of: if there is a requester, it is their account.
                match self.check_password_of(&user, password, from, requester.is_some()) {
                    Ok(proof) => session.password = Some(proof),
                    Err(e) if e.errcode() == ErrCode::Forbidden => return Ok(Err(e)),
                    Err(e) => return Err(e),
                }
            }
        }
        session.completed.push(stage);
        Ok(Ok(()))
    }
}

pub(super) fn challenge(
    session: &str,
    flows: &[&[Stage]],
    completed: &[Stage],
    refusal: Option<&Error>,
) -> Value {
    let names = |stages: &[Stage]| stages.iter().map(|s| s.as_str()).collect::<Vec<_>>();
    let flows: Vec<Value> = flows.iter().map(|flow| json!({ "stages": names(flow) })).collect();
    let mut body = json!({ "flows": flows, "params": {}, "session": session });
    if !completed.is_empty() {
        body["completed"] = json!(names(completed));
    }
    if let Some(refusal) = refusal {
        body["errcode"] = refusal.errcode().as_str().into();
        body["error"] = refusal.message().into();
    }
    body
}

/// The user that an `identifier` of type `m.id.user` names, by full id or by localpart, or the older field `user`.
/// Capitals are taken for what they are on a keyboard that begins sentences: no local user has any. None: it names
/// nobody whom this server could know.
pub fn user_of_identifier(object: &Map<String, Value>, server: &str) -> Option<UserId> {
    let localpart = identified_localpart(object, server)?.to_ascii_lowercase();
    user_with(&localpart, server)
}

/// The same for an application service, whose users may have capitals.
pub fn identified_user(object: &Map<String, Value>, server: &str) -> Option<UserId> {
    user_with(identified_localpart(object, server)?, server)
}

fn user_with(localpart: &str, server: &str) -> Option<UserId> {
    UserId::parse(&format!("@{localpart}:{server}")).ok().filter(|user| user.localpart() == localpart)
}

fn identified_localpart<'o>(object: &'o Map<String, Value>, server: &str) -> Option<&'o str> {
    let name = match object.get("identifier") {
        Some(identifier) if identifier["type"] == "m.id.user" => identifier["user"].as_str()?,
        Some(_) => return None,
        None => object.get("user")?.as_str()?,
    };
    match name.strip_prefix('@') {
        Some(id) => {
            let (localpart, of) = id.split_once(':')?;
            of.eq_ignore_ascii_case(server).then_some(localpart)
        }
        None => Some(name),
    }
}
