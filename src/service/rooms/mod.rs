//! Rooms as their members see them: creating, sending, reading, finding.

pub mod client_format;
pub mod create;
pub mod directory;
pub mod hierarchy;
pub mod messages;
pub mod send;
pub mod summary;
pub mod timeline;
pub mod timestamp_to_event;
pub mod view;
