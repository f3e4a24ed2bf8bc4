"""Random damage to small valid inputs of every command: it ends with 0, 1 (files that failed are
listed) or 2 (one line), never with a traceback, never changes an input, and takes no more memory
and time than the input is worth.

Networks are stubs that give back zeros: what is tried is reading. Seeds are fixed; a failure names
the number of its try, and TRIES=1 FIRST=number repeats it alone.
"""

import hashlib
import os
import random
import resource
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from imgtx_jax import sample
from imgtx_jax.convert import llamagen
from imgtx_jax.evaluate import feature_networks, saliency
from imgtx_jax.evaluate.feature_networks import FeatureNetwork
from imgtx_jax.models.discriminator import Verdict
from imgtx_jax.sampling import sampler
from imgtx_jax.stages import builders, finetune
from imgtx_jax.style_transfer import batch_jobs, tiled_renderer

pytestmark = pytest.mark.slow

# Tries of a command, shared by its cases; TRIES=500 is the whole search.
TRIES, FIRST = int(os.environ.get("TRIES", 24)), int(os.environ.get("FIRST", 0))
SECONDS = 20  # of the processor, for one command
BYTES = 2**30  # more than before the first

WORK = ("work/config.json", "work/classes.json", "work/data.json")
STAGES = ("tokenizer", "pretrain", "finetune", "style")
SUMMARIES = tuple(f"work/1-{stage}/summary.json" for stage in STAGES)
CHECKPOINTS = tuple(f"work/1-{stage}/checkpoints" for stage in STAGES)
IMAGES = ("a.png", "b.jpg", "c.webp", "d.tif", "e.gif")
# Arguments, the inputs that are damaged, and what the command may write.
MAIN = ("--config=config.py", "--workdir=work", "--config.data.path=data")
CONVERT = ("--out=out", "--image_size=8", "--num_heads=2")
STYLIZE = ("--workdir=work", "--style_size=64", "--style=b.jpg")
CASES = {
  "main": (MAIN, ("config.py", "data", *WORK, *SUMMARIES), ("work",)),
  "sample": (
    ("--workdir=work", "--num=2", "--out=out.png", "--init=a.png", "--keep_rows=2"),
    ("a.png", *WORK, *SUMMARIES[:3], *CHECKPOINTS[:3:2]),
    ("out.png",),
  ),
  "judge": (
    ("--workdir=work", "--out=heat.png", *IMAGES),
    (*IMAGES, *WORK, SUMMARIES[2], *CHECKPOINTS[:3:2]),
    ("heat.png",),
  ),
  "stylize": (
    (*STYLIZE, "--content=data", "--out=styled"),
    ("b.jpg", "data", *WORK, *SUMMARIES[::3], *CHECKPOINTS[::3]),
    ("styled",),
  ),
  "stylize with a mask": (
    (*STYLIZE, "--content=a.png", "--mask=mask.png", "--out=x.png"),
    ("a.png", "b.jpg", "mask.png"),
    ("x.png",),
  ),
  "evaluate": (
    ("--samples=samples.npz", "--reference=statistics.npz", "--out=o", "--metrics=frechet"),
    ("samples.npz", "statistics.npz"),
    ("o",),
  ),
  "evaluate folders": (
    ("--samples=data", "--reference=samples.npz", "--out=o", "--image_size=16", "--splits=2"),
    ("data", "samples.npz"),
    ("o",),
  ),
  "evaluate a work directory": (
    ("--workdir=work", "--num=4", "--metrics=frechet"),
    (*WORK, *SUMMARIES[:3], *CHECKPOINTS[:3:2]),
    ("work",),
  ),
  "convert": (
    ("llamagen", "--gpt=gpt.safetensors", "--tokenizer=vq.safetensors", *CONVERT),
    ("gpt.safetensors", "vq.safetensors"),
    ("out",),
  ),
}


# -- Inputs ----------------------------------------------------------------------------------------


def write_images(root):
  from PIL import Image

  draw = np.random.default_rng(0)
  for name in IMAGES:
    image = Image.fromarray(draw.integers(0, 255, (24, 20, 3), np.uint8))
    image.save(root / name)
  for kind in ("tif", "bmp", "jp2", "ppm"):
    image.save(root / "data" / "dog" / f"x.{kind}")
  Image.new("L", (20, 24), 200).save(root / "mask.png")


def write_npz(root):
  draw = np.random.default_rng(0)
  images = draw.integers(0, 255, (6, 16, 16, 3), np.uint8)
  np.savez_compressed(root / "samples.npz", arr_0=images, arr_1=np.arange(6))
  statistics = dict(mu=np.ones(12), sigma=np.eye(12), count=40)
  np.savez(root / "statistics.npz", **statistics)


