//! `PUT /send`: what other servers send us.

pub mod edus;
pub(super) mod pending;
pub(in crate::service) mod remote_member_events;
pub mod transaction;
pub mod transaction_slots;
