"""Paths of runs: local, or in object storage (gs://BUCKET/RUN, s3://...), as in pathlib."""

import contextlib
import pathlib
import tempfile
from collections.abc import Generator

from etils import epath

from lm.models.config import ConfigError

Folder = pathlib.Path | epath.Path


def is_remote(path) -> bool:
    """Whether `path` is in object storage."""
    return (isinstance(path, epath.Path) and not isinstance(path, pathlib.Path)) or "://" in str(
        path
    )


def resolve(path) -> Folder:
    """Absolute path. Raises ConfigError, with advice, when object storage cannot be reached."""
    if not is_remote(path):
        return pathlib.Path(path).absolute()
    remote = epath.Path(path)
    try:
        remote.exists()
    except (
        Exception
    ) as e:  # any error of the storage client: missing package, credentials or bucket
        raise ConfigError(
            f"{path} cannot be reached ({type(e).__name__}: "
            f"{(str(e).splitlines() or [''])[0][:200]}); object storage needs its client "
            "(pip install gcsfs, or s3fs) and credentials (gcloud auth application-default login)"
        ) from e
    return remote


def write_atomically(path: Folder, text: str) -> None:
    """Replace a small file atomically: by renaming, or in object storage by one upload."""
    if is_remote(path):
        path.write_text(text)
        return
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)


@contextlib.contextmanager
def local_copy(folder: Folder) -> Generator[pathlib.Path]:
    """Yield the folder itself, or a temporary local copy of a folder in object storage."""
    if not is_remote(folder):
        yield pathlib.Path(folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for file in folder.iterdir() if folder.is_dir() else ():
            (pathlib.Path(temporary) / file.name).write_bytes(file.read_bytes())
        yield pathlib.Path(temporary)


def upload(local: pathlib.Path, folder: Folder) -> None:
    """Copy the files below `local` into `folder` in object storage."""
    for file in sorted(local.rglob("*")):
        if file.is_file():
            target = folder / file.relative_to(local).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
