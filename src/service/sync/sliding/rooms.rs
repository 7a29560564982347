//! What an answer tells of one room, and what the client knows of it then.

use super::connection::{Connection, Told, ToldAs};
use super::request::RoomConfig;
use super::required_state::{StateNews, StateWanted};
use super::room_list::{Listed, ListedRoom};
use super::select::Selected;
use crate::error::Result;
use crate::protocol::filter::EventFilter;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::SyncSection;
use crate::protocol::{EventId, Pdu, RoomId, UserId};
use crate::service::rooms::bundles::{write_with_bundles, write_without_bundles};
use crate::service::rooms::client_format::{self, Json};
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::timeline::{Page, latest};
use crate::service::rooms::view::{Access, RoomView, membership_known_at};
use crate::service::sync::{SyncContext, not_joined};
use crate::store::push::unread::Unread;
use crate::store::rooms::memberships::RoomOfUser;
use crate::store::{Place, Room};

/// "Up to 5" users whom a room without a name is called by.
const HEROES_MAX: i64 = 5;

/// What is told of a room. What is none has not changed, or is not there if the room is told for the first time.
#[derive(Debug, Default)]
pub struct RoomAnswer {
    /// Whether this is all that the client is to know of the room, whatever it knew (rule 6).
    pub initial: bool,
    /// Whether the user came in after the client's last answer. It may know of when they were there before.
    pub newly_joined: bool,
    /// What the user is to it.
    pub membership: Option<Membership>,
    /// The lists that show it, by their numbers in the request.
    pub lists: Vec<usize>,
    /// The name; none inside: there is none any more.
    pub name: Option<Option<String>>,
    /// The address of the avatar, likewise.
    pub avatar: Option<Option<String>>,
    /// Whom it is called by if it has no name.
    pub heroes: Vec<Hero>,
    /// Whether the user's `m.direct` names it.
    pub is_dm: Option<bool>,
    /// What somebody outside is shown of it, with the user's own member event.
    pub stripped_state: Option<Vec<Json>>,
    /// State that is new.
    pub required_state: Vec<Json>,
    /// State that there is no more, by type and state key.
    pub removed_state: Vec<(String, String)>,
    /// The latest events, the last one last.
    pub timeline: Vec<Json>,
    /// The ids of these events.
    pub event_ids: Vec<EventId>,
    /// Whether the timeline goes back behind what the client was told last.
    pub expanded_timeline: bool,
    /// Where earlier events are found.
    pub prev_batch: Option<String>,
    /// Whether there are events between what the client has and the timeline, or before it in a new room (rule 7).
    pub limited: bool,
    /// How many events of the timeline came after the client's last answer (rule 6).
    pub num_live: Option<usize>,
    /// How many users are joined.
    pub joined_count: Option<u64>,
    /// How many are invited.
    pub invited_count: Option<u64>,
    /// What is unread.
    pub unread: Unread,
    /// By what clients have their rooms in order (rule 5).
    pub bump_stamp: Option<i64>,
}

/// A user whom a room is called by.
#[derive(Debug, serde::Serialize)]
pub struct Hero {
    user_id: UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    displayname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<String>,
}

/// What an answer tells of a room, if anything, and what the client knows then.
pub struct RoomNews {
    /// What is told.
    pub answer: Option<RoomAnswer>,
    /// What the client knows from now on; none: nothing.
    pub told: Option<Told>,
}

/// What is told of rooms to one connection.
pub struct RoomTeller<'t> {
    /// The snapshot, and for whom.
    pub context: &'t SyncContext<'t>,
    /// What the client knows.
    pub connection: &'t Connection,
}

/// Whether an answer has anything to tell of a room, as far as that can be seen without looking into it.
/// `read`: when the user last read more of it.
pub fn may_have_news(
    selected: &Selected,
    told: Option<&Told>,
    (config, digest): (&RoomConfig, u64),
    read: i64,
) -> bool {
    let (Some(room), Some(told)) = (&selected.room, told) else { return true };
    room.activity > told.seen
        || told.listed != told_as(room)
        || told.is_dm != selected.is_dm
        || (told.listed == ToldAs::Joined && read > told.seen)
        || (told.listed == ToldAs::Joined && (config.timeline_limit > told.timeline || digest != told.config))
}

