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

use std::fs;
use std::path::{Path, PathBuf};

/// The Rust files under a folder, at any depth, beside those that are there already.
fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}
