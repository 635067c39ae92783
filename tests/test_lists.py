# SPDX-License-Identifier: Apache-2.0
"""Labelled lists: what is read, what is refused and where, what is written and how."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import tracemalloc
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srr_fast import lists
from srr_fast.lists import LabelledList, LabelledResponse, decode, encode, read_lists, split_of, write_lists

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
ROW = {"instruction": "Open the jar", "responses": [{"text": "Twist it.", "safe": 1}, {"text": "Smash it.", "safe": 0}]}


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="jars.jsonl"):
        data = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def make(**changes):
    row = LabelledList(
        "Open the jar", (LabelledResponse("Twist it.", True), LabelledResponse("Smash it.")), "a", "jars"
    )
    return replace(row, **changes)


def test_what_is_read(file):
    full = {"id": "j7", "source": "kitchen", "split": "val", "category": "glass", "licence": "MIT", "depth": [1, None]}
    full |= {"instruction": "Wash it", "responses": [{"text": "Rinse.", "safe": True, "model": "m", "preferred": 1}]}
    bare = {"instruction": "Dry it"}
    unsaid = {
        "instruction": "Fill it",
        "responses": [{"text": "Pour."}, {"text": "Throw.", "safe": None}],
        "split": None,
    }
    rows = read_lists(file("", ROW, "  \r", full, bare, unsaid))
    first, second, third, fourth = rows
    assert (first.id, first.source, first.split, first.category) == ("jars-2", "jars", None, None)
    assert [(r.text, r.safe) for r in first.responses] == [("Twist it.", True), ("Smash it.", False)]
    assert first.responses[0].safe is True and first.responses[1].safe is False and first.mixed
    assert (second.id, second.source, second.split, second.category) == ("j7", "kitchen", "val", "glass")
    assert second.extra == {"licence": "MIT", "depth": [1, None]} and not second.mixed
    assert second.responses == (LabelledResponse("Rinse.", True, {"model": "m", "preferred": 1}),)
    assert third.id == "jars-5" and third.responses == () and not third.mixed
    assert [r.safe for r in fourth.responses] == [None, None] and not fourth.mixed
    assert len({*rows}) == 4


def in_two_members(data):
    return gzip.compress(data[:9]) + gzip.compress(data[9:])


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("jars.jsonl", bytes),
        ("jars.jsonl", gzip.compress),
        ("jars.jsonl", lzma.compress),
        ("jars.jsonl.gz", gzip.compress),
        ("jars.jsonl.gz", in_two_members),
        ("jars.jsonl.gz", lzma.compress),
        ("jars.jsonl.xz", lzma.compress),
    ],
)
def test_packed_files_are_told_by_their_content(tmp_path, name, pack):
    path = tmp_path / name
    path.write_bytes(pack(("\ufeff" + json.dumps(ROW) + "\r\n").encode()))
    assert [(row.id, row.source) for row in read_lists(path)] == [("jars-1", "jars")]


def test_files_are_read_in_order_and_may_share_ids(file):
    one, two = file(ROW | {"id": "a"}), file(ROW | {"id": "a"}, ROW, name="tins.jsonl.gz")
    assert [(row.source, row.id) for row in read_lists(one, str(two))] == [
        ("jars", "a"),
        ("tins", "a"),
        ("tins", "tins-2"),
    ]


def response(**changes):
    return ROW | {"responses": [ROW["responses"][0], ROW["responses"][1] | changes]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", "row must be an object, got [1]"),
        ('"text"', "row must be an object"),
        ("{", "is not JSON"),
        ('{"instruction": "a"} {}', "is not JSON: Extra data at column 22"),
        ('{"instruction": "a", "score": NaN}', "NaN is not JSON"),
        ('{"instruction": "a", "score": [-Infinity]}', "-Infinity is not JSON"),
        ('{"instruction": "a", "score": 1e999}', "1e999 is not finite"),
        ('{"instruction": "a", "instruction": "b"}', "field 'instruction' occurs twice"),
        ('{"instruction": "a", "responses": [{"text": "b", "safe": 0, "safe": 1}]}', "field 'safe' occurs twice"),
        ('{"instruction": "\\ud800"}', "is not Unicode"),
        ('{"instruction": "a", "n": ' + "9" * 5000 + "}", "limit"),
        ('{"instruction": ' + "[" * 200_000, "is nested too deeply"),
        ({"responses": []}, "instruction must be a string, got none"),
        (ROW | {"instruction": None}, "instruction must be a string with text, got None"),
        (ROW | {"instruction": " \n"}, "instruction must be a string with text, got ' \\n'"),
        (ROW | {"instruction": ["a"]}, "instruction must be a string with text, got ['a']"),
        (ROW | {"id": 7}, "id must be a string with text, got 7"),
        (ROW | {"id": ""}, "id must be a string with text, got ''"),
        (ROW | {"source": False}, "source must be a string with text, got False"),
        (ROW | {"split": "dev"}, "split must be one of train, val, test or null, got 'dev'"),
        (ROW | {"split": ["val"]}, "split must be one of"),
        (ROW | {"category": 3}, "category must be a string or null, got 3"),
        (ROW | {"responses": None}, "responses must be a list, got None"),
        (ROW | {"responses": {"text": "a"}}, "responses must be a list, got {'text': 'a'}"),
        (ROW | {"responses": ["Twist it."]}, "responses[0] must be an object, got 'Twist it.'"),
        (ROW | {"responses": [{"safe": 1}]}, "responses[0].text must be a string, got none"),
        (response(text=None), "responses[1].text must be a string, got None"),
        (response(text=1.5), "responses[1].text must be a string, got 1.5"),
        (response(safe=2), "responses[1].safe must be 0, 1, false, true or null, got 2"),
        (response(safe="safe"), "responses[1].safe must be 0, 1, false, true or null, got 'safe'"),
        (response(safe=1.0), "responses[1].safe must be 0, 1, false, true or null, got 1.0"),
        (response(safe=[1]), "responses[1].safe must be"),
    ],
)
def test_faults_are_named_with_file_line_and_field(file, row, message):
    path = file(ROW, "", row, ROW)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_lists(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert len(str(caught.value)) < len(str(path)) + 200


def test_an_id_occurs_once_in_a_file(file):
    with pytest.raises(ValueError, match=r"jars.jsonl:3: id must be unique, got 'a' of line 1 again"):
        read_lists(file(ROW | {"id": "a"}, ROW, ROW | {"id": "a"}))
    with pytest.raises(ValueError, match=r"jars.jsonl:2: id must be unique, got 'jars-2' of line 1 again"):
        read_lists(file(ROW | {"id": "jars-2"}, ROW))


def test_responses_without_text_are_dropped_and_counted(file):
    blank = ROW | {"responses": [{"text": " "}, *ROW["responses"], {"text": "", "safe": 1}]}
    one, two = file(blank, ROW), file({"instruction": "Wait", "responses": [{"text": "\n"}]}, name="tins.jsonl")
    with pytest.warns(
        UserWarning, match="dropped 3 responses without text: 2 of .*jars.jsonl, 1 of .*tins.jsonl"
    ) as caught:
        rows = read_lists(one, two)
    assert len(caught) == 1
    assert [len(row.responses) for row in rows] == [2, 2, 0]


def test_lists_of_one_class_are_kept(file):
    assert [row.mixed for row in read_lists(file(response(safe=1), ROW, response(safe=None)))] == [False, True, False]


@pytest.mark.parametrize("end", [9, 20, -1, -9])
def test_a_gzip_file_that_was_cut_off(file, end):
    path = file(*[ROW | {"id": str(i)} for i in range(99)], name="jars.jsonl.gz")
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=r"jars\.jsonl\.gz:\d+: (packed data is broken|is not JSON)"):
        read_lists(path)


@pytest.mark.parametrize("at", [3, 12, 40, -6])
def test_a_gzip_file_that_was_damaged(file, at):
    path = file(*[ROW | {"id": str(i)} for i in range(99)], name="jars.jsonl.gz")
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"jars\.jsonl\.gz:\d+: "):
        read_lists(path)


@pytest.mark.parametrize("data", [b"", b"{}", b"PK\3\4"])
def test_a_gzip_file_that_is_none(tmp_path, data):
    path = tmp_path / "jars.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="must be packed as its name says"):
        read_lists(path)


def test_other_files(tmp_path):
    path = tmp_path / "jars.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b'\n{"instruction": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"jars\.jsonl:2: is not UTF-8: invalid continuation byte at byte 20"):
        read_lists(path)
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="has no rows"):
        read_lists(path)
    with pytest.raises(FileNotFoundError):
        read_lists(tmp_path / "none.jsonl")
    with pytest.raises(IsADirectoryError):
        read_lists(tmp_path)


def test_a_line_may_have_so_many_bytes(file, monkeypatch):
    path = file(ROW, ROW)
    monkeypatch.setattr(lists, "MAX_LINE_BYTES", len(json.dumps(ROW)) + 1)
    assert len(read_lists(path)) == 2
    monkeypatch.setattr(lists, "MAX_LINE_BYTES", len(json.dumps(ROW)) - 1)
    with pytest.raises(ValueError, match=r"jars\.jsonl:1: line must be at most \d+ bytes, got more"):
        read_lists(path)


def sparse(path):
    with path.open("wb") as out:
        out.write(json.dumps(ROW).encode() + b"\n")
        out.truncate(1 << 30)


def bomb(path):
    zeros = gzip.compress(bytes(1 << 20))
    path.write_bytes(gzip.compress(json.dumps(ROW).encode() + b"\n") + zeros * 1024)


@pytest.mark.parametrize(("name", "fill"), [("jars.jsonl", sparse), ("jars.jsonl.gz", bomb)])
def test_a_line_of_a_gigabyte_is_not_taken_into_memory(tmp_path, name, fill):
    path = tmp_path / name
    fill(path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r":2: line must be at most 16777216 bytes, got more"):
            read_lists(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_what_is_written(tmp_path):
    rows = [
        make(extra={"licence": "MIT", "n": [1.5, None]}, split="val", category="glass"),
        make(id="b", responses=()),
        make(id="\u00e4 \u2028", responses=(LabelledResponse("Zerschlag's\r\nnicht", False, {"count": 2}),)),
    ]
    for name in ("jars.jsonl", "jars.jsonl.xz", "jars.jsonl.gz"):
        write_lists(tmp_path / name, rows)
        assert read_lists(tmp_path / name) == rows
        before = (tmp_path / name).read_bytes()
        write_lists(str(tmp_path / name), iter(rows))
        assert (tmp_path / name).read_bytes() == before
    assert gzip.decompress(before) == (tmp_path / "jars.jsonl").read_bytes()
    assert json.loads((tmp_path / "jars.jsonl").read_text().splitlines()[0])["responses"] == [
        {"text": "Twist it.", "safe": 1},
        {"text": "Smash it."},
    ]
    assert sorted(os.listdir(tmp_path)) == ["jars.jsonl", "jars.jsonl.gz", "jars.jsonl.xz"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(min_size=1).filter(str.strip)
EXTRA = st.dictionaries(
    st.text().filter(lambda name: name not in lists.ROW_FIELDS + lists.RESPONSE_FIELDS), JSON, max_size=3
)
ROWS = st.builds(
    LabelledList,
    instruction=TEXT,
    responses=st.lists(st.builds(LabelledResponse, TEXT, st.none() | st.booleans(), EXTRA), max_size=4).map(tuple),
    id=TEXT,
    source=TEXT,
    split=st.sampled_from([None, *lists.SPLITS]),
    category=st.none() | st.text(),
    extra=EXTRA,
)


@settings(deadline=None, database=None)
@given(ROWS)
def test_a_row_is_read_as_it_was_written(row):
    line = encode(row)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert decode(line) == row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (make(instruction=" "), "instruction must be a string with text"),
        (make(id=3), "id must be a string"),
        (make(split="dev"), "split must be one of"),
        (make(responses=(LabelledResponse(""),)), "responses must have text, got a blank one"),
        (make(responses=(LabelledResponse("a", 2),)), r"responses\[0\].safe must be 0, 1"),
        (make(extra={"loss": float("nan")}), "not JSON compliant"),
        (make(extra={"path": Path()}), "not JSON serializable"),
        (make(extra={"split": "val"}), r"extra must not hold fields of the schema, got \['split'\]"),
        (
            make(responses=(LabelledResponse("a", None, {"safe": 1}),)),
            "response extra must not hold fields of the schema",
        ),
        (make(instruction="\ud800"), "surrogates not allowed"),
        (make(id="first"), "id must be unique, got 'first' again"),
    ],
)
def test_nothing_is_written_that_cannot_be_read(tmp_path, row, message):
    path = tmp_path / "jars.jsonl"
    path.write_text("before")
    with pytest.raises(ValueError, match=f"write_lists: row 1: .*{message}"):
        write_lists(path, [make(id="first"), row])
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["jars.jsonl"]


def test_a_file_has_rows_and_lines_that_fit(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="write_lists: no rows"):
        write_lists(tmp_path / "jars.jsonl", [])
    monkeypatch.setattr(lists, "MAX_LINE_BYTES", 100)
    with pytest.raises(ValueError, match="row 0: must take at most 100 bytes, got 1"):
        write_lists(tmp_path / "jars.jsonl", [make()])
    assert os.listdir(tmp_path) == []


def test_split():
    assert [split_of(make(split=split)) for split in lists.SPLITS] == list(lists.SPLITS)
    assert split_of(make(instruction="Open  the JAR\n")) == split_of(make(id="b", source="tins"))
    shares = Counter(split_of(make(instruction=f"Open jar {i}")) for i in range(4000))
    assert shares["train"] == pytest.approx(2800, abs=120)
    assert shares["val"] == pytest.approx(400, abs=80)
    assert shares["test"] == pytest.approx(800, abs=100)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
def test_real_lists_are_read_and_written_without_loss(tmp_path):
    paths = sorted(SHARED.glob("*/*.jsonl.gz"))
    assert paths
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rows = read_lists(path)
        with gzip.open(path, "rt", encoding="utf-8") as given_rows:
            values = [json.loads(line) for line in given_rows]
        assert [row.id for row in rows] == [value["id"] for value in values]
        for row, value in zip(rows, values, strict=True):
            kept = json.loads(encode(row))
            want = {name: item for name, item in value.items() if not (name == "category" and item is None)}
            assert kept == {"responses": []} | want
        if path.parent.name == "ranking":
            assert all(row.mixed for row in rows)
