"""Drawing: batches, devices, the best of candidates, completion; and what the command refuses."""

import os

import jax
import numpy as np
import pytest
from PIL import Image

from imgtx_jax import judge, sample
from imgtx_jax.cli import sampling_flags
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError
from imgtx_jax.sampling import options as sampling_options
from imgtx_jax.sampling import sampler as sampler_module
from imgtx_jax.sampling.options import SamplingOptions
from imgtx_jax.sampling.sampler import SCORES, Sampler, first_rows, load_stage
from imgtx_jax.stages import build
from imgtx_jax.training import workdir

NAMES = ["cat", "dog", "tree"]
LABELS = np.array([0, 1, 2, 0, 1], np.int32)
_BUILT = {}


@pytest.fixture
def trained(tiny_config, tmp_path_factory, untrained_workdir):
  """(work directory, config) of finished stages in raster order, with random weights."""
  if not _BUILT:
    directory = tmp_path_factory.mktemp("work")
    tiny_config.gpt.order = "raster"
    config = tiny_config.lock()
    untrained_workdir(config, directory, NAMES)
    _BUILT["work"] = directory, config
  return _BUILT["work"]


def make_drawer(trained, **options):
  directory, config = trained
  stage, results = load_stage(directory, config, NAMES)
  # Zero matrices at the start leave nothing to tell images apart by: random logits do.
  draw = np.random.default_rng(0)
  gpt = results["finetune"]["ema"]["gpt"]
  gpt["logits"]["kernel"] = draw.normal(0, 0.5, gpt["logits"]["kernel"].shape).astype(np.float32)
  open_gates(results)
  options = dict(prefix=stage.num_codes, ways=SamplingOptions(cfg_scale=1.5)) | options
  return Sampler(stage, results, options.pop("ways"), **options)


def open_gates(results):
  """Lets the generator hear its condition vectors and its modulation."""
  generator = results["finetune"]["ema"]["generator"]["generator"]
  draw = np.random.default_rng(1)
  for name in ("segment_0", "segment_1"):
    block = generator[name]["layers"]["block"]
    block["cross_gate"] = np.full_like(block["cross_gate"], 0.5)
    kernel = block["modulation"]["kernel"]
    block["modulation"]["kernel"] = draw.normal(0, 0.1, kernel.shape).astype(np.float32)


def test_the_same_image_whatever_the_batch_and_the_devices(trained, monkeypatch):
  images, codes = make_drawer(trained, batch_size=8).draw(LABELS)
  assert images.shape == (5, 16, 16, 3) and images.dtype == np.uint8
  assert len(np.unique(codes, axis=0)) == 5
  few, few_codes = make_drawer(trained, batch_size=4).draw(LABELS)
  np.testing.assert_array_equal(few_codes, codes)
  assert np.abs(few.astype(int) - images).max() <= 1
  monkeypatch.setattr(jax, "local_device_count", lambda: 1)
  monkeypatch.setattr(sharding.jax, "local_devices", lambda: jax.devices()[:1])
  one, one_codes = make_drawer(trained, batch_size=3).draw(LABELS)
  np.testing.assert_array_equal(one_codes, codes)
  assert np.abs(one.astype(int) - images).max() <= 1
  # By its own number and label alone.
  part, part_codes = make_drawer(trained).draw(LABELS[3:], index=np.array([3, 4]))
  np.testing.assert_array_equal(part_codes, codes[3:])


def test_weights_are_cast_and_unstacked_once_and_draw_the_same(trained, monkeypatch):
  directory, config = trained
  config = config.copy_and_resolve_references()
  config.dtype = "bfloat16"
  trained = directory, config.lock()
  sampler = make_drawer(trained)
  assert "layers_0" in sampler._params["gpt"]["transformer"]
  assert sampler._params["gpt"]["logits"]["kernel"].dtype == jax.numpy.bfloat16
  images, codes = sampler.draw(LABELS)
  monkeypatch.setattr(sampler_module, "sampling_params", lambda params, dtype: params)
  expected, expected_codes = make_drawer(trained).draw(LABELS)
  np.testing.assert_array_equal(codes, expected_codes)
  np.testing.assert_array_equal(images, expected)


def test_another_seed_draws_others(trained):
  _, codes = make_drawer(trained).draw(LABELS)
  _, others = make_drawer(trained, seed=1).draw(LABELS)
  assert np.mean(codes == others) < 0.5


