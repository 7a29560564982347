//! What `POST /createRoom` asks for, worked out into the list of events that makes the room. Pure: no database, no
//! network, no clock, so that every preset and option is tested as data.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::{RoomAlias, RoomVersion, UserId};
use crate::service::membership::third_party_invite::ThirdPartyInvitee;
use crate::service::rooms::client_drafts::{aliases_in, bad_alias};

/// No room starts with more than this many invitations.
const INVITES_MAX: usize = 100;
/// No room starts with more than this many invitations of addresses.
pub const ADDRESSES_MAX: usize = 10;
/// No room starts with more than this many events of `initial_state`.
const INITIAL_STATE_MAX: usize = 200;

/// The body of `POST /createRoom`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CreateRoom {
    /// Whether the room is published in the directory; private if not said.
    pub visibility: Option<Visibility>,
    /// The local part of the alias that the room gets.
    pub room_alias_name: Option<String>,
    /// The room's name.
    pub name: Option<String>,
    /// The room's topic, plain text.
    pub topic: Option<String>,
    /// Who is invited.
    pub invite: Option<Vec<String>>,
    /// E-mail addresses and the like that are invited.
    pub invite_3pid: Option<Vec<ThirdPartyInvitee>>,
    /// The room version; the server's default if not said.
    pub room_version: Option<String>,
    /// More keys for the content of `m.room.create`.
    pub creation_content: Option<Map<String, Value>>,
    /// State that the room starts with, beyond what the preset gives.
    pub initial_state: Option<Vec<InitialState>>,
    /// The bundle of rules that the room starts with; from `visibility` if not said.
    pub preset: Option<Preset>,
    /// Whether invitations say that this is a direct conversation.
    pub is_direct: Option<bool>,
    /// Keys that replace those of the power levels that the server makes.
    pub power_level_content_override: Option<Map<String, Value>>,
}

/// Whether a room is in the published directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Published.
    Public,
    /// Not published.
    Private,
}

/// The three presets of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::enum_variant_names, reason = "they are the words of the specification")]
pub enum Preset {
    /// Invite only.
    PrivateChat,
    /// Invite only, and everyone invited at the start has the creator's power.
    TrustedPrivateChat,
    /// Anyone may join.
    PublicChat,
}

/// One entry of `initial_state`.
#[derive(Debug, Clone, Deserialize)]
pub struct InitialState {
    /// The event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The state key, empty if not said.
    #[serde(default)]
    pub state_key: String,
    /// The content.
    pub content: Map<String, Value>,
}

/// One state event of the new room. The room's creator sends them all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedEvent {
    /// The event type.
    pub event_type: String,
    /// The state key.
    pub state_key: String,
    /// The content.
    pub content: Map<String, Value>,
}

impl PlannedEvent {
    fn new(event_type: &str, state_key: &str, content: Value) -> Self {
        let Value::Object(content) = content else { unreachable!("every caller writes an object") };
        Self { event_type: event_type.to_owned(), state_key: state_key.to_owned(), content }
    }

    /// The invite of a local user, which says this.
    pub(super) fn invite(invitee: &UserId, content: Map<String, Value>) -> Self {
        Self { event_type: "m.room.member".to_owned(), state_key: invitee.to_string(), content }
    }
}

impl CreateRoom {
    /// The preset in force: the one asked for, else the one that the visibility stands for.
    pub fn preset(&self) -> Preset {
        self.preset.unwrap_or(match self.visibility {
            Some(Visibility::Public) => Preset::PublicChat,
            _ => Preset::PrivateChat,
        })
    }

    /// Whether users of other servers can come into the room.
    pub fn federates(&self) -> bool {
        let content = self.creation_content.as_ref();
        content.and_then(|content| content.get("m.federate")) != Some(&Value::Bool(false))
    }

