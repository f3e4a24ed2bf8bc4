"""Judges images with the discriminator: real or fake, the likeliest classes, saliency maps.

  python -m imgtx_jax.judge --workdir runs/quickstart --out saliency.png a.jpg b.png

A relativistic logit has no zero and compares only within a label. So every image stands against
SAMPLES images that the model draws of the same label (the image's likeliest class, or --label): its
score is its logit less their mean logit, and it is real if its logit exceeds REAL_FRACTION of
theirs. The model draws them at k = --prefix, 0 unless given: in one pass, from its noise alone.
About one in ten of such images is called real, however good the discriminator; at a higher k the
model leans on codes and is harder to tell, and real images too may be called fake (a quickstart
with 80 steps of finetune called 120 of 120 held-out images real at k = 0, and 6 at k = N).
"""

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax import rng
from imgtx_jax.cli import command, paths
from imgtx_jax.data import transforms
from imgtx_jax.evaluate import saliency
from imgtx_jax.io import outputs
from imgtx_jax.io.image_grid import save_grid
from imgtx_jax.sampling.labels import parse_label
from imgtx_jax.sampling.sampler import check_prefix, load_judging_stage
from imgtx_jax.stages.base import sampling
from imgtx_jax.training import workdir

SAMPLES = 64  # of a label, to compare with
REAL_FRACTION = 0.9
CLASSES_SHOWN = 5
PICTURE_SIDE = 224  # pixels, at least


class Judgement(NamedTuple):
  """The result for one image.

  label: int, the one compared within (K: none). score: its logit less the mean logit of the model's
  own images. more_real_than: the fraction of those with a lower logit. probabilities: [K], of the
  classes.
  """

  label: int
  score: float
  more_real_than: float
  probabilities: np.ndarray

  @property
  def verdict(self):
    """Returns "real" or "fake"."""
    return "real" if self.more_real_than >= REAL_FRACTION else "fake"


class Judge:
  """A trained discriminator, and the model's own images for it to compare with.

  stage: a FinetuneStage or GanStage. results: {stage: checkpoint} of workdir.results, of it and its
  sources. prefix: the dial k of the model's own images.
  """

  def __init__(self, stage, results, prefix):
    self.stage, self.prefix = stage, prefix
    self.network = saliency.exact(stage.adversary.discriminator)
    self.drawing_params = stage.drawing_params(results)
    self.params = self.drawing_params["discriminator"]
    self._verdict = jax.jit(self._verdict_of)
    self._saliency = jax.jit(self._saliency_of)
    self._draw = jax.jit(self._draw_of)
    self._own_logits = {}

  def examine(self, image, label=None):
    """Returns the Judgement on an image uint8 [H, W, 3], as `label` or as its likeliest class."""
    none = self.stage.classes
    _, probabilities = self._verdict(self.params, image[None], jnp.full(1, none))
    probabilities = np.asarray(probabilities[0])
    label = int(np.argmax(probabilities)) if label is None else label
    logit = float(self._verdict(self.params, image[None], jnp.full(1, label))[0][0])
    own = self.own_logits(label)
    return Judgement(
      label=label,
      score=logit - float(np.mean(own)),
      more_real_than=float(np.mean(own < logit)),
      probabilities=probabilities,
    )

  def own_logits(self, label):
    """Returns logits [SAMPLES] of the model's own images of a label."""
    if label not in self._own_logits:
      labels = jnp.full(SAMPLES, label)
      images = self._draw(self.drawing_params, labels)
      self._own_logits[label] = np.asarray(self._verdict(self.params, images, labels)[0])
    return self._own_logits[label]

  def saliency(self, image, label):
    """Returns saliency of an image uint8 [H, W, 3].

    It is attention [h, w] of [cls] on the patches, and |gradient| [H, W] of the logit by the
    pixels, summed over channels.
    """
    attention, gradient = self._saliency(self.params, image[None], jnp.full(1, label))
    return np.asarray(attention), np.asarray(gradient)

  def _verdict_of(self, params, images, labels):
    images = self.stage.adversary.repeat(transforms.normalize(images))
    verdict = self.network.apply({"params": params}, images, labels)
    return verdict.logit, jax.nn.softmax(verdict.class_logits)

  def _draw_of(self, params, labels):
    """Returns uint8 images, for files are judged on whole numbers too."""
    key = rng.stream(rng.root_key(self.stage.config.seed), "judge", 0)
    keys = rng.example_keys(key, jnp.arange(len(labels)))
    options = sampling(self.stage.config)
    image = self.stage.sample(params, labels, keys, options, prefix=self.prefix)[0]
    return transforms.denormalize(image)

  def _saliency_of(self, params, image, label):
    maps = saliency.saliency_maps(
      self.network, params, image, label, repeat=self.stage.adversary.repeat
    )
    return maps["attention"][0], maps["logit"][0]


