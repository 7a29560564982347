//! How other servers stand with us: who does not take what we owe them, since when, and when they are tried next.

use std::cmp::Ordering;

use serde::Serialize;
use serde_json::{Value, json};

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::order;
use crate::protocol::ServerName;
use crate::service::accounts::moderation::{Administrator, check_still_admin};
use crate::service::admin::{Admin, next_place, number};
use crate::store::Db;
use crate::store::servers::destinations::Destination;

/// A page has no more servers, or rooms, than this, however many are asked for.
const PAGE_MAX: usize = 1000;

/// A server that did not take our last transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailingServer {
    /// Which.
    pub server_name: ServerName,
    /// When it failed first since it took one.
    pub since_ms: Millis,
    /// How often it failed since.
    pub failures: u32,
    /// When it is tried next, unless it speaks to us before.
    pub next_try_ms: Millis,
}

/// By what servers are sorted, in the words of Synapse's admin API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerOrder {
    /// `destination`
    Name,
    /// `retry_last_ts`
    LastTry,
    /// `retry_interval`
    Pause,
    /// `failure_ts`
    FailingSince,
    /// `last_successful_stream_ordering`
    Delivered,
}

impl ServerOrder {
    /// The order of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "destination" => Self::Name,
            "retry_last_ts" => Self::LastTry,
            "retry_interval" => Self::Pause,
            "failure_ts" => Self::FailingSince,
            "last_successful_stream_ordering" => Self::Delivered,
            _ => return None,
        })
    }
}

/// Which servers are listed, and how.
#[derive(Debug)]
pub struct ServersPage {
    /// Those with this in their names, in whatever case.
    pub name: Option<String>,
    /// By what they are sorted.
    pub order: ServerOrder,
    /// The other way round.
    pub backwards: bool,
    /// How many are passed over.
    pub from: usize,
    /// How many are told at most.
    pub limit: usize,
}

/// How a server stands, as Synapse's admin API has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerStanding {
    destination: ServerName,
    /// When it was tried last, and for how long it is not tried then; 0: it took our last transaction.
    retry_last_ts: Millis,
    retry_interval: Millis,
    /// When it failed first since it took one.
    failure_ts: Option<Millis>,
    /// Up to where it has everything that it is owed.
    last_successful_stream_ordering: Option<i64>,
}

impl ServerStanding {
    fn new(destination: ServerName, kept: &Destination, last_try: Millis) -> Self {
        let fails = kept.failures > 0;
        Self {
            destination,
            retry_last_ts: if fails { last_try } else { 0 },
            retry_interval: if fails { (kept.retry_ms - last_try).max(0) } else { 0 },
            failure_ts: fails.then_some(kept.failing_since_ms),
            last_successful_stream_ordering: Some(kept.cursor).filter(|cursor| *cursor > 0),
        }
    }

    fn compare(&self, other: &Self, order: ServerOrder) -> Ordering {
        let first = match order {
            ServerOrder::Name => Ordering::Equal,
            ServerOrder::LastTry => self.retry_last_ts.cmp(&other.retry_last_ts),
            ServerOrder::Pause => self.retry_interval.cmp(&other.retry_interval),
            ServerOrder::FailingSince => self.failure_ts.cmp(&other.failure_ts),
            ServerOrder::Delivered => {
                self.last_successful_stream_ordering.cmp(&other.last_successful_stream_ordering)
            }
        };
        first.then_with(|| self.destination.cmp(&other.destination))
    }
}

/// How a server stands by what is `known` of it in memory, or else by what was written down.
fn standing_of(
    db: &Db<'_>,
    server: ServerName,
    known: Option<&(Destination, Millis)>,
) -> Result<ServerStanding> {
    if let Some((kept, last_try)) = known {
        return Ok(ServerStanding::new(server, kept, *last_try));
    }
    let kept = db.destination(&server)?;
    Ok(ServerStanding::new(server, &kept, kept.failing_since_ms))
}

impl Admin<'_> {
    /// How the servers stand that are in a room with us or were sent something.
    fn standings(&self) -> Result<Vec<ServerStanding>> {
        let known = self.outgoing.standings();
        self.store.read(|db| {
            let all = db.known_servers()?.into_iter().map(|server| {
                let known = known.get(&server);
                standing_of(db, server, known)
            });
            all.collect()
        })
    }

    /// A page of them: `destinations`, how many there are in all as `total`, and `next_token` if there are more.
    pub fn list_servers(&self, page: &ServersPage) -> Result<Value> {
        let mut all = self.standings()?;
        if let Some(part) = &page.name {
            let part = part.to_ascii_lowercase();
            all.retain(|server| server.destination.as_str().to_ascii_lowercase().contains(&part));
        }
        order::sort_by(&mut all, |a, b| a.compare(b, page.order));
        if page.backwards {
            all.reverse();
        }
        let total = all.len();
        let told: Vec<_> = all.into_iter().skip(page.from).take(page.limit.min(PAGE_MAX)).collect();
        let next = next_place(number(page.from), told.len(), number(total));
        let mut answer = json!({ "destinations": told, "total": total });
        if let Some(next) = next {
            answer["next_token"] = next.to_string().into();
        }
        Ok(answer)
    }

    /// How one server stands. Errors: 404 `M_NOT_FOUND` for one with which we have nothing to do.
    pub fn server_standing(&self, server: &ServerName) -> Result<ServerStanding> {
        let known = self.outgoing.standing(server);
        self.store.read(|db| match db.knows_server(server)? {
            true => standing_of(db, server.clone(), known.as_ref()),
            false => Err(Error::not_found("Unknown destination")),
        })
    }

    /// A page of the rooms that a server is in, as `rooms`. Errors: 404 `M_NOT_FOUND`.
    pub fn rooms_of_server(
        &self,
        server: &ServerName,
        backwards: bool,
        from: usize,
        limit: usize,
    ) -> Result<Value> {
        self.server_standing(server)?;
        let place = (number(from), number(limit.min(PAGE_MAX)));
        let (rooms, total) = self.store.read(|db| db.rooms_of_server(server, backwards, place))?;
        let next = next_place(number(from), rooms.len(), total);
        let told = rooms.into_iter().map(|(id, at)| json!({ "room_id": id, "stream_ordering": at }));
        let mut answer = json!({ "rooms": told.collect::<Vec<_>>(), "total": total });
        if let Some(next) = next {
            answer["next_token"] = next.to_string().into();
        }
        Ok(answer)
    }

    /// A server that failed is tried now, and not when its pause is over. Errors: 404 `M_NOT_FOUND`; 400 `M_UNKNOWN` for one
    /// that does not fail; 403 `M_FORBIDDEN` for who is no administrator any more.
    pub fn try_server_now(&self, by: &Administrator, server: &ServerName) -> Result<()> {
        self.store.read(|db| check_still_admin(db, by))?;
        self.server_standing(server)?;
        if !self.outgoing.try_now(server) {
            let message = "The retry timing does not need to be reset for this destination.";
            return Err(Error::new(ErrCode::Unknown, message).with_status(400));
        }
        Ok(())
    }

    /// The servers that are behind, those first that are for longest.
    pub fn failing_servers(&self) -> Vec<FailingServer> {
        let failing = self.outgoing.failing().into_iter().map(|(server_name, kept)| FailingServer {
            server_name,
            since_ms: kept.failing_since_ms,
            failures: kept.failures,
            next_try_ms: kept.retry_ms,
        });
        let mut failing: Vec<FailingServer> = failing.collect();
        order::sort_by(&mut failing, |a, b| (a.since_ms, &a.server_name).cmp(&(b.since_ms, &b.server_name)));
        failing
    }
}
