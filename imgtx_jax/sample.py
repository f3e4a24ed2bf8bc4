"""Draws images: python -m imgtx_jax.sample --workdir DIR --labels 0,3,7 --num 64 --out grid.png

Uses the last finished stage that can draw: finetune renders at any prefix k; pretrain decodes all
codes with the tokenizer. An image depends on its label, the seed and its number alone, not on how
many are drawn at once.
"""

import io
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from imgtx_jax import command, decode, rng, workdir
from imgtx_jax.data import transforms
from imgtx_jax.errors import UserError
from imgtx_jax.files import write_atomically
from imgtx_jax.pictures import save_grid
from imgtx_jax.stages import build

FLAGS = flags.FLAGS


def main():
  """Draws what the flags ask for and writes it."""
  config, class_names = workdir.read(FLAGS.workdir)
  labels = parse_labels(FLAGS.labels, class_names, FLAGS.num)
  options = decoding(config)
  if not (FLAGS.out or FLAGS.save_codes or FLAGS.save_images):
    raise UserError("nothing to write: give --out, --save_images or --save_codes")
  stage, params = load(FLAGS.workdir, config, class_names)
  prefix = stage.num_codes if FLAGS.prefix is None else FLAGS.prefix
  if not 0 <= prefix <= stage.num_codes:
    raise UserError(f"--prefix={prefix} is outside 0 … {stage.num_codes}, the codes of an image")
  if stage.name == "pretrain" and prefix != stage.num_codes:
    raise UserError(
      f"--prefix={prefix} needs the finetune stage, and {FLAGS.workdir} has only finished "
      f"pretrain: finish it, or leave --prefix out"
    )
  began = time.monotonic()
  images, codes = draw(stage, params, labels, options, prefix)
  seconds = time.monotonic() - began
  write(images, codes, labels, class_names)
  print(
    f"{len(images)} images at k = {prefix} of {stage.num_codes} in {seconds:.1f} s, compiling "
    f"included ({stage.name} stage, seed {FLAGS.seed})"
  )


def parse_labels(text, class_names, count):
  """Labels int [count]: those named in text, in turn; all classes when it is empty.

  A label is a class number, a class name, or "none" for the null class.
  """
  if count < 1:
    raise UserError(f"--num={count} is under 1; ask for at least one image")
  labels = []
  for word in [w.strip() for w in text.split(",") if w.strip()]:
    if word in class_names:
      labels.append(class_names.index(word))
    elif word == "none":
      labels.append(len(class_names))
    elif word.isdecimal() and int(word) < len(class_names):
      labels.append(int(word))
    else:
      raise UserError(
        f"--labels: {word!r} is no class; choose 0 … {len(class_names) - 1}, a class name such as "
        f"{class_names[0]!r}, or none"
      )
  return np.resize(labels or np.arange(len(class_names)), count).astype(np.int32)


def decoding(config):
  """How codes are drawn: the config's way, with the flags that were given."""
  limits = {"cfg_scale": (0, 100), "temperature": (0, 100), "top_k": (0, None), "top_p": (0, 1)}
  values = {}
  for name, (least, most) in limits.items():
    given = FLAGS[name].value
    values[name] = config.sample[name] if given is None else given
    if values[name] < least or (most is not None and values[name] > most):
      raise UserError(f"--{name}={values[name]} is outside {least} … {most or 'the vocabulary'}")
  if values["top_p"] == 0:
    raise UserError("--top_p=0 leaves no code to draw; choose more than 0, or --temperature=0")
  return decode.Decoding(**values)


def load(directory, config, class_names):
  """The last finished stage that can draw, and its parameters."""
  done = workdir.finished(config, directory)
  drawing = [task for task in done if task.stage in ("finetune", "pretrain")]
  if not drawing:
    names = ", ".join(task.name for task in done) or "no stage"
    raise UserError(
      f"{directory} has finished {names}, and drawing needs pretrain or finetune; "
      "run imgtx_jax.main with the same config and --workdir to go on"
    )
  last = drawing[-1]
  stage = build(last.stage, config, len(class_names))
  return stage, stage.drawing_params(workdir.results(directory, done[: done.index(last) + 1]))


def draw(stage, params, labels, options, prefix):
  """uint8 images [n, H, W, 3] and raster codes int [n, N] (the first `prefix` drawn), in batches
  of one size."""
  size = min(FLAGS.batch_size, len(labels))
  root = rng.stream(jax.random.key(FLAGS.seed), "sample", 0)

  @jax.jit
  def run(params, labels, index):
    keys = rng.example_keys(root, index)
    images, codes = stage.sample(params, labels, keys, options, prefix=prefix)[:2]
    return transforms.denormalize(images), codes

  drawn = []
  for start in range(0, len(labels), size):
    # The last batch is filled up: one compiled program serves them all.
    index = np.arange(start, start + size)
    drawn.append(
      jax.device_get(run(params, jnp.asarray(labels[index % len(labels)]), jnp.asarray(index)))
    )
  images, codes = (np.concatenate(parts)[: len(labels)] for parts in zip(*drawn, strict=True))
  return images, codes


def write(images, codes, labels, class_names):
  """The grid, the single images and the codes, as the flags ask."""
  if FLAGS.out:
    columns = len(set(labels)) if 1 < len(set(labels)) <= 16 else None
    save_grid(images, FLAGS.out, columns=columns, scale=max(1, 64 // images.shape[1]))
  if FLAGS.save_images:
    names = [*class_names, "none"]
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      name = "".join(c if c.isalnum() else "_" for c in names[label])
      save_grid(image[None], Path(FLAGS.save_images) / f"{i:06d}-{name}.png", gutter=0)
  if FLAGS.save_codes:
    data = io.BytesIO()
    np.save(data, codes)
    write_atomically(FLAGS.save_codes, data.getvalue())


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "The work directory of imgtx_jax.main.")
  flags.DEFINE_string("labels", "", "Classes to draw in turn, by number or name; empty: all.")
  flags.DEFINE_integer("num", 64, "How many images.")
  flags.DEFINE_string("out", "", "A PNG file for the grid.")
  flags.DEFINE_string("save_images", "", "A folder for the single images.")
  flags.DEFINE_string("save_codes", "", "An .npy file for the codes, int [num, N].")
  flags.DEFINE_integer("prefix", None, "The dial k: codes drawn before rendering; all by default.")
  flags.DEFINE_float("cfg_scale", None, "Guidance: 1 is none. The config's by default.")
  flags.DEFINE_float("temperature", None, "0 draws the likeliest code. The config's by default.")
  flags.DEFINE_integer("top_k", None, "Draw among this many codes; 0 all. The config's by default.")
  flags.DEFINE_float("top_p", None, "Draw within this probability. The config's by default.")
  flags.DEFINE_integer("seed", 0, "Image i depends on the seed, i and its label.")
  flags.DEFINE_integer("batch_size", 64, "Images at a time.")
  command.run(main, required=("workdir",))
