"""LlamaGen's sizes, and which files are none of them. Parity is tested with the networks."""

import math

import jax
import numpy as np
import pytest

from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.convert import llamagen
from imgtx_jax.errors import UserError
from imgtx_jax.pretrained.state_dict import Weight, in_memory
from imgtx_jax.stages import builders

VQ16 = llamagen.TOKENIZER_VARIANTS["VQ-16"]
TINY = llamagen.GPTVariant(2, 2, 16, 24, codebook_size=5, classes=3)
TINY_VQ = llamagen.TokenizerVariant((1, 2), 32, 4, 1, 2, codebook_size=5, code_dim=3)


def gpt_arrays(variant):
  """Random weights of that size under LlamaGen's names."""
  width, hidden = variant.width, variant.mlp_dim
  shapes = {
    "cls_embedding.embedding_table.weight": (variant.classes + 1, width),
    "tok_embeddings.weight": (variant.codebook_size, width),
    "norm.weight": (width,),
    "output.weight": (variant.codebook_size, width),
  }
  for i in range(variant.depth):
    shapes |= {
      f"layers.{i}.attention.wqkv.weight": (3 * width, width),
      f"layers.{i}.attention.wo.weight": (width, width),
      f"layers.{i}.feed_forward.w1.weight": (hidden, width),
      f"layers.{i}.feed_forward.w3.weight": (hidden, width),
      f"layers.{i}.feed_forward.w2.weight": (width, hidden),
      f"layers.{i}.attention_norm.weight": (width,),
      f"layers.{i}.ffn_norm.weight": (width,),
    }
  rng = np.random.default_rng(0)
  return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def count(tree):
  """The numbers in a tree of shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def make_gpt(variant):
  config = llamagen.imported_config(variant, TINY_VQ, 8)
  return builders.make_gpt(config, variant.classes)


# -- The published sizes ---------------------------------------------------------------------------

MILLIONS = {"B": 111, "L": 343, "XL": 775, "XXL": 1400, "3B": 3100}


@pytest.mark.parametrize("image_size", [256, 384])
@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_of_the_published_gpts(name, image_size):
  variant = llamagen.GPT_VARIANTS[name]
  config = llamagen.imported_config(variant, VQ16, image_size)
  gpt = builders.make_gpt(config, variant.classes)
  assert gpt.shape == (image_size // 16,) * 2
  codes = jax.ShapeDtypeStruct((1, math.prod(gpt.shape)), np.int32)
  labels = jax.ShapeDtypeStruct((1,), np.int32)
  variables = jax.eval_shape(gpt.init, jax.random.key(0), codes, labels)
  assert count(variables) / 1e6 == pytest.approx(MILLIONS[name], rel=0.01)


@pytest.mark.parametrize("name, millions", [("VQ-16", 72), ("VQ-8", 70)])
def test_parameters_of_the_published_tokenizers(name, millions):
  variant = llamagen.TOKENIZER_VARIANTS[name]
  config = llamagen.imported_config(llamagen.GPT_VARIANTS["B"], variant)
  tokenizer = builders.make_tokenizer(config)
  images = jax.ShapeDtypeStruct((1, 256, 256, 3), np.float32)
  params = jax.eval_shape(tokenizer.init, jax.random.key(0), images)
  assert count(params) / 1e6 == pytest.approx(millions, abs=0.5)
  latents = jax.eval_shape(tokenizer.latents, params, images)
  assert latents.shape == (1, (256 // variant.patch) ** 2, 8)


def test_vq16_is_found_by_its_shapes(parity):
  manifest, _, _ = parity("vq16")
  weights = {name: Weight(tuple(shape), None) for name, shape in manifest["weights"].items()}
  assert llamagen.find_tokenizer(weights) == VQ16
  assert llamagen.name_of(VQ16) == "VQ-16" and llamagen.name_of(TINY_VQ) is None


@pytest.mark.parametrize("gpt", [*llamagen.GPT_VARIANTS.values(), TINY])
@pytest.mark.parametrize("tokenizer", llamagen.TOKENIZER_VARIANTS.values())
def test_the_imported_config_is_good(gpt, tokenizer):
  config = llamagen.imported_config(gpt, tokenizer, 384)
  validation.check(config)
  assert set(configs.flatten(config)) == set(configs.flatten(configs.default()))
  assert configs.grid_shape(config) == (384 // tokenizer.patch,) * 2
  assert (config.sample.cfg_scale == 1.5) == (gpt == TINY)


# -- What the shapes tell --------------------------------------------------------------------------


def test_heads_come_from_the_published_width_or_from_the_caller():
  arrays = in_memory(gpt_arrays(TINY))
  assert llamagen.find_gpt(arrays, num_heads=2) == TINY
  with pytest.raises(UserError, match=r"width 16 .*--num_heads"):
    llamagen.find_gpt(arrays)
  with pytest.raises(UserError, match=r"width 16 is no multiple of 4 · 3 heads.*--num_heads"):
    llamagen.find_gpt(arrays, num_heads=3)
  published = llamagen.GPT_VARIANTS["B"]._replace(depth=1, classes=2, codebook_size=3)
  assert llamagen.find_gpt(in_memory(gpt_arrays(published))) == published


def test_every_weight_is_used_once():
  arrays = gpt_arrays(TINY)
  weights = in_memory(arrays)
  params = llamagen.gpt_params(weights, make_gpt(TINY))
  assert weights == {}
  ours = np.sort(np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(params)]))
  theirs = np.sort(np.concatenate([array.reshape(-1) for array in arrays.values()]))
  np.testing.assert_array_equal(ours, theirs)
  block = params["transformer"]["layers"]["block"]
  np.testing.assert_array_equal(
    block["mlp"]["w13"]["kernel"][1, :, 24:], arrays["layers.1.feed_forward.w3.weight"].T
  )


# -- What is no file of theirs ---------------------------------------------------------------------


def without(name):
  return lambda arrays: arrays.pop(name)


def extra(*names):
  return lambda arrays: arrays.update(dict.fromkeys(names, np.zeros(3, np.float32)))


def reshaped(name, *shape):
  return lambda arrays: arrays.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
  "change, words",
  [
    (without("norm.weight"), "missing weights: norm.weight"),
    (without("tok_embeddings.weight"), "no weight tok_embeddings.weight"),
    (without("layers.1.ffn_norm.weight"), "missing weights: layers.1.ffn_norm.weight"),
    (extra("freqs_cis"), "without a place: freqs_cis"),
    (extra("a", "b", "c", "d", "e"), "without a place: a, b, c and 2 more"),
    (extra("layers.7.norm.weight"), "missing weights: layers.2.attention.wo.weight"),
    (reshaped("output.weight", 5, 17), r"output.weight is \[5, 17\], and \[5, 16\] .*no variant"),
    (reshaped("layers.0.attention.wqkv.weight", 32, 16), r"wqkv.weight is \[32, 16\].*no variant"),
    (reshaped("tok_embeddings.weight", 5, 4, 4), r"tok_embeddings.weight is \[5, 4, 4\]"),
  ],
)
def test_no_gpt_of_theirs(change, words):
  arrays = gpt_arrays(TINY)
  change(arrays)
  weights = in_memory(arrays)
  with pytest.raises(UserError, match=words):
    llamagen.gpt_params(weights, make_gpt(llamagen.find_gpt(weights, num_heads=2)))


def vq_arrays(widths=(32, 64), blocks=1):
  """The weights that tell a tokenizer's size."""
  shapes = {
    "encoder.conv_in.weight": (32, 3, 3, 3),
    "encoder.conv_out.weight": (4, widths[-1], 3, 3),
    "decoder.conv_blocks.0.res.1.conv1.weight": (64, 64, 3, 3),
    "decoder.conv_blocks.0.res.0.conv1.weight": (64, 64, 3, 3),
    "quantize.embedding.weight": (5, 3),
    "quantize.codebook_used": (7,),
  }
  for level, width in enumerate(widths):
    shapes[f"encoder.conv_blocks.{level}.res.0.conv2.weight"] = (width, width, 3, 3)
  return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda arrays: None, "missing weights: decoder.conv_blocks.0.attn.0.k.bias, .* more"),
    (without("encoder.conv_in.weight"), "no weight encoder.conv_in.weight"),
    (reshaped("quantize.embedding.weight", 5), r"quantize.embedding.weight is \[5\]"),
    (reshaped("encoder.conv_blocks.1.res.0.conv2.weight", 48, 32, 3, 3), "level 1 is 48 wide"),
    (reshaped("encoder.conv_in.weight", 16, 3, 3, 3), "first convolution 16: no VQ tokenizer"),
  ],
)
def test_no_tokenizer_of_theirs(change, words):
  arrays = vq_arrays()
  assert llamagen.find_tokenizer(in_memory(arrays)) == TINY_VQ
  change(arrays)
  weights = in_memory(arrays)
  with pytest.raises(UserError, match=words):
    found = llamagen.find_tokenizer(weights)
    config = llamagen.imported_config(TINY, found, 8)
    llamagen.tokenizer_params(weights, builders.make_tokenizer(config))
