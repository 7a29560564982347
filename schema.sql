-- The present schema of a Doorstep database, and the documentation of its data.
--
-- All tables are STRICT. Times are milliseconds since the Unix epoch. `stream` columns hold positions of the one
-- stream that numbers every visible change in commit order. Events are kept as the exact bytes that were signed or
-- received; SQL never looks inside them.
--
-- Columns with times of this server's clock end in `_ms`, those with the time at which the timer takes a row up in `due_ms`.
-- What becomes of each when a clock that was ahead is set right stands in src/store/engine/set_clock.rs, which a test holds
-- against this file.
--
-- Who fills each table, what bounds it for each of them and what cleans it stands in src/store/bounds.rs, which a test
-- holds against this file.

-- ===== The server itself =====

-- One row: the server's name, fixed on the first start, and the last position of the stream that was handed out.
CREATE TABLE server (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  name TEXT NOT NULL,
  stream INTEGER NOT NULL
) STRICT;

-- Positions that nobody knows any more: given out behind (`after`) what was in the backup that this database was restored
-- from, and before (`upto`) what it goes on with. A client whose token is one of them begins anew, since it may have seen
-- what is not here. A row for each restore.
CREATE TABLE lost_positions (
  after INTEGER PRIMARY KEY,
  upto INTEGER NOT NULL
) STRICT;

-- ===== Rooms, their events, state and members, also of rooms elsewhere (src/store/rooms) =====

