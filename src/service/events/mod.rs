//! Events of rooms: made here, received, authorised, resolved, fetched and served.

pub mod accept;
pub(super) mod authorise;
pub mod build;
pub(super) mod extremities;
pub mod fetch;
pub mod late_extremities;
pub(super) mod merge_forks;
pub mod policy_server;
pub mod serve;
pub(super) mod server_acl;
#[cfg(test)]
pub(super) mod tests;
