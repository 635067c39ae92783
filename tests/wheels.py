# SPDX-License-Identifier: Apache-2.0
"""Wheels and the sdist they come from: ``python tests/wheels.py --python 3.10 3.12 --torch 2.11.0 2.13.0``.

The tracked files make an sdist; each wheel is built from that alone, in a venv of its own with one torch and a PATH
without a CUDA compiler, then installed into an empty venv away from the repository, where it must find its native part
and score as the reference does. An extension fits one version of torch, so a wheel says so: in its version, after the
plus, and in what it requires. pip's own settings say where torch comes from.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BUILD = ["setuptools>=77", "wheel", "ninja>=1.11", "pybind11>=2.13"]
ANY_TORCH = '"torch>=2.11",'

# Run in the empty venv: the native part is there, is the wheel's, and agrees with the reference.
SCORES = """
import json, warnings
warnings.simplefilter("error", RuntimeWarning)  # of a missing native part
import torch, srr_fast
from srr_fast import _native, minichat, reference
config = srr_fast.RankerConfig(64, layer=1, proj_dim=32)
ranker = srr_fast.SafetyRanker(config).eval()
inst, resp, offsets = torch.randn(3, 64), torch.randn(12, 64), torch.tensor([0, 1, 4, 12])
with torch.no_grad():
    want = ranker.score(inst, resp, offsets).scores
got = ranker.prepare()(inst, resp, offsets).scores
torch.testing.assert_close(got, want)
srr_fast.SafetyRanker.from_pretrained(minichat.RANKER_FOLDER)
info = _native.extension.build_info()
print(json.dumps({"version": srr_fast.__version__, "file": srr_fast.__file__, "torch": info["torch"],
                  "isa": info["cpu_isa"], "compiler": info["compiler"]}))
"""


def run(*command: object, **options: Any) -> str:
    """Output of a command; SystemExit with all it said when it fails."""
    result = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if result.returncode:
        raise SystemExit(f"wheels: {' '.join(map(str, command))}: exit status {result.returncode}\n{result.stdout}")
    return result.stdout


def environment(venv: Path) -> dict[str, str]:
    """Of a user who has this venv and the system's compilers, and neither nvcc nor this repository on a path."""
    kept = {name: value for name, value in os.environ.items() if not re.match("SRR_|PYTHON|CUDA|TORCH", name)}
    return kept | {"PATH": f"{venv / 'bin'}:/usr/bin:/bin", "VIRTUAL_ENV": str(venv), "CUDA_HOME": ""}


def sdist(out: Path, work: Path) -> Path:
    """Made of the tracked files, with the build backend that pip would use."""
    copy = work / "tracked"
    for name in run("git", "-C", ROOT, "ls-files", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    code = "import sys; from setuptools import build_meta; print('made', build_meta.build_sdist(sys.argv[1]))"
    said = run(sys.executable, "-c", code, out.resolve(), cwd=copy)
    return out / said.split()[-1]


def unpacked(archive: Path, torch_version: str, work: Path) -> Path:
    """The sources of an sdist, set to one torch."""
    shutil.unpack_archive(archive, work)
    source = work / archive.name.removesuffix(".tar.gz")
    project = (source / "pyproject.toml").read_text()
    if project.count(ANY_TORCH) != 1:
        raise SystemExit(f"wheels: pyproject.toml must require {ANY_TORCH} once")
    (source / "pyproject.toml").write_text(project.replace(ANY_TORCH, f'"torch=={torch_version}",'))
    (source / "setup.cfg").write_text(f"[egg_info]\ntag_build = +torch{torch_version}\n")
    return source


def venv_with(python: str, folder: Path, *packages: str) -> Path:
    """A new venv; returns its python."""
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    run(inside, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=23", env=environment(folder))
    run(inside, "-m", "pip", "install", "--quiet", *packages, env=environment(folder))
    return inside


def build(source: Path, python: str, torch_version: str, out: Path, work: Path) -> Path:
    venv = work / "build-venv"
    inside = venv_with(python, venv, *BUILD, f"torch=={torch_version}")
    options = ["--no-build-isolation", "--no-deps", "--wheel-dir", work / "wheel"]
    run(inside, "-m", "pip", "wheel", "--quiet", *options, source, env=environment(venv), cwd=work)
    shutil.rmtree(venv)
    (wheel,) = (work / "wheel").glob("*.whl")
    if wheel.name.endswith("-any.whl"):
        raise SystemExit(f"wheels: {wheel.name}: the native part was left out")
    return Path(shutil.move(str(wheel), out / wheel.name))


def used(wheel: Path, work: Path) -> dict[str, str]:
    """The newest version of each library's symbols that the extension asks for: what a machine must have."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".so"))
        file.extract(name, work)
    wanted = re.findall(r"\((GLIBC|GLIBCXX|CXXABI)_([0-9.]+)\)", run("objdump", "-T", work / name))
    newest: dict[str, str] = {}
    for library, version in wanted:
        newest[library] = max(newest.get(library, "0"), version, key=lambda v: [int(part) for part in v.split(".")])
    return newest


def tried(wheel: Path, python: str, torch_version: str, work: Path) -> dict[str, Any]:
    """What the wheel says of itself in an empty venv."""
    venv = work / "empty-venv"
    inside = venv_with(python, venv, f"torch=={torch_version}", str(wheel.resolve()))
    said = json.loads(run(inside, "-c", SCORES, env=environment(venv), cwd=work).splitlines()[-1])
    report = run(inside, "-m", "srr_fast.env", env=environment(venv), cwd=work)
    version = f"{wheel.name.split('-')[1]}"
    served = re.search(r"^cpu is served by +native kernels", report, re.MULTILINE)
    if not served or not said["file"].startswith(str(venv)) or version != f"{said['version']}+torch{torch_version}":
        raise SystemExit(f"wheels: {wheel.name} in an empty venv says {said} and\n{report}")
    shutil.rmtree(venv)
    return said


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/wheels.py", description=__doc__)
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="X.Y", help="interpreters")
    parser.add_argument("--torch", nargs="+", required=True, metavar="VERSION")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = sdist(arguments.out, Path(folder))
        print(archive.name, flush=True)
        for number in arguments.python:
            python = number if "/" in number else f"python{number}"
            for version in arguments.torch:
                work = Path(folder) / f"{Path(number).name}-{version}"
                work.mkdir()
                source = unpacked(archive, version, work)
                wheel = build(source, python, version, arguments.out, work)
                said = tried(wheel, python, version, work)
                needs = " ".join(f"{name}_{newest}" for name, newest in sorted(used(wheel, work).items()))
                print(
                    f"{wheel.name}: native, {said['isa']}, built with torch {said['torch']}; needs {needs}", flush=True
                )
                shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
