//! Presence: which local users are at a client, told to whom they share rooms with; and who of others is.
//!
//! What happens to a local user is a step of their presence, which is memory: every message that they send is one. Only
//! when the outcome is another one is it written (lightly) and told.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::locks::lock;
use crate::protocol::UserId;
use crate::protocol::edu::{Edu, PresenceContent, UserPresence};
use crate::protocol::json::{First, read_object};
use crate::protocol::pdu::Membership;
use crate::service::ephemeral::Ephemeral;
use crate::service::ephemeral::incoming::EduOrigin;
use crate::service::outgoing::{SERVERS_IN_ROOM_MAX, ToldPresence};
use crate::store::ephemeral::presence::{Presence, PresenceState};

/// Who does nothing for so long is unavailable.
const IDLE_AFTER_MS: Millis = 5 * 60_000;
/// A client that does not ask again within this time is gone.
const GONE_AFTER_MS: Millis = 30_000;
/// Other servers are told again of those who are there: before they take us for dead.
const TELL_INTERVAL_MS: Millis = 25 * 60_000;
/// Users of other servers are taken to be offline when nothing was heard of them.
pub(in crate::service) const REMOTE_GONE_AFTER_MS: Millis = 30 * 60_000;
/// Users of another server whose last deed is later by this much are news.
const LAST_ACTIVE_GRAIN_MS: Millis = 60_000;
/// Longest status, in bytes.
const STATUS_BYTES_MAX: usize = 1024;
/// Users whose presence is written at once: more would hold the writer for long.
const WRITTEN_AT_ONCE_MAX: usize = 100;
/// Ends that are worked on at once, and how often at most.
const EXPIRED_AT_ONCE_MAX: usize = 100;
const EXPIRY_INTERVAL_MS: Millis = 1000;
/// Clients of one user that are told apart.
const CLIENTS_MAX: usize = 100;
/// For so long it is remembered of somebody that they are gone: longer than it takes to write it.
const FORGET_AFTER_MS: Millis = 120_000;

/// The local users who are there, or were a moment ago.
#[derive(Default)]
pub struct LocalPresences(Mutex<HashMap<UserId, LocalPresence>>);

/// A local user's presence, and what it follows from.
#[derive(Debug, Clone)]
struct LocalPresence {
    state: PresenceState,
    status: Option<String>,
    last_active: Millis,
    /// The clients that asked for news, by their devices.
    clients: HashMap<String, ClientPresence>,
    /// Unavailable because that is what the clients say, not for long inactivity.
    called_idle: bool,
    /// When others were last told, and when there was last something to tell.
    told: Millis,
    changed: Millis,
}

/// What one client of a local user says of them.
#[derive(Debug, Clone)]
struct ClientPresence {
    /// Online, or idle.
    is_online: bool,
    /// Until when it need not say so again.
    until: Millis,
    /// It was said by the user, and not by how the client asks for news.
    by_user: bool,
}

/// What happens to a local user.
#[derive(Debug)]
enum PresenceInput {
    /// They say so themselves, on a device.
    Set(String, PresenceState, Option<String>),
    /// The client on a device asks for news and calls them online or idle; it will ask again by then. Or it calls them
    /// offline: it says nothing any more.
    Poll(String, PresenceState, Millis),
    /// They do something.
    Act,
    /// Nothing; time passes.
    Wait,
}

impl LocalPresences {
    /// The wall clock was set back: nothing was said later than now, and nobody is there for longer than they said.
    pub(super) fn clock_set_back(&self, now: Millis) {
        for here in lock(&self.0).values_mut() {
            for at in [&mut here.last_active, &mut here.told, &mut here.changed] {
                *at = (*at).min(now);
            }
            here.clients
                .values_mut()
                .for_each(|client| client.until = client.until.min(now + 2 * GONE_AFTER_MS));
        }
    }
}

