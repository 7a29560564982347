//! Doorstep's protocol beside another's, and beside its own promises: generated cases, the same in every run.
//!
//! - `differential_events`: canonical JSON, redaction, hashes and signatures against ruma.
//! - `differential_rooms`: authorisation and state resolution of whole rooms against ruma.
//! - `fuzz_replay`: the fuzz targets over the committed inputs and mutations of them.
//!
//! Test vectors are a program of their own (`tests/vectors`), which prints a table.

#[path = "../common/mod.rs"]
pub mod common;

mod differential_events;
mod differential_rooms;
mod fuzz_replay;
