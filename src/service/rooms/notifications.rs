//! `GET /notifications`: what the user was notified of, page by page, the last first.

use serde::Serialize;
use serde_json::Value;

use super::Rooms;
use crate::error::Result;
use crate::protocol::{RoomId, UserId};
use crate::service::rooms::client_format::{self, ClientFormat, Json};
use crate::service::rooms::timeline::PAGE_BYTES_MAX;
use crate::service::rooms::view::RoomView;
use crate::store::Db;
use crate::store::push::notifications::Notification;
use crate::store::push::sweep::READ_KEPT_MS;

/// Notifications of one page.
const DEFAULT_LIMIT: usize = 20;
const LIMIT_MAX: usize = 100;
/// Notifications that are looked at for one page: what the user may not see any more is passed over.
const LOOKED_AT_MAX: usize = 1000;
/// So many times more is looked at for one page where all of it was the user's own, or nothing to them.
const LOOKS_MAX: usize = 10;

/// What is asked for.
#[derive(Debug, Default)]
pub struct NotificationsRequest {
    /// Where the last page ended.
    pub from: Option<i64>,
    /// Of how many notifications the page is to be.
    pub limit: Option<usize>,
    /// Whether only what is highlighted is wanted.
    pub only_highlights: bool,
}

/// A page.
#[derive(Serialize)]
pub struct NotificationsPage {
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    notifications: Vec<ShownNotification>,
}

#[derive(Serialize)]
struct ShownNotification {
    actions: Vec<Value>,
    event: Json,
    read: bool,
    room_id: RoomId,
    ts: i64,
}

impl Rooms<'_> {
    /// What the format's user was notified of in the rooms that they are in: "events that the user has been, or would have
    /// been notified about". Not what was redacted since, nor what they may not see; what they have read for a month.
    pub fn notifications(
        &self,
        format: &ClientFormat<'_>,
        asked: &NotificationsRequest,
    ) -> Result<NotificationsPage> {
        let mut limit = asked.limit.unwrap_or(DEFAULT_LIMIT).min(LIMIT_MAX);
        self.store.read(|db| {
            let (mut before, mut notifications) = (asked.from.unwrap_or(i64::MAX), Vec::new());
            let (mut looked_at, mut looks, mut bytes) = (0, 0, 0);
            loop {
                // One more than is wanted, to know whether there are any.
                let wanted = limit + 1 - notifications.len();
                let last = db.notifications_before(format.user, before, asked.only_highlights, wanted)?;
                let is_short = last.found.len() < wanted;
                looked_at += last.found.len();
                looks += 1;
                for notification in last.found {
                    if notifications.len() == limit || looked_at > LOOKED_AT_MAX {
                        return Ok(NotificationsPage { next_token: Some(before.to_string()), notifications });
                    }
                    before = notification.stream;
                    if let Some(shown) = shown(db, format, &notification)? {
                        bytes += shown.event.get().len();
                        notifications.push(shown);
                    }
                    if bytes >= PAGE_BYTES_MAX {
                        limit = notifications.len();
                    }
                }
                match last.stopped_at.filter(|_| is_short) {
                    Some(from) => before = from,
                    None if is_short => return Ok(NotificationsPage { next_token: None, notifications }),
                    None => {}
                }
                if looks >= LOOKS_MAX {
                    return Ok(NotificationsPage { next_token: Some(before.to_string()), notifications });
                }
            }
        })
    }
}

fn shown(db: &Db<'_>, format: &ClientFormat<'_>, of: &Notification) -> Result<Option<ShownNotification>> {
    // An invite to a room that this server is not in is no event of a room.
    let Some(event) = of.event else { return Ok(None) };
    let event = db.event_by_key(event)?;
    let read = is_read(db, format.user, of)?;
    // Some day it is swept, and is listed no longer whether or not that was today.
    if read && event.pdu.origin_server_ts() < format.now - READ_KEPT_MS {
        return Ok(None);
    }
    let room = db.room_by_key(of.room)?;
    let view = RoomView::new(db, &room, format.user)?;
    let look = view.look(&event)?;
    let is_own = event.pdu.is("m.room.member", format.user.as_str());
    if !look.visible && !is_own {
        return Ok(None);
    }
    Ok(Some(ShownNotification {
        actions: of.actions()?,
        read,
        room_id: of.room_id.clone(),
        ts: event.pdu.origin_server_ts(),
        event: client_format::full(&view, format, &event, Some(look.membership))?,
    }))
}

fn is_read(db: &Db<'_>, user: &UserId, of: &Notification) -> Result<bool> {
    let read = db.read_positions(of.room, user)?;
    Ok(read.is_some_and(|read| read.has_read(of.thread.as_deref(), of.stream)))
}