def published(network, names, pointwise, *inputs):
  """Weights under the published names for a network of ours, random."""
  tree = jax.eval_shape(network.init, jax.random.key(0), *inputs)
  tree = tree.get("params", tree)
  draw, found = np.random.default_rng(0), {}
  for key, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    path = jax.tree_util.keystr(key, simple=True, separator="/")
    for name, place in llamagen._places(np.empty(leaf.shape, np.float32), names(path)):
      shape = llamagen._their_shape(place.shape, path.endswith("kernel"), pointwise)
      found[name] = draw.normal(size=shape).astype(np.float32)
  return found


def write_weights(root):
  gpt = llamagen.GPTVariant(2, 2, 16, 32, codebook_size=16, classes=3)
  tokenizer = llamagen.TokenizerVariant((1, 1), 32, 8, 1, 1, codebook_size=16, code_dim=4)
  config = llamagen.imported_config(gpt, tokenizer, 8)
  networks = builders.make_gpt(config, 3), builders.make_tokenizer(config)
  codes = jnp.zeros((1, 16), jnp.int32)
  gpt = published(networks[0], llamagen._GPT_NAMES.__getitem__, (), codes, jnp.zeros(1, jnp.int32))
  image = jnp.zeros((1, 8, 8, 3))
  tokenizer = published(networks[1], lambda p: [llamagen._their_name(p)], (1, 1), image)
  safetensors.numpy.save_file(gpt, root / "gpt.safetensors")
  safetensors.numpy.save_file(tokenizer, root / "vq.safetensors")


@pytest.fixture(scope="module")
def inputs(made, tmp_path_factory):
  """A folder with every input, whole."""
  root = tmp_path_factory.mktemp("inputs") / "whole"
  shutil.copytree(made, root)
  write_images(root)
  write_npz(root)
  write_weights(root)
  return root


@pytest.fixture
def stubs(monkeypatch, no_training):
  """Networks that give back zeros at once."""

  def draw(self, labels, index=None, given=None):
    return np.zeros((len(labels), 16, 16, 3), np.uint8), np.zeros((len(labels), 16), np.int32)

  def features(params, images):
    return {"features": images.astype(jnp.float32).mean((1, 2)) @ params}

  def network(name):
    return FeatureNetwork(
      "tiny", "FD-Tiny", "none", "ab" * 32, np.ones((3, 12), np.float32), features
    )

  def first_rows(stage, results, image, keep_rows):
    return np.zeros((1, 4 * keep_rows), np.int32), image

  class Network:
    def apply(self, params, images, labels):
      zeros = jnp.zeros(len(images))
      return Verdict(zeros, jnp.zeros((len(images), 3)), zeros)

  def blank(self, params, labels, *_, **__):
    return (jnp.zeros((len(labels), 16, 16, 3)),)

  def maps(*_, **__):
    return {"attention": jnp.ones((1, 4, 4)), "logit": jnp.ones((1, 16, 16))}

  def render(renderer, pending, options):
    for content, style in pending:
      yield content, style, content.picture

  monkeypatch.setattr(sampler.Sampler, "draw", draw)
  monkeypatch.setattr(sample, "first_rows", first_rows)
  monkeypatch.setattr(feature_networks, "load", network)
  monkeypatch.setattr(finetune.FinetuneStage, "sample", blank)
  monkeypatch.setattr(saliency, "saliency_maps", maps)
  monkeypatch.setattr(saliency, "exact", lambda discriminator: Network())
  monkeypatch.setattr(batch_jobs, "_flush", render)
  monkeypatch.setattr(tiled_renderer.StyleRenderer, "encode", lambda self, image, size: None)
  monkeypatch.setattr(tiled_renderer.StyleRenderer, "at_strength", lambda self, style: None)


# -- Damage ----------------------------------------------------------------------------------------


def flip_bits(data, draw):
  data = bytearray(data)
  for _ in range(draw.randint(1, 20)):
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
  return bytes(data)


def overwrite(data, draw):
  start = draw.randrange(len(data))
  length = draw.randint(1, 64)
  return data[:start] + bytes([draw.choice((0, 255, 32))]) * length + data[start + length :]


def insert(data, draw):
  start = draw.randrange(len(data))
  return data[:start] + draw.randbytes(draw.randint(1, 64)) + data[start:]


def remove(data, draw):
  start = draw.randrange(len(data))
  return data[:start] + data[start + draw.randint(1, 64) :]


def repeat(data, draw):
  start = draw.randrange(len(data))
  return data[:start] + data[start : start + draw.randint(1, 200)] * draw.randint(2, 5)


def truncate(data, draw):
  return data[: draw.randrange(len(data))]


def change_number(data, draw):
  """Another number, or no number, in the place of one in a text."""
  text = data.decode("latin-1")
  places = [i for i, sign in enumerate(text) if sign.isdigit()]
  if not places:
    return flip_bits(data, draw)
  start = draw.choice(places)
  other = draw.choice(("-1", "0", "1e999", "NaN", "9" * 30, '"x"', "null", "[1]", "true", "0.5"))
  return (text[:start] + other + text[start + 1 :]).encode("latin-1")


