"""Draws images from a trained work directory.

  python -m imgtx_jax.sample --workdir runs/quickstart --labels 0,3,7 --num 64 --out grid.png

Uses the last finished stage that can draw: finetune renders at any prefix k; pretrain decodes all
codes with the tokenizer; gan draws from noise alone. An image depends on its label, the seed and
its number alone, not on how many are drawn at once or on how many devices.

Several processes (see main) draw an equal part each, the same images as one would; each writes its
single images, and the first one the grid and the codes of all.
"""

import functools
import io
import time
from pathlib import Path

import jax
import numpy as np

from imgtx_jax.cli import command, sampling_flags
from imgtx_jax.data import transforms
from imgtx_jax.distributed import processes
from imgtx_jax.errors import UserError
from imgtx_jax.io import image_files, outputs
from imgtx_jax.io.atomic import write_atomically
from imgtx_jax.io.image_grid import save_grid
from imgtx_jax.sampling import options as sampling_options
from imgtx_jax.sampling.labels import parse_labels
from imgtx_jax.sampling.sampler import SCORES, Sampler, check_prefix, first_rows, load_stage
from imgtx_jax.style_transfer import tiled_renderer
from imgtx_jax.style_transfer.stylizer import load_stylizer
from imgtx_jax.training import workdir


