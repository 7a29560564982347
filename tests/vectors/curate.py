#!/usr/bin/env python3
"""Make the project's own selection of vectors: curate.py CORPUS_FOLDER

Writes `data/` beside this file: one gzip file per file of the corpus, small enough to live in the repository, with
every kind of case in it. The whole corpus is run by naming its folder in DOORSTEP_VECTORS.

- Small files are kept whole.
- Events: one row for each version and kind.
- Authorisation: of each case the versions between which the verdict changes, the oldest and the newest; every version
  with every group of cases; every disputed row; then more, evenly over the versions, up to the budget.
- State resolution: each scenario with each algorithm, each version; a few of the random ones.

The same corpus gives the same files, byte for byte.
"""
import gzip
import hashlib
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

AUTH_BUDGET = 930_000  # bytes, compressed
ALGORITHM_OF = {"1": "v1", "12": "v2.1"}  # all others: v2


def order(text):
    """An even but repeatable order."""
    return hashlib.sha256(text.encode()).digest()


def small(data):
    return len(gzip.compress(data, 9, mtime=0))


def one_of_each(rows, key):
    found = {}
    for row in rows:
        found.setdefault(key(row), row)
    return list(found.values())


def pick_events(rows):
    # "message-unicode-3/0" and the like are one kind.
    return one_of_each(rows, lambda r: (r["room_version"], re.sub(r"[-\d]*/\d+$", "", r["id"].split("/", 2)[2])))


def pick_auth(files):
    rows = [row for rows in files.values() for row in rows]
    case = {row["id"]: row["id"].split("/", 2)[2] for row in rows}
    by_case = defaultdict(list)
    for row in sorted(rows, key=lambda r: int(r["room_version"])):
        by_case[case[row["id"]]].append(row)
    kept = {row["id"] for row in rows if row.get("disputed")}
    for same in by_case.values():
        verdicts = [row["expect"]["allowed"] for row in same]
        for i, row in enumerate(same):
            changes = i + 1 < len(same) and verdicts[i] != verdicts[i + 1] or i > 0 and verdicts[i] != verdicts[i - 1]
            if changes or i in (0, len(same) - 1):
                kept.add(row["id"])
    groups = one_of_each(sorted(rows, key=lambda r: order(r["id"])), lambda r: (r["room_version"], case[r["id"]].split("/")[0]))
    kept |= {row["id"] for row in groups}
    size = {row["id"]: small(line(row)) * 0.75 for row in rows}  # rows of one file share some of their text
    total = sum(size[i] for i in kept)
    for row in sorted(rows, key=lambda r: order(r["id"])):
        if row["id"] not in kept and total + size[row["id"]] <= AUTH_BUDGET:
            kept.add(row["id"])
            total += size[row["id"]]
    return {name: [row for row in rows if row["id"] in kept] for name, rows in files.items()}


def pick_state(rows):
    name = lambda row: re.sub(r"random-\d+", "random", row["id"].split("/", 2)[2])
    algorithm = lambda row: ALGORITHM_OF.get(row["room_version"], "v2")
    named = [row for row in rows if name(row) != "random"]
    random = [row for row in rows if name(row) == "random"]
    kept = one_of_each(named, lambda r: (algorithm(r), name(r)))
    kept += [row for row in rows if row.get("disputed")]
    for version in {row["room_version"] for row in random}:
        mine = sorted((r for r in random if r["room_version"] == version), key=lambda r: order(r["id"]))
        kept += mine[: 5 if algorithm(mine[0]) != "v2" else 3]
    ids = {row["id"] for row in kept}
    return [row for row in rows if row["id"] in ids]


def line(row):
    return (json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def main():
    corpus, out = Path(sys.argv[1]), Path(__file__).parent / "data"
    out.mkdir(exist_ok=True)
    files = {p.name: [json.loads(text) for text in p.read_text().split("\n") if text] for p in sorted(corpus.glob("*.jsonl"))}
    files["events.jsonl"] = pick_events(files["events.jsonl"])
    files["state-resolution.jsonl"] = pick_state(files["state-resolution.jsonl"])
    files.update(pick_auth({name: rows for name, rows in files.items() if name.startswith("auth-")}))
    data = {name: b"".join(map(line, rows)) for name, rows in files.items()}
    data.update({name: (corpus / name).read_bytes() for name in ("keys.json", "spec.json")})
    total = 0
    for name, content in data.items():
        packed = gzip.compress(content, 9, mtime=0)
        (out / f"{name}.gz").write_bytes(packed)
        total += len(packed)
        print(f"{name:<26} {len(files.get(name, [])):>5} rows {len(packed):>8} bytes")
    print(f"{'all':<26} {sum(map(len, files.values())):>5} rows {total:>8} bytes")


if __name__ == "__main__":
    main()
