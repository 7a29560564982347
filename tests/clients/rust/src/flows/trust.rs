//! Who is who: verification, cross-signing, recovery, devices that go.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use matrix_sdk::encryption::VerificationState;
use matrix_sdk::encryption::backups::BackupState;
use matrix_sdk::encryption::recovery::RecoveryState;
use matrix_sdk::encryption::verification::{
    SasState, SasVerification, Verification, VerificationRequest, VerificationRequestState,
};
use matrix_sdk::ruma::api::client::uiaa::{AuthData, MatrixUserIdentifier, Password, UserIdentifier};
use matrix_sdk::ruma::events::key::verification::request::ToDeviceKeyVerificationRequestEvent;
use matrix_sdk::ruma::events::room::message::{MessageType, OriginalSyncRoomMessageEvent};
use matrix_sdk::ruma::{OwnedUserId, UserId};
use matrix_sdk::{RoomState, SessionChange};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{join, meets, two_in_a_room};
use crate::phone::Phone;
use crate::stage::{At, Stage, announced, demand, until};

/// (sender, flow) of each request to verify, in a room or to the device.
fn requests(phone: &Phone) -> UnboundedReceiver<(OwnedUserId, String)> {
    let (tell, heard) = unbounded_channel();
    let tell_too = tell.clone();
    phone.client.add_event_handler(move |event: ToDeviceKeyVerificationRequestEvent| async move {
        let _ = tell.send((event.sender, event.content.transaction_id.to_string()));
    });
    phone.client.add_event_handler(move |event: OriginalSyncRoomMessageEvent| async move {
        if let MessageType::VerificationRequest(_) = event.content.msgtype {
            let _ = tell_too.send((event.sender, event.event_id.to_string()));
        }
    });
    heard
}

async fn request_from(
    phone: &Phone,
    heard: &mut UnboundedReceiver<(OwnedUserId, String)>,
    from: &UserId,
) -> Result<VerificationRequest> {
    loop {
        let next = tokio::time::timeout(std::time::Duration::from_secs(90), heard.recv()).await;
        let (sender, flow) = next.context("no request to verify came")?.context("the app was closed")?;
        if sender == from {
            return until("the request is known", async || {
                phone
                    .client
                    .encryption()
                    .get_verification_request(&sender, &flow)
                    .await
                    .ok_or_else(|| flow.clone())
            })
            .await;
        }
    }
}

/// Both compare the emoji that they see, and say that they match if they do.
async fn compare(asks: &VerificationRequest, answers: &VerificationRequest) -> Result<()> {
    answers.accept().await?;
    until("the one who asked is ready", async || {
        if asks.is_ready() { Ok(()) } else { Err(format!("{:?}", asks.state())) }
    })
    .await?;
    let sas = asks.start_sas().await?.context("no emoji verification")?;
    let theirs: SasVerification = until("the other sees the start", async || match answers.state() {
        VerificationRequestState::Transitioned { verification: Verification::SasV1(sas) } => Ok(sas),
        state => Err(format!("{state:?}")),
    })
    .await?;
    theirs.accept().await?;
    let mut seen = Vec::new();
    for side in [&sas, &theirs] {
        let emoji =
            until("emoji", async || side.emoji().ok_or_else(|| format!("{:?}", side.state()))).await?;
        seen.push(emoji.map(|one| one.symbol));
    }
    demand(seen[0] == seen[1], format!("the emoji differ: {seen:?}"))?;
    sas.confirm().await?;
    theirs.confirm().await?;
    for side in [&sas, &theirs] {
        until("the verification is done", async || match side.state() {
            SasState::Done { .. } => Ok(()),
            state => Err(format!("{state:?}")),
        })
        .await?;
    }
    Ok(())
}

