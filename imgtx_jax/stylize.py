"""Renders images in the style of others.

  python -m imgtx_jax.stylize --workdir runs/style --content a.jpg --style b.jpg --out c.png

--style b.jpg --style c.jpg --weights 0.7,0.3 mixes styles. --mask: white pixels take the style,
grey ones partly, black ones keep the content's own; one mask for all styles, or one for each
--style, each style in its own place. --keep_color: luminance keeps each pixel's chroma; coral gives
the output the content's mean colour and covariance of colours. --size: brush strokes are larger,
relative to the image, the smaller it is.

Content and style may be folders: every content in every style (--style DIR; files given one by one
are mixed), written to the folder --out as CONTENT--STYLE.png. A video is a folder of frames. What
cannot be read is listed at the end (exit code 1), the rest is done. The output keeps the content's
alpha channel and colour profile and is turned as its EXIF orientation says; it has 8 bits a
channel. A style image is read as its centred square, at --style_size.
"""

import sys
import time
from collections import Counter
from pathlib import Path

from imgtx_jax.cli import command
from imgtx_jax.errors import UserError
from imgtx_jax.io import image_files, image_grid
from imgtx_jax.io import outputs as output_checks
from imgtx_jax.style_transfer import batch_jobs, color_and_masks
from imgtx_jax.style_transfer.stylizer import load_stylizer
from imgtx_jax.style_transfer.tiled_renderer import STYLE_SIZE, TILE, StyleRenderer

_REPORT_SECONDS = 30


def main(flags):
  """Renders the contents in the styles; exits with 1 if some of a batch failed."""
  in_batch = any(Path(path).is_dir() for path in (flags.content, *flags.style))
  check_flags(flags)
  notes = []
  contents = batch_jobs.find(flags.content, notes)
  styles = [file for path in flags.style for file in batch_jobs.find(path, notes)]
  apart = Path(flags.style[0]).is_dir()
  check_outputs(flags, in_batch, contents, styles, batch_jobs.style_names(styles, apart))
  for note in notes:
    print(f"note: {note}", flush=True)
  weights = None if apart else color_and_masks.parse_weights(flags.weights, len(styles))
  options = batch_jobs.Options(
    size=flags.size,
    at_work_size=flags.output_size == "work",
    keep_color=flags.keep_color,
    masks=tuple((path, image_files.read_mask(path)) for path in flags.mask),
  )
  began = time.monotonic()
  renderer = StyleRenderer(
    load_stylizer(flags.workdir, flags.checkpoint),
    strength=flags.strength,
    tile=flags.tile,
    batch_size=flags.batch_size,
    hard=flags.hard,
  )
  named_styles, failures = batch_jobs.read_styles(
    renderer,
    styles,
    apart=apart,
    weights=weights,
    masked=len(flags.mask) > 1,
    size=flags.style_size,
  )
  count = render(flags, renderer, contents, named_styles, options, in_batch, failures)
  if failures and not in_batch:
    raise UserError(failures[0])
  print(f"{count} images in {time.monotonic() - began:.1f} s, compiling included", flush=True)
  if failures:
    print("\n".join([f"{len(failures)} files failed:", *failures]), file=sys.stderr, flush=True)
    sys.exit(1)


def render(flags, renderer, contents, styles, options, in_batch, failures):
  """Renders and writes; returns the number of outputs, and adds to the list of failures."""
  total, count, reported = len(contents) * len(styles), 0, time.monotonic()
  rows = {}
  for content, style, picture in batch_jobs.render(renderer, contents, styles, options, failures):
    if flags.out:
      image_files.write(output(flags.out, content.file, style.name, in_batch), picture)
    if flags.grid:
      row = rows.setdefault(content.file, [image_grid.thumbnail(content.picture.on_white())])
      row.append(image_grid.thumbnail(picture.on_white()))
    count += 1
    if time.monotonic() - reported > _REPORT_SECONDS:
      print(f"{count} of {total} images", flush=True)
      reported = time.monotonic()
  if flags.grid and rows:
    columns = [image_grid.strips_thumbnail(style.images) for style in styles]
    image_grid.save_contact_sheet(flags.grid, columns, rows.values())
  return count


