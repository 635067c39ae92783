# SPDX-License-Identifier: Apache-2.0
"""What a scorer takes, what it refuses and in which words, and where its result is written."""

import pytest
import torch

import srr_fast
from srr_fast import _native

from .cases import ScoreCase

USUAL = ScoreCase("", (8, 3, 17), 96, {"proj_dim": 48, "num_heads": 3})


def test_out_is_written_and_returned(isa):
    case = USUAL
    inst, resp, offsets = case.inputs()
    scorer = case.build().prepare()
    want = scorer(inst, resp, offsets)
    out = srr_fast.ScoreOutput(torch.full((28,), 9.0), torch.full((28,), 9.0), torch.full((3,), 9))
    got = scorer(inst, resp, offsets, out=out)
    assert all(a is b or a.data_ptr() == b.data_ptr() for a, b in zip(got, out, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(out, want, strict=True))


inst_, resp_, offsets_ = USUAL.inputs()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"inst": inst_.int()}, TypeError, ["inst", "float32", "int32"]),
        ({"inst": None}, TypeError, ["inst"]),
        ({"resp": resp_[:, :95]}, ValueError, ["resp must be", "[M, 96]", "[28, 95]"]),
        ({"inst": inst_[:, :95]}, ValueError, ["inst must be", "[B, 96]", "[3, 95]"]),
        ({"inst": inst_[:, :95], "resp": resp_[:, :95]}, ValueError, ["resp must be", "[M, 96]", "[28, 95]"]),
        (
            {"inst": inst_.to("meta"), "resp": resp_.to("meta"), "offsets": None},
            ValueError,
            ["resp must be on cpu", "meta"],
        ),
        ({"resp": resp_[0]}, ValueError, ["resp", "[96]"]),
        ({"inst": inst_[:2]}, ValueError, ["offsets", "[4]"]),
        ({"offsets": offsets_.int()}, TypeError, ["offsets", "int64", "int32"]),
        ({"offsets": [0, 8, 11, 28]}, TypeError, ["offsets", "int64", "list"]),
        ({"offsets": torch.tensor([0, 8, 11, 27])}, ValueError, ["offsets", "M=28"]),
        ({"offsets": torch.tensor([1, 8, 11, 28])}, ValueError, ["offsets", "M=28"]),
        ({"offsets": torch.tensor([0, 11, 8, 28])}, ValueError, ["offsets", "decreasing"]),
        ({"offsets": None}, ValueError, ["offsets", "M=28", "B=3"]),
        ({"resp": resp_.to("meta")}, ValueError, ["meta"]),
        ({"offsets": offsets_.to("meta")}, ValueError, ["offsets", "meta"]),
        ({"resp": resp_.to_sparse()}, ValueError, ["resp", "sparse"]),
    ],
)
@pytest.mark.parametrize("path", ["prepared", "functional", "ranker"])
def test_errors_name_the_argument(path, change, error, words):
    ranker = USUAL.build()
    call = {
        "prepared": ranker.prepare(),
        "functional": lambda inst, resp, offsets: srr_fast.score(inst, resp, ranker.prepare(), offsets),
        "ranker": ranker.score,
    }[path]
    with pytest.raises(error) as caught:
        call(**{"inst": inst_, "resp": resp_, "offsets": offsets_, **change})
    for word in ["score: ", *words]:
        assert word.lower() in str(caught.value).lower()


