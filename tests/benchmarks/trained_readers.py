"""Small T5s that learn to read a memory: python -m tests.benchmarks.trained_readers

Facts: passages about cities, of which each says the country, the population and the time zone.
With --data, also the questions of a SQuAD file, cut as by `open_book_qa`. Cities and articles are
dealt into three parts. For each part a T5 learns, from random weights, to answer questions of the
other two from one passage; then one reader for each door learns to answer through it. All are asked
the questions of the part, whose cities and articles no reader has learned. The closed-book reader
learns without passages. With --data, readers begin with questions made from --text, first about
clauses, then about passages: a name or number is left out. Answers that are already in --workdir
are used again.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from configs.defaults import defaults
from launch.quickstart import world
from lm import tasks
from lm.data import samples, tokenizers
from lm.evaluation.accuracy import contains, exact, wilson
from lm.evaluation.generation import spread
from lm.families import preset
from lm.training.settings import model_section
from retrieval import Encoder, Memory, Passage
from retrieval.doors.door import named
from retrieval.reading.reader import load_reader
from tests.benchmarks.dual_encoder import articles, trained
from tests.benchmarks.open_book_qa import HEAD, NEW, answered, audited, cut, kept, line, read

PARTS = 3
DOORS = "fid", "closed-book", "in_context", "rag_sequence"
SHAPE = dict(
    d_model=128,
    n_layers=2,
    encoder_layers=3,
    n_heads=4,
    n_kv_heads=4,
    head_dim=32,
    d_ff=256,
    max_length=512,
    vocab_size=0,
    tie_embeddings=False,
    logit_scale=1.0,
    initializer_range=0.03,
    dropout=0.0,
)
FACT, READ, CLAUSE = 96, 160, 96  # tokens of a question and a passage
WORDS = 10  # of a clause, on both sides
PROMPT, CLOSED = 32, 96  # further tokens of a prompt of other doors than fid; one without passages
BATCH = 16  # questions of an update
BINS = {"15,000 to 80,000 people": range(4), "to 400,000": range(4, 7), "more": range(7, 10)}
RELATIONS = "country", "population", "time zone"
WH = "what", "who", "which"
BLANK = re.compile(r"(?<=[a-z,] )(?:[A-Z][a-z]+(?: [A-Z][a-z]+)*|\d[\d,.]*\d|\d)(?= )")


def facts(
    cities: Sequence[world.City],
    countries: Mapping[str, dict],
    relations: Sequence[str] = RELATIONS,
) -> list[dict]:
    """A question of each relation and city whose name does not contain its country's."""
    rows = []
    for city in cities:
        names = [countries[city.country]["name"], *world.ALIASES.get(city.country, ())]
        asked = {
            "country": (f"In which country is {city.name}?", names),
            "population": (f"What is the population of {city.name}?", [f"{city.population:,}"]),
            "time zone": (f"What is the time zone of {city.name}?", [city.timezone]),
        }
        known = {"passage": f"city-{city.id}", "bin": world.bin_of(city.population)}
        rows += [
            {"question": question, "answers": answers, "relation": relation} | known
            for relation, (question, answers) in asked.items()
            if relation in relations and not contains(city.name, names)
        ]
    return rows


def plain(text: str) -> str:
    """A line of WikiText-2 as it was before it was cut into words."""
    text = re.sub(r" @(.)@ ", r"\1", text.replace("<unk>", "").strip())
    return re.sub(r"\s+([,.;:!?)%]|'s)", r"\1", text.replace("( ", "("))


