"""What clients show of rooms that are replaced, of moderated accounts and of guests (js/rooms.mjs); unencrypted."""

import hashlib
import hmac
import subprocess

import client
from conversations import JS_ONLY, conversation
from devices import Node
from flows import demand
from servers import SHARED_SECRET


def run(doing, *words):
    command = [*Node.command, "rooms.mjs", doing, *words]
    try:
        done = subprocess.run(command, cwd=Node.folder, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        raise client.Unmet(f"matrix-js-sdk came to no end of {doing} within 300 s") from error
    demand(done.returncode == 0, f"matrix-js-sdk: {done.stderr.strip() or done.stdout.strip()}")


def account(server, name):
    """The words for a new account: where, who, and the password."""
    made = client.register(server, name)
    return [server.exchanges.url, made.id, made.password]


def administrator(server, name):
    _, answer = client.request(server, "GET", "/_synapse/admin/v1/register")
    password = "correct horse battery staple"
    said = "\0".join([answer["nonce"], name, password, "admin"]).encode()
    mac = hmac.new(SHARED_SECRET.encode(), said, hashlib.sha1).hexdigest()
    body = {"nonce": answer["nonce"], "username": name, "password": password, "admin": True, "mac": mac}
    status, answer = client.request(server, "POST", "/_synapse/admin/v1/register", body)
    demand(status == 200, f"no administrator: {answer}")
    return [answer["user_id"], password]


@conversation("a room is upgraded, and the other's client follows", JS_ONLY)
def room_is_upgraded(t):
    # Who is in an invite-only room of Synapse's has to be invited to the next one too.
    join_rule = "public" if t.host_server.kind == "synapse" else "invite"
    host = account(t.host_server, f"upgrader-{t.unique}")
    guest = account(t.guest_server, f"follower-{t.unique}")
    run("upgrade", *host, *guest, join_rule, "9-10", "11-12", "12-11")


def js_sdk_is_moderated(server, unique):
    admin = administrator(server, f"admin-{unique}")
    _, *somebody = account(server, f"moderated-{unique}")
    run("moderation", server.exchanges.url, *admin, *somebody)


def js_sdk_is_a_guest(server, unique):
    run("guests", *account(server, f"host-of-guests-{unique}"))


ALONE = [
    ("js", js_sdk_is_moderated, "reports, calls, a locked and a suspended account"),
    ("js", js_sdk_is_a_guest, "a guest looks in, comes in, speaks and has to go"),
]
