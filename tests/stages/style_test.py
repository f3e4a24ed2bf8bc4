"""The style stage: starts from the decoder, learns styles, and goes on exactly where it stopped."""

import functools
import os
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from imgtx_jax import main
from imgtx_jax.cli import command
from imgtx_jax.data import pipeline
from imgtx_jax.errors import UserError
from imgtx_jax.models import color_transfer
from imgtx_jax.models.style_encoder import mix
from imgtx_jax.stages import build
from imgtx_jax.style_transfer.stylizer import Stylizer, load_stylizer
from imgtx_jax.training import checkpoint, workdir

pytestmark = [pytest.mark.usefixtures("random_vgg")]

CLASSES = 3


@pytest.fixture
def config(tiny_config):
  tiny_config.stages = ("tokenizer", "style")
  tiny_config.generator.taps = ()
  for network in ("encoder", "generator", "style_encoder"):
    tiny_config[network].depth = 1
  tiny_config.window = 2
  return tiny_config


@pytest.fixture
def start(first_states):
  """make(config) → (stage, its first state, the tokenizer stage and its weights)."""

  def make(config, batch=8, size=16, seed=0):
    stage, state, before = first_states("style", config, CLASSES, (batch, size, size, 3), seed)
    return stage, state, build("tokenizer", config, CLASSES), before["tokenizer"]["ema"]

  return make


def test_at_the_start_a_style_gives_colours_and_texture_to_the_decoders_trunk(start, config):
  stage, state, _, weights = start(config)
  draw = np.random.default_rng(0)
  images = draw.uniform(-0.5, 0.5, (2, 24, 8, 3)).astype(np.float32)
  params = state.params["stylist"]
  segment = params["generator"]["segment_0"]["layers"]["block"]
  for name, expected in weights["generator"]["segment_0"]["layers"]["block"].items():
    jax.tree.map(np.testing.assert_array_equal, segment[name], expected)
  assert "retouch" in params["generator"] and "head" not in params["generator"]
  styles = stage.stylist.styles(params, 0.5 * images[:, ::-1] + 0.2)
  found = stage.stylist.stylize(params, state.frozen["tokenizer"], images, styles)
  # Colours of so few pixels, with a floor under their variance: nearly.
  np.testing.assert_allclose(found.moved, 0.5 * images + 0.2, atol=0.01)
  np.testing.assert_allclose(found.image.mean((1, 2)), found.moved.mean((1, 2)), atol=0.02)
  # Half of the style's detail joins .85 of the content's.
  assert 0.2 < np.abs(found.image - found.moved).std() / found.moved.std() < 1
  # A flat style has no detail to give, and takes most of the content's.
  flat = stage.stylist.styles(params, np.full_like(images, 0.2))
  found = stage.stylist.stylize(params, state.frozen["tokenizer"], images, flat)
  assert found.image.std() < 0.7 * found.moved.std()


def test_strength_chooses_no_other_windows(start, config):
  """A little more strength changes an image a little."""
  stage, state, *_ = start(config)
  content, painting = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1, 32, 32, 3))
  params, tokenizer = state.params["stylist"], state.frozen["tokenizer"]
  null = stage.stylist.null(params, 1)
  style = stage.stylist.styles(params, np.float32(0.5 * painting + 0.4))
  found = [
    stage.stylist.render(
      params, tokenizer, np.float32(content), mix([null, style], [1 - strength, strength])
    )
    for strength in np.linspace(0, 1, 21)
  ]
  steps = [np.abs(after - before).max() for before, after in zip(found, found[1:], strict=False)]
  assert max(steps) < 3 * np.abs(found[-1] - found[0]).max() / 20


def test_null_gives_the_content_back_whatever_was_learned(start, config):
  stage, state, *_ = start(config)
  images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
  draw = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: x + 0.05 * draw.standard_normal(x.shape, np.float32), state.params["stylist"]
  )
  null, style = stage.stylist.null(params, 2), stage.stylist.styles(params, images[::-1])
  for hard in (False, True):
    render = functools.partial(
      stage.stylist.stylize, params, state.frozen["tokenizer"], images, hard=hard
    )
    found = render(null)
    np.testing.assert_allclose(found.image, images, atol=1e-5)
    full, half = render(style), render(mix([null, style], [0.5, 0.5]))
    assert np.abs(full.image - full.moved).max() > 0.01
    assert 0 < np.abs(half.image - half.moved).mean() < np.abs(full.image - full.moved).mean()


