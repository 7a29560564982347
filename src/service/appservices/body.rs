//! The body of a transaction, and the parts in which what a service finds too large is sent instead.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::protocol::UserId;
use crate::protocol::json::{parse_object, read_stored};
use crate::service::rooms::client_format::Json;

/// Something of each device of each user.
pub(super) type OfDevices<T> = BTreeMap<UserId, BTreeMap<String, T>>;

/// Whose keys are to be looked at anew, and whose no more.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct DeviceLists {
    pub changed: BTreeSet<UserId>,
    pub left: BTreeSet<UserId>,
}

impl DeviceLists {
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

/// The body, under the names that services know; stored without the events. What is fleeting stands there twice: libraries read the
/// one name or the other, or the older one where the other is not there, and none takes both.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Body {
    pub events: Vec<Json>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ephemeral: Vec<Json>,
    #[serde(rename = "de.sorunome.msc2409.ephemeral", skip_serializing_if = "Vec::is_empty")]
    pub older_ephemeral: Vec<Json>,
    #[serde(rename = "de.sorunome.msc2409.to_device", skip_serializing_if = "Vec::is_empty")]
    pub to_device: Vec<Json>,
    #[serde(rename = "org.matrix.msc3202.device_lists", skip_serializing_if = "DeviceLists::is_empty")]
    pub device_lists: DeviceLists,
    #[serde(
        rename = "org.matrix.msc3202.device_one_time_keys_count",
        skip_serializing_if = "Option::is_none"
    )]
    pub one_time_keys: Option<Box<RawValue>>,
    #[serde(
        rename = "org.matrix.msc3202.device_unused_fallback_key_types",
        skip_serializing_if = "Option::is_none"
    )]
    pub fallback_keys: Option<Box<RawValue>>,
}

/// What becomes of a transaction that is too large.
pub(super) enum Smaller {
    /// These are sent instead, one after the other.
    Parts(Vec<Body>),
    /// There is only this in it, which cannot be made smaller: what it is, for people.
    Alone(String),
}

impl Body {
    /// Reads one as it is stored.
    pub fn parse(text: &str) -> Result<Self> {
        read_stored(text).map_err(Error::internal)
    }

    pub fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(Error::internal)
    }

    /// Whether there is nothing in it that has to be sent: what is fleeting is worth no wait for the disk, and how many keys there
    /// are is told with whatever comes next.
    pub fn is_fleeting(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        let DeviceLists { changed, left } = &self.device_lists;
        self.events.len() + self.to_device.len() + changed.len() + left.len()
    }

    /// The two halves of it, without what is fleeting. Messages to devices come before events, for which they may have the keys.
    pub fn halve(mut self) -> Smaller {
        let had_more =
            !self.ephemeral.is_empty() || self.one_time_keys.is_some() || self.fallback_keys.is_some();
        (self.ephemeral, self.older_ephemeral) = Default::default();
        let all = self.len();
        if all < 2 {
            if all == 1 && !had_more {
                return Smaller::Alone(self.only());
            }
            (self.one_time_keys, self.fallback_keys) = (None, None);
            return Smaller::Parts(if all == 1 { vec![self] } else { Vec::new() });
        }
        let mut left = all / 2;
        let mut rest = Self {
            device_lists: DeviceLists {
                changed: split(&mut self.device_lists.changed, &mut left),
                left: split(&mut self.device_lists.left, &mut left),
            },
            ..Self::default()
        };
        for (first, second) in
            [(&mut self.to_device, &mut rest.to_device), (&mut self.events, &mut rest.events)]
        {
            *second = first.split_off(left.min(first.len()));
            left -= first.len();
        }
        Smaller::Parts(vec![self, rest])
    }

    /// What the only thing in it is.
    fn only(&self) -> String {
        let event = |event: &Json| parse_object(event.get().as_bytes()).unwrap_or_default();
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(found) = self.events.first().map(event) {
            return format!(
                "the event {:?} of {:?}",
                text(found.get("event_id")),
                text(found.get("room_id"))
            );
        }
        if let Some(found) = self.to_device.first().map(event) {
            let [from, to] = ["sender", "to_user_id"].map(|key| text(found.get(key)));
            return format!("a message from {from:?} to a device of {to:?}");
        }
        "whose devices changed".to_owned()
    }
}

/// Takes out what is behind the first so many, and counts off those.
fn split(users: &mut BTreeSet<UserId>, first: &mut usize) -> BTreeSet<UserId> {
    let rest = match users.iter().nth(*first).cloned() {
        Some(user) => users.split_off(&user),
        None => BTreeSet::new(),
    };
    *first -= users.len();
    rest
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::to_raw_value};

    use super::*;

    fn body(text: &Value) -> Body {
        Body::parse(&text.to_string()).unwrap()
    }

    fn parts(body: Body) -> Vec<Value> {
        match body.halve() {
            Smaller::Parts(parts) => parts.iter().map(|part| serde_json::to_value(part).unwrap()).collect(),
            Smaller::Alone(what) => vec![what.into()],
        }
    }

    #[test]
    fn halves_have_everything_that_lasts_once_and_in_its_order() {
        let all = json!({
            "events": [{"n": 4}, {"n": 5}, {"n": 6}], "ephemeral": [{}], "de.sorunome.msc2409.ephemeral": [{}],
            "de.sorunome.msc2409.to_device": [{"n": 3}],
            "org.matrix.msc3202.device_lists": {"changed": ["@a:b", "@c:d"], "left": ["@e:f"]},
            "org.matrix.msc3202.device_one_time_keys_count": {"@a:b": {}},
        });
        let halves = parts(body(&all));
        assert_eq!(
            halves,
            [
                json!({"events": [], "org.matrix.msc3202.device_one_time_keys_count": {"@a:b": {}},
                    "org.matrix.msc3202.device_lists": {"changed": ["@a:b", "@c:d"], "left": ["@e:f"]}}),
                json!({"events": all["events"], "de.sorunome.msc2409.to_device": [{"n": 3}]}),
            ]
        );
        assert_eq!(
            parts(body(&halves[1])),
            [
                json!({"events": [{"n": 4}], "de.sorunome.msc2409.to_device": [{"n": 3}]}),
                json!({"events": [{"n": 5}, {"n": 6}]})
            ]
        );
        let first = parts(body(&halves[0]));
        assert_eq!(first[0]["org.matrix.msc3202.device_lists"], json!({"changed": ["@a:b"], "left": []}));
        assert_eq!(
            first[1]["org.matrix.msc3202.device_lists"],
            json!({"changed": ["@c:d"], "left": ["@e:f"]})
        );
    }

    #[test]
    fn what_is_alone_loses_what_need_not_be_with_it_before_it_is_named() {
        let event = json!({"event_id": "$e", "room_id": "!r:b"});
        let all = json!({"events": [event], "org.matrix.msc3202.device_one_time_keys_count": {}});
        assert_eq!(parts(body(&all)), [json!({"events": [event]})]);
        assert_eq!(parts(body(&json!({"events": [event]}))), [json!("the event \"$e\" of \"!r:b\"")]);
        let message = json!({"events": [], "de.sorunome.msc2409.to_device": [{"sender": "@a:b", "to_user_id": "@c:b"}]});
        assert_eq!(parts(body(&message)), [json!("a message from \"@a:b\" to a device of \"@c:b\"")]);
        assert!(parts(Body { ephemeral: vec![to_raw_value(&1).unwrap()], ..Body::default() }).is_empty());
    }
}