def made(
    lines: Iterable[str], most: int, clauses: int = 0, seed: int = 0
) -> tuple[list[Passage], list[dict]]:
    """Passages of paragraphs, and questions that leave a name or a number of these out.

    clauses: passages of only so many words before and after what is left out, for all names and
    numbers; 0: consecutive sentences, with one question each.
    """
    rng, found, title = random.Random(seed), [], ""
    for each in lines:
        text = plain(each)
        if heading := re.fullmatch(r"= ([^=]+) =", text):
            title = heading[1]
        for a, b in cut(text) if len(text.split()) > 20 else ():
            gaps = list(BLANK.finditer(text, a, b))
            for gone in gaps if clauses else rng.sample(gaps, min(1, len(gaps))):
                before, after = text[a : gone.start()].split(), text[gone.end() : b].split()
                left, right = before[-9:], after[:6]
                asked = (
                    [rng.choice(WH), *right, *left]
                    if rng.random() < 0.5
                    else [*left, rng.choice(WH), *right]
                )
                near = " ".join([*before[-clauses:], gone[0], *after[:clauses]])
                found.append((near if clauses else text[a:b], title, " ".join(asked), gone[0]))
    passages, rows = [], []
    for i, (passage, title, asked, answer) in enumerate(rng.sample(found, min(most, len(found)))):
        passages.append(Passage(f"t{i}", passage, title=title))
        rows.append({"question": f"{asked}?", "answers": [answer], "passage": passages[-1].id})
    return passages, rows


