//! The EDUs of a transaction: typing, receipts, presence, messages to devices, device lists. Each is dealt with where
//! its subject is; here is what they share.
//!
//! Whatever is wrong with one that we received, nobody is told: it is passed over. Only where our database fails, or
//! where there is no place for a message to a device, does the transaction fail, so that it comes again.

use serde_json::value::RawValue;

use crate::error::Result;
use crate::protocol::ServerName;
use crate::protocol::edu::ReceivedEdu;
use crate::protocol::json;
use crate::service::devices::device_lists::{read_device_list_update, read_signing_key_update};
use crate::service::devices::to_device::read_direct_to_device;
use crate::service::ephemeral::incoming::EduOrigin;
use crate::service::incoming::Incoming;

impl Incoming<'_> {
    /// Receives the EDUs of a transaction, in their order; messages to devices last, since only they may have to come
    /// again. Errors: 429 as for [`Devices::receive_to_device`](crate::service::devices::Devices), 500 if something of
    /// ours failed.
    pub fn receive_edus(&self, server: &ServerName, edus: &[&RawValue]) -> Result<()> {
        let (mut origin, ephemeral) = (EduOrigin::new(server), self.ephemeral());
        // What must not be lost waits for one commit.
        let (mut device_news, mut to_device) = (Vec::new(), Vec::new());
        for edu in edus {
            let edu = match json::read_object::<ReceivedEdu<'_>>(edu.get().as_bytes()) {
                Ok(edu) => edu,
                Err(e) => {
                    log::debug!("{server} sent an EDU that is none: {e}");
                    continue;
                }
            };
            let content = edu.content.get().as_bytes();
            match edu.edu_type.as_ref() {
                "m.typing" => ephemeral.receive_typing(&mut origin, content)?,
                "m.receipt" => ephemeral.receive_receipts(&mut origin, content)?,
                "m.presence" => ephemeral.receive_presence(&origin, content)?,
                "m.direct_to_device" => to_device.extend(read_direct_to_device(server, content)),
                "m.device_list_update" => device_news.extend(read_device_list_update(server, content)),
                // Synapse sends both, and older ones the latter alone.
                "m.signing_key_update" | "org.matrix.signing_key_update" => {
                    device_news.extend(read_signing_key_update(server, content))
                }
                other => {
                    let start: String = other.chars().take(100).collect();
                    log::debug!("{server} sent an EDU of the type {start:?}");
                }
            }
        }
        self.devices().receive_device_news(device_news)?;
        self.devices().receive_to_device(server, to_device)
    }
}
