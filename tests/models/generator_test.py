"""The generator in its roles: what it starts as, what it does not see, its taps and its head."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.models import layers
from imgtx_jax.models.encoder import Encoder
from imgtx_jax.models.generator import (
  Generator,
  Mapping,
  PatchHead,
  overlap_add,
  smooth_tokens,
)
from imgtx_jax.models.transformer import BlockConfig
from imgtx_jax.stages.conditional_generator import copy_by_name

B, SHAPE, N, C, D, HIDDEN, PATCH, F, M, S = 2, (3, 4), 12, 4, 32, 64, 2, 6, 5, 8
BLOCK = BlockConfig(num_heads=2, mlp_dim=HIDDEN)
BASE = dict(patch=PATCH, width=D, depth=2, block=BLOCK, head_channels=F, taps=(1,))
ROLES = dict(block=replace(BLOCK, memory=True, modulated=True), mask_token=True)
DECODER, GENERATOR = Generator(**BASE), Generator(**BASE | ROLES)


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


GRID, MEMORY, STYLE = normal(B, N, C), normal(B, M, D), normal(B, S)
COORDS = layers.grid_coords(*SHAPE)[:M]
HALF = np.tile(np.arange(N) % 3 > 0, (B, 1))


@functools.partial(jax.jit, static_argnums=0)
def decode(model, params, grid):
  return model.apply({"params": params}, grid, shape=SHAPE)


def render(params, grid, memory, modulation, known, memory_length):
  """Image, conditioned image and its condition vectors."""
  image, ((conditioned, vectors),) = GENERATOR.apply(
    {"params": params},
    grid,
    memory,
    modulation,
    known=known,
    memory_length=memory_length,
    memory_coords=COORDS,
    shape=SHAPE,
  )
  return image, conditioned, vectors


SEEN, EVERY = np.full(B, 3), np.full(B, M)
ALL = np.ones((B, N), bool)
GIVEN = dict(grid=GRID, memory=MEMORY, modulation=STYLE, known=HALF, memory_length=SEEN)
WHOLE = dict(known=ALL, memory_length=EVERY)


@pytest.fixture(scope="module")
def generate(differentiate):
  """run(params, **changes of GIVEN) → image, conditioned image, condition vectors."""
  return lambda params, **changes: differentiate(render, params, *(GIVEN | changes).values())[0]


@pytest.fixture(scope="module")
def decoder(random_params):
  return random_params(DECODER, GRID, shape=SHAPE)


@pytest.fixture(scope="module")
def generator(random_params):
  return random_params(GENERATOR, GRID, MEMORY, STYLE, memory_coords=COORDS, known=ALL, shape=SHAPE)


# -- Shapes, counts, gradients ---------------------------------------------------------------------

HEAD = D + (D * PATCH**2 * F + PATCH**2 * F) + (9 * F * F + F) + (9 * F * 3 + 3)
TAP = HEAD + (PATCH**2 * 3 * D + D) + D  # its embedding and its gate
LAYER = 4 * D * D + 3 * D * HIDDEN + 2 * D
EXTRA = (4 * D * D + 2 * D) + (S * 6 * D + 6 * D)


def test_shapes_and_parameter_counts(decoder, generator, generate, num_params):
  size = (B, SHAPE[0] * PATCH, SHAPE[1] * PATCH, 3)
  image, taps = decode(DECODER, decoder, GRID)
  assert image.shape == size and image.dtype == jnp.float32
  assert [(tap.shape, vectors.shape) for tap, vectors in taps] == [(size, (B, N, D))]
  assert [x.shape for x in generate(generator)] == [size, size, (B, N, D)]
  embed = C * D + D
  assert num_params(decoder) == embed + 2 * LAYER + TAP + HEAD
  mask_tokens = N * C + S * 16 * C  # one a place, and what bends them
  assert num_params(generator) == embed + 2 * (LAYER + EXTRA) + TAP + HEAD + mask_tokens


def test_every_parameter_has_a_gradient(generator, differentiate, dead):
  assert dead(differentiate(render, generator, *GIVEN.values())[1]) == []


def test_the_grid_is_square_by_default(random_params):
  model = Generator(**BASE | dict(taps=(), depth=1))
  shape = jax.eval_shape(model.init_with_output, jax.random.key(0), normal(1, 9, C))[0][0].shape
  assert shape == (1, 6, 6, 3)


# -- The roles -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh():
  """The generator as it starts."""
  init = functools.partial(GENERATOR.init, memory_coords=COORDS, known=ALL, shape=SHAPE)
  return jax.jit(init)(jax.random.key(0), GRID, MEMORY, STYLE)["params"]


def test_a_copied_decoder_renders_the_same_at_full_prefix(decoder, fresh, generate):
  copied = copy_by_name(fresh, decoder)
  image, ((tap, _),) = decode(DECODER, decoder, GRID)
  again, tap_again, _ = generate(copied, **WHOLE)
  np.testing.assert_allclose(again, image, atol=1e-6)
  np.testing.assert_allclose(tap_again, tap, atol=1e-6)
  # And not because nothing matters: with gates open it renders something else.
  opened = jax.tree.map(lambda a: a + 0.1, copied)
  assert np.abs(generate(opened, **WHOLE)[0] - image).max() > 0.1


def test_closed_gates_can_open(decoder, fresh, differentiate):
  assert not np.any(fresh["tap_gate_1"])
  closed = copy_by_name(fresh, decoder) | {"tap_gate_1": fresh["tap_gate_1"]}
  _, grads = differentiate(render, closed, *(GIVEN | WHOLE).values())
  block = grads["segment_1"]["layers"]["block"]
  for gate in (grads["tap_gate_1"], block["cross_gate"], block["modulation"]["kernel"]):
    assert np.any(gate)


def test_copy_by_name_leaves_nothing_behind(decoder, fresh):
  extra = decoder | {"stranger": {"kernel": np.ones(2)}}
  with pytest.raises(ValueError, match="stranger"):
    copy_by_name(fresh, extra)
  wrong = decoder | {"embed": decoder["embed"] | {"bias": np.ones(D + 1)}}
  with pytest.raises(ValueError, match="shape"):
    copy_by_name(fresh, wrong)


def test_unknown_codes_have_no_influence(generator, generate):
  image, *_ = generate(generator)
  other, *_ = generate(generator, grid=np.where(HALF[..., None], GRID, 9.0))
  np.testing.assert_array_equal(other, image)
  seen, *_ = generate(generator, grid=np.where(HALF[..., None], 9.0, GRID))
  assert np.abs(seen - image).max() > 0.01


def test_each_place_has_its_own_mask_token(generator, generate):
  image, *_ = generate(generator)
  tokens = generator["mask_token"]
  assert tokens.shape == (N, C)
  at_known, at_unknown = tokens.copy(), tokens.copy()
  at_known[HALF[0]] += 1.0
  at_unknown[np.flatnonzero(~HALF[0])[1]] += 1.0
  np.testing.assert_array_equal(generate(generator | {"mask_token": at_known})[0], image)
  assert np.abs(generate(generator | {"mask_token": at_unknown})[0] - image).max() > 0.01


def test_noise_is_heard_from_the_first_step(fresh, generate):
  """Where no code is known: the layers' own modulation starts at zero."""
  none = np.zeros((B, N), bool)
  image, *_ = generate(fresh, known=none)
  other, *_ = generate(fresh, known=none, modulation=STYLE + 1.0)
  assert np.abs(other - image).max() > 1e-3
  image, *_ = generate(fresh, known=ALL)
  other, *_ = generate(fresh, known=ALL, modulation=STYLE + 1.0)
  np.testing.assert_allclose(other, image, atol=1e-6)


