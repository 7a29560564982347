//! EDUs on their way out that several subjects send: to whom one goes that is local to a room, and the last word on a
//! user's devices.

use serde_json::json;

use super::Outgoing;
use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::edu::Edu;
use crate::service::Homeserver;
use crate::store::devices::device_lists::OwnChange;
use crate::store::{Db, RoomKey};

impl Outgoing {
    /// Sends an EDU to all other servers in a room, as far as they can be reached at the moment.
    pub(in crate::service) fn send_edu_to_room(
        &self,
        hs: &Homeserver,
        room: RoomKey,
        edu: &Edu,
    ) -> Result<()> {
        for server in hs.store.read(|db| db.resident_servers(room))? {
            if server != *hs.server_name() {
                self.send_edu(&server, edu.clone());
            }
        }
        Ok(())
    }
}

/// `m.device_list_update` of a local user's last change; none if there never was one. It is told to servers that share
/// a room with the user from now on, too: who has it knows that its list is right, and who lacks what it rests on
/// fetches the list.
pub(in crate::service) fn device_list_update(db: &Db<'_>, user: &UserId) -> Result<Option<String>> {
    let Some(OwnChange { stream_id, previous, device_id }) = db.own_device_change(user)? else {
        return Ok(None);
    };
    let prev_id: Vec<i64> = previous.into_iter().collect();
    let mut content =
        json!({ "user_id": user, "device_id": device_id, "stream_id": stream_id, "prev_id": prev_id });
    match db.device(user, &device_id)? {
        Some(device) => {
            if let Some(name) = device.display_name {
                content["device_display_name"] = name.into();
            }
        }
        None => content["deleted"] = true.into(),
    }
    Ok(Some(json!({ "edu_type": "m.device_list_update", "content": content }).to_string()))
}
