"""The rules of fine-tuning: no leaks past the prefix, a faithful start, gradients where asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imgtx_jax import rng
from imgtx_jax.distributed import sharding
from imgtx_jax.sampling.options import SamplingOptions
from imgtx_jax.stages import build, builders, finetune_inputs
from imgtx_jax.stages.finetune import gpt_gradient

CLASSES = 3


@pytest.fixture
def start(first_states):
  """make(config, images, open_gates=False) → a finetune stage, its first state on untrained earlier
  stages, a batch, what those stages left, a key."""

  def make(config, images, *, open_gates=False):
    batch = {"image": images, "label": np.arange(len(images), dtype=np.int32) % CLASSES}
    stage, state, restored = first_states("finetune", config, CLASSES, images.shape, seed=1)
    if open_gates:
      opened = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, 0.5) if "gate" in str(path) else x, state.params
      )
      state = state.replace(params=opened)
    return stage, state, batch, dict(restored), jax.random.key(1)

  return make


def render(stage, generator, state, task, states):
  """The image and the conditioned images, as the step renders them."""
  codebook = state.frozen["tokenizer"]["quantizer"]
  image, taps = stage.networks.render(generator, codebook, task, states)
  return image, [tap for tap, _ in taps]


def forward(stage, state, task):
  logits, states = stage.networks.condition(state.params["gpt"], task)
  return *render(stage, state.params["generator"], state, task, states), logits


def make_task(stage, state, batch, key, prefix):
  codes = stage.tokenizer.encode(state.frozen["tokenizer"], stage.prepare(batch))
  labels = batch["label"]
  task = finetune_inputs.draw(
    stage.config, state.variables, codes, labels, key, 0, jnp.arange(len(labels)), classes=CLASSES
  )
  return task | {"prefix": jnp.full(len(labels), prefix)}


def loss_parts(stage, state, images, task, draws, image, taps, logits):
  """The metrics of the generator's loss, against the discriminator as it is."""

  def against(image, taps):
    real, fake = stage.adversary.repeat(images), stage.adversary.show(image, taps)
    judge = state.params["discriminator"]
    return stage.adversary.generator_loss(judge, real, fake, task["label"], draws)

  return stage._loss(state, images, task, against, image, taps, logits)[1]


def test_full_prefix_renders_what_the_decoder_does(start, tiny_config, smooth_images):
  stage, state, batch, restored, key = start(tiny_config, smooth_images(8, 16))
  task = make_task(stage, state, batch, key, 16)
  image = forward(stage, state, task)[0]
  decoded = stage.tokenizer.decode(restored["tokenizer"]["ema"], task["codes"])
  np.testing.assert_allclose(image, decoded, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 4, 15])
def test_codes_past_the_prefix_change_nothing(start, tiny_config, smooth_images, prefix):
  stage, state, batch, _, key = start(tiny_config, smooth_images(8, 16), open_gates=True)
  task = make_task(stage, state, batch, key, prefix)
  hidden = stage.order[prefix:]
  other = task | {"codes": task["codes"].at[:, hidden].add(7) % 32}
  image = forward(stage, state, task)[0]
  np.testing.assert_array_equal(image, forward(stage, state, other)[0])
  if prefix:
    seen = task | {"codes": task["codes"].at[:, stage.order[:prefix]].add(7) % 32}
    assert not np.allclose(image, forward(stage, state, seen)[0], atol=1e-3)


