# SPDX-License-Identifier: Apache-2.0
"""The machine that was measured, in the JSON; the comparison, as a table at the end of the run."""

import pytest
import torch

from srr_fast import env

COMPARISONS = []


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["srr_fast"] = dict(env.report())


@pytest.fixture
def compare(benchmark):
    """Record a comparison made by interleave.summary() with the benchmark of its base."""

    def record(case, result):
        benchmark.extra_info.update(case=case, comparison=result)
        COMPARISONS.append((case, result))

    return record


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter):
    if not COMPARISONS:
        return
    write = terminalreporter.write_line
    write("")
    write(f"{env.cpu_name()}; medians of one interleaved run per row; x = times slower than the first")
    header: list[str] = []
    for case, result in COMPARISONS:
        names = list(result)
        if names != header:
            write(f"| case | {names[0]}, us (quartiles) | " + " | ".join(names[1:]) + " |")
            write("|---" * (len(names) + 1) + "|")
            header = names
        base = result[names[0]]
        cells = [f"{base['median_us']:.0f} ({base['q1_us']:.0f}-{base['q3_us']:.0f})"]
        cells += [f"x{result[name]['ratio']:.2f}" for name in names[1:]]
        write(f"| {case} | " + " | ".join(cells) + " |")
