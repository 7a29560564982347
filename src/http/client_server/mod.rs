//! The client-server API. Thin: parse, call the homeserver, answer. What several of them share is here.
//!
//! The folders are the subjects of `service/`; the files in them are named as the specification's sections are.

pub mod accounts;
pub mod devices;
pub mod discovery;
pub mod media;
pub mod push;
pub mod rooms;
pub mod sync;
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
