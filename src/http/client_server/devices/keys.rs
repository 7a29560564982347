//! Client-server API, "Key management API" and "Cross-signing": end-to-end keys of devices and users.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::http::client_server::accounts::interactive::{interactively, with_password};
use crate::http::{Reply, Request, Requester};
use crate::order::Gather;
use crate::protocol::UserId;
use crate::protocol::json::{AtMostMembers, read_object};
use crate::protocol::keys::device::KeyUpload;
use crate::service::Homeserver;
use crate::service::devices::cross_signing::{NewSigningKeys, UploadedSignatures};
use crate::service::devices::keys::{WantedDevices, WantedKeys};
use crate::service::sync::parse_since;

/// "10 seconds is the recommended default." Clients that would wait longer give up themselves.
const TIMEOUT_USUAL: Duration = Duration::from_secs(10);
/// In less no server answers that is a little away.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// `POST /_matrix/client/v3/keys/upload`
pub fn upload(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let device = requester.device_id()?;
    let upload = KeyUpload::read(request.body(), &requester.user_id, device)?;
    let counts = hs.devices().upload_keys(&requester.user_id, device, upload)?;
    Ok(Reply::json(&json!({ "one_time_key_counts": counts })))
}

/// Users in one query: twice the members of a large room, whom some clients name together.
const QUERY_USERS_MAX: usize = 20_000;
/// And in one claim: of so many devices keys are given at most.
const CLAIM_USERS_MAX: usize = 10_000;

#[derive(Deserialize)]
struct QueryBody {
    #[serde(default)]
    timeout: Option<u64>,
    device_keys: Option<AtMostMembers<Vec<String>, QUERY_USERS_MAX>>,
}

/// `POST /_matrix/client/v3/keys/query`
pub fn query(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body: QueryBody = read_object(request.body())?;
    let wanted = body.device_keys.ok_or_else(|| Error::missing_param("Missing device_keys"))?;
    let wanted: WantedDevices = by_user(wanted.0)?;
    let devices_of = |devices: &Vec<String>| devices.iter().map(|id| WANTED_BYTES + id.len()).sum();
    request.keeps(wanted_bytes(&wanted, devices_of));
    let answer = hs.devices().query_keys(&requester.user_id, wanted, within(body.timeout))?;
    Ok(Reply::raw_json(answer.into_bytes()))
}

#[derive(Deserialize)]
struct ClaimBody {
    #[serde(default)]
    timeout: Option<u64>,
    one_time_keys: Option<AtMostMembers<BTreeMap<String, String>, CLAIM_USERS_MAX>>,
}

/// `POST /_matrix/client/v3/keys/claim`
pub fn claim(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body: ClaimBody = read_object(request.body())?;
    let wanted = body.one_time_keys.ok_or_else(|| Error::missing_param("Missing one_time_keys"))?;
    let wanted: WantedKeys = by_user(wanted.0)?;
    let devices_of = |devices: &BTreeMap<String, String>| {
        devices.iter().map(|(id, algorithm)| 2 * WANTED_BYTES + id.len() + algorithm.len()).sum()
    };
    request.keeps(wanted_bytes(&wanted, devices_of));
    let answer = hs.devices().claim_keys(&requester.user_id, wanted, within(body.timeout))?;
    Ok(Reply::raw_json(answer.into_bytes()))
}

/// `GET /_matrix/client/v3/keys/changes`. `to` is "a hint": what changed since is told as well. Who was away for long asks
/// for much, so that a few are answered at a time.
pub fn changes(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let from = parse_since(request.required_query("from")?)?;
    request.query("to").map(parse_since).transpose()?;
    let _turn =
        hs.large_answers.turn(&requester.user_id, || !request.hung_up().is_some_and(|gone| gone()))?;
    let lists = hs.syncing().key_changes(&requester.user_id, from)?;
    // Both are always there, since some clients take no answer without them.
    Ok(Reply::json(&json!({ "changed": lists.changed, "left": lists.left })))
}

/// `POST /_matrix/client/v3/keys/device_signing/upload`. "User-Interactive Authentication MUST be performed", except for
/// the first keys, for those that are there already, and for application services.
pub fn upload_signing_keys(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (user, params) = (&requester.user_id, request.json_object()?);
    if let Some(keys) = NewSigningKeys::read(user, &params)?
        && hs.devices().upload_signing_keys(user, keys, requester.is_service())?
    {
        return Ok(Reply::empty());
    }
    let read = |params: &Map<String, Value>| {
        NewSigningKeys::read(user, params)?.ok_or_else(|| Error::missing_param("There is no key to upload"))
    };
    let action =
        with_password("upload cross-signing keys", &["master_key", "self_signing_key", "user_signing_key"]);
    interactively(hs, request, Some(requester), &action, params, read, |keys, _| {
        hs.devices().upload_signing_keys(user, keys, true)?;
        Ok(json!({}))
    })
}

/// `POST /_matrix/client/v3/keys/signatures/upload`
pub fn upload_signatures(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let uploaded: UploadedSignatures<'_> = read_object(request.body())?;
    Ok(Reply::json(&hs.devices().upload_signatures(&requester.user_id, &uploaded)?))
}

/// What a name of those that are asked for takes beside its text: its place in a map or a list, and the smallest piece of memory.
const WANTED_BYTES: usize = 96;

/// What is kept of a query or a claim, in bytes, while other servers are asked: it was made of text that is no more looked at.
fn wanted_bytes<T>(wanted: &BTreeMap<UserId, T>, devices_of: impl Fn(&T) -> usize) -> usize {
    // Twice, since what each server is asked for is written down for it.
    2 * wanted.iter().map(|(user, of)| 2 * WANTED_BYTES + user.as_str().len() + devices_of(of)).sum::<usize>()
}

fn by_user<T>(wanted: BTreeMap<String, T>) -> Result<BTreeMap<UserId, T>> {
    wanted.into_iter().map(|(user, what)| Ok((UserId::parse(&user)?, what))).try_gather()
}

fn within(timeout_ms: Option<u64>) -> Duration {
    timeout_ms.map_or(TIMEOUT_USUAL, Duration::from_millis).clamp(TIMEOUT_MIN, TIMEOUT_MAX)
}
