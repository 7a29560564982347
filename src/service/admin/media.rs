//! Media as who runs the server looks at them, in the form of Synapse's admin API: by who uploaded them, by their age, and
//! those of other servers. What goes does so a portion at a time; the files follow by themselves (`service/media/sweep.rs`).

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::order;
use crate::protocol::media::{MediaId, MxcUri};
use crate::protocol::search_text::fold;
use crate::protocol::{UserId, json};
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::{Admin, next_place, number};
use crate::service::media::no_such_media;
use crate::store::media::MediaRow;
use crate::store::media::listed::{MediaOrder, UsageOrder};

/// A page has no more than this, however much is asked for.
const PAGE_MAX: usize = 1000;
/// Rows that one commit takes away.
const ROWS_AT_ONCE_MAX: usize = 64;

/// Which media of a user are told, and in which order.
#[derive(Debug)]
pub struct MediaPage {
    /// How many of them are passed over.
    pub from: usize,
    /// How many at most.
    pub limit: usize,
    /// By what they are sorted.
    pub order: MediaOrder,
    /// The other way round.
    pub backwards: bool,
}

/// Which users are told of who have uploaded something.
#[derive(Debug)]
pub struct UsagePage {
    /// How many of them are passed over.
    pub from: usize,
    /// How many at most.
    pub limit: usize,
    /// By what they are sorted.
    pub order: UsageOrder,
    /// The other way round.
    pub backwards: bool,
    /// What was uploaded from the one moment on and before the other.
    pub between: (Millis, Millis),
    /// Part of a user's id or name.
    pub search: Option<String>,
}

fn told(id: &str, row: &MediaRow) -> Value {
    json!({
        "media_id": id,
        "media_type": row.content_type,
        "media_length": row.bytes,
        "upload_name": row.upload_name,
        "created_ts": row.created_ms,
        "last_access_ts": row.used_ms,
        // By whom is not kept. Tools take an empty text for none.
        "quarantined_by": row.quarantined.then_some("an administrator"),
        "safe_from_quarantine": false,
    })
}

