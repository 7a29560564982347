//! Events of rooms: made here, received, authorised, resolved, fetched and served.
//!
//! # The checks on receipt
//!
//! What another server sends goes through these checks in this order. They are the seven of the server-server API,
//! "Checks performed on receipt of a PDU", with three that this server needs beside them. The numbers 1 to 10 are this
//! list's; comments in the code say the specification's ("Check 4").
//!
//! 1. *It names a room that this server is in*, otherwise it is refused; it is dropped if it names none. Of a remote
//!    room, `incoming/remote_member_events.rs` hears what was done to a local user, and `incoming/pending.rs` keeps
//!    what comes while one is joining.
//! 2. *The room's server ACL lets the sending server take part*, otherwise it is refused (`server_acl.rs`).
//! 3. Check 1 of the specification: *is a valid event*, otherwise it is **dropped** (`protocol/pdu.rs`).
//! 4. Check 2: *passes signature checks*, otherwise it is **dropped**; if nobody could be asked for a key, it is
//!    **pending** until somebody can (`keys/verify.rs`, `protocol/signatures/verify.rs`).
//! 5. Check 3: *passes hash checks*, otherwise it is **redacted** and goes on in that form (`protocol/signatures/verify.rs`).
//!    Then a knock, or its withdrawal, of a server that is not in the room is counted, and **refused** beyond the budget
//!    (`limits/knock_budget.rs`).
//! 6. *What it refers to is here*: its auth events, and its previous events or the state before it. Otherwise they are
//!    fetched (`fetch/`), and if they are not to be had it is **pending** (`incoming/pending.rs`).
//!    What has the id of another event, is a second create event, or follows nothing is **refused** (`authorise.rs`).
//! 7. Check 4: *passes the authorisation rules based on its auth events*, otherwise it is **rejected**
//!    (`authorise.rs`).
//! 8. Check 5: *… based on the state before it*, otherwise it is **rejected** (`authorise.rs`; the state:
//!    `resolve.rs`); unless that state is nothing but what another server says, or lacks the sender since that one came in
//!    by what could not be had.
//! 9. Check 6: *… based on the current state of the room*, otherwise it is **soft-failed** (`authorise.rs`); not
//!    asked of history, which was allowed when it happened. Where others say what was before the event, that and the current
//!    state decide together.
//! 10. Check 7: *is validated by the policy server, if the room is using one*, otherwise it is **soft-failed**
//!     (`policy_server.rs`, which has asked for a missing signature before check 6).
//!
//! *Refused*: nothing is stored, and the sender reads why in the answer to its transaction. *Dropped*: the same, and
//! one that has no event id is passed over in silence. *Rejected*: stored as such, shown to nobody, part of no state;
//! not even stored if the sender's server is not in the room. *Soft-failed*: stored, but shown to no client and no
//! forward extremity, so that no event of this server follows it. *Pending*: on disk, and tried again. An event that
//! would take more state resolution than its room's allowance has left (`limits/resolution_allowance.rs`) is stored as
//! a late extremity, which the current state takes up later (`late_extremities.rs`), or is pending.
//!
//! # The road of one received event
//!
//! `PUT /send` arrives in `incoming/transaction.rs`, which sorts its events by room and takes checks 1 to 5 with all
//! events of a room at once. `policy_server.rs` gathers the signatures that are missing. `accept.rs` then takes the
//! events in their order into as few commits as possible: for each, on the writer's thread, `authorise.rs` takes
//! checks 6 to 10, finds the event's place among the forward extremities (`extremities.rs`) and what becomes of the
//! current state (`resolve.rs`), and the decision is appended by the store. One that needs a larger resolution is
//! authorised beforehand, by a snapshot, and one that needs other events goes through `fetch/` first. What is left
//! goes to `incoming/pending.rs`; then the sender has its answer. Where forks pile up because no local user speaks,
//! `merge_forks.rs` joins them.
//!
//! # The files
//!
//! - `build.rs`: an event of a local user, from a draft (`draft.rs`) to a signed event in its room. `merge_forks.rs`: one that
//!   nobody sees. `entry.rs`: who comes into no room at all.
//! - `accept.rs`: events of other servers, and events that were signed before, into their room.
//! - `authorise.rs`, with `state_view.rs`, `extremities.rs`, `resolve.rs`: the decision on an event; they write
//!   nothing.
//! - `late_extremities.rs`: bringing the current state up to date with what came while there was no time.
//! - `newcomers.rs`: what a server is told that has just come into a room.
//! - `policy_server.rs`, `server_acl.rs`, `power_levels.rs`: what a room's settings say of events and servers.
//! - `spare_states.rs`: states that nothing needs any more.
//! - `fetch/`: events that this server lacks. `serve/`: what other servers may read. `nearest_event.rs`: the event
//!   nearest to a time, for both. `erasure.rs`: what erased users sent, and to whom it is shown.

pub mod accept;
pub(super) mod authorise;
pub mod build;
pub mod draft;
pub mod entry;
pub(super) mod erasure;
pub(super) mod extremities;
pub mod fetch;
pub mod late_extremities;
pub(super) mod merge_forks;
pub mod nearest_event;
mod newcomers;
pub mod policy_server;
pub(super) mod power_levels;
pub(super) mod resolve;
pub mod serve;
pub(super) mod server_acl;
pub mod spare_states;
pub(super) mod state_view;
#[cfg(test)]
pub(super) mod tests;

use std::ops::Deref;

use crate::service::Homeserver;

/// Events of rooms: made here, received, authorised, fetched and served.
#[derive(Clone, Copy)]
pub struct Events<'h>(&'h Homeserver);

impl Deref for Events<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// Events of rooms: made here, received, authorised, fetched and served.
    pub fn events(&self) -> Events<'_> {
        Events(self)
    }
}
