"""The convolutional tokenizer: shapes, gradients, precision, and parity with LlamaGen's."""

import functools

import jax
import numpy as np
import pytest

from imgtx_jax.convert import llamagen
from imgtx_jax.models import vqgan
from imgtx_jax.models.quantizer import VectorQuantizer
from imgtx_jax.models.tokenizer import Tokenizer
from imgtx_jax.pretrained import state_dict

B, C, SHARED = 2, 8, dict(channels=64, multipliers=(1, 2), z_channels=16)
ENCODER = vqgan.Encoder(blocks=1, code_dim=C, **SHARED)
DECODER = vqgan.Decoder(blocks=2, **SHARED)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (B, 8, 12, 3)).astype(np.float32)
VECTORS = np.random.default_rng(1).standard_normal((B, 4 * 6, C)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder(random_params):
  return random_params(ENCODER, IMAGES)


@pytest.fixture(scope="module")
def decoder(random_params):
  return random_params(DECODER, VECTORS, shape=(4, 6))


def encode(params, images):
  return ENCODER.apply({"params": params}, images)


def decode(params, vectors):
  return DECODER.apply({"params": params}, vectors, shape=(4, 6))[0]


def of_keys(names):
  """Biases of attention keys: they shift all scores of a query alike, which a softmax ignores."""
  return [name for name in names if name.endswith("['k']['bias']")]


def test_every_parameter_has_a_gradient(encoder, decoder, differentiate, dead):
  latents, grads = differentiate(encode, encoder, IMAGES)
  assert latents.shape == (B, 4 * 6, C)
  assert dead(grads) == of_keys(dead(grads))
  image, grads = differentiate(decode, decoder, VECTORS)
  assert image.shape == IMAGES.shape
  assert dead(grads) == of_keys(dead(grads))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_and_parameters_are_float32(dtype):
  encoder, decoder = ENCODER.clone(dtype=dtype), DECODER.clone(dtype=dtype)
  key = jax.random.key(0)
  latents, variables = jax.eval_shape(encoder.init_with_output, key, IMAGES)
  (image, taps), more = jax.eval_shape(
    functools.partial(decoder.init_with_output, shape=(4, 6)), key, latents
  )
  assert latents.dtype == image.dtype == np.float32 and taps == ()
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((variables, more)))


def test_bfloat16_is_close(encoder, decoder):
  """Norms and softmax stay in float32: only products lose digits."""
  for module, params, x in ((ENCODER, encoder, IMAGES), (DECODER, decoder, VECTORS)):
    options = {"shape": (4, 6)} if module is DECODER else {}
    run = lambda dtype: jax.tree.leaves(  # noqa: E731
      jax.jit(lambda p: module.clone(dtype=dtype).apply({"params": p}, x, **options))(params)  # noqa: B023
    )[0]
    exact, rough = run("float32"), run("bfloat16")
    assert np.abs(exact - rough).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("name", ["vq_tiny", "vq16"])
def test_it_is_llamagens(name, parity):
  _, recorded, weights = parity(name)
  weights = state_dict.in_memory(weights)
  found = llamagen.find_tokenizer(weights)
  shared = dict(channels=found.channels, multipliers=found.multipliers, z_channels=found.z_channels)
  tokenizer = Tokenizer(
    encoder=vqgan.Encoder(blocks=found.encoder_blocks, code_dim=found.code_dim, **shared),
    quantizer=VectorQuantizer(found.codebook_size, found.code_dim),
    decoder=vqgan.Decoder(blocks=found.decoder_blocks, **shared),
    decoder_name="decoder",
  )
  params = llamagen.tokenizer_params(weights, tokenizer)
  assert not weights

  @jax.jit
  def run(params, images):
    latents = tokenizer.latents(params, images)
    codes = tokenizer.quantizer.quantize(params["quantizer"], latents).codes
    return latents, codes, tokenizer.decode(params, codes)

  ours = run(params, recorded["images"].transpose(0, 2, 3, 1))
  latents = recorded["latents"].transpose(0, 2, 3, 1).reshape(ours[0].shape)
  np.testing.assert_allclose(ours[0], latents, atol=1e-4)
  np.testing.assert_array_equal(ours[1], recorded["codes"])
  np.testing.assert_allclose(ours[2], recorded["reconstruction"].transpose(0, 2, 3, 1), atol=1e-3)
