//! Servers in processes of their own that are killed, are away for long, or find their disk full: nothing that was
//! acknowledged is lost, and all sides agree in the end. Apart from the others because each keeps the machine busy.
//!
//! - `appservices`: SIGKILL while an application service is told something.
//! - `check`: what `doorstep check` finds, beside a server and without one.
//! - `backup`: backups while everything goes on, and what becomes of a server that was restored from one.
//! - `clocks`: a clock that was ahead, and is set right.
//! - `commands`: the operator's, with a server that runs, starts, stops or was killed, and without one.
//! - `crash`: SIGKILL in every state of a remote membership.
//! - `crash_random`: SIGKILL at random moments while everything happens at once.
//! - `durability`: what was acknowledged is there after a kill, and on a disk that takes nothing any more.
//! - `greeting`: what is said at the start, to the operator and to systemd.
//! - `faults`: what a test lets go wrong at its server; `fixture`: servers for tests in other languages.
//! - `keys`: no one-time key is given out twice, whatever was killed.
//! - `long_outages`: thousands of messages missed, and made up for by few requests.
//! - `media`: files that are killed amid their upload, or find the disk full.
//! - `open_door`: SIGKILL between the invite that accepts a knock and the join.
//! - `operators`: SIGKILL while a room is deleted; the commands for rooms, knocks and media.
//! - `push`: SIGKILL while a push gateway is told.
//! - `restore`: a server that is made of a backup, as it comes, and once more after a kill.
//! - `starts`: what a start is told and tells: a name, a database of another state, a clock, a certificate.
//! - `terminal`: what a person at a terminal is told, and what an operator finds in the log.

#[path = "../common/mod.rs"]
pub mod common;

mod appservices;
mod backup;
mod check;
mod clocks;
mod commands;
mod crash;
mod crash_random;
mod durability;
mod faults;
mod fixture;
mod greeting;
mod keys;
mod long_outages;
mod media;
mod open_door;
mod operators;
mod push;
mod restore;
mod starts;
mod terminal;
