//! The client-server API. Thin: parse, call the homeserver, answer. What several of them share is here.
//!
//! The folders are the subjects of `service/`; the files in them are named as the specification's sections are.

pub mod accounts;
pub mod appservices;
pub mod devices;
pub mod discovery;
pub mod media;
pub mod push;
pub mod rooms;
pub mod sync;
pub mod voip;

use crate::error::{Error, Result};
use crate::http::client_server::sync::{LARGE_BYTES_MIN, reply_in_turn, turn_of};
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

/// An answer that may be large: at once if it is small, in its turn if not. `make` is told how many bytes it may have, and makes none
/// where there would be more. Errors: those of `make`, 429 `M_LIMIT_EXCEEDED`.
pub(in crate::http) fn reply_by_size(
    hs: &Homeserver,
    (request, requester): (&Request, &Requester),
    make: impl Fn(usize) -> Result<Option<Vec<u8>>>,
) -> Result<Reply> {
    if let Some(small) = make(LARGE_BYTES_MIN)? {
        return Ok(Reply::raw_json(small));
    }
    let turn = turn_of(hs, (request, requester))?;
    let large = make(usize::MAX)?.ok_or_else(|| Error::internal("an answer without a bound has one"))?;
    Ok(reply_in_turn(Some(turn), large.into()))
}

/// A page, which is bounded by itself: it has a turn while it is read if it is large. Errors: 429 `M_LIMIT_EXCEEDED`.
pub(in crate::http) fn reply_with_page<T: serde::Serialize>(
    hs: &Homeserver,
    (request, requester): (&Request, &Requester),
    page: &T,
) -> Result<Reply> {
    let body = serde_json::to_vec(page).map_err(Error::internal)?;
    let turn = (body.len() > LARGE_BYTES_MIN).then(|| turn_of(hs, (request, requester))).transpose()?;
    Ok(reply_in_turn(turn, body.into()))
}

/// `via`, or `server_name` as it was called before v1.12. What is no server name is of no use, and does no harm; more
/// than a handful is of no use either.
pub(in crate::http) fn via(request: &Request) -> Vec<ServerName> {
    const VIA_MAX: usize = 20;
    let name = if request.query("via").is_some() { "via" } else { "server_name" };
    request.query_all(name).filter_map(|server| ServerName::parse(server).ok()).take(VIA_MAX).collect()
}
