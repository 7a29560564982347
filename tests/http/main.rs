//! What connections and requests may cost us, whatever is sent on them: whoever is honest is served, and memory, threads
//! and time stay bounded.
//!
//! - `acme`: certificates from an authority; `authority`: one that a test holds in its hand.
//! - `crowds`: servers with hardly any room for connections still let each other in.
//! - `fallback`: pages that clients open for what they cannot do themselves.
//! - `hostile`: hostile bytes, slowness and floods on the connection layer alone.
//! - `tls`: HTTPS listeners, certificates that change, strangers who speak no TLS.
//! - `page`: the page at `/` before those who mean no good.
//! - `metrics`: numbers for who watches a server.
//! - `strangers`: those who make us ask servers that never answer.
//! - `text_in_text`: JSON text within JSON text, as deep as fits.
//! - `weight`: the memory of a server of its own process under the worst requests and answers.

#[path = "../common/mod.rs"]
pub mod common;

mod acme;
mod authority;
mod crowds;
mod fallback;
mod hostile;
mod metrics;
mod page;
mod strangers;
mod text_in_text;
mod tls;
mod weight;
