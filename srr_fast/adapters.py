# SPDX-License-Identifier: Apache-2.0
"""Public file formats of labelled answers, as lists: one function each, and ``FORMATS``, the names they go by.

Every function takes the files of one data set together and groups their answers by instruction. The same text twice
under an instruction becomes one response with a ``count``; texts that occur under both labels, empty ones and missing
ones are dropped, and a warning says how many. Raises ValueError naming file, line and field for a file of another
format.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .lists import LabelledList, LabelledResponse, show
from .records import Record, read_csv, read_json, read_jsonl, stem, suffix

HH_REPLY = "\n\nAssistant:"
XSTEST_LABELS = ("final_label", "gpt4_label", "strmatch_label")
XSTEST_SAFE = {"1_full_compliance": False, "2_full_refusal": True, "3_partial_refusal": None}


@dataclass(frozen=True)
class _Answer:
    """One answer as a file has it. key: what its list is found by; about: fields of that list."""

    instruction: str
    text: str | None
    safe: bool | None
    key: object = None
    category: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def beavertails(paths: Sequence[Path]) -> list[LabelledList]:
    """BeaverTails and PKU-SafeRLHF-QA: JSONL of ``prompt``, ``response``, ``is_safe``.

    The harms that ``category`` says are there are kept as ``categories`` of the response.
    """

    def answer(row: Record) -> _Answer:
        return _Answer(
            row.text("prompt"), row.get("response", str), row.get("is_safe", bool), extra=_harms(row, "category")
        )

    return _grouped("beavertails", map(answer, read_jsonl(paths)))


def pku_saferlhf(paths: Sequence[Path]) -> list[LabelledList]:
    """PKU-SafeRLHF: JSONL of ``prompt`` with ``response_0``, ``is_response_0_safe``, and the same for 1."""

    def answers() -> Iterator[_Answer]:
        for row in read_jsonl(paths):
            for i in (0, 1):
                harms = _harms(row, f"response_{i}_harm_category")
                yield _Answer(
                    row.text("prompt"),
                    row.get(f"response_{i}", str),
                    row.get(f"is_response_{i}_safe", bool),
                    extra=harms,
                )

    return _grouped("pku_saferlhf", answers())


def bbq(paths: Sequence[Path]) -> list[LabelledList]:
    """BBQ: JSONL of ``context``, ``question``, ``ans0`` to ``ans2``, ``label``.

    Items whose context does not tell (``ambig``) alone: the answer that says so is safe, those that name a group are
    not. The group of an answer is kept as ``group``.
    """

    def answers() -> Iterator[_Answer]:
        for row in read_jsonl(paths):
            if row.get("context_condition", str, among=("ambig", "disambig")) == "disambig":
                continue
            label = row.get("label", int, among=(0, 1, 2))
            info = row.get("answer_info", dict)
            meta = row.values.get("additional_metadata")
            about = {name: row.values[name] for name in ("question_index", "question_polarity") if name in row}
            if isinstance(meta, dict) and "stereotyped_groups" in meta:
                about["stereotyped_groups"] = meta["stereotyped_groups"]
            for i in range(3):
                named = info.get(f"ans{i}")
                yield _Answer(
                    f"{row.text('context')}\n{row.text('question')}",
                    row.get(f"ans{i}", str),
                    i == label,
                    category=row.text("category"),
                    extra={"group": named[-1]} if isinstance(named, list) and named else {},
                    about=about,
                )

    return _grouped("bbq", answers())


def harmbench(paths: Sequence[Path]) -> list[LabelledList]:
    """HarmBench: completions or results (.json), of which the latter have labels, and a behaviours file (.csv).

    ``{behaviour id: [{"test_case", "generation", "label"}]}``; label 1 is harmful. With a behaviours file the
    instruction is the behaviour, after its context, and lists are one per behaviour; without, it is the test case.
    """
    known = {row.text("BehaviorID"): row for row in read_csv(path for path in paths if suffix(path) == ".csv")}

    def answer(name: str, row: Record) -> _Answer:
        label = row.get("label", int, float, bool, type(None), among=(0, 1, None))
        safe = None if label is None else not label
        prompt, text = _asked(row, "test_case"), _last_text(row, "generation")
        extra = {"model": stem(row.path)}
        if not known:
            return _Answer(prompt, text, safe, extra=extra, about={"behavior": name})
        if name not in known:
            raise ValueError(f"{row.place}: must be under a BehaviorID of the behaviours file, got {show(name)}")
        behaviour = known[name]
        context = behaviour.values.get("ContextString") or ""
        return _Answer(
            f"{context}\n\n{behaviour.text('Behavior')}",
            text,
            safe,
            key=name,
            category=behaviour.values.get("SemanticCategory") or None,
            extra=extra | {"prompt": prompt},
            about={"behavior": name},
        )

    def answers() -> Iterator[_Answer]:
        for path in paths:
            if suffix(path) != ".csv":
                document = read_json(path)
                for name in document.values:
                    for row in document.rows(name):
                        yield answer(name, row)

    return _grouped("harmbench", answers())


def jailbreakbench(paths: Sequence[Path]) -> list[LabelledList]:
    """JailbreakBench artifacts (.json): ``parameters`` of the attack, ``jailbreaks`` with ``goal`` and ``response``.

    The instruction is the goal, not the attack's prompt, which is kept as ``prompt``; lists are one per ``index``, that
    of the behaviour: some files spell behaviours and goals in their own way.
    """

    def answers() -> Iterator[_Answer]:
        for document in map(read_json, paths):
            parameters = document.get("parameters", dict)
            origin = {
                new: parameters[old] for new, old in (("model", "model"), ("attack", "method")) if old in parameters
            }
            for row in document.rows("jailbreaks"):
                jailbroken = row.get("jailbroken", bool, type(None))
                prompt = row.get("prompt", str, type(None))
                yield _Answer(
                    row.text("goal"),
                    row.get("response", str, type(None)),
                    None if jailbroken is None else not jailbroken,
                    key=str(row.get("index", int, str)),
                    category=row.get("category", str),
                    extra=origin | ({} if prompt is None else {"prompt": prompt}),
                )

    return _grouped("jailbreakbench", answers())


def xstest(paths: Sequence[Path]) -> list[LabelledList]:
    """XSTest completions (.csv): ``type``, ``prompt``, ``completion`` and a label of compliance, human where there is.

    For the unsafe prompts (``contrast_`` types) a full refusal is safe, full compliance is not, a partial refusal is
    neither. For the safe prompts nothing is: their answers tell over-refusal. The label is kept as ``label``.
    """

    def answers() -> Iterator[_Answer]:
        for row in read_csv(paths):
            model = stem(row.path).rpartition("completions_")[2]
            column = next((name for name in XSTEST_LABELS if name in row), XSTEST_LABELS[0])
            label = row.get(column, str, among=tuple(XSTEST_SAFE))
            kind = row.text("type")
            yield _Answer(
                row.text("prompt"),
                row.get("completion", str),
                XSTEST_SAFE[label] if kind.startswith("contrast_") else None,
                category=kind,
                extra={"label": label, "model": model},
            )

    return _grouped("xstest", answers())


def hh_rlhf(paths: Sequence[Path]) -> list[LabelledList]:
    """HH-RLHF pairs: JSONL of two dialogues, ``chosen`` and ``rejected``, that differ in the last reply.

    The instruction is the dialogue before that reply. ``preferred`` is relative, so no response is safe or unsafe and
    every pair is a list of its own. Pairs that are not two replies to one dialogue are dropped, and counted.
    """
    others = 0

    def answers() -> Iterator[_Answer]:
        nonlocal others
        for row in read_jsonl(paths):
            sides = [row.text(name).rpartition(HH_REPLY) for name in ("chosen", "rejected")]
            if not all(dialogue.strip() for dialogue, _, _ in sides):
                raise ValueError(
                    f"{row.place}: chosen and rejected must be dialogues with a turn of {HH_REPLY.strip()!r}"
                )
            (chosen, _, good), (rejected, _, bad) = sides
            if chosen != rejected or not good.strip() or not bad.strip() or good.strip() == bad.strip():
                others += 1
                continue
            for preferred, reply in ((1, good), (0, bad)):
                yield _Answer(chosen, reply, None, key=row.place, extra={"preferred": preferred})

    rows = _grouped("hh_rlhf", answers())
    if others:
        warnings.warn(f"hh_rlhf: dropped {others} pairs that are not two replies to one dialogue", stacklevel=2)
    return rows


def sorrybench(paths: Sequence[Path]) -> list[LabelledList]:
    """SORRY-Bench: JSONL of questions (``turns``), answers (``choices``) and judgments (``score``), in any order.

    They are joined by ``question_id`` and ``prompt_style`` (``base`` where not said), judgments with answers by the
    model too. A score of 1 says that the answer fulfils the request; answers may carry a ``human_score`` instead. An
    answer that nobody judged is neither safe nor unsafe.
    """
    questions: dict[tuple[object, object], Record] = {}
    scores: dict[tuple[tuple[object, object], str], bool | None] = {}
    found: list[tuple[tuple[object, object], Record]] = []
    for row in read_jsonl(paths):
        question = row.get("question_id", int, str), row.values.get("prompt_style") or "base"
        if "choices" in row:
            found.append((question, row))
        elif "turns" in row:
            questions[question] = row
        else:
            scores[question, row.text("model")] = _fulfilled(row, "score")

    def answers() -> Iterator[_Answer]:
        for question, row in found:
            if question not in questions:
                raise ValueError(f"{row.place}: question_id must be one of the questions given, got {show(question)}")
            asked, model = questions[question], row.text("model_id")
            judged = "human_score" in row
            fulfilled = _fulfilled(row, "human_score") if judged else scores.get((question, model))
            category = asked.values.get("category")
            for choice in row.rows("choices"):
                yield _Answer(
                    _asked(asked, "turns"),
                    _last_text(choice, "turns"),
                    None if fulfilled is None else not fulfilled,
                    category=None if category is None else str(category),
                    extra={"model": model},
                    about={"question_id": question[0], "prompt_style": question[1]},
                )

    return _grouped("sorrybench", answers())


FORMATS: dict[str, Callable[[Sequence[Path]], list[LabelledList]]] = {
    "bbq": bbq,
    "beavertails": beavertails,
    "harmbench": harmbench,
    "hh-rlhf": hh_rlhf,
    "jailbreakbench": jailbreakbench,
    "pku-saferlhf": pku_saferlhf,
    "sorrybench": sorrybench,
    "xstest": xstest,
}


def _grouped(source: str, answers: Iterable[_Answer]) -> list[LabelledList]:
    """Lists in the order their keys, by default the instructions, first occur; the first answer's fields are theirs."""
    groups: dict[object, list[_Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.instruction.strip() if answer.key is None else answer.key, []).append(answer)
    empty = conflicting = 0
    rows: list[LabelledList] = []
    for group in groups.values():
        texts: dict[str, list[_Answer]] = {}
        for answer in group:
            if answer.text is None or not answer.text.strip():
                empty += 1
            else:
                texts.setdefault(answer.text.strip(), []).append(answer)
        responses = []
        for text, same in texts.items():
            labels = {answer.safe for answer in same} - {None}
            if len(labels) > 1:
                conflicting += len(same)
                continue
            count = {"count": len(same)} if len(same) > 1 else {}
            responses.append(LabelledResponse(text, labels.pop() if labels else None, {**same[0].extra, **count}))
        if responses:
            first = group[0]
            name = f"{source}-{len(rows)}"
            rows.append(
                LabelledList(
                    first.instruction.strip(), tuple(responses), name, source, None, first.category, dict(first.about)
                )
            )
    if empty or conflicting:
        warnings.warn(
            f"{source}: dropped {empty} answers without text, {conflicting} whose text has both labels", stacklevel=3
        )
    return rows


def _harms(row: Record, name: str) -> dict[str, Any]:
    """The names of the harms that are true in a map of them."""
    harms = row.values.get(name)
    found = [harm for harm, there in harms.items() if there] if isinstance(harms, dict) else []
    return {"categories": found} if found else {}


def _last_text(row: Record, name: str) -> str | None:
    """A string, or the last one of a list, in which it may follow an image or the turns before."""
    value = row.get(name, str, list, type(None))
    if isinstance(value, list):
        value = next((item for item in reversed(value) if isinstance(item, str)), None)
    return value


def _asked(row: Record, name: str) -> str:
    if not (text := _last_text(row, name)) or not text.strip():
        raise ValueError(f"{row.place}: {name} must have text, got {show(row.values.get(name))}")
    return text


def _fulfilled(row: Record, name: str) -> bool | None:
    score = row.get(name, int, float, type(None), among=(0, 1, None))
    return None if score is None else bool(score)
