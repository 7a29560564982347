//! What is answered where something of ours failed.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{ErrCode, Error};
use crate::http::transport::reply::Reply;
use crate::http::transport::request::Request;

/// Numbers the 500s, so that a user's report can be found in the log.
static FAILURES: AtomicU64 = AtomicU64::new(1);

/// A 500 whose number is in the log with the cause.
pub(in crate::http) fn failure(request: &Request, cause: &dyn std::fmt::Display) -> Reply {
    Reply::error(&numbered_failure(request, cause))
}

/// The error of a 500 whose number is in the log with the cause.
pub(in crate::http) fn numbered_failure(request: &Request, cause: &dyn std::fmt::Display) -> Error {
    let number = FAILURES.fetch_add(1, Ordering::Relaxed);
    log::error!("request {number}: {} {}: {cause}", request.method(), request.path());
    let message = format!("Internal server error (request {number} in the server's log)");
    Error::new(ErrCode::Unknown, message)
}
