//! The project's own order, which no compiler sees to.
//!
//! - `coverage`: each operation of the specification is served, or missing for a reason that is written down.
//! - `common_parts`: what the tests have in common is used by some of them.
//! - `mentions`: files that comments and documents name are there.
//! - `structure`: which layer may use what, and where SQL, output and the reading of JSON may be.
//! - `words`: words that were given up, and what stands instead.

mod common_parts;
mod coverage;
mod mentions;
mod structure;
mod words;
