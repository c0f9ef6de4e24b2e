"""Damage to JSON documents and logs: manifests, what a run's folder holds, journals."""

import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.mutation.mutant import Expected, Mutant, flip_bit, truncate

MANIFEST_READERS = (
    *("verify", "show", "rerun", "reuse", "fed", "eval", "nnunet", "verify-deep", "show-html"),
    *("central", "resume", "report"),
)
RUN_READERS = ("resume", "eval", "predict", "report", "watch", "export")
Edit = Callable[[Any, Random], Any]
"""Changes a document in place, or returns another one."""

JUNK: tuple[Any, ...] = (
    None,
    -1,
    10**30,
    1.5,
    float("nan"),
    "",
    "x",
    "../../../escaped",
    [],
    {},
    True,
    [[1]],
)
"""What may stand where something else belongs."""


def edit_json(world: Path, random: Random, file: str, change: Edit) -> None:
    """Change a document and write it back."""
    path = world / file
    document = json.loads(path.read_text(encoding="utf-8"))
    changed = change(document, random)
    path.write_text(
        json.dumps(document if changed is None else changed, indent=1), encoding="utf-8"
    )


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List every place of a document, of a list's items the first and the last."""
    if isinstance(document, dict):
        keys: list[Any] = list(document)
    else:
        keys = sorted({0, len(document) - 1}) if isinstance(document, list) and document else []
    for key in keys:
        yield (*path, key)
        yield from places(document[key], (*path, key))


