//! Synapse's admin API, "Event reports" and "User reports"; and, in the same form, what was reported of rooms.

use std::sync::Arc;

use super::users::{backwards, count};
use crate::error::{Error, Result};
use crate::http::{Reply, Request};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::reports::ReportsPage;
use crate::store::accounts::reports::{ReportFilter, ReportKind};

/// How many reports a page has if nothing is said.
const USUAL_PAGE: i64 = 100;

fn list(hs: &Homeserver, request: &Request, kind: ReportKind) -> Result<Reply> {
    let text = |name: &str| request.query(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let filter = ReportFilter {
        reporter: text("user_id"),
        room: text("room_id").filter(|_| kind != ReportKind::User),
        user: text("target_user_id").filter(|_| kind == ReportKind::User),
        sender: text("event_sender_user_id").filter(|_| kind == ReportKind::Event),
    };
    // What is newest comes first here if nothing is said.
    let ascends = request.query("dir").is_some() && !backwards(request)?;
    let (from, limit) = (count(request, "from", 0)?, count(request, "limit", USUAL_PAGE)?);
    Ok(Reply::json(&hs.admin().list_reports(&ReportsPage { kind, filter, ascends, from, limit })?))
}

/// The report that the path names. Errors: 400 `M_INVALID_PARAM`.
fn id(request: &Request) -> Result<i64> {
    let id = request.param("reportId").parse().ok().filter(|id: &i64| *id >= 0);
    id.ok_or_else(|| Error::invalid_param("A report's id is a number"))
}

fn get(hs: &Homeserver, request: &Request, kind: ReportKind) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().report(kind, id(request)?)?))
}

fn delete(hs: &Homeserver, request: &Request, by: &Administrator, kind: ReportKind) -> Result<Reply> {
    hs.admin().delete_report(by, kind, id(request)?)?;
    Ok(Reply::empty())
}

/// `GET /_synapse/admin/v1/event_reports`
pub fn events(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    list(hs, request, ReportKind::Event)
}

/// `GET /_synapse/admin/v1/event_reports/{reportId}`
pub fn of_event(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    get(hs, request, ReportKind::Event)
}

/// `DELETE /_synapse/admin/v1/event_reports/{reportId}`
pub fn delete_of_event(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    delete(hs, request, admin, ReportKind::Event)
}

/// `GET /_synapse/admin/v1/user_reports`
pub fn users(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    list(hs, request, ReportKind::User)
}

/// `GET /_synapse/admin/v1/user_reports/{reportId}`
pub fn of_user(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    get(hs, request, ReportKind::User)
}

/// `DELETE /_synapse/admin/v1/user_reports/{reportId}`
pub fn delete_of_user(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    delete(hs, request, admin, ReportKind::User)
}

/// `GET /_doorstep/admin/v1/room_reports`
pub fn rooms(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    list(hs, request, ReportKind::Room)
}

/// `GET /_doorstep/admin/v1/room_reports/{reportId}`
pub fn of_room(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    get(hs, request, ReportKind::Room)
}

/// `DELETE /_doorstep/admin/v1/room_reports/{reportId}`
pub fn delete_of_room(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    delete(hs, request, admin, ReportKind::Room)
}
