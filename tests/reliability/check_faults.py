# SPDX-License-Identifier: Apache-2.0
"""Kills, full disks, exceptions in the middle, no memory, odd clocks and locales."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .row import Row

LIMIT_S = 1500
KILLS = 24
MEMORY_LIMITS = 16
ROOT = Path(__file__).parents[2]


def check_kills() -> Iterator[Row]:
    from . import kills

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = Path(tempfile.mkdtemp())
    kills.write_inputs(folder)
    for name, arguments in kills.commands(folder).items():
        found = kills.killed_and_run_again(name, arguments, folder, kills=KILLS)
        yield Row(
            f"`srr-fast {name}` killed (-9) at random moments, then run again",
            f"{found.kills} kills, {len(found.differing)} differing files after {found.runs} reruns"
            + "".join(f"; {what}" for what in found.differing[:3]),
            f"at least {KILLS} kills, every file byte for byte that of an undisturbed run, nothing left over",
            found.kills >= KILLS and not found.differing,
        )
    shutil.rmtree(folder)


def check_ray_kills() -> Iterator[Row]:
    what = "`srr-fast rank --ray` on two actors, the driver killed (-9) at random moments, then run again"
    goal = "every file byte for byte that of a run in one process"
    if importlib.util.find_spec("ray") is None:
        yield Row(what, "not run: ray is not installed", goal, True)
        return
    from srr_fast.ray_shards import run
    from srr_fast.shards import Job

    from . import kills

    folder = Path(tempfile.mkdtemp())
    kills.write_inputs(folder, 400)
    source = str(folder / "in.jsonl")
    run(Job(source, str(folder / "whole")), 0)
    want = kills.files(folder / "whole")
    command = [sys.executable, "-m", "srr_fast.cli", "rank", "--ray", source, str(folder / "out"), "--actors", "2"]
    rng, hits = random.Random(0), 0
    for attempt in range(4):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        if attempt < 3:
            _until_there(folder / "out", attempt + 1, process)
            time.sleep(rng.uniform(0, 0.5))
            process.kill()
        process.wait(timeout=400)
        hits += process.returncode == -signal.SIGKILL
    time.sleep(5)  # for actors of killed drivers, which die soon after them
    got = kills.files(folder / "out")
    differing = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
    yield Row(what, f"{hits} kills, {len(differing)} of {len(want)} files differ", goal, hits > 0 and not differing)
    shutil.rmtree(folder)


def _until_there(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Waits for so many files of results: a run that is over cannot be killed."""
    end = time.monotonic() + 120
    while process.poll() is None and len(list(folder.glob("[!.]*"))) < count and time.monotonic() < end:
        time.sleep(0.05)


def check_full_disk() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.reliability.disk_full", folder]
        mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=16m tmpfs "$0" && exec "$@"', folder]
        allowed = subprocess.run([*mount, "true"], capture_output=True, check=False).returncode == 0
        for found in _printed([*mount, *command] if allowed else command):
            where = "a full tmpfs" if found["mount"] else "files that cannot grow"
            yield Row(
                f"{found['name']} on {where}",
                f"full {found['times']} times, {_faults(found['wrong'])}",
                "one line that names the file, nothing half-written, what was there intact, right once there is space",
                found["times"] > 0 and not found["wrong"],
            )


def check_exceptions() -> Iterator[Row]:
    from . import raising

    found = raising.sweep()
    yield Row(
        "an exception out of every forward, logits processor and criterion of `BestOfN.generate` in turn",
        f"{found.raised} raised, {_faults(found.wrong)}",
        "it comes out, no hook stays on the model, the next call gives the same candidates",
        found.raised > 20 and not found.wrong,
    )


def check_memory() -> Iterator[Row]:
    for found in _printed([sys.executable, "-m", "tests.reliability.memory_limit", str(MEMORY_LIMITS)]):
        yield Row(
            f"{found['name']} under {found['limits']} limits of address space",
            f"{found['failed']} calls failed, {_faults(found['wrong'])}",
            "MemoryError or torch's own, the process lives, the same call gives the same bits once there is memory",
            found["failed"] > 0 and not found["wrong"],
        )


def check_surroundings() -> Iterator[Row]:
    from . import kills

    base = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "TZ", "PYTHONUTF8"))
    }
    base |= {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        variants = {
            "the year 2100 in a time zone of +14 h, the clock running backwards": {"TZ": "Pacific/Kiritimati"},
            "an ASCII locale (LC_ALL=C, no UTF-8 mode)": plain | {"LC_ALL": "C"},
            "another hash seed": {"PYTHONHASHSEED": "1"},
        }
        turkish = ["localedef", "-i", "tr_TR", "-f", "ISO-8859-9", str(folder / "tr_TR.ISO-8859-9")]
        if shutil.which("localedef") and subprocess.run(turkish, capture_output=True, check=False).returncode <= 1:
            variants["a Turkish locale (tr_TR.ISO-8859-9)"] = plain | {"LC_ALL": "tr_TR.ISO-8859-9", "LOCPATH": place}
        kills.write_inputs(folder, 40)
        want = _digests(folder, "base", base)
        for number, (name, change) in enumerate(variants.items()):
            clock = ["backwards"] if "backwards" in name else []
            try:
                got = _digests(folder, str(number), base | change, *clock)
            except subprocess.CalledProcessError as error:
                yield Row(f"extract, rank, sample in {name}", error.stderr[-300:].replace("\n", " "), "they run", False)
                continue
            differing = sorted(key for key in want.keys() | got.keys() if want.get(key) != got.get(key))
            yield Row(
                f"extract, rank and sample of texts in four languages in {name}",
                f"{len(differing)} of {len(want)} outputs differ" + "".join(f"; {key}" for key in differing[:3]),
                "byte for byte what they are in a UTF-8 locale",
                not differing and len(want) > 5,
            )


def _digests(folder: Path, name: str, environment: dict[str, str], *options: str) -> dict[str, str]:
    command = [
        sys.executable,
        "-m",
        "tests.reliability.surroundings",
        str(folder),
        str(folder / "out" / name),
        *options,
    ]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def _faults(wrong: list[str]) -> str:
    return "; ".join([f"{len(wrong)} faults", *wrong[:2]])


def _printed(command: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects that a command prints, one a line. Raises CalledProcessError when it does not end well."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
