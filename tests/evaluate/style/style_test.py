"""Style transfer measured over pairs: rows of methods, repetition, interruption, bad input."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from imgtx_jax.config import defaults as configs
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate.style import (
  evaluation,
  strength_plot,
  style_measures,
  style_methods,
  style_pairs,
)
from imgtx_jax.models import color_transfer, texture_synthesis
from imgtx_jax.models.style_encoder import Style

pytestmark = pytest.mark.usefixtures("small_vgg")


class FakeStylizer:
  """Pulls the content towards the style's mean colour."""

  multiple = 8
  weights = {"pull": np.float32([0.3])}

  def __init__(self):
    self.rendered = []

  def styles(self, images):
    images = jnp.asarray(images)
    mean = images.mean((1, 2))[:, None]
    looks = color_transfer.measure(images), texture_synthesis.extract(images, self.multiple)
    return Style(mean, jnp.zeros((len(images), 2)), *looks, jnp.ones(len(images)))

  def null(self, batch):
    empty = color_transfer.zeros(batch), texture_synthesis.zeros(batch, self.multiple)
    nothing = jnp.zeros((batch, 2))
    return Style(jnp.full((batch, 1, 3), -1.0), nothing, *empty, nothing[:, 0])

  def render(self, content, style, *, hard=False):
    self.rendered.append(len(content))
    return 0.7 * content + 0.3 * style.tokens[:, :, None]


@pytest.fixture
def folders(tmp_path, smooth_images):
  """(contents, styles): three images c0, c1, c2 and two s0, s1 of 40×32 pixels."""
  found = []
  for name, count, seed in (("c", 3, 1), ("s", 2, 7)):
    folder = tmp_path / name
    folder.mkdir()
    for i, image in enumerate(smooth_images(count, 40, seed)):
      Image.fromarray(image[:, :32]).save(folder / f"{name}{i}.png")
    found.append(str(folder))
  return found


@pytest.fixture
def pairs(folders):
  return style_pairs.Pairs(*folders, size=32)


@pytest.fixture
def measure(pairs, tmp_path):
  """measure(methods, …): what style.run gives."""

  def run(methods, *, among=pairs, out="out", batch_size=4, **options):
    options = dict(leak_pairs=0, leak_rounds=4) | options
    return evaluation.run(among, methods, out=tmp_path / out, batch_size=batch_size, **options)

  return run


def model(batch_size=4):
  return style_methods.Model(FakeStylizer(), configs.default(), batch_size)


def values_of(found, row):
  return {name: figure["value"] for name, figure in found["rows"][row].items()}


def write_outputs(pairs, folder, change):
  """Outputs change(content image) of all pairs."""
  folder.mkdir()
  for row in range(pairs.count):
    (image,) = pairs.content(np.array([row]))
    change(Image.fromarray(image)).save(folder / f"{pairs.name(row)}.png")
  return str(folder)


def test_pairs_are_all_or_spread_evenly(folders, pairs):
  assert [pairs.name(row) for row in range(6)] == [
    f"c{c}--s{s}" for c in range(3) for s in range(2)
  ]
  some = style_pairs.Pairs(*folders, size=32, limit=3)
  assert [some.name(row) for row in range(3)] == ["c0--s0", "c1--s0", "c2--s0"]
  assert some.content(np.arange(3)).shape == (3, 32, 32, 3)
  assert some.fingerprint["of_pairs"] == 6 and some.fingerprint["count"] == 3
  assert np.array_equal(pairs.style(np.array([1, 3]))[0], pairs.style(np.array([5]))[0])


def test_baselines(measure, pairs):
  methods = [style_methods.Identity(), style_methods.StyleCopy(), style_methods.ColorTransfer()]
  found = measure(methods)
  same, copy, color = (values_of(found, method.name) for method in methods)
  assert same["ssim"] == pytest.approx(1.0, abs=1e-5)
  for name in ("lpips", "lpips_gray", "cfsd", "content"):
    assert 0 <= same[name] < 1e-5 and copy[name] > 1e-4 and color[name] > 1e-5
  for name in ("style", "gram", "histogram"):
    assert 0 <= copy[name] < 1e-5 < min(same[name], color[name])
  # Of two styles, the other's copy.
  assert copy["other"] > 0.01 and same["other"] == pytest.approx(same["style"], rel=1e-4)
  assert copy["ssim"] < color["ssim"] < 1
  assert set(found["timing"]["methods"]) == {"colour mean-std"}
  assert found["protocol"]["pairs"]["count"] == 6 and found["leak"] == {}


