//! Servers among each other, over real TLS: two or three real ones, or one of ours and a scripted one (`common::peer`)
//! that does exactly what the test tells it to.
//!
//! What the specification has handshakes for:
//!
//! - `handshakes`: knocks, invites, joins and leaves in every way they can end.
//! - `handshakes_that_meet`: two handshakes of one user in one room, every pair, in both orders and at once.
//! - `unheard_removals`: who leaves a room whose host has not heard that somebody removed them.
//! - `ended_elsewhere`: knocks and invites that somebody of a third server ends; and what one server's nonsense does not end.
//! - `lost_answers`: knocks and invites that the other server may have taken, at once or later, for all that we heard.
//! - `remote_memberships`: where a remote membership meets the room's last state, what clients were shown, or the room itself.
//! - `overtaken_joins`: what meets a join that was taken and is not answered yet.
//! - `decided_meanwhile`: what is decided here while another server is asked.
//! - `awaited_invites`: answers to an invite that was signed here and is not in the room yet.
//! - `third_party_invites`: invites of e-mail addresses, through a scripted identity server.
//! - `new_rooms`: those who are invited to a new room and cannot be reached hold up nobody.
//! - `open_door`: whose knock is accepted is joined, if they want it so.
//! - `unread`: what of others' events counts as unread.
//! - `large_rooms`: joining rooms with many members, whose keys only a notary has.
//!
//! Events, and what rooms become of them:
//!
//! - `receipt`: the checks on receipt of a PDU, what waits for what, and that nothing answered for is lost.
//! - `outside`: what a room that we are not in says of our users.
//! - `room_graph`: forks, holes, and how they are filled or gone around.
//! - `history`: what was said before we came, behind what nobody can verify, while nobody can be asked, and from a date on.
//! - `forked_timelines`: what of a fork the timeline of /sync has.
//! - `forks`: rooms that are forked to make us work.
//! - `federation_delivery`: events in order, through outages, restarts and new keys.
//! - `relations`: threads, edits and their kind that come late, wrong, or of others' events.
//! - `policy_servers`: rooms with a policy server that signs, refuses, or is gone.
//! - `moderation`: server ACLs, denied servers, users who want no invites.
//!
//! Those who mean ill:
//!
//! - `forgeries`: events that nobody signed who would have to, handed in at every door.
//! - `hostile_peer`: a peer that lies in every step of every handshake.
//! - `held_up`: servers that have us wait, and whom that must not hold up.
//! - `silent_servers`: what is made of a server's silence, and for whom.
//! - `shown_rooms`: rooms as one server shows them to who joins by it, and what of that is believed for how long.
//! - `hostile_keys`: what servers tell of devices and keys to fill memory, keep us at work, or make answers unreadable.
//! - `appservices`: what others do to bridges here.
//! - `strangers_at_the_door`: invites and knocks that are to fill the house, or to keep others out.
//!
//! What servers ask of each other, and what is fleeting:
//!
//! - `server_server_api`: what is answered to whom, as a table.
//! - `federation_keys`: keys, versions and notaries; `began_anew`: servers that lost theirs.
//! - `browsing`: by date, in directories, through spaces; here and through others.
//! - `spaces`: rooms of spaces on many servers, page by page.
//! - `device_lists`, `to_device`: the devices of others, and messages to them; `keys_across_servers`: what these are
//!   encrypted with.
//! - `apex`: servers that have another name than their machine.
//! - `ephemeral`: typing, receipts and presence; `presence_of_newcomers`. `media`: files.

#[path = "../common/mod.rs"]
pub mod common;

mod apex;
mod appservices;
mod awaited_invites;
mod began_anew;
mod beside_a_join;
mod browsing;
mod decided_meanwhile;
mod device_lists;
mod ended_elsewhere;
mod ephemeral;
mod federation_delivery;
mod federation_keys;
mod forgeries;
mod forked_timelines;
mod forks;
mod handshakes;
mod handshakes_that_meet;
mod held_up;
mod history;
mod hostile_keys;
mod hostile_peer;
mod keys_across_servers;
mod landed_joins;
mod large_rooms;
mod lost_answers;
mod media;
mod moderation;
mod new_rooms;
mod open_door;
mod outside;
mod overtaken_joins;
mod policy_servers;
mod presence_of_newcomers;
mod receipt;
mod relations;
mod remote_memberships;
mod room_graph;
mod server_server_api;
mod shown_rooms;
mod silent_servers;
mod spaces;
mod strangers_at_the_door;
mod third_party_invites;
mod to_device;
mod unheard_removals;
mod unread;
