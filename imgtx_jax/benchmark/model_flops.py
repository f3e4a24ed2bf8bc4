"""Model FLOPs of a function: its matrix products and convolutions, counted on the jaxpr.

XLA's cost analysis counts the body of a loop once, however often it runs; here a scan's body counts
as often as the scan is long. A multiplication and an addition are two FLOPs; what is not a product
counts nothing. Loops without a known length count once, of a cond its costliest branch. Kernels
(Pallas, cuDNN) are not looked into: count a network on plain XLA attention, and without remat, or
recomputed products count again.
"""

import functools
import math

import jax

from imgtx_jax.benchmark import common
from imgtx_jax.stages import build


def count_step(config, name, classes, state, inputs=None):
  """Returns the model FLOPs of a training step of the stage `name` on its global batch; an int.

  state: shapes of its TrainState; inputs: see common.batch_shapes. Rematerialisation and attention
  kernels change how a step runs, not what the model is: both are off here.
  """
  plain = config.copy_and_resolve_references()
  with plain.unlocked():
    plain.update(remat="none", attention_kernel="xla")
  stage = build(name, plain, classes)
  step = functools.partial(stage.step, axis=None)
  return count(step, state, common.batch_shapes(config, stage, inputs), jax.random.key(0))


def count(fn, *args):
  """Returns the FLOPs of fn(*args), an int; args are arrays or ShapeDtypeStructs."""
  return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr):
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
  name = equation.primitive.name
  if name == "dot_general":
    return _of_dot(equation)
  if name == "conv_general_dilated":
    return _of_convolution(equation)
  inner = [_of_jaxpr(jaxpr) for jaxpr in _inner_jaxprs(equation.params)]
  if name == "cond":
    return max(inner)
  return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _inner_jaxprs(params):
  """The jaxprs among an equation's parameters: of jit, remat, scan, while, cond, custom_vjp …"""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      jaxpr = getattr(item, "jaxpr", item)  # a closed jaxpr holds one
      if hasattr(jaxpr, "eqns"):
        yield jaxpr


def _of_dot(equation):
  (contracted, _), _ = equation.params["dimension_numbers"]
  shape = equation.invars[0].aval.shape
  return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _of_convolution(equation):
  # Every output takes one product with each weight of its own output feature. A dilated input (the
  # gradient of a stride) is mostly holes, which are nobody's model.
  kernel = equation.invars[1].aval
  features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
  dense = 2 * equation.outvars[0].aval.size * kernel.size // features
  return dense // math.prod(equation.params["lhs_dilation"])
