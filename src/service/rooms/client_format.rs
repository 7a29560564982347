//! Events as clients read them (client-server API, "Room event format"): the federation format without what only
//! servers need, and with an `unsigned` that this server makes for the one client that asks.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::filter::{EventFormat, keep_fields};
use crate::protocol::json::{CanonicalObject, JsonText, object_tree, read_stored};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, Pdu, RoomId, UserId};
use crate::service::events::erasure::Erasure;
use crate::service::rooms::view::RoomView;
use crate::store::accounts::client_transactions::SentBy;
use crate::store::rooms::events::EventRow;
use crate::store::{Db, EventKey, Room, StoredEvent};

/// JSON that is ready to be sent.
pub type Json = Box<RawValue>;

/// The format in which events are written for one client.
#[derive(Clone, Copy)]
pub struct ClientFormat<'s> {
    /// Who reads them.
    pub user: &'s UserId,
    /// On which device; it recognises what it sent itself by the transaction id.
    pub device: Option<&'s str>,
    /// The time, for `age`.
    pub now: Millis,
    /// Whether each event names its room. In `/sync` the room is where the event is found.
    pub room_ids: bool,
    /// Client or federation format.
    pub event_format: EventFormat,
    /// Which fields to keep; none means all.
    pub fields: Option<&'s [String]>,
}

impl<'s> ClientFormat<'s> {
    /// The usual format, each event with its room.
    pub fn usual(user: &'s UserId, device: Option<&'s str>, now: Millis) -> Self {
        Self { user, device, now, room_ids: true, event_format: EventFormat::Client, fields: None }
    }
}

#[derive(Serialize)]
struct ClientEvent<'e> {
    content: ClientContent<'e>,
    event_id: &'e str,
    origin_server_ts: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'e RoomId>,
    sender: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'e str>,
    #[serde(rename = "type")]
    event_type: &'e str,
    unsigned: ClientUnsigned,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ClientContent<'e> {
    Raw(JsonText<'e>),
    Made(Map<String, Value>),
}

#[derive(Default, Serialize)]
struct ClientUnsigned {
    age: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_content: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_sender: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted_because: Option<Json>,
    #[serde(rename = "m.relations", skip_serializing_if = "Option::is_none")]
    relations: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces_state: Option<EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<String>,
    #[serde(rename = "org.matrix.msc4140.delay_id", skip_serializing_if = "Option::is_none")]
    delay_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invite_room_state: Option<Vec<Json>>,
}

impl ClientEvent<'_> {
    /// Writes the same as the serializer behind what is there, in fewer pieces: long answers are made of thousands of these.
    fn push_to(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let text = |out: &mut Vec<u8>, before: &str, text: &str| {
            out.extend_from_slice(before.as_bytes());
            serde_json::to_writer(out, text)
        };
        out.extend_from_slice(b"{\"content\":");
        match &self.content {
            ClientContent::Raw(JsonText(content)) => out.extend_from_slice(content.as_bytes()),
            ClientContent::Made(content) => serde_json::to_writer(&mut *out, content)?,
        }
        text(out, ",\"event_id\":", self.event_id)?;
        out.extend_from_slice(b",\"origin_server_ts\":");
        serde_json::to_writer(&mut *out, &self.origin_server_ts)?;
        let redacts = self.redacts.as_ref().map(EventId::as_str);
        for (before, optional) in [
            (",\"redacts\":", redacts),
            (",\"room_id\":", self.room_id.map(RoomId::as_str)),
            (",\"sender\":", Some(self.sender)),
            (",\"state_key\":", self.state_key),
            (",\"type\":", Some(self.event_type)),
        ] {
            optional.map_or(Ok(()), |optional| text(out, before, optional))?;
        }
        out.extend_from_slice(b",\"unsigned\":");
        self.unsigned.push_to(out)?;
        out.push(b'}');
        Ok(())
    }
}