@pytest.mark.parametrize("trained", ["all", "last:1", "adapter", "none"])
def test_the_images_gradient_trains_the_part_of_the_gpt_that_is_asked(
  start, tiny_config, smooth_images, trained
):
  tiny_config.finetune.gpt_trained = trained
  stage, state, batch, _, key = start(tiny_config, smooth_images(8, 16), open_gates=True)
  task = make_task(stage, state, batch, key, 8)
  (logits, states), pull_gpt = jax.vjp(
    lambda params: stage.networks.condition(params, task), state.params["gpt"]
  )

  def verdict(generator, states):
    image, _ = render(stage, generator, state, task, states)
    judge = stage.adversary.verdict(state.params["discriminator"], image, task["label"])
    return jnp.sum(judge.logit)

  of_generator, of_states = jax.grad(verdict, argnums=(0, 1))(state.params["generator"], states)
  grads = gpt_gradient(stage.options.gpt_trained, pull_gpt, jnp.zeros_like(logits), of_states)
  size = lambda tree: sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(tree))  # noqa: E731
  assert (size(grads) > 1e-6) == (trained in ("all", "last:1"))
  layers = grads["transformer"]["layers"]
  first, last = (size(jax.tree.map(lambda g, i=i: g[i], layers)) for i in (0, 1))
  assert (first > 1e-6) == (size(grads["codes"]) > 1e-6) == (trained == "all")
  assert (last > 1e-6) == (trained in ("all", "last:1"))
  if trained == "last:1":  # the same gradient as through all, as far as it goes
    (whole,) = pull_gpt((jnp.zeros_like(logits), of_states))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a[1], b[1], atol=1e-5),
      layers,
      whole["transformer"]["layers"],
    )
  # The next-code loss trains all of it in any case.
  of_codes = gpt_gradient(
    stage.options.gpt_trained, pull_gpt, jnp.ones_like(logits), jnp.zeros_like(of_states)
  )
  assert size(of_codes["logits"]) > 1e-6
  assert ("adapter" in of_generator) == (trained == "adapter")
  if trained == "adapter":
    assert size(of_generator["adapter"]["project"]) > 1e-6
    image = render(stage, state.params["generator"], state, task, states)[0]
    plain = state.params["generator"] | {
      "adapter": jax.tree.map(jnp.zeros_like, of_generator["adapter"])
    }
    np.testing.assert_array_equal(image, render(stage, plain, state, task, states)[0])


def test_of_several_noises_the_one_of_the_nearest_image_is_taken(start, tiny_config, smooth_images):
  tiny_config.finetune.noise_candidates = 5
  stage, state, batch, _, key = start(tiny_config, smooth_images(8, 16), open_gates=True)
  images = stage.prepare(batch)
  real = jnp.array([1.0, 1, 1, 1, 1, 1, 0, 0])
  task = make_task(stage, state, batch, key, 0) | {"real": real}
  _, states = stage.networks.condition(state.params["gpt"], task)

  def error(noise):
    asked = task | {"noise": noise}
    image, _ = render(stage, state.params["generator"], state, asked, states)
    return jnp.mean((image - images) ** 2, axis=(1, 2, 3))

  drawn = finetune_inputs.draw_candidates(tiny_config, key, 0, jnp.arange(8))
  chosen = finetune_inputs.nearest_noise(error, drawn, real)
  candidates = rng.normal(
    rng.stream(key, "noise_candidates", 0), jnp.arange(8), (5, stage.networks.noise_dim)
  )
  errors = np.stack([error(candidates[:, i]) for i in range(5)])
  assert errors.std(0).min() > 1e-6
  best = np.where(real, errors.argmin(0), 0)  # a bank row has no image to be near to
  np.testing.assert_array_equal(chosen, candidates[np.arange(8), best])
  assert len(set(best[:6])) > 1


def test_bank_rows_have_no_reconstruction_target(start, tiny_config, smooth_images):
  stage, state, batch, _, key = start(tiny_config, smooth_images(8, 16))
  images = stage.prepare(batch)
  task = make_task(stage, state, batch, key, 16) | {"real": jnp.zeros(8)}
  image, taps, logits = forward(stage, state, task)
  draws = {name: jax.random.split(key, 8) for name in ("augment", "noise")}
  parts = loss_parts(stage, state, images, task, draws, image, taps, logits)
  assert parts["reconstruction"] == 0 and parts["next_code"] == 0
  assert parts["generator_loss"] > 0


