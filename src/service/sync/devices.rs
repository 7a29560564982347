//! What is for the client's device: the messages that wait for it, and whose devices it has to look at anew.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::value::RawValue;

use super::{EventList, SyncContext, Syncing};
use crate::error::{Error, Result};
use crate::protocol::UserId;
use crate::protocol::pdu::Membership;
use crate::service::rooms::view::membership_known_at;
use crate::store::{EventKey, Room, RoomKey};

/// "100 messages is recommended as a reasonable limit."
const MESSAGES_MAX: usize = 100;
/// Members of one room that are listed because they share a room with the user from now on, or no more.
const MEMBERS_MAX: u64 = 10_000;

/// How far an answer came with the messages that wait for a device.
#[derive(Default)]
pub struct ToDeviceProgress {
    /// Up to where the device has proved to have them.
    proved: Option<i64>,
    /// Up to where this answer has them, if it has to leave some out.
    cut_at: Option<i64>,
}

/// `device_lists`.
#[derive(Default, Serialize)]
pub struct DeviceLists {
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    changed: BTreeSet<UserId>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    left: BTreeSet<UserId>,
}

impl DeviceLists {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

/// The messages that wait for the device, but for those that it has proved to have.
pub fn to_device(context: &SyncContext<'_>) -> Result<(EventList, ToDeviceProgress)> {
    let (mut events, mut progress) = (EventList::default(), ToDeviceProgress::default());
    let Some(device) = context.format.device else { return Ok((events, progress)) };
    if let Some(since) = context.request.since {
        progress.proved = context.db.to_device_proved(context.user, device, since)?;
    }
    let after = progress.proved.unwrap_or(0);
    let mut waiting = context.db.to_device_after(context.user, device, after, MESSAGES_MAX + 1)?;
    if waiting.len() > MESSAGES_MAX {
        waiting.truncate(MESSAGES_MAX);
        progress.cut_at = waiting.last().map(|last| last.number);
    }
    for message in waiting {
        events.events.push(RawValue::from_string(message.message).map_err(Error::internal)?);
    }
    Ok((events, progress))
}

impl Syncing<'_> {
    /// Forgets the messages that a device has proved to have, and notes where its answer had to stop: before the answer
    /// goes out, since its token will prove no more than that.
    pub(super) fn settle_to_device(
        &self,
        user: &UserId,
        device: &str,
        since: Option<i64>,
        progress: ToDeviceProgress,
    ) -> Result<()> {
        let (user, device) = (user.clone(), device.to_owned());
        match (progress.cut_at, progress.proved.zip(since)) {
            (None, None) => Ok(()),
            // If the disk does not get it, the same proof comes again.
            (None, Some((upto, since))) => {
                self.store.write_lightly(move |tx| tx.forget_to_device(&user, &device, upto, since))
            }
            (Some(cut_at), proved) => self.store.write(move |tx| {
                if let Some((upto, since)) = proved {
                    tx.forget_to_device(&user, &device, upto, since)?;
                }
                tx.note_to_device_portion(&user, &device, cut_at)
            }),
        }
    }
}

/// "Users who have updated their device identity or cross-signing keys, or who now share an encrypted room with the
/// client"; and "users with whom we do not share any encrypted rooms anymore". Only where the client has looked before.
/// That it wants to hear of certain rooms only, or of none, makes no difference: it encrypts for all of them.
pub fn device_lists(context: &SyncContext<'_>) -> Result<DeviceLists> {
    let mut lists = DeviceLists::default();
    let Some(since) = context.request.since else { return Ok(lists) };
    for user in context.db.device_changes_between(since, context.position)? {
        if user == *context.user || context.db.share_a_room(context.user, &user)? {
            lists.changed.insert(user);
        }
    }
    let mut parted = BTreeSet::new();
    let mut rooms: BTreeSet<RoomKey> =
        context.db.joined_rooms_with_news(context.user, since)?.into_iter().collect();
    rooms.extend(context.db.rooms_of_since(context.user, since)?.into_iter().map(|room| room.room));
    for key in rooms {
        if context.db.state_event_key(key, "m.room.encryption", "")?.is_none() {
            continue;
        }
        let room = context.db.room_by_key(key)?;
        let was_in = membership_known_at(context.db, &room, context.user, since)? == Some(Membership::Join);
        match (was_in, context.db.membership(key, context.user)? == Some(Membership::Join)) {
            (true, true) => comings_and_goings(context, &room, since, &mut lists.changed, &mut parted)?,
            (false, true) => lists.changed.extend(members(context, &room)?),
            (true, false) => parted.extend(members(context, &room)?),
            (false, false) => {}
        }
    }
    parted.remove(context.user);
    for user in parted {
        if !context.db.share_an_encrypted_room(context.user, &user)? {
            lists.changed.remove(&user);
            lists.left.insert(user);
        }
    }
    Ok(lists)
}

/// Who came into an encrypted room in which the user still is, and who went.
fn comings_and_goings(
    context: &SyncContext<'_>,
    room: &Room,
    since: i64,
    came: &mut BTreeSet<UserId>,
    went: &mut BTreeSet<UserId>,
) -> Result<()> {
    let changes = context.db.state_changes_between(room.key, since, context.position)?;
    let was_encrypted = changes.iter().all(|c| c.event_type != "m.room.encryption" || c.before.is_some());
    if !was_encrypted {
        came.extend(members(context, room)?);
        return Ok(());
    }
    let joined = |event: Option<EventKey>| -> Result<bool> {
        let pdu = event.map(|event| context.db.pdu_by_key(event)).transpose()?;
        Ok(pdu.and_then(|pdu| pdu.membership()) == Some(Membership::Join))
    };
    for change in changes.iter().filter(|change| change.event_type == "m.room.member") {
        let Ok(user) = UserId::parse(&change.state_key) else { continue };
        match (joined(change.before)?, joined(change.after)?) {
            (false, true) => drop(came.insert(user)),
            (true, false) => drop(went.insert(user)),
            _ => {}
        }
    }
    Ok(())
}

/// The members of a room, if they are not too many for anyone to follow.
fn members(context: &SyncContext<'_>, room: &Room) -> Result<Vec<UserId>> {
    if room.joined > MEMBERS_MAX {
        return Ok(Vec::new());
    }
    let members = context.db.members(room.key, Some(Membership::Join))?;
    Ok(members.into_iter().map(|member| member.user_id).collect())
}
