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
//! 1. **Both ends of a handshake live in one file.** `service/membership/knock.rs` has our user who knocks elsewhere
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
//! - *It is not theirs.* [`protocol::verify`]: only a verified signature makes evidence, only evidence for everyone who has
//!   to sign makes a [`protocol::VerifiedPdu`], and only that gets into a room, in the very form that was judged.
//! - *It weighs more than its bytes.* `protocol/json/parse.rs`: the one place where strangers' JSON becomes a tree, with a
//!   budget by its length. Everything else stays text until somebody needs it.
//! - *There is too much of it.* [`store::bounds`]: who fills each table, with whose share, and what cleans it. Knocks have
//!   their budget in `service/membership/knock_budget.rs`, passwords theirs in `service/accounts/passwords.rs`.
//! - *It keeps us busy.* The writer gets work in portions, looked up and judged before (`store/engine/writer.rs` logs by name what
//!   takes long), and what makes us ask elsewhere has slots, of which each asker has a share: `service/limits/request_permits.rs` for
//!   what we do for others or out of curiosity, `service/keys/attempts.rs` for keys, both made of `service/limits/fair_slots.rs`.
//! - *It comes at the same moment as something else.* `service/membership/mod.rs`: who waits for whom.
//!
//! # Where to look
//!
//! - A request's way in: [`http::transport::server`] accepts, `http/transport/connection.rs` reads, [`http::router`] finds the line of
//!   [`http::routes::ROUTES`] and checks who asks, a handler in `http/client_server` or `http/server_server` calls
//!   one verb of the [`Homeserver`].
//! - An event made here: `service/events/build.rs`. An event received: `service/events/accept.rs`, a function for each of the
//!   specification's checks; one that cannot be judged yet: `service/incoming/pending.rs`. What a room
//!   that we are not in says of one of us: `service/incoming/remote_member_events.rs`. Where two handshakes of one user meet:
//!   `service/membership/mod.rs` tells who waits for whom. Where several branches meet:
//!   [`protocol::state_res`]. A whole room that one of us joins: `service/membership/join/receive.rs`. An event that rests on others
//!   that we lack: `service/events/fetch/mod.rs`, `service/events/fetch/auth_chains.rs`.
//! - A new room's invites, which may have to wait for other servers: `service/membership/owed_invites.rs`.
//! - What strangers may ask of our users and rooms: `service/membership/knock_budget.rs` and [`protocol::knock_budget`] for
//!   knocks, `service/membership/invite.rs` for invites; [`protocol::fair_share`] is how nobody keeps others out.
//! - An event on its way out: `service/sender/`, a cursor for each server. History that is fetched when a client reads
//!   back so far: `service/events/fetch/backfill.rs`.
//! - What somebody has to prove first, and the answer that a client lost: `service/accounts/interactive_auth.rs`. How often a
//!   password may be tried: `service/accounts/passwords.rs`. Whose address counts: [`address`]. Who is shown what an erased user
//!   said: `service/events/erasure.rs`.
//! - What is no part of a room's history (typing, receipts, presence, messages to devices, device lists): a file each in
//!   `service/`, and `service/incoming/edus.rs` for what they share.
//! - Whatever clients and other servers send or answer becomes values in one place, `protocol/json/parse.rs`, which weighs them
//!   while they are built; what nobody looks into stays text.
//! - An event's bytes: `protocol/json/object.rs`. What is hashed, signed, redacted and stored is cut out of its canonical
//!   text; no tree is built.
//! - The data: `schema.sql`, which explains each table; `store/bounds.rs` for who fills it, what bounds it and what cleans
//!   it; `store/engine/writer.rs` for what a commit is, and `store/engine/checkpoint.rs`
//!   for what happens to the write-ahead log.
//! - How it is started: [`launch`], from [`config`].

pub mod address;
pub mod allocator;
pub mod backoff;
pub mod bounded;
pub mod clock;
pub mod config;
pub mod error;
pub mod federation;
pub mod http;
pub mod launch;
pub mod locks;
pub mod protocol;
pub mod random;
pub mod service;
pub mod store;
pub mod testing;

pub use error::{ErrCode, Error, Result};
pub use service::Homeserver;
pub use testing::TestServer;
