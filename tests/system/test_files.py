"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from mixsize.system.files import in_one_piece, remove_partial, write_json


def test_a_file_appears_with_its_folder_and_replaces_the_one_before(tmp_path):
    path = tmp_path / "new/values.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": [2]})
    assert path.read_text() == '{\n "a": [\n  2\n ]\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_file_before(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, 1)

    def interrupted():
        with in_one_piece(path) as partial:
            partial.write_text("half of")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert path.read_text() == "1\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_file_has_the_umasks_mode_however_its_writer_makes_it(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with in_one_piece(tmp_path / "weights") as partial:
            # As safetensors does.
            (tmp_path / "private").touch(mode=0o600)
            (tmp_path / "private").rename(partial)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == mode


def test_the_error_of_a_full_disk_names_the_file(tmp_path):
    path = tmp_path / "values.json"
    with pytest.raises(OSError, match=r"cannot be written: full: .*values\.json") as caught, in_one_piece(path):
        raise OSError(errno.ENOSPC, "full")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))


def test_files_of_killed_writers_are_removed_and_no_others(tmp_path):
    for name in (".values.json.123.partial", "values.json", ".hidden"):
        (tmp_path / name).touch()
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"values.json", ".hidden"}