/// Waits until the phone has everything that makes its user's identity.
async fn is_bootstrapped(phone: &Phone) -> Result<()> {
    let encryption = phone.client.encryption();
    until(&format!("{} has its cross-signing keys", phone.id()), async || {
        match encryption.cross_signing_status().await {
            Some(status) if status.is_complete() => Ok(()),
            status => Err(format!("{status:?}")),
        }
    })
    .await?;
    is_verified(phone).await
}

async fn is_verified(phone: &Phone) -> Result<()> {
    let state = phone.client.encryption().verification_state();
    until(&format!("{} is verified", phone.id()), async || match state.get() {
        VerificationState::Verified => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await
}

/// Alice asks, in the direct room of the two; they compare; each then trusts the other's identity and devices, after
/// asking the server again.
pub async fn verify_another_user(stage: &Stage) -> Result<()> {
    let alice = Phone::log_in(stage, &stage.account(At::Server, "alice")?, "phone").await?;
    let bob = Phone::log_in(stage, &stage.account(At::Other, "bob")?, "phone").await?;
    for phone in [&alice, &bob] {
        is_bootstrapped(phone).await?;
    }
    let room = alice.client.create_dm(bob.id()).await?.room_id().to_owned();
    join(&bob, &room).await?;
    meets(&alice, &room, bob.id()).await?;
    alice.say(&room, "hello").await?;
    bob.sees(&room, "hello").await?;
    let mut heard = requests(&bob);
    let identity =
        alice.client.encryption().request_user_identity(bob.id()).await?.context("Bob has no identity")?;
    demand(!identity.is_verified(), "verified before it was")?;
    let asks = identity.request_verification().await?;
    demand(asks.room_id() == Some(&room), format!("the request is in {:?}", asks.room_id()))?;
    let answers = request_from(&bob, &mut heard, alice.id()).await?;
    compare(&asks, &answers).await?;
    for (phone, of) in [(&alice, &bob), (&bob, &alice)] {
        let encryption = phone.client.encryption();
        until(&format!("{} trusts {}", phone.id(), of.id()), async || {
            let identity =
                encryption.request_user_identity(of.id()).await.map_err(|error| error.to_string())?;
            match identity {
                Some(identity) if identity.is_verified() => Ok(()),
                other => Err(format!("{:?}", other.is_some())),
            }
        })
        .await?;
        let devices = encryption.get_user_devices(of.id()).await?;
        demand(
            devices.devices().all(|device| device.is_verified()),
            "a device of a verified user is not verified",
        )?;
    }
    Ok(())
}

/// A second device is verified by the first one's emoji, gets the secrets from it, and then reads the old messages from
/// the backup.
pub async fn verify_own_device(stage: &Stage) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "Old letters").await?;
    is_bootstrapped(&alice).await?;
    has_the_backup(&alice).await?;
    bob.say(&room, "from before").await?;
    alice.sees(&room, "from before").await?;
    backed_up(&alice).await?;

    let tablet = Phone::log_in(stage, &alice.account, "tablet").await?;
    let mut heard = requests(&alice);
    let encryption = tablet.client.encryption();
    tablet.list_shows(&room, RoomState::Joined).await?;
    let identity = encryption.request_user_identity(alice.id()).await?.context("no identity of one's own")?;
    // The engine lets a request go by that comes from a device which it has not fetched yet.
    let device = tablet.client.device_id().context("no device of one's own")?;
    until("the phone knows the tablet", async || {
        match alice.client.encryption().get_device(alice.id(), device).await {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{:?}", other.map(|device| device.is_some()))),
        }
    })
    .await?;
    for attempt in 0.. {
        let asks = identity.request_verification().await?;
        let answers = request_from(&alice, &mut heard, alice.id()).await?;
        compare(&asks, &answers).await?;
        is_verified(&tablet).await?;
        let has_all = async {
            is_bootstrapped(&tablet).await?;
            has_the_backup(&tablet).await
        };
        // The engine asks for the secrets while it says that it is done, in parallel: what comes to the other device
        // before that word is refused there, for good. Then people verify again.
        match tokio::time::timeout(std::time::Duration::from_secs(20), has_all).await {
            Ok(has_all) => {
                has_all?;
                break;
            }
            Err(_) => demand(attempt < 3, "the secrets do not come, however often the device is verified")?,
        }
    }
    tablet.sees(&room, "from before").await?;
    bob.say(&room, "to both").await?;
    tablet.sees(&room, "to both").await?;
    alice.sees(&room, "to both").await.map(drop)
}

