//! Messages, and what goes with them.

use anyhow::{Result, bail};
use matrix_sdk::RoomState;
use matrix_sdk::ruma::api::client::receipt::create_receipt::v3::ReceiptType;
use matrix_sdk::ruma::events::Mentions;
use matrix_sdk::ruma::events::room::message::RoomMessageEventContent;
use matrix_sdk_ui::notification_client::{
    NotificationClient, NotificationEvent, NotificationProcessSetup, NotificationStatus,
};

use super::{has_name, is_invited_by, join, meets, two_in_a_room};
use crate::phone::{Phone, says};
use crate::stage::{At, Stage, announced, demand, until};

/// An invite with its name and its inviter, messages both ways, a reaction-free edit and a redaction; all in clear.
pub async fn encrypted_room(stage: &Stage) -> Result<()> {
    let alice = Phone::log_in(stage, &stage.account(At::Server, "alice")?, "phone").await?;
    let bob = Phone::log_in(stage, &stage.account(At::Other, "bob")?, "phone").await?;
    let room = super::encrypted_room(&alice, "A secret garden", &[bob.id()]).await?;
    let invite = bob.list_shows(&room, RoomState::Invited).await?;
    has_name(&invite, "A secret garden").await?;
    is_invited_by(&invite, alice.id()).await?;
    join(&bob, &room).await?;
    demand(
        bob.room(&room)?.latest_encryption_state().await?.is_encrypted(),
        "Bob takes the room for a clear one",
    )?;
    meets(&alice, &room, bob.id()).await?;
    let mut texts = Vec::new();
    for number in 0..4 {
        let (from, to) = if number % 2 == 0 { (&alice, &bob) } else { (&bob, &alice) };
        texts.push(format!("message {number}"));
        from.say(&room, &texts[number]).await?;
        let seen = to.sees(&room, &texts[number]).await?;
        demand(seen.encryption_info().is_some(), "the message came in clear")?;
    }
    for phone in [&alice, &bob] {
        phone.sees_each_once(&room, &texts).await?;
    }
    let edited = alice.sees(&room, "message 0").await?;
    let new = RoomMessageEventContent::text_plain("message 0, in other words").into();
    alice
        .timeline(&room)
        .await?
        .edit(&edited.identifier(), matrix_sdk::room::edit::EditedContent::RoomMessage(new))
        .await?;
    bob.sees(&room, "message 0, in other words").await?;
    let unsaid = bob.sees(&room, "message 1").await?;
    bob.timeline(&room).await?.redact(&unsaid.identifier(), None).await?;
    until("Alice sees that the message was redacted", async || {
        let items = alice.items(&room).await.map_err(|error| error.to_string())?;
        if items.iter().any(|item| item.content().is_redacted()) {
            Ok(())
        } else {
            Err("it is there".to_owned())
        }
    })
    .await
}

/// More messages than an answer of the sync has, while Bob's app is closed: he pages back to the first, and to the start.
pub async fn back_pagination(stage: &Stage) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "A long story").await?;
    let mut texts = vec!["chapter 0".to_owned()];
    alice.say(&room, &texts[0]).await?;
    bob.sees(&room, &texts[0]).await?;
    let closed = bob.close().await?;
    for chapter in 1..=60 {
        texts.push(format!("chapter {chapter}"));
        alice.say(&room, &texts[chapter]).await?;
    }
    let bob = closed.open().await?;
    bob.list_shows(&room, RoomState::Joined).await?;
    bob.sees(&room, "chapter 60").await?;
    bob.pages_back_to_the_start(&room).await?;
    bob.sees_each_once(&room, &texts).await?;
    let order: Vec<_> = bob
        .items(&room)
        .await?
        .iter()
        .filter_map(|item| item.content().as_message().map(|message| message.body().to_owned()))
        .collect();
    demand(order == texts, format!("the order is {order:?}"))
}

