//! Why a call to another server gave nothing, and how the caller's own client should hear of it.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::{ErrCode, Error};
use crate::protocol::ServerName;

/// What a call gives.
pub type CallResult<T> = std::result::Result<T, CallError>;

/// Why a call gave nothing.
#[derive(Debug, Clone)]
pub enum CallError {
    /// No answer, or one of a proxy that speaks for an absent server. Trying again later may help.
    Unreachable(String),
    /// Nobody to connect to: no address, no connection, no certificate. So it is with every request.
    Unconnected(String),
    /// The peer answered, and its answer is no.
    Refused(Box<PeerError>),
    /// The peer answered with something that is not an answer: not JSON, too long, missing parts, lies.
    BadAnswer(String),
    /// The peer's answer is larger than so many bytes, which is all that was wanted of it.
    TooLarge(u64),
    /// The peer did what it was asked to (its status was 2xx); and then its answer broke off, or was of no use.
    AfterSuccess(Box<CallError>),
}

/// A peer's error.
#[derive(Debug, Clone)]
pub struct PeerError {
    /// The HTTP status.
    pub status: u16,
    /// The error code, if the body was a Matrix error.
    pub errcode: Option<String>,
    /// The `error` text, cut and without control characters; empty if there is none.
    pub message: String,
    /// The whole body, if it was a JSON object.
    pub body: Map<String, Value>,
}

/// Whether a peer says that this was too often. By its code too: the status may be one that is no news of our server.
fn is_limit(refusal: &PeerError) -> bool {
    refusal.status == 429 || refusal.errcode.as_deref() == Some("M_LIMIT_EXCEEDED")
}

impl CallError {
    /// A bad answer, in words.
    pub fn bad(why: impl Into<String>) -> Self {
        Self::BadAnswer(why.into())
    }

    /// This error, where the peer had said yes before.
    #[must_use]
    pub fn after_success(self) -> Self {
        if self.is_after_success() { self } else { Self::AfterSuccess(Box::new(self)) }
    }

    /// Whether the peer did what it was asked to, whatever came with its answer.
    pub fn is_after_success(&self) -> bool {
        matches!(self, Self::AfterSuccess(_))
    }