@pytest.mark.parametrize("score", SCORES)
def test_the_best_of_candidates_are_kept(trained, score):
  sampler = make_drawer(trained)
  labels = np.array([2, 0])
  images, _, scores = sampler.draw_best(labels, candidates=4, keep=2, score=score)
  assert len(images) == 4
  everything, _ = sampler.draw(np.repeat(labels, 4))
  all_scores = sampler.scores(everything, np.repeat(labels, 4), score).reshape(2, 4)
  np.testing.assert_allclose(scores.reshape(2, 2), -np.sort(-all_scores, axis=1)[:, :2], rtol=1e-4)
  np.testing.assert_allclose(sampler.scores(images, np.repeat(labels, 2), score), scores, rtol=1e-4)
  assert len(np.unique(all_scores)) > 4
  # Another process's share: the second group is the same by itself.
  second, _, _ = sampler.draw_best(labels[1:], candidates=4, keep=2, score=score, first=1)
  np.testing.assert_array_equal(second, images[2:])


def test_class_scores_are_probabilities(trained):
  sampler = make_drawer(trained)
  images, _ = sampler.draw(np.zeros(4, int))
  shares = sum(np.exp(sampler.scores(images, np.full(4, c), "class")) for c in range(3))
  np.testing.assert_allclose(shares, 1.0, rtol=1e-4)
  with pytest.raises(UserError, match="--score=class needs a class for every image"):
    sampler.scores(images, np.full(4, 3), "class")


def test_completion_keeps_the_first_rows_and_sees_nothing_below(trained, smooth_images):
  sampler = make_drawer(trained)
  image = smooth_images(1, 16)[0]
  given, blanked = first_rows(sampler.stage, sampler.results, image, 2)
  assert given.shape == (1, 8)
  np.testing.assert_array_equal(blanked[:8], image[:8])
  np.testing.assert_array_equal(blanked[8:], np.repeat(image[7:8], 8, axis=0))
  changed = image.copy()
  changed[8:] = 255 - changed[8:]
  again, _ = first_rows(sampler.stage, sampler.results, changed, 2)
  np.testing.assert_array_equal(again, given)
  _, codes = sampler.draw(LABELS, given=given)
  np.testing.assert_array_equal(codes[:, :8], np.repeat(given, 5, axis=0))
  assert len(np.unique(codes[:, 8:], axis=0)) == 5


# -- The command -----------------------------------------------------------------------------------


@pytest.fixture
def run(parse_flags):
  """run(workdir=…, flag=value, …) as the command line does."""
  return lambda **values: sample.main(parse_flags(sample.COMMAND, **dict(num=4) | values))


def test_candidates_and_completion_by_flags(trained, run, tmp_path, smooth_images):
  directory, _ = trained
  Image.fromarray(smooth_images(1, 20)[0]).save(tmp_path / "a.png")
  run(
    workdir=directory,
    num=3,
    labels="dog",
    out=tmp_path / "grid.png",
    save_codes=tmp_path / "codes.npy",
    candidates=4,
    keep=2,
    init=tmp_path / "a.png",
    keep_rows=1,
  )
  codes = np.load(tmp_path / "codes.npy")
  assert codes.shape == (3, 16) and len(np.unique(codes[:, :4], axis=0)) == 1
  assert (tmp_path / "grid.png").exists()