pub async fn receipts_unread_typing(stage: &Stage) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "Who read what").await?;
    let bobs_room = bob.room(&room)?;
    alice.say(&room, "one").await?;
    alice.say(&room, "two").await?;
    bob.sees(&room, "two").await?;
    unread_is(&bob, &room, (2, 0)).await?;
    let mention = RoomMessageEventContent::text_plain("you there")
        .add_mentions(Mentions::with_user_ids([bob.id().to_owned()]));
    alice.timeline(&room).await?.send(mention.into()).await?;
    let last = alice.sent(&room, "you there").await?;
    bob.sees(&room, "you there").await?;
    unread_is(&bob, &room, (3, 1)).await?;

    let tablet = Phone::log_in(stage, &bob.account, "tablet").await?;
    tablet.list_shows(&room, RoomState::Joined).await?;

    demand(bob.timeline(&room).await?.mark_as_read(ReceiptType::Read).await?, "there is nothing to mark")?;
    unread_is(&bob, &room, (0, 0)).await?;
    until("Alice sees how far Bob has read", async || {
        let items = alice.items(&room).await.map_err(|error| error.to_string())?;
        // From the end: the engine may leave an older one standing beside ("duplicate read receipts", it says then).
        let read = items.iter().rfind(|item| item.read_receipts().contains_key(bob.id()));
        match read {
            Some(item) if item.event_id() == Some(&last) => Ok(()),
            Some(item) => Err(format!("{:?}", item.event_id())),
            None => Err("no receipt".to_owned()),
        }
    })
    .await?;
    unread_is(&tablet, &room, (0, 0)).await?;
    // One read on another device before this one was ever there: its own receipt must come with the room.
    let third = Phone::log_in(stage, &bob.account, "watch").await?;
    third.list_shows(&room, RoomState::Joined).await?;
    third.timeline(&room).await?;
    unread_is(&third, &room, (0, 0)).await?;

    let (_guard, mut typing) = alice.room(&room)?.subscribe_to_typing_notifications();
    bobs_room.typing_notice(true).await?;
    announced("Bob's typing", &mut typing, |users| *users == [bob.id()]).await?;
    bobs_room.typing_notice(false).await?;
    announced("the end of it", &mut typing, |users| users.is_empty()).await?;

    bobs_room.set_unread_flag(true).await?;
    until("the tablet shows the room as marked unread", async || {
        if tablet.room(&room).is_ok_and(|room| room.is_marked_unread()) {
            Ok(())
        } else {
            Err("it is not".to_owned())
        }
    })
    .await
}

async fn unread_is(phone: &Phone, room: &matrix_sdk::ruma::RoomId, wanted: (u64, u64)) -> Result<()> {
    let room = phone.room(room)?;
    until(&format!("{} has {wanted:?} unread messages and mentions", phone.id()), async || {
        let seen = (room.num_unread_messages(), room.num_unread_mentions());
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await
}

/// The app is closed and opened: it goes on where it was, with what came meanwhile.
pub async fn app_closed_and_opened(stage: &Stage) -> Result<()> {
    let (alice, mut bob, room) = two_in_a_room(stage, "Come and go").await?;
    let mut texts = Vec::new();
    for round in 0..3 {
        texts.push(format!("open {round}"));
        alice.say(&room, texts.last().unwrap()).await?;
        bob.sees(&room, texts.last().unwrap()).await?;
        let closed = bob.close().await?;
        texts.push(format!("closed {round}"));
        alice.say(&room, texts.last().unwrap()).await?;
        bob = closed.open().await?;
        bob.list_shows(&room, RoomState::Joined).await?;
        bob.sees(&room, texts.last().unwrap()).await?;
        texts.push(format!("answer {round}"));
        bob.say(&room, texts.last().unwrap()).await?;
        alice.sees(&room, texts.last().unwrap()).await?;
    }
    bob.sees_each_once(&room, &texts).await?;
    alice.sees_each_once(&room, &texts).await
}

/// What a push notification is filled with: a connection of its own gets the event, the encryption sync its key.
pub async fn notification(stage: &Stage) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "Ring ring").await?;
    bob.sees_nothing_yet(&room).await?;
    bob.sync.stop().await;
    let event = alice.say(&room, "are you there?").await?;
    let setup = NotificationProcessSetup::SingleProcess { sync_service: bob.sync.clone() };
    let notifications = NotificationClient::new(bob.client.clone(), setup).await?;
    let NotificationStatus::Event(item) = notifications.get_notification(&room, &event).await? else {
        bail!("no notification for a message");
    };
    let NotificationEvent::Timeline(_) = &item.event else { bail!("a notification of an invite") };
    let shown = format!("{:?}", item.event);
    demand(shown.contains("are you there?"), format!("the notification is {shown}"))?;
    demand(item.room_computed_display_name == "Ring ring", &item.room_computed_display_name)?;

    let second = super::encrypted_room(&alice, "Come in", &[bob.id()]).await?;
    let members = alice.room(&second)?.get_member(bob.id()).await?;
    let invite = members.and_then(|member| member.event().event_id().map(ToOwned::to_owned));
    let Some(invite) = invite else { bail!("Alice does not see her own invite") };
    let found = until("the notification of the invite", async || {
        match notifications.get_notification(&second, &invite).await {
            Ok(NotificationStatus::Event(item)) => Ok(item),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    demand(matches!(found.event, NotificationEvent::Invite(_)), "the notification is of no invite")?;
    demand(found.room_computed_display_name == "Come in", &found.room_computed_display_name)?;
    bob.sync.start().await;
    bob.list_shows(&second, RoomState::Invited).await?;
    bob.sees(&room, "are you there?").await.map(drop)
}

impl Phone {
    async fn sees_nothing_yet(&self, room: &matrix_sdk::ruma::RoomId) -> Result<()> {
        let items = self.items(room).await?;
        demand(!items.iter().any(|item| says(item, "are you there?")), "a message from the future")
    }
}
