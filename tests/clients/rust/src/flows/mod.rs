//! What people do, each as a flow of its own with accounts of its own. Alice is on the first server, Bob on the other.

mod doors;
mod keys;
mod lists;
mod outages;
mod talk;
mod threads;
mod trust;
mod web;

use std::future::Future;
use std::pin::Pin;

use anyhow::Result;
use matrix_sdk::ruma::api::client::room::create_room::v3::{Request as CreateRoom, RoomPreset};
use matrix_sdk::ruma::events::room::encryption::RoomEncryptionEventContent;
use matrix_sdk::ruma::events::room::member::MembershipState;
use matrix_sdk::ruma::events::{AnyInitialStateEvent, InitialStateEvent};
use matrix_sdk::ruma::serde::Raw;
use matrix_sdk::ruma::{OwnedRoomId, UserId};
use matrix_sdk::{Room, RoomState};

use crate::phone::Phone;
use crate::stage::{At, Stage, until};

type Flow = for<'a> fn(&'a Stage) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

macro_rules! flows {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), |stage| Box::pin($module::$name(stage)))),*]
    };
}

/// By name. Those of `outages` stop and kill servers, those of `web` need a browser.
pub const ALL: &[(&str, Flow)] = flows![
    lists::register_and_log_in,
    talk::encrypted_room,
    talk::back_pagination,
    talk::receipts_unread_typing,
    talk::app_closed_and_opened,
    talk::notification,
    threads::thread_subscriptions,
    trust::verify_another_user,
    trust::verify_own_device,
    trust::recovery_on_a_second_device,
    trust::identity_reset,
    trust::device_removed,
    keys::one_time_keys_exhausted,
    keys::away_while_much_happens,
    doors::invite,
    doors::knock,
    doors::kick_and_ban,
    lists::many_rooms,
    lists::session_expired,
    outages::server_restarts,
    outages::server_is_killed,
    outages::other_server_is_away,
    web::browser,
    web::browser_restores,
];

fn initial(event: Raw<impl Sized>) -> Raw<AnyInitialStateEvent> {
    event.cast_unchecked()
}

fn encryption(content: RoomEncryptionEventContent) -> Raw<AnyInitialStateEvent> {
    initial(InitialStateEvent::with_empty_state_key(content).to_raw())
}

/// A private encrypted room with a name, and an invite to each.
async fn encrypted_room(owner: &Phone, name: &str, invite: &[&UserId]) -> Result<OwnedRoomId> {
    let mut wanted = CreateRoom::new();
    wanted.name = Some(name.to_owned());
    wanted.preset = Some(RoomPreset::PrivateChat);
    wanted.initial_state = vec![encryption(RoomEncryptionEventContent::with_recommended_defaults())];
    wanted.invite = invite.iter().map(|&user| user.to_owned()).collect();
    let room = owner.client.create_room(wanted).await?.room_id().to_owned();
    owner.list_shows(&room, RoomState::Joined).await?;
    Ok(room)
}

/// Alice and Bob, and an encrypted room in which both are.
async fn two_in_a_room(stage: &Stage, name: &str) -> Result<(Phone, Phone, OwnedRoomId)> {
    let alice = Phone::log_in(stage, &stage.account(At::Server, "alice")?, "phone").await?;
    let bob = Phone::log_in(stage, &stage.account(At::Other, "bob")?, "phone").await?;
    let room = encrypted_room(&alice, name, &[bob.id()]).await?;
    join(&bob, &room).await?;
    meets(&alice, &room, bob.id()).await?;
    Ok((alice, bob, room))
}

/// Accepts the invite that the list shows.
async fn join(guest: &Phone, room: &OwnedRoomId) -> Result<()> {
    guest.list_shows(room, RoomState::Invited).await?.join().await?;
    guest.list_shows(room, RoomState::Joined).await?;
    Ok(())
}

/// Waits until the member is joined in the eyes of this phone.
async fn meets(phone: &Phone, room: &OwnedRoomId, member: &UserId) -> Result<()> {
    let room = phone.room(room)?;
    phone.timeline(room.room_id()).await?;
    until(&format!("{} sees that {member} is in", phone.id()), async || {
        match room.get_member_no_sync(member).await {
            Ok(Some(found)) if *found.membership() == MembershipState::Join => Ok(()),
            Ok(found) => Err(format!("{:?}", found.map(|member| member.membership().clone()))),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

/// Waits until the room is shown by this name.
async fn has_name(room: &Room, wanted: &str) -> Result<()> {
    until(&format!("the name {wanted:?}"), async || {
        let name = room.name();
        if name.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{name:?}")) }
    })
    .await
}

/// Waits until the invite says who sent it, with the sender's own membership in its state.
async fn is_invited_by(invite: &Room, inviter: &UserId) -> Result<()> {
    until(&format!("the invite is by {inviter}"), async || match invite.invite_details().await {
        Ok(details) if details.inviter_id == inviter && details.inviter.is_some() => Ok(()),
        Ok(details) => Err(format!("{} {:?}", details.inviter_id, details.inviter.is_some())),
        // The list is told before what it shows is in the engine's store.
        Err(error) => Err(error.to_string()),
    })
    .await
}

/// Waits until the phone has heard of the other one, so that what it writes can be read there.
async fn knows_device(phone: &Phone, other: &Phone) -> Result<()> {
    let device = other.client.device_id().expect("it is logged in");
    until(&format!("{} knows of {device}", phone.id()), async || {
        let devices = phone.client.encryption().get_user_devices(other.id()).await;
        let devices = devices.map_err(|error| error.to_string())?;
        devices.get(device).map(drop).ok_or_else(|| format!("{:?}", devices.keys().collect::<Vec<_>>()))
    })
    .await
}
