//! One device of somebody, set up as Element X sets up its engine.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, pin_mut};
use matrix_sdk::encryption::{BackupDownloadStrategy, EncryptionSettings};
use matrix_sdk::ruma::api::client::keys::upload_keys::v3::Request as UploadKeys;
use matrix_sdk::ruma::api::client::sync::sync_events::v3::Request as OldSync;
use matrix_sdk::ruma::events::room::message::RoomMessageEventContent;
use matrix_sdk::ruma::{OneTimeKeyAlgorithm, OwnedEventId, OwnedRoomId, RoomId, UserId};
use matrix_sdk::sliding_sync::VersionBuilder;
use matrix_sdk::{AuthSession, Client, Room, RoomState, ThreadingSupport};
use matrix_sdk_ui::eyeball_im::Vector;
use matrix_sdk_ui::room_list_service::filters::new_filter_all;
use matrix_sdk_ui::room_list_service::{RoomListItem, RoomListLoadingState};
use matrix_sdk_ui::sync_service::{State, SyncService};
use matrix_sdk_ui::timeline::{EventTimelineItem, RoomExt, Timeline, TimelineReadReceiptTracking};
use tokio::task::JoinHandle;

use crate::stage::{Account, Stage, until};

/// As many rooms as any flow has.
const LIST_PAGE: usize = 400;

pub struct Phone {
    pub account: Account,
    pub client: Client,
    pub sync: Arc<SyncService>,
    url: String,
    folder: PathBuf,
    list: Arc<Mutex<Vector<RoomListItem>>>,
    list_task: JoinHandle<()>,
    timelines: Mutex<HashMap<OwnedRoomId, Arc<Timeline>>>,
}

/// A client that has a store on disk, as a phone has. Fails where the server has no sliding sync, as Element X does.
pub async fn client(url: &str, folder: &std::path::Path) -> Result<Client> {
    client_with(url, folder, ThreadingSupport::Disabled).await
}

async fn client_with(url: &str, folder: &std::path::Path, threading: ThreadingSupport) -> Result<Client> {
    let encryption = EncryptionSettings {
        auto_enable_cross_signing: true,
        backup_download_strategy: BackupDownloadStrategy::AfterDecryptionFailure,
        auto_enable_backups: true,
    };
    Client::builder()
        .homeserver_url(url)
        .sliding_sync_version_builder(VersionBuilder::DiscoverNative)
        .with_encryption_settings(encryption)
        // Not tried with it: then an invite uploads the room's keys as media (MSC4268).
        .with_enable_share_history_on_invite(false)
        .with_threading_support(threading)
        .sqlite_store(folder, None)
        .build()
        .await
        .context("the engine does not take this server")
}

impl Phone {
    /// Logs in on a new device, which syncs from then on.
    pub async fn log_in(stage: &Stage, account: &Account, device: &str) -> Result<Self> {
        Self::log_in_with(stage, account, device, ThreadingSupport::Disabled).await
    }

    /// The same with threads that the user subscribes to, which the app has for who wants to try it.
    pub async fn log_in_with_subscriptions(stage: &Stage, account: &Account, device: &str) -> Result<Self> {
        let threading = ThreadingSupport::Enabled { with_subscriptions: true };
        Self::log_in_with(stage, account, device, threading).await
    }

    async fn log_in_with(
        stage: &Stage,
        account: &Account,
        device: &str,
        threading: ThreadingSupport,
    ) -> Result<Self> {
        let folder = stage.folder.join(format!("{}-{device}", account.id.localpart()));
        let url = stage.url(account.at).to_owned();
        let client = client_with(&url, &folder, threading).await?;
        client
            .matrix_auth()
            .login_username(&account.id, &account.password)
            .initial_device_display_name(device)
            .send()
            .await
            .context("login")?;
        Self::begin(account.clone(), client, url, folder).await
    }

    async fn begin(account: Account, client: Client, url: String, folder: PathBuf) -> Result<Self> {
        let sync = SyncService::builder(client.clone()).with_offline_mode().build().await?;
        let rooms = sync.room_list_service().all_rooms().await?;
        let list = Arc::new(Mutex::new(Vector::new()));
        let shown = list.clone();
        let list_task = tokio::spawn(async move {
            let (changes, controller) = rooms.entries_with_dynamic_adapters(LIST_PAGE);
            controller.set_filter(Box::new(new_filter_all(vec![])));
            pin_mut!(changes);
            while let Some(changes) = changes.next().await {
                let mut shown = shown.lock().unwrap();
                for change in changes {
                    change.apply(&mut shown);
                }
            }
        });
        // Before the first sync: an answer to an upload of keys makes the engine take for uploaded whatever keys it has, even
        // a fallback key that it made meanwhile because a sync told that there is none. Then it uploads none for a week.
        client.encryption().wait_for_e2ee_initialization_tasks().await;
        sync.start().await;
        let sync = Arc::new(sync);
        Ok(Self { account, client, sync, url, folder, list, list_task, timelines: Mutex::default() })
    }