impl LocalPresence {
    fn new(known: Option<Presence>, now: Millis) -> Self {
        let mut clients = HashMap::new();
        if known.as_ref().is_some_and(|known| known.state != PresenceState::Offline) {
            // Their clients, whichever they are, may not know yet that the server was away for a moment.
            let until = now + 2 * GONE_AFTER_MS;
            clients.insert(String::new(), ClientPresence { is_online: true, until, by_user: false });
        }
        let known = known.unwrap_or(Presence {
            state: PresenceState::Offline,
            status: None,
            last_active_ms: now,
            active: false,
            until_ms: None,
        });
        Self {
            state: known.state,
            status: known.status,
            last_active: known.last_active_ms,
            clients,
            called_idle: false,
            told: now,
            changed: now,
        }
    }

    /// Until when a client calls the user online (or idle).
    fn until(&self, online: bool) -> Millis {
        let those = self.clients.values().filter(|client| client.is_online == online);
        those.map(|client| client.until).max().unwrap_or(0)
    }

    /// What a client says holds until then, whatever it said before; if it says the same, no shorter than before.
    fn hear_client(&mut self, device: String, says: ClientPresence) {
        if self.clients.len() >= CLIENTS_MAX
            && !self.clients.contains_key(&device)
            && let Some(gone) = self.clients.iter().min_by_key(|(_, client)| client.until)
        {
            let gone = gone.0.clone();
            self.clients.remove(&gone);
        }
        let client = self.clients.entry(device).or_insert_with(|| says.clone());
        let until =
            if client.is_online == says.is_online { client.until.max(says.until) } else { says.until };
        *client = ClientPresence { until, ..says };
    }

    /// Whether others have something to hear.
    fn take(&mut self, deed: PresenceInput, now: Millis) -> bool {
        let before = (self.state, self.status.clone());
        match deed {
            PresenceInput::Set(device, state, status) => {
                (self.state, self.status, self.called_idle) = (state, status, false);
                self.last_active = now;
                let until = now + 2 * GONE_AFTER_MS;
                self.hear_client(device, ClientPresence { is_online: true, until, by_user: true });
            }
            PresenceInput::Poll(device, PresenceState::Online, until) => {
                self.hear_client(device, ClientPresence { is_online: true, until, by_user: false });
                // Asking for news is no deed, but to come back to a client is one.
                if self.state == PresenceState::Offline || self.called_idle {
                    (self.state, self.called_idle, self.last_active) = (PresenceState::Online, false, now);
                }
            }
            PresenceInput::Poll(device, PresenceState::Unavailable, until) => {
                self.hear_client(device, ClientPresence { is_online: false, until, by_user: false });
                if self.state == PresenceState::Offline {
                    (self.state, self.called_idle) = (PresenceState::Unavailable, true);
                }
            }
            PresenceInput::Poll(device, PresenceState::Offline, _) => {
                // What the user said of themselves is not taken back by that.
                if self.clients.get(&device).is_some_and(|client| !client.by_user) {
                    self.clients.remove(&device);
                }
            }
            PresenceInput::Act => {
                self.last_active = now;
                if self.state == PresenceState::Unavailable {
                    (self.state, self.called_idle) = (PresenceState::Online, false);
                }
            }
            PresenceInput::Wait => {}
        }
        let (online_until, idle_until) = (self.until(true), self.until(false));
        if self.state != PresenceState::Offline && now >= online_until.max(idle_until) {
            self.state = PresenceState::Offline;
            self.clients.clear();
        } else if self.state == PresenceState::Online && now >= online_until {
            // Only clients that call them idle are left.
            (self.state, self.called_idle) = (PresenceState::Unavailable, true);
        } else if self.state == PresenceState::Online && now >= self.last_active + IDLE_AFTER_MS {
            self.state = PresenceState::Unavailable;
        }
        let changed = (self.state, self.status.clone()) != before;
        if changed {
            self.changed = now;
        }
        changed
    }

    /// When time alone changes something.
    fn next(&self) -> Option<Millis> {
        let (online_until, idle_until) = (self.until(true), self.until(false));
        let gone = online_until.max(idle_until).min(self.told + TELL_INTERVAL_MS);
        match self.state {
            PresenceState::Offline => None,
            PresenceState::Unavailable => Some(gone),
            PresenceState::Online => Some(gone.min(online_until).min(self.last_active + IDLE_AFTER_MS)),
        }
    }

