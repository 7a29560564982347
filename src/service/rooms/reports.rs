//! Reports of rooms, events and users that somebody finds inappropriate ("Reporting Content"): a row for the
//! administrators, and a line in the log.

use crate::error::{Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, RoomId, UserId};
use crate::service::rooms::Rooms;
use crate::store::accounts::reports::NewReport;

/// Longest reason, in bytes.
const REASON_BYTES_MAX: usize = 2000;

/// So much of it is in the log.
const LOGGED_CHARS_MAX: usize = 200;

/// What is reported.
#[derive(Debug, Clone)]
pub enum Reported {
    /// A room, whether or not the user is in it, or this server.
    Room(RoomId),
    /// An event of a room that the user is in.
    Event(RoomId, EventId),
    /// A user, of whichever server.
    User(UserId),
}

impl Rooms<'_> {
    /// Takes a report down. For rooms and users it makes no difference, in the answer or in the time that it takes, whether
    /// this server knows them: "Homeservers that wish to conceal this information MAY return 200 responses regardless".
    ///
    /// Errors: 404 `M_NOT_FOUND` for an event that is not in a room that the user is joined to ("servers MUST verify that
    /// the reporting user is currently joined to the room the event is in"); 400 `M_INVALID_PARAM` for a reason beyond
    /// 2000 bytes.
    pub fn report(&self, reporter: &UserId, what: Reported, reason: Option<&str>) -> Result<()> {
        if reason.is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
            return Err(Error::invalid_param("The reason has at most 2000 bytes"));
        }
        if let Reported::Event(room_id, event_id) = &what {
            self.check_reportable(reporter, room_id, event_id)?;
        }
        // Quoted: a reason may have line breaks. Its beginning: the whole of it is in the row, and there are as many lines as
        // somebody reports.
        let beginning: String = reason.unwrap_or_default().chars().take(LOGGED_CHARS_MAX).collect();
        log::warn!("{reporter} reports {what}: {beginning:?}");
        let (room, event, user) = match what {
            Reported::Room(room) => (Some(room.to_string()), None, None),
            Reported::Event(room, event) => (Some(room.to_string()), Some(event.to_string()), None),
            Reported::User(user) => (None, None, Some(user.to_string())),
        };
        let reason = reason.map(str::to_owned);
        let report = NewReport { reporter: reporter.clone(), room, event, user, reason };
        let now = self.clock.now_ms();
        self.store.write(move |tx| tx.add_report(&report, now))
    }

    fn check_reportable(&self, reporter: &UserId, room_id: &RoomId, event_id: &EventId) -> Result<()> {
        let missing = || Error::not_found("The event was not found or you are not joined to the room.");
        self.store.read(|db| {
            let room = db.resident_room(room_id)?.ok_or_else(missing)?;
            if db.membership(room.key, reporter)? != Some(Membership::Join) {
                return Err(missing());
            }
            let event = db.event(event_id)?.filter(|event| event.room == room.key && event.place.is_some());
            event.map(drop).ok_or_else(missing)
        })
    }
}

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Room(room) => write!(f, "the room {room}"),
            Self::Event(room, event) => write!(f, "the event {event} in {room}"),
            Self::User(user) => write!(f, "{user}"),
        }
    }
}
