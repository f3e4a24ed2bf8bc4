"""The texture of an image: small windows of its fine detail, and how to lay them over another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_GRID = 8  # windows an image gives, along each side
_LOOSENESS = 0.2  # of colours in [-1, 1]: windows this much worse in colour are chosen too
_CONTRAST = 1e-2  # added to deviations of images in [-1, 1]: a flat image has no detail to scale
_GAINS = 0.25, 4.0  # the least and most that contrast is scaled by


class Texture(NamedTuple):
  """windows [B, K, w, w, 3], the fine detail of places of an image, and colors [B, K, 3], the mean
  colours there; strength [B], the root of the windows' mean square; contrast [B, L], how strong the
  image's detail of each size is, from the pixels' up.

  Windows stand in the order of their brightness, so that a weighted sum of textures lays the
  windows of equally bright places over one another. That weakens them, and strength knows it.
  """

  windows: Any
  colors: Any
  strength: Any
  contrast: Any


def none(batch, patch):
  """All zero, `batch` times."""
  side = 4 * patch
  return Texture(
    jnp.zeros((batch, _GRID**2, side, side, 3)),
    jnp.zeros((batch, _GRID**2, 3)),
    jnp.zeros(batch),
    jnp.zeros((batch, count(patch))),
  )


def of_images(images, patch):
  """The Texture of images [B, H, W, 3] in [-1, 1], H and W multiples of patch.

  Detail is what a mean over some two patches leaves, a window four patches wide: of a stroke or a
  line there is all in it, of a figure little.
  """
  images = images.astype(jnp.float32)
  levels = bands(images, patch)
  side = 4 * patch
  edges = [(0, 0), *((0, max(0, side - length)) for length in images.shape[1:3]), (0, 0)]
  mirrored = jnp.pad(images, edges, mode="symmetric")
  detail = join(bands(mirrored, patch))
  tops, lefts = (
    np.round(np.linspace(0, length - side, _GRID)).astype(int) for length in mirrored.shape[1:3]
  )
  rows, columns = (starts[:, None] + np.arange(side) for starts in (tops, lefts))

  def cut(x):
    x = x[:, rows][:, :, :, columns]  # [B, rows, side, columns, side, 3]
    return x.swapaxes(2, 3).reshape(len(x), _GRID**2, side, side, 3)

  windows, colors = cut(detail), jnp.mean(cut(mirrored), axis=(2, 3))
  order = jnp.argsort(jnp.sum(colors, axis=-1), axis=1)
  return Texture(
    jnp.take_along_axis(windows, order[:, :, None, None, None], axis=1),
    jnp.take_along_axis(colors, order[:, :, None], axis=1),
    _root_mean_square(windows),
    deviations(levels),
  )


def _root_mean_square(windows):
  return jnp.sqrt(jnp.mean(windows**2, axis=(1, 2, 3, 4)))


def deviations(levels):
  """How strong the detail of each level [B, H, W, 3] is, from the last one up; [B, L]."""
  return jnp.stack(
    [jnp.sqrt(jnp.mean(level**2, axis=(1, 2, 3))) for level in levels[::-1]], axis=-1
  )


def gains(own, contrast):
  """How many times as strong the detail of an image is to be, [B, L], whose own contrast gives way
  to another, both [B, L]."""
  return jnp.clip((contrast + _CONTRAST) / (own + _CONTRAST), *_GAINS)


def amplify(images, gains, patch):
  """Images [B, H, W, 3] in [-1, 1] with their detail as many times as strong, gains [B, L] from the
  pixels' size up; clipped."""
  levels = bands(images, patch)
  more = (gains[:, ::-1] - 1.0)[..., None, None, None]
  change = join([more[:, i] * level for i, level in enumerate(levels)])
  return jnp.clip(images + change, -1.0, 1.0)