    /// Those to invite, each once, in the order given. Errors: 400 `M_INVALID_PARAM` for what is no user id or for
    /// too many.
    pub fn invitees(&self) -> Result<Vec<UserId>> {
        let mut seen = BTreeSet::new();
        let mut invitees = Vec::new();
        for text in self.invite.iter().flatten() {
            let user = UserId::parse(text)?;
            if seen.insert(user.clone()) {
                invitees.push(user);
            }
        }
        if invitees.len() > INVITES_MAX {
            return Err(Error::invalid_param("Too many users are invited at once"));
        }
        Ok(invitees)
    }

    /// The addresses to invite. Errors: 400 `M_INVALID_PARAM` for too many: each takes questions to an identity server.
    pub fn third_party_invitees(&self) -> Result<&[ThirdPartyInvitee]> {
        let invitees = self.invite_3pid.as_deref().unwrap_or_default();
        if invitees.len() > ADDRESSES_MAX {
            return Err(Error::invalid_param("Too many addresses are invited at once"));
        }
        Ok(invitees)
    }

    /// The events of the new room in the order of the specification ("createRoom", steps 1 to 7); the invitations
    /// of step 8 follow on their own, since they may travel. `profile` has the creator's `displayname` and
    /// `avatar_url`. Errors: 400 `M_BAD_JSON`, `M_INVALID_PARAM`, `M_INVALID_ROOM_STATE`.
    pub fn plan(
        &self,
        creator: &UserId,
        profile: &Map<String, Value>,
        version: RoomVersion,
        alias: Option<&RoomAlias>,
    ) -> Result<Vec<PlannedEvent>> {
        let invitees = self.invitees()?;
        let initial_state = self.checked_initial_state(alias)?;

        // 1. and 2. The create event, and the creator's join.
        let mut events = vec![
            PlannedEvent::new(
                "m.room.create",
                "",
                self.creation_content(creator, &invitees, version)?.into(),
            ),
            PlannedEvent::new("m.room.member", creator.as_str(), join_content(profile).into()),
        ];
        // 3. Power levels.
        let levels = self.power_levels(creator, &invitees, version);
        events.push(PlannedEvent::new("m.room.power_levels", "", levels.into()));
        // 4. The alias.
        if let Some(alias) = alias {
            events.push(PlannedEvent::new("m.room.canonical_alias", "", json!({"alias": alias})));
        }
        // 5. The preset, as far as `initial_state` does not say otherwise.
        let overridden = |event: &PlannedEvent| {
            initial_state.iter().any(|e| e.event_type == event.event_type && e.state_key == event.state_key)
        };
        events.extend(self.preset().events().into_iter().filter(|event| !overridden(event)));
        // 6. What the client lists. 7. The name and the topic, which win.
        let named = self.name_and_topic();
        let replaced = |e: &InitialState| {
            named.iter().any(|n| n.event_type == e.event_type && n.state_key == e.state_key)
        };
        events.extend(initial_state.iter().filter(|e| !replaced(e)).map(|e| PlannedEvent {
            event_type: e.event_type.clone(),
            state_key: e.state_key.clone(),
            content: e.content.clone(),
        }));
        events.extend(named);
        Ok(events)
    }

    /// What `initial_state` lists, of which nothing is more than its author could send into the room. `alias`: the one that
    /// the room is made with.
    fn checked_initial_state(&self, alias: Option<&RoomAlias>) -> Result<&[InitialState]> {
        let state = self.initial_state.as_deref().unwrap_or_default();
        if state.len() > INITIAL_STATE_MAX {
            return Err(Error::invalid_param("initial_state is too long"));
        }
        for e in state {
            match (e.event_type.as_str(), e.state_key.as_str()) {
                // The first is the server's to write; the others take more than writing an event, and of the last there
                // is nothing that it could redact.
                ("m.room.create" | "m.room.member" | "m.room.redaction", _) => {
                    let why = format!("{} cannot be set by initial_state", e.event_type);
                    return Err(Error::new(ErrCode::InvalidRoomState, why));
                }
                // No other alias leads to a room that is not there yet.
                ("m.room.canonical_alias", "") => {
                    let is_other = |shown: &String| alias.is_none_or(|alias| shown != alias.as_str());
                    if let Some(shown) = aliases_in(&e.content)?.into_iter().find(is_other) {
                        return Err(bad_alias(RoomAlias::parse(&shown)?.as_str()));
                    }
                }
                _ => {}
            }
        }
        Ok(state)
    }