def _holder(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        document = document[key]
    return document


def remove_one(document: Any, random: Random) -> None:
    place = random.choice(list(places(document)))
    del _holder(document, place)[place[-1]]


def replace_one(document: Any, random: Random) -> None:
    """Put junk of another type than before."""
    place = random.choice(list(places(document)))
    holder, key = _holder(document, place), place[-1]
    junk = [value for value in JUNK if type(value) is not type(holder[key])]
    holder[key] = random.choice(junk)


def add_one(document: Any, random: Random) -> None:
    """Add a field that nobody knows."""
    holders = [p for p in places(document) if isinstance(_holder(document, p), dict)]
    _holder(document, random.choice(holders))["unknown_field"] = 1


def assign(place: str, value: Any) -> Edit:
    """Set one field, named with dots; numbers are positions in lists."""
    keys = tuple(int(key) if key.lstrip("-").isdigit() else key for key in place.split("."))

    def change(document: Any, random: Random) -> None:
        _holder(document, keys)[keys[-1]] = value

    return change


def swap_cases(field: str) -> Edit:
    """Exchange a field of the first case with the next one that differs."""

    def change(document: Any, random: Random) -> None:
        first, *others = document["cases"]
        other = next(case for case in others if case[field] != first[field])
        first[field], other[field] = other[field], first[field]

    return change


def swap_digests(document: Any, random: Random) -> None:
    first, second = document["shards"][:2]
    first["sha256"], second["sha256"] = second["sha256"], first["sha256"]


def drop_case(document: Any, random: Random) -> None:
    del document["cases"][random.randrange(len(document["cases"]))]


def double_case(document: Any, random: Random) -> None:
    document["cases"].append(document["cases"][0])


def drop_shard(document: Any, random: Random) -> None:
    del document["shards"][0]


def as_utf16(world: Path, random: Random, file: str) -> None:
    path = world / file
    path.write_bytes(path.read_text(encoding="utf-8").encode("utf-16"))


def rewrite(world: Path, random: Random, file: str, content: bytes) -> None:
    (world / file).write_bytes(content)


def double_key(world: Path, random: Random, file: str) -> None:
    """Say the first key twice, with another value."""
    text = (world / file).read_text(encoding="utf-8")
    key = next(iter(json.loads(text)))
    (world / file).write_text(text.replace("{", f'{{"{key}": 1,', 1), encoding="utf-8")


def bit(world: Path, random: Random, file: str) -> None:
    flip_bit(world / file, random)


def cut(world: Path, random: Random, file: str) -> None:
    truncate(world / file, random)


def foreign_line(world: Path, random: Random, file: str, line: bytes) -> None:
    """Put a line that is no record between those of a log."""
    lines = (world / file).read_bytes().splitlines(keepends=True)
    lines.insert(random.randrange(len(lines) + 1), line + b"\n")
    (world / file).write_bytes(b"".join(lines))


def edit_line(world: Path, random: Random, file: str, change: Edit) -> None:
    lines = (world / file).read_text(encoding="utf-8").splitlines()
    position = random.randrange(len(lines))
    record = json.loads(lines[position])
    change(record, random)
    lines[position] = json.dumps(record)
    (world / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def pad_metadata(world: Path, random: Random, file: str, change: Edit) -> None:
    """Change the header of a safetensors file."""
    content = (world / file).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    changed = change(header, random)
    text = json.dumps(header if changed is None else changed).encode()
    text += b" " * (-len(text) % 8)
    (world / file).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def tensor_bit(world: Path, random: Random, file: str) -> None:
    """Flip a bit of a tensor."""
    (length,) = struct.unpack("<Q", (world / file).read_bytes()[:8])
    flip_bit(world / file, random, 8 + length)


def header_bit(world: Path, random: Random, file: str) -> None:
    flip_bit(world / file, random, 0, 512)


MANIFEST = "cache/manifest.json"
MANIFEST_EDITS: dict[str, Edit] = {
    "patients swapped": swap_cases("patient_id"),
    "ids swapped": swap_cases("case_id"),
    "shards swapped": swap_cases("shard"),
    "clients swapped": swap_cases("client"),
    "keys swapped": swap_cases("key"),
    "slices swapped": swap_cases("num_slices"),
    "label voxels swapped": swap_cases("label_voxels"),
    "digests swapped": swap_digests,
    "case dropped": drop_case,
    "case doubled": double_case,
    "shard dropped": drop_shard,
    "leaks": assign("leakage.also_in_training", 3),
    "leaks of a cohort": assign("leakage.cohorts.brats2018.also_in_training", 1),
    "test patients": assign("leakage.test_patients", 1000),
    "test patients of a cohort": assign("leakage.cohorts.brats2018.test_patients", 1000),
    "leakage protocol": assign("leakage.protocol", "paper"),
    "clients": assign("options.clients", 1),
    "clients many": assign("options.clients", 10**9),
    "no clients": assign("options.clients", 0),
    "fingerprint": assign("fingerprint", "0" * 64),
    "version 1": assign("schema_version", 1),
    "version 3": assign("schema_version", 3),
    "version true": assign("schema_version", True),
    "plane": assign("plane", [240, 240]),
    "plane negative": assign("plane", [-1, 18]),
    "modalities": assign("modalities", ["t1", "t1", "t2", "flair"]),
    "id escapes": assign("cases.0.case_id", "../../../escaped"),
    "id absolute": assign("cases.0.case_id", "/etc/passwd"),
    "id long": assign("cases.0.case_id", "x" * 5_000_000),
    "id empty": assign("cases.0.case_id", ""),
    "id with zero byte": assign("cases.0.case_id", "a\0b"),
    "id of control characters": assign("cases.0.case_id", "\x1b[2J\nerror"),
    "patient long": assign("cases.0.patient_id", "x" * 100_000),
    "path escapes": assign("shards.0.path", "../outside/shard.h5"),
    "path absolute": assign("shards.0.path", "/etc/passwd"),
    "path of zero byte": assign("shards.0.path", "a\0b"),
    "path a folder": assign("shards.0.path", "clients"),
    "shard of a case escapes": assign("cases.0.shard", "../outside/shard.h5"),
    "digest": assign("shards.0.sha256", "0" * 64),
    "digest short": assign("shards.0.sha256", "abc"),
    "bytes": assign("shards.0.bytes", 1),
    "rows": assign("shards.0.rows", 1),
    "slices": assign("cases.0.num_slices", 10**12),
    "client of a case": assign("cases.0.client", 77),
    "split of a case": assign("cases.0.split", "validation"),
    "a client's cases": assign("partition.clients.0.cases", 99),
    "a client's slices": assign("partition.clients.0.slices", 99),
    "a client's number": assign("partition.clients.0.client", 9),
    "partition sizes": assign("partition.sizes", [1]),
    "cohort cases": assign("cohorts.brats2018.cases", 99),
    "alpha nan": assign("options.alpha", float("nan")),
    "nothing": lambda document, random: {},
    "a list": lambda document, random: [],
    "null": lambda document, random: json.loads("0"),
}

CONFIG_EDITS: dict[str, Edit] = {
    "model": assign("model", "nobody"),
    "rounds text": assign("rounds", "2"),
    "rounds zero": assign("rounds", 0),
    "learning rate nan": assign("learning_rate", float("nan")),
    "crop odd": assign("crop", 33),
    "device": assign("device", "cuda:99"),
    "strategy": assign("strategy", "nobody"),
    "strategy option": assign("strategy_options", {"mu": "1"}),
    "weights": assign("weights", "/etc/passwd"),
    "target": assign("target", "regions"),
    "nothing": lambda document, random: {},
    "a list": lambda document, random: [],
}

HEADER_EDITS: dict[str, Edit] = {
    "no metadata": lambda header, random: {k: v for k, v in header.items() if k != "__metadata__"},
    "empty metadata": assign("__metadata__", {}),
    "round text": assign("__metadata__", {"round": "x", "position": "x"}),
    "round huge": assign("__metadata__", {"round": "9" * 5000, "position": "{}"}),
    "position a list": assign("__metadata__", {"round": "1", "position": "[]"}),
    "tensor dropped": lambda header, random: header.pop(max(header)) and None,
    "tensor renamed": lambda header, random: header.update(x=header.pop(max(header))),
    "shape huge": lambda header, random: header[max(header)].update(shape=[2**40, 2**20]),
}

LINES: dict[str, bytes] = {
    "foreign bytes": b"\xff\xfe\x00rubbish",
    "number": b"123",
    "null": b"null",
    "empty object": b"{}",
    "list": b"[1, 2]",
    "nan": b'{"event": NaN, "time": NaN}',
    "unknown event": b'{"event": "new", "time": 1}',
    "round without fields": b'{"event": "round", "time": 1, "round": 1}',
    "deep": b"[" * 5000,
    "long": b"x" * 2_000_000,
}
LOGS = {
    "cache/prep.log.jsonl": ("rerun", "verify", "reuse"),
    "run/log.jsonl": ("watch", "resume", "report"),
}
LOG_RECORDS: dict[str, tuple[Edit, Expected]] = {
    "field dropped": (remove_one, "anything sound"),
    "field junk": (replace_one, "anything sound"),
    "field added": (add_one, "refused or same"),
}


def _of_any_document(
    part: str, file: str, commands: tuple[str, ...], repeats: int
) -> Iterator[Mutant]:
    """Yield what can be done to any JSON document."""
    once: dict[str, Any] = {
        "utf-16": as_utf16,
        "empty": partial(rewrite, content=b""),
        "zeros": partial(rewrite, content=bytes(4096)),
        "deep": partial(rewrite, content=b"[" * 100_000),
        "key twice": double_key,
    }
    chance: dict[str, tuple[Any, Expected]] = {
        "cut": (cut, "refused or same"),
        "bit": (bit, "anything sound"),
        "removed": (partial(edit_json, change=remove_one), "anything sound"),
        "junk": (partial(edit_json, change=replace_one), "anything sound"),
        "added": (partial(edit_json, change=add_one), "refused or same"),
    }
    stem = Path(file).name
    for kind, damage in once.items():
        yield Mutant(part, f"{stem} {kind}", 0, partial(damage, file=file), commands)
    for kind, (damage, expected) in chance.items():
        for k in range(repeats):
            own = partial(damage, file=file)
            yield Mutant(part, f"{stem} {kind}", k, own, commands, expected)


def manifest_mutants(repeats: int) -> Iterator[Mutant]:
    yield from _of_any_document("manifest", MANIFEST, MANIFEST_READERS, repeats)
    for kind, change in MANIFEST_EDITS.items():
        damage = partial(edit_json, file=MANIFEST, change=change)
        yield Mutant("manifest", kind, 0, damage, MANIFEST_READERS)


def run_mutants(repeats: int) -> Iterator[Mutant]:
    for name in ("config.json", "provenance.json", "preprocessing.json"):
        yield from _of_any_document("run", f"run/{name}", RUN_READERS, repeats)
    yield from _of_any_document("run", "run/evaluation.json", ("report", "eval", "watch"), repeats)
    for kind, change in CONFIG_EDITS.items():
        damage = partial(edit_json, file="run/config.json", change=change)
        yield Mutant("run", f"config {kind}", 0, damage, RUN_READERS, "anything sound")
    weights = {
        "model.safetensors": ("eval", "predict", "report", "export"),
        "resume.safetensors": ("resume",),
    }
    for name, commands in weights.items():
        chance = {"cut": cut, "header bit": header_bit, "tensor bit": tensor_bit}
        for kind, damage in chance.items():
            own = partial(damage, file=f"run/{name}")
            yield from (Mutant("run", f"{name} {kind}", k, own, commands) for k in range(repeats))
        for kind, change in HEADER_EDITS.items():
            own = partial(pad_metadata, file=f"run/{name}", change=change)
            yield Mutant("run", f"{name} {kind}", 0, own, commands)
    own = partial(tensor_bit, file="central/resume.safetensors")
    for k in range(repeats):
        yield Mutant("run", "central tensor bit", k, own, ("resume-central",))


def log_mutants(repeats: int) -> Iterator[Mutant]:
    for file, commands in LOGS.items():
        stem = Path(file).name
        for kind, line in LINES.items():
            damage = partial(foreign_line, file=file, line=line)
            yield Mutant("log", f"{stem} {kind}", 0, damage, commands)
        for kind, (change, expected) in LOG_RECORDS.items():
            own = partial(edit_line, file=file, change=change)
            for k in range(repeats):
                yield Mutant("log", f"{stem} {kind}", k, own, commands, expected)
        yield Mutant(
            "log",
            f"{stem} empty",
            0,
            partial(rewrite, file=file, content=b""),
            commands,
            "anything sound",
        )
        yield Mutant(
            "log", f"{stem} utf-16", 0, partial(as_utf16, file=file), commands, "anything sound"
        )
        for k in range(repeats):
            yield Mutant(
                "log", f"{stem} cut", k, partial(cut, file=file), commands, "anything sound"
            )
            yield Mutant(
                "log", f"{stem} bit", k, partial(bit, file=file), commands, "anything sound"
            )
