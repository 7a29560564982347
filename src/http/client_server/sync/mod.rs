//! Client-server API, "Syncing".

pub mod ephemeral;
pub mod event_stream;
pub mod presence;
pub mod sliding;
pub mod sliding_v4;

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::http::auth;
use crate::http::transport::request::LightAnswer;
use crate::http::{Outcome, Poll, Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::limits::large_answers::AnswerTurn;
use crate::service::sync::{AnswerBody, SyncAnswer, SyncRequest, parse_since};
use crate::store::ephemeral::presence::PresenceState;

/// Answers that are larger hold their turn until they are written.
pub(super) const LARGE_BYTES_MIN: usize = 256 << 10;

/// What is larger than this keeps others from beginning, and has to be taken at the rate at which all of it takes so long,
/// but for the grace that each part of it has: any client has given up by then.
const TAKEN_IN_TIME_BYTES_MIN: usize = 4 << 20;
const TAKEN_WITHIN_SECONDS: usize = 600;

/// No request waits longer than this, whatever it asks for.
pub(super) const SYNC_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// `GET /_matrix/client/v3/sync`.
pub fn sync(hs: &Arc<Homeserver>, request: &Request, requester: &Requester, poll: Poll) -> Result<Outcome> {
    let asked_before = request.memo::<SyncRequest>();
    let timeout = timeout(request)?.unwrap_or_default();
    let asked = match asked_before {
        Some(asked) => asked,
        None => asked(hs, request, requester)?,
    };
    if poll == Poll::First {
        let presence = request.query("set_presence").map_or(Ok(PresenceState::Online), presence::state)?;
        hs.ephemeral().note_poll(
            &requester.user_id,
            requester.device_id.as_deref(),
            presence,
            i64::try_from(timeout.as_millis()).unwrap_or(0),
        );
    }
    let may_be_large = poll == Poll::First
        && (asked.full_state || hs.syncing().may_be_long_ago(&requester.user_id, asked.since));
    let mut turn = may_be_large.then(|| turn_of(hs, (request, requester))).transpose()?;
    let mut answer = hs.syncing().sync(&requester.user_id, requester.device_id.as_deref(), &asked)?;
    if poll == Poll::First && turn.is_none() && answer.body.len() > LARGE_BYTES_MIN {
        // It is made anew in its turn: with all who wait for theirs memory would have to hold all of them.
        answer.body = AnswerBody::default();
        turn = Some(turn_of(hs, (request, requester))?);
        answer = hs.syncing().sync(&requester.user_id, requester.device_id.as_deref(), &asked)?;
    }
    // "In this case, the timeout parameter will be ignored and the query will return immediately."
    let may_wait = poll != Poll::Last && !answer.is_initial && !asked.full_state && !timeout.is_zero();
    if answer.is_empty && may_wait {
        wait_lightly(hs, request, requester, &asked, &answer);
        return Ok(Outcome::Wait {
            user: requester.user_id.clone(),
            after: answer.position,
            until: request.received() + timeout,
        });
    }
    Ok(Outcome::Reply(reply_in_turn(turn, answer.body)))
}

/// How long the request waits for news, if it says so.
fn timeout(request: &Request) -> Result<Option<Duration>> {
    let Some(ms) = request.query_int("timeout")? else { return Ok(None) };
    let ms = u64::try_from(ms).map_err(|_| Error::invalid_param("timeout must not be negative"))?;
    Ok(Some(Duration::from_millis(ms).min(SYNC_TIMEOUT_MAX)))
}

/// The turn of an answer that may be large, waited for while somebody waits for the answer.
pub(super) fn turn_of(hs: &Homeserver, (request, requester): (&Request, &Requester)) -> Result<AnswerTurn> {
    hs.large_answers.turn(&requester.user_id, || !request.hung_up().is_some_and(|gone| gone()))
}

/// An answer, whose turn is over when it is written; at once if it turns out to be small.
pub(super) fn reply_in_turn(turn: Option<AnswerTurn>, body: AnswerBody) -> Reply {
    match turn.filter(|_| body.len() > LARGE_BYTES_MIN) {
        Some(turn) => {
            let length = body.len();
            let body = Box::new(turn.read(length, body));
            let reply = Reply::stream("application/json", length as u64, body);
            if length > TAKEN_IN_TIME_BYTES_MIN {
                reply.taken_at(length / TAKEN_WITHIN_SECONDS)
            } else {
                reply
            }
        }
        None => Reply::raw_json(body.into_bytes()),
    }
}

/// What the request asks for.
fn asked(hs: &Homeserver, request: &Request, requester: &Requester) -> Result<SyncRequest> {
    let state_after = request.query_bool("use_state_after")?;
    // The name that the parameter had before it was part of the specification.
    let unstable = request.query_bool("org.matrix.msc4222.use_state_after")?;
    Ok(SyncRequest {
        filter: Arc::new(hs.syncing().filter_for(&requester.user_id, request.query("filter"))?),
        since: request.query("since").filter(|token| !token.is_empty()).map(parse_since).transpose()?,
        full_state: request.query_bool("full_state")?.unwrap_or(false),
        state_after: state_after.or(unstable).unwrap_or(false),
        older_name: state_after.is_none(),
        looked_upto: None,
    })
}

/// Before a wait: notes what the next look need not do again, and how the wait may end without one.
fn wait_lightly(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: &Requester,
    asked: &SyncRequest,
    answer: &SyncAnswer,
) {
    let (user, device) = (&requester.user_id, requester.device_id.as_deref());
    request.keep_memo(SyncRequest { looked_upto: Some(answer.position), ..asked.clone() });
    let light = hs.syncing().prepare_light(user, device, asked, answer);
    let hs = hs.clone();
    request.keep_light_answer(light.map(|light| -> LightAnswer {
        Box::new(move |request: &Request| {
            let body = hs.syncing().light_answer(&light)?;
            // Whose session was ended meanwhile is told so by the next look.
            auth::requester(&hs, request).ok().flatten()?;
            Some(Reply::raw_json(body))
        })
    }));
}
