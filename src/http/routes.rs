//! THE TABLE: every endpoint that this server has, a line each. The matcher, 405s, rate limits, body limits, `doorstep
//! routes` and the coverage test are all made from it.
//!
//! A line is `method(path, Kind(handler))`, and where the default does not fit `.rate(Rate::…)` or `.body(bytes)`.

use super::admin::{
    devices as user_devices, federation as admin_federation, health, media as admin_media,
    registration_tokens, reports, rooms as admin_rooms, users, whole_server,
};
use super::client_server::{accounts, appservices, devices, discovery, media, push, rooms, sync, voip};
use super::rate_limit::Rate;
use super::route::Handler::{
    Admin, AdminPage, Anyone, MaybeUser, Page, Peer, PeerWaiting, User, UserPage, UserUpload, UserWaiting,
};
use super::route::{Route, delete, get, post, put};
use super::{page, server_server};

/// The largest body of an invite: an event and a dozen of the room's state events.
const INVITE_BODY_BYTES_MAX: usize = 1024 * 1024;

/// The largest body of a transaction: 50 events of the largest size, and 100 ephemeral messages about as large.
const TRANSACTION_BODY_BYTES_MAX: usize = 12 * 1024 * 1024;

/// The messages of one request to devices: clients send those for many devices together.
const TO_DEVICE_BODY_BYTES_MAX: usize = 2 << 20;

/// Keys for a backup: clients send some hundreds together, of a kilobyte each.
const ROOM_KEYS_BODY_BYTES_MAX: usize = 8 << 20;

/// A query or a claim of end-to-end keys: all members of a large room, and their devices.
const KEY_QUERY_BODY_BYTES_MAX: usize = 1 << 20;

/// The names of some hundreds of servers, and of a key of each.
const NOTARY_QUERY_BODY_BYTES_MAX: usize = 128 << 10;

/// A new room's description: dozens of state events at most.
const NEW_ROOM_BODY_BYTES_MAX: usize = 2 << 20;

/// A form of the page: a few fields of a few hundred characters, as browsers encode them.
const FORM_BYTES_MAX: usize = 16 * 1024;