fn told_as(room: &ListedRoom) -> ToldAs {
    match room.listed {
        Listed::Joined => ToldAs::Joined,
        Listed::Invited | Listed::Knocking => ToldAs::Outside,
        Listed::Removed => ToldAs::Gone,
    }
}

impl RoomTeller<'_> {
    /// What is new in a room.
    pub fn news(
        &self,
        selected: &Selected,
        told: Option<&Told>,
        (config, digest): (&RoomConfig, u64),
    ) -> Result<RoomNews> {
        let news = match &selected.room {
            None => self.gone(&selected.room_id, told)?,
            Some(room) => match room.listed {
                Listed::Joined => self.joined(selected, told, config, digest)?,
                Listed::Invited | Listed::Knocking => self.outside(selected, room, told)?,
                Listed::Removed => self.removed(selected, told, config)?,
            },
        };
        Ok(RoomNews {
            answer: news.answer.map(|a| RoomAnswer { lists: selected.lists.clone(), ..a }),
            ..news
        })
    }

    fn unchanged(told: Option<&Told>) -> RoomNews {
        RoomNews { answer: None, told: told.cloned() }
    }

    /// A room that the user is in.
    fn joined(
        &self,
        selected: &Selected,
        told: Option<&Told>,
        config: &RoomConfig,
        digest: u64,
    ) -> Result<RoomNews> {
        let context = self.context;
        let Some(room) = context.db.room(&selected.room_id)? else { return Ok(Self::unchanged(told)) };
        let view = context.view(&room)?;
        let Access::Joined { since: joined_at } = view.access else { return Ok(Self::unchanged(told)) };
        let known = match told.filter(|told| told.listed == ToldAs::Joined && told.seen > 0) {
            Some(told) if joined_at > told.seen => {
                let then = membership_known_at(context.db, &room, context.user, told.seen)?;
                Some(told).filter(|_| then == Some(Membership::Join))
            }
            other => other,
        };
        let expanded = known.is_some_and(|told| config.timeline_limit > told.timeline);
        let to = match known {
            Some(told) if !expanded => Place::live(told.seen),
            _ => Place::START,
        };
        let page = latest(&view, &EventFilter::default(), (Place::END, to), config.timeline_limit)?;
        let wanted = StateWanted {
            required: &config.required_state,
            before: known.and_then(|told| match told.config == digest {
                true => Some(&config.required_state),
                false => self.connection.config(told.config),
            }),
            told: known,
            end: i64::MAX,
        };
        let spoken = self.already_told(&view, &wanted, (config, expanded))?;
        let state = StateNews::of(context, &view, &wanted, spoken.as_ref().unwrap_or(&page), &page)?;
        let mut answer = self.of_room(&view, &page, &state, known.is_none())?;
        answer.expanded_timeline = expanded;
        answer.is_dm = is_dm_news(selected, known);
        answer.newly_joined =
            answer.initial && !self.connection.is_new() && joined_at > self.connection.since;
        self.add_members(&mut answer, &view, &state, i64::MAX)?;
        let activity = context.db.room_activity(room.key)?;
        let read = context.db.last_read(room.key, context.user)?;
        answer.bump_stamp = match known {
            None if activity.bump > 0 => Some(activity.bump),
            None => Some(joined_at),
            Some(told) => Some(activity.bump).filter(|bump| *bump > told.seen),
        };
        answer.membership = Some(Membership::Join);
        let told_now = Told {
            seen: context.position,
            listed: ToldAs::Joined,
            config: digest,
            timeline: match (&page.stopped_at, known) {
                // All of the room's history is there.
                (None, Some(told)) if !expanded => told.timeline,
                (None, _) => usize::MAX,
                (Some(_), _) => config.timeline_limit,
            },
            is_dm: selected.is_dm,
            members: match config.required_state.lazy_members() {
                true => told_members(known, &page, &state),
                // How they change is not told now.
                false => Vec::new(),
            },
            ..told.cloned().unwrap_or_default()
        };
        // What was looked at and is nothing to this client need not be looked at again.
        let recounted = known.is_some_and(|told| read > told.seen);
        let silent = !answer.initial && answer.is_empty() && !expanded && !recounted;
        if !silent {
            answer.unread =
                context.unread.counts(context.db, context.user, room.key, context.position)?.in_all();
        }
        Ok(RoomNews { answer: (!silent).then_some(answer), told: Some(told_now) })
    }

    /// The timeline that the client has, if it needs the members of that as well: it has asked for none so far.
    fn already_told(
        &self,
        view: &RoomView<'_>,
        wanted: &StateWanted<'_>,
        (config, expanded): (&RoomConfig, bool),
    ) -> Result<Option<Page>> {
        if expanded || !wanted.begins_lazy_members() {
            return Ok(None);
        }
        let all = (Place::END, Place::START);
        latest(view, &EventFilter::default(), all, config.timeline_limit).map(Some)
    }

    /// What joined rooms and rooms that the user was in have in common.
    fn of_room(
        &self,
        view: &RoomView<'_>,
        page: &Page,
        state: &StateNews,
        initial: bool,
    ) -> Result<RoomAnswer> {
        let context = self.context;
        let limited = page.stopped_at.is_some();
        // With bundles where `limited` says so, as in `/v3/sync`.
        let (events, format) = (page.events.iter().rev(), &context.format);
        let timeline = match limited {
            true => write_with_bundles(view, format, events)?,
            false => write_without_bundles(view, format, events)?,
        };
        let oldest = page.events.last().and_then(|seen| seen.event.place);
        let prev_batch = oldest.map(PaginationToken::before).or(page.stopped_at);
        // "num_live counts from the connection's last position, not from `initial`" (rule 6).
        let since = self.connection.since;
        let is_live = |place: Place| !self.connection.is_new() && place.sub == 0 && place.stream > since;
        let num_live = page.events.iter().filter(|seen| seen.event.place.is_some_and(is_live)).count();
        Ok(RoomAnswer {
            initial,
            required_state: state.write(context, view)?,
            removed_state: state.removed.clone(),
            event_ids: page.events.iter().map(|seen| seen.event.pdu.event_id().clone()).collect(),
            num_live: (!timeline.is_empty()).then_some(num_live),
            timeline,
            prev_batch: prev_batch.map(|token| token.to_string()),
            limited,
            ..RoomAnswer::default()
        })
    }

    /// Name, avatar, heroes and counts, as far as they may have changed (rules 9 and 10). `end`: up to which position;
    /// `i64::MAX` for the present. How many are there is told of the present only.
    fn add_members(
        &self,
        answer: &mut RoomAnswer,
        view: &RoomView<'_>,
        state: &StateNews,
        end: i64,
    ) -> Result<()> {
        let db = self.context.db;
        let text = |event_type: &str, field: &str| -> Result<Option<String>> {
            let key = match end {
                i64::MAX => db.state_event_key(view.room.key, event_type, "")?,
                _ => db.state_event_as_of(view.room.key, event_type, "", end)?,
            };
            let event = key.map(|key| db.pdu_by_key(key)).transpose()?;
            Ok(event.and_then(|event| text_of(&event, field)))
        };
        if state.avatar_changed {
            answer.avatar =
                Some(text("m.room.avatar", "url")?).filter(|url| url.is_some() || !answer.initial);
        }
        if state.name_changed || state.members_changed {
            let name = text("m.room.name", "name")?.filter(|name| !name.is_empty());
            if name.is_none() {
                answer.heroes = self.heroes(view.room, end)?;
            }
            if state.name_changed {
                answer.name = Some(name).filter(|name| name.is_some() || !answer.initial);
            }
        }
        if state.members_changed && end == i64::MAX {
            answer.joined_count = Some(view.room.joined);
            answer.invited_count = Some(view.room.invited);
        }
        Ok(())
    }

    fn heroes(&self, room: &Room, end: i64) -> Result<Vec<Hero>> {
        let (db, mut heroes) = (self.context.db, Vec::new());
        for (user_id, event) in db.hero_events(room.key, self.context.user, end, HEROES_MAX)? {
            let member = db.pdu_by_key(event)?;
            let (displayname, avatar_url) = (text_of(&member, "displayname"), text_of(&member, "avatar_url"));
            heroes.push(Hero { user_id, displayname, avatar_url });
        }
        Ok(heroes)
    }

    /// A room to which the user is invited, or upon which they knock: "`invite_state` whenever the room is in an answer"
    /// (rule 11). Name, avatar and heroes are for rooms that the user is or was in ("the user isn't participating in the room
    /// yet so we shouldn't leak anything to them"); what is known of this one is its stripped state, of which clients make a name.
    fn outside(&self, selected: &Selected, listed: &ListedRoom, told: Option<&Told>) -> Result<RoomNews> {
        let context = self.context;
        let known = told.filter(|told| told.listed == ToldAs::Outside && told.seen >= listed.activity);
        let is_dm = is_dm_news(selected, known);
        if known.is_some() && is_dm.is_none() {
            return Ok(Self::unchanged(told));
        }
        let stripped = match listed.key {
            None => context
                .db
                .remote_membership(&selected.room_id, context.user)?
                .and_then(|row| Some(not_joined::remote_stripped(&row, row.event.as_ref()?))),
            Some(key) => context.db.member(key, context.user)?.map(|member| {
                let of_user = RoomOfUser {
                    room: key,
                    room_id: selected.room_id.clone(),
                    membership: member.membership,
                    event: member.event,
                    stream: member.stream,
                    forgotten: member.forgotten,
                };
                not_joined::stripped(context, &of_user)
            }),
        };
        let Some(stripped) = stripped.transpose()? else { return Ok(Self::unchanged(told)) };
        let answer = RoomAnswer {
            initial: known.is_none(),
            membership: Some(match listed.listed {
                Listed::Knocking => Membership::Knock,
                _ => Membership::Invite,
            }),
            is_dm,
            stripped_state: Some(stripped),
            bump_stamp: known.is_none().then_some(listed.activity),
            ..RoomAnswer::default()
        };
        let told = Told {
            seen: context.position,
            listed: ToldAs::Outside,
            is_dm: selected.is_dm,
            account_data: told.map_or(0, |told| told.account_data),
            ..Told::default()
        };
        Ok(RoomNews { answer: Some(answer), told: Some(told) })
    }

    /// A room that somebody else took the user out of: told always, and once (rule 11).
    fn removed(&self, selected: &Selected, told: Option<&Told>, config: &RoomConfig) -> Result<RoomNews> {
        let activity = selected.room.as_ref().map_or(0, |room| room.activity);
        if told.is_some_and(|told| told.listed == ToldAs::Gone && told.seen >= activity) {
            return Ok(Self::unchanged(told));
        }
        // Whoever knows that the user is out is only told what they are now.
        let config = Some(config).filter(|_| told.is_none_or(|told| told.listed != ToldAs::Gone));
        let Some(answer) = self.last_look(&selected.room_id, told, config)? else {
            return Ok(Self::unchanged(told));
        };
        let told = Told {
            seen: self.context.position,
            listed: ToldAs::Gone,
            is_dm: selected.is_dm,
            ..Told::default()
        };
        Ok(RoomNews { answer: Some(answer), told: Some(told) })
    }

    /// A room that the user is out of, by their own will or because an invite or knock came to nothing: told once, if
    /// the client knows of it. Also if they have forgotten it since: no other word takes it out of their clients.
    fn gone(&self, room_id: &RoomId, told: Option<&Told>) -> Result<RoomNews> {
        let answer = match told {
            Some(told) if told.listed != ToldAs::Gone => self.last_look(room_id, Some(told), None)?,
            _ => None,
        };
        if answer.is_none() && self.is_there(room_id)? {
            // An invite of somebody whom the user ignores now, for one. There is no event that takes it back.
            return Ok(Self::unchanged(told));
        }
        Ok(RoomNews { answer, told: None })
    }

    /// Whether the user is something to the room in this snapshot.
    fn is_there(&self, room_id: &RoomId) -> Result<bool> {
        let context = self.context;
        if let Some(row) = context.db.remote_membership(room_id, context.user)? {
            return Ok(matches!(row.section(), Some(SyncSection::Invite | SyncSection::Knock)));
        }
        let Some(room) = context.db.room(room_id)? else { return Ok(false) };
        let own = context.db.membership(room.key, context.user)?;
        Ok(matches!(own, Some(Membership::Join | Membership::Invite | Membership::Knock)))
    }

    /// A room whose state has no word of the user any more: there is no event to be told. As Synapse does, the client is to
    /// begin the room anew, with nothing; and their member event is gone.
    fn lost(&self, room: &Room, told: Option<&Told>) -> Result<Option<RoomAnswer>> {
        let context = self.context;
        let since = told.map_or(0, |told| told.seen);
        let lost = context.db.rooms_lost_since(context.user, since)?;
        let lost = lost.iter().find(|(room_id, _)| *room_id == room.room_id);
        Ok(lost.map(|(_, stream)| RoomAnswer {
            initial: true,
            membership: Some(Membership::Leave),
            removed_state: vec![("m.room.member".to_owned(), context.user.as_str().to_owned())],
            bump_stamp: Some(*stream),
            ..RoomAnswer::default()
        }))
    }

    /// The room up to when the user was taken out: nothing behind that (rule 14). Of a room that they have forgotten
    /// nothing but that they are out.
    fn last_look(
        &self,
        room_id: &RoomId,
        told: Option<&Told>,
        config: Option<&RoomConfig>,
    ) -> Result<Option<RoomAnswer>> {
        let context = self.context;
        if let Some(row) = context.db.remote_membership(room_id, context.user)? {
            let (Some(SyncSection::Leave), Some(event)) = (row.section_of_who_knows_it(), &row.event) else {
                return Ok(None);
            };
            let written = client_format::of_remote_room(&context.format, event, row.prior())?;
            return Ok(Some(RoomAnswer {
                membership: event.membership(),
                required_state: vec![written],
                bump_stamp: Some(row.stream),
                ..RoomAnswer::default()
            }));
        }
        let Some(room) = context.db.room(room_id)? else { return Ok(None) };
        let Some(own) = context.db.member(room.key, context.user)? else { return self.lost(&room, told) };
        if !matches!(own.membership, Membership::Leave | Membership::Ban) {
            return Ok(None);
        }
        let view = context.view(&room)?;
        let known = told.filter(|told| told.listed == ToldAs::Joined && told.seen > 0);
        let (mut page, mut state) = (Page::default(), StateNews::default());
        let (mut own_before, mut end) = (None, None);
        if let Access::Left { at } = view.access
            && (known.is_some() || config.is_some())
        {
            own_before =
                context.db.state_event_as_of(room.key, "m.room.member", context.user.as_str(), at)?;
            let to = known.map_or(Place::START, |told| Place::live(told.seen));
            let from = PaginationToken::at(at).start_back();
            let limit = config.map_or(1, |config| config.timeline_limit);
            if to < from {
                page = latest(&view, &EventFilter::default(), (from, to), limit)?;
            }
            if let Some(config) = config {
                let wanted = StateWanted {
                    required: &config.required_state,
                    before: Some(&config.required_state),
                    told: known,
                    end: at,
                };
                state = StateNews::of(context, &view, &wanted, &page, &page)?;
                end = Some(at);
            }
        }
        state.put_own(own.event, own_before);
        let mut answer = self.of_room(&view, &page, &state, known.is_none() && config.is_some())?;
        if let Some(end) = end {
            self.add_members(&mut answer, &view, &state, end)?;
        }
        answer.membership = Some(own.membership);
        answer.bump_stamp = Some(own.stream);
        Ok(Some(answer))
    }
}

