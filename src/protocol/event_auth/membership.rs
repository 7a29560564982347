//! "If type is `m.room.member`": rule 5 in versions 1–5 and 12, rule 4 in 6–11. The numbers in the comments are
//! those of version 12; [`MemberRules`] knows the others.

use serde_json::Value;

use super::third_party::{self, ThirdPartyCheck};
use super::{AuthError, EventCheck, JoinRule, PowerLevelKey, Rule};
use crate::protocol::ids::UserId;
use crate::protocol::pdu::Membership;
use crate::protocol::room_version::RoomVersion;

/// The numbers of the parts of the rule. Version 8 put the authorising user's signature before them.
struct MemberRules {
    join: u8,
    invite: u8,
    leave: u8,
    ban: u8,
    knock: u8,
    unknown: u8,
}

impl MemberRules {
    fn of(version: RoomVersion) -> Self {
        let shift = u8::from(version.restricted_join);
        Self {
            join: 2 + shift,
            invite: 3 + shift,
            leave: 4 + shift,
            ban: 5 + shift,
            knock: 6 + shift,
            unknown: 6 + shift + u8::from(version.knock),
        }
    }
}

impl EventCheck<'_> {
    /// Rule 5.
    pub(super) fn check_membership(&self) -> Result<(), AuthError> {
        let event = self.event;
        // 5.1. A member event names a user and a membership.
        let Some(target) = event.state_key() else {
            return self.fail(Rule::Member, &[1], "m.room.member must have a state key");
        };
        if UserId::parse(target).is_err() {
            return self.fail(Rule::Member, &[1], "the state key of m.room.member must be a user id");
        }
        let numbers = MemberRules::of(self.version);
        let Some(membership) = event.membership() else {
            let has_one = event.content_str("membership").is_some();
            let rule = if has_one { numbers.unknown } else { 1 };
            return self.fail(Rule::Member, &[rule], "the membership is missing or unknown");
        };

        // 5.2 (from version 8 on), the signature of the authorising user's server, is checked with the others:
        // see `protocol::signatures::verify::required_signers`.

        let first_join = membership == Membership::Join && self.is_creators_first_join(target);
        // Synapse holds the target to rule 4 as well as the sender: nobody of another server is invited into a
        // room that does not federate. The text speaks of the sender only.
        if !first_join && !self.creation.federate && !is_of_server(target, self.creation.sender.server_name())
        {
            return self.fail(Rule::Federate, &[], "the room does not federate");
        }

        match membership {
            Membership::Join if first_join => Ok(()),
            Membership::Join => self.check_join(target, numbers.join),
            Membership::Invite => self.check_invite(target, numbers.invite),
            Membership::Leave => self.check_leave(target, numbers.leave),
            Membership::Ban => self.check_ban(target, numbers.ban),
            Membership::Knock if self.version.knock => self.check_knock(target, numbers.knock),
            Membership::Knock => {
                self.fail(Rule::Member, &[numbers.unknown], "this room version has no knocking")
            }
        }
    }

    /// 5.3.1. The creator's join right after the create event. Whoever sent it: the rule does not ask.
    fn is_creators_first_join(&self, target: &str) -> bool {
        let [only] = self.event.prev_events() else { return false };
        only == self.create.event_id() && self.creation.creator == target
    }

    /// 5.3.2 and following.
    fn check_join(&self, target: &str, join: u8) -> Result<(), AuthError> {
        let sender = self.event.sender().as_str();
        // 5.3.2. Everybody joins for themselves.
        if sender != target {
            return self.fail(Rule::Member, &[join, 2], "nobody can join for another user");
        }
        let membership = self.membership(target);
        // 5.3.3.
        if membership == Some(Membership::Ban) {
            return self.fail(Rule::Member, &[join, 3], format!("{target} is banned from the room"));
        }
        let is_expected = matches!(membership, Some(Membership::Invite | Membership::Join));
        let rule = self.join_rule();
        let otherwise = if self.version.restricted_join { 7 } else { 6 };
        match rule {
            // 5.3.4. By invitation.
            JoinRule::Invite if is_expected => Ok(()),
            JoinRule::Knock if self.version.knock && is_expected => Ok(()),
            // 5.3.5. By invitation, or vouched for by a member.
            JoinRule::Restricted if self.version.restricted_join => self.check_vouched(is_expected, join),
            JoinRule::KnockRestricted if self.version.knock_restricted => {
                self.check_vouched(is_expected, join)
            }
            // 5.3.6. Open to all.
            JoinRule::Public => Ok(()),
            // 5.3.7. Otherwise, reject.
            JoinRule::Knock if !self.version.knock => {
                self.fail(Rule::Member, &[join, otherwise], "the room's join rule lets nobody join")
            }
            JoinRule::Invite | JoinRule::Knock => {
                let text = format!("{target} is not invited to the room");
                self.fail(Rule::Member, &[join, otherwise], text)
            }
            _ => self.fail(Rule::Member, &[join, otherwise], "the room's join rule lets nobody join"),
        }
    }

    /// 5.3.5: `restricted`, and `knock_restricted` where the version has it.
    fn check_vouched(&self, is_expected: bool, join: u8) -> Result<(), AuthError> {
        // 5.3.5.1. Invited and joined users need nobody.
        if is_expected {
            return Ok(());
        }
        // 5.3.5.2. Others need a joined member who may invite.
        let content = self.event.content();
        let authoriser = content.get("join_authorised_via_users_server").and_then(Value::as_str);
        let Some(authoriser) = authoriser else {
            let text = "the room is restricted, and no member vouches for this join";
            return self.fail(Rule::Member, &[join, 5, 2], text);
        };
        if !self.is_joined(authoriser) {
            let text = format!("{authoriser}, who vouches for this join, is not in the room");
            return self.fail(Rule::Member, &[join, 5, 2], text);
        }
        let (level, invite) =
            (self.power().strict_user(authoriser)?, self.power().strict_named(PowerLevelKey::Invite)?);
        if !level.reaches(invite) {
            let text =
                format!("{authoriser}, who vouches for this join, may not invite: {level}, not {invite}");
            return self.fail(Rule::Member, &[join, 5, 2], text);
        }
        // 5.3.5.3. Otherwise, allow.
        Ok(())
    }

    /// 5.4.
    fn check_invite(&self, target: &str, invite: u8) -> Result<(), AuthError> {
        let sender = self.event.sender().as_str();
        let content = self.event.content();
        // 5.4.1. The redemption of a third-party invite.
        if let Some(third_party_invite) = content.get("third_party_invite") {
            return self.check_third_party(target, third_party_invite, invite);
        }
        // 5.4.2.
        if !self.is_joined(sender) {
            return self.fail(Rule::Member, &[invite, 2], format!("{sender} is not in the room"));
        }
        // 5.4.3.
        match self.membership(target) {
            Some(Membership::Join) => {
                return self.fail(Rule::Member, &[invite, 3], format!("{target} is already in the room"));
            }
            Some(Membership::Ban) => {
                let text = format!("{target} is banned from the room");
                return self.fail(Rule::Member, &[invite, 3], text);
            }
            _ => {}
        }
        // 5.4.4, 5.4.5.
        let (level, needed) =
            (self.power().strict_user(sender)?, self.power().strict_named(PowerLevelKey::Invite)?);
        if !level.reaches(needed) {
            let text = format!("inviting needs power level {needed}, {sender} has {level}");
            return self.fail(Rule::Member, &[invite, 5], text);
        }
        Ok(())
    }

    /// 5.4.1. Neither the sender's membership nor the target's matters here, except for a ban.
    fn check_third_party(
        &self,
        target: &str,
        third_party_invite: &Value,
        invite: u8,
    ) -> Result<(), AuthError> {
        // 5.4.1.1.
        if self.membership(target) == Some(Membership::Ban) {
            return self.fail(Rule::Member, &[invite, 1, 1], format!("{target} is banned from the room"));
        }
        match third_party::check(self.event, target, third_party_invite, self.state) {
            ThirdPartyCheck::Allowed => Ok(()),
            ThirdPartyCheck::Failed(rule, text) => self.fail(Rule::Member, &[invite, 1, rule], text),
        }
    }

    /// 5.5.
    fn check_leave(&self, target: &str, leave: u8) -> Result<(), AuthError> {
        let sender = self.event.sender().as_str();
        let own = self.membership(sender);
        // 5.5.1. Leaving, rejecting an invite, withdrawing a knock.
        if sender == target {
            return match own {
                Some(Membership::Invite | Membership::Join) => Ok(()),
                Some(Membership::Knock) if self.version.knock => Ok(()),
                _ => self.fail(Rule::Member, &[leave, 1], format!("{sender} has nothing to leave")),
            };
        }
        // 5.5.2.
        if own != Some(Membership::Join) {
            return self.fail(Rule::Member, &[leave, 2], format!("{sender} is not in the room"));
        }
        let power = self.power();
        let level = power.strict_user(sender)?;
        // 5.5.3. Lifting a ban needs the level of banning.
        if self.membership(target) == Some(Membership::Ban) {
            let needed = power.strict_named(PowerLevelKey::Ban)?;
            if !level.reaches(needed) {
                let text = format!("lifting a ban needs power level {needed}, {sender} has {level}");
                return self.fail(Rule::Member, &[leave, 3], text);
            }
        }
        // 5.5.4, 5.5.5.
        let (needed, target_level) = (power.strict_named(PowerLevelKey::Kick)?, power.strict_user(target)?);
        if !level.reaches(needed) {
            let text = format!("removing users needs power level {needed}, {sender} has {level}");
            return self.fail(Rule::Member, &[leave, 5], text);
        }
        if target_level >= level {
            let text = format!("{sender}'s power level {level} is not above {target}'s, {target_level}");
            return self.fail(Rule::Member, &[leave, 5], text);
        }
        Ok(())
    }

    /// 5.6.
    fn check_ban(&self, target: &str, ban: u8) -> Result<(), AuthError> {
        let sender = self.event.sender().as_str();
        // 5.6.1.
        if !self.is_joined(sender) {
            return self.fail(Rule::Member, &[ban, 1], format!("{sender} is not in the room"));
        }
        // 5.6.2, 5.6.3.
        let power = self.power();
        let (level, needed) = (power.strict_user(sender)?, power.strict_named(PowerLevelKey::Ban)?);
        if !level.reaches(needed) {
            let text = format!("banning needs power level {needed}, {sender} has {level}");
            return self.fail(Rule::Member, &[ban, 3], text);
        }
        let target_level = power.strict_user(target)?;
        if target_level >= level {
            let text = format!("{sender}'s power level {level} is not above {target}'s, {target_level}");
            return self.fail(Rule::Member, &[ban, 3], text);
        }
        Ok(())
    }

    /// 5.7 (from version 7 on).
    fn check_knock(&self, target: &str, knock: u8) -> Result<(), AuthError> {
        let sender = self.event.sender().as_str();
        // 5.7.1. The room takes knocks.
        match self.join_rule() {
            JoinRule::Knock => {}
            JoinRule::KnockRestricted if self.version.knock_restricted => {}
            _ => return self.fail(Rule::Member, &[knock, 1], "the room's join rule takes no knocks"),
        }
        // 5.7.2. Everybody knocks for themselves.
        if sender != target {
            return self.fail(Rule::Member, &[knock, 2], "nobody can knock for another user");
        }
        // 5.7.3, 5.7.4.
        let text = match self.membership(sender) {
            Some(Membership::Ban) => format!("{sender} is banned from the room"),
            Some(Membership::Invite) => format!("{sender} is already invited to the room"),
            Some(Membership::Join) => format!("{sender} is already in the room"),
            Some(Membership::Knock | Membership::Leave) | None => return Ok(()),
        };
        self.fail(Rule::Member, &[knock, 4], text)
    }
}

fn is_of_server(user: &str, server: &str) -> bool {
    user.split_once(':').is_some_and(|(_, of)| of == server)
}
