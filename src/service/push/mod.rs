//! Push.
//!
//! - `rules`: the push rules that every account starts with.

pub mod rules;
