//! Accounts and the room list.

use anyhow::{Context, Result};
use matrix_sdk::RoomState;
use matrix_sdk::ruma::api::client::account::register::v3::Request as Register;
use matrix_sdk::ruma::api::client::room::create_room::v3::Request as CreateRoom;
use matrix_sdk::ruma::api::client::uiaa::{AuthData, AuthType, Dummy};
use matrix_sdk::ruma::events::room::message::RoomMessageEventContent;

use super::{encrypted_room, has_name, join};
use crate::phone::{Phone, client};
use crate::stage::{At, Stage, demand, until};

/// Registers by the engine where the server lets clients do that, logs in, sees an empty list, then a room, logs out.
pub async fn register_and_log_in(stage: &Stage) -> Result<()> {
    register(stage).await?;
    let account = stage.account(At::Server, "alice")?;
    let alice = Phone::log_in(stage, &account, "phone").await?;
    let who = alice.client.whoami().await?;
    demand(
        who.user_id == account.id && who.device_id.as_deref() == alice.client.device_id(),
        format!("{who:?}"),
    )?;
    demand(alice.list_is_loaded().await? == 0, "a new account has rooms")?;
    let room = encrypted_room(&alice, "Of one's own", &[]).await?;
    let shown = alice.list_shows(&room, RoomState::Joined).await?;
    has_name(&shown, "Of one's own").await?;
    demand(shown.latest_encryption_state().await?.is_encrypted(), "the room is not known to be encrypted")?;
    alice.say(&room, "to myself").await?;
    alice.sees(&room, "to myself").await?;
    let keys = alice.one_time_keys().await?;
    demand(keys > 0, "no one-time key is on the server")?;
    alice.client.logout().await?;
    demand(alice.client.whoami().await.is_err(), "the token lives after the log-out")
}

async fn register(stage: &Stage) -> Result<()> {
    let client = client(stage.url(At::Server), &stage.folder.join("registers")).await?;
    let mut request = Register::new();
    let name = stage.account(At::Server, "named")?.id.localpart().replace("named", "registered");
    request.username = Some(name.clone());
    request.password = Some("a long enough password".to_owned());
    request.initial_device_display_name = Some("phone".to_owned());
    let Err(refused) = client.matrix_auth().register(request.clone()).await else {
        return demand(false, "registration without a stage");
    };
    let Some(asked) = refused.as_uiaa_response() else {
        tracing::info!("this server does not register: {refused}");
        return Ok(());
    };
    demand(asked.flows.iter().any(|flow| flow.stages == [AuthType::Dummy]), format!("{:?}", asked.flows))?;
    let mut dummy = Dummy::new();
    dummy.session = asked.session.clone();
    request.auth = Some(AuthData::Dummy(dummy));
    let made = client.matrix_auth().register(request).await?;
    demand(made.user_id.localpart() == name, format!("{made:?}"))?;
    demand(client.whoami().await?.user_id == made.user_id, "the registered one is somebody else")
}

/// Forty rooms: a new phone sees all of them, in the order of what happened last, each with its name; an unsynced one
/// moves to the top by a message.
pub async fn many_rooms(stage: &Stage) -> Result<()> {
    let account = stage.account(At::Server, "alice")?;
    let alice = Phone::log_in(stage, &account, "phone").await?;
    let mut made = Vec::new();
    for number in 0..40 {
        let mut wanted = CreateRoom::new();
        wanted.name = Some(format!("Room {number}"));
        let room = alice.client.create_room(wanted).await?;
        room.send(RoomMessageEventContent::text_plain(format!("in {number}"))).await?;
        made.push(room.room_id().to_owned());
    }
    let second = Phone::log_in(stage, &account, "tablet").await?;
    demand(second.list_is_loaded().await? == 40, "the server counts other than 40 rooms")?;
    let wanted: Vec<_> = made.iter().rev().cloned().collect();
    for phone in [&alice, &second] {
        list_is(phone, &wanted).await?;
    }
    for (number, room) in made.iter().enumerate() {
        has_name(&second.room(room)?, &format!("Room {number}")).await?;
    }
    alice.room(&made[3])?.send(RoomMessageEventContent::text_plain("again in 3")).await?;
    let mut wanted = wanted;
    wanted.retain(|room| *room != made[3]);
    wanted.insert(0, made[3].clone());
    for phone in [&alice, &second] {
        list_is(phone, &wanted).await?;
    }
    Ok(())
}

async fn list_is(phone: &Phone, wanted: &[matrix_sdk::ruma::OwnedRoomId]) -> Result<()> {
    until("the list is in the order of what happened last", async || {
        let shown: Vec<_> = phone.rooms().iter().map(|room| room.room_id().to_owned()).collect();
        if shown == wanted {
            return Ok(());
        }
        let places: Vec<_> = shown.iter().map(|room| wanted.iter().position(|one| one == room)).collect();
        Err(format!("{places:?}"))
    })
    .await
}

/// The engine's position is thrown away, as after a week: all is asked anew, and nothing is missing or double.
pub async fn session_expired(stage: &Stage) -> Result<()> {
    let alice = Phone::log_in(stage, &stage.account(At::Server, "alice")?, "phone").await?;
    let bob = Phone::log_in(stage, &stage.account(At::Other, "bob")?, "phone").await?;
    let room = encrypted_room(&alice, "Before", &[bob.id()]).await?;
    join(&bob, &room).await?;
    let mut texts = vec!["before".to_owned()];
    super::meets(&alice, &room, bob.id()).await?;
    alice.say(&room, &texts[0]).await?;
    bob.sees(&room, &texts[0]).await?;
    bob.sync.stop().await;
    texts.push("meanwhile".to_owned());
    alice.say(&room, &texts[1]).await?;
    alice.room(&room)?.set_name("After".to_owned()).await?;
    bob.sync.expire_sessions().await;
    bob.sync.start().await;
    has_name(&bob.room(&room)?, "After").await?;
    // The engine has forgotten its subscription, and got what the list gives: the last event, before it a gap.
    bob.pages_back_to_the_start(&room).await?;
    bob.sees_each_once(&room, &texts).await?;
    bob.say(&room, "here again").await?;
    alice.sees(&room, "here again").await.context("from the one whose session was lost").map(drop)
}