# -- The command -----------------------------------------------------------------------------------


def main(flags, files):
  """Judges image files and prints the results; with --out also writes saliency maps."""
  config, class_names = workdir.read(flags.workdir)
  label = parse_label(flags.label, class_names, "--label") if flags.label else None
  outputs.check_file("--out", flags.out, (".png",))
  files = [paths.expand_argument(file) for file in files]
  images = [transforms.read_image(file, config.data.image_size) for file in files]
  judge = load(flags.workdir, config, class_names, flags.prefix, flags.checkpoint)
  print(
    f"score: the image's logit less the mean of {SAMPLES} of the model's own images of the same "
    f"label, at k = {judge.prefix}; real: more real than {REAL_FRACTION:.0%} of them",
    flush=True,
  )
  judgements = []
  for file, image in zip(files, images, strict=True):
    judgements.append(judge.examine(image, label))
    print(describe(file, judgements[-1], class_names), flush=True)
  if flags.out:
    write_picture(flags.out, judge, files, images, judgements)
    print(f"saliency maps: {flags.out}")


def load(directory, config, class_names, prefix, checkpoint="last"):
  """Returns the Judge of a work directory."""
  stage, results = load_judging_stage(directory, config, class_names, "judging", checkpoint)
  check_prefix(stage, prefix)
  return Judge(stage, results, prefix)


def describe(file, judgement, class_names):
  """Returns two lines: real or fake, and the likeliest classes."""
  label = [*class_names, "none"][judgement.label]
  likeliest = np.argsort(-judgement.probabilities, kind="stable")[:CLASSES_SHOWN]
  classes = "  ".join(f"{class_names[i]} {judgement.probabilities[i]:.1%}" for i in likeliest)
  return (
    f"{file}: {judgement.verdict}, score {judgement.score:+.2f}, more real than "
    f"{judgement.more_real_than:.0%} of the model's own images of {label}\n  {classes}"
  )


def write_picture(path, judge, files, images, judgements):
  """Writes a row for each image: itself, the attention of [cls] on it, the pixels' gradient."""
  scale = math.ceil(PICTURE_SIDE / images[0].shape[0])
  cells, captions = [], []
  for file, image, judgement in zip(files, images, judgements, strict=True):
    attention, gradient = judge.saliency(image, judgement.label)
    large = image.repeat(scale, axis=0).repeat(scale, axis=1)
    cells += [
      large,
      saliency.overlay(large, attention, cv2.INTER_CUBIC),
      saliency.overlay(large, saliency.cap(gradient), cv2.INTER_NEAREST),
    ]
    captions += [
      f"{judgement.verdict} (over {judgement.more_real_than:.0%} of own): {Path(file).name}",
      f"attention of [cls], peak {attention.max() / attention.mean():.1f}x mean",
      "|gradient| of the logit",
    ]
  save_grid(np.stack(cells), path, columns=3, captions=captions)


def define_flags(flags):
  """Defines the command's flags in a cli.flag_groups.FlagGroups."""
  flags.group("Judging")
  flags.path("workdir", None, "The work directory of imgtx_jax.main.")
  flags.checkpoint()
  flags.string("label", "", "Compare within this class (name, number or none); else the likeliest.")
  flags.integer("prefix", 0, "The dial k of the model's own images: codes drawn for each.")
  flags.path("out", "", "A PNG file for the saliency maps.")


COMMAND = command.Command(main, define_flags, __doc__, required=("workdir",), accepts="image files")

if __name__ == "__main__":
  command.run(COMMAND)
