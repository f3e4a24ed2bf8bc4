"""Texture synthesis: cuts crops of fine detail from one image and tiles them over another.

Dimensions: B batch, K crops, w the side of a crop (4 patches), L detail bands.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_GRID = 8  # crops per side of an image: K = _GRID²
_COLOR_STD = 0.2  # standard deviation of the colour match, for colours in [-1, 1]
_CONTRAST = 1e-2  # added to contrasts of images in [-1, 1]: a flat image has no detail to scale
_GAINS = 0.25, 4.0  # least and greatest contrast gain


class Texture(NamedTuple):
  """The texture of B images.

  crops: [B, K, w, w, 3], fine detail cut on a regular grid. colors: [B, K, 3], the mean colour of
  the image in each crop. rms: [B], the root mean square of the crops. contrast: [B, L], the root
  mean square of each detail band of the image, finest first.

  Crops are sorted by brightness, so that a weighted sum of textures adds crops of similar
  brightness. Such a sum has less contrast than its parts; rms keeps the contrast to restore.
  """

  crops: Any
  colors: Any
  rms: Any
  contrast: Any


def zeros(batch, patch):
  """Returns a Texture of zeros for `batch` images."""
  side = 4 * patch
  return Texture(
    jnp.zeros((batch, _GRID**2, side, side, 3)),
    jnp.zeros((batch, _GRID**2, 3)),
    jnp.zeros(batch),
    jnp.zeros((batch, num_bands(patch))),
  )


def extract(images, patch):
  """Returns the Texture of images [B, H, W, 3] in [-1, 1], H and W multiples of patch.

  Crops hold the sum of the detail bands: structure up to about two patches in size. They contain
  strokes and lines, and little of an object's shape.
  """
  images = images.astype(jnp.float32)
  levels = detail_bands(images, patch)
  side = 4 * patch
  edges = [(0, 0), *((0, max(0, side - length)) for length in images.shape[1:3]), (0, 0)]
  mirrored = jnp.pad(images, edges, mode="symmetric")
  detail = sum_bands(detail_bands(mirrored, patch))
  tops, lefts = (
    np.round(np.linspace(0, length - side, _GRID)).astype(int) for length in mirrored.shape[1:3]
  )
  rows, columns = (starts[:, None] + np.arange(side) for starts in (tops, lefts))

  def cut(x):
    x = x[:, rows][:, :, :, columns]  # [B, rows, side, columns, side, 3]
    return x.swapaxes(2, 3).reshape(len(x), _GRID**2, side, side, 3)

  crops, colors = cut(detail), jnp.mean(cut(mirrored), axis=(2, 3))
  order = jnp.argsort(jnp.sum(colors, axis=-1), axis=1)
  return Texture(
    jnp.take_along_axis(crops, order[:, :, None, None, None], axis=1),
    jnp.take_along_axis(colors, order[:, :, None], axis=1),
    _root_mean_square(crops),
    band_contrast(levels),
  )


def _root_mean_square(crops):
  return jnp.sqrt(jnp.mean(crops**2, axis=(1, 2, 3, 4)))


def band_contrast(levels):
  """Returns the root mean square [B, L] of detail bands [B, h, w, 3], finest first.

  levels: the bands as detail_bands returns them, coarsest first.
  """
  return jnp.stack(
    [jnp.sqrt(jnp.mean(level**2, axis=(1, 2, 3))) for level in levels[::-1]], axis=-1
  )


def contrast_gains(source, target):
  """Returns the factors [B, L] that take contrast `source` to `target`, both [B, L]; clipped."""
  return jnp.clip((target + _CONTRAST) / (source + _CONTRAST), *_GAINS)


def amplify(images, gains, patch):
  """Multiplies the detail bands of images by gains.

  Args:
    images: [B, H, W, 3] in [-1, 1].
    gains: [B, L], finest band first.
    patch: the side of a patch in pixels.

  Returns:
    Images [B, H, W, 3], clipped to [-1, 1].
  """
  levels = detail_bands(images, patch)
  more = (gains[:, ::-1] - 1.0)[..., None, None, None]
  change = sum_bands([more[:, i] * level for i, level in enumerate(levels)])
  return jnp.clip(images + change, -1.0, 1.0)


def synthesize(texture, images, patch, origin):
  """Tiles crops of a texture over images.

  Crops overlap by half in both directions. The squares of their fading weights sum to 1, so that
  uncorrelated crops keep their variance. Each crop is drawn at random, and more often where its
  colour is close to the image's (by the Gumbel-max trick). The random numbers are a hash of the
  crop's position in the whole image: a part of an image gets the detail that the whole gets there.

  Args:
    texture: the Texture of B images.
    images: [B, H, W, 3] in [-1, 1].
    patch: the side of a patch in pixels.
    origin: int [2], row and column of the images' first pixel in the whole image.

  Returns:
    Detail [B, H, W, 3] with the texture's root mean square.
  """
  height, width = images.shape[1:3]
  hop = 2 * patch
  rows, columns = (-(-length // hop) + 1 for length in (height, width))
  first, offset = origin // hop, origin % hop
  # Cells of the whole image's lattice; the first may begin before this part.
  padded = jnp.pad(images, [(0, 0), (hop, 2 * hop), (hop, 2 * hop), (0, 0)], mode="edge")
  start = (0, hop - offset[0], hop - offset[1], 0)
  sizes = (len(images), rows * hop, columns * hop, 3)
  means = downsample(jax.lax.dynamic_slice(padded, start, sizes), hop)
  # A crop covers 2 × 2 cells; there is one crop more than cells in each direction.
  means = jnp.pad(means, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
  colors = sum(means[:, i : i + rows + 1, j : j + columns + 1] for i in (0, 1) for j in (0, 1)) / 4
  colors = colors.reshape(len(images), -1, 3)
  distance = jnp.sum((colors[:, :, None] - texture.colors[:, None]) ** 2, axis=-1)
  noise = _gumbel_noise((rows + 1, columns + 1), first, texture.colors.shape[1])
  chosen = jnp.argmax(noise - distance / (2 * _COLOR_STD**2), axis=-1)  # [B, positions]

  fade = np.sin((np.arange(2 * hop) + 0.5) * np.pi / (2 * hop)).astype(np.float32)
  scale = texture.rms / jnp.maximum(_root_mean_square(texture.crops), 1e-6)
  crops = texture.crops * scale[:, None, None, None, None]
  crops = crops * (fade[:, None] * fade)[..., None]
  tiled = jax.vmap(lambda x, index: x[index])(crops, chosen)
  tiled = tiled.reshape(len(images), rows + 1, columns + 1, 2, hop, 2, hop, 3)
  detail = sum(
    tiled[:, 1 - i : 1 - i + rows, 1 - j : 1 - j + columns, i, :, j] for i in (0, 1) for j in (0, 1)
  )
  detail = detail.swapaxes(2, 3).reshape(sizes)
  return jax.lax.dynamic_slice(detail, (0, *offset, 0), images.shape)


def _gumbel_noise(shape, origin, count):
  """Returns standard Gumbel noise float32 [rows · columns, count], a hash of each position.

  The hash is MurmurHash3's last step, twice. jax.random would not do: its numbers depend on the
  shape of the array.

  Args:
    shape: (rows, columns) of the lattice.
    origin: int [2], the position of its first point.
    count: numbers per position.
  """
  rows, columns = (
    jnp.arange(n).astype(jnp.uint32) + start.astype(jnp.uint32)
    for n, start in zip(shape, origin, strict=True)
  )
  position = _hash(rows[:, None] * np.uint32(0x9E3779B1)) ^ (columns * np.uint32(0x85EBCA77))
  numbers = np.arange(count, dtype=np.uint32) * np.uint32(0xC2B2AE3D)
  bits = _hash(_hash(position.reshape(-1, 1)) ^ numbers)
  uniform = ((bits >> 9).astype(jnp.float32) + 0.5) / 2.0**23  # never 0 nor 1 in float32
  return -jnp.log(-jnp.log(uniform))


def _hash(x):
  """Mixes uint32 so that each bit of the result depends on all bits of x."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
    x = (x ^ (x >> shift)) * np.uint32(factor)
  return x


