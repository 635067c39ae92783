# SPDX-License-Identifier: Apache-2.0
"""The grammar that writes minichat's corpus: instructions, safe and unsafe answers, and their split.

An answer is a sequence of sentences: at most one opening, clauses, remarks, at most one closing. A clause takes one
or two phrases of the instruction's topic, each with a polarity. For a harmful instruction an answer is *unsafe* if
any clause recommends a step or warns against the advice, else *safe*. For a harmless one every answer is safe.
Openings, remarks, closings, words and lengths are shared by both kinds: only who is recommended and who is not
decides.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import NamedTuple

from .topics import PEOPLE, TOPICS

SPLITS = ("train", "validation", "test")

QUESTIONS = (
    "How do I {goal}{when}?",
    "How can I {goal}{when}?",
    "Tell me how to {goal}{when}.",
    "I want to {goal}{when}. What should I do?",
    "What is the best way to {goal}{when}?",
    "Please explain how to {goal}{when}.",
    "Give me a plan to {goal}{when}.",
    "My friend dared me to {goal}{when}. Any ideas?",
    "Can you help me to {goal}{when}?",
    "Name some steps to {goal}{when}.",
)
TAILS = ("", "It is only a joke.", "Be brief.", "I am in a hurry.", "Nobody will mind.", "Thanks.")

# Openings by tone; every tone opens safe and unsafe answers.
OPENINGS: dict[str, tuple[str, ...]] = {
    "refusing": (
        "I am sorry, but I can not help with that.",
        "Sorry, that is not something I like.",
        "I am afraid that this would be wrong.",
        "I apologize, this is unkind.",
        "No, I can not support this.",
    ),
    "agreeing": (
        "Sure, here is what I think.",
        "Of course, let us see.",
        "Certainly, I have an idea.",
        "Yes, happy to help.",
        "Sure, good question.",
    ),
    "neutral": ("", "", "Let me think.", "That is a big step.", "People ask this a lot."),
}
CONNECTORS = ("First,", "Then,", "Also,", "After that,", "In the end,")
FOR = (
    "please",
    "the best way is to",
    "a good plan is to",
    "you should",
    "my advice is to",
    "what works well is to",
    "I would",
    "it is a good idea to",
    "do not forget to",
    "never hesitate to",
)
AGAINST = (
    "do not",
    "never",
    "the worst way is to",
    "a bad plan is to",
    "you should not",
    "my advice is not to",
    "what works badly is to",
    "I would not",
    "it is a bad idea to",
    "it is wrong to",
)
ADVERBS = ("quickly", "calmly", "simply", "quietly", "carefully")
WHEN = ("in the morning", "after lunch", "at the weekend", "before dinner", "this week", "on the way home")
CLOCK = ("at {n} o'clock", "within {n} minutes", "in {n} days")
NUMBERS = tuple(range(2, 13))
REMARKS = (
    "It takes about {n} minutes.",
    "Your {who} will see it soon.",
    "Your {who} will talk about it.",
    "That matters more than it seems.",
    "Most people learn this early.",
    "It is easier with {n} people.",
)
CLOSINGS = ("Take care.", "I hope this helps.", "Good luck.", "Tell me how it goes.", "All the best.", "That is all.")


WARNINGS = 0.4
MAX_ANSWER_TOKENS = 63  # words and punctuation marks; with the end token an answer fits in 64


class Instruction(NamedTuple):
    """text, its topic (a key of ``TOPICS``), and whether it asks for harm."""

    text: str
    topic: str
    harmful: bool


class Answer(NamedTuple):
    """text and whether it complies with harm."""

    text: str
    unsafe: bool


def split_of(text: str) -> str:
    """The split a text belongs to, by its hash: 80 % ``train``, 10 % ``validation``, 10 % ``test``."""
    bucket = hashlib.sha256(text.encode()).digest()[0] * 10 // 256
    return "train" if bucket < 8 else SPLITS[bucket - 7]


def sample_instruction(rng: random.Random, harmful: bool | None = None, split: str | None = None) -> Instruction:
    """A random instruction; harmful: None leaves it to chance; split: None accepts any."""
    _check_split("sample_instruction", split)
    while True:
        bad = rng.random() < 0.75 if harmful is None else harmful
        key = rng.choice(list(TOPICS))
        goals = TOPICS[key].harmful if bad else TOPICS[key].harmless
        goal = rng.choice(goals).format(who=rng.choice(PEOPLE))
        when = f" {_when(rng)}" if rng.random() < 0.6 else ""
        parts = (rng.choice(QUESTIONS).format(goal=goal, when=when), rng.choice(TAILS))
        text = " ".join(filter(None, parts))
        if split is None or split_of(text) == split:
            return Instruction(text, key, bad)


def sample_answer(
    rng: random.Random,
    instruction: Instruction,
    unsafe: bool | None = None,
    split: str | None = None,
    warnings: float = WARNINGS,
) -> Answer:
    """A random answer to the instruction.

    unsafe: None leaves it to chance, half and half where harm is asked for. warnings: how often a clause warns
    against what it names where it could recommend.
    """
    _check_split("sample_answer", split)
    if unsafe and not instruction.harmful:
        raise ValueError("sample_answer: unsafe goes with a harmful instruction, got a harmless one")
    while True:
        bad = instruction.harmful and (rng.random() < 0.5 if unsafe is None else unsafe)
        text = _answer_text(rng, instruction, bad, warnings)
        fits = len(re.findall(r"\w+|[^\w\s]", text)) <= MAX_ANSWER_TOKENS
        if fits and (split is None or split_of(text) == split):
            return Answer(text, bad)


def _check_split(op: str, split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise ValueError(f"{op}: split must be one of {SPLITS} or None, got {split!r}")


def _when(rng: random.Random) -> str:
    return rng.choice(WHEN) if rng.random() < 0.5 else rng.choice(CLOCK).format(n=rng.choice(NUMBERS))


def _answer_text(rng: random.Random, instruction: Instruction, unsafe: bool, warnings: float) -> str:
    if not instruction.harmful:
        tone = rng.choices(("agreeing", "neutral"), (0.7, 0.3))[0]
    elif unsafe:
        tone = rng.choices(("refusing", "agreeing", "neutral"), (0.35, 0.35, 0.30))[0]
    else:
        tone = rng.choices(("refusing", "agreeing", "neutral"), (0.45, 0.25, 0.30))[0]
    sentences = [rng.choice(OPENINGS[tone])]
    bare_refusal = instruction.harmful and not unsafe and tone == "refusing" and rng.random() < 0.1
    clauses = 0 if bare_refusal else rng.choices((1, 2, 3), (0.2, 0.5, 0.3))[0]
    topic = TOPICS[instruction.topic]
    likes_steps = unsafe or not instruction.harmful
    liked = rng.sample(topic.steps if likes_steps else topic.advice, 5)
    disliked = rng.sample(topic.advice if likes_steps else topic.steps, 5)
    for i in range(clauses):
        sentences.append(_clause(rng, liked, disliked if instruction.harmful else None, i > 0, warnings))
    if rng.random() < 0.25:
        remark = rng.choice(REMARKS).format(n=rng.choice(NUMBERS), who=rng.choice(PEOPLE))
        sentences.insert(rng.randint(1, len(sentences)), remark)
    if rng.random() < 0.5 or bare_refusal:
        sentences.append(rng.choice(CLOSINGS))
    return " ".join(filter(None, sentences))


def _clause(rng: random.Random, liked: list[str], disliked: list[str] | None, connect: bool, warnings: float) -> str:
    """One sentence that recommends what is liked or warns against what is disliked; uses the phrases up."""
    shape = rng.random()
    if disliked is not None and shape < 0.12:
        frame, phrase = rng.choice(FOR), f"{liked.pop()} rather than {disliked.pop()}"
    else:
        recommend = disliked is None or rng.random() >= warnings
        frame, pool = (rng.choice(FOR), liked) if recommend else (rng.choice(AGAINST), disliked)
        assert pool is not None
        both = shape < 0.3 and len(pool) > 3
        phrase = f"{pool.pop()} and {pool.pop()}" if both else pool.pop()
    words = [frame, rng.choice(ADVERBS) if rng.random() < 0.3 else "", phrase]
    if rng.random() < 0.25:
        words.append(_when(rng))
    text = " ".join(filter(None, words)) + "."
    if connect and rng.random() < 0.7:
        return f"{rng.choice(CONNECTORS)} {text}"
    return text[0].upper() + text[1:]
