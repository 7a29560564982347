//! Servers that go and come back.

use anyhow::Result;
use matrix_sdk::ruma::RoomId;

use super::{knows_device, two_in_a_room};
use crate::phone::Phone;
use crate::stage::{At, Stage};

/// Alice's server is stopped in order and started again, twice, with messages of both in the queues.
pub async fn server_restarts(stage: &Stage) -> Result<()> {
    interrupted(stage, |stage| stage.stop(At::Server)).await
}

/// The same by `kill -9`.
pub async fn server_is_killed(stage: &Stage) -> Result<()> {
    interrupted(stage, |stage| stage.kill(At::Server)).await
}

async fn interrupted(stage: &Stage, end: impl Fn(&Stage) -> Result<()>) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "Interrupted").await?;
    let mut texts = Vec::new();
    for round in 0..2 {
        both_say(&alice, &bob, &room, &mut texts, &format!("before {round}")).await?;
        // In the middle: what is just on its way may have been taken or not, and comes once all the same.
        let on_its_way = format!("on its way {round}");
        alice.queue(&room, &on_its_way).await?;
        end(stage)?;
        let queued = format!("queued {round}");
        alice.queue(&room, &queued).await?;
        texts.extend([on_its_way.clone(), queued.clone()]);
        stage.start(At::Server)?;
        for phone in [&alice, &bob] {
            phone.is_in_touch().await?;
        }
        alice.sent(&room, &on_its_way).await?;
        alice.sent(&room, &queued).await?;
        bob.sees(&room, &queued).await?;
        both_say(&alice, &bob, &room, &mut texts, &format!("after {round}")).await?;
        for phone in [&alice, &bob] {
            phone.sees_each_once(&room, &texts).await?;
        }
    }
    // Somebody new meets both: what is known of keys and devices was kept.
    let tablet = Phone::log_in(stage, &bob.account, "tablet").await?;
    tablet.list_shows(&room, matrix_sdk::RoomState::Joined).await?;
    knows_device(&alice, &tablet).await?;
    both_say(&alice, &tablet, &room, &mut texts, "by a new device").await
}

async fn both_say(
    one: &Phone,
    two: &Phone,
    room: &RoomId,
    texts: &mut Vec<String>,
    what: &str,
) -> Result<()> {
    for (from, to) in [(one, two), (two, one)] {
        let text = format!("{what}, by {}", from.id());
        from.say(room, &text).await?;
        to.sees(room, &text).await?;
        texts.push(text);
    }
    Ok(())
}

/// Bob's server is away while Alice writes, from devices old and new; afterwards he reads all of it.
pub async fn other_server_is_away(stage: &Stage) -> Result<()> {
    if stage.is_one_server() {
        tracing::info!("there is no other server");
        return Ok(());
    }
    let (alice, bob, room) = two_in_a_room(stage, "Far away").await?;
    let mut texts = Vec::new();
    both_say(&alice, &bob, &room, &mut texts, "before").await?;
    stage.kill(At::Other)?;
    for number in 0..5 {
        texts.push(format!("while you were away {number}"));
        alice.say(&room, texts.last().unwrap()).await?;
    }
    stage.start(At::Other)?;
    bob.is_in_touch().await?;
    bob.sees(&room, texts.last().unwrap()).await?;
    both_say(&alice, &bob, &room, &mut texts, "after").await?;
    bob.sees_each_once(&room, &texts).await
}
