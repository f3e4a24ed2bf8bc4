"""Published weights become a work directory that samples and fine-tunes; bad files get one line."""

import argparse
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from imgtx_jax import sample
from imgtx_jax.cli import command
from imgtx_jax.convert import __main__ as convert
from imgtx_jax.errors import UserError
from imgtx_jax.reporting import report
from imgtx_jax.stages import build
from imgtx_jax.training import checkpoint, workdir


@pytest.fixture(scope="session")
def torch():
  return pytest.importorskip("torch", reason="no PyTorch: pip install 'imgtx_jax[convert]'")


@pytest.fixture(scope="module")
def arrays(parity):
  """(GPT's, tokenizer's) seeded weights: gpt_tiny, and vq_tiny with a codebook of as many codes."""
  _, _, gpt = parity("gpt_tiny")
  _, _, tokenizer = parity("vq_tiny")
  codes = len(gpt["tok_embeddings.weight"])
  rng = np.random.default_rng(0)
  tokenizer["quantize.embedding.weight"] = rng.standard_normal((codes, 8)).astype(np.float32)
  return gpt, tokenizer


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
  """Paths of the two files as .safetensors."""
  folder = tmp_path_factory.mktemp("files")
  paths = folder / "gpt.safetensors", folder / "vq.safetensors"
  for path, weights in zip(paths, arrays, strict=True):
    safetensors.numpy.save_file(weights, path)
  return paths


def run(gpt, tokenizer, out, image_size=8, num_heads=2):
  convert.convert_llamagen(gpt, tokenizer, out, image_size=image_size, num_heads=num_heads)


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
  """The work directory."""
  out = tmp_path_factory.mktemp("converted") / "work"
  run(*files, out)
  return out


def assert_same(ours, theirs):
  for task in ("1-tokenizer", "1-pretrain"):
    trees = [checkpoint.load(out / task / "checkpoints")[0] for out in (ours, theirs)]
    jax.tree.map(np.testing.assert_array_equal, *trees)


# -- What it leaves --------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [False, True])
def test_sample_draws_the_references_greedy_codes(guided, converted, parity, tmp_path, capsys):
  manifest, recorded, _ = parity("gpt_tiny")
  labels = ["none" if label == 10 else str(label) for label in recorded["labels"][:2]]
  arguments = (
    *("--workdir", converted, "--labels", ",".join(labels), "--num", 2),
    *(("--temperature", 0) if guided else ("--top_k", 1)),
    *("--cfg_scale", manifest["greedy_cfg_scale"] if guided else 1),
    *("--save_codes", tmp_path / "codes.npy", "--out", tmp_path / "grid.png"),
  )
  command.parse(sample.COMMAND, ["sample", *map(str, arguments)]).run()
  assert "k = 16 of 16" in capsys.readouterr().out
  expected = recorded["greedy_cfg" if guided else "greedy_no_cfg"]
  np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), expected)
  assert (tmp_path / "grid.png").exists()


def test_the_work_directory_is_whole(converted):
  config, names = workdir.read(converted)
  assert names == [str(i) for i in range(10)]
  assert config.tokenizer_kind == "vqgan" and config.gpt.mlp_dim == 192
  assert [task.stage for task in workdir.finished(config, converted)] == ["tokenizer", "pretrain"]
  summary = json.loads((converted / "1-pretrain" / "summary.json").read_text())
  assert summary["imported"]["gpt"]["file"] == "gpt.safetensors"
  assert [path.name for path in converted.parent.iterdir()] == ["work"]
  report.write(converted)
  assert (converted / "report.html").exists()


def test_finetune_starts_from_it(converted):
  config, names = workdir.read(converted)
  restored = workdir.results(converted, workdir.finished(config, converted))
  stage = build("finetune", config, len(names))
  shape = (stage.batch_size, 8, 8, 3)
  state = jax.eval_shape(lambda r: stage.init(jax.random.key(0), shape, r), restored)
  batch = {
    "image": jax.ShapeDtypeStruct(shape, np.uint8),
    "label": jax.ShapeDtypeStruct(shape[:1], np.int32),
  }
  key = jax.random.key(0)
  _, metrics = jax.eval_shape(functools.partial(stage.step, axis=None), state, batch, key)
  assert "loss" in metrics
  np.testing.assert_array_equal(restored["pretrain"]["variables"]["code_counts"], np.ones(128))


def test_a_second_run_has_nothing_to_do(converted, files, capsys):
  before = (converted / "config.json").stat().st_mtime_ns
  run(*files, converted)
  assert "nothing to do" in capsys.readouterr().out
  assert (converted / "config.json").stat().st_mtime_ns == before
  with pytest.raises(UserError, match="converted from gpt.safetensors and vq.safetensors with"):
    run(*files, converted, num_heads=4)


# -- PyTorch's files -------------------------------------------------------------------------------


def tensors(torch, weights, dtype=None):
  return {name: torch.from_numpy(x).to(dtype or torch.float32) for name, x in weights.items()}


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "bare"])
def test_pytorch_files_give_the_same(wrapped, torch, arrays, converted, tmp_path):
  gpt, tokenizer = (tensors(torch, weights) for weights in arrays)
  tokenizer["quantize.codebook_used"] = torch.zeros(7)
  if wrapped:
    other = {name: x + 1 for name, x in tokenizer.items()}
    args = argparse.Namespace(gpt_model="GPT-tiny", lr=1e-4)
    gpt = {"model": gpt, "optimizer": {"state": {0: torch.ones(2)}}, "steps": 3, "args": args}
    tokenizer = {"model": other, "ema": tokenizer, "args": args}
  torch.save(gpt, tmp_path / "gpt.pt")
  torch.save(tokenizer, tmp_path / "vq.pt")
  run(tmp_path / "gpt.pt", tmp_path / "vq.pt", tmp_path / "work")
  assert_same(tmp_path / "work", converted)


