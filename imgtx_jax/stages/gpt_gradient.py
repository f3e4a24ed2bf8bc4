"""What of the GPT the image's losses train: config.finetune.gpt_trained."""

import jax
import jax.numpy as jnp

from imgtx_jax.config import defaults as configs


def gpt_gradient(trained, pull, of_logits, of_states):
  """Gradients of the GPT from the cotangents of its logits and of its condition vectors.

  The logits' loss trains all of it; what comes through the condition vectors, the part that
  `trained` (config.finetune.gpt_trained) names. pull: as jax.vjp gives it, (logits, states) →
  (tree,).
  """
  if trained == "all":
    return pull((of_logits, of_states))[0]
  (grads,) = pull((of_logits, jnp.zeros_like(of_states)))
  last = configs.last_layers(trained)
  if not last:
    return grads
  (of_image,) = pull((jnp.zeros_like(of_logits), of_states))
  blocks = jax.tree.map(
    lambda to, g: to.at[-last:].add(g[-last:]),  # the layer's axis is the first
    grads["transformer"]["layers"],
    of_image["transformer"]["layers"],
  )
  norm = jax.tree.map(jnp.add, grads["norm"], of_image["norm"])
  return grads | {"transformer": {"layers": blocks}, "norm": norm}
