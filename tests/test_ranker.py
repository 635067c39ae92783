# SPDX-License-Identifier: Apache-2.0
"""The ranker's configuration and its checkpoint: what is kept, what is refused."""

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from srr_fast import Calibration, RankerConfig, SafetyRanker, checkpoint, minichat

from .cases import ScoreCase
from .numerics import assert_same_order

CASES = [
    ScoreCase("list", (4,), 32),
    ScoreCase("gated pair", (4,), 32, {"pooling": "gated", "scope": "pair", "num_layers": 2, "norm_first": True}),
    ScoreCase("no encoder, two layers read", (4,), 64, {"num_layers": 0}),
]


def saved(folder, case=CASES[0]):
    ranker = case.build()
    ranker.calibration = Calibration(3.0, -1.0)
    ranker.model_id, ranker.metrics = "some/model", {"top1": 0.5}
    ranker.model_fingerprint, ranker.reading_fingerprint = "abc", "def"
    ranker.save_pretrained(folder)
    return ranker


def rewrite(folder, change):
    """Change the config or the tensors and sign the result, as a careful forger would."""
    config = json.loads((folder / "config.json").read_text())
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(config, tensors)
    data = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(data)
    if "sha256" in config:
        config["sha256"] = checkpoint.digest({k: v for k, v in config.items() if k != "sha256"}, data)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_checkpoint_comes_back_as_it_was(tmp_path, case):
    ranker = saved(tmp_path, case)
    again = SafetyRanker.from_pretrained(tmp_path)
    assert not again.training
    assert again.config == ranker.config
    assert again.calibration == ranker.calibration
    assert (again.model_id, again.metrics) == ("some/model", {"top1": 0.5})
    assert (again.model_fingerprint, again.reading_fingerprint) == ("abc", "def")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ranker.parameters(), strict=True))
    inst, resp, _ = case.inputs()
    assert torch.equal(again.score(inst, resp).scores, ranker.score(inst, resp).scores)
    assert "some/model" in (tmp_path / "README.md").read_text()


def test_a_ranker_without_values_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="save_pretrained: the ranker must have values, it is on the meta device"):
        CASES[0].build().to("meta").save_pretrained(tmp_path / "ranker")
    assert not (tmp_path / "ranker").exists()


def plain_pytorch(folder, inst, resp):
    """The scores of one list from a checkpoint, in ten lines that know nothing of this package."""
    c = json.loads((folder / "config.json").read_text())["ranker"]
    w = safetensors.torch.load_file(folder / "model.safetensors")
    p, heads, ffn = c["proj_dim"], c["num_heads"], c["ffn_dim"]
    layer = torch.nn.TransformerEncoderLayer(p, heads, ffn, activation="gelu", batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, c["num_layers"], enable_nested_tensor=False).eval()
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in w.items() if k.startswith("encoder.")})
    x = F.linear(torch.cat([inst, resp]), w["projection.weight"], w["projection.bias"])
    x = x[None] if c["scope"] == "list" else torch.stack([x[:1].expand_as(x[1:]), x[1:]], 1)
    o = encoder(x)
    return F.cosine_similarity(*((o[0, :1], o[0, 1:]) if c["scope"] == "list" else o.unbind(1)))


