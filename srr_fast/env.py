# SPDX-License-Identifier: Apache-2.0
"""``python -m srr_fast.env``: what is installed, what was built, what not and why.

Imports the standard library only, so that it still reports when the installation is broken.
"""

from __future__ import annotations

import os
import platform
import sys
import warnings
from importlib import import_module, metadata
from pathlib import Path

PACKAGES = ("srr_fast", "torch", "transformers", "safetensors", "huggingface_hub", "numpy", "pybind11", "ninja")


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def report() -> list[tuple[str, str]]:
    """(what, value) pairs, in the order they are printed."""
    rows = [("python", f"{platform.python_version()} ({sys.executable})"), ("platform", platform.platform())]
    rows.append(("cpu", f"{cpu_name()}, {os.cpu_count()} cores"))
    for name in PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    rows.append(("SRR_FAST_BACKEND", os.environ.get("SRR_FAST_BACKEND", "unset")))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            native = import_module("srr_fast._native")
    except Exception as error:
        rows.append(("native extension", f"cannot be asked: {type(error).__name__}: {error}"))
        return rows
    if native.extension is None:
        rows.append(("native extension", f"not loaded: {native.missing_reason}"))
        rows.append(("cpu is served by", "the PyTorch reference"))
    else:
        info = native.extension.build_info()
        rows.append(("native extension", f"{native.extension.__file__}"))
        rows.append(("built with", f"gcc {info['compiler']}, torch {info['torch']}"))
        if (note := native.build_note()) is not None:
            rows.append(("left out by the build", note))
        rows.append(("cpu is served by", f"native kernels, {info['cpu_isa']} (built: {', '.join(info['cpu_isas'])})"))
    torch = import_module("torch")
    kernels = "native kernels" if "cuda" in native.devices else "the PyTorch reference"
    if native.extension is not None and "cuda" not in native.devices:
        kernels += " (the extension was built without CUDA: torch is a CPU build, or no nvcc was found)"
    found = "no CUDA device" if not torch.cuda.is_available() else torch.cuda.get_device_name()
    rows.append(("cuda is served by", f"{kernels}; {found}"))
    return rows


def main() -> int:
    rows = report()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
