//! Push rules.

pub mod rules;