def config(start: str, memory: Path, door: str, k: int, width: int, steps: int, seed: int):
    """Training of a reader. start: a run, or a folder with a tokenizer only."""
    c = defaults()
    c.seed, c.steps, c.batch_size, c.length = seed, steps, BATCH, width * k
    if fresh := not (Path(start) / "config.json").exists():
        c.tokenizer = start
        c.model.update(model_section(preset("t5", "tiny")).to_dict() | SHAPE)
    else:
        c.init_from = start
    c.task = tasks.defaults(
        "retrieval.tasks.open_book:OpenBook",
        memory=str(memory),
        door=door,
        k=k,
        answer_field="answers",
        target_length=NEW,
    )
    c.optimizer.learning_rate = 2e-3 if fresh else 1e-3
    c.optimizer.schedule = "constant" if fresh else "cosine"
    c.optimizer.warmup, c.optimizer.b2 = min(30, steps // 2), 0.98
    c.eval.every, c.eval.data, c.log.every, c.log.tensorboard = 0, {}, 50, False
    c.checkpoint.every, c.checkpoint.keep = steps, 1
    return c


def written(path: Path, rows: Sequence[Mapping]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def memory(path: Path, passages: Sequence[Passage], encoder: Encoder) -> Memory:
    """The memory of a folder, which is made if it is not there."""
    if path.exists():
        return Memory.open(path, encoder)
    found = Memory.create(path, encoder)
    if passages:
        found.add(passages)
    return found


def reply(ask: Callable, rows, full: Memory, door: str, through: str, run: Path, k: int) -> dict:
    """What `answered` or `audited` gives for the reader of a run."""
    return ask(full, rows, load_reader(str(run), named(door)), through, k)


def joined(parts: Sequence[Mapping]) -> dict:
    """Answers of all parts as of one."""
    lists = {name: [one for part in parts for one in part[name]] for name in ("texts", "found")}
    return lists | {"cpu_seconds": sum(part["cpu_seconds"] for part in parts)}


def chosen(got: Mapping, at: Sequence[int]) -> dict:
    return {name: [got[name][i] for i in at] for name in ("texts", "found")}


def shares(rows: Sequence[Mapping], got: Mapping) -> str:
    """Share of exact answers with its interval."""
    right = sum(exact(t, row["answers"]) for t, row in zip(got["texts"], rows, strict=True))
    low, high = wilson(right, len(rows))
    return f"{right / len(rows):.1%} ({low:.1%} to {high:.1%}) of {len(rows)}"


def report(rows: Sequence[dict], got: Mapping[str, dict], groups: Mapping[str, list[int]]) -> None:
    """Tables of all questions, and of the exact answers of each group."""
    print(HEAD)
    for door, of in got.items():
        print(line(door, list(rows), of))
    for name, at in groups.items():
        for door, of in got.items():
            print(f"| {name} | {door} | {shares([rows[i] for i in at], chosen(of, at))} |")


def audits(found: Sequence[Mapping]) -> None:
    """Table of the conditions, over the audits of all parts."""
    if found:
        print(f"audit, {sum(one['cpu_seconds'] for one in found):.0f} CPU s")
    for each in zip(*(one["conditions"] for one in found), strict=True):
        right, asked = (sum(one[name] for one in each) for name in ("right", "asked"))
        low, high = wilson(right, asked)
        p = ", ".join(f"{one['p']:.1g}" for one in each)
        print(f"| {each[0]['name']} | {right} of {asked} | {low:.1%} to {high:.1%} | {p} |")


def readers(
    work: Path,
    passages: Sequence[Passage],
    parts: Sequence[tuple[list[dict], list[dict]]],
    encoder: Encoder,
    starts: Sequence[str],
    width: int,
    args,
) -> tuple[list[dict], dict[str, dict]]:
    """Train and ask a reader of each part and door; returns all questions and door -> answers.

    parts: questions that are learned, and those that are asked. starts: of each part's readers.
    width: tokens of a question and a passage. Prints the seconds of training, and the audits.
    """
    full = memory(work / "memory", passages, encoder)
    memory(work / "nothing", (), encoder)
    got = {}
    for door in args.doors:
        closed, spent, each, audit = door == "closed-book", 0.0, [], []
        through = f"fid,tokens={width}" if door == "fid" else door
        asks = "in_context" if closed else through
        k, size = (1, CLOSED) if closed else (args.k, width + PROMPT * (door != "fid"))
        for seed, (learned, asked) in enumerate(parts):
            run = work / f"part{seed}" / door
            searched = work / ("nothing" if closed else "memory")
            c = config(starts[seed], searched, asks, k, size, args.steps, seed)
            c.data.files = written(run.with_suffix(".jsonl"), learned)

            train = kept(run.with_suffix(".train.json"), partial(trained, c, run))
            spent += train["cpu_seconds"]
            told = full, asks, through, run, args.k
            each.append(
                kept(run.with_suffix(".answers.json"), partial(reply, answered, asked, *told))
            )
            if door in args.audit:
                same = [row for row in asked if row.get("relation") in (None, "country")]
                some = spread(same, args.audited)
                audit.append(
                    kept(run.with_suffix(".audit.json"), partial(reply, audited, some, *told))
                )
        got[door] = joined(each)
        print(f"{door}: trained for {spent:.0f} CPU s", flush=True)
        audits(audit)
    return [row for _, asked in parts for row in asked], got


def places(count: int) -> tuple[list[Passage], list[world.City], dict[str, dict]]:
    """Passages of cities, countries and elements, the cities, and the countries."""
    geonames = samples.fetch("geonames")
    countries = world.read_countries(geonames)
    cities = world.choose(world.read_cities(geonames), count)
    passages = [world.city_passage(city, countries) for city in cities]
    passages += [world.country_passage(code, countries) for code in sorted(countries)]
    passages += world.element_passages(samples.fetch("elements"))
    return passages, cities, countries


def texts(args) -> list[str]:
    """What the tokenizer is trained on: all passages, with some of their questions."""
    passages, found = [], []
    if args.only != "squad":
        passages, cities, countries = places(args.cities)
        found = [row["question"] for row in facts(cities[::3], countries)]
    if args.data:
        more, rows = read(args.data)
        passages, found = passages + more, found + [row["question"] for row in rows]
    if args.text:
        found += [plain(each) for each in args.text.read_text(encoding="utf-8").splitlines()]
    return found + [f"{passage.title}: {passage.text}" for passage in passages]


def on_facts(args, encoder: Encoder, tokens: str) -> None:
    """Readers of passages about cities, countries and elements."""
    work, (passages, cities, countries) = args.workdir / "facts", places(args.cities)
    parts, starts = [], []
    for seed in range(PARTS):
        others = [c for i, c in enumerate(cities) if i % PARTS != seed]
        learned = facts(others, countries, args.relations)
        random.Random(seed).shuffle(learned)
        held = [city for i, city in enumerate(cities) if i % PARTS == seed]
        asked = facts(spread(held, args.asked), countries, args.relations)
        parts.append((learned[: args.questions // 3], asked))
        base = work / f"part{seed}/base"
        files = written(base.with_suffix(".jsonl"), learned[: args.questions])
        memory(work / "memory", passages, encoder)
        c = config(tokens, work / "memory", f"fid,tokens={FACT}", 1, FACT, args.base, seed)
        c.data.files = files
        spent = kept(base.with_suffix(".json"), partial(trained, c, base))
        print(f"part {seed}: one passage, {spent['cpu_seconds']:.0f} CPU s", flush=True)
        starts.append(str(base))
    rows, got = readers(work, passages, parts, encoder, starts, FACT, args)
    groups = {
        name: [i for i, row in enumerate(rows) if row["relation"] == name]
        for name in args.relations
    }
    groups |= {
        f"country, {name}": [i for i in groups.get("country", []) if rows[i]["bin"] in bins]
        for name, bins in BINS.items()
    }
    report(rows, got, groups)


def on_squad(args, encoder: Encoder, tokens: str) -> None:
    """Readers of the passages of a SQuAD file, after questions made from a text."""
    work, start = args.workdir / "squad", tokens
    for name, words, width, most, steps in (
        ("clauses", WORDS, CLAUSE, args.clauses, args.clause_steps),
        ("text", 0, READ, args.made, args.text_steps),
    ):
        with args.text.open(encoding="utf-8") as lines:
            passages, rows = made(lines, most, words)
        memory(work / name, passages, encoder)
        c = config(start, work / name, f"fid,tokens={width}", 1, width, steps, 0)
        c.data.files = written(work / f"{name}.jsonl", rows)
        start = str(work / f"{name}-base")
        spent = kept(work / f"{name}.json", partial(trained, c, start))
        print(f"{len(rows)} questions from {name}, {spent['cpu_seconds']:.0f} CPU s", flush=True)
    passages, rows = read(args.data)
    of = articles(passages)
    inside = lambda row, seed: of[row["passage"]] % PARTS == seed
    parts = [
        (
            [row for row in rows if not inside(row, seed)],
            spread([row for row in rows if inside(row, seed)], args.asked * 3),
        )
        for seed in range(PARTS)
    ]
    starts = [start] * PARTS
    report(*readers(work, passages, parts, encoder, starts, READ, args), {})


def main(argv=None) -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--only", choices=("facts", "squad"))
    options.add_argument("--data", type=Path, help="SQuAD's JSON, with titles")
    options.add_argument("--text", type=Path, help="with --data: WikiText-2's file")
    options.add_argument("--workdir", type=Path, default=Path("runs/trained_readers"))
    options.add_argument("--encoder", default="", help="default: MiniLM of lm.data.samples")
    options.add_argument("--doors", nargs="*", default=DOORS)
    options.add_argument("--audit", nargs="*", default=["fid"], help="doors that are audited")
    options.add_argument("--relations", nargs="+", choices=RELATIONS, default=RELATIONS)
    options.add_argument("--cities", type=int, default=5000)
    options.add_argument("--questions", type=int, default=2400, help="of a part, from one passage")
    options.add_argument("--asked", type=int, default=40, help="cities of a part that are asked")
    options.add_argument(
        "--audited",
        type=int,
        default=40,
        help="of a part; on facts countries, so that names are exchanged for names",
    )
    options.add_argument("--clauses", type=int, default=12000, help="questions about clauses")
    options.add_argument("--made", type=int, default=4000, help="questions about passages of it")
    options.add_argument("--base", type=int, default=900, help="updates from one passage")
    options.add_argument("--clause-steps", type=int, default=5000)
    options.add_argument("--text-steps", type=int, default=1500)
    options.add_argument("--steps", type=int, default=60, help="updates of a door")
    options.add_argument("-k", type=int, default=2, help="passages of a question")
    args = options.parse_args(argv)
    encoder = Encoder.from_hf(args.encoder or samples.fetch("minilm"))
    tokens = args.workdir / "tokenizer"
    if not tokens.exists():
        tokens.mkdir(parents=True)
        tokenizers.train(list(texts(args)), 2048).save_pretrained(tokens)
    for name, study in (("facts", on_facts), ("squad", on_squad)):
        if args.only in (None, name) and (name == "facts" or args.data):
            study(args, encoder, str(tokens))


if __name__ == "__main__":
    main()
