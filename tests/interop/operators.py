"""Flows of what administrators do with rooms by Synapse's admin API: both kinds of host answer in the same shape."""

import urllib.parse

import client
from files import upload
from flows import LACKS, demand, flow, join_and_see

ONE = ["11"]
V1 = "/_synapse/admin/v1"
LISTED = {
    "room_id", "name", "canonical_alias", "joined_members", "joined_local_members", "version", "creator", "encryption",
    "federatable", "public", "join_rules", "guest_access", "history_visibility", "state_events", "room_type",
}  # fmt: skip
DETAILS = LISTED | {"avatar", "topic", "joined_local_devices", "forgotten", "tombstoned", "replacement_room"}
SHUT_DOWN = {"kicked_users", "failed_to_kick_users", "local_aliases", "new_room_id"}
# What only Doorstep tells.
MORE = {"blocked"}
# Synapse's users who have not asked since keep a room in their list that is not there any more.
TELLS_WHO_WAS_THERE = "tells the users of a room that is deleted that they have left it"
LACKS["synapse"].add(TELLS_WHO_WAS_THERE)


class Admin:
    """An administrator of the host's server, who asks by paths that are no client API."""

    def __init__(self, t):
        self.server = t.host_server
        self.user = client.register(t.host_server, f"admin-{t._unique}", admin=True)

    def ask(self, method, path, body=None, query=None):
        return client.request(self.server, method, path, body, self.user.token, query)

    def call(self, method, path, body=None, query=None):
        status, answer = self.ask(method, path, body, query)
        demand(status == 200, f"{method} {path}: {status} {answer}")
        return answer

    def refused(self, status, errcode, method, path, body=None, query=None):
        got, answer = self.ask(method, path, body, query)
        demand((got, answer.get("errcode")) == (status, errcode), f"{method} {path}: {got} {answer}")


def of_room(room, rest="", version="v1"):
    return f"/_synapse/admin/{version}/rooms/{urllib.parse.quote(room, safe='')}{rest}"


def has(told, expected, what):
    demand(expected <= set(told) <= expected | MORE, f"{what} has {sorted(told)}")