impl ClientUnsigned {
    fn push_to(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let Self {
            age,
            membership,
            prev_content: None,
            prev_sender: None,
            redacted_because: None,
            relations: None,
            replaces_state: None,
            transaction_id,
            delay_id,
            invite_room_state: None,
        } = self
        else {
            return serde_json::to_writer(out, self);
        };
        out.extend_from_slice(b"{\"age\":");
        serde_json::to_writer(&mut *out, age)?;
        if let Some(membership) = membership {
            out.extend_from_slice(b",\"membership\":");
            serde_json::to_writer(&mut *out, membership)?;
        }
        if let Some(transaction_id) = transaction_id {
            out.extend_from_slice(b",\"transaction_id\":");
            serde_json::to_writer(&mut *out, transaction_id)?;
        }
        if let Some(delay_id) = delay_id {
            out.extend_from_slice(b",\"org.matrix.msc4140.delay_id\":");
            serde_json::to_writer(&mut *out, delay_id)?;
        }
        out.push(b'}');
        Ok(())
    }
}

/// An event with all that `unsigned` can say but for what relates to it: for timelines and for single events.
/// `membership` is what the reader was at the event, if known.
pub fn full(
    view: &RoomView<'_>,
    format: &ClientFormat<'_>,
    event: &StoredEvent,
    membership: Option<Membership>,
) -> Result<Json> {
    let sent_by = sent_by(view, format, [event].into_iter())?.remove(&event.key).unwrap_or_default();
    with_more(view, format, event, Beside { membership, relations: None, sent_by })
}

/// What is looked up for many events at once, and told in the `unsigned` of one.
#[derive(Default)]
pub(super) struct Beside {
    /// What the reader was at the event, if known.
    pub membership: Option<Membership>,
    /// Its bundled aggregations, which `bundles` makes for the same reader.
    pub relations: Option<Json>,
    /// If the reader sent it, by what it came about.
    pub sent_by: SentBy,
}

/// [`full`] with what else was looked up.
pub(super) fn with_more(
    view: &RoomView<'_>,
    format: &ClientFormat<'_>,
    event: &StoredEvent,
    beside: Beside,
) -> Result<Json> {
    write(&*view.erasure.shown(event)?, format, of_full(view, format, event, beside)?)
}

/// [`with_more`], written behind what is there.
pub(super) fn push_with_more(
    out: &mut Vec<u8>,
    view: &RoomView<'_>,
    format: &ClientFormat<'_>,
    event: &StoredEvent,
    beside: Beside,
) -> Result<()> {
    let unsigned = of_full(view, format, event, beside)?;
    push(out, &*view.erasure.shown(event)?, format, unsigned)
}

fn of_full(
    view: &RoomView<'_>,
    format: &ClientFormat<'_>,
    event: &StoredEvent,
    Beside { membership, relations, sent_by }: Beside,
) -> Result<ClientUnsigned> {
    let membership = membership.map(Membership::as_str);
    let SentBy { transaction_id, delay_id } = sent_by;
    let mut unsigned =
        ClientUnsigned { membership, relations, transaction_id, delay_id, ..ClientUnsigned::default() };
    if let Some(key) = event.redacted_by {
        let redaction = view.db().event_by_key(key)?;
        unsigned.redacted_because =
            Some(write(&*view.erasure.shown(&redaction)?, format, ClientUnsigned::default())?);
    }
    if let Some(key) = view.replaced(event)? {
        let replaced = view.db().event_by_key(key)?;
        // "Only returned if … the client has permission to see the previous event"; its id is always told. What they
        // themselves were, users were told when it came about.
        if replaced.pdu.is("m.room.member", format.user.as_str()) || view.look(&replaced)?.visible {
            unsigned.prev_content = Some(raw(view.erasure.shown(&replaced)?.content_raw())?);
        }
        if replaced.pdu.membership() == Some(Membership::Invite)
            && event.pdu.membership() == Some(Membership::Join)
        {
            // Who let them in: clients that find their user joined may never have seen the invite (MSC4509).
            unsigned.prev_sender = Some(replaced.pdu.sender().clone());
        }
        unsigned.replaces_state = Some(replaced.pdu.event_id().clone());
    }
    Ok(unsigned)
}

