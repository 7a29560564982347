//! Messages from device to device.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::store::client_transactions::ClientTxn;

/// `PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}`.
pub fn send(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let event_type = request.param("eventType");
    let messages = request.json_object()?.remove("messages");
    let txn = ClientTxn {
        user_id: requester.user_id.clone(),
        device_id: requester.device_id.clone().unwrap_or_default(),
        scope: format!("sendToDevice/{event_type}"),
        txn_id: request.param("txnId").to_owned(),
    };
    hs.send_to_device(event_type, messages.ok_or_else(|| Error::missing_param("Missing messages"))?, txn)?;
    Ok(Reply::empty())
}
