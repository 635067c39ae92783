# SPDX-License-Identifier: Apache-2.0
"""What is made of benchmark results: the page and its plots, and the verdict on two runs. No timing here."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the report draws with matplotlib")

from benchmarks import compare, report
from benchmarks.interleave import FEW, interleave, summary

from .conftest import native_only

MACHINE = {
    "cpu": "A Processor",
    "flags": ["avx2"],
    "caches": {"1": 32768, "2": 1048576},
    "mebibytes": 512,
    "side": 2048,
    "cores": 2,
    "isa": "avx2",
    "compiler": "12",
    "versions": {"torch": "2.13.0", "openvino": "not installed"},
    "commit": "0123456789abcdef",
    "dirty": False,
    "load": [0.5, 0.4, 0.3],
    "bandwidth": {"1": {"read": 10.0, "copy": 12.0}, "2": {}},
    "peak": {"1": {"float32": 100.0, "bfloat16": 150.0}, "2": {"float32": 190.0, "bfloat16": 280.0}},
}


def timing(median_us, ratio=1.0, spread=0.1):
    low, high = 1 - spread / 2, 1 + spread / 2
    return {
        "median_us": median_us,
        "q1_us": median_us * low,
        "q3_us": median_us * high,
        "ratio": ratio,
        "ratio_q1": ratio * low,
        "ratio_q3": ratio * high,
        "rounds": 9,
    }


def row(name, dtype="float32", threads=1, native=10.0, target=4.5, cold=False, share=None, spread=0.1, **rivals):
    rivals = rivals or {"eager": 80.0, "torch.compile": 40.0}
    return {
        "table": True,
        "name": name,
        "dtype": dtype,
        "threads": threads,
        "cold": cold,
        "bytes": 2_000_000,
        "flop": 5_000_000,
        "target": target,
        "share_of_reading": share,
        "errors": {"native": 1e-7, "eager": 2e-7},
        "comparison": {"native": timing(native, spread=spread)}
        | ({} if dtype == "float32" else {"native, float32 weights": timing(native)})
        | {name: timing(median, median / native) for name, median in rivals.items()},
    }


ROWS = [
    row("last token, N = 8", threads=1),
    row("last token, N = 8", threads=2, native=5.0),
    row("last token, N = 8", "bfloat16", native=8.0, target=7.0),
    row("mean over T = 256", native=1000.0, target=1.3, share=0.934, eager=2000.0),
    row("last token, N = 8", cold=True, target=None),
]
SWEEP = {
    "sweep": "N",
    "name": "last token",
    "threads": 1,
    "values": [1, 10, 100],
    "series": {"native, float32": [timing(1.0), timing(5.0), timing(50.0)]},
    "bytes": [1, 10, 100],
    "flop": [1, 10, 100],
}


@pytest.fixture
def written(tmp_path):
    """A function that writes a file as `make bench` does, with these rows."""

    def write(rows, name="bench.json", **machine):
        infos = [*rows, SWEEP, {"case": "another benchmark"}]
        data = {
            "machine_info": {"srr_fast": MACHINE | machine},
            "datetime": "2026-01-02T03:04:05",
            "benchmarks": [{"extra_info": copy.deepcopy(info)} for info in infos],
        }
        path = tmp_path / name
        path.write_text(json.dumps(data))
        return str(path)

    return write


@pytest.fixture
def page(written, tmp_path):
    assert report.main([written(ROWS), str(tmp_path / "docs" / "performance.md")]) == 0
    return (tmp_path / "docs" / "performance.md").read_text()


def test_the_page_starts_by_saying_that_nothing_ran_on_a_gpu(page):
    assert page.splitlines()[2] == report.NO_GPU


def test_a_row_names_its_best_rival_and_whether_the_target_is_met(page):
    rows = [line for line in page.splitlines() if line.startswith("| last token, N = 8 |")]
    assert "| 1 | 10.0 (9.50-10.5) | torch.compile | x4.00 (3.80-4.20) | x4.5, **missed** | 500 | 200 |" in rows[0]
    assert "| 2 | 5.00 (4.75-5.25) | torch.compile | x8.00 (7.60-8.40) | x4.5, met |" in rows[1]
    assert "x5.00" in rows[2] and "native, float32 weights" not in rows[2]


def test_the_page_holds_machine_reading_growth_and_errors(page):
    for words in (
        "A Processor (avx2), 2 cores, caches 32 KiB / 1024 KiB",
        "commit 0123456789ab, 2026-01-02",
        "reading 10.0 GB/s",
        "| mean over T = 256 | float32 | 1 | 93% |",
        "| N | native, float32 | 1.00 | 50.0 | 1.00 between 10 and 100 |",
        "| last token, N = 8 | bfloat16 | 1.0e-07 | 2.0e-07 |",
        "Cold caches",
    ):
        assert words in page, words


def test_every_plot_of_the_page_is_drawn(page, tmp_path):
    plots = re.findall(r"!\[\w+\]\((.*?)\)", page)
    assert len(plots) == 3
    for plot in plots:
        assert (tmp_path / "docs" / plot).read_bytes().startswith(b"\x89PNG")


def test_another_machine_has_a_page_and_plots_of_its_own(written, tmp_path, capsys):
    docs = tmp_path / "docs"
    for name in ("performance.md", "performance-other.md"):
        assert report.main([written(ROWS), str(docs / name)]) == 0
    main, other = (docs / "performance.md").read_text(), (docs / "performance-other.md").read_text()
    assert report.NOTES.read_text().strip() in main
    assert "(performance.md#notes)" in other and "What bounds a row, and what was tried.\n" not in other
    assert "](performance-other/ratios.png)" in other and (docs / "performance-other" / "ratios.png").is_file()
    assert report.main([written(ROWS), str(docs)]) == 2
    assert "the page must be a .md file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"benchmarks": []}', '{"benchmarks": [{"extra_info": {"table": true}}]}'])
@pytest.mark.parametrize("command", [report.main, lambda files: compare.main(files * 2)])
def test_a_file_of_another_kind_is_refused(tmp_path, capsys, text, command):
    path = tmp_path / "other.json"
    path.write_text(text)
    assert command([str(path)]) == 2
    assert "not what make bench writes" in capsys.readouterr().err


def test_files_that_are_not_there_and_rows_that_are_not_shared(written, capsys):
    assert compare.main(["nowhere.json", "nowhere.json"]) == 2
    assert report.main(["nowhere.json"]) == 2
    assert compare.main(["one.json"]) == report.main([]) == 2
    assert compare.main([written(ROWS[:1], "a.json"), written(ROWS[3:4], "b.json")]) == 2
    assert report.main([written([])]) == 2
    assert "no row" in capsys.readouterr().err


def verdicts(written, capsys, before, after):
    status = compare.main([written(before, "before.json"), written(after, "after.json")])
    lines = capsys.readouterr().out.splitlines()[2:-1]
    return status, [line.split()[0] for line in lines]


def test_the_same_run_twice_is_the_same(written, capsys):
    assert verdicts(written, capsys, ROWS, ROWS) == (0, ["same"] * len(ROWS))


def test_a_slower_row_fails_and_is_named_first(written, capsys):
    after = [*ROWS[:3], row("mean over T = 256", native=1200.0, share=0.8, eager=2000.0), ROWS[4]]
    assert verdicts(written, capsys, ROWS, after) == (1, ["SLOWER"] + ["same"] * 4)


def test_a_busier_machine_is_no_regression_and_hides_none(written, capsys):
    before = [row("a"), row("b")]
    busy = {"eager": 160.0, "torch.compile": 80.0}
    assert verdicts(written, capsys, before, [row("a", native=20.0, **busy), row("b", native=20.0, **busy)])[0] == 0
    assert verdicts(written, capsys, before, [row("a", native=10.0, **busy), row("b", native=30.0, **busy)]) == (
        1,
        ["SLOWER", "faster"],
    )


def test_a_change_within_the_noise_is_the_same(written, capsys):
    assert verdicts(written, capsys, [row("a", spread=0.3)], [row("a", native=12.0, spread=0.3)])[0] == 0
    assert verdicts(written, capsys, [row("a", spread=0.02)], [row("a", native=10.4, spread=0.02)])[0] == 0
    assert verdicts(written, capsys, [row("a", spread=0.02)], [row("a", native=10.6, spread=0.02)])[0] == 1


# ---- the measuring --------------------------------------------------------------------------------------------------


def test_every_call_is_timed_once_a_round():
    calls = {"a": 0, "b": 0}

    def count(name):
        calls[name] += 1
        return {"a": 2.0, "b": 3.0}[name]  # calls that measure themselves

    times = interleave({name: lambda name=name: count(name) for name in calls}, rounds=4, warm_up=2, primed=True)
    assert times == {"a": [2.0] * 4, "b": [3.0] * 4}
    assert calls == {"a": 2 + 2 * 4, "b": 2 + 2 * 4}  # long calls are warmed up by one


def test_short_calls_are_warmed_up_by_two():
    made = []
    interleave({"a": lambda: made.append(1) or 2e-4}, rounds=4, warm_up=2, primed=True)
    assert len(made) == 1 + 2 + 3 * 4


def test_much_slower_calls_take_fewer_rounds():
    times = interleave({"fast": lambda: 0.001, "slow": lambda: 1.0}, rounds=3 * FEW)
    assert {name: len(values) for name, values in times.items()} == {"fast": 3 * FEW, "slow": FEW}


def test_a_budget_lowers_the_rounds():
    times = interleave({"a": lambda: 0.5, "b": lambda: 0.5}, rounds=100, primed=True, budget_s=20)
    assert len(times["a"]) == 10


def test_ratios_are_taken_within_rounds():
    """A machine that is ten times slower in half of the rounds changes no ratio."""
    load = [1.0, 10.0] * 10
    result = summary({"native": load, "other": [2 * value for value in load]}, "native")
    assert result["other"]["ratio"] == result["other"]["ratio_q1"] == result["other"]["ratio_q3"] == 2
    assert result["native"]["median_us"] == pytest.approx(5.5e6)


@pytest.mark.slow
@native_only
def test_the_suite_runs_and_its_report_is_written(tmp_path):
    root, file = Path(__file__).parent.parent, tmp_path / "bench.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--quick", f"--benchmark-json={file}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}  # it times nothing
    result = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert report.main([str(file), str(tmp_path / "docs" / "performance.md")]) == 0
    page = (tmp_path / "docs" / "performance.md").read_text()
    assert "| last token, p = 16, N = 8, d = 256 | bfloat16 | 1 | " in page
    assert compare.main([str(file), str(file)]) == 0
