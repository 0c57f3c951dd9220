"""Write passages.jsonl and questions.jsonl: cities, countries, elements; countries of cities.

python -m launch.quickstart.passages --samples-dir=DIR --workdir=DIR [--cities=5000] [--per-bin=20]
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from launch.errors import LaunchError, one_line
from launch.quickstart import world
from lm.data.read.sources import DataError
from lm.data.samples import fetch


def write(path: Path, text: str) -> None:
    """Write the file atomically, and create its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def json_lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.quickstart.passages",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("--samples-dir", help="where the samples lie (default: the user's cache)")
    parser.add_argument(
        "--workdir",
        required=True,
        type=Path,
        help="where passages.jsonl and questions.jsonl are written",
    )
    parser.add_argument(
        "--cities", type=int, default=5000, help="how many cities get a passage (default 5000)"
    )
    parser.add_argument(
        "--per-bin",
        type=int,
        default=20,
        help="questions in each of the ten popularity bins (default 20)",
    )
    parser.add_argument(
        "--train-per-bin",
        type=int,
        default=0,
        help="also write train.jsonl with at most so many other questions of each bin (default 0)",
    )
    args = parser.parse_args(argv)
    try:
        geonames, elements = (
            fetch("geonames", args.samples_dir),
            fetch("elements", args.samples_dir),
        )
    except DataError as error:
        raise LaunchError(str(error)) from error
    countries = world.read_countries(geonames)
    cities = world.choose(world.read_cities(geonames), args.cities)
    passages = [world.city_passage(city, countries) for city in cities]
    passages += [world.country_passage(code, countries) for code in sorted(countries)]
    passages += world.element_passages(elements)
    asked = world.questions(cities, countries, args.per_bin)
    write(
        args.workdir / "passages.jsonl",
        json_lines(dataclasses.asdict(passage) for passage in passages),
    )
    write(args.workdir / "questions.jsonl", json_lines(asked))
    if args.train_per_bin:
        others = world.questions(cities, countries, args.train_per_bin, seed=1, asked=asked)
        write(args.workdir / "train.jsonl", json_lines(others))
    print(
        f"{len(passages):,} passages ({len(cities):,} cities, {len(countries)} countries) and "
        f"{len(asked)} questions in {args.workdir}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
