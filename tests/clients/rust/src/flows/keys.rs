//! Keys that run out, and much that waits for one who was away.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use matrix_sdk::RoomState;
use matrix_sdk::ruma::OneTimeKeyAlgorithm;
use matrix_sdk::ruma::api::client::keys::claim_keys::v3::Request as Claim;
use matrix_sdk::ruma::api::client::room::create_room::v3::{Request as CreateRoom, RoomPreset};
use matrix_sdk::ruma::events::room::encryption::RoomEncryptionEventContent;
use matrix_sdk::ruma::uint;

use super::{encryption, join, meets, two_in_a_room};
use crate::phone::Phone;
use crate::stage::{At, Stage, demand, until};

/// Bob's app is closed, and all his one-time keys are taken: each came once, then it is the fallback key, and with that
/// a phone that never met his can still write to him.
pub async fn one_time_keys_exhausted(stage: &Stage) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "Out of keys").await?;
    let stock = until("Bob's keys are on the server", async || match bob.one_time_keys().await {
        Ok(count) if count >= 40 => Ok(count),
        other => Err(format!("{other:?}")),
    })
    .await?;
    bob.has_a_fallback_key().await?;
    alice.say(&room, "before").await?;
    bob.sees(&room, "before").await?;
    let (bobs_id, bobs_device) = (bob.id().to_owned(), bob.client.device_id().unwrap().to_owned());
    let closed = bob.close().await?;

    let wanted = BTreeMap::from([(
        bobs_id.clone(),
        BTreeMap::from([(bobs_device.clone(), OneTimeKeyAlgorithm::SignedCurve25519)]),
    )]);
    let mut taken = BTreeSet::new();
    let mut fallback = None;
    for _ in 0..stock + 20 {
        let answer = alice.client.send(Claim::new(wanted.clone())).await?;
        let keys = answer.one_time_keys.get(&bobs_id).and_then(|devices| devices.get(&bobs_device));
        let Some((id, key)) = keys.and_then(|keys| keys.iter().next()) else {
            bail!("no key after {} were taken: {answer:?}", taken.len());
        };
        if key.get_field::<bool>("fallback")? == Some(true) {
            demand(fallback.is_none() || fallback.as_ref() == Some(id), "a second fallback key")?;
            fallback = Some(id.clone());
        } else {
            demand(fallback.is_none(), "a one-time key after the fallback key")?;
            demand(taken.insert(id.clone()), format!("{id} was given twice"))?;
        }
    }
    demand(fallback.is_some(), "no fallback key")?;
    tracing::info!("{} one-time keys were taken", taken.len());

    let tablet = Phone::log_in(stage, &alice.account, "tablet").await?;
    tablet.list_shows(&room, RoomState::Joined).await?;
    tablet.say(&room, "by the fallback key").await?;
    let bob = closed.open().await?;
    bob.list_shows(&room, RoomState::Joined).await?;
    bob.sees(&room, "by the fallback key").await?;
    until("Bob has put new keys there", async || match bob.one_time_keys().await {
        Ok(count) if count >= 40 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await?;
    bob.say(&room, "thanks").await?;
    tablet.sees(&room, "thanks").await?;
    alice.sees(&room, "thanks").await?;
    if !stage.is_one_server() {
        // A server that has taken that many may be given the fallback key for a while.
        return Ok(());
    }
    let answer = alice.client.send(Claim::new(wanted)).await?;
    let keys = answer.one_time_keys.get(&bobs_id).and_then(|devices| devices.get(&bobs_device));
    let (id, key) = keys.and_then(|keys| keys.iter().next()).context("no key")?;
    demand(
        key.get_field::<bool>("fallback")?.is_none(),
        "the fallback key, though there are one-time keys again",
    )?;
    demand(taken.insert(id.clone()), format!("{id} was given twice"))
}

/// A room whose key changes with each message: 130 keys wait for Bob, more than an answer has, while devices come and
/// go and the room gets other members. He reads everything.
pub async fn away_while_much_happens(stage: &Stage) -> Result<()> {
    let alice = Phone::log_in(stage, &stage.account(At::Server, "alice")?, "phone").await?;
    let bob = Phone::log_in(stage, &stage.account(At::Other, "bob")?, "phone").await?;
    let mut wanted = CreateRoom::new();
    wanted.preset = Some(RoomPreset::PrivateChat);
    wanted.invite = vec![bob.id().to_owned()];
    let mut each = RoomEncryptionEventContent::with_recommended_defaults();
    each.rotation_period_msgs = Some(uint!(1));
    wanted.initial_state = vec![encryption(each)];
    let room = alice.client.create_room(wanted).await?.room_id().to_owned();
    join(&bob, &room).await?;
    meets(&alice, &room, bob.id()).await?;
    alice.say(&room, "see you").await?;
    bob.sees(&room, "see you").await?;
    let closed = bob.close().await?;

    let mut texts = Vec::new();
    for number in 0..130 {
        texts.push(format!("meanwhile {number}"));
        alice.say(&room, &texts[number]).await?;
    }
    let tablet = Phone::log_in(stage, &alice.account, "tablet").await?;
    tablet.list_shows(&room, RoomState::Joined).await?;
    texts.push("from a device that Bob never met".to_owned());
    tablet.say(&room, &texts[130]).await?;
    tablet.client.logout().await?;
    let carol = Phone::log_in(stage, &stage.account(At::Other, "carol")?, "phone").await?;
    alice.room(&room)?.invite_user_by_id(carol.id()).await?;
    join(&carol, &room).await?;
    texts.push("from one who came meanwhile".to_owned());
    carol.timeline(&room).await?;
    carol.say(&room, &texts[131]).await?;

    let bob = closed.open().await?;
    bob.list_shows(&room, RoomState::Joined).await?;
    bob.sees(&room, &texts[131]).await?;
    bob.pages_back_to_the_start(&room).await?;
    bob.sees_each_once(&room, &texts).await?;
    bob.say(&room, "I am back").await?;
    for phone in [&alice, &carol] {
        phone.sees(&room, "I am back").await?;
    }
    Ok(())
}
