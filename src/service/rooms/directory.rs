//! Room aliases, and the directory of published rooms.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{ErrCode, Error, Result};
use crate::federation::CallError;
use crate::order::{self, Gather};
use crate::protocol::appservice::Appservice;
use crate::protocol::content::federates;
use crate::protocol::json::read_object;
use crate::protocol::pdu::Membership;
use crate::protocol::search_text::fold;
use crate::protocol::{RoomAlias, RoomId, ServerName, UserId};
use crate::service::events::draft::Draft;
use crate::service::events::power_levels::may_send_state;
use crate::service::limits::request_permits::Asker;
use crate::service::limits::silent_servers::AskedFor;
use crate::service::rooms::Rooms;
use crate::service::rooms::view::{RoomView, readable_room};
use crate::store::appservices::NetworkRoom;
use crate::store::{Db, Room};

/// Time to find out what an alias stands for that a local user wants to join by.
const ALIAS_TIMEOUT: Duration = Duration::from_secs(20);
/// No more than this many servers are named for a room.
const ALIAS_SERVERS_MAX: usize = 100;
/// Longest name of a network, in bytes.
const NETWORK_BYTES_MAX: usize = 255;
/// Rooms in one answer of `/publicRooms` if the client names no limit.
const PUBLIC_ROOMS_DEFAULT: usize = 100;
/// Rooms in one answer of `/publicRooms` whatever the client asks for.
const PUBLIC_ROOMS_MAX: usize = 500;

/// What a client or a server asks of `/publicRooms`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PublicRoomsRequest {
    /// At most so many rooms.
    pub limit: Option<u64>,
    /// The token of another page.
    pub since: Option<String>,
    /// Which rooms.
    pub filter: Option<PublicRoomsFilter>,
    /// Rooms of bridged networks too.
    pub include_all_networks: bool,
    /// Rooms of this bridged network only.
    pub third_party_instance_id: Option<String>,
}

/// Which published rooms are wanted.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PublicRoomsFilter {
    /// A text that the name, topic or alias has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generic_search_term: Option<String>,
    /// The types; `null` stands for rooms without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_types: Option<Vec<Option<String>>>,
}

/// A page of the directory.
#[derive(Debug, Serialize)]
pub struct PublicRooms {
    chunk: Vec<PublishedRoom>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_room_count_estimate: Option<u64>,
}

/// One room of the directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PublishedRoom {
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canonical_alias: Option<String>,
    guest_can_join: bool,
    /// The join rule.
    #[serde(default = "public")]
    pub join_rule: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    num_joined_members: u64,
    /// The room.
    pub room_id: RoomId,
    /// What kind of room: `m.space` is a space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_type: Option<String>,
    /// Its topic, as plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Whether anybody may read it.
    pub world_readable: bool,
}

impl PublishedRoom {
    /// How many bytes its texts are.
    pub(super) fn texts_bytes(&self) -> usize {
        let Self { avatar_url, canonical_alias, name, room_type, topic, join_rule, room_id, .. } = self;
        let optional = [avatar_url, canonical_alias, name, room_type, topic].into_iter().flatten();
        join_rule.len() + room_id.as_str().len() + optional.map(String::len).sum::<usize>()
    }
}

/// "When not present, the room is assumed to be `public`."
fn public() -> String {
    "public".to_owned()
}

