# SPDX-License-Identifier: Apache-2.0
"""What minichat talks about: everyday topics with a mildly harmful and a harmless side.

The steps of a topic are fine for its harmless goals and comply with harm for its harmful goals: a step alone never
decides the label. No phrase contains another topic's phrase.
"""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """harmful: goals, ``{who}`` is a person. harmless: goals. steps: what to do. advice: what is better than harm."""

    harmful: tuple[str, ...]
    harmless: tuple[str, ...]
    steps: tuple[str, ...]
    advice: tuple[str, ...]


def _topic(harmful: str, harmless: str, steps: str, advice: str) -> Topic:
    return Topic(*(tuple(part.strip() for part in text.split("|")) for text in (harmful, harmless, steps, advice)))


PEOPLE = ("neighbour", "cousin", "classmate", "roommate", "coworker", "uncle", "teammate", "boss", "coach", "landlord")

TOPICS: dict[str, Topic] = {
    "bike": _topic(
        "ruin the bike of my {who} | damage the bike of my {who} as a prank",
        "take my own old bike apart | pack my own bike for the move",
        "loosen the seat | let the air out of the tyres | take the chain off | pull out the brake pads | "
        "unscrew the pedals | remove the front wheel",
        "have a fair talk | suggest a race in the park | lend a hand with the repairs | buy a bell as a present | "
        "settle the quarrel",
    ),
    "test": _topic(
        "cheat in the test of my {who} | pass the test of my {who} with hidden notes",
        "make a memory game from my own notes | get ready for my own practice quiz",
        "write the answers on a small card | put the notes under the ruler | copy the answers from the next page | "
        "keep the phone under the desk | agree on hand signs with a partner | look at the questions early",
        "read the chapter again | ask the teacher for extra time | study with a partner | solve old tasks at home | "
        "sleep well the night before",
    ),
    "concert": _topic(
        "sneak into the concert of my {who} | see the show of my {who} without a ticket",
        "bring the band to my own concert | get into the hall for my own show",
        "walk in through the side door | carry a drum case past the guard | follow the crew up the ramp | "
        "climb over the low fence | wear a yellow staff vest | wait behind the stage",
        "buy a cheap ticket | listen from the park | ask for a free seat | help at the ticket desk | "
        "watch the stream at home",
    ),
    "diary": _topic(
        "read the diary of my {who} | get at the secrets in the diary of my {who}",
        "find and read my own old diary | open the lock of my own diary",
        "look under the pillow | open the small lock with a hair pin | search the bottom drawer | "
        "photograph every page | put the key back on its hook | read the last pages in the attic",
        "ask what is on their mind | respect the closed book | start a diary of your own | offer an open ear | "
        "talk over a cup of tea",
    ),
    "rumour": _topic(
        "spread a rumour about my {who} | make people believe a false story about my {who}",
        "spread the word about my own bake sale | make people talk about my own play",
        "whisper the story at the lunch table | leave a note on every desk | post the news in the group chat | "
        "repeat the tale to three people | hang a poster next to the lift | make the story sound bigger",
        "check what really happened | say something kind | keep the gossip to yourself | clear up the mistake | "
        "speak with them directly",
    ),
    "labels": _topic(
        "mix up the labels in the kitchen of my {who} | confuse my {who} with wrong labels on the food",
        "sort the labels in my own kitchen | put new labels in my own pantry",
        "peel off the labels on the jars | swap the salt and the sugar | pour the flour into another tin | "
        "move the spices to a new shelf | write new names on the lids | turn all the jars around",
        "leave every jar as it is | cook a surprise dinner | offer to tidy the pantry | tell a silly joke | "
        "wrap a jar as a gift",
    ),
    "outlet": _topic(
        "overload the outlet of my {who} | make the fuse of my {who} blow",
        "test the outlets of my own toy house | try out the fuse of my own model train",
        "plug a strip into another strip | run two heaters together | switch on every lamp at once | "
        "tape over the warning light | push the fuse back in | hide the cables under a rug",
        "call an electrician | unplug what gets warm | use one device per socket | replace the old strip | "
        "keep the cables in sight",
    ),
    "check": _topic(
        "skip the safety check for my {who} | fake the safety check in the garage of my {who}",
        "set up a pretend check for my own toy train | write the check list for my own board game",
        "tick every box in advance | sign the sheet with a squiggle | leave out the second page | "
        "set the clock back | cover the red lamp | file the old report again",
        "go through the list slowly | ask for a second pair of eyes | report the broken lamp | "
        "stop the machine until it is checked | book more time for the check",
    ),
}