def main(flags):
  """Draws the images that the flags ask for and writes them."""
  config, class_names = workdir.read(flags.workdir)
  check_flags(flags)
  options = sampling_flags.choose(flags, config)
  initial = transforms.read_image(flags.init, config.data.image_size) if flags.init else None
  groups = -(-flags.num // flags.keep) if flags.candidates else flags.num
  labels = parse_labels(flags.labels, class_names, groups)
  check_outputs(flags, labels, class_names)
  stage, results = load_stage(flags.workdir, config, class_names, checkpoint=flags.checkpoint)
  for name in sampling_flags.given(flags):
    sampling_options.check_flag(name, flags[name].value, stage)
  prefix = stage.num_codes if flags.prefix is None else flags.prefix
  check_prefix(stage, prefix)
  if flags.save_codes and not stage.num_codes:
    raise UserError(f"--save_codes: the {stage.name} stage draws without codes; leave it out")
  given = blanked = None
  if initial is not None:
    given, blanked = first_rows(stage, results, initial, flags.keep_rows)
    if given.shape[1] > prefix:
      raise UserError(
        f"--prefix={prefix} is under the {given.shape[1]} codes that --keep_rows={flags.keep_rows} "
        "keeps; raise it, or leave it out"
      )
  stylize = load_style(flags)
  sampler = Sampler(
    stage, results, options, prefix=prefix, seed=flags.seed, batch_size=flags.batch_size
  )
  began = time.monotonic()
  first, images, codes = draw_own(flags, sampler, labels, given)
  if len(images):
    images = stylize(images)
  labels = np.repeat(labels, flags.keep if flags.candidates else 1)[: flags.num]
  if flags.save_images:
    save_images(flags.save_images, first, images, labels, class_names)
  write(flags, images, codes, labels, [] if blanked is None else [initial, blanked])
  seconds = time.monotonic() - began
  print(
    f"{flags.num} images at k = {prefix} of {stage.num_codes} in {seconds:.1f} s, compiling "
    f"included ({stage.name} stage, seed {flags.seed})"
  )


def draw_own(flags, sampler, labels, given):
  """Draws the groups of this process, which are consecutive.

  Returns (the number of its first image, images uint8 [n, H, W, 3], codes int32 [n, N]).
  """
  mine = np.array_split(np.arange(len(labels)), jax.process_count())[jax.process_index()]
  if not len(mine):
    return 0, np.zeros(0, np.uint8), np.zeros(0, np.int32)
  if not flags.candidates:
    return mine[0], *sampler.draw(labels[mine], mine, given=given)
  choice = dict(candidates=flags.candidates, keep=flags.keep, score=flags.score)
  images, codes, _ = sampler.draw_best(labels[mine], first=mine[0], given=given, **choice)
  first = mine[0] * flags.keep
  return first, images[: flags.num - first], codes[: flags.num - first]


def check_flags(flags):
  """Raises UserError for flags that cannot go together, before anything is loaded."""
  if flags.candidates and flags.candidates < flags.keep:
    raise UserError(
      f"--candidates={flags.candidates} is under --keep={flags.keep}; draw more, or keep fewer"
    )
  if bool(flags.init) != bool(flags.keep_rows):
    raise UserError("--init and --keep_rows go together: an image, and how many rows of it to keep")
  if not flags.style and (flags.style_workdir or flags.strength is not None):
    raise UserError("--style_workdir and --strength are about a style: give --style, or neither")
  if not (flags.out or flags.save_codes or flags.save_images):
    raise UserError("nothing to write: give --out, --save_images or --save_codes")


def check_outputs(flags, labels, class_names):
  """Raises UserError for outputs that cannot be written, or would lie among those of another run.

  labels: of the groups.
  """
  outputs.check_file("--out", flags.out, (".png",))
  outputs.check_file("--save_codes", flags.save_codes, (".npy",))
  outputs.check_folder("--save_images", flags.save_images)
  labels = np.repeat(labels, flags.keep if flags.candidates else 1)[: flags.num]
  names = [image_name(i, label, class_names) for i, label in enumerate(labels)]
  if flags.save_images and (others := outputs.other_images(flags.save_images, names)):
    raise UserError(
      f"--save_images={flags.save_images} holds {len(others)} images that this run would not "
      f"replace, such as {others[0]}: name a new folder, or empty this one"
    )


def image_name(number, label, class_names):
  """Returns the name of a single image's file."""
  name = [*class_names, "none"][label]
  return f"{number:06d}-{''.join(c if c.isalnum() else '_' for c in name)[:80]}.png"


def load_style(flags):
  """Returns a function uint8 images [n, H, W, 3] → the same in the style of --style, if given."""
  if not flags.style:
    return lambda images: images
  style = image_files.read(flags.style).on_white()
  renderer = tiled_renderer.StyleRenderer(
    load_stylizer(flags.style_workdir or flags.workdir),
    strength=1.0 if flags.strength is None else flags.strength,
  )
  return functools.partial(tiled_renderer.in_style, renderer, style)


def save_images(folder, first, images, labels, class_names):
  """Writes single images as FOLDER/NUMBER-CLASS.png; first: the number of the first one."""
  for i, image in enumerate(images, first):
    save_grid(image[None], Path(folder) / image_name(i, labels[i], class_names), gutter=0)


def write(flags, images, codes, labels, given):
  """Writes the grid and the codes of all processes, where the flags ask for them.

  given: images that the drawn ones were completed from, first in the grid.
  """
  if flags.out:
    images = gather_rows(images)
    if processes.is_first():
      columns = len(set(labels)) if 1 < len(set(labels)) <= 16 and not given else None
      shown = np.concatenate([np.stack(given), images]) if given else images
      save_grid(shown, flags.out, columns=columns, scale=max(1, 64 // images.shape[1]))
  if flags.save_codes:
    codes = gather_rows(codes)
    if processes.is_first():
      data = io.BytesIO()
      np.save(data, codes)
      write_atomically(flags.save_codes, data.getvalue())


def gather_rows(rows):
  """Returns the rows [n, …] of all processes, in their order, in the first one; None in others."""
  parts = processes.gather(rows.tobytes())
  if processes.is_first():
    data = np.frombuffer(b"".join(parts), rows.dtype)
    return data.reshape(-1, *rows.shape[1:])


def define_flags(flags):
  """Defines the command's flags in a cli.flag_groups.FlagGroups."""
  flags.group("What to draw")
  flags.path("workdir", None, "The work directory of imgtx_jax.main.")
  flags.checkpoint()
  flags.string("labels", "", "Classes to draw in turn, by number or name; all by default.")
  flags.integer("num", 64, "How many images.", least=1)
  flags.integer("prefix", None, "The dial k: codes drawn before rendering; all by default.")
  flags.seed()
  flags.integer("batch_size", 64, "Images at a time.", least=1)
  flags.group("Where to write")
  flags.path("out", "", "A PNG file for the grid.")
  flags.path("save_images", "", "A folder for the single images.")
  flags.path("save_codes", "", "An .npy file for the codes, int [num, N].")
  flags.group("The best of several")
  flags.integer("candidates", 0, "Draw this many for each group of --keep; 0: no choice.", least=0)
  flags.integer("keep", 1, "Keep this many of the candidates of a group.", least=1)
  flags.enum("score", "logit", SCORES, "Which score of the discriminator decides")
  flags.group("Completing an image, in a style")
  flags.path("init", "", "An image to complete from its first rows (raster order only).")
  flags.integer("keep_rows", 0, "Rows of codes of --init to keep.", least=0)
  flags.path("style", "", "Render the images in the style of this one.")
  flags.path("style_workdir", "", "Where the style stage is; --workdir by default.")
  flags.float("strength", None, "Strength of the style, from 0 to 1 (the default).")
  sampling_flags.define(flags)


COMMAND = command.Command(main, define_flags, __doc__, required=("workdir",), processes="share")

if __name__ == "__main__":
  command.run(COMMAND)
