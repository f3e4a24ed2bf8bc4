"""Renders images of any size with a stylizer: padded to whole patches, in batches or in tiles.

At strength s < 1 the stylizer gets the mixture (1 − s) · null + s · style. Detail that the content
loses by resizing to the working size is added back with weight 1 − s: image = render(mixture) +
(1 − s) · (content − resized content). So s = 0 gives the content to the bit, and the image depends
continuously on s.
"""

import math

import cv2
import jax
import numpy as np

from imgtx_jax.data import transforms
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError
from imgtx_jax.io.image_files import resize
from imgtx_jax.models import color_transfer
from imgtx_jax.models.style_encoder import mix
from imgtx_jax.style_transfer import tiling

STYLE_SIZE = 256  # side in pixels of the centred square of a style image
TILE = 1024  # side in pixels up to which an image is one tile
OVERLAP = 128  # pixels
MIN_TILE = 4 * OVERLAP
# Images are padded to multiples of this, so that many sizes share a program. Tiles start at them.
STEP = 64
_MEASURED_PIXELS = TILE * TILE  # larger images are measured on a smaller copy


class StyleRenderer:
  """Renders contents of any size in styles.

  Args:
    stylizer: Stylizer.
    strength: of the style, 0 … 1.
    tile: longest side that is rendered at once; 0 for any.
    batch_size: number of images rendered at once; fewer if they have more pixels than a tile.
    hard: as in Stylizer.render.

  Raises:
    UserError: for values out of range.
  """

  def __init__(self, stylizer, *, strength=1.0, tile=TILE, batch_size=8, hard=False):
    if not 0 <= strength <= 1:
      raise UserError(f"--strength={strength} is outside 0 … 1: 0 is the content, 1 the full style")
    if tile and tile < MIN_TILE:
      raise UserError(f"--tile={tile} is under {MIN_TILE}, four overlaps; 0 is without tiles")
    if batch_size < 1:
      raise UserError(f"--batch_size={batch_size} is under 1; ask for at least one")
    self.stylizer, self.strength = stylizer, strength
    # Texture crops are tiled at distances of two patches.
    self.step = math.lcm(STEP, 2 * stylizer.multiple)
    self.overlap = -(-max(OVERLAP, 16 * stylizer.multiple) // self.step) * self.step
    self.tile = max(tile // self.step, 2 * self.overlap // self.step + 1) * self.step if tile else 0
    self.batch_size, self.hard = batch_size, hard

  def encode(self, image, size=STYLE_SIZE):
    """Returns the Style [1], NumPy arrays, of a style image, uint8 [H, W, 3].

    It is that of the centred square resized to [size, size]. Raises UserError for a size that is no
    multiple of the patch.
    """
    if size < 1 or size % self.stylizer.multiple:
      raise UserError(
        f"--style_size={size} must be a multiple of {self.stylizer.multiple}, the patch of this "
        f"style stage; try {max(1, size // self.stylizer.multiple) * self.stylizer.multiple}"
      )
    square = transforms.center_crop(image, size)[None]
    return jax.device_get(self.stylizer.styles(square / np.float32(127.5) - 1))

  def at_strength(self, style):
    """Mixes a Style [1] with the null style by the strength; NumPy arrays."""
    null, strength = jax.device_get(self.stylizer.null(1)), self.strength
    return jax.device_get(mix([null, style], [1 - strength, strength]))

  def padded(self, image):
    """Pads an image [h, w, 3] below and to the right to multiples of step, by reflection."""
    sides = [(0, -side % self.step) for side in image.shape[:2]]
    return np.pad(image, [*sides, (0, 0)], mode="reflect")

  def room(self, shape):
    """Returns how many images of a padded shape (H, W) to render at once.

    It is a power of 2, so that few programs are compiled.
    """
    count = min(self.batch_size, (self.tile or TILE) ** 2 // math.prod(shape))
    return 2 ** (max(1, count).bit_length() - 1)

  def render(self, contents, styles):
    """Renders n contents in n styles.

    Args:
      contents: n padded images of equal shape [H, W, 3], float32 in [-1, 1].
      styles: n Styles [1] from at_strength.

    Returns:
      float32 [n, H, W, 3]: images minus (1 − strength) · content, for `finish`.
    """
    shape = contents[0].shape[:2]
    if self.tile and max(shape) > self.tile:
      pairs = zip(contents, styles, strict=True)
      return np.stack([self._render_tiles(content, style) for content, style in pairs])
    style = jax.tree.map(lambda *parts: np.concatenate(parts), *styles)
    batch = {"content": np.stack(contents), "style": style}
    count = min(self.room(shape), len(contents))
    return sharding.in_batches(self._run, batch, 2 ** math.ceil(math.log2(count)), devices=1)

  def _run(self, batch, **part):
    content = batch["content"]
    image = self.stylizer.render(content, batch["style"], hard=self.hard, **part)
    return image - (1 - self.strength) * content

  def _render_tiles(self, content, style):
    # Measure the whole image once, not each tile by itself. The latents' moments come from a small
    # copy, colours and contrast from the image.
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
    """Returns the content, or a copy of about _MEASURED_PIXELS if it is larger."""
    scale = (_MEASURED_PIXELS / math.prod(content.shape[:2])) ** 0.5
    if scale >= 1:
      return content
    height, width = (
      max(1, round(side * scale / self.step)) * self.step for side in content.shape[:2]
    )
    return cv2.resize(content, (width, height), interpolation=cv2.INTER_AREA)

  def finish(self, content, rendered):
    """Returns the output image [H, W, 3] in [-1, 1].

    Args:
      content: [H, W, 3] in [-1, 1], not resized.
      rendered: [h, w, 3], an image from render without its padding; it is resized to [H, W, 3].
    """
    image = resize(rendered, content.shape[:2]) + (1 - self.strength) * content
    return np.clip(image, -1, 1)


def in_style(renderer, style_image, images):
  """Renders images, uint8 [n, H, W, 3], in the style of an image, uint8 [h, w, 3].

  Returns uint8 [n, H, W, 3].
  """
  step = renderer.stylizer.multiple
  style = renderer.at_strength(renderer.encode(style_image, max(1, STYLE_SIZE // step) * step))
  contents = images / np.float32(127.5) - 1
  padded = [renderer.padded(content) for content in contents]
  rendered = renderer.render(padded, [style] * len(images))
  rendered = rendered[:, : images.shape[1], : images.shape[2]]
  pairs = zip(contents, rendered, strict=True)
  return transforms.denormalize(np.stack([renderer.finish(*pair) for pair in pairs]))
