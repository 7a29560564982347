//! What happens: one `Homeserver`, and its verbs in one file a subject. A verb gathers (network), judges
//! (protocol) and commits (store), in that order. No HTTP types here.
//!
//! - `rooms/`, `membership/`, `events/`: what clients do in rooms; who is in them; what happens to each event.
//! - `incoming/`, `outgoing/`, `keys/`: `PUT /send`, both ends; signing keys and signatures.
//! - `appservices/`: bridges and bots, and the users that they speak for.
//! - `accounts/`, `devices/`, `ephemeral/`, `sync/`, `push/`: users, and what their clients see. `deactivation`: an account ends; `guests`: accounts
//!   that anybody gets.
//! - `media/`: files that users upload, and those of other servers.
//! - `admin/`: what who runs this server can do.
//! - `limits/`: how much work others may cause. `background/`: what is due, and who waits for news.
//! - `acme/`: the certificate of the HTTPS listeners, if an authority gives it.
//!
//! The verbs of a folder are reached through its handle (`hs.membership().knock(…)`), a copy of a reference to the [`Homeserver`].

pub mod accounts;
pub mod acme;
pub mod admin;
pub mod appservices;
pub mod background;
mod deactivation;
pub mod devices;
pub mod ephemeral;
pub mod events;
mod guests;
pub mod incoming;
pub mod keys;
pub mod limits;
pub mod media;
pub mod membership;
pub mod outgoing;
#[cfg(test)]
mod owed_tests;
pub mod push;
pub mod rooms;
pub mod sync;

use std::sync::Arc;

use arc_swap::ArcSwap;

use self::accounts::interactive_auth::UiaSessions;
use self::accounts::registration_nonces::RegistrationNonces;
use self::background::notifier::Notifier;
use self::background::scheduler::Scheduler;
use self::keys::ring::KeyRing;
use self::outgoing::Outgoing;
use crate::clock::Clock;
use crate::config::{Config, Data};
use crate::error::Result;
use crate::federation;
use crate::locks::KeyedLock;
use crate::metrics::{Ending, Endings, Metrics};
use crate::protocol::signatures::sign::SigningKey;
use crate::protocol::{RoomId, ServerName, UserId};
use crate::store::{Location, Options, Store};

