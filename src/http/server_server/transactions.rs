//! Server-server API, "Transactions".

use std::sync::Arc;

use crate::error::Result;
use crate::http::{Origin, Reply, Request};
use crate::service::Homeserver;
use crate::service::incoming::transaction::weight_max_of_transaction;

/// `PUT /_matrix/federation/v1/send/{txnId}`.
pub fn send(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let (txn_id, keeps) = (request.param("txnId"), |bytes_max| request.keeps(bytes_max));
    Ok(Reply::json(&hs.incoming().receive_transaction(&origin.0, txn_id, request.body(), &keeps)?))
}

/// How much may be built of the body of one: its events are read one by one.
pub fn weight(body: &[u8]) -> usize {
    weight_max_of_transaction(body)
}