def lay(texture, images, patch, origin):
  """Detail [B, H, W, 3], as strong as a texture's, for images [B, H, W, 3] in [-1, 1].

  Windows overlap by half, in both directions, and fade so that their squares sum to 1: where they
  do not know of each other their detail keeps its strength. Each is drawn at random among those
  from places of about the colour that the image has (Gumbel's maximum), by a hash of its place in
  the image, which begins at origin int [2]: so a part of an image is given what the whole is.
  """
  height, width = images.shape[1:3]
  hop = 2 * patch
  rows, columns = (-(-length // hop) + 1 for length in (height, width))
  first, offset = origin // hop, origin % hop
  # Cells of the whole's lattice, the first of which may begin before this part of it.
  padded = jnp.pad(images, [(0, 0), (hop, 2 * hop), (hop, 2 * hop), (0, 0)], mode="edge")
  start = (0, hop - offset[0], hop - offset[1], 0)
  sizes = (len(images), rows * hop, columns * hop, 3)
  means = shrink(jax.lax.dynamic_slice(padded, start, sizes), hop)
  # A window lies on four cells; there is one more of them each way.
  means = jnp.pad(means, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
  colors = sum(means[:, i : i + rows + 1, j : j + columns + 1] for i in (0, 1) for j in (0, 1)) / 4
  colors = colors.reshape(len(images), -1, 3)
  distance = jnp.sum((colors[:, :, None] - texture.colors[:, None]) ** 2, axis=-1)
  luck = _gumbel((rows + 1, columns + 1), first, texture.colors.shape[1])
  chosen = jnp.argmax(luck - distance / (2 * _LOOSENESS**2), axis=-1)  # [B, places]

  fade = np.sin((np.arange(2 * hop) + 0.5) * np.pi / (2 * hop)).astype(np.float32)
  strength = texture.strength / jnp.maximum(_root_mean_square(texture.windows), 1e-6)
  windows = texture.windows * strength[:, None, None, None, None]
  windows = windows * (fade[:, None] * fade)[..., None]
  laid = jax.vmap(lambda x, index: x[index])(windows, chosen)
  laid = laid.reshape(len(images), rows + 1, columns + 1, 2, hop, 2, hop, 3)
  detail = sum(
    laid[:, 1 - i : 1 - i + rows, 1 - j : 1 - j + columns, i, :, j] for i in (0, 1) for j in (0, 1)
  )
  detail = detail.swapaxes(2, 3).reshape(sizes)
  return jax.lax.dynamic_slice(detail, (0, *offset, 0), images.shape)


def _gumbel(shape, origin, count):
  """Standard Gumbel numbers [places, count] for the places (y, x) of a lattice [H, W] that begins
  at origin int [2]; float32. A place's depend on it alone: a hash (MurmurHash3's last step, twice),
  for jax.random gives an array its numbers by its shape."""
  rows, columns = (
    jnp.arange(n).astype(jnp.uint32) + start.astype(jnp.uint32)
    for n, start in zip(shape, origin, strict=True)
  )
  place = _mix(rows[:, None] * np.uint32(0x9E3779B1)) ^ (columns * np.uint32(0x85EBCA77))
  numbers = np.arange(count, dtype=np.uint32) * np.uint32(0xC2B2AE3D)
  mixed = _mix(_mix(place.reshape(-1, 1)) ^ numbers)
  uniform = ((mixed >> 9).astype(jnp.float32) + 0.5) / 2.0**23  # never 0 nor 1 in float32
  return -jnp.log(-jnp.log(uniform))


def _mix(x):
  """uint32 → uint32, each bit of the result depending on all bits."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
    x = (x ^ (x >> shift)) * np.uint32(factor)
  return x


def factors(patch):
  """What a patch is the product of, twos last: the steps from a grid to the pixels."""
  twos = []
  while patch % 2 == 0:
    twos.append(2)
    patch //= 2
  return ([patch] if patch > 1 else []) + twos


def count(patch):
  """L, of how many sizes detail is."""
  return 1 + len(factors(patch))


def bands(images, patch):
  """Detail of images [B, H, W, C], from coarse to fine: what a blur leaves of the grid of patches,
  and at each size from there to the pixels' what enlarging the next smaller image does not give (a
  Laplacian pyramid)."""
  found = []
  for factor in factors(patch)[::-1]:
    smaller = shrink(images, factor)
    found.append(images - enlarge(smaller, factor))
    images = smaller
  found.append(images - _blur(images))
  return found[::-1]


def _blur(images):
  """Images [B, H, W, C] with weights of 1, 2, 1 over neighbours, in both directions."""
  for axis in (1, 2):
    edges = [(0, 0)] * 4
    edges[axis] = (1, 1)
    padded = jnp.pad(images, edges, mode="edge")
    count = images.shape[axis]
    before, after = (jax.lax.slice_in_dim(padded, i, i + count, axis=axis) for i in (0, 2))
    images = (before + 2 * images + after) / 4
  return images


def join(levels):
  """The image at the last level's size of detail from coarse to fine."""
  image = levels[0]
  for level in levels[1:]:
    image = enlarge(image, level.shape[1] // image.shape[1]) + level
  return image


def shrink(images, factor):
  """Means over squares of images [B, H, W, C]."""
  b, height, width, c = images.shape
  squares = images.reshape(b, height // factor, factor, width // factor, factor, c)
  return jnp.mean(squares, axis=(2, 4))


def enlarge(x, factor):
  """x [B, H, W, C] `factor` times as large, linear between the centres of its cells."""
  for axis in (1, 2):
    count = x.shape[axis]
    edges = [(0, 0)] * 4
    edges[axis] = (1, 1)
    padded = jnp.pad(x, edges, mode="edge")
    before, after = (jax.lax.slice_in_dim(padded, i, i + count, axis=axis) for i in (0, 2))
    parts = []
    for i in range(factor):
      place = (i + 0.5) / factor - 0.5  # from the centre of the cell, in cells
      other = before if place < 0 else after
      parts.append((1 - abs(place)) * x + abs(place) * other)
    sizes = (*x.shape[:axis], count * factor, *x.shape[axis + 1 :])
    x = jnp.stack(parts, axis=axis + 1).reshape(sizes)
  return x
