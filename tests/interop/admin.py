"""Synapse's admin API for accounts and registration tokens: the same requests to both servers, and the same answers."""

import hashlib
import hmac
import json
import urllib.parse

from files import ask
from flows import demand, flow
from servers import SHARED_SECRET


class Asker:
    """Whoever asks a server with a token, or without one."""

    def __init__(self, server, token=""):
        self.server = server
        self.token = token

    def __repr__(self):
        return f"somebody on {self.server.kind}"


def answer(asker, method, path, body=None):
    data = None if body is None else json.dumps(body)
    status, _, content = ask(asker, method, path, data=data)
    text = content.decode().replace(asker.server.name, "SERVER")
    return status, json.loads(text) if text[:1] in ("{", "[") else text


def administrator(server, name):
    """An administrator, as Synapse's own tool makes one."""
    nobody = Asker(server)
    _, nonce = answer(nobody, "GET", "/_synapse/admin/v1/register")
    signed = "\0".join([nonce["nonce"], name, "secret", "admin"]).encode()
    mac = hmac.new(SHARED_SECRET.encode(), signed, hashlib.sha1).hexdigest()
    body = {"nonce": nonce["nonce"], "username": name, "password": "secret", "admin": True, "mac": mac}
    status, made = answer(nobody, "POST", "/_synapse/admin/v1/register", body)
    demand(status == 200, f"no administrator on {server.kind}: {status} {made}")
    return Asker(server, made["access_token"])


def shape(value):
    """What kind of value it is, all the way down; of a list, its first."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return None if value is None else type(value).__name__


def lacks(wanted, found, where="answer"):
    """What of Synapse's answer is missing or of another kind. Null says nothing, nor does an empty list."""
    if wanted is None or found is None or wanted == [] or found == []:
        return []
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [
            lack
            for key, part in wanted.items()
            for lack in (
                lacks(part, found[key], f"{where}.{key}") if key in found else [f"{where}.{key} is missing"]
            )
        ]
    if isinstance(wanted, list) and isinstance(found, list):
        return lacks(wanted[0], found[0], f"{where}[0]")
    return [] if wanted == found else [f"{where} is {found} and not {wanted}"]


