//! What keeps each table of the schema from growing without end: who can fill it, what bounds it for each of them, and
//! what cleans it. Whoever adds a table adds a line here; a test holds this list against the schema.
//!
//! The rules: every share is bounded for each origin, so that who fills a table refuses or washes away only what is
//! theirs; a place that is wanted by who shares a room with us is never kept by a stranger; and a bound that refuses
//! says so (429 `M_LIMIT_EXCEEDED`, or an error that says why trying again is of no use).

/// Who makes a table grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilledBy {
    /// This server by itself, and who runs it.
    Itself,
    /// Our own users' clients.
    Users,
    /// Servers that are in a room with a local user, by what the room's rules let them do.
    Rooms,
    /// Any server, and anybody who asks without a name.
    Strangers,
}

/// What one of them may fill.
#[derive(Debug)]
pub struct TableShare {
    /// Who.
    pub by: FilledBy,
    /// How much, and what happens beyond.
    pub bound: &'static str,
    /// The test that shows it; there is one for all that strangers fill. Empty where the primary key and another
    /// table's bound say it all.
    pub proof: &'static str,
}

/// One table of the schema.
#[derive(Debug)]
pub struct TableBounds {
    /// Its name.
    pub name: &'static str,
    /// Who fills it.
    pub filled: &'static [TableShare],
    /// What takes rows out again.
    pub swept: &'static str,
}

const fn itself(bound: &'static str) -> TableShare {
    TableShare { by: FilledBy::Itself, bound, proof: "" }
}

const fn users(bound: &'static str, proof: &'static str) -> TableShare {
    TableShare { by: FilledBy::Users, bound, proof }
}

const fn rooms(bound: &'static str, proof: &'static str) -> TableShare {
    TableShare { by: FilledBy::Rooms, bound, proof }
}

const fn strangers(bound: &'static str, proof: &'static str) -> TableShare {
    TableShare { by: FilledBy::Strangers, bound, proof }
}

const fn table(name: &'static str, filled: &'static [TableShare], swept: &'static str) -> TableBounds {
    TableBounds { name, filled, swept }
}

/// What `rooms` and everything that hangs on a room's graph are swept by.
const HISTORY: &str = "never: a room's history is kept, unless an administrator deletes the room";
/// Of what is derived from accepted events, row for row.
const BY_EVENTS: &str = "a bounded number of rows for each accepted event";
const RECEIVED: &str = "of_the_messages_that_were_received_the_last_of_each_origin_are_known_again";
const STRANGERS_KEYS: &str =
    "strangers_without_end_take_the_place_of_strangers_and_of_nobody_who_was_in_a_room_with_us";