def test_a_part_of_an_image_is_rendered_as_in_the_whole(start, config):
  stage, state, *_ = start(config)
  images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 16, 3)).astype(np.float32)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: x + 0.05 * rng.standard_normal(x.shape, np.float32), state.params["stylist"]
  )
  style, tokenizer = stage.stylist.styles(params, images[:, ::-2]), state.frozen["tokenizer"]
  measured = stage.stylist.measure(tokenizer, images, style)
  whole, below, elsewhere = (
    stage.stylist.stylize(params, tokenizer, images[:, top:], style, whole=measured, origin=origin)
    for top, origin in ((0, (0, 0)), (16, (16, 0)), (16, (0, 0)))
  )
  # A cut is felt 26 pixels deep: by windows of 8 in two networks, and by convolutions.
  np.testing.assert_allclose(below.image[:, 28:], whole.image[:, 44:], atol=1e-4)
  # Elsewhere other windows of the style are laid.
  assert np.abs(elsewhere.image[:, 28:] - whole.image[:, 44:]).max() > 1e-2


def test_how_strong_detail_is_shows_at_full_size(start, config, smooth_images):
  stage, state, *_ = start(config)
  image = smooth_images(1, 64) / np.float32(127.5) - 1
  small = image.reshape(1, 32, 2, 32, 2, 3).mean((2, 4))
  stylizer = Stylizer(stage.stylist, state.params["stylist"], state.frozen["tokenizer"])
  style = stylizer.styles(image[:, ::-1])
  full, copy = (stylizer.measure(x, style) for x in (image, small))
  tiles = [image[:, top : top + 32, left : left + 32] for top in (0, 32) for left in (0, 32)]
  found = stylizer.measure(small, style, own=color_transfer.measure(image), parts=tiles)
  # Tiles of 32 pixels have many edges.
  np.testing.assert_allclose(found.contrast, full.contrast, rtol=0.25)
  assert np.all(copy.contrast > 1.5 * full.contrast)
  np.testing.assert_allclose(found.matrix, full.matrix, rtol=1e-5)
  assert np.abs(copy.matrix - full.matrix).max() > 1e-3


def test_a_discriminator_of_styles_is_a_player_more(start, config):
  config.style.adversarial_weight = 0.1
  stage, state, *_ = start(config)
  batch = {
    "image": np.zeros((8, 16, 16, 3), np.uint8),
    "style": np.zeros((8, 16, 16, 3), np.uint8),
    "label": np.zeros(8, np.int32),
  }
  after, metrics = jax.eval_shape(
    functools.partial(stage.step, axis=None), state, batch, jax.random.key(0)
  )
  assert "discriminator" in after.params and "logit_margin" in metrics
  # Either sign of a collapse is seen: the discriminator's, or outputs that are all alike.
  calm = {"logit_margin": 0.5, "discriminator_loss": 0.6, "variety": 1.0}
  assert stage.guard(100, calm) is None
  assert "has won" in stage.guard(100, calm | {"logit_margin": 50.0, "discriminator_loss": 0.0})
  assert "all alike" in stage.guard(100, calm | {"variety": 0.03})


def test_style_loss_falls_by_half(start, config, smooth_images):
  config.style.update(dict(batch_size=4, partial_prob=0.0, jitter_prob=0.0, steps=100))
  config.style.update(dict(content_weight=0.1, identity_weight=1.0))
  config.style.optimizer.update(dict(learning_rate=2e-3, warmup_steps=5, schedule="constant"))
  stage, state, *_ = start(config, batch=4)
  batch = {
    "image": smooth_images(4, 16),
    "style": smooth_images(4, 16, seed=1) // 2,
    "label": np.zeros(4, np.int32),
  }
  step = jax.jit(functools.partial(stage.step, axis=None))
  losses = []
  for _ in range(config.style.steps):
    state, metrics = step(state, batch, jax.random.key(0))
    losses.append(float(metrics["style"]))
  # Which windows lie where is drawn anew for each step.
  assert np.mean(losses[-8:]) < 0.5 * losses[0], losses[::4]
  masked = batch | {"mask": np.ones(4, np.float32)}
  evaluator = stage.evaluators()["validation"]
  sums = jax.jit(functools.partial(evaluator.sums, axis=None))(state, masked, jax.random.key(0))
  figures = evaluator.figures(jax.device_get(sums))
  assert 0 < figures["style_left"] < 1 and figures["own_psnr"] > 5
  pictures = jax.jit(stage.pictures)(state, batch, jax.random.key(0))["styles"]
  assert pictures.shape == (5, 5, 16, 16, 3) and len(stage.captions["styles"]) == 5
  np.testing.assert_allclose(pictures[1, 0] * 127.5 + 127.5, batch["style"][0], atol=0.01)


