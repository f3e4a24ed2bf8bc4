"""Texture synthesis: bands sum to the image, crops hold detail, parts agree with the whole."""

import jax
import numpy as np
import pytest

from imgtx_jax.models import texture_synthesis as textures

PATCH = 4
ORIGIN = np.zeros(2, np.int32)


def noise(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).uniform(-1, 1, (*shape, 3)).astype(np.float32)


@pytest.mark.parametrize("factor", [2, 3])
def test_enlarging_is_linear(factor):
  rows, columns = np.mgrid[:5, :4].astype(np.float32)
  found = textures.upsample((2 * rows - columns)[None, :, :, None], factor)[0, :, :, 0]
  places = [(np.arange(n * factor) + 0.5) / factor - 0.5 for n in (5, 4)]
  rows, columns = (np.clip(p, 0, n - 1) for p, n in zip(places, (5, 4), strict=True))
  np.testing.assert_allclose(found, 2 * rows[:, None] - columns, atol=1e-5)


@pytest.mark.parametrize("patch", [4, 6])
def test_bands_and_the_small_image_make_the_image(patch):
  images = noise(2, 4 * patch, 6 * patch)
  levels = textures.detail_bands(images, patch)
  assert [level.shape[1] for level in levels] == ([4, 8, 16] if patch == 4 else [4, 12, 24])
  grid = images.reshape(2, 4, patch, 6, patch, 3).mean((2, 4))
  blurred = np.pad(grid, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
  for _ in range(2):
    blurred = (blurred[:, :-2] + 2 * blurred[:, 1:-1] + blurred[:, 2:]) / 4
    blurred = blurred.swapaxes(1, 2)
  np.testing.assert_allclose(levels[0] + blurred, grid, atol=1e-6)
  np.testing.assert_allclose(textures.sum_bands([grid, *levels[1:]]), images, atol=1e-5)
  flat = textures.sum_bands(textures.detail_bands(np.full_like(images, 0.3), patch))
  assert np.abs(flat).max() < 1e-6


def test_contrast_is_of_each_size():
  fine, coarse = (np.kron(noise(32 // n, 32 // n), np.ones((n, n, 1))) for n in (1, 2))
  found = textures.extract(np.float32([fine, coarse]), PATCH).contrast
  assert found[0, 0] > 1.5 * found[1, 0] and found[1, 1] > 1.5 * found[0, 1]


def test_gains_lead_to_the_other_contrast_within_bounds():
  own = np.float32([[0.1, 0.2]])
  np.testing.assert_allclose(
    textures.contrast_gains(own, np.float32([[0.2, 0.2]])), [[0.21 / 0.11, 1.0]], rtol=1e-6
  )
  np.testing.assert_array_equal(textures.contrast_gains(own, 900 * own), [[4, 4]])
  np.testing.assert_array_equal(textures.contrast_gains(own, 0 * own + 1e-4), [[0.25, 0.25]])


def test_amplified_detail():
  images = 0.2 * noise(2, 16, 16)
  changed = textures.amplify(images, np.float32([[1, 1, 1], [2, 0, 1]]), PATCH)
  np.testing.assert_allclose(changed[0], images[0], atol=1e-6)
  coarse, middle, fine = textures.detail_bands(images[1:], PATCH)
  expected = textures.sum_bands([0 * coarse, -middle, fine]) + images[1:]
  np.testing.assert_allclose(changed[1:], expected, atol=1e-6)
  loud = textures.amplify(noise(1, 16, 16), np.full((1, 3), 9.0, np.float32), PATCH)
  assert np.abs(loud).max() == 1


@pytest.mark.parametrize("shape", [(8, 16), (40, 24)])
def test_crops_are_sorted_by_brightness(shape):
  found = textures.extract(noise(2, *shape), PATCH)
  assert found.crops.shape == (2, 64, 16, 16, 3) and found.colors.shape == (2, 64, 3)
  assert np.all(np.diff(found.colors.sum(-1), axis=1) >= -1e-6)
  for part, empty in zip(found, textures.zeros(2, PATCH), strict=True):
    assert part.shape == empty.shape and not np.any(empty)


def test_detail_is_from_places_of_the_same_colour():
  """A style whose dark half has red detail and whose bright half has green detail."""
  style, grain = np.zeros((1, 64, 64, 3), np.float32), noise(64, 64)[..., 0]
  style[:, :, :32], style[:, :, 32:] = -0.6, 0.6
  style[0, :, :32, 0] += 0.3 * grain[:, :32]
  style[0, :, 32:, 1] += 0.3 * grain[:, 32:]
  content = np.full((1, 48, 48, 3), -0.6, np.float32)
  content[:, 24:] = 0.6
  found = np.asarray(textures.synthesize(textures.extract(style, PATCH), content, PATCH, ORIGIN))
  dark, bright = found[0, :16].std((0, 1)), found[0, -16:].std((0, 1))
  assert dark[0] > 3 * dark[1] and bright[1] > 3 * bright[0]
  # Overlapping crops keep their contrast.
  expected = textures.sum_bands(textures.detail_bands(style, PATCH))[0, :, 8:24, 0].std()
  assert dark[0] == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("patch", [1, 3, 4, 6])
def test_a_part_of_an_image_gets_what_the_whole_gets(patch):
  images = noise(1, 16 * patch, 20 * patch)
  style = textures.extract(noise(1, 2 * patch, 16 * patch, seed=1), patch)
  lay = jax.jit(textures.synthesize, static_argnums=2)
  whole = lay(style, images, patch, ORIGIN)
  assert np.isfinite(whole).all()
  reach = 4 * patch  # crops that reach beyond the part know less of the image
  for top, left in ((0, 1), (5, 3), (2, 4)):
    # To hops and past them.
    for bottom, right in ((16, 20), (14, 15)):
      place = np.s_[:, top * patch : bottom * patch, left * patch : right * patch]
      part = lay(style, images[place], patch, patch * np.array([top, left]))
      inner = np.s_[:, reach:-reach, reach:-reach]
      np.testing.assert_allclose(part[inner], whole[place][inner], atol=1e-6)
  elsewhere = lay(style, images, patch, patch * np.array([0, 20]))
  assert np.abs(elsewhere - whole).mean() > 0.5 * np.abs(whole).mean()


def test_mixed_textures_are_as_strong_as_what_they_are_mixed_from():
  one, other = (textures.extract(noise(1, 64, 64, seed=seed), PATCH) for seed in (1, 2))
  content = noise(1, 64, 64, seed=3)
  both = jax.tree.map(lambda a, b: 0.5 * (a + b), one, other)
  first, second, mixed = (
    np.asarray(textures.synthesize(x, content, PATCH, ORIGIN)) for x in (one, other, both)
  )
  assert mixed.std() == pytest.approx((first.std() + second.std()) / 2, rel=0.1)
  assert not np.any(textures.synthesize(textures.zeros(1, PATCH), content, PATCH, ORIGIN))


def test_luck_is_gumbels_and_belongs_to_places():
  luck = textures._gumbel_noise((60, 70), np.array([0, 0]), 16)
  whole = np.asarray(luck).reshape(60, 70, 16)
  assert np.isfinite(whole).all()
  assert whole.mean() == pytest.approx(0.5772, abs=0.02)
  assert whole.std() == pytest.approx(np.pi / 6**0.5, rel=0.02)
  part = np.asarray(textures._gumbel_noise((20, 30), np.array([7, 40]), 16)).reshape(20, 30, 16)
  np.testing.assert_array_equal(part, whole[7:27, 40:70])
  for shifted in (np.roll(whole, 1, axis=axis) for axis in range(3)):
    assert abs(np.corrcoef(whole.ravel(), shifted.ravel())[0, 1]) < 0.02


def test_the_largest_hash_is_no_infinite_luck():
  """Of place (208, 50) the 119th number: its hash begins with 24 ones."""
  assert np.isfinite(textures._gumbel_noise((1, 1), np.array([208, 50]), 120)).all()
