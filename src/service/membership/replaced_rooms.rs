//! What follows a room that was replaced: "When a user joins the new room, the server should automatically
//! transfer/replicate some of the user's personalized settings such as notifications, tags, etc." And what this server
//! itself keeps of the old room: its aliases here, and its place in the directory.
//!
//! A new room may claim any predecessor. It is believed where the old room says the same: who is in the new room before that is
//! owed it from then on (`store/rooms/owed_upgrades.rs`).

use serde_json::{Value, json};

use crate::error::Result;
use crate::protocol::json::parse_object;
use crate::protocol::push_rules::UserRules;
use crate::protocol::{Pdu, RoomId, UserId};
use crate::service::accounts::tags::copy_tags;
use crate::service::membership::Memberships;
use crate::service::push::rules::{PUSH_RULES, is_too_much};
use crate::store::{Db, EventKey, Room, RoomKey, Tx};

/// The room that a tombstone names.
pub(in crate::service) fn replacement_of(tombstone: &Pdu) -> Option<RoomId> {
    RoomId::parse(&tombstone.content_str("replacement_room")?).ok()
}

/// The room that this one replaces, if both say so.
fn predecessor(db: &Db<'_>, room: &Room) -> Result<Option<RoomId>> {
    let Some(create) = db.state_event(room.key, "m.room.create", "")? else { return Ok(None) };
    let content = create.content();
    let named = content.get("predecessor").and_then(|predecessor| predecessor.get("room_id"));
    let Some(named) = named.and_then(Value::as_str).and_then(|id| RoomId::parse(id).ok()) else {
        return Ok(None);
    };
    let Some(old) = db.room(&named)? else { return Ok(None) };
    let tombstone = db.state_event(old.key, "m.room.tombstone", "")?;
    let replaced_by = tombstone.as_ref().and_then(replacement_of);
    Ok((replaced_by.as_ref() == Some(&room.room_id)).then_some(named))
}

/// Members of a new room who are looked through in one transaction.
const PORTION: usize = 20;

impl Memberships<'_> {
    /// Moves to a room what is owed to those who were in it before the tombstone of the room that it replaces.
    pub(in crate::service) fn follow_owed_upgrade(&self, room: RoomKey) -> Result<()> {
        while !self.scheduler.is_stopping() && self.store.write(move |tx| follow_some(tx, room))? {}
        Ok(())
    }
}

/// A tombstone was sent here: those who are in the new room already have at once what follows them, unless they are many.
pub(in crate::service) fn follow_tombstone(tx: &mut Tx<'_>, sent: EventKey) -> Result<()> {
    let tombstone = tx.pdu_by_key(sent)?;
    let Some(new) = replacement_of(&tombstone) else { return Ok(()) };
    match tx.resident_room(&new)? {
        Some(new) => follow_some(tx, new.key).map(drop),
        None => Ok(()),
    }
}

/// The next portion of what is owed to the members of a room. Whether there is more.
fn follow_some(tx: &mut Tx<'_>, key: RoomKey) -> Result<bool> {
    let Some(after) = tx.owed_upgrade(key)? else { return Ok(false) };
    let room = tx.room_by_key(key)?;
    let mut members = match predecessor(tx, &room)? {
        Some(_) => tx.joined_local_users_after(key, &after, PORTION + 1)?,
        None => Vec::new(),
    };
    let more = members.len() > PORTION;
    members.truncate(PORTION);
    for member in &members {
        follow_upgrade(tx, &room, member)?;
    }
    match members.last().filter(|_| more) {
        Some(last) => tx.upgrade_followed(key, last)?,
        None => tx.end_owed_upgrade(key)?,
    }
    Ok(more)
}

/// Moves to a room what the local user who comes into it, and this server, keep of the room that it replaces. Nothing
/// happens if it replaces none.
pub(in crate::service) fn follow_upgrade(tx: &mut Tx<'_>, room: &Room, user: &UserId) -> Result<()> {
    let Some(old) = predecessor(tx, room)? else { return Ok(()) };
    let new = &room.room_id;
    tx.move_aliases(&old, new)?;
    if tx.is_published(&old)? {
        tx.set_published(&old, false)?;
        tx.set_published(new, true)?;
    }
    copy_tags(tx, user, &old, new)?;
    copy_push_rules(tx, user, &old, new)?;
    note_direct_chat(tx, user, &old, new)
}

/// The user's push rules that speak of the old room are there for the new one too, on or off as they are.
fn copy_push_rules(tx: &mut Tx<'_>, user: &UserId, old: &RoomId, new: &RoomId) -> Result<()> {
    let stored = tx.account_data(user, None, PUSH_RULES)?;
    // Of most users nothing need be read.
    let Some(stored) = stored.filter(|stored| stored.contains(old.as_str())) else { return Ok(()) };
    let mut rules = UserRules::read(Some(&stored))?;
    if !rules.follow_room(old.as_str(), new.as_str()) {
        return Ok(());
    }
    let content = rules.to_json()?;
    match is_too_much(&content, Some(&stored)) {
        true => Ok(()),
        false => tx.set_account_data(user, None, PUSH_RULES, &content),
    }
}

/// With whom the old room was a direct chat, the new one is too.
fn note_direct_chat(tx: &mut Tx<'_>, user: &UserId, old: &RoomId, new: &RoomId) -> Result<()> {
    let content = tx.account_data(user, None, "m.direct")?;
    let Some(mut direct) = content.and_then(|content| parse_object(content.as_bytes()).ok()) else {
        return Ok(());
    };
    let mut changed = false;
    for rooms in direct.values_mut().filter_map(Value::as_array_mut) {
        let has = |id: &RoomId| rooms.iter().any(|room| room == id.as_str());
        if has(old) && !has(new) {
            rooms.push(json!(new));
            changed = true;
        }
    }
    if !changed {
        return Ok(());
    }
    tx.set_account_data(user, None, "m.direct", &Value::Object(direct).to_string())
}