@flow("an administrator looks at a room, and at what its users have uploaded", ONE)
def admin_looks(t):
    admin, host, guest = Admin(t), t.host(), t.guest()
    name = f"Rare name {t._unique}"
    room = host.create_room(t.version, "public", name=name, topic="Trees")
    join_and_see(host, guest, room, t.via)

    def listed():
        page = admin.call("GET", f"{V1}/rooms", query={"search_term": name.upper()})
        return page if page["total_rooms"] == 1 and page["rooms"][0]["joined_members"] == 2 else None

    page = host.until("the room is listed", listed)
    demand(page["offset"] == 0 and "next_batch" not in page and "prev_batch" not in page, f"the page is {page}")
    entry = page["rooms"][0]
    has(entry, LISTED, "the list")
    expected = {
        "room_id": room, "name": name, "canonical_alias": None, "joined_local_members": 1, "version": t.version,
        "creator": host.id, "encryption": None, "federatable": True, "join_rules": "public",
        "history_visibility": "shared", "room_type": None,
    }  # fmt: skip
    demand({key: entry[key] for key in expected} == expected, f"the room is listed as {entry}")
    details = admin.call("GET", of_room(room))
    has(details, DETAILS, "the room")
    expected = {
        "topic": "Trees", "avatar": None, "forgotten": False, "tombstoned": False, "replacement_room": None,
        "joined_local_devices": 1, "state_events": entry["state_events"],
    }  # fmt: skip
    demand({key: details[key] for key in expected} == expected, f"the room is {details}")
    members = admin.call("GET", of_room(room, "/members"))
    demand(sorted(members["members"]) == sorted([host.id, guest.id]) and members["total"] == 2, f"members: {members}")
    state = admin.call("GET", of_room(room, "/state"))["state"]
    demand(len(state) == details["state_events"], f"{len(state)} events of state, not {details['state_events']}")
    topic = admin.call("GET", of_room(room, "/state"), query={"type": "m.room.topic"})["state"]
    demand([event["content"]["topic"] for event in topic] == ["Trees"], f"the topic is {topic}")
    joined = admin.call("GET", f"{V1}/users/{host.id}/joined_rooms")
    demand(joined == {"joined_rooms": [room], "total": 1}, f"joined: {joined}")

    uri = upload(host, b"twelve bytes", "text/plain", "x.txt")
    media = admin.call("GET", f"{V1}/users/{host.id}/media")
    demand(media["total"] == 1 and uri.endswith("/" + media["media"][0]["media_id"]), f"media: {media}")
    expected = {"media_length": 12, "media_type": "text/plain", "upload_name": "x.txt", "quarantined_by": None}
    demand({key: media["media"][0][key] for key in expected} == expected, f"media: {media}")
    usage = admin.call("GET", f"{V1}/statistics/users/media", query={"search_term": host.id[1:].split(":")[0]})
    one = {"user_id": host.id, "displayname": usage["users"][0]["displayname"], "media_count": 1, "media_length": 12}
    demand(usage == {"users": [one], "total": 1}, f"usage: {usage}")
    old = admin.call("POST", f"{V1}/media/delete", query={"before_ts": 40_000_000_000})
    demand(old == {"deleted_media": [], "total": 0}, f"nothing is so old: {old}")
    # Tools go by whether there is something.
    secret = upload(host, b"nobody is to see it", "text/plain", "y.txt").rsplit("/", 1)[1]
    admin.call("POST", f"{V1}/media/quarantine/{t.via}/{secret}")
    page = admin.call("GET", f"{V1}/users/{host.id}/media")
    marked = {one["media_id"]: bool(one["quarantined_by"]) for one in page["media"]}
    demand(marked == {secret: True, media["media"][0]["media_id"]: False}, f"in quarantine: {marked}")
    details = admin.call("GET", f"{V1}/media/{t.via}/{secret}")["media_info"]
    demand(details["quarantined_by"], f"in quarantine: {details}")
    admin.call("POST", f"{V1}/media/unquarantine/{t.via}/{secret}")
    admin.call("DELETE", f"{V1}/media/{t.via}/{secret}")
    gone = admin.call("DELETE", f"{V1}/users/{host.id}/media")
    demand(gone == {"deleted_media": [media["media"][0]["media_id"]], "total": 1}, f"deleted: {gone}")

    for path in ("", "/members", "/state"):
        admin.refused(404, "M_NOT_FOUND", "GET", of_room("!nowhere:example.org", path))
    for query in ({"order_by": "taste"}, {"dir": "x"}, {"from": "x"}, {"search_term": ""}):
        admin.refused(400, "M_INVALID_PARAM", "GET", f"{V1}/rooms", query=query)
    admin.refused(400, "M_INVALID_PARAM", "POST", f"{V1}/media/delete", query={"before_ts": 7})
    beyond = admin.call("GET", f"{V1}/rooms", query={"from": 10**9})
    demand(beyond["rooms"] == [] and "next_batch" not in beyond, f"beyond the end: {beyond}")
    admin.user = host
    for method, path in (("GET", f"{V1}/rooms"), ("GET", of_room(room)), ("DELETE", of_room(room))):
        admin.refused(403, "M_FORBIDDEN", method, path, {} if method == "DELETE" else None)


