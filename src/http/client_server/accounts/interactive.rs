//! Interactive authentication as handlers use it: the thing is done, or the 401 asks the client for more.

use serde_json::{Map, Value};

use crate::error::Result;
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::accounts::interactive_auth::{AuthOutcome, GuardedAction, Proof, Stage, UiaClient};

/// The flows where the account's password is asked for.
const PASSWORD: &[&[Stage]] = &[&[Stage::Password]];

/// Something that asks for the account's password, and the parameters that say what is acted upon.
pub const fn with_password(name: &'static str, fixed: &'static [&'static str]) -> GuardedAction {
    GuardedAction { name, flows: PASSWORD, incidental: &[], fixed }
}

/// Answers a request with these parameters (its body): see
/// [`Accounts::interactively`](crate::service::accounts::Accounts::interactively).
pub fn interactively<P>(
    hs: &Homeserver,
    request: &Request,
    requester: Option<&Requester>,
    action: &GuardedAction,
    params: Map<String, Value>,
    check: impl FnOnce(&Map<String, Value>) -> Result<P>,
    deed: impl FnOnce(P, &Proof) -> Result<Value>,
) -> Result<Reply> {
    let asker = UiaClient {
        user: requester.map(|requester| &requester.user_id),
        token: requester.and_then(|_| request.token()),
        ended: requester.is_some_and(|requester| requester.ended),
        from: request.client_ip(),
    };
    Ok(match hs.accounts().interactively(action, asker, params, check, deed)? {
        AuthOutcome::Done(answer) => Reply::raw_json(answer.into_bytes()),
        AuthOutcome::Ask(body) => Reply::json_status(401, &body),
    })
}
