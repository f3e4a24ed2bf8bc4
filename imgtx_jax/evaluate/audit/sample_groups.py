"""The sets of images that an audit compares, and the networks' predictions on them."""

import dataclasses
import math

import jax
import numpy as np

from imgtx_jax.data import pipeline, transforms
from imgtx_jax.distributed import sharding
from imgtx_jax.evaluate import feature_networks, saliency

KEPT = 384  # images of a set that stay in memory: the others leave their answers and features only
_CHUNK = 4  # batches that are read or drawn at a time


@dataclasses.dataclass
class ImageSet:
  """Predictions on a set of images.

  labels: int [n]; of samples, the label that was asked for. logit: float32 [n] of the discriminator
  within the label. answer, probability: int [n] and float32 [n], the class head's prediction.
  features: [n, D] or None. images: the first KEPT images, uint8 [≤ n, H, W, 3].
  """

  labels: np.ndarray
  logit: np.ndarray
  answer: np.ndarray
  probability: np.ndarray
  features: np.ndarray | None
  images: np.ndarray

  def __len__(self):
    return len(self.labels)


class Examiner:
  """Runs the discriminator and the feature network over images, batch_size at a time.

  network: a FeatureNetwork, or None: then ImageSet.features is None.
  """

  def __init__(self, stage, results, network, batch_size):
    self.discriminator = saliency.exact(stage.adversary.discriminator)
    self.batch_size = batch_size
    self.repeat = stage.adversary.repeat
    params = stage.drawing_params(results)["discriminator"]
    self._run = sharding.map_local(self._judge, params)
    self._saliency_maps = sharding.map_local(self._maps, params)
    self._extract = network and feature_networks.feature_function(network, batch_size)

  def judge(self, images, labels):
    """Returns (logit [n], answer [n], its probability [n]) of uint8 images [n, H, W, 3]."""
    predicted = self._in_batches(self._run, images, labels)
    return predicted["logit"], predicted["answer"], predicted["probability"]

  def saliency(self, images, labels):
    """Returns saliency maps: see saliency.saliency_maps."""
    return self._in_batches(self._saliency_maps, images, labels)

  def examine(self, chunks):
    """Returns the ImageSet of chunks (images uint8 [n, H, W, 3], labels int [n])."""
    parts, images, kept = [], [], 0
    for chunk, labels in chunks:
      part = {"features": self._extract(chunk)["features"]} if self._extract else {}
      part |= zip(("logit", "answer", "probability"), self.judge(chunk, labels), strict=True)
      parts.append(part | {"labels": labels})
      images.append(chunk[: max(KEPT - kept, 0)])
      kept += len(images[-1])
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return ImageSet(**{"features": None} | joined, images=np.concatenate(images))

  def _in_batches(self, run, images, labels):
    batch = {"image": images, "label": np.asarray(labels, np.int32)}
    return sharding.in_batches(run, batch, min(self.batch_size, len(images)))

  def _judge(self, params, batch):
    images = self.repeat(transforms.normalize(batch["image"]))
    verdict = self.discriminator.apply({"params": params}, images, batch["label"])
    probabilities = jax.nn.softmax(verdict.class_logits)
    return {
      "logit": verdict.logit,
      "answer": probabilities.argmax(axis=-1),
      "probability": probabilities.max(axis=-1),
    }

  def _maps(self, params, batch):
    return saliency.saliency_maps(
      self.discriminator, params, batch["image"], batch["label"], repeat=self.repeat
    )


# -- Where the images come from --------------------------------------------------------------------


def drawn(sampler, labels, first):
  """Yields chunks of samples of labels int [n], whose numbers are first … first + n − 1."""
  for index in _split(np.arange(len(labels)), sampler.batch_size):
    yield sampler.draw(labels[index], index=first + index)[0], labels[index]


def read(source, indices, data, batch_size):
  """Yields chunks of the examples `indices` of a source, centre-cropped, without unreadable ones.

  data: config.data.
  """
  size = data.image_size
  for chunk in _split(np.asarray(indices), batch_size):
    examples = pipeline.in_order(
      source,
      chunk,
      crop=lambda x: transforms.center_crop(x, size),
      threads=data.threads,
      ahead=batch_size,
    )
    intact = [example for example in examples if example["label"] >= 0]
    if intact:
      images = np.stack([example["image"] for example in intact])
      yield images, np.array([example["label"] for example in intact], np.int32)


def spread(source, limit, seed=0):
  """Returns at most `limit` indices of a source, spread evenly over it, in random order."""
  indices = np.arange(min(limit, len(source))) * len(source) // min(limit, len(source))
  return np.random.default_rng(seed).permutation(indices)


def spread_over_classes(source, per_class, classes):
  """Returns (indices, counts [K] of the classes in the source).

  The indices are at most per_class of every class, spread evenly. If a source does not know its
  labels before reading, they are spread evenly over all, and the counts are None.
  """
  labels = getattr(source, "labels", None)
  if labels is None:
    return spread(source, per_class * classes), None
  chosen = []
  for label in range(classes):
    (places,) = np.nonzero(np.asarray(labels) == label)
    count = min(per_class, len(places))
    chosen.append(places[np.arange(count) * len(places) // max(count, 1)])
  return np.concatenate(chosen), np.bincount(labels, minlength=classes)


def _split(index, batch_size):
  """Returns nearly even chunks of _CHUNK batches or fewer; a short last one would compile again."""
  return np.array_split(index, max(1, math.ceil(len(index) / (_CHUNK * batch_size))))