    fn presence(&self) -> Presence {
        Presence {
            state: self.state,
            status: self.status.clone(),
            last_active_ms: self.last_active,
            // Nothing more is told of who is online before they are not any more.
            active: self.state == PresenceState::Online,
            until_ms: None,
        }
    }
}

impl LocalPresences {
    /// What is known of a user here; none of who has been offline for a while.
    fn presence_of(&self, user: &UserId) -> Option<Presence> {
        lock(&self.0).get(user).map(LocalPresence::presence)
    }
}

impl Ephemeral<'_> {
    /// A local user says whether they are there. Errors: 400 `M_INVALID_PARAM` for a status that is too long.
    pub fn set_presence(
        &self,
        user: &UserId,
        device: Option<&str>,
        state: PresenceState,
        status: Option<String>,
    ) -> Result<()> {
        if status.as_ref().is_some_and(|status| status.len() > STATUS_BYTES_MAX) {
            return Err(Error::invalid_param("status_msg may have at most 1024 bytes"));
        }
        let device = device.unwrap_or_default().to_owned();
        self.presence_step(
            user,
            PresenceInput::Set(device, state, status.filter(|status| !status.is_empty())),
        )
    }

    /// The client on a device of a local user asks for news, and will again after `waits`, and calls them online or
    /// idle. One that calls them offline says nothing, and takes back what it said by asking otherwise before.
    pub fn note_poll(&self, user: &UserId, device: Option<&str>, state: PresenceState, waits: Millis) {
        if state == PresenceState::Offline && !lock(&self.local_presence.0).contains_key(user) {
            return;
        }
        let (device, until) =
            (device.unwrap_or_default().to_owned(), self.clock.now_ms() + waits + GONE_AFTER_MS);
        self.try_presence_step(user, PresenceInput::Poll(device, state, until));
    }

    /// A local user did something. Costs next to nothing, unless they were idle.
    pub fn note_activity(&self, user: &UserId) {
        // Who is at no client stays offline, whatever they send.
        if lock(&self.local_presence.0).contains_key(user) {
            self.try_presence_step(user, PresenceInput::Act);
        }
    }

    /// Presence is worth no refusal: what cannot be kept is only logged.
    fn try_presence_step(&self, user: &UserId, deed: PresenceInput) {
        if let Err(e) = self.presence_step(user, deed) {
            log::log!(e.level(log::Level::Error), "the presence of {user} cannot be kept: {e}");
        }
    }

    fn presence_step(&self, user: &UserId, deed: PresenceInput) -> Result<()> {
        if !self.config.presence {
            return Ok(());
        }
        let now = self.clock.now_ms();
        if !lock(&self.local_presence.0).contains_key(user) {
            let known = self.store.read(|db| db.presence(user))?;
            lock(&self.local_presence.0)
                .entry(user.clone())
                .or_insert_with(|| LocalPresence::new(known, now));
        }
        let (changed, next) = {
            let mut all = lock(&self.local_presence.0);
            let here = all.entry(user.clone()).or_insert_with(|| LocalPresence::new(None, now));
            (here.take(deed, now), here.next())
        };
        if changed {
            if let Some(next) = next {
                self.scheduler.no_later_than(next);
            }
            self.publish_presence(std::slice::from_ref(user))?;
        }
        Ok(())
    }

    /// Writes what is known of local users, and tells others.
    fn publish_presence(&self, users: &[UserId]) -> Result<()> {
        for some in users.chunks(WRITTEN_AT_ONCE_MAX) {
            let (local_presence, names) = (Arc::clone(&self.local_presence), some.to_vec());
            // Read where the writes are in line, so that the last one written is what is so in the end.
            self.store.write_lightly(move |tx| {
                names.iter().try_for_each(|name| match local_presence.presence_of(name) {
                    Some(presence) => tx.set_presence(name, &presence),
                    None => Ok(()),
                })
            })?;
            some.iter().try_for_each(|user| self.tell_servers_of_presence(user))?;
        }
        Ok(())
    }

    fn tell_servers_of_presence(&self, user: &UserId) -> Result<()> {
        let now = self.clock.now_ms();
        let Some(presence) = lock(&self.local_presence.0).get_mut(user).map(|here| {
            here.told = now;
            here.presence()
        }) else {
            return Ok(());
        };
        let servers = self.store.read(|db| {
            let mut servers = BTreeSet::new();
            for room in db.rooms_of(user)?.into_iter().filter(|room| room.membership == Membership::Join) {
                let in_room = db.resident_servers(room.room)?;
                if in_room.len() <= SERVERS_IN_ROOM_MAX {
                    servers.extend(in_room);
                }
            }
            Ok(servers)
        })?;
        let push = ToldPresence::for_server(user, &presence, now);
        let edu = Edu {
            replaces: Some(format!("presence {user}")),
            json: json!({ "edu_type": "m.presence", "content": { "push": [push] } }).to_string(),
        };
        for server in servers.iter().filter(|server| *server != self.server_name()) {
            self.outgoing.send_edu(server, edu.clone());
        }
        Ok(())
    }

    /// Somebody's presence for a local user, as clients read it. Errors: 403 `M_FORBIDDEN` unless they share a room.
    pub fn presence_for(&self, viewer: &UserId, user: &UserId) -> Result<Value> {
        let (may, stored) = self
            .store
            .read(|db| Ok((viewer == user || db.share_a_room(viewer, user)?, db.presence(user)?)))?;
        if !may {
            return Err(Error::forbidden("You are not allowed to see their presence"));
        }
        let known = self.local_presence.presence_of(user).or(stored);
        match known.filter(|_| self.config.presence) {
            Some(presence) => serde_json::to_value(ToldPresence::new(&presence, self.clock.now_ms()))
                .map_err(Error::internal),
            None => Ok(json!({ "presence": PresenceState::Offline.as_str() })),
        }
    }

    /// Takes up the local users who were there when the server last stopped. Where presence was switched off since then, clients
    /// are told that nobody is there: nothing else would say so.
    pub fn load_presence(&self) -> Result<()> {
        let now = self.clock.now_ms();
        let known = self.store.read(|db| db.presence_between(0, i64::MAX, usize::MAX >> 1))?;
        if !self.config.presence {
            let there = known.into_iter().filter(|(_, presence)| presence.state != PresenceState::Offline);
            return self.end_presence(there.collect());
        }
        let mut all = lock(&self.local_presence.0);
        for (user, presence) in known {
            if self.is_local(&user) && presence.state != PresenceState::Offline {
                all.entry(user).or_insert_with(|| LocalPresence::new(Some(presence), now));
            }
        }
        Ok(())
    }

    fn end_presence(&self, of: Vec<(UserId, Presence)>) -> Result<()> {
        if of.is_empty() {
            return Ok(());
        }
        self.store.write_lightly(move |tx| {
            of.iter().try_for_each(|(user, presence)| {
                let offline = Presence {
                    state: PresenceState::Offline,
                    active: false,
                    until_ms: None,
                    ..presence.clone()
                };
                tx.set_presence(user, &offline)
            })
        })
    }

    /// Lets time change what it changes; gives when to look again.
    pub fn expire_presence(&self, now: Millis) -> Result<Option<Millis>> {
        let (mut changed, mut told_long_ago, mut next) = (Vec::new(), Vec::new(), None::<Millis>);
        lock(&self.local_presence.0).iter_mut().for_each(|(user, here)| {
            if here.take(PresenceInput::Wait, now) {
                changed.push(user.clone());
            } else if here.state != PresenceState::Offline && now >= here.told + TELL_INTERVAL_MS {
                told_long_ago.push(user.clone());
            }
        });
        self.publish_presence(&changed)?;
        told_long_ago.iter().try_for_each(|user| self.tell_servers_of_presence(user))?;
        // Who has been offline for a while is in the database.
        lock(&self.local_presence.0).retain(|_, here| {
            next = [next, here.next()].into_iter().flatten().min();
            here.state != PresenceState::Offline || now < here.changed + FORGET_AFTER_MS
        });
        let gone = self.store.read(|db| db.presence_expired(now, EXPIRED_AT_ONCE_MAX))?;
        self.end_presence(gone)?;
        let others = self.store.read(|db| db.next_presence_expiry())?;
        Ok([next, others].into_iter().flatten().min().map(|next| next.max(now + EXPIRY_INTERVAL_MS)))
    }

    /// `m.presence` of another server: of its own users those who share a room with a local user.
    pub(in crate::service) fn receive_presence(&self, origin: &EduOrigin<'_>, content: &[u8]) -> Result<()> {
        let strangers = self.take_presence(origin, content)?;
        self.keep_presence(origin, &strangers)
    }

    /// The same; gives what is said of users of that server with whom no local user shares a room.
    pub(super) fn take_presence<'c>(
        &self,
        origin: &EduOrigin<'_>,
        content: &'c [u8],
    ) -> Result<Vec<&'c RawValue>> {
        let mut strangers = Vec::new();
        let Ok(PresenceContent { push: First(pushes) }) = read_object(content) else { return Ok(strangers) };
        if !self.config.presence {
            return Ok(strangers);
        }
        let now = self.clock.now_ms();
        let mut news = Vec::new();
        for push in pushes {
            let told = push;
            let Ok(push) = read_object::<UserPresence>(told.get().as_bytes()) else { continue };
            let Some(state) = PresenceState::parse(&push.presence).filter(|_| origin.owns(&push.user_id))
            else {
                continue;
            };
            if !self.store.read(|db| db.is_of_interest(&push.user_id))? {
                strangers.push(told);
                continue;
            }
            let presence = Presence {
                state,
                status: push
                    .status_msg
                    .filter(|status| !status.is_empty() && status.len() <= STATUS_BYTES_MAX),
                last_active_ms: now - push.last_active_ago.unwrap_or(0).clamp(0, now),
                active: push.currently_active && state == PresenceState::Online,
                until_ms: (state != PresenceState::Offline).then_some(now + REMOTE_GONE_AFTER_MS),
            };
            news.push((push.user_id, presence));
        }
        if news.is_empty() {
            return Ok(strangers);
        }
        self.scheduler.no_later_than(now + REMOTE_GONE_AFTER_MS);
        self.store.write_lightly(move |tx| {
            for (user, presence) in news {
                let before = tx.presence(&user)?;
                match (before.is_some_and(|before| is_as_before(&before, &presence)), presence.until_ms) {
                    (true, Some(until)) => tx.prolong_presence(&user, until)?,
                    (true, None) => {}
                    (false, _) => tx.set_presence(&user, &presence)?,
                }
            }
            Ok(())
        })?;
        Ok(strangers)
    }
}

