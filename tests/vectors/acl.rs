//! `acl.jsonl`: server access control lists.

use doorstep::protocol::rooms::server_acl::ServerAcl;
use serde_json::Value;

use crate::{object, same, text};

pub fn run(row: &Value) -> Result<(), String> {
    let expected = row["expect"]["allowed"].as_bool().ok_or("no expect.allowed")?;
    let allowed = ServerAcl::from_content(&object(row, "/content")?).allows(text(row, "/server_name")?);
    same("whether it is allowed", &allowed, &expected)
}
