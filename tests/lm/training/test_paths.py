"""Runs in object storage: small files use the same functions, tested on in-memory storage."""

import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from lm.data.tokenizers import bytes_only
from lm.models.config import ConfigError
from lm.training import checkpoints, trackers
from lm.weights.loading import is_run
from lm.weights.runs import digests, model_files, paths, run_folder
from tests.lm.models.test_model import make


class Bucket(MemoryFileSystem):
    """gs:// in memory. Like object storage it cannot append."""

    protocol = ("gs", "gcs")

    def open(self, path, mode="rb", **options):
        assert "a" not in mode and "+" not in mode, "object storage cannot append"
        return super().open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch):
    storage = Bucket()
    monkeypatch.setattr(epath.backend.fsspec_backend, "fs", lambda path: storage)
    yield "gs://bucket/run"
    storage.store.clear()


def test_a_bucket_is_taken_for_a_local_folder(bucket, tmp_path):
    assert str(paths.resolve(bucket)) == bucket and paths.is_remote(paths.resolve(bucket))
    assert paths.resolve(tmp_path) == tmp_path and not paths.is_remote(paths.resolve(tmp_path))


def test_metrics_in_a_bucket_are_lost_or_doubled_on_resume(bucket):
    first = trackers.Trackers(bucket, 0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": 1.0 / step})
    first.sync()
    assert [row["step"] for row in trackers.read(bucket)] == [1, 2, 3]
    first.close()
    second = trackers.Trackers(bucket, 2)
    second.write({"step": 3, "loss": 0.25})
    second.close()
    assert [(row["step"], row["loss"]) for row in trackers.read(bucket)] == [
        (1, 1.0),
        (2, 0.5),
        (3, 0.25),
    ]
    trackers.plot(bucket)
    remote = paths.resolve(bucket)
    assert (remote / "plots/loss.png").read_bytes().startswith(b"\x89PNG")
    assert any("tfevents" in file.name for file in (remote / "tensorboard").iterdir())


def test_what_the_weights_mean_does_not_come_back_from_a_bucket(bucket):
    model, _ = make("llama3-scaling")
    model_files.save_model(bucket, model.config, bytes_only())
    assert model_files.load_model_config(bucket) == model.config
    with paths.local_copy(paths.resolve(bucket) / "model/tokenizer") as files:
        assert (files / "tokenizer.json").is_file()
    run_folder.write_status(paths.resolve(bucket), "running", 1, 2)
    run_folder.write_status(paths.resolve(bucket), "done", 2, 2)
    assert '"done"' in (paths.resolve(bucket) / "status.json").read_text()
    assert checkpoints.steps(bucket) == [] and not is_run(bucket)


def test_files_in_a_bucket_are_read_again_for_their_digests(bucket, monkeypatch):
    remote, stored = (
        paths.resolve(bucket) / "checkpoints/3",
        {"a": "AAAAAA==", "state/d/b": "BBBBBB=="},
    )
    for name in stored:
        (remote / name).parent.mkdir(parents=True, exist_ok=True)
        (remote / name).write_bytes(b"x" * 10)
    find = Bucket.find

    def with_checksums(self, path, **options):
        found = find(self, path, **options)
        return {
            at: info | {"crc32c": stored.get(at.partition("checkpoints/3/")[2], "")}
            for at, info in found.items()
        }

    monkeypatch.setattr(Bucket, "find", with_checksums)
    digests.write(remote, 1, 2)
    digests.write(remote, 0, 2)
    with monkeypatch.context() as m:
        m.setattr(digests, "_crcs", None)
        assert digests.problems(remote) == []
        stored["state/d/b"] = "CCCCCC=="
        assert digests.problems(remote) == ["state/d/b differs from its digest"]


def test_storage_that_does_not_answer_is_taken_for_an_empty_run():
    with pytest.raises(ConfigError, match="s3://bucket/run cannot be reached"):
        paths.resolve("s3://bucket/run")  # the client for s3 is not installed
