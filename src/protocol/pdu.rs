//! A persistent data unit: one event of a room, in the format of its room version, with its exact bytes.

use std::sync::Arc;

/// One event of a room. Cheap to clone.
#[derive(Clone)]
pub struct Pdu(#[allow(dead_code)] Arc<()>);
