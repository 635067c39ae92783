# SPDX-License-Identifier: Apache-2.0
"""What commands give, as one JSON object of digests: `python -m tests.reliability.surroundings INPUTS OUT [CLOCK]`.

CLOCK backwards: every look at the clock finds it earlier than the one before, and files are from the year 2100.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from srr_fast.cli import command as cli

from . import kills

TEXTS = ["Ich öffne das Glas.", "瓶を開ける。", "İstanbul'da süt iç.", "Twist the lid."]


def main(inputs: str, out: str, clock: str = "") -> None:
    folder = Path(out)
    if clock == "backwards":
        ticks = itertools.count()
        time.time = lambda: 1e9 - next(ticks)  # type: ignore[assignment]
        for path in Path(inputs).iterdir():
            os.utime(path, (4102444800, 4102444800))
    commands = kills.commands(Path(inputs))
    for name in ("extract", "rank", "sample"):
        (folder / name).mkdir(parents=True)
        with open(os.devnull, "w") as silence:
            stdout, sys.stdout = sys.stdout, silence
            status = cli.main(list(commands[name](folder / name)))
            sys.stdout = stdout
        assert status == 0, name
    found = {name: hashlib.sha256(data).hexdigest() for name, data in kills.files(folder).items()}
    for how in ("file", "stdin"):
        command = ["rank", "--instruction", "Wie öffne ich das Glas?", "--format", "json", "--candidates"]
        data = "\n".join(TEXTS).encode()
        (folder / "texts.txt").write_bytes(data)
        given = [str(folder / "texts.txt")] if how == "file" else ["-"]
        run = [sys.executable, "-m", "srr_fast.cli", *command, *given]
        said = subprocess.run([_bytes(part) for part in run], input=data, capture_output=True, check=True).stdout
        assert sorted(row["document"] for row in json.loads(said)["results"]) == sorted(TEXTS)
        found[f"rank of {how}"] = hashlib.sha256(said).hexdigest()
    print(json.dumps(found))


def _bytes(argument: str) -> bytes:
    """As somebody types it in this locale; in an ASCII one, as UTF-8."""
    try:
        return os.fsencode(argument)
    except UnicodeEncodeError:
        return argument.encode()


if __name__ == "__main__":
    main(*sys.argv[1:])
