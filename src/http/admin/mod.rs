//! What only administrators may ask: Synapse's admin API, as its tools use it, and under `/_doorstep/admin/` what that has
//! no route for. By the local socket the operator needs no token for it.
//!
//! - `users`: accounts, and their devices.

pub mod users;
