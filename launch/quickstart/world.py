"""Passages and questions from GeoNames (geonames.org, CC-BY 4.0) and mendeleev (MIT)."""

import collections
import dataclasses
import json
import random
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.errors import LaunchError
from lm.evaluation.accuracy import contains, normalise
from retrieval.passages import Passage

CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
REGIONS = (
    "North America",
    "South America",
    "Central America",
    "Latin America",
)  # contain "America", but do not mean the country
DISSOLVED = (
    "AN",
    "CS",
)  # former countries in GeoNames: Netherlands Antilles, Serbia and Montenegro
BINS = (
    15_000,
    20_000,
    30_000,
    50_000,
    80_000,
    130_000,
    200_000,
    400_000,
    800_000,
    2_000_000,
)  # lower edges of population bins; the last is open
ALIASES = {
    "AE": ("UAE", "Emirates"),
    "BA": ("Bosnia",),
    "BN": ("Brunei Darussalam",),
    "CD": ("DR Congo", "DRC", "Congo-Kinshasa", "Congo"),
    "CF": ("CAR",),
    "CG": ("Republic of Congo", "Congo-Brazzaville", "Congo"),
    "CI": ("Côte d'Ivoire",),
    "CN": ("People's Republic of China", "PRC"),
    "CV": ("Cape Verde",),
    "CZ": ("Czech Republic",),
    "GB": ("UK", "Great Britain", "Britain", "England", "Scotland", "Wales"),
    "GF": ("France",),
    "GP": ("France",),
    "HK": ("China",),
    "KP": ("DPRK", "Korea"),
    "KR": ("Republic of Korea", "Korea"),
    "LA": ("Lao",),
    "MK": ("Macedonia",),
    "MM": ("Burma",),
    "MO": ("Macau", "China"),
    "MQ": ("France",),
    "NL": ("Holland",),
    "PR": ("United States", "US", "USA"),
    "PS": ("Palestine", "West Bank", "Gaza Strip"),
    "RE": ("Réunion", "France"),
    "RU": ("Russian Federation",),
    "SY": ("Syrian Arab Republic",),
    "SZ": ("Swaziland",),
    "TL": ("East Timor",),
    "TR": ("Türkiye",),
    "TW": ("Republic of China",),
    "TZ": ("United Republic of Tanzania",),
    "US": ("United States of America", "USA", "US", "America"),
    "VN": ("Viet Nam",),
    "YT": ("France",),
}


@dataclasses.dataclass(frozen=True)
class City:
    """City of GeoNames.

    population: people. latitude, longitude: degrees. region: code of the first-level division.
    """

    id: int
    name: str
    country: str
    region: str
    population: int
    timezone: str
    latitude: float
    longitude: float


def read_cities(folder: Path) -> list[City]:
    """Cities with a unique name, ignoring accents and case; most populous first."""
    states = {
        code: state["name"]
        for code, state in json.loads((folder / "us_states.json").read_text()).items()
    }
    by_name = collections.defaultdict(list)
    for c in json.loads((folder / "cities15000.json").read_text()).values():
        region = states.get(c["admin1code"], "") if c["countrycode"] == "US" else ""
        region = region or f"{c['countrycode']}.{c['admin1code']}"
        city = City(
            c["geonameid"],
            c["name"].strip(),
            c["countrycode"],
            region,
            c["population"],
            c["timezone"],
            c["latitude"],
            c["longitude"],
        )
        by_name[normalise(city.name)].append(city)
    return sorted(
        (same[0] for same in by_name.values() if len(same) == 1),
        key=lambda city: (-city.population, city.id),
    )


def read_countries(folder: Path) -> dict[str, dict]:
    """GeoNames' rows of current countries, by two-letter code."""
    rows = json.loads((folder / "countries.json").read_text())
    return {
        code: {**row, "name": row["name"].strip()}
        for code, row in rows.items()
        if code not in DISSOLVED
    }


def bin_of(population: int) -> int:
    """Index of the popularity bin, -1 below the first edge."""
    return sum(population >= edge for edge in BINS) - 1


