"""Bad values give one line each; every config file builds and traces every one of its stages."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import imgtx_jax
from imgtx_jax import option_fields, stages
from imgtx_jax.cli import flag_errors
from imgtx_jax.config import defaults as configs
from imgtx_jax.config import validation
from imgtx_jax.errors import UserError
from imgtx_jax.losses.adversarial import AdversarialOptions
from imgtx_jax.models.transformer import BlockConfig
from imgtx_jax.sampling.options import SamplingOptions
from imgtx_jax.training import workdir
from imgtx_jax.training.optimizer import OptimizerOptions

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.name for path in ROOT.glob("configs/*.py"))
ARGUMENTS = {
  "imagenet256.py": ["b", "l", "xl", "xxl", "3b"],
  "style_small.py": ["photos,paintings"],
  "tiny_imagenet.py": ["small", "base"],
  "folder.py": ["64", "256"],
  "gan_gat.py": ["imagenet256", "small"],
  "gan_r3.py": ["imagenet64", "small"],
  "gan_vit.py": ["cifar10", "small"],
}
SPECS = [f"{file}:{a}" if a else file for file in FILES for a in ARGUMENTS.get(file, [""])]
CLASSES = 10
OPTIONS = (AdversarialOptions, OptimizerOptions, SamplingOptions)


# -- Bad values ------------------------------------------------------------------------------------

BAD = [
  ({"stages": ("tokenizer", "train")}, "'train'"),
  ({"stages": ()}, "empty"),
  ({"rounds": 0}, "0"),
  ({"dtype": "float16"}, "'float16'"),
  ({"parallel.mode": "gpu"}, "'gpu'"),
  ({"parallel.rules": ("codebook=none", "head")}, "'head'"),
  ({"parallel.rules": ("(=1",)}, "'(=1'"),
  ({"parallel.rules": ("head=-1",)}, "'head=-1'"),
  ({"pretrain.grad_accum_steps": 0}, "0"),
  ({"pretrain.grad_accum_steps": 3}, "3"),
  ({"data.crop": "middle"}, "'middle'"),
  ({"data.max_scale": 0.3}, "0.3"),
  ({"gpt.order": "zigzag"}, "'zigzag'"),
  ({"tokenizer_kind": "mlp"}, "'mlp'"),
  ({"patch": 5}, "5"),
  ({"patch": 0}, "0"),
  ({"data.image_size": 30}, "30"),
  ({"discriminator.patch": 3}, "3"),
  ({"discriminator.overlap": 9}, "9"),
  ({"encoder.width": 130}, "130"),
  ({"gpt.num_heads": 5}, "heads"),
  ({"generator.num_heads": 0}, "heads"),
  ({"generator.depth": 0}, "0"),
  ({"remat": "some"}, "'some'"),
  ({"unroll": 0}, "config.unroll=0"),
  ({"attention_kernel": "fast"}, "'fast'"),
  ({"attention_kernel": "cudnn", "dtype": "float32"}, "config.dtype='bfloat16'"),
  ({"attention_kernel": "pallas", "gpt.num_heads": 16}, "num_heads = 12, only multiples of 8"),
  ({"generator.taps": (4,)}, "(4,)"),
  ({"generator.taps": (0,)}, "(0,)"),
  ({"generator.taps": (2, 1)}, "(2, 1)"),
  ({"generator.taps": (1, 1)}, "(1, 1)"),
  ({"tokenizer.steps": 0}, "0"),
  ({"pretrain.batch_size": 0}, "0"),
  ({"finetune.batch_size": 30}, "30"),
  ({"pretrain.optimizer.schedule": "linear"}, "'linear'"),
  ({"finetune.gpt_optimizer.schedule": "linear"}, "'linear'"),
  ({"adversary.optimizer.schedule": "linear"}, "'linear'"),
  ({"tokenizer.adversary.loss": "wasserstein"}, "'wasserstein'"),
  ({"adversary.penalty": "none"}, "'none'"),
  ({"adversary.augment": ("color", "blur")}, "'blur'"),
  ({"finetune.prefix_none_prob": 0.9}, "1.2"),
  ({"finetune.memory": "codes"}, "'codes'"),
  ({"discriminator.attention": "l1"}, "'l1'"),
  ({"sample.truncation": 1.5}, "1.5"),
  ({"sample.refine_radius": -1.0}, "-1"),
  ({"finetune.gpt_trained": "some"}, "'some'"),
  ({"finetune.gpt_trained": "last:7"}, "the 6 layers"),
  ({"guard": "wait"}, "'wait'"),
  ({"adversary.penalty_fraction": 0.0}, "0"),
  ({"adversary.see_taps": True, "generator.taps": ()}, "generator.taps=()"),
  ({"keep_checkpoints": 0}, "0"),
  ({"gan.class_weight": -1.0}, "-1"),
  ({"finetune.reconstruct_all_steps": -5}, "-5"),
  ({"adversary.penalty_every": 0}, "0"),
  ({"fd_images": 1}, "1"),
  ({"fd_images": 20_000}, "20000"),
  ({"fd_images": 8, "data.image_size": 8, "discriminator.patch": 4}, "image_size=8"),
  ({"best_mode": "most"}, "'most'"),
  ({"stage_checkpoint": "first"}, "'first'"),
  ({"stage_checkpoint": "best"}, "config.best_metric is empty"),
  ({"tokenizer.continuous_prob": 1.5}, "1.5"),
  ({"window": 3}, "3"),
  ({"window": -2}, "-2"),
  ({"class_dropout": 1.5}, "1.5"),
  ({"gpt.dropout": 1.0}, "1"),
  ({"generator.modulation_dim": 0}, "0"),
  ({"optimizer.end_lr_ratio": 2.0}, "2"),
  ({"style_encoder.num_heads": 5}, "heads"),
  ({"style_encoder.num_tokens": 0}, "0"),
]

STYLE = [
  ({"style.data.path": ""}, "empty"),
  ({"style.batch_size": 0}, "0"),
  ({"style.head_channels": 0}, "0"),
  ({"style.partial_prob": -0.1}, "-0.1"),
  ({"tokenizer_kind": "vqgan", "patch": 16}, "'vqgan'"),
]


@pytest.mark.parametrize("changes, value", STYLE, ids=[str(changes) for changes, _ in STYLE])
def test_a_bad_value_of_the_style_stage_is_named(changes, value):
  config = configs.default()
  config.stages = ("tokenizer", "style")
  config.style.data.path = "paintings"
  validation.check(config)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError) as caught:
    validation.check(config)
  message, key = str(caught.value), next(iter(changes))
  assert "\n" not in message and f"config.{key}" in message and value in message


@pytest.mark.parametrize("changes, value", BAD, ids=[str(changes) for changes, _ in BAD])
def test_a_bad_value_is_named_in_one_line(changes, value):
  config = configs.default()
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError) as caught:
    validation.check(config)
  message, (key, *_) = str(caught.value), changes
  assert "\n" not in message and f"config.{key}" in message and value in message


VQGAN = [
  ({"patch": 8}, "8"),
  ({"vqgan.multipliers": (1, 2)}, "config.patch=4"),
  ({"vqgan.multipliers": (1, 0, 2)}, "(1, 0, 2)"),
  ({"vqgan.multipliers": ()}, "()"),
  ({"vqgan.channels": 48}, "48"),
  ({"vqgan.z_channels": 0}, "0"),
  ({"vqgan.decoder_blocks": 0}, "0"),
]


@pytest.mark.parametrize("changes, value", VQGAN, ids=[str(changes) for changes, _ in VQGAN])
def test_a_bad_value_of_the_convolutional_tokenizer_is_named_if_it_is_chosen(changes, value):
  config = configs.default()
  config.vqgan.multipliers = (1, 1, 2)
  config.update_from_flattened_dict(changes)
  validation.check(config)
  config.tokenizer_kind = "vqgan"
  with pytest.raises(UserError) as caught:
    validation.check(config)
  message, (key,) = str(caught.value), changes
  assert "\n" not in message and f"config.{key}" in message and value in message


def test_sharding_rules_are_pairs():
  config = configs.default()
  config.parallel.rules = ("codebook=none", "head/(a|b)=1")
  assert configs.sharding_rules(config) == [("codebook", None), ("head/(a|b)", 1)]


def test_the_defaults_are_fine():
  validation.check(configs.default())


def test_only_the_stages_that_run_are_checked():
  config = configs.default()
  config.stages = ("tokenizer",)
  config.pretrain.batch_size = 30
  validation.check(config)


# -- Files -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def load(tmp_path_factory):
  """A function from FILE.py[:argument] in configs/ to its config."""

  def get(spec):
    if spec == "from_workdir.py":
      directory = tmp_path_factory.mktemp("source")
      workdir.claim(configs.default().lock(), directory, ["cat"])
      spec += f":{directory}"
    return flag_errors.load(f"{ROOT}/configs/{spec}")

  return get


@pytest.fixture(params=SPECS)
def config(request, load):
  """The config of one file, with one argument."""
  return load(request.param)


def test_there_are_configs():
  assert {"quickstart.py", *ARGUMENTS} <= set(FILES)


def test_every_config_is_whole_locked_and_good(config, monkeypatch):
  # Its batch is for a machine that its mesh fits.
  monkeypatch.setattr(jax, "device_count", lambda: config.parallel.fsdp)
  validation.check(config)
  assert config.is_locked
  assert set(configs.flatten(config)) == set(configs.flatten(configs.default()))


def test_every_config_survives_its_work_directory(config, tmp_path):
  workdir.claim(config, tmp_path, ["cat", "dog"])
  flat = json.loads((tmp_path / "config.json").read_text())
  assert flat["generator.taps"] == list(config.generator.taps)
  found, names = workdir.read(tmp_path)
  assert found == config and found.is_locked and names == ["cat", "dog"]
  assert [type(v) for _, v in found.items()] == [type(v) for _, v in config.items()]
  workdir.claim(found, tmp_path, names)  # and is the same config to a second start


def test_a_key_that_came_later_counts_as_its_default(tmp_path):
  config = configs.default()
  workdir.claim(config, tmp_path, ["cat"])
  flat = json.loads((tmp_path / "config.json").read_text())
  del flat["gpt.drop_path"]
  (tmp_path / "config.json").write_text(json.dumps(flat))
  config.gpt.drop_path = 0.1
  with pytest.raises(UserError, match="gpt.drop_path is 0.0 there and 0.1 here"):
    workdir.claim(config, tmp_path, ["cat"])
  config.gpt.drop_path = 0.0
  workdir.claim(config, tmp_path, ["cat"])


@pytest.mark.parametrize("written", [None, {"version": "0.9.0", "format": workdir.FORMAT + 1}])
def test_a_work_directory_of_another_version_is_refused_in_one_line(tmp_path, written):
  config = configs.default()
  workdir.claim(config, tmp_path, ["cat"])
  flat = json.loads((tmp_path / "config.json").read_text())
  assert flat.pop("imgtx_jax") == {"version": imgtx_jax.__version__, "format": workdir.FORMAT}
  text = json.dumps(({"imgtx_jax": written} if written else {}) | flat)
  (tmp_path / "config.json").write_text(text)
  words = f"{tmp_path} was written by imgtx_jax {written['version'] if written else '0.1.0'}, "
  for call in (lambda: workdir.read(tmp_path), lambda: workdir.claim(config, tmp_path, ["cat"])):
    with pytest.raises(UserError, match=words) as error:
      call()
    assert "\n" not in str(error.value)
  assert (tmp_path / "config.json").read_text() == text


def test_a_key_that_is_gone_is_named(tmp_path):
  workdir.claim(configs.default(), tmp_path, ["cat"])
  flat = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(flat | {"gpt.vanished": 1}))
  with pytest.raises(UserError, match="has gpt.vanished, which this version"):
    workdir.read(tmp_path)


def describe(tree):
  """Shapes and types of a tree."""
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("file", FILES)
def test_every_config_traces_all_its_stages(file, load, random_vgg):
  """With its first argument: larger variants are the same program, and take long to trace."""
  config = load(next(spec for spec in SPECS if spec.startswith(file)))
  key = jax.eval_shape(lambda: jax.random.key(0))
  size, restored = config.data.image_size, {}
  for task in workdir.stage_runs(config):
    stage = stages.build(task.stage, config, CLASSES)
    shape = (stage.batch_size, size, size, 3)
    assert set(stage.sources) <= set(restored)
    state = jax.eval_shape(
      lambda key, restored, stage=stage, shape=shape: stage.init(key, shape, restored),
      key,
      restored,
    )
    batch = {
      "image": jax.ShapeDtypeStruct(shape, np.uint8),
      "label": jax.ShapeDtypeStruct(shape[:1], np.int32),
    }
    batch |= {name: batch["image"] for name in stage.companion_names}
    after, metrics = jax.eval_shape(functools.partial(stage.step, axis=None), state, batch, key)
    assert describe(after) == describe(state)
    assert "loss" in metrics and all(m.shape == () for m in metrics.values())
    if stage.refresh:
      refreshed = jax.eval_shape(functools.partial(stage.refresh, axis=None), state, key)
      assert describe(refreshed) == describe(state)
    restored[task.stage] = {
      name: getattr(state, name) for name in ("params", "ema", "variables", "step")
    }


# -- Keys ------------------------------------------------------------------------------------------


def test_there_are_at_most_200_keys():
  assert len(configs.flatten(configs.default())) <= 200


def test_a_block_of_options_has_a_key_for_each_field():
  config = configs.default()
  names = {cls: {field.name for field in dataclasses.fields(cls)} for cls in OPTIONS}
  assert set(config.adversary) - {"optimizer"} == names[AdversarialOptions]
  assert set(config.sample) == names[SamplingOptions]
  assert set(config.optimizer) | set(config.tokenizer.optimizer) == names[OptimizerOptions]


def test_every_key_of_a_network_is_a_field_of_its_block_or_its_own():
  config = configs.default()
  block = {field.name for field in dataclasses.fields(BlockConfig)}
  own = {
    "encoder": set(),
    "generator": {"taps", "head_channels", "head_overlap", "noise_dim", "modulation_dim"},
    "gpt": {"order"},
    "discriminator": {"patch", "overlap"},
    "style_encoder": {"num_tokens"},
  }
  for name, keys in own.items():
    assert set(config[name]) - block == keys | {"width", "depth"}, name


def test_the_last_block_that_has_a_key_counts():
  blocks = dict(beta1=0.5, clip_norm=2.0), dict(beta1=0.1, learning_rate=1.0, unknown=3)
  assert option_fields.read(OptimizerOptions, *blocks, warmup_steps=7) == OptimizerOptions(
    learning_rate=1.0, beta1=0.1, clip_norm=2.0, warmup_steps=7
  )


# -- Flattening ------------------------------------------------------------------------------------


def test_flatten_names_every_leaf_as_json_has_it():
  flat = configs.flatten(configs.default())
  assert json.loads(json.dumps(flat)) == flat
  assert flat["adversary.optimizer.beta1"] == 0.0
  assert flat["stages"] == ["tokenizer", "pretrain", "finetune"]
  assert not any(isinstance(value, (dict, tuple)) for value in flat.values())


def test_grid():
  config = configs.default()
  config.data.image_size, config.patch = 48, 4
  assert configs.grid_shape(config) == (12, 12) and configs.num_codes(config) == 144


def test_compute_dtype_is_float32_on_a_cpu_unless_asked():
  config = configs.default()
  assert configs.compute_dtype(config) == "float32"
  assert configs.compute_dtype(config, "tpu") == "bfloat16"  # of another platform's chips
  config.dtype = "bfloat16"
  assert configs.compute_dtype(config) == "bfloat16"


# -- Small variants --------------------------------------------------------------------------------


def shrink(config):
  """The same experiment with networks, images and batches that compile and run in seconds."""
  small = config.copy_and_resolve_references()
  with small.unlocked():
    small.data.image_size = 2 * max(small.patch, small.discriminator.patch)
    for name in ("encoder", "generator", "gpt", "discriminator"):
      small[name].update(dict(width=16, num_heads=2, depth=1, mlp_dim=32))
    small.remat = "none"
    small.generator.update(dict(taps=(), head_channels=4, noise_dim=4, modulation_dim=8))
    small.vqgan.update(dict(channels=32, z_channels=8, encoder_blocks=1, decoder_blocks=1))
    small.quantizer.codebook_size = 16
    small.finetune.bank_rows = 1
    for stage in ("tokenizer", "pretrain", "finetune", "gan"):
      small[stage].update(dict(batch_size=4, steps=2))
      small[stage].optimizer.warmup_steps = 0
    for stage in ("tokenizer", "finetune"):
      small[stage].lpips_weight = 0.0  # its weights are an extra
    small.adversary.penalty_fraction = 0.5
  return small


# Fine-tuning beside the other tokenizer than main_test's: vqgan_test trains that one, and what the
# rest of the files change, the test above traces.
@pytest.mark.parametrize("file", ["imagenet256.py"])
def test_a_small_variant_runs_two_steps_of_its_last_stage(file, load):
  config = shrink(load(file))
  size, restored, key = config.data.image_size, {}, jax.random.key(0)
  images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
  batch = {"image": images, "label": np.arange(4, dtype=np.int32) % 3}
  for name in config.stages:
    stage = stages.build(name, config, 3)
    state = before = stage.init(key, images.shape, restored)
    restored[name] = {key: getattr(state, key) for key in ("params", "ema", "variables")}
  step = jax.jit(functools.partial(stage.step, axis=None))
  for _ in range(2):
    state, metrics = step(state, batch, key)
  assert all(np.isfinite(float(value)) for value in metrics.values()), metrics
  moved = jax.tree.map(lambda a, b: np.any(np.asarray(a != b)), state.params, before.params)
  assert any(jax.tree.leaves(moved)) and int(state.step) == 2
