"""The code copied to a machine."""

import tarfile

import pytest

from launch.errors import LaunchError
from launch.source import read_source, write_archive


def test_a_large_checkout_is_copied_without_a_word(checkout):
    with pytest.raises(LaunchError, match=r"largest: code.py .*Take data out of git"):
        read_source(checkout, limit=10)


def test_a_deleted_file_a_link_or_an_odd_name_breaks_the_copy(checkout, tmp_path):
    from tests.launch.conftest import git

    (checkout / "naïve name\n.txt").write_text("odd")
    (checkout / "link").symlink_to("code.py")
    (checkout / "gone.txt").write_text("gone")
    git(checkout, "add", ".")
    (checkout / "gone.txt").unlink()
    write_archive(read_source(checkout), tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        names = archive.getnames()
        assert "naïve name\n.txt" in names and "gone.txt" not in names
        assert archive.getmember("link").issym()


def test_a_directory_without_git_is_copied_as_nothing(tmp_path):
    with pytest.raises(LaunchError, match="what git tracks"):
        read_source(tmp_path)
