//! A persistent data unit: one event of a room, in the format of its room version, with its exact bytes.
//!
//! A `Pdu` is format-checked and has its event id. It is *not* a promise about signatures, hashes or authorisation: for
//! the first two see `verify`, whose `VerifiedPdu` is what a room takes; for the last `event_auth`.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::ids::{EventId, RoomId, UserId};
use crate::protocol::json::{self, CanonicalObject, Oddities};
use crate::protocol::room_version::{EventIdFormat, RoomVersion};

/// The most bytes that an event may have as canonical JSON, signatures included (client-server API, "Size limits").
pub const EVENT_BYTES_MAX: usize = 65_536;

/// As how many bytes an event may come. Nothing legitimate is this far beyond the limit, not even with every character
/// escaped.
pub const EVENT_AS_WRITTEN_BYTES_MAX: usize = 8 * EVENT_BYTES_MAX;
/// The most bytes that `type` and `state_key` may have each.
pub const FIELD_BYTES_MAX: usize = 255;
/// The most `prev_events` that an event may have.
pub const PREV_EVENTS_MAX: usize = 20;
/// The most `auth_events` that an event may have.
pub const AUTH_EVENTS_MAX: usize = 10;

/// A user's standing in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Membership {
    /// Kept out until unbanned.
    Ban,
    /// Asked in.
    Invite,
    /// In the room.
    Join,
    /// Asking to be let in (room versions 7+).
    Knock,
    /// Gone, kicked, refused, or never there.
    Leave,
}

impl Membership {
    /// The word in `content.membership`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ban => "ban",
            Self::Invite => "invite",
            Self::Join => "join",
            Self::Knock => "knock",
            Self::Leave => "leave",
        }
    }

    /// The content of a member event that says nothing else.
    pub fn content(self) -> Map<String, Value> {
        json::object_of([("membership", self.as_str().into())])
    }

    /// The membership with this word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Ban, Self::Invite, Self::Join, Self::Knock, Self::Leave]
            .into_iter()
            .find(|m| m.as_str() == word)
    }
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event of a room. Cheap to clone. Two are equal if their event ids are.
#[derive(Clone)]
pub struct Pdu(Arc<PduFields>);

struct PduFields {
    version: RoomVersion,
    event_id: EventId,
    room_id: RoomId,
    sender: UserId,
    event_type: Arc<str>,
    state_key: Option<Arc<str>>,
    origin_server_ts: i64,
    depth: i64,
    /// Of an event from the database they are read when they are asked for: whoever shows it needs none.
    references: OnceLock<References>,
    redacts: Option<EventId>,
    membership: Option<Membership>,
    json: Box<str>,
    /// Where in `json` the content is.
    content: Range<u32>,
}

/// The events that an event refers to.
#[derive(Default)]
struct References {
    prev_events: Box<[EventId]>,
    auth_events: Box<[EventId]>,
}

/// An event that was just parsed, with its canonical form (without `unsigned`) and the bytes that its signatures cover.
pub(crate) struct ParsedPdu {
    pub(crate) pdu: Pdu,
    pub(crate) object: CanonicalObject,
    pub(crate) essence: Vec<u8>,
    /// Whether its content hash is right, once somebody asked.
    pub(in crate::protocol) is_whole: OnceLock<bool>,
}

impl ParsedPdu {
    /// An event that was parsed before.
    pub(crate) fn of(pdu: &Pdu) -> Self {
        let object = pdu.canonical();
        let essence = object.essential_bytes(pdu.version());
        Self { pdu: pdu.clone(), object, essence, is_whole: OnceLock::new() }
    }

    /// Whether its content hash is right.
    pub(crate) fn is_whole(&self) -> bool {
        *self.is_whole.get_or_init(|| self.object.content_hash_matches())
    }
}

