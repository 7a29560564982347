//! Read receipts and the fully-read marker.

use serde::Deserialize;
use serde_json::json;

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::edu::{Edu, RECEIPTS_MAX, ReceiptContent, RoomReceipts, UserReceipt};
use crate::protocol::json::{read, read_object};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, RoomId, UserId};
use crate::service::ephemeral::Ephemeral;
use crate::service::ephemeral::incoming::{EduKind, EduOrigin};
use crate::service::outgoing::told_receipt;
use crate::store::ephemeral::receipts::{PRIVATE, READ, Receipt};
use crate::store::{Db, Room, RoomKey, StoredEvent};

/// The marker that is account data and no receipt.
pub const FULLY_READ: &str = "m.fully_read";
/// The thread of everything that is in none.
const MAIN_THREAD: &str = "main";

/// What a client asks to move: a type of receipt, the event, the thread.
pub struct MarkerMove {
    /// `m.read`, `m.read.private` or `m.fully_read`.
    pub receipt_type: String,
    /// Up to where.
    pub event: EventId,
    /// `main` or a thread's root, if the receipt knows threads.
    pub thread: Option<String>,
}

impl Ephemeral<'_> {
    /// Moves the markers of a local user in a room, all or none. One that is further already stays. Errors: 400
    /// `M_INVALID_PARAM` for an unknown type or a thread that does not fit, 403 `M_FORBIDDEN` for who is not in the
    /// room, 404 `M_NOT_FOUND` for an event that is not there.
    pub fn mark_read(&self, user: &UserId, room_id: &RoomId, moves: Vec<MarkerMove>) -> Result<()> {
        let now = self.clock.now_ms();
        let (room, receipts, marker) = self.store.read(|db| {
            let room = db.room(room_id)?;
            let Some(room) =
                room.filter(|r| db.membership(r.key, user).ok().flatten() == Some(Membership::Join))
            else {
                return Err(Error::not_in_room());
            };
            let (mut receipts, mut marker) = (Vec::new(), None);
            for wish in moves {
                let event = checked(db, &room, &wish)?;
                if wish.receipt_type == FULLY_READ {
                    let before = db.account_data(user, Some(room_id), FULLY_READ)?;
                    let before = before.and_then(|content| event_named_in(&content));
                    marker = is_further(db, room.key, before.as_deref(), &event)?.then_some(event);
                } else {
                    let thread = wish.thread.unwrap_or_default();
                    let before = db.receipt(room.key, user, &wish.receipt_type, &thread)?;
                    if is_further(db, room.key, before.as_deref(), &event)? {
                        let own = event.pdu.sender() == user;
                        let (event_id, user_id) = (wish.event.to_string(), user.to_string());
                        let receipt_type = wish.receipt_type;
                        receipts.push((Receipt { user_id, receipt_type, thread, event_id, ts: now }, own));
                    }
                }
            }
            Ok((room, receipts, marker))
        })?;
        self.note_activity(user);
        if receipts.is_empty() && marker.is_none() {
            return Ok(());
        }
        let (key, user, in_room) = (room.key, user.clone(), room_id.clone());
        let moved = self.store.write(move |tx| {
            let mut moved = Vec::new();
            for (receipt, own) in receipts {
                if tx.set_receipt(key, &receipt)? {
                    moved.push((receipt, own));
                }
            }
            if let Some(event) = marker {
                // Another request may have moved it meanwhile.
                let before = tx.account_data(&user, Some(&in_room), FULLY_READ)?;
                let before = before.and_then(|content| event_named_in(&content));
                if is_further(tx, key, before.as_deref(), &event)? {
                    let content = json!({ "event_id": event.pdu.event_id() }).to_string();
                    tx.set_account_data(&user, Some(&in_room), FULLY_READ, &content)?;
                }
            }
            Ok(moved)
        })?;
        // "Read receipts for events that a user sent do not need to be sent."
        let told = moved.iter().filter(|(receipt, own)| receipt.receipt_type == READ && !own);
        told.map(|(receipt, _)| edu_of(room_id, receipt))
            .try_for_each(|edu| self.outgoing.send_edu_to_room(self, room.key, &edu))
    }

    /// `m.receipt` of another server: of each room's receipts those of its own users who are in the room. "The server
    /// should only update entries that are listed in the EDU."
    pub(in crate::service) fn receive_receipts(
        &self,
        origin: &mut EduOrigin<'_>,
        content: &[u8],
    ) -> Result<()> {
        let (mut left, now) = (RECEIPTS_MAX, self.clock.now_ms());
        let mut receipts: Vec<(RoomKey, Receipt)> = Vec::new();
        let rooms: ReceiptContent<'_> = read(content).unwrap_or_default();
        for (room, by_type) in rooms.0 {
            let Ok(room_id) = RoomId::parse(&room) else { continue };
            let Ok(of_room) = read_object::<RoomReceipts<'_>>(by_type.get().as_bytes()) else { continue };
            let edu = || (EduKind::Receipt, format!("{{{}:{}}}", json!(room_id), by_type.get()).into_bytes());
            let Some(room) = origin.room_or_keep(self, &room_id, edu)? else { continue };
            for (user, told) in of_room.read.0 {
                if left == 0 {
                    break;
                }
                left -= 1;
                let told = read_object::<UserReceipt>(told.get().as_bytes());
                let (Ok(user), Ok(told)) = (UserId::parse(&user), told) else { continue };
                if origin.owns(&user)
                    && let Some(receipt) = self.store.read(|db| acceptable(db, room, &user, told, now))?
                {
                    receipts.push((room, receipt));
                }
            }
        }
        if receipts.is_empty() {
            return Ok(());
        }
        self.store.write_lightly(move |tx| {
            receipts.iter().try_for_each(|(room, receipt)| tx.set_receipt(*room, receipt).map(drop))
        })
    }
}