-- Every room that we have events of. `resident`: a local user is joined, so that other servers send us its events.
-- `state` is the snapshot of the current state (the resolved state after all forward extremities); the same state,
-- spread out for queries, is `current_state`. `joined` and `invited` count its members.
CREATE TABLE rooms (
  room_key INTEGER PRIMARY KEY,
  room_id TEXT NOT NULL UNIQUE,
  version TEXT NOT NULL,
  resident INTEGER NOT NULL DEFAULT 0,
  state INTEGER,
  joined INTEGER NOT NULL DEFAULT 0,
  invited INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Every event, accepted or not. `json` is the federation format, the exact bytes that were received or signed
-- (the redacted form once a redaction took effect).
--
-- An event's place in the timeline is (`stream`, `sub`). Live events have the stream position at which they came and
-- sub 0. History that is fetched later sits before the event whose gap it fills: the same stream, sub -1, -2, …, or far
-- below if it is a single event from amid the gap. `origin_server_ts` is what the event says of itself.
-- No place (NULL): outliers, rejected and soft-failed events.
--
-- `status`: 0 accepted, 1 soft-failed, 2 rejected. `state_before` and `state_after` are snapshots; NULL for outliers,
-- of which we know neither. `given`: the state before it is what another server said that it was, or that after events
-- of which this is true, and nothing beside: by such a state nothing is rejected. `redacted_by`: the redaction that took effect. `outgoing`: to be sent to the servers in the
-- room, because it was made here or handed in here (send_join, send_leave, send_knock). `room_key` is one of `rooms`; that
-- is not declared, since a room that is deleted would have SQLite go through all events.
CREATE TABLE events (
  event_key INTEGER PRIMARY KEY,
  room_key INTEGER NOT NULL,
  event_id TEXT NOT NULL UNIQUE,
  stream INTEGER,
  sub INTEGER NOT NULL DEFAULT 0,
  depth INTEGER NOT NULL,
  origin_server_ts INTEGER NOT NULL,
  status INTEGER NOT NULL,
  outgoing INTEGER NOT NULL DEFAULT 0,
  given INTEGER NOT NULL DEFAULT 0,
  state_before INTEGER,
  state_after INTEGER,
  redacted_by INTEGER,
  json BLOB NOT NULL
) STRICT;
CREATE INDEX events_timeline ON events (room_key, stream, sub) WHERE stream IS NOT NULL;
CREATE INDEX events_by_time ON events (room_key, origin_server_ts, depth) WHERE stream IS NOT NULL;
CREATE INDEX events_outgoing ON events (room_key, stream) WHERE outgoing = 1;

-- Events that are verified by nothing but the word of the server by which we came into the room, since the key of a server
-- that signed them could not be had otherwise (a room of some age has many). They hold for the room as that server showed
-- it: if we leave it, and come in by another one, what that one does not show too makes everything from before go.
CREATE TABLE vouched_events (
  room_key INTEGER NOT NULL,
  event_key INTEGER NOT NULL,
  PRIMARY KEY (room_key, event_key)
) STRICT, WITHOUT ROWID;

-- Events of rooms that are being imported and are too many to be kept in memory meanwhile. They are nobody's: what enters the
-- room copies them into `events`, and what is left here at a start was never entered. `number`: that of the import, and
-- in the lower 24 bits that of the event in it. `in_state`: it is part of the state, others only rest on it. `vouched`: as
-- of `vouched_events`.
CREATE TABLE staged_events (
  number INTEGER PRIMARY KEY,
  event_id TEXT NOT NULL,
  type TEXT NOT NULL,
  state_key TEXT,
  membership TEXT,
  in_state INTEGER NOT NULL,
  vouched INTEGER NOT NULL,
  depth INTEGER NOT NULL,
  origin_server_ts INTEGER NOT NULL,
  json BLOB NOT NULL
) STRICT;

-- Forward extremities: accepted events that no accepted event names in its prev_events, but for late extremities.
CREATE TABLE extremities (
  room_key INTEGER NOT NULL,
  event_key INTEGER NOT NULL,
  PRIMARY KEY (room_key, event_key)
) STRICT, WITHOUT ROWID;

-- Late extremities: accepted events that are to become forward extremities, and of which the current state does not
-- know yet, since resolving it with theirs takes more work than a room may cause at once. `followed`: the forward
-- extremities, and the late extremities before it, that such an event follows, eight bytes each. `stage`: 0 it waits,
-- 1 it is being caught up with, 2 the same, and another late extremity has come to follow it.
CREATE TABLE late_extremities (
  room_key INTEGER NOT NULL,
  event_key INTEGER NOT NULL,
  stage INTEGER NOT NULL DEFAULT 0,
  followed BLOB NOT NULL,
  PRIMARY KEY (room_key, event_key)
) STRICT, WITHOUT ROWID;

-- Gaps in the history: events that prev_events name and that we do not have. `stream` and `sub` are the place of the
-- event that names it; what is fetched to fill the gap goes right before.
CREATE TABLE gaps (
  room_key INTEGER NOT NULL,
  event_id TEXT NOT NULL,
  stream INTEGER NOT NULL,
  sub INTEGER NOT NULL,
  PRIMARY KEY (room_key, event_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX gaps_timeline ON gaps (room_key, stream, sub);

-- Accepted redactions by what they redact, so that a redaction that comes before its target takes effect later.
CREATE TABLE redactions (
  redacts TEXT NOT NULL,
  event_key INTEGER NOT NULL,
  PRIMARY KEY (redacts, event_key)
) STRICT, WITHOUT ROWID;

-- Relations of events to others of their room, their parents, which may not be here yet: what the content of each event
-- that has a place in the timeline says, and no redacted one's. `parent` is an event id; `event_key`, `stream`, `sub`,
-- `event_type`, `sender` and `event_id` are the related event's. `detail` is what is asked for among those of one sender: of
-- an annotation a number that stands for its key, of an edit that can be a valid one its `origin_server_ts`.
CREATE TABLE event_relations (
  room_key INTEGER NOT NULL,
  parent TEXT NOT NULL,
  rel_type TEXT NOT NULL,
  stream INTEGER NOT NULL,
  sub INTEGER NOT NULL,
  event_key INTEGER NOT NULL,
  event_id TEXT NOT NULL,
  event_type TEXT NOT NULL,
  sender TEXT NOT NULL,
  detail INTEGER,
  PRIMARY KEY (room_key, parent, rel_type, stream, sub, event_key)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX event_relations_by_event ON event_relations (event_key);
CREATE INDEX event_relations_by_place ON event_relations (room_key, parent, stream, sub);
CREATE INDEX event_relations_by_sender
  ON event_relations (room_key, parent, rel_type, sender, event_type, detail, event_id);
CREATE INDEX event_relations_of_threads ON event_relations (room_key, stream, sub, sender) WHERE rel_type = 'm.thread';

-- Threads: how many replies there are to each root, and the place of the latest; those of `event_relations`, summed up.
-- `root_sender` is NULL as long as the root is not in the timeline, or if it is none: state, or related to another event.
CREATE TABLE threads (
  room_key INTEGER NOT NULL,
  root TEXT NOT NULL,
  root_sender TEXT,
  replies INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  sub INTEGER NOT NULL,
  PRIMARY KEY (room_key, root)
) STRICT, WITHOUT ROWID;
CREATE INDEX threads_by_latest ON threads (room_key, stream, sub) WHERE root_sender IS NOT NULL;

-- Threads that local users have subscribed to, or unsubscribed from (MSC4306). `subscription`: 2 by the user's own wish, 1 by a
-- client because something was said there that concerns them, 0 not any more: what was said up to `stream`, when it last changed,
-- makes it no subscription again by itself.
CREATE TABLE thread_subscriptions (
  user_id TEXT NOT NULL,
  room_key INTEGER NOT NULL,
  root TEXT NOT NULL,
  subscription INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  PRIMARY KEY (user_id, room_key, root)
) STRICT, WITHOUT ROWID;
CREATE INDEX thread_subscriptions_by_stream ON thread_subscriptions (user_id, stream);
CREATE INDEX thread_subscriptions_by_thread ON thread_subscriptions (room_key, root);

-- Events that other servers handed to us and were told we have, and that cannot be authorised yet: what they refer to
-- is not to be had now, or (`verified` = 0) no key to check their signatures with. Of a room that we are not in: what
-- it says of a local user, and what one who is joining it will need. `json` is as it was received; of a verified
-- one whose hash was wrong the redacted form. Tried again at `due_ms`: that is `retry_ms`, when other servers are
-- asked once more (the pauses grow with `attempts`), or 0 as soon as something came that it waits for. Given up some
-- days after `received_ms`. `bytes`: the length of `json`, to count with. `invitee`: of an invite that this server has signed
-- and that its room, which it is in, is to tell of, the local user; who answers it waits for that.
CREATE TABLE pending_events (
  pending INTEGER PRIMARY KEY,
  room_key INTEGER NOT NULL REFERENCES rooms,
  event_id TEXT NOT NULL,
  origin TEXT NOT NULL,
  verified INTEGER NOT NULL,
  received_ms INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  retry_ms INTEGER NOT NULL,
  due_ms INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  json BLOB NOT NULL,
  invitee TEXT,
  UNIQUE (event_id, origin)
) STRICT;
CREATE INDEX pending_events_invitees ON pending_events (invitee, room_key) WHERE invitee IS NOT NULL;
CREATE INDEX pending_events_due ON pending_events (due_ms, room_key);
CREATE INDEX pending_events_by_room ON pending_events (room_key, due_ms);
CREATE INDEX pending_events_shares ON pending_events (room_key, origin, bytes);
CREATE INDEX pending_events_by_origin ON pending_events (origin, room_key, bytes, verified);

-- What they wait for: ids of events (their own too: they may come another way), and names of servers whose keys are
-- lacking.
CREATE TABLE pending_needs (
  need TEXT NOT NULL,
  pending INTEGER NOT NULL REFERENCES pending_events ON DELETE CASCADE,
  PRIMARY KEY (need, pending)
) STRICT, WITHOUT ROWID;
CREATE INDEX pending_needs_by_event ON pending_needs (pending);

-- Every tuple of event type and state key that a state event ever had: state is stored as tuple id → event. Memberships
-- have tuple ids beyond 2^38, so that in a room's state the rest lies together, however many members there are.
CREATE TABLE state_tuples (
  tuple_id INTEGER PRIMARY KEY,
  type TEXT NOT NULL,
  state_key TEXT NOT NULL,
  UNIQUE (type, state_key)
) STRICT;

-- Room states, as a tree of differences. A snapshot differs from the one it was made from by one event, or by what a
-- resolution changed. `number` counts from the root (0, which holds its whole state). `parent` is not the snapshot it
-- was made from but the ancestor `number - lowest set bit of number`, and `delta` all that changed since that one: so
-- any state is put together from at most log2(number) + 1 rows, and each change is stored about log2(number) times.
-- `delta`: entries of 10 bytes sorted by tuple id: tuple id and event key, each 5 bytes big-endian; event 0 means "no
-- such event". NULL if there are many: then they are in `snapshot_entries`.
CREATE TABLE snapshots (
  snapshot INTEGER PRIMARY KEY,
  number INTEGER NOT NULL,
  parent INTEGER,
  delta BLOB
) STRICT;

-- The entries of large deltas (the state with which a large room came to us, mostly), so that one can be looked up
-- without reading all.
CREATE TABLE snapshot_entries (
  snapshot INTEGER NOT NULL,
  tuple_id INTEGER NOT NULL,
  event_key INTEGER NOT NULL,
  PRIMARY KEY (snapshot, tuple_id)
) STRICT, WITHOUT ROWID;

-- States that no event has: what the forks of a room came to at some time, which was its current state then. Once it is not any
-- more, and nothing in memory can know it still, it is of no use to anybody, and goes. `children`: how many other states have it
-- as their `parent`, and so need it.
CREATE TABLE spare_snapshots (
  snapshot INTEGER PRIMARY KEY,
  room_key INTEGER NOT NULL,
  children INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX spare_snapshots_by_room ON spare_snapshots (room_key);

-- The current state of each room.
CREATE TABLE current_state (
  room_key INTEGER NOT NULL,
  tuple_id INTEGER NOT NULL,
  event_key INTEGER NOT NULL,
  PRIMARY KEY (room_key, tuple_id)
) STRICT, WITHOUT ROWID;

-- When each room last moved: the position of its last event or change of state, by which clients have their rooms in
-- order, and that of its last event that counts as something going on in the room (`bump`; 0: none yet).
CREATE TABLE room_activity (
  room_key INTEGER PRIMARY KEY,
  stream INTEGER NOT NULL,
  bump INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX room_activity_by_stream ON room_activity (stream);

-- How the current state of each room came about: at `stream`, the tuple's event changed from `previous` to `event_key`
-- (NULL: none; the same: it was redacted). The state at an earlier position is the current one with the later changes taken
-- back.
CREATE TABLE state_changes (
  room_key INTEGER NOT NULL,
  tuple_id INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  event_key INTEGER,
  previous INTEGER,
  PRIMARY KEY (room_key, tuple_id, stream)
) STRICT, WITHOUT ROWID;
CREATE INDEX state_changes_by_stream ON state_changes (room_key, stream);

-- The members of each room, from its current state. `stream`: when this came about. `local`: of a local user; of one of our
-- name whose own event, or that of another such, is from before all keys that we have, 0: nobody who is here now did that.
-- `forgotten`: the user wants to hear no more of the room. `joined_since`: of a local user who is joined, when they
-- came in. The servers that were there by then and had no room with the user yet are owed the last update of the user's
-- devices.
CREATE TABLE memberships (
  room_key INTEGER NOT NULL,
  user_id TEXT NOT NULL,
  membership TEXT NOT NULL CHECK (membership IN ('ban', 'invite', 'join', 'knock', 'leave')),
  event_key INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  local INTEGER NOT NULL,
  forgotten INTEGER NOT NULL DEFAULT 0,
  joined_since INTEGER,
  PRIMARY KEY (room_key, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX memberships_joined_since ON memberships (joined_since) WHERE joined_since IS NOT NULL;
CREATE INDEX memberships_of_local_users ON memberships (user_id, stream) WHERE local = 1;
CREATE INDEX memberships_here ON memberships (room_key, membership) WHERE local = 1;
CREATE INDEX memberships_inviting ON memberships (user_id, stream) WHERE local = 1 AND membership = 'invite';
CREATE INDEX memberships_knocking ON memberships (room_key, stream) WHERE membership = 'knock';

-- The local users whose member event went out of a room's state with nothing in its place (resolution may come to that), and
-- when: no event says that they are out, and their clients are told all the same. Until there is one again.
CREATE TABLE lost_memberships (
  room_key INTEGER NOT NULL,
  user_id TEXT NOT NULL,
  stream INTEGER NOT NULL,
  PRIMARY KEY (room_key, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX lost_memberships_of_users ON lost_memberships (user_id, stream);

-- Which servers were in which room, from the stream position of the join that brought them in to that of the change
-- that took their last user out (NULL: still there), both exclusive. Ours is among them. What we owe a server are the
-- `outgoing` events in these intervals. `users` counts its joined users. `left_out`: it missed so many events that
-- those up to here are not owed to it any more.
CREATE TABLE resident_servers (
  room_key INTEGER NOT NULL,
  server TEXT NOT NULL,
  since INTEGER NOT NULL,
  until INTEGER,
  users INTEGER NOT NULL,
  left_out INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (room_key, server, since)
) STRICT, WITHOUT ROWID;
CREATE INDEX resident_servers_by_server ON resident_servers (server, room_key);

-- A local user's membership in a room that this server is not resident in: a knock, an invite, a join under way, or
-- a leave that the room's servers have yet to be told. `state` is a state of protocol/remote_membership, and only its
-- `apply` may change a row. It is deleted when this server becomes resident in the room, and some time after it ended.
CREATE TABLE remote_memberships (
  room_id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('knocking', 'knocked', 'invited', 'joining', 'leaving', 'closed')),
  -- While invited: by whom, to count with.
  inviter TEXT,
  room_version TEXT NOT NULL,
  -- The member event that the user's clients are told: their knock, the invite, the leave, as it was sent or received.
  -- NULL only while joining a room that they were neither invited to nor knocked upon. Each event has the room version
  -- by which it is read, since nothing keeps other servers from naming another one with the next event.
  event_id TEXT,
  event_version TEXT,
  event BLOB,
  -- The member event before it: the knock that this invite answers (the link of the two), the invite that this leave
  -- rejects.
  previous_id TEXT,
  previous_version TEXT,
  previous BLOB,
  -- While joining: the signed join, committed before it is first sent and repeated as it is after a crash. While
  -- leaving, likewise the leave; it stays afterwards, since what it rests on tells which invites are older. Whoever
  -- leaves, or is removed, before their join was answered has the join here until then.
  pending_id TEXT,
  pending_version TEXT,
  pending BLOB,
  -- While knocking, invited or joining: somebody else's removal of the user of which only the room can say whether it is
  -- one. It is asked, or decides once this server is in it.
  removal_id TEXT,
  removal_version TEXT,
  removal BLOB,
  -- While invited or joining: the knock or other invite which this invite covers, since it comes from another server; with
  -- what clients were shown of the room. It is what the user is again if the invite is worth nothing. While leaving, the
  -- invite that did so: its server is told too. One, the first, however many invites come.
  covered_id TEXT,
  covered_version TEXT,
  covered BLOB,
  covered_stripped_state BLOB,
  -- What is kept of knock_room_state or invite_room_state, in the form for clients: a JSON array of stripped events.
  stripped_state BLOB NOT NULL,
  -- A JSON array of servers worth asking, best first: the one we knocked through leads.
  via TEXT NOT NULL,
  -- For the scheduler: how often it tried in this state, and when it tries next; NULL if there is nothing to do. Of a
  -- knock that was taken, and of an invite, when the room is asked about it: of a knock that stands about once a day.
  attempts INTEGER NOT NULL,
  due_ms INTEGER,
  -- Of one that somebody else's removal closed: 1 if the server that invited, or took the knock, may not know of that,
  -- since others have confirmed it. It is told if the user leaves.
  host_unaware INTEGER NOT NULL,
  -- 1 once the user asked to forget the room; the row is kept while other servers still have to be told of the leave.
  forgotten INTEGER NOT NULL,
  -- Of a closed one: since when.
  ended_ms INTEGER,
  -- 1 while joining, if a server may have taken a join that was handed in before the pending one; while leaving, if it
  -- may take one yet, or a knock.
  may_be_in INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  PRIMARY KEY (room_id, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX remote_memberships_by_user ON remote_memberships (user_id, stream);
CREATE INDEX remote_memberships_due ON remote_memberships (due_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX remote_memberships_by_state ON remote_memberships (state, stream);
CREATE INDEX remote_memberships_inviters ON remote_memberships (user_id, inviter) WHERE inviter IS NOT NULL;
CREATE INDEX remote_memberships_closed ON remote_memberships (user_id, stream) WHERE state = 'closed';
CREATE INDEX remote_memberships_ended ON remote_memberships (ended_ms) WHERE ended_ms IS NOT NULL;

-- Invites of new rooms to users of other servers, until the invitee's `server` has signed them: only then are they
-- events. Written with the room. `content` is a JSON object: what the invite says beside the membership. `stream`:
-- when it was asked for; what the invitee becomes in the room later ends it. Tried again at `due_ms`, with pauses that
-- grow with `attempts`, for about a week; ended too when it is taken back or the inviter leaves.
CREATE TABLE owed_invites (
  room_id TEXT NOT NULL,
  invitee TEXT NOT NULL,
  server TEXT NOT NULL,
  inviter TEXT NOT NULL,
  content TEXT NOT NULL,
  stream INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  due_ms INTEGER NOT NULL,
  PRIMARY KEY (room_id, invitee)
) STRICT, WITHOUT ROWID;
CREATE INDEX owed_invites_due ON owed_invites (due_ms);
CREATE INDEX owed_invites_by_server ON owed_invites (server, due_ms);
CREATE INDEX owed_invites_by_inviter ON owed_invites (inviter);

-- Users of other servers whom their server may show an invite of `inviter`, one of ours, though the room has none: it was offered
-- one, and its answer was lost, or the room wanted it no more. Whatever becomes of the user in the room ends it; if that is a
-- removal, their server is told. Of one inviter the last ones, and for a while.
CREATE TABLE offered_invites (
  room_key INTEGER NOT NULL,
  invitee TEXT NOT NULL,
  inviter TEXT NOT NULL,
  made_ms INTEGER NOT NULL,
  PRIMARY KEY (room_key, invitee)
) STRICT, WITHOUT ROWID;
CREATE INDEX offered_invites_by_inviter ON offered_invites (inviter, made_ms);
CREATE INDEX offered_invites_by_age ON offered_invites (made_ms);

-- Local users whose knock was accepted by `invite` (an event id), which is what they are in the room as far as was known
-- then. Written in the transaction in which the invite takes effect. When it is due, the user is joined if they want
-- that; until it is made out what becomes of it, tried again at `due_ms`, with pauses that grow with `attempts`. Only
-- while the invite stands: whatever else the user becomes in the room ends it.
CREATE TABLE owed_joins (
  room_id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  invite TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  due_ms INTEGER NOT NULL,
  PRIMARY KEY (room_id, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX owed_joins_due ON owed_joins (due_ms, user_id);

-- Rooms that replace others with more bans than come with a new room at once, and how far they have the rest: all up to that of
-- `user_id` in the old room, at `stream`, the last ones first and of one position by the user's id. In the name of `sender`,
-- who upgraded the room, or of another local member while that one may not. Taken up at `due_ms`; `attempts`: how often the
-- next ban was tried in vain.
CREATE TABLE owed_bans (
  room_id TEXT PRIMARY KEY,
  old_room_id TEXT NOT NULL,
  sender TEXT NOT NULL,
  stream INTEGER NOT NULL,
  user_id TEXT NOT NULL,
  attempts INTEGER NOT NULL,
  due_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX owed_bans_due ON owed_bans (due_ms);

-- Rooms that this server was in already when the room that they replace got its tombstone: what follows who comes into a new
-- room is owed to those who are in it, and was given to the local members up to `upto`, by their names. Gone on with at `due_ms`.
CREATE TABLE owed_upgrades (
  room_key INTEGER PRIMARY KEY,
  upto TEXT NOT NULL,
  due_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX owed_upgrades_due ON owed_upgrades (due_ms);

-- The text that search finds events by (protocol/search_text), by the row of the event: an index of words that keeps no
-- text, and takes for a word whatever stands between spaces, since it is given what was cut and folded before. `room`: the
-- key of the room, so that a search looks into the searcher's rooms only; one of the other three is filled. What a message
-- was changed into stands under the message. Written a portion at a time, behind the events.
CREATE VIRTUAL TABLE event_texts USING fts5 (
  room, body, name, topic,
  content = '',
  contentless_delete = 1,
  tokenize = "unicode61 remove_diacritics 0 categories 'L* M* N* P* S* C*'"
);

-- One row: all events up to this one are in that index, as far as they have such a text.
CREATE TABLE search_progress (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  upto INTEGER NOT NULL
) STRICT;
INSERT INTO search_progress (one, upto) VALUES (1, 0);

-- But for these, which are to be indexed anew: they were there before they got their place or their content, or an event
-- that changed their text was redacted.
CREATE TABLE search_again (
  event_key INTEGER PRIMARY KEY
) STRICT;

-- Events that users have asked to be sent later, unless they are restarted or cancelled before (MSC4140). `delay_id` is a
-- secret. Sent `delay_ms` after `since_ms`; tried at `due_ms`, which is later only if it could not be sent then for a reason
-- that passes. Deleted with the commit of the event.
CREATE TABLE delayed_events (
  delay_id TEXT PRIMARY KEY,
  user_id TEXT NOT NULL,
  room_id TEXT NOT NULL,
  type TEXT NOT NULL,
  state_key TEXT,
  content TEXT NOT NULL,
  delay_ms INTEGER NOT NULL,
  since_ms INTEGER NOT NULL,
  due_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX delayed_events_due ON delayed_events (due_ms);
CREATE INDEX delayed_events_by_user ON delayed_events (user_id, due_ms);
CREATE INDEX delayed_events_by_state ON delayed_events (room_id, type, state_key) WHERE state_key IS NOT NULL;

-- The room aliases of this server.
CREATE TABLE room_aliases (
  alias TEXT NOT NULL PRIMARY KEY,
  room_id TEXT NOT NULL,
  created_by TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX room_aliases_by_room ON room_aliases (room_id);

-- The rooms that this server publishes in its directory.
CREATE TABLE published_rooms (
  room_id TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- The rooms that application services publish for the networks that they bridge, each in a directory of its own.
CREATE TABLE network_rooms (
  appservice TEXT NOT NULL,
  network TEXT NOT NULL,
  room_id TEXT NOT NULL,
  PRIMARY KEY (appservice, network, room_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX network_rooms_by_room ON network_rooms (room_id);

-- Rooms into which nobody of this server is to come: they are neither joined nor knocked upon, nor is anybody invited, from
-- here or from elsewhere. `blocked_by`: the administrator who said so; '' is who runs the server.
CREATE TABLE blocked_rooms (
  room_id TEXT NOT NULL PRIMARY KEY,
  blocked_by TEXT NOT NULL,
  blocked_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Rooms that an administrator has deleted: their local users leave, then everything there is of the room goes, a portion at
-- a time. `order_json` is what was asked for, `result` what has become of it so far, both JSON objects. `stage`: 0 users are
-- leaving, 1 the room's servers are told, and then its rows go, 2 complete, 3 failed, with what `error` says. Taken up at
-- `due_ms`, NULL at the end (`ended_ms`); until then nobody comes into the room. `entered_anew`: no administrator wants this, but
-- a local user is coming into the room, before which what there is of it from before has to go; then it is not shut.
CREATE TABLE room_deletions (
  delete_id TEXT NOT NULL PRIMARY KEY,
  room_id TEXT NOT NULL,
  order_json TEXT NOT NULL,
  result TEXT NOT NULL,
  stage INTEGER NOT NULL,
  error TEXT,
  entered_anew INTEGER NOT NULL,
  asked_ms INTEGER NOT NULL,
  due_ms INTEGER,
  ended_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX room_deletions_by_room ON room_deletions (room_id);
CREATE INDEX room_deletions_due ON room_deletions (due_ms) WHERE due_ms IS NOT NULL;

-- One row: the highest keys of rows that went with rooms, so that no key is ever given out again. What is kept in memory, or
-- was read before, knows events, states and rooms by them.
CREATE TABLE retired_keys (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  room_key INTEGER NOT NULL,
  event_key INTEGER NOT NULL,
  snapshot INTEGER NOT NULL
) STRICT;
INSERT INTO retired_keys (one, room_key, event_key, snapshot) VALUES (1, 0, 0, 0);

-- Rooms whose servers are to be asked once what was said last, since this database comes from a backup: in a room where nobody
-- speaks nobody would tell. `due_ms`: when, after so many `attempts` when none of them answered.
CREATE TABLE rooms_behind_backup (
  room_key INTEGER PRIMARY KEY,
  due_ms INTEGER NOT NULL,
  attempts INTEGER NOT NULL
) STRICT;
CREATE INDEX rooms_behind_backup_due ON rooms_behind_backup (due_ms);

-- ===== Other servers: keys, delivery, transactions (src/store/servers) =====

-- Our own signing keys. The one without `expired_ms` signs; the others are published as old ones for ever, so that
-- what they signed stays verifiable. `seed` is the secret.
CREATE TABLE signing_keys (
  key_id TEXT PRIMARY KEY,
  seed BLOB NOT NULL,
  made_ms INTEGER NOT NULL,
  expired_ms INTEGER
) STRICT, WITHOUT ROWID;

-- Keys of other servers. `valid_until_ms`: signatures made later do not count (at most 7 days after the statement was
-- fetched; for a retired key, when it was retired). `retired`: good for old events only, not for requests. `statement`:
-- where the key was last read from.
CREATE TABLE server_keys (
  server TEXT NOT NULL,
  key_id TEXT NOT NULL,
  public_key TEXT NOT NULL,
  valid_until_ms INTEGER NOT NULL,
  retired INTEGER NOT NULL,
  statement INTEGER NOT NULL,
  PRIMARY KEY (server, key_id)
) STRICT, WITHOUT ROWID;

-- Keys that their servers replaced by others of the same id, as one does that begins anew. Good for events from before
-- `valid_until_ms`: when it was replaced, or had ended before.
CREATE TABLE replaced_server_keys (
  server TEXT NOT NULL,
  key_id TEXT NOT NULL,
  public_key TEXT NOT NULL,
  valid_until_ms INTEGER NOT NULL,
  PRIMARY KEY (server, key_id, public_key)
) STRICT, WITHOUT ROWID;

-- The signed answers of `/_matrix/key/v2/server` that those keys come from, as a notary passes them on. Deleted when
-- no key refers to them any more. `stranger`: fetched for the sake of a server that was in no room with us, and the
-- first to go when there are many.
CREATE TABLE key_statements (
  statement INTEGER PRIMARY KEY,
  server TEXT NOT NULL,
  fetched_ms INTEGER NOT NULL,
  stranger INTEGER NOT NULL,
  json BLOB NOT NULL
) STRICT;
CREATE INDEX key_statements_by_server ON key_statements (server);
CREATE INDEX key_statements_of_strangers ON key_statements (stranger) WHERE stranger = 1;

-- How far each server is with what we owe it: all owed events up to `cursor` are delivered. The cursor may lag behind
-- the truth, since receivers drop repeats. `failures` in a row since the last success; not tried again by ourselves
-- before `retry_ms`; the first of them was at `failing_since_ms`. `attempt_upto`: the transaction that failed ends with this
-- event; it is repeated as it was. `receipts_from`: the read receipts of local users behind this position may have been
-- lost on the way, since it did not take them or we stopped; NULL: no more than those behind the cursor.
-- Servers that are owed nothing, share no room with us and failed long ago are forgotten.
CREATE TABLE destinations (
  server TEXT PRIMARY KEY,
  cursor INTEGER NOT NULL DEFAULT 0,
  attempt_upto INTEGER,
  failures INTEGER NOT NULL DEFAULT 0,
  retry_ms INTEGER NOT NULL DEFAULT 0,
  failing_since_ms INTEGER NOT NULL DEFAULT 0,
  receipts_from INTEGER
) STRICT, WITHOUT ROWID;

-- Events that we owe to a server beside those that its residence entitles it to: a kick or ban that takes its last
-- user out of the room, or one of an invited or knocking user. Deleted once delivered; of too many for one server the
-- first go.
CREATE TABLE owed_events (
  server TEXT NOT NULL,
  stream INTEGER NOT NULL,
  event_key INTEGER NOT NULL,
  PRIMARY KEY (server, stream)
) STRICT, WITHOUT ROWID;

-- Ephemeral messages that must not be lost on the way, in the order of their making. Deleted once delivered; bounded
-- for servers that never return.
--
-- Updates of device lists have the user and the device ('': it is one of the user's cross-signing keys): one that was not
-- sent goes when the next of that device comes, since who finds a gap in the updates fetches the list. Messages to devices have a `number`, counted for each server,
-- and `bytes`, what all up to this one came to; they go when they are old (`made_ms`).
CREATE TABLE owed_edus (
  server TEXT NOT NULL,
  stream INTEGER NOT NULL,
  user_id TEXT,
  device_id TEXT,
  number INTEGER,
  bytes INTEGER,
  made_ms INTEGER,
  edu TEXT NOT NULL,
  PRIMARY KEY (server, stream)
) STRICT, WITHOUT ROWID;
CREATE INDEX owed_device_updates ON owed_edus (server, user_id, device_id) WHERE user_id IS NOT NULL;
CREATE INDEX owed_messages ON owed_edus (server, number, bytes) WHERE number IS NOT NULL;
CREATE INDEX owed_messages_by_age ON owed_edus (made_ms) WHERE made_ms IS NOT NULL;

-- The answers that transactions of other servers got, for their repeats: the last ones of each server, and of all
-- servers that share no room with a local user (`stranger`) together, for some days. `txn` is a digest of the
-- transaction id, which may be long.
CREATE TABLE transactions (
  number INTEGER PRIMARY KEY,
  origin TEXT NOT NULL,
  txn BLOB NOT NULL,
  received_ms INTEGER NOT NULL,
  stranger INTEGER NOT NULL,
  answer BLOB NOT NULL,
  UNIQUE (origin, txn)
) STRICT;
CREATE INDEX transactions_by_origin ON transactions (origin);
CREATE INDEX transactions_of_strangers ON transactions (stranger) WHERE stranger = 1;

-- ===== Accounts: users, their devices and tokens, what their clients keep here (src/store/accounts) =====

-- Every account of this server, deactivated ones too, so that nobody can take their name. `password` is an argon2id
-- hash in PHC format; NULL: nobody can log in with a password. `admin`: an administrator of this server.
-- `leaving_due_ms`: the account was deactivated and still has rooms to leave, which is gone on with then. `erased_at`: the stream position at which they asked for
-- their messages to be erased: whoever comes into a room later is given redacted ones. `locked` and `suspended`: what an
-- administrator has done to the account, both to be undone. `guest`: it was made without a name or a password, and its user
-- may do little; a bounded number of such accounts are kept, and those that end are deleted. `requests_per_second` and
-- `requests_burst`: how often they may ask, where an administrator has said so; 0 a second: as often as they like.
-- `appservice`: the id of the application service that made the account, whose user it is.
CREATE TABLE users (
  user_id TEXT PRIMARY KEY,
  password TEXT,
  admin INTEGER NOT NULL DEFAULT 0,
  deactivated INTEGER NOT NULL DEFAULT 0,
  leaving_due_ms INTEGER,
  locked INTEGER NOT NULL DEFAULT 0,
  suspended INTEGER NOT NULL DEFAULT 0,
  guest INTEGER NOT NULL DEFAULT 0,
  appservice TEXT,
  requests_per_second INTEGER,
  requests_burst INTEGER,
  erased_at INTEGER,
  created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX users_erased ON users (erased_at) WHERE erased_at IS NOT NULL;
CREATE INDEX users_guests ON users (created_ms) WHERE guest = 1;
CREATE INDEX users_leaving ON users (leaving_due_ms) WHERE leaving_due_ms IS NOT NULL;

-- Rooms that let no guests in any more, and have local ones: who are to leave, at `due_ms`.
CREATE TABLE guest_removals (
  room_key INTEGER PRIMARY KEY,
  due_ms INTEGER NOT NULL
) STRICT;

-- The devices that are logged in. `last_seen_ms` and `last_seen_ip` lag a few minutes behind. `opened_by`: the administrator
-- who logged in there in the user's name, '' for the operator. `appservice`: the id of the application service that did, or made
-- the device; neither has the rights of an administrator there. `synced_ms`: when it last read its messages by /sync, a day late;
-- noted only where a service is told of them too.
CREATE TABLE devices (
  user_id TEXT NOT NULL REFERENCES users,
  device_id TEXT NOT NULL,
  display_name TEXT,
  last_seen_ms INTEGER,
  last_seen_ip TEXT,
  opened_by TEXT,
  appservice TEXT,
  synced_ms INTEGER,
  PRIMARY KEY (user_id, device_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX devices_by_opener ON devices (opened_by) WHERE opened_by IS NOT NULL;

-- What a client proves itself with: an access token and, if it can use one, a refresh token, both as their SHA-256.
-- `expires_ms` is the access token's (NULL: never; 0: the session has ended, since another one replaced it). `replaces` is the
-- session whose refresh token made this one; that session ends when a token of this one is used, since then the client surely
-- has it.
CREATE TABLE sessions (
  session INTEGER PRIMARY KEY,
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  access BLOB NOT NULL UNIQUE,
  refresh BLOB UNIQUE,
  expires_ms INTEGER,
  replaces INTEGER,
  FOREIGN KEY (user_id, device_id) REFERENCES devices ON DELETE CASCADE
) STRICT;
CREATE INDEX sessions_of_devices ON sessions (user_id, device_id);
CREATE INDEX sessions_by_replaced ON sessions (replaces) WHERE replaces IS NOT NULL;

-- Tokens by which another client logs in as the user whose device asked for them, once, as their SHA-256. They expire within
-- minutes, and end with that device; a user has a bounded number of them.
CREATE TABLE login_tokens (
  hash BLOB PRIMARY KEY,
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  expires_ms INTEGER NOT NULL,
  FOREIGN KEY (user_id, device_id) REFERENCES devices ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX login_tokens_of_devices ON login_tokens (user_id, device_id);
CREATE INDEX login_tokens_by_expiry ON login_tokens (expires_ms);

-- Tokens that allow a registration, as their SHA-256. `uses_allowed` (of which `completed` were used) and `expires_ms`: NULL
-- is without end. `first`: the one that was printed for the first account.
CREATE TABLE registration_tokens (
  hash BLOB PRIMARY KEY,
  uses_allowed INTEGER,
  completed INTEGER NOT NULL DEFAULT 0,
  expires_ms INTEGER,
  first INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Tokens by which a user proves to a third party who they are, and nothing else, as their SHA-256. They expire within
-- the hour; a user has a bounded number of them.
CREATE TABLE openid_tokens (
  hash BLOB PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES users,
  expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX openid_tokens_by_user ON openid_tokens (user_id, expires_ms);
CREATE INDEX openid_tokens_by_expiry ON openid_tokens (expires_ms);

-- What local users have told the administrators of this server: a room, an event in it, or a user that they find
-- inappropriate. A user has a bounded number of them, and one of each thing.
CREATE TABLE reports (
  report INTEGER PRIMARY KEY,
  reporter TEXT NOT NULL REFERENCES users,
  room_id TEXT,
  event_id TEXT,
  user_id TEXT,
  reason TEXT,
  created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX reports_by_reporter ON reports (reporter, report);

-- One field of the profile of a local user (displayname, avatar_url, m.tz, custom fields). The value is JSON.
CREATE TABLE profile_fields (
  user_id TEXT NOT NULL,
  field TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (user_id, field)
) STRICT, WITHOUT ROWID;

-- Local users of whose name or avatar some of their rooms may not have been told. Written with the change, whose position is
-- `stream`, and ended when every room has it or has refused it; taken up at `due_ms`, with pauses that grow with `attempts`.
CREATE TABLE owed_profiles (
  user_id TEXT PRIMARY KEY,
  stream INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  due_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX owed_profiles_due ON owed_profiles (due_ms);

-- What a user's clients keep here: account data, global (room_id = '') or of a room, tags and the fully-read marker
-- included. The content is a JSON object; `stream` is when it last changed.
CREATE TABLE account_data (
  user_id TEXT NOT NULL,
  room_id TEXT NOT NULL,
  type TEXT NOT NULL,
  content TEXT NOT NULL,
  stream INTEGER NOT NULL,
  PRIMARY KEY (user_id, room_id, type)
) STRICT, WITHOUT ROWID;
CREATE INDEX account_data_by_stream ON account_data (user_id, stream);

-- Pushers: where users have what they are notified of sent. `details`: what the client said of it that is not here, a JSON
-- object. It goes with the device that set it. `set_ms`: when that was. What is up to the stream position `cursor` was
-- taken by the gateway, or is not to be sent; `badge` is the number of unread messages that it was told last. After
-- `failures` in a row it is not tried again before `retry_ms`. `failing_since_ms`: when that began, and the position by then
-- (`failing_from`), up to which things are let go when it lasts too long.
CREATE TABLE pushers (
  pusher INTEGER PRIMARY KEY,
  user_id TEXT NOT NULL,
  app_id TEXT NOT NULL,
  pushkey TEXT NOT NULL,
  device_id TEXT NOT NULL,
  enabled INTEGER NOT NULL,
  details TEXT NOT NULL,
  set_ms INTEGER NOT NULL,
  cursor INTEGER NOT NULL,
  badge INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  retry_ms INTEGER NOT NULL,
  failing_since_ms INTEGER,
  failing_from INTEGER,
  UNIQUE (user_id, app_id, pushkey),
  FOREIGN KEY (user_id, device_id) REFERENCES devices ON DELETE CASCADE
) STRICT;
CREATE INDEX pushers_by_pushkey ON pushers (app_id, pushkey);
CREATE INDEX pushers_by_device ON pushers (user_id, device_id);

-- Of rooms of whose knocks a pusher told: until when it tells of no other, and the stream position of the first one that
-- waits for that, if one does.
CREATE TABLE bells (
  pusher INTEGER NOT NULL REFERENCES pushers ON DELETE CASCADE,
  room_key INTEGER NOT NULL,
  until_ms INTEGER NOT NULL,
  waiting INTEGER,
  PRIMARY KEY (pusher, room_key)
) STRICT, WITHOUT ROWID;

-- Filters that clients uploaded, as they were written. Ids count from 1 for each user; a filter that a user uploads
-- again gets the id that it has (the digest finds it).
CREATE TABLE filters (
  user_id TEXT NOT NULL,
  filter_id INTEGER NOT NULL,
  digest BLOB NOT NULL,
  definition TEXT NOT NULL,
  PRIMARY KEY (user_id, filter_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX filters_by_digest ON filters (user_id, digest);

-- The connections of sliding sync: one for each `conn_id` of a device. `issued` is the version of what the client was
-- told last, `base` the version before it, upon which it may ask again because it did not get that answer. `connection`
-- is a stream position, so that no token of another connection is ever taken for one of this. NULL instead of `conn_id`:
-- the client began anew or its device is gone, and the rest of the old connection waits to be swept: it may be more
-- than one commit should take out.
CREATE TABLE sliding_connections (
  connection INTEGER PRIMARY KEY,
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  conn_id TEXT,
  base INTEGER NOT NULL,
  issued INTEGER NOT NULL,
  used_ms INTEGER NOT NULL,
  UNIQUE (user_id, device_id, conn_id)
) STRICT;
CREATE INDEX sliding_connections_by_use ON sliding_connections (used_ms);

-- What each connection was told of each room, by version: JSON, or NULL once there is nothing that the client knows of
-- the room. The last one up to a version holds. `room_id` is '' for what belongs to no room. Written without waiting
-- for the disk: a power cut takes the last versions and with them the tokens that name them.
CREATE TABLE sliding_rooms (
  connection INTEGER NOT NULL REFERENCES sliding_connections ON DELETE CASCADE,
  room_id TEXT NOT NULL,
  version INTEGER NOT NULL,
  told TEXT,
  PRIMARY KEY (connection, room_id, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX sliding_rooms_by_version ON sliding_rooms (connection, version);

-- Which event a client's request with a transaction id made (NULL: none), so that a repeat makes no second one and the
-- sending device recognises its own event; or which delayed event, whatever became of that since. `request` is a digest of
-- user, device, endpoint with its path, and transaction id. What became of a delayed event is noted in the same way, with a
-- digest of that and of its id, so that a repeat of what was done with it is answered and its sender recognises the event.
-- Old rows are dropped as new ones come.
CREATE TABLE client_transactions (
  txn INTEGER PRIMARY KEY,
  sent_ms INTEGER NOT NULL,
  request BLOB NOT NULL UNIQUE,
  device_id TEXT NOT NULL,
  txn_id TEXT NOT NULL,
  event_key INTEGER,
  delay_id TEXT
) STRICT;
CREATE INDEX client_transactions_by_event ON client_transactions (event_key) WHERE event_key IS NOT NULL;

-- ===== Between devices: messages to devices, device lists, key backups (src/store/devices) =====

-- The line in which messages wait for a device, from its first one on: how many wait, and what they come to in bytes. `line`: a
-- position, which no other line ever has. `counted`: `to_device_shares` says from whom they are. That is so from when the line
-- has become so long that it matters until it is empty. `told`: up to where an application service was told of those that still
-- wait. Without a device: that was logged out, and what waited goes by and by.
CREATE TABLE to_device_lines (
  line INTEGER PRIMARY KEY,
  user_id TEXT,
  device_id TEXT,
  messages INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0,
  counted INTEGER NOT NULL DEFAULT 0,
  told INTEGER NOT NULL DEFAULT 0,
  UNIQUE (user_id, device_id),
  FOREIGN KEY (user_id, device_id) REFERENCES devices ON DELETE CASCADE
) STRICT;

-- The messages (JSON objects) that wait, in the order in which they came: those of one request side by side, whomever they are
-- for, since a page of the database is written as a whole. `share`: whose share of the line they take, as in `to_device_shares`;
-- `origin`: the user who sent them; `bytes`: the length of `message`. Deleted once the device has proved, by the `since` of a
-- later /sync, that it has them.
CREATE TABLE to_device (
  stream INTEGER PRIMARY KEY,
  line INTEGER NOT NULL REFERENCES to_device_lines ON DELETE CASCADE,
  share INTEGER NOT NULL,
  origin TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  message TEXT NOT NULL
) STRICT;
CREATE INDEX to_device_by_line ON to_device (line);

-- How many of them wait from each origin, and what they come to in bytes, in lines that are `counted`. `share`: 0 our own
-- users, 1 servers that share a room with a local user, 2 all other servers. `origin`: a user, the server of users elsewhere, or
-- '', the sum of a share. `since_ms`: since when some of them have waited at any time, as far as that was counted.
CREATE TABLE to_device_shares (
  line INTEGER NOT NULL REFERENCES to_device_lines ON DELETE CASCADE,
  share INTEGER NOT NULL,
  origin TEXT NOT NULL,
  messages INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  since_ms INTEGER NOT NULL,
  PRIMARY KEY (line, share, origin)
) STRICT, WITHOUT ROWID;

-- Answers to /sync that had to leave some of them out: those with tokens before `stream` ended with the message of the
-- position `number`.
CREATE TABLE to_device_portions (
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  number INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  PRIMARY KEY (user_id, device_id, number),
  FOREIGN KEY (user_id, device_id) REFERENCES devices ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- The messages to devices that came from other servers, so that a repeat is known as one. The last ones of each
-- server, and of all servers that share no room with a local user together, are kept, for some days. `stranger`: one of
-- those.
CREATE TABLE to_device_received (
  number INTEGER PRIMARY KEY,
  origin TEXT NOT NULL,
  message_id TEXT NOT NULL,
  received_ms INTEGER NOT NULL,
  stranger INTEGER NOT NULL,
  UNIQUE (origin, message_id)
) STRICT;
CREATE INDEX to_device_received_by_origin ON to_device_received (origin);
CREATE INDEX to_device_received_from_strangers ON to_device_received (stranger) WHERE stranger = 1;

-- Users whose devices or cross-signing keys changed, ours and those of others with whom one of us shares a room, and when
-- they did last (`stream`). Of one of ours whose devices changed also the last update that other servers were told:
-- `update_id` is its `stream_id`, `previous` that of the one before it, `device_id` the device that changed.
CREATE TABLE device_changes (
  user_id TEXT PRIMARY KEY,
  stream INTEGER NOT NULL,
  update_id INTEGER,
  previous INTEGER,
  device_id TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX device_changes_by_stream ON device_changes (stream);

-- One row, once there was a reason: how `device_changes` are swept. Changes up to `upto` that are of interest to nobody go
-- at `next_ms`, when they are old enough; up to `swept_upto` some may have gone.
CREATE TABLE device_changes_sweep (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  swept_upto INTEGER NOT NULL,
  upto INTEGER NOT NULL,
  next_ms INTEGER NOT NULL
) STRICT;

-- How well we know the devices and keys of other servers' users: up to which update of theirs. `fetched_ms`: when the
-- whole list was fetched last; if it never was, devices may be missing in it. `due_ms`: something is missing, and the whole
-- list is to be fetched then; `attempts` to do so have failed. Keys are answered from here only where the list is
-- whole and nothing is due.
CREATE TABLE remote_device_lists (
  user_id TEXT PRIMARY KEY,
  server TEXT NOT NULL,
  stream_id INTEGER,
  due_ms INTEGER,
  attempts INTEGER NOT NULL,
  fetched_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX remote_device_lists_due ON remote_device_lists (due_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX remote_device_lists_due_by_server ON remote_device_lists (server, due_ms) WHERE due_ms IS NOT NULL;

-- Those devices. `keys`: the identity keys as their server tells them, a JSON object.
CREATE TABLE remote_devices (
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  display_name TEXT,
  keys TEXT,
  PRIMARY KEY (user_id, device_id)
) STRICT, WITHOUT ROWID;

-- The identity keys of our users' devices. `keys` is the object as it was uploaded, in canonical form and without
-- `signatures` and `unsigned`; `signatures` are those that the device itself made of it, a JSON object by key id.
CREATE TABLE device_keys (
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  keys TEXT NOT NULL,
  signatures TEXT NOT NULL,
  PRIMARY KEY (user_id, device_id),
  FOREIGN KEY (user_id, device_id) REFERENCES devices ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- How far their one-time keys of an algorithm were given out: those up to the number `issued`, of those up to `last`. A claim
-- writes nothing else. `pool`: a position, which no other pool ever has.
CREATE TABLE one_time_key_pools (
  pool INTEGER PRIMARY KEY,
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  algorithm TEXT NOT NULL,
  issued INTEGER NOT NULL DEFAULT 0,
  last INTEGER NOT NULL DEFAULT 0,
  UNIQUE (user_id, device_id, algorithm),
  FOREIGN KEY (user_id, device_id) REFERENCES devices ON DELETE CASCADE
) STRICT;

-- The one-time keys, `number`ed without a gap in the order in which they were uploaded, which is that in which they are given
-- out; those that nobody has claimed yet, and before them the last that were issued, so that an upload that is repeated after
-- its answer was lost does not bring them back. `digest`: SHA-256 of the key without its signatures, by which a repeated upload
-- is told from another key of the same id. `key`: after a while empty where it was given out.
CREATE TABLE one_time_keys (
  pool INTEGER NOT NULL REFERENCES one_time_key_pools ON DELETE CASCADE,
  number INTEGER NOT NULL,
  key_id TEXT NOT NULL,
  digest BLOB NOT NULL,
  key TEXT NOT NULL,
  PRIMARY KEY (pool, number),
  UNIQUE (pool, key_id)
) STRICT, WITHOUT ROWID;

-- The fallback key of each device and algorithm, given out again and again when no one-time key is left. `used`: it was.
CREATE TABLE fallback_keys (
  user_id TEXT NOT NULL,
  device_id TEXT NOT NULL,
  algorithm TEXT NOT NULL,
  key_id TEXT NOT NULL,
  key TEXT NOT NULL,
  used INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (user_id, device_id, algorithm),
  FOREIGN KEY (user_id, device_id) REFERENCES devices ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Cross-signing keys of our users, and the master and self-signing keys of users elsewhere with whom one of us shares a
-- room. `public_key` is in base64, as it stands in the key's id. `key` and `signatures` as in `device_keys`; the
-- signatures are the owner's: of one of ours the master key's, of another server's user whatever that server tells of
-- the owner's. `stream`: when it came.
CREATE TABLE cross_signing_keys (
  user_id TEXT NOT NULL,
  usage TEXT NOT NULL CHECK (usage IN ('master', 'self_signing', 'user_signing')),
  public_key TEXT NOT NULL,
  key TEXT NOT NULL,
  signatures TEXT NOT NULL,
  stream INTEGER NOT NULL,
  PRIMARY KEY (user_id, usage)
) STRICT, WITHOUT ROWID;

-- Signatures that our users uploaded, each verified with the `signer`'s key `key_id`: of their own devices by their
-- self-signing key, of their own master key by a device, of somebody's master key by their user-signing key (only these
-- have another `user_id`, and only the signer is shown them). `target`: the device's id, or the master key's public key.
-- `stream`: when it came.
CREATE TABLE key_signatures (
  user_id TEXT NOT NULL,
  target TEXT NOT NULL,
  signer TEXT NOT NULL,
  key_id TEXT NOT NULL,
  signature TEXT NOT NULL,
  stream INTEGER NOT NULL,
  PRIMARY KEY (user_id, target, signer, key_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX key_signatures_by_signer ON key_signatures (signer, stream);

-- The dehydrated device of each user who has one: a device that nobody is logged in on, and that keeps what comes for it
-- until a client wakes it. `device_data` is what it is woken with, a JSON object that only its user's clients can read.
CREATE TABLE dehydrated_devices (
  user_id TEXT PRIMARY KEY,
  device_id TEXT NOT NULL,
  device_data TEXT NOT NULL,
  FOREIGN KEY (user_id, device_id) REFERENCES devices ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Key backups: room keys that users' clients keep here, encrypted. Each user's backups have versions that count from 1,
-- of which only the last one that was not deleted is written to. `etag` counts the changes of its keys, `count` the keys
-- and `bytes` what they take. `deleted`: 1 its keys are being deleted, 2 they are gone; of those rows only a user's last
-- one stays, so that its version is never given out again: any other below it that is not there was deleted.
CREATE TABLE key_backups (
  backup INTEGER PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES users,
  version INTEGER NOT NULL,
  algorithm TEXT NOT NULL,
  auth_data TEXT NOT NULL,
  etag INTEGER NOT NULL DEFAULT 0,
  count INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0,
  deleted INTEGER NOT NULL DEFAULT 0,
  UNIQUE (user_id, version)
) STRICT;
CREATE INDEX key_backups_being_deleted ON key_backups (backup) WHERE deleted = 1;

-- Those keys, a row for each Megolm session. `session_data` is a JSON object that only clients can read; with it the
-- rows are large, so that they have row ids and the index holds no more than their names. `bytes`: what a row counts for.
CREATE TABLE key_backup_sessions (
  backup INTEGER NOT NULL REFERENCES key_backups,
  room_id TEXT NOT NULL,
  session_id TEXT NOT NULL,
  first_message_index INTEGER NOT NULL,
  forwarded_count INTEGER NOT NULL,
  is_verified INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  session_data TEXT NOT NULL,
  UNIQUE (backup, room_id, session_id)
) STRICT;

-- ===== Ephemeral: typing, receipts, presence (src/store/ephemeral) =====

-- When what is fleeting in a room changed last: anything of it, and in particular who is typing. Most writes of this
-- section do not wait for the disk.
CREATE TABLE ephemeral_changes (
  room_key INTEGER PRIMARY KEY,
  stream INTEGER NOT NULL,
  typing INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX ephemeral_changes_by_stream ON ephemeral_changes (stream);

-- Who is typing where, and until when unless they say so again. `told_ms`: when other servers were last told of one of
-- us.
CREATE TABLE typing (
  room_key INTEGER NOT NULL,
  user_id TEXT NOT NULL,
  until_ms INTEGER NOT NULL,
  told_ms INTEGER NOT NULL,
  PRIMARY KEY (room_key, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX typing_until ON typing (until_ms);

-- Up to where users have read: the last receipt of each user and type (`m.read`, `m.read.private`), and of each thread:
-- '' is without one, 'main', or the event id of the thread's root. `ts` is what the user's server says.
CREATE TABLE receipts (
  room_key INTEGER NOT NULL,
  user_id TEXT NOT NULL,
  type TEXT NOT NULL,
  thread TEXT NOT NULL,
  event_id TEXT NOT NULL,
  ts INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  PRIMARY KEY (room_key, user_id, type, thread)
) STRICT, WITHOUT ROWID;
CREATE INDEX receipts_by_stream ON receipts (room_key, stream);

-- Up to where each local user has read, in each room and thread ('' is all of them, 'main', or the root's event id): the
-- furthest of their receipts, public and private, and of what they sent. `stream`: everything up to there is read.
-- `moved`: when a receipt last made it so, or what is unread became less in another way; 0: never.
CREATE TABLE read_positions (
  user_id TEXT NOT NULL,
  room_key INTEGER NOT NULL,
  thread TEXT NOT NULL,
  stream INTEGER NOT NULL,
  moved INTEGER NOT NULL,
  PRIMARY KEY (user_id, room_key, thread)
) STRICT, WITHOUT ROWID;
CREATE INDEX read_positions_by_time ON read_positions (user_id, moved) WHERE moved > 0;

-- Who is there: local users, and users of other servers who share a room with one. `active`: to be taken for doing
-- something until more is said; otherwise they last did at `last_active_ms`. `until_ms`: when a user of another server
-- counts as offline, unless that server says more. Written without waiting for the disk.
CREATE TABLE presence (
  user_id TEXT PRIMARY KEY,
  state TEXT NOT NULL CHECK (state IN ('online', 'unavailable', 'offline')),
  status TEXT,
  last_active_ms INTEGER NOT NULL,
  active INTEGER NOT NULL,
  until_ms INTEGER,
  stream INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX presence_by_stream ON presence (stream);
CREATE INDEX presence_until ON presence (until_ms) WHERE until_ms IS NOT NULL;

-- ===== Media (src/store/media) =====

-- The files of media in the data folder, each of them once: `hash` is the SHA-256 of its bytes, and the name of the
-- file. The row is there before the file has that name, and goes after it. `uses`: how many rows of `media` and
-- `media_thumbnails` have it, which the triggers below count; what nothing has is deleted. `quarantined`: nobody is
-- given it, in whatever media it is, and nobody can upload it again; the row is kept.
CREATE TABLE media_blobs (
  hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
  bytes INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0,
  quarantined INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX media_blobs_unused ON media_blobs (hash) WHERE uses = 0 AND quarantined = 0;

-- Media by their mxc:// URIs. `hash`: NULL while nothing was uploaded for it, which has to happen before `expires_ms`.
-- `uploader`: a local user; NULL for what can be had again, that is what was fetched from other servers, which is all
-- that a full cache and age take away. `used_ms`: when it was asked for last, to the hour. `quarantined`: nobody is
-- given it; such a row is kept, also where there is nothing to it yet.
CREATE TABLE media (
  media_key INTEGER PRIMARY KEY,
  server_name TEXT NOT NULL,
  media_id TEXT NOT NULL,
  hash BLOB REFERENCES media_blobs,
  bytes INTEGER NOT NULL DEFAULT 0,
  content_type TEXT,
  upload_name TEXT,
  uploader TEXT,
  created_ms INTEGER NOT NULL,
  expires_ms INTEGER,
  used_ms INTEGER NOT NULL,
  quarantined INTEGER NOT NULL DEFAULT 0,
  UNIQUE (server_name, media_id)
) STRICT;
CREATE INDEX media_by_hash ON media (hash) WHERE hash IS NOT NULL;
CREATE INDEX media_by_use ON media (used_ms) WHERE uploader IS NULL AND quarantined = 0;
CREATE INDEX media_pending ON media (uploader, expires_ms) WHERE expires_ms IS NOT NULL;
CREATE INDEX media_by_uploader ON media (uploader, created_ms) WHERE uploader IS NOT NULL AND hash IS NOT NULL;
CREATE INDEX media_expiring ON media (expires_ms) WHERE expires_ms IS NOT NULL;

-- Thumbnails that were made of a picture's file: how large they were asked for, after that was rounded to one of the
-- sizes that there are, and the file that was made.
CREATE TABLE media_thumbnails (
  source BLOB NOT NULL REFERENCES media_blobs,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  method TEXT NOT NULL CHECK (method IN ('crop', 'scale')),
  animated INTEGER NOT NULL,
  hash BLOB NOT NULL REFERENCES media_blobs,
  content_type TEXT NOT NULL,
  PRIMARY KEY (source, width, height, method, animated)
) STRICT, WITHOUT ROWID;
CREATE INDEX media_thumbnails_by_hash ON media_thumbnails (hash);

-- How much media each user has uploaded, and ('') how much there is that can be had again. A file counts for 4096
-- bytes at least, and once for each of its media.
CREATE TABLE media_shares (
  owner TEXT PRIMARY KEY,
  files INTEGER NOT NULL,
  bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER media_added AFTER INSERT ON media WHEN new.hash IS NOT NULL BEGIN
  UPDATE media_blobs SET uses = uses + 1 WHERE hash = new.hash;
  INSERT INTO media_shares (owner, files, bytes) VALUES (coalesce(new.uploader, ''), 1, max(new.bytes, 4096))
    ON CONFLICT (owner) DO UPDATE SET files = files + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER media_removed AFTER DELETE ON media WHEN old.hash IS NOT NULL BEGIN
  UPDATE media_blobs SET uses = uses - 1 WHERE hash = old.hash;
  UPDATE media_shares SET files = files - 1, bytes = bytes - max(old.bytes, 4096)
    WHERE owner = coalesce(old.uploader, '');
END;
CREATE TRIGGER media_filled AFTER UPDATE OF hash ON media WHEN old.hash IS NULL AND new.hash IS NOT NULL BEGIN
  UPDATE media_blobs SET uses = uses + 1 WHERE hash = new.hash;
  INSERT INTO media_shares (owner, files, bytes) VALUES (coalesce(new.uploader, ''), 1, max(new.bytes, 4096))
    ON CONFLICT (owner) DO UPDATE SET files = files + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER media_emptied AFTER UPDATE OF hash ON media WHEN old.hash IS NOT NULL AND new.hash IS NULL BEGIN
  UPDATE media_blobs SET uses = uses - 1 WHERE hash = old.hash;
  UPDATE media_shares SET files = files - 1, bytes = bytes - max(old.bytes, 4096)
    WHERE owner = coalesce(old.uploader, '');
END;
CREATE TRIGGER media_thumbnails_added AFTER INSERT ON media_thumbnails BEGIN
  UPDATE media_blobs SET uses = uses + 1 WHERE hash = new.hash;
END;
CREATE TRIGGER media_thumbnails_removed AFTER DELETE ON media_thumbnails BEGIN
  UPDATE media_blobs SET uses = uses - 1 WHERE hash = old.hash;
END;

-- ===== Push: of what users are notified (src/store/push) =====

-- The events of which users are notified, by their place in the stream: what each is (`outcome`: 1 notify, + 2 highlight,
-- + 4 sound, + 8 it is not counted as unread) to all local users who were joined to the room by then, but for its sender,
-- and for those of whom `notifications_of_users` says something else. No row: it is nothing to them. `thread`: the root's
-- event id; NULL: it is in none. `actions`: those of the rule, a JSON array, where they are not the usual ones. What is
-- unread is a sum over the rows behind what somebody has read, but for those that are not counted; nothing else counts.
CREATE TABLE notifications (
  room_key INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  event_key INTEGER NOT NULL,
  thread TEXT,
  outcome INTEGER NOT NULL,
  actions TEXT,
  PRIMARY KEY (room_key, stream)
) STRICT, WITHOUT ROWID;
CREATE INDEX notifications_in_threads ON notifications (room_key, stream, outcome, thread) WHERE thread IS NOT NULL;

-- What an event is to a user to whom it is something else than to the others: it mentions them, or they have rules of
-- their own, or ignore its sender; `instead_of` is what it is to the others. Also the invites of users who are not in
-- the room: of one that this server is not in either, `room_key` is 0, and the invite is in `remote_memberships` under
-- `room_id`.
CREATE TABLE notifications_of_users (
  user_id TEXT NOT NULL,
  room_key INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  event_key INTEGER,
  room_id TEXT,
  thread TEXT,
  outcome INTEGER NOT NULL,
  instead_of INTEGER NOT NULL,
  actions TEXT,
  PRIMARY KEY (user_id, room_key, stream)
) STRICT, WITHOUT ROWID;
CREATE INDEX notifications_of_users_by_stream ON notifications_of_users (stream);

-- ===== Application services: what they are still to be told (src/store/appservices) =====

-- The services that this server is started with, and those that it was not long ago. `since`: where the stream was when it was so
-- first, or again; a service is told what comes behind it. `devices_upto`: up to where it was told whose devices changed. How often
-- in a row it has not taken what it was sent (`failures`), and when that is tried again (`due_ms`). `taken_ms`: when it last took
-- something. `forget_due_ms`: of one that is registered no more, when it goes with all that waits for it.
CREATE TABLE appservices (
  service INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  since INTEGER NOT NULL,
  devices_upto INTEGER NOT NULL,
  failures INTEGER NOT NULL DEFAULT 0,
  due_ms INTEGER,
  taken_ms INTEGER,
  forget_due_ms INTEGER
) STRICT;

-- One row while there are services: of what stands up to here in the stream it is decided which services are told of it. It
-- may be some way behind where nothing was to be told.
CREATE TABLE appservice_progress (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  stream INTEGER NOT NULL
) STRICT;

-- The events that a service is still to be told of, in their order, until it has taken them. `event`: of a room that this server is not in, the JSON that
-- is told; otherwise it is made of the event when its turn comes.
CREATE TABLE appservice_events (
  service INTEGER NOT NULL,
  stream INTEGER NOT NULL,
  event_key INTEGER,
  event TEXT,
  PRIMARY KEY (service, stream)
) STRICT, WITHOUT ROWID;

-- The transaction that a service is being sent, from before the first try until it has taken it: "Homeservers MUST NOT alter
-- (e.g. add more) events they were going to send within that transaction ID on retries". Its events are those that wait up to
-- `events_upto`, so that they are told as they are by then: redacted, if they were. `body`: all else, which waits nowhere else. One
-- that the service finds too large is replaced by its halves, which are sent in the order of `place`.
CREATE TABLE appservice_transactions (
  service INTEGER NOT NULL,
  place INTEGER NOT NULL,
  txn_id TEXT NOT NULL,
  begun_ms INTEGER NOT NULL,
  events_upto INTEGER NOT NULL,
  body TEXT NOT NULL,
  PRIMARY KEY (service, place)
) STRICT, WITHOUT ROWID;
