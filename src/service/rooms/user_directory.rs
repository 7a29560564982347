//! Finding users (client-server API, "User Directory", "Mutual Rooms"): by name among those whom the searcher can see in a
//! room anyway, and by the rooms that two have in common.
//!
//! Nothing is kept for it: the members of the rooms are looked through, small rooms first, since whom one shares a small
//! room with is more likely meant; and no more of them than a bounded number.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::order;
use crate::protocol::json::read_object;
use crate::protocol::pdu::Membership;
use crate::protocol::search_text::{fold, is_of_word};
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::ignored_users::Ignored;
use crate::service::limits::search_turns::SearchTurn;
use crate::service::rooms::Rooms;
use crate::store::{Db, RoomKey};

/// "Defaults to 10."
const RESULTS_USUAL: u64 = 10;
/// Users in one answer whatever the client asks for.
const RESULTS_MAX: u64 = 50;
/// Longest search term, in bytes: longer than any user id.
const TERM_BYTES_MAX: usize = 512;
/// So many members are looked at for one answer.
const MEMBERS_MAX: usize = 20_000;
/// So many rooms that anybody may look into are looked into.
const PUBLIC_ROOMS_MAX: usize = 500;
/// So many accounts of this server, where all of them can be found.
const ACCOUNTS_MAX: usize = 20_000;
/// What calls itself by a longer name than this is shown without one.
const NAME_BYTES_MAX: usize = 1024;
/// Rooms in one answer of `/mutual_rooms`.
const MUTUAL_ROOMS_MAX: usize = 100;

/// What a client searches the directory for.
#[derive(Debug, Deserialize)]
pub struct UserDirectoryRequest {
    search_term: String,
    #[serde(default)]
    limit: Option<u64>,
}

/// The users that were found.
#[derive(Debug, Serialize)]
pub struct UserDirectoryAnswer {
    results: Vec<FoundUser>,
    limited: bool,
}

#[derive(Debug, Serialize)]
struct FoundUser {
    user_id: UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<String>,
}

/// Some of the rooms that two users share.
#[derive(Debug)]
pub struct MutualRooms {
    /// The rooms.
    pub joined: Vec<RoomId>,
    /// How many there are in all.
    pub count: usize,
    /// Where the next ones begin.
    pub next_batch: Option<String>,
}

/// What a user is called.
#[derive(Debug, Default)]
struct Profile {
    display_name: Option<String>,
    avatar_url: Option<String>,
}

impl Rooms<'_> {
    /// `POST /user_directory/search`. Whoever is `wanted` no more waits for no turn. Errors: 400 `M_INVALID_PARAM`; 429
    /// `M_LIMIT_EXCEEDED`.
    pub fn search_users(
        &self,
        searcher: &UserId,
        asked: &UserDirectoryRequest,
        wanted: impl Fn() -> bool,
    ) -> Result<UserDirectoryAnswer> {
        if asked.search_term.len() > TERM_BYTES_MAX {
            return Err(Error::invalid_param("search_term may have at most 512 bytes"));
        }
        let limit = asked.limit.unwrap_or(RESULTS_USUAL).min(RESULTS_MAX);
        let term = Term::of(&asked.search_term);
        if term.is_empty() {
            return Ok(UserDirectoryAnswer { results: Vec::new(), limited: false });
        }
        let turn = self.search_turns.turn(searcher, wanted)?;
        self.store.read_until(turn.ends(), |db| {
            let ignored = Ignored::of(db, searcher)?;
            let mut found = Found { db, searcher, term, ignored, seen: HashMap::new(), turn: &turn };
            let is_whole = found.look_through_rooms()?;
            let is_whole = match self.config.user_directory_of_all {
                true => found.look_through_accounts()? && is_whole,
                false => is_whole,
            };
            let mut users: Vec<(u8, FoundUser)> = found
                .seen
                .into_iter()
                .filter_map(|(id, user)| {
                    let (rank, profile) = user?;
                    let Profile { display_name, avatar_url } = profile;
                    Some((rank, FoundUser { user_id: id, display_name, avatar_url }))
                })
                .collect();
            // "Ordered by rank and then whether or not profile info is available."
            order::sort_by(&mut users, |(rank, a), (other_rank, b)| {
                let key = |rank: u8, user: &FoundUser| {
                    Reverse((rank, user.display_name.is_some(), user.avatar_url.is_some()))
                };
                key(*rank, a)
                    .cmp(&key(*other_rank, b))
                    .then_with(|| a.user_id.as_str().cmp(b.user_id.as_str()))
            });
            let limited = users.len() as u64 > limit || !is_whole;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            Ok(UserDirectoryAnswer {
                results: users.into_iter().take(limit).map(|(_, user)| user).collect(),
                limited,
            })
        })
    }

    /// The rooms that both are joined to. `from`: a `next_batch` of before. Errors: 400 `M_INVALID_PARAM`.
    pub fn mutual_rooms(&self, user: &UserId, other: &UserId, from: Option<&str>) -> Result<MutualRooms> {
        if user == other {
            return Err(Error::invalid_param("user_id is your own"));
        }
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let wrong = || Error::invalid_param("The token is none of this server's");
        let after: RoomKey = match from {
            None => 0,
            Some(from) => Some(from)
                .filter(|from| is_number(from))
                .and_then(|from| from.parse().ok())
                .ok_or_else(wrong)?,
        };
        self.store.read(|db| {
            let rooms = db.mutual_rooms(user, other)?;
            let count = rooms.len();
            let mut rest = rooms.into_iter().filter(|(key, _)| *key > after);
            let page: Vec<(RoomKey, RoomId)> = rest.by_ref().take(MUTUAL_ROOMS_MAX).collect();
            let next_batch = match (rest.next(), page.last()) {
                (Some(_), Some((last, _))) => Some(last.to_string()),
                _ => None,
            };
            Ok(MutualRooms { joined: page.into_iter().map(|(_, id)| id).collect(), count, next_batch })
        })
    }
}