class Numbered:
  """Draws images that are their number, of 1 x 1 pixels."""

  def draw(self, labels, index, given=None):
    return np.asarray(index, np.uint8).reshape(-1, 1, 1, 1), np.asarray(labels)[:, None]

  def draw_best(self, labels, *, candidates, keep, score, first, given=None):
    index = first * keep + np.arange(len(labels) * keep)
    return *self.draw(np.repeat(labels, keep), index), None


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("keep", [0, 2])
def test_every_process_draws_its_share(keep, count, parse_flags, monkeypatch):
  options = dict(num=5, candidates=4 * bool(keep), keep=max(keep, 1))
  flags = parse_flags(sample.COMMAND, workdir="none", **options)
  labels = np.arange(5 if not keep else 3)
  monkeypatch.setattr(jax, "process_count", lambda: count)
  parts = []
  for index in range(count):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    first, images, codes = sample.draw_own(flags, Numbered(), labels, None)
    assert len(images) == len(codes) and (not len(images) or images[0] == first)
    parts.append((images.tobytes(), codes.astype(np.uint8).tobytes()))
  images, codes = (b"".join(part) for part in zip(*parts, strict=True))
  assert list(images) == list(range(5))
  assert list(codes) == list(np.repeat(labels, max(keep, 1))[:5])
  assert len(parts[0][0])  # the first one has some, and so knows their shape


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (dict(num=0), "--num=0 is under 1"),
    (dict(out=""), "nothing to write"),
    (dict(prefix=17), "--prefix=17 is outside 0 … 16"),
    (dict(candidates=2, keep=3), "--candidates=2 is under --keep=3"),
    (dict(keep_rows=2), "--init and --keep_rows go together"),
    (dict(init="a.png", keep_rows=4), "--keep_rows=4 is outside 1 … 3"),
    (dict(init="a.png", keep_rows=2, prefix=4), "--prefix=4 is under the 8 codes"),
    (dict(init="none.png", keep_rows=2), r"none.png cannot be read"),
    (dict(cfg_stop=1.5), "--cfg_stop=1.5 is outside 0 … 1"),
    (dict(top_p=0.0), "--top_p=0 leaves no code to draw"),
    (dict(truncation=1.5), "--truncation=1.5 is outside 0 … 1"),
    (dict(refine_steps=-1), "--refine_steps=-1 is outside 0 … 1000"),
    (dict(labels="bird"), "--labels=bird is no class"),
    (dict(strength=0.5), "--style_workdir and --strength are about a style"),
    (dict(style="none.png"), "none.png cannot be read"),
    (dict(style="a.png"), "has no style stage"),
  ],
)
def test_bad_flags(trained, run, monkeypatch, tmp_path, smooth_images, flags, message):
  monkeypatch.chdir(tmp_path)
  Image.fromarray(smooth_images(1, 16)[0]).save("a.png")
  with pytest.raises(UserError, match=message):
    run(workdir=trained[0], **dict(out="grid.png") | flags)


def test_drawn_images_in_a_style(trained, run, monkeypatch, tmp_path, local_stylizer):
  directories = []
  monkeypatch.setattr(
    sample, "load_stylizer", lambda directory: directories.append(directory) or local_stylizer()
  )
  Image.new("RGB", (40, 60), "red").save(tmp_path / "red.png")
  grids = []
  for style in (
    dict(),
    dict(style=str(tmp_path / "red.png"), strength=0.0),
    dict(style=str(tmp_path / "red.png"), style_workdir="elsewhere"),
  ):
    run(workdir=trained[0], num=3, prefix=0, out=tmp_path / "grid.png", **style)
    grids.append(np.asarray(Image.open(tmp_path / "grid.png")).astype(int))
  plain, at_zero, red = grids
  np.testing.assert_array_equal(at_zero, plain)
  assert red.shape == plain.shape
  assert np.mean((red - plain) @ [1, -0.5, -0.5]) > 20
  assert directories == [str(trained[0]), os.path.abspath("elsewhere")]


@pytest.mark.parametrize("prefix", [0, 5])
def test_refined_images_score_more_whatever_the_batch(trained, prefix):
  refined = SamplingOptions(cfg_scale=1.5, refine_steps=3, refine_rate=0.1, refine_radius=0.3)
  before, codes = make_drawer(trained, prefix=prefix).draw(LABELS)
  sampler = make_drawer(trained, prefix=prefix, ways=refined, batch_size=4)
  after, same = sampler.draw(LABELS)
  np.testing.assert_array_equal(same, codes)
  assert np.all(np.abs(after.astype(int) - before).max(axis=(1, 2, 3)) > 1)

  def total(images):  # of whole numbers: the rise must be more than their rounding
    return sum(sampler.scores(images, LABELS, score) for score in SCORES)

  assert np.all(total(after) > total(before))
  part, _ = sampler.draw(LABELS[3:], index=np.array([3, 4]))
  assert np.abs(part.astype(int) - after[3:]).max() <= 1


