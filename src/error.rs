//! The one error type: what went wrong, as Matrix says it to a client or a peer.
//!
//! `ErrCode::status` is the only table from errcode to HTTP status. An `Error` has two faces: `message` (and
//! `fields`) go on the wire, `cause` goes to the log and never leaves the house. Where another server's refusal is passed on,
//! the wire has its status too (`told_as`), and within the house it stays a failure of that server. Functions return errors or
//! log them, never both; the HTTP layer logs what it answers with 500.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value};

/// Shorthand used everywhere in the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! errcodes {
    ($($name:ident $wire:literal $status:literal $relayable:literal,)*) => {
        /// The error codes of the specification that this server says, each with its usual HTTP status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrCode { $(#[doc = $wire] $name,)* }

        impl ErrCode {
            /// The code as it is written on the wire, for example `M_FORBIDDEN`.
            pub fn as_str(self) -> &'static str { match self { $(Self::$name => $wire,)* } }

            /// The HTTP status that goes with this code unless a handler has a reason for another.
            pub fn status(self) -> u16 { match self { $(Self::$name => $status,)* } }

            /// Whether a peer's error with this code speaks of the resource, so that our own client may be told it
            /// as if it were ours. Codes about the peer's view of *us* (tokens, keys, limits) are not.
            pub fn is_relayable(self) -> bool { match self { $(Self::$name => $relayable,)* } }

            /// The code with this wire name, if it is one that we know.
            pub fn from_wire(name: &str) -> Option<Self> { match name { $($wire => Some(Self::$name),)* _ => None } }
        }
    };
}