def change_word(data, draw):
  """Two lines of a text in each other's place, or one twice."""
  lines = data.split(b"\n")
  i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
  lines[i] = lines[j]
  return b"\n".join(lines)


def change_array(path, draw):
  """One array of an .npz or .safetensors file becomes another one, of a valid file."""
  try:
    if path.suffix == ".npz":
      with np.load(path) as file:
        arrays = dict(file)
    else:
      arrays = safetensors.numpy.load_file(path)
  except Exception:  # it is damaged already
    return f"{path} stays damaged"
  name = draw.choice(sorted(arrays))
  array = arrays.pop(name)
  ways = [
    lambda x: None,
    lambda x: x.astype(draw.choice(("f2", "f8", "i8", "u1", "?"))),
    lambda x: x[:-1] if x.ndim else x[None],
    lambda x: x[..., None],
    lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, np.nan, x),
    lambda x: -1.0 * x,
    lambda x: 1e30 * x,
    lambda x: np.zeros((0, *x.shape[1:]), x.dtype),
  ]
  if path.suffix == ".npz":
    ways += [lambda x: x.astype("c8"), lambda x: x.astype("U3"), lambda x: x.astype(object)]
  other = draw.choice(ways)(array)
  if other is not None:
    arrays[draw.choice((name, name, name, f"module.{name}", "x"))] = np.ascontiguousarray(other)
  if path.suffix == ".npz":
    np.savez(path, **arrays)
  else:
    safetensors.numpy.save_file(arrays, path)
  return f"{path}: another {name}"


DAMAGES = (flip_bits, overwrite, insert, remove, repeat, truncate, change_number, change_word)


def damage(path, others, draw):
  """Damages one file of a path, in one of many ways; what was done, in words."""
  files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
  if not files:
    return f"{path} is empty"
  file = draw.choice(files)
  way = draw.random()
  if way < 0.04:
    file.unlink()
    return f"{file} removed"
  if way < 0.08:
    file.write_bytes(b"")
    return f"{file} emptied"
  if way < 0.12:
    other = draw.choice(others)
    shutil.copyfile(other, file) if other != file else None
    return f"{file} has the contents of {other}"
  if way < 0.14:
    file.unlink()
    file.mkdir()
    return f"{file} is a folder"
  if way < 0.5 and file.suffix in (".npz", ".safetensors"):
    return change_array(file, draw)
  change = draw.choice(DAMAGES)
  file.write_bytes(change(file.read_bytes() or b"\0", draw))
  return f"{file}: {change.__name__}"


def digests(root, outputs):
  """{path: digest} of all files below a folder but the outputs."""
  return {
    path: hashlib.sha256(path.read_bytes()).digest()
    for path in root.rglob("*")
    if path.is_file() and path.relative_to(root).parts[0] not in outputs
  }


def memory():
  """Bytes, at most so far."""
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def faults_of(result, seconds, before, after):
  """What is wrong with how a command ended."""
  last = (result.err.strip().splitlines() or [""])[-1]
  if result.code not in (0, 1, 2):
    yield f"{result.code}: {result.err[-1500:]}"
  elif result.code == 2 and not last.startswith("error: "):
    yield f"no error line: {result.err[-500:]}"
  elif result.code == 1 and "files failed" not in result.err:
    yield f"nothing is listed: {result.err[-500:]}"
  if before != after:
    yield f"inputs changed: {[p for p in before if before[p] != after.get(p)]}"
  if seconds > SECONDS:
    yield f"{seconds:.0f} seconds"


@pytest.mark.parametrize("case", CASES)
def test_random_damage_never_ends_in_a_traceback(call, case, inputs, stubs, tmp_path, monkeypatch):
  arguments, targets, outputs = CASES[case]
  name = case.split()[0]
  tries = TRIES // sum(other.split()[0] == name for other in CASES)
  codes, found, start = {}, [], None
  for number in range(FIRST, FIRST + tries):
    draw = random.Random(f"{case} {number}")
    root = tmp_path / "x"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(inputs, root)
    monkeypatch.chdir(root)
    others = [Path(p) for p in (*IMAGES, "config.py", "work/config.json", "samples.npz")]
    done = [damage(Path(draw.choice(targets)), others, draw) for _ in range(draw.choice((1, 1, 2)))]
    before, began = digests(root, outputs), time.process_time()
    result = call(name, *arguments)
    seconds = time.process_time() - began
    codes[result.code] = codes.get(result.code, 0) + 1
    faults = faults_of(result, seconds, before, digests(root, outputs))
    found += [f"{case} {number} ({'; '.join(done)}): {fault}" for fault in faults]
    start = start or memory()
    if memory() > start + BYTES:
      found.append(f"{case} {number} ({'; '.join(done)}): {memory() - start:,} bytes more")
      start = memory()
  print(f"{case}: {tries} tries, exit codes {codes}, {len(found)} faults")
  assert not found, "\n".join(found[:20])
