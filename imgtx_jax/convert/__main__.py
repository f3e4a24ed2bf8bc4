"""Converts published weights, and ImageNet, to the forms that the other commands read.

  python -m imgtx_jax.convert llamagen --gpt c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --out DIR
  python -m imgtx_jax.convert inception pt_inception-2015-12-05-6726825d.pth [--out FILE]
  python -m imgtx_jax.convert imagenet --tars DIR --data_dir DIR

inception leaves one .safetensors file, by default where evaluation looks for it.
llamagen reads the two files of LlamaGen (.pt, with the extra "convert", or .safetensors) and leaves
in DIR what the stages tokenizer and pretrain leave when they finish: sample draws from it, and
finetune starts from it. DIR appears under its name once it is whole. A second run has nothing to
do; a broken-off one starts anew.
imagenet reads the official ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in --tars and leaves
TFDS's imagenet2012 as ArrayRecord in --data_dir, without TensorFlow; it needs as much space again.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from imgtx_jax.cli import command, paths
from imgtx_jax.convert import imagenet, llamagen
from imgtx_jax.errors import UserError
from imgtx_jax.io import outputs
from imgtx_jax.io.atomic import explain_disk
from imgtx_jax.pretrained import inception_weights, state_dict
from imgtx_jax.stages import builders
from imgtx_jax.training import workdir


def convert_inception(file, out):
  """Writes the .safetensors file `out` from the published `file`.

  Raises UserError if `file` holds anything else.
  """
  outputs.check_file("--out", out, (".safetensors",))
  with naming(file):
    params = inception_weights.convert(_read(file, file, ()))
  digest = sha256(file)
  if not digest.startswith(inception_weights.PUBLISHED):
    print(
      f"{file} has sha256 {digest[:8]}…, the published file {inception_weights.PUBLISHED}…: "
      "distances with these weights are called FD-Inception, not FID"
    )
  inception_weights.write(out, params, {"source_file": Path(file).name, "source_sha256": digest})
  print(f"{out}: InceptionV3 for evaluation, from {file} (sha256 {digest})")


def convert_llamagen(gpt, tokenizer, out, *, image_size=256, num_heads=0):
  """Writes the work directory `out` from the files `gpt` and `tokenizer`.

  Raises UserError if a file does not hold such a network, or `out` holds something else."""
  outputs.check_folder("--out", out)
  before = imported(out)
  with naming(f"--gpt={gpt}"):
    gpt_weights = _read(f"--gpt={gpt}", gpt, llamagen.GPT_WRAPPERS)
    gpt_variant = llamagen.find_gpt(gpt_weights, num_heads)
  with naming(f"--tokenizer={tokenizer}"):
    tokenizer_weights = _read(f"--tokenizer={tokenizer}", tokenizer, llamagen.TOKENIZER_WRAPPERS)
    tokenizer_variant = llamagen.find_tokenizer(tokenizer_weights)
  check_together(gpt_variant, tokenizer_variant, image_size)
  config = llamagen.imported_config(gpt_variant, tokenizer_variant, image_size).lock()
  source = {
    "kind": "llamagen",
    "gpt": {"file": Path(gpt).name, "sha256": sha256(gpt)},
    "tokenizer": {"file": Path(tokenizer).name, "sha256": sha256(tokenizer)},
    "image_size": image_size,
    "num_heads": gpt_variant.num_heads,
  }
  if before:
    if without_names(before) == without_names(source):
      print(f"{out}: converted before from the same weights, nothing to do")
      return
    raise UserError(
      f"--out={out} was converted from {before['gpt']['file']} and {before['tokenizer']['file']} "
      "with other contents or flags; name another --out, or delete it"
    )
  with naming(f"--tokenizer={tokenizer}"):
    network = builders.make_tokenizer(config)
    tokenizer_params = llamagen.tokenizer_params(tokenizer_weights, network)
  with naming(f"--gpt={gpt}"):
    network = builders.make_gpt(config, gpt_variant.classes)
    gpt_params = llamagen.gpt_params(gpt_weights, network)
  # How often the codes occur is not published: finetune, which then begins from their mean, and the
  # unigram figure take them as equally frequent.
  counts = {"code_counts": np.ones(gpt_variant.codebook_size, np.float32)}
  with new_directory(out) as directory:
    origin = {"imported": source}
    workdir.write_finished(directory, "tokenizer", tokenizer_params, {}, origin)
    workdir.write_finished(directory, "pretrain", {"gpt": gpt_params}, counts, origin)
    # The files do not hold the names of the classes: they go by their numbers.
    workdir.claim(config, directory, [str(i) for i in range(gpt_variant.classes)])
  names = [llamagen.name_of(v) or "a size of its own" for v in (gpt_variant, tokenizer_variant)]
  print(
    f"{out}: GPT ({names[0]}) and tokenizer ({names[1]}) for images of {image_size} pixels; draw "
    f"with python -m imgtx_jax.sample --workdir {out} --num 4 --out grid.png"
  )


def _read(title, file, wrappers):
  """Returns {name: Weight} of a file, and prints what was taken out of which wrappers."""
  return state_dict.read_file(file, wrappers, say=lambda line: print(f"{title}: {line}"))


def check_together(gpt, tokenizer, image_size):
  """Raises UserError unless a GPT and a tokenizer belong together and fit the image size."""
  if gpt.codebook_size != tokenizer.codebook_size:
    raise UserError(
      f"--gpt knows {gpt.codebook_size} codes and --tokenizer has {tokenizer.codebook_size}: they "
      "do not belong together; give files that were published with each other"
    )
  if image_size < 1 or image_size % tokenizer.patch:
    raise UserError(
      f"--image_size={image_size} is no multiple of {tokenizer.patch}, the pixels a code of "
      "--tokenizer; published are 256 and 384"
    )


@contextlib.contextmanager
def naming(file):
  """Puts the file's name before the UserErrors raised while reading it."""
  try:
    yield
  except UserError as error:
    raise UserError(f"{file}: {error}") from error