def test_rows_at_several_strengths_and_their_plot(measure, pairs):
  methods = [
    style_methods.Identity(),
    *(style_methods.Model(FakeStylizer(), configs.default(), 4, s) for s in (0, 0.5, 1)),
  ]
  found = measure(methods)
  names = ["identity", "strength 0", "strength 0.5", "this model"]
  assert list(found["rows"]) == names
  rows = np.arange(2)
  none, half, full = (
    method.apply(pairs.content(rows), pairs, rows).astype(int) for method in methods[1:]
  )
  assert np.abs(none - full).max() > 10
  np.testing.assert_allclose(half, (none + full) / 2, atol=1.5)  # the fake is linear in the style
  prints = [str(method.fingerprint) for method in methods]
  assert len(set(prints)) == len(prints)  # or one's results would be taken for another's
  plot = Image.open(io.BytesIO(strength_plot.draw(found, names[1:])))
  assert plot.format == "PNG" and len(plot.convert("RGB").getcolors(1 << 24)) > 10


def test_the_table_by_hand():
  values = {name: {"value": 0.25} for name in style_measures.METRICS}
  timing = {"methods": {"one": {"seconds_a_pair": 0.125}}}
  leak = {"one": {"1": values, "20": values}}
  lines = evaluation.table({"rows": {"one": values, "two": values}, "leak": leak, "timing": timing})
  heads, one, two, blank, applied, once, last = lines
  assert heads.startswith("     SSIM ↑  LPIPS ↓  LPIPS gray ↓") and heads.endswith("  s a pair")
  assert one.split() == ["one", *["0.25"] * 9, "0.125"] and len(one) == len(heads)
  assert two.split() == ["two", *["0.25"] * 9] and blank == ""
  assert applied.startswith("one, applied") and "style" not in applied
  assert [line.split()[:3] for line in (once, last)] == [["1", "×", "0.25"], ["20", "×", "0.25"]]


def test_content_measures_order_blurred_outputs(measure, pairs, tmp_path):
  methods = []
  for radius in (1, 3, 8):
    change = lambda image, r=radius: image.filter(ImageFilter.GaussianBlur(r))  # noqa: E731
    folder = write_outputs(pairs, tmp_path / f"r{radius}", change)
    methods.append(style_methods.Files(f"r{radius}", folder, pairs))
  found = measure(methods)
  values = [values_of(found, method.name) for method in methods]
  for name in ("lpips", "lpips_gray", "cfsd", "content"):
    assert values[0][name] < values[1][name] < values[2][name]
  assert values[0]["ssim"] > values[1]["ssim"] > values[2]["ssim"]


def test_outputs_of_another_size_are_resized(measure, pairs, tmp_path):
  large = write_outputs(pairs, tmp_path / "large", lambda image: image.resize((64, 64)))
  found = measure([style_methods.Files("large", large, pairs)])
  assert values_of(found, "large")["ssim"] > 0.99
  assert found["protocol"]["methods"]["large"]["path"].endswith("large")


def test_the_model_and_repetition(measure, pairs):
  methods = [model(), style_methods.ColorTransfer(), style_methods.Identity()]
  found = measure(methods, leak_pairs=100)
  timing = found["timing"]["methods"]["this model"]
  assert set(timing) == {"seconds_a_pair", "seconds_a_style", "peak_memory_bytes"}
  leak = found["leak"]["this model"]
  assert list(leak) == ["1", "2", "4"] and set(found["leak"]) == {"this model", "colour mean-std"}
  for name in style_measures.CONTENT:
    # Once applied it is the row itself, then the content fades.
    assert leak["1"][name]["value"] == pytest.approx(values_of(found, "this model")[name], rel=1e-4)
    sign = -1 if name == "ssim" else 1
    assert sign * leak["1"][name]["value"] < sign * leak["4"][name]["value"]
  assert found["protocol"]["leak"] == {"pairs": 6, "rounds": 4, "bits": 8}
  text = "\n".join(evaluation.table(found))
  assert "this model, applied" in text and "4 ×" in text
  fewer = measure(methods[:1], leak_pairs=2)
  assert fewer["protocol"]["leak"]["pairs"] == 2
  assert values_of(fewer, "this model") == values_of(found, "this model")


