import errno

import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.io import atomic


def test_full_disk_is_one_clear_line_and_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "report.json"
  atomic.write_atomically(path, b"old")

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(atomic.os, "fsync", full)
  with pytest.raises(UserError, match="no space left on the disk of .*report.json"):
    atomic.write_atomically(path, b"new")
  assert path.read_bytes() == b"old"
  assert list(tmp_path.iterdir()) == [path]
