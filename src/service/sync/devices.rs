//! What is for the client's device: the messages that wait for it, and whose devices it has to look at anew.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{EventList, SyncContext, Syncing};
use crate::clock::Millis;
use crate::error::Result;
use crate::order::Gather;
use crate::protocol::UserId;
use crate::protocol::pdu::Membership;
use crate::service::rooms::view::{left_at, membership_known_at};
use crate::store::cache::news::News;
use crate::store::rooms::state::StateChange;
use crate::store::{Db, EventKey, Room, RoomKey};

/// "100 messages is recommended as a reasonable limit."
const MESSAGES_MAX: usize = 100;
/// Members of one room that are listed because they share a room with the user from now on, or no more.
const MEMBERS_MAX: u64 = 10_000;
/// The same of a room without encryption, where nobody needs it.
const PLAIN_MEMBERS_MAX: u64 = 1000;

/// So many users are looked up one by one, to see whether they share a room with somebody.
const ONE_BY_ONE_MAX: usize = 100;

/// That a device fetches its messages by itself is noted once in so long.
const NOTED_LAG_MS: Millis = 24 * 3_600_000;

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
    /// Whose keys are to be looked at anew.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub changed: BTreeSet<UserId>,
    /// Whose keys need not be followed any more.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub left: BTreeSet<UserId>,
    /// Who has come into rooms that the user was in before, which is looked for on the way.
    #[serde(skip)]
    pub(super) newcomers: BTreeSet<UserId>,
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
    // What the token proves was settled when the request was looked at first.
    if context.request.looked_upto.is_some() && !context.has_own_news() {
        return Ok((events, progress));
    }
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
        events.events.push(&message.message);
    }
    Ok((events, progress))
}

impl Syncing<'_> {
    /// Whose keys a client has to look at anew since a position of the stream, and whose no more: what `/sync` would have
    /// told it meanwhile. A position that this server has not reached is before everything.
    pub fn key_changes(&self, user: &UserId, from: i64) -> Result<DeviceLists> {
        self.store.read(|db| {
            let position = db.snapshot_position()?;
            device_lists_between(
                db,
                user,
                if from > position || db.was_lost(from) { 0 } else { from },
                position,
                None,
            )
        })
    }

    /// Notes that a device fetches its messages by itself, where an application service may be told of them too.
    pub(super) fn note_reader(&self, user: &UserId, device: &str) -> Result<()> {
        if !self.appservices.is_any_told_messages_of(user) {
            return Ok(());
        }
        let (now, noted) = (self.clock.now_ms(), self.store.read(|db| db.device_synced_ms(user, device))?);
        if noted.is_some_and(|noted| (0..NOTED_LAG_MS).contains(&(now - noted))) {
            return Ok(());
        }
        let (user, device) = (user.clone(), device.to_owned());
        self.store.write_lightly(move |tx| tx.device_synced(&user, &device, now))
    }

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

/// What is told of device lists in one answer.
pub fn device_lists(context: &SyncContext<'_>) -> Result<DeviceLists> {
    // "Only present on an incremental sync."
    let Some(since) = context.devices_since else { return Ok(DeviceLists::default()) };
    device_lists_between(context.db, context.user, since, context.position, context.news.as_ref())
}

/// "Users who have updated their device identity or cross-signing keys, or who now share an encrypted room with the
/// client"; and "users with whom we do not share any encrypted rooms anymore", at positions in `(since, position]`, the
/// second being that of the snapshot. That a client wants to hear of certain rooms only, or of none, makes no
/// difference: it encrypts for all of them. `news`: where something changed, if that is known.
///
/// Who comes into a room without encryption is listed as well, and who shares no room at all any more: "a server may add
/// Alice to `changed` when Alice and Bob share a new room", and clients were taught to expect it.
pub(in crate::service) fn device_lists_between(
    db: &Db<'_>,
    user: &UserId,
    since: i64,
    position: i64,
    news: Option<&News>,
) -> Result<DeviceLists> {
    let mut lists = DeviceLists::default();
    lists.changed.extend(changed_devices(db, user, since, position)?);
    lists.changed.extend(db.sharers_of_swept_changes(user, since)?);
    lists.changed.extend(db.own_signing_news(user, since, position)?);
    let (mut parted, mut parted_encrypted) = (BTreeSet::new(), BTreeSet::new());
    let mut rooms: BTreeSet<RoomKey> = match news {
        Some(news) => news.rooms.iter().map(|changed| changed.room).gather(),
        None => db.joined_rooms_with_news(user, since)?.into_iter().gather(),
    };
    if news.is_none_or(|news| news.own) {
        rooms.extend(db.rooms_of_since(user, since)?.into_iter().map(|room| room.room));
    }
    for key in rooms {
        // One that is being deleted, or was, is in nobody's state any more.
        let Some(room) = db.room_with_state(key)? else { continue };
        let is_encrypted = db.state_event_key(key, "m.room.encryption", "")?.is_some();
        let room = CommonRoom { db, room, is_encrypted, since, position };
        let parted = if is_encrypted { &mut parted_encrypted } else { &mut parted };
        let was_in = membership_known_at(db, &room.room, user, since)? == Some(Membership::Join);
        match (was_in, db.membership(key, user)? == Some(Membership::Join)) {
            (true, true) => room.comings_and_goings(&mut lists, parted)?,
            (false, true) => lists.changed.extend(room.members()?),
            (true, false) => parted.extend(room.members_until_leaving(user)?),
            (false, false) => {}
        }
    }
    for (parted, encrypted) in [(parted_encrypted, true), (parted, false)] {
        for gone in not_shared(db, user, parted, encrypted)? {
            lists.changed.remove(&gone);
            lists.left.insert(gone);
        }
    }
    Ok(lists)
}

