"""What conftest.py does before the tests."""

from conftest import mend_cache


def test_programs_that_are_half_written_are_deleted(tmp_path):
    for name in ("whole-cache", "whole-atime", "killed-cache", "left-atime", "other"):
        (tmp_path / name).touch()
    mend_cache(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"whole-cache", "whole-atime", "other", ".lockfile"}
    mend_cache(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
