"""The discriminator's turn: schedules, lazy penalties, levels, the signs of collapse, a toy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imgtx_jax.losses.adversarial import AdversarialOptions
from imgtx_jax.models.discriminator import Discriminator
from imgtx_jax.models.transformer import BlockConfig
from imgtx_jax.stages import STAGES, adversarial
from imgtx_jax.training import optimizer
from imgtx_jax.training.optimizer import OptimizerOptions
from imgtx_jax.training.train_state import TrainState

BLOCK = BlockConfig(num_heads=2, mlp_dim=32, qk_norm=True, layer_scale=0.1)
LABELS = np.array([0, 1, 0, 1, 0, 1, 0, 1], np.int32)
INDEX = jnp.arange(8)
KEY = jax.random.key(0)
# Stages with an adversary, and a network of theirs.
AVERAGED = (
  ("tokenizer", "encoder"),
  ("finetune", "generator"),
  ("gan", "generator"),
  ("style", "stylist"),
)


def make(taps=(), steps=100, **changes):
  return adversarial.Adversary(
    discriminator=Discriminator(patch=4, width=16, depth=1, classes=2, block=BLOCK),
    tx=optimizer.make(OptimizerOptions(2e-4, beta1=0.0, beta2=0.99, clip_norm=1.0), steps),
    options=AdversarialOptions(**changes),
    steps=steps,
    levels=len(taps),
  )


def waves(seed, channels=3):
  return jax.random.uniform(jax.random.key(seed), (8, 8, 8, channels), minval=-1)


REAL, FAKE = waves(1), waves(2)


def loss_and_grads(player, params, count=0):
  draws = adversarial.make_draws(KEY, 0, INDEX)
  fn = jax.jit(jax.value_and_grad(player.discriminator_loss, has_aux=True))
  return fn(params, REAL, FAKE, LABELS, draws, count)


def test_penalty_weight_falls_by_half_a_cosine():
  player = make(steps=200, penalty_weight=1.0, penalty_weight_end=0.1, penalty_anneal_fraction=0.5)
  found = [float(player.penalty_weight_at(count)) for count in (0, 50, 100, 200)]
  np.testing.assert_allclose(found, [1.0, 0.55, 0.1, 0.1], rtol=1e-5)
  assert make(penalty_weight=0.3).penalty_weight_at(7) == 0.3


def test_lazy_penalties_weigh_as_much_and_cost_nothing_between():
  eager, lazy = make(), make(penalty_every=4)
  params, _ = eager.init(KEY, REAL)
  _, always = loss_and_grads(eager, params)[0]
  (_, due), grads = loss_and_grads(lazy, params, 8)
  (loss, between), other = loss_and_grads(lazy, params, 9)
  np.testing.assert_allclose(due["r1"], 4 * always["r1"], rtol=1e-5)
  assert between["r1"] == between["r2"] == 0
  free = make(penalty_weight=0.0)
  (plain, _), plain_grads = loss_and_grads(free, params)
  np.testing.assert_allclose(loss, plain, rtol=1e-6)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), other, plain_grads
  )
  assert float(optax.tree.norm(optax.tree.sub(grads, other))) > 1e-4
  # One branch of every cond has no products: the penalty is left out, not multiplied by 0.
  loss_of = lambda p, count: lazy.discriminator_loss(  # noqa: E731
    p, REAL, FAKE, LABELS, adversarial.make_draws(KEY, 0, INDEX), count
  )
  text = jax.make_jaxpr(loss_of)(params, jnp.int32(1))
  conds = [e for e in text.jaxpr.eqns if e.primitive.name == "cond"]
  counts = [[str(b).count("dot_general") for b in e.params["branches"]] for e in conds]
  assert any(min(c) == 0 < max(c) for c in counts)


def test_the_real_half_is_not_differentiated_in_the_generators_loss():
  player = make()
  params, _ = player.init(KEY, REAL)
  draws = adversarial.make_draws(KEY, 0, INDEX)

  def flops(fn):
    return jax.jit(fn).lower(FAKE).compile().cost_analysis()["flops"]

  both = flops(lambda x: player.generator_loss(params, REAL, x, LABELS, draws)[0])
  loss_fn = jax.grad(lambda x: player.generator_loss(params, REAL, x, LABELS, draws)[0])
  # Backward to the images costs as much as forward, of one half of two.
  assert flops(loss_fn) < 1.8 * both


def test_consistency_is_zero_without_augmentation_and_counts_with_it():
  params, _ = make().init(KEY, REAL)
  assert "consistency" not in loss_and_grads(make(), params)[0][1]
  (total, parts), _ = loss_and_grads(make(consistency_weight=10.0), params)
  (plain, _), _ = loss_and_grads(make(), params)
  assert parts["consistency"] > 0
  np.testing.assert_allclose(total - plain, 10.0 * parts["consistency"], rtol=1e-3)
  (_, same), _ = loss_and_grads(make(consistency_weight=10.0, augment=()), params)
  assert same["consistency"] < 1e-9


def test_an_update_moves_it_by_one_step():
  player = make()
  params, opt_state = player.init(KEY, REAL)
  state = TrainState(jnp.int32(0), {}, {}, {}, {}, {})
  run = jax.jit(lambda p, o: player.update(p, o, REAL, FAKE, LABELS, KEY, INDEX, state, None))
  after, opt_state, metrics = run(params, opt_state)
  assert float(optax.tree.norm(optax.tree.sub(after, params))) > 0
  assert all(m.shape == () for m in metrics.values())
  (count,) = {int(x) for x in jax.tree.leaves(opt_state) if x.dtype == jnp.int32}
  assert count == 1


def test_levels_share_augmentation_and_noise_on_both_sides():
  player = make(taps=(1, 2))
  assert player.level_sigmas == (0.5, 0.25)
  params, _ = player.init(KEY, REAL)
  assert params["embed"]["kernel"].shape[0] == 4 * 4 * 9
  draws = adversarial.make_draws(KEY, 0, INDEX)
  real = player._present(player.repeat(REAL), draws)
  fake = player._present(player.show(FAKE, [FAKE, FAKE]), draws)
  # Less the augmented image, what is left is the noise of each level: the same on both sides.
  noises = [x[..., 3:] - jnp.tile(x[..., :3], (1, 1, 1, 2)) for x in (real, fake)]
  np.testing.assert_allclose(*noises, atol=1e-5)
  np.testing.assert_allclose(
    [noises[0][..., :3].std(), noises[0][..., 3:].std()], [0.5, 0.25], rtol=0.1
  )
  plain = make()._present(REAL, draws)
  np.testing.assert_allclose(real[..., :3], plain, atol=1e-6)
  assert player.verdict(params, REAL, LABELS).logit.shape == (8,)


def test_variety_is_that_of_the_examples_that_count():
  weight = jnp.array([1.0] * 4 + [0.0] * 4)
  ratio = lambda fake, w: float(adversarial.variety(REAL, fake, w, None))  # noqa: E731
  assert ratio(REAL, weight) == pytest.approx(1.0)
  assert ratio(REAL * 0.5, weight) == pytest.approx(0.5, rel=1e-3)
  alike = REAL.at[:4].set(REAL[:1])
  assert ratio(alike, weight) < 0.01 < ratio(alike, jnp.ones(8))
  assert ratio(alike, jnp.zeros(8)) == pytest.approx(1.0)


def test_signs_of_collapse():
  player = make()
  fine = {"logit_margin": 3.0, "discriminator_loss": 0.2, "variety": 0.5}
  assert player.guard(fine) is None
  won = player.guard(fine | {"logit_margin": 25.0, "discriminator_loss": 1e-6})
  assert "25" in won and "over 20" in won
  assert "all alike" in player.guard(fine | {"variety": 0.001})
  # A reconstructing stage has no variety to watch.
  assert player.guard({"logit_margin": 25.0, "discriminator_loss": 0.5}) is None


def test_a_generator_learns_both_modes_of_a_toy():
  """Real images are all dark or all bright; the generator maps noise to one grey value an image."""
  player = make(steps=400, penalty_weight=0.1, penalty_fraction=1.0, augment=(), penalty="exact")
  batch = 32
  index, labels = jnp.arange(batch), jnp.zeros(batch, jnp.int32)
  params, opt_state = player.init(KEY, jnp.zeros((1, 8, 8, 3)))
  keys = jax.random.split(jax.random.key(3), 2)
  theta = {
    "w1": jax.random.normal(keys[0], (2, 32)),
    "b1": jnp.zeros(32),
    "w2": jax.random.normal(keys[1], (32, 1)) * 0.1,
  }
  tx = optax.adam(3e-3, b1=0.0, b2=0.99)

  def generate(theta, key):
    noise = jax.random.normal(key, (batch, 2))
    grey = jnp.tanh(jnp.tanh(noise @ theta["w1"] + theta["b1"]) @ theta["w2"])
    return jnp.broadcast_to(grey[:, None, None], (batch, 8, 8, 3))

  def step(carry, i):
    params, opt_state, theta, moments = carry
    key = jax.random.fold_in(KEY, i)
    sign = jnp.where(jnp.arange(batch) % 2, 0.7, -0.7)[:, None, None, None]
    real = jnp.broadcast_to(sign, (batch, 8, 8, 3))
    state = TrainState(i, {}, {}, {}, {}, {})
    fake = generate(theta, key)
    params, opt_state, _ = player.update(
      params, opt_state, real, fake, labels, key, index, state, None
    )
    draws = adversarial.make_draws(key, i, index)
    loss = lambda t: player.generator_loss(params, real, generate(t, key), labels, draws)[0]  # noqa: E731
    updates, moments = tx.update(jax.grad(loss)(theta), moments)
    return (params, opt_state, optax.apply_updates(theta, updates), moments), None

  start = (params, opt_state, theta, tx.init(theta))
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(400))[0])
  theta = run(start)[2]
  grey = np.asarray(generate(theta, jax.random.key(9)))[:, 0, 0, 0]
  dark, bright = np.mean(np.abs(grey + 0.7) < 0.35), np.mean(np.abs(grey - 0.7) < 0.35)
  assert dark > 0.2 and bright > 0.2 and dark + bright > 0.6, np.sort(grey)


# -- One step of all players -----------------------------------------------------------------------


@pytest.mark.parametrize("name, network", AVERAGED)
def test_averages_forget_the_first_weights_as_the_warm_up_says(
  first_states, name, network, tiny_config, smooth_images, random_vgg
):
  """Weights that stay as they are, and an average that starts at 0: what it lacks of them is the
  weight that a start has in it."""
  tiny_config.generator.taps = ()
  for other in ("encoder", "generator", "gpt", "discriminator", "style_encoder"):
    tiny_config[other].depth = 1
  tiny_config.tokenizer.adversarial_weight = tiny_config.style.adversarial_weight = 0.1
  tiny_config[name].optimizer.learning_rate = 0.0
  assert tiny_config[name].ema_decay > 0.99
  batch = {"image": smooth_images(8, 16), "label": np.zeros(8, np.int32)}
  batch |= {other: smooth_images(8, 16, seed=1) for other in STAGES[name].companion_names}
  stage, state, _ = first_states(name, tiny_config, 3, batch["image"].shape)
  state = state.replace(ema=jax.tree.map(jnp.zeros_like, state.ema))
  step = jax.jit(functools.partial(stage.step, axis=None))
  for _ in range(3):
    state, _ = step(state, batch, KEY)
  left = 1 / 10 * 2 / 11 * 3 / 12  # after three steps
  for average, now in zip(
    *(jax.tree.leaves(t[network]) for t in (state.ema, state.params)), strict=True
  ):
    np.testing.assert_allclose(average, (1 - left) * now, rtol=1e-5)


def test_without_an_adversary_only_the_networks_learn():
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params={"net": jnp.ones(2)},
    opt_state={"net": optax.sgd(0.1).init(jnp.ones(2))},
    ema={"net": jnp.ones(2)},
    variables={},
    frozen={},
  )

  def gradient(against):
    assert against is None
    return jnp.full(2, 2.0), {"loss": jnp.zeros(())}

  state, metrics = adversarial.adversarial_step(
    *(state, gradient, lambda g: {"net": 3 * g}, {"net": optax.sgd(0.1)}),
    **dict(adversary=None, real=None, fake=None, labels=None),
    **dict(ema_decay=0.9, key=KEY, index=INDEX, axis=None),
  )
  np.testing.assert_allclose(state.params["net"], 1 - 0.1 * 6.0, rtol=1e-6)
  np.testing.assert_allclose(state.ema["net"], 1 - 0.9 * 0.1 * 6.0, rtol=1e-6)
  assert state.step == 1 and set(metrics) == {"loss", "gradient_norm_net"}
  assert metrics["gradient_norm_net"] == pytest.approx(72**0.5)
