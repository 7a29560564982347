//! Threads that somebody subscribes to: which of their devices learn of it, and what rings.

use anyhow::Result;
use matrix_sdk::RoomState;
use matrix_sdk::notification_settings::RoomNotificationMode;
use matrix_sdk::ruma::events::Mentions;
use matrix_sdk::ruma::events::relation::Thread;
use matrix_sdk::ruma::events::room::message::{Relation, RoomMessageEventContent};
use matrix_sdk::ruma::push::Action;
use matrix_sdk::ruma::{EventId, OwnedEventId, RoomId};
use matrix_sdk::store::ThreadSubscriptionStatus;

use super::{encrypted_room, join, meets};
use crate::phone::Phone;
use crate::stage::{At, Stage, demand, until};

/// More than the engine asks for at once: the rest it has to catch up with.
const MANY: usize = 23;

/// Bob's phone subscribes to a thread, and his tablet learns it, and the other way round; a reply that mentions nobody rings for
/// who is subscribed, and not for Bob once he is not, nor for Carol, who is subscribed to another thread. In a room that rings for
/// mentions only: where everything rings the engine subscribes to each thread in which anything is said.
pub async fn thread_subscriptions(stage: &Stage) -> Result<()> {
    let alice = Phone::log_in(stage, &stage.account(At::Server, "alice")?, "phone").await?;
    let bob = Phone::log_in_with_subscriptions(stage, &stage.account(At::Other, "bob")?, "phone").await?;
    let carol = Phone::log_in_with_subscriptions(stage, &stage.account(At::Other, "carol")?, "phone").await?;
    if !bob.client.enabled_thread_subscriptions().await? {
        // A server without them: the engine asks for nothing then.
        return Ok(());
    }
    let room = encrypted_room(&alice, "Many threads", &[bob.id(), carol.id()]).await?;
    for guest in [&bob, &carol] {
        join(guest, &room).await?;
        meets(&alice, &room, guest.id()).await?;
    }
    let tablet = Phone::log_in_with_subscriptions(stage, &bob.account, "tablet").await?;
    tablet.list_shows(&room, RoomState::Joined).await?;
    for phone in [&bob, &carol] {
        phone.silences(&room).await?;
    }
    tablet.has_silenced(&room).await?;
    let root = alice.say(&room, "the root").await?;
    let other_root = alice.say(&room, "another root").await?;
    for phone in [&bob, &carol] {
        phone.sees(&room, "another root").await?;
    }

    bob.room(&room)?.subscribe_thread(root.clone(), None).await?;
    carol.room(&room)?.subscribe_thread(other_root, None).await?;
    tablet.knows(&room, &root, ThreadSubscriptionStatus::Subscribed { automatic: false }).await?;
    bob.knows(&room, &root, ThreadSubscriptionStatus::Subscribed { automatic: false }).await?;
    let reply = alice.replies(&room, &root, "a reply", None).await?;
    demand(bob.is_rung(&room, &reply, "a reply").await?, "a reply in Bob's thread does not ring for him")?;
    demand(!carol.is_rung(&room, &reply, "a reply").await?, "a reply in Bob's thread rings for Carol")?;

    tablet.room(&room)?.unsubscribe_thread(root.clone()).await?;
    bob.knows(&room, &root, ThreadSubscriptionStatus::Unsubscribed).await?;
    let reply = alice.replies(&room, &root, "without Bob", None).await?;
    demand(
        !bob.is_rung(&room, &reply, "without Bob").await?,
        "a thread that Bob unsubscribed from rings for him",
    )?;

    // A mention rings all the same, and the engine subscribes by itself.
    bob.timeline(&room).await?;
    let mention = Mentions::with_user_ids([bob.id().to_owned()]);
    let reply = alice.replies(&room, &root, "Bob, are you there?", Some(mention)).await?;
    demand(bob.is_rung(&room, &reply, "Bob, are you there?").await?, "a mention does not ring for Bob")?;
    tablet.knows(&room, &root, ThreadSubscriptionStatus::Subscribed { automatic: true }).await?;

    // A device that comes later catches up with all of them.
    let mut roots = Vec::new();
    for number in 0..MANY {
        let root = alice.say(&room, &format!("root {number}")).await?;
        bob.sees(&room, &format!("root {number}")).await?;
        bob.room(&room)?.subscribe_thread(root.clone(), None).await?;
        roots.push(root);
    }
    let watch = Phone::log_in_with_subscriptions(stage, &bob.account, "watch").await?;
    watch.list_shows(&room, RoomState::Joined).await?;
    for root in &roots {
        watch.knows(&room, root, ThreadSubscriptionStatus::Subscribed { automatic: false }).await?;
    }
    watch.knows(&room, &root, ThreadSubscriptionStatus::Subscribed { automatic: true }).await
}

impl Phone {
    /// Has the room ring for mentions only.
    async fn silences(&self, room: &RoomId) -> Result<()> {
        let settings = self.client.notification_settings().await;
        settings.set_room_notification_mode(room, RoomNotificationMode::MentionsAndKeywordsOnly).await?;
        self.has_silenced(room).await
    }

    async fn has_silenced(&self, room: &RoomId) -> Result<()> {
        until(&format!("{room} rings for {} for mentions only", self.id()), async || {
            let settings = self.client.notification_settings().await;
            match settings.get_user_defined_room_notification_mode(room).await {
                Some(RoomNotificationMode::MentionsAndKeywordsOnly) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Waits until the server has told this device what a thread is to its user.
    async fn knows(&self, room: &RoomId, root: &EventId, wanted: ThreadSubscriptionStatus) -> Result<()> {
        let device = self.client.device_id().expect("it is logged in");
        until(&format!("{device} of {} knows that {root} is {wanted:?}", self.id()), async || {
            let known = self.client.state_store().load_thread_subscription(room, root).await;
            match known.map_err(|error| error.to_string())? {
                Some(known) if known.status == wanted && known.bump_stamp.is_some() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Says something in a thread.
    async fn replies(
        &self,
        room: &RoomId,
        root: &EventId,
        text: &str,
        mentions: Option<Mentions>,
    ) -> Result<OwnedEventId> {
        let mut content = RoomMessageEventContent::text_plain(text);
        content.relates_to = Some(Relation::Thread(Thread::plain(root.to_owned(), root.to_owned())));
        content.mentions = mentions;
        self.timeline(room).await?.send(content.into()).await?;
        self.sent(room, text).await
    }

    /// Whether the engine has it ring for an event that it shows, by the rules that the server gave it and what it knows of the
    /// thread. (What it has for a process that is woken by pushes asks a store of its own, which knows of no subscriptions.)
    async fn is_rung(&self, room: &RoomId, event: &EventId, text: &str) -> Result<bool> {
        self.sees(room, text).await?;
        let event = self.room(room)?.event(event, None).await?;
        Ok(event.push_actions().is_some_and(|actions| actions.iter().any(Action::should_notify)))
    }
}
