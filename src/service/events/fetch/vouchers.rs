//! Who vouches for auth events that nobody can be asked for the keys of (`vouched.rs`): who could have made the same
//! themselves, or had it made by somebody else.
//!
//! Such are the members who have most power in the room, by the state that we ourselves hold, and may do all there that
//! power is needed for. (Nobody can have been given more power meanwhile than the mightiest had.) They are believed about
//! somebody who had less than they, both as we know the room and by the levels upon which the event itself rests: whoever
//! was mighty once, and is not any more, did what nobody can do today. Of somebody who had as much whoever gave it them is
//! believed, who could have given it to a friend, as long as they are not in the room as we know it. What rests on levels
//! from before those that we know is taken only where it brings somebody in: a ban from the past puts out who is above all
//! bans by now.

use std::collections::HashMap;
use std::rc::Rc;

use crate::error::Result;
use crate::protocol::event_auth::{PowerLevel, PowerLevels};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, Pdu, ServerName, UserId};
use crate::service::events::server_acl::RoomAcl;
use crate::store::{Db, Room};

/// How many changes of the power levels are looked back.
const LEVELS_LOOKED_BACK_MAX: usize = 100;

/// A server whose word counts, and by which of its users.
pub(super) struct Voucher {
    pub(super) server: ServerName,
    users: Vec<UserId>,
}

/// One event of power levels, or what holds where there is none.
struct Levels {
    id: Option<EventId>,
    sender: Option<UserId>,
    levels: PowerLevels,
    before: Option<EventId>,
}

/// Who may vouch in a room.
pub(super) struct Vouching<'a> {
    db: &'a Db<'a>,
    room: &'a Room,
    create: Option<Pdu>,
    /// Events that are here and are not stored.
    at_hand: &'a dyn Fn(&EventId) -> Option<Pdu>,
    now: Rc<Levels>,
    known: HashMap<Option<EventId>, Rc<Levels>>,
}

impl<'a> Vouching<'a> {
    pub(super) fn new(
        db: &'a Db<'a>,
        room: &'a Room,
        at_hand: &'a dyn Fn(&EventId) -> Option<Pdu>,
    ) -> Result<Self> {
        let create = db.state_event(room.key, "m.room.create", "")?;
        let levels = db.state_event(room.key, "m.room.power_levels", "")?;
        let now = Rc::new(levels_by(room, create.as_ref(), levels.as_ref(), |id| {
            Ok(at_hand(id).or(db.event(id)?.map(|event| event.pdu)))
        })?);
        Ok(Self { db, room, create, at_hand, now, known: HashMap::new() })
    }

    /// The servers whose word counts at all, but for these.
    pub(super) fn vouchers(&self, gone: &[ServerName]) -> Result<Vec<Voucher>> {
        let (acl, levels) = (RoomAcl::of(self.db, self.room)?, &self.now.levels);
        let mut vouchers: Vec<Voucher> = Vec::new();
        for user in levels.mightiest() {
            let Ok(user) = UserId::parse(&user) else { continue };
            let server = user.server();
            let counts = levels.may_do_all(user.as_str())
                && self.db.membership_in_state(self.room.key, &user)? == Some(Membership::Join)
                && acl.allows(&server)
                && !self.db.is_local(user.as_str())
                && !gone.contains(&server);
            if !counts {
                continue;
            }
            match vouchers.iter_mut().find(|voucher| voucher.server == server) {
                Some(voucher) => voucher.users.push(user),
                None => vouchers.push(Voucher { server, users: vec![user] }),
            }
        }
        Ok(vouchers)
    }

