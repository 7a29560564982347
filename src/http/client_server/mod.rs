//! The client-server API, a file a subject. Thin: parse, call the homeserver, answer.

pub mod account;
pub mod devices;
pub mod discovery;
pub mod interactive;
pub mod login;
pub mod membership;
pub mod register;
