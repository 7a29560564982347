//! Alice has a whole web client, in a browser, which the one who started us leads; Bob has this engine.

use anyhow::Result;

use super::{encrypted_room, meets, two_in_a_room};
use crate::phone::Phone;
use crate::stage::{At, Stage, demand};

/// Logs in, accepts an invite to an encrypted room, reads and writes in it; so after a reload, and after the browser was
/// closed.
pub async fn browser(stage: &Stage) -> Result<()> {
    let account = stage.account(At::Server, "alice")?;
    stage.web(&["log_in", stage.url(At::Server), account.id.as_str(), &account.password])?;
    picture(stage, "1-logged-in")?;
    let bob = Phone::log_in(stage, &stage.account(At::Other, "bob")?, "phone").await?;
    let room = encrypted_room(&bob, "Two engines", &[&account.id]).await?;
    stage.web(&["join", "Two engines"])?;
    stage.web(&["is_encrypted"])?;
    meets(&bob, &room, &account.id).await?;

    let mut texts: Vec<String> = Vec::new();
    for (number, change) in [None, Some("reload"), Some("close_and_open")].into_iter().enumerate() {
        if let Some(change) = change {
            stage.web(&[change])?;
            stage.web(&["choose", "Two engines"])?;
            for text in &texts {
                stage.web(&["sees", text])?;
            }
        }
        texts.push(format!("from the engine, {number}"));
        bob.say(&room, texts.last().unwrap()).await?;
        stage.web(&["sees", texts.last().unwrap()])?;
        texts.push(format!("from the browser, {number}"));
        stage.web(&["say", texts.last().unwrap()])?;
        let seen = bob.sees(&room, texts.last().unwrap()).await?;
        demand(seen.encryption_info().is_some(), "the browser's message came in clear")?;
        stage.web(&["all_is_readable"])?;
        picture(stage, &format!("{}-talked", number + 2))?;
    }
    bob.sees_each_once(&room, &texts).await?;
    stage.web(&["end"])
}

/// What this engine has put into secret storage and the backup, the browser reads with the recovery key.
pub async fn browser_restores(stage: &Stage) -> Result<()> {
    let (alice, bob, room) = two_in_a_room(stage, "Before the browser").await?;
    bob.say(&room, "from the old days").await?;
    alice.sees(&room, "from the old days").await?;
    let key = alice.client.encryption().recovery().enable().wait_for_backups_to_upload().await?;

    stage.web(&["log_in", stage.url(At::Server), alice.id().as_str(), &alice.account.password])?;
    stage.web(&["restore", &key])?;
    picture(stage, "1-restored")?;
    stage.web(&["choose", "Before the browser"])?;
    stage.web(&["sees", "from the old days"])?;
    stage.web(&["say", "I can read it"])?;
    picture(stage, "2-read")?;
    for phone in [&alice, &bob] {
        phone.sees(&room, "I can read it").await?;
    }
    stage.web(&["end"])
}

fn picture(stage: &Stage, name: &str) -> Result<()> {
    let file = stage.folder.join(format!("{name}.png"));
    stage.web(&["picture", &file.to_string_lossy()])
}
