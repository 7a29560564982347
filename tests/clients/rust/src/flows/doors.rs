//! Invites and knocks, as the room list shows them.

use std::time::Duration;

use anyhow::Result;
use futures_util::{StreamExt, pin_mut};
use matrix_sdk::RoomState;
use matrix_sdk::room::knock_requests::KnockRequest;
use matrix_sdk::ruma::api::client::room::create_room::v3::{Request as CreateRoom, RoomPreset};
use matrix_sdk::ruma::events::InitialStateEvent;
use matrix_sdk::ruma::events::room::encryption::RoomEncryptionEventContent;
use matrix_sdk::ruma::events::room::join_rules::{JoinRule, RoomJoinRulesEventContent};
use matrix_sdk::ruma::events::room::member::MembershipState;
use matrix_sdk::ruma::{OwnedRoomId, UserId};

use super::{encrypted_room, encryption, has_name, initial, is_invited_by, join, meets, two_in_a_room};
use crate::phone::Phone;
use crate::stage::{At, Stage, demand, until};

/// An invite that is declined and comes again; one that is taken back; one that is accepted, until the guest leaves.
pub async fn invite(stage: &Stage) -> Result<()> {
    let alice = Phone::log_in(stage, &stage.account(At::Server, "alice")?, "phone").await?;
    let bob = Phone::log_in(stage, &stage.account(At::Other, "bob")?, "phone").await?;
    let tablet = Phone::log_in(stage, &bob.account, "tablet").await?;
    let declined = encrypted_room(&alice, "No, thanks", &[bob.id()]).await?;
    for phone in [&bob, &tablet] {
        is_invited_by(&phone.list_shows(&declined, RoomState::Invited).await?, alice.id()).await?;
    }
    bob.room(&declined)?.leave().await?;
    // The engine forgets what it declines.
    for phone in [&bob, &tablet] {
        phone.list_shows_no_more(&declined, RoomState::Invited).await?;
    }
    left(&alice, &declined, bob.id()).await?;
    alice.room(&declined)?.invite_user_by_id(bob.id()).await?;
    for phone in [&bob, &tablet] {
        phone.list_shows(&declined, RoomState::Invited).await?;
    }
    bob.room(&declined)?.leave().await?;
    tablet.list_shows_no_more(&declined, RoomState::Invited).await?;

    // Another room: with what came back after it was forgotten the engine's own store has its troubles.
    let room = encrypted_room(&alice, "Come in", &[bob.id()]).await?;
    let alices = alice.room(&room)?;
    for phone in [&bob, &tablet] {
        has_name(&phone.list_shows(&room, RoomState::Invited).await?, "Come in").await?;
    }
    alices.kick_user(bob.id(), Some("on second thoughts")).await?;
    for phone in [&bob, &tablet] {
        phone.list_shows(&room, RoomState::Left).await?;
    }
    alices.invite_user_by_id(bob.id()).await?;
    join(&bob, &room).await?;
    tablet.list_shows(&room, RoomState::Joined).await?;
    meets(&alice, &room, bob.id()).await?;
    alice.say(&room, "welcome").await?;
    for phone in [&bob, &tablet] {
        phone.sees(&room, "welcome").await?;
    }
    bob.room(&room)?.leave().await?;
    for phone in [&bob, &tablet] {
        phone.list_shows(&room, RoomState::Left).await?;
    }
    // A new phone, to which the room is nothing: it comes back by an invite.
    let new = Phone::log_in(stage, &bob.account, "new").await?;
    demand(new.list_is_loaded().await? == 0, "a room that was left is in a new list")?;
    left(&alice, &room, bob.id()).await?;
    alices.invite_user_by_id(bob.id()).await?;
    join(&new, &room).await
}

/// Waits until the member has left in the eyes of this phone's server.
async fn left(phone: &Phone, room: &OwnedRoomId, member: &UserId) -> Result<()> {
    let shown = phone.room(room)?;
    until(&format!("{} sees that {member} has left", phone.id()), async || {
        shown.sync_members().await.map_err(|error| error.to_string())?;
        match shown.get_member_no_sync(member).await {
            Ok(Some(found)) if *found.membership() == MembershipState::Leave => Ok(()),
            other => {
                Err(format!("{:?}", other.map(|member| member.map(|member| member.membership().clone()))))
            }
        }
    })
    .await
}

async fn knock_room(owner: &Phone, name: &str) -> Result<OwnedRoomId> {
    let mut wanted = CreateRoom::new();
    wanted.name = Some(name.to_owned());
    wanted.preset = Some(RoomPreset::PrivateChat);
    let rule = InitialStateEvent::with_empty_state_key(RoomJoinRulesEventContent::new(JoinRule::Knock));
    wanted.initial_state =
        vec![initial(rule.to_raw()), encryption(RoomEncryptionEventContent::with_recommended_defaults())];
    let room = owner.client.create_room(wanted).await?.room_id().to_owned();
    owner.list_shows(&room, RoomState::Joined).await?;
    Ok(room)
}

