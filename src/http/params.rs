//! What the handlers of both APIs read of a request: the parameters of its path as identifiers, and the queries that
//! both have.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::http::transport::request::Request;
use crate::protocol::media::{MediaId, MxcUri};
use crate::protocol::{EventId, RoomAlias, RoomId, ServerName, UserId};
use crate::service::events::nearest_event::TimestampQuery;
use crate::service::media::no_such_media;
use crate::service::media::thumbnail::{Method, ThumbnailRequest};
use crate::service::media::thumbnails::WantedThumbnail;
use crate::service::rooms::directory::PublicRoomsRequest;
use crate::service::rooms::pagination_token::PaginationToken;

/// Longest transaction id of a client, in bytes.
const TXN_ID_BYTES_MAX: usize = 255;
/// How long somebody who asks for media waits for their upload: usually, and at most.
const UPLOAD_WAIT: Duration = Duration::from_secs(20);
const UPLOAD_WAIT_MAX: Duration = Duration::from_secs(60);

impl Request {
    /// The path parameter `{roomId}`. Errors: 400 `M_INVALID_PARAM`.
    pub fn room_id(&self) -> Result<RoomId> {
        RoomId::parse(self.param("roomId"))
    }

    /// The path parameter `{eventId}`. Errors: 400 `M_INVALID_PARAM`.
    pub fn event_id(&self) -> Result<EventId> {
        EventId::parse(self.param("eventId"))
    }

    /// The path parameter `{userId}`. Errors: 400 `M_INVALID_PARAM`.
    pub fn user_id(&self) -> Result<UserId> {
        UserId::parse(self.param("userId"))
    }

    /// The path parameter `{roomAlias}`. Errors: 400 `M_INVALID_PARAM`.
    pub fn room_alias(&self) -> Result<RoomAlias> {
        RoomAlias::parse(self.param("roomAlias"))
    }

    /// A query parameter that is a pagination token. Several clients send an empty one where they mean none. Errors: 400
    /// `M_INVALID_PARAM`.
    pub fn pagination_token(&self, name: &str) -> Result<Option<PaginationToken>> {
        self.query(name).filter(|token| !token.is_empty()).map(PaginationToken::parse).transpose()
    }

    /// The path parameter `{txnId}` of a client, which is kept for days. Errors: 400 `M_INVALID_PARAM` beyond 255
    /// bytes.
    pub fn txn_id(&self) -> Result<String> {
        match self.param("txnId") {
            id if id.len() <= TXN_ID_BYTES_MAX => Ok(id.to_owned()),
            _ => Err(Error::invalid_param("A transaction id has at most 255 bytes")),
        }
    }

    /// Until when an upload is waited for, by the query parameter `timeout_ms`: "The content repository SHOULD impose a
    /// maximum value". Errors: 400 `M_INVALID_PARAM`.
    pub fn upload_deadline(&self) -> Result<Instant> {
        let wait = match self.query_int("timeout_ms")? {
            None => UPLOAD_WAIT,
            Some(ms) => {
                let ms =
                    u64::try_from(ms).map_err(|_| Error::invalid_param("timeout_ms must not be negative"))?;
                Duration::from_millis(ms).min(UPLOAD_WAIT_MAX)
            }
        };
        Ok(self.received() + wait)
    }

    /// The path parameter `{serverName}`. Errors: 400 `M_INVALID_PARAM`.
    pub fn server_name(&self) -> Result<ServerName> {
        ServerName::parse(self.param("serverName"))
    }
}

impl Request {
    /// The path parameters `{serverName}` and `{mediaId}`. Errors: 404 `M_NOT_FOUND`, since nothing can be had by what is no
    /// URI.
    pub fn mxc_uri(&self) -> Result<MxcUri> {
        match (ServerName::parse(self.param("serverName")), MediaId::parse(self.param("mediaId"))) {
            (Ok(server), Ok(media_id)) => Ok(MxcUri { server, media_id }),
            _ => Err(no_such_media()),
        }
    }
}

/// The thumbnail that is asked for. Errors: 400 `M_MISSING_PARAM` or `M_INVALID_PARAM`.
pub(super) fn wanted_thumbnail(request: &Request) -> Result<WantedThumbnail> {
    let side = |name: &'static str| {
        let side = request.query_int(name)?;
        let side = side.ok_or_else(|| Error::missing_param(format!("Missing query parameter {name}")))?;
        let side = u32::try_from(side).ok().filter(|side| *side > 0);
        side.ok_or_else(|| Error::invalid_param(format!("{name} must be a number of pixels")))
    };
    let method = match request.query("method") {
        None => Method::Scale,
        Some(method) => {
            Method::from_wire(method).ok_or_else(|| Error::invalid_param("method must be crop or scale"))?
        }
    };
    let size = ThumbnailRequest { width: side("width")?, height: side("height")?, method };
    Ok(WantedThumbnail { size, animated: request.query_bool("animated")?.unwrap_or(false) })
}

/// The time and direction that `timestamp_to_event` asks about.
pub(super) fn moment(request: &Request) -> Result<TimestampQuery> {
    let ts = request.query_int("ts")?.ok_or_else(|| Error::missing_param("Missing query parameter ts"))?;
    let forwards = match request.required_query("dir")? {
        "f" => true,
        "b" => false,
        _ => return Err(Error::invalid_param("dir must be f or b")),
    };
    Ok(TimestampQuery { ts, forwards })
}

/// What a `GET` of a directory asks for, in both APIs.
pub(super) fn public_rooms_page(request: &Request) -> Result<PublicRoomsRequest> {
    let limit = request.query_int("limit")?;
    let limit = limit
        .map(|limit| u64::try_from(limit).map_err(|_| Error::invalid_param("limit must not be negative")));
    Ok(PublicRoomsRequest {
        limit: limit.transpose()?,
        since: request.query("since").map(str::to_owned),
        include_all_networks: request.query_bool("include_all_networks")?.unwrap_or(false),
        third_party_instance_id: request.query("third_party_instance_id").map(str::to_owned),
        filter: None,
    })
}
