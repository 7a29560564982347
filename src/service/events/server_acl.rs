//! Which servers a room's server ACL lets take part (client-server API, "Server Access Control Lists (ACLs) for
//! rooms"): the one place where it is looked up, for events, ephemeral messages, handshakes and questions alike.

use crate::error::{Error, Result};
use crate::protocol::ServerName;
use crate::protocol::rooms::server_acl::ServerAcl;
use crate::store::{Db, Room};

/// The server ACL of a room as it is now.
pub(in crate::service) struct RoomAcl(Option<ServerAcl>);

impl RoomAcl {
    /// The ACL that holds in the room. While the content of its event is lost, that is the one before it.
    pub(in crate::service) fn of(db: &Db<'_>, room: &Room) -> Result<Self> {
        Ok(Self(db.server_acl(room)?))
    }

    /// Whether a server may take part: "1. If there is no `m.room.server_acl` event in the room state, allow."
    pub(in crate::service) fn allows(&self, server: &ServerName) -> bool {
        self.0.as_ref().is_none_or(|acl| acl.allows(server.as_str()))
    }

    /// Errors: 403 `M_FORBIDDEN` for a server that the ACL keeps out.
    pub(in crate::service) fn check(&self, server: &ServerName) -> Result<()> {
        match self.allows(server) {
            true => Ok(()),
            false => Err(Error::forbidden("The room's server ACL keeps your server out")),
        }
    }
}