/// Every table, in the order of the schema.
pub const TABLES: &[TableBounds] = &[
    table("server", &[itself("one row")], "never"),
    table("lost_positions", &[itself("a row for each time that somebody restores a backup")], "never"),
    // ----- rooms -----
    table(
        "rooms",
        &[
            users("a row for each room that one of us made, joined, knocked upon or was invited to", ""),
            rooms("none of their own: only what one of us does makes a room", ""),
        ],
        HISTORY,
    ),
    table(
        "events",
        &[
            users("65 536 bytes each, by the rate limit of writes", ""),
            rooms("65 536 bytes each, as the room's rules, its server ACL and its moderators let them", ""),
            strangers(
                "knocks, as of `memberships`, and their withdrawals; what is rejected is not kept",
                "who_was_never_there_leaves_nothing_behind_by_leaving",
            ),
        ],
        HISTORY,
    ),
    table(
        "vouched_events",
        &[rooms("at most one for each event", "")],
        "the same event with a key that is certain; the room's deletion",
    ),
    table(
        "staged_events",
        &[users(
            "the events of one answer to a join, 256 MiB at most, for each join of the user that is on its way",
            "",
        )],
        "the end of the import, whatever it is, and the next start",
    ),
    table(
        "extremities",
        &[rooms(BY_EVENTS, "")],
        "each event takes out those that it names; forks are joined",
    ),
    table(
        "late_extremities",
        &[rooms(
            "200 in a room; more events that would be some are pending",
            "a_fork_costs_the_same_however_many_events_follow_on_it",
        )],
        "`catch_up`, as soon as the room's share of work allows",
    ),
    table("gaps", &[rooms("20 for each accepted event", "")], "filled by backfill"),
    table(
        "redactions",
        &[rooms(
            "one for each accepted redaction; 20 of one server that wait for the same event",
            "of_one_server_a_few_redactions_wait_for_an_event_and_act_when_it_comes",
        )],
        HISTORY,
    ),
    table(
        "event_relations",
        &[rooms("one for each accepted event", "")],
        "a redaction of the event that relates to another",
    ),
    table(
        "threads",
        &[rooms("one for each accepted event that is in a thread", "")],
        "a redaction of its last reply",
    ),
    table(
        "thread_subscriptions",
        &[users(
            "10 000 of one user; that of a thread which is not subscribed to any more goes, or else the oldest",
            "a_user_has_a_bounded_number_of_thread_subscriptions_and_of_more_the_oldest_go",
        )],
        "deactivation; whoever has nothing to do with the room any more; its deletion",
    ),
    table(
        "pending_events",
        &[
            rooms("2000 and 16 MiB for one server; 500 for each in a full room; 429 beyond", ""),
            strangers(
                "200 for one server, none where 1000 wait in the room; 429 beyond",
                "servers_without_end_that_are_not_in_a_room_leave_room_for_those_that_are",
            ),
        ],
        "taken in, or given up after 3 days (`put_off`)",
    ),
    table(
        "pending_needs",
        &[strangers("31 for each pending event", "what_waits_from_outside_is_bounded_and_given_up_some_day")],
        "with its event",
    ),
    table("state_tuples", &[rooms(BY_EVENTS, "")], HISTORY),
    table("snapshots", &[rooms(BY_EVENTS, "")], HISTORY),
    table("snapshot_entries", &[rooms(BY_EVENTS, "")], HISTORY),
    table(
        "spare_snapshots",
        &[rooms("one for each event that changes the state of a forked room", "")],
        "`sweep_spare_states`, an hour or two after it was the room's state; its deletion",
    ),
    table("current_state", &[rooms(BY_EVENTS, "")], "the next event of the tuple_id"),
    table("room_activity", &[rooms("one for each room", "")], HISTORY),
    table("state_changes", &[rooms(BY_EVENTS, "")], HISTORY),
    table(
        "memberships",
        &[
            rooms(BY_EVENTS, ""),
            strangers(
                "100 knocks upon one room that wait, 100 within an hour, shared out between servers; 429 beyond",
                "a_flood_of_knocks_from_one_server_is_bounded_and_keeps_no_other_out",
            ),
        ],
        HISTORY,
    ),
    table(
        "lost_memberships",
        &[rooms("one for each local user who was in the room", "")],
        "the next member event of the user",
    ),
    table("resident_servers", &[rooms(BY_EVENTS, "")], HISTORY),
    table(
        "remote_memberships",
        &[
            users("one for each room and user", ""),
            strangers(
                "200 invites that wait for one user, shared out between servers; 429 beyond; and 200 that have ended",
                "a_flood_of_invites_from_one_server_is_bounded_and_keeps_no_other_out",
            ),
        ],
        "coming into the room; 90 days after its end (`sweep_ended`)",
    ),
    table(
        "owed_invites",
        &[users(
            "500 of one user; 429 beyond",
            "what_is_owed_is_bounded_for_each_inviter_and_shared_out_between_servers",
        )],
        "delivery, a refusal, a week of trying, the end of the inviter's membership (`deliver_owed_invite`)",
    ),
    table(
        "offered_invites",
        &[users(
            "the last 500 of one inviter",
            "of_invites_that_others_may_hold_the_last_of_each_inviter_are_known_for_a_while",
        )],
        "whatever becomes of the invitee in the room; 90 days (`keep_offered_invite`)",
    ),
    table(
        "owed_joins",
        &[users("one for each room that one of us has knocked upon", "")],
        "the join, a refusal, a week of trying, the end of the invite (`pursue_owed_join`)",
    ),
    table(
        "owed_bans",
        &[users("one for each room that one of us made of another with more than 1000 bans", "")],
        "when the last one is carried over, or one of the rooms is gone (`carry_bans`)",
    ),
    table(
        "owed_upgrades",
        &[itself("a row for each room that we are in")],
        "when its local members were looked through (`follow_some`)",
    ),
    table(
        "event_texts",
        &[rooms(
            "16 KiB of the text of an accepted event",
            "no_more_of_a_text_is_indexed_than_a_bounded_part",
        )],
        "redaction",
    ),
    table("search_progress", &[itself("one row")], "never"),
    table("search_again", &[rooms("one for each accepted event", "")], "`index_texts`, a portion at a time"),
    table(
        "delayed_events",
        &[users(
            "100 of one user, 60 KiB each, 24 hours; 429 beyond",
            "delays_that_make_no_sense_are_refused_and_a_user_has_a_bounded_number_of_them",
        )],
        "when it is sent; cancelled; deactivation",
    ),
    table("room_aliases", &[users("by the rate limit of writes", "")], "whoever may delete them"),
    table("published_rooms", &[users("one for each room", "")], "whoever may take them out"),
    table(
        "network_rooms",
        &[itself("one for each room and network of a service that the operator has registered")],
        "the service that has put them in",
    ),
    table("blocked_rooms", &[itself("who runs the server blocks them")], "whoever blocks them no more"),
    table(
        "room_deletions",
        &[itself(
            "who runs the server asks for them, or a join of a room that has to go first; one at a time of each room",
        )],
        "each new one takes out those that ended 7 days ago, and beyond 1000",
    ),
    table("retired_keys", &[itself("one row")], "never"),
    table(
        "rooms_behind_backup",
        &[itself("a row for each room, when a backup is restored")],
        "when one of its servers has answered, or after some days",
    ),
    // ----- servers -----
    table("signing_keys", &[itself("one for each rotation")], "never: what they signed stays verifiable"),
    table(
        "server_keys",
        &[
            users("those of the servers whose events one of us needs", ""),
            rooms("400 for one server; the oldest go", "a_server_that_names_ever_new_keys_fills_nothing"),
            strangers("those of 500 statements of all together; the oldest go", STRANGERS_KEYS),
        ],
        "each statement of the server, or of a stranger (`save_server_keys`)",
    ),
    table(
        "replaced_server_keys",
        &[
            users("8 of each server in `server_keys`", ""),
            rooms(
                "8 of each server in `server_keys`; those that ended first go",
                "a_server_that_replaces_its_key_again_and_again_fills_nothing",
            ),
            strangers("8 of each server in `server_keys`, with which they go", STRANGERS_KEYS),
        ],
        "each statement of the server, or of a stranger (`save_server_keys`)",
    ),
    table(
        "key_statements",
        &[
            users("those of the servers whose events one of us needs", ""),
            rooms("one for each key", "a_server_that_names_ever_new_keys_fills_nothing"),
            strangers("500 of all together; the oldest go", STRANGERS_KEYS),
        ],
        "each statement of the server, or of a stranger (`save_server_keys`)",
    ),
    table(
        "destinations",
        &[users("one for each server", ""), rooms("one for each server", "")],
        "`forget_destinations`, every hour",
    ),
    table(
        "owed_events",
        &[rooms(
            "10 000 for one server; of more the first go",
            "events_in_particular_are_bounded_and_a_server_that_is_gone_for_good_is_forgotten",
        )],
        "delivery (`save_destination`)",
    ),
    table(
        "owed_edus",
        &[users(
            "10 000 messages and 64 MiB for one server, 50 updates of one user's devices",
            "messages_for_a_server_that_never_returns_are_bounded_by_their_number_their_bytes_and_their_age",
        )],
        "delivery (`save_destination`); messages after 30 days (`drop_old_messages`)",
    ),
    table(
        "transactions",
        &[
            rooms(
                "200 of one server; the oldest go",
                "of_the_answers_to_one_server_the_last_are_kept_and_a_long_id_takes_no_more_room_than_a_short_one",
            ),
            strangers(
                "2000 of all together; the oldest go",
                "strangers_with_ever_new_names_wash_away_each_others_answers_only_and_all_go_with_time",
            ),
        ],
        "each transaction, of what is older than 3 days (`save_transaction_answer`)",
    ),
    // ----- accounts -----
    table(
        "users",
        &[users("by the rate limit of registrations, and the settings", "")],
        "never: nobody may take a name again",
    ),
    table("guest_removals", &[itself("a row for each room with guests")], "when the guests have left"),
    table("devices", &[users("1000 of one user; 403 beyond", "")], "log-out"),
    table(
        "sessions",
        &[users("two for each device", "")],
        "with the device; the next use (`confirm_session`)",
    ),
    table(
        "login_tokens",
        &[users("5 of one user; the oldest go", "login_tokens_are_bounded_in_number_and_go_with_time")],
        "the login; with the device; each new one takes out those that have expired",
    ),
    table("registration_tokens", &[itself("who runs the server makes them, 10 000 at most")], "when revoked"),
    table(
        "openid_tokens",
        &[users("50 of one user; the oldest go", "tokens_are_bounded_in_number_and_go_with_time")],
        "each new one takes out those that have expired",
    ),
    table(
        "reports",
        &[users(
            "100 of one user, one of each thing; the oldest go",
            "reports_are_bounded_and_one_of_each_thing",
        )],
        "never: an administrator may read them",
    ),
    table("profile_fields", &[users("64 KiB of one user; 400 beyond", "")], "deactivation"),
    table(
        "owed_profiles",
        &[users("one for each user", "")],
        "when every room has it or has refused it, or after a week of trying (`pursue_owed_profile`); deactivation",
    ),
    table(
        "account_data",
        &[users(
            "8 MiB and 20 000 entries of one user, 413 beyond; of push rules 128 KiB, of the tags of a room 64 KiB, 403 beyond",
            "account_data_has_a_bound_and_what_is_there_can_be_made_smaller",
        )],
        "deactivation",
    ),
    table(
        "pushers",
        &[users("100 of one user, 24 KiB each; 403 beyond", "")],
        "with the device; what its gateway rejects (`delete_rejected_pusher`)",
    ),
    table(
        "bells",
        &[rooms(
            "one for each pusher and room",
            "a_burst_of_knocks_is_told_once_and_once_more_a_minute_later",
        )],
        "the next one that is set, of those whose time is over (`set_bell`); with the pusher",
    ),
    table("filters", &[users("1000 of one user; 403 beyond", "")], "deactivation"),
    table(
        "sliding_connections",
        &[users("16 of one device; that which was used least lately goes", "")],
        "every new one takes out those that it replaces, `sweep_sliding_connections` what was not used for 7 days, or whose device is gone",
    ),
    table(
        "sliding_rooms",
        &[users("two for each connection and room of its user", "")],
        "the next version; with the connection, a portion at a time (`delete_dead_sliding_rooms`)",
    ),
    table(
        "client_transactions",
        &[users(
            "ids of 255 bytes, by the rate limit of writes, kept for 7 days",
            "what_is_no_message_is_refused",
        )],
        "every 32nd takes out 64 that are too old (`add_client_txn`)",
    ),
    // ----- devices -----
    table(
        "to_device_lines",
        &[users("one of each device", "")],
        "after the device, with the last of its messages (`empty_ended_lines`)",
    ),
    table(
        "to_device",
        &[
            users(
                "10 000 and 16 MiB of one sender for one device; 429 beyond",
                "one_of_us_who_fills_an_inbox_is_told_so_and_nobody_else_is",
            ),
            rooms(
                "10 000 and 16 MiB of one server for one device, 500 and 1 MiB in any case, 2500 and 4 MiB of one of \
                 its users; 429 beyond, after 10 minutes and of the user dropped",
                "a_friends_messages_beyond_its_share_stay_with_it_until_there_is_room",
            ),
            strangers(
                "100 and 256 KiB of one server for one device, 1000 and 2 MiB of all, 75 and 192 KiB of one user; 429 \
                 beyond, after 10 minutes and of the user dropped",
                "a_stranger_who_fills_an_inbox_shuts_out_nobody_but_himself",
            ),
        ],
        "the device's next /sync (`forget_to_device`); after the device, a portion at a time (`empty_ended_lines`)",
    ),
    table(
        "to_device_shares",
        &[strangers(
            "three for each user who has a message in `to_device`",
            "shares_are_counted_as_messages_come_and_go_and_end_with_the_device",
        )],
        "with the last of its messages (`forget_to_device`, `empty_ended_lines`)",
    ),
    table(
        "to_device_portions",
        &[users("one for each /sync that had to leave some out", "")],
        "the device's next /sync",
    ),
    table(
        "to_device_received",
        &[
            rooms("2000 of one server; the oldest go", RECEIVED),
            strangers("2000 of all together; the oldest go", RECEIVED),
        ],
        "each transaction, of what is older than 7 days (`sweep_received_to_device`)",
    ),
    table(
        "device_changes",
        &[rooms(
            "one for each user who shares a room with one of us, or did a month ago",
            "changes_of_who_shares_no_room_any_more_go_after_a_month_and_who_was_away_for_longer_is_told_all_the_same",
        )],
        "once a month, of users whom nobody here shares a room with (`sweep_device_changes`)",
    ),
    table("device_changes_sweep", &[itself("one row")], "never"),
    table(
        "remote_device_lists",
        &[rooms("one for each user who shares a room with one of us", "")],
        "`drop_device_list` and `forget_remote_device_list`, as soon as no room is shared any more",
    ),
    table(
        "remote_devices",
        &[rooms(
            "1000 and 1 MiB of one user",
            "of_a_list_that_nobody_could_have_a_part_is_kept_whichever_way_it_comes",
        )],
        "with the list (`remote_device_lists`)",
    ),
    table("device_keys", &[users("8 KiB of each device", "")], "with the device"),
    table(
        "one_time_key_pools",
        &[users("one of each device and algorithm, of which 8", "")],
        "with the device",
    ),
    table(
        "one_time_keys",
        &[
            users("500 of each device, 2 KiB each; 413 beyond", ""),
            strangers(
                "1063 of one device and algorithm that were given out, one for each key that was uploaded; beyond 1000 the oldest go",
                "of_the_keys_that_were_given_out_the_last_are_known_again",
            ),
        ],
        "each 64th claim (`claim_one_time_key`); with the device",
    ),
    table(
        "fallback_keys",
        &[users("one of each device and algorithm, of which 8, 2 KiB", "")],
        "with the device",
    ),
    table(
        "cross_signing_keys",
        &[
            users("three of one user, 8 KiB each", ""),
            rooms("two of each user who shares a room with one of us", ""),
        ],
        "deactivation; `drop_device_list` and `forget_remote_device_list`, as soon as no room is shared any more",
    ),
    table(
        "key_signatures",
        &[users("10 000 of one signer; refused beyond", "")],
        "with the key that was signed or that signed, if it is one of ours; deactivation",
    ),
    table("dehydrated_devices", &[users("one of one user, 64 KiB", "")], "with the device"),
    table(
        "key_backups",
        &[users(
            "100 versions of one user, and one that was deleted; 403 beyond",
            "versions_are_bounded_for_each_user",
        )],
        "deletion, with the last of its keys (`empty_deleted_key_backups`)",
    ),
    table(
        "key_backup_sessions",
        &[users(
            "1 000 000 and 1 GiB of one user, 64 KiB each; 403 beyond",
            "a_backup_that_is_full_takes_better_keys_but_no_more_of_them",
        )],
        "deletion of the key, of its room's or of the version, in portions; deactivation",
    ),
    // ----- ephemeral -----
    table("ephemeral_changes", &[rooms("one for each room", "")], HISTORY),
    table(
        "typing",
        &[
            users("50 in each room", ""),
            rooms(
                "20 of one server, 100 in each room",
                "one_server_whose_users_all_type_leaves_places_to_the_others",
            ),
        ],
        "`expire_typing`",
    ),
    table("receipts", &[rooms("500 threads of each member of the room; the oldest go", "")], HISTORY),
    table(
        "read_positions",
        &[users("for each room one for each thread that they read or spoke in, and two more", "")],
        HISTORY,
    ),
    table("presence", &[rooms("one for each user who shares a room with one of us", "")], HISTORY),
    // ----- media -----
    table(
        "media_blobs",
        &[users("one for each file, of `media` and `media_thumbnails`", "")],
        "when nothing has it any more (`sweep_media`)",
    ),
    table(
        "media",
        &[
            users(
                "what a user's files come to, of 4096 bytes at least, is bounded by a setting; 403 beyond; 50 that wait for \
                 their files; 429 beyond",
                "",
            ),
            strangers(
                "what our users ask for of other servers; the size of it all is bounded by a setting, and what was not \
                 asked for longest goes",
                "of_what_was_fetched_that_goes_which_was_not_asked_for_longest_and_nothing_of_ours",
            ),
        ],
        "an expiry, eviction (`sweep_media`); whoever runs the server",
    ),
    table(
        "media_thumbnails",
        &[users("one for each of the sizes that there are, of each picture", "")],
        "with the picture's file (`forget_blob`)",
    ),
    table("media_shares", &[users("one of each user", "")], "never"),
    // ----- push -----
    table(
        "notifications",
        &[rooms("one for each accepted event", "")],
        "redactions take theirs out; once a day that which all have read, after a month (`sweep_notifications`)",
    ),
    table(
        "notifications_of_users",
        &[
            rooms(
                "for each accepted event one for each local member to whom it is something else than to most: no more \
                 than half of them",
                "what_an_event_is_to_most_has_one_row_and_only_to_the_others_one_each",
            ),
            strangers(
                "one for each invite to a room that we are not in, unless it repeats one that waits; 40 of one server to \
                 one user in an hour",
                "who_repeats_an_invite_rings_once_and_not_without_end",
            ),
        ],
        "redactions take theirs out; once a day that which they have read, after a month, and of rooms that they are \
         not in any more (`sweep_notifications`)",
    ),
    // ----- application services -----
    table(
        "appservices",
        &[itself("one for each service that this server is started with")],
        "a week after a start without the service (`forget_appservice`)",
    ),
    table("appservice_progress", &[itself("one row")], "a start without services"),
    table(
        "appservice_events",
        &[
            rooms("for each accepted event one for each service that it concerns", ""),
            strangers(
                "one for each invite of a service's user; 40 of one server to one user in an hour",
                "who_repeats_an_invite_rings_once_and_not_without_end",
            ),
        ],
        "the service has taken the transaction that they were put into, 100 at a time; with the service",
    ),
    table(
        "appservice_transactions",
        &[itself("for each service one of as many as 100 messages to devices, or the parts of one")],
        "the service has taken it, or finds it too large by itself; with the service",
    ),
];

mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::protocol::ServerName;
    use crate::store::engine::migrate::SCHEMA;
    use crate::store::{Location, Options, Store};

    /// The names of all functions in the sources of a folder.
    fn functions(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).expect("a folder of sources").map(|e| e.expect("an entry")) {
            let path = entry.path();
            if path.is_dir() {
                functions(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                let names =
                    text.lines().filter_map(|line| line.trim_start().strip_prefix("fn ")?.split_once('('));
                found.extend(names.map(|(name, _)| name.to_owned()));
            }
        }
    }

    #[test]
    fn every_table_of_the_schema_has_its_bounds_and_no_other_has() {
        let us = ServerName::parse("us.example").expect("a name");
        let store =
            Store::open(Location::Memory, &us, Box::new(|_| {}), &Options::default()).expect("a store");
        let there = store.read(|db| {
            let mut tables = db.conn().prepare(
                "SELECT name FROM pragma_table_list
                 WHERE schema = 'main' AND type IN ('table', 'virtual') AND name NOT LIKE 'sqlite_%'",
            )?;
            let names = tables.query_map([], |row| row.get::<_, String>(0))?;
            Ok(names.collect::<rusqlite::Result<BTreeSet<_>>>()?)
        });
        let there = there.expect("the schema");
        let listed: BTreeSet<String> = TABLES.iter().map(|table| table.name.to_owned()).collect();
        assert_eq!(listed.len(), TABLES.len(), "a table has two lines");
        assert_eq!(listed, there);
    }

    #[test]
    fn the_bounds_are_told_in_the_order_of_the_schema() {
        let tables = SCHEMA.lines().filter_map(|line| {
            let line = line.strip_suffix(" (")?;
            let index =
                line.strip_prefix("CREATE VIRTUAL TABLE ").and_then(|line| line.strip_suffix(" USING fts5"));
            index.or_else(|| line.strip_prefix("CREATE TABLE "))
        });
        assert!(TABLES.iter().map(|table| table.name).eq(tables));
    }

    #[test]
    fn every_bound_is_told_and_shown_by_a_test_that_there_is() {
        let mut known = BTreeSet::new();
        for folder in ["src", "tests"] {
            functions(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut known);
        }
        for table in TABLES {
            assert!(!table.filled.is_empty() && !table.swept.is_empty(), "{table:?}");
            for share in table.filled {
                assert!(!share.bound.is_empty(), "{table:?}");
                assert!(
                    share.by != FilledBy::Strangers || !share.proof.is_empty(),
                    "nothing shows it: {share:?} of {table:?}"
                );
                assert!(
                    share.proof.is_empty() || known.contains(share.proof),
                    "{} of {table:?}",
                    share.proof
                );
            }
        }
    }
}