# -- Bad input -------------------------------------------------------------------------------------


def assert_one_line(gpt, tokenizer, folder, *words, **flags):
  """The conversion ends in one line with these words, and leaves nothing behind."""
  before = sorted(folder.rglob("*"))
  with pytest.raises(UserError) as caught:
    run(gpt, tokenizer, folder / "work", **flags)
  message = str(caught.value)
  assert "\n" not in message and len(message) < 500
  assert all(word in message for word in words), message
  assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("which, flag", [(0, "--gpt"), (1, "--tokenizer")])
def test_a_truncated_file(which, flag, files, tmp_path):
  path = tmp_path / "half.safetensors"
  data = files[which].read_bytes()
  path.write_bytes(data[: len(data) // 2])
  paths = list(files)
  paths[which] = path
  assert_one_line(*paths, tmp_path, f"{flag}={path}: no whole safetensors file")


def test_a_truncated_pytorch_file(torch, arrays, files, tmp_path):
  path = tmp_path / "gpt.pt"
  torch.save({"model": tensors(torch, arrays[0])}, path)
  path.write_bytes(path.read_bytes()[:-1000])
  assert_one_line(path, files[1], tmp_path, f"--gpt={path}: no whole PyTorch file")


def test_a_wrong_file(files, tmp_path):
  (tmp_path / "gpt.safetensors").write_bytes(b"GIF89a" * 100)
  assert_one_line(tmp_path / "gpt.safetensors", files[1], tmp_path, "no whole safetensors file")
  assert_one_line(tmp_path / "none.pt", files[1], tmp_path, "there is no such file")
  assert_one_line(files[1], files[0], tmp_path, "--gpt=", "no weight tok_embeddings.weight")
  assert_one_line(files[0], files[0], tmp_path, "--tokenizer=", "no weight encoder.conv_in.weight")


CHANGES = [
  (0, {"norm.weight": None}, "missing weights: norm.weight"),
  (1, {"decoder.mid.1.k.bias": None}, "missing weights: decoder.mid.1.k.bias"),
  (0, {"freqs": (3,)}, "without a place: freqs"),
  (1, {"discriminator.weight": (3,)}, "without a place: discriminator.weight"),
  (0, {"output.weight": (128, 65)}, "fits no variant"),
  (1, {"encoder.conv_out.weight": (32, 60, 3, 3)}, "fits no variant"),
  (1, {"quantize.embedding.weight": (64, 8)}, "--gpt knows 128 codes and --tokenizer has 64"),
]


@pytest.mark.parametrize("which, change, words", CHANGES)
def test_weights_that_do_not_fit(which, change, words, arrays, files, tmp_path):
  weights = {name: x for name, x in arrays[which].items() if change.get(name, x) is not None}
  weights |= {name: np.zeros(shape, np.float32) for name, shape in change.items() if shape}
  paths = list(files)
  paths[which] = tmp_path / "changed.safetensors"
  safetensors.numpy.save_file(weights, paths[which])
  assert_one_line(*paths, tmp_path, words)


def test_flags_that_do_not_fit(files, tmp_path):
  assert_one_line(*files, tmp_path, "--image_size=7", "multiple of 2", image_size=7)
  assert_one_line(*files, tmp_path, "width 64", "--num_heads", num_heads=0)
  (tmp_path / "work").mkdir()
  (tmp_path / "work" / "thesis.txt").write_text("mine")
  assert_one_line(*files, tmp_path, f"--out={tmp_path / 'work'} holds something else")


def test_a_conversion_that_breaks_off_leaves_nothing(files, tmp_path, monkeypatch):
  write = workdir.write_finished

  def failing(directory, stage, *rest):
    if stage == "pretrain":
      raise KeyboardInterrupt
    write(directory, stage, *rest)

  (tmp_path / ".work.unfinished").mkdir()  # as a killed run leaves it
  (tmp_path / ".work.unfinished" / "config.json").write_text("{}")
  (tmp_path / "work").mkdir()
  monkeypatch.setattr(workdir, "write_finished", failing)
  with pytest.raises(KeyboardInterrupt):
    run(*files, tmp_path / "work")
  assert [p.name for p in tmp_path.iterdir()] == ["work"] and not any((tmp_path / "work").iterdir())
  monkeypatch.undo()
  run(*files, tmp_path / "work")
  assert sorted(p.name for p in (tmp_path / "work").iterdir()) == [
    *("1-pretrain", "1-tokenizer", "classes.json", "config.json", "data.json")
  ]


def test_the_command_says_what_is_wrong(tmp_path):
  arguments = ("--gpt", "none.pt", "--tokenizer", "none.pt", "--out", tmp_path / "work")
  with pytest.raises(UserError) as caught:
    command.parse(convert.COMMANDS, ["convert", "llamagen", *map(str, arguments)]).run()
  assert str(caught.value) == (
    f"--gpt={Path('none.pt').absolute()}: there is no such file; give a .pt or .safetensors file"
  )
