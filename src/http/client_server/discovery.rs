//! What a client or a server asks first: who is here, which versions, what is possible.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::protocol::room_version;
use crate::service::Homeserver;

/// The versions of the specification whose client API is served, in so far as it is served at all.
const VERSIONS: [&str; 14] = [
    "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
    "v1.13", "v1.14",
];

/// What clients look for under names of its own. Without sliding sync those of the newer engines log in nowhere. Its
/// accepted form has no name yet by which clients would look for it. The others are those of cross-signing, for old clients,
/// of dehydrated devices, and of threads, their list and the direction of relations, which some look for in place of v1.4.
const UNSTABLE_FEATURES: [&str; 6] = [
    "org.matrix.e2e_cross_signing",
    "org.matrix.msc3440.stable",
    "org.matrix.msc3715.stable",
    "org.matrix.msc3814",
    "org.matrix.msc3856.stable",
    "org.matrix.simplified_msc3575",
];

/// `GET /_matrix/client/versions`
pub fn versions(_hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    Ok(Reply::json(
        &json!({ "versions": VERSIONS, "unstable_features": UNSTABLE_FEATURES.map(|f| (f, true)).into_iter().collect::<BTreeMap<_, _>>() }),
    ))
}

/// `GET /_matrix/client/v3/capabilities`
pub fn capabilities(hs: &Arc<Homeserver>, _request: &Request, _requester: &Requester) -> Result<Reply> {
    let available: Map<String, Value> =
        room_version::all().iter().map(|version| (version.id.to_owned(), json!("stable"))).collect();
    Ok(Reply::json(&json!({ "capabilities": {
        "m.change_password": { "enabled": true },
        "m.room_versions": { "default": hs.config.default_room_version.id, "available": available },
        "m.set_displayname": { "enabled": true },
        "m.set_avatar_url": { "enabled": true },
        "m.3pid_changes": { "enabled": false },
        "m.get_login_token": { "enabled": false },
    } })))
}

/// `GET /.well-known/matrix/client`
pub fn well_known_client(hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    Ok(Reply::json(&json!({ "m.homeserver": { "base_url": hs.config.public_url } })))
}

/// `GET /.well-known/matrix/server`: other servers are sent to where clients go. They only ask if the server's name has
/// no port, and then at port 443 of that name, so that this is where a reverse proxy answers.
pub fn well_known_server(hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    let url = &hs.config.public_url;
    let authority = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    // The colons within the brackets of an IPv6 address are no port.
    let has_port = authority.rsplit(']').next().is_some_and(|tail| tail.contains(':'));
    let server = if has_port { authority.to_owned() } else { format!("{authority}:443") };
    Ok(Reply::json(&json!({ "m.server": server })))
}

/// `GET /.well-known/matrix/support`
pub fn well_known_support(_hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    Err(Error::not_found("No support information"))
}