    fn creation_content(
        &self,
        creator: &UserId,
        invitees: &[UserId],
        version: RoomVersion,
    ) -> Result<Map<String, Value>> {
        let mut content = self.creation_content.clone().unwrap_or_default();
        content.insert("room_version".to_owned(), version.id.into());
        // "The server will overwrite the following keys: creator, room_version": from version 11 on the creator is
        // the event's sender, and the key is gone.
        content.remove("creator");
        if version.creator_in_content {
            content.insert("creator".to_owned(), creator.as_str().into());
        }
        if content.get("m.federate").is_some_and(|federate| !federate.is_boolean()) {
            return Err(Error::bad_json("m.federate must be a boolean"));
        }
        if version.privileged_creators {
            let mut creators = additional_creators(&content)?;
            if self.preset() == Preset::TrustedPrivateChat {
                creators.extend(invitees.iter().cloned());
            }
            let mut seen = BTreeSet::from([creator.clone()]);
            creators.retain(|user| seen.insert(user.clone()));
            if creators.is_empty() {
                content.remove("additional_creators");
            } else {
                content.insert("additional_creators".to_owned(), json!(creators));
            }
        }
        Ok(content)
    }

    fn power_levels(
        &self,
        creator: &UserId,
        invitees: &[UserId],
        version: RoomVersion,
    ) -> Map<String, Value> {
        let mut users = Map::new();
        if !version.privileged_creators {
            users.insert(creator.to_string(), 100.into());
            if self.preset() == Preset::TrustedPrivateChat {
                users.extend(invitees.iter().map(|user| (user.to_string(), 100.into())));
            }
        }
        // "If the room's version is 12 or higher, the power level for sending m.room.tombstone events MUST explicitly
        // be higher than state_default."
        let tombstone = if version.privileged_creators { 150 } else { 100 };
        let invite = if self.preset() == Preset::PublicChat { 50 } else { 0 };
        let content = json!({
            "ban": 50,
            "events": {
                "m.room.avatar": 50,
                "m.room.canonical_alias": 50,
                "m.room.encryption": 100,
                "m.room.history_visibility": 100,
                "m.room.name": 50,
                "m.room.power_levels": 100,
                "m.room.server_acl": 100,
                "m.room.tombstone": tombstone,
            },
            "events_default": 0,
            "invite": invite,
            "kick": 50,
            "redact": 50,
            "state_default": 50,
            "users": users,
            "users_default": 0,
        });
        let Value::Object(mut content) = content else { unreachable!("written as an object") };
        content.extend(self.power_level_content_override.clone().unwrap_or_default());
        content
    }

    fn name_and_topic(&self) -> Vec<PlannedEvent> {
        let name = self.name.as_ref().map(|name| PlannedEvent::new("m.room.name", "", json!({"name": name})));
        let topic =
            self.topic.as_ref().map(|topic| PlannedEvent::new("m.room.topic", "", topic_content(topic)));
        name.into_iter().chain(topic).collect()
    }
}

impl Preset {
    /// The state of step 5, by the table of the specification.
    fn events(self) -> [PlannedEvent; 3] {
        let (join_rule, guest_access) = match self {
            Self::PrivateChat | Self::TrustedPrivateChat => ("invite", "can_join"),
            Self::PublicChat => ("public", "forbidden"),
        };
        [
            PlannedEvent::new("m.room.join_rules", "", json!({"join_rule": join_rule})),
            PlannedEvent::new("m.room.history_visibility", "", json!({"history_visibility": "shared"})),
            PlannedEvent::new("m.room.guest_access", "", json!({"guest_access": guest_access})),
        ]
    }
}

