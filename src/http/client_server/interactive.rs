//! Interactive authentication as handlers use it: either a proof, or the 401 that asks the client for more.

use serde_json::{Map, Value};

use crate::error::Result;
use crate::http::{Reply, Requester};
use crate::service::Homeserver;
use crate::service::interactive_auth::{Progress, Proof, Stage};

/// The flows where the account's password is asked for.
pub const PASSWORD: &[&[Stage]] = &[&[Stage::Password]];

/// Takes a step with the `auth` field of a request's body. `Err` in `Ok` is the answer that asks for more.
pub fn prove(
    hs: &Homeserver,
    action: &str,
    flows: &[&[Stage]],
    requester: Option<&Requester>,
    body: &Map<String, Value>,
) -> Result<Result<Proof, Reply>> {
    let user = requester.map(|r| &r.user_id);
    Ok(match hs.authenticate_interactively(action, flows, user, body.get("auth"))? {
        Progress::Proved(proof) => Ok(proof),
        Progress::Ask(body) => Err(Reply::json_status(401, &body)),
    })
}