impl RoomAnswer {
    /// About how many bytes it has.
    pub fn bytes(&self) -> usize {
        let stripped = self.stripped_state.iter().flatten();
        self.timeline.iter().chain(&self.required_state).chain(stripped).map(|event| event.get().len()).sum()
    }

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.name.is_none()
            && self.avatar.is_none()
            && self.heroes.is_empty()
            && self.is_dm.is_none()
            && self.required_state.is_empty()
            && self.removed_state.is_empty()
            && self.timeline.is_empty()
            && !self.limited
            && self.joined_count.is_none()
            && self.bump_stamp.is_none()
    }
}

/// "`is_dm` from account data; send when it changes" (rule 10). If there is none in a new room, it is not one.
fn is_dm_news(selected: &Selected, known: Option<&Told>) -> Option<bool> {
    match known {
        None => selected.is_dm.then_some(true),
        Some(told) => (told.is_dm != selected.is_dm).then_some(selected.is_dm),
    }
}

/// The members that the client has, which is all of them that it ever needed as long as there is no gap: for that
/// clients forget them.
fn told_members(known: Option<&Told>, page: &Page, state: &StateNews) -> Vec<u64> {
    let mut told = Told::default();
    if let Some(known) = known.filter(|_| page.stopped_at.is_none()) {
        told.members.clone_from(&known.members);
    }
    told.keep_members(state.members.iter().copied());
    told.members
}

/// A field of an event's content, if it is text: "fields of wrong type in state must be dropped, not sent" (rule 9).
fn text_of(event: &Pdu, field: &str) -> Option<String> {
    event.content_str(field)
}
