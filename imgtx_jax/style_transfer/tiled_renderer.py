"""A trained stylizer over images of any size: padded to whole patches, in batches or in tiles.

Strength. At strength s < 1 the stylizer is given the mixture (1 - s) · null + s · style, and what
the size to work at loses of the content is given back in the same proportion: image =
render(mixture) + (1 - s) · (content - content at that size). So 0 is the content to the bit, and
the way there is smooth.
"""

import math

import cv2
import jax
import numpy as np

from imgtx_jax.data import transforms
from imgtx_jax.distributed.batches import in_batches
from imgtx_jax.errors import UserError
from imgtx_jax.models import color_transfer
from imgtx_jax.style_transfer import tiling
from imgtx_jax.style_transfer.stylizer import mix

STYLE_SIZE = 256  # pixels: the side of the centred square of a style image
TILE = 1024  # pixels: images up to this side are one tile
OVERLAP = 128
LEAST_TILE = 4 * OVERLAP
# Images are padded to multiples of this: few programs for many sizes. Tiles start at them.
STEP = 64
_MEASURED_PIXELS = TILE * TILE  # larger images are measured on a smaller copy


class StyleRenderer:
  """Renders contents in styles.

  tile: the longest side rendered at once, 0 for any. batch_size: images rendered at once, fewer if
  together they had more pixels than a tile.
  """

  def __init__(self, stylizer, *, strength=1.0, tile=TILE, batch_size=8, hard=False):
    if not 0 <= strength <= 1:
      raise UserError(f"--strength={strength} is outside 0 … 1: 0 is the content, 1 the full style")
    if tile and tile < LEAST_TILE:
      raise UserError(f"--tile={tile} is under {LEAST_TILE}, four overlaps; 0 is without tiles")
    if batch_size < 1:
      raise UserError(f"--batch_size={batch_size} is under 1; ask for at least one")
    self.stylizer, self.strength = stylizer, strength
    # Textures lie in windows of four patches, each two patches from the next.
    self.step = math.lcm(STEP, 2 * stylizer.multiple)
    self.overlap = -(-max(OVERLAP, 16 * stylizer.multiple) // self.step) * self.step
    self.tile = max(tile // self.step, 2 * self.overlap // self.step + 1) * self.step if tile else 0
    self.batch_size, self.hard = batch_size, hard

  def encode(self, image, size=STYLE_SIZE):
    """The Style of a style image, uint8 [H, W, 3]: of its centred square at [size, size]; batch 1,
    NumPy arrays."""
    if size < 1 or size % self.stylizer.multiple:
      raise UserError(
        f"--style_size={size} must be a multiple of {self.stylizer.multiple}, the patch of this "
        f"style stage; try {max(1, size // self.stylizer.multiple) * self.stylizer.multiple}"
      )
    square = transforms.center_crop(image, size)[None]
    return jax.device_get(self.stylizer.styles(square / np.float32(127.5) - 1))

  def at_strength(self, style):
    """The Style of batch 1 that is rendered for one at the strength; NumPy arrays."""
    null, strength = jax.device_get(self.stylizer.null(1)), self.strength
    return jax.device_get(mix([null, style], [1 - strength, strength]))

  def padded(self, image):
    """An image [h, w, 3], mirrored beyond its lower and right edges up to whole steps."""
    sides = [(0, -side % self.step) for side in image.shape[:2]]
    return np.pad(image, [*sides, (0, 0)], mode="reflect")

  def room(self, shape):
    """How many images of a padded shape (H, W) are rendered at once: a power of 2, so that there
    are few programs."""
    count = min(self.batch_size, (self.tile or TILE) ** 2 // math.prod(shape))
    return 2 ** (max(1, count).bit_length() - 1)

  def render(self, contents, styles):
    """n padded contents of one shape [H, W, 3], float32 in [-1, 1], in n styles of at_strength;
    float32 [n, H, W, 3]: at strength 1 the images, at s what (1 - s) · content is added to, which
    is for `finish`."""
    shape = contents[0].shape[:2]
    if self.tile and max(shape) > self.tile:
      pairs = zip(contents, styles, strict=True)
      return np.stack([self._render_tiles(content, style) for content, style in pairs])
    style = jax.tree.map(lambda *parts: np.concatenate(parts), *styles)
    batch = {"content": np.stack(contents), "style": style}
    count = min(self.room(shape), len(contents))
    return in_batches(self._run, batch, 2 ** math.ceil(math.log2(count)), devices=1)

  def _run(self, batch, **part):
    content = batch["content"]
    image = self.stylizer.render(content, batch["style"], hard=self.hard, **part)
    return image - (1 - self.strength) * content

  def _render_tiles(self, content, style):
    # Measured on the whole image: tiles must not measure it each on itself. What the networks say
    # is taken from a small copy, colours and detail from the image.
    small, full = self._small(content), {}
    sides = dict(largest=self.tile, overlap=self.overlap, step=self.step)
    if small is not content:
      strips = np.array_split(content, -(-content.size // (3 * _MEASURED_PIXELS)))
      full["own"] = color_transfer.measure_tiles(strips)
      full["parts"] = [tile[None] for tile in tiling.cut(content, **sides)]
    whole = self.stylizer.measure(small[None], style, hard=self.hard, **full)

    def run(tile, origin):
      batch = {"content": tile[None], "style": style}
      return np.asarray(self._run(batch, whole=whole, origin=origin))[0]

    return tiling.render(run, content, **sides)

  def _small(self, content):
    """The content, or a copy of about _MEASURED_PIXELS."""
    scale = (_MEASURED_PIXELS / math.prod(content.shape[:2])) ** 0.5
    if scale >= 1:
      return content
    height, width = (
      max(1, round(side * scale / self.step)) * self.step for side in content.shape[:2]
    )
    return cv2.resize(content, (width, height), interpolation=cv2.INTER_AREA)

  def finish(self, content, rendered):
    """The image [H, W, 3] in [-1, 1] of a content of that shape and its part of `render`, without
    the padding; resized where they differ in shape."""
    image = resize(rendered, content.shape[:2]) + (1 - self.strength) * content
    return np.clip(image, -1, 1)


def resize(image, shape):
  """An image [H, W, …] at another (height, width): area-averaged where it shrinks, else cubic."""
  if image.shape[:2] == tuple(shape):
    return image
  shrinks = image.shape[0] > shape[0]
  interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
  return cv2.resize(image, tuple(shape)[::-1], interpolation=interpolation)


def in_style(renderer, style_image, images):
  """Generated images, uint8 [n, H, W, 3], in the style of another, uint8 [h, w, 3]; uint8."""
  step = renderer.stylizer.multiple
  style = renderer.at_strength(renderer.encode(style_image, max(1, STYLE_SIZE // step) * step))
  contents = images / np.float32(127.5) - 1
  padded = [renderer.padded(content) for content in contents]
  found = renderer.render(padded, [style] * len(images))[:, : images.shape[1], : images.shape[2]]
  pairs = zip(contents, found, strict=True)
  return transforms.denormalize(np.stack([renderer.finish(*pair) for pair in pairs]))
