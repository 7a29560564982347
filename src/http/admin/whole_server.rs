//! What concerns the server as a whole, for who runs it: `/_doorstep/admin/v1/`. What has the server's secrets in it is given by
//! the local socket only: an administrator's token is with a client, and clients lose them.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use crate::error::{Error, Result};
use crate::http::{Reply, Request};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;

fn operator_only(admin: &Administrator) -> Result<()> {
    match admin {
        Administrator::Operator => Ok(()),
        Administrator::User(_) => {
            Err(Error::forbidden("This is given to who runs the server, on its machine"))
        }
    }
}

/// `GET /_doorstep/admin/v1/backup`: a backup, to be read to its end. 403 with a token; 409 while another is made; 507 where the
/// disk has no room for a copy of the database.
pub fn backup(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    operator_only(admin)?;
    let gone = request.hung_up();
    let backup = hs.admin().back_up(|| !gone.as_ref().is_some_and(|gone| gone()))?;
    // Whoever reads it may have to wait for a disk, or for an hour for a person. No other backup is made meanwhile, unless somebody
    // wants one while this has stood still for minutes.
    Ok(Reply::unmeasured("application/x-tar", Box::new(backup)).taken_at(64))
}

/// `GET /_doorstep/admin/v1/storage`: where the bytes are.
pub fn storage(hs: &Arc<Homeserver>, _: &Request, _: &Administrator) -> Result<Reply> {
    let storage = hs.admin().storage()?;
    Ok(Reply::json(&serde_json::to_value(storage).map_err(Error::internal)?))
}

/// `GET /_doorstep/admin/v1/signing_key`: `{"key": …}`, as in Synapse's `signing.key`. 403 with a token.
pub fn signing_key(hs: &Arc<Homeserver>, _: &Request, admin: &Administrator) -> Result<Reply> {
    operator_only(admin)?;
    Ok(Reply::json(&json!({ "key": hs.admin().export_signing_key() })))
}

/// `POST /_doorstep/admin/v1/signing_key` with the same: signs with it from now on. Gives `{"key_id": …}`. 403 with a token.
pub fn set_signing_key(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Body {
        key: String,
    }
    operator_only(admin)?;
    let body: Body = request.json()?;
    let key_id = hs.admin().import_signing_key(&body.key)?;
    Ok(Reply::json(&json!({ "key_id": key_id })))
}
