"""From condition vectors to images: the GPT, the generator and its mapping, as fine-tuning trains
them and sampling uses them. The dial k (prefix) is how many codes the generator is shown."""

import dataclasses

import jax
import jax.numpy as jnp

from imgtx_jax import rng
from imgtx_jax.models import layers
from imgtx_jax.models.generator import Adapter, Generator, Mapping
from imgtx_jax.models.gpt import GPT
from imgtx_jax.models.quantizer import FiniteScalarQuantizer, VectorQuantizer
from imgtx_jax.sampling import autoregressive, refinement


@dataclasses.dataclass(frozen=True)
class Renderer:
  """Pure functions of params = {"gpt", "generator": {"generator", "mapping"}}; with an adapter, of
  {"generator": {…, "adapter"}} too.

  A task is a dict: codes int [B, N] in raster order, label int [B] (`classes` is the null class),
  prefix int [B], noise [B, Z].

  memory: what the generator attends to. "states": the GPT's that predict codes 1 … min(k + 1, N);
  "class": the first of them, which has seen the class only; "none": nothing, and the generator has
  no cross-attention; "untrained": the states of another GPT, params["generator"]["gpt"].
  """

  gpt: GPT
  generator: Generator
  mapping: Mapping
  quantizer: VectorQuantizer | FiniteScalarQuantizer
  noise_dim: int
  memory: str = "states"
  adapter: Adapter | None = None

  @property
  def order(self):
    """Entry t is the raster index of the t-th code; int [N]."""
    return self.gpt.code_order()

  @property
  def num_codes(self):
    """N, the codes of an image."""
    return self.gpt.shape[0] * self.gpt.shape[1]

  def init_generator(self, key, decoder, codebook, code_shares):
    """The generator with the decoder's weights by name and fresh branches, and the mapping.

    decoder: a Generator's parameters, or None where the tokenizer's decoder is of another kind:
    then all of the generator is fresh.
    Where no code is known, it starts near the commonest code of the data (code_shares [V]).
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
    # Near the commonest code the decoder knows what to draw; between codes it draws odd patterns.
    common = vectors[jnp.argmax(code_shares)]
    if_equal = jnp.mean(vectors, axis=0)  # imported codes: how often they occur is not known
    common = jnp.where(jnp.ptp(code_shares) > 0, common, if_equal)
    generator["mask_token"] = common + 0.1 * generator["mask_token"]
    params = {"generator": generator, "mapping": mapping["params"]}
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
    """Which raster places the first k codes fill: prefix int [B] → bool [B, N]."""
    rank = jnp.zeros(self.num_codes, jnp.int32).at[self.order].set(jnp.arange(self.num_codes))
    return rank < prefix[:, None]

  def known_pixels(self, prefix):
    """1 on the patches of known codes, else 0: prefix int [B] → float32 [B, H, W, 1]."""
    patch = self.generator.patch
    known = self.known(prefix).astype(jnp.float32)[..., None]
    return layers.unpatchify(jnp.repeat(known, patch**2, axis=-1), patch, self.gpt.shape)

  def forward(self, params, codebook, task):
    """Image [B, H, W, 3], conditioned images and the GPT's logits [B, N, V] for a task."""
    logits, states = self.condition(params["gpt"], task)
    image, taps = self.render_task(params["generator"], codebook, task, states)
    return image, taps, logits

  def condition(self, params, task):
    """The GPT's logits [B, N, V] and condition vectors [B, N, D] for a task."""
    return self.gpt.apply({"params": params}, task["codes"], task["label"])

  def render_task(self, params, codebook, task, states):
    """Image [B, H, W, 3] and conditioned images for a task and its condition vectors."""
    states = self._remember(params, task["codes"], task["label"], states)
    # States 0 … min(k + 1, N) − 1 have seen at most the first k codes.
    visible = jnp.minimum(task["prefix"] + 1, self.num_codes)
    seen = None if states is None else jnp.arange(states.shape[1]) < visible[:, None]
    image, taps = self.render(
      params,
      codebook,
      task["codes"],
      self.known(task["prefix"]),
      states,
      task["noise"],
      task["label"],
      memory_mask=seen,
    )
    return image, [tap for tap, _ in taps]

  def _remember(self, params, codes, labels, states):
    """What `memory` says of the GPT's states [B, M, D] on codes int [B, N]: vectors, or None.

    params: of the generator."""
    if self.memory == "none":
      return None
    if self.memory == "class":
      return states[:, :1]
    if self.memory == "untrained":
      _, others = self.gpt.apply({"params": params["gpt"]}, codes, labels)
      return others[:, : states.shape[1]]
    return states

  def render(
    self, params, codebook, codes, known, states, noise, labels, *, memory_mask=None, w_scale=1.0
  ):
    """One pass of the generator on codes [B, N] (those not known [B, N] are ignored), condition
    vectors [B, M, D] (or None), noise [B, Z] and labels int [B] → image and taps (see
    Generator)."""
    if self.adapter and states is not None:
      states = self.adapter.apply({"params": params["adapter"]}, states)
    modulation = self.mapping.modulation(params["mapping"], noise, labels, w_scale)
    grid = self.quantizer.dequantize(codebook, codes)
    return self.generator.apply(
      {"params": params["generator"]},
      jnp.where(known[..., None], grid, 0.0),
      states,
      modulation,
      known=known,
      memory_mask=memory_mask,
      memory_coords=None if states is None else self.gpt.coords()[: states.shape[1]],
    )

  def sample(self, params, labels, keys, options, *, prefix, given=None, score=None):
    """Images [B, H, W, 3] of labels int [B], codes int [B, N] in raster order, and taps.

    The first `prefix` codes are sampled from the GPT, and rendered in one pass. keys [B]: an image
    depends on its own key. params also has "quantizer"; given: see decode.sample_codes. score: what
    options.refinement climbs, images [B, H, W, 3] → [B].
    """
    codes, states = autoregressive.sample_codes(
      self.gpt,
      params["gpt"],
      labels,
      keys,
      steps=min(prefix + 1, self.num_codes),
      options=options.codes,
      given=given,
    )
    codes, known = autoregressive.to_raster(codes[:, :prefix], self.order, self.num_codes)
    states = self._remember(params["generator"], codes, labels, states)
    # sample_codes folds in positions 0 … N − 1: N is free for the noise.
    noise_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, self.num_codes)
    noise = jax.vmap(lambda k: jax.random.normal(k, (self.noise_dim,)))(noise_keys)

    def show(states):
      return self.render(
        params["generator"],
        params["quantizer"],
        codes,
        jnp.broadcast_to(known, codes.shape),
        states,
        options.truncation * noise,
        labels,
        w_scale=options.w_scale,
      )

    if options.refinement.steps and states is not None:
      states = refinement.refine(lambda x: score(show(x)[0]), states, options.refinement)
    image, taps = show(states)
    return image, codes, taps


def copy_by_name(target, source):
  """target with every leaf of source in the place of the same name.

  Leaves that only target has stay; a leaf of source without a home, or of another shape, raises.
  """
  if not isinstance(source, dict):
    if target is None or target.shape != source.shape:
      raise ValueError(f"a weight of shape {source.shape} has no home")
    return source
  missing = sorted(set(source) - set(target))
  if missing:
    raise ValueError(f"weights without a home: {missing}")
  return target | {name: copy_by_name(target[name], value) for name, value in source.items()}
