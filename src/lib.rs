//! Doorstep: a Matrix homeserver in one small synchronous binary with SQLite inside.
//!
//! It is for people who run a tiny server of their own with one command, and for projects that want a real
//! homeserver inside their tests ([`TestServer`]). This page is the tour of the house; ten minutes should do.
//!
//! ```text
//!       clients, other servers                              other servers
//!             │ HTTP, HTTPS                                       ▲ HTTPS
//!  ┌──────────▼──────────────────────────────────┐   ┌───────────┴───────────┐
//!  │ http/     ROUTES: a line for each endpoint  │   │ federation/           │
//!  │           connection → handler → reply      │   │ signed requests       │
//!  └──────────┬──────────────────────────────────┘   └───────────▲───────────┘
//!             │ plain calls with typed arguments                 │
//!  ┌──────────▼──────────────────────────────────────────────────┴───────────┐
//!  │ service/  what happens: impl Homeserver { knock, invite, join, … }      │
//!  │           gather (network) → judge (protocol) → commit (store)          │
//!  └──────┬────────────────────────────────────────────┬─────────────────────┘
//!  ┌──────▼──────────────┐                  ┌──────────▼──────────────────────┐
//!  │ protocol/  pure     │                  │ store/  the only SQL            │
//!  │ no I/O, no clock    │                  │ one writer, several readers     │
//!  └─────────────────────┘                  └──────────┬──────────────────────┘
//!                                                      │ after each commit
//!        "position 815; @alice and !room moved": wakes waiting /sync, the sender, the scheduler
//! ```
//!
//! # Five ideas
//!
//! 1. **Both ends of a handshake live in one file.** `service/membership/knock.rs` has a local user who knocks elsewhere
//!    and the stranger who knocks here, with one guard and one check of signed events for all of them.
//! 2. **A membership in a room that we are not in is one row with one state machine**,
//!    [`protocol::remote_membership`]. A knock can be withdrawn, refused, answered by an invite and survive a crash
//!    because each of these is a step of that machine.
//! 3. **Gather, judge, commit.** First the network, holding nothing; then pure judgement; then one transaction.
//! 4. **One stream.** The single writer numbers every visible change in commit order, so a `/sync` token is one
//!    integer.
//! 5. **Wakes are hints, rows are truth.** Any wake may be lost and costs only time: what is owed is in SQLite.
//!
//! # Against the rest of the world
//!
//! Everything that comes in was written by somebody who may be lying, and for each kind of lie there is one mechanism:
//!
//! - *It is not theirs.* [`protocol::signatures::verify`]: only a verified signature makes evidence, only evidence for everyone
//!   who has to sign makes a [`protocol::VerifiedPdu`], and only that gets into a room, in the very form that was judged. It
//!   says whether its keys are certain, or rest on the word of the server that shows us a room (`store/rooms/vouched_events.rs`).
//! - *It weighs more than its bytes.* `protocol/json/parse.rs`: the one place where strangers' JSON becomes a tree, with a
//!   budget by its length. Everything else stays text until somebody needs it. What is built for all at once:
//!   `http/transport/large_bodies.rs`, a part of what `src/machine.rs` says that there is.
//! - *There is too much of it.* `src/store/bounds.rs`: who fills each table, with whose share, and what cleans it. Knocks have
//!   their budget in `service/limits/knock_budget.rs`, invites theirs in `service/membership/invite_place.rs`, passwords
//!   in `service/accounts/passwords.rs`; [`protocol::limits::fair_share`] says how a bound is shared out between servers.
//! - *It keeps us busy.* The writer gets work in portions, looked up and judged before (`store/engine/writer.rs` logs by name what
//!   takes long), and what makes us ask elsewhere has slots, of which each asker has a share: `service/limits/request_permits.rs` for
//!   what we do for others or out of curiosity, `service/keys/attempts.rs` for keys, `service/media/fetch.rs` for files, all
//!   made of `service/limits/fair_slots.rs`. Of all requests at work, and of those that wait for news, each user, address and
//!   server has a share: `http/transport/bounds.rs`, `http/transport/waits.rs`.
//! - *It comes at the same moment as something else.* `service/membership/mod.rs`: who waits for whom.
//!
//! # Where to look
//!
//! The same subjects on every floor: what `http/client_server/rooms/` parses, `service/rooms/` does and `store/rooms/` keeps.
//! The verbs of a subject are reached through its handle: `hs.membership().knock(…)`, `hs.rooms().messages(…)`. Each folder's
//! `mod.rs` has a line a file.
//!
//! | what | where |
//! |---|---|
//! | every endpoint, its authentication and limits | `ROUTES` in `src/http/routes.rs` |
//! | every table, and why | `schema.sql`; who fills it and what bounds that: `src/store/bounds.rs` |
//! | every setting | [`config::SETTINGS`] |
//! | how it is started | [`launch`]; the commands of the binary: `src/commands/`; servers for tests in other languages: `src/commands/fixture/` |
//! | numbers for who watches it | `src/metrics/`; their page: `http/metrics.rs` |
//! | whether others find it, and it is well | [`check`]; what is looked at: `federation/inspect.rs`, `store/engine/inspect.rs` |
//! | the page at `/` for people in a browser, and those that clients open | `http/page/`: written by plain functions; who stands before it: `http/page/visit.rs` |
//! | what a request passes first | `http/transport/`: sockets, TLS, framing, slots; it knows no endpoint |
//! | the certificate that HTTPS is served with, got by itself (ACME) | `service/acme/`, `federation/acme.rs`; replaced under those who serve it: `src/served_certificate.rs` |
//! | who asks | `http/auth.rs`; a password, a token, interactive authentication: `service/accounts/` |
//! | bridges and bots | their registration and whom they speak for: [`protocol::appservice`]; who one acts as: `service/appservices/` |
//! | a knock, an invite, a join, a leave | `service/membership/`, a file each, both ends |
//! | a room that is replaced by another | `service/rooms/upgrade/`; what follows its members: `service/membership/replaced_rooms.rs` |
//! | what an account may not: locked, suspended, a guest | `check_standing` in `src/http/route.rs`, `service/accounts/moderation.rs`, `service/guests.rs` |
//! | the state of a membership in a room that we are not in | [`protocol::remote_membership`] |
//! | the authorisation rules, by their numbers | [`protocol::event_auth`]; state resolution: [`protocol::state_res`] |
//! | signatures | [`protocol::signatures::verify`], `service/keys/` |
//! | the checks on receipt, in order | the head of `service/events/mod.rs` |
//! | what arrives by `PUT /send` | `service/incoming/` |
//! | the server ACL | read and asked: `service/events/server_acl.rs`; matched: [`protocol::rooms::server_acl`] |
//! | history fetched, and given | `service/events/fetch/backfill.rs`, `service/events/serve/` |
//! | what leaves by it | `service/outgoing/`: a cursor for each server |
//! | `/sync` | `service/sync/`; who waits for news: `service/background/notifier.rs` |
//! | threads, edits, reactions: what relates to an event | [`protocol::rooms::relations`], `store/rooms/relations.rs`; told with it: `service/rooms/bundles.rs` |
//! | threads that users want to hear of (MSC4306) | `service/rooms/thread_subscriptions.rs`, `store/rooms/thread_subscriptions.rs` |
//! | push rules, and what they make of an event | [`protocol::push_rules`]; asked in the transaction that accepts it: `store/push/evaluate.rs` |
//! | what is unread | `store/push/unread.rs`: a sum of rows; what was told last is remembered: `service/sync/unread.rs` |
//! | sliding sync, by the numbers of its rules | `service/sync/sliding/` |
//! | events by their words, users by their names | `service/rooms/search.rs`, `service/rooms/user_directory.rs`; how text is cut: `protocol/search_text.rs` |
//! | what is sent later | `service/rooms/delayed_events.rs` |
//! | of what users are notified, where they have it sent | `service/push/`, `store/push/` |
//! | who is joined because their knock was accepted | `service/membership/open_door.rs` |
//! | what is due by the clock | `service/background/scheduler.rs` |
//! | what others may make us do | `service/limits/`, `service/accounts/passwords.rs`, `service/membership/invite_place.rs` |
//! | a backup, and a server that is made of one | `service/admin/backup/`; the copy of the database: `store/engine/copy.rs`; what is dropped: `store/engine/restored.rs` |
//! | what a commit is | `store/engine/writer.rs`; the write-ahead log: `store/engine/checkpoint.rs` |
//! | an event's bytes | `protocol/json/object.rs`: what is hashed, signed, redacted and stored is cut out of its canonical text |
//! | end-to-end keys, cross-signing, key backup | `service/devices/`; how they are read and checked: [`protocol::keys::device`], [`protocol::keys::cross_signing`] (`keys` are servers' signing keys) |
//! | what is sorted, or collected in order, and is short | `src/order.rs`: the library's own way is compiled anew for each place |
//! | files that users upload, and those of other servers | `service/media/`; on the disk: `service/media/files.rs`; how servers give each other some: [`protocol::media::multipart`]; bodies that go to the disk as they come: `http/transport/body.rs` |
//! | a server that a test holds in its hand | [`testing`], and `tests/common/`; what goes wrong on purpose: `testing/faults.rs` |
//!
//! # A message goes out
//!
//! 1. `PUT /rooms/{roomId}/send/…`: `http/transport/` reads the head, `http/router.rs` finds the line of the table, who asks and
//!    how much body they may send; the handler in `http/client_server/rooms/events_and_state.rs` calls `hs.rooms().send_message(…)`.
//! 2. `service/rooms/client_drafts.rs` says what a client may not send by any verb, and `service/rooms/send.rs` hands the draft to
//!    `service/events/build.rs`.
//! 3. One closure on the writer thread: a repeat of the transaction id gets the first answer; else the event is placed behind the
//!    room's forward extremities, authorised, hashed, signed and appended. Nothing is told before the commit is on disk.
//!    What needs a policy server's signature or a large resolution is prepared before, on a snapshot.
//! 4. After the commit, on a thread of its own (`store/engine/commit_feed.rs`): waiting `/sync` requests wake, and the queues of
//!    the servers in the room. The client has its event id by then.
//! 5. `service/outgoing/` reads from each server's cursor on and sends; the cursor moves with the answer.
//!
//! # An event comes in
//!
//! 1. `PUT /_matrix/federation/v1/send/{txnId}`: `http/auth.rs` verifies the request's signature; `service/incoming/transaction.rs`
//!    takes a slot, finds a repeat by its answer, sorts the events by room and asks each room's server ACL.
//! 2. `service/keys/verify.rs` checks format, signatures and hash: each PDU becomes a [`protocol::VerifiedPdu`] (redacted if its
//!    hash is wrong), is dropped, or is pending for want of a key. Then policy servers are asked for signatures.
//! 3. What it rests on and we lack is fetched (`service/events/fetch/`), for a while; after that it is pending, on disk, and the
//!    sender is answered.
//! 4. `service/events/authorise.rs` judges it by its auth events, by the state before it and by the room's current state; the
//!    states of several extremities are resolved (`service/events/resolve.rs`), within the room's allowance.
//! 5. `service/events/accept.rs` appends it in one transaction with what it changes: current state, memberships, forward
//!    extremities, gaps. The head of `service/events/mod.rs` says what becomes of what fails, check by check.
//! 6. After the commit the same wakes as above.