def sha256(path):
  """Returns the SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def without_names(source):
  """Returns the source record of a conversion without the names of its files."""
  return [
    value["sha256"] if isinstance(value, dict) else value for _, value in sorted(source.items())
  ]


def imported(out):
  """Returns the source record of an earlier conversion to `out`, or {} if nothing is there.

  Raises UserError if `out` holds something else.
  """
  out = Path(out)
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return {}
  summary = out / "1-pretrain" / "summary.json"
  source = None
  if summary.is_file():
    with contextlib.suppress(ValueError, AttributeError):  # damaged: something else
      source = json.loads(summary.read_bytes()).get("imported")
  if not source:
    raise UserError(f"--out={out} holds something else; name a folder that is empty or new")
  return source


@contextlib.contextmanager
def new_directory(out):
  """Yields a folder to write in; it is renamed to `out` at the end, or deleted on an error."""
  out = Path(out).absolute()
  unfinished = out.with_name(f".{out.name}.unfinished")  # a killed run's is overwritten
  with explain_disk(out):
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
      yield unfinished
      if out.exists():
        out.rmdir()
      os.replace(unfinished, out)
    except BaseException:
      shutil.rmtree(unfinished, ignore_errors=True)
      raise


# -- The command -----------------------------------------------------------------------------------


def main_llamagen(flags):
  """Converts LlamaGen's two files."""
  options = dict(image_size=flags.image_size, num_heads=flags.num_heads)
  convert_llamagen(flags.gpt, flags.tokenizer, flags.out, **options)


def main_inception(flags, files):
  """Converts InceptionV3's file."""
  if len(files) != 1:
    raise UserError(
      f"inception takes one file, such as {inception_weights.FILE}, and got {len(files)}"
    )
  out = flags.out or inception_weights.default_path()
  if not out:
    raise UserError("there is no home folder here: give --out, or set IMGTX_CACHE")
  convert_inception(paths.expand_argument(files[0]), out)


def main_imagenet(flags):
  """Converts ImageNet's two tars, and says how to train on them."""
  counts = imagenet.prepare(flags.tars, flags.data_dir)
  whole = "all" if counts == imagenet.IMAGES else "not all"
  print(
    f"{flags.data_dir}: {whole} of ImageNet, {counts['train']} training and "
    f"{counts['validation']} validation images; train with python -m imgtx_jax.main --config "
    f"configs/imagenet256.py --config.data.path={flags.data_dir} --workdir DIR"
  )


def define_llamagen(flags):
  """Defines the flags of `convert llamagen`."""
  flags.group("LlamaGen")
  flags.path("gpt", None, "The file of the GPT, such as c2i_B_256.pt.")
  flags.path("tokenizer", None, "The file of the VQ tokenizer.")
  flags.path("out", None, "The work directory to write, empty or new.")
  flags.integer("image_size", 256, "Pixels that the GPT was trained at: 256 or 384.")
  flags.integer("num_heads", 0, "Attention heads of the GPT; 0: those of the published size.")


def define_inception(flags):
  """Defines the flags of `convert inception`."""
  flags.group("InceptionV3")
  flags.path("out", "", "The file to write; by default where evaluation looks for it.")


def define_imagenet(flags):
  """Defines the flags of `convert imagenet`."""
  flags.group("ImageNet")
  flags.path("tars", None, "The folder of the two official tars.")
  flags.path("data_dir", None, "Where to write: TFDS's data_dir.")


LLAMAGEN = """convert llamagen: LlamaGen's published weights as a work directory.

  python -m imgtx_jax.convert llamagen --gpt c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --out DIR
"""
INCEPTION = """convert inception FILE: FID's InceptionV3 for evaluation.

  python -m imgtx_jax.convert inception pt_inception-2015-12-05-6726825d.pth
"""
IMAGENET = """convert imagenet: ImageNet's official tars as ArrayRecord.

  python -m imgtx_jax.convert imagenet --tars DIR --data_dir DIR
"""
COMMANDS = {
  "llamagen": command.Command(
    main_llamagen, define_llamagen, LLAMAGEN, required=("gpt", "tokenizer", "out")
  ),
  "inception": command.Command(main_inception, define_inception, INCEPTION, accepts="file"),
  "imagenet": command.Command(
    main_imagenet, define_imagenet, IMAGENET, required=("tars", "data_dir")
  ),
}

if __name__ == "__main__":
  command.run(COMMANDS, __doc__)