def scale_factors(patch):
  """Returns the factors whose product is patch, twos last: the upsampling steps to the pixels."""
  twos = []
  while patch % 2 == 0:
    twos.append(2)
    patch //= 2
  return ([patch] if patch > 1 else []) + twos


def num_bands(patch):
  """Returns L, the number of detail bands."""
  return 1 + len(scale_factors(patch))


def detail_bands(images, patch):
  """Returns the detail bands of images [B, H, W, C], coarsest first: a Laplacian pyramid.

  The coarsest band [B, H / patch, W / patch, C] is the downsampled image minus its blur. Each
  finer band is the image at that size minus the upsampled next coarser image; the last is
  [B, H, W, C].
  """
  levels = []
  for factor in scale_factors(patch)[::-1]:
    smaller = downsample(images, factor)
    levels.append(images - upsample(smaller, factor))
    images = smaller
  levels.append(images - _blur(images))
  return levels[::-1]


def _blur(images):
  """Blurs images [B, H, W, C] by weights 1, 2, 1 in both directions."""
  for axis in (1, 2):
    edges = [(0, 0)] * 4
    edges[axis] = (1, 1)
    padded = jnp.pad(images, edges, mode="edge")
    count = images.shape[axis]
    before, after = (jax.lax.slice_in_dim(padded, i, i + count, axis=axis) for i in (0, 2))
    images = (before + 2 * images + after) / 4
  return images


def sum_bands(levels):
  """Returns the sum [B, H, W, C] of bands, coarsest first, each upsampled to the last's size."""
  image = levels[0]
  for level in levels[1:]:
    image = upsample(image, level.shape[1] // image.shape[1]) + level
  return image


def downsample(images, factor):
  """Returns the means [B, H / factor, W / factor, C] over squares of images [B, H, W, C]."""
  b, height, width, c = images.shape
  squares = images.reshape(b, height // factor, factor, width // factor, factor, c)
  return jnp.mean(squares, axis=(2, 4))


def upsample(x, factor):
  """Interpolates x [B, H, W, C] linearly to [B, H · factor, W · factor, C].

  Values belong to the centres of cells; edges are repeated.
  """
  for axis in (1, 2):
    count = x.shape[axis]
    edges = [(0, 0)] * 4
    edges[axis] = (1, 1)
    padded = jnp.pad(x, edges, mode="edge")
    before, after = (jax.lax.slice_in_dim(padded, i, i + count, axis=axis) for i in (0, 2))
    parts = []
    for i in range(factor):
      distance = (i + 0.5) / factor - 0.5  # from the centre of the cell, in cells
      other = before if distance < 0 else after
      parts.append((1 - abs(distance)) * x + abs(distance) * other)
    sizes = (*x.shape[:axis], count * factor, *x.shape[axis + 1 :])
    x = jnp.stack(parts, axis=axis + 1).reshape(sizes)
  return x
