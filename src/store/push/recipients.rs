//! Whom an event of a room may notify: its local members. Most have the predefined rules and ignore nobody; of the
//! others is remembered what they have.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use rusqlite::params;

use crate::error::{Error, Result};
use crate::protocol::ignored_users::Ignored;
use crate::protocol::json::{member_of, string};
use crate::protocol::pdu::Membership;
use crate::protocol::push_rules::{Names, RuleSet, UserRules};
use crate::protocol::rooms::visibility::{self, EventView, HistoryVisibility};
use crate::protocol::{Pdu, UserId, content, json};
use crate::store::push::evaluate::PlacedEvent;
use crate::store::{Db, RoomKey, SnapshotId, Tx};

/// The account data that says what notifies a user.
pub(in crate::store) const RULES: &str = "m.push_rules";
pub(in crate::store) const IGNORED: &str = "m.ignored_user_list";

/// What a user has that is not usual.
#[derive(Debug)]
pub(in crate::store) struct Settings {
    /// Their rules, if they changed any.
    pub rules: Option<RuleSet>,
    /// Whom they ignore.
    pub ignored: Ignored,
}

/// A name in a room that takes more, as JSON, is not looked for.
const NAME_BYTES_MAX: usize = 1024;

/// Users' display names in a room, by their ids.
pub(in crate::store) type DisplayNames = HashMap<String, Option<Box<str>>>;

/// Users who have something that is not usual, in order, with what they have.
pub(in crate::store) type SpecialRecipients = Rc<[(UserId, Rc<Settings>)]>;

/// Users who are in a room and are not joined in another of its states, with what they are there.
pub(in crate::store) type Absent = Rc<[(UserId, Option<Membership>)]>;

/// The local members of a room.
#[derive(Debug, Clone)]
pub(in crate::store) struct Recipients {
    /// All of them, in order.
    pub all: Arc<[UserId]>,
    /// Those who have something that is not usual, in the same order.
    pub special: SpecialRecipients,
}

impl Recipients {
    /// Whether the user is in the room, and nothing special.
    pub fn has_usual(&self, user: &UserId) -> bool {
        let special = |other: &(UserId, Rc<Settings>)| other.0.cmp(user);
        self.all.binary_search(user).is_ok() && self.special.binary_search_by(special).is_err()
    }
}

