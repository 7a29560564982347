//! Rooms as their members see them: creating, sending, reading, finding.
//!
//! - `create/`: `POST /createRoom`, from what is asked for to the events that make the room.
//! - `upgrade/`: a room replaced by one of another version, and the members' own settings that follow it.
//! - `send`: messages, state and redactions. `messages`: one event, what surrounds it, the state, the
//!   members. `history`: a page of events, fetched where some are lacking.
//! - `client_drafts`: what clients may not send, by whichever door it comes.
//! - `view`: what one user may see of a room. `timeline`: which events a page has, from one `pagination_token` to another. `client_format`: an event as
//!   clients get it.
//! - `relations`: the events that relate to one; `threads`: those of a room; `thread_subscriptions`: which of these a user wants to
//!   hear of; `bundles`: what is told of relations with an event.
//! - `notifications`: what users were notified of, page by page.
//! - `timestamp_to_event`: the event nearest to a time. `search`: events by the words in them, with
//!   `search_format` and `search_token`, among `searched_rooms`.
//! - `user_directory`: users by name, and the rooms that two have in common. `delayed_events`: what is sent later.
//! - `preview`: a room in one answer, for who looks in.
//! - `reports`: what users find inappropriate.
//! - `directory`: aliases and published rooms. `space_room` and `summary`: one room as others see it.
//!   `hierarchy`: spaces, with `space_walks`, which go on page by page, and `space_cache`: what other servers say of rooms.

pub mod bundles;
pub mod client_drafts;
pub mod client_format;
pub mod create;
pub mod delayed_events;
pub mod directory;
pub mod hierarchy;
pub mod history;
pub mod messages;
pub mod notifications;
pub mod pagination_token;
mod preview;
#[cfg(test)]
mod relation_tests;
pub mod relations;
pub mod reports;
pub mod search;
pub mod search_format;
mod search_token;
mod searched_rooms;
pub mod send;
pub mod space_cache;
pub mod space_room;
pub mod space_walks;
pub mod summary;
pub mod thread_subscriptions;
pub mod threads;
pub mod timeline;
pub mod timestamp_to_event;
pub mod upgrade;
pub mod user_directory;
pub mod view;

use std::ops::Deref;

use crate::service::Homeserver;

/// Rooms as their members see them: creating, sending, reading, finding.
#[derive(Clone, Copy)]
pub struct Rooms<'h>(&'h Homeserver);

impl Deref for Rooms<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// Rooms as their members see them: creating, sending, reading, finding.
    pub fn rooms(&self) -> Rooms<'_> {
        Rooms(self)
    }
}
