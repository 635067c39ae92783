# SPDX-License-Identifier: Apache-2.0
"""What the package promises by name."""

from __future__ import annotations

import inspect
import re

import pytest

import srr_fast

from . import api_page
from .test_docs import ROOT


def test_the_page_is_what_the_code_says():
    assert api_page.PAGE.read_text() == api_page.page(), "python -m tests.api_page writes it anew"


@pytest.mark.parametrize("name", srr_fast.__all__)
def test_every_public_name_says_what_it_is(name):
    value = getattr(srr_fast, name)
    assert inspect.getdoc(value) and value.__module__.startswith("srr_fast.")
    assert f"### `{name}`" in api_page.PAGE.read_text()


def test_all_is_sorted_and_complete():
    assert sorted(srr_fast.__all__) == srr_fast.__all__
    assert sorted(name for names in srr_fast._HOMES.values() for name in names) == srr_fast.__all__
    assert set(srr_fast.__all__) <= set(dir(srr_fast))


def test_the_version_has_one_home_and_a_changelog():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", srr_fast.__version__)
    assert srr_fast.__version__ not in (ROOT / "pyproject.toml").read_text()
    assert f"## {srr_fast.__version__}" in (ROOT / "CHANGELOG.md").read_text()
