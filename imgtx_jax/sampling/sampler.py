"""The Sampler: draws images from a trained work directory, in batches over all devices.

It also draws the best of several candidates, and completes images from their first rows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax import rng
from imgtx_jax.config import defaults
from imgtx_jax.data import transforms
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError
from imgtx_jax.models.transformer import unstack_layers
from imgtx_jax.stages import STAGES, build
from imgtx_jax.stages.base import GeneratingStage
from imgtx_jax.training import workdir

SCORES = ("logit", "class")
SAMPLING_STAGES = tuple(name for name, stage in STAGES.items() if stage.draws_with)


def load_stage(directory, config, class_names, only=SAMPLING_STAGES, checkpoint="last"):
  """Loads the last finished stage that can draw images.

  Args:
    directory: the work directory.
    config: its config.
    class_names: of the data.
    only: names of the stages to choose among.
    checkpoint: "last" or "best" of that stage; earlier stages give the ones it started from.

  Returns:
    The stage, and the results of the stages up to it.

  Raises:
    UserError: if no such stage is finished.
  """
  done = workdir.finished(config, directory)
  drawing = [task for task in done if task.stage in only]
  if not drawing:
    names = ", ".join(task.name for task in done) or "no stage"
    raise UserError(
      f"{directory} has finished {names}, and drawing needs {' or '.join(only)}; "
      "run imgtx_jax.main with the same config and --workdir to go on"
    )
  last = drawing[-1]
  stage = build(last.stage, config, len(class_names))
  done = done[: done.index(last) + 1]
  chosen = {last.stage: checkpoint}
  return stage, workdir.results(directory, done, config.stage_checkpoint, chosen)


def load_judging_stage(directory, config, class_names, use, checkpoint="last"):
  """Loads the last finished stage that trained a generator against a discriminator.

  Args:
    directory: the work directory.
    config: its config.
    class_names: of the data.
    use: what needs the discriminator, for the UserError.
    checkpoint: see load_stage.

  Returns:
    The stage, and the results with which it draws.

  Raises:
    UserError: if no such stage is finished.
  """
  done = workdir.finished(config, directory)
  judging = [task for task in done if issubclass(STAGES[task.stage], GeneratingStage)]
  if not judging:
    names = ", ".join(task.name for task in done) or "no stage"
    raise UserError(
      f"{directory} has finished {names}, and {use} needs finetune or gan, which train the "
      "discriminator; run imgtx_jax.main with the same config and --workdir to go on"
    )
  stage = build(judging[-1].stage, config, len(class_names))
  needed = [task for task in done if task.stage in ("tokenizer", stage.name)]
  return stage, workdir.results(
    directory, needed, config.stage_checkpoint, {stage.name: checkpoint}
  )


def check_prefix(stage, prefix):
  """Raises UserError unless the stage can draw at this prefix k."""
  if prefix and not stage.num_codes:
    raise UserError(f"--prefix={prefix}: the {stage.name} stage draws without codes; leave it out")
  if not 0 <= prefix <= stage.num_codes:
    raise UserError(f"--prefix={prefix} is outside 0 … {stage.num_codes}, the codes of an image")
  if stage.name == "pretrain" and prefix != stage.num_codes:
    raise UserError(
      f"--prefix={prefix} needs the finetune stage, and the work directory has only finished "
      "pretrain: finish it, or leave --prefix out"
    )


def sampling_params(params, dtype):
  """Returns a stage's drawing_params with what each batch would else do again done once.

  The GPT's layers are unstacked, and kernels and embeddings are cast to dtype, the compute dtype:
  a network casts them so anyway, and decoding reads them at every code. The discriminator keeps
  float32: its spectral norms are taken of the weights before they are cast.
  """

  def cast(path, x):
    wide = np.ndim(x) >= 2 and path[-1].key in ("kernel", "embedding")
    return np.asarray(x).astype(dtype) if wide else x

  params = {
    name: tree if name == "discriminator" else jax.tree.map_with_path(cast, tree)
    for name, tree in params.items()
  }
  return params | {"gpt": unstack_layers(params["gpt"])} if "gpt" in params else params


class Sampler:
  """Draws images of labels at one prefix k.

  An image depends only on the options, the seed, its index and its label: neither on batch_size,
  which is rounded up to a multiple of the number of devices, nor on the devices.

  Args:
    stage: a stage that can draw, with its `results` (see load_stage).
    options: SamplingOptions.
    prefix: k, the number of codes that the GPT samples.
    seed: of the random draws.
    batch_size: number of images drawn at once.
  """

  def __init__(self, stage, results, options, *, prefix, seed=0, batch_size=64):
    self.stage, self.results = stage, results
    self.batch_size = batch_size
    root = rng.stream(rng.root_key(seed), "sample", 0)

    def run(params, batch):
      keys = rng.example_keys(root, batch["index"])
      images, codes = stage.sample(
        params, batch["label"], keys, options, prefix=prefix, given=batch.get("given")
      )[:2]
      return transforms.denormalize(images), codes

    dtype = defaults.compute_dtype(stage.config)
    self._params = sampling_params(stage.drawing_params(results), dtype)
    self._run = sharding.map_local(run, self._params)
    self._judges = {}

  def draw(self, labels, index=None, given=None):
    """Draws images.

    Args:
      labels: int [n].
      index: int [n], the images' numbers; 0 … n − 1 by default.
      given: int [n or 1, k'], codes to start from in the GPT's order, or None.

    Returns:
      uint8 images [n, H, W, 3], and their raster codes int [n, N], 0 beyond the prefix.
    """
    index = np.arange(len(labels)) if index is None else index
    batch = {"label": labels.astype(np.int32), "index": index.astype(np.int32)}
    if given is not None:
      batch["given"] = np.broadcast_to(given, (len(labels), given.shape[-1])).astype(np.int32)
    return self._in_batches(self._run, batch)

  def draw_best(self, labels, *, candidates, keep, score, first=0, given=None):
    """Draws groups of candidates and keeps the best of each.

    A group has one label, since logits are comparable only within a label.

    Args:
      labels: int [groups].
      candidates: images per group.
      keep: images to keep per group.
      score: "logit" (the discriminator's) or "class" (the log-probability of the label).
      first: number of the first group.
      given: as in draw.

    Returns:
      Images uint8 [groups · keep, H, W, 3], codes int [groups · keep, N] and scores float
      [groups · keep], the best of a group first.
    """
    index = first * candidates + np.arange(len(labels) * candidates)
    images, codes = self.draw(np.repeat(labels, candidates), index, given=given)
    scores = self.scores(images, np.repeat(labels, candidates), score)
    order = np.argsort(-scores.reshape(-1, candidates), axis=1, kind="stable")[:, :keep]
    chosen = (order + candidates * np.arange(len(labels))[:, None]).reshape(-1)
    return images[chosen], codes[chosen], scores[chosen]

  def scores(self, images, labels, score):
    """Returns the discriminator's scores of images; float32 [n].

    Args:
      images: uint8 [n, H, W, 3].
      labels: int [n].
      score: see draw_best.

    Raises:
      UserError: if the stage has no discriminator, or "class" meets the null label.
    """
    if "discriminator" not in self._params:
      raise UserError(
        "--candidates needs the finetune or gan stage, which trains the discriminator; finish it "
        "first"
      )
    if score == "class" and np.any(labels == self.stage.classes):
      raise UserError("--score=class needs a class for every image: --labels has none; use logit")
    if score not in self._judges:

      def judge(params, batch):
        images = transforms.normalize(batch["image"])
        verdict = self.stage.adversary.verdict(params, images, batch["label"])
        if score == "logit":
          return verdict.logit
        log_probs = jax.nn.log_softmax(verdict.class_logits)
        return jnp.take_along_axis(log_probs, batch["label"][:, None], axis=1)[:, 0]

      self._judges[score] = sharding.map_local(judge, self._params["discriminator"])
    return self._in_batches(self._judges[score], {"image": images, "label": labels})

  def _in_batches(self, run, batch):
    # Fewer images than a batch need no larger program.
    return sharding.in_batches(run, batch, min(self.batch_size, len(batch["label"])))


def first_rows(stage, results, image, keep_rows):
  """Encodes the first rows of an image, for completing it.

  The last kept row of pixels is first repeated to the bottom: an encoder that attends to the whole
  image then sees nothing of the rest.

  Args:
    stage: the stage that completes it; its codes must be in raster order.
    results: of the stages (see load_stage).
    image: uint8 [H, W, 3].
    keep_rows: number of rows of codes to keep.

  Returns:
    Codes int [1, keep_rows · w] in raster order, and the image that was encoded, uint8 [H, W, 3].

  Raises:
    UserError: if the stage has no codes or another order, or keep_rows is out of range.
  """
  if not stage.num_codes:
    raise UserError(f"--init needs codes to keep, and the {stage.name} stage draws without any")
  height, width = stage.gpt.shape
  if stage.gpt.order != "raster":
    raise UserError(
      f"--init completes an image in raster order, and this model has gpt.order={stage.gpt.order}; "
      "train one with --config.gpt.order=raster"
    )
  if not 1 <= keep_rows < height:
    raise UserError(f"--keep_rows={keep_rows} is outside 1 … {height - 1}, the rows of codes")
  pixels = keep_rows * image.shape[0] // height
  blanked = np.concatenate([image[:pixels], np.repeat(image[pixels - 1 : pixels], len(image), 0)])
  blanked = blanked[: len(image)]
  encode = jax.jit(lambda params, x: stage.tokenizer.encode(params, transforms.normalize(x)))
  codes = np.asarray(encode(results["tokenizer"]["ema"], blanked[None]))
  return codes[:, : keep_rows * width], blanked