def test_vgg16_sees_crops_at_random_places(start, config, smooth_images):
  config.style.shift = 4
  stage, state, *_ = start(config)
  shifts = [tuple(np.asarray(stage._shift(jax.random.key(0), step))) for step in range(40)]
  assert {row for row, _ in shifts} == {column for _, column in shifts} == set(range(5))
  images = smooth_images(2, 20) / np.float32(127.5) - 1
  found = stage._features(state.frozen, images, np.array([1, 3]))
  expected = stage._features(state.frozen, images[:, 1:17, 3:19])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_strength_is_partial_for_a_share(config):
  config.style.partial_prob = 0.5
  stage = build("style", config, CLASSES)
  strength = np.asarray(stage._strength(jax.random.key(0), 3, np.arange(200)))
  assert 0.35 < np.mean(strength < 1) < 0.65 and strength.min() >= 0


def test_the_guard_names_outputs_that_are_all_alike(config):
  stage = build("style", config, CLASSES)
  assert stage.guard(10, {"variety": 0.5}) is None
  assert "under 0.05" in stage.guard(10, {"variety": 0.01})


# -- Whole runs ------------------------------------------------------------------------------------


@pytest.fixture
def folders(config, tmp_path, smooth_images):
  """The config with a folder of contents and two of styles."""
  for seed, name in enumerate(("contents", "styles", "more")):
    folder = tmp_path / name
    folder.mkdir()
    for i, image in enumerate(smooth_images(24 + seed, 20, seed=seed)):
      Image.fromarray(image).save(folder / f"{i:02}.png")
  config.data.update(dict(source="images", path=str(tmp_path / "contents"), crop="random"))
  config.style.data.path = f"{tmp_path}/styles,{tmp_path}/more"
  config.update(dict(evaluate_steps=0, picture_steps=0, pictures=4))
  for name in config.stages:
    config[name].update(dict(steps=4, batch_size=4))
  config.checkpoint_steps = 3
  return config


def terminate_before(monkeypatch, batch):
  """SIGTERM comes before that batch (from 0) of every training iterator."""
  make = pipeline.train_iterator

  class Watched:
    def __init__(self, *args, **options):
      self.inner, self.left = make(*args, **options), batch
      self.get_state, self.set_state = self.inner.get_state, self.inner.set_state

    def __next__(self):
      if self.left == 0:
        os.kill(os.getpid(), signal.SIGTERM)
      self.left -= 1
      return next(self.inner)

  monkeypatch.setattr(pipeline, "train_iterator", Watched)


def final_state(directory):
  return checkpoint.load(directory / "1-style" / "checkpoints")[0]


def test_resumed_equals_uninterrupted_and_the_result_loads(
  folders, tmp_path, monkeypatch, without_transfers
):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  folders.parallel.mode = "jit"
  with without_transfers():
    main.run(folders, whole)
  main.run(folders, broken, only="tokenizer")
  with pytest.raises(UserError, match="the style stage is not finished"):
    load_stylizer(broken)
  with monkeypatch.context() as patch:
    terminate_before(patch, 1)
    with pytest.raises(command.Interrupted, match="step 2 of 4"):
      main.run(folders, broken)
  main.run(folders, broken)
  jax.tree.map(np.testing.assert_array_equal, final_state(broken), final_state(whole))

  stylizer = load_stylizer(whole)
  images = np.random.default_rng(0).uniform(-1, 1, (2, 24, 12, 3)).astype(np.float32)
  style = mix([stylizer.null(1), stylizer.styles(images[:1])], [0.5, 0.5])
  out = stylizer.render(images, style)
  assert out.shape == images.shape and np.abs(out).max() <= 1
  again = stylizer.render(images, style, whole=stylizer.measure(images, style))
  np.testing.assert_allclose(again, out, atol=1e-5)
  assert np.abs(stylizer.render(images, style, hard=True) - out).max() > 1e-3
  with pytest.raises(UserError, match="24×10 pixels.*multiples of 4"):
    stylizer.render(images[:, :, :10], style)


def test_load_needs_a_style_stage(tmp_path, tiny_config):
  with pytest.raises(UserError, match="no config.json"):
    load_stylizer(tmp_path / "nothing")
  workdir.claim(tiny_config.lock(), tmp_path, ["a"])
  with pytest.raises(UserError, match="has no style stage, only tokenizer, pretrain, finetune"):
    load_stylizer(tmp_path)