    /// The app is closed: nothing of it runs, its store stays on the disk.
    pub async fn close(self) -> Result<Closed> {
        self.sync.stop().await;
        self.list_task.abort();
        let session = self.client.session().context("it has no session")?;
        Ok(Closed { account: self.account, session, url: self.url, folder: self.folder })
    }

    pub fn id(&self) -> &UserId {
        &self.account.id
    }

    /// Waits until the list is as long as the server says, which is when the app stops showing place-holders.
    pub async fn list_is_loaded(&self) -> Result<u32> {
        let rooms = self.sync.room_list_service().all_rooms().await?;
        until("the room list is loaded", async || match rooms.loading_state().get() {
            RoomListLoadingState::Loaded { maximum_number_of_rooms: Some(count) } => {
                let shown = self.list.lock().unwrap().len() as u32;
                if shown >= count { Ok(count) } else { Err(format!("{shown} of {count} rooms")) }
            }
            state => Err(format!("{state:?}, {:?}", self.sync.state().get())),
        })
        .await
    }

    /// The rooms as the list shows them, from the top.
    pub fn rooms(&self) -> Vec<Room> {
        self.list.lock().unwrap().iter().map(|room| (**room).clone()).collect()
    }

    /// Waits until the list shows the room in this state.
    pub async fn list_shows(&self, room: &RoomId, wanted: RoomState) -> Result<Room> {
        until(&format!("{}'s list shows {room} as {wanted:?}", self.id()), async || {
            let rooms = self.rooms();
            let found = rooms.iter().find(|shown| shown.room_id() == room);
            match found {
                Some(found) if found.state() == wanted => Ok(found.clone()),
                Some(found) => Err(format!("{:?}", found.state())),
                None => {
                    Err(format!("{} other rooms; the sync is {:?}", rooms.len(), self.sync.state().get()))
                }
            }
        })
        .await
    }

    /// Waits until the list shows the room in another state, or not at all.
    pub async fn list_shows_no_more(&self, room: &RoomId, past: RoomState) -> Result<()> {
        until(&format!("{}'s list shows {room} no more as {past:?}", self.id()), async || {
            let shown = self.rooms().iter().any(|shown| shown.room_id() == room && shown.state() == past);
            if shown { Err("it does".to_owned()) } else { Ok(()) }
        })
        .await
    }

    pub fn room(&self, room: &RoomId) -> Result<Room> {
        self.client.get_room(room).with_context(|| format!("{} does not know {room}", self.id()))
    }

    /// The room's timeline, opened as Element X opens it: with a subscription of the room.
    pub async fn timeline(&self, room: &RoomId) -> Result<Arc<Timeline>> {
        if let Some(open) = self.timelines.lock().unwrap().get(room) {
            return Ok(open.clone());
        }
        self.sync.room_list_service().subscribe_to_rooms(&[room]).await;
        let timeline = self
            .room(room)?
            .timeline_builder()
            .track_read_marker_and_receipts(TimelineReadReceiptTracking::AllEvents)
            .build()
            .await?;
        let timeline = Arc::new(timeline);
        self.timelines.lock().unwrap().insert(room.to_owned(), timeline.clone());
        Ok(timeline)
    }

    /// The events that the open timeline shows, oldest first.
    pub async fn items(&self, room: &RoomId) -> Result<Vec<EventTimelineItem>> {
        let items = self.timeline(room).await?.items().await;
        Ok(items.iter().filter_map(|item| item.as_event().cloned()).collect())
    }

    /// Puts a message into the queue of what is to be sent.
    pub async fn queue(&self, room: &RoomId, text: &str) -> Result<()> {
        self.timeline(room).await?.send(RoomMessageEventContent::text_plain(text).into()).await?;
        Ok(())
    }

    /// Waits until the server has taken the message.
    pub async fn sent(&self, room: &RoomId, text: &str) -> Result<OwnedEventId> {
        self.timeline(room).await?;
        until(&format!("{} has sent {text:?}", self.id()), async || {
            let items = self.items(room).await.map_err(|error| error.to_string())?;
            let own = items.iter().find(|item| item.is_own() && says(item, text));
            match own {
                Some(item) if item.is_remote_event() => Ok(item.event_id().unwrap().to_owned()),
                Some(item) if item.event_id().is_some() => Ok(item.event_id().unwrap().to_owned()),
                Some(item) => {
                    // As the app does when the network is there again.
                    self.client.send_queue().set_enabled(true).await;
                    Err(format!("{:?}", item.send_state()))
                }
                None => Err("no such message".to_owned()),
            }
        })
        .await
    }

