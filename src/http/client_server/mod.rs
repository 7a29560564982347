//! The client-server API, a file a subject. Thin: parse, call the homeserver, answer.

pub mod account;
pub mod account_data;
pub mod devices;
pub mod directory;
pub mod discovery;
pub mod ephemeral;
pub mod filters;
pub mod interactive;
pub mod login;
pub mod membership;
pub mod messages;
pub mod openid;
pub mod presence;
pub mod profile;
pub mod push_rules;
pub mod register;
pub mod rooms;
pub mod spaces;
pub mod sync;
pub mod to_device;
