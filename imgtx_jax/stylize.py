"""Renders images in the style of others.

  python -m imgtx_jax.stylize --workdir DIR --content a.jpg --style b.jpg --out c.png

--strength S   0 gives the content back, 1 is the full style.
--style b.jpg --style c.jpg --weights 0.7,0.3   a mixture of styles.
--mask m.png   only where the mask is white (grey: partly; black: the content's own pixels). One
               mask for all styles, or one for each --style, each style in its own place.
--keep_color   luminance: each pixel keeps its chroma; coral: the output has the content's mean
               colour and covariance of colours.
--size N       works at a shorter side of N pixels: brush strokes are larger, relative to the image,
               the smaller N is. The output still has the content's size, or with
               --output_size=work the size worked at.
--tile N       images with a longer side are rendered in overlapping tiles; 0: never.

Content and style may be folders: every content in every style (--style DIR; files given one by one
are mixed), written to the folder --out as CONTENT--STYLE.png. A video is a folder of frames. What
cannot be read is listed at the end (exit code 1), the rest is done. --grid FILE.png makes a contact
sheet. The output keeps the content's alpha channel and colour profile and is turned as its EXIF
orientation says; it has 8 bits a channel. A style image is read as its centred square, at
--style_size.
"""

import sys
import time
from collections import Counter
from pathlib import Path

from absl import flags

from imgtx_jax.cli import command
from imgtx_jax.errors import UserError
from imgtx_jax.io import image_files, image_grid
from imgtx_jax.style_transfer import batch_jobs, color_and_masks
from imgtx_jax.style_transfer.stylizer import load_stylizer
from imgtx_jax.style_transfer.tiled_renderer import STYLE_SIZE, TILE, StyleRenderer

FLAGS = flags.FLAGS
_REPORT_SECONDS = 30


def main():
  """Renders what the flags ask for and writes it; exits with 1 if some of a batch failed."""
  in_batch = any(Path(path).is_dir() for path in (FLAGS.content, *FLAGS.style))
  check_flags()
  contents = batch_jobs.find(FLAGS.content)
  styles = [file for path in FLAGS.style for file in batch_jobs.find(path)]
  apart = Path(FLAGS.style[0]).is_dir()
  check_outputs(in_batch, contents, styles, batch_jobs.look_names(styles, apart))
  weights = None if apart else color_and_masks.parse_weights(FLAGS.weights, len(styles))
  options = batch_jobs.Options(
    size=FLAGS.size,
    at_work_size=FLAGS.output_size == "work",
    keep_color=FLAGS.keep_color,
    masks=tuple((path, image_files.read_mask(path)) for path in FLAGS.mask),
  )
  began = time.monotonic()
  renderer = StyleRenderer(
    load_stylizer(FLAGS.workdir, FLAGS.checkpoint),
    strength=FLAGS.strength,
    tile=FLAGS.tile,
    batch_size=FLAGS.batch_size,
    hard=FLAGS.hard,
  )
  looks, failures = batch_jobs.read_looks(
    renderer,
    styles,
    apart=apart,
    weights=weights,
    masked=len(FLAGS.mask) > 1,
    size=FLAGS.style_size,
  )
  count = render(renderer, contents, looks, options, in_batch, failures)
  if failures and not in_batch:
    raise UserError(failures[0])
  print(f"{count} images in {time.monotonic() - began:.1f} s, compiling included", flush=True)
  if failures:
    print("\n".join([f"{len(failures)} files failed:", *failures]), file=sys.stderr, flush=True)
    sys.exit(1)


def render(renderer, contents, looks, options, in_batch, failures):
  """Renders and writes; returns how many outputs. Adds to the list of failures."""
  total, count, reported = len(contents) * len(looks), 0, time.monotonic()
  rows = {}
  for content, look, picture in batch_jobs.render(renderer, contents, looks, options, failures):
    if FLAGS.out:
      image_files.write(output(content.file, look.name, in_batch), picture)
    if FLAGS.grid:
      row = rows.setdefault(content.file, [image_grid.thumbnail(content.picture.on_white())])
      row.append(image_grid.thumbnail(picture.on_white()))
    count += 1
    if time.monotonic() - reported > _REPORT_SECONDS:
      print(f"{count} of {total} images", flush=True)
      reported = time.monotonic()
  if FLAGS.grid and rows:
    columns = [image_grid.strips_thumbnail(look.images) for look in looks]
    image_grid.save_contact_sheet(FLAGS.grid, columns, rows.values())
  return count


