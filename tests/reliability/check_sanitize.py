# SPDX-License-Identifier: Apache-2.0
"""The kernels, the CUDA kernels on the CPU and the extension under sanitizers, and faults that these must find."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .row import Row

LIMIT_S = 1500.0
ROOT = Path(__file__).parents[2]
REPORT = re.compile(r"ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error:")
PLANTED = "planted|cuda_on_cpu_(right|finds)"


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    tools = str(Path(sys.executable).parent)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def ctest(folder: str, target: str, only: str, *options: str) -> tuple[int, int, str]:
    """Tests passed and tests run, and what they printed. Raises RuntimeError where they cannot be built."""
    build = ROOT / "build" / folder
    for step in (
        ("cmake", "-S", ".", "-B", str(build), "-G", "Ninja", "-DSRR_FAST_CUDA=OFF", *options),
        ("cmake", "--build", str(build), "--target", target),
    ):
        if (done := run(*step)).returncode:
            raise RuntimeError(done.stdout[-2000:])
    said = run("ctest", "--test-dir", str(build), "-V", "-j", str(os.cpu_count()), "-R", only).stdout
    failed, every = re.findall(r"(?:(\d+) tests failed )?out of (\d+)", said)[-1]  # newer ones are silent about none
    return int(every) - int(failed or 0), int(every), said


def clean(check: str, folder: str, sanitizer: str) -> Row:
    passed, every, said = ctest(folder, "all", ".", f"-DSRR_FAST_SANITIZE={sanitizer}")
    reports = len(REPORT.findall(said))
    figure = f"{reports} reports, {passed} of {every} programs pass"
    return Row(check, figure, "0 reports", not reports and passed == every > 0)


def check_planted() -> Iterator[Row]:
    passed, every, _ = ctest("sanitize-planted", "planted", PLANTED)
    faults = "out of bounds, use after free, shift, overflow, races; on the CUDA machine too, and a divergent barrier"
    yield Row(f"planted faults: {faults}", f"{passed} of {every} found or rightly passed", "all", passed == every >= 14)


def check_address() -> Iterator[Row]:
    yield clean("kernels and CUDA kernels on the CPU under ASan and UBSan", "asan", "address")


def check_thread() -> Iterator[Row]:
    yield clean("kernels and CUDA kernels on the CPU under TSan, fewer shapes", "tsan", "thread")


def check_extension() -> Iterator[Row]:
    """The Python extension itself: schemas, checks, views, errors."""
    folder = ROOT / "build" / "sanitize-extension"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("srr_fast", "csrc", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "reliability"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
    built = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=folder, CFLAGS=flags, LDFLAGS=flags)
    if not list((folder / "srr_fast").glob("_C*.so")):
        raise RuntimeError(built.stdout[-2000:])
    libraries = [run("g++", f"-print-file-name={name}").stdout.strip() for name in ("libasan.so", "libstdc++.so")]
    tests = run(
        *(sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-k", "not compile and not graph"),
        *(f"tests/test_{name}.py" for name in ("pool", "score", "score_range", "score_bits", "score_arguments", "ops")),
        cwd=folder,
        LD_PRELOAD=" ".join(libraries),
        ASAN_OPTIONS="detect_leaks=0",
        PYTHONPATH=".",
        SRR_FAST_BACKEND="",
    ).stdout
    reports = len(REPORT.findall(tests))
    said = tests.strip().splitlines()[-1]
    ok = not reports and re.search(r"\b\d+ passed", said) is not None and not re.search("failed|error", said)
    print(tests[-5000:] if not ok else "", file=sys.stderr)
    yield Row("the extension under ASan and UBSan: tests of pool, score and ops", f"{reports} reports, {said}", "0", ok)