def test_mask_tokens_start_smooth():
  size, width = 16, 512
  draw = jax.jit(lambda key: smooth_tokens((size, size))(key, (size**2, width)))
  tokens = np.asarray(draw(jax.random.key(0))).reshape(size, size, width)
  assert 0.7 < tokens.std() < 1.3
  steps = [np.square(tokens[d:] - tokens[:-d]).mean() for d in (1, 4)]
  assert 0 < 8 * steps[0] < steps[1]  # of independent tokens they would be equal
  assert np.linalg.matrix_rank(tokens.reshape(-1, width)[:, :64]) == 16  # waves


def test_masked_condition_vectors_have_no_influence(generator, generate):
  image, *_ = generate(generator)
  hidden, shown = MEMORY.copy(), MEMORY.copy()
  hidden[:, 3:], shown[:, :3] = 9.0, 9.0
  np.testing.assert_array_equal(generate(generator, memory=hidden)[0], image)
  assert np.abs(generate(generator, memory=shown)[0] - image).max() > 0.01
  assert np.abs(generate(generator, modulation=STYLE + 1.0)[0] - image).max() > 0.01


# -- Taps and head ---------------------------------------------------------------------------------


def test_a_closed_tap_leaves_a_plain_transformer(decoder):
  closed = decoder | {"tap_gate_1": np.zeros(D, np.float32)}
  plain = Generator(**BASE | dict(taps=()))
  both = [decoder[f"segment_{i}"]["layers"] for i in (0, 1)]
  stack = {"layers": jax.tree.map(lambda *a: np.concatenate(a), *both)}
  params = {name: decoder[name] for name in ("embed", "head")} | {"segment_0": stack}
  expected, none = decode(plain, params, GRID)
  assert none == ()
  image, (tap,) = decode(DECODER, closed, GRID)
  np.testing.assert_allclose(image, expected, atol=1e-5)
  opened, (same,) = decode(DECODER, decoder, GRID)
  np.testing.assert_allclose(same[0], tap[0], atol=1e-6)
  assert np.abs(opened - image).max() > 0.01


