"""Starting from another work directory: its stages are finished ones here, with labels by name."""

import numpy as np
import pytest

from imgtx_jax import main
from imgtx_jax.cli import flag_errors
from imgtx_jax.errors import UserError
from imgtx_jax.training import warm_start, workdir

NAMES = ["cat", "Flags", "tree"]


@pytest.fixture
def source(tmp_path, tiny_config, untrained_workdir):
  """A work directory with tokenizer and pretrain, of other classes than the emoji."""
  tiny_config.stages = ("tokenizer", "pretrain")
  untrained_workdir(tiny_config.copy_and_resolve_references().lock(), tmp_path / "source", NAMES)
  tiny_config.init_from = str(tmp_path / "source")
  return tmp_path / "source"


def gpt_of(directory):
  return workdir.results(directory, [workdir.StageRun(1, "pretrain")])["pretrain"]["ema"]["gpt"]


def test_label_table_goes_by_name():
  table = np.arange(8).reshape(4, 2)
  found = warm_start.label_table(table, NAMES, ["tree", "bird", "cat", "fish"])
  np.testing.assert_array_equal(found, table[[2, 3, 0, 3, 3]])


def test_its_stages_are_finished_ones_here(source, tiny_config, tmp_path, capsys):
  work = tmp_path / "work"
  main.run(tiny_config.lock(), work)
  text = capsys.readouterr().out
  assert "1 of 9 classes were known there by name" in text
  assert text.count("finished before, nothing to do") == 2
  names = workdir.read(work)[1]
  table, theirs = (gpt_of(place)["label"]["embedding"] for place in (work, source))
  assert table.shape == (10, 32)
  np.testing.assert_array_equal(table[names.index("Flags")], theirs[1])
  np.testing.assert_array_equal(table[[0, -1]], theirs[[3, 3]])
  kernels = (gpt_of(place)["logits"]["kernel"] for place in (work, source))
  np.testing.assert_array_equal(*kernels)
  # A second start has nothing to adopt, even where the source is gone.
  source.rename(tmp_path / "gone")
  main.run(tiny_config, work)


def test_other_networks_are_refused(source, tiny_config, tmp_path):
  tiny_config.gpt.width = 64
  with pytest.raises(UserError, match="config.gpt.width is 64, and 32 in config.init_from="):
    main.run(tiny_config.lock(), tmp_path / "work")


def test_an_unfinished_source_is_refused(source, tiny_config, tmp_path):
  (source / "1-pretrain" / "summary.json").unlink()
  with pytest.raises(UserError, match="has not finished pretrain"):
    main.run(tiny_config.lock(), tmp_path / "work")


def test_its_config_comes_by_from_workdir(source):
  config = flag_errors.load(f"configs/from_workdir.py:{source}")
  assert config.gpt.width == 32 and config.init_from == str(source)
  assert config.stages == ("tokenizer", "pretrain", "finetune")
  with pytest.raises(UserError, match="needs a work directory"):
    flag_errors.load("configs/from_workdir.py")