/// Whose devices changed of those who are in a room with a user, and of these themselves. Few are looked up one by one, and
/// many by way of the user's rooms: what is read for a user grows with these, and not with how many others there are.
fn changed_devices(db: &Db<'_>, user: &UserId, since: i64, position: i64) -> Result<BTreeSet<UserId>> {
    let among_sharers = || db.device_changes_among_sharers(user, since, position);
    let Some(all) = db.device_changes_between(since, position, ONE_BY_ONE_MAX)? else {
        return among_sharers();
    };
    let mut changed = BTreeSet::new();
    for other in all {
        if other == *user || db.share_a_room(user, &other)? {
            changed.insert(other);
        }
    }
    if cfg!(debug_assertions) {
        let otherwise = among_sharers()?;
        assert!(changed == otherwise, "the devices of {changed:?} changed, by way of rooms {otherwise:?}");
    }
    Ok(changed)
}

/// Those of users with whom a user shares no room any more, or (`encrypted`) none in which messages are encrypted; looked up
/// as in [`changed_devices`].
fn not_shared(
    db: &Db<'_>,
    user: &UserId,
    mut gone: BTreeSet<UserId>,
    encrypted: bool,
) -> Result<BTreeSet<UserId>> {
    gone.remove(user);
    let (mut others, mut sharers) = (BTreeSet::new(), None);
    if gone.len() > ONE_BY_ONE_MAX || cfg!(debug_assertions) && !gone.is_empty() {
        sharers = Some(db.users_who_share_rooms(user, encrypted)?);
    }
    for other in gone {
        let one_by_one = || match encrypted {
            true => db.share_an_encrypted_room(user, &other),
            false => db.share_a_room(user, &other),
        };
        let shares = match &sharers {
            Some(sharers) => sharers.contains(other.as_str()),
            None => one_by_one()?,
        };
        debug_assert!(shares == one_by_one()?, "whether {user} shares a room with {other}");
        if !shares {
            others.insert(other);
        }
    }
    Ok(others)
}

/// A room that the user is in, or was.
struct CommonRoom<'r> {
    db: &'r Db<'r>,
    room: Room,
    is_encrypted: bool,
    since: i64,
    position: i64,
}

impl CommonRoom<'_> {
    /// Who came into the room while the user was in it, and who went.
    fn comings_and_goings(&self, lists: &mut DeviceLists, went: &mut BTreeSet<UserId>) -> Result<()> {
        let changes = self.db.state_changes_between(self.room.key, self.since, self.position)?;
        let was_encrypted = changes.iter().all(|c| c.event_type != "m.room.encryption" || c.before.is_some());
        let (mut came, mut gone) = (BTreeSet::new(), BTreeSet::new());
        self.moves_among(&changes, &mut came, &mut gone)?;
        match self.is_encrypted && !was_encrypted {
            true => lists.changed.extend(self.members()?),
            false => {
                lists.changed.extend(came.iter().cloned());
                went.extend(gone);
            }
        }
        lists.newcomers.extend(came);
        Ok(())
    }

    /// Those with whom a user, who was in the room, shared it at the end: the members as of their leave, whoever came or went after
    /// it, and who had gone before them.
    fn members_until_leaving(&self, user: &UserId) -> Result<BTreeSet<UserId>> {
        let mut members: BTreeSet<UserId> = self.members()?.into_iter().collect();
        let Some(left) = left_at(self.db, &self.room, user)? else { return Ok(BTreeSet::new()) };
        let changes = |after, upto| self.db.state_changes_between(self.room.key, after, upto);
        let (mut came, mut went) = (BTreeSet::new(), BTreeSet::new());
        self.moves_among(&changes(left, self.position)?, &mut came, &mut went)?;
        members.retain(|member| !came.contains(member));
        members.extend(went);
        self.moves_among(&changes(self.since, left)?, &mut came, &mut members)?;
        Ok(members)
    }

    /// Who joins by these changes of the state, and who does not stay.
    fn moves_among(
        &self,
        changes: &[StateChange],
        came: &mut BTreeSet<UserId>,
        went: &mut BTreeSet<UserId>,
    ) -> Result<()> {
        let joined = |event: Option<EventKey>| -> Result<bool> {
            let pdu = event.map(|event| self.db.pdu_by_key(event)).transpose()?;
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

    /// The members, if they are not too many for anyone to follow.
    fn members(&self) -> Result<Vec<UserId>> {
        let most = if self.is_encrypted { MEMBERS_MAX } else { PLAIN_MEMBERS_MAX };
        if self.room.joined > most {
            return Ok(Vec::new());
        }
        let members = self.db.members(self.room.key, Some(Membership::Join))?;
        Ok(members.into_iter().map(|member| member.user_id).gather())
    }
}
