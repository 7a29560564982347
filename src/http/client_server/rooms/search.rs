//! Client-server API, "Server Side Search".

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::http::client_server::sync::{reply_in_turn, turn_of};
use crate::http::client_server::{client_format, reply_with_page};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::rooms::search_format::{SearchAnswer, SearchCriteria};

#[derive(Deserialize)]
struct SearchRequest {
    search_categories: Categories<SearchCriteria>,
}

#[derive(Serialize)]
struct Answer {
    search_categories: Categories<SearchAnswer>,
}

/// "Currently the only specified category is `room_events`."
#[derive(Deserialize, Serialize)]
struct Categories<T> {
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    room_events: Option<T>,
}

/// `POST /_matrix/client/v3/search`.
pub fn search(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body: SearchRequest = request.json()?;
    let criteria = body.search_categories.room_events;
    let (format, next) = (client_format(hs, requester), request.query("next_batch"));
    let wants_state = criteria.as_ref().is_some_and(SearchCriteria::wants_state);
    let turn = wants_state.then(|| turn_of(hs, (request, requester))).transpose()?;
    let gone = request.hung_up();
    let wanted = || !gone.as_ref().is_some_and(|gone| gone());
    let room_events =
        criteria.map(|criteria| hs.rooms().search(&format, &criteria, next, wanted)).transpose()?;
    let answer = Answer { search_categories: Categories { room_events } };
    match turn {
        Some(turn) => {
            let body = serde_json::to_vec(&answer).map_err(Error::internal)?;
            Ok(reply_in_turn(Some(turn), body.into()))
        }
        None => reply_with_page(hs, (request, requester), &answer),
    }
}