def choose(cities: Sequence[City], count: int, seed: int = 0) -> list[City]:
    """Choose `count` cities, spread evenly over the popularity bins, at random within a bin."""
    rng, chosen = random.Random(seed), []
    bins = [[city for city in cities if bin_of(city.population) == i] for i in range(len(BINS))]
    for full, inside in enumerate(sorted(bins, key=len)):
        chosen += rng.sample(inside, min(len(inside), (count - len(chosen)) // (len(bins) - full)))
    return sorted(chosen, key=lambda city: (-city.population, city.id))


def city_passage(city: City, countries: dict[str, dict]) -> Passage:
    country = countries[city.country]
    latitude = f"{abs(city.latitude):.2f}° {'N' if city.latitude >= 0 else 'S'}"
    longitude = f"{abs(city.longitude):.2f}° {'E' if city.longitude >= 0 else 'W'}"
    return Passage(
        id=f"city-{city.id}",
        title=city.name,
        text=f"{city.name} is a city in {country['name']}, "
        f"{CONTINENTS[country['continentcode']]}. Region {city.region}; population "
        f"{city.population:,}; time zone {city.timezone}; coordinates {latitude}, {longitude}.",
        source="GeoNames, CC-BY 4.0",
        metadata={"country": city.country, "population": str(city.population)},
    )


def country_passage(code: str, countries: dict[str, dict]) -> Passage:
    row = countries[code]
    facts = [f"{row['name']} is a country or territory in {CONTINENTS[row['continentcode']]}."]
    if row["capital"]:
        facts.append(f"Its capital is {row['capital']}.")
    if row["population"]:
        facts.append(f"Population {row['population']:,}; area {row['areakm2']:,.0f} km².")
    if row["currencyname"]:
        facts.append(f"Currency: {row['currencyname']}.")
    if neighbours := [countries[n]["name"] for n in row["neighbours"].split(",") if n in countries]:
        facts.append(f"It borders {', '.join(neighbours)}.")
    return Passage(
        id=f"country-{code}",
        title=row["name"],
        text=" ".join(facts),
        source="GeoNames, CC-BY 4.0",
        metadata={"country": code},
    )


def element_passages(database: Path) -> Iterator[Passage]:
    with sqlite3.connect(f"file:{database.resolve()}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "select atomic_number, name, symbol, discoverers, discovery_year, name_origin, uses "
            "from elements order by atomic_number"
        ).fetchall()
    connection.close()
    for number, name, symbol, discoverers, year, origin, uses in rows:
        facts = [f"{name}, symbol {symbol}, is the chemical element with atomic number {number}."]
        if discoverers:
            facts.append(f"Discovered by {discoverers}{f' in {year}' if year else ''}.")
        if origin:
            facts.append(f"Its name: {origin.rstrip('.')}.")
        if uses:
            facts.append(uses)
        yield Passage(
            id=f"element-{number}", title=name, text=" ".join(facts), source="mendeleev, MIT"
        )


def questions(
    cities: Sequence[City],
    countries: dict[str, dict],
    per_bin: int,
    seed: int = 0,
    asked: Sequence[dict] = (),
) -> list[dict]:
    """`per_bin` questions per bin (rows of retrieval.evaluate), most populous bin last.

    Cities whose name contains the country's are left out. asked: rows whose cities are left out
    too; a bin may then have fewer questions.
    """
    rng, rows, known = random.Random(seed), [], {row["passage"] for row in asked}
    names = {code: (row["name"], *ALIASES.get(code, ())) for code, row in countries.items()}
    for i, low in enumerate(BINS):
        inside = [
            c
            for c in cities
            if bin_of(c.population) == i and not contains(c.name, names[c.country])
        ]
        inside = [c for c in inside if f"city-{c.id}" not in known]
        if len(inside) < per_bin and not asked:
            raise LaunchError(
                f"bin {i} ({low:,} people and more) has {len(inside)} cities to ask about, "
                f"{per_bin} are wanted; take more cities"
            )
        for city in rng.sample(inside, min(per_bin, len(inside))):
            answers = names[city.country]
            wrong = [
                n
                for code, many in names.items()
                if code != city.country
                for n in many
                if n not in answers
            ]
            others = [n for n in (*wrong, *REGIONS) if contains(n, answers)]
            rows.append(
                {
                    "id": f"country-of-{city.id}",
                    "question": f"In which country is {city.name}?",
                    "answers": list(answers),
                    "others": others,
                    "bin": i,
                    "passage": f"city-{city.id}",
                }
            )
    return rows


def bin_label(i: int) -> str:
    """Label of a bin: "80-130k", "800k-2M", "2M+" people."""

    def short(n: int) -> str:
        return f"{n / 1e6:g}M" if n >= 1_000_000 else f"{n / 1e3:g}k"

    if i == len(BINS) - 1:
        return f"{short(BINS[i])}+"
    low, high = short(BINS[i]), short(BINS[i + 1])
    return f"{low.removesuffix(high[-1])}-{high}"