errcodes! {
    BadAlias "M_BAD_ALIAS" 400 true,
    BadJson "M_BAD_JSON" 400 false,
    BadState "M_BAD_STATE" 400 true,
    BadStatus "M_BAD_STATUS" 502 false,
    CannotOverwriteMedia "M_CANNOT_OVERWRITE_MEDIA" 409 false,
    ConnectionFailed "M_CONNECTION_FAILED" 502 false,
    ConnectionTimeout "M_CONNECTION_TIMEOUT" 504 false,
    ConflictingUnsubscription "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION" 409 false,
    DuplicateAnnotation "M_DUPLICATE_ANNOTATION" 400 false,
    Exclusive "M_EXCLUSIVE" 400 false,
    Forbidden "M_FORBIDDEN" 403 true,
    GuestAccessForbidden "M_GUEST_ACCESS_FORBIDDEN" 403 false,
    IncompatibleRoomVersion "M_INCOMPATIBLE_ROOM_VERSION" 400 true,
    InvalidParam "M_INVALID_PARAM" 400 false,
    InvalidRoomState "M_INVALID_ROOM_STATE" 400 false,
    InvalidSignature "M_INVALID_SIGNATURE" 400 false,
    InvalidUsername "M_INVALID_USERNAME" 400 false,
    InviteBlocked "M_INVITE_BLOCKED" 403 true,
    KeyTooLarge "M_KEY_TOO_LARGE" 400 false,
    LimitExceeded "M_LIMIT_EXCEEDED" 429 false,
    MissingParam "M_MISSING_PARAM" 400 false,
    MissingToken "M_MISSING_TOKEN" 401 false,
    NotFound "M_NOT_FOUND" 404 true,
    NotInThread "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD" 400 false,
    NotJson "M_NOT_JSON" 400 false,
    NotYetUploaded "M_NOT_YET_UPLOADED" 504 true,
    ProfileTooLarge "M_PROFILE_TOO_LARGE" 400 false,
    ResourceLimitExceeded "M_RESOURCE_LIMIT_EXCEEDED" 403 false,
    RoomInUse "M_ROOM_IN_USE" 400 false,
    TermsNotSigned "M_TERMS_NOT_SIGNED" 403 false,
    TooLarge "M_TOO_LARGE" 413 false,
    Unauthorized "M_UNAUTHORIZED" 401 false,
    UnableToAuthoriseJoin "M_UNABLE_TO_AUTHORISE_JOIN" 400 true,
    UnableToGrantJoin "M_UNABLE_TO_GRANT_JOIN" 400 true,
    Unknown "M_UNKNOWN" 500 false,
    UnknownDevice "M_UNKNOWN_DEVICE" 400 false,
    UnknownPos "M_UNKNOWN_POS" 400 false,
    UnknownToken "M_UNKNOWN_TOKEN" 401 false,
    Unrecognized "M_UNRECOGNIZED" 404 false,
    UnsupportedRoomVersion "M_UNSUPPORTED_ROOM_VERSION" 400 false,
    UrlNotSet "M_URL_NOT_SET" 400 false,
    UserDeactivated "M_USER_DEACTIVATED" 403 false,
    UserInUse "M_USER_IN_USE" 400 false,
    UserLocked "M_USER_LOCKED" 401 false,
    UserSuspended "M_USER_SUSPENDED" 403 false,
    WeakPassword "M_WEAK_PASSWORD" 400 false,
    WrongRoomKeysVersion "M_WRONG_ROOM_KEYS_VERSION" 403 false,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The status of what cannot be had because another process has it ("Locked"); nobody is told it by HTTP.
pub const IN_USE: u16 = 423;

/// All that others are told of a failure of ours.
const INTERNAL: &str = "Internal server error";

/// What went wrong. See the module's head for the two faces.
pub struct Error(Box<ErrorParts>);

struct ErrorParts {
    errcode: ErrCode,
    status: u16,
    message: Cow<'static, str>,
    fields: Map<String, Value>,
    cause: Option<Cause>,
    /// The status and the code that go on the wire, if they are others.
    told_as: Option<(u16, ErrCode)>,
}

impl Error {
    /// An error with the code's usual status.
    pub fn new(errcode: ErrCode, message: impl Into<Cow<'static, str>>) -> Self {
        let (status, message) = (errcode.status(), message.into());
        Self(Box::new(ErrorParts {
            errcode,
            status,
            message,
            fields: Map::new(),
            cause: None,
            told_as: None,
        }))
    }

    /// Our fault: 500 `M_UNKNOWN`. The cause is for the log only.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self::new(ErrCode::Unknown, INTERNAL).with_cause(cause)
    }

    /// Another server's fault: 502 `M_UNKNOWN`; the message names the peer.
    pub fn bad_gateway(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrCode::Unknown, message).with_status(502)
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrCode::Forbidden, message)
    }

    /// 403 `M_FORBIDDEN` for a user who is not in a room, whether or not there is such a room.
    pub fn not_in_room() -> Self {
        Self::forbidden("You are not in this room")
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrCode::NotFound, message)
    }

    /// 400 `M_INVALID_PARAM`.
    pub fn invalid_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrCode::InvalidParam, message)
    }

    /// 400 `M_MISSING_PARAM`.
    pub fn missing_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrCode::MissingParam, message)
    }

    /// 400 `M_BAD_JSON`: valid JSON of the wrong shape.
    pub fn bad_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrCode::BadJson, message)
    }

    /// The same error with another HTTP status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.0.status = status;
        self
    }

    /// The same error with another sentence for the other side.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.0.message = message.into();
        self
    }

    /// The same error with one more top-level field in its body, for example `room_version`.
    #[must_use]
    pub fn with_field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.fields.insert(name.to_owned(), value.into());
        self
    }

    /// The same error with a cause for the log.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<Cause>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// The same error, of which whoever asked is told this status under a code of ours that goes with it: another server has
    /// refused, in words that mean something to people and nothing to this server, which may ask again. Of no other status
    /// than 400 and 403.
    #[must_use]
    pub fn told_as(mut self, status: u16) -> Self {
        self.0.told_as = match status {
            400 => Some((status, ErrCode::Unknown)),
            403 => Some((status, ErrCode::Forbidden)),
            _ => None,
        };
        self
    }

    /// Whether whoever asked is told another server's words.
    pub fn is_passed_on(&self) -> bool {
        self.0.told_as.is_some()
    }

    /// The HTTP status that goes on the wire.
    pub fn told_status(&self) -> u16 {
        self.0.told_as.map_or(self.0.status, |(status, _)| status)
    }

    /// The Matrix error code.
    pub fn errcode(&self) -> ErrCode {
        self.0.errcode
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.0.status
    }

    /// The sentence for the other side.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// An extra top-level field of the body.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.0.fields.get(name)
    }

    /// The sentence for a person at a terminal: no codes, and the cause once.
    pub fn for_people(&self) -> String {
        let cause = self.0.cause.as_ref().map(|cause| match cause.downcast_ref::<Error>() {
            Some(error) => error.for_people(),
            None => without_number(&cause.to_string()),
        });
        match cause {
            Some(cause) if self.message() == INTERNAL => cause,
            Some(cause) if !self.message().contains(&cause) => format!("{}: {cause}", self.message()),
            _ => self.message().to_owned(),
        }
    }

    /// Whether something of this server's failed, so that it says nothing of what was asked: whoever asked may ask again,
    /// and what another server sent is neither refused nor done.
    pub fn is_own_failure(&self) -> bool {
        matches!(self.status(), 500 | 507)
    }

    /// Whether it is about a data folder that another process has.
    pub fn is_in_use(&self) -> bool {
        self.status() == IN_USE
    }

    /// Whether it is about a disk that takes nothing, which the database's writer tells the log of, once.
    pub fn is_disk_full(&self) -> bool {
        self.status() == 507
    }

    /// How loud it is logged: like this, but for what the log was told already.
    pub fn level(&self, usual: log::Level) -> log::Level {
        if self.is_disk_full() { log::Level::Debug } else { usual }
    }

    /// The body as Matrix specifies it: `errcode`, `error` and the extra fields.
    pub fn to_json(&self) -> Value {
        let mut body = self.0.fields.clone();
        let errcode = self.0.told_as.map_or(self.0.errcode, |(_, errcode)| errcode);
        body.insert("errcode".into(), errcode.as_str().into());
        body.insert("error".into(), self.0.message.as_ref().into());
        Value::Object(body)
    }
}

