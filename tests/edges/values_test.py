"""Values that must be what they say: samples of images of every type, seeds, temperatures; at the
edges of their ranges."""

import io
import resource

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imgtx_jax import rng
from imgtx_jax.config import defaults, validation
from imgtx_jax.data import pipeline, sources, transforms
from imgtx_jax.errors import UserError
from imgtx_jax.io import image_files
from imgtx_jax.sampling import autoregressive
from imgtx_jax.sampling.options import SamplingOptions

RAMP = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
COLOURS = np.dstack([RAMP, RAMP[::-1], RAMP.T])
EXPECTED = {"grey": np.rint(255 * np.dstack([RAMP] * 3)), "colour": np.rint(255 * COLOURS)}


def tiff(values):
  """Encoded by OpenCV, which writes colours of every type."""
  values = values[..., ::-1] if values.ndim == 3 else values
  return cv2.imencode(".tif", values)[1].tobytes()


def pillow(values, kind="TIFF"):
  data = io.BytesIO()
  Image.fromarray(values).save(data, kind)
  return data.getvalue()


IMAGES = {
  "float grey in 0 … 1": ("grey", pillow(RAMP)),
  "float grey in 0 … 255": ("grey", pillow(255 * RAMP)),
  "float colours in 0 … 1": ("colour", tiff(COLOURS)),
  "float64 grey": ("grey", tiff(RAMP.astype(np.float64))),
  "16-bit grey": ("grey", pillow((65535 * RAMP).astype(np.uint16))),
  "16-bit grey PNG": ("grey", pillow((65535 * RAMP).astype(np.uint16), "PNG")),
  "16-bit colours": ("colour", tiff((65535 * COLOURS).astype(np.uint16))),
  "32-bit grey of 8 bits": ("grey", pillow((255 * RAMP).astype(np.int32))),
  "32-bit grey of 16 bits": ("grey", pillow((65535 * RAMP).astype(np.int32))),
  "8-bit colours": ("colour", tiff((255 * COLOURS).astype(np.uint8))),
  "float map": ("grey", cv2.imencode(".pfm", RAMP)[1].tobytes()),
}


@pytest.mark.parametrize("case", IMAGES)
def test_samples_of_every_type(case, tmp_path):
  wanted, data = IMAGES[case]
  (tmp_path / "x.tif").write_bytes(data)
  for found in (transforms.decode(data), image_files.read(tmp_path / "x.tif").rgb):
    assert found.dtype == np.uint8 and found.shape == (32, 32, 3)
    assert np.abs(found - EXPECTED[wanted]).max() <= 1


OUT_OF_RANGE = {
  "negative": RAMP - 0.5,
  "above 255": 300 * RAMP,
  "NaN": np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
  "infinity": np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32),
  "over 16 bits": (70000 * RAMP).astype(np.int32),
  "negative integers": (RAMP * 10).astype(np.int32) - 5,
}


@pytest.mark.parametrize("case", OUT_OF_RANGE)
def test_samples_of_no_known_range_are_refused(case, tmp_path):
  data = pillow(OUT_OF_RANGE[case])
  with pytest.raises(transforms.CorruptImageError, match="its values go from"):
    transforms.decode(data)
  (tmp_path / "x.tif").write_bytes(data)
  with pytest.raises(UserError, match="its values go from"):
    image_files.read(tmp_path / "x.tif")


def test_black_and_white_floats():
  for value in (0.0, 1.0):
    image = transforms.decode(pillow(np.full((8, 8), value, np.float32)))
    assert (image == 255 * value).all()


SEEDS = (0, 3, 2**31, 2**32 - 1, 2**32, 2**32 + 3, 2**33 + 3, 2**63, 2**64 - 1)


def test_seeds_of_64_bits_are_all_different():
  keys = {tuple(jax.random.key_data(rng.root_key(seed)).tolist()) for seed in SEEDS}
  assert len(keys) == len({rng.seed_32(seed) for seed in SEEDS}) == len(SEEDS)
  for seed in SEEDS[:4]:
    assert rng.seed_32(seed) == seed
    assert rng.root_key(seed) == jax.random.key(seed)


def test_data_are_in_another_order_under_every_seed():
  source = sources.open_source("emoji", split="train")
  options = dict(batch_size=8, image_size=32, crop="center", min_scale=1.0, threads=0)
  firsts = [next(pipeline.train_iterator(source, seed=seed, **options)) for seed in SEEDS]
  assert len({batch["image"].tobytes() for batch in firsts}) == len(SEEDS)


@pytest.mark.parametrize("temperature", [1e-19, 1e-21, 1e-38, 1e-40, 1e-300])
@pytest.mark.parametrize("top_p", [1.0, 1e-40])
def test_a_temperature_near_zero_draws_as_zero_does(temperature, top_p):
  logits = jax.random.normal(jax.random.key(0), (16, 64)) * 30

  def draw(temperature):
    options = SamplingOptions(temperature=temperature, top_p=top_p)
    return autoregressive.draw_codes(logits, jax.random.split(jax.random.key(1), 16), 0, options)

  assert (draw(temperature) == jnp.argmax(logits, axis=-1)).all()
  assert (draw(0.0) == jnp.argmax(logits, axis=-1)).all()


BAD_NUMBERS = [
  ("seed", -1),
  ("tokenizer.optimizer.learning_rate", float("nan")),
  ("style.content_weight", float("inf")),
  ("style.content_weight", 1e300),  # infinity in float32
  ("tokenizer.steps", 2**31),  # which int32 does not hold
  ("pretrain.batch_size", 10**30),
  ("finetune.ema_decay", 1.5),
  ("optimizer.beta2", 1.0),
  ("data.image_size", 2**30),
  ("log_steps", -1),
  ("data.threads", -2),
  ("sample.temperature", float("nan")),
]


@pytest.mark.parametrize("key, value", BAD_NUMBERS)
def test_a_number_that_none_can_be_is_refused(key, value):
  config = defaults.default()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=f"config.{key}="):
    validation.check(config, devices=1)


def test_a_seed_over_64_bits_is_refused():
  config = defaults.default()
  config.seed = 2**64
  with pytest.raises(UserError, match="config.seed=18446744073709551616"):
    validation.check(config, devices=1)


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_a_header_that_asks_for_gigabytes_gets_none(kind, tmp_path):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  data = damaged_header(kind)
  with pytest.raises(transforms.CorruptImageError):
    transforms.decode(data)
  (tmp_path / f"x.{kind}").write_bytes(data)
  with pytest.raises(UserError):
    image_files.read(tmp_path / f"x.{kind}")
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def damaged_header(kind):
  """A small image whose header tells of 30,000 × 30,000 pixels."""
  side = 30_000
  if kind == "jpg":
    data = cv2.imencode(".jpg", (255 * COLOURS).astype(np.uint8))[1].tobytes()
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + 2 * side.to_bytes(2, "big") + data[start + 4 :]
  data = tiff((65535 * COLOURS).astype(np.uint16))
  old, new = (np.array([x], "<u4").tobytes() for x in (32, side))
  for tag in (256, 257):  # width and height: a tag of 2 bytes, its type, a count of 1, the value
    start = data.index(np.array([tag], "<u2").tobytes(), int.from_bytes(data[4:8], "little"))
    assert data[start + 8 : start + 10] == old[:2]
    data = data[: start + 2] + b"\4\0\1\0\0\0" + new + data[start + 12 :]
  return data
