# SPDX-License-Identifier: Apache-2.0
"""One check in this process: `python -m tests.reliability.child TOPIC NAME`; each row is a JSON line on stdout."""

import importlib
import json
import os
import sys
from dataclasses import asdict


def main(topic: str, name: str) -> None:
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anybody prints is no row
    module = importlib.import_module(f"{__package__}.check_{topic}")
    for row in getattr(module, f"check_{name}")():
        print(json.dumps(asdict(row)), file=rows, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
