//! What a push gateway is sent (push gateway API, `POST /_matrix/push/v1/notify`).

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::protocol::json::object_of;
use crate::protocol::{Pdu, json as matrix_json};
use crate::store::accounts::pushers::Pusher;

/// The format of gateways that are only told that there is something: their clients fetch the event by themselves.
const EVENT_ID_ONLY: &str = "event_id_only";
/// The client counts by itself (MSC4076), under the name that it has now and the one that it is to have.
const DISABLE_BADGE_COUNT: [&str; 2] = ["org.matrix.msc4076.disable_badge_count", "disable_badge_count"];

/// What is sent of a pusher that clients set.
pub struct PusherData(Map<String, Value>);

impl PusherData {
    /// The `data` of a pusher.
    pub fn of(pusher: &Pusher) -> Self {
        let details = matrix_json::parse_object(pusher.set.details.as_bytes()).unwrap_or_default();
        Self(details.get("data").and_then(Value::as_object).cloned().unwrap_or_default())
    }

    /// Where it is sent.
    pub fn url(&self) -> &str {
        self.0.get("url").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether it is to be told how many messages are unread.
    pub fn wants_badge(&self) -> bool {
        !DISABLE_BADGE_COUNT.iter().any(|key| self.0.get(*key) == Some(&Value::Bool(true)))
    }

    /// Whether it is told names: of the sender, of the room.
    pub fn wants_names(&self) -> bool {
        !self.is_event_id_only()
    }

    fn is_event_id_only(&self) -> bool {
        self.0.get("format").and_then(Value::as_str) == Some(EVENT_ID_ONLY)
    }

    /// "The `data` dictionary passed in at pusher creation minus the `url` key."
    fn forwarded(&self) -> Map<String, Value> {
        let mut data = self.0.clone();
        data.remove("url");
        data
    }
}

/// What the user is notified of.
pub struct PushedEvent<'e> {
    /// The event.
    pub event: &'e Pdu,
    /// How its sender and its room are called.
    pub names: EventNames,
    /// The tweaks of the actions of the rule that matched.
    pub tweaks: Map<String, Value>,
}

/// How an event's sender and room are called, where they are.
#[derive(Debug, Default)]
pub struct EventNames {
    sender: Option<String>,
    room: Option<String>,
    alias: Option<String>,
}

impl EventNames {
    /// By the contents of the room's state events.
    pub fn of(
        sender: &str,
        content: impl Fn(&str, &str) -> Result<Option<Map<String, Value>>>,
    ) -> Result<Self> {
        let text = |event_type: &str, state_key: &str, name: &str| {
            let content = content(event_type, state_key)?;
            let text = content.as_ref().and_then(|content| content.get(name)?.as_str());
            Ok::<_, Error>(text.filter(|text| !text.is_empty()).map(str::to_owned))
        };
        Ok(Self {
            sender: text("m.room.member", sender, "displayname")?,
            room: text("m.room.name", "", "name")?,
            alias: text("m.room.canonical_alias", "", "alias")?,
        })
    }
}

/// The content of an event of stripped state.
pub fn content_of_stripped(
    stripped: &[Box<RawValue>],
    event_type: &str,
    state_key: &str,
) -> Option<Map<String, Value>> {
    let entries = stripped.iter().filter_map(|entry| matrix_json::object_tree(entry.get()).ok());
    let mut of_type = entries.filter(|entry| entry.get("type").is_some_and(|is| is == event_type));
    let mut entry = of_type.find(|entry| entry.get("state_key").is_some_and(|is| is == state_key))?;
    match entry.remove("content")? {
        Value::Object(content) => Some(content),
        _ => None,
    }
}

/// The notification of an event. `unread`: the number at the app's icon, if it is to be told.
pub fn of_event(pusher: &Pusher, data: &PusherData, pushed: PushedEvent<'_>, unread: Option<i64>) -> Value {
    let PushedEvent { event, names, tweaks } = pushed;
    let mut notification = object_of([
        ("event_id", json!(event.event_id())),
        ("room_id", json!(event.room_id())),
        ("prio", priority(event, &tweaks).into()),
    ]);
    if !data.is_event_id_only() {
        notification.insert("type".to_owned(), event.event_type().into());
        notification.insert("sender".to_owned(), json!(event.sender()));
        notification.insert("content".to_owned(), event.content().into());
        if event.event_type() == "m.room.member" {
            let is_target = event.state_key() == Some(pusher.set.user_id.as_str());
            notification.insert("user_is_target".to_owned(), is_target.into());
        }
        let EventNames { sender, room, alias } = names;
        let named = [("sender_display_name", sender), ("room_name", room), ("room_alias", alias)];
        for (key, value) in named {
            if let Some(value) = value {
                notification.insert(key.to_owned(), value.into());
            }
        }
    }
    finished(notification, pusher, data, tweaks, unread)
}

/// The notification of nothing but how many messages are unread.
pub fn of_badge(pusher: &Pusher, data: &PusherData, unread: i64) -> Value {
    // Nobody is to be woken up by it.
    let notification = object_of([("prio", "low".into())]);
    finished(notification, pusher, data, Map::new(), Some(unread))
}

fn finished(
    mut notification: Map<String, Value>,
    pusher: &Pusher,
    data: &PusherData,
    tweaks: Map<String, Value>,
    unread: Option<i64>,
) -> Value {
    let mut device = json!({
        "app_id": pusher.set.app_id,
        "pushkey": pusher.set.pushkey,
        "pushkey_ts": pusher.set_ms / 1000,
        "data": data.forwarded(),
    });
    if !tweaks.is_empty() {
        device["tweaks"] = tweaks.into();
    }
    // "Counts whose value is zero should be omitted", but gateways take an omitted count for one that has not changed.
    let counts = unread.map_or_else(|| json!({}), |unread| json!({ "unread": unread }));
    notification.insert("counts".to_owned(), counts);
    notification.insert("devices".to_owned(), json!([device]));
    json!({ "notification": notification })
}

/// `high` for what somebody is to look at now. Of encrypted events only the client knows.
fn priority(event: &Pdu, tweaks: &Map<String, Value>) -> &'static str {
    let is_tweaked = |name: &str| tweaks.get(name).is_some_and(|value| *value != Value::Bool(false));
    let is_high = is_tweaked("highlight")
        || is_tweaked("sound")
        || matches!(event.event_type(), "m.room.encrypted" | "m.call.invite");
    if is_high { "high" } else { "low" }
}
