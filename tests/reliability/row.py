# SPDX-License-Identifier: Apache-2.0
"""A line of the table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """check: what was done, in words. figure: what was found. goal: what had to be found. ok: whether it was."""

    check: str
    figure: str
    goal: str
    ok: bool
