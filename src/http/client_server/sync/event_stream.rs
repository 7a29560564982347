//! What clients used before there was `/sync`, and what looks into a room from outside.

use std::sync::Arc;
use std::time::Duration;

use super::{reply_in_turn, timeout, turn_of};
use crate::error::{ErrCode, Error, Result};
use crate::http::{Outcome, Poll, Reply, Request, Requester};
use crate::protocol::RoomId;
use crate::service::Homeserver;
use crate::service::rooms::pagination_token::PaginationToken;
use crate::store::ephemeral::presence::PresenceState;

/// How long a client waits that does not say for how long.
const TIMEOUT_USUAL: Duration = Duration::from_secs(30);
/// Messages of each room when the client does not say how many.
const MESSAGES_USUAL: usize = 10;

/// Where a request that waits goes on from.
#[derive(Clone, Copy)]
struct From(i64);

/// `GET /_matrix/client/v3/events`. Errors: 403 `M_GUEST_ACCESS_FORBIDDEN` for guests, but "as used for room previews".
pub fn events(hs: &Arc<Homeserver>, request: &Request, requester: &Requester, poll: Poll) -> Result<Outcome> {
    let room = request.query("room_id").map(RoomId::parse).transpose();
    let room = room.map_err(|_| Error::invalid_param("room_id is no room id"))?;
    if room.is_none() && requester.standing.guest {
        return Err(Error::new(ErrCode::GuestAccessForbidden, "Guests can follow one room at a time"));
    }
    let timeout = timeout(request)?.unwrap_or(TIMEOUT_USUAL);
    let (user, until) = (&requester.user_id, request.received() + timeout);
    let From(from) = match request.memo::<From>() {
        Some(from) => from,
        None => match request.query("from").filter(|token| !token.is_empty()) {
            Some(token) => From(PaginationToken::parse(token)?.0.stream),
            None => From(hs.store.position()),
        },
    };
    if poll == Poll::First {
        let waits = i64::try_from(timeout.as_millis()).unwrap_or(0);
        hs.ephemeral().note_poll(user, requester.device_id.as_deref(), PresenceState::Online, waits);
    }
    if let Some(room) = room.as_ref().filter(|_| poll != Poll::Last && !timeout.is_zero()) {
        hs.syncing().watch_room(user, room, until)?;
    }
    let answer = hs.syncing().event_stream((user, requester.device_id.as_deref()), from, room.as_ref())?;
    if answer.is_empty && poll != Poll::Last && !timeout.is_zero() {
        request.keep_memo(From(from));
        return Ok(Outcome::Wait { user: user.clone(), after: answer.position, until });
    }
    Ok(Outcome::Reply(Reply::raw_json(answer.body)))
}

/// `GET /_matrix/client/v3/initialSync`.
pub fn initial(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let archived = request.query_bool("archived")?.unwrap_or(false);
    let limit = match request.query_int("limit")? {
        None => MESSAGES_USUAL,
        Some(limit) => {
            usize::try_from(limit).map_err(|_| Error::invalid_param("limit must not be negative"))?
        }
    };
    let turn = turn_of(hs, (request, requester))?;
    let who = (&requester.user_id, requester.device_id.as_deref());
    Ok(reply_in_turn(Some(turn), hs.syncing().initial(who, limit, archived)?))
}