@pytest.mark.parametrize("which", ["bundled", "random"])
def test_ten_lines_of_plain_pytorch_read_it(tmp_path, which):
    folder = Path(minichat.__file__).parent / "ranker" if which == "bundled" else tmp_path
    if which == "random":
        saved(folder, ScoreCase("", (6,), 48, {"proj_dim": 32, "num_heads": 2, "num_layers": 2}))
    ranker = SafetyRanker.from_pretrained(folder)
    inst, resp, _ = ScoreCase("", (6,), ranker.config.state_size).inputs()
    with torch.no_grad():
        scores = plain_pytorch(folder, inst, resp)
        torch.testing.assert_close(scores, ranker.score(inst, resp).scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(scores, ranker.prepare()(inst, resp).scores, rtol=0, atol=1e-5)
        half = ranker.prepare(dtype=torch.bfloat16)(inst.bfloat16(), resp.bfloat16()).scores
        exact = plain_pytorch(folder, inst.bfloat16().float(), resp.bfloat16().float())
    torch.testing.assert_close(half, exact, rtol=0, atol=5e-3)
    assert_same_order(half, exact, 5e-3)


def test_the_digest_is_what_the_format_says(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    signed = config.pop("sha256")
    text = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    assert signed == hashlib.sha256(text + b"\n" + (tmp_path / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    saved(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        SafetyRanker.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_any_flipped_bit_is_noticed(tmp_path, name):
    saved(tmp_path)
    data = (tmp_path / name).read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        position = int(torch.randint(len(data), (), generator=generator))
        bit = 1 << int(torch.randint(8, (), generator=generator))
        (tmp_path / name).write_bytes(data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :])
        try:
            loaded = SafetyRanker.from_pretrained(tmp_path)
        except ValueError as error:
            assert str(error).startswith("from_pretrained: ")
            continue
        # White space is the one part of a config that carries no meaning.
        assert name == "config.json"
        assert data[position : position + 1].isspace()
        assert loaded.config == CASES[0].config


@pytest.mark.parametrize("keep", [0, 1, 7, 100, -1])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_truncated_file_is_noticed(tmp_path, name, keep):
    saved(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes().rstrip()[:keep])
    with pytest.raises(ValueError, match="from_pretrained"):
        SafetyRanker.from_pretrained(tmp_path)


def refuse(what, words):
    return pytest.param(what, words, id=words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        refuse(lambda c, t: c.update(format_version=2), "format_version must be 1, got 2"),
        refuse(lambda c, t: c.update(extra=1), "unknown ['extra']"),
        refuse(lambda c, t: c.pop("metrics"), "missing keys ['metrics']"),
        refuse(lambda c, t: c.pop("sha256"), "missing keys ['sha256']"),
        refuse(lambda c, t: c.update(format_version=True), "format_version must be 1, got True"),
        refuse(lambda c, t: c.update(format_version=1.0), "format_version must be 1, got 1.0"),
        refuse(lambda c, t: c.update(ranker=[]), "wants a dict of fields, got list"),
        refuse(lambda c, t: c.update(model_id=5), "model_id must be a str or None, got int"),
        refuse(lambda c, t: c.update(model_id="\ud800"), "a lone surrogate"),
        refuse(lambda c, t: c.update(metrics=[]), "metrics must be a dict, got list"),
        refuse(lambda c, t: c.update(metrics=[0]), "metrics must be a dict, got list"),
        refuse(lambda c, t: c.update(calibration=[1.0]), "calibration must be two numbers"),
        refuse(lambda c, t: c.update(calibration=[True, False]), "calibration must be two numbers"),
        refuse(lambda c, t: c.update(calibration=[10**400, 0]), "calibration must be finite with a slope above 0"),
        refuse(lambda c, t: c.update(calibration=[-1.0, 0]), "slope above 0, got [-1.0, 0]"),
        refuse(lambda c, t: c.update(calibration=[1.0, math.nan]), "NaN is not JSON"),
        refuse(lambda c, t: c["ranker"].pop("scope"), "missing ['scope']"),
        refuse(lambda c, t: c["ranker"].update(hidden=3), "unknown ['hidden']"),
        refuse(lambda c, t: c["ranker"].update(hidden_size=33), "float32 [64, 33], got float32 [64, 32]"),
        refuse(lambda c, t: c["ranker"].update(num_heads=7), "divisible"),
        refuse(lambda c, t: c["ranker"].update(proj_dim="64"), "proj_dim must be an int"),
        refuse(lambda c, t: c["ranker"].update(temperature=0), "temperature must be at least 1e-06"),
        refuse(lambda c, t: c["ranker"].update(temperature=10**400), "temperature must be finite"),
        refuse(
            lambda c, t: c["ranker"].update(hidden_size=1 << 20, layer=list(range(1, 65))), "float32 [64, 67108864]"
        ),
        refuse(lambda c, t: c["ranker"].update(num_layers=64, ffn_dim=1 << 16), "missing tensors"),
        refuse(lambda c, t: c["ranker"].update(num_layers=2), "missing tensors ['encoder.layers.1"),
        refuse(lambda c, t: t.pop("projection.bias"), "missing tensors ['projection.bias']"),
        refuse(lambda c, t: t.update(other=torch.zeros(1)), "unknown ['other']"),
        refuse(lambda c, t: t.update({"projection.bias": torch.zeros(63)}), "[64], got float32 [63]"),
        refuse(lambda c, t: t.update({"projection.bias": torch.zeros(64).half()}), "got float16 [64]"),
        refuse(lambda c, t: t["projection.bias"].fill_(math.inf), "tensor projection.bias must be finite"),
    ],
)
def test_what_is_not_exactly_the_format_is_refused(tmp_path, change, words):
    saved(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match="from_pretrained") as caught:
        SafetyRanker.from_pretrained(tmp_path)
    assert words in str(caught.value)


def test_numbers_beyond_the_floats_are_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"top1": 0.5', '"top1": 1e999'))
    with pytest.raises(ValueError, match="1e999 is not finite"):
        SafetyRanker.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_place_of_a_file_is_refused(tmp_path, name):
    saved(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"from_pretrained: .*{name} cannot be read"):
        SafetyRanker.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "huge", "loop"])
def test_files_that_do_not_end_are_refused(tmp_path, name, target):
    """A link may lead anywhere, for the hub's cache is made of them."""
    saved(tmp_path)
    (tmp_path / name).rename(tmp_path / "moved")
    if target == "pipe":
        os.mkfifo(tmp_path / name)
    elif target == "huge":
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 1 << 42)
    else:
        (tmp_path / name).symlink_to(name if target == "loop" else target)
    with pytest.raises(ValueError, match=f"from_pretrained: .*{name} cannot be read"):
        SafetyRanker.from_pretrained(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("moved")
    SafetyRanker.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(model_id=5), "model_id must be a str"),
        (dict(model_id="\ud800"), "a lone surrogate"),
        (dict(model_fingerprint=b"ab"), "bytes is not JSON serializable"),
        (dict(reading_fingerprint=7), "reading_fingerprint must be a str or None, got int"),
        (dict(calibration="ab"), "calibration must be two numbers"),
        (dict(calibration=(math.nan, 0.0)), "not JSON compliant"),
        (dict(calibration=(-1.0, 0.0)), "slope above 0"),
        (dict(metrics={"top1": math.inf}), "not JSON compliant"),
        (dict(metrics={"top1": {1}}), "set is not JSON serializable"),
        (dict(metrics=[]), "metrics must be a dict"),
        (dict(metrics={"text": "x" * (1 << 20)}), "larger than 1048576 bytes"),
        (dict(projection=torch.nn.Linear(32, 8)), r"tensor projection\.\w+ must be float32 \[64"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_what_would_be_refused_is_not_saved(tmp_path, change, words):
    ranker = saved(tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    for name, value in change.items():
        setattr(ranker, name, value)
    for folder in ("old", "new"):
        with pytest.raises((TypeError, ValueError), match=f"save_pretrained: .*{words}"):
            ranker.save_pretrained(tmp_path / folder)
    assert not (tmp_path / "new").exists()
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}


@pytest.mark.parametrize("step", ["write", "replace"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    checkpoint.replace(path, b"old")

    def half(part, data):
        with part.open("wb") as file:
            file.write(data[:1])
        raise OSError("disk full")

    def crash(source, target):
        raise OSError("disk full")

    if step == "write":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(checkpoint.os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_between_the_files_is_noticed(tmp_path, monkeypatch):
    saved(tmp_path)
    replace = os.replace

    def crash(source, target):
        if target.name == "config.json":
            raise OSError("power cut")
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        CASES[0].build(seed=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sha256 does not match"):
        SafetyRanker.from_pretrained(tmp_path)


def test_a_save_between_two_reads_is_no_damage(tmp_path, monkeypatch):
    saved(tmp_path)
    other, read = CASES[0].build(seed=1), checkpoint.read_file

    def overtaken(path, *most):
        if path.name == "model.safetensors":
            other.save_pretrained(tmp_path)
        return read(path, *most)

    monkeypatch.setattr(checkpoint, "read_file", overtaken)
    loaded = SafetyRanker.from_pretrained(tmp_path)
    assert torch.equal(loaded.projection.weight, other.projection.weight)


def test_threads_save_to_one_folder(tmp_path):
    ranker = CASES[0].build()

    def work(_):
        for _ in range(20):
            ranker.save_pretrained(tmp_path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    SafetyRanker.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_loading_does_not_depend_on_the_default_dtype(tmp_path, dtype):
    SafetyRanker(RankerConfig(16)).save_pretrained(tmp_path)
    want = SafetyRanker.from_pretrained(tmp_path).state_dict()
    torch.set_default_dtype(dtype)
    try:
        got = SafetyRanker.from_pretrained(tmp_path).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in want.items():
        assert got[name].dtype == torch.float32 and torch.equal(got[name], value)


def test_loading_draws_no_random_numbers(tmp_path):
    saved(tmp_path)
    state = torch.random.get_rng_state()
    SafetyRanker.from_pretrained(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_edited_values_are_refused_without_a_new_digest(tmp_path):
    saved(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"temperature": 0.1', '"temperature": 0.2'))
    with pytest.raises(ValueError, match="sha256 does not match"):
        SafetyRanker.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1, "a": 2}', "[" * 100_000, "\xff", ""])
def test_a_config_that_is_not_one_is_refused(tmp_path, text):
    saved(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="from_pretrained"):
        SafetyRanker.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SafetyRanker.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SafetyRanker.from_pretrained("./nowhere")
    with pytest.raises(FileNotFoundError, match="xxx"):
        SafetyRanker.from_pretrained("/" + "x" * 5000)
    with pytest.raises(TypeError, match=r"from_pretrained: .* got int"):
        SafetyRanker.from_pretrained(5)


def test_a_hub_id_that_cannot_be_reached_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        SafetyRanker.from_pretrained("nobody/nothing")


def test_non_finite_weights_are_not_saved(tmp_path):
    ranker = CASES[0].build()
    ranker.projection.bias.data[0] = math.nan
    with pytest.raises(ValueError, match=r"projection\.bias must be finite"):
        ranker.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hidden_size": 0}, ValueError),
        ({"hidden_size": 1.5}, TypeError),
        ({"hidden_size": True}, TypeError),
        ({"layer": 0}, ValueError),
        ({"layer": 1.0}, ValueError),
        ({"layer": "middle"}, TypeError),
        ({"layer": ()}, ValueError),
        ({"pooling": "max"}, ValueError),
        ({"scope": "all"}, ValueError),
        ({"proj_dim": 513}, ValueError),
        ({"proj_dim": 10, "num_heads": 3}, ValueError),
        ({"num_layers": -1}, ValueError),
        ({"ffn_dim": 0}, ValueError),
        ({"norm_first": 1}, TypeError),
        ({"hidden_size": (1 << 20) + 1}, ValueError),
        ({"hidden_size": 10**400}, ValueError),
        ({"layer": 10**400}, ValueError),
        ({"layer": tuple(range(1, 66))}, ValueError),
        ({"num_layers": 65}, ValueError),
        ({"ffn_dim": (1 << 16) + 1}, ValueError),
        ({"temperature": 0}, ValueError),
        ({"temperature": 9e-7}, ValueError),
        ({"temperature": 10**400}, ValueError),
        ({"temperature": math.inf}, ValueError),
        ({"dropout": 1.0}, ValueError),
    ],
)
def test_a_bad_configuration_names_its_field(change, error):
    with pytest.raises(error, match=f"RankerConfig: .*{next(iter(change)).removeprefix('num_')}|fractional layer"):
        RankerConfig(**{"hidden_size": 64, **change})


def test_the_widest_configuration_is_one():
    layer = tuple(range(1, 65))
    config = RankerConfig(1 << 20, layer=layer, proj_dim=512, num_layers=64, ffn_dim=1 << 16, temperature=1e-6)
    assert config.state_size == 1 << 26


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (dict(calibration=(0.0, 1.0)), ValueError),
        (dict(calibration=(-2.0, 1.0)), ValueError),
        (dict(calibration=(1.0, math.inf)), ValueError),
        (dict(calibration="ab"), TypeError),
        (dict(calibration=(True, False)), TypeError),
        (dict(calibration=(1.0, 2.0, 3.0)), TypeError),
        (dict(model_id=5), TypeError),
        (dict(model_fingerprint=5), TypeError),
        (dict(reading_fingerprint=5), TypeError),
        (dict(metrics=[]), TypeError),
    ],
    ids=str,
)
def test_a_ranker_names_a_bad_argument(options, error):
    with pytest.raises(error, match=f"SafetyRanker: {next(iter(options))} must be"):
        SafetyRanker(RankerConfig(8, proj_dim=8), **options)


def test_layers_are_resolved_for_a_model():
    assert RankerConfig(64).layer_indices(32) == (16,)
    assert RankerConfig(64, layer=0.01).layer_indices(6) == (1,)
    assert RankerConfig(64, layer=0.99).layer_indices(6) == (5,)
    assert RankerConfig(64, layer=[3, 0.5]).layer_indices(12) == (3, 6)
    assert RankerConfig(64, layer=(1, 2, 3)).state_size == 192
    for bad in [6, (3, 0.5)]:
        with pytest.raises(ValueError, match="layer"):
            RankerConfig(64, layer=bad).layer_indices(6)