pub(crate) mod address;
pub mod allocator;
pub(crate) mod backoff;
pub(crate) mod bounded;
pub mod check;
pub mod clock;
pub mod config;
pub(crate) mod durable;
pub mod error;
pub(crate) mod federation;
pub(crate) mod http;
pub mod launch;
pub(crate) mod locks;
pub mod log_tail;
pub(crate) mod machine;
pub(crate) mod metrics;
pub(crate) mod order;
pub mod protocol;
pub mod random;
pub(crate) mod served_certificate;
pub(crate) mod service;
pub(crate) mod store;
pub mod testing;
pub(crate) mod yaml;

/// What the tests, the benchmark and the binary of this house name beside what is public. No promise to anybody else.
#[doc(hidden)]
pub mod internals {
    pub use crate::federation::{
        AnswerScript, CallError, Client, ClientSettings, Detour, HOPS, Names, Neighbours, PeerRequest,
        ScriptedRequest,
    };
    pub use crate::http::router::Router;
    pub use crate::http::routes::ROUTES;
    pub use crate::http::{
        Admission, BodyUse, Call, Certificate, ConnectionLimits, Handler, ListenSpec, Outcome, Poll, Quota,
        Reply, Request, Route, Server, Service, ask, ask_for_stream,
    };
    pub use crate::locks::lock;
    pub use crate::service::accounts::NewAccount;
    pub use crate::service::accounts::moderation::Administrator;
    pub use crate::service::accounts::sessions::NewLogin;
    pub use crate::service::admin::backup::restore::{restore, restore_from};
    pub use crate::service::admin::backup::written::write_file;
    pub use crate::service::admin::knocks::{KnockAnswerer, KnockFilter};
    pub use crate::service::admin::room_deletion::DeletionOrder;
    pub use crate::service::devices::cross_signing::{NewSigningKeys, UploadedSignatures};
    pub use crate::service::devices::key_backup::NewKeyBackup;
    pub use crate::service::events::draft::Draft;
    pub use crate::service::media::thumbnail;
    pub use crate::service::media::url_preview::read_page;
    pub use crate::service::membership::join::import::ImportedRoom;
    pub use crate::service::rooms::create::CreateRoom;
    pub use crate::store::rooms::deletions::{DeletionStage, RoomDeletion};
    pub use crate::store::rooms::events::TimelineRange;
    pub use crate::store::rooms::pending_events::NewPendingEvent;
    pub use crate::store::rooms::room_import::StagedEvents;
    pub use crate::store::servers::server_keys::{StatementSource, StoredKey};
    pub use crate::store::{Db, Place, Status, Store, StoredEvent};
    pub use crate::yaml::parse as parse_yaml;
}

pub use error::{ErrCode, Error, Result};
pub use service::Homeserver;
pub use testing::TestServer;
