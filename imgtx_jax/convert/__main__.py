"""Published weights in the forms that the other commands read:

  python -m imgtx_jax.convert llamagen --gpt c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --out DIR
  python -m imgtx_jax.convert inception pt_inception-2015-12-05-6726825d.pth [--out FILE]

and ImageNet in the form that the configs read:

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
from absl import flags

from imgtx_jax.cli import command
from imgtx_jax.convert import imagenet, llamagen
from imgtx_jax.errors import UserError
from imgtx_jax.io.atomic import explain_disk
from imgtx_jax.pretrained import inception_weights, state_dict
from imgtx_jax.stages import builders
from imgtx_jax.training import workdir

FLAGS = flags.FLAGS


def main(arguments):
  """Converts the kind of weights, or of data, that the first argument names."""
  kind, *files = arguments
  if kind not in KINDS:
    raise UserError(f"{kind!r} cannot be converted; choose one of: {', '.join(KINDS)}")
  KINDS[kind](files)


def _llamagen(files):
  if files:
    raise UserError(f"unexpected argument {files[0]!r}; llamagen takes --gpt and --tokenizer")
  _need("gpt", "tokenizer", "out")
  convert_llamagen(
    FLAGS.gpt, FLAGS.tokenizer, FLAGS.out, image_size=FLAGS.image_size, heads=FLAGS.heads
  )


def _inception(files):
  if len(files) != 1:
    raise UserError(
      f"inception takes one file, such as {inception_weights.FILE}, and got {len(files)}"
    )
  convert_inception(files[0], FLAGS.out or inception_weights.default_path())


def _imagenet(files):
  if files:
    raise UserError(f"unexpected argument {files[0]!r}; imagenet takes --tars and --data_dir")
  _need("tars", "data_dir")
  counts = imagenet.prepare(FLAGS.tars, FLAGS.data_dir)
  whole = "all" if counts == imagenet.IMAGES else "not all"
  print(
    f"{FLAGS.data_dir}: {whole} of ImageNet, {counts['train']} training and "
    f"{counts['validation']} validation images; train with python -m imgtx_jax.main --config "
    f"configs/imagenet256.py --config.data.path={FLAGS.data_dir} --workdir DIR"
  )


def _need(*names):
  for name in names:
    if FLAGS[name].value is None:
      raise UserError(f"--{name} is missing; run with --help to see all flags")


KINDS = {"llamagen": _llamagen, "inception": _inception, "imagenet": _imagenet}


def convert_inception(file, out):
  """Writes the .safetensors file `out` from the published `file`; UserError if that holds anything
  else."""
  with naming(file):
    params = inception_weights.convert(state_dict.read_file(file, ()))
  digest = sha256(file)
  if not digest.startswith(inception_weights.PUBLISHED):
    print(
      f"{file} has sha256 {digest[:8]}…, the published file {inception_weights.PUBLISHED}…: "
      "distances with these weights are called FD-Inception, not FID"
    )
  inception_weights.write(out, params, {"source_file": Path(file).name, "source_sha256": digest})
  print(f"{out}: InceptionV3 for evaluation, from {file} (sha256 {digest})")


def convert_llamagen(gpt, tokenizer, out, *, image_size=256, heads=0):
  """Writes the work directory `out` from the files `gpt` and `tokenizer`; UserError if one does not
  hold what it should, or `out` something else."""
  before = imported(out)
  with naming(f"--gpt={gpt}"):
    gpt_weights = state_dict.read_file(gpt, llamagen.GPT_WRAPPERS)
    gpt_variant = llamagen.find_gpt(gpt_weights, heads)
  with naming(f"--tokenizer={tokenizer}"):
    tokenizer_weights = state_dict.read_file(tokenizer, llamagen.TOKENIZER_WRAPPERS)
    tokenizer_variant = llamagen.find_tokenizer(tokenizer_weights)
  check_together(gpt_variant, tokenizer_variant, image_size)
  config = llamagen.imported_config(gpt_variant, tokenizer_variant, image_size).lock()
  source = {
    "kind": "llamagen",
    "gpt": {"file": Path(gpt).name, "sha256": sha256(gpt)},
    "tokenizer": {"file": Path(tokenizer).name, "sha256": sha256(tokenizer)},
    "image_size": image_size,
    "heads": gpt_variant.heads,
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


def check_together(gpt, tokenizer, image_size):
  """UserError unless a GPT and a tokenizer belong together and fit the image size."""
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
  """Puts the file before the UserErrors of its reading."""
  try:
    yield
  except UserError as error:
    raise UserError(f"{file}: {error}") from error


def sha256(path):
  """Of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def without_names(source):
  """What a conversion came from, whatever its files were called."""
  return [
    value["sha256"] if isinstance(value, dict) else value for _, value in sorted(source.items())
  ]


def imported(out):
  """What an earlier conversion to `out` came from, {} if nothing is there; UserError if something
  else is."""
  out = Path(out)
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return {}
  summary = out / "1-pretrain" / "summary.json"
  source = json.loads(summary.read_text()).get("imported") if summary.is_file() else None
  if not source:
    raise UserError(f"--out={out} holds something else; name a folder that is empty or new")
  return source


@contextlib.contextmanager
def new_directory(out):
  """A folder to write in, which gets the name `out` at the end, and is gone after an error."""
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


if __name__ == "__main__":
  flags.DEFINE_string("gpt", None, "llamagen: the file of the GPT, such as c2i_B_256.pt.")
  flags.DEFINE_string("tokenizer", None, "llamagen: the file of the VQ tokenizer.")
  flags.DEFINE_string("out", None, "The work directory (empty or new) or file to write.")
  flags.DEFINE_integer("image_size", 256, "Pixels that the GPT was trained at: 256 or 384.")
  flags.DEFINE_integer("heads", 0, "Attention heads of the GPT; 0: those of the published size.")
  flags.DEFINE_string("tars", None, "imagenet: the folder of the two official tars.")
  flags.DEFINE_string("data_dir", None, "imagenet: where to write, TFDS's data_dir.")
  command.run(main, accepts=f"kind ({', '.join(KINDS)})")