/// The receipt that another server's word comes to, if it says anything new.
fn acceptable(
    db: &Db<'_>,
    room: RoomKey,
    user: &UserId,
    told: UserReceipt,
    now: Millis,
) -> Result<Option<Receipt>> {
    if db.membership(room, user)? != Some(Membership::Join) {
        return Ok(None);
    }
    // Of several forward extremities the last one stands for all.
    let Some(event_id) = told.event_ids.last() else { return Ok(None) };
    let thread = match told.data.thread_id {
        None => String::new(),
        Some(thread) if thread == MAIN_THREAD => thread,
        // Threads are bounded by the events that there are.
        Some(thread) => match EventId::parse(&thread) {
            Ok(root) if is_in_room(db, room, &root)? => thread,
            _ => return Ok(None),
        },
    };
    let before = db.receipt(room, user, READ, &thread)?;
    let further = match db.event(event_id)?.filter(|event| event.room == room) {
        Some(event) => is_further(db, room, before.as_deref(), &event)?,
        // Not here yet. When it comes, its reader has read it.
        None => before.as_deref() != Some(event_id.as_str()),
    };
    // A time that is yet to come would be shown as such for ever.
    let ts = told.data.ts.unwrap_or(now).clamp(0, now);
    let (user_id, event_id) = (user.to_string(), event_id.to_string());
    Ok(further.then(|| Receipt { user_id, receipt_type: READ.to_owned(), thread, event_id, ts }))
}

/// The event of a wish, if there is nothing wrong with it.
fn checked(db: &Db<'_>, room: &Room, wish: &MarkerMove) -> Result<StoredEvent> {
    let is_receipt = [READ, PRIVATE].contains(&wish.receipt_type.as_str());
    if !is_receipt && wish.receipt_type != FULLY_READ {
        return Err(Error::invalid_param("The type of a receipt is m.read, m.read.private or m.fully_read"));
    }
    if wish.thread.is_some() && !is_receipt {
        return Err(Error::invalid_param("The fully-read marker knows no threads"));
    }
    let event = db.event(&wish.event)?.filter(|event| event.room == room.key && event.place.is_some());
    let event = event.ok_or_else(|| Error::not_found("There is no such event in the room"))?;
    if let Some(thread) = &wish.thread
        && thread != wish.event.as_str()
        && thread != db.thread_root_of(event.key)?.as_ref().map_or(MAIN_THREAD, EventId::as_str)
        // Reactions to a root, its edits and the like are in the main timeline, and yet related to the thread.
        && !db.leads_to(event.key, thread)?
    {
        return Err(Error::invalid_param("The event does not belong to the thread"));
    }
    Ok(event)
}

fn is_in_room(db: &Db<'_>, room: RoomKey, event: &EventId) -> Result<bool> {
    Ok(db.event(event)?.is_some_and(|event| event.room == room))
}

/// Whether an event lies behind the one that a marker has reached. A marker whose event is unknown gives way.
fn is_further(db: &Db<'_>, room: RoomKey, before: Option<&str>, event: &StoredEvent) -> Result<bool> {
    let Some(before) = before.and_then(|id| EventId::parse(id).ok()) else { return Ok(true) };
    let before = db.event(&before)?.filter(|before| before.room == room).and_then(|before| before.place);
    Ok(event.place > before)
}

fn event_named_in(marker: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Marker {
        event_id: String,
    }
    read_object::<Marker>(marker.as_bytes()).ok().map(|marker| marker.event_id)
}

fn edu_of(room: &RoomId, receipt: &Receipt) -> Edu {
    let user = &receipt.user_id;
    let content = json!({ room.as_str(): { READ: { user: told_receipt(receipt) } } });
    Edu {
        replaces: Some(format!("receipt {room} {user} {}", receipt.thread)),
        json: json!({ "edu_type": "m.receipt", "content": content }).to_string(),
    }
}
