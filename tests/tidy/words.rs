//! Words that were given up, and what stands instead: names are the specification's where it has one, and one word means
//! one thing. Prose may use whatever it likes; names in code may not.

use std::fs;
use std::path::{Path, PathBuf};

/// Under each folder or file: a word that no name in it is, with what is said instead.
const GIVEN_UP: &[(&str, &[(&str, &str)])] = &[
    (
        "src",
        &[
            ("Adopted", "ImportOutcome"),
            ("AdoptedRoom", "ImportedRoom"),
            ("Adoption", "RoomImport"),
            ("Arrival", "RoomPdus"),
            ("Asking", "PeerPermit"),
            ("Door", "JoinTarget"),
            ("Effort", "ResolutionBudget"),
            ("Errand", "Fetch"),
            ("Errands", "FetchLimits"),
            ("FEW_HEADS", "EXTREMITIES_WANTED_MAX"),
            ("Favour", "RequestPermit"),
            ("Favours", "RequestPermits"),
            ("Framed", "BuiltEvent"),
            ("Glance", "UncheckedEvent"),
            ("Ground", "Unconflicted"),
            ("Hearing", "AuthContext"),
            ("Hole", "Gap"),
            ("Intake", "TransactionSlots"),
            ("JOINS_BRANCHES", "DUMMY_EVENT"),
            ("Judge", "AuthChecker"),
            ("Labour", "ResolutionAllowance"),
            ("Laggards", "CatchUpWorker"),
            ("LateHead", "LateExtremity"),
            ("Line", "InboxOutcome"),
            ("Loose", "UndecidedEvents"),
            ("Moment", "TimestampQuery"),
            ("Pen", "EventSigner"),
            ("Pillars", "AuthGraph"),
            ("Questions", "EventLookups"),
            ("Staged", "StagedEvent"),
            ("Terms", "EventSource"),
            ("ToWait", "NewPendingEvent"),
            ("ToldSpaces", "SpaceCache"),
            ("Who", "AskerId"),
            ("adopt_room", "import_room"),
            ("becomes_head", "becomes_extremity"),
            ("begin_adoption", "begin_import"),
            ("calm_until", "quiet_until"),
            ("check_still_outside", "check_not_resident"),
            ("compose_room", "sign_room_events"),
            ("errands", "fetch_limits"),
            ("favours", "request_permits"),
            ("fill_hole", "fill_gap"),
            ("has_hole", "has_gap"),
            ("heads_with", "extremities_with"),
            ("join_branches", "merge_forks"),
            ("judge_beforehand", "authorise_beforehand"),
            ("judge_copy", "authorise_copy"),
            ("judge_draft", "authorise_draft"),
            ("kept_heads", "kept_extremities"),
            ("labour", "resolution_allowance"),
            ("laggards", "catch_up_worker"),
            ("late_heads", "late_extremities"),
            ("loose_ends", "gap_ends"),
            ("note_calm", "note_quiet"),
            ("note_in_vain", "note_unfilled"),
            ("old_heads", "old_extremities"),
            ("pursue_outside", "pursue_remote"),
            ("pursue_waiting", "pursue_pending"),
            ("put_in", "append_signed"),
            ("put_new_room", "append_room"),
            ("put_there", "append_built"),
            ("put_unsent", "append_silent"),
            ("remote_row", "remote_membership_or_state"),
            ("seen_from_outside", "remote_view"),
            ("settled_state", "state_after_extremities"),
            ("shown_outside", "stripped_state_for_servers"),
            ("shown_to_client", "stripped_state_for_client"),
            ("store_judged", "store_decision"),
            ("take_in_all", "receive_all"),
            ("take_in_along", "receive_fetched"),
            ("take_in_arrival", "receive_room_pdus"),
            ("take_in_heavy", "receive_single"),
            ("take_in_history", "receive_history"),
            ("take_in_light", "receive_batch"),
            ("take_in_own", "receive_own"),
            ("take_in_past", "receive_past_event"),
            ("take_in_some", "receive_some"),
            ("take_in_with_missing", "receive_with_missing"),
            ("take_in_with_state", "receive_with_state"),
            ("take_over", "become_resident"),
            ("take_to_heart", "apply_news"),
            ("told_spaces", "space_cache"),
            ("version_outside", "remote_room_version"),
            ("wait_outside", "keep_pending_remote"),
            ("waited_for", "pending_needs"),
            ("waiting_events", "pending_events"),
            ("was_in_vain", "is_unfilled"),
        ],
    ),
    ("src/error.rs", &[("Inner", "ErrorParts")]),
    (
        "src/federation",
        &[
            ("Anywhere", "ScriptedResolver"),
            ("Asked", "AskedOfPeer"),
            ("Everywhere", "ScriptedLookups"),
            ("Failure", "ExchangeFailure"),
            ("Held", "HeldMemory"),
            ("Kind", "HandshakeKind"),
            ("Line", "OutgoingConnection"),
            ("Lines", "Connections"),
            ("Memory", "AnswerMemory"),
            ("Nowhere", "Offline"),
            ("Played", "ScriptedRequest"),
            ("Refusal", "PeerError"),
            ("RemoteDevice", "UserDevice"),
            ("RemoteDevices", "UserDevicesAnswer"),
            ("Said", "ScriptedAnswer"),
            ("Script", "AnswerScript"),
            ("Settings", "ClientSettings"),
            ("SignedRequest", "PeerRequest"),
            ("StandIn", "ScriptedConnector"),
        ],
    ),
    ("src/federation/discovery.rs", &[("Delegation", "KnownDelegation")]),
    (
        "src/http",
        &[
            ("Allowance", "RateAllowance"),
            ("Broken", "RequestError"),
            ("Crowd", "Quota"),
            ("Framing", "BodyFraming"),
            ("Limits", "ConnectionLimits"),
            ("Manner", "ReplyFraming"),
            ("Missing", "MissingEventsQuery"),
            ("Node", "RouteNode"),
            ("Table", "RouteTable"),
            ("Turn", "Poll"),
            ("Waiting", "WaitingRequest"),
            ("Wake", "Poll"),
            ("Whom", "TargetBody"),
            ("Why", "ReasonBody"),
        ],
    ),
    ("src/http/client_server", &[("Body", "PresenceBody")]),
    ("src/http/rate_limit.rs", &[("Who", "RateKey")]),
    (
        "src/http/transport",
        &[
            ("Body", "ReplyBody"),
            ("Bound", "QuotaBound"),
            ("Peer", "OpenConnection"),
            ("Place", "ConnectionSlot"),
            ("Pool", "ThreadPool"),
            ("Shared", "ServerState"),
            ("Which", "QuotaShare"),
        ],
    ),
    ("src/http/transport/connection.rs", &[("Head", "RequestHead")]),
    (
        "src/protocol",
        &[
            ("Content", "StateContent"),
            ("Facts", "KnockFacts"),
            ("Inner", "PduFields"),
            ("Limits", "KnockLimits"),
            ("Standing", "ServerStanding"),
            ("View", "EventView"),
            ("Whole", "ParsedPdu"),
        ],
    ),
    (
        "src/protocol/event_auth",
        &[
            ("Case", "EventCheck"),
            ("Content", "PowerContent"),
            ("Entries", "LevelEntries"),
            ("Entry", "LevelEntry"),
            ("Named", "PowerLevelKey"),
            ("Section", "Rule"),
            ("Table", "LevelTable"),
            ("Verdict", "ThirdPartyCheck"),
            ("judge", "checker"),
        ],
    ),
    ("src/protocol/event_auth/membership.rs", &[("Numbers", "MemberRules")]),
    ("src/protocol/event_auth/power_levels.rs", &[("Numbers", "PowerLevelRules")]),
    (
        "src/protocol/json",
        &[
            ("Growing", "TreeVisitor"),
            ("Items", "WeighedItems"),
            ("Listed", "ListVisitor"),
            ("Member", "MemberSpan"),
            ("Members", "WeighedMembers"),
            ("Open", "OpenContainer"),
            ("Reader", "CanonicalReader"),
            ("Seen", "Oddities"),
        ],
    ),
    (
        "src/protocol/remote_membership",
        &[
            ("Bearing", "RemovalBearing"),
            ("Order", "InviteOrder"),
            ("Section", "SyncSection"),
            ("State", "RemoteState"),
        ],
    ),
    (
        "src/protocol/state_res",
        &[
            ("Agreed", "UnconflictedState"),
            ("Fetch", "EventLookup"),
            ("Members", "NodeSet"),
            ("Memory", "LookupCache"),
        ],
    ),
    ("src/protocol/verify.rs", &[("Keys", "KeyLookup")]),
    (
        "src/service",
        &[
            ("Eyes", "ServerView"),
            ("Heard", "RemoteOutcome"),
            ("Judged", "Decision"),
            ("Purpose", "KeyPurpose"),
            ("Relayed", "Transaction"),
            ("Silent", "PolicyBackoff"),
            ("Turns", "HandshakeLocks"),
            ("entrances", "join_locks"),
            ("let_wait", "keep_pending"),
            ("pen", "signer"),
            ("policy_servers", "policy_backoff"),
            ("survey", "wanted_keys"),
        ],
    ),
    (
        "src/service/accounts/interactive_auth",
        &[
            ("Action", "GuardedAction"),
            ("Asker", "UiaClient"),
            ("Found", "FoundSession"),
            ("PendingAuth", "UiaSessions"),
            ("Phase", "SessionPhase"),
            ("Session", "UiaSession"),
            ("Sessions", "SessionTable"),
            ("Told", "AuthOutcome"),
            ("pending_auth", "uia_sessions"),
        ],
    ),
    (
        "src/service/accounts/passwords.rs",
        &[
            ("Allowance", "TryAllowance"),
            ("Count", "FailureCount"),
            ("InLine", "QueuedCounts"),
            ("Line", "PasswordQueue"),
            ("Standing", "Familiarity"),
            ("Tries", "FailedTries"),
            ("Try", "CountedTry"),
            ("Turn", "HashingPermit"),
            ("Waiting", "PasswordQueueState"),
            ("Whose", "CountedBy"),
        ],
    ),
    (
        "src/service/background",
        &[
            ("Fetching", "FetchingGuard"),
            ("Inviting", "InvitingGuard"),
            ("Job", "DueMembership"),
            ("Shared", "SchedulerShared"),
            ("State", "SchedulerState"),
            ("Waiting", "AwaitedServer"),
            ("Working", "WorkingGuard"),
        ],
    ),
    (
        "src/service/devices",
        &[
            ("Messages", "DeviceMessages"),
            ("Portion", "MessagePortion"),
            ("Said", "DeviceListUpdate"),
            ("ToOne", "DeviceMessage"),
        ],
    ),
    (
        "src/service/ephemeral",
        &[
            ("Deed", "PresenceInput"),
            ("Here", "LocalPresence"),
            ("Move", "MarkerMove"),
            ("Presences", "LocalPresences"),
            ("end_typing_that_is_over", "expire_typing"),
            ("let_presence_pass", "expire_presence"),
            ("remember_presences", "load_presence"),
        ],
    ),
    (
        "src/service/events",
        &[
            ("Around", "RoomExtremities"),
            ("Before", "StateBefore"),
            ("HandedIn", "Handshake"),
            ("Places", "GraphPlace"),
            ("Side", "StateSet"),
            ("Silence", "PolicyPause"),
            ("Taken", "Received"),
            ("Walk", "BackwardWalk"),
            ("beneath", "base_ids"),
            ("compose", "build_signed"),
            ("frame", "build"),
            ("ground", "unconflicted"),
            ("judge", "authorise"),
            ("plus", "unstored"),
            ("take_in", "receive_event"),
        ],
    ),
    ("src/service/events/authorise.rs", &[("heads", "extremities")]),
    (
        "src/service/incoming",
        &[("News", "MemberNews"), ("Outside", "PduRoom"), ("Taken", "Received"), ("Waits", "PendingInRoom")],
    ),
    (
        "src/service/keys",
        &[
            ("Found", "FoundKeys"),
            ("Missing", "MissingKeys"),
            ("Outcome", "AttemptOutcome"),
            ("Permission", "AttemptPermission"),
            ("Published", "OwnStatement"),
            ("Told", "StatedKeys"),
            ("UnderWay", "RunningAttempt"),
            ("Uses", "KeyUses"),
            ("Wanted", "WantedKey"),
        ],
    ),
    ("src/service/limits", &[("Left", "EventsLeft"), ("Place", "FairSlot"), ("Places", "FairSlots")]),
    (
        "src/service/membership",
        &[
            ("Answers", "HandshakeAnswers"),
            ("Ask", "HandshakeRequest"),
            ("Bound", "AddressBound"),
            ("Entry", "StrippedEntry"),
            ("Expected", "TemplateExpectation"),
            ("Handed", "LeaveDelivery"),
            ("Log", "KnockLog"),
            ("Noted", "InviteOutcome"),
            ("Place", "KnockPermit"),
            ("Tries", "JoinAttempts"),
            ("Turn", "HandshakeGuard"),
            ("Where", "KnockScope"),
            ("enter_by", "import_from"),
            ("here_or_elsewhere", "as_resident_or_remotely"),
            ("join_elsewhere", "join_remotely"),
            ("join_here", "join_as_resident"),
            ("kick_from_outside", "kick_not_joined"),
            ("knock_elsewhere", "knock_remotely"),
            ("knock_here", "knock_as_resident"),
            ("leave_elsewhere", "leave_remotely"),
            ("leave_here", "leave_as_resident"),
            ("left_while_here", "left_as_resident"),
            ("place_for_knock", "permit_knock"),
            ("turns", "handshake_locks"),
        ],
    ),
    (
        "src/service/membership/join",
        &[("Sorted", "Classified"), ("Sorting", "Classifier"), ("pillars", "auth_events")],
    ),
    ("src/service/mod.rs", &[("knocks", "knock_budget")]),
    (
        "src/service/outgoing",
        &[
            ("Doing", "DestinationActivity"),
            ("Job", "OutgoingTask"),
            ("Line", "Lane"),
            ("LookAround", "LoadOwed"),
            ("Peer", "DestinationState"),
            ("Sender", "Outgoing"),
            ("Shared", "OutgoingShared"),
            ("Spread", "WakeServers"),
            ("State", "QueueState"),
            ("WaitingEdus", "TransactionEdus"),
            ("line_up", "enqueue"),
            ("look_around", "load_owed"),
            ("step_out", "dequeue"),
            ("take_in_what_is_due", "enqueue_what_is_due"),
        ],
    ),
    (
        "src/service/rooms",
        &[
            ("Content", "ClientContent"),
            ("Position", "WalkPosition"),
            ("Remembered", "CachedAnswers"),
            ("Step", "SpaceStep"),
            ("Told", "SpaceAnswer"),
            ("Unsigned", "ClientUnsigned"),
            ("Walk", "SpaceWalk"),
            ("Within", "ReadableStretch"),
            ("hole", "gap"),
            ("holes", "gaps"),
            ("may_know_from_afar", "may_know_remote"),
            ("resolve_elsewhere", "resolve_remote_alias"),
        ],
    ),
    ("src/service/rooms/messages.rs", &[("Joined", "JoinedMembers")]),
    (
        "src/service/sync",
        &[
            ("Body", "SyncBody"),
            ("Context", "SyncContext"),
            ("Events", "EventList"),
            ("Lacking", "LackingState"),
            ("Line", "ToDeviceProgress"),
            ("Need", "StateNeeded"),
            ("Rooms", "RoomSections"),
            ("settle_line", "settle_to_device"),
        ],
    ),
    (
        "src/store",
        &[
            ("AboutRoom", "CachedRoom"),
            ("Aging", "AgingMap"),
            ("Amount", "InboxAmount"),
            ("By", "FilledBy"),
            ("Desk", "WriterThread"),
            ("GraphMemory", "EventCache"),
            ("Head", "ForwardExtremity"),
            ("Herald", "CommitFeed"),
            ("Inner", "CachedPdus"),
            ("Known", "CachedEvent"),
            ("Limits", "InboxLimits"),
            ("Member", "RoomMember"),
            ("Origin", "MessageOrigin"),
            ("PduMemory", "PduCache"),
            ("Queue", "PendingCounts"),
            ("Raw", "RemoteMembershipRow"),
            ("RawEvent", "MemberEventColumns"),
            ("Redaction", "RedactionEffect"),
            ("Resolutions", "ResolutionCache"),
            ("SessionMemory", "SessionCache"),
            ("Share", "TableShare"),
            ("Shared", "StoreState"),
            ("Source", "StatementSource"),
            ("Stage", "FoldStage"),
            ("Step", "SnapshotStep"),
            ("Table", "TableBounds"),
            ("Waiting", "PendingEvent"),
            ("WaitingKey", "PendingKey"),
            ("Worker", "CheckpointThread"),
            ("heads", "extremities"),
            ("judge", "auth_checker"),
            ("judges", "checkers"),
            ("settle", "import_state"),
            ("toil", "events_examined"),
        ],
    ),
    (
        "src/store/engine",
        &[
            ("Closed", "ClosedGate"),
            ("Closure", "WriteClosure"),
            ("Job", "WriteJob"),
            ("Lent", "LentReader"),
            ("Pool", "ReaderPool"),
            ("Size", "FileState"),
            ("State", "GateState"),
        ],
    ),
    ("src/store/engine/checkpoint.rs", &[("Shared", "LogState")]),
    ("src/store/ephemeral", &[("State", "PresenceState")]),
    ("src/store/rooms/snapshots.rs", &[("Row", "SnapshotRow")]),
];

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The names in a line of code: comments and the texts of literals are prose.
fn names(line: &str) -> Vec<&str> {
    let code = line.split("//").next().unwrap_or_default();
    let mut outside = Vec::new();
    for (number, part) in code.split('"').enumerate() {
        if number % 2 == 0 {
            outside.extend(
                part.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty()),
            );
        }
    }
    outside
}

#[test]
fn nothing_is_called_by_a_word_that_was_given_up() {
    let mut found = Vec::new();
    for (place, words) in GIVEN_UP {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(place);
        let mut files = Vec::new();
        if path.is_dir() {
            rust_files(&path, &mut files);
        } else {
            files.push(path);
        }
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                for name in names(line) {
                    if let Some((_, instead)) = words.iter().find(|(word, _)| *word == name) {
                        found.push(format!("{}:{}: {name} is {instead} here", file.display(), number + 1));
                    }
                }
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn prose_may_use_whatever_words_it_likes() {
    assert_eq!(names("let gate = open; // a Herald tells"), ["let", "gate", "open"]);
    assert_eq!(names("say(\"the Herald\")"), ["say"]);
}