/// What the system says of a failure, without the number that only programs read.
pub fn reason(e: &std::io::Error) -> String {
    without_number(&e.to_string())
}

/// The same of a sentence that ends with what the system says.
pub(crate) fn without_number(text: &str) -> String {
    text.split(" (os error").next().unwrap_or(text).to_owned()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.0.status, self.0.errcode.as_str(), self.0.message)?;
        if let Some(cause) = &self.0.cause {
            write!(f, " ({cause})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Self::internal(e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_has_the_code_the_sentence_and_the_extra_fields() {
        let e = Error::new(ErrCode::IncompatibleRoomVersion, "no").with_field("room_version", "9");
        assert_eq!(e.status(), 400);
        assert_eq!(
            e.to_json().to_string(),
            r#"{"errcode":"M_INCOMPATIBLE_ROOM_VERSION","error":"no","room_version":"9"}"#
        );
    }

    #[test]
    fn a_refusal_that_is_passed_on_has_its_status_on_the_wire_alone() {
        for (status, errcode) in [(400, "M_UNKNOWN"), (403, "M_FORBIDDEN")] {
            let e = Error::bad_gateway("b.org refused: no").told_as(status);
            assert_eq!((e.status(), e.errcode(), e.told_status()), (502, ErrCode::Unknown, status));
            assert_eq!(e.to_json()["errcode"], errcode);
        }
        let e = Error::bad_gateway("b.org refused: no").told_as(401);
        assert!(!e.is_passed_on() && e.told_status() == 502);
    }

    #[test]
    fn a_person_is_told_the_cause_once_and_no_code() {
        let missing = || std::io::Error::from_raw_os_error(2);
        let said = reason(&missing());
        assert!(!said.contains("os error"), "{said}");
        assert_eq!(Error::internal(missing()).for_people(), said);
        assert_eq!(Error::internal(Error::internal(missing())).for_people(), said);
        assert_eq!(
            Error::not_found("Nothing there").with_cause(missing()).for_people(),
            format!("Nothing there: {said}")
        );
        assert_eq!(Error::not_found(said.clone()).with_cause(missing()).for_people(), said);
        assert_eq!(Error::forbidden("No").for_people(), "No");
    }

    #[test]
    fn the_cause_of_an_error_stays_in_the_house() {
        let e = Error::internal("disk on fire");
        assert!(!e.to_json().to_string().contains("fire"));
        assert!(e.to_string().contains("fire"));
    }
}
