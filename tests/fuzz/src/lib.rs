//! What hostile bytes may not do: the bodies of the fuzz targets. Each takes any bytes at all and panics if a promise
//! is broken; that it returns, soon and in little memory, is a promise too.
//!
//! They are used twice. `cargo fuzz` looks for bytes that break a promise, guided by coverage; it needs a nightly
//! compiler and `cargo install cargo-fuzz`, and is run from the project's top level, for example
//!
//! ```text
//! cargo +nightly fuzz run --fuzz-dir tests/fuzz pdu tests/fuzz/grown/pdu tests/fuzz/corpus/pdu -- \
//!     -dict=tests/fuzz/matrix.dict -rss_limit_mb=1024 -timeout=10 -max_total_time=600
//! ```
//!
//! (the folder `grown/pdu` has to exist; new inputs go there and not into the repository). `router` and `peer_answers`,
//! which have the whole server to carry, get several times as far without the address sanitizer: `-s none` before the name.
//!
//! And `tests/oracle/fuzz_replay.rs` runs the same bodies over the committed inputs and mutations of them in every run of the
//! tests. What the fuzzer finds is mended and its input committed as `corpus/<target>/find-…`.

mod body;
mod event_auth;
mod house;
mod http_connection;
mod json;
mod names;
mod pages;
mod pdu;
mod peer_answers;
mod peer_room;
mod pictures;
mod room;
mod router;
mod source;
mod state_resolution;
mod x_matrix;

pub use event_auth::event_auth;
pub use http_connection::http_connection;
pub use json::canonical_json;
pub use names::names;
pub use pages::pages;
pub use pdu::pdu;
pub use peer_answers::peer_answers;
pub use pictures::pictures;
pub use router::router;
pub use state_resolution::state_resolution;
pub use x_matrix::x_matrix;

/// What takes an input, and panics if something is wrong.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its folder of inputs.
pub const TARGETS: &[(&str, Target)] = &[
    ("http_connection", http_connection),
    ("pdu", pdu),
    ("event_auth", event_auth),
    ("state_resolution", state_resolution),
    ("x_matrix", x_matrix),
    ("canonical_json", canonical_json),
    ("names", names),
    ("router", router),
    ("peer_answers", peer_answers),
    ("pictures", pictures),
    ("pages", pages),
];