/// What is read of an event's JSON.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
    sender: UserId,
    #[serde(borrow, default, deserialize_with = "present")]
    room_id: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    state_key: Option<Cow<'a, str>>,
    origin_server_ts: i64,
    depth: i64,
    #[serde(borrow)]
    prev_events: &'a RawValue,
    #[serde(borrow)]
    auth_events: &'a RawValue,
    #[serde(borrow, default)]
    redacts: Option<&'a RawValue>,
    #[serde(borrow)]
    content: &'a RawValue,
}

/// A key that may be missing but must be a string where it is there, so `null` is an error.
fn present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Cow<'de, str>>, D::Error> {
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Cow<'de, str>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
            Ok(Cow::Borrowed(text))
        }
        fn visit_str<E>(self, text: &str) -> Result<Cow<'de, str>, E> {
            Ok(Cow::Owned(text.to_owned()))
        }
    }
    d.deserialize_str(Visitor).map(Some)
}

/// A reference of room versions 1 and 2: the event's id and its hashes.
#[derive(Deserialize)]
struct ReferenceWithHashes(EventId, #[allow(dead_code, reason = "must be there, is not used")] IgnoredAny);

impl Pdu {
    /// Checks the event format of the version and the size limits, and computes the event id. Does not check hashes,
    /// signatures or authorisation.
    ///
    /// The bytes are kept as they are, with three exceptions, in which the canonical form is kept instead: the event
    /// has `unsigned` (which nobody signed, and which is dropped), it has a key twice or a zero with a sign (so that
    /// everybody who reads the stored bytes reads the same), or it is beyond the size limit only for its white space or
    /// escapes.
    ///
    /// Errors: `M_NOT_JSON`, `M_BAD_JSON` (naming the field), `M_TOO_LARGE`.
    pub fn parse(json: &[u8], version: RoomVersion) -> Result<Pdu> {
        Ok(Self::parse_whole(json, version)?.pdu)
    }

    /// [`Pdu::parse`] with what is at hand after it, for those who have more to check.
    pub(crate) fn parse_whole(json: &[u8], version: RoomVersion) -> Result<ParsedPdu> {
        if json.len() > EVENT_AS_WRITTEN_BYTES_MAX {
            return Err(too_large());
        }
        let (whole, mut seen) = CanonicalObject::read(json)?;
        let (object, unsigned) = whole.remove("unsigned");
        if unsigned && seen.odd_number.is_some() {
            // Nobody signed it, and anything may be in it.
            seen = CanonicalObject::read(object.as_bytes())?.1;
        }
        Self::check_object(&object, seen, version)?;
        let essence = object.essential_bytes(version);
        let event_id = object.event_id_with(&essence, version)?;
        let text = if unsigned || seen.ambiguous || json.len() > EVENT_BYTES_MAX {
            text_of(&object)?
        } else {
            std::str::from_utf8(json).map_err(|e| Error::bad_json("not UTF-8").with_cause(e))?.into()
        };
        let pdu = Self::read(event_id, text, version)?;
        Ok(ParsedPdu { pdu, object, essence, is_whole: OnceLock::new() })
    }

    /// Makes the checks of [`Pdu::parse`]; keeps canonical bytes. `unsigned` is dropped.
    pub fn from_object(mut object: Map<String, Value>, version: RoomVersion) -> Result<Pdu> {
        object.remove("unsigned");
        Self::parse(CanonicalObject::of(&object).as_bytes(), version)
    }

    /// An event from our own database, where it came to after all these checks: its id is known, nothing is hashed again. Or one
    /// that is being written here and has neither hashes nor signatures, nor a real id, yet.
    pub fn trusted(event_id: EventId, json: Vec<u8>, version: RoomVersion) -> Result<Pdu> {
        let json = String::from_utf8(json).map_err(Error::internal)?.into_boxed_str();
        let mut inner = Self::fields(event_id, &Header::of(&json)?, &json, version)?;
        inner.json = json;
        Ok(Pdu(Arc::new(inner)))
    }

    /// Makes the checks of [`Pdu::parse`] of an event in canonical form, whose essential bytes are at hand.
    pub(crate) fn from_canonical(
        object: &CanonicalObject,
        seen: Oddities,
        essence: &[u8],
        version: RoomVersion,
    ) -> Result<Pdu> {
        Self::check_object(object, seen, version)?;
        Self::read(object.event_id_with(essence, version)?, text_of(object)?, version)
    }

    /// What has to be seen in the canonical form: the size, strict JSON, hashes and signatures.
    fn check_object(object: &CanonicalObject, seen: Oddities, version: RoomVersion) -> Result<()> {
        if object.as_bytes().len() > EVENT_BYTES_MAX {
            return Err(too_large());
        }
        if let Some(why) = seen.odd_number.filter(|_| version.strict_canonical_json) {
            return Err(Error::bad_json(why));
        }
        // Whoever authorises an event reads its content anew. One that cannot be read would pass for an empty one.
        if object.get("content").is_none_or(|content| read_content(content).is_none()) {
            return Err(Error::bad_json("the event's content is not an object that can be read"));
        }
        for name in ["hashes", "signatures"] {
            if !object.get(name).is_some_and(|value| value.starts_with(b"{")) {
                return Err(Error::bad_json(format!("the event's {name} is not an object")));
            }
        }
        Ok(())
    }

    /// Reads the fields from the bytes and checks them.
    fn read(event_id: EventId, json: Box<str>, version: RoomVersion) -> Result<Pdu> {
        let header = Header::of(&json)?;
        let mut inner = Self::fields(event_id, &header, &json, version)?;
        let references = header.references(version)?;
        references.check_limits()?;
        inner.references = references.into();
        inner.json = json;
        Ok(Pdu(Arc::new(inner)))
    }

    /// All but what it refers to.
    fn fields(event_id: EventId, header: &Header<'_>, json: &str, version: RoomVersion) -> Result<PduFields> {
        header.check_limits(version)?;
        let room_id = header.room_id(&event_id, version)?;
        let content = header.content.get();
        if !content.starts_with('{') {
            return Err(Error::bad_json("the event's content is not an object"));
        }
        // `content` is a slice of `json`.
        let start = content.as_ptr().addr() - json.as_ptr().addr();
        let too_long = |_| too_large();
        let range = u32::try_from(start).map_err(too_long)?
            ..u32::try_from(start + content.len()).map_err(too_long)?;
        Ok(PduFields {
            version,
            event_id,
            room_id,
            sender: header.sender.clone(),
            event_type: header.event_type.as_ref().into(),
            state_key: header.state_key.as_deref().map(Arc::from),
            origin_server_ts: header.origin_server_ts,
            depth: header.depth,
            references: OnceLock::new(),
            redacts: header.redacts(version),
            membership: header.membership(),
            content: range,
            json: Box::default(),
        })
    }

    /// This event (its id stays) with other JSON: a redacted form, or one more signature. Errors: 413 `M_TOO_LARGE` if
    /// there is no room for the signature.
    pub(crate) fn with_canonical(&self, object: CanonicalObject) -> Result<Pdu> {
        if object.as_bytes().len() > EVENT_BYTES_MAX {
            return Err(too_large());
        }
        let json = String::from_utf8(object.into_bytes()).map_err(Error::internal)?;
        Self::read(self.event_id().clone(), json.into(), self.version())
    }

    /// The event's id.
    pub fn event_id(&self) -> &EventId {
        &self.0.event_id
    }

    /// The room's id; that of a version 12 create event is made of its own hash.
    pub fn room_id(&self) -> &RoomId {
        &self.0.room_id
    }

    /// Who sent it.
    pub fn sender(&self) -> &UserId {
        &self.0.sender
    }

    /// `type`.
    pub fn event_type(&self) -> &str {
        &self.0.event_type
    }

    /// `type` as a shared string, for state maps.
    pub fn event_type_arc(&self) -> &Arc<str> {
        &self.0.event_type
    }

    /// `state_key`, of state events.
    pub fn state_key(&self) -> Option<&str> {
        self.0.state_key.as_deref()
    }

    /// `state_key` as a shared string, for state maps.
    pub fn state_key_arc(&self) -> Option<&Arc<str>> {
        self.0.state_key.as_ref()
    }

    /// Whether it has a `state_key`.
    pub fn is_state(&self) -> bool {
        self.0.state_key.is_some()
    }

    /// Whether it is a state event of this type with this state key.
    pub fn is(&self, event_type: &str, state_key: &str) -> bool {
        self.event_type() == event_type && self.state_key() == Some(state_key)
    }

    /// When its server says it was made, in milliseconds since the Unix epoch.
    pub fn origin_server_ts(&self) -> i64 {
        self.0.origin_server_ts
    }

    /// One more than the deepest of `prev_events`, as its server says.
    pub fn depth(&self) -> i64 {
        self.0.depth
    }

    /// The events that it follows.
    pub fn prev_events(&self) -> &[EventId] {
        &self.references().prev_events
    }

    /// The events that it says allow it.
    pub fn auth_events(&self) -> &[EventId] {
        &self.references().auth_events
    }

    fn references(&self) -> &References {
        self.0.references.get_or_init(|| {
            // They could be read before it was stored.
            let read = Header::of(&self.0.json).and_then(|header| header.references(self.version()));
            debug_assert!(read.is_ok(), "{self:?} refers to what are no events");
            read.unwrap_or_default()
        })
    }

    /// The event that this `m.room.redaction` redacts, from wherever the version has it; none if this is no
    /// redaction or names none.
    pub fn redacts(&self) -> Option<EventId> {
        self.0.redacts.clone()
    }

    /// The content, parsed anew.
    pub fn content(&self) -> Map<String, Value> {
        read_content(self.content_raw().as_bytes()).unwrap_or_default()
    }

    /// The content's exact text.
    pub fn content_raw(&self) -> &str {
        let range = self.0.content.start as usize..self.0.content.end as usize;
        self.0.json.get(range).unwrap_or("{}")
    }

    /// A key of the content, if it is there and a string.
    pub fn content_str(&self, key: &str) -> Option<String> {
        match self.content().remove(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// `content.membership` of an `m.room.member` event, if it is one of the known words.
    pub fn membership(&self) -> Option<Membership> {
        self.0.membership
    }

    /// The event in federation format; see [`Pdu::parse`] for how exact these bytes are.
    pub fn json(&self) -> &[u8] {
        self.0.json.as_bytes()
    }

    /// [`Pdu::json`] as text.
    pub fn json_str(&self) -> &str {
        &self.0.json
    }

    /// The whole event in canonical form.
    pub fn canonical(&self) -> CanonicalObject {
        let read = CanonicalObject::read(self.json());
        read.map_or_else(|_| CanonicalObject::of(&Map::new()), |(object, _)| object)
    }

    /// The whole event as a tree, parsed anew.
    pub fn to_object(&self) -> Map<String, Value> {
        json::object_tree(&self.0.json).unwrap_or_default()
    }

    /// The rules of its room version.
    pub fn version(&self) -> RoomVersion {
        self.0.version
    }
}

fn no_event(e: &serde_json::Error) -> Error {
    Error::bad_json(format!("not an event: {}", json::what_was_expected(e)))
}

impl References {
    fn check_limits(&self) -> Result<()> {
        if self.prev_events.len() > PREV_EVENTS_MAX {
            return Err(Error::bad_json("the event has more than 20 prev_events"));
        }
        if self.auth_events.len() > AUTH_EVENTS_MAX {
            return Err(Error::bad_json("the event has more than 10 auth_events"));
        }
        Ok(())
    }
}

impl<'a> Header<'a> {
    fn of(json: &'a str) -> Result<Self> {
        serde_json::from_str(json).map_err(|e| no_event(&e))
    }

    fn references(&self, version: RoomVersion) -> Result<References> {
        let ids = |list: &RawValue| -> Result<Box<[EventId]>> {
            match version.event_id_format {
                EventIdFormat::InEvent => {
                    let list: Vec<ReferenceWithHashes> =
                        serde_json::from_str(list.get()).map_err(|e| no_event(&e))?;
                    Ok(list.into_iter().map(|reference| reference.0).collect())
                }
                _ => serde_json::from_str(list.get()).map_err(|e| no_event(&e)),
            }
        };
        Ok(References { prev_events: ids(self.prev_events)?, auth_events: ids(self.auth_events)? })
    }

    fn check_limits(&self, version: RoomVersion) -> Result<()> {
        if self.event_type.len() > FIELD_BYTES_MAX {
            return Err(Error::new(ErrCode::TooLarge, "the event's type is longer than 255 bytes"));
        }
        if self.state_key.as_ref().is_some_and(|key| key.len() > FIELD_BYTES_MAX) {
            return Err(Error::new(ErrCode::TooLarge, "the event's state_key is longer than 255 bytes"));
        }
        if !(0..=version.max_depth()).contains(&self.depth) {
            return Err(Error::bad_json("the event's depth is out of range"));
        }
        Ok(())
    }

    /// The room's id: in the event, or of the event (rooms/v12, "Event format").
    fn room_id(&self, event_id: &EventId, version: RoomVersion) -> Result<RoomId> {
        let derived = version.room_id_is_create_hash && self.event_type == "m.room.create";
        match (&self.room_id, derived) {
            (None, true) => Ok(RoomId::of_create_event(event_id)),
            (Some(_), true) => Err(Error::bad_json("a create event of this room version has no room_id")),
            (None, false) => Err(Error::bad_json("the event has no room_id")),
            (Some(id), false) => {
                let id = RoomId::parse(id).map_err(|_| Error::bad_json("not a valid room_id"))?;
                if id.server_name().is_some() == version.room_id_is_create_hash {
                    return Err(Error::bad_json("the room_id has not the form of its room version"));
                }
                Ok(id)
            }
        }
    }

    fn redacts(&self, version: RoomVersion) -> Option<EventId> {
        #[derive(Deserialize)]
        struct RedactionContent {
            redacts: EventId,
        }
        if self.event_type != "m.room.redaction" {
            return None;
        }
        if version.redacts_in_content {
            let content: Option<RedactionContent> = serde_json::from_str(self.content.get()).ok();
            content.map(|content| content.redacts)
        } else {
            self.redacts.and_then(|raw| serde_json::from_str(raw.get()).ok())
        }
    }

    fn membership(&self) -> Option<Membership> {
        if self.event_type != "m.room.member" {
            return None;
        }
        #[derive(Deserialize)]
        struct MembershipContent<'c> {
            #[serde(borrow)]
            membership: Cow<'c, str>,
        }
        let content: MembershipContent<'_> = serde_json::from_str(self.content.get()).ok()?;
        Membership::parse(&content.membership)
    }
}

/// An event's content as it is authorised.
fn read_content(text: &[u8]) -> Option<Map<String, Value>> {
    json::object_tree(std::str::from_utf8(text).ok()?).ok()
}

fn text_of(object: &CanonicalObject) -> Result<Box<str>> {
    Ok(std::str::from_utf8(object.as_bytes()).map_err(Error::internal)?.into())
}

fn too_large() -> Error {
    Error::new(ErrCode::TooLarge, "the event is larger than 65536 bytes")
}

impl PartialEq for Pdu {
    fn eq(&self, other: &Self) -> bool {
        self.event_id() == other.event_id()
    }
}
impl Eq for Pdu {}

impl fmt::Debug for Pdu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Pdu({} {} {:?} by {})",
            self.event_id(),
            self.event_type(),
            self.state_key(),
            self.sender()
        )
    }
}

#[cfg(test)]
#[path = "pdu_tests.rs"]
mod tests;
