//! Accounts: made, logged in to, changed, ended, and what is kept for them.

pub mod account;
pub mod account_data;
pub mod admin;
pub mod filters;
pub mod interactive;
pub mod login;
pub mod openid;
pub mod profile;
pub mod register;