fn is_as_before(before: &Presence, now: &Presence) -> bool {
    // Before: under a clock that was ahead.
    let apart = (now.last_active_ms - before.last_active_ms).abs();
    before.state == now.state
        && before.status == now.status
        && before.active == now.active
        && (now.active || apart < LAST_ACTIVE_GRAIN_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_000_000_000;

    #[test]
    fn what_was_heard_of_somebody_under_a_clock_that_was_ahead_is_replaced_by_what_is_heard_next() {
        let last_active_at = |last_active_ms| Presence {
            state: PresenceState::Unavailable,
            status: None,
            last_active_ms,
            active: false,
            until_ms: None,
        };
        let known = last_active_at(NOW);
        let is_news = |ms| !is_as_before(&known, &last_active_at(NOW + ms));
        assert_eq!([-3_600_000, -1_000, 0, 1_000, 3_600_000].map(is_news), [true, false, false, false, true]);
    }

    fn online() -> LocalPresence {
        let mut here = LocalPresence::new(None, NOW);
        assert!(here.take(PresenceInput::Poll("A".into(), PresenceState::Online, NOW + 60_000), NOW));
        assert_eq!(here.state, PresenceState::Online);
        here
    }

    #[test]
    fn who_does_nothing_is_unavailable_after_a_while_and_online_with_the_next_deed() {
        let mut here = online();
        let later = NOW + IDLE_AFTER_MS;
        here.take(PresenceInput::Poll("A".into(), PresenceState::Online, later + 60_000), later - 1);
        assert_eq!(here.state, PresenceState::Online);
        assert!(here.take(PresenceInput::Poll("A".into(), PresenceState::Online, later + 60_000), later));
        assert_eq!(here.state, PresenceState::Unavailable, "to ask for news is no deed");
        assert!(here.take(PresenceInput::Act, later + 1));
        assert_eq!(here.state, PresenceState::Online);
    }

    #[test]
    fn whose_clients_ask_no_more_is_offline_and_whose_client_comes_back_is_online() {
        let mut here = online();
        assert!(!here.take(PresenceInput::Wait, NOW + 59_000));
        assert!(here.take(PresenceInput::Wait, NOW + 60_000));
        assert_eq!((here.state, here.next()), (PresenceState::Offline, None));
        assert!(!here.take(PresenceInput::Act, NOW + 70_000), "a message alone brings nobody to a client");
        assert!(
            here.take(PresenceInput::Poll("A".into(), PresenceState::Online, NOW + 200_000), NOW + 100_000)
        );
        assert_eq!((here.state, here.last_active), (PresenceState::Online, NOW + 100_000));
    }

    fn poll(here: &mut LocalPresence, device: &str, state: PresenceState, now: Millis) -> PresenceState {
        here.take(PresenceInput::Poll(device.into(), state, now + 60_000), now);
        here.state
    }

    #[test]
    fn an_idle_client_does_not_outvote_one_that_is_in_use() {
        use PresenceState::{Online, Unavailable};
        let mut here = online();
        assert_eq!(poll(&mut here, "B", Unavailable, NOW + 30_000), Online);
        assert!(!here.take(PresenceInput::Wait, NOW + 59_000));
        assert_eq!(here.next(), Some(NOW + 60_000));
        assert!(here.take(PresenceInput::Wait, NOW + 60_000), "only the idle one is left");
        assert_eq!(here.state, Unavailable);
        assert_eq!(poll(&mut here, "A", Online, NOW + 62_000), Online);
    }

    #[test]
    fn what_a_client_says_ends_what_it_said_before() {
        use PresenceState::{Offline, Online, Unavailable};
        let mut here = online();
        assert_eq!(poll(&mut here, "A", Unavailable, NOW + 1), Unavailable);
        assert_eq!(poll(&mut here, "A", Online, NOW + 2), Online);
        assert_eq!(poll(&mut here, "B", Online, NOW + 3), Online);
        assert_eq!(poll(&mut here, "A", Unavailable, NOW + 4), Online, "the other is in use");
        assert_eq!(poll(&mut here, "B", Offline, NOW + 5), Unavailable);
        assert_eq!(poll(&mut here, "A", Offline, NOW + 6), Offline);
        assert_eq!(here.next(), None);
        // A bot that says so itself, and then asks without a word about it.
        here.take(PresenceInput::Set("A".into(), Online, None), NOW + 7);
        assert_eq!(poll(&mut here, "A", Offline, NOW + 8), Online);
    }

    #[test]
    fn clients_without_end_are_not_remembered_all() {
        let mut here = online();
        for n in 0..1000 {
            poll(&mut here, &n.to_string(), PresenceState::Online, NOW + n);
        }
        assert_eq!(here.clients.len(), CLIENTS_MAX);
    }

    #[test]
    fn what_somebody_says_of_themselves_holds_until_they_do_something() {
        let mut here = online();
        assert!(
            here.take(
                PresenceInput::Set("A".into(), PresenceState::Unavailable, Some("lunch".into())),
                NOW + 1
            )
        );
        assert!(!here.take(PresenceInput::Poll("A".into(), PresenceState::Online, NOW + 90_000), NOW + 2));
        assert_eq!(here.state, PresenceState::Unavailable);
        assert!(here.take(PresenceInput::Act, NOW + 3));
        assert_eq!((here.state, here.status.as_deref()), (PresenceState::Online, Some("lunch")));
    }
}
