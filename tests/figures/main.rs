//! What things cost. Rows and bytes do not depend on the machine and are asserted; times are printed by tests that are
//! ignored by default, one module at a time, for example
//! `cargo test --release --test figures store_figures -- --ignored --nocapture`.
//!
//! - `backup_figures`: what a backup costs those who send meanwhile.
//! - `many_servers`: what a hundred servers of a test cost.
//! - `protocol_speed`: how long the pure parts take.
//! - `search_figures`: what search costs.
//! - `store_figures`: the write path, and large rooms.
//! - `write_costs`: what writing costs in rows.

#[path = "../common/mod.rs"]
pub mod common;

mod backup_figures;
mod many_servers;
mod protocol_speed;
mod search_figures;
mod store_figures;
mod write_costs;