def test_reconstruction_fades_with_the_prefix(start, tiny_config, smooth_images):
  stage, state, batch, _, key = start(tiny_config, smooth_images(8, 16))
  images = stage.prepare(batch)
  draws = {name: jax.random.split(key, 8) for name in ("augment", "noise")}
  found = {}
  for prefix in (0, 8, 16):
    task = make_task(stage, state, batch, key, prefix) | {"real": jnp.ones(8)}
    image, taps, logits = forward(stage, state, task)
    args = (images, task, draws, jnp.zeros_like(image), taps, logits)
    parts = loss_parts(stage, state, *args)
    found[prefix] = float(parts["reconstruction"])
  assert found[0] == 0
  # λ k/N of the mean square over the known patches.
  assert found[16] == pytest.approx(float(jnp.mean(images**2)), rel=1e-5)
  known = stage.networks.known_pixels(jnp.full(8, 8))
  assert float(known.mean()) == 0.5
  share = jnp.sum(known * images**2, axis=(1, 2, 3)) / jnp.sum(known * 3, axis=(1, 2, 3))
  assert found[8] == pytest.approx(0.5 * float(share.mean()), rel=1e-5)


def test_early_reconstruction_counts_everywhere_and_fades(start, tiny_config, smooth_images):
  tiny_config.finetune.reconstruct_all_steps = 4
  stage, state, batch, _, key = start(tiny_config, smooth_images(8, 16))
  images = stage.prepare(batch)
  draws = {name: jax.random.split(key, 8) for name in ("augment", "noise")}
  task = make_task(stage, state, batch, key, 0) | {"real": jnp.arange(8) % 2}
  image, taps, logits = forward(stage, state, task)

  def found(step):
    args = (images, task, draws, jnp.zeros_like(image), taps, logits)
    at = state.replace(step=jnp.asarray(step))
    return float(loss_parts(stage, at, *args)["reconstruction"])

  # At k = 0 no code is known; what the GPT sampled has no target at any time.
  assert found(0) == pytest.approx(float(jnp.mean(images[1::2] ** 2)) / 2, rel=1e-5)
  assert found(0) > found(3) > found(4) == 0


def test_a_generator_that_starts_afresh(start, tiny_config, smooth_images):
  tiny_config.finetune.init_from_decoder = False
  _, state, _, restored, _ = start(tiny_config, smooth_images(8, 16))
  decoder = restored["tokenizer"]["ema"]["generator"]["embed"]["kernel"]
  assert not np.allclose(state.params["generator"]["generator"]["embed"]["kernel"], decoder)


def test_bank_holds_samples_of_the_gpt(start, tiny_config, smooth_images):
  stage, state, _, _, key = start(tiny_config, smooth_images(8, 16))
  # A GPT that always answers code 5: what it samples fills the bank.
  gpt = jax.tree.map(jnp.zeros_like, state.ema["gpt"])
  gpt["norm"]["scale"] = jnp.ones_like(gpt["norm"]["scale"])
  gpt["label"]["embedding"] = jnp.ones_like(gpt["label"]["embedding"])
  gpt["codes"]["embedding"] = jnp.ones_like(gpt["codes"]["embedding"])
  gpt["logits"]["kernel"] = gpt["logits"]["kernel"].at[:, 5].set(10.0)
  state = state.replace(ema=state.ema | {"gpt": gpt})
  bank = jax.jit(functools.partial(stage.refresh, axis=None))(state, key).variables["bank"]
  assert bank.shape == (CLASSES, 2, 16)
  assert np.all(bank == 5)


