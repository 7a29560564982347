//! THE TABLE: every endpoint that this server has, a line each. The matcher, 405s, rate limits, body limits, `doorstep
//! routes` and the coverage test are all made from it.
//!
//! A line is `method(path, Kind(handler))`, and where the default does not fit `.rate(Rate::…)` or `.body(bytes)`.

use super::router::Route;
#[allow(unused_imports, reason = "the table is filled area by area")]
use super::router::{
    Handler::{Admin, Anyone, MaybeUser, Peer, User, UserWaiting},
    Rate, delete, get, post, put,
};

use super::server_server;

/// Every endpoint. `r0` of the client API and `r0`, `v1` of media are served by the `v3` lines.
pub const ROUTES: &[Route] = &[
    // ----- client-server: server, accounts, devices -----
    // ----- client-server: rooms, events, membership -----
    // ----- client-server: sync, filters, account data -----
    // ----- client-server: profiles, directory -----
    // ----- server-server: keys, version -----
    get("/_matrix/key/v2/server", Anyone(server_server::keys::own)),
    get("/_matrix/key/v2/query/{serverName}", Anyone(server_server::keys::query_one)),
    post("/_matrix/key/v2/query", Anyone(server_server::keys::query)),
    get("/_matrix/federation/v1/version", Anyone(server_server::version::version)),
    // ----- server-server: membership handshakes -----
    // ----- server-server: transactions, events, queries -----
];
