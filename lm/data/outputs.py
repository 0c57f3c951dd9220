"""Stored predictions of a teacher: the most probable tokens at every position of packed rows.

A folder has outputs.json, which says what they are of and lists the finished shards with a CRC-32,
and the shards: folders of three arrays that are memory-mapped. Shards are written atomically, so
an interrupted writer loses the shard it was at.
"""

import dataclasses
import json
import pathlib
import shutil
import zlib
from collections.abc import Mapping

import numpy as np

from lm.batch import Field
from lm.data.packed import UNFINISHED
from lm.models.config import ConfigError

MANIFEST = "outputs.json"
VERSION = 1
TOKENS, LOG_PROBS, LOG_REST = "teacher_tokens", "teacher_log_probs", "teacher_log_rest"
# batch fields: the K most probable tokens, their log-probabilities, and that of all other tokens
FIELDS = {
    TOKENS: Field(("batch", "length", "teacher_tokens")),
    LOG_PROBS: Field(("batch", "length", "teacher_tokens"), np.float32),
    LOG_REST: Field(("batch", "length"), np.float32),
}
DTYPES = ("float32", "float16")
SHARD_BYTES = 2**28  # of a whole shard


@dataclasses.dataclass(frozen=True)
class About:
    """What stored outputs are of.

    teacher: as the config named it. teacher_digest: of its weights. tokenizer: its fingerprint.
    sequence: digest of the packed rows. vocab_size: of the teacher. dtype: of log-probabilities;
    token_dtype: of token ids.
    shard_rows: rows of every shard but the last.
    """

    teacher: str
    teacher_digest: str
    tokenizer: str
    sequence: str
    rows: int
    length: int
    vocab_size: int
    k: int
    temperature: float
    dtype: str
    token_dtype: str
    shard_rows: int

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def span(self, shard: int) -> tuple[int, int]:
        """(first row, end) of a shard."""
        return shard * self.shard_rows, min(self.rows, (shard + 1) * self.shard_rows)

    def arrays(self, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """(shape, dtype) of each array of a shard of so many rows."""
        wide, dtype = (rows, self.length, self.k), np.dtype(self.dtype)
        return {
            TOKENS: (wide, np.dtype(self.token_dtype)),
            LOG_PROBS: (wide, dtype),
            LOG_REST: (wide[:2], dtype),
        }


def rows_in_shard(length: int, k: int, dtype: str, token_dtype: type) -> int:
    """Rows that fit in SHARD_BYTES."""
    each = np.dtype(dtype).itemsize
    row = length * (k * (each + np.dtype(token_dtype).itemsize) + each)
    return max(1, SHARD_BYTES // row)


class Sharded:
    """An array [N, ...] in memory-mapped shards. digest: of the content of all its fields."""

    def __init__(self, shards: list[np.ndarray], digest: str):
        self._shards, self._each, self.digest = shards, len(shards[0]), digest
        self.shape = (sum(map(len, shards)), *shards[0].shape[1:])
        self.dtype = shards[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> np.ndarray:
        shard, at = divmod(int(row), self._each)
        return self._shards[shard][at]


# ----------------------------------------------------------------------------------------- writing


class Writer:
    """Adds shards to a folder. Raises ConfigError when it has outputs of something else."""

    def __init__(self, folder: pathlib.Path, about: About):
        self.folder, self.about, self._done = folder, about, {}
        if (folder / MANIFEST).exists():
            there, self._done = _manifest(folder, "--workdir")
            if changed := _differing(there, about):
                raise ConfigError(
                    f"--workdir={folder} has outputs of something else ({changed}): give another "
                    "folder, or delete this one"
                )
            self.about = there
        folder.mkdir(parents=True, exist_ok=True)

    def damaged(self) -> list[int]:
        """Finished shards whose content has changed since; they are written again."""
        found = []
        for shard, crc in sorted(self._done.items()):
            try:
                same = _crc(_opened(self.folder, self.about, shard)) == crc
            except ConfigError:
                same = False
            if not same:
                found.append(shard)
                del self._done[shard]
        return found

    @property
    def missing(self) -> list[int]:
        """Shards that are still to be written."""
        return [shard for shard in range(self.about.shards) if shard not in self._done]

    def add(self, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one shard. arrays: as `About.arrays` says."""
        new, final = self.folder / f"{UNFINISHED}{shard:05d}", _folder(self.folder, shard)
        for old in (new, final):
            shutil.rmtree(old, ignore_errors=True)
        new.mkdir()
        for name, array in arrays.items():
            np.save(new / f"{name}.npy", array, allow_pickle=False)
        new.rename(final)
        self._done[shard] = _crc(arrays)
        shards = {str(number): crc for number, crc in sorted(self._done.items())}
        content = {"version": VERSION, **dataclasses.asdict(self.about), "shards": shards}
        manifest = self.folder / f".{MANIFEST}.new"
        manifest.write_text(json.dumps(content, indent=1) + "\n")
        manifest.replace(self.folder / MANIFEST)


# ----------------------------------------------------------------------------------------- reading


def about(folder: str, where: str = "task.outputs") -> About:
    """What complete outputs in a folder are of. Raises ConfigError. where: the option's name."""
    found, done = _manifest(pathlib.Path(folder), where)
    if len(done) < found.shards:
        raise ConfigError(
            f"{where}={folder} has {len(done)} of {found.shards} shards: the command that wrote "
            "them, python -m lm.teacher_outputs, goes on when it is started again"
        )
    return found


def load(folder: str, tokenizer: str, sequence: str, length: int) -> dict[str, Sharded]:
    """Memory-map complete outputs: batch field -> array [N, ...].

    tokenizer, sequence, length: of the rows that they are for. Raises ConfigError for outputs of
    other rows or another tokenizer, and for a shard that is not whole.
    """
    of, path = about(folder), pathlib.Path(folder)
    for what, there, here in (
        ("tokenizer", of.tokenizer, tokenizer),
        ("length", of.length, length),
        ("sequence", of.sequence, sequence),
    ):
        if there != here:
            why = {
                "tokenizer": "were made with another tokenizer",
                "length": f"are of rows of {there} tokens, and length={here}",
                "sequence": f"are of other rows ({there}; the run has {here}): data, length and "
                "options that change the rows must be those they were made with",
            }[what]
            raise ConfigError(
                f"task.outputs={folder} {why}; python -m lm.teacher_outputs makes new ones"
            )
    shards = [_opened(path, of, shard) for shard in range(of.shards)]
    digest = json.dumps(_manifest(path, "task.outputs")[1])
    return {name: Sharded([each[name] for each in shards], digest) for name in FIELDS}


def _manifest(folder: pathlib.Path, where: str) -> tuple[About, dict[int, str]]:
    """(what the outputs are of, CRC-32 of the finished shards by number)."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
        shards = {int(number): str(crc) for number, crc in content.pop("shards").items()}
        version = content.pop("version")
        found = About(**content) if version == VERSION else None
    except FileNotFoundError as error:
        raise ConfigError(
            f"{where}={folder} has no {MANIFEST}: python -m lm.teacher_outputs writes such a folder"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where}={folder}: {MANIFEST} cannot be read ({type(error).__name__}: {error}); "
            "delete the folder and write it again"
        ) from error
    if found is None:
        raise ConfigError(
            f"{where}={folder}: {MANIFEST} has version {version}, expected {VERSION}: write the "
            "outputs again with python -m lm.teacher_outputs"
        )
    return found, shards


def _opened(folder: pathlib.Path, of: About, shard: int) -> dict[str, np.ndarray]:
    """Memory-map a shard. Raises ConfigError for a file that is missing or cut off."""
    first, end = of.span(shard)
    found = {}
    for name, (shape, dtype) in of.arrays(end - first).items():
        file = _folder(folder, shard) / f"{name}.npy"
        try:
            found[name] = array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _broken(file, str(error)) from error
        if (array.shape, array.dtype) != (shape, dtype):
            raise _broken(file, f"{array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}")
    return found


def _broken(file: pathlib.Path, why: str) -> ConfigError:
    return ConfigError(
        f"{file} is not whole ({why}): start the command that wrote it, python -m "
        "lm.teacher_outputs, again, which writes the shard anew"
    )


def _folder(folder: pathlib.Path, shard: int) -> pathlib.Path:
    return folder / f"shard-{shard:05d}"


def _crc(arrays: Mapping[str, np.ndarray]) -> str:
    total = 0
    for name in FIELDS:
        for row in arrays[name]:
            total = zlib.crc32(np.ascontiguousarray(row).data, total)
    return f"{total:08x}"


def _differing(there: About, here: About) -> str:
    """Fields that differ, in words."""
    shown = lambda value: value[:12] if isinstance(value, str) else value
    return ", ".join(
        f"{field.name} {shown(was)}, now {shown(now)}"
        for field in dataclasses.fields(About)
        if (was := getattr(there, field.name)) != (now := getattr(here, field.name))
        and field.name not in ("teacher", "shard_rows")
    )
