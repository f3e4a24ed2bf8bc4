"""Options of sampling images: config.sample and the flags of the sample command."""

import dataclasses

from imgtx_jax.errors import UserError
from imgtx_jax.sampling.autoregressive import Decoding
from imgtx_jax.sampling.refinement import Refinement

# Numbers of config.sample: name → (minimum, maximum, what a stage must sample for it to matter).
RANGES = {
  "cfg_scale": (0, 100, "codes"),
  "cfg_start": (0, 1, "codes"),
  "cfg_stop": (0, 1, "codes"),
  "cfg_power": (0, 100, "codes"),
  "temperature": (0, 100, "codes"),
  "top_k": (0, None, "codes"),
  "top_p": (0, 1, "codes"),
  "truncation": (0, 1, "noise"),
  "w_scale": (0, 100, "noise"),
  "refine_steps": (0, 1000, "condition vectors"),
  "refine_rate": (0, 1, "condition vectors"),
  "refine_radius": (0, 1, "condition vectors"),
}


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Options of sampling images.

  codes: Decoding of the GPT.
  truncation ψ: the generator's noise is ψ·z with z standard normal (after arXiv:1809.11096); 1
  changes nothing, 0 gives one image per label. The noise is scaled, not cut off, so that a z gives
  similar images at all ψ.
  w_scale s: guidance in modulation space, w = w₀ + s (w_label − w₀), where w₀ is the mapping of the
  same noise with the null label; 1 changes nothing.
  truncation and w_scale trade diversity for fidelity.
  refinement: of the condition vectors; see refinement.py.
  """

  codes: Decoding = Decoding()
  truncation: float = 1.0
  w_scale: float = 1.0
  refinement: Refinement = Refinement()


def make_sampling(values):
  """Builds Sampling from a flat dict with the keys of config.sample."""
  values = dict(values)
  names = [field.name for field in dataclasses.fields(Refinement)]
  refinement = Refinement(**{name: values.pop(f"refine_{name}") for name in names})
  codes = Decoding(**{f.name: values.pop(f.name) for f in dataclasses.fields(Decoding)})
  return Sampling(codes=codes, refinement=refinement, **values)


def as_values(options):
  """Returns the flat dict that make_sampling takes."""
  values = dataclasses.asdict(options)
  refinement = {f"refine_{name}": value for name, value in values.pop("refinement").items()}
  return values.pop("codes") | values | refinement


def with_option(options, name, value):
  """Returns the options with another value of one key of config.sample."""
  values = as_values(options)
  return make_sampling(values | {name: type(values[name])(value)})


def check_flag(name, value, stage):
  """Raises UserError if the flag --name=value does not matter to the stage.

  RANGES and stage.draws_with decide.
  """
  needed = RANGES[name][2] if name in RANGES else "codes"
  if needed not in stage.draws_with:
    raise UserError(
      f"--{name}={value} is about {needed}, and the {stage.name} stage of this work directory "
      f"draws with {' and '.join(stage.draws_with)} only; leave it out"
    )
