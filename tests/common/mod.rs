//! What the tests have in common: the other servers, rooms and processes that a scenario needs. A scenario of one real
//! server and a scripted one is a few lines:
//!
//! ```ignore
//! #[test]
//! fn a_message_of_another_server_is_shown_once_it_comes() {
//!     // Ours, with alice on it; a peer that does what it is told; a room of the peer's that alice has joined.
//!     let mut scene = Scene::new("11");
//!     let message = scene.message("good morning");
//!     assert_eq!(scene.send("txn1", &[&message])[message.event_id().as_str()], json!({}));
//!     assert_eq!(scene.status(&message), Some(Status::Accepted));
//!     assert_eq!(scene.alice.next_message(scene.room.id.as_str()), "good morning");
//! }
//! ```
//!
//! - [`doorstep::TestServer`], [`doorstep::testing::TestUser`]: a real server within the test, and a client of it.
//!   `TestServer::pair()` are two that know each other: what two real servers do needs no more than that.
//! - [`peer::Peer`]: another server that answers exactly as a test says (`answer_json`), tells what it was asked
//!   (`asked`, `wait_for`), and signs whatever it likes. [`peer::FakeRoom`]: a room of its own.
//! - [`scene::Scene`]: all of these at once, for what servers tell each other about a room.
//! - [`ProcessServer`]: the real binary in a process of its own, to be killed and started again; [`invariants`] then looks
//!   whether its database makes sense.
//! - [`gateway::Gateway`]: a push gateway that answers exactly as a test says.
//! - [`bridge::Bridge`]: an application service that answers exactly as a test says.
//! - [`crowd`], [`wide_room`]: rooms with thousands of members and servers.
//! - [`media`]: uploads and downloads, byte by byte. [`web_server`]: pages of a web server that knows nothing of Matrix.
//! - [`browser`]: cookies, forms and redirects of the page.
//! - [`client`]: requests of the client-server API that may be refused. [`wait`]: waiting without sleeping for luck.
//!   [`random`]: chance that is the same every time.
//!
//! Each test program declares this module as `pub`, since none of them uses all of it; `tidy` sees to it that each part is
//! used by one.

pub mod bridge;
pub mod browser;
pub mod client;
pub mod crowd;
pub mod gateway;
pub mod invariants;
pub mod media;
pub mod peer;
pub mod process;
pub mod random;
pub mod scene;
pub mod wait;
pub mod web_server;
pub mod wide_room;

pub use process::ProcessServer;