impl Rooms<'_> {
    /// The room that an alias stands for, and servers that are likely to know it, best first: asked of the server
    /// that the alias belongs to. For local users who join or knock. Errors: 404 `M_NOT_FOUND`, and what the other
    /// server says.
    pub fn resolve_alias(&self, asker: &Asker, alias: &RoomAlias) -> Result<(RoomId, Vec<ServerName>)> {
        match alias.server_name() == self.server_name().as_str() {
            true => self.resolve_own_alias(asker, alias),
            false => self.resolve_remote_alias(alias, ALIAS_TIMEOUT),
        }
    }

    /// What an alias stands for, for whoever asks out of curiosity. Errors: those of
    /// [`Rooms::resolve_alias`]; 429 `M_LIMIT_EXCEEDED`.
    pub fn look_up_alias(&self, asker: &Asker, alias: &RoomAlias) -> Result<(RoomId, Vec<ServerName>)> {
        if alias.server_name() == self.server_name().as_str() {
            return self.resolve_own_alias(asker, alias);
        }
        let permit = self.request_permits.ask(asker)?;
        self.resolve_remote_alias(alias, permit.within)
    }

    fn resolve_remote_alias(&self, alias: &RoomAlias, within: Duration) -> Result<(RoomId, Vec<ServerName>)> {
        let peer = ServerName::parse(alias.server_name())?;
        let within = self.patience_with(&peer, AskedFor::Directory, within);
        let answer = self.ask_peer(&peer, AskedFor::Directory, within, |within| {
            self.federation.query_directory(&peer, alias, within)
        });
        let answer = answer.map_err(|e| e.into_client_error(&peer))?;
        Ok((answer.room_id, answer.servers))
    }

    /// What one of our own aliases stands for, which an application service may make now: also the answer to another server's
    /// `query/directory`. Errors: 404 `M_NOT_FOUND`, 429 `M_LIMIT_EXCEEDED`.
    pub fn resolve_own_alias(&self, asker: &Asker, alias: &RoomAlias) -> Result<(RoomId, Vec<ServerName>)> {
        match self.resolve_known_alias(alias) {
            Err(e) if e.errcode() == ErrCode::NotFound => match self.ask_services_for_alias(asker, alias)? {
                true => self.resolve_known_alias(alias),
                false => Err(e),
            },
            known => known,
        }
    }

    fn resolve_known_alias(&self, alias: &RoomAlias) -> Result<(RoomId, Vec<ServerName>)> {
        self.store.read(|db| {
            let room_id = db.alias(alias)?.ok_or_else(|| no_alias(alias))?.room_id;
            let mut servers = match db.room(&room_id)? {
                Some(room) => db.resident_servers(room.key)?,
                None => Vec::new(),
            };
            // Ours leads: it is the one that was asked, and it can let people in as long as it is in the room.
            if let Some(ours) = servers.iter().position(|server| server == self.server_name()) {
                let ours = servers.remove(ours);
                servers.insert(0, ours);
            }
            servers.truncate(ALIAS_SERVERS_MAX);
            Ok((room_id, servers))
        })
    }

    /// Makes an alias of this server for a room that the user is in, or that an application service knows of which asks as that
    /// user. Errors: 400 `M_INVALID_PARAM` for another server's alias, 400 `M_EXCLUSIVE`, 403 `M_FORBIDDEN`, 409 `M_UNKNOWN`
    /// if there is one.
    pub fn set_alias(
        &self,
        (user, service): (&UserId, Option<&Appservice>),
        alias: &RoomAlias,
        room: &RoomId,
    ) -> Result<()> {
        if alias.server_name() != self.server_name().as_str() {
            return Err(Error::invalid_param("This server can only make aliases of its own"));
        }
        self.appservices.check_alias(service, user, alias)?;
        self.store.read(|db| match service {
            Some(_) => db.known_room(room).map(drop),
            None => RoomView::new(db, &readable_room(db, room)?, user)?.require_joined(),
        })?;
        let (user, alias, room) = (user.clone(), alias.clone(), room.clone());
        self.store.write(move |tx| {
            if tx.add_alias(&alias, &room, &user)? {
                return Ok(());
            }
            let message = format!("Room alias {alias} already exists.");
            Err(Error::new(ErrCode::Unknown, message).with_status(409))
        })
    }

    /// Whether a room may be made with this for the local part of its alias. Errors: 400 `M_INVALID_PARAM`, 400 `M_EXCLUSIVE`.
    pub fn check_alias_name(&self, user: &UserId, service: Option<&Appservice>, name: &str) -> Result<()> {
        self.appservices.check_alias(service, user, &self.own_alias(name)?)
    }

    /// Removes an alias of this server: by whoever made it, an administrator, those who may name the room, or the service in
    /// whose namespaces it is. The room stops showing it if the user may change that. Errors: 404 `M_NOT_FOUND`, 403
    /// `M_FORBIDDEN`, 400 `M_EXCLUSIVE`.
    pub fn delete_alias(
        &self,
        (user, service): (&UserId, Option<&Appservice>),
        is_admin: bool,
        alias: &RoomAlias,
    ) -> Result<()> {
        if !is_admin {
            self.appservices.check_alias(service, user, alias)?;
        }
        let room_id = self.store.read(|db| {
            let found = db.alias(alias)?.ok_or_else(|| no_alias(alias))?;
            let of_room = match db.room(&found.room_id)? {
                Some(room) => {
                    db.membership(room.key, user)? == Some(Membership::Join)
                        && may_send_state(db, &room, user, "m.room.canonical_alias")?
                }
                None => false,
            };
            if found.created_by == *user || is_admin || service.is_some() || of_room {
                return Ok(found.room_id);
            }
            Err(Error::forbidden("You may not delete this alias"))
        })?;
        let gone = alias.clone();
        if !self.store.write(move |tx| tx.delete_alias(&gone))? {
            return Err(no_alias(alias));
        }
        self.stop_showing_alias(user, alias, &room_id);
        Ok(())
    }

    /// "Delete the alias and return a successful response even if the user does not have permission to update the
    /// m.room.canonical_alias event."
    fn stop_showing_alias(&self, user: &UserId, alias: &RoomAlias, room_id: &RoomId) {
        let shown = self.store.read(|db| match db.room(room_id)? {
            Some(room) => db.state_event(room.key, "m.room.canonical_alias", ""),
            None => Ok(None),
        });
        let Ok(Some(shown)) = shown else { return };
        let mut content = shown.content();
        if content.get("alias").and_then(Value::as_str) == Some(alias.as_str()) {
            content.remove("alias");
        }
        if let Some(Value::Array(others)) = content.get_mut("alt_aliases") {
            others.retain(|other| other != alias.as_str());
        }
        if content == shown.content() {
            return;
        }
        let draft = Draft {
            room: room_id.clone(),
            sender: user.clone(),
            event_type: "m.room.canonical_alias".to_owned(),
            state_key: Some(String::new()),
            content,
            redacts: None,
            origin_server_ts: None,
        };
        if let Err(error) = self.events().send(draft) {
            log::debug!("{alias} is deleted but still shown in {room_id}: {error}");
        }
    }

    /// This server's aliases of a room. Errors: 403 `M_FORBIDDEN` unless the user is in the room or anybody may read
    /// it.
    pub fn aliases_of(&self, user: &UserId, room: &RoomId) -> Result<Vec<String>> {
        self.store.read(|db| {
            let known = readable_room(db, room)?;
            let view = RoomView::new(db, &known, user)?;
            if !view.is_world_readable() {
                view.require_joined()?;
            }
            db.aliases_of(room)
        })
    }

    /// Whether a room is published. Errors: 404 `M_NOT_FOUND`.
    pub fn is_published(&self, room: &RoomId) -> Result<bool> {
        self.store.read(|db| {
            db.known_room(room)?;
            db.is_published(room)
        })
    }

    /// Publishes a room or takes it out of the directory: by those who may name the room, or an administrator. Errors:
    /// 404 `M_NOT_FOUND`, 403 `M_FORBIDDEN`.
    pub fn set_published(&self, user: &UserId, is_admin: bool, room: &RoomId, published: bool) -> Result<()> {
        self.store.read(|db| {
            let known = db.known_room(room)?;
            let allowed = is_admin
                || (db.membership(known.key, user)? == Some(Membership::Join)
                    && may_send_state(db, &known, user, "m.room.canonical_alias")?);
            if allowed { Ok(()) } else { Err(Error::forbidden("You may not publish this room")) }
        })?;
        let room = room.clone();
        self.store.write(move |tx| tx.set_published(&room, published))
    }

    /// Publishes a room for a network that a service bridges, or takes it out there: "the application service's published room
    /// directory". Errors: 404 `M_NOT_FOUND`, 400 `M_INVALID_PARAM`.
    pub fn set_published_for_network(
        &self,
        service: &Appservice,
        network: &str,
        room: &RoomId,
        published: bool,
    ) -> Result<()> {
        if network.is_empty() || network.len() > NETWORK_BYTES_MAX {
            return Err(Error::invalid_param("networkId must have 1 to 255 bytes"));
        }
        self.store.read(|db| db.known_room(room))?;
        let appservice = service.id.clone();
        let room = NetworkRoom { appservice, network: network.to_owned(), room_id: room.clone() };
        self.store.write(move |tx| tx.set_network_room(&room, published))
    }

    /// The rooms that are listed where these networks are asked for.
    fn listed_ids(&self, db: &Db<'_>, request: &PublicRoomsRequest) -> Result<BTreeSet<RoomId>> {
        let all = request.include_all_networks;
        let network = request.third_party_instance_id.as_deref().filter(|id| !id.is_empty() && !all);
        let mut ids: BTreeSet<RoomId> = match network {
            None => db.published_rooms()?.into_iter().gather(),
            Some(_) => BTreeSet::new(),
        };
        if all || network.is_some() {
            let is_wanted = |room: &NetworkRoom| {
                let service = self.appservices.by_id(&room.appservice);
                service
                    .is_some_and(|service| network.is_none_or(|id| id == service.instance_id(&room.network)))
            };
            ids.extend(db.network_rooms()?.into_iter().filter(is_wanted).map(|room| room.room_id));
        }
        Ok(ids)
    }

    /// A page of this server's directory, largest rooms first. Errors: 400 `M_INVALID_PARAM` for a token that is none.
    pub fn public_rooms(&self, request: &PublicRoomsRequest) -> Result<PublicRooms> {
        self.listed_rooms(request, |_, _| Ok(true))
    }

    /// [`Rooms::public_rooms`] for other servers, whose users could not come into a room that does not federate.
    pub fn public_rooms_for_servers(&self, request: &PublicRoomsRequest) -> Result<PublicRooms> {
        self.listed_rooms(request, |db, room| {
            let create = db.state_event(room.key, "m.room.create", "")?;
            Ok(create.is_none_or(|create| federates(&create.content())))
        })
    }

    fn listed_rooms(
        &self,
        request: &PublicRoomsRequest,
        is_for_them: impl Fn(&Db<'_>, &Room) -> Result<bool>,
    ) -> Result<PublicRooms> {
        let wrong = || Error::invalid_param("The since token is none of this server's");
        let start = match request.since.as_deref() {
            None | Some("") => 0,
            Some(token) => token.strip_prefix('p').and_then(|n| n.parse::<usize>().ok()).ok_or_else(wrong)?,
        };
        let mut rooms =
            self.store.read(|db| published_rooms(db, self.listed_ids(db, request)?, &is_for_them))?;
        let total = rooms.len();
        if let Some(filter) = &request.filter {
            let term = filter.folded_term();
            rooms.retain(|room| filter.wants(room, &term));
        }
        order::sort_by(&mut rooms, |a, b| {
            b.num_joined_members.cmp(&a.num_joined_members).then_with(|| a.room_id.cmp(&b.room_id))
        });
        let limit =
            request.limit.map_or(PUBLIC_ROOMS_DEFAULT, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let limit = limit.clamp(1, PUBLIC_ROOMS_MAX);
        let end = start.saturating_add(limit);
        Ok(PublicRooms {
            next_batch: (end < rooms.len()).then(|| format!("p{end}")),
            prev_batch: (start > 0).then(|| format!("p{}", start.saturating_sub(limit))),
            chunk: rooms.into_iter().skip(start).take(limit).collect(),
            total_room_count_estimate: Some(total as u64),
        })
    }

    /// A page of another server's directory, as it orders it; of this server's if it is this one. What is no room is
    /// left out; of one that cannot be searched also what is not searched for, so that pages are short. Errors: what the other server says; 429 `M_LIMIT_EXCEEDED`.
    pub fn public_rooms_of(
        &self,
        asker: &Asker,
        server: &ServerName,
        request: &PublicRoomsRequest,
    ) -> Result<PublicRooms> {
        if server == self.server_name() {
            return self.public_rooms(request);
        }
        let limit = request.limit.map_or(PUBLIC_ROOMS_DEFAULT as u64, |limit| limit.max(1));
        let mut asked = Map::new();
        asked.insert("limit".to_owned(), limit.min(PUBLIC_ROOMS_MAX as u64).into());
        if let Some(token) = request.since.as_deref().filter(|token| !token.is_empty()) {
            asked.insert("since".to_owned(), token.into());
        }
        if let Some(filter) = &request.filter {
            asked.insert("filter".to_owned(), serde_json::to_value(filter).map_err(Error::internal)?);
        }
        if request.include_all_networks {
            asked.insert("include_all_networks".to_owned(), true.into());
        } else if let Some(network) = &request.third_party_instance_id {
            asked.insert("third_party_instance_id".to_owned(), network.as_str().into());
        }
        let permit = self.request_permits.ask(asker)?;
        let within = self.patience_with(server, AskedFor::Directory, permit.within);
        let answer = self.ask_peer(server, AskedFor::Directory, within, |within| {
            let began = Instant::now();
            match self.federation.public_rooms(server, &asked, within) {
                // It has no search. Whatever it calls that: there is no resource that it could lack.
                Err(e) if asked.contains_key("filter") && (e.is_unrecognized() || is_not_found(&e)) => {
                    asked.remove("filter");
                    let left = within.saturating_sub(began.elapsed());
                    self.federation.public_rooms(server, &asked, left)
                }
                answer => answer,
            }
        });
        let answer = answer.map_err(|e| e.into_client_error(server))?;
        let mut chunk: Vec<PublishedRoom> =
            answer.chunk.iter().filter_map(|room| read_object(room.get().as_bytes()).ok()).collect();
        if let Some(filter) = request.filter.as_ref().filter(|_| !asked.contains_key("filter")) {
            let term = filter.folded_term();
            chunk.retain(|room| filter.wants(room, &term));
        }
        Ok(PublicRooms {
            chunk,
            next_batch: answer.next_batch,
            prev_batch: answer.prev_batch,
            total_room_count_estimate: answer.total_room_count_estimate,
        })
    }
}

fn no_alias(alias: &RoomAlias) -> Error {
    Error::not_found(format!("Room alias {alias} not found."))
}

fn is_not_found(error: &CallError) -> bool {
    error.refusal().is_some_and(|refusal| refusal.status == 404)
}

impl PublicRoomsFilter {
    fn folded_term(&self) -> String {
        fold(self.generic_search_term.as_deref().unwrap_or(""))
    }

    /// `term`: what is searched for, folded.
    fn wants(&self, room: &PublishedRoom, term: &str) -> bool {
        let texts = [&room.name, &room.topic, &room.canonical_alias];
        let found = term.is_empty() || texts.into_iter().flatten().any(|text| fold(text).contains(term));
        found && self.room_types.as_ref().is_none_or(|types| types.contains(&room.room_type))
    }
}

fn published_rooms(
    db: &Db<'_>,
    ids: BTreeSet<RoomId>,
    is_for_them: impl Fn(&Db<'_>, &Room) -> Result<bool>,
) -> Result<Vec<PublishedRoom>> {
    let mut rooms = Vec::new();
    for room_id in ids {
        // A room that everybody left stays published, and is shown again when somebody comes back.
        if let Some(room) = db.room(&room_id)?.filter(|room| room.joined > 0)
            && is_for_them(db, &room)?
        {
            rooms.push(published_room(db, &room)?);
        }
    }
    Ok(rooms)
}

/// What a directory says of a room.
pub(in crate::service) fn published_room(db: &Db<'_>, room: &Room) -> Result<PublishedRoom> {
    let text = |event_type: &str, field: &str| -> Result<Option<String>> {
        let event = db.state_event(room.key, event_type, "")?;
        Ok(event.and_then(|event| event.content_str(field)).filter(|text| !text.is_empty()))
    };
    let topic = db.state_event(room.key, "m.room.topic", "")?;
    Ok(PublishedRoom {
        avatar_url: text("m.room.avatar", "url")?,
        canonical_alias: text("m.room.canonical_alias", "alias")?,
        guest_can_join: text("m.room.guest_access", "guest_access")?.as_deref() == Some("can_join"),
        // "If not present, the room is assumed to be …": the rule of a room without one is `invite`.
        join_rule: text("m.room.join_rules", "join_rule")?.unwrap_or_else(|| "invite".to_owned()),
        name: text("m.room.name", "name")?,
        num_joined_members: room.joined,
        room_id: room.room_id.clone(),
        room_type: text("m.room.create", "type")?,
        topic: topic.and_then(|topic| plain_topic(&topic.content().into())),
        world_readable: text("m.room.history_visibility", "history_visibility")?.as_deref()
            == Some("world_readable"),
    })
}

/// The plain text of a topic: of its `m.topic` if that has one, else `topic`.
fn plain_topic(content: &Value) -> Option<String> {
    let representations = content["m.topic"]["m.text"].as_array();
    let plain = representations.into_iter().flatten().find(|representation| {
        representation.get("mimetype").is_none_or(|mimetype| mimetype == "text/plain")
    });
    let text = plain.and_then(|plain| plain["body"].as_str()).or_else(|| content["topic"].as_str())?;
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_plain_topic_is_found_among_the_representations() {
        let rich = json!({"topic": "old", "m.topic": {"m.text": [
            {"mimetype": "text/html", "body": "<b>new</b>"}, {"body": "new"},
        ]}});
        assert_eq!(plain_topic(&rich).as_deref(), Some("new"));
        let html_only =
            json!({"topic": "old", "m.topic": {"m.text": [{"mimetype": "text/html", "body": "x"}]}});
        assert_eq!(plain_topic(&html_only).as_deref(), Some("old"));
        assert_eq!(plain_topic(&json!({"topic": "old"})).as_deref(), Some("old"));
        assert_eq!(plain_topic(&json!({"topic": ""})), None);
        assert_eq!(plain_topic(&json!({"m.topic": 7})), None);
    }
}
