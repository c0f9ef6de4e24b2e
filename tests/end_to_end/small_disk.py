"""Runs commands on a small disk: a tmpfs in a mount namespace of this process's own.

Reads a job as a line of JSON and answers with one. PyTorch is imported once; every command is a fork.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import cli

LARGE_KIB = 200_000


def main() -> None:
    disk, streams = map(Path, sys.argv[1:])
    import training.central
    import training.federated.engine  # noqa: F401

    for line in sys.stdin:
        answer = answer_to(json.loads(line), disk, streams)
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer


def answer_to(job: dict, disk: Path, streams: Path) -> dict:
    """Run a command with so much room; if it fails, give room and try what may go on, in turn."""
    mount(disk, LARGE_KIB)
    try:
        shutil.copytree(job["start"], disk, symlinks=True, dirs_exist_ok=True)
        before, used = contents(disk), used_kib(disk)
        mount(disk, max(4, used + job["room"]), "remount")
        first = run(job["words"], disk, streams, job["is_tmp"])
        after, num_kib = contents(disk), used_kib(disk) - used
        mount(disk, LARGE_KIB, "remount")
        again = first
        for words in job["again"]:
            if again["code"] != 0:
                again = run(words, disk, streams, job["is_tmp"])
        finished = contents(disk)
    finally:
        os.chdir("/")
        subprocess.run(["umount", "-l", disk], check=True)
    return {
        "first": first,
        "again": again,
        "before": before,
        "after": after,
        "finished": finished,
        "kib": num_kib,
    }


def mount(disk: Path, kib: int, *options: str) -> None:
    listed = ",".join([f"size={kib}k", *options])
    subprocess.run(["mount", "-t", "tmpfs", "-o", listed, "none", disk], check=True)


def used_kib(disk: Path) -> int:
    return shutil.disk_usage(disk).used // 1024


def contents(disk: Path) -> dict[str, str]:
    return {
        path.relative_to(disk).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(disk.rglob("*"))
    }


def run(words: list[str], disk: Path, streams: Path, is_tmp: bool) -> dict:
    out, err = streams / "out", streams / "err"
    child = os.fork()
    if child == 0:
        os._exit(command(words, disk, out, err, is_tmp))
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "err": err.read_text()}


def command(words: list[str], disk: Path, out: Path, err: Path, is_tmp: bool) -> int:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(disk)
    if is_tmp:
        tempfile.tempdir = str(disk)
    sys.argv = words
    try:
        {"prep": cli.run_prep, "train": cli.run_train}[words[0]]()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001 - this process ends with it
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main()