/// A running homeserver without its listeners. Shared as `Arc<Homeserver>` by every thread.
pub struct Homeserver {
    /// Checked settings.
    pub config: Config,
    /// Bridges and bots.
    pub appservices: appservices::Appservices,
    /// The one clock.
    pub clock: Clock,
    /// What is counted, if anybody wants to know.
    pub metrics: Option<Arc<Metrics>>,
    /// Who waits for news.
    pub notifier: Arc<Notifier>,
    /// The database.
    pub store: Store,
    /// Requests to other servers.
    pub federation: Arc<federation::Client>,
    /// Delivery to push gateways.
    pub push_sender: push::sender::PushSender,
    /// Delivery to application services.
    pub service_sender: appservices::sender::ServiceSender,
    /// What application services are asked.
    pub service_queries: appservices::ask::ServiceQueries,
    /// Our signing keys, and other servers'.
    pub key_ring: KeyRing,
    /// Delivery to other servers.
    pub outgoing: Outgoing,
    /// Which events are being fetched from other servers, and whom it is no use to ask.
    pub fetch_limits: events::fetch::limits::FetchLimits,
    /// What may be asked of other servers for others than local users, or out of curiosity.
    pub request_permits: limits::request_permits::RequestPermits,
    /// Transactions of other servers that are being received.
    pub transaction_slots: incoming::transaction_slots::TransactionSlots,
    /// What other servers said of spaces.
    pub space_cache: rooms::space_cache::SpaceCache,
    /// Walks through spaces that go on with the next page.
    pub space_walks: rooms::space_walks::SpaceWalks,
    /// Which policy servers did not answer, and when they are asked again.
    pub policy_backoff: events::policy_server::PolicyBackoff,
    /// Which servers did not answer when they were asked something.
    pub silent_servers: limits::silent_servers::SilentServers,
    /// Who of us is at a client.
    pub local_presence: Arc<ephemeral::presence::LocalPresences>,
    /// Which members each device has been told of by `/sync`.
    pub told_members: sync::told_members::ToldMembers,
    /// How many large answers are made at a time.
    pub large_answers: limits::large_answers::LargeAnswers,
    /// What many who wait for news are told at once.
    pub room_tails: sync::light::RoomTails,
    /// What others say of rooms that are being joined.
    pub kept_edus: ephemeral::kept::KeptEdus,
    /// What was unread when it was last told.
    pub unread_memory: sync::unread::UnreadMemory,
    /// Interactive authentication that is under way.
    pub uia_sessions: UiaSessions,
    /// Nonces for registrations with the shared secret.
    pub registration_nonces: RegistrationNonces,
    /// Passwords that are being checked, and those that were wrong.
    pub passwords: accounts::passwords::Passwords,
    /// The timer: what is due in the database.
    pub scheduler: Scheduler,
    /// How much state resolution rooms and servers may cause.
    pub resolution_allowance: limits::resolution_allowance::ResolutionAllowance,
    /// States that nothing needs any more.
    pub spare_states: events::spare_states::SpareStates,
    /// Brings rooms up to date that are behind what came.
    pub catch_up_worker: events::late_extremities::CatchUpWorker,
    /// One handshake of one user in one room at a time.
    pub handshake_locks: membership::HandshakeLocks,
    /// Who waits for the answer to the first invite to a new room.
    pub first_invites: Arc<membership::FirstInvites>,
    /// How many one-time keys other servers took lately, and whose.
    pub claim_budget: limits::claim_budget::ClaimBudget,
    /// How many invites came lately, and whose.
    pub invite_budget: limits::invite_budget::InviteBudget,
    /// How many knocks were made lately, and whose.
    pub knock_budget: limits::knock_budget::KnockBudget,
    /// The files of media.
    pub media_files: media::files::MediaFiles,
    /// Uploads that are under way.
    pub upload_slots: media::upload::UploadSlots,
    /// Files of other servers that are being fetched, and what could not be.
    pub media_fetches: media::fetch::MediaFetches,
    /// Files that users are being given.
    pub media_giving: media::give::MediaGiving,
    /// Files that other servers are being given.
    pub media_serving: media::serve::MediaServing,
    /// Thumbnails that are being made, and those that could not be.
    pub thumbnails: media::thumbnails::Thumbnails,
    /// What is remembered of pages that were linked to.
    pub url_previews: media::url_preview::UrlPreviews,
    /// Whether a backup is being made.
    pub backup_slot: admin::backup::BackupSlot,
    /// The backups that are made by themselves.
    pub regular_backups: admin::backup::regular::RegularBackups,
    /// How far the files of media were gone through.
    pub media_sweep: media::sweep::MediaSweep,
    /// How far the notifications were.
    pub notification_sweep: push::sweep::NotificationSweep,
    /// How far the changes of devices are gone through.
    pub changes_sweep: devices::swept_changes::ChangesSweep,
    /// Whose turn it is to search.
    pub search_turns: limits::search_turns::SearchTurns,
    /// What sliding sync keeps in memory.
    pub sliding: sync::sliding::SlidingState,
    /// One import of a room at a time.
    pub join_locks: KeyedLock<RoomId>,
    /// What imports of rooms have left behind.
    pub import_leftovers: membership::join::import::ImportLeftovers,
    /// The certificate of the HTTPS listeners, where it is got from an authority.
    pub acme: acme::Acme,
}

/// The files of media, of one that has stopped if they were in memory.
fn media_files(config: &Config, stopped: Option<&Homeserver>) -> Result<media::files::MediaFiles> {
    match stopped.filter(|_| config.data == Data::Memory) {
        Some(stopped) => Ok(stopped.media_files.clone()),
        None => media::files::MediaFiles::open(config),
    }
}

/// Where the data is; that of one that has `stopped`, if it was in memory.
fn location(data: &Data, stopped: Option<&Homeserver>) -> Result<Location> {
    Ok(match (data, stopped) {
        (Data::Folder(folder), _) => Location::Folder(folder.clone()),
        (Data::Memory, None) => Location::Memory,
        (Data::Memory, Some(stopped)) => stopped.store.copy_to_memory()?,
    })
}

