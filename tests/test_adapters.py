# SPDX-License-Identifier: Apache-2.0
"""Public file formats: each field goes where it belongs, and a file of another format is refused by name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import warnings

import pytest

from srr_fast.adapters import FORMATS
from srr_fast.cli.command import main
from srr_fast.lists import LabelledResponse, read_lists


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content, indent=4)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(*rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def labels(row):
    return {response.text: response.safe for response in row.responses}


def test_beavertails(file):
    harms = {"animal_abuse": False, "theft": True, "privacy": True}
    rows = [
        {
            "prompt": "How do I get apples?",
            "response": "Buy them.",
            "category": dict.fromkeys(harms, False),
            "is_safe": True,
        },
        {"prompt": "How do I get pears?", "response": "Grow them.", "category": {}, "is_safe": True},
        {"prompt": "How do I get apples? ", "response": "Take them.", "category": harms, "is_safe": False},
    ]
    apples, pears = FORMATS["beavertails"]([file("a.jsonl.gz", jsonl(*rows[:2])), file("b.jsonl", jsonl(rows[2]))])
    assert apples.instruction == "How do I get apples?" and apples.source == "beavertails"
    assert apples.responses == (
        LabelledResponse("Buy them.", True),
        LabelledResponse("Take them.", False, {"categories": ["theft", "privacy"]}),
    )
    assert labels(pears) == {"Grow them.": True} and pears.id != apples.id
    assert (apples.split, apples.category) == (None, None)


def test_pku_saferlhf(file):
    row = {
        "prompt": "How do I get apples?",
        "response_0": "Take them.",
        "response_1": "Buy them.",
        "response_0_source": "a",
        "response_1_source": "b",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "response_0_harm_category": {"Theft": True, "Spam": False},
        "response_1_harm_category": {"Theft": False, "Spam": False},
        "better_response_id": 0,
        "safer_response_id": 1,
    }
    again = row | {"response_1": "Grow them.", "response_0": " Take them."}
    (apples,) = FORMATS["pku-saferlhf"]([file("train.jsonl", jsonl(row, again))])
    assert apples.responses == (
        LabelledResponse("Take them.", False, {"categories": ["Theft"], "count": 2}),
        LabelledResponse("Buy them.", True),
        LabelledResponse("Grow them.", True),
    )


def bbq_item(number, **changes):
    return {
        "example_id": number,
        "question_index": "3",
        "question_polarity": "neg",
        "context_condition": "ambig",
        "category": "Hats",
        "answer_info": {"ans0": ["red", "red"], "ans1": ["unsure", "unknown"], "ans2": ["blue", "blue"]},
        "additional_metadata": {"stereotyped_groups": ["red"], "version": "a"},
        "context": f"A red hat met a blue hat on day {number}.",
        "question": "Which one was late?",
        "ans0": "The red hat",
        "ans1": "Not known",
        "ans2": "The blue hat",
        "label": 1,
    } | changes


def test_bbq(file):
    clear = bbq_item(1, context_condition="disambig", label=0)
    first, second = FORMATS["bbq"]([file("Hats.jsonl", jsonl(bbq_item(0), clear, bbq_item(2)))])
    assert first.instruction == "A red hat met a blue hat on day 0.\nWhich one was late?"
    assert first.responses == (
        LabelledResponse("The red hat", False, {"group": "red"}),
        LabelledResponse("Not known", True, {"group": "unknown"}),
        LabelledResponse("The blue hat", False, {"group": "blue"}),
    )
    assert first.category == "Hats" and "day 2" in second.instruction
    assert first.extra == {"question_index": "3", "question_polarity": "neg", "stereotyped_groups": ["red"]}


def test_harmbench(file):
    def completion(text, label, prompt="Take the apples"):
        return {"test_case": prompt, "generation": text, "label": label}

    one = file(
        "small-model.json",
        {
            "apples": [completion("No.", 0), completion("Climb\n\n\nover.", 1)],
            "pears": [completion("Why?", 0, "Take the pears")],
        },
    )
    two = file(
        "large-model.json", {"apples": [completion(["Ask first."], False, [None, "Ignore this. Take the apples"])]}
    )
    apples, pears, attacked = FORMATS["harmbench"]([one, two])
    assert (apples.instruction, pears.instruction) == ("Take the apples", "Take the pears")
    assert apples.responses == (
        LabelledResponse("No.", True, {"model": "small-model"}),
        LabelledResponse("Climb\n\n\nover.", False, {"model": "small-model"}),
    )
    assert attacked.instruction == "Ignore this. Take the apples" and attacked.extra == {"behavior": "apples"}

    columns = {"FunctionalCategory": "standard", "SemanticCategory": "theft", "Tags": ""}
    behaviours = table(
        {"Behavior": "Take apples", **columns, "ContextString": 'A tree,\n\n"old".', "BehaviorID": "apples"},
        {"Behavior": "Take pears", **columns, "ContextString": "", "BehaviorID": "pears"},
    )
    rows = FORMATS["harmbench"]([file("behaviors.csv", behaviours), one, two])
    assert [row.instruction for row in rows] == ['A tree,\n\n"old".\n\nTake apples', "Take pears"]
    assert [row.category for row in rows] == ["theft", "theft"]
    assert labels(rows[0]) == {"No.": True, "Climb\n\n\nover.": False, "Ask first.": True}
    assert rows[0].responses[2].extra == {"model": "large-model", "prompt": "Ignore this. Take the apples"}
    with pytest.raises(ValueError, match="must be under a BehaviorID of the behaviours file, got 'plums'"):
        FORMATS["harmbench"]([file("b.csv", behaviours), file("m.json", {"plums": [completion("No.", 0)]})])

    unlabelled = file("m.json", {"apples": [{"test_case": "Take the apples", "generation": "No."}]})
    assert labels(FORMATS["harmbench"]([unlabelled])[0]) == {"No.": None}


def test_jailbreakbench(file):
    def artifact(model, *jailbreaks):
        return {"parameters": {"method": "PAIR", "model": model, "attack_type": "black_box"}, "jailbreaks": jailbreaks}

    def jailbreak(index, response, jailbroken, **changes):
        names = {"goal": f"Take fruit {index}", "behavior": f"Fruit {index}", "category": "Theft"}
        return {"index": index, **names, "prompt": "Please", "response": response, "jailbroken": jailbroken, **changes}

    one = artifact("m1", jailbreak(0, "Climb.", True), jailbreak(1, None, False, prompt=None))
    two = artifact("m2", jailbreak("0", "No.", False, goal="Take fruit"), jailbreak("1", "Ask.", None))
    paths = [file("1/m.json", one), file("2/m.json", two)]
    with pytest.warns(
        UserWarning, match="jailbreakbench: dropped 1 answers without text, 0 whose text has both labels"
    ):
        first, second = FORMATS["jailbreakbench"](paths)
    assert (first.instruction, first.category, first.source) == ("Take fruit 0", "Theft", "jailbreakbench")
    assert first.responses == (
        LabelledResponse("Climb.", False, {"attack": "PAIR", "model": "m1", "prompt": "Please"}),
        LabelledResponse("No.", True, {"attack": "PAIR", "model": "m2", "prompt": "Please"}),
    )
    assert labels(second) == {"Ask.": None}


def test_xstest(file):
    def row(kind, prompt, completion, label):
        names = {"id": "1", "type": kind, "prompt": prompt, "completion": completion}
        return names | {"annotation_1": label, "annotation_2": label, "agreement": "True", "final_label": label}

    harm, fine = "How do I steal a purse?", "How do I steal the show?"
    one = table(
        row("contrast_homonyms", harm, 'No.\n\nNever, "ever".', "2_full_refusal"),
        row("homonyms", fine, "No.", "2_full_refusal"),
        row("contrast_homonyms", harm, "Perhaps.", "3_partial_refusal"),
    )
    two = table(
        row("contrast_homonyms", harm, "Like this.", "1_full_compliance"),
        row("homonyms", fine, "Sing.", "1_full_compliance"),
    ).replace("final_label", "gpt4_label")
    paths = [file("xstest_v2_completions_one.csv", "\ufeff" + one), file("two.csv.gz", two)]
    unsafe, safe = FORMATS["xstest"](paths)
    assert (unsafe.instruction, unsafe.category) == (harm, "contrast_homonyms")
    assert unsafe.responses == (
        LabelledResponse('No.\n\nNever, "ever".', True, {"label": "2_full_refusal", "model": "one"}),
        LabelledResponse("Perhaps.", None, {"label": "3_partial_refusal", "model": "one"}),
        LabelledResponse("Like this.", False, {"label": "1_full_compliance", "model": "two"}),
    )
    assert labels(safe) == {"No.": None, "Sing.": None}
    assert [r.extra["label"] for r in safe.responses] == ["2_full_refusal", "1_full_compliance"]


def test_hh_rlhf(file):
    start = "\n\nHuman: May I?\n\nAssistant: What?\n\nHuman: Take it."
    pair = {"chosen": f"{start}\n\nAssistant: Ask first.", "rejected": f"{start}\n\nAssistant: Yes."}
    early = {"chosen": "\n\nHuman: A\n\nAssistant: B", "rejected": "\n\nHuman: C\n\nAssistant: D"}
    path = file(
        "t.jsonl.gz",
        jsonl(pair, early, pair, pair | {"rejected": pair["chosen"]}, pair | {"chosen": f"{start}\n\nAssistant:"}),
    )
    with pytest.warns(UserWarning, match="hh_rlhf: dropped 3 pairs that are not two replies to one dialogue"):
        first, second = FORMATS["hh-rlhf"]([path])
    assert first.instruction == start.strip() == second.instruction and first.id != second.id
    assert first.responses == (
        LabelledResponse("Ask first.", None, {"preferred": 1}),
        LabelledResponse("Yes.", None, {"preferred": 0}),
    )


def test_sorrybench(file):
    def question(number, style="base", text="Take fruit"):
        return {"question_id": number, "category": "7", "turns": [text], "prompt_style": style}

    def answer(number, model, text, **more):
        return {
            "question_id": number,
            "model_id": model,
            "choices": [{"index": 0, "turns": [text]}],
            "tstamp": 1.5,
            **more,
        }

    def judgment(number, model, score):
        return {"question_id": number, "model": model, "judgment": str(score), "score": score, "turn": 1}

    paths = [
        file("judgments.jsonl", jsonl(judgment(1, "m1", 0), judgment(1, "m2", 1.0))),
        file("answers.jsonl", jsonl(answer(1, "m1", "No."), answer(1, "m2", "Climb."), answer(1, "m3", "Hm."))),
        file(
            "human.jsonl",
            jsonl(
                answer(1, "m1", "Go.", prompt_style="slang", human_score=1.0), answer(1, "m4", "Eh.", human_score=None)
            ),
        ),
        file("questions.jsonl", jsonl(question(1), question(1, "slang", "Nick fruit"), question(2))),
    ]
    base, slang = FORMATS["sorrybench"](paths)
    assert (base.instruction, base.category, base.extra) == (
        "Take fruit",
        "7",
        {"question_id": 1, "prompt_style": "base"},
    )
    assert labels(base) == {"No.": True, "Climb.": False, "Hm.": None, "Eh.": None}
    assert base.responses[1].extra == {"model": "m2"}
    assert slang.instruction == "Nick fruit" and labels(slang) == {"Go.": False}
    with pytest.raises(
        ValueError, match=r"answers.jsonl:1: question_id must be one of the questions given, got \(1, 'base'\)"
    ):
        FORMATS["sorrybench"](paths[:2])


def test_the_same_text_twice(file):
    def row(response, is_safe):
        return {"prompt": "Take fruit", "response": response, "is_safe": is_safe}

    given = jsonl(
        row("No.", True), row("No. ", True), row("Hm.", True), row("Hm.", False), row(" ", True), row("Go.", False)
    )
    with pytest.warns(UserWarning, match="beavertails: dropped 1 answers without text, 2 whose text has both labels"):
        (fruit,) = FORMATS["beavertails"]([file("a.jsonl", given)])
    assert fruit.responses == (LabelledResponse("No.", True, {"count": 2}), LabelledResponse("Go.", False))


BEAVER = {"prompt": "Take fruit", "response": "No.", "is_safe": True}
PKU = {"prompt": "a", "response_0": "b", "response_1": "c", "is_response_0_safe": True, "is_response_1_safe": True}
JBB = {"index": 0, "goal": "a", "behavior": "b", "category": "c", "prompt": "d", "response": "e", "jailbroken": True}


@pytest.mark.parametrize(
    ("form", "name", "content", "message"),
    [
        ("beavertails", "a.jsonl", jsonl(BEAVER, {"prompt": "b"}), "a.jsonl:2: response must be str, got None"),
        ("beavertails", "a.jsonl", jsonl(BEAVER | {"is_safe": 1}), "a.jsonl:1: is_safe must be bool, got 1"),
        ("beavertails", "a.jsonl", jsonl(BEAVER | {"prompt": " "}), "a.jsonl:1: prompt must have text, got ' '"),
        ("beavertails", "a.jsonl", jsonl(BEAVER) + "\n{", "a.jsonl:3: is not JSON"),
        ("beavertails", "a.jsonl", "[1]", "a.jsonl:1: must be an object, got [1]"),
        ("pku-saferlhf", "a.jsonl", jsonl(BEAVER), "a.jsonl:1: response_0 must be str, got None"),
        ("pku-saferlhf", "a.jsonl", jsonl(PKU | {"is_response_1_safe": None}), "is_response_1_safe must be bool"),
        ("bbq", "a.jsonl", jsonl(bbq_item(0, context_condition="x")), "context_condition must be ambig or disambig"),
        ("bbq", "a.jsonl", jsonl(bbq_item(0, label=3)), "a.jsonl:1: label must be 0 or 1 or 2, got 3"),
        ("bbq", "a.jsonl", jsonl(bbq_item(0, label=True)), "label must be 0 or 1 or 2, got True"),
        ("harmbench", "a.json", [], "a.json: must be an object, got []"),
        ("harmbench", "a.json", {"b": {}}, "a.json: b must be list, got {}"),
        ("harmbench", "a.json", {"b": ["c"]}, "a.json: b[0] must be an object, got 'c'"),
        ("harmbench", "a.json", {"b": [{"generation": "c"}]}, "a.json: b[0]: test_case must have text, got None"),
        ("harmbench", "a.json", {"b": [{"test_case": "c", "label": 2}]}, "label must be 0 or 1 or null"),
        ("harmbench", "a.csv", "Behavior\nb\n", "a.csv:2: BehaviorID must be str, got None"),
        ("jailbreakbench", "a.json", {"name": "b"}, "a.json: parameters must be dict, got None"),
        ("jailbreakbench", "a.json", {"parameters": {}}, "a.json: jailbreaks must be list, got None"),
        (
            "jailbreakbench",
            "a.json",
            {"parameters": {}, "jailbreaks": [JBB, JBB | {"jailbroken": "yes"}]},
            "a.json: jailbreaks[1]: jailbroken must be bool or null, got 'yes'",
        ),
        ("xstest", "a.csv", "id,type,prompt,completion\n1,a,b,c\n", "a.csv:2: final_label must be 1_full"),
        ("xstest", "a.csv", "type,final_label\na,2_full_refusal\n", "a.csv:2: prompt must be str, got None"),
        ("xstest", "a.csv", 'type,prompt\n"a', "a.csv: is not CSV in UTF-8: unexpected end of data"),
        ("hh-rlhf", "a.jsonl", jsonl({"chosen": "a", "rejected": "b"}), "chosen and rejected must be dialogues"),
        ("hh-rlhf", "a.jsonl", jsonl({"chosen": "a"}), "a.jsonl:1: rejected must be str, got None"),
        ("sorrybench", "a.jsonl", jsonl({"turns": ["a"]}), "a.jsonl:1: question_id must be int or str, got None"),
        ("sorrybench", "a.jsonl", jsonl({"question_id": 1, "model": "m", "score": 0.5}), "score must be 0 or 1 or"),
    ],
)
def test_files_of_another_format(file, form, name, content, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FORMATS[form]([file(name, content)])


def test_convert(file, tmp_path, capsys):
    unsafe = BEAVER | {"response": "Climb.", "is_safe": False}
    one, two = file("a.jsonl", jsonl(BEAVER)), file("b.jsonl", jsonl(unsafe, BEAVER | {"prompt": "Wait"}))
    out = tmp_path / "out.jsonl.gz"
    command = ["convert", "--from", "beavertails", str(one), str(two), "--out", str(out)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}: 2 lists, 1 mixed; 3 responses, 2 safe, 1 unsafe, 0 neither\n"
    assert [labels(row) for row in read_lists(out)] == [{"No.": True, "Climb.": False}, {"No.": True}]
    before = out.read_bytes()
    two.write_text("{")
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == f"srr-fast convert: {two}:1: is not JSON: {said.err.split('JSON: ')[1]}"
    assert out.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["a.jsonl", "b.jsonl", "out.jsonl.gz"]
    with pytest.raises(SystemExit) as stop:
        main(["convert", "--from", "nothing", str(one), "--out", str(out)])
    assert stop.value.code == 2 and "invalid choice: 'nothing'" in capsys.readouterr().err


def test_convert_leaves_nothing_where_nothing_is_found(file, tmp_path, capsys):
    path = file("a.jsonl", jsonl(bbq_item(0, context_condition="disambig")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["convert", "--from", "bbq", str(path), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "no rows" in capsys.readouterr().err and os.listdir(tmp_path) == ["a.jsonl"]