def check_flags():
  """UserError for flags that cannot go together, before anything is loaded."""
  if not (FLAGS.out or FLAGS.grid):
    raise UserError("nothing to write: give --out or --grid")
  folders = [path for path in FLAGS.style if Path(path).is_dir()]
  if folders and len(FLAGS.style) > 1:
    raise UserError(
      f"--style={folders[0]} is a folder: give it alone, or the files to mix one by one"
    )
  if folders and FLAGS.weights:
    raise UserError(f"--weights={FLAGS.weights} mixes files; --style={folders[0]} is a folder")
  masks, styles = len(FLAGS.mask), len(FLAGS.style)
  if masks > 1 and (masks != styles or folders):
    raise UserError(
      f"{masks} times --mask and {styles} times --style: give one mask, or one for each style file"
    )
  if masks > 1 and FLAGS.weights:
    raise UserError(f"--weights={FLAGS.weights} mixes styles, and each has a mask; leave it out")
  if FLAGS.size and not image_files.MIN_SIDE <= FLAGS.size <= image_files.MAX_SIDE:
    raise UserError(
      f"--size={FLAGS.size} is outside {image_files.MIN_SIDE} … {image_files.MAX_SIDE}; "
      "0 is the content's own"
    )
  if FLAGS.output_size == "work" and not FLAGS.size:
    raise UserError("--output_size=work is the size of --size; give both, or neither")


def output(content, look_name, in_batch):
  """Where the output of a content File in a look goes."""
  return Path(FLAGS.out, f"{content.name}--{look_name}.png") if in_batch else Path(FLAGS.out)


def check_outputs(in_batch, contents, styles, look_names):
  """UserError if an output could not be written, or would be taken for an input or destroy one."""
  files = (*FLAGS.mask, *(file.path for file in (*contents, *styles)))
  inputs = {Path(path).resolve() for path in files}
  outputs = [Path(FLAGS.grid)] if FLAGS.grid else []
  if FLAGS.out:
    outputs += [output(content, name, in_batch) for content in contents for name in look_names]
  for path, times in Counter(outputs).items():
    image_files.check_name(path)
    if times > 1:
      raise UserError(f"{path} would be written {times} times; give other names, or fewer folders")
    if path.resolve() in inputs:
      raise UserError(f"{path} is an input too, and would be overwritten; name another file")
  if FLAGS.grid and Path(FLAGS.grid).suffix.lower() != ".png":
    raise UserError(f"--grid={FLAGS.grid}: contact sheets are PNG files; name it .png")
  if not (in_batch and FLAGS.out):
    return
  out = Path(FLAGS.out)
  if out.is_file():
    raise UserError(f"--out={out} is a file, and a batch needs a folder; name one")
  for path in (FLAGS.content, *FLAGS.style):
    if Path(path).is_dir() and out.resolve().is_relative_to(Path(path).resolve()):
      raise UserError(
        f"--out={out} lies in {path}, whose images are inputs: the next run would take the outputs "
        "for inputs; name a folder outside"
      )


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "A work directory with a finished style stage.")
  flags.DEFINE_string("content", None, "An image, or a folder of images or frames.")
  flags.DEFINE_multi_string("style", None, "A style image, or several to mix; or a folder.")
  flags.DEFINE_string("out", "", "The output file (.png, .jpg, .webp); of folders, a folder.")
  flags.DEFINE_float("strength", 1.0, "0 gives the content back, 1 is the full style.")
  flags.DEFINE_string("weights", "", "Of several styles: numbers with commas; equal by default.")
  flags.DEFINE_enum("keep_color", "no", color_and_masks.KEEP_COLOR, "Keep the content's colours.")
  flags.DEFINE_multi_string("mask", [], "Where: a mask of the content's size, or one a style.")
  flags.DEFINE_integer("size", 0, "Work at this shorter side; 0: the content's own size.")
  flags.DEFINE_enum("output_size", "content", ("content", "work"), "The size of the output.")
  flags.DEFINE_integer("style_size", STYLE_SIZE, "Side of a style image's square.")
  flags.DEFINE_integer("tile", TILE, "The longest side rendered in one piece; 0: any.")
  flags.DEFINE_integer("batch_size", 8, "Images at a time, of one size and if they are small.")
  flags.DEFINE_string("grid", "", "A PNG file for a contact sheet.")
  command.define_checkpoint_flag()
  flags.DEFINE_bool("hard", False, "From the content's codes instead of its latents.")
  command.run(main, required=("workdir", "content", "style"))