/// Waits until the phone may write into the backup.
async fn has_the_backup(phone: &Phone) -> Result<()> {
    let backups = phone.client.encryption().backups();
    until("the backup is enabled", async || match backups.state() {
        BackupState::Enabled => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await
}

async fn backed_up(phone: &Phone) -> Result<()> {
    let backups = phone.client.encryption().backups();
    tokio::time::timeout(std::time::Duration::from_secs(90), backups.wait_for_steady_state())
        .await
        .context("the backup takes for ever")?
        .context("the backup")
}

/// Secret storage and the backup are set up on one device; another has nothing but the recovery key.
pub async fn recovery_on_a_second_device(stage: &Stage) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "The key under the mat").await?;
    is_bootstrapped(&alice).await?;
    let mut texts = Vec::new();
    for number in 0..3 {
        texts.push(format!("to be kept {number}"));
        bob.say(&room, &texts[number]).await?;
        alice.sees(&room, &texts[number]).await?;
    }
    let key = alice.client.encryption().recovery().enable().wait_for_backups_to_upload().await?;
    demand(
        alice.client.encryption().recovery().state() == RecoveryState::Enabled,
        "recovery is not enabled",
    )?;
    texts.push("after it was enabled".to_owned());
    bob.say(&room, &texts[3]).await?;
    alice.sees(&room, &texts[3]).await?;
    backed_up(&alice).await?;
    alice.client.logout().await?;

    let new = Phone::log_in(stage, &alice.account, "new").await?;
    let recovery = new.client.encryption().recovery();
    until("the new phone knows that it can be recovered", async || match recovery.state() {
        RecoveryState::Incomplete => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await?;
    demand(
        recovery.recover("EsTc LW2K PGiF wKEA 3As5 g5c4 BXwk qeeJ ZJV8 Q9fu gUMN UE4d").await.is_err(),
        "any key opens it",
    )?;
    recovery.recover(&key).await?;
    demand(recovery.state() == RecoveryState::Enabled, format!("recovered to {:?}", recovery.state()))?;
    is_bootstrapped(&new).await?;
    new.list_shows(&room, RoomState::Joined).await?;
    new.pages_back_to_the_start(&room).await?;
    new.sees_each_once(&room, &texts).await?;
    bob.say(&room, "to the new phone").await?;
    new.sees(&room, "to the new phone").await?;
    new.say(&room, "thanks").await?;
    let thanks = bob.sees(&room, "thanks").await?;
    bob.all_is_readable(&room).await?;
    demand(thanks.encryption_info().is_some(), "it came in clear")
}

/// The identity is reset with the password; others notice, and go on talking.
pub async fn identity_reset(stage: &Stage) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "A new face").await?;
    for phone in [&alice, &bob] {
        is_bootstrapped(phone).await?;
    }
    alice.say(&room, "me").await?;
    bob.sees(&room, "me").await?;
    let before = master_key(&bob, alice.id()).await?;
    let handle = alice.client.encryption().reset_cross_signing().await?;
    let handle = handle.context("the identity was changed without a password")?;
    let wrong = Password::new(
        UserIdentifier::Matrix(MatrixUserIdentifier::new(alice.id().to_string())),
        "wrong".to_owned(),
    );
    demand(
        handle.auth(Some(AuthData::Password(wrong))).await.is_err(),
        "the identity was changed with a wrong password",
    )?;
    let handle = alice
        .client
        .encryption()
        .reset_cross_signing()
        .await?
        .context("without a password, the second time")?;
    handle.auth(Some(password(&alice, None))).await?;
    is_bootstrapped(&alice).await?;
    until("Bob sees the new identity", async || {
        let now = master_key_known(&bob, alice.id()).await.map_err(|error| error.to_string())?;
        if now != before { Ok(()) } else { Err("the old one".to_owned()) }
    })
    .await?;
    alice.say(&room, "still me").await?;
    bob.sees(&room, "still me").await?;
    bob.say(&room, "so you say").await?;
    alice.sees(&room, "so you say").await.map(drop)
}

