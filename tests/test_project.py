# SPDX-License-Identifier: Apache-2.0
"""What holds for the repository as a whole: layering, sources, the environment report, the fallback."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from srr_fast import _native, env

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "csrc" / "kernels"


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def test_kernels_know_neither_torch_nor_python():
    system = r"cstd\w+|cstring|cfloat|atomic|immintrin\.h|arm_neon\.h|cpuid\.h|sys/syscall\.h|unistd\.h"
    system += r"|cuda\w*\.h|cooperative_groups\.h"
    allowed = re.compile(rf"#include (\"[\w.]+\"|<({system})>)")
    for path in KERNELS.iterdir():
        for line in path.read_text().splitlines():
            if line.startswith("#include"):
                assert allowed.match(line), f"{path.name}: {line}"


def test_instruction_set_files_include_no_standard_headers_below_the_pragma():
    headers = {p.name for kind in ("cpu", "amx", "bf16", "dot") for p in KERNELS.glob(f"*_{kind}.h")} | {"simd.h"}
    headers.remove("all_cpu.h")
    assert {"gemm_cpu.h", "gemm_amx.h", "gemm_dot.h", "encode_bf16.h"} < headers
    for name in headers:
        assert "#include" not in (KERNELS / name).read_text(), name
    assert set(re.findall("#include (.*)", (KERNELS / "all_cpu.h").read_text())) == {f'"{name}"' for name in headers}


def test_the_list_of_sources_is_complete():
    listed = (ROOT / "csrc" / "sources.txt").read_text().split()
    assert listed == sorted(listed)
    assert {Path(name).name for name in listed} == {p.name for p in KERNELS.iterdir() if p.suffix in (".cpp", ".cu")}


def imports_when_imported(path):
    """The modules of the package that importing ``path`` imports: not those of functions, nor of type checking."""
    package = path.relative_to(ROOT).parent.parts
    nodes, found = [ast.parse(path.read_text())], set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            home = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{home}.{alias.name}" for alias in node.names} | {home}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
    return found


def test_modules_import_one_another_without_cycles():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "srr_fast").rglob("*.py")
    }
    graph = {name: imports_when_imported(path) & (set(modules) - {name, "srr_fast"}) for name, path in modules.items()}
    assert graph["srr_fast.prepared"] >= {"srr_fast._native", "srr_fast.checks"}
    assert graph["srr_fast.minichat.train_ranker"] >= {"srr_fast.minichat.grammar", "srr_fast.ranker"}
    assert graph["srr_fast"] == graph["srr_fast.reference"] == set()
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_one_module_imports_the_extension():
    importers = [
        path.name for path in (ROOT / "srr_fast").rglob("*.py") if re.search(r"import _C\b|_C import", path.read_text())
    ]
    assert importers == ["_native.py"]


def test_env_reports_what_serves_the_cpu(capsys):
    assert env.main() == 0
    printed = capsys.readouterr().out
    assert re.search(r"cpu is served by +(native kernels, \w+|the PyTorch reference)", printed)
    assert re.search(r"cuda is served by", printed)


def test_env_reports_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import runpy; runpy.run_module('srr_fast.env', run_name='__main__', alter_sys=True)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "cannot be asked" in result.stdout


def test_a_missing_extension_warns_once_with_the_reason():
    code = (
        "import sys, warnings\n"
        "sys.modules['srr_fast._C'] = None\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import srr_fast, torch\n"
        "    for _ in range(3): srr_fast.pool(torch.ones(1, 2, 4), torch.tensor([[0, 2]]))\n"
        "print(len(caught), caught[0].category.__name__, caught[0].message)"
    )
    result = run_python(code, SRR_FAST_BACKEND="")
    assert result.stdout.startswith("1 RuntimeWarning srr_fast: no native extension"), result.stdout + result.stderr
    assert (_native.build_note() or "srr_fast._C") in result.stdout


def test_a_forced_native_backend_is_fatal_when_missing():
    result = run_python(
        "import sys; sys.modules['srr_fast._C'] = None\nimport srr_fast; srr_fast.pool", SRR_FAST_BACKEND="native"
    )
    assert "ImportError: SRR_FAST_BACKEND=native, but there is no extension" in result.stderr


@pytest.mark.skipif(_native.extension is None, reason=f"no native extension: {_native.missing_reason}")
def test_an_extension_for_another_torch_is_not_used():
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch; torch.__version__ = '1.0'\n"
        "from srr_fast import _native; print(_native.extension, _native.missing_reason)"
    )
    result = run_python(code, SRR_FAST_BACKEND="")
    wanted = r"None the extension was built for torch [\d.]+\S*, this is torch 1\.0"
    assert re.match(wanted, result.stdout), result.stdout + result.stderr


@pytest.mark.parametrize(
    ("built", "running", "devices", "same"),
    [
        ("2.13.0+cpu", "2.13.0+cpu", ("cpu",), True),
        ("2.13.0+cpu", "2.13.0+cu130", ("cpu",), True),
        ("2.13.0+cu130", "2.13.0", ("cpu",), True),
        ("2.13.0+cu130", "2.13.0+cu128", ("cpu", "cuda"), False),
        ("2.13.0+cu130", "2.13.0+cu130", ("cpu", "cuda"), True),
        ("2.13.0+cpu", "2.13.1+cpu", ("cpu",), False),
        ("2.13.0a0+git1234567", "2.13.0a0+git7654321", ("cpu",), False),
    ],
)
def test_which_torch_an_extension_fits(built, running, devices, same):
    assert _native._same_abi(built, running, devices) == same


def test_an_unknown_backend_is_refused():
    result = run_python("import srr_fast; srr_fast.pool", SRR_FAST_BACKEND="fast")
    assert "ValueError: SRR_FAST_BACKEND must be one of" in result.stderr


@pytest.mark.skipif(_native.extension is None, reason=f"no native extension: {_native.missing_reason}")
def test_a_forced_native_backend_raises_for_what_it_cannot_serve():
    code = "import srr_fast, torch; srr_fast.pool(torch.ones(1, 2, 4).double(), torch.tensor([[0, 2]]))"
    result = run_python(code, SRR_FAST_BACKEND="native")
    assert "TypeError: pool: states must be float32/float16/bfloat16" in result.stderr


@pytest.mark.skipif(_native.extension is None, reason=f"no native extension: {_native.missing_reason}")
def test_the_stub_names_what_the_extension_has():
    stub = (ROOT / "srr_fast" / "_C.pyi").read_text()
    declared = set(re.findall(r"^(?:def|class) (\w+)", stub, re.MULTILINE))
    assert declared == {name for name in dir(_native.extension) if not name.startswith("_")}


def test_importing_the_package_is_quiet_and_light():
    code = "import sys, srr_fast; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    with warnings.catch_warnings():
        result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout + result.stderr == ""


def test_every_public_name_resolves():
    import srr_fast

    for name in srr_fast.__all__:
        assert getattr(srr_fast, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        srr_fast.nothing  # noqa: B018
