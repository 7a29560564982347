//! Signing keys: our own, and those of others for whom we are the notary (server-server API, "Retrieving server keys").

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::http::auth::asker;
use crate::http::{Reply, Request};
use crate::protocol::ServerName;
use crate::service::Homeserver;
use crate::service::keys::notary::NotaryQuery;

/// Servers in one question, and keys of one server. More is an attempt to make us work.
const SERVERS_MAX: usize = 500;
const KEYS_PER_SERVER_MAX: usize = 100;

/// `GET /_matrix/key/v2/server`, and before v1.6 `/server/{keyId}`: our own keys, whichever is asked for.
pub fn own(hs: &Arc<Homeserver>, _: &Request) -> Result<Reply> {
    let statement = hs.key_ring.own_statement();
    Ok(Reply::json(&Value::Object(statement.as_ref().clone())))
}

/// `GET /_matrix/key/v2/query/{serverName}`: the keys of one server; before v1.6 `/query/{serverName}/{keyId}`: those that
/// it published with one of them.
pub fn query_one(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    let server = request.server_name()?;
    let valid_until = request.query_int("minimum_valid_until_ts")?;
    let wanted = Some(request.param("keyId")).filter(|key_id| !key_id.is_empty());
    let keys = wanted.map(|key_id| (key_id.to_owned(), valid_until)).into_iter().collect();
    answer(hs, request, &[NotaryQuery { server, keys, valid_until }])
}

/// `POST /_matrix/key/v2/query`: the keys of several servers.
pub fn query(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    let body = request.json_object()?;
    let Some(asked) = body.get("server_keys") else {
        return Err(Error::missing_param("server_keys is missing"));
    };
    let asked = asked.as_object().ok_or_else(|| Error::bad_json("server_keys is no object"))?;
    if asked.len() > SERVERS_MAX {
        return Err(Error::invalid_param(format!("more than {SERVERS_MAX} servers")));
    }
    let queries = asked.iter().map(|(server, keys)| {
        let server = ServerName::parse(server)?;
        let keys = keys.as_object().ok_or_else(|| Error::bad_json("the keys of a server are no object"))?;
        Ok(NotaryQuery { server, keys: wanted_keys(keys)?, valid_until: None })
    });
    let queries = queries.collect::<Result<Vec<_>>>()?;
    answer(hs, request, &queries)
}

fn wanted_keys(keys: &Map<String, Value>) -> Result<Vec<(String, Option<i64>)>> {
    if keys.len() > KEYS_PER_SERVER_MAX {
        return Err(Error::invalid_param(format!("more than {KEYS_PER_SERVER_MAX} keys of one server")));
    }
    let wanted = keys.iter().map(|(key_id, criteria)| {
        let criteria =
            criteria.as_object().ok_or_else(|| Error::bad_json("the criteria of a key are no object"))?;
        match criteria.get("minimum_valid_until_ts") {
            None | Some(Value::Null) => Ok((key_id.clone(), None)),
            Some(at) => {
                let at =
                    at.as_i64().ok_or_else(|| Error::bad_json("minimum_valid_until_ts is no integer"))?;
                Ok((key_id.clone(), Some(at)))
            }
        }
    });
    wanted.collect()
}

fn answer(hs: &Homeserver, request: &Request, queries: &[NotaryQuery]) -> Result<Reply> {
    let statements = hs.keys().notarise(&asker(request, None), queries)?;
    Ok(Reply::raw_json([b"{\"server_keys\":[", statements.join(&b',').as_slice(), b"]}"].concat()))
}
