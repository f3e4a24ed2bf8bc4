"""The Discriminator: predicts real or fake, and the class.

It has three parts: features (patches → Transformer → [cls]), a discriminating layer whose
projection gives the real/fake logit, and a class layer on the discriminating layer's output.
"""

from typing import Any

import flax
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from imgtx_jax.models import layers, transformer


@flax.struct.dataclass
class Verdict:
  """The discriminator's output.

  logit: [B], larger is more real. class_logits: [B, K]. features: [B, D] of the [cls] token.
  """

  logit: Any
  class_logits: Any
  features: Any


class Discriminator(nn.Module):
  """Maps images [B, H, W, C] in [-1, 1] and labels int [B] to a Verdict.

  Label `classes` is the null label. Patches overlap by `overlap` pixels on every side (ViTGAN,
  arXiv:2107.04589). The logit is a linear projection of the discriminating layer's output plus its
  inner product with a label embedding (arXiv:1802.05637).
  """

  patch: int
  width: int
  depth: int
  classes: int
  block: transformer.BlockConfig
  overlap: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images, labels):
    patches = overlapping_patches(images.astype(self.dtype), self.patch, self.overlap)
    x = layers.Linear(self.width, use_bias=True, dtype=self.dtype, name="embed")(patches)
    cls = self.param("cls", nn.initializers.normal(0.02), (1, 1, self.width))
    cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, self.width))
    x = jnp.concatenate([cls, x], axis=1)
    grid = layers.grid_coords(images.shape[1] // self.patch, images.shape[2] // self.patch)
    # [cls] has the first patch's rotary position; its embedding distinguishes it.
    coords = np.concatenate([np.zeros((1, 2), np.int32), grid])
    rope = layers.rope_table(coords, self.width // self.block.num_heads)
    x, _ = transformer.Transformer(self.depth, self.block, dtype=self.dtype, name="transformer")(
      x, transformer.Context(rope=rope)
    )
    features = layers.norm("norm", self.dtype)(x[:, 0])  # [B, D]

    judged = nn.silu(
      layers.Linear(self.width, use_bias=True, dtype=self.dtype, name="discriminate")(features)
    )
    judged = judged.astype(jnp.float32)
    label = nn.Embed(
      self.classes + 1,
      self.width,
      embedding_init=nn.initializers.normal(self.width**-0.5),
      name="label",
    )(labels)
    logit = layers.Linear(1, use_bias=True, name="logit")(judged)[:, 0]
    logit = logit + jnp.sum(judged * label, axis=-1)
    class_logits = layers.Linear(self.classes, use_bias=True, name="classify")(judged)
    return Verdict(logit=logit, class_logits=class_logits, features=features)


def overlapping_patches(images, patch, overlap):
  """Cuts images into patches that reach `overlap` pixels into their neighbours.

  It uses slices, not a convolution; edge pixels are repeated outside the image.

  Args:
    images: [B, H, W, C].
    patch: p, the side of a patch without overlap.
    overlap: pixels on each side, at most p.

  Returns:
    Patches [B, (H/p)(W/p), (p + 2·overlap)²·C].
  """
  if not overlap:
    return layers.patchify(images, patch)
  b, height, width, c = images.shape
  h, w = height // patch, width // patch
  padded = jnp.pad(images, ((0, 0), (overlap, patch), (overlap, patch), (0, 0)), mode="edge")
  size = patch + 2 * overlap
  # Rows [B, h, size, …]: row r of every patch is the padded image from row r at stride p.
  rows = [padded[:, r : r + h * patch : patch] for r in range(size)]
  rows = jnp.stack(rows, axis=2)
  columns = [rows[:, :, :, s : s + w * patch : patch] for s in range(size)]
  return jnp.stack(columns, axis=4).swapaxes(2, 3).reshape(b, h * w, size * size * c)
