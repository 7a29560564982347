//! Rooms: who is in them, what is said in them, and how they are found.

pub mod delayed_events;
pub mod directory;
pub mod events_and_state;
pub mod membership;
pub mod messages;
pub mod relations;
pub mod reports;
pub mod search;
pub mod spaces;
pub mod thread_subscriptions;
pub mod user_directory;