impl Db<'_> {
    /// Whether the predefined push rules are with those that make a call ring (MSC4075).
    pub fn has_call_rules(&self) -> bool {
        self.shared.has_call_rules()
    }

    /// Whose invites a local user is shown: nobody's, or those of whom they do not ignore.
    pub(in crate::store) fn shown_invites(&self, user: &UserId) -> Result<impl Fn(&UserId) -> bool + use<>> {
        let config = self.account_data(user, None, "m.invite_permission_config")?;
        let config = config.and_then(|text| json::parse_object(text.as_bytes()).ok());
        let blocked = config.as_ref().is_some_and(content::blocks_invites);
        let ignored = self.ignored_of(user)?;
        Ok(move |sender: &UserId| !blocked && !ignored.has(sender.as_str()))
    }

    fn ignored_of(&self, user: &UserId) -> Result<Ignored> {
        let ignored = self.account_data(user, None, IGNORED)?;
        Ok(ignored.map(|content| Ignored::listed(&content, user)).unwrap_or_default())
    }

    /// The rules of a user, ready to be asked.
    pub fn compiled_push_rules(&self, rules: &UserRules, user: &UserId) -> RuleSet {
        RuleSet::of_user(rules, user, self.shared.has_call_rules(), &self.shared.predefined_rules())
    }

    /// What a user has that is not usual.
    pub(in crate::store) fn push_settings(&self, user: &UserId) -> Result<Option<Rc<Settings>>> {
        if let Some(known) = self.recall(|cache| cache.push_settings(user)) {
            return Ok(known);
        }
        let rules = self.account_data(user, None, RULES)?;
        let ignored = self.ignored_of(user)?;
        let rules = match rules {
            None => None,
            Some(stored) => Some(self.compiled_push_rules(&UserRules::read(Some(&stored))?, user)),
        };
        let settings = (rules.is_some() || !ignored.is_empty()).then(|| Rc::new(Settings { rules, ignored }));
        self.remember(|cache| cache.keep_push_settings(user, settings.clone()));
        Ok(settings)
    }

    /// The local members of a room.
    pub(in crate::store) fn recipients(&self, room: RoomKey) -> Result<Recipients> {
        let all = self.audience(room)?;
        if let Some(special) = self.recall(|cache| cache.special_recipients(room)) {
            return Ok(Recipients { all, special });
        }
        let mut special = Vec::new();
        for user in all.iter() {
            special.extend(self.push_settings(user)?.map(|settings| (user.clone(), settings)));
        }
        let special: SpecialRecipients = special.into();
        self.remember(|cache| cache.keep_special_recipients(room, special.clone()));
        Ok(Recipients { all, special })
    }

    /// The names of the recipients, in their order, to be looked for in what is said.
    pub(in crate::store) fn names_of(&self, room: RoomKey, recipients: &Recipients) -> Result<Rc<Names>> {
        if let Some(known) = self.recall(|cache| cache.names(room)) {
            return Ok(known);
        }
        // Most are remembered, when somebody has come or has another name.
        let mut known = self.recall(|cache| Some(cache.display_names(room))).unwrap_or_default();
        let mut display_names = DisplayNames::new();
        for user in recipients.all.iter() {
            let (user, name) = match known.remove_entry(user.as_str()) {
                Some(known) => known,
                None => (user.as_str().to_owned(), self.display_name_in(room, user.as_str())?),
            };
            display_names.insert(user, name);
        }
        let names = recipients.all.iter().map(|user| {
            let display_name = display_names.get(user.as_str()).and_then(Option::as_deref);
            (user.localpart(), display_name)
        });
        let names = Rc::new(Names::new(names));
        self.remember(|cache| cache.keep_names(room, names.clone(), display_names));
        Ok(names)
    }

    /// The display name of a member, unless it is none by which anybody speaks of them.
    pub(in crate::store) fn display_name_in(&self, room: RoomKey, user: &str) -> Result<Option<Box<str>>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT e.json FROM memberships m JOIN events e USING (event_key)
             WHERE m.room_key = ?1 AND m.user_id = ?2",
        )?;
        let mut rows = statement.query(params![room, user])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        // Of what is stored nothing else is read: it is canonical.
        let event = row.get_ref(0)?.as_blob().map_err(Error::internal)?;
        let name = member_of(event, "content").and_then(|content| member_of(content, "displayname"));
        let name = name.filter(|name| name.len() <= NAME_BYTES_MAX).and_then(string);
        Ok(name.map(|name| name.into_owned().into()))
    }

    /// Those of the recipients who may not see an event that has just come, by the rule of `service/rooms/view.rs`: it was said
    /// elsewhere before one heard there that they had come in. Who is joined in the state before an event sees it, and nearly
    /// always that is the room's own. Of a knock hear all who may answer it: it waits for them.
    pub(in crate::store) fn who_may_not_see(
        &self,
        placed: &PlacedEvent<'_>,
        recipients: &Recipients,
    ) -> Result<HashSet<UserId>> {
        let (room, pdu) = (placed.room, placed.pdu);
        let (Some(before), Some(present)) = (placed.state_before, room.state) else {
            return Ok(HashSet::new());
        };
        if before == present || pdu.membership() == Some(Membership::Knock) {
            return Ok(HashSet::new());
        }
        let setting =
            |event: Option<Pdu>| HistoryVisibility::from_content(event.as_ref().map(Pdu::content).as_ref());
        if setting(self.state_event(room.key, "m.room.history_visibility", "")?).shows_members_all() {
            return Ok(HashSet::new());
        }
        let then = setting(self.state_event_in(before, "m.room.history_visibility", "")?);
        let after = pdu.is("m.room.history_visibility", "").then(|| setting(Some(pdu.clone())));
        let may_see = |membership: Option<Membership>| {
            visibility::may_see(&EventView {
                visibility: then,
                visibility_after: after,
                membership,
                membership_after: None,
                joined_since: true,
            })
        };
        let absent = self.absent_in(before, room.key, recipients)?;
        let others = absent.iter().filter(|(user, _)| user != pdu.sender());
        Ok(others.filter(|(_, membership)| !may_see(*membership)).map(|(user, _)| user.clone()).collect())
    }

    /// Those of the recipients who are not joined in another state, with what they are there. Each is looked up: of how much
    /// two states differ is up to other servers, how many recipients there are is not. The events of a fork have mostly the
    /// same state before them, so it is remembered.
    fn absent_in(&self, state: SnapshotId, room: RoomKey, recipients: &Recipients) -> Result<Absent> {
        if let Some(known) = self.recall(|cache| cache.absent_recipients(room, state)) {
            return Ok(known);
        }
        let mut absent = Vec::new();
        for user in recipients.all.iter() {
            let there = match self.state_tuple_id("m.room.member", user.as_str())? {
                Some(tuple_id) => self.state_row_at(state, tuple_id)?,
                None => None,
            };
            // Mostly it is the event by which they are joined to the room.
            if there.is_some() && there == self.state_event_key(room, "m.room.member", user.as_str())? {
                continue;
            }
            let membership = there.map(|key| self.pdu_by_key(key)).transpose()?;
            let membership = membership.and_then(|member| member.membership());
            if membership != Some(Membership::Join) {
                absent.push((user.clone(), membership));
            }
        }
        let absent: Absent = absent.into();
        self.remember(|cache| cache.keep_absent_recipients(room, state, absent.clone()));
        Ok(absent)
    }
}

impl Tx<'_> {
    /// Sets the push rules of a user, which are compiled already, so that nobody's event has to wait for that.
    pub fn set_push_rules(&mut self, user: &UserId, content: &str, compiled: RuleSet) -> Result<()> {
        self.set_account_data(user, None, RULES, content)?;
        let settings = Settings { rules: Some(compiled), ignored: self.ignored_of(user)? };
        self.remember(|cache| cache.keep_push_settings(user, Some(Rc::new(settings))));
        Ok(())
    }
}
