"""Files are written whole or not at all, and errors name the file that the user named."""

import errno
import os
from pathlib import Path

import pytest

from specbound.files import read_text, replacing, write_text


def test_a_file_is_replaced_at_once_and_nothing_is_left_beside_it(tmp_path):
    file = tmp_path / "out.txt"
    file.write_text("old")
    with replacing(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
        assert partial.parent == tmp_path
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_on_the_way_leaves_the_old_file(tmp_path, error):
    file = tmp_path / "out.txt"
    file.write_text("old")

    def write_half() -> None:
        with replacing(file) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    write_text(os.devnull, "gone")
    assert not os.path.isfile(os.devnull)


def test_errors_name_the_file_given(tmp_path):
    missing = tmp_path / "no" / "out.txt"
    with pytest.raises(FileNotFoundError) as caught:
        write_text(missing, "x")
    assert caught.value.filename == str(missing)
    with pytest.raises(FileNotFoundError) as caught:
        read_text("--prompts", missing)
    assert caught.value.filename == f"--prompts {missing}"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"--prompts .*latin.txt: not UTF-8 text .* at byte 3"):
        read_text("--prompts", tmp_path / "latin.txt")


def test_an_error_names_the_file_where_nothing_can_be_removed_either(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", ".out.txt.1.partial")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_text(tmp_path / "out.txt", "x")
    assert caught.value.filename == str(tmp_path / "out.txt")


def test_long_names_are_written_too(tmp_path):
    file = tmp_path / ("x" * 250)
    write_text(file, "x")
    assert file.read_text() == "x"
