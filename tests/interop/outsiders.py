"""Servers beside the homeservers: one that signs invites of e-mail addresses, one that is in rooms and does there what
it is told to, one that says which events a room wants.

What they sign is made by Synapse's own libraries, so that what Doorstep makes of it is not measured by Doorstep.
"""

import http.client
import http.server
import json
import ssl
import threading
import time
import urllib.parse

from signedjson.key import encode_verify_key_base64, generate_signing_key, get_verify_key
from signedjson.sign import sign_json
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS
from synapse.crypto.event_signing import add_hashes_and_signatures, compute_event_signature
from synapse.events import make_event_from_dict

import servers


def public_key(key):
    return encode_verify_key_base64(get_verify_key(key))


def segment(text):
    return urllib.parse.quote(text, safe="")


def ask(server, method, path, body, headers=None):
    """One request to a server's federation port. Returns (status, parsed body)."""
    # The one certificate of the run is for every port of this machine; whose it is does not matter here.
    context = ssl.create_default_context(cafile=str(server.authority.ca))
    connection = http.client.HTTPSConnection("localhost", server.public_port, context=context, timeout=60)
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


class Identity:
    """The signing half of an identity server."""

    name = "identity.example"

    def __init__(self):
        self.key = generate_signing_key("0")

    def third_party_invite(self):
        """The content of `m.room.third_party_invite`. Without a key_validity_url the key is good for ever."""
        key = public_key(self.key)
        return {"display_name": "c...@e...", "public_key": key, "public_keys": [{"public_key": key}]}

    def bind(self, user, server, room, sender, token):
        """Tells a homeserver that the address is this user's. Returns (status, body)."""
        signed = sign_json({"mxid": user, "sender": sender, "token": token}, self.name, self.key)
        third_party_id = {"medium": "email", "address": "carol@example.com", "mxid": user}
        invite = {**third_party_id, "room_id": room, "sender": sender, "signed": signed}
        # PUT by the specification; POST by Sydent, and so by Synapse.
        method = "POST" if server.kind == "synapse" else "PUT"
        return ask(server, method, "/_matrix/federation/v1/3pid/onbind", {**third_party_id, "invites": [invite]})


class Outsider:
    """A server with one user, in the rooms that it joins. It takes what it is sent there without a look."""

    def __init__(self, authority):
        self.key = generate_signing_key("server")
        self.port = servers.free_port()
        self.name = f"localhost:{self.port}"
        self.user = f"@guard:{self.name}"
        self.version = None
        self.room = None
        self._state = {}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.certificate, authority.key)
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self):
        self._http.shutdown()
        self._http.server_close()

    def join(self, server, room, version):
        """Enters a room through a server that is in it."""
        self.version, self.room = KNOWN_ROOM_VERSIONS[version], room
        event, event_id = self._sign(self._template(server, self.user))
        path = f"/_matrix/federation/v2/send_join/{segment(room)}/{segment(event_id)}"
        for other in self._signed(server, "PUT", path, event)["state"]:
            self._state[other["type"], other["state_key"]] = other
        self._state["m.room.member", self.user] = event

    def heads(self, server):
        """The ends of the room's graph, as far as a server names them to whoever joins."""
        return self._template(server, f"@other:{self.name}")["prev_events"]

    def event(self, server, event_id):
        """An event as a server gives it."""
        return self._signed(server, "GET", f"/_matrix/federation/v1/event/{segment(event_id)}")["pdus"][0]

    def branch(self, server, contents):
        """Sends a server one event for each (type, content), a state event where the type is one, and nobody else any of
        them. All follow the join of this one's user. Returns their ids."""
        join = self._state["m.room.member", self.user]
        wanted = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", self.user)]
        # In version 12 the room's id stands for its first event.
        auth = [self._id(self._state[key]) for key in wanted[self.version.identifier == "12" :]]
        pdus, ids = [], []
        for event_type, content in contents:
            event = {
                "type": event_type,
                "content": content,
                "sender": self.user,
                "room_id": self.room,
                "prev_events": [self._id(join)],
                "auth_events": auth,
                "depth": join["depth"] + 1,
            }
            if event_type != "m.room.message":
                event["state_key"] = ""
            event, event_id = self._sign(event)
            pdus.append(event)
            ids.append(event_id)
        body = {"origin": self.name, "origin_server_ts": int(time.time() * 1000), "pdus": pdus, "edus": []}
        told = self._signed(server, "PUT", "/_matrix/federation/v1/send/branch", body)["pdus"]
        refused = {event_id: said for event_id, said in told.items() if said}
        if refused:
            raise RuntimeError(f"{server.label} refuses {refused}")
        return ids

    def _template(self, server, user):
        path = f"/_matrix/federation/v1/make_join/{segment(self.room)}/{segment(user)}?ver={self.version.identifier}"
        return self._signed(server, "GET", path)["event"]

    def _id(self, event):
        return make_event_from_dict(event, self.version).event_id

    def _sign(self, event):
        event["origin_server_ts"] = int(time.time() * 1000)
        add_hashes_and_signatures(self.version, event, self.name, self.key)
        return event, self._id(event)

    def _signed(self, server, method, path, body=None):
        request = {"method": method, "uri": path, "origin": self.name, "destination": server.name}
        if body is not None:
            request["content"] = body
        signature = sign_json(request, self.name, self.key)["signatures"][self.name]["ed25519:server"]
        header = f'X-Matrix origin="{self.name}",destination="{server.name}",key="ed25519:server",sig="{signature}"'
        status, answer = ask(server, method, path, body, {"Authorization": header})
        if status != 200:
            raise RuntimeError(f"{method} {path} at {server.label}: {status} {answer}")
        return answer

    def _keys(self):
        keys = {"ed25519:server": {"key": public_key(self.key)}}
        until = int(time.time() * 1000) + 86_400_000
        statement = {"server_name": self.name, "verify_keys": keys, "old_verify_keys": {}, "valid_until_ts": until}
        return sign_json(statement, self.name, self.key)

    def _answer(self, path, _body):
        """Returns (status, body)."""
        if path == "/_matrix/key/v2/server":
            return 200, self._keys()
        if path.startswith("/_matrix/federation/v1/send/"):
            return 200, {"pdus": {}}
        return 404, {"errcode": "M_UNRECOGNIZED", "error": "not here"}

    def _handler(self):
        outsider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                status, said = outsider._answer(self.path, body)
                said = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_PUT = do_POST = answer  # noqa: N815 - the names that the library calls

            def log_message(self, *_):
                pass

        return Handler


class PolicyServer(Outsider):
    """A policy server that signs every event but those with "spam" in them."""

    def __init__(self, authority):
        self.policy_key = generate_signing_key("policy_server")
        self.asked = []
        super().__init__(authority)

    def setting(self):
        """The content of `m.room.policy`."""
        return {"via": self.name, "public_keys": {"ed25519": public_key(self.policy_key)}}

    def _answer(self, path, body):
        return self._judge(body) if path == "/_matrix/policy/v1/sign" else super()._answer(path, body)

    def _judge(self, event):
        self.asked.append(event)
        if "spam" in json.dumps(event.get("content")):
            return 400, {"errcode": "M_FORBIDDEN", "error": "The guard takes this for spam"}
        event = {key: value for key, value in event.items() if key not in ("signatures", "unsigned")}
        return 200, compute_event_signature(self.version, event, self.name, self.policy_key)