def check_flags(flags):
  """Raises UserError for flags that cannot go together, before anything is loaded."""
  if not (flags.out or flags.grid):
    raise UserError("nothing to write: give --out or --grid")
  folders = [path for path in flags.style if Path(path).is_dir()]
  if folders and len(flags.style) > 1:
    raise UserError(
      f"--style={folders[0]} is a folder: give it alone, or the files to mix one by one"
    )
  if folders and flags.weights:
    raise UserError(f"--weights={flags.weights} mixes files; --style={folders[0]} is a folder")
  masks, styles = len(flags.mask), len(flags.style)
  if masks > 1 and (masks != styles or folders):
    raise UserError(
      f"{masks} times --mask and {styles} times --style: give one mask, or one for each style file"
    )
  if masks > 1 and flags.weights:
    raise UserError(f"--weights={flags.weights} mixes styles, and each has a mask; leave it out")
  if flags.size and not image_files.MIN_SIDE <= flags.size <= image_files.MAX_SIDE:
    raise UserError(
      f"--size={flags.size} is outside {image_files.MIN_SIDE} … {image_files.MAX_SIDE}; "
      "0 is the content's own"
    )
  if flags.output_size == "work" and not flags.size:
    raise UserError("--output_size=work is the size of --size; give both, or neither")


def output(out, content, style_name, in_batch):
  """Returns the path of the output of a content File in a style, below --out."""
  return Path(out, f"{content.name}--{style_name}.png") if in_batch else Path(out)


def check_outputs(flags, in_batch, contents, styles, style_names):
  """Raises UserError if an output could not be written, or would replace or become an input."""
  files = (*flags.mask, *(file.path for file in (*contents, *styles)))
  inputs = {Path(path).resolve() for path in files}
  outputs = [Path(flags.grid)] if flags.grid else []
  if flags.out:
    outputs += [
      output(flags.out, content, name, in_batch) for content in contents for name in style_names
    ]
  for path, times in Counter(outputs).items():
    image_files.check_name(path)
    output_checks.check_name_length(path)
    if times > 1:
      raise UserError(f"{path} would be written {times} times; give other names, or fewer folders")
    if path.resolve() in inputs:
      raise UserError(f"{path} is an input too, and would be overwritten; name another file")
  if flags.grid and Path(flags.grid).suffix.lower() != ".png":
    raise UserError(f"--grid={flags.grid}: contact sheets are PNG files; name it .png")
  output_checks.check_file("--grid", flags.grid)
  if not (in_batch and flags.out):
    output_checks.check_file("--out", flags.out)
    if flags.out and image_files.has_alpha(flags.content):
      image_files.check_alpha(flags.out)
    return
  out = Path(flags.out)
  if out.is_file():
    raise UserError(f"--out={out} is a file, and a batch needs a folder; name one")
  output_checks.check_folder("--out", flags.out)
  if others := output_checks.other_images(out, [path.name for path in outputs]):
    print(
      f"note: {out} holds {len(others)} images that this run does not replace, such as {others[0]}",
      flush=True,
    )
  for path in (flags.content, *flags.style):
    if Path(path).is_dir() and out.resolve().is_relative_to(Path(path).resolve()):
      raise UserError(
        f"--out={out} lies in {path}, whose images are inputs: the next run would take the outputs "
        "for inputs; name a folder outside"
      )


def define_flags(flags):
  """Defines the command's flags in a cli.flag_groups.FlagGroups."""
  flags.group("Images")
  flags.path("workdir", None, "A work directory with a finished style stage.")
  flags.checkpoint()
  flags.path("content", None, "An image, or a folder of images or frames.")
  flags.paths("style", None, "A style image, given several times to mix them; or a folder.")
  flags.path("out", "", "The output file (.png, .jpg, .webp); of folders, a folder.")
  flags.path("grid", "", "A PNG file for a contact sheet.")
  flags.group("The style")
  flags.float("strength", 1.0, "0 gives the content back, 1 is the full style.")
  flags.string("weights", "", "Weights of several styles: 0.7,0.3; equal by default.")
  flags.paths("mask", [], "A mask of the content's size (white: styled), or one a style.")
  flags.enum("keep_color", "no", color_and_masks.KEEP_COLOR, "How the content's colours are kept")
  flags.bool("hard", "Start from the content's codes instead of its latents.")
  flags.group("Sizes")
  flags.integer("size", 0, "Work at this shorter side; 0: the content's own size.")
  flags.enum("output_size", "content", ("content", "work"), "Whose size the output has")
  flags.integer("style_size", STYLE_SIZE, "Side of a style image's square.", least=1)
  flags.integer("tile", TILE, "The longest side rendered in one piece; 0: any.")
  flags.integer("batch_size", 8, "Small images of one size rendered at a time.")


COMMAND = command.Command(main, define_flags, __doc__, required=("workdir", "content", "style"))

if __name__ == "__main__":
  command.run(COMMAND)
