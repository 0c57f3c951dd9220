"""Take docs/images/explorer.png: python -m tests.explorer_picture [--output=FILE]

Uses real places (GeoNames), a real encoder (MiniLM) and a real reader (SmolLM2). An outdated fact
is corrected and asked for again.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

from launch.quickstart import world
from lm.data import samples
from retrieval import Encoder, Memory, Reader
from tests.retrieval.browser import headless, page, served

CITIES = 600
PICTURE = Path(__file__).parent.parent / "docs/images/explorer.png"
QUESTION = "What is the capital of Kazakhstan?"
RENAMED = ("Nur-Sultan", "Astana")  # renamed in 2022


def places(folder: Path):
    """Passages about cities and countries, each tagged with its continent."""
    countries = world.read_countries(folder)
    passages = [
        world.city_passage(city, countries)
        for city in world.choose(world.read_cities(folder), CITIES)
    ]
    passages += [world.country_passage(code, countries) for code in sorted(countries)]
    for passage in passages:
        continent = next(
            name
            for name in world.CONTINENTS.values()
            if f" in {name}." in passage.text or f", {name}." in passage.text
        )
        yield dataclasses.replace(passage, tags=(continent,))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.explorer_picture", description=__doc__)
    parser.add_argument("--output", type=Path, default=PICTURE)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory.create(Path(folder) / "places", Encoder.from_hf(samples.fetch("minilm")))
        memory.add(places(samples.fetch("geonames")), author="import", reason="GeoNames")
        look = {
            "viewport": {"width": 1180, "height": 665},
            "device_scale_factor": 1.5,
            "color_scheme": "dark" if args.dark else "light",
        }
        reader = Reader.from_hf(samples.fetch("smollm2"))
        with (
            served(memory, reader) as address,
            headless() as chromium,
            page(chromium, address, **look) as browser,
        ):
            browser.get_by_role("searchbox").fill(QUESTION)
            browser.get_by_role("button", name="Ask", exact=True).click()
            browser.locator(".card").first.click()
            text = browser.locator("textarea")
            text.fill(text.input_value().replace(*RENAMED))
            browser.get_by_label("Why").fill("renamed in 2022")
            browser.get_by_role("button", name="Save and ask again").click()
            browser.locator(".card").first.wait_for()
            browser.screenshot(path=args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
