# SPDX-License-Identifier: Apache-2.0
"""Builds the native extension when it can; the package works without it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
PACKAGE = ROOT / "srr_fast"
BUILD_NOTE = "_build_note.txt"  # in the package: what the build left out and why, for `python -m srr_fast.env`


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
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise RuntimeError("not built for Python without the GIL, which importing it would switch on again")
    import pybind11
    import torch

    home = cuda_home() if torch.version.cuda else None
    if home:
        os.environ["CUDA_HOME"] = home
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    try:  # BuildExtension looks for the program on the PATH
        import ninja

        os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ["PATH"]
    except ImportError:
        pass

    names = (ROOT / "csrc" / "sources.txt").read_text().split()
    sources = ["csrc/ops.cpp", "csrc/module.cpp"] + [f"csrc/{name}" for name in names]
    # -fopenmp when compiling only: the runtime is the one torch has loaded.
    host = ["-O3", "-g0", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi", f'-DSRR_FAST_TORCH="{torch.__version__}"']

    def cpu_extension() -> object:
        return CppExtension(
            "srr_fast._C",
            [name for name in sources if not name.endswith(".cu")],
            include_dirs=[pybind11.get_include()],
            extra_compile_args={"cxx": host},
        )

    def cuda_extension() -> object:
        return CUDAExtension(
            "srr_fast._C",
            sources,
            include_dirs=[pybind11.get_include()],
            extra_compile_args={
                "cxx": [*host, f'-DSRR_FAST_CUDA="{torch.version.cuda}"'],
                "nvcc": ["-O3", "--expt-relaxed-constexpr"],
            },
        )

    class OptionalBuild(BuildExtension):
        """With CUDA, else for the CPU alone, else not at all: each step down leaves a note that says why."""

        inplace: bool

        def run(self) -> None:
            inplace = self.inplace
            try:
                super().run()
            except Exception as error:
                self.inplace, self.compiler = inplace, None  # as they were before the run that failed
                self.note(f"CUDA kernels: {error}" if home else f"compilation failed: {error}")
                if home and self.run_for_cpu():
                    return
                for stale in PACKAGE.glob("_C*.so") if self.inplace else ():
                    stale.unlink()

        def run_for_cpu(self) -> bool:
            vars(self.extensions[0]).update(vars(cpu_extension()) | {"_needs_stub": False})
            inplace = self.inplace
            try:
                super().run()
            except Exception as error:
                self.inplace = inplace
                self.note(f"compilation failed: {error}")
                return False
            return True

        def note(self, why: str) -> None:
            leave_note(why, PACKAGE if self.inplace else Path(self.build_lib) / "srr_fast")

    extension = cuda_extension() if home else cpu_extension()
    return {"ext_modules": [extension], "cmdclass": {"build_ext": OptionalBuild}}


def leave_note(why: str, folder: Path = PACKAGE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BUILD_NOTE).write_text(why + "\n")
    print(f"srr_fast: left out by this build: {why}", file=sys.stderr)


(PACKAGE / BUILD_NOTE).unlink(missing_ok=True)
try:
    native = native_build()
except Exception as error:  # no torch, no pybind11, no compiler: the package still installs
    leave_note(f"native extension: {type(error).__name__}: {error}")
    native = {}
setup(**native)