    /// Whether the peer could not be reached, or not to the end of its answer.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Unconnected(_) => true,
            Self::AfterSuccess(error) => error.is_unreachable(),
            Self::Refused(_) | Self::BadAnswer(_) | Self::TooLarge(_) => false,
        }
    }

    /// Whether there was nobody to connect to, whatever they would have been asked.
    pub fn is_unconnected(&self) -> bool {
        matches!(self, Self::Unconnected(_))
    }

    /// Whether the same call may succeed later without anybody changing their mind: no connection, rate limits,
    /// internal errors of the peer.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Unconnected(_) => true,
            Self::Refused(refusal) => refusal.status == 429 || refusal.status >= 500,
            Self::BadAnswer(_) | Self::TooLarge(_) => false,
            Self::AfterSuccess(error) => error.is_transient(),
        }
    }

    /// The peer's own words, if it answered with an error.
    pub fn refusal(&self) -> Option<&PeerError> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The peer's error code, if it is one that we know.
    pub fn errcode(&self) -> Option<ErrCode> {
        ErrCode::from_wire(self.refusal()?.errcode.as_deref()?)
    }

    /// Whether the peer does not know the endpoint (rather than the resource), so that an older one may be tried.
    pub fn is_unrecognized(&self) -> bool {
        self.refusal().is_some_and(|r| match r.errcode.as_deref() {
            Some(code) => code == "M_UNRECOGNIZED",
            None => matches!(r.status, 404 | 405),
        })
    }

    /// For how long the peer asks us to wait, if it limits our rate.
    pub fn retry_after(&self) -> Option<Duration> {
        let refusal = self.refusal().filter(|refusal| is_limit(refusal))?;
        refusal.body.get("retry_after_ms").and_then(Value::as_u64).map(Duration::from_millis)
    }

    /// As our own client should hear of a limit that the peer set to what it asked for: 429 `M_LIMIT_EXCEEDED`, with
    /// the peer's `retry_after_ms`. None of any other error.
    pub fn as_limit(&self, peer: &ServerName) -> Option<Error> {
        const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
        self.refusal().filter(|refusal| is_limit(refusal))?;
        let told = Error::new(ErrCode::LimitExceeded, format!("{peer} wants to be asked later"));
        let wait = self.retry_after().map(|wait| wait.min(RETRY_AFTER_MAX).as_millis());
        Some(match wait.and_then(|ms| u64::try_from(ms).ok()) {
            Some(ms) => told.with_field("retry_after_ms", ms),
            None => told,
        })
    }

    /// [`Self::into_client_error`] of a join, a knock or an invite: "The error should be passed through to clients so that they
    /// may give better feedback to users", but for `M_MISSING_PARAM` and `M_INVALID_PARAM`. A 400 or 403 by another code than
    /// those of the resource is told as such in the peer's words, under a code of ours: a peer's may have clients log out, ask
    /// for a password or show somebody's link. What this server does next does not rest on it.
    pub fn into_handshake_error(self, peer: &ServerName) -> Error {
        let told = self.refusal().filter(|refusal| is_for_users(refusal));
        let told = told.map(|refusal| (refusal.status, refusal.message.clone()));
        let error = self.into_client_error(peer);
        match told.filter(|_| !error.errcode().is_relayable()) {
            Some((status, said)) if said.is_empty() => error.told_as(status),
            Some((status, said)) => error.with_message(format!("{peer} refused: {said}")).told_as(status),
            None => error,
        }
    }

    /// As our own client should hear it: codes that speak of the resource pass with their extra fields, everything
    /// else is 502 naming the peer (504 if it was not reached).
    pub fn into_client_error(self, peer: &ServerName) -> Error {
        // Knocking, say, which not every server has: nobody need try it again.
        let has_it = !self.is_unrecognized();
        match self {
            Self::Unreachable(why) | Self::Unconnected(why) => {
                Error::bad_gateway(format!("{peer} could not be reached")).with_status(504).with_cause(why)
            }
            Self::BadAnswer(why) => {
                Error::bad_gateway(format!("{peer} answered with nonsense")).with_cause(why)
            }
            Self::TooLarge(most) => {
                let told = format!("What {peer} has is larger than the {most} bytes that this server takes");
                Error::new(ErrCode::TooLarge, told).with_status(502)
            }
            Self::AfterSuccess(error) => error.into_client_error(peer),
            Self::Refused(refusal) => {
                let code =
                    refusal.errcode.as_deref().and_then(ErrCode::from_wire).filter(|c| c.is_relayable());
                let Some(code) = code else {
                    let errcode = refusal.errcode.as_deref().unwrap_or("no errcode");
                    let cause = format!("{} {errcode}: {}", refusal.status, refusal.message);
                    let did = if has_it { "refused our request" } else { "knows no such request" };
                    return Error::bad_gateway(format!("{peer} {did}")).with_cause(cause);
                };
                let message =
                    if refusal.message.is_empty() { format!("{peer} refused") } else { refusal.message };
                // Fields that belong to a relayable code; a peer may not put others into our answer.
                let room_version = refusal.body.get("room_version").and_then(Value::as_str);
                match room_version.filter(|_| code == ErrCode::IncompatibleRoomVersion) {
                    Some(v) => Error::new(code, message).with_field("room_version", v),
                    None => Error::new(code, message),
                }
            }
        }
    }
}

/// Whether what a peer says in refusing may be of use to the user, whatever its code: it is not about how this server has asked.
fn is_for_users(refusal: &PeerError) -> bool {
    const OF_OUR_REQUEST: [&str; 3] = ["M_MISSING_PARAM", "M_INVALID_PARAM", "M_UNRECOGNIZED"];
    let code = refusal.errcode.as_deref();
    matches!(refusal.status, 400 | 403) && code.is_some_and(|code| !OF_OUR_REQUEST.contains(&code))
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) | Self::Unconnected(why) => write!(f, "unreachable: {why}"),
            Self::Refused(r) => {
                write!(
                    f,
                    "refused: {} {} {}",
                    r.status,
                    r.errcode.as_deref().unwrap_or("(no errcode)"),
                    r.message
                )
            }
            Self::BadAnswer(why) => write!(f, "bad answer: {why}"),
            Self::TooLarge(most) => write!(f, "larger than {most} bytes"),
            Self::AfterSuccess(error) => write!(f, "{error} (after it had done what it was asked to)"),
        }
    }
}

impl std::error::Error for CallError {}