/// A search that is under way.
struct Found<'f> {
    db: &'f Db<'f>,
    searcher: &'f UserId,
    term: Term,
    ignored: Ignored,
    /// Who was looked at, and of those who fit how well they do.
    seen: HashMap<UserId, Option<(u8, Profile)>>,
    turn: &'f SearchTurn,
}

impl Found<'_> {
    /// "Users that share a room with the requesting user", and those in rooms that are public or that anybody may read.
    /// Whether all were looked at.
    fn look_through_rooms(&mut self) -> Result<bool> {
        let mut left = MEMBERS_MAX;
        let own = self.db.joined_rooms_by_size(self.searcher)?;
        let public = self.db.resident_rooms_by_size(PUBLIC_ROOMS_MAX)?;
        let is_own = |room: &RoomKey| own.contains(room);
        let others: Vec<RoomKey> = public.into_iter().filter(|room| !is_own(room)).collect();
        for room in &own {
            if !self.look_through_room(*room, &mut left)? {
                return Ok(false);
            }
        }
        for room in others {
            if self.is_open(room)? && !self.look_through_room(room, &mut left)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_open(&self, room: RoomKey) -> Result<bool> {
        let says = |event_type: &str, key: &str, value: &str| -> Result<bool> {
            let event = self.db.state_event(room, event_type, "")?;
            Ok(event.and_then(|event| event.content_str(key)).is_some_and(|said| said == value))
        };
        Ok(says("m.room.join_rules", "join_rule", "public")?
            || says("m.room.history_visibility", "history_visibility", "world_readable")?)
    }

    /// False: there was no end to them.
    fn look_through_room(&mut self, room: RoomKey, left: &mut usize) -> Result<bool> {
        let db = self.db;
        let mut is_whole = true;
        db.each_member(room, Some(Membership::Join), |user, _, row| {
            if *left == 0 || self.turn.is_over() {
                is_whole = false;
                return Ok(());
            }
            *left -= 1;
            match UserId::parse(user) {
                Ok(user) if !self.seen.contains_key(&user) => self.look_at(user, || Ok(profile_in(row.json))),
                _ => Ok(()),
            }
        })?;
        Ok(is_whole)
    }

    /// All accounts of this server. Whether all were looked at.
    fn look_through_accounts(&mut self) -> Result<bool> {
        let accounts = self.db.active_users(ACCOUNTS_MAX + 1)?;
        let is_whole = accounts.len() <= ACCOUNTS_MAX;
        for user in accounts.into_iter().take(ACCOUNTS_MAX) {
            if self.turn.is_over() {
                return Ok(false);
            }
            if !self.seen.contains_key(&user) {
                self.look_at(user, || Ok(Profile::default()))?;
            }
        }
        Ok(is_whole)
    }

    fn look_at(&mut self, user: UserId, profile: impl FnOnce() -> Result<Profile>) -> Result<()> {
        if user == *self.searcher || self.ignored.has(user.as_str()) {
            self.seen.insert(user, None);
            return Ok(());
        }
        let profile = match self.db.is_local(user.as_str()) {
            // What they call themselves in one room is for that room.
            true if self.db.is_active_user(&user)? => own_profile(self.db, &user)?,
            true => {
                self.seen.insert(user, None);
                return Ok(());
            }
            false => profile()?,
        };
        let rank = self.term.rank(&user, profile.display_name.as_deref());
        self.seen.insert(user, rank.map(|rank| (rank, profile)));
        Ok(())
    }
}

fn own_profile(db: &Db<'_>, user: &UserId) -> Result<Profile> {
    let field = |name: &str| -> Result<Option<String>> {
        Ok(db.profile_field(user, name)?.and_then(|value| value.as_str().map(str::to_owned)))
    };
    Ok(tidied(field("displayname")?, field("avatar_url")?))
}

/// The profile in a membership event.
fn profile_in(json: &str) -> Profile {
    #[derive(Default, Deserialize)]
    struct MemberContent {
        #[serde(default)]
        displayname: Value,
        #[serde(default)]
        avatar_url: Value,
    }
    #[derive(Default, Deserialize)]
    struct Event {
        content: MemberContent,
    }
    let Event { content } = read_object(json.as_bytes()).unwrap_or_default();
    let text = |value: Value| value.as_str().map(str::to_owned);
    tidied(text(content.displayname), text(content.avatar_url))
}

fn tidied(display_name: Option<String>, avatar_url: Option<String>) -> Profile {
    Profile {
        display_name: display_name.filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX),
        avatar_url: avatar_url.filter(|url| url.starts_with("mxc://") && url.len() <= NAME_BYTES_MAX),
    }
}

