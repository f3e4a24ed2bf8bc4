"""Every stage as accelerators run it: float32 where that is meant, bfloat16, fused attention.
Nothing here needs an accelerator."""

import functools

import jax
import jax.export
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.benchmark import common
from imgtx_jax.plan.compile_step import abstract_state
from imgtx_jax.pretrained.layers import convolve
from imgtx_jax.stages import STAGES, build, builders

CLASSES = 3
BATCH = 16
PRODUCTS = ("dot_general", "conv_general_dilated")
# In the text of a program: of each kernel, forward and backward.
FUSED = {
  "cuda": ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"),
  "tpu": ("tpu_custom_call",),
}


def stages(*quick):
  """All stages; those but `quick` are slow: they trace or compile much that others do, too."""
  return [pytest.param(x, marks=[] if x in quick else pytest.mark.slow) for x in STAGES]


@pytest.fixture
def full_config(tiny_config):
  """All that a stage can be trained on is on; the networks have one layer."""
  for network in ("encoder", "generator", "gpt", "discriminator", "style_encoder"):
    tiny_config[network].depth = 1
  tiny_config.generator.taps = ()
  tiny_config.quantizer.entropy = 0.01
  tiny_config.adversary.consistency_weight = 0.1
  tiny_config.tokenizer.update(dict(continuous_prob=0.5, adversarial_adaptive=True))
  tiny_config.tokenizer.adversarial_weight = tiny_config.style.adversarial_weight = 0.1
  tiny_config.tokenizer.lpips_weight = tiny_config.finetune.lpips_weight = 0.1
  return tiny_config


def shapes(config, name):
  """The stage, and the shapes of what its step takes."""
  stage, state, inputs = abstract_state(config, name, CLASSES)
  return stage, state, common.batch_shapes(config, stage, inputs), key_shape()


def key_shape(*shape):
  return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape))


# -- float32 ---------------------------------------------------------------------------------------


def products(jaxpr):
  """The products of a jaxpr, those of its inner ones included."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in PRODUCTS:
      yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from products(inner)


def inexact(function, *arguments):
  """Descriptions of the products with float32 numbers for which nobody asked for a precision."""
  for equation in products(jax.make_jaxpr(function)(*arguments).jaxpr):
    dtypes = [variable.aval.dtype for variable in equation.invars]
    if jnp.float32 in dtypes and equation.params["precision"] is None:
      yield f"{equation}\n{equation.source_info.traceback}"


@pytest.mark.parametrize("name", stages("finetune"))
def test_float32_products_are_float32(full_config, small_vgg, name):
  """By default JAX computes them in bfloat16 on TPUs and in TF32 on GPUs."""
  full_config.dtype, full_config.fd_images = "float32", 4
  if name == "gan":
    full_config.discriminator.update(dict(attention="l2", spectral_norm=True))
  stage, state, batch, key = shapes(full_config, name)
  masked = batch | {"mask": jax.ShapeDtypeStruct((BATCH,), jnp.float32)}
  found = list(inexact(functools.partial(stage.step, axis=None), state, batch, key))
  for evaluator in stage.evaluators().values():
    found += inexact(functools.partial(evaluator.sums, axis=None), state, masked, key)
  assert not found, "\n\n".join(found)


def test_float32_products_of_other_networks_are_float32(tiny_config):
  with tiny_config.unlocked():
    tiny_config.vqgan.update(dict(channels=32, multipliers=(1, 1, 1), z_channels=8))
    tiny_config.update(dict(tokenizer_kind="vqgan", dtype="float32"))
  vqgan = builders.make_tokenizer(tiny_config)
  images = jnp.zeros((1, 16, 16, 3))
  params = jax.eval_shape(vqgan.init, jax.random.key(0), images)
  found = [*inexact(lambda params: vqgan.decode(params, vqgan.encode(params, images)), params)]
  for size, channels in ((1, 8), (3, 3), (3, 8)):  # each has a way of its own
    layer = {"kernel": jnp.zeros((size, size, channels, 4)), "bias": jnp.zeros(4)}
    found += inexact(convolve, layer, jnp.zeros((1, 5, 5, channels)))
  assert not found, "\n\n".join(found)


# -- bfloat16 --------------------------------------------------------------------------------------


def losses(stage, state, batch):
  """The losses of five steps, {name: [5]}."""
  step = jax.jit(functools.partial(stage.step, axis=None))
  found = []
  for _ in range(5):
    state, metrics = step(state, batch, jax.random.key(5))
    found.append(metrics)
  return {key: np.array([x[key] for x in found]) for key in found[0] if "loss" in key}


@pytest.mark.parametrize("name", stages("pretrain"))
def test_bfloat16_trains_as_float32_does(first_states, full_config, smooth_images, small_vgg, name):
  # Adam divides by the gradient's size: a large epsilon keeps it from blowing up the last digits.
  full_config.optimizer.epsilon = 1e-3
  stage, state, _ = first_states(name, full_config, CLASSES, (BATCH, 16, 16, 3))
  full_config.dtype = "bfloat16"
  images = smooth_images(BATCH, 16)
  batch = {"image": images, "label": np.arange(BATCH, dtype=np.int32) % CLASSES}
  batch |= dict.fromkeys(stage.companion_names, images[::-1])
  expected = losses(stage, state, batch)
  found = losses(build(name, full_config, CLASSES), state, batch)
  np.testing.assert_allclose(found["loss"], expected["loss"], rtol=0.03)
  # The parts on average: in a step, rounding may choose another code or noise for an image.
  for key, values in expected.items():
    assert found[key].mean() == pytest.approx(values.mean(), rel=0.03), key


# -- Other platforms -------------------------------------------------------------------------------


def exported(platform, function, *arguments):
  """The text of a program for another platform."""
  # JAX does not promise that another version of it reads cuDNN's calls.
  calls = [jax.export.DisabledSafetyCheck.custom_call(name) for name in FUSED["cuda"]]
  return jax.export.export(function, platforms=[platform], disabled_checks=calls)(
    *arguments
  ).mlir_module()


@pytest.fixture
def long_config(full_config):
  """Enough tokens for the kernels of all platforms; nothing of this size is run."""
  full_config.update(dict(dtype="bfloat16", patch=2))
  full_config.data.image_size, full_config.discriminator.patch = 64, 2
  full_config.style.shift = 8
  return full_config


@pytest.mark.parametrize("name", stages("pretrain"))
def test_steps_are_lowered_with_fused_attention(long_config, small_vgg, name):
  stage, *arguments = shapes(long_config, name)
  step = jax.jit(functools.partial(stage.step, axis=None))
  for platform, calls in FUSED.items():
    text = exported(platform, step, *arguments)
    assert all(call in text for call in calls)


def test_samplers_are_lowered_with_fused_attention(long_config):
  stage, state, *_ = shapes(long_config, "finetune")
  params = jax.eval_shape(stage.current_params, state)
  labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
  draw = jax.jit(functools.partial(stage.sample, options=stage.sampling, prefix=stage.num_codes))
  for platform, calls in FUSED.items():
    assert calls[0] in exported(platform, draw, params, labels, key_shape(BATCH))
