# SPDX-License-Identifier: Apache-2.0
"""The runner of the reliability checks: nothing is lost, and no way to end badly passes for success."""

import json
import sys

import pytest

from .reliability import __main__ as runner
from .reliability.page import page, table
from .reliability.row import Row

GOOD = 'print(\'{"check": "a", "figure": "1", "goal": "1", "ok": true}\', flush=True)\n'


@pytest.mark.parametrize(
    ("code", "figure"),
    [
        (GOOD + "import os; os.abort()", "signal SIGABRT"),
        (GOOD + "raise SystemExit(3)", "exit status 3, 1 rows"),
        ("pass", "exit status 0, 0 rows"),
        (GOOD + "import time; time.sleep(60)", "killed after 2 s"),
        (GOOD + "import os, time; os.fork(); time.sleep(60)", "killed after 2 s"),
    ],
)
def test_a_check_that_ends_badly_is_a_row(code, figure):
    *before, last = runner.rows("topic.name", [sys.executable, "-c", code], 2 if "sleep" in code else 60)
    assert before == [Row("a", "1", "1", True)] * (GOOD in code)
    assert last == Row("topic.name", figure, "the check ends", False)


def test_rows_are_kept_as_they_come_and_missed_goals_are_the_exit_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "STORE", tmp_path / "store.json")
    monkeypatch.setattr(runner, "checks", lambda: {("bits", "a"): 1.0, ("bits", "b"): 1.0, ("other", "c"): 1.0})

    def rows(check, command, limit):
        yield Row(check, "first", "goal", True)
        (kept,) = json.loads((tmp_path / "store.json").read_text())[check]["rows"]
        assert kept["figure"] == "first"
        yield Row(check, "second", "goal", check != "other.c")

    monkeypatch.setattr(runner, "rows", rows)
    assert runner.main([]) == 1
    assert runner.main(["--only", "bits", "--report", str(tmp_path / "page.md")]) == 0
    assert "other.c" not in capsys.readouterr().out.split("| check |")[-1]
    text = (tmp_path / "page.md").read_text()
    assert text.index("bits.a") < text.index("bits.b") < text.index("other.c | second | goal | **MISS**")
    assert runner.main(["--only", "other.c"]) == 1
    with pytest.raises(SystemExit):
        runner.main(["--only", "nothing"])


def test_every_check_is_found_with_its_limit():
    found = runner.checks()
    assert all(limit > 0 for limit in found.values())
    assert len({topic for topic, _ in found}) == len(list((runner.ROOT / "tests/reliability").glob("check_*.py")))


def test_the_table_survives_a_bar():
    assert table([{"check": "a|b", "figure": "1", "goal": "2", "ok": False}]).endswith("| a\\|b | 1 | 2 | **MISS** |")
    assert "0 rows, 0 missed" in page({}, []) and "Did not run: a.b, c.d." in page({}, ["a.b", "c.d"])
