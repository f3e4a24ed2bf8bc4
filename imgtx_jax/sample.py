"""Draws images: python -m imgtx_jax.sample --workdir DIR --labels 0,3,7 --num 64 --out grid.png

Uses the last finished stage that can draw: finetune renders at any prefix k; pretrain decodes all
codes with the tokenizer; gan draws from noise alone. An image depends on its label, the seed and
its number alone, not on how many are drawn at once or on how many devices.

--candidates 8 --keep 1 draws 8 images for each and keeps the one that the discriminator likes best.
--init a.png --keep_rows R completes an image from its first R rows of codes (raster order).
--truncation 0.7 and --w_scale 1.5 trade diversity for fidelity; --refine_steps 10 moves an image's
condition vectors uphill on what the discriminator says of it: see sampling/options.py.
--style b.jpg renders the images in the style of another, by the style stage of the same work
directory or of --style_workdir; --strength from 0 to 1.

Several processes (see main) draw an equal share each, the same images as one would; each writes its
single images, and the first one the grid and the codes of all.
"""

import functools
import io
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from imgtx_jax.cli import command, sampling_flags
from imgtx_jax.data import transforms
from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError
from imgtx_jax.io import image_files
from imgtx_jax.io.atomic import write_atomically
from imgtx_jax.io.image_grid import save_grid
from imgtx_jax.sampling import options as sampling_options
from imgtx_jax.sampling.labels import parse_labels
from imgtx_jax.sampling.sampler import SCORES, Sampler, check_prefix, first_rows, load_stage
from imgtx_jax.style_transfer import tiled_renderer
from imgtx_jax.style_transfer.stylizer import load_stylizer
from imgtx_jax.training import workdir

FLAGS = flags.FLAGS


