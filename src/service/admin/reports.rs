//! What users have reported, in the form of Synapse's admin API: events and users as there, and rooms likewise.

use serde_json::{Value, json};

use super::rooms::text_of;
use crate::error::{Error, Result};
use crate::protocol::{EventId, RoomId};
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::{Admin, next_place};
use crate::service::rooms::client_format::for_operator;
use crate::store::Db;
use crate::store::accounts::reports::{KeptReport, ReportFilter, ReportKind};

/// A page has no more reports than this, however many are asked for.
const PAGE_MAX: i64 = 1000;

/// Which reports are listed, and how.
#[derive(Debug)]
pub struct ReportsPage {
    /// Of what.
    pub kind: ReportKind,
    /// Which of these.
    pub filter: ReportFilter,
    /// The oldest first.
    pub ascends: bool,
    /// How many of them are passed over.
    pub from: i64,
    /// How many are told at most.
    pub limit: i64,
}

impl Admin<'_> {
    /// A page of reports: the list under the name that it has there, how many there are in all as `total`, and `next_token` if
    /// there are more, which is the next page's `from`.
    pub fn list_reports(&self, page: &ReportsPage) -> Result<Value> {
        let (told, total) = self.store.read(|db| {
            let place = (page.from, page.limit.min(PAGE_MAX));
            let (reports, total) = db.reports(page.kind, &page.filter, page.ascends, place)?;
            let told: Result<Vec<Value>> = reports.iter().map(|report| told(db, page.kind, report)).collect();
            Ok((told?, total))
        })?;
        let next = next_place(page.from, told.len(), total);
        let mut answer = json!({ (list_name(page.kind)): told, "total": total });
        if let Some(next) = next {
            answer["next_token"] = next.into();
        }
        Ok(answer)
    }

    /// One report; that of an event with the event as `event_json`, null if it is not here any more. Errors: 404
    /// `M_NOT_FOUND`.
    pub fn report(&self, kind: ReportKind, id: i64) -> Result<Value> {
        let now = self.clock.now_ms();
        self.store.read(|db| {
            let report = db.report(kind, id)?.ok_or_else(no_report)?;
            let mut told = told(db, kind, &report)?;
            if let Some(event) = &report.event {
                let event = db.event(&EventId::parse(event)?)?;
                let event = event.map(|event| for_operator(db, event.key, now)).transpose()?;
                told["event_json"] = serde_json::to_value(event).map_err(Error::internal)?;
            }
            Ok(told)
        })
    }

    /// Puts a report away. Errors: 404 `M_NOT_FOUND`.
    pub fn delete_report(&self, by: &Administrator, kind: ReportKind, id: i64) -> Result<()> {
        match self.write_as(by, move |tx| tx.delete_report(kind, id))? {
            true => {
                log::info!("{by} has deleted the report {id} in {}", list_name(kind));
                Ok(())
            }
            false => Err(no_report()),
        }
    }
}

fn no_report() -> Error {
    Error::not_found("There is no such report")
}

fn list_name(kind: ReportKind) -> &'static str {
    match kind {
        ReportKind::Event => "event_reports",
        ReportKind::User => "user_reports",
        ReportKind::Room => "room_reports",
    }
}

/// A report as it is listed. There is no `score` any more in what clients send.
fn told(db: &Db<'_>, kind: ReportKind, report: &KeptReport) -> Result<Value> {
    let mut told = json!({
        "id": report.id,
        "received_ts": report.created_ms,
        "user_id": report.reporter,
        "reason": report.reason,
    });
    if kind == ReportKind::User {
        told["target_user_id"] = report.user.clone().into();
        return Ok(told);
    }
    told["room_id"] = report.room.clone().into();
    let room = report.room.as_deref().map(RoomId::parse).transpose()?;
    let room = room.map(|room| db.room(&room)).transpose()?.flatten();
    for (field, event_type, of_content) in
        [("name", "m.room.name", "name"), ("canonical_alias", "m.room.canonical_alias", "alias")]
    {
        let text = room.as_ref().map(|room| text_of(db, room, event_type, of_content)).transpose()?;
        told[field] = text.flatten().into();
    }
    if let Some(event) = &report.event {
        let sent = db.event(&EventId::parse(event)?)?;
        told["event_id"] = event.as_str().into();
        told["sender"] = sent.map(|event| event.pdu.sender().as_str().to_owned()).into();
        told["score"] = Value::Null;
    }
    Ok(told)
}