/// What is searched for, folded.
#[derive(Debug, PartialEq, Eq)]
struct Term {
    whole: String,
    words: Vec<String>,
}

impl Term {
    fn of(text: &str) -> Self {
        let whole = fold(text.trim());
        Self { words: whole.split_whitespace().map(str::to_owned).collect(), whole }
    }

    fn is_empty(&self) -> bool {
        self.whole.trim_start_matches('@').is_empty()
    }

    /// How well a user fits: 3 is called so, 2 begins so, 1 every word of it begins a word of what they are called. None:
    /// not at all.
    fn rank(&self, user: &UserId, display_name: Option<&str>) -> Option<u8> {
        let id = fold(user.as_str());
        let localpart = id.trim_start_matches('@').split(':').next().unwrap_or_default();
        let name = display_name.map(fold).unwrap_or_default();
        let called = [id.as_str(), id.trim_start_matches('@'), localpart, name.as_str()];
        if called.contains(&self.whole.as_str()) {
            return Some(3);
        }
        if called.iter().any(|called| called.starts_with(&self.whole)) {
            return Some(2);
        }
        let begins_a_word = |word: &String| {
            let is_word_of =
                |text: &str| text.split(|c| !is_of_word(c)).any(|part| part.starts_with(word.as_str()));
            // Names in scripts without spaces have no words to begin.
            is_word_of(localpart) || is_word_of(&name) || !word.is_ascii() && name.contains(word.as_str())
        };
        self.words.iter().all(begins_a_word).then_some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_the_beginnings_of_what_they_are_called() {
        let user = UserId::parse("@anna.kova:example.org").unwrap();
        let rank = |term: &str| Term::of(term).rank(&user, Some("Änna (Ková) 山田太郎"));
        for (term, expected) in [
            ("anna.kova", Some(3)),
            ("@anna.kova:example.org", Some(3)),
            ("ANNA", Some(2)),
            ("@anna.kova:exam", Some(2)),
            ("änn", Some(2)),
            ("kova", Some(1)),
            ("kov ann", Some(1)),
            ("太郎", Some(1)),
            ("nna", None),
            ("anna smith", None),
            ("example", None),
        ] {
            assert_eq!(rank(term), expected, "{term}");
        }
        assert!(Term::of(" @ ").is_empty() && Term::of("").is_empty());
    }
}