async fn master_key(phone: &Phone, of: &UserId) -> Result<String> {
    phone.client.encryption().request_user_identity(of).await?;
    master_key_known(phone, of).await
}

/// As the phone has it, without asking the server: it must have been told.
async fn master_key_known(phone: &Phone, of: &UserId) -> Result<String> {
    let identity = phone.client.encryption().get_user_identity(of).await?.context("no identity")?;
    let keys: BTreeMap<_, _> =
        identity.master_key().keys().iter().map(|(id, key)| (id.to_string(), key.to_base64())).collect();
    Ok(format!("{keys:?}"))
}

fn password(of: &Phone, session: Option<String>) -> AuthData {
    let user = UserIdentifier::Matrix(MatrixUserIdentifier::new(of.id().to_string()));
    let mut password = Password::new(user, of.account.password.clone());
    password.session = session;
    AuthData::Password(password)
}

/// One of two devices is deleted by the other: it learns that it is out; Bob no more encrypts for it, by a new key.
pub async fn device_removed(stage: &Stage) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "One less").await?;
    let lost = Phone::log_in(stage, &alice.account, "lost").await?;
    lost.list_shows(&room, RoomState::Joined).await?;
    let lost_id = lost.client.device_id().unwrap().to_owned();
    bob.say(&room, "one and all").await?;
    alice.sees(&room, "one and all").await?;
    until("Bob knows of the second device", async || {
        let devices =
            bob.client.encryption().get_user_devices(alice.id()).await.map_err(|error| error.to_string())?;
        devices.get(&lost_id).map(drop).ok_or_else(|| format!("{:?}", devices.keys().collect::<Vec<_>>()))
    })
    .await?;
    bob.say(&room, "to both devices").await?;
    for phone in [&alice, &lost] {
        phone.sees(&room, "to both devices").await?;
    }
    let before = session_of(&alice, &room, "to both devices").await?;

    let mut changes = lost.client.subscribe_to_session_changes();
    let gone = [lost_id.clone()];
    let Err(refused) = alice.client.delete_devices(&gone, None).await else {
        bail!("a device was deleted without a word")
    };
    let session = refused.as_uiaa_response().context("no interactive authentication")?.session.clone();
    alice.client.delete_devices(&gone, Some(password(&alice, session))).await?;
    let told = announced("the end of the lost device's session", &mut changes, |_| true).await?;
    let SessionChange::UnknownToken(data) = told else { bail!("the lost device was told {told:?}") };
    demand(!data.soft_logout, "the lost device may come back")?;
    until("Bob knows that it is gone", async || {
        let devices =
            bob.client.encryption().get_user_devices(alice.id()).await.map_err(|error| error.to_string())?;
        if devices.get(&lost_id).is_none() { Ok(()) } else { Err("it is there".to_owned()) }
    })
    .await?;
    bob.say(&room, "to one device").await?;
    alice.sees(&room, "to one device").await?;
    let after = session_of(&alice, &room, "to one device").await?;
    demand(before != after, "the room's key was not changed, so the lost device could go on reading")
}

async fn session_of(phone: &Phone, room: &matrix_sdk::ruma::RoomId, text: &str) -> Result<String> {
    let item = phone.sees(room, text).await?;
    let info = item.encryption_info().context("in clear")?;
    Ok(info.session_id().context("no session")?.to_owned())
}
