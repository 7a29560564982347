//! The room as it is shown to the server whose user joins it.

use serde_json::json;

use crate::error::Result;
use crate::protocol::Pdu;
use crate::service::events::erasure::Erasure;
use crate::service::events::serve::large_answer::LargeAnswer;
use crate::service::events::serve::state_for_join;
use crate::service::membership::Memberships;
use crate::store::Room;

/// A room of up to so many joined members is given whole to whoever would do without them.
const WHOLE_ANSWER_MEMBERS_MAX: u64 = 100;

impl Memberships<'_> {
    /// The answer to `send_join`. If members may be omitted, what is in `state` is not repeated in `auth_chain` ("any
    /// events that are returned in `state` may be omitted from `auth_chain`"), and of a large room the members are left
    /// out: a smaller one is worth more whole.
    pub(super) fn join_answer(&self, room: &Room, join: &Pdu, may_omit: bool) -> Result<LargeAnswer> {
        let joiner = join.sender().server();
        let mut answer = LargeAnswer::default();
        self.store.read(|db| {
            let omit_members = may_omit && db.room_by_key(room.key)?.joined > WHOLE_ANSWER_MEMBERS_MAX;
            let mut before = state_for_join(db, room, join, omit_members)?;
            if may_omit {
                let mut in_state = before.state.clone();
                in_state.sort_unstable();
                before.auth_chain.retain(|event| in_state.binary_search(event).is_err());
            }
            let servers: Vec<_> = before.servers.iter().filter(|server| **server != joiner).collect();
            let head = format!(
                ",\"members_omitted\":{omit_members},\"origin\":{},\"servers_in_room\":{},\"event\":",
                json!(self.server_name()),
                json!(servers)
            );
            let erasure = Erasure::for_server(db, room.key, &joiner);
            answer.text("{\"auth_chain\":");
            let redacted = erasure.redacted_among(&before.auth_chain)?;
            answer.events(db, &before.auth_chain, redacted)?;
            answer.text(head);
            answer.text(join.json());
            answer.text(",\"state\":");
            let redacted = erasure.redacted_among(&before.state)?;
            answer.events_at_hand(db, (&before.state, &before.state_events), redacted)
        })?;
        answer.text("}");
        Ok(answer)
    }
}
