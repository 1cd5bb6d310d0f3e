"""Made-up conversations with facts in them, and questions about those facts.

They teach the reader to answer from chat memory: who said what, codes and numbers digit by digit, and dates that follow
from the time of a turn. Every name and number is invented from a seed; there is no document behind them.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from memoryd.compress.conversation import render_turn
from memoryd.core import Message

_NAMES = [
    "Caroline",
    "Mateo",
    "Priya",
    "Jonas",
    "Amina",
    "Felix",
    "Noor",
    "Tobias",
    "Ingrid",
    "Rafael",
    "Mei",
    "Oskar",
    "Leila",
    "Dmitri",
    "Sofia",
    "Kwame",
    "Hana",
    "Bruno",
    "Elif",
    "Marcus",
    "Yuki",
    "Thea",
    "Andre",
    "Zainab",
    "Pavel",
    "Lucia",
    "Omar",
    "Freya",
    "Diego",
    "Anika",
    "Samuel",
    "Nadia",
    "Henrik",
    "Rosa",
    "Tariq",
    "Clara",
    "Ivan",
    "Maya",
]
_CITIES = [
    "Lisbon",
    "Tromso",
    "Valencia",
    "Kyoto",
    "Denver",
    "Porto",
    "Galway",
    "Bergen",
    "Toronto",
    "Nairobi",
    "Leipzig",
    "Oaxaca",
    "Tallinn",
    "Hobart",
    "Ghent",
    "Cusco",
]
_THINGS = [
    "garden",
    "kitchen",
    "bicycle",
    "sailboat",
    "piano",
    "camera",
    "tent",
    "telescope",
    "greenhouse",
    "bookshelf",
    "kayak",
    "workshop",
]
_ANIMALS = ["cat", "dog", "parrot", "rabbit", "tortoise", "hamster", "pony", "ferret"]
_FOODS = ["ramen", "pierogi", "mango sticky rice", "lentil soup", "lasagna", "tacos al pastor", "paella", "pho"]
_ALLERGENS = ["peanuts", "shellfish", "penicillin", "pollen", "latex", "sesame", "bee stings"]
_JOBS = ["a nurse", "a civil engineer", "a pastry chef", "a geologist", "a tax adviser", "a translator", "a paramedic"]
_INSTRUMENTS = ["cello", "accordion", "banjo", "oboe", "harp", "ukulele", "trombone", "sitar"]
_HOBBIES = ["pottery", "rock climbing", "birdwatching", "fencing", "beekeeping", "calligraphy", "salsa dancing"]
_EVENTS = [
    ("went to a pottery workshop", "go to a pottery workshop"),
    ("adopted a puppy", "adopt a puppy"),
    ("ran a half marathon", "run a half marathon"),
    ("met my new neighbours", "meet the new neighbours"),
    ("visited the aquarium", "visit the aquarium"),
    ("gave a talk at the library", "give a talk at the library"),
    ("signed the lease", "sign the lease"),
    ("passed my driving test", "pass the driving test"),
    ("had dinner with my cousin", "have dinner with a cousin"),
    ("started a painting class", "start a painting class"),
]
_FILLER = [
    "Hey, how have you been?",
    "That sounds great, tell me more!",
    "I know what you mean.",
    "Thanks, I really appreciate it.",
    "It has been raining all week here.",
    "Sorry for the late reply, work was busy.",
    "Haha, that is so true.",
    "Noted, I'll keep that in mind.",
    "Good luck with everything!",
    "I still have to do the dishes.",
    "What are your plans for the weekend?",
    "Sure, happy to help with that.",
    "Let's talk about it tomorrow.",
    "Wow, congratulations!",
]

_FIRST_PERSON = {"{n}'s": "my", "is {n}": "am I", "does {n}": "do I", "cost {n}": "cost me", "{n}": "I"}


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation's ``text``, its ``title``, what can be asked of it, and what cannot: no turn says it."""

    title: str
    text: str
    questions: tuple[tuple[str, str], ...]
    unanswerable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Fact:
    """How a fact is said and asked; {v} is its value, {n} who says it, {t} a thing and {a} an animal."""

    value: Callable[[random.Random], str]
    said: tuple[str, ...]
    asked: tuple[str, ...]


