//! What application services ask of this server for themselves, and what clients ask about the networks that they bridge to.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::http::auth::asker;
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::appservices::third_party::ThirdPartyKind;

/// Parameters that say who asks.
const OF_ASKER: [&str; 1] = ["access_token"];
/// Further ones, if that is an application service.
const OF_SERVICE: [&str; 3] = ["user_id", "device_id", "org.matrix.msc3202.device_id"];

/// `POST /_matrix/client/v1/appservice/{appserviceId}/ping`: "the appservice ID in the path must be the same as the appservice whose
/// `as_token` is being used". Errors: 403 `M_FORBIDDEN`, and those of [`Homeserver::ping_service`].
pub fn ping(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let of_path = requester.appservice.as_ref().filter(|service| service.id == request.param("appserviceId"));
    let service =
        of_path.ok_or_else(|| Error::forbidden("Provided access token is not the appservice's as_token"))?;
    let body = request.json_object_or_empty()?;
    let transaction_id = match body.get("transaction_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(id.as_str()),
        Some(_) => return Err(Error::bad_json("transaction_id must be a string")),
    };
    Ok(Reply::json(&json!({ "duration_ms": hs.ping_service(service, transaction_id)? })))
}

/// `GET /_matrix/client/v3/thirdparty/protocols`: which other networks are bridged to.
pub fn third_party_protocols(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: &Requester,
) -> Result<Reply> {
    Ok(Reply::json(&hs.third_party_protocols(&asker(request, Some(requester))).into()))
}

/// `GET /_matrix/client/v3/thirdparty/protocol/{protocol}`.
pub fn third_party_protocol(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let asker = asker(request, Some(requester));
    Ok(Reply::json(&hs.third_party_protocol(&asker, request.param("protocol"))?))
}

/// `GET /_matrix/client/v3/thirdparty/location` and `GET /_matrix/client/v3/thirdparty/location/{protocol}`.
pub fn third_party_locations(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: &Requester,
) -> Result<Reply> {
    look_up(hs, request, requester, ThirdPartyKind::Location, "alias")
}

/// `GET /_matrix/client/v3/thirdparty/user` and `GET /_matrix/client/v3/thirdparty/user/{protocol}`.
pub fn third_party_users(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    look_up(hs, request, requester, ThirdPartyKind::User, "userid")
}

fn look_up(
    hs: &Homeserver,
    request: &Request,
    requester: &Requester,
    kind: ThirdPartyKind,
    id: &str,
) -> Result<Reply> {
    let protocol = Some(request.param("protocol")).filter(|protocol| !protocol.is_empty());
    if protocol.is_none() {
        request.required_query(id)?;
    }
    let is_handed_on =
        |name: &str| !(OF_ASKER.contains(&name) || requester.is_service() && OF_SERVICE.contains(&name));
    let query: Vec<(String, String)> =
        request.query_pairs().iter().filter(|(name, _)| is_handed_on(name)).cloned().collect();
    let asker = asker(request, Some(requester));
    Ok(Reply::json(&hs.look_up_third_party(&asker, kind, protocol, &query)?.into()))
}
