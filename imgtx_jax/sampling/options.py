"""Options of sampling images: config.sample and the flags of the commands that sample."""

import dataclasses

from imgtx_jax.errors import UserError
from imgtx_jax.option_fields import option

GUIDANCE = ("constant", "interval", "linear", "power-cosine")
_CODES, _NOISE, _VECTORS = "codes", "noise", "condition vectors"


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
  """Options of sampling images: codes from the GPT, the generator's noise and class, refinement.

  cfg_scale s: the logits are u + s (c − u), u for the null class and c for the class
  (arXiv:2207.12598); 1 is no guidance. guidance: s as a function of the code t of N:
    constant       s
    interval       s for cfg_start ≤ t/N < cfg_stop, else 1 (arXiv:2404.07724)
    linear         from 1 at the first code to s at the last
    power-cosine   1 + (s − 1)(1 − cos(π (t/(N − 1))^cfg_power)) / 2 (arXiv:2411.00776)
  Then come temperature (0 takes the likeliest code), top_k (0: all) and top_p (1: all).
  truncation ψ: the generator's noise is ψ·z with z standard normal (after arXiv:1809.11096); 1
  changes nothing, 0 gives one image per label. The noise is scaled, not cut off, so that a z gives
  similar images at all ψ.
  w_scale s: guidance in modulation space, w = w₀ + s (w_label − w₀), where w₀ is the mapping of the
  same noise with the null label; 1 changes nothing.
  truncation and w_scale trade diversity for fidelity.
  refine_*: gradient ascent of condition vectors on the discriminator's score; see refinement.py.
  """

  cfg_scale: float = option(1.0, "Classifier-free guidance: 1 is none.", 0, 100, _CODES)
  guidance: str = option("constant", "Guidance along the codes", needs=_CODES)
  cfg_start: float = option(
    0.0, "Guidance interval: from this fraction of the codes.", 0, 1, _CODES
  )
  cfg_stop: float = option(
    1.0, "Guidance interval: up to this fraction of the codes.", 0, 1, _CODES
  )
  cfg_power: float = option(2.75, "The power of power-cosine guidance.", 0, 100, _CODES)
  temperature: float = option(
    1.0, "Of the codes' distribution; 0 draws the likeliest code.", 0, 100, _CODES
  )
  top_k: int = option(0, "Draw among this many of the likeliest codes; 0: all.", 0, None, _CODES)
  top_p: float = option(
    1.0, "Draw among the likeliest codes of this total probability.", 0, 1, _CODES
  )
  truncation: float = option(1.0, "Scales the generator's noise: 1 is none.", 0, 1, _NOISE)
  w_scale: float = option(1.0, "Guidance in modulation space: 1 is none.", 0, 100, _NOISE)
  refine_steps: int = option(
    0, "Gradient steps up the discriminator's logit: 0 is none.", 0, 1000, _VECTORS
  )
  refine_rate: float = option(
    0.05, "Their length, relative to the condition vectors.", 0, 1, _VECTORS
  )
  refine_radius: float = option(
    0.2, "How far they may move a vector, relative to its norm.", 0, 1, _VECTORS
  )


FIELDS = {field.name: field for field in dataclasses.fields(SamplingOptions)}


def with_option(options, name, value):
  """Returns the options with another value of one key of config.sample."""
  return dataclasses.replace(options, **{name: type(getattr(options, name))(value)})


def check_flag(name, value, stage):
  """Raises UserError if the flag --name=value does not matter to the stage.

  The field's metadata and stage.draws_with decide.
  """
  needed = FIELDS[name].metadata["needs"]
  if needed not in stage.draws_with:
    raise UserError(
      f"--{name}={value} is about {needed}, and the {stage.name} stage of this work directory "
      f"draws with {' and '.join(stage.draws_with)} only; leave it out"
    )