def test_truncated_noise_and_guided_modulation(trained):
  """At ψ = 0 one label has one image, and with the null label w_scale changes nothing."""
  still = SamplingOptions(cfg_scale=1.5, truncation=0.0)
  sampler = make_drawer(trained, prefix=0, ways=still)
  images, _ = sampler.draw(np.array([0, 0, 1, 1]))
  assert np.abs(images[0].astype(int) - images[1]).max() <= 1
  assert np.abs(images[0].astype(int) - images[2]).max() > 1
  labels = np.array([1, 2, 3, 3])
  plain, _ = make_drawer(trained, prefix=0).draw(labels)
  assert np.abs(plain[2].astype(int) - plain[3]).max() > 1
  guiding = SamplingOptions(cfg_scale=1.5, w_scale=3.0)
  guided, _ = make_drawer(trained, prefix=0, ways=guiding).draw(labels)
  assert np.all(np.abs(guided.astype(int) - plain)[:2].max(axis=(1, 2, 3)) > 1)
  assert np.abs(guided.astype(int) - plain)[2:].max() <= 1


def test_options_by_flags(trained, run, parse_flags, tmp_path):
  directory, config = trained
  given = dict(truncation=0.5, w_scale=1.5, refine_steps=1, refine_rate=0.1, top_k=4)
  values = dict(workdir=directory, num=2, prefix=0, out=tmp_path / "grid.png", **given)
  found = sampling_flags.choose(parse_flags(sample.COMMAND, **values), config)
  assert (found.truncation, found.w_scale, found.top_k) == (0.5, 1.5, 4)
  assert found.cfg_scale == config.sample.cfg_scale
  assert (found.refine_steps, found.refine_rate) == (1, 0.1)
  assert found.refine_radius == config.sample.refine_radius
  run(**values)
  assert (tmp_path / "grid.png").exists()


def test_options_that_do_not_matter_are_refused(monkeypatch, tmp_path, tiny_config):
  stage = build("pretrain", tiny_config, len(NAMES))
  with pytest.raises(UserError, match="--truncation=0.5 is about noise, and the pretrain stage"):
    sampling_options.check_flag("truncation", 0.5, stage)
  sampling_options.check_flag("guidance", "linear", stage)
  tiny_config.finetune.memory = "none"
  stage = build("finetune", tiny_config, len(NAMES))
  with pytest.raises(UserError, match="--refine_steps=3 is about condition vectors"):
    sampling_options.check_flag("refine_steps", 3, stage)


def test_a_gan_draws_without_codes(tmp_path, tiny_config, untrained_workdir, run, smooth_images):
  tiny_config.stages = ("gan",)
  tiny_config.generator.taps = ()
  config = tiny_config.lock()
  untrained_workdir(config, tmp_path, NAMES)
  run(workdir=tmp_path, candidates=2, truncation=0.7, w_scale=1.2, out=tmp_path / "grid.png")
  assert (tmp_path / "grid.png").exists()
  stage, results = load_stage(tmp_path, config, NAMES)
  images, codes = Sampler(stage, results, SamplingOptions(), prefix=0, batch_size=4).draw(LABELS)
  assert codes.shape == (5, 0) and np.abs(images[0].astype(int) - images[3]).max() > 1
  (image,) = smooth_images(1, 16)
  found = judge.load(tmp_path, config, NAMES, prefix=0).examine(image)
  assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
  for wrong, message in (
    (dict(prefix=4), "--prefix=4: the gan stage draws without codes"),
    (dict(cfg_scale=2.0), "--cfg_scale=2.0 is about codes, and the gan stage"),
    (dict(refine_steps=2), "--refine_steps=2 is about condition vectors"),
    (dict(save_codes="codes.npy"), "--save_codes: the gan stage draws without codes"),
  ):
    with pytest.raises(UserError, match=message):
      run(workdir=tmp_path, **dict(out="grid.png") | wrong)
  with pytest.raises(UserError, match="--init needs codes to keep"):
    first_rows(stage, results, image, 2)


def test_completion_needs_raster_order(tmp_path, tiny_config, untrained_workdir, smooth_images):
  tiny_config.stages = ("tokenizer", "pretrain")
  tiny_config.gpt.order = "spread"
  untrained_workdir(tiny_config.lock(), tmp_path, NAMES)
  stage, results = load_stage(tmp_path, workdir.read(tmp_path)[0], NAMES)
  with pytest.raises(UserError, match="raster order, and this model has gpt.order=spread"):
    first_rows(stage, results, smooth_images(1, 16)[0], 2)
