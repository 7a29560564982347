"""Dendrite as a peer: the server, and what it never does, so that no flow asks it of it."""

import base64
import os
import secrets

import flows
from servers import SHARED_SECRET, Server

# Of each flow that cannot be: a part of its title, Dendrite's part in it, room versions, and why. Seen of Dendrite 0.13.8; with
# Synapse 1.163 in Doorstep's place as well for rescinded invites, several joins at once, redactions, invites by third party
# and upgrades.
ANY, EITHER = None, ("host", "guest")
NEVER = [
    ("knock", EITHER, ANY, "knocks, or lets others knock"),
    ("meeting", EITHER, ANY, "knocks, or lets others knock"),
    ("an invite is rescinded", EITHER, ANY, "tells or hears that an invite is taken back"),
    ("an invited guest is banned", EITHER, ANY, "tells or hears that who is invited is banned"),
    ("an invite to nobody", ("guest",), ANY, "refuses an invite to a user that it does not have"),
    ("an e-mail address is invited", EITHER, ANY, "makes a true invite of one by third party"),
    ("several guests join", ("guest",), ANY, "comes into a room with several users at once"),
    ("the event nearest to a time", EITHER, ANY, "finds events by their time"),
    ("redacted by its author", EITHER, ["11"], "redacts in rooms of version 11"),
    ("read back to its beginning", ("guest",), ANY, "shows each event of a long history once"),
    ("a room with a policy server", EITHER, ANY, "asks policy servers"),
    ("an administrator", ("host",), ANY, "has the administrators' tools of Synapse"),
    ("a public room is upgraded", ("host",), ANY, "tells of all that it changes in a room that it replaces"),
    ("the guest's server upgrades", ("guest",), ANY, "tells of all that it changes in a room that it replaces"),
    ("an invite-only room is upgraded", ("host",), ANY, "lets the members of an invite-only room into its successor"),
    ("upgrade", EITHER, ["11"], "knows rooms of version 12"),
    ("", EITHER, ["12"], "knows rooms of version 12"),
]
flows.LACKS["dendrite"] = set()


def why_never(title, version, host, guest):
    """Why this flow cannot be between these two, if it cannot."""
    parts = [part for part, server in (("host", host), ("guest", guest)) if server.kind == "dendrite"]
    for words, of, versions, why in NEVER:
        if words in title and (versions is ANY or version in versions) and any(part in of for part in parts):
            return why
    return None


class Dendrite(Server):
    kind = "dendrite"
    program = None  # set once by the command line

    def __init__(self, label, folder, authority, gated=False, name=None):
        super().__init__(label, folder, authority, gated, name)
        seed = base64.b64encode(secrets.token_bytes(32)).decode()
        (self.folder / "signing.pem").write_text(
            "-----BEGIN MATRIX PRIVATE KEY-----\n"
            f"Key-ID: ed25519:{secrets.token_hex(4)}\n\n{seed}\n"
            "-----END MATRIX PRIVATE KEY-----\n"
        )
        (self.folder / "dendrite.yaml").write_text(
            f"""
version: 2
global:
  server_name: "{self.name}"
  private_key: {self.folder}/signing.pem
  trusted_third_party_id_servers: []
  presence: {{enable_inbound: true, enable_outbound: true}}
  jetstream: {{storage_path: {self.folder}/jetstream, topic_prefix: Dendrite, in_memory: true}}
client_api:
  registration_disabled: true
  registration_shared_secret: "{SHARED_SECRET}"
  rate_limiting: {{enabled: false}}
federation_api:
  database: {{connection_string: "file:{self.folder}/federation.db"}}
  key_perspectives: []
app_service_api:
  database: {{connection_string: "file:{self.folder}/appservice.db"}}
key_server:
  database: {{connection_string: "file:{self.folder}/keys.db"}}
media_api:
  database: {{connection_string: "file:{self.folder}/media.db"}}
  base_path: {self.folder}/media
mscs:
  database: {{connection_string: "file:{self.folder}/mscs.db"}}
room_server:
  database: {{connection_string: "file:{self.folder}/rooms.db"}}
sync_api:
  database: {{connection_string: "file:{self.folder}/sync.db"}}
user_api:
  account_database: {{connection_string: "file:{self.folder}/accounts.db"}}
  device_database: {{connection_string: "file:{self.folder}/devices.db"}}
  bcrypt_cost: 4
relay_api:
  database: {{connection_string: "file:{self.folder}/relay.db"}}
logging: [{{type: std, level: warn}}]
"""
        )

    def environment(self):
        # What Go's library trusts besides its own list.
        return {**os.environ, "SSL_CERT_FILE": str(self.authority.ca)}

    def command(self):
        return [
            str(self.program),
            "-config", str(self.folder / "dendrite.yaml"),
            "-http-bind-address", f"127.0.0.1:{self.client_port}",
            "-https-bind-address", f"127.0.0.1:{self.federation_port}",
            "-tls-cert", str(self.authority.certificate),
            "-tls-key", str(self.authority.key),
        ]  # fmt: skip