@flow("an administrator blocks a room, puts a user into one, and gives power in it", ONE)
def admin_blocks(t):
    admin, host, other, guest = Admin(t), t.host(), t.host(), t.guest()
    blocked = guest.create_room(t.version, "public")
    path = of_room(blocked, "/block")
    demand(admin.call("GET", path) == {"block": False}, "it is open")
    demand(admin.call("PUT", path, {"block": True}) == {"block": True}, "it is blocked")
    demand(admin.call("GET", path) == {"block": True, "user_id": admin.user.id}, "by whom is told")
    via = {"server_name": t.guest_server.name, "via": t.guest_server.name}
    # Synapse says M_UNKNOWN with it.
    status, answer = host.attempt("POST", f"/v3/join/{blocked}", {}, via)
    demand(status == 403, f"a join is answered by {status} {answer}")
    status, _ = guest.attempt("POST", f"/v3/rooms/{blocked}/invite", {"user_id": host.id})
    # Of a Synapse that refuses it, Doorstep says that it answers with something odd.
    demand(status in (403, 502), f"an invite there is answered by {status}")
    admin.refused(400, "M_BAD_JSON", "PUT", path, {"block": "yes"})
    demand(admin.call("PUT", path, {"block": False}) == {"block": False}, "it is open again")
    join_and_see(guest, host, blocked, t.guest_server.name)

    room = host.create_room(t.version, "public")
    put = admin.call("POST", f"{V1}/join/{room}", {"user_id": other.id})
    demand(put == {"room_id": room}, f"put into the room: {put}")
    host.expect_membership(other, room, "join")
    admin.refused(404, "M_NOT_FOUND", "POST", f"{V1}/join/{room}", {"user_id": f"@nobody-{t._unique}:{t.via}"})
    demand(admin.call("POST", of_room(room, "/make_room_admin"), {"user_id": other.id}) == {}, "given power")
    levels = host.state_content(room, "m.room.power_levels")["users"]
    demand(levels == {host.id: 100, other.id: 100}, f"the levels are {levels}")


@flow("an administrator deletes a room, and its users are in another", ONE)
def admin_deletes(t):
    admin, host, guest = Admin(t), t.host(), t.guest()
    room = host.create_room(t.version, "public", room_alias_name=f"gone-{t._unique}")
    alias = f"#gone-{t._unique}:{t.via}"
    join_and_see(host, guest, room, t.via)
    order = {"new_room_user_id": admin.user.id, "room_name": "Elsewhere", "message": "Moved", "block": True}
    result = admin.call("DELETE", of_room(room), order)
    has(result, SHUT_DOWN, "the result")
    new = result["new_room_id"]
    expected = {"kicked_users": [host.id], "failed_to_kick_users": [], "local_aliases": [alias], "new_room_id": new}
    demand(result == expected, f"the result is {result}")
    if TELLS_WHO_WAS_THERE not in LACKS[t.host_server.kind]:
        host.expect_section(room, "leave")
    host.expect_section(new, "join")
    demand(host.state_content(new, "m.room.name") == {"name": "Elsewhere"}, "the new room's name")
    host.until("the message", lambda: any(e["content"].get("body") == "Moved" for e in host.messages(new)))
    host.refused(403, "M_FORBIDDEN", "PUT", f"/v3/rooms/{new}/send/m.room.message/1", {"msgtype": "m.text", "body": "?"})
    resolved = host.call("GET", f"/v3/directory/room/{urllib.parse.quote(alias)}")
    demand(resolved["room_id"] == new, f"the alias leads to {resolved}")
    admin.refused(404, "M_NOT_FOUND", "GET", of_room(room))
    status, answer = host.attempt("POST", f"/v3/join/{room}", {}, {"server_name": t.guest_server.name})
    demand(status == 403, f"a join of the old room is answered by {status} {answer}")

    # In the background, and by its id.
    room = host.create_room(t.version, "public")
    begun = admin.call("DELETE", of_room(room, version="v2"), {})
    has(begun, {"delete_id"}, "the answer")
    by_id = f"/_synapse/admin/v2/rooms/delete_status/{begun['delete_id']}"

    def over():
        status = admin.call("GET", by_id)
        return status if status["status"] == "complete" else None

    status = host.until("it is deleted", over)
    has(status, {"delete_id", "room_id", "status", "shutdown_room"}, "the status")
    demand(status["room_id"] == room and status["shutdown_room"]["kicked_users"] == [host.id], f"{status}")
    by_room = admin.call("GET", of_room(room, "/delete_status", "v2"))
    demand(by_room == {"results": [status]}, f"by the room: {by_room}")
    admin.refused(404, "M_NOT_FOUND", "GET", "/_synapse/admin/v2/rooms/delete_status/nothing")
    # Of a room that there is not, Synapse says that it is gone.
    status, _ = admin.ask("DELETE", of_room("!nowhere:example.org"), {})
    demand(status in (200, 404), f"a room that there is not: {status}")
