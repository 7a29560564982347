//! Messages from device to device.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::protocol::json::read_object;
use crate::service::Homeserver;
use crate::store::accounts::client_transactions::ClientTxn;

#[derive(Deserialize)]
struct SendToDeviceBody<'t> {
    #[serde(borrow)]
    messages: Option<&'t RawValue>,
}

/// `PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}`.
pub fn send(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let event_type = request.param("eventType");
    let body: SendToDeviceBody<'_> = read_object(request.body())?;
    let txn = ClientTxn {
        user_id: requester.user_id.clone(),
        device_id: requester.device_id.clone().unwrap_or_default(),
        scope: format!("sendToDevice/{event_type}"),
        txn_id: request.txn_id()?,
    };
    let messages = body.messages.ok_or_else(|| Error::missing_param("Missing messages"))?;
    hs.devices().send_to_device(event_type, messages, txn)?;
    Ok(Reply::empty())
}
