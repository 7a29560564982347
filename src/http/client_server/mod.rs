//! The client-server API, a file a subject. Thin: parse, call the homeserver, answer. What several of them share is
//! here.
//!
//! `rooms` makes rooms and sends events, `messages` reads them, `membership` joins, knocks, invites and leaves; `sync`
//! waits for news, and so do `sliding_sync` and `sliding_sync_v4`; `register`, `login`, `account`, `devices` and `interactive` are about accounts; the others are named
//! as the specification's sections are.

pub mod account;
pub mod account_data;
pub mod admin;
pub mod dehydrated;
pub mod delayed_events;
pub mod devices;
pub mod directory;
pub mod discovery;
pub mod ephemeral;
pub mod filters;
pub mod interactive;
pub mod keys;
pub mod login;
pub mod media;
pub mod membership;
pub mod messages;
pub mod openid;
pub mod presence;
pub mod profile;
pub mod push_rules;
pub mod pushers;
pub mod register;
pub mod relations;
pub mod reports;
pub mod room_keys;
pub mod rooms;
pub mod search;
pub mod sliding_sync;
pub mod sliding_sync_v4;
pub mod spaces;
pub mod sync;
pub mod thumbnails;
pub mod to_device;
pub mod url_preview;
pub mod user_directory;
pub mod voip;

use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::protocol::ServerName;
use crate::service::Homeserver;
use crate::service::rooms::client_format::ClientFormat;

/// The usual way to write events for this requester.
fn client_format<'r>(hs: &Homeserver, requester: &'r Requester) -> ClientFormat<'r> {
    ClientFormat::usual(&requester.user_id, requester.device_id.as_deref(), hs.clock.now_ms())
}

/// 200 with JSON that this server made of its own types.
pub(in crate::http) fn reply<T: serde::Serialize>(body: &T) -> Result<Reply> {
    Ok(Reply::raw_json(serde_json::to_vec(body).map_err(Error::internal)?))
}

/// `via`, or `server_name` as it was called before v1.12. What is no server name is of no use, and does no harm; more
/// than a handful is of no use either.
pub(in crate::http) fn via(request: &Request) -> Vec<ServerName> {
    const VIA_MAX: usize = 20;
    let name = if request.query("via").is_some() { "via" } else { "server_name" };
    request.query_all(name).filter_map(|server| ServerName::parse(server).ok()).take(VIA_MAX).collect()
}
