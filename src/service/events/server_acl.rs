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

    /// What there is of it, to be remembered; none: everybody may take part.
    pub(in crate::service) fn into_inner(self) -> Option<ServerAcl> {
        self.0
    }

    /// Whether a server may take part.
    pub(in crate::service) fn allows(&self, server: &ServerName) -> bool {
        allows(self.0.as_ref(), server)
    }

    /// Errors: 403 `M_FORBIDDEN` for a server that the ACL keeps out.
    pub(in crate::service) fn check(&self, server: &ServerName) -> Result<()> {
        check(self.0.as_ref(), server)
    }
}

/// "1. If there is no `m.room.server_acl` event in the room state, allow."
fn allows(acl: Option<&ServerAcl>, server: &ServerName) -> bool {
    acl.is_none_or(|acl| acl.allows(server.as_str()))
}

/// [`RoomAcl::check`] of one that is remembered.
pub(in crate::service) fn check(acl: Option<&ServerAcl>, server: &ServerName) -> Result<()> {
    match allows(acl, server) {
        true => Ok(()),
        false => Err(Error::forbidden("The room's server ACL keeps your server out")),
    }
}
