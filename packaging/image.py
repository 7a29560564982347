#!/usr/bin/env python3
"""Makes the image that the Containerfile beside this describes, without docker or podman: one layer with what it copies.
The tar is an OCI layout and what `docker load` takes in one, as `docker save` writes them:

    packaging/image.py BINARY amd64|arm64 doorstep.tar
    docker load -i doorstep.tar     # or: podman load -i …, skopeo copy oci-archive:doorstep.tar docker://…

The same binary makes the same bytes, whoever makes it and when."""

import argparse
import hashlib
import io
import json
import pathlib
import re
import shlex
import tarfile

HERE = pathlib.Path(__file__).resolve().parent
# What images have for a date that says nothing.
EPOCH = "1970-01-01T00:00:00Z"


def instructions():
    """Each instruction of the Containerfile: its name, and its words."""
    text = (HERE / "Containerfile").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, rest = line.split(None, 1)
            yield name.upper(), json.loads(rest) if rest.startswith("[") else shlex.split(rest)


def copied(words, binary):
    """What a COPY puts into the layer. What it copies is known here: the binary and an empty folder."""
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    source, target = [word for word in words if not word.startswith("--")]
    entry = tarfile.TarInfo(target.strip("/"))
    entry.mode = int(options["chmod"], 8)
    entry.uid, entry.gid = map(int, options.get("chown", "0:0").split(":"))
    if source == "doorstep":
        entry.size = len(binary)
        return entry, binary
    if source == "data":
        entry.type = tarfile.DIRTYPE
        return entry, None
    raise SystemExit(f"image.py does not know what {source} is")


def described(binary):
    """The layer as a tar, and the configuration of containers."""
    config = {}
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, words in instructions():
            if name == "COPY":
                entry, content = copied(words, binary)
                tar.addfile(entry, io.BytesIO(content) if content else None)
            elif name == "ENTRYPOINT":
                config["Entrypoint"] = words
            elif name == "USER":
                config["User"] = words[0]
            elif name == "STOPSIGNAL":
                config["StopSignal"] = words[0]
            elif name == "VOLUME":
                config["Volumes"] = {word: {} for word in words}
            elif name == "EXPOSE":
                config["ExposedPorts"] = {f"{port}/tcp": {} for port in words}
            elif (name, words) != ("FROM", ["scratch"]):
                raise SystemExit(f"image.py does not know {name} {' '.join(words)}")
    return layer.getvalue(), config


def image(binary, architecture, tag):
    """The files of the archive by their paths."""
    files = {}

    def blob(content):
        digest = hashlib.sha256(content).hexdigest()
        files[f"blobs/sha256/{digest}"] = content
        return {"digest": f"sha256:{digest}", "size": len(content)}

    version = re.search(r'^version = "(.*)"', (HERE.parent / "Cargo.toml").read_text(), re.M).group(1)
    layer, config = described(binary)
    layer = blob(layer)
    config["Labels"] = {
        "org.opencontainers.image.title": "Doorstep",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": version,
    }
    platform = {"architecture": architecture, "os": "linux"}
    if architecture == "arm64":
        platform["variant"] = "v8"
    config = blob(
        to_json(
            {
                **platform,
                "created": EPOCH,
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
                "history": [{"created": EPOCH, "created_by": "packaging/image.py"}],
            }
        )
    )
    kind = "application/vnd.oci.image"
    manifest = blob(
        to_json(
            {
                "schemaVersion": 2,
                "mediaType": f"{kind}.manifest.v1+json",
                "config": {"mediaType": f"{kind}.config.v1+json", **config},
                "layers": [{"mediaType": f"{kind}.layer.v1.tar", **layer}],
            }
        )
    )
    name = {
        "io.containerd.image.name": f"docker.io/library/{tag}",
        "org.opencontainers.image.ref.name": tag.split(":")[1],
    }
    files["index.json"] = to_json(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.index.v1+json",
            "manifests": [
                {"mediaType": f"{kind}.manifest.v1+json", **manifest, "platform": platform, "annotations": name}
            ],
        }
    )
    files["oci-layout"] = to_json({"imageLayoutVersion": "1.0.0"})

    def path(blob):
        return "blobs/sha256/" + blob["digest"].removeprefix("sha256:")

    files["manifest.json"] = to_json([{"Config": path(config), "RepoTags": [tag], "Layers": [path(layer)]}])
    return files


def to_json(value):
    return json.dumps(value, separators=(",", ":")).encode()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("binary", type=pathlib.Path, help="static binary of the architecture")
    arguments.add_argument("architecture", choices=["amd64", "arm64"])
    arguments.add_argument("out", type=pathlib.Path, help="tar to write")
    arguments.add_argument("--tag", default="doorstep:latest")
    asked = arguments.parse_args()
    if not re.fullmatch(r"[a-z0-9._/-]+:[A-Za-z0-9._-]+", asked.tag):
        arguments.error(f"{asked.tag} is not a name and a tag")
    with tarfile.open(asked.out, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path, content in sorted(image(asked.binary.read_bytes(), asked.architecture, asked.tag).items()):
            entry = tarfile.TarInfo(path)
            entry.mode = 0o644
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main()