/// By what those of these events that the reader sent came about.
pub(super) fn sent_by<'e>(
    view: &RoomView<'_>,
    format: &ClientFormat<'_>,
    events: impl Iterator<Item = &'e StoredEvent>,
) -> Result<HashMap<EventKey, SentBy>> {
    let own = events.filter(|event| event.pdu.sender() == format.user);
    view.db().txns_of_events(format.device, own.map(|event| event.key))
}

/// An event that is no state, for a reader who did not send it and was this in the room, and from whom no erasure takes
/// it.
pub fn message(format: &ClientFormat<'_>, event: &Pdu, membership: Membership) -> Result<Json> {
    write(
        event,
        format,
        ClientUnsigned { membership: Some(membership.as_str()), ..ClientUnsigned::default() },
    )
}

/// An event of a room's state, for the reader from whom `erasure` may take some of it: without what would have to be
/// looked up for each.
pub fn state(erasure: &Erasure<'_>, format: &ClientFormat<'_>, event: &StoredEvent) -> Result<Json> {
    let unsigned = of_state(erasure, format, event.redacted_by)?;
    match is_void(event) {
        true => write(&without_target(&*erasure.shown(event)?)?, format, unsigned),
        false => write(&*erasure.shown(event)?, format, unsigned),
    }
}

/// Whether an event of a room's state is a redaction that did not take effect (yet): clients are not told of these (rooms/v3,
/// "Handling redactions").
pub(super) fn is_void(event: &StoredEvent) -> bool {
    event.place.is_none() && event.pdu.event_type() == "m.room.redaction"
}

/// A redaction without what it redacts: as such it may stand in a list of a room's state.
fn without_target(redaction: &Pdu) -> Result<Pdu> {
    let mut object = redaction.to_object();
    object.remove("redacts");
    if let Some(Value::Object(content)) = object.get_mut("content") {
        content.remove("redacts");
    }
    let bytes = CanonicalObject::of(&object).into_bytes();
    Pdu::trusted(redaction.event_id().clone(), bytes, redaction.version())
}

/// An event of a room's state, for who runs the server.
pub fn for_operator(db: &Db<'_>, key: EventKey, now: Millis) -> Result<Json> {
    let nobody = UserId::parse(&format!("@nobody:{}", db.server_name()))?;
    write(&db.pdu_by_key(key)?, &ClientFormat::usual(&nobody, None, now), ClientUnsigned::default())
}

fn of_state(
    erasure: &Erasure<'_>,
    format: &ClientFormat<'_>,
    redacted_by: Option<EventKey>,
) -> Result<ClientUnsigned> {
    let mut unsigned = ClientUnsigned::default();
    if let Some(key) = redacted_by {
        let redaction = erasure.db().event_by_key(key)?;
        unsigned.redacted_because =
            Some(write(&*erasure.shown(&redaction)?, format, ClientUnsigned::default())?);
    }
    Ok(unsigned)
}

