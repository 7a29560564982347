//! What only administrators may ask: Synapse's admin API, as its tools use it, and under `/_doorstep/admin/` what that has
//! no route for. By the local socket the operator needs no token for it.
//!
//! - `users`: accounts; `devices`: where they are logged in; `registration_tokens`: with which people make their own.
//! - `rooms`: rooms, who is in them, and how they go; who knocks. `media`: files.
//! - `reports`: what users have reported. `federation`: other servers, and how they stand.
//! - `whole_server`: backups, signing keys, where the bytes are. `health`: whether it is there, and which it is.

pub mod devices;
pub mod federation;
pub mod health;
pub mod media;
pub mod registration_tokens;
pub mod reports;
pub mod rooms;
pub mod users;
pub mod whole_server;

use crate::error::Result;
use crate::http::Request;

/// A query parameter that counts what is passed over or told. Errors: 400 `M_INVALID_PARAM`.
fn places(request: &Request, name: &str, usual: usize) -> Result<usize> {
    let count = users::count(request, name, i64::try_from(usual).unwrap_or(i64::MAX))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}