def _code(letters: int, digits: int) -> Callable[[random.Random], str]:
    return lambda r: "".join(r.choices(string.ascii_uppercase, k=letters)) + "".join(r.choices(string.digits, k=digits))


def _one(options: list[str]) -> Callable[[random.Random], str]:
    return lambda r: r.choice(options)


def _surname(r: random.Random) -> str:
    return "".join(r.choice("bdfgklmnprstvz") + r.choice("aeiou") for _ in range(r.randint(2, 3))).capitalize() + r.choice(
        "nrlsk"
    )


def _day(r: random.Random) -> str:
    day = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=r.randrange(366))
    return f"{day.day} {day:%B}"


def _clock(r: random.Random) -> str:
    return f"{r.randint(7, 21)}:{r.choice(['00', '15', '30', '45', '10', '20'])}"


_VALUES: dict[str, Callable[[random.Random], str]] = {
    "name": _surname,
    "city": _one(_CITIES),
    "job": _one(_JOBS),
    "company": lambda r: _surname(r) + r.choice([" Labs", " & Sons", " Logistics", " Foods"]),
    "day": _day,
    "food": _one(_FOODS),
    "allergen": _one(_ALLERGENS),
    "booking": _code(2, 4),
    "door code": _code(0, 4),
    "flight": _code(2, 3),
    "time": _clock,
    "price": lambda r: f"{r.randint(3, 980)} {r.choice(['euros', 'dollars', 'pounds'])}",
    "person": _one(_NAMES),
    "doctor": lambda r: "Dr. " + _surname(r),
    "phone": lambda r: f"0{r.randint(100, 999)} {r.randint(100000, 999999)}",
    "password": lambda r: _surname(r).lower() + "-" + str(r.randint(10, 9999)),
    "project": lambda r: "Project " + _surname(r),
    "port": lambda r: str(r.randint(1024, 65535)),
    "instrument": _one(_INSTRUMENTS),
    "hobby": _one(_HOBBIES),
    "count": lambda r: str(r.randint(2, 38)),
}

# The kind of value; how it is said; how it is asked.
_TABLE = """
name
    My {a} is called {v}. | We named the {a} {v}.
    What is the name of {n}'s {a}? | What did {n} name the {a}?
city
    I'm moving to {v} next month. | We finally decided to move to {v}.
    Where is {n} moving? | Which city is {n} moving to?
city
    I grew up in {v}, you know. | I was born in {v}.
    Where did {n} grow up? | Where is {n} from?
job
    I work as {v} these days. | I just started working as {v}.
    What does {n} do for work? | What is {n}'s job?
company
    I got the offer from {v}! | My new employer is {v}.
    Which company does {n} work for? | Who is {n}'s new employer?
day
    My birthday is on {v}. | I turn thirty on {v}.
    When is {n}'s birthday? | On what date is {n}'s birthday?
food
    My favourite food is {v}. | I could eat {v} every day.
    What is {n}'s favourite food? | What could {n} eat every day?
allergen
    Please remember that I'm allergic to {v}. | The doctor says I'm allergic to {v}.
    What is {n} allergic to? | Which allergy does {n} have?
booking
    My booking reference is {v}. | The booking reference they sent me is {v}.
    What is {n}'s booking reference? | Which booking reference did {n} get?
door code
    The code for my front door is {v}. | My door code is {v} now.
    What is {n}'s door code? | What is the code for {n}'s front door?
flight
    I'm on flight {v}. | My flight is {v}.
    What is {n}'s flight number? | Which flight is {n} on?
time
    My dentist appointment is at {v}. | I have to be at the dentist at {v}.
    What time is {n}'s dentist appointment? | When does {n} have to be at the dentist?
price
    I paid {v} for the {t}. | The {t} cost me {v}.
    How much did {n} pay for the {t}? | What did the {t} cost {n}?
person
    My sister {v} is visiting soon. | My sister is called {v}.
    What is the name of {n}'s sister? | Who is {n}'s sister?
doctor
    I see {v} about my knee. | My doctor is {v}.
    Who is {n}'s doctor? | Which doctor does {n} see?
phone
    My new phone number is {v}. | You can reach me at {v}.
    What is {n}'s phone number? | At which number can {n} be reached?
password
    The Wi-Fi password here is {v}. | My Wi-Fi password is {v}.
    What is {n}'s Wi-Fi password? | Which Wi-Fi password did {n} give?
project
    Our team is working on {v}. | I was put in charge of {v}.
    Which project is {n} working on? | What project does {n} work on?
day
    The deadline for my report is {v}. | I have to hand in the report by {v}.
    When is {n}'s report due? | What is the deadline for {n}'s report?
port
    My server listens on port {v}. | I moved the service to port {v}.
    Which port does {n}'s server use? | On which port does {n}'s server listen?
instrument
    I've been learning the {v}. | I play the {v} in a small band.
    Which instrument does {n} play? | What instrument is {n} learning?
hobby
    I took up {v} this year. | {v} is my new hobby.
    What hobby did {n} take up? | What is {n}'s new hobby?
count
    There are {v} people in my team. | My team has grown to {v} people.
    How many people are in {n}'s team? | How big is {n}'s team?
"""