def test_any_batch_gives_the_same(measure):
  first = measure([model()], out="a")
  again = measure([model(3)], out="b", batch_size=1)
  assert values_of(again, "this model") == pytest.approx(values_of(first, "this model"), rel=1e-4)


def test_a_kill_in_the_middle_changes_nothing(measure, pairs, monkeypatch):
  monkeypatch.setattr(evaluation, "SHARD", 2)
  whole = measure([model()], out="whole")

  def stop(title, done, total):
    if done == 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    measure([model()], batch_size=2, report=stop)
  second = model()
  counted = []
  again = measure([second], batch_size=2, report=lambda *line: counted.append(line))
  assert [total for _, _, total in counted] == [4, 4]  # of six: a shard was whole
  assert values_of(again, "this model") == pytest.approx(values_of(whole, "this model"), rel=1e-4)
  counted.clear()
  assert values_of(measure([model()], report=lambda *line: counted.append(line)), "this model")
  assert not counted


@pytest.mark.parametrize(
  "outputs, words",
  [
    ("half=FOLDER", "--outputs=half=.* lacks 1 of 6 outputs, such as c2--s1.png"),
    ("half", "--outputs=half: give NAME=FOLDER"),
    ("identity=FOLDER", "give NAME=FOLDER, each NAME once"),
    ("half=nowhere", "--outputs=half=nowhere is no folder"),
  ],
)
def test_bad_outputs(outputs, words, pairs, tmp_path):
  folder = write_outputs(pairs, tmp_path / "half", lambda image: image)
  (tmp_path / "half" / "c2--s1.png").unlink()
  options = dict(directory=None, outputs=[outputs.replace("FOLDER", folder)], batch_size=4)
  with pytest.raises(UserError, match=words):
    style_methods.open_methods(pairs, **options)


def test_bad_folders(folders, tmp_path):
  contents, styles = folders
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="empty holds no image"):
    style_pairs.Pairs(contents, tmp_path / "empty", size=32)
  with pytest.raises(UserError, match="--content=nowhere is no folder"):
    style_pairs.Pairs("nowhere", styles, size=32)
  (tmp_path / "c" / "c1.jpg").write_bytes(b"no image")
  with pytest.raises(UserError, match="two images called 'c1'"):
    style_pairs.Pairs(contents, styles, size=32)
  (tmp_path / "c" / "c1.png").unlink()
  with pytest.raises(UserError, match="c1.jpg is no whole image"):
    style_pairs.Pairs(contents, styles, size=32).content(np.arange(6))


def test_the_size_must_fit_the_model(folders, monkeypatch):
  monkeypatch.setattr(style_methods.workdir, "read", lambda directory: (configs.default(), []))
  monkeypatch.setattr(style_methods, "load_stylizer", lambda directory, checkpoint: FakeStylizer())
  options = dict(directory="work", outputs=[], batch_size=4)
  methods = style_methods.open_methods(style_pairs.Pairs(*folders, size=40), **options)
  assert [method.name for method in methods][-1] == "this model"
  with pytest.raises(UserError, match="--image_size=36 is no multiple of 8"):
    style_methods.open_methods(style_pairs.Pairs(*folders, size=36), **options)


def test_without_the_weights(measure, monkeypatch):
  monkeypatch.setattr(style_measures.lpips_weights, "available", lambda: False)
  with pytest.raises(UserError, match=r"pip install 'imgtx_jax\[perceptual\]'"):
    measure([style_methods.Identity()])
