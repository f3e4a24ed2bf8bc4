"""What the stages that train a generator against a discriminator share: its samples, as pictures
and as figures."""

import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.distributed import sharding
from imgtx_jax.losses import cross_entropy as code_losses
from imgtx_jax.stages import base, online_fd


class GeneratingStage(base.Stage):
  """Subclasses have adversary, and define sample, prefixes and current_params: the params for
  sample, from the state that training is at."""

  def prefixes(self):
    """The dial's settings that are shown while training."""
    return (0,)

  def tap_captions(self):
    """Of the pictures of conditioned images."""
    rows = [f"after layer {depth}" for depth in self.config.generator.taps] + ["image"]
    return {f"conditioned_k{prefix}": rows for prefix in self.prefixes()}

  def draw_pictures(self, state, labels, key, options, prefix):
    """Samples [n, H, W, 3] of labels int [n], always from the same draws, and their taps."""
    keys = rng.example_keys(rng.stream(key, "pictures", 0), jnp.arange(len(labels)))
    params = self.current_params(state)
    image, _, taps = self.sample(params, labels, keys, options, prefix=prefix)
    return image, taps

  def pictures(self, state, batch, key):
    labels, rows = base.picture_labels(self.config.pictures, self.classes)
    columns, grids = len(labels) // rows, {}
    for prefix in self.prefixes():
      options = base.sampling(self.config)
      image, taps = self.draw_pictures(state, labels, key, options, prefix)
      grids[f"samples_k{prefix}"] = image.reshape(rows, -1, *image.shape[1:])
      if taps:
        stages = [tap[:columns] for tap, _ in taps] + [image[:columns]]
        grids[f"conditioned_k{prefix}"] = jnp.stack(stages)
    return grids

  def verdict_figures(self, state, images, samples, labels):
    """Figures [B] of what the discriminator says of real images and of samples at k = 0."""
    judge = state.params["discriminator"]
    real, fake = (self.adversary.verdict(judge, x, labels) for x in (images, samples))
    return {
      "logit_margin": real.logit - fake.logit,
      "class_accuracy": code_losses.accuracy(real.class_logits, labels),
      "class_accuracy_k0": code_losses.accuracy(fake.class_logits, labels),
    }

  def samples_evaluator(self):
    """One sample of the label of each held-out image at each prefix, for what tells them apart;
    with config.metrics.fd_images their distance from as many held-out images."""
    return base.Evaluator(self._sample_sums, self._sample_figures, self.fd_images)

  def _sample_sums(self, state, batch, key, *, axis):
    images, labels = self.prepare(batch), batch["label"]
    index = sharding.example_index(len(labels), axis)
    keys = rng.example_keys(rng.stream(key, "samples", 0), index)
    params, options = self.current_params(state), base.sampling(self.config)
    sums, drawn = {}, {}
    for prefix in self.prefixes():
      drawn[f"k{prefix}"] = samples = self.sample(params, labels, keys, options, prefix=prefix)[0]
      sums[f"k{prefix}"] = self.masked_sums(batch, self.grid_figures(images, samples))
    if self.fd_images:
      sums["rows"] = online_fd.rows(state.frozen, drawn | {"real": images}, batch, axis)
    return sums

  def _sample_figures(self, sums):
    rows, figures = sums.pop("rows", None), {}
    for prefix, of_prefix in sums.items():
      found = self.with_grid_ratio(self.means(of_prefix))
      found |= online_fd.figures(rows, prefix) if rows else {}
      figures |= {f"{prefix}_{name}": value for name, value in found.items()}
    return figures
