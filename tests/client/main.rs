//! What clients see of one server (or of two, where the other is only there to be seen): the client-server API over a
//! real socket.
//!
//! - `accounts`: registration, login, sessions, devices, deactivation.
//! - `admin_accounts`: accounts and registration tokens, as administrators and their tools see them; `admin_reports`: what users
//!   have reported; `admin_tools`: what else tools ask.
//! - `appservice_delivery`: what application services are sent, and when; `appservice_bounds`: how much at once;
//!   `appservice_devices`: what of their users' devices.
//! - `appservices`: bridges and bots, and the users that they speak for.
//! - `client_details`: what is easy to get nearly right.
//! - `client_rooms`: rooms made in every way, spoken in, read back, named; the profiles and data around them.
//! - `keys`, `cross_signing`: end-to-end keys of devices and of users.
//! - `delayed_events`: what is sent later, and what else calls ask for.
//! - `dehydrated`: devices that nobody is logged in on.
//! - `erasure`: users who asked to be erased, and who may still read what they wrote.
//! - `guests`: accounts without a name or a password, and rooms that are looked into.
//! - `key_backup`: room keys that clients keep here, encrypted, and how they get them back.
//! - `large_answers`: pages that end before they are large, and what is answered in its turn.
//! - `login_tokens`: devices that let another log in.
//! - `media`: files that are uploaded and downloaded, whole, in parts, and what must never come of them.
//! - `moderation`: reports, locked and suspended accounts, and other services that an account has of its server.
//! - `page`: the page at `/` in a browser.
//! - `operators`: who waits before doors, and who answers; `operators_api`: rooms and media as administrators see them.
//! - `push`: pushers, what gateways are sent, the list of notifications, the bell.
//! - `relations`: threads, edits and their kind, and what is told of them with an event.
//! - `search`: events by their words.
//! - `sliding_sync`: the same for clients that look at some of their rooms at a time.
//! - `test_users`: what a test holds its users by.
//! - `thread_subscriptions`: threads that users want to hear of.
//! - `thumbnails`, `url_previews`: pictures made smaller, and what pages say of themselves.
//! - `sync`: what `/sync` tells, what it does not tell twice, and how it waits.
//! - `unread`: what counts as unread, for whom and until when, and the push rules by which it is found.
//! - `upgrades`: rooms that are replaced by others, and what moves with them.
//! - `user_directory`: users by name, and the rooms that two have in common.
//! - `ways_to_send`: what may not be sent by one door may not by another.

#[path = "../common/mod.rs"]
pub mod common;

mod accounts;
mod admin_accounts;
mod admin_reports;
mod admin_tools;
mod appservice_bounds;
mod appservice_delivery;
mod appservice_devices;
mod appservices;
mod client_details;
mod client_rooms;
mod cross_signing;
mod dehydrated;
mod delayed_events;
mod erasure;
mod event_stream;
mod guests;
mod key_backup;
mod keys;
mod large_answers;
mod login_tokens;
mod media;
mod moderation;
mod operators;
mod operators_api;
mod page;
mod push;
mod relations;
mod search;
mod sliding_sync;
mod sync;
mod test_users;
mod thread_subscriptions;
mod thumbnails;
mod unread;
mod upgrades;
mod url_previews;
mod user_directory;
mod ways_to_send;