@pytest.mark.parametrize("axis", ["devices", None])
def test_each_device_samples_its_part_of_the_bank(start, tiny_config, monkeypatch, axis):
  def sample_codes(gpt, params, labels, keys, *, steps, options, path):
    """The labels as codes; a code that tells how many were sampled at once here."""
    count = jnp.full((len(labels), steps - 1), len(labels))
    return jnp.concatenate([labels[:, None], count], axis=1), None

  monkeypatch.setattr(finetune_inputs.autoregressive, "sample_codes", sample_codes)
  gpt = builders.make_gpt(tiny_config, 8)

  def fill(key):
    return finetune_inputs.fill_bank(
      gpt, {}, key, rows=3, chunk=8, options=None, path=None, axis=axis
    )["bank"]

  key = jax.random.key(0)
  if axis:
    bank = jax.pmap(fill, axis_name=axis)(jax.random.split(key, 4))[0]
    assert np.all(bank[..., gpt.code_order()[1:]] == 2)
  else:
    mesh = sharding.make_parallel("jit", devices=jax.devices()[:4]).mesh
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      bank = jax.jit(fill)(key)
      lowered = jax.jit(fill).lower(key).as_text()
    assert "sharding_constraint" in lowered or "@Sharding" in lowered
  assert bank.shape == (8, 3, 16)
  np.testing.assert_array_equal(
    bank[..., gpt.code_order()[0]], np.repeat(np.arange(8), 3).reshape(8, 3)
  )


def test_a_prefix_is_the_beginning_of_the_whole(start, tiny_config, smooth_images):
  stage, state, batch, _, key = start(tiny_config, smooth_images(8, 16), open_gates=True)
  params, keys = stage.current_params(state), rng.example_keys(key, np.arange(8))
  draw = jax.jit(stage.sample_prefixes, static_argnums=(3, 4))
  options = SamplingOptions(cfg_scale=2.0)
  together = draw(params, batch["label"], keys, options, (0, 4, 16))
  for prefix, (image, codes, _) in zip((0, 4), together, strict=False):
    ((alone, alone_codes, _),) = draw(params, batch["label"], keys, options, (prefix,))
    np.testing.assert_array_equal(codes, alone_codes)
    np.testing.assert_allclose(image, alone, atol=1e-4)


def test_the_predictor_learns_what_the_gpt_picks_by_the_same_numbers(
  start, tiny_config, smooth_images
):
  tiny_config.finetune.update(dict(predictor_depth=1, noise_candidates=1, bank_rows=64))
  tiny_config.finetune.optimizer.learning_rate = 1e-2
  stage, state, batch, _, key = start(tiny_config, smooth_images(16, 16))
  gpt = jax.tree.map(lambda x: x, state.ema["gpt"])
  kernel = gpt["logits"]["kernel"]
  gpt["logits"]["kernel"] = 0.5 * jax.random.normal(key, kernel.shape)
  state = jax.jit(functools.partial(stage.refresh, axis=None))(
    state.replace(ema=state.ema | {"gpt": gpt}), key
  )
  labels, index = batch["label"], jnp.arange(len(batch["label"]))
  tx = stage.tx["generator"]

  def step(carry, number):
    params, opt_state = carry
    pairs = finetune_inputs.draw_pairs(tiny_config, state.variables, labels, key, number, index)
    grads, metrics = jax.grad(stage._code_loss, has_aux=True)(params, pairs, None)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), metrics

  params = state.params["generator"]
  (params, _), metrics = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(150)))(
    (params, tx.init(params))
  )
  assert metrics["predictor_bits"][0] > 4.5  # 32 codes
  assert metrics["predictor_bits"][-10:].mean() < 3.5
  assert metrics["predictor_accuracy"][-10:].mean() > 2 * metrics["predictor_accuracy"][0]


def test_codes_beyond_the_prefix_are_guessed_from_the_seed(start, tiny_config, smooth_images):
  tiny_config.finetune.predictor_depth = 1
  stage, state, batch, restored, key = start(tiny_config, smooth_images(4, 16), open_gates=True)
  task = make_task(stage, state, batch, key, 4)
  run = jax.jit(lambda task: forward(stage, state, task)[0])
  image = run(task)
  # At the start the guesses are rendered as the decoder renders codes.
  logits = stage.networks.predict(
    state.params["generator"], task, stage.networks.known(task["prefix"])
  )
  known = stage.networks.known(task["prefix"])
  filled = jnp.where(known, task["codes"], jnp.argmax(logits, axis=-1))
  np.testing.assert_allclose(run(task | {"codes": filled}), image, atol=1e-5)
  moved = task | {"uniforms": 1.0 - task["uniforms"]}
  assert np.abs(run(moved) - image).max() > 0.01
  whole = {"prefix": jnp.full(4, stage.num_codes)}
  np.testing.assert_array_equal(run(moved | whole), run(task | whole))


