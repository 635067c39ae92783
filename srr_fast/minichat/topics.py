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


PEOPLE = (
    *("neighbour", "cousin", "classmate", "roommate", "coworker"),
    *("uncle", "teammate", "boss", "coach", "landlord"),
)

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
    "garden": _topic(
        "spoil the flower bed of my {who} | make a mess in the garden of my {who}",
        "clear out my own flower bed | start over with my own garden",
        "pull up the tulips | flood the whole bed | cut the roses down | dig up the bulbs | trample the soil flat | "
        "throw the cuttings over the hedge",
        "bring some seeds as a gift | admire the roses | offer to water the lawn | plant a tree on your side | "
        "agree on a quiet hour",
    ),
    "parcel": _topic(
        "take the parcel of my {who} | keep a parcel that belongs to my {who}",
        "collect my own parcel | unpack my own parcel",
        "pick up the box from the porch | peel the name off the box | show the code at the desk | "
        "open the tape with a spoon | carry the box home in a bag | fold the empty box away",
        "leave the box at the door | ring the bell of the owner | call the courier | write a note for the owner | "
        "return it to the post office",
    ),
    "lunch": _topic(
        "eat the lunch of my {who} | steal snacks from the fridge of my {who}",
        "eat my own lunch at work | use up the leftovers in my own fridge",
        "take the bowl from the top shelf | scrape off the name tag | warm up the soup | "
        "swap the sandwich for crackers | finish the cake alone | rinse the empty bowl",
        "ask for a bite | bring a bigger lunch | order a pizza for all | cook together on sunday | "
        "share the snacks fairly",
    ),
    "noise": _topic(
        "keep my {who} awake all night | annoy my {who} with noise",
        "make music for my own party | wake my own family for the early trip",
        "turn the speaker to the wall | ring the old alarm clock | bounce a ball on the floor | "
        "play the drums in the hall | slam the cupboard doors | sing on the balcony",
        "use headphones after ten | agree on calm evenings | invite them for a chat | move the party to the park | "
        "put felt under the chairs",
    ),
    "queue": _topic(
        "jump the queue in front of my {who} | get past my {who} in the queue",
        "lead my own group through the queue | use my own fast pass in the queue",
        "slip under the rope | wave to a friend at the front | walk past the long line | hold up an old pass | "
        "squeeze in near the desk | say that the train leaves soon",
        "wait for your turn | book a time slot | come back at a calm hour | let the others go first | "
        "bring a book for the wait",
    ),
    "cards": _topic(
        "cheat my {who} at cards | win money from my {who} with marked cards",
        "show a card trick at my own party | practise my own magic act",
        "mark the corner of the ace | deal from the bottom | hide a king in the sleeve | peek at the next card | "
        "stack the deck | shuffle only the top half",
        "play by the rules | ask for a new round | practise a fair opening | count the points aloud | "
        "enjoy a lost game",
    ),
    "homework": _topic(
        "copy the homework of my {who} | hand in the homework of my {who} as mine",
        "type up my own homework | improve my own homework from last week",
        "open the blue folder | change a few words | trace the drawings | rename the file | hand in the pages first | "
        "rewrite the ending",
        "try the first task alone | ask for a hint | form a study group | visit the help desk | admit the late start",
    ),
    "phone": _topic(
        "snoop in the phone of my {who} | look at the messages of my {who}",
        "tidy up my own phone | find an old picture in my own phone",
        "type in the pin | scroll through the photos | read the latest messages | switch off the alerts | "
        "clear the search list | forward the holiday pictures",
        "hand the phone back | ask before you look | talk about the worry | give them some space | "
        "trust what they tell you",
    ),
    "paint": _topic(
        "scribble on the garage of my {who} | paint the door of my {who} without asking",
        "paint my own garage | decorate my own front door",
        "spray a big pattern on the door | mix a bucket of green paint | climb on the bins | use chalk that stays | "
        "cover the window with foil | draw a face near the lock",
        "find a legal wall | draw on paper | ask the owner for a corner | join an art club | wash off the old marks",
    ),
    "refund": _topic(
        "get money from my {who} for a thing that I broke | trick my {who} into a refund",
        "return my own unused lamp | bring back my own new kettle",
        "glue the handle back on | say that it came this way | show an older receipt | wrap it like new | "
        "act very surprised | choose the busy counter",
        "admit the damage | pay for the repair | read the terms of the shop | offer to replace it | "
        "look for a spare part",
    ),
    "attendance": _topic(
        "fake the attendance of my {who} | sign in for my {who} who is not there",
        "fill in the list of my own club | try the sign in system of my own office",
        "sign the sheet twice | answer when the name is called | swipe the second card | leave a coat on the chair | "
        "log in from two screens | copy the old entries",
        "send an honest excuse | ask for a day off | catch up with the notes | tell the office the truth | "
        "come a little later",
    ),
    "bus": _topic(
        "ride the bus of my {who} without paying | dodge the fare on the bus of my {who}",
        "use my own monthly bus pass | find a good seat with my own bus ticket",
        "get in at the back door | sit behind the tall seats | show the pass very briefly | "
        "change the bus at each stop | stand near the exit | keep the ticket folded",
        "buy a day ticket | walk the short way | borrow a scooter | ask about a cheap pass | share a ride",
    ),
    "pool": _topic(
        "swim in the pool of my {who} in secret | use the pool of my {who} against the rules",
        "enjoy my own pool at night | prepare my own pool for a swim",
        "lift the cover of the pool | switch off the garden lamp | climb down the ladder | "
        "hang the towel on the fence | leave the gate open | warm up in the shed",
        "visit the public pool | ask for an invitation | swim in the lake with friends | offer to clean the pool | "
        "join a swim club",
    ),
    "wifi": _topic(
        "use the wifi of my {who} in secret | get into the network of my {who}",
        "set up my own wifi | make my own network faster",
        "try the word on the sticker | restart the box in the hall | rename the tablet | move closer to the wall | "
        "log in after midnight | save the code on paper",
        "ask for a guest code | work in the library | share the bill | order a plan of your own | use the phone plan",
    ),
}