    pub async fn say(&self, room: &RoomId, text: &str) -> Result<OwnedEventId> {
        self.queue(room, text).await?;
        self.sent(room, text).await
    }

    /// Waits until the timeline shows the message in clear.
    pub async fn sees(&self, room: &RoomId, text: &str) -> Result<EventTimelineItem> {
        until(&format!("{} sees {text:?}", self.id()), async || {
            let items = self.items(room).await.map_err(|error| error.to_string())?;
            items.iter().find(|item| says(item, text)).cloned().ok_or_else(|| told(&items))
        })
        .await
    }

    /// Pages back until there is nothing more.
    pub async fn pages_back_to_the_start(&self, room: &RoomId) -> Result<()> {
        let timeline = self.timeline(room).await?;
        for _ in 0..40 {
            if timeline.paginate_backwards(30).await? {
                return Ok(());
            }
        }
        bail!("the room has no beginning")
    }

    /// Waits until the timeline shows each of the messages once, and nothing that could not be decrypted.
    pub async fn sees_each_once(&self, room: &RoomId, texts: &[String]) -> Result<()> {
        let looks = AtomicUsize::new(0);
        until(&format!("{} sees each of {} messages once", self.id(), texts.len()), async || {
            if looks.fetch_add(1, Ordering::Relaxed) % 40 == 39 {
                // Now and then the engine shows its local echo beside the event itself, and loses another one for it,
                // whatever the server: what counts is what it has, which it shows when the room is opened anew.
                self.timelines.lock().unwrap().remove(room);
                self.pages_back_to_the_start(room).await.map_err(|error| error.to_string())?;
            }
            let items = self.items(room).await.map_err(|error| error.to_string())?;
            for text in texts {
                let events: BTreeSet<_> =
                    items.iter().filter(|item| says(item, text)).map(|item| item.event_id()).collect();
                if events.len() != 1 {
                    return Err(format!("{text:?} {} times in {}", events.len(), told(&items)));
                }
            }
            Ok(())
        })
        .await?;
        self.all_is_readable(room).await
    }

    pub async fn all_is_readable(&self, room: &RoomId) -> Result<()> {
        let items = self.items(room).await?;
        if items.iter().any(|item| item.content().is_unable_to_decrypt()) {
            bail!("{} is unable to decrypt: {}", self.id(), told(&items));
        }
        Ok(())
    }

    /// How many one-time keys of this device the server has, as it answers an upload of none.
    pub async fn one_time_keys(&self) -> Result<u64> {
        let answer = self.client.send(UploadKeys::new()).await?;
        Ok(answer
            .one_time_key_counts
            .get(&OneTimeKeyAlgorithm::SignedCurve25519)
            .copied()
            .unwrap_or_default()
            .into())
    }

    /// Waits until this device has put a fallback key there, as a sync of the old kind tells.
    pub async fn has_a_fallback_key(&self) -> Result<()> {
        until(&format!("{} has a fallback key", self.id()), async || {
            let told = self.client.send(OldSync::new()).await.map_err(|error| error.to_string())?;
            match told.device_unused_fallback_key_types {
                Some(kinds) if !kinds.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Waits until the service is in its running state, after it was not.
    pub async fn is_in_touch(&self) -> Result<()> {
        until(&format!("{} is in touch again", self.id()), async || match self.sync.state().get() {
            State::Running => Ok(()),
            state => Err(format!("{state:?}")),
        })
        .await
    }
}

/// What is left of a phone while its app is closed.
pub struct Closed {
    pub account: Account,
    session: AuthSession,
    url: String,
    folder: PathBuf,
}

impl Closed {
    pub async fn open(self) -> Result<Phone> {
        let client = client(&self.url, &self.folder).await?;
        client.restore_session(self.session).await?;
        Phone::begin(self.account, client, self.url, self.folder).await
    }
}

pub fn says(item: &EventTimelineItem, text: &str) -> bool {
    item.content().as_message().is_some_and(|message| message.body() == text)
}

/// From where the engine has an item: a message that is shown twice is explained by it.
fn origin(item: &EventTimelineItem) -> String {
    let id = item.event_id().map(|id| id.as_str().chars().take(6).collect::<String>()).unwrap_or_default();
    format!(" {{{:?} {id}}}", item.origin())
}

/// A timeline in a line.
fn told(items: &[EventTimelineItem]) -> String {
    let words: Vec<_> = items
        .iter()
        .map(|item| match item.content() {
            content if content.is_unable_to_decrypt() => "(unable to decrypt)".to_owned(),
            content => content
                .as_message()
                .map(|message| format!("{}{}", message.body(), origin(item)))
                .unwrap_or_else(|| format!("({})", content.event_type_str().unwrap_or_default())),
        })
        .collect();
    format!("[{}]", words.join(", "))
}