def test_a_tap_embeds_the_image_it_shows(decoder):
  _, ((conditioned, vectors),) = decode(DECODER, decoder, GRID)
  embed = decoder["tap_embed_1"]
  expected = layers.patchify(conditioned, PATCH) @ embed["kernel"] + embed["bias"]
  np.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_the_head_works_across_patch_borders(decoder):
  head = jax.jit(lambda x: PatchHead(PATCH, F).apply({"params": decoder["head"]}, x, SHAPE))
  x = normal(1, N, D)
  other = x.copy()
  other[:, 5] += 1.0  # row 1, column 1: pixels 2 and 3
  changed = np.any(np.abs(head(other) - head(x))[0] > 1e-6, axis=-1)
  assert np.all(changed[2:4, 2:4])
  # Two 3×3 convolutions reach two pixels far, and no further.
  assert changed[1].any() and changed[0].any() and changed[:, 1].any()
  assert not changed[:, 6:].any()


# -- Its neighbours --------------------------------------------------------------------------------


def test_mapping(random_params, num_params, differentiate, dead):
  model, classes, width = Mapping(width=S, classes=3), 3, 6
  noise, labels = normal(4, width), np.array([0, 1, 2, 3])
  params = random_params(model, noise, labels)
  assert num_params(params) == (classes + 1) * S + (width + S) * S + S + S * S + S
  apply = lambda p, noise, labels: model.apply({"params": p}, noise, labels)  # noqa: E731
  y, grads = differentiate(apply, params, noise, labels)
  assert y.shape == (4, S) and y.dtype == jnp.float32 and dead(grads) == []
  assert np.abs(differentiate(apply, params, noise, labels[::-1])[0] - y).max() > 0.01
  assert np.abs(differentiate(apply, params, noise[::-1], labels)[0] - y).max() > 0.01


def test_encoder(random_params, num_params, differentiate, dead):
  model = Encoder(patch=PATCH, width=D, depth=2, code_dim=C, block=BLOCK)
  images = normal(B, 6, 8, 3)
  params = random_params(model, images)
  expected = (PATCH**2 * 3 * D + D) + 2 * LAYER + D + (D * C + C)
  assert num_params(params) == expected
  apply = lambda p, images: model.apply({"params": p}, images)  # noqa: E731
  latents, grads = differentiate(apply, params, images)
  assert latents.shape == (B, N, C) and latents.dtype == jnp.float32 and dead(grads) == []
  moved, _ = differentiate(apply, params, np.roll(images, PATCH, axis=2))
  assert np.abs(moved - latents).max() > 0.01


def test_overlapping_patches_add_up():
  side, shape = 8, (3, 5)
  flat = overlap_add(jnp.ones((2, 15, side**2 * 2)), side, shape)
  np.testing.assert_allclose(flat, np.ones((2, 12, 20, 2)), atol=1e-6)
  # Each patch a copy of what lies below it of one image: their sum is that image.
  image = np.random.default_rng(0).standard_normal((1, 12, 20, 2)).astype(np.float32)
  padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)))
  cut = [padded[:, 4 * i : 4 * i + 8, 4 * j : 4 * j + 8] for i in range(3) for j in range(5)]
  patches = np.stack(cut, 1).reshape(1, 15, -1)
  np.testing.assert_allclose(overlap_add(patches, side, shape), image, atol=1e-5)
  # One token alone fades out over half its neighbours' patches.
  one = overlap_add(jnp.zeros((1, 15, side**2)).at[:, 7].set(1.0), side, shape)[0, :, :, 0]
  ramp = np.array([0.125, 0.375, 0.625, 0.875])
  np.testing.assert_allclose(one[6, 6:14], 0.875 * np.concatenate([ramp, ramp[::-1]]), atol=1e-6)
  assert float(jnp.sum(one > 0)) == side**2