HIDDEN = {
    "states": torch.randn(28, 4, 96),
    "spans": torch.tensor([[0, 3]] * 28),
    "inst": inst_,
    "offsets": offsets_,
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"states": None}, TypeError, ["states", "NoneType"]),
        ({"states": HIDDEN["states"][..., :95]}, ValueError, ["states", "96", "95"]),
        ({"states": HIDDEN["states"].to("meta")}, ValueError, ["states", "cpu", "meta"]),
        ({"spans": [[0, 3]] * 28}, TypeError, ["spans", "int64", "list"]),
        ({"spans": HIDDEN["spans"].numpy()}, TypeError, ["spans", "int64", "ndarray"]),
        ({"spans": HIDDEN["spans"] + 4}, ValueError, ["spans", "T=4", "row 0"]),
        ({"spans": HIDDEN["spans"][:5]}, ValueError, ["spans", "28", "[5, 2]"]),
        ({"inst": None}, TypeError, ["inst", "NoneType"]),
        ({"inst": inst_[:, :95]}, ValueError, ["inst", "[B, 96]", "[3, 95]"]),
        ({"inst": inst_.int()}, TypeError, ["inst", "int32"]),
        ({"offsets": [0, 8, 11, 28]}, TypeError, ["offsets", "int64", "list"]),
        ({"offsets": offsets_ - 1}, ValueError, ["offsets", "M=28"]),
        ({"offsets": None}, ValueError, ["offsets", "M=28", "B=3"]),
    ],
)
def test_errors_of_from_hidden_name_the_argument(change, error, words):
    with pytest.raises(error) as caught:
        USUAL.build().prepare().from_hidden(**{**HIDDEN, **change})
    assert str(caught.value).startswith("from_hidden: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("scorer", [None, USUAL.build()], ids=lambda s: type(s).__name__)
def test_scoring_wants_a_prepared_scorer(scorer):
    with pytest.raises(TypeError, match=f"score: scorer must be a PreparedScorer, got {type(scorer).__name__}"):
        srr_fast.score(inst_, resp_, scorer)


@pytest.mark.parametrize("device", ["nowhere", 1.5, *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=f"prepare: device must be .* got '?{device}"):
        USUAL.build().prepare(device)


def test_a_prepared_scorer_cannot_be_changed():
    scorer = USUAL.build().prepare()
    want = scorer(inst_, resp_, offsets_)
    for name in ("config", "dtype", "gate", "packed", "shape", "weights", "_call", "other"):
        with pytest.raises(AttributeError, match=f"PreparedScorer: {name} cannot be set"):
            setattr(scorer, name, None)
        with pytest.raises(AttributeError, match=f"PreparedScorer: {name} cannot be deleted"):
            delattr(scorer, name)
    assert torch.equal(scorer(inst_, resp_, offsets_).scores, want.scores)


def test_out_of_the_wrong_shape_is_refused():
    inst, resp, offsets = USUAL.inputs()
    scorer = USUAL.build().prepare()
    good = scorer(inst, resp, offsets)
    for bad in [
        [good.scores],
        good[:2],
        good._replace(best=None),
        good._replace(scores=torch.zeros(27)),
        good._replace(best=torch.zeros(3)),
        good._replace(probs=torch.zeros(56)[::2]) if _native.extension else good._replace(probs=torch.zeros(1)),
    ]:
        with pytest.raises((TypeError, ValueError), match="out"):
            scorer(inst, resp, offsets, out=bad)


def test_out_is_returned_itself_and_a_plain_tuple_as_a_result():
    inst, resp, offsets = USUAL.inputs()
    scorer = USUAL.build().prepare()
    want = scorer(inst, resp, offsets)
    out = srr_fast.ScoreOutput(*map(torch.zeros_like, want))
    assert scorer(inst, resp, offsets, out=out) is out or _native.extension is None
    plain = tuple(map(torch.zeros_like, want))
    got = scorer(inst, resp, offsets, out=plain)
    assert type(got) is srr_fast.ScoreOutput
    for result, given, tensor in zip((*out, *got), (*out, *plain), (*want, *want), strict=True):
        assert result is given and torch.equal(result, tensor)


@pytest.mark.parametrize(
    "share", ["scores is probs", "scores in resp", "best in offsets", "in the packed ranker", "negated"]
)
def test_out_that_shares_memory_is_refused(share):
    if _native.extension is None and share in ("in the packed ranker", "negated"):
        pytest.skip("the reference has no packed ranker, and writes where it is told")
    inst, resp, offsets = ScoreCase("", (4, 4), 32).inputs()
    scorer = ScoreCase("", (4, 4), 32).build().prepare()
    good, packed = scorer(inst, resp, offsets), scorer.packed
    bad = {
        "scores is probs": good._replace(probs=good.scores),
        "scores in resp": good._replace(scores=resp[0, :8]),
        "best in offsets": good._replace(best=offsets[1:]),
        "in the packed ranker": good._replace(
            scores=(good.probs if packed is None else packed.view(torch.float32)[:8])
        ),
        "negated": good._replace(scores=torch._neg_view(good.scores)),
    }[share]
    with pytest.raises(ValueError, match=r"score: .*out"):
        scorer(inst, resp, offsets, out=bad)


def test_out_takes_no_gradient_and_stays_what_it_was():
    inst, resp, offsets = USUAL.inputs()
    scorer = USUAL.build().prepare()
    out = scorer(inst, resp, offsets)
    with pytest.raises(ValueError, match=r"score: .*gradient"):
        scorer(inst.clone().requires_grad_(), resp, offsets, out=out)
    assert not out.scores.requires_grad and scorer(inst, resp, offsets, out=out).scores.isfinite().any()


def test_nothing_is_prepared_for_a_device_without_data():
    with pytest.raises(ValueError, match="prepare: device must be one that holds data, got meta"):
        USUAL.build().prepare("meta")


def test_out_in_a_trace_that_holds_no_data():
    """Where data lies cannot be asked of the tensors of functorch."""
    case = ScoreCase("", (4, 4), 32)
    inst, resp, _ = case.inputs()
    scorer = case.build().prepare()
    want = scorer(inst, resp)
    got = torch.func.functionalize(lambda *given: scorer(*given[:2], out=srr_fast.ScoreOutput(*given[2:])).scores)(
        inst, resp, *map(torch.zeros_like, want)
    )
    torch.testing.assert_close(got, want.scores)
