"""Images from the GPT's condition vectors: the networks that fine-tuning trains and sampling uses.

The dial k (prefix) is how many codes the generator is shown.
"""

import dataclasses

import jax
import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.models import layers
from imgtx_jax.models.code_predictor import CodePredictor
from imgtx_jax.models.generator import Adapter, Generator, Mapping
from imgtx_jax.models.gpt import GPT
from imgtx_jax.models.quantizer import VectorQuantizer
from imgtx_jax.sampling import autoregressive, refinement


@dataclasses.dataclass(frozen=True)
class ConditionalGenerator:
  """The GPT, the generator that renders its condition vectors, and the mapping of noise and class.

  Its methods are pure functions of params = {"gpt", "generator": {"generator", "mapping"}}; params
  of the generator also hold "adapter" with an adapter, and "gpt" where memory is "untrained".

  What is to be rendered is a dict `inputs`: codes int [B, N] in raster order, label int [B]
  (`classes` is the null class), prefix int [B], noise [B, Z]; with a predictor also uniforms
  [B, N] in raster order, from which it guesses the codes beyond the prefix: they may be left out
  where no prefix is below N.

  memory: what the generator attends to. "states": the GPT's states that predict codes 1 …
  min(k + 1, N); "class": the first of them, which has seen the class only; "none": nothing, and the
  generator has no cross-attention; "untrained": the states of a GPT that starts from random
  weights and is trained as a part of the generator.
  """

  gpt: GPT
  generator: Generator
  mapping: Mapping
  quantizer: VectorQuantizer
  noise_dim: int
  memory: str = "states"
  adapter: Adapter | None = None
  predictor: CodePredictor | None = None

  @property
  def order(self):
    """Returns the raster index of the t-th code; int [N]."""
    return self.gpt.code_order()

  @property
  def num_codes(self):
    """Returns N, the number of codes of an image."""
    return self.gpt.shape[0] * self.gpt.shape[1]

  def init_generator(self, key, decoder, codebook, code_shares):
    """Returns the initial params["generator"] of the class.

    The mask token, which stands where no code is known, starts near the most frequent code.

    Args:
      key: random key.
      decoder: parameters of a Generator, which are copied by name; None where the tokenizer's
        decoder is of another kind, and all weights are random.
      codebook: the quantizer's parameters.
      code_shares: [V], the frequencies of the codes in the data.
    """
    noise = jnp.zeros((1, self.noise_dim))
    mapping = self.mapping.init(rng.stream(key, "init_mapping", 0), noise, jnp.zeros(1, jnp.int32))
    fresh = self.generator.init(
      rng.stream(key, "init_generator", 0),
      jnp.zeros((1, self.num_codes, self.quantizer.code_dim)),
      None if self.memory == "none" else jnp.zeros((1, self.num_codes, self.gpt.width)),
      jnp.zeros((1, self.mapping.width)),
      memory_coords=self.gpt.coords(),
    )
    generator = dict(fresh["params"]) if decoder is None else copy_by_name(fresh["params"], decoder)
    vectors = self.quantizer.dequantize(codebook, jnp.arange(self.quantizer.codebook_size))
    params = {"generator": generator, "mapping": mapping["params"]}
    if self.predictor:
      nothing = jnp.zeros((1, self.num_codes), jnp.int32)
      predictor = self.predictor.init(
        rng.stream(key, "init_predictor", 0),
        nothing.astype(jnp.float32),
        nothing,
        nothing > 0,
        jnp.zeros(1, jnp.int32),
      )
      params["predictor"] = predictor["params"]
    else:
      # Near the commonest code the decoder knows what to draw; between codes it draws odd patterns.
      common = vectors[jnp.argmax(code_shares)]
      if_equal = jnp.mean(vectors, axis=0)  # imported codes: how often they occur is not known
      common = jnp.where(jnp.ptp(code_shares) > 0, common, if_equal)
      generator["mask_token"] = common + 0.1 * generator["mask_token"]
    if self.memory == "untrained":
      codes = jnp.zeros((1, self.num_codes), jnp.int32)
      gpt_key = rng.stream(key, "init_memory", 0)
      params["gpt"] = self.gpt.init(gpt_key, codes, jnp.zeros(1, jnp.int32))["params"]
    if self.adapter:
      states = jnp.zeros((1, 1, self.gpt.width))
      adapter = self.adapter.init(rng.stream(key, "init_adapter", 0), states)
      params["adapter"] = adapter["params"]
    return params

  def known(self, prefix):
    """Returns which raster places the first k codes fill: prefix int [B] → bool [B, N]."""
    rank = jnp.zeros(self.num_codes, jnp.int32).at[self.order].set(jnp.arange(self.num_codes))
    return rank < prefix[:, None]

  def known_pixels(self, prefix):
    """Returns 1 on the patches of known codes, else 0: prefix int [B] → float32 [B, H, W, 1]."""
    patch = self.generator.patch
    known = self.known(prefix).astype(jnp.float32)[..., None]
    return layers.unpatchify(jnp.repeat(known, patch**2, axis=-1), patch, self.gpt.shape)

  def condition(self, params, inputs):
    """Returns the GPT's logits [B, N, V] and condition vectors [B, N, D] for the codes and labels
    of inputs; params: the GPT's."""
    return self.gpt.apply({"params": params}, inputs["codes"], inputs["label"])

  def render(self, params, codebook, inputs, states, *, w_scale=1.0, refine=None):
    """Renders inputs in one pass of the generator.

    Args:
      params: the generator's, params["generator"] above.
      codebook: the quantizer's parameters.
      inputs: see the class; codes beyond the prefix do not matter.
      states: the GPT's condition vectors [B, M, D], M ≥ min(k + 1, N); those beyond are masked.
      w_scale: see Mapping.modulation.
      refine: optional, (render, vectors) → better vectors, where render(vectors) returns what this
        method does; called if the generator attends to vectors.

    Returns the image [B, H, W, 3] and the taps of Generator.
    """
    vectors = self._memory(params, inputs, states)
    known = self.known(inputs["prefix"])
    modulation = self.mapping.modulation(
      params["mapping"], inputs["noise"], inputs["label"], w_scale
    )
    if self.predictor and "uniforms" in inputs:
      guesses = jnp.argmax(self.predict(params, inputs, known), axis=-1)
      codes = jnp.where(known, inputs["codes"], guesses)
      grid = self.quantizer.dequantize(codebook, codes)  # [B, N, C]
    else:
      grid = jnp.where(known[..., None], self.quantizer.dequantize(codebook, inputs["codes"]), 0.0)
    # States 0 … min(k + 1, N) − 1 have seen at most the first k codes.
    visible = jnp.minimum(inputs["prefix"] + 1, self.num_codes)

    def generate(vectors):
      options = {}
      if vectors is not None:
        count = vectors.shape[1]
        options["memory_length"] = jnp.minimum(visible, count)
        options["memory_coords"] = self.gpt.coords()[:count]
        if self.adapter:
          vectors = self.adapter.apply({"params": params["adapter"]}, vectors)
      return self.generator.apply(
        {"params": params["generator"]}, grid, vectors, modulation, known=known, **options
      )

    if refine and vectors is not None:
      vectors = refine(generate, vectors)
    return generate(vectors)

  def predict(self, params, inputs, known):
    """Returns the predictor's logits [B, N, V] of all codes, from the known ones, bool [B, N], and
    inputs["uniforms"]; params: the generator's."""
    codes = jnp.where(known, inputs["codes"], 0)
    return self.predictor.apply(
      {"params": params["predictor"]}, inputs["uniforms"], codes, known, inputs["label"]
    )

  def _memory(self, params, inputs, states):
    """Condition vectors [B, M, D] that `memory` names, or None; arguments as render takes them."""
    if self.memory == "none":
      return None
    if self.memory == "class":
      return states[:, :1]
    if self.memory == "untrained":
      return self.condition(params["gpt"], inputs)[1][:, : states.shape[1]]
    return states

  def sample(self, params, labels, keys, options, prefixes, *, given=None, score=None):
    """Samples codes from the GPT, once, and renders each of several prefixes of them in one pass.

    Args:
      params: those of the class, and "quantizer".
      labels: int [B]. keys: [B], an image depends on its own key.
      options: SamplingOptions.
      prefixes: numbers of codes that the generator is shown.
      given: codes to start from, see autoregressive.sample_codes.
      score: images [B, H, W, 3] → [B], what options.refine_steps climb.

    Returns of each prefix (images [B, H, W, 3], codes int [B, N] in raster order, the taps of
    Generator).
    """
    codes, states = autoregressive.sample_codes(
      self.gpt,
      params["gpt"],
      labels,
      keys,
      steps=min(max(prefixes) + 1, self.num_codes),
      options=options,
      path=self.quantizer.path(params["quantizer"]),
      given=given,
    )
    uniforms = autoregressive.uniforms(keys, jnp.arange(self.num_codes))
    uniforms = jnp.zeros_like(uniforms).at[:, self.order].set(uniforms)  # in raster order
    # sample_codes folds in positions 0 … N − 1: N is free for the noise.
    noise_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, self.num_codes)
    noise = jax.vmap(lambda k: jax.random.normal(k, (self.noise_dim,)))(noise_keys)

    def refine(render, vectors):
      return refinement.refine(lambda x: score(render(x)[0]), vectors, options)

    drawn = []
    for prefix in prefixes:
      known, _ = autoregressive.to_raster(codes[:, :prefix], self.order, self.num_codes)
      guessed = {"uniforms": uniforms} if prefix < self.num_codes else {}
      image, taps = self.render(
        params["generator"],
        params["quantizer"],
        {
          "codes": known,
          "label": labels,
          "prefix": jnp.full(len(labels), prefix),
          "noise": options.truncation * noise,
        }
        | guessed,
        states[:, : min(prefix + 1, self.num_codes)],
        w_scale=options.w_scale,
        refine=refine if options.refine_steps else None,
      )
      drawn.append((image, known, taps))
    return drawn


def copy_by_name(target, source):
  """Returns the tree target with every leaf of source in the place of the same name.

  Leaves that only target has stay; a leaf of source that target lacks, or has in another shape,
  raises ValueError.
  """
  if not isinstance(source, dict):
    if target is None or target.shape != source.shape:
      raise ValueError(f"a weight of shape {source.shape} has no home")
    return source
  missing = sorted(set(source) - set(target))
  if missing:
    raise ValueError(f"weights without a home: {missing}")
  return target | {name: copy_by_name(target[name], value) for name, value in source.items()}