/// Waits until those who may let in see who knocks.
async fn knock_of(owner: &Phone, room: &OwnedRoomId, knocker: &UserId) -> Result<KnockRequest> {
    let shown = owner.room(room)?;
    until(&format!("{} sees that {knocker} knocks", owner.id()), async || {
        // Asked for anew each time, as the screen with the requests is opened anew: what comes while the engine begins
        // to listen is lost on it.
        let (waiting, cleaner) =
            shown.subscribe_to_knock_requests().await.map_err(|error| error.to_string())?;
        pin_mut!(waiting);
        let knocks = tokio::time::timeout(Duration::from_secs(3), waiting.next()).await;
        cleaner.abort();
        let Ok(Some(knocks)) = knocks else { return Err("no list of knocks".to_owned()) };
        let count = knocks.len();
        let found = knocks.into_iter().find(|knock| knock.member_info.user_id == knocker);
        found.ok_or_else(|| format!("{count} others"))
    })
    .await
}

/// Knocked and withdrawn, knocked and refused, knocked and let in.
pub async fn knock(stage: &Stage) -> Result<()> {
    let alice = Phone::log_in(stage, &stage.account(At::Server, "alice")?, "phone").await?;
    let bob = Phone::log_in(stage, &stage.account(At::Other, "bob")?, "phone").await?;
    let tablet = Phone::log_in(stage, &bob.account, "tablet").await?;
    let room = knock_room(&alice, "Behind the door").await?;
    alice.timeline(&room).await?;
    let via = alice.id().server_name().to_owned();
    let knock =
        async || bob.client.knock(room.clone().into(), Some("may I?".to_owned()), vec![via.clone()]).await;

    knock().await?;
    for phone in [&bob, &tablet] {
        has_name(&phone.list_shows(&room, RoomState::Knocked).await?, "Behind the door").await?;
    }
    let seen = knock_of(&alice, &room, bob.id()).await?;
    demand(
        seen.member_info.reason.as_deref() == Some("may I?"),
        format!("the reason is {:?}", seen.member_info.reason),
    )?;
    if stage.is_one_server() {
        // Between servers this is in tests/interop, and between two Doorsteps alone.
        bob.room(&room)?.leave().await?;
        for phone in [&bob, &tablet] {
            phone.list_shows(&room, RoomState::Left).await?;
        }
        knock().await?;
        tablet.list_shows(&room, RoomState::Knocked).await?;
    }
    if stage.tells_of_refused_knocks() {
        knock_of(&alice, &room, bob.id()).await?.decline(Some("not today")).await?;
        for phone in [&bob, &tablet] {
            phone.list_shows(&room, RoomState::Left).await?;
        }
        knock().await?;
        tablet.list_shows(&room, RoomState::Knocked).await?;
    }
    knock_of(&alice, &room, bob.id()).await?.accept().await?;
    for phone in [&bob, &tablet] {
        phone.list_shows(&room, RoomState::Invited).await?;
    }
    join(&bob, &room).await?;
    tablet.list_shows(&room, RoomState::Joined).await?;
    meets(&alice, &room, bob.id()).await?;
    alice.say(&room, "come in").await?;
    bob.sees(&room, "come in").await?;
    tablet.sees(&room, "come in").await?;
    bob.say(&room, "thank you").await?;
    alice.sees(&room, "thank you").await.map(drop)
}

/// One who was kicked sees that, and nothing of what comes after; one who was banned likewise, and is no more let in.
pub async fn kick_and_ban(stage: &Stage) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "Mind your manners").await?;
    let alices = alice.room(&room)?;
    alice.say(&room, "together").await?;
    bob.sees(&room, "together").await?;
    alices.kick_user(bob.id(), Some("a lesson")).await?;
    bob.list_shows(&room, RoomState::Left).await?;
    alice.say(&room, "among ourselves").await?;
    demand(
        bob.client.join_room_by_id(&room).await.is_err(),
        "one who was kicked from a private room came in",
    )?;
    alices.invite_user_by_id(bob.id()).await?;
    join(&bob, &room).await?;
    meets(&alice, &room, bob.id()).await?;
    alice.say(&room, "welcome back").await?;
    bob.sees(&room, "welcome back").await?;
    bob.pages_back_to_the_start(&room).await?;
    bob.sees(&room, "together").await?;
    alices.ban_user(bob.id(), None).await?;
    if stage.tells_of_refused_knocks() {
        // Of a ban from elsewhere Synapse's sliding sync may have the event in the timeline alone.
        bob.list_shows(&room, RoomState::Banned).await?;
    }
    demand(alices.invite_user_by_id(bob.id()).await.is_err(), "one who is banned was invited")?;
    alices.unban_user(bob.id(), None).await?;
    alices.invite_user_by_id(bob.id()).await?;
    join(&bob, &room).await
}
