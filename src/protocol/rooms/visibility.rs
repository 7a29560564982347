//! Who may see which event (client-server API, "Room History Visibility").

use serde_json::{Map, Value};

use crate::protocol::pdu::Membership;

/// The four settings of `m.room.history_visibility`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryVisibility {
    /// Anybody, in the room or not.
    WorldReadable,
    /// Members, from the room's beginning.
    Shared,
    /// Members, from their invite on.
    Invited,
    /// Members, from their join on.
    Joined,
}

impl HistoryVisibility {
    /// From the content of the event; `Shared` if there is none or its value is not understood.
    pub fn from_content(content: Option<&Map<String, Value>>) -> Self {
        let value = content.and_then(|content| content.get("history_visibility")).and_then(Value::as_str);
        match value {
            Some("world_readable") => Self::WorldReadable,
            Some("invited") => Self::Invited,
            Some("joined") => Self::Joined,
            _ => Self::Shared,
        }
    }

    /// Whether members see everything, also what was said before they came.
    pub fn shows_members_all(self) -> bool {
        matches!(self, Self::Shared | Self::WorldReadable)
    }
}

/// What has to be known about one event and one user.
#[derive(Debug, Clone, Copy)]
pub struct EventView {
    /// The setting in the state before the event.
    pub visibility: HistoryVisibility,
    /// If the event itself is the `m.room.history_visibility` event: the setting that it makes.
    pub visibility_after: Option<HistoryVisibility>,
    /// The user's membership in the state before the event; `None`: never heard of.
    pub membership: Option<Membership>,
    /// If the event is the user's own `m.room.member` event: the membership that it makes.
    pub membership_after: Option<Membership>,
    /// Whether the user joined at any time after the event, which includes being in the room now.
    pub joined_since: bool,
}

/// Whether the user may see the event.
pub fn may_see(view: &EventView) -> bool {
    // For the event that changes the setting, and for one's own member events, before *or* after suffices.
    let visibilities = [Some(view.visibility), view.visibility_after];
    let memberships = [Some(view.membership), view.membership_after.map(Some)];
    visibilities.into_iter().flatten().any(|visibility| {
        memberships.into_iter().flatten().any(|membership| rules(visibility, membership, view.joined_since))
    })
}

fn rules(visibility: HistoryVisibility, membership: Option<Membership>, joined_since: bool) -> bool {
    use HistoryVisibility::{Invited, Shared, WorldReadable};
    // 1. `world_readable`: allow.
    visibility == WorldReadable
        // 2. The user's membership was `join`: allow.
        || membership == Some(Membership::Join)
        // 3. `shared`, and the user joined at any point after the event was sent: allow.
        || (visibility == Shared && joined_since)
        // 4. The user's membership was `invite`, and the setting `invited`: allow.
        || (visibility == Invited && membership == Some(Membership::Invite))
    // 5. Otherwise, deny.
}

/// Whether another *server* may see the event: whether any user whom it has, or may yet have, could.
///
/// `has_joined` and `has_invited`: whether a user of that server was joined or invited in the state at the event.
pub fn server_may_see(visibility: HistoryVisibility, has_joined: bool, has_invited: bool) -> bool {
    match visibility {
        HistoryVisibility::WorldReadable | HistoryVisibility::Shared => true,
        HistoryVisibility::Invited => has_joined || has_invited,
        HistoryVisibility::Joined => has_joined,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL: [HistoryVisibility; 4] = [
        HistoryVisibility::WorldReadable,
        HistoryVisibility::Shared,
        HistoryVisibility::Invited,
        HistoryVisibility::Joined,
    ];

    fn seen_by(membership: Option<Membership>, joined_since: bool) -> Vec<bool> {
        let view = |visibility| EventView {
            visibility,
            visibility_after: None,
            membership,
            membership_after: None,
            joined_since,
        };
        ALL.into_iter().map(|visibility| may_see(&view(visibility))).collect()
    }

    #[test]
    fn who_sees_what_depends_on_setting_and_membership() {
        assert_eq!(seen_by(Some(Membership::Join), false), [true, true, true, true]);
        assert_eq!(seen_by(Some(Membership::Invite), false), [true, false, true, false]);
        assert_eq!(seen_by(Some(Membership::Invite), true), [true, true, true, false]);
        for other in [None, Some(Membership::Leave), Some(Membership::Ban), Some(Membership::Knock)] {
            assert_eq!(seen_by(other, false), [true, false, false, false], "{other:?}");
            assert_eq!(seen_by(other, true), [true, true, false, false], "{other:?}");
        }
    }

    #[test]
    fn a_change_of_the_setting_is_seen_by_those_of_before_and_of_after() {
        let mut view = EventView {
            visibility: HistoryVisibility::Joined,
            visibility_after: Some(HistoryVisibility::WorldReadable),
            membership: None,
            membership_after: None,
            joined_since: false,
        };
        assert!(may_see(&view));
        (view.visibility, view.visibility_after) =
            (HistoryVisibility::WorldReadable, Some(HistoryVisibility::Joined));
        assert!(may_see(&view));
        (view.visibility, view.visibility_after) =
            (HistoryVisibility::Invited, Some(HistoryVisibility::Joined));
        assert!(!may_see(&view));
    }

    #[test]
    fn ones_own_join_and_leave_are_always_seen() {
        let view = |before, after| EventView {
            visibility: HistoryVisibility::Joined,
            visibility_after: None,
            membership: before,
            membership_after: after,
            joined_since: false,
        };
        assert!(may_see(&view(None, Some(Membership::Join))));
        assert!(may_see(&view(Some(Membership::Join), Some(Membership::Ban))));
        assert!(!may_see(&view(Some(Membership::Invite), Some(Membership::Leave))));
    }

    #[test]
    fn an_absent_or_odd_setting_is_shared() {
        assert_eq!(HistoryVisibility::from_content(None), HistoryVisibility::Shared);
        for value in [json!({}), json!({"history_visibility": 1}), json!({"history_visibility": "x"})] {
            assert_eq!(HistoryVisibility::from_content(value.as_object()), HistoryVisibility::Shared);
        }
        for (setting, word) in ALL.into_iter().zip(["world_readable", "shared", "invited", "joined"]) {
            let content = json!({ "history_visibility": word });
            assert_eq!(HistoryVisibility::from_content(content.as_object()), setting);
        }
    }

    #[test]
    fn a_server_sees_what_one_of_its_users_could() {
        let seen = |joined, invited| ALL.map(|setting| server_may_see(setting, joined, invited));
        assert_eq!(seen(true, false), [true; 4]);
        assert_eq!(seen(false, true), [true, true, true, false]);
        assert_eq!(seen(false, false), [true, true, false, false]);
    }
}