    /// Whether a server's word counts for an event.
    pub(super) fn may_vouch(&mut self, voucher: &Voucher, event: &Pdu) -> Result<bool> {
        let Some(then) = self.levels_under(event)? else { return Ok(false) };
        if !self.has_come_since(&then)? && !brings_somebody_in(event) {
            return Ok(false);
        }
        let now = self.now.clone();
        for user in &voucher.users {
            if self.is_above(user, event.sender(), &now)? && self.is_above(user, event.sender(), &then)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether somebody has more power than another by these levels, or has given them theirs.
    fn is_above(&mut self, user: &UserId, other: &UserId, by: &Rc<Levels>) -> Result<bool> {
        if by.levels.user(user.as_str()) > by.levels.user(other.as_str()) {
            return Ok(true);
        }
        let is_in = self.db.membership_in_state(self.room.key, other)? == Some(Membership::Join);
        Ok(!is_in && self.giver_of(other, by)?.as_ref() == Some(user))
    }

    /// Who gave somebody the power that they have; none where we cannot tell.
    fn giver_of(&mut self, user: &UserId, by: &Rc<Levels>) -> Result<Option<UserId>> {
        let power = |levels: &Levels| -> PowerLevel { levels.levels.user(user.as_str()) };
        if power(by) == PowerLevel::Infinite {
            return Ok(self.create.as_ref().map(|create| create.sender().clone()));
        }
        let mut levels = by.clone();
        for _ in 0..LEVELS_LOOKED_BACK_MAX {
            let Some(before) = self.levels_before(&levels)? else { return Ok(None) };
            if power(&before) < power(&levels) {
                return Ok(levels.sender.clone());
            }
            levels = before;
        }
        Ok(None)
    }

    /// Whether these levels are those that we hold, or came of them.
    fn has_come_since(&mut self, levels: &Rc<Levels>) -> Result<bool> {
        let mut levels = levels.clone();
        for _ in 0..LEVELS_LOOKED_BACK_MAX {
            if levels.id == self.now.id {
                return Ok(true);
            }
            let Some(before) = self.levels_before(&levels)? else { return Ok(false) };
            levels = before;
        }
        Ok(false)
    }

    /// The levels upon which an event rests. None if it names several, or such as are not here.
    fn levels_under(&mut self, event: &Pdu) -> Result<Option<Rc<Levels>>> {
        let mut found = None;
        for id in event.auth_events() {
            let Some(pdu) = self.event(id)? else { return Ok(None) };
            if pdu.is("m.room.power_levels", "") && found.replace(pdu).is_some() {
                return Ok(None);
            }
        }
        self.levels_of(found).map(Some)
    }

    /// The levels before others. None where that is not known, or nothing was before.
    fn levels_before(&mut self, levels: &Rc<Levels>) -> Result<Option<Rc<Levels>>> {
        if levels.id.is_none() {
            return Ok(None);
        }
        let Some(before) = &levels.before else { return self.levels_of(None).map(Some) };
        match self.event(before)? {
            Some(before) => self.levels_of(Some(before)).map(Some),
            None => Ok(None),
        }
    }

    fn levels_of(&mut self, event: Option<Pdu>) -> Result<Rc<Levels>> {
        let id = event.as_ref().map(|event| event.event_id().clone());
        if let Some(known) = self.known.get(&id) {
            return Ok(known.clone());
        }
        let levels = levels_by(self.room, self.create.as_ref(), event.as_ref(), |id| self.event(id))?;
        let levels = Rc::new(levels);
        self.known.insert(id, levels.clone());
        Ok(levels)
    }

    fn event(&self, id: &EventId) -> Result<Option<Pdu>> {
        match (self.at_hand)(id) {
            Some(event) => Ok(Some(event)),
            None => Ok(self.db.event(id)?.map(|event| event.pdu)),
        }
    }
}

fn levels_by(
    room: &Room,
    create: Option<&Pdu>,
    event: Option<&Pdu>,
    find: impl Fn(&EventId) -> Result<Option<Pdu>>,
) -> Result<Levels> {
    let mut before = None;
    for id in event.map(Pdu::auth_events).unwrap_or_default() {
        if find(id)?.is_some_and(|event| event.is("m.room.power_levels", "")) {
            before = Some(id.clone());
        }
    }
    let levels = PowerLevels::of(room.version, &|event_type, _| match event_type {
        "m.room.create" => create.cloned(),
        "m.room.power_levels" => event.cloned(),
        _ => None,
    });
    let (id, sender) = event.map(|event| (event.event_id().clone(), event.sender().clone())).unzip();
    Ok(Levels { id, sender, levels, before })
}

/// Whether an event lets somebody in, or says that they have come: there is no power in that.
fn brings_somebody_in(event: &Pdu) -> bool {
    match event.membership() {
        Some(Membership::Join) => event.state_key() == Some(event.sender().as_str()),
        Some(Membership::Invite) => true,
        _ => false,
    }
}
