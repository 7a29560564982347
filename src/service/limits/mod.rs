//! How much work others may cause, a file a kind:
//!
//! - `claim_budget.rs`: how many one-time keys other servers may take of a device.
//! - `fair_slots.rs`: slots for what takes long because somebody else has to answer, of which each asker has a share.
//! - `invite_budget.rs`: how many invites a server may send a user in an hour.
//! - `knock_budget.rs`: how many knocks rooms and users may be made to bear.
//! - `large_answers.rs`: how many answers are made and written at a time that may be large.
//! - `request_permits.rs`: permits to ask other servers for others than local users, or out of curiosity; made of such
//!   slots.
//! - `search_turns.rs`: who may search, one after the other.
//! - `silent_servers.rs`: who did not answer lately, and is not waited for again and again.
//! - `resolution_allowance.rs`: how much state resolution the events of a room, and those of a server, may cause.
//!
//! Elsewhere: invites that wait (`membership/invite_place.rs`), passwords (`accounts/passwords.rs`), transactions
//! (`incoming/transaction_slots.rs`).

pub mod claim_budget;
pub(super) mod fair_slots;
pub mod invite_budget;
pub mod knock_budget;
pub mod large_answers;
pub mod request_permits;
pub mod resolution_allowance;
pub mod search_turns;
pub mod silent_servers;