impl Admin<'_> {
    fn own_user(&self, user: &UserId) -> Result<()> {
        if !self.is_local(user) {
            return Err(Error::invalid_param("Can only look up local users"));
        }
        let account = self.store.read(|db| db.account(user))?;
        account.map(drop).ok_or_else(|| Error::not_found("Unknown user"))
    }

    /// `GET /_synapse/admin/v1/media/{serverName}/{mediaId}`: what is known of a URI. Errors: 404 `M_NOT_FOUND`.
    pub fn media_details(&self, uri: &MxcUri) -> Result<Value> {
        let now = self.clock.now_ms();
        let row = self.store.read(|db| db.media(uri, now))?.ok_or_else(no_such_media)?;
        let mut info = told(uri.media_id.as_str(), &row);
        info["media_origin"] = uri.server.as_str().into();
        info["user_id"] = row.uploader.as_ref().map(UserId::as_str).into();
        info["authenticated"] = true.into();
        info["sha256"] = row.hash.map(|hash| hash.to_string()).into();
        Ok(json!({ "media_info": info }))
    }

    /// `GET /_synapse/admin/v1/users/{userId}/media`: what a user has uploaded. Errors: 400 `M_INVALID_PARAM` for another
    /// server's user, 404 `M_NOT_FOUND`.
    pub fn media_of(&self, user: &UserId, page: &MediaPage) -> Result<Value> {
        self.own_user(user)?;
        let limit = page.limit.min(PAGE_MAX);
        let (media, total) = self.store.read(|db| {
            let media = db.media_of_user(user, (page.order, page.backwards), (page.from, limit))?;
            Ok((media, db.count_media_of_user(user)?))
        })?;
        let next = next_place(number(page.from), media.len(), i64::try_from(total).unwrap_or(i64::MAX));
        let media: Vec<Value> = media.iter().map(|(id, row)| told(id, row)).collect();
        let mut answer = json!({ "media": media, "total": total });
        if let Some(next) = next {
            answer["next_token"] = next.into();
        }
        Ok(answer)
    }

    /// `DELETE /_synapse/admin/v1/users/{userId}/media`: takes those on a page away; the ids of those that went. What is
    /// quarantined stays so. Errors: as of [`Admin::media_of`].
    pub fn delete_media_of(
        &self,
        by: &Administrator,
        user: &UserId,
        page: &MediaPage,
    ) -> Result<Vec<String>> {
        self.own_user(user)?;
        let limit = page.limit.min(PAGE_MAX);
        let media =
            self.store.read(|db| db.media_of_user(user, (page.order, page.backwards), (page.from, limit)))?;
        let media = media.into_iter().filter(|(_, row)| !row.quarantined).map(|(id, row)| (row.key, id));
        let gone = self.delete_rows(by, media.collect())?;
        log::info!("{by} has deleted {} files of {user}", gone.len());
        Ok(gone)
    }

    /// Takes media away, a portion at a time. Gives their ids.
    fn delete_rows(&self, by: &Administrator, media: Vec<(i64, String)>) -> Result<Vec<String>> {
        for portion in media.chunks(ROWS_AT_ONCE_MAX) {
            let keys: Vec<i64> = portion.iter().map(|(key, _)| *key).collect();
            self.write_as(by, move |tx| tx.delete_media_rows(&keys))?;
        }
        self.scheduler.wake();
        Ok(media.into_iter().map(|(_, id)| id).collect())
    }

    /// `POST /_synapse/admin/v1/user/{userId}/media/quarantine`: nobody is given anything any more that the user has
    /// uploaded. How many files those are. Errors: as of [`Admin::media_of`].
    pub fn quarantine_media_of(&self, by: &Administrator, user: &UserId) -> Result<usize> {
        self.own_user(user)?;
        let (mut from, mut quarantined) = (0, 0);
        loop {
            let page = (MediaOrder::Created, false);
            let media = self.store.read(|db| db.media_of_user(user, page, (from, ROWS_AT_ONCE_MAX)))?;
            if media.is_empty() {
                log::info!("{by} has quarantined {quarantined} files of {user}");
                return Ok(quarantined);
            }
            from += media.len();
            let (server, now) = (self.server_name().clone(), self.clock.now_ms());
            let open = media.iter().filter(|(_, row)| !row.quarantined).map(|(id, _)| MediaId::parse(id));
            let open = open.collect::<Result<Vec<_>>>()?;
            quarantined += open.len();
            self.write_as(by, move |tx| {
                for media_id in open {
                    tx.quarantine_media(&MxcUri { server: server.clone(), media_id }, true, now)?;
                }
                Ok(())
            })?;
        }
    }

    /// `POST /_synapse/admin/v1/media/delete`: takes what our users have uploaded and nobody has asked for since then, if it is
    /// larger than that. `keep_profiles`: but for avatars of our users and of rooms. Gives the ids.
    pub fn delete_old_media(
        &self,
        by: &Administrator,
        before: Millis,
        larger: u64,
        keep_profiles: bool,
    ) -> Result<Vec<String>> {
        let kept = if keep_profiles { self.avatars()? } else { HashSet::new() };
        let (mut behind, mut gone) = (0, Vec::new());
        loop {
            let mut media = self.store.read(|db| db.old_media(behind, before, larger, PAGE_MAX))?;
            let Some((last, _)) = media.last() else {
                log::info!("{by} has deleted {} files that nobody asked for in long", gone.len());
                return Ok(gone);
            };
            behind = *last;
            media.retain(|(_, id)| !kept.contains(&format!("mxc://{}/{id}", self.server_name())));
            gone.extend(self.delete_rows(by, media)?);
        }
    }

    fn avatars(&self) -> Result<HashSet<String>> {
        self.store.read(|db| {
            let users = db.profile_avatars()?;
            let mut avatars: HashSet<String> =
                users.iter().filter_map(|avatar| json::read::<String>(avatar.as_bytes()).ok()).collect();
            for room in db.rooms_with_a_state()? {
                let avatar = db.state_event(room.key, "m.room.avatar", "")?;
                avatars.extend(avatar.and_then(|avatar| avatar.content_str("url")));
            }
            Ok(avatars)
        })
    }

    /// `POST /_synapse/admin/v1/purge_media_cache`: lets go of files of other servers that nobody has asked for since then.
    /// How many those were.
    pub fn purge_media_cache(&self, by: &Administrator, before: Millis) -> Result<usize> {
        let mut gone = 0;
        loop {
            let evicted = self.write_as(by, move |tx| tx.evict_media(before, u64::MAX, ROWS_AT_ONCE_MAX))?;
            gone += evicted;
            if evicted < ROWS_AT_ONCE_MAX {
                self.scheduler.wake();
                log::info!("{by} has let go of {gone} files of other servers");
                return Ok(gone);
            }
        }
    }

    /// `GET /_synapse/admin/v1/statistics/users/media`: who has uploaded how much.
    pub fn media_usage(&self, page: &UsagePage) -> Result<Value> {
        let limit = page.limit.min(PAGE_MAX);
        let usage = self.store.read(|db| db.media_usage(page.between))?;
        let search = page.search.as_deref().map(fold);
        let mut users: Vec<_> = usage
            .into_iter()
            .map(|usage| {
                let name =
                    usage.displayname.as_deref().and_then(|name| json::read::<String>(name.as_bytes()).ok());
                (name, usage)
            })
            .filter(|(name, usage)| {
                let has = |text: &str, term: &str| fold(text).contains(term);
                search.as_deref().is_none_or(|term| {
                    has(&usage.user_id, term) || name.as_deref().is_some_and(|name| has(name, term))
                })
            })
            .collect();
        order::sort_by(&mut users, |(one_name, one), (other_name, other)| {
            let order = match page.order {
                UsageOrder::User => std::cmp::Ordering::Equal,
                UsageOrder::Name => one_name.cmp(other_name),
                UsageOrder::Count => one.count.cmp(&other.count),
                UsageOrder::Length => one.bytes.cmp(&other.bytes),
            };
            let order = order.then_with(|| one.user_id.cmp(&other.user_id));
            if page.backwards { order.reverse() } else { order }
        });
        let total = users.len();
        let told: Vec<Value> = users
            .iter()
            .skip(page.from)
            .take(limit)
            .map(|(name, usage)| {
                json!({ "user_id": usage.user_id, "displayname": name, "media_count": usage.count,
                        "media_length": usage.bytes })
            })
            .collect();
        let next = next_place(number(page.from), told.len(), number(total));
        let mut answer = json!({ "users": told, "total": total });
        if let Some(next) = next {
            answer["next_token"] = next.into();
        }
        Ok(answer)
    }
}
