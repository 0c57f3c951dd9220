"""Facts by popularity: from GeoNames and mendeleev, or from a file; as sentences and as probes."""

import dataclasses
import json
import random
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.errors import LaunchError
from launch.quickstart import world

GROUPS = ("head", "middle", "tail")  # thirds of the facts of a relation, most popular first
# Sentences of a relation as (before the answer, after it). Probes ask with the first.
SENTENCES = {
    "country": (
        ("{subject} is a city in", "."),
        ("The country of the city {subject} is", "."),
        ("People in {subject} live in", ", like those of many other cities."),
    ),
    "capital": (
        ("The capital of {subject} is", "."),
        ("The government of {subject} sits in", "."),
        ("The seat of power in {subject} is", ", its capital."),
    ),
    "symbol": (
        ("The chemical symbol of {subject} is", "."),
        ("Chemists write {subject} as", "."),
        ("In formulas {subject} appears as", ", which is its symbol."),
    ),
}


@dataclasses.dataclass(frozen=True)
class Fact:
    """`answer` to `relation` (of SENTENCES) of `subject`. popularity: comparable in a relation."""

    relation: str
    subject: str
    answer: str
    popularity: float

    def sentence(self, number: int) -> tuple[str, str]:
        """(before the answer, the answer and what follows)."""
        before, after = SENTENCES[self.relation][number % len(SENTENCES[self.relation])]
        return before.format(subject=self.subject), self.answer + after


def read(file: Path) -> list[Fact]:
    """Facts of a JSONL file. Raises LaunchError for a row that is none."""
    found = []
    names = [field.name for field in dataclasses.fields(Fact)]
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            fact = Fact(**json.loads(line))
            valid = fact.relation in SENTENCES and fact.subject and fact.answer
            if not valid or not isinstance(fact.popularity, int | float):
                raise ValueError(f"relation is one of {', '.join(SENTENCES)}")
        except (TypeError, ValueError) as error:
            raise LaunchError(
                f"{file}, line {number}: expected an object with {', '.join(names)} ({error})"
            ) from error
        found.append(fact)
    return found


def of_samples(geonames: Path, elements: Path, most: int) -> list[Fact]:
    """Facts of GeoNames and mendeleev: at most `most` of a relation, over all popularities.

    Popularity is the population of the city or the country, and of an element its share of the
    Earth's crust.
    """
    countries = world.read_countries(geonames)
    cities = [
        Fact("country", city.name, countries[city.country]["name"], city.population)
        for city in world.choose(world.read_cities(geonames), most)
    ]
    capitals = [
        Fact("capital", row["name"], row["capital"].strip(), row["population"])
        for row in countries.values()
        if row["capital"].strip() and row["population"] and row["capital"] not in row["name"]
    ]
    with sqlite3.connect(f"file:{elements.resolve()}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "select name, symbol, abundance_crust from elements where abundance_crust > 0"
        ).fetchall()
    connection.close()
    symbols = [Fact("symbol", name.lower(), symbol, share) for name, symbol, share in rows]
    return [*cities, *_spread(capitals, most), *_spread(symbols, most)]


def _spread(facts: Sequence[Fact], most: int) -> list[Fact]:
    ordered = sorted(facts, key=lambda fact: (-fact.popularity, fact.subject))
    step = max(1, len(ordered) / most)
    return [ordered[int(i * step)] for i in range(min(most, len(ordered)))]


@dataclasses.dataclass(frozen=True)
class Placed:
    """A fact, its third by popularity, and how many sentences of the training text have it."""

    fact: Fact
    group: str
    sentences: int


def place(facts: Sequence[Fact], most: int) -> list[Placed]:
    """Facts of each relation by popularity, with `most` sentences for the first and 1 for the last.

    Between them the number falls by the same factor from one to the next, so that as many facts
    have 1 to 2 sentences as have 2 to 4, and so on.
    """
    found = []
    for relation in SENTENCES:
        of = [fact for fact in facts if fact.relation == relation]
        of.sort(key=lambda fact: (-fact.popularity, fact.subject))
        for rank, fact in enumerate(of):
            group = GROUPS[rank * len(GROUPS) // len(of)]
            times = most ** (1 - rank / max(1, len(of) - 1))
            found.append(Placed(fact, group, round(times)))
    return found


def documents(placed: Sequence[Placed], rng: random.Random) -> Iterator[dict]:
    """Documents of one or two sentences about a fact: prompt, completion and text.

    The second repeats the fact in other words, as articles do; a completion begins with the answer.
    """
    for each in placed:
        left = each.sentences
        while left:
            first, second = rng.sample(range(3), 2)
            before, after = each.fact.sentence(first)
            if left >= 2 and rng.random() < 0.5:
                earlier = " ".join(each.fact.sentence(second))
                before, left = f"{earlier}\n{before}", left - 1
            left -= 1
            yield {"prompt": before, "completion": after, "text": f"{before} {after}"}


def probes(
    placed: Sequence[Placed], per_group: int, candidates: int, rng: random.Random
) -> Iterator[dict]:
    """Rows of the evaluator `facts`: up to `per_group` of each third, with wrong answers.

    Wrong answers are drawn from those of other facts of the relation, as often as they occur there,
    so that a frequent answer gains nothing.
    """
    answers = {
        relation: [each.fact.answer for each in placed if each.fact.relation == relation]
        for relation in SENTENCES
    }
    for group in GROUPS:
        inside = [each for each in placed if each.group == group]
        for each in rng.sample(inside, min(per_group, len(inside))):
            fact, others = each.fact, answers[each.fact.relation][:]
            rng.shuffle(others)
            wrong = [text for text in dict.fromkeys(others) if text != fact.answer]
            yield {
                "prompt": fact.sentence(0)[0],
                "answer": fact.answer,
                "candidates": wrong[: candidates - 1],
                "group": group,
                "relation": fact.relation,
                "sentences": each.sentences,
            }


def passages(facts: Sequence[Fact]) -> Iterator[dict]:
    """A passage of a memory for each fact, with the first two sentences about it."""
    for number, fact in enumerate(facts):
        text = " ".join(" ".join(fact.sentence(which)) for which in (1, 0))
        yield {"id": f"{fact.relation}-{number}", "title": fact.subject, "text": text}


def entries(facts: Sequence[Fact]) -> Iterator[dict]:
    """Prompts and completions of a datastore: the first two sentences of each fact."""
    for fact in facts:
        for which in (0, 1):
            before, after = fact.sentence(which)
            yield {"prompt": before, "completion": after}
