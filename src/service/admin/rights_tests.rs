//! That what only administrators may change is not changed by who was let in as one, and is none when it comes to be done.

use serde_json::{Value, json};

use super::accounts::{AccountChange, AccountsPage};
use super::knocks::{KnockAnswerer, KnockFilter};
use super::media::MediaPage;
use super::reports::ReportsPage;
use super::room_deletion::DeletionOrder;
use super::rooms::{RoomOrder, RoomsPage};
use super::tokens::{NewToken, TokenTerms};
use crate::error::Result;
use crate::protocol::media::MxcUri;
use crate::protocol::{RoomId, UserId};
use crate::service::Homeserver;
use crate::service::accounts::NewAccount;
use crate::service::accounts::moderation::Administrator;
use crate::service::accounts::sessions::NewLogin;
use crate::service::media::upload::UploadHead;
use crate::service::membership::JoinTarget;
use crate::service::rooms::reports::Reported;
use crate::store::accounts::OwnRate;
use crate::store::accounts::reports::{ReportFilter, ReportKind};
use crate::store::media::listed::MediaOrder;
use crate::testing::TestServer;

type Deed<'a> = (&'static str, Box<dyn Fn(&Administrator) -> Result<()> + 'a>);

fn media_page() -> MediaPage {
    MediaPage { from: 0, limit: 10, order: MediaOrder::Created, backwards: false }
}

fn upload(hs: &Homeserver, user: &UserId, bytes: &[u8]) -> MxcUri {
    let length = u64::try_from(bytes.len()).ok();
    let head = UploadHead { uri: None, content_type: Some("image/png"), file_name: None, bytes: length };
    let mut upload = hs.media().begin_upload(user, head).expect("begun");
    upload.write(bytes).expect("written");
    hs.media().finish_upload(upload).expect("uploaded")
}

/// All that the deeds below would change.
fn picture(hs: &Homeserver, user: &UserId) -> Vec<Value> {
    let accounts = AccountsPage { limit: 100, ..AccountsPage::default() };
    let rooms = RoomsPage {
        from: 0,
        limit: 100,
        order: RoomOrder::Name,
        backwards: false,
        search: None,
        public: None,
        empty: None,
    };
    let reports = ReportsPage {
        kind: ReportKind::User,
        filter: ReportFilter::default(),
        ascends: true,
        from: 0,
        limit: 100,
    };
    let admin = hs.admin();
    vec![
        admin.list_accounts(&accounts).expect("accounts"),
        admin.account_details(user).expect("an account"),
        format!("{:?}", admin.own_rate(user).expect("a rate")).into(),
        admin.devices_of(user).expect("devices").into(),
        admin.list_tokens(None).expect("tokens"),
        admin.list_rooms(&rooms).expect("rooms"),
        format!("{:?}", admin.knocks_waiting(KnockFilter::default()).expect("knocks")).into(),
        admin.blocked_rooms("").expect("rooms"),
        admin.list_reports(&reports).expect("reports"),
        admin.media_of(user, &media_page()).expect("media"),
    ]
}

fn deeds_upon_accounts<'a>(hs: &'a Homeserver, bob: &'a UserId) -> Vec<Deed<'a>> {
    let admin = hs.admin();
    let change = AccountChange { displayname: Some("Robert".into()), ..AccountChange::default() };
    let new = NewAccount { localpart: Some("carol"), ..NewAccount::default() };
    let terms = TokenTerms { uses_allowed: Some(Some(1)), expires_ms: None };
    vec![
        ("an account", Box::new(move |by| admin.add_account(by, &new).map(drop))),
        ("a change", Box::new(move |by| admin.change_account(by, bob, &change).map(drop))),
        ("a device's name", Box::new(move |by| admin.rename_device(by, bob, "PHONE", "theirs"))),
        ("a session", Box::new(move |by| admin.log_in_as(by, bob, None).map(drop))),
        ("a logout", Box::new(move |by| admin.log_out(by, bob, Some(vec!["PHONE".into()])).map(drop))),
        ("all logouts", Box::new(move |by| admin.log_out(by, bob, None).map(drop))),
        ("a password", Box::new(move |by| admin.reset_password(by, bob, "another", false))),
        ("a lock", Box::new(move |by| hs.accounts().change_standing(by, bob, |s| s.locked = true).map(drop))),
        (
            "no lock",
            Box::new(move |by| hs.accounts().change_standing(by, bob, |s| s.locked = false).map(drop)),
        ),
        (
            "a rate",
            Box::new(move |by| admin.set_own_rate(by, bob, Some(OwnRate { per_second: 0, burst: 0 }))),
        ),
        ("power", Box::new(move |by| admin.set_admin(by, bob, true))),
        ("no power", Box::new(move |by| admin.set_admin(by, bob, false))),
        (
            "a token",
            Box::new(move |by| {
                admin.add_token(by, &NewToken { token: Some("other"), ..NewToken::default() }).map(drop)
            }),
        ),
        ("its terms", Box::new(move |by| admin.change_token(by, "token", &terms).map(drop))),
        ("its end", Box::new(move |by| admin.revoke_token(by, "token"))),
    ]
}

/// Two wait before the room.
fn deeds_at_the_door<'a>(
    hs: &'a Homeserver,
    room: &'a RoomId,
    (eve, dave): (&'a UserId, &'a UserId),
) -> Vec<Deed<'a>> {
    let admin = hs.admin();
    vec![
        ("a welcome", Box::new(move |by| admin.accept_knock(KnockAnswerer::Administrator(by), room, eve))),
        (
            "a refusal",
            Box::new(move |by| admin.refuse_knock(KnockAnswerer::Administrator(by), room, dave, None)),
        ),
        (
            "another try",
            // There is no such server, but who may not is told that first.
            Box::new(move |by| match admin.try_server_now(by, &eve.server()) {
                Err(e) if e.status() == 404 => Ok(()),
                other => other,
            }),
        ),
    ]
}