/// Every endpoint. `r0` of the client API and `r0`, `v1` of media are served by the `v3` lines.
pub const ROUTES: &[Route] = &[
    // ----- the page -----
    get("/", Page(page::start::home)).rate(Rate::Write),
    post("/page/first", Page(page::start::make_first_account)).rate(Rate::Login).body(FORM_BYTES_MAX),
    post("/page/login", Page(page::start::log_in)).rate(Rate::Login).body(FORM_BYTES_MAX),
    post("/page/logout", UserPage(page::start::log_out)).guests().even_locked().body(FORM_BYTES_MAX),
    post("/page/knocks", UserPage(page::door::answer_knock)).rate(Rate::Join).body(FORM_BYTES_MAX),
    post("/page/invites/accept", UserPage(page::door::accept_invite)).rate(Rate::Join).body(FORM_BYTES_MAX),
    post("/page/invites/reject", UserPage(page::door::reject_invite)).even_suspended().body(FORM_BYTES_MAX),
    get("/page/sessions", UserPage(page::sessions::list)),
    post("/page/sessions", UserPage(page::sessions::end))
        .even_suspended()
        .rate(Rate::Login)
        .body(FORM_BYTES_MAX),
    post("/page/password", UserPage(page::sessions::change_password))
        .even_suspended()
        .rate(Rate::Login)
        .body(FORM_BYTES_MAX),
    get("/page/accounts", AdminPage(page::accounts::show)),
    post("/page/accounts", AdminPage(page::accounts::make)).rate(Rate::Login).body(FORM_BYTES_MAX),
    post("/page/accounts/change", AdminPage(page::accounts::change)).rate(Rate::Login).body(FORM_BYTES_MAX),
    get("/page/rooms", AdminPage(page::rooms::show)).rate(Rate::Write),
    post("/page/rooms", AdminPage(page::rooms::change)).body(FORM_BYTES_MAX),
    get("/page/tokens", AdminPage(page::tokens::show)),
    post("/page/tokens", AdminPage(page::tokens::change)).body(FORM_BYTES_MAX),
    get("/page/server", AdminPage(page::server::show)).rate(Rate::Write),
    // ----- what clients have done in a browser -----
    get("/_matrix/client/v3/auth/{authType}/fallback/web", Page(page::fallback::stage)).rate(Rate::Write),
    post("/_matrix/client/v3/auth/{authType}/fallback/web", Page(page::fallback::complete_stage))
        .rate(Rate::Login)
        .body(FORM_BYTES_MAX),
    get("/_matrix/static/client/login/", Page(page::fallback::login_page)).rate(Rate::Write),
    post("/_matrix/static/client/login/", Page(page::fallback::log_in))
        .rate(Rate::Login)
        .body(FORM_BYTES_MAX),
    // ----- client-server: server, accounts, devices -----
    get("/.well-known/matrix/client", Anyone(discovery::well_known_client)),
    get("/.well-known/matrix/server", Anyone(discovery::well_known_server)),
    get("/.well-known/matrix/support", Anyone(discovery::well_known_support)),
    get("/.well-known/acme-challenge/{token}", Anyone(discovery::acme_challenge)),
    get("/_matrix/client/versions", Anyone(discovery::versions)),
    get("/_matrix/client/v3/capabilities", User(discovery::capabilities)).guests(),
    get("/_matrix/client/v3/thirdparty/protocols", User(appservices::third_party_protocols)),
    get("/_matrix/client/v3/thirdparty/protocol/{protocol}", User(appservices::third_party_protocol)),
    get("/_matrix/client/v3/thirdparty/location", User(appservices::third_party_locations)),
    get("/_matrix/client/v3/thirdparty/location/{protocol}", User(appservices::third_party_locations)),
    get("/_matrix/client/v3/thirdparty/user", User(appservices::third_party_users)),
    get("/_matrix/client/v3/thirdparty/user/{protocol}", User(appservices::third_party_users)),
    post("/_matrix/client/v1/appservice/{appserviceId}/ping", User(appservices::ping)),
    post("/_matrix/client/v3/register", Anyone(accounts::register::register)).rate(Rate::Register),
    get("/_matrix/client/v3/register/available", Anyone(accounts::register::available)).rate(Rate::Write),
    get(
        "/_matrix/client/v1/register/m.login.registration_token/validity",
        Anyone(accounts::register::token_validity),
    )
    .rate(Rate::Login),
    get("/_synapse/admin/v1/register", Anyone(accounts::register::shared_secret_nonce)).rate(Rate::Login),
    post("/_synapse/admin/v1/register", Anyone(accounts::register::shared_secret_register)).rate(Rate::Login),
    get("/_matrix/client/v3/login", Anyone(accounts::login::flows)),
    post("/_matrix/client/v3/login", Anyone(accounts::login::login)).rate(Rate::Login),
    post("/_matrix/client/v1/login/get_token", User(accounts::login::get_token))
        .rate(Rate::Login)
        .interactive(),
    post("/_matrix/client/v3/refresh", Anyone(accounts::login::refresh)).rate(Rate::Login),
    post("/_matrix/client/v3/logout", User(accounts::login::logout)).guests().even_expired(),
    post("/_matrix/client/v3/logout/all", User(accounts::login::logout_all)).even_locked(),
    get("/_matrix/client/v3/account/whoami", User(accounts::account::whoami)).guests(),
    get("/_matrix/client/v3/account/3pid", User(accounts::account::third_party_ids)),
    post("/_matrix/client/v3/account/password", MaybeUser(accounts::account::change_password))
        .even_suspended()
        .rate(Rate::Login)
        .interactive(),
    post("/_matrix/client/v3/account/deactivate", MaybeUser(accounts::account::deactivate))
        .even_suspended()
        .rate(Rate::Login)
        .interactive(),
    get("/_matrix/client/v3/admin/whois/{userId}", User(accounts::admin::whois)),
    get("/_matrix/client/v1/admin/lock/{userId}", Admin(accounts::admin::lock)),
    put("/_matrix/client/v1/admin/lock/{userId}", Admin(accounts::admin::set_lock)),
    get("/_matrix/client/v1/admin/suspend/{userId}", Admin(accounts::admin::suspension)),
    put("/_matrix/client/v1/admin/suspend/{userId}", Admin(accounts::admin::set_suspension)),
    get("/_matrix/client/v3/devices", User(devices::management::list)).guests(),
    get("/_matrix/client/v3/devices/{deviceId}", User(devices::management::get)).guests(),
    put("/_matrix/client/v3/devices/{deviceId}", User(devices::management::update)).guests().even_suspended(),
    delete("/_matrix/client/v3/devices/{deviceId}", User(devices::management::delete))
        .even_suspended()
        .rate(Rate::Login)
        .interactive(),
    post("/_matrix/client/v3/delete_devices", User(devices::management::delete_many))
        .even_suspended()
        .rate(Rate::Login)
        .interactive(),
    // ----- client-server: rooms, events, membership -----
    post("/_matrix/client/v3/join/{roomIdOrAlias}", User(rooms::membership::join)).guests().rate(Rate::Join),
    post("/_matrix/client/v3/knock/{roomIdOrAlias}", User(rooms::membership::knock)).rate(Rate::Join),
    post("/_matrix/client/v3/rooms/{roomId}/join", User(rooms::membership::join_by_id))
        .guests()
        .rate(Rate::Join),
    post("/_matrix/client/v3/rooms/{roomId}/invite", User(rooms::membership::invite)).rate(Rate::Join),
    post("/_matrix/client/v3/rooms/{roomId}/leave", User(rooms::membership::leave)).guests().even_suspended(),
    post("/_matrix/client/v3/rooms/{roomId}/forget", User(rooms::membership::forget)).even_suspended(),
    post("/_matrix/client/v3/rooms/{roomId}/kick", User(rooms::membership::kick)),
    post("/_matrix/client/v3/rooms/{roomId}/ban", User(rooms::membership::ban)),
    post("/_matrix/client/v3/rooms/{roomId}/unban", User(rooms::membership::unban)),
    get("/_matrix/client/v3/joined_rooms", User(rooms::membership::joined_rooms)),
    post("/_matrix/client/v3/createRoom", User(rooms::events_and_state::create))
        .rate(Rate::Join)
        .body(NEW_ROOM_BODY_BYTES_MAX),
    post("/_matrix/client/v3/rooms/{roomId}/upgrade", User(rooms::events_and_state::upgrade))
        .rate(Rate::Upgrade),
    put("/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", User(rooms::events_and_state::send))
        .guests()
        .even_suspended(),
    put("/_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}", User(rooms::events_and_state::redact))
        .even_suspended(),
    get("/_matrix/client/v3/rooms/{roomId}/state", User(rooms::events_and_state::state)).guests(),
    get(
        "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey?}",
        User(rooms::events_and_state::state_entry),
    )
    .guests(),
    put(
        "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey?}",
        User(rooms::events_and_state::put_state),
    )
    .member_rate(Rate::Join)
    .guests()
    .even_suspended(),
    get("/_matrix/client/v3/rooms/{roomId}/messages", User(rooms::messages::messages)).guests(),
    get("/_matrix/client/v3/rooms/{roomId}/context/{eventId}", User(rooms::messages::context)).guests(),
    get("/_matrix/client/v3/rooms/{roomId}/event/{eventId}", User(rooms::messages::event)).guests(),
    get("/_matrix/client/v3/events/{eventId}", User(rooms::messages::event_of_any_room)),
    get("/_matrix/client/v1/rooms/{roomId}/timestamp_to_event", User(rooms::messages::timestamp_to_event)),
    get("/_matrix/client/v1/rooms/{roomId}/relations/{eventId}", User(rooms::relations::relations)),
    get("/_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}", User(rooms::relations::relations)),
    get(
        "/_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}",
        User(rooms::relations::relations),
    ),
    get("/_matrix/client/v1/rooms/{roomId}/threads", User(rooms::relations::threads)),
    get(
        "/_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription",
        User(rooms::thread_subscriptions::get),
    ),
    put(
        "/_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription",
        User(rooms::thread_subscriptions::put),
    )
    .even_suspended(),
    delete(
        "/_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription",
        User(rooms::thread_subscriptions::delete),
    )
    .even_suspended(),
    get(
        "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions",
        User(rooms::thread_subscriptions::changes),
    ),
    get("/_matrix/client/v3/rooms/{roomId}/initialSync", User(rooms::messages::room_initial_sync)).guests(),
    get("/_matrix/client/v3/rooms/{roomId}/members", User(rooms::messages::members)).guests(),
    get("/_matrix/client/v3/rooms/{roomId}/joined_members", User(rooms::events_and_state::joined_members)),
    get("/_matrix/client/v3/rooms/{roomId}/aliases", User(rooms::events_and_state::aliases)),
    get(
        "/_matrix/client/unstable/org.matrix.msc2432/rooms/{roomId}/aliases",
        User(rooms::events_and_state::aliases),
    ),
    post("/_matrix/client/v3/rooms/{roomId}/report", User(rooms::reports::room))
        .even_suspended()
        .rate(Rate::Join),
    post("/_matrix/client/v3/rooms/{roomId}/report/{eventId}", User(rooms::reports::event))
        .even_suspended()
        .rate(Rate::Join),
    post("/_matrix/client/v3/users/{userId}/report", User(rooms::reports::user))
        .even_suspended()
        .rate(Rate::Join),
    get("/_matrix/client/v3/voip/turnServer", User(voip::turn_server)),
    post("/_matrix/client/v3/search", User(rooms::search::search)).even_suspended(),
    // ----- client-server: delayed events, calls -----
    put(
        "/_matrix/client/unstable/org.matrix.msc4140/rooms/{roomId}/delayed_event/{eventType}/{txnId}",
        User(rooms::events_and_state::put_delayed),
    )
    .member_rate(Rate::Join)
    .guests()
    .even_suspended(),
    get("/_matrix/client/unstable/org.matrix.msc4140/delayed_events", User(rooms::delayed_events::list))
        .guests(),
    get(
        "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}",
        User(rooms::delayed_events::get),
    )
    .guests(),
    post(
        "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}",
        MaybeUser(rooms::delayed_events::act_by_body),
    )
    .guests()
    .rate(Rate::DelayedEvents),
    post(
        "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}/{action}",
        MaybeUser(rooms::delayed_events::act),
    )
    .guests()
    .rate(Rate::DelayedEvents),
    get("/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", User(discovery::rtc_transports)),
    // ----- client-server: typing, receipts, presence, messages to devices -----
    put("/_matrix/client/v3/rooms/{roomId}/typing/{userId}", User(sync::ephemeral::typing)),
    post("/_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}", User(sync::ephemeral::receipt))
        .even_suspended(),
    post("/_matrix/client/v3/rooms/{roomId}/read_markers", User(sync::ephemeral::read_markers))
        .even_suspended(),
    get("/_matrix/client/v3/presence/{userId}/status", User(sync::presence::get)),
    put("/_matrix/client/v3/presence/{userId}/status", User(sync::presence::put)).even_suspended(),
    put("/_matrix/client/v3/sendToDevice/{eventType}/{txnId}", User(devices::to_device::send))
        .guests()
        .even_suspended()
        .body(TO_DEVICE_BODY_BYTES_MAX),
    // ----- client-server: dehydrated devices -----
    put("/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device", User(devices::dehydrated::put))
        .even_suspended(),
    get("/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device", User(devices::dehydrated::get)),
    delete(
        "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device",
        User(devices::dehydrated::delete),
    )
    .even_suspended(),
    post(
        "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{deviceId}/events",
        User(devices::dehydrated::events),
    )
    .even_suspended(),
    get(
        "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{deviceId}/events",
        User(devices::dehydrated::events_from),
    ),
    // ----- client-server: key backups -----
    post("/_matrix/client/v3/room_keys/version", User(devices::room_keys::create_version)).even_suspended(),
    get("/_matrix/client/v3/room_keys/version", User(devices::room_keys::current_version)),
    get("/_matrix/client/v3/room_keys/version/{version}", User(devices::room_keys::version)),
    put("/_matrix/client/v3/room_keys/version/{version}", User(devices::room_keys::update_version))
        .even_suspended(),
    delete("/_matrix/client/v3/room_keys/version/{version}", User(devices::room_keys::delete_version))
        .even_suspended(),
    get("/_matrix/client/v3/room_keys/keys", User(devices::room_keys::get_all)),
    put("/_matrix/client/v3/room_keys/keys", User(devices::room_keys::put_all))
        .even_suspended()
        .body(ROOM_KEYS_BODY_BYTES_MAX),
    delete("/_matrix/client/v3/room_keys/keys", User(devices::room_keys::delete_all)).even_suspended(),
    get("/_matrix/client/v3/room_keys/keys/{roomId}", User(devices::room_keys::get_of_room)),
    put("/_matrix/client/v3/room_keys/keys/{roomId}", User(devices::room_keys::put_of_room))
        .even_suspended()
        .body(ROOM_KEYS_BODY_BYTES_MAX),
    delete("/_matrix/client/v3/room_keys/keys/{roomId}", User(devices::room_keys::delete_of_room))
        .even_suspended(),
    get("/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", User(devices::room_keys::get_one)),
    put("/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", User(devices::room_keys::put_one))
        .even_suspended(),
    delete("/_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}", User(devices::room_keys::delete_one))
        .even_suspended(),
    // ----- client-server: media -----
    get("/_matrix/client/v1/media/config", User(media::config)),
    get("/_matrix/client/v1/media/download/{serverName}/{mediaId}", UserWaiting(media::download)).guests(),
    get("/_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}", UserWaiting(media::download))
        .guests(),
    get("/_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}", UserWaiting(media::thumbnails::get))
        .guests(),
    get("/_matrix/client/v1/media/preview_url", User(media::url_preview::get)).rate(Rate::Write),
    post("/_matrix/media/v3/upload", UserUpload(media::begin_upload, media::upload)),
    put(
        "/_matrix/media/v3/upload/{serverName}/{mediaId}",
        UserUpload(media::begin_announced, media::upload_announced),
    ),
    post("/_matrix/media/v1/create", User(media::create)),
    get("/_matrix/media/v3/config", User(media::config)),
    get("/_matrix/media/v3/download/{serverName}/{mediaId}", Anyone(media::frozen)),
    get("/_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}", Anyone(media::frozen)),
    get("/_matrix/media/v3/thumbnail/{serverName}/{mediaId}", Anyone(media::frozen)),
    get("/_matrix/media/v3/preview_url", User(media::url_preview::get)).rate(Rate::Write),
    post("/_synapse/admin/v1/media/quarantine/{serverName}/{mediaId}", Admin(media::quarantine)),
    post("/_synapse/admin/v1/media/unquarantine/{serverName}/{mediaId}", Admin(media::unquarantine)),
    delete("/_synapse/admin/v1/media/{serverName}/{mediaId}", Admin(media::delete)),
    // ----- client-server: end-to-end keys -----
    post("/_matrix/client/v3/keys/upload", User(devices::keys::upload)).guests().even_suspended(),
    post("/_matrix/client/v3/keys/query", User(devices::keys::query))
        .guests()
        .even_suspended()
        .body(KEY_QUERY_BODY_BYTES_MAX),
    post("/_matrix/client/v3/keys/claim", User(devices::keys::claim))
        .guests()
        .even_suspended()
        .body(KEY_QUERY_BODY_BYTES_MAX),
    get("/_matrix/client/v3/keys/changes", User(devices::keys::changes)),
    post("/_matrix/client/v3/keys/device_signing/upload", User(devices::keys::upload_signing_keys))
        .even_suspended()
        .rate(Rate::Login),
    post("/_matrix/client/v3/keys/signatures/upload", User(devices::keys::upload_signatures))
        .even_suspended(),
    // ----- client-server: sync, filters, account data -----
    get("/_matrix/client/v3/sync", UserWaiting(sync::sync)).guests(),
    get("/_matrix/client/v3/events", UserWaiting(sync::event_stream::events)).guests(),
    get("/_matrix/client/v3/initialSync", User(sync::event_stream::initial)),
    post("/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", UserWaiting(sync::sliding::sync))
        .even_suspended()
        .rate(Rate::Read),
    post("/_matrix/client/v4/sync", UserWaiting(sync::sliding_v4::sync)).even_suspended().rate(Rate::Read),
    post("/_matrix/client/v3/user/{userId}/filter", User(accounts::filters::define)).even_suspended(),
    get("/_matrix/client/v3/user/{userId}/filter/{filterId}", User(accounts::filters::get)),
    get("/_matrix/client/v3/user/{userId}/account_data/{type}", User(accounts::account_data::get_global)),
    put("/_matrix/client/v3/user/{userId}/account_data/{type}", User(accounts::account_data::put_global))
        .even_suspended(),
    get(
        "/_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}",
        User(accounts::account_data::get_of_room),
    ),
    put(
        "/_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}",
        User(accounts::account_data::put_of_room),
    )
    .even_suspended(),
    get("/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags", User(accounts::account_data::tags)),
    put("/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}", User(accounts::account_data::put_tag))
        .even_suspended(),
    delete(
        "/_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}",
        User(accounts::account_data::delete_tag),
    )
    .even_suspended(),
    get("/_matrix/client/v3/pushers", User(push::pushers::list)),
    post("/_matrix/client/v3/pushers/set", User(push::pushers::set)).rate(Rate::Write).even_suspended(),
    get("/_matrix/client/v3/notifications", User(push::pushers::notifications)),
    get("/_matrix/client/v3/pushrules/", User(push::push_rules::all)),
    get("/_matrix/client/v3/pushrules/global/", User(push::push_rules::global)),
    get("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}", User(push::push_rules::rule)),
    put("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}", User(push::push_rules::put)).even_suspended(),
    delete("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}", User(push::push_rules::delete))
        .even_suspended(),
    get("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions", User(push::push_rules::actions)),
    put("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions", User(push::push_rules::put_actions))
        .even_suspended(),
    get("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled", User(push::push_rules::enabled)),
    put("/_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled", User(push::push_rules::put_enabled))
        .even_suspended(),
    // ----- client-server: profiles, directory -----
    get("/_matrix/client/v3/profile/{userId}", MaybeUser(accounts::profile::get)),
    get("/_matrix/client/v3/profile/{userId}/{keyName}", MaybeUser(accounts::profile::get_field)),
    put("/_matrix/client/v3/profile/{userId}/{keyName}", User(accounts::profile::put_field)).guests(),
    delete("/_matrix/client/v3/profile/{userId}/{keyName}", User(accounts::profile::delete_field)).guests(),
    get("/_matrix/client/v3/directory/room/{roomAlias}", MaybeUser(rooms::directory::resolve)),
    put("/_matrix/client/v3/directory/room/{roomAlias}", User(rooms::directory::set_alias)),
    delete("/_matrix/client/v3/directory/room/{roomAlias}", User(rooms::directory::delete_alias)),
    get("/_matrix/client/v3/directory/list/room/{roomId}", MaybeUser(rooms::directory::visibility)),
    put("/_matrix/client/v3/directory/list/room/{roomId}", User(rooms::directory::set_visibility)),
    put(
        "/_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}",
        User(rooms::directory::set_network_visibility),
    ),
    get("/_matrix/client/v3/publicRooms", MaybeUser(rooms::directory::public_rooms)),
    post("/_matrix/client/v3/publicRooms", User(rooms::directory::search_public_rooms)).even_suspended(),
    post("/_matrix/client/v3/user_directory/search", User(rooms::user_directory::search)).even_suspended(),
    get("/_matrix/client/v1/mutual_rooms", User(rooms::user_directory::mutual_rooms)),
    get(
        "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms",
        User(rooms::user_directory::unstable_mutual_rooms),
    ),
    post("/_matrix/client/v3/user/{userId}/openid/request_token", User(accounts::openid::request_token)),
    get("/_matrix/client/v1/rooms/{roomId}/hierarchy", User(rooms::spaces::hierarchy)).rate(Rate::Write),
    get("/_matrix/client/v1/room_summary/{roomIdOrAlias}", MaybeUser(rooms::spaces::room_summary))
        .rate(Rate::Write),
    get(
        "/_matrix/client/unstable/im.nheko.summary/summary/{roomIdOrAlias}",
        MaybeUser(rooms::spaces::unstable_room_summary),
    )
    .rate(Rate::Write),
    get(
        "/_matrix/client/unstable/im.nheko.summary/rooms/{roomIdOrAlias}/summary",
        MaybeUser(rooms::spaces::unstable_room_summary),
    )
    .rate(Rate::Write),
    // ----- what administrators ask: accounts -----
    get("/_synapse/admin/v2/users", Admin(users::list)),
    get("/_synapse/admin/v3/users", Admin(users::list_v3)),
    get("/_synapse/admin/v2/users/{userId}", Admin(users::get)),
    put("/_synapse/admin/v2/users/{userId}", Admin(users::put)),
    post("/_doorstep/admin/v1/users", Admin(users::add)),
    post("/_doorstep/admin/v1/users/{userId}/logout", Admin(user_devices::log_out)),
    get("/_synapse/admin/v2/users/{userId}/devices", Admin(user_devices::list)),
    get("/_synapse/admin/v2/users/{userId}/devices/{deviceId}", Admin(user_devices::get)),
    put("/_synapse/admin/v2/users/{userId}/devices/{deviceId}", Admin(user_devices::update)),
    delete("/_synapse/admin/v2/users/{userId}/devices/{deviceId}", Admin(user_devices::delete)),
    post("/_synapse/admin/v2/users/{userId}/delete_devices", Admin(user_devices::delete_many)),
    get("/_synapse/admin/v1/users/{userId}/admin", Admin(users::is_admin)),
    put("/_synapse/admin/v1/users/{userId}/admin", Admin(users::set_admin)),
    get("/_synapse/admin/v1/users/{userId}/memberships", Admin(users::memberships)),
    get("/_synapse/admin/v1/users/{userId}/pushers", Admin(users::pushers)),
    get("/_synapse/admin/v1/users/{userId}/override_ratelimit", Admin(users::own_rate)),
    post("/_synapse/admin/v1/users/{userId}/override_ratelimit", Admin(users::set_own_rate)),
    delete("/_synapse/admin/v1/users/{userId}/override_ratelimit", Admin(users::end_own_rate)),
    get("/_synapse/admin/v1/users/{userId}/accountdata", Admin(users::account_data)),
    post("/_synapse/admin/v1/users/{userId}/login", Admin(user_devices::log_in)),
    post("/_synapse/admin/v1/reset_password/{userId}", Admin(users::reset_password)),
    post("/_synapse/admin/v1/deactivate/{userId}", Admin(users::deactivate)),
    put("/_synapse/admin/v1/suspend/{userId}", Admin(users::suspend)),
    get("/_synapse/admin/v1/whois/{userId}", Admin(users::whois)),
    get("/_synapse/admin/v1/username_available", Admin(users::username_available)),
    // ----- what administrators ask: registration tokens -----
    get("/_synapse/admin/v1/registration_tokens", Admin(registration_tokens::list)),
    post("/_synapse/admin/v1/registration_tokens/new", Admin(registration_tokens::add)),
    get("/_synapse/admin/v1/registration_tokens/{token}", Admin(registration_tokens::get)),
    put("/_synapse/admin/v1/registration_tokens/{token}", Admin(registration_tokens::update)),
    delete("/_synapse/admin/v1/registration_tokens/{token}", Admin(registration_tokens::delete)),
    // ----- what administrators ask: rooms, knocks, media -----
    get("/_synapse/admin/v1/rooms", Admin(admin_rooms::list)),
    get("/_synapse/admin/v1/rooms/{roomId}", Admin(admin_rooms::get)),
    delete("/_synapse/admin/v1/rooms/{roomId}", Admin(admin_rooms::delete)),
    get("/_synapse/admin/v1/rooms/{roomId}/members", Admin(admin_rooms::members)),
    get("/_synapse/admin/v1/rooms/{roomId}/state", Admin(admin_rooms::state)),
    get("/_synapse/admin/v1/rooms/{roomId}/block", Admin(admin_rooms::block)),
    put("/_synapse/admin/v1/rooms/{roomId}/block", Admin(admin_rooms::set_block)),
    post("/_synapse/admin/v1/rooms/{roomIdOrAlias}/make_room_admin", Admin(admin_rooms::make_admin)),
    delete("/_synapse/admin/v2/rooms/{roomId}", Admin(admin_rooms::begin_deletion)),
    get("/_synapse/admin/v2/rooms/{roomId}/delete_status", Admin(admin_rooms::deletions)),
    get("/_synapse/admin/v2/rooms/delete_status/{deleteId}", Admin(admin_rooms::deletion)),
    post("/_synapse/admin/v1/join/{roomIdOrAlias}", Admin(admin_rooms::join)),
    get("/_synapse/admin/v1/users/{userId}/joined_rooms", Admin(admin_rooms::joined_rooms)),
    get(
        "/_synapse/admin/v1/rooms/{roomIdOrAlias}/forward_extremities",
        Admin(admin_rooms::forward_extremities),
    ),
    get("/_synapse/admin/v1/fetch_event/{eventId}", Admin(admin_rooms::event)),
    get("/_doorstep/admin/v1/blocked_rooms", Admin(admin_rooms::blocked)),
    get("/_doorstep/admin/v1/knocks", Admin(admin_rooms::knocks)),
    post("/_doorstep/admin/v1/knocks/{roomId}/{userId}/{answer}", Admin(admin_rooms::answer_knock)),
    get("/_synapse/admin/v1/media/{serverName}/{mediaId}", Admin(admin_media::get)),
    post("/_synapse/admin/v1/media/delete", Admin(admin_media::delete_old)),
    post("/_synapse/admin/v1/media/{serverName}/delete", Admin(admin_media::delete_old)),
    post("/_synapse/admin/v1/purge_media_cache", Admin(admin_media::purge_cache)),
    get("/_synapse/admin/v1/users/{userId}/media", Admin(admin_media::of_user)),
    delete("/_synapse/admin/v1/users/{userId}/media", Admin(admin_media::delete_of_user)),
    post("/_synapse/admin/v1/user/{userId}/media/quarantine", Admin(admin_media::quarantine_of_user)),
    get("/_synapse/admin/v1/room/{roomId}/media", Admin(admin_media::of_room)),
    post("/_synapse/admin/v1/room/{roomId}/media/quarantine", Admin(admin_media::quarantine_of_room)),
    post("/_synapse/admin/v1/quarantine_media/{roomId}", Admin(admin_media::quarantine_of_room)),
    get("/_synapse/admin/v1/statistics/users/media", Admin(admin_media::usage)),
    // ----- what administrators ask: reports, other servers -----
    get("/_synapse/admin/v1/event_reports", Admin(reports::events)),
    get("/_synapse/admin/v1/event_reports/{reportId}", Admin(reports::of_event)),
    delete("/_synapse/admin/v1/event_reports/{reportId}", Admin(reports::delete_of_event)),
    get("/_synapse/admin/v1/user_reports", Admin(reports::users)),
    get("/_synapse/admin/v1/user_reports/{reportId}", Admin(reports::of_user)),
    delete("/_synapse/admin/v1/user_reports/{reportId}", Admin(reports::delete_of_user)),
    get("/_doorstep/admin/v1/room_reports", Admin(reports::rooms)),
    get("/_doorstep/admin/v1/room_reports/{reportId}", Admin(reports::of_room)),
    delete("/_doorstep/admin/v1/room_reports/{reportId}", Admin(reports::delete_of_room)),
    get("/_synapse/admin/v1/federation/destinations", Admin(admin_federation::list)),
    get("/_synapse/admin/v1/federation/destinations/{serverName}", Admin(admin_federation::get)),
    get("/_synapse/admin/v1/federation/destinations/{serverName}/rooms", Admin(admin_federation::rooms)),
    post(
        "/_synapse/admin/v1/federation/destinations/{serverName}/reset_connection",
        Admin(admin_federation::reset),
    ),
    // ----- what administrators ask: the server as a whole -----
    get("/_doorstep/admin/v1/backup", Admin(whole_server::backup)),
    get("/_doorstep/admin/v1/storage", Admin(whole_server::storage)),
    get("/_doorstep/admin/v1/signing_key", Admin(whole_server::signing_key)),
    post("/_doorstep/admin/v1/signing_key", Admin(whole_server::set_signing_key)),
    get("/_synapse/admin/v1/server_version", Anyone(health::version)),
    get("/health", Anyone(health::health)),
    // ----- server-server: keys, version -----
    get("/_matrix/key/v2/server", Anyone(server_server::keys::own)).rate(Rate::Federation),
    get("/_matrix/key/v2/query/{serverName}", Anyone(server_server::keys::query_one)).rate(Rate::Federation),
    // As servers ask that are older than v1.6.
    get("/_matrix/key/v2/server/{keyId}", Anyone(server_server::keys::own)).rate(Rate::Federation),
    get("/_matrix/key/v2/query/{serverName}/{keyId}", Anyone(server_server::keys::query_one))
        .rate(Rate::Federation),
    post("/_matrix/key/v2/query", Anyone(server_server::keys::query))
        .rate(Rate::Federation)
        .body(NOTARY_QUERY_BODY_BYTES_MAX),
    get("/_matrix/federation/v1/version", Anyone(server_server::version::version)),
    // ----- server-server: membership handshakes -----
    get("/_matrix/federation/v1/make_join/{roomId}/{userId}", Peer(server_server::membership::make_join)),
    put("/_matrix/federation/v1/send_join/{roomId}/{eventId}", Peer(server_server::membership::send_join_v1)),
    put("/_matrix/federation/v2/send_join/{roomId}/{eventId}", Peer(server_server::membership::send_join)),
    get("/_matrix/federation/v1/make_knock/{roomId}/{userId}", Peer(server_server::membership::make_knock)),
    put("/_matrix/federation/v1/send_knock/{roomId}/{eventId}", Peer(server_server::membership::send_knock)),
    get("/_matrix/federation/v1/make_leave/{roomId}/{userId}", Peer(server_server::membership::make_leave)),
    put(
        "/_matrix/federation/v1/send_leave/{roomId}/{eventId}",
        Peer(server_server::membership::send_leave_v1),
    ),
    put("/_matrix/federation/v2/send_leave/{roomId}/{eventId}", Peer(server_server::membership::send_leave)),
    put("/_matrix/federation/v1/invite/{roomId}/{eventId}", Peer(server_server::membership::invite_v1))
        .body(INVITE_BODY_BYTES_MAX),
    put("/_matrix/federation/v2/invite/{roomId}/{eventId}", Peer(server_server::membership::invite))
        .body(INVITE_BODY_BYTES_MAX),
    put("/_matrix/federation/v1/3pid/onbind", Anyone(server_server::third_party::on_bind))
        .rate(Rate::Federation),
    // As the identity server that there is calls it.
    post("/_matrix/federation/v1/3pid/onbind", Anyone(server_server::third_party::on_bind))
        .rate(Rate::Federation),
    put(
        "/_matrix/federation/v1/exchange_third_party_invite/{roomId}",
        Peer(server_server::third_party::exchange),
    ),
    // ----- server-server: media -----
    get("/_matrix/federation/v1/media/download/{mediaId}", PeerWaiting(server_server::media::download)),
    get("/_matrix/federation/v1/media/thumbnail/{mediaId}", PeerWaiting(server_server::media::thumbnail)),
    // ----- server-server: transactions, events, queries -----
    get("/_matrix/federation/v1/query/directory", Peer(server_server::query::directory)),
    get("/_matrix/federation/v1/query/profile", Peer(server_server::query::profile)),
    get("/_matrix/federation/v1/user/devices/{userId}", Peer(server_server::devices::list)),
    post("/_matrix/federation/v1/user/keys/query", Peer(server_server::devices::query_keys)),
    post("/_matrix/federation/v1/user/keys/claim", Peer(server_server::devices::claim_keys)),
    get("/_matrix/federation/v1/query/{queryType}", Peer(server_server::query::unknown)),
    get("/_matrix/federation/v1/hierarchy/{roomId}", Peer(server_server::spaces::hierarchy)),
    get("/_matrix/federation/v1/publicRooms", Peer(server_server::public_rooms::list)),
    post("/_matrix/federation/v1/publicRooms", Peer(server_server::public_rooms::search)),
    get("/_matrix/federation/v1/openid/userinfo", Anyone(server_server::openid::userinfo))
        .rate(Rate::Federation),
    put("/_matrix/federation/v1/send/{txnId}", Peer(server_server::transactions::send))
        .body(TRANSACTION_BODY_BYTES_MAX)
        .weigh(server_server::transactions::weight),
    get("/_matrix/federation/v1/event/{eventId}", Peer(server_server::events::event)),
    get("/_matrix/federation/v1/state/{roomId}", Peer(server_server::events::state)),
    get("/_matrix/federation/v1/state_ids/{roomId}", Peer(server_server::events::state_ids)),
    get("/_matrix/federation/v1/event_auth/{roomId}/{eventId}", Peer(server_server::events::event_auth)),
    get(
        "/_matrix/federation/v1/timestamp_to_event/{roomId}",
        Peer(server_server::events::timestamp_to_event),
    ),
    get("/_matrix/federation/v1/backfill/{roomId}", Peer(server_server::events::backfill)),
    post(
        "/_matrix/federation/v1/get_missing_events/{roomId}",
        Peer(server_server::events::get_missing_events),
    ),
];