def _facts(table: str) -> list[_Fact]:
    lines = [line.strip() for line in table.strip().splitlines()]
    return [
        _Fact(_VALUES[kind], tuple(said.split(" | ")), tuple(asked.split(" | ")))
        for kind, said, asked in zip(lines[::3], lines[1::3], lines[2::3], strict=True)
    ]


_FACTS = _facts(_TABLE)


def make_chat(r: random.Random, facts: int = 5) -> Chat:
    """A conversation of two people, or of a user and an assistant, with about ``facts`` facts."""
    with_assistant = r.random() < 0.35
    first, second = r.sample(_NAMES, 2)
    when = datetime(2023, 1, 1, 8, tzinfo=UTC) + timedelta(minutes=r.randrange(60 * 24 * 900))
    dated = r.random() < 0.75
    turns: list[Message] = []
    questions: list[tuple[str, str]] = []
    chosen = r.sample(_FACTS, facts + 2)

    def say(speaker: str, content: str) -> None:
        nonlocal when
        role = "assistant" if with_assistant and speaker == second else "user"
        shown = "" if with_assistant else speaker
        turns.append(Message(role, content, shown, when if dated else None))
        when += timedelta(minutes=r.randint(1, 9))

    def fill(fact: _Fact, owner: str) -> tuple[str, str, str]:
        thing, animal, value = r.choice(_THINGS), r.choice(_ANIMALS), fact.value(r)
        who = owner
        asked = r.choice(fact.asked)
        if with_assistant:  # the user asks about themselves, in either voice
            voice = _FIRST_PERSON if r.random() < 0.5 else {"{n}": "the user"}
            for old, new in voice.items():
                asked = asked.replace(old, new)
        said = r.choice(fact.said).format(v=value, t=thing, a=animal)
        return said[0].upper() + said[1:], asked.format(n=who, t=thing, a=animal), value

    for fact in chosen[:facts]:
        owner = first if with_assistant else r.choice((first, second))
        said, asked, value = fill(fact, owner)
        other = second if owner == first else first
        if r.random() < 0.5:
            say(other, r.choice(_FILLER))
        lead = r.choice(_FILLER) + " " if r.random() < 0.3 else ""
        trail = " " + r.choice(_FILLER) if r.random() < 0.3 else ""
        say(owner, lead + said + trail)
        questions.append((asked, value))
    if dated and not with_assistant and r.random() < 0.7:
        questions.append(_event(r, say, first, when))
    missing = [fill(fact, first if with_assistant else r.choice((first, second)))[1] for fact in chosen[facts:]]
    if not with_assistant:  # what one of them said, asked of somebody who is not there
        stranger = r.choice([n for n in _NAMES if n not in (first, second)])
        asked = questions[0][0]
        missing += [asked.replace(first, stranger).replace(second, stranger)]
    title = r.choice(["", "Conversation", f"{first} and {second}" if not with_assistant else "Chat with the assistant"])
    return Chat(title, "\n".join(render_turn(t) for t in turns), tuple(questions), tuple(missing))


def _event(r: random.Random, say: Callable[[str, str], None], speaker: str, when: datetime) -> tuple[str, str]:
    """A turn that dates an event relative to itself, and the question when it was."""
    done, do = r.choice(_EVENTS)
    word, days = r.choice([("yesterday", 1), ("today", 0), ("two days ago", 2), ("this morning", 0)])
    say(speaker, f"I {done} {word}.")
    date = when - timedelta(days=days)
    return f"When did {speaker} {do}?", f"{date.day} {date:%B %Y}"