/// How other servers are asked.
fn client_settings(config: &Config, clock: &Clock) -> federation::ClientSettings {
    federation::ClientSettings {
        server_name: config.server_name.clone(),
        trust_ca: config.trust_ca.clone(),
        allow_private_addresses: config.allow_private_addresses,
        names: config.names.clone(),
        clock: clock.clone(),
    }
}

/// Who is told of every commit.
struct ToldOfCommits {
    notifier: Arc<Notifier>,
    outgoing: Outgoing,
    timer: Scheduler,
    behind: events::late_extremities::CatchUpWorker,
    pushes: push::sender::PushSender,
    services: appservices::sender::ServiceSender,
    clock: Clock,
}

impl ToldOfCommits {
    fn tell(&self, changes: &crate::store::Changes) {
        self.notifier.publish(changes.position, changes.all_users());
        self.notifier.publish_rooms(changes.position, &changes.rooms);
        if let Some(rest) = self.notifier.publish_gathered(changes.position, &changes.woken_soon) {
            self.timer.no_later_than(self.clock.now_ms() + rest);
        }
        self.outgoing.committed(changes);
        self.pushes.committed(changes);
        self.services.committed(changes);
        if changes.due.is_some() || !changes.forked.is_empty() {
            self.timer.committed(changes, self.clock.now_ms());
        }
        if !changes.behind.is_empty() {
            self.behind.committed(changes);
        }
    }
}

impl Homeserver {
    /// Opens the database and everything that hangs on it. Nothing runs in the background yet.
    pub fn open(config: Config, clock: Clock) -> Result<Arc<Self>> {
        Self::open_with(config, clock, federation::Client::new)
    }

    /// The same with another way to other servers.
    pub(crate) fn open_with(
        config: Config,
        clock: Clock,
        way_out: impl FnOnce(federation::ClientSettings, Arc<ArcSwap<SigningKey>>) -> Result<federation::Client>,
    ) -> Result<Arc<Self>> {
        Self::open_after(None, config, clock, way_out)
    }

    /// The same for one whose data is in memory, with the data of one that has stopped, as a disk would have kept it.
    pub(crate) fn open_after(
        stopped: Option<&Self>,
        config: Config,
        clock: Clock,
        way_out: impl FnOnce(federation::ClientSettings, Arc<ArcSwap<SigningKey>>) -> Result<federation::Client>,
    ) -> Result<Arc<Self>> {
        let notifier = Arc::new(Notifier::new());
        let (outgoing, scheduler) = (Outgoing::new(&config.server_name, &clock), Scheduler::default());
        let push_sender = push::sender::PushSender::new(&clock);
        let service_sender = appservices::sender::ServiceSender::new(&clock);
        let catch_up_worker = events::late_extremities::CatchUpWorker::default();
        let store = {
            let location = location(&config.data, stopped)?;
            let options = Options { durable: config.durable, may_rename: true, ..Options::default() };
            let told = ToldOfCommits {
                notifier: Arc::clone(&notifier),
                outgoing: outgoing.clone(),
                timer: scheduler.clone(),
                behind: catch_up_worker.clone(),
                pushes: push_sender.clone(),
                services: service_sender.clone(),
                clock: clock.clone(),
            };
            let on_commit = Box::new(move |changes: &crate::store::Changes| told.tell(changes));
            Store::open(location, &config.server_name, on_commit, &options)?
        };
        store.set_call_rules(config.call_rules);
        // The database's lock is the folder's.
        let media_files = media_files(&config, stopped)?;
        if let Data::Folder(folder) = &config.data {
            admin::backup::sweep(folder)?;
        }
        let key_ring = KeyRing::open(&store, &config.server_name, &clock)?;
        let federation =
            way_out(client_settings(&config, &clock), key_ring.signer())?.limited_to(config.peers.clone());
        let metrics = (!config.metrics.is_empty()).then(Arc::default);
        if metrics.is_some() {
            store.count_writes();
        }
        let homeserver = Arc::new(Self {
            metrics,
            appservices: appservices::Appservices::new(&config.appservices, &config.server_name)?,
            config,
            clock,
            notifier,
            store,
            local_presence: Arc::default(),
            told_members: sync::told_members::ToldMembers::default(),
            large_answers: limits::large_answers::LargeAnswers::default(),
            room_tails: sync::light::RoomTails::default(),
            kept_edus: ephemeral::kept::KeptEdus::default(),
            unread_memory: sync::unread::UnreadMemory::default(),
            uia_sessions: UiaSessions::default(),
            registration_nonces: RegistrationNonces::default(),
            passwords: accounts::passwords::Passwords::default(),
            federation: Arc::new(federation),
            push_sender,
            service_sender,
            service_queries: appservices::ask::ServiceQueries::default(),
            key_ring,
            outgoing,
            fetch_limits: events::fetch::limits::FetchLimits::default(),
            request_permits: limits::request_permits::RequestPermits::default(),
            transaction_slots: incoming::transaction_slots::TransactionSlots::default(),
            space_cache: rooms::space_cache::SpaceCache::default(),
            space_walks: rooms::space_walks::SpaceWalks::default(),
            policy_backoff: events::policy_server::PolicyBackoff::default(),
            silent_servers: limits::silent_servers::SilentServers::default(),
            scheduler,
            resolution_allowance: limits::resolution_allowance::ResolutionAllowance::default(),
            spare_states: events::spare_states::SpareStates::default(),
            catch_up_worker,
            handshake_locks: membership::HandshakeLocks::default(),
            first_invites: Arc::default(),
            claim_budget: limits::claim_budget::ClaimBudget::default(),
            invite_budget: limits::invite_budget::InviteBudget::default(),
            knock_budget: limits::knock_budget::KnockBudget::default(),
            media_files,
            upload_slots: media::upload::UploadSlots::default(),
            media_fetches: media::fetch::MediaFetches::default(),
            media_giving: media::give::MediaGiving::default(),
            media_serving: media::serve::MediaServing::default(),
            thumbnails: media::thumbnails::Thumbnails::default(),
            url_previews: media::url_preview::UrlPreviews::default(),
            backup_slot: admin::backup::BackupSlot::default(),
            regular_backups: admin::backup::regular::RegularBackups::default(),
            media_sweep: media::sweep::MediaSweep::default(),
            notification_sweep: push::sweep::NotificationSweep::default(),
            changes_sweep: devices::swept_changes::ChangesSweep::default(),
            search_turns: limits::search_turns::SearchTurns::default(),
            sliding: sync::sliding::SlidingState::default(),
            join_locks: KeyedLock::default(),
            import_leftovers: membership::join::import::ImportLeftovers::default(),
            acme: acme::Acme::default(),
        });
        homeserver.make_senders()?;
        Ok(homeserver)
    }

