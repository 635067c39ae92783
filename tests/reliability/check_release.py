# SPDX-License-Identifier: Apache-2.0
"""What ships: a wheel, its imports, its dependencies, its coverage. Every Python and torch: `make wheels`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

import srr_fast

from .row import Row

LIMIT_S = 1500
ROOT = Path(__file__).parents[2]
IMPORT_MS = 50
LOW = 75  # per cent of a module
FREE = (
    "Apache",
    "BSD",
    "MIT",
    "ISC",
    "PSF",
    "Python Software Foundation",
    "Mozilla",
    "MPL",
    "Unlicense",
    "HPND",
    "CMU",
)


def check_wheel() -> Iterator[Row]:
    """Of this Python and torch; downloads or copies a second torch into an empty venv."""
    version = re.sub(r"\+.*", "", torch.__version__)
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "tests/wheels.py", "--torch", version, "--out", out]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        said = (result.stdout + result.stderr).strip()
        yield Row(
            "sdist from the tracked files, wheel from the sdist, into an empty venv",
            said.splitlines()[-1][-300:] if said else f"exit status {result.returncode}",
            "imports from the venv, finds its native part, scores as the reference",
            result.returncode == 0 and "native" in said,
        )
        for wheel in Path(out).glob("*.whl"):
            tag = wheel.name.removesuffix(".whl").split("-")[2:]
            here = f"cp{sys.version_info[0]}{sys.version_info[1]}"
            yield Row(
                "the wheel's name",
                wheel.name,
                "this Python, this torch after the plus, linux_x86_64 and no manylinux",
                tag[:2] == [here, here] and tag[2].startswith("linux_") and f"+torch{version}" in wheel.name,
            )


def check_imports() -> Iterator[Row]:
    """The best of several runs: what else the machine does only adds."""
    torch_alone, generation = "import torch", "import torch, transformers; from transformers import "
    generation += "AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, StoppingCriteria, GenerationConfig"
    for first, names in ((torch_alone, "SafetyRanker score pool"), (generation, "BestOfN TextRanker best_of_n")):
        code = (
            f"{first}; import time; start = time.perf_counter(); import srr_fast\n"
            f"for name in {names.split()!r}: getattr(srr_fast, name)\n"
            "print(1e3 * (time.perf_counter() - start))"
        )
        best = min(
            float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
            for _ in range(7)
        )
        beyond = "torch" if first == torch_alone else "torch and transformers"
        yield Row(
            f"importing {names.replace(' ', ', ')}, beyond {beyond}",
            f"{best:.0f} ms, the best of 7",
            f"below {IMPORT_MS} ms",
            best < IMPORT_MS,
        )


def check_dependencies() -> Iterator[Row]:
    from setuptools.config.pyprojecttoml import load_file

    project = load_file(ROOT / "pyproject.toml")["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    unbounded = [one.name for one in wanted if not any(part.operator in (">=", "==") for part in one.specifier)]
    older = [one.name for one in wanted if not one.specifier.contains(metadata.version(one.name), prereleases=True)]
    yield Row(
        "what the package requires",
        f"{len(wanted)} requirements, {len(unbounded)} without a lower bound, {len(older)} not met here",
        "each with a lower bound, met by what these checks run on",
        not unbounded and not older,
    )
    every, seen = [one.name for one in wanted], {}
    while every:
        name = every.pop()
        if name.lower() in seen:
            continue
        try:
            found = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        classified = [
            line.split(" :: ")[-1] for line in found.get_all("Classifier") or () if line.startswith("License")
        ]
        seen[name.lower()] = found["License-Expression"] or " ".join(classified) or (found["License"] or "?")[:80]
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                every.append(requirement.name)
    unfree = {name: text for name, text in seen.items() if not any(word in text for word in FREE)}
    yield Row(
        "licences of everything that is installed with it",
        f"{len(seen)} packages; not known as permissive or MPL: {unfree or 'none'}",
        "none unknown, NVIDIA's libraries of a CUDA torch aside",
        not [name for name in unfree if not name.startswith(("nvidia", "cuda"))],
    )


def check_public_api() -> Iterator[Row]:
    from tests import api_page

    undocumented = [name for name in srr_fast.__all__ if not getattr(srr_fast, name).__doc__]
    same = api_page.PAGE.read_text() == api_page.page()
    yield Row(
        "docs/api.md against `srr_fast.__all__`, its signatures and docstrings",
        f"{len(srr_fast.__all__)} names, {'the same' if same else 'differs'}, {len(undocumented)} without a docstring",
        "the same, 0",
        same and not undocumented,
    )


def check_coverage() -> Iterator[Row]:
    """Statements that the whole suite runs, here and in Python processes that it starts. vLLM has a venv of its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings, report = Path(folder, "settings"), Path(folder, "coverage.json")
        settings.write_text("[run]\npatch = subprocess\nomit = */srr_fast/vllm/*\n")
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-n", str(os.cpu_count())),
                *("-p", "no:cacheprovider", "--ignore=tests/test_reliability.py"),
                *("--cov=srr_fast", f"--cov-config={settings}", f"--cov-report=json:{report}", "tests"),
            ],
            cwd=ROOT,
            env=os.environ | {"COVERAGE_FILE": f"{folder}/data"},
            check=True,
            stdout=sys.stderr,
        )
        found = json.loads(report.read_text())
    share, lines = found["totals"]["percent_covered"], found["totals"]["num_statements"]
    parts = {name: part["summary"]["percent_covered"] for name, part in found["files"].items()}
    low = sorted((value, Path(name).relative_to("srr_fast")) for name, value in parts.items() if value < LOW)
    yield Row(
        "statements of the package, `srr_fast/vllm` aside, that its tests run",
        f"{share:.1f} % of {lines}; below {LOW} %: " + (", ".join(f"{n} {v:.0f} %" for v, n in low) or "none"),
        "above 85 %",
        share > 85,
    )