/// The content of a plain-text topic, with the representation that newer clients read.
fn topic_content(topic: &str) -> Value {
    json!({"topic": topic, "m.topic": {"m.text": [{"body": topic, "mimetype": "text/plain"}]}})
}

/// The content of a join by a user with this profile.
pub(in crate::service::rooms) fn join_content(profile: &Map<String, Value>) -> Map<String, Value> {
    let mut content = Map::new();
    content.insert("membership".to_owned(), "join".into());
    for field in ["displayname", "avatar_url"] {
        if let Some(value) = profile.get(field).filter(|value| value.is_string()) {
            content.insert(field.to_owned(), value.clone());
        }
    }
    content
}

/// `additional_creators` as the client gave it. Errors: 400 `M_INVALID_PARAM` unless it is a list of user ids.
pub(in crate::service::rooms) fn additional_creators(content: &Map<String, Value>) -> Result<Vec<UserId>> {
    let wrong = || Error::invalid_param("additional_creators must be a list of user ids");
    match content.get("additional_creators") {
        None => Ok(Vec::new()),
        Some(Value::Array(users)) => {
            users.iter().map(|user| UserId::parse(user.as_str().ok_or_else(wrong)?)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::room_version::room_version;

    fn alice() -> UserId {
        UserId::parse("@alice:example.org").unwrap()
    }

    fn plan(version: &str, body: Value) -> Result<Vec<PlannedEvent>> {
        let request: CreateRoom = serde_json::from_value(body).unwrap();
        let alias =
            request.room_alias_name.as_ref().map(|n| RoomAlias::parse(&format!("#{n}:example.org")).unwrap());
        let profile = json!({"displayname": "Alice", "m.tz": "Europe/Vienna"});
        request.plan(&alice(), profile.as_object().unwrap(), room_version(version).unwrap(), alias.as_ref())
    }

    fn content(events: &[PlannedEvent], event_type: &str) -> Value {
        let mut found = events.iter().filter(|e| e.event_type == event_type);
        let content = found.next().unwrap_or_else(|| panic!("no {event_type}")).content.clone();
        assert!(found.next().is_none(), "two {event_type}");
        content.into()
    }

    #[test]
    fn the_events_come_in_the_order_of_the_specification() {
        let events = plan(
            "11",
            json!({
                "room_alias_name": "pub", "name": "The Pub", "topic": "Happy hour", "visibility": "public",
                "initial_state": [
                    {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
                    {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}},
                    {"type": "m.room.name", "content": {"name": "Overwritten"}},
                ],
            }),
        )
        .unwrap();
        let types: Vec<_> = events.iter().map(|e| e.event_type.as_str()).collect();
        assert_eq!(
            types,
            [
                "m.room.create",
                "m.room.member",
                "m.room.power_levels",
                "m.room.canonical_alias",
                "m.room.join_rules",
                "m.room.history_visibility",
                "m.room.encryption",
                "m.room.guest_access",
                "m.room.name",
                "m.room.topic",
            ]
        );
        assert_eq!(content(&events, "m.room.guest_access"), json!({"guest_access": "can_join"}));
        assert_eq!(content(&events, "m.room.name"), json!({"name": "The Pub"}));
        assert_eq!(content(&events, "m.room.join_rules"), json!({"join_rule": "public"}));
        assert_eq!(content(&events, "m.room.member"), json!({"membership": "join", "displayname": "Alice"}));
        assert_eq!(content(&events, "m.room.canonical_alias"), json!({"alias": "#pub:example.org"}));
        assert_eq!(
            content(&events, "m.room.topic")["m.topic"]["m.text"][0],
            json!({"body": "Happy hour", "mimetype": "text/plain"})
        );
    }

    #[test]
    fn the_creator_is_named_where_the_version_wants_it_and_cannot_be_forged() {
        let forged = json!({"creation_content": {
            "creator": "@eve:example.org", "room_version": "1", "type": "m.space", "m.federate": false,
        }});
        for (version, named) in [("1", true), ("10", true), ("11", false), ("12", false)] {
            let create = content(&plan(version, forged.clone()).unwrap(), "m.room.create");
            assert_eq!(create["room_version"], version);
            assert_eq!(create["type"], "m.space");
            assert_eq!(create["m.federate"], false);
            assert_eq!(
                create.get("creator"),
                named.then(|| json!("@alice:example.org")).as_ref(),
                "{version}"
            );
        }
    }

    #[test]
    fn trusted_invitees_get_the_creators_power_by_the_means_of_the_version() {
        let body = json!({
            "preset": "trusted_private_chat", "invite": ["@bob:b.org", "@bob:b.org", "@carol:c.org"],
            "creation_content": {"additional_creators": ["@dan:d.org", "@bob:b.org", "@alice:example.org"]},
        });
        let old = plan("11", body.clone()).unwrap();
        assert_eq!(
            content(&old, "m.room.power_levels")["users"],
            json!({"@alice:example.org": 100, "@bob:b.org": 100, "@carol:c.org": 100})
        );
        let new = plan("12", body).unwrap();
        assert_eq!(content(&new, "m.room.power_levels")["users"], json!({}));
        assert_eq!(content(&new, "m.room.power_levels")["events"]["m.room.tombstone"], 150);
        assert_eq!(
            content(&new, "m.room.create")["additional_creators"],
            json!(["@dan:d.org", "@bob:b.org", "@carol:c.org"])
        );
    }

    #[test]
    fn a_creator_is_not_an_additional_one_and_the_list_is_checked() {
        let only_me = json!({"creation_content": {"additional_creators": ["@alice:example.org"]}});
        assert!(content(&plan("12", only_me).unwrap(), "m.room.create").get("additional_creators").is_none());
        for wrong in [json!("@bob:b.org"), json!([7]), json!(["bob"])] {
            let body = json!({"creation_content": {"additional_creators": wrong}});
            assert_eq!(plan("12", body).unwrap_err().errcode(), ErrCode::InvalidParam);
        }
    }

    #[test]
    fn power_level_overrides_replace_whole_keys() {
        let body = json!({"power_level_content_override": {"invite": 75, "events": {"m.room.name": 0}}});
        let levels = content(&plan("10", body).unwrap(), "m.room.power_levels");
        assert_eq!(levels["invite"], 75);
        assert_eq!(levels["events"], json!({"m.room.name": 0}));
        assert_eq!(levels["ban"], 50);
    }

    #[test]
    fn the_visibility_chooses_the_preset_only_if_none_is_named() {
        let public = plan("12", json!({"visibility": "public"})).unwrap();
        assert_eq!(content(&public, "m.room.join_rules"), json!({"join_rule": "public"}));
        assert_eq!(content(&public, "m.room.guest_access"), json!({"guest_access": "forbidden"}));
        let private = plan("12", json!({"visibility": "public", "preset": "private_chat"})).unwrap();
        assert_eq!(content(&private, "m.room.join_rules"), json!({"join_rule": "invite"}));
        assert_eq!(content(&private, "m.room.guest_access"), json!({"guest_access": "can_join"}));
    }

    #[test]
    fn initial_state_cannot_smuggle_in_memberships_or_another_create_event() {
        for event_type in ["m.room.member", "m.room.create"] {
            let body = json!({"initial_state": [{"type": event_type, "state_key": "@b:c", "content": {}}]});
            assert_eq!(plan("12", body).unwrap_err().errcode(), ErrCode::InvalidRoomState);
        }
    }

    #[test]
    fn bodies_of_a_wrong_shape_are_refused() {
        for wrong in [
            json!({"preset": "open_bar"}),
            json!({"invite": "@bob:b.org"}),
            json!({"initial_state": [{"type": "m.room.name"}]}),
            json!({"creation_content": []}),
            json!({"visibility": 1}),
        ] {
            assert!(serde_json::from_value::<CreateRoom>(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(serde_json::from_value::<CreateRoom>(json!({"name": null, "invite": null})).is_ok());
    }
}
