"""The renderer: strength, sizes, batches and tiles, on a made-up stylizer; and on a real one."""

import numpy as np
import pytest

from imgtx_jax.data import transforms
from imgtx_jax.errors import UserError
from imgtx_jax.style_transfer import tiled_renderer
from imgtx_jax.style_transfer.tiled_renderer import StyleRenderer

RED = np.tile(np.uint8([255, 0, 0]), (40, 60, 1))


@pytest.fixture
def contents(smooth_images):
  return [image / np.float32(127.5) - 1 for image in smooth_images(3, 640)]


def run(renderer, content, style=RED):
  """The whole way of one content; uint8."""
  style = renderer.at_strength(renderer.encode(style))
  (found,) = renderer.render([renderer.padded(content)], [style])
  height, width = content.shape[:2]
  return transforms.denormalize(renderer.finish(content, found[:height, :width]))


def test_strength_leads_from_the_content_to_the_style(local_stylizer, contents):
  content = contents[0][:100, :75]
  images = [run(StyleRenderer(local_stylizer(), strength=s), content) for s in (0, 0.25, 0.5, 1)]
  np.testing.assert_array_equal(images[0], transforms.denormalize(content))
  distances = [np.abs(image.astype(float) - images[0]).mean() for image in images]
  assert distances == sorted(distances) and distances[-1] > 20
  assert distances[1] == pytest.approx(distances[3] / 4, rel=0.15)


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (17, 130)])
def test_any_size(local_stylizer, contents, shape):
  stylizer = local_stylizer()
  image = run(StyleRenderer(stylizer), contents[0][: shape[0], : shape[1]])
  assert image.shape == (*shape, 3)
  assert stylizer.shapes == [(1, *(-(-side // 64) * 64 for side in shape), 3)]


def test_batches_are_powers_of_two_and_make_no_difference(local_stylizer, contents):
  stylizer = local_stylizer()
  renderer = StyleRenderer(stylizer, batch_size=4)
  style = renderer.at_strength(renderer.encode(RED))
  part = [content[:128, :64] for content in contents]
  together = renderer.render(part, [style] * 3)
  assert stylizer.shapes == [(4, 128, 64, 3)]
  for content, found in zip(part, together, strict=True):
    np.testing.assert_allclose(renderer.render([content], [style])[0], found, atol=1e-6)
  assert [
    renderer.room(s) for s in ((64, 64), (512, 512), (640, 512), (1024, 1024), (4096, 64))
  ] == [
    4,
    4,
    2,
    1,
    4,
  ]


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_tiled_is_untiled(local_stylizer, contents, strength):
  """Everywhere, for a network that sees less far than the margin; its moments are the whole's."""
  stylizer = local_stylizer()
  content = contents[0][:, :600]
  whole = run(StyleRenderer(stylizer, tile=0, strength=strength), content)
  shapes = len(stylizer.shapes)
  tiled = run(StyleRenderer(stylizer, tile=512, strength=strength), content)
  assert len(stylizer.shapes) - shapes == shapes * 4
  assert max(stylizer.shapes[-1]) <= 512
  assert np.abs(tiled.astype(int) - whole).max() <= 1


def test_large_images_are_measured_on_a_copy(local_stylizer, contents, monkeypatch):
  monkeypatch.setattr(tiled_renderer, "_MEASURED_PIXELS", 256 * 256)
  stylizer = local_stylizer()
  renderer = StyleRenderer(stylizer, tile=512)
  seen = []

  def measure(content, style, **options):
    seen.append(content.shape)
    return local_stylizer.measure(stylizer, content, style, **options)

  monkeypatch.setattr(stylizer, "measure", measure)
  renderer.render([renderer.padded(contents[0])], [renderer.at_strength(renderer.encode(RED))])
  assert seen == [(1, 256, 256, 3)]


def test_hard_codes(local_stylizer, contents):
  content = contents[0][:64, :64]
  soft, hard = (run(StyleRenderer(local_stylizer(), hard=h), content) for h in (False, True))
  assert np.abs(soft.astype(int) - hard).max() > 10


def test_what_is_refused(local_stylizer):
  for options, message in (
    (dict(strength=1.5), "--strength=1.5 is outside 0 … 1"),
    (dict(strength=-0.1), "--strength=-0.1 is outside"),
    (dict(strength=float("nan")), "--strength=nan is outside"),
    (dict(tile=256), "--tile=256 is under 512"),
    (dict(batch_size=0), "--batch_size=0 is under 1"),
  ):
    with pytest.raises(UserError, match=message):
      StyleRenderer(local_stylizer(), **options)
  with pytest.raises(UserError, match="--style_size=100 must be a multiple of 8.*try 96"):
    StyleRenderer(local_stylizer()).encode(RED, 100)
