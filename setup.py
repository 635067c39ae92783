# SPDX-License-Identifier: Apache-2.0
"""Builds the native extension when it can; the package works without it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
BUILD_NOTE = ROOT / "srr_fast" / "_build_note.txt"  # why there is no extension, for `python -m srr_fast.env`


def cuda_home() -> str | None:
    """The toolkit's folder: CUDA_HOME, or what nvcc itself says, since the one on the PATH may be a wrapper."""
    if os.environ.get("CUDA_HOME"):
        return os.environ["CUDA_HOME"]
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.*)$", said.stderr, re.MULTILINE)
    return str(Path(top.group(1).strip()).resolve()) if top else str(Path(nvcc).resolve().parent.parent)


def native_build() -> dict[str, object]:
    """Keyword arguments for setup() that build srr_fast._C; raises when something it needs is missing."""
    import pybind11
    import torch

    home = cuda_home() if torch.version.cuda else None
    if home:
        os.environ["CUDA_HOME"] = home
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class OptionalBuild(BuildExtension):
        """A failed compilation leaves a package without extension, and a note that says why."""

        def run(self) -> None:
            BUILD_NOTE.unlink(missing_ok=True)
            try:
                super().run()
            except Exception as error:
                leave_note(f"compilation failed: {error}")

    names = (ROOT / "csrc" / "sources.txt").read_text().split()
    sources = ["csrc/ops.cpp", "csrc/module.cpp"] + [f"csrc/{name}" for name in names]
    # -fopenmp when compiling only: the runtime is the one torch has loaded.
    host = ["-O3", "-g0", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi", f'-DSRR_FAST_TORCH="{torch.__version__}"']
    flags: dict[str, list[str]] = {"cxx": host}
    if home:
        host.append(f'-DSRR_FAST_CUDA="{torch.version.cuda}"')
        flags["nvcc"] = ["-O3", "--expt-relaxed-constexpr"]
    else:
        sources = [name for name in sources if not name.endswith(".cu")]
    extension = (CUDAExtension if home else CppExtension)(
        "srr_fast._C", sources, include_dirs=[pybind11.get_include()], extra_compile_args=flags
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": OptionalBuild}}


def leave_note(why: str) -> None:
    BUILD_NOTE.write_text(why + "\n")
    print(f"srr_fast: no native extension, the PyTorch reference will be used ({why})", file=sys.stderr)


try:
    native = native_build()
except Exception as error:  # no torch, no pybind11, no compiler: the package still installs
    leave_note(f"{type(error).__name__}: {error}")
    native = {}
setup(**native)
