"""What matrix-js-sdk shows as unread: by push rules, receipts, threads and redactions."""

import subprocess

import client
from devices import Node
from flows import demand


def js_sdk_counts(server, unique, speaking_reads):
    """Two users, one of them with two devices, in a process of node."""
    words = [server.exchanges.url, "yes" if speaking_reads else "no"]
    for name in ("alice", "bob"):
        account = client.register(server, f"unread-{name}-{unique}")
        words += [account.id, account.password]
    command = [*Node.command, "unread.mjs", *words]
    try:
        done = subprocess.run(command, cwd=Node.folder, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired as error:
        raise client.Unmet("matrix-js-sdk came to no end within 240 s") from error
    demand(done.returncode == 0, f"matrix-js-sdk: {done.stderr.strip() or done.stdout.strip()}")


# (client, title, function), each with one server.
UNREAD = [("js", "unread and highlighted: rules, devices, threads, redactions", js_sdk_counts)]