def requests(unique):
    """Method, path and body of each, for a user and a token of these names."""
    user, nobody = f"u-{unique}", f"nobody-{unique}"
    one = f"/_synapse/admin/v2/users/@{user}:SERVER"
    tokens = "/_synapse/admin/v1/registration_tokens"
    missing, elsewhere = f"@{nobody}:SERVER", "@x:elsewhere.example"
    v1, v2 = "/_synapse/admin/v1", "/_synapse/admin/v2"
    yield "GET", f"{v1}/server_version", None
    yield "GET", "/health", None
    yield "GET", one, None
    yield "PUT", one, {"admin": "yes"}
    yield "PUT", one, {"password": "pw", "displayname": "A User", "avatar_url": "mxc://x.example/y"}
    yield "PUT", one, {"displayname": "The User"}
    yield "PUT", one, {"password": "pw2", "logout_devices": False}
    yield "PUT", one, {"locked": True}
    yield "GET", f"{v2}/users?name={user}", None
    yield "GET", f"{v2}/users?name={user}&locked=true", None
    yield "PUT", one, {"locked": False}
    yield "GET", one, None
    yield "GET", f"{v2}/users/{elsewhere}", None
    yield "GET", f"{v2}/users?limit=1&from=0", None
    yield "GET", f"{v2}/users?limit=1&from=1&order_by=creation_ts&dir=b", None
    yield "GET", f"{v2}/users?limit=-1", None
    yield "GET", f"{v2}/users?order_by=nonsense", None
    yield "GET", f"{v2}/users?dir=up", None
    yield "GET", f"/_synapse/admin/v3/users?deactivated=false&name={user}", None
    yield "GET", f"{v1}/users/@{user}:SERVER/admin", None
    yield "PUT", f"{v1}/users/@{user}:SERVER/admin", {"admin": True}
    yield "PUT", f"{v1}/users/@{user}:SERVER/admin", {"admin": False}
    yield "PUT", f"{v1}/users/@{user}:SERVER/admin", {}
    yield "PUT", f"{v1}/users/@ADMIN:SERVER/admin", {"admin": False}
    yield "PUT", f"{v2}/users/@ADMIN:SERVER", {"admin": False}
    yield "GET", f"{v1}/users/@{user}:SERVER/joined_rooms", None
    yield "GET", f"{v1}/users/@{user}:SERVER/memberships", None
    yield "GET", f"{v1}/users/@{user}:SERVER/pushers", None
    yield "GET", f"{v2}/users/@ADMIN:SERVER/devices", None
    yield "GET", f"{v2}/users/{missing}/devices", None
    yield "GET", f"{v2}/users/@{user}:SERVER/devices/NONE", None
    yield "DELETE", f"{v2}/users/@{user}:SERVER/devices/NONE", None
    yield "POST", f"{v2}/users/@{user}:SERVER/delete_devices", {"devices": ["NONE"]}
    yield "POST", f"{v2}/users/{missing}/delete_devices", {"devices": []}
    yield "GET", f"{v1}/whois/@ADMIN:SERVER", None
    yield "GET", f"{v1}/whois/{elsewhere}", None
    yield "POST", f"{v1}/reset_password/@{user}:SERVER", {"new_password": "pw3", "logout_devices": True}
    yield "PUT", f"{v1}/suspend/@{user}:SERVER", {"suspend": True}
    yield "PUT", f"{v1}/suspend/@{user}:SERVER", {"suspend": False}
    yield "PUT", f"{v1}/suspend/{missing}", {"suspend": True}
    yield "GET", f"{v1}/username_available?username={nobody}", None
    yield "GET", f"{v1}/username_available?username={user}", None
    yield "GET", f"{v1}/username_available", None
    yield "POST", f"{tokens}/new", {"token": f"t-{unique}", "uses_allowed": 3}
    yield "POST", f"{tokens}/new", {"token": f"t-{unique}"}
    yield "POST", f"{tokens}/new", {"length": 20, "expiry_time": 4_000_000_000_000}
    yield "POST", f"{tokens}/new", {}
    yield "POST", f"{tokens}/new", {"length": 65}
    yield "POST", f"{tokens}/new", {"token": "a b"}
    yield "POST", f"{tokens}/new", {"uses_allowed": -1}
    yield "POST", f"{tokens}/new", {"expiry_time": 1}
    yield "GET", tokens, None
    yield "GET", f"{tokens}?valid=true", None
    yield "GET", f"{tokens}/t-{unique}", None
    yield "PUT", f"{tokens}/t-{unique}", {"uses_allowed": None, "expiry_time": 4_000_000_000_000}
    yield "PUT", f"{tokens}/t-{unique}", {"uses_allowed": 1.5}
    yield "PUT", f"{tokens}/none-{unique}", {"uses_allowed": 1}
    yield "DELETE", f"{tokens}/t-{unique}", None
    yield "DELETE", f"{tokens}/t-{unique}", None
    yield "GET", f"{tokens}/t-{unique}", None
    yield "POST", f"{v1}/deactivate/@{user}:SERVER", {"erase": "yes"}
    yield "POST", f"{v1}/deactivate/@{user}:SERVER", {"erase": True}
    yield "GET", one, None
    yield "POST", f"{v1}/deactivate/{missing}", {}


