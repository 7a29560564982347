//! Removals that servers are owed in particular: who is kicked, banned or refused may have a server that is not in the room,
//! and then it hears of that from nobody else.

use crate::error::Result;
use crate::protocol::pdu::Membership;
use crate::protocol::{ServerName, UserId};
use crate::store::rooms::append::Append;
use crate::store::rooms::memberships::MembershipChange;
use crate::store::{EventKey, RoomKey, Tx};

impl Tx<'_> {
    /// A kick or ban of ours, or a knock or invite that we refuse or take back, is owed to the server of the user that it
    /// removes, which may not be in the room (any more) to get it otherwise.
    pub(super) fn owe_to_those_removed(&mut self, event: &Append<'_>, key: EventKey, at: i64) -> Result<()> {
        let pdu = event.pdu;
        let Some(target) = pdu.state_key().filter(|_| event.outgoing && pdu.event_type() == "m.room.member")
        else {
            return Ok(());
        };
        if !matches!(pdu.membership(), Some(Membership::Leave | Membership::Ban)) || self.is_local(target) {
            return Ok(());
        }
        let Ok(target_id) = UserId::parse(target) else { return Ok(()) };
        let before = self.membership(event.room.key, &target_id)?;
        if !matches!(before, Some(Membership::Join | Membership::Invite | Membership::Knock)) {
            return Ok(());
        }
        if let Ok(server) = ServerName::parse(target_id.server_name())
            && server.as_str() != pdu.sender().server_name()
        {
            self.owe_event(&server, key, at)?;
        }
        Ok(())
    }

    /// Somebody of another server ended a knock or an invite, which that server tells those that are in the room. Whoever
    /// waits before it hears of that from the server that took their knock, or invited them, and knows of nobody else: so if
    /// that was this one, their server is owed it. It had to do with us by its own will or by that of a local user, so that
    /// nobody can have us send to servers of their choice; and once for each knock or invite, unless the room's forks have
    /// its state go to and fro. So is it if it may hold an invite of ours that the room has not. `previous`: the member event
    /// before.
    pub(in crate::store) fn owe_to_who_waited(
        &mut self,
        room: RoomKey,
        change: &MembershipChange<'_>,
        previous: Option<EventKey>,
    ) -> Result<()> {
        if self.is_local(change.user) {
            return Ok(());
        }
        // As soon as the room says what the user is, that is what counts.
        let is_offered = change.new.is_some() && self.end_offered_invite(room, change.user)?;
        let Some((Membership::Leave | Membership::Ban, removal)) = change.new else { return Ok(()) };
        let waited = match (change.old, previous) {
            (Some(Membership::Knock | Membership::Invite), Some(previous)) => self.is_outgoing(previous)?,
            _ => false,
        };
        if !waited && !is_offered {
            return Ok(());
        }
        let Ok(user) = UserId::parse(change.user) else { return Ok(()) };
        let sender = self.pdu_by_key(removal)?.sender().clone();
        let server = user.server();
        // Their own leave they know of, and what we have ended was owed when it was made; if it was anything.
        let was_there = matches!(change.old, Some(Membership::Join | Membership::Invite | Membership::Knock));
        let is_owed = was_there && self.is_local(sender.as_str());
        if sender.server() == server || is_owed || self.is_resident(room, &server)? {
            return Ok(());
        }
        // The position of what has made the change; unless that was long ago, or the server is owed something there.
        let is_free = change.stream == self.stream() && !self.is_owed_at(&server, change.stream)?;
        let at = if is_free { change.stream } else { self.next_stream() };
        self.owe_event(&server, removal, at)
    }

    /// Whether an event is one that goes out from here: it was made, or handed in, here.
    fn is_outgoing(&self, event: EventKey) -> Result<bool> {
        let mut statement = self.conn().prepare_cached("SELECT outgoing FROM events WHERE event_key = ?1")?;
        Ok(statement.query_row([event], |row| row.get(0))?)
    }
}
