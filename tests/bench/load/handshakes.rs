//! Knocks and joins by a scripted server, as fast as it is let.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clock::{Clock, Spent};
use crate::owner::Owner;
use crate::peer::{Peer, Tls};
use crate::{Joins, Knocks, Peering, Result};

/// Joins that count before a fresh room is taken, so that a room of 50 stays about that.
const JOINS: usize = 24;
/// Joins that each connection makes at least between two stops of the clock.
const JOINS_EACH: usize = 6;

/// Knocks from all connections for the given time.
pub fn knocks(given: &Peering, wanted: &Knocks) -> Result<Value> {
    let (peer, mut owner) = (Peer::start(given)?, Owner::new(given)?);
    let rooms = owner.rooms(wanted.rooms, "knock")?;
    let mut connections = connect(&peer, wanted.connections)?;
    // One before the clock starts, so that the other side has fetched our key.
    peer.handshake(&mut connections[0], "knock", &rooms[0], &peer.fresh_user())?;
    let until = Instant::now() + Duration::from_secs(wanted.seconds);
    let clock = Clock::start(given.pid)?;
    let times = on_all(&mut connections, |number, connection| {
        let (room, mut times) = (&rooms[number % rooms.len()], Vec::new());
        while Instant::now() < until {
            times.push(timed(&peer, connection, "knock", room)?);
        }
        Ok(times)
    })?;
    let spent = clock.spent()?;
    let mut members = 0;
    for room in &rooms {
        members += owner.members(room, "knock")?;
    }
    if members != times.len() + 1 {
        return Err(format!("{} handshakes, but {members} knocking members", times.len()).into());
    }
    Ok(spent.figures(times))
}

/// Joins into rooms of a size: its creator, and one less of the scripted server. The clock stands still while rooms are made and filled.
pub fn joins(given: &Peering, wanted: &Joins) -> Result<Value> {
    let (peer, mut owner) = (Peer::start(given)?, Owner::new(given)?);
    let mut connections = connect(&peer, wanted.connections)?;
    let each = JOINS_EACH.max(JOINS * wanted.rooms / connections.len());
    let (mut times, mut spent) = (Vec::new(), Spent::default());
    while spent.seconds < wanted.seconds as f64 {
        let rooms = owner.rooms(wanted.rooms, "public")?;
        fill(&peer, &mut connections, &rooms, wanted.members)?;
        let clock = Clock::start(given.pid)?;
        let of_round = on_all(&mut connections, |number, connection| {
            let room = &rooms[number % rooms.len()];
            (0..each).map(|_| timed(&peer, connection, "join", room)).collect()
        })?;
        spent.add(&clock.spent()?);
        let mut members = 0;
        for room in &rooms {
            members += owner.members(room, "join")?;
        }
        if members != of_round.len() + rooms.len() * wanted.members {
            return Err(format!("{} joins, but {members} members", of_round.len()).into());
        }
        times.extend(of_round);
    }
    Ok(spent.figures(times))
}

/// Joins until every room has its members.
fn fill(peer: &Peer, connections: &mut [Tls], rooms: &[String], members: usize) -> Result<()> {
    let missing = Mutex::new(rooms.iter().flat_map(|room| std::iter::repeat_n(room, members.max(1) - 1)));
    let next = || missing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    on_all(connections, |_, connection| {
        while let Some(room) = next() {
            timed(peer, connection, "join", room)?;
        }
        Ok(Vec::new())
    })?;
    Ok(())
}

fn connect(peer: &Peer, connections: usize) -> Result<Vec<Tls>> {
    (0..connections.max(1)).map(|_| peer.connect()).collect()
}

/// Does the same on all connections at once, and gathers how long it took each time.
fn on_all(
    connections: &mut [Tls],
    work: impl Fn(usize, &mut Tls) -> Result<Vec<Duration>> + Sync,
) -> Result<Vec<Duration>> {
    std::thread::scope(|scope| {
        let start = |(number, connection)| {
            let work = &work;
            scope.spawn(move || work(number, connection))
        };
        let running: Vec<_> = connections.iter_mut().enumerate().map(start).collect();
        let mut times = Vec::new();
        for thread in running {
            times.extend(thread.join().unwrap_or_else(|_| Err("a panic".into()))?);
        }
        Ok(times)
    })
}

fn timed(peer: &Peer, connection: &mut Tls, what: &str, room: &str) -> Result<Duration> {
    let begun = Instant::now();
    peer.handshake(connection, what, room, &peer.fresh_user())?;
    Ok(begun.elapsed())
}