def test_players_move_and_the_frozen_stay(start, tiny_config, smooth_images):
  """Conditioned images are shown to the discriminator here, and in the next test: one program."""
  tiny_config.adversary.see_taps = True
  stage, state, batch, _, key = start(tiny_config, smooth_images(16, 16))
  assert state.params["discriminator"]["embed"]["kernel"].shape[0] == (4 + 2 * 2) ** 2 * 6
  step = jax.jit(functools.partial(stage.step, axis=None))
  after, metrics = step(state, batch, key)
  for player in ("generator", "gpt", "discriminator"):
    moved = jax.tree.map(
      lambda a, b: float(jnp.abs(a - b).max()), state.params[player], after.params[player]
    )
    assert max(jax.tree.leaves(moved)) > 0, player
  assert all(np.isfinite(float(v)) for v in metrics.values()) and metrics["variety"] > 0.01
  assert jax.tree.all(jax.tree.map(np.array_equal, state.frozen, after.frozen))


def test_a_second_round_goes_on_from_the_first(start, tiny_config, smooth_images):
  stage, state, batch, restored, key = start(tiny_config, smooth_images(8, 16))
  gpt = jax.tree.map(lambda x: x + 1.0, state.ema["gpt"])
  generator = jax.tree.map(lambda x: x + 1.0, state.params["generator"])
  restored["finetune"] = {
    "params": state.params | {"generator": generator},
    "ema": state.ema | {"gpt": gpt},
  }
  pretrain = build("pretrain", tiny_config, CLASSES)
  second = pretrain.init(key, batch["image"].shape, restored)
  jax.tree.map(np.testing.assert_array_equal, second.params["gpt"], gpt)
  restored["pretrain"] = {
    "ema": {"gpt": jax.tree.map(lambda x: x + 2.0, gpt)},
    "variables": second.variables,
  }
  again = stage.init(key, batch["image"].shape, restored)
  jax.tree.map(
    np.testing.assert_array_equal, again.params["gpt"], restored["pretrain"]["ema"]["gpt"]
  )
  jax.tree.map(np.testing.assert_array_equal, again.params["generator"], generator)
  jax.tree.map(
    np.testing.assert_array_equal, again.params["discriminator"], state.params["discriminator"]
  )


def test_discriminator_learns_to_tell_generated_images(start, tiny_config, smooth_images):
  tiny_config.adversary.see_taps = True
  stage, state, batch, _, key = start(tiny_config, smooth_images(16, 16))
  step = jax.jit(functools.partial(stage.step, axis=None))
  for _ in range(25):
    state, metrics = step(state, batch, key)
  assert metrics["logit_margin"] > 0.3


def test_an_image_depends_on_its_own_key_and_label(start, tiny_config, smooth_images):
  stage, state, _, restored, key = start(tiny_config, smooth_images(8, 16), open_gates=True)
  params = {name: state.params[name] for name in ("generator", "gpt")}
  params["quantizer"] = restored["tokenizer"]["ema"]["quantizer"]
  options = SamplingOptions(cfg_scale=2.0)
  keys = jax.random.split(key, 4)
  labels = np.array([0, 1, 2, 0], np.int32)
  whole, codes, _ = stage.sample(params, labels, keys, options, prefix=4)
  part, _, _ = stage.sample(params, labels[2:], keys[2:], options, prefix=4)
  np.testing.assert_allclose(whole[2:], part, atol=1e-5)
  assert not np.allclose(whole[0], whole[3], atol=1e-3)
  assert np.all(np.asarray(codes)[:, stage.order[4:]] == 0)