def requests_about_rooms_and_files(unique):
    """The same for rooms and files that there are not, and for a user who has none. (What cannot be an id is `M_INVALID_PARAM` here,
    where Synapse often has `M_UNKNOWN`.)"""
    user, nobody = "@ADMIN:SERVER", f"@nobody-{unique}:SERVER"
    room, elsewhere = "!nowhere:SERVER", "@x:elsewhere.example"
    v1, v2 = "/_synapse/admin/v1", "/_synapse/admin/v2"
    yield "GET", f"{v1}/rooms/{room}", None
    yield "GET", f"{v1}/rooms?limit=-1", None
    yield "GET", f"{v1}/rooms?from=-1", None
    yield "GET", f"{v1}/rooms?limit=x", None
    yield "GET", f"{v1}/rooms?search_term=", None
    yield "GET", f"{v1}/rooms?public_rooms=maybe", None
    yield "GET", f"{v1}/rooms?order_by=nonsense", None
    yield "GET", f"{v1}/rooms/{room}/block", None
    yield "PUT", f"{v1}/rooms/{room}/block", {"block": "yes"}
    yield "PUT", f"{v1}/rooms/{room}/block", {}
    yield "PUT", f"{v1}/rooms/{room}/block", {"block": False}
    yield "POST", f"{v1}/rooms/{room}/make_room_admin", {}
    yield "POST", f"{v1}/join/{room}", {}
    yield "GET", f"{v2}/rooms/{room}/delete_status", None
    yield "DELETE", f"{v2}/rooms/{room}", {"purge": "yes"}
    yield "DELETE", f"{v2}/rooms/{room}", {"block": "yes"}
    yield "GET", f"{v1}/users/{elsewhere}/joined_rooms", None
    yield "GET", f"{v1}/users/{user}/media", None
    yield "GET", f"{v1}/users/{nobody}/media", None
    yield "GET", f"{v1}/users/{user}/media?limit=-1", None
    yield "GET", f"{v1}/users/{user}/media?order_by=nonsense", None
    yield "DELETE", f"{v1}/users/{user}/media", None
    yield "DELETE", f"{v1}/users/{nobody}/media", None
    yield "GET", f"{v1}/statistics/users/media", None
    yield "GET", f"{v1}/statistics/users/media?search_term=", None
    yield "GET", f"{v1}/statistics/users/media?from_ts=9&until_ts=8", None
    yield "GET", f"{v1}/statistics/users/media?order_by=nonsense", None
    yield "GET", f"{v1}/statistics/users/media?dir=up", None
    yield "GET", f"{v1}/media/SERVER/none", None
    yield "DELETE", f"{v1}/media/SERVER/none", None
    yield "POST", f"{v1}/user/{user}/media/quarantine", {}
    yield "POST", f"{v1}/media/delete", {}
    yield "POST", f"{v1}/media/delete?before_ts=1", {}
    yield "POST", f"{v1}/media/delete?before_ts=1000000000000&size_gt=-1", {}
    yield "POST", f"{v1}/media/delete?before_ts=1000000000000&keep_profiles=maybe", {}
    for kind in ("event_reports", "user_reports"):
        yield "GET", f"{v1}/{kind}", None
        yield "GET", f"{v1}/{kind}?limit=-1", None
        yield "GET", f"{v1}/{kind}?dir=up", None
        yield "GET", f"{v1}/{kind}?user_id=nobody&from=0&limit=7&dir=f", None
        for method in ("GET", "DELETE"):
            yield method, f"{v1}/{kind}/x", None
            yield method, f"{v1}/{kind}/-1", None
            yield method, f"{v1}/{kind}/777777", None
    yield "GET", f"{v1}/federation/destinations?order_by=nonsense", None
    yield "GET", f"{v1}/federation/destinations?dir=up", None
    yield "GET", f"{v1}/federation/destinations?destination=nobody.example", None
    yield "GET", f"{v1}/federation/destinations/nobody.example", None
    yield "GET", f"{v1}/federation/destinations/nobody.example/rooms", None
    yield "POST", f"{v1}/federation/destinations/nobody.example/reset_connection", {}
    yield "GET", f"{v1}/users/{user}/accountdata", None
    yield "GET", f"{v1}/users/{nobody}/accountdata", None
    yield "GET", f"{v1}/users/{elsewhere}/accountdata", None
    yield "POST", f"{v1}/users/{user}/login", {}
    yield "POST", f"{v1}/users/{nobody}/login", {}
    yield "POST", f"{v1}/users/{elsewhere}/login", {}
    yield "GET", f"{v1}/fetch_event/$nothing:SERVER", None
    yield "POST", f"{v1}/purge_media_cache", {}
    yield "POST", f"{v1}/purge_media_cache?before_ts=1000000000000", {}


@flow("tools of administrators are answered alike by both", ["12"])
def answered_alike(t):
    servers = t.host_server, t.guest_server
    unique = t._unique
    everybody = []
    for server in servers:
        admin = administrator(server, f"admin-{unique}")
        ordinary = t.host() if server is t.host_server else t.guest()
        everybody.append((admin, Asker(server, ordinary.token), Asker(server)))
    differences = []
    for method, path, body in [*requests(unique), *requests_about_rooms_and_files(unique)]:
        open_to_all = path.endswith(("/health", "/server_version"))
        found = []
        for server, (admin, ordinary, nobody) in zip(servers, everybody, strict=True):
            there = path.replace("@ADMIN", f"@admin-{unique}").replace("SERVER", server.name)
            there = urllib.parse.quote(there, safe="/?&=@:!$")
            refusals = [] if open_to_all else [answer(who, method, there, body) for who in (ordinary, nobody)]
            found.append([*refusals, answer(admin, method, there, body)])
        of_synapse = next((n for n, server in enumerate(servers) if server.kind == "synapse"), 0)
        for wanted, got in zip(found[of_synapse], found[1 - of_synapse], strict=True):
            errcodes = [part[1].get("errcode") if isinstance(part[1], dict) else None for part in (wanted, got)]
            lacking = [] if errcodes[0] else lacks(shape(wanted[1]), shape(got[1]))
            if wanted[0] != got[0] or errcodes[0] != errcodes[1] or lacking:
                differences.append(f"{method} {path} {body}: {wanted} here is {got} {lacking}")
    demand(not differences, "\n".join(differences))