    /// Starts the threads that work without being asked: delivery to other servers and the scheduler.
    pub fn start_background(self: &Arc<Self>) -> Result<()> {
        self.outgoing.start(self)?;
        self.push_sender.start(self)?;
        self.service_sender.start(self)?;
        self.ephemeral().load_presence()?;
        self.scheduler.start(self)?;
        self.catch_up_worker.start(self)?;
        self.acme.start(self)?;
        self.regular_backups.start(self)
    }

    /// Ends those threads and every wait. What they had left to do is in the database.
    pub fn stop_background(&self) {
        self.notifier.stop();
        // Side by side: each may have to wait for threads that hang in a connection.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                self.scheduler.stop();
                self.regular_backups.stop();
            });
            scope.spawn(|| self.catch_up_worker.stop());
            scope.spawn(|| self.push_sender.stop());
            scope.spawn(|| self.service_sender.stop());
            scope.spawn(|| self.acme.stop());
            self.outgoing.stop();
            // Its requests are cut off by now.
            self.request_permits.stop();
        });
    }

    /// Tells whoever sleeps until a time of the wall clock that it has been moved (tests advance it).
    pub fn clock_moved(&self) {
        self.outgoing.clock_moved();
        self.push_sender.clock_moved();
        self.scheduler.wake();
        self.acme.wake();
    }

    /// Counts how something ended, if anybody wants to know.
    fn count_ending<T>(&self, of: fn(&Metrics) -> &Endings, result: &Result<T>) {
        if let Some(metrics) = &self.metrics {
            of(metrics).add(Ending::of(result));
        }
    }

    /// This server's name.
    pub fn server_name(&self) -> &ServerName {
        &self.config.server_name
    }

    /// Whether this user id belongs to this server (whether or not there is such an account).
    pub fn is_local(&self, user: &UserId) -> bool {
        user.server_name() == self.config.server_name.as_str()
    }
}