/// Writes an event of a room's state from its row behind what is there: the same as [`state`], for lists that grow with the
/// room.
pub fn push_state(
    out: &mut Vec<u8>,
    erasure: &Erasure<'_>,
    format: &ClientFormat<'_>,
    room: &Room,
    row: &EventRow<'_>,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Read<'e> {
        #[serde(borrow)]
        content: &'e RawValue,
        origin_server_ts: i64,
        #[serde(borrow)]
        sender: Cow<'e, str>,
        #[serde(borrow, default)]
        state_key: Option<Cow<'e, str>>,
        #[serde(borrow, rename = "type")]
        event_type: Cow<'e, str>,
    }
    let read: Read<'_> = read_stored(row.json).map_err(Error::internal)?;
    if (erasure.erased_at(&read.sender)?.is_some() || read.event_type == "m.room.redaction")
        && let Some(event) = erasure.db().event(&EventId::parse(row.event_id)?)?
    {
        let event = state(erasure, format, &event)?;
        out.extend_from_slice(event.get().as_bytes());
        return Ok(());
    }
    let mut unsigned = of_state(erasure, format, row.redacted_by)?;
    if format.event_format != EventFormat::Client || format.fields.is_some() {
        let pdu = Pdu::trusted(EventId::parse(row.event_id)?, row.json.as_bytes().to_vec(), room.version)?;
        return push(out, &pdu, format, unsigned);
    }
    unsigned.age = format.now.saturating_sub(read.origin_server_ts);
    let event = ClientEvent {
        content: ClientContent::Raw(JsonText(read.content.get())),
        event_id: row.event_id,
        origin_server_ts: read.origin_server_ts,
        redacts: None,
        room_id: format.room_ids.then_some(&room.room_id),
        sender: &read.sender,
        state_key: read.state_key.as_deref(),
        event_type: &read.event_type,
        unsigned,
    };
    event.push_to(out).map_err(Error::internal)
}

/// An event as an application service is sent it, who is no particular user of the room, in its one form. `erasure`: that of
/// the service's own user; `shown`: what is shown of the room with an invite.
pub fn for_service(
    erasure: &Erasure<'_>,
    format: &ClientFormat<'_>,
    event: &StoredEvent,
    shown: Option<Vec<Json>>,
) -> Result<Json> {
    let db = erasure.db();
    let mut unsigned = of_state(erasure, format, event.redacted_by)?;
    unsigned.invite_room_state = shown;
    let replaced = match (event.pdu.state_key(), event.place) {
        (Some(key), Some(place)) => db.replaced_at(event.room, event.pdu.event_type(), key, place.stream)?,
        _ => None,
    };
    if let Some(replaced) = replaced {
        let replaced = db.event_by_key(replaced)?;
        unsigned.prev_content = Some(raw(erasure.shown(&replaced)?.content_raw())?);
        unsigned.prev_sender = Some(replaced.pdu.sender().clone());
        unsigned.replaces_state = Some(replaced.pdu.event_id().clone());
    }
    write(&*erasure.shown(event)?, format, unsigned)
}

/// A membership event of a room that this server is not in, with the one before it.
pub fn of_remote_room(format: &ClientFormat<'_>, event: &Pdu, previous: Option<&Pdu>) -> Result<Json> {
    let unsigned = ClientUnsigned {
        membership: event.membership().map(Membership::as_str),
        prev_content: previous.map(|previous| raw(previous.content_raw())).transpose()?,
        replaces_state: previous.map(|previous| previous.event_id().clone()),
        ..ClientUnsigned::default()
    };
    write(event, format, unsigned)
}

fn write(event: &Pdu, format: &ClientFormat<'_>, unsigned: ClientUnsigned) -> Result<Json> {
    match written_by(event, format, unsigned, |event| to_raw_value(event))? {
        Written::Usual(event) | Written::Whole(event) => Ok(event),
    }
}

/// [`write`] behind what is there.
fn push(out: &mut Vec<u8>, event: &Pdu, format: &ClientFormat<'_>, unsigned: ClientUnsigned) -> Result<()> {
    let written = written_by(event, format, unsigned, |event| event.push_to(out))?;
    if let Written::Whole(event) = written {
        out.extend_from_slice(event.get().as_bytes());
    }
    Ok(())
}

/// How an event came out: as it usually is, by the way that was given for that, or another way.
enum Written<T> {
    Usual(T),
    Whole(Json),
}

