#!/usr/bin/env python3
"""What run.sh asks of packages: that a server answers, what system calls it makes, and that an image is what it says.

check.py answers [--port N] [--beside 'COMMAND'] COMMAND…   starts a server, waits for READY=1, asks it, has it stop
check.py calls TRACE UNIT                        what a trace of strace has is what the unit's SystemCallFilter allows
check.py image TAR ARCHITECTURE FOLDER           the archive is whole; its layer goes to FOLDER; prints its entry point
"""

import hashlib
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import urllib.request

# Far longer than a start takes, under an emulator too.
PATIENCE_SECONDS = 120


def answers(arguments):
    port, beside = None, []
    while arguments[0].startswith("--"):
        option, value, *arguments = arguments
        if option == "--port":
            port = int(value)
        elif option == "--beside":
            beside.append(shlex.split(value))
        else:
            raise SystemExit(f"no such option: {option}")
    command = arguments
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [*command, "--listen", f"127.0.0.1:{port}"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        # Abstract, so that it is there in another root too.
        name = f"doorstep-packaging-{os.getpid()}"
        told.bind(f"\0{name}")
        told.settimeout(PATIENCE_SECONDS)
        server = subprocess.Popen(command, env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": f"@{name}"})
        try:
            said = told.recv(256)
            assert said == b"READY=1", f"systemd is told {said}"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_matrix/client/versions", timeout=30) as answer:
                assert "v1.11" in json.load(answer)["versions"]
            for also in beside:
                subprocess.run(also, check=True, timeout=PATIENCE_SECONDS)
            server.send_signal(signal.SIGTERM)
            said = told.recv(256)
            assert said == b"STOPPING=1", f"systemd is told {said}"
            assert server.wait(PATIENCE_SECONDS) == 0, f"it ended with {server.returncode}"
        except TimeoutError:
            raise SystemExit(f"nothing was heard of {shlex.join(command)}") from None
        finally:
            if server.poll() is None:
                server.kill()
    print(f"answers on port {port}: {shlex.join(command)}")


def filter_sets():
    """The sets of systemd by their names, as `systemd-analyze syscall-filter` prints them."""
    command = ["systemd-analyze", "syscall-filter", "--no-pager"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    # The list of what is in no set, behind the last set, is none.
    sets, words = {}, None
    for line in re.sub(r"\x1b\[[0-9;]*m", "", printed.stdout).splitlines():
        word = line.split("#")[0].strip()
        if line.startswith("@"):
            words = sets.setdefault(word, [])
        elif not line.startswith(" "):
            words = None
        elif word and words is not None:
            words.append(word)
    return sets


def calls(trace, unit):
    sets = filter_sets()

    def members(word):
        return set().union(*map(members, sets[word])) if word.startswith("@") else {word}

    allowed = set()
    for line in pathlib.Path(unit).read_text().splitlines():
        if line.startswith("SystemCallFilter="):
            words = line.split("=", 1)[1]
            listed = set().union(*map(members, words.removeprefix("~").split()))
            allowed = allowed - listed if words.startswith("~") else allowed | listed
    made = set(re.findall(r"^(?:\d+ +)?([a-z0-9_]+)\(", pathlib.Path(trace).read_text(), re.M))
    assert {"openat", "accept4", "fdatasync"} & made and len(made) > 30, f"that is no trace of a server: {made}"
    # execve is the tracer's own, and systemd's.
    refused = made - allowed - {"execve"}
    assert not refused, f"the unit refuses {sorted(refused)}"
    print(f"{len(made)} system calls, all of them among the {len(allowed)} that the unit allows")


def image(tar, architecture, folder):
    with tarfile.open(tar) as archive:
        files = {entry.name: archive.extractfile(entry).read() for entry in archive.getmembers()}
    for path, content in files.items():
        if path.startswith("blobs/"):
            assert path == "blobs/sha256/" + hashlib.sha256(content).hexdigest(), f"{path} has other bytes"
    named = {"oci-layout", "index.json", "manifest.json"}

    def blob(descriptor):
        path = descriptor["digest"].replace("sha256:", "blobs/sha256/")
        assert len(files[path]) == descriptor["size"], f"{path} has another size"
        named.add(path)
        return files[path]

    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["platform"]["architecture"] == architecture and entry["platform"]["os"] == "linux"
    manifest = json.loads(blob(entry))
    assert manifest["mediaType"] == entry["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    config = json.loads(blob(manifest["config"]))
    assert config["architecture"] == architecture
    (layer,) = map(blob, manifest["layers"])
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    # The same for `docker load`.
    (docker,) = json.loads(files["manifest.json"])
    assert files[docker["Config"]] == files[manifest["config"]["digest"].replace("sha256:", "blobs/sha256/")]
    assert [files[path] for path in docker["Layers"]] == [layer]
    assert named == set(files), f"nobody names {set(files) - named}"

    layer_file = pathlib.Path(folder) / "layer.tar"
    layer_file.write_bytes(layer)
    root = pathlib.Path(folder) / "root"
    root.mkdir()
    with tarfile.open(layer_file) as content:
        content.extractall(root, numeric_owner=True)
    layer_file.unlink()
    there = {path.name: path.stat() for path in root.iterdir()}
    assert set(there) == {"doorstep", "data"}, f"in the image is {set(there)}"
    assert stat.S_IMODE(there["doorstep"].st_mode) == 0o755 and there["doorstep"].st_uid == 0
    user = f"{there['data'].st_uid}:{there['data'].st_gid}"
    assert config["config"]["User"] == user and user != "0:0" and stat.S_IMODE(there["data"].st_mode) == 0o700
    print(user, shlex.join(config["config"]["Entrypoint"]))


if __name__ == "__main__":
    checks = {"answers": lambda *rest: answers(list(rest)), "calls": calls, "image": image}
    if len(sys.argv) < 3 or sys.argv[1] not in checks:
        raise SystemExit(__doc__)
    checks[sys.argv[1]](*sys.argv[2:])