def test_without_codes_places_noise_and_class_are_heard_from_the_start(
  start, tiny_config, smooth_images
):
  stage, state, batch, _, key = start(tiny_config, smooth_images(8, 16))
  task = make_task(stage, state, batch, key, 0)
  image = np.asarray(forward(stage, state, task)[0])
  patches = image.reshape(8, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(8, 16, -1)
  inner = patches.reshape(8, 4, 4, -1)[:, 1:-1, 1:-1].reshape(8, 4, -1)
  assert np.abs(inner - inner[:, :1]).max() > 1e-2  # no patch repeated all over
  other_noise = forward(stage, state, task | {"noise": -task["noise"]})[0]
  other_class = forward(stage, state, task | {"label": (task["label"] + 1) % CLASSES})[0]
  assert np.abs(image - other_noise).max() > 1e-2
  assert np.abs(image - other_class).max() > 1e-2


# -- What the generator attends to -----------------------------------------------------------------


@pytest.mark.parametrize("memory", ["states", "class", "none", "untrained"])
def test_memory(start, tiny_config, smooth_images, memory):
  """Sampling renders what training does from the same codes, and the image hears the GPT it should:
  its class and code tables."""
  tiny_config.finetune.memory = memory
  for network in ("encoder", "generator", "gpt", "discriminator"):
    tiny_config[network].depth = 1
  tiny_config.generator.taps = ()
  stage, state, _, _, key = start(tiny_config, smooth_images(4, 16), open_gates=True)
  run = jax.jit(lambda params, task: forward(stage, state.replace(params=params), task)[0])
  keys, labels, k = jax.random.split(key, 4), jnp.array([0, 1, 2, 0]), 4
  params = stage.current_params(state) | state.params
  sample = jax.jit(
    lambda params: stage.sample(params, labels, keys, SamplingOptions(), prefix=k)[:2]
  )
  image, codes = sample(params)
  noise_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, stage.num_codes)
  noise = jax.vmap(lambda key: jax.random.normal(key, (8,)))(noise_keys)
  task = {"codes": codes, "label": labels, "prefix": jnp.full(4, k), "noise": noise}
  np.testing.assert_allclose(run(state.params, task), image, atol=1e-4)

  def hears(path):
    """Whether the image changes with the parameters there."""
    moved = jax.tree_util.tree_map_with_path(
      lambda p, x: (
        x + 0.5 * jnp.cos(jnp.arange(x.size)).reshape(x.shape)
        if jax.tree_util.keystr(p, simple=True, separator="/").startswith(path)
        else x
      ),
      state.params,
    )
    return not np.allclose(run(moved, task), image, atol=1e-3)

  assert hears("gpt/label") == (memory in ("states", "class"))
  assert hears("gpt/codes") == (memory == "states")
  assert hears("generator/gpt/codes") == (memory == "untrained")
  block = state.params["generator"]["generator"]["segment_0"]["layers"]["block"]
  assert ("cross_attention" in block) == (memory != "none")


def test_pictures_before_and_after_refinement(start, tiny_config, smooth_images):
  tiny_config.pictures = 3
  tiny_config.generator.taps = ()
  for network in ("encoder", "generator", "gpt", "discriminator"):
    tiny_config[network].depth = 1
  stage, state, batch, _, key = start(tiny_config, smooth_images(4, 16), open_gates=True)
  state = state.replace(ema={name: state.params[name] for name in state.ema})
  grids = jax.jit(stage.final_pictures)(state, batch, key)
  assert sorted(grids) == ["refined_k0", "refined_k16"] and set(grids) < set(stage.captions)
  for grid in grids.values():
    assert grid.shape == (2, 3, 16, 16, 3) and np.all(np.isfinite(grid))
    assert np.abs(grid[0] - grid[1]).max() > 1e-3
