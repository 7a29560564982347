//! Client-server API, "Server Side Search".

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::http::client_server::{client_format, reply};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::rooms::search::{SearchAnswer, SearchCriteria};

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
    let gone = request.hung_up();
    let wanted = || !gone.as_ref().is_some_and(|gone| gone());
    let room_events =
        criteria.map(|criteria| hs.rooms().search(&format, &criteria, next, wanted)).transpose()?;
    reply(&Answer { search_categories: Categories { room_events } })
}
