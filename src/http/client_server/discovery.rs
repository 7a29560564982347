//! What a client or a server asks first: who is here, which versions, what is possible.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::config::SupportContact;
use crate::error::{ErrCode, Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::order::Gather;
use crate::protocol::room_version;
use crate::service::Homeserver;
use crate::service::rooms::delayed_events::{DELAY_MAX_MS, DELAYED_EVENTS_MAX};

/// The versions of the specification whose client API is served, in so far as it is served at all.
const VERSIONS: [&str; 14] = [
    "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
    "v1.13", "v1.14",
];

/// What clients look for under names of its own. Without sliding sync those of the newer engines log in nowhere. Its
/// accepted form has no name yet by which clients would look for it. The others are those of cross-signing, for old clients,
/// of dehydrated devices, of delayed events, of thread subscriptions, of pushers that can be switched off, and of the rooms that two users share; and those
/// that some look for in place of a version: of private receipts, threads, their list and the direction of relations (v1.4), of files
/// with authentication (v1.11), of any fields in profiles (v1.16), of redactions that are sent like other events, and of invites
/// that are blocked (v1.18).
const UNSTABLE_FEATURES: [&str; 16] = [
    "com.beeper.msc4169",
    "org.matrix.e2e_cross_signing",
    "org.matrix.msc2285.stable",
    "org.matrix.msc3440.stable",
    "org.matrix.msc3715.stable",
    "org.matrix.msc3814",
    "org.matrix.msc3856.stable",
    "org.matrix.msc3881",
    "org.matrix.msc3916.stable",
    "org.matrix.msc4140",
    "org.matrix.msc4306",
    "org.matrix.msc4380.stable",
    "org.matrix.simplified_msc3575",
    "uk.half-shot.msc2666.query_mutual_rooms",
    "uk.half-shot.msc2666.query_mutual_rooms.stable",
    "uk.tcpip.msc4133.stable",
];

/// "a catch-all role for any queries".
const SUPPORT_ROLE: &str = "m.role.admin";

/// `GET /.well-known/acme-challenge/{token}` (RFC 8555, 8.3): what proves to an authority that a name of this server is.
/// Errors: 404 `M_NOT_FOUND` while nothing is proven.
pub fn acme_challenge(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    let page = hs.acme.page(request.param("token"));
    let page = page.ok_or_else(|| Error::not_found("Nothing is proven by this token"))?;
    Ok(Reply::bytes("application/octet-stream", page.into_bytes()))
}

/// `GET /_matrix/client/versions`
pub fn versions(_hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    Ok(Reply::json(
        &json!({ "versions": VERSIONS, "unstable_features": UNSTABLE_FEATURES.map(|f| (f, true)).into_iter().gather::<BTreeMap<_, _>>() }),
    ))
}

/// `GET /_matrix/client/v3/capabilities`
pub fn capabilities(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    let available: Map<String, Value> =
        room_version::all().iter().map(|version| (version.id.to_owned(), json!("stable"))).gather();
    let mut capabilities = json!({
        "m.change_password": { "enabled": true },
        "m.room_versions": { "default": hs.config.default_room_version.id, "available": available },
        "m.profile_fields": { "enabled": true },
        "m.set_displayname": { "enabled": true },
        "m.set_avatar_url": { "enabled": true },
        "m.3pid_changes": { "enabled": false },
        "m.get_login_token": { "enabled": !requester.standing.guest && !requester.standing.suspended },
        // MSC4452: clients do not ask for previews where there are none.
        "io.element.msc4452.preview_url": { "enabled": hs.config.url_previews },
        "org.matrix.msc4140.delayed_events": { "max_delay_ms": DELAY_MAX_MS, "max_scheduled": DELAYED_EVENTS_MAX },
    });
    // "This property should be omitted altogether if `suspend` and `lock` would be `false`."
    if requester.admin {
        capabilities["m.account_moderation"] = json!({ "suspend": true, "lock": true });
    }
    Ok(Reply::json(&json!({ "capabilities": capabilities })))
}

/// `GET /.well-known/matrix/client`
pub fn well_known_client(hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    let mut body = json!({ "m.homeserver": { "base_url": hs.config.public_url } });
    if let Some(transport) = rtc_transport(hs) {
        body["org.matrix.msc4143.rtc_foci"] = json!([transport]);
    }
    Ok(Reply::json(&body))
}

/// `GET /_matrix/client/unstable/org.matrix.msc4143/rtc/transports`: by what calls of this server's users go. Errors: 404
/// `M_UNRECOGNIZED` where the settings name nothing: an empty list would say that there is none, and who has it in a file
/// of their own at the same address as this server's would not be asked.
pub fn rtc_transports(hs: &Arc<Homeserver>, _request: &Request, _requester: &Requester) -> Result<Reply> {
    let transport = rtc_transport(hs);
    let transport =
        transport.ok_or_else(|| Error::new(ErrCode::Unrecognized, "Nothing is set up for calls"))?;
    Ok(Reply::json(&json!({ "rtc_transports": [transport] })))
}

fn rtc_transport(hs: &Homeserver) -> Option<Value> {
    let url = hs.config.livekit_service_url.as_ref()?;
    Some(json!({ "type": "livekit", "livekit_service_url": url }))
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

/// `GET /.well-known/matrix/support`: whom users may turn to ("Getting support"), as the settings say. Errors: 404
/// `M_NOT_FOUND` where they say nothing.
pub fn well_known_support(hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    let contact = |contact: &SupportContact| match contact {
        SupportContact::User(user) => json!({ "matrix_id": user, "role": SUPPORT_ROLE }),
        SupportContact::Email(address) => json!({ "email_address": address, "role": SUPPORT_ROLE }),
    };
    let mut told = Map::new();
    if !hs.config.support_contacts.is_empty() {
        let contacts: Vec<Value> = hs.config.support_contacts.iter().map(contact).collect();
        told.insert("contacts".to_owned(), contacts.into());
    }
    if let Some(page) = &hs.config.support_page {
        told.insert("support_page".to_owned(), page.as_str().into());
    }
    if told.is_empty() {
        return Err(Error::not_found("No support information"));
    }
    Ok(Reply::json(&told.into()))
}