fn written_by<T>(
    event: &Pdu,
    format: &ClientFormat<'_>,
    mut unsigned: ClientUnsigned,
    usual: impl FnOnce(&ClientEvent<'_>) -> serde_json::Result<T>,
) -> Result<Written<T>> {
    if format.event_format == EventFormat::Federation {
        return raw(event.json_str()).map(Written::Whole);
    }
    unsigned.age = format.now.saturating_sub(event.origin_server_ts());
    let redacts = if event.event_type() == "m.room.redaction" { event.redacts() } else { None };
    let content = match &redacts {
        // Older clients look for `redacts` beside the content and newer ones inside (room version 11, "Moving the
        // redacts property"): each finds it where it looks, in every version.
        Some(redacts) => {
            let mut content = event.content();
            content.insert("redacts".to_owned(), redacts.as_str().into());
            ClientContent::Made(content)
        }
        None => ClientContent::Raw(JsonText(event.content_raw())),
    };
    let event = ClientEvent {
        content,
        event_id: event.event_id().as_str(),
        origin_server_ts: event.origin_server_ts(),
        redacts,
        room_id: format.room_ids.then(|| event.room_id()),
        sender: event.sender().as_str(),
        state_key: event.state_key(),
        event_type: event.event_type(),
        unsigned,
    };
    match format.fields {
        None => usual(&event).map(Written::Usual).map_err(Error::internal),
        Some(fields) => {
            // By way of its text: the content is some already.
            let whole = serde_json::to_string(&event).and_then(|text| object_tree(&text));
            let whole = whole.map_err(Error::internal)?;
            to_raw_value(&keep_fields(&whole, fields)).map(Written::Whole).map_err(Error::internal)
        }
    }
}

/// JSON that was written into bytes.
pub fn written(json: Vec<u8>) -> Result<Json> {
    RawValue::from_string(String::from_utf8(json).map_err(Error::internal)?).map_err(Error::internal)
}

fn raw(json: &str) -> Result<Json> {
    RawValue::from_string(json.to_owned()).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::json::read;

    #[test]
    fn an_event_that_is_written_in_few_pieces_is_the_same() {
        let (room, event) = (RoomId::parse("!r:s").expect("an id"), EventId::parse("$e:s").expect("an id"));
        let sender = UserId::parse("@a:s").expect("an id");
        let json = |text: &str| written(text.as_bytes().to_vec()).expect("JSON");
        // Each of what may be there, or not.
        for there in 0_u32..1 << 12 {
            let has = |bit: u32| there >> bit & 1 == 1;
            let content = match has(0) {
                true => ClientContent::Raw(JsonText(r#"{ "a":[1] }"#)),
                false => ClientContent::Made(Map::from_iter([("a\"".to_owned(), 1.into())])),
            };
            let made = ClientEvent {
                content,
                event_id: "$e\\:s",
                origin_server_ts: -7,
                redacts: has(1).then(|| event.clone()),
                room_id: has(2).then_some(&room),
                sender: "@\"odd\u{1}:s",
                state_key: has(3).then_some("k\n"),
                event_type: "t\u{e9}",
                unsigned: ClientUnsigned {
                    age: i64::MAX,
                    membership: has(4).then_some("join"),
                    prev_content: has(5).then(|| json(r#"{"b":2}"#)),
                    prev_sender: has(6).then(|| sender.clone()),
                    redacted_because: has(7).then(|| json("{}")),
                    relations: has(8).then(|| json(r#"{"m.thread":{}}"#)),
                    replaces_state: has(9).then(|| event.clone()),
                    transaction_id: has(10).then(|| "1 \"2\"".to_owned()),
                    delay_id: has(11).then(|| "d".to_owned()),
                    invite_room_state: has(9).then(|| vec![json("{}")]),
                },
            };
            let mut pieces = b"before".to_vec();
            made.push_to(&mut pieces).expect("written");
            let whole = serde_json::to_string(&made).expect("written");
            assert_eq!(std::str::from_utf8(&pieces).expect("text"), format!("before{whole}"));
            read::<Value>(whole.as_bytes()).expect("JSON");
        }
    }
}
