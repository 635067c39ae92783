# SPDX-License-Identifier: Apache-2.0
"""What a production team asks first, each as a check with a figure and a goal: `make reliability`.

A check is a function ``check_<name>() -> Iterator[Row]`` of a module ``check_<topic>.py`` in this package. It runs in a
process of its own, whose death is a row as well, and says what it found by yielding rows.
"""