fn deeds_upon_what_they_have<'a>(
    hs: &'a Homeserver,
    (bob, eve): (&'a UserId, &'a UserId),
    rooms: &'a [RoomId],
    files: &'a [MxcUri],
) -> Vec<Deed<'a>> {
    let (admin, far) = (hs.admin(), i64::MAX);
    vec![
        ("power in a room", Box::new(move |by| admin.make_room_admin(by, &rooms[0], eve))),
        (
            "a way into it",
            Box::new(move |by| {
                admin.join_user(by, eve, &JoinTarget { room_id: rooms[0].clone(), via: Vec::new() })
            }),
        ),
        ("a block", Box::new(move |by| admin.set_room_block(&rooms[0], true, by))),
        ("a room", Box::new(move |by| admin.delete_room(&rooms[1], DeletionOrder::default(), by).map(drop))),
        (
            "a room later",
            Box::new(move |by| admin.begin_room_deletion(&rooms[2], DeletionOrder::default(), by).map(drop)),
        ),
        ("a report", Box::new(move |by| admin.delete_report(by, ReportKind::User, 1))),
        ("a file", Box::new(move |by| hs.media().delete(by, &files[0]))),
        ("a quarantine", Box::new(move |by| hs.media().quarantine(by, &files[1], true))),
        ("its end", Box::new(move |by| hs.media().quarantine(by, &files[1], false))),
        ("a cache", Box::new(move |by| admin.purge_media_cache(by, far).map(drop))),
        ("old files", Box::new(move |by| admin.delete_old_media(by, far, 2002, true).map(drop))),
        ("a room's files", Box::new(move |by| admin.quarantine_media_of_room(by, &rooms[0]).map(drop))),
        ("files on a page", Box::new(move |by| admin.delete_media_of(by, bob, &media_page()).map(drop))),
        ("a user's files", Box::new(move |by| admin.quarantine_media_of(by, bob).map(drop))),
        ("an end", Box::new(move |by| admin.deactivate_account(by, bob, false))),
    ]
}

#[test]
fn what_only_administrators_may_change_is_not_changed_for_who_is_none_when_it_comes_to_be_done() {
    let server = TestServer::start();
    let hs = server.homeserver();
    let (root, eve, bob) = (server.user("root"), server.user("eve"), server.user("bob"));
    let id = |user: &str| UserId::parse(user).expect("a user id");
    let files: Vec<MxcUri> = (0..4).map(|n| upload(hs, &id(bob.id()), &vec![n; 2000 + n as usize])).collect();
    let rooms: Vec<RoomId> = (0..3).map(|_| RoomId::parse(&bob.create_room()).expect("a room id")).collect();
    let picture_of = |uri: &MxcUri| json!({ "msgtype": "m.image", "body": "a", "url": uri.to_string() });
    bob.send_event(rooms[0].as_str(), "m.room.message", picture_of(&files[2]));
    hs.admin().reset_password(&Administrator::Operator, &id(bob.id()), "his own", false).expect("set");
    let phone = NewLogin { device_id: Some("PHONE"), ..NewLogin::default() };
    hs.accounts().log_in_with(&id(bob.id()), &phone).expect("logged in");
    hs.admin()
        .add_token(&Administrator::Operator, &NewToken { token: Some("token"), ..NewToken::default() })
        .expect("a token");
    hs.rooms().report(&id(eve.id()), Reported::User(id(bob.id())), Some("rude")).expect("reported");

    let door = bob.create_room_with(json!({
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }));
    let dave = server.user("dave");
    for user in [&eve, &dave] {
        user.knock_via(&door, &[]);
    }

    let door = RoomId::parse(&door).expect("a room id");
    let (root, eve, bob, dave) = (id(root.id()), id(eve.id()), id(bob.id()), id(dave.id()));
    let mut deeds = deeds_upon_accounts(hs, &bob);
    deeds.extend(deeds_at_the_door(hs, &door, (&eve, &dave)));
    deeds.extend(deeds_upon_what_they_have(hs, (&bob, &eve), &rooms, &files));
    // It is all the same whether they were one a moment ago, or are gone altogether.
    let before = picture(hs, &bob);
    let nobody = UserId::parse(&format!("@nobody:{}", hs.server_name())).expect("a user id");
    let mut done = Vec::new();
    for by in [&eve, &nobody].map(|user| Administrator::User(user.clone())) {
        for (what, deed) in &deeds {
            match deed(&by) {
                Err(e) if e.message() == "You are no administrator of this server any more" => {
                    assert_eq!(e.status(), 403);
                }
                other => done.push(format!("{what} by {by}: {other:?}")),
            }
        }
    }
    assert_eq!(done, Vec::<String>::new());
    assert_eq!(picture(hs, &bob), before);
    hs.accounts().check_password(&bob, "his own", None).expect("the password is as it was");
    // And who is one does all of it.
    for (n, (what, deed)) in deeds.iter().enumerate() {
        let by = if n % 2 == 0 { Administrator::User(root.clone()) } else { Administrator::Operator };
        deed(&by).unwrap_or_else(|e| panic!("{what} by {by}: {e}"));
    }
    assert!(hs.store.read(|db| db.account(&bob)).expect("read").expect("an account").deactivated);
}
