//! What who runs this server can do. There are three doors to it, and one set of verbs behind them: Synapse's admin API
//! with an administrator's token (`http/admin/`), the same by the local socket without one, and the commands of the
//! program, which come by the socket, or open the data folder themselves where no server runs. The page has the same verbs.
//!
//! - `accounts`: accounts as they are listed, looked at, made and changed.
//! - `backup`: the whole server in one file, and back.
//! - `federation`: how other servers stand with us.
//! - `knocks`: who waits before which room's door, and the answer to them.
//! - `own_door`: what of a user's rooms asks something of them.
//! - `media`: files by who uploaded them, and by their age.
//! - `reports`: what users have reported.
//! - `rooms`: rooms as they are listed and looked at; blocked ones; who is put into one, and given power in it.
//! - `room_deletion`: a room goes, with everything there is of it.
//! - `signing_key`: taken out, and brought in.
//! - `storage`: where the bytes are.
//! - `tokens`: registration tokens.

pub mod accounts;
pub mod backup;
pub mod federation;
pub mod knocks;
pub mod media;
pub mod own_door;
pub mod reports;
#[cfg(test)]
mod rights_tests;
pub mod room_deletion;
#[cfg(test)]
mod room_deletion_tests;
mod room_media;
pub mod rooms;
pub mod signing_key;
pub mod storage;
pub mod tokens;

use std::ops::Deref;

use crate::service::Homeserver;

/// What who runs this server can do.
#[derive(Clone, Copy)]
pub struct Admin<'h>(&'h Homeserver);

impl Deref for Admin<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

/// A count as numbers are in JSON and in the database.
fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Where the page begins that follows one, which passed over so many and tells so many of all that there are. None: there is no
/// more, or the page told nothing, so that the next one would be the same again.
fn next_place(from: i64, told: usize, total: i64) -> Option<i64> {
    let next = from.saturating_add(number(told));
    (told > 0 && next < total).then_some(next)
}

impl Homeserver {
    /// What who runs this server can do.
    pub fn admin(&self) -> Admin<'_> {
        Admin(self)
    }
}
