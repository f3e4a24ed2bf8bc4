"""LlamaGen's published weights (arXiv:2406.06525) as parameters of GPT and of the VQ tokenizer.

A size is found from the shapes; then every weight of the file must have its place in the networks
of that size, and every place its weight.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imgtx_jax.config import defaults as configs
from imgtx_jax.errors import UserError
from imgtx_jax.models.vqgan import GROUPS


class GPTVariant(NamedTuple):
  """One size of the GPT; codebook_size is its vocabulary."""

  depth: int
  num_heads: int
  width: int
  mlp_dim: int
  codebook_size: int = 16384
  classes: int = 1000


class TokenizerVariant(NamedTuple):
  """One size of the tokenizer; see config.vqgan and config.quantizer."""

  multipliers: tuple[int, ...]
  channels: int = 128
  z_channels: int = 256
  encoder_blocks: int = 2
  decoder_blocks: int = 3
  codebook_size: int = 16384
  code_dim: int = 8

  @property
  def patch(self):
    """Returns the side in pixels of the patch that one code stands for."""
    return 2 ** (len(self.multipliers) - 1)


GPT_VARIANTS = {
  "B": GPTVariant(12, 12, 768, 2048),
  "L": GPTVariant(24, 16, 1024, 2816),
  "XL": GPTVariant(36, 20, 1280, 3584),
  "XXL": GPTVariant(48, 24, 1536, 4096),
  "3B": GPTVariant(24, 32, 3200, 8704),
}
TOKENIZER_VARIANTS = {
  "VQ-16": TokenizerVariant((1, 1, 2, 2, 4)),
  "VQ-8": TokenizerVariant((1, 2, 2, 4)),
}
# The guidance of the published figures.
_GUIDANCE = {"B": 2.0, "L": 2.0, "XL": 1.75, "XXL": 1.75, "3B": 1.65}
# Where a checkpoint file holds the state dict, the best first.
GPT_WRAPPERS = ("model", "module", "ema")
TOKENIZER_WRAPPERS = ("ema", "model", "module")


def name_of(variant):
  """Returns the published name of a variant, or None."""
  known = GPT_VARIANTS | TOKENIZER_VARIANTS
  return next((name for name, other in known.items() if other == variant), None)


def imported_config(gpt, tokenizer, image_size=256):
  """Returns the whole config of an imported GPTVariant and TokenizerVariant, unlocked.

  Keys that do not describe the imported networks keep their defaults, except for the data and the
  discriminator's patch, which depends on the image size. The caller sets the hyperparameters of
  fine-tuning: its generator starts from random weights (see finetune.adversarial_start_steps).
  """
  config = configs.default()
  config.stages = ("tokenizer", "pretrain", "finetune")
  config.data.source = "tfds:imagenet2012"
  config.data.image_size = image_size
  config.patch = config.discriminator.patch = tokenizer.patch
  config.discriminator.overlap = tokenizer.patch // 2
  config.tokenizer_kind = "vqgan"
  for key in config.vqgan:
    config.vqgan[key] = getattr(tokenizer, key)
  config.quantizer.codebook_size = tokenizer.codebook_size
  config.quantizer.code_dim = tokenizer.code_dim
  for key in ("depth", "num_heads", "width", "mlp_dim"):
    config.gpt[key] = getattr(gpt, key)
  # A ViT-B renders and another judges: one pass beside the GPT's one a code.
  size = dict(width=768, depth=12, num_heads=12)
  config.generator.update(size | dict(taps=(6,), head_channels=32, modulation_dim=768))
  config.discriminator.update(size)
  config.sample.cfg_scale = _GUIDANCE.get(name_of(gpt), config.sample.cfg_scale)
  return config


# -- Sizes out of shapes ---------------------------------------------------------------------------


def find_gpt(weights, num_heads=0):
  """Returns the GPTVariant of {name: Weight}; raises UserError if there is none.

  Shapes do not tell the number of heads: it comes from the published table by the width, or is
  num_heads if that is not 0.
  """
  vocabulary, width = _shape(weights, "tok_embeddings.weight", 2)
  mlp_dim, _ = _shape(weights, "layers.0.feed_forward.w1.weight", 2)
  rows, _ = _shape(weights, "cls_embedding.embedding_table.weight", 2)
  depth = _count(weights, r"layers\.(\d+)\.")
  published = {variant.width: variant.num_heads for variant in GPT_VARIANTS.values()}
  num_heads = num_heads or published.get(width)
  if not num_heads:
    raise UserError(
      f"width {width} is none of the published ones ({', '.join(map(str, published))}), and shapes "
      "do not tell the number of heads; give it as --num_heads"
    )
  if num_heads < 0 or width % (4 * num_heads):
    raise UserError(
      f"width {width} is no multiple of 4 · {num_heads} heads; give other --num_heads"
    )
  return GPTVariant(depth, num_heads, width, mlp_dim, vocabulary, classes=rows - 1)


def find_tokenizer(weights):
  """Returns the TokenizerVariant of {name: Weight}; raises UserError if there is none."""
  channels = _shape(weights, "encoder.conv_in.weight", 4)[0]
  z_channels = _shape(weights, "encoder.conv_out.weight", 4)[0]
  codebook_size, code_dim = _shape(weights, "quantize.embedding.weight", 2)
  multipliers = []
  for level in range(_count(weights, r"encoder\.conv_blocks\.(\d+)\.")):
    width = _shape(weights, f"encoder.conv_blocks.{level}.res.0.conv2.weight", 4)[0]
    if channels % GROUPS or width % channels:
      raise UserError(
        f"level {level} is {width} wide and the first convolution {channels}: no VQ tokenizer has "
        f"this shape (the first is a multiple of {GROUPS}, every level a multiple of the first)"
      )
    multipliers.append(width // channels)
  return TokenizerVariant(
    multipliers=tuple(multipliers),
    channels=channels,
    z_channels=z_channels,
    encoder_blocks=_count(weights, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
    decoder_blocks=_count(weights, r"decoder\.conv_blocks\.0\.res\.(\d+)\."),
    codebook_size=codebook_size,
    code_dim=code_dim,
  )


def _shape(weights, name, dimensions):
  if name not in weights:
    raise UserError(f"no weight {name}: not the file that belongs here")
  shape = weights[name].shape
  if len(shape) != dimensions:
    raise UserError(f"{name} is {list(shape)}, and should have {dimensions} dimensions")
  return shape


def _count(weights, pattern):
  """How many different numbers a pattern finds in the names."""
  return len({match[1] for match in map(re.compile(pattern).match, weights) if match})


# -- Their arrays as ours --------------------------------------------------------------------------

_BLOCK = "transformer/layers/block/"
# Ours: theirs, side by side along our last axis; "{}" stands for the layer.
_GPT_NAMES = {
  "label/embedding": ["cls_embedding.embedding_table.weight"],
  "codes/embedding": ["tok_embeddings.weight"],
  "norm/scale": ["norm.weight"],
  "logits/kernel": ["output.weight"],
  _BLOCK + "attention_norm/scale": ["layers.{}.attention_norm.weight"],
  _BLOCK + "attention/qkv/kernel": ["layers.{}.attention.wqkv.weight"],
  _BLOCK + "attention/out/kernel": ["layers.{}.attention.wo.weight"],
  _BLOCK + "mlp_norm/scale": ["layers.{}.ffn_norm.weight"],
  _BLOCK + "mlp/w13/kernel": [
    "layers.{}.feed_forward.w1.weight",
    "layers.{}.feed_forward.w3.weight",
  ],
  _BLOCK + "mlp/w2/kernel": ["layers.{}.feed_forward.w2.weight"],
}
# What turns a path of ours into a name of theirs, in order.
_TOKENIZER_RENAMES = (
  (r"^encoder/project/", "quant_conv/"),
  (r"^decoder/embed/", "post_quant_conv/"),
  (r"^quantizer/codebook$", "quantize/embedding/weight"),
  (r"/level_(\d+)_(res|attn)_(\d+)/", r"/conv_blocks/\1/\2/\3/"),
  (r"/level_(\d+)_(up|down)sample/", r"/conv_blocks/\1/\2sample/conv/"),
  (r"/mid_(\d)/", r"/mid/\1/"),
  (r"/shortcut/", "/nin_shortcut/"),
  (r"/out/", "/proj_out/"),
  (r"/(kernel|scale)$", "/weight"),
  (r"/", "."),
)


def gpt_params(weights, gpt):
  """Returns parameters of a GPT module from {name: Weight}, which is emptied on the way.

  Matrices become [in, out], layers are stacked, and w1 and w3 are concatenated. Raises UserError if
  a weight is missing, left over, or of another shape.
  """
  codes = jnp.zeros((1, gpt.shape[0] * gpt.shape[1]), jnp.int32)
  tree = jax.eval_shape(gpt.init, jax.random.key(0), codes, jnp.zeros(1, jnp.int32))["params"]
  return _assemble(weights, tree, _GPT_NAMES.__getitem__, pointwise=())


def tokenizer_params(weights, tokenizer):
  """Returns parameters of a convolutional Tokenizer from {name: Weight}, which is emptied.

  Raises UserError as gpt_params does."""
  weights.pop("quantize.codebook_used", None)  # statistics of their training
  side = 2 ** len(tokenizer.encoder.multipliers)
  tree = jax.eval_shape(tokenizer.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
  return _assemble(weights, tree, lambda path: [_their_name(path)], pointwise=(1, 1))


def _their_name(path):
  for pattern, new in _TOKENIZER_RENAMES:
    path = re.sub(pattern, new, path)
  return path


def _assemble(weights, tree, names, pointwise):
  """The tree of shapes filled with theirs.

  names: path of ours → names of theirs. pointwise: what follows [out, in] in the shape of a map
  that is a matrix to us.
  """
  flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
  arrays, places = [], {}
  for key, leaf in flat:
    path = jax.tree_util.keystr(key, simple=True, separator="/")
    arrays.append(np.empty(leaf.shape, np.float32))
    for name, place in _places(arrays[-1], names(path)):
      places[name] = (place, path.endswith("kernel"))
  _check(weights, {n: _their_shape(a.shape, k, pointwise) for n, (a, k) in places.items()})
  for name, (place, is_kernel) in places.items():
    array = weights.pop(name).read()
    if is_kernel and place.ndim == 4:
      array = array.transpose(2, 3, 1, 0)
    elif is_kernel:
      array = array.reshape(array.shape[:2]).T
    place[...] = array
  return jax.tree.unflatten(treedef, arrays)


def _places(array, names):
  """(name, view of the part of our array that it fills) for each of their names."""
  for name, part in zip(names, np.split(array, len(names), axis=-1), strict=True):
    if "{}" in name:
      yield from ((name.format(i), layer) for i, layer in enumerate(part))
    else:
      yield name, part


def _their_shape(shape, is_kernel, pointwise):
  if is_kernel and len(shape) == 4:
    return (shape[3], shape[2], shape[0], shape[1])
  return (*shape[::-1], *pointwise) if is_kernel else shape


def _check(weights, wanted):
  """UserError unless the weights are those wanted, {name: shape}."""
  missing = [name for name in wanted if name not in weights]
  if missing:
    raise UserError(f"missing weights: {_some(missing)}")
  left_over = [name for name in weights if name not in wanted]
  if left_over:
    raise UserError(f"weights without a place: {_some(left_over)}")
  for name, shape in wanted.items():
    if weights[name].shape != shape:
      raise UserError(
        f"{name} is {list(weights[name].shape)}, and {list(shape)} in a network of the size that "
        "the other weights tell: the file fits no variant"
      )


def _some(names):
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return ", ".join(sorted(names)[:3]) + more