def main():
  """Draws what the flags ask for and writes it."""
  config, class_names = workdir.read(FLAGS.workdir)
  check_flags()
  options = sampling_flags.choose(FLAGS, config)
  initial = transforms.read_image(FLAGS.init, config.data.image_size) if FLAGS.init else None
  groups = -(-FLAGS.num // FLAGS.keep) if FLAGS.candidates else FLAGS.num
  labels = parse_labels(FLAGS.labels, class_names, groups)
  stage, results = load_stage(FLAGS.workdir, config, class_names, checkpoint=FLAGS.checkpoint)
  for name in sampling_flags.given(FLAGS):
    sampling_options.check_flag(name, FLAGS[name].value, stage)
  prefix = stage.num_codes if FLAGS.prefix is None else FLAGS.prefix
  check_prefix(stage, prefix)
  if FLAGS.save_codes and not stage.num_codes:
    raise UserError(f"--save_codes: the {stage.name} stage draws without codes; leave it out")
  given = blanked = None
  if initial is not None:
    given, blanked = first_rows(stage, results, initial, FLAGS.keep_rows)
    if given.shape[1] > prefix:
      raise UserError(
        f"--prefix={prefix} is under the {given.shape[1]} codes that --keep_rows={FLAGS.keep_rows} "
        "keeps; raise it, or leave it out"
      )
  stylize = load_style()
  sampler = Sampler(
    stage, results, options, prefix=prefix, seed=FLAGS.seed, batch_size=FLAGS.batch_size
  )
  began = time.monotonic()
  first, images, codes = draw_share(sampler, labels, given)
  if len(images):
    images = stylize(images)
  labels = np.repeat(labels, FLAGS.keep if FLAGS.candidates else 1)[: FLAGS.num]
  save_images(first, images, labels, class_names)
  write(images, codes, labels, [] if blanked is None else [initial, blanked])
  seconds = time.monotonic() - began
  print(
    f"{FLAGS.num} images at k = {prefix} of {stage.num_codes} in {seconds:.1f} s, compiling "
    f"included ({stage.name} stage, seed {FLAGS.seed})"
  )


def draw_share(sampler, labels, given):
  """(the number of the first, images, codes) of what this process draws: a block of the groups."""
  mine = np.array_split(np.arange(len(labels)), jax.process_count())[jax.process_index()]
  if not len(mine):
    return 0, np.zeros(0, np.uint8), np.zeros(0, np.int32)
  if not FLAGS.candidates:
    return mine[0], *sampler.draw(labels[mine], mine, given=given)
  choice = dict(candidates=FLAGS.candidates, keep=FLAGS.keep, score=FLAGS.score)
  images, codes, _ = sampler.draw_best(labels[mine], first=mine[0], given=given, **choice)
  first = mine[0] * FLAGS.keep
  return first, images[: FLAGS.num - first], codes[: FLAGS.num - first]


def check_flags():
  """UserError for flags that cannot go together, before anything is loaded."""
  for name in ("num", "batch_size", "keep"):
    if FLAGS[name].value < 1:
      raise UserError(f"--{name}={FLAGS[name].value} is under 1; ask for at least one")
  if FLAGS.candidates and FLAGS.candidates < FLAGS.keep:
    raise UserError(
      f"--candidates={FLAGS.candidates} is under --keep={FLAGS.keep}; draw more, or keep fewer"
    )
  if bool(FLAGS.init) != bool(FLAGS.keep_rows):
    raise UserError("--init and --keep_rows go together: an image, and how many rows of it to keep")
  if not FLAGS.style and (FLAGS.style_workdir or FLAGS.strength is not None):
    raise UserError("--style_workdir and --strength are about a style: give --style, or neither")
  if not (FLAGS.out or FLAGS.save_codes or FLAGS.save_images):
    raise UserError("nothing to write: give --out, --save_images or --save_codes")


def load_style():
  """A function of uint8 images [n, H, W, 3]: renders them as --style and its like say."""
  if not FLAGS.style:
    return lambda images: images
  style = image_files.read(FLAGS.style).on_white()
  renderer = tiled_renderer.StyleRenderer(
    load_stylizer(FLAGS.style_workdir or FLAGS.workdir),
    strength=1.0 if FLAGS.strength is None else FLAGS.strength,
  )
  return functools.partial(tiled_renderer.in_style, renderer, style)


def save_images(first, images, labels, class_names):
  """The single images, if the flags ask for them; first: the number of the first one."""
  if FLAGS.save_images:
    names = [*class_names, "none"]
    for i, image in enumerate(images, first):
      name = "".join(c if c.isalnum() else "_" for c in names[labels[i]])
      save_grid(image[None], Path(FLAGS.save_images) / f"{i:06d}-{name}.png", gutter=0)


def write(images, codes, labels, given):
  """The grid and the codes of all processes, as the flags ask. given: images that the drawn ones
  were completed from, first in the grid."""
  if FLAGS.out:
    images = gather_rows(images)
    if processes.is_first():
      columns = len(set(labels)) if 1 < len(set(labels)) <= 16 and not given else None
      shown = np.concatenate([np.stack(given), images]) if given else images
      save_grid(shown, FLAGS.out, columns=columns, scale=max(1, 64 // images.shape[1]))
  if FLAGS.save_codes:
    codes = gather_rows(codes)
    if processes.is_first():
      data = io.BytesIO()
      np.save(data, codes)
      write_atomically(FLAGS.save_codes, data.getvalue())


def gather_rows(rows):
  """The rows [n, …] of all processes, in their order, in the first one; None in the others."""
  parts = processes.gather(rows.tobytes())
  if processes.is_first():
    data = np.frombuffer(b"".join(parts), rows.dtype)
    return data.reshape(-1, *rows.shape[1:])


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "The work directory of imgtx_jax.main.")
  flags.DEFINE_string("labels", "", "Classes to draw in turn, by number or name; empty: all.")
  flags.DEFINE_integer("num", 64, "How many images.")
  flags.DEFINE_string("out", "", "A PNG file for the grid.")
  flags.DEFINE_string("save_images", "", "A folder for the single images.")
  flags.DEFINE_string("save_codes", "", "An .npy file for the codes, int [num, N].")
  flags.DEFINE_integer("prefix", None, "The dial k: codes drawn before rendering; all by default.")
  sampling_flags.define()
  command.define_checkpoint_flag()
  flags.DEFINE_integer("seed", 0, "Image i depends on the seed, i and its label.")
  flags.DEFINE_integer("batch_size", 64, "Images at a time.")
  flags.DEFINE_integer("candidates", 0, "Draw so many for each group of --keep; 0: no choice.")
  flags.DEFINE_integer("keep", 1, "Of the candidates of a group, keep the best so many.")
  flags.DEFINE_enum("score", "logit", SCORES, "What the best have most of.")
  flags.DEFINE_string("init", "", "An image to complete from its first rows.")
  flags.DEFINE_integer("keep_rows", 0, "Rows of codes of --init that are kept.")
  flags.DEFINE_string("style", "", "Render the images in the style of this one.")
  flags.DEFINE_string("style_workdir", "", "Where the style stage is; by default in --workdir.")
  flags.DEFINE_float("strength", None, "Of the style: 0 is none, 1 (the default) all of it.")
  command.run(main, required=("workdir",), processes_may="share")
