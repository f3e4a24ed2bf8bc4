"""The command on a work directory: every metric, the sweep, and what it refuses."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import __main__ as evaluate
from imgtx_jax.evaluate import extractors, feature_networks, inputs, runner
from imgtx_jax.evaluate.feature_networks import FeatureNetwork
from imgtx_jax.io.image_grid import save_grid

NAMES = [str(i) for i in range(9)]  # as many as the emoji have
_BUILT = {}


@pytest.fixture
def trained(tiny_config, tmp_path_factory, untrained_workdir):
  """A work directory of finished stages with random weights."""
  if not _BUILT:
    _BUILT["work"] = tmp_path_factory.mktemp("work")
    untrained_workdir(tiny_config.lock(), _BUILT["work"], NAMES)
  return _BUILT["work"]


def load_tiny(name):
  """A network of projected colours, whatever the name."""
  matrix = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)

  def apply(params, images):
    blocks = images.astype(jnp.float32).reshape(len(images), 2, 8, 2, 8, 3) / 255
    return {"features": blocks.mean((2, 4)).reshape(len(images), -1) @ params}

  return FeatureNetwork("tiny", "FD-Tiny", "none", "ab" * 32, matrix, apply)


@pytest.fixture
def run(trained, parse_flags, monkeypatch, tmp_path):
  """run(flag=value, …) as the command line does; returns evaluation.json."""
  defaults = dict(
    workdir=trained,
    num=20,
    reference_num=40,
    batch_size=8,
    kid_subset_size=10,
    splits=2,
    out=tmp_path / "out",
    leak_pairs=0,
    leak_rounds=2,
  )
  monkeypatch.setenv("IMGTX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(feature_networks, "load", load_tiny)

  def call(**values):
    flags = parse_flags(evaluate.COMMAND, **defaults | values)
    evaluate.main(flags)
    name = "audit" if flags.audit else "sweep" if flags.sweep else "evaluation"
    name = "style" if flags.metrics == "style" else name
    return json.loads((tmp_path / "out" / f"{name}.json").read_text())

  return call


def test_every_metric_of_a_work_directory(run, tmp_path, capsys):
  found = run(prefix=2, cfg_scale=1.5, save_npz=str(tmp_path / "samples.npz"))
  by_metric = {}
  for name, result in found["results"].items():
    by_metric.setdefault(result["metric"], []).append(name)
    assert np.isfinite(result["value"])
  assert set(by_metric) == {
    "frechet",
    "kid",
    "precision_recall",
    "class_accuracy",
    "reconstruction",
    "codes",
    "nearest",
  }
  assert {"rFD-Tiny", "PSNR (dB)", "SSIM"} <= set(by_metric["reconstruction"])
  assert by_metric["codes"] == ["code usage", "code perplexity", "bits per code (GPT)"]
  samples = found["protocol"]["samples"]
  assert samples["prefix"] == 2 and samples["of_codes"] == 16 and samples["seed"] == 0
  assert samples["sampling"]["cfg_scale"] == 1.5 and samples["stage"] == "finetune"
  assert samples["labels"].startswith("data:")
  assert found["protocol"]["reference"]["split"] == "train"
  assert found["protocol"]["held_out"]["count"] == 20
  assert found["timing"]["drawing_seconds_an_image"] > 0
  assert (tmp_path / "out" / "nearest.png").exists()
  shown = capsys.readouterr().out
  assert "skipped sfid" in shown and "rFD-Tiny" in shown
  # The written samples are the drawn ones: the same distance.
  npz = str(tmp_path / "samples.npz")
  again = run(samples=npz, metrics="frechet, class_accuracy", out=str(tmp_path / "out"))
  assert set(again["results"]) == {"FD-Tiny", by_metric["class_accuracy"][0]}
  for name, result in again["results"].items():
    assert result["value"] == pytest.approx(found["results"][name]["value"], rel=1e-6)


def test_a_sweep_and_its_plot(run, tmp_path):
  found = run(sweep="prefix=0,2", metrics="frechet,precision_recall", num=8, cfg_scale=1.5)
  assert [e["value"] for e in found["evaluations"]] == [0, 2]
  prefixes = [e["protocol"]["samples"]["prefix"] for e in found["evaluations"]]
  assert found["option"] == "prefix" and prefixes == [0, 2]
  assert (tmp_path / "out" / "sweep.png").read_bytes()[1:4] == b"PNG"


def test_the_tokenizer_alone(run, monkeypatch):
  monkeypatch.setattr(extractors.lpips_weights, "available", lambda: False)
  found = run(stage="tokenizer", num=12)
  assert {f["metric"] for f in found["results"].values()} == {"reconstruction", "codes"}
  assert not {"bits per code (GPT)", "LPIPS (vgg)"} & set(found["results"])
  with pytest.raises(UserError, match="has only a tokenizer"):
    run(stage="tokenizer", sweep="prefix=0")


def test_labels_in_turn_or_as_in_the_data(trained):
  model = inputs.load_model(str(trained))
  labels, rule = inputs.draw_labels(model, 20, "balanced", 0)
  assert labels.tolist() == [i % 9 for i in range(20)] and rule.startswith("balanced")
  labels, rule = inputs.draw_labels(model, 500, "", 0)
  data = inputs.data_labels(model, True)
  shares = np.bincount(labels, minlength=9) / 500 - np.bincount(data, minlength=9) / len(data)
  assert rule.startswith("data") and np.abs(shares).max() <= 1.01 / 500
  assert not np.array_equal(labels, np.sort(labels))


@pytest.mark.parametrize(
  "values, words",
  [
    (dict(num=0), "--num=0 is under 1"),
    (dict(workdir=""), "nothing to evaluate: give --workdir, or --samples"),
    (dict(workdir="nowhere"), "nowhere holds no config.json"),
    (dict(samples="nowhere"), "nowhere is no folder of images"),
    (dict(reference="nowhere"), "nowhere is no folder of images"),
    (dict(sweep="prefix=0", samples="a.npz"), "--sweep draws anew for each value"),
    (dict(sweep="prefix=0", save_npz="a.npz"), "leave --save_npz and --save_stats out"),
    (dict(sweep="prefix=0", metrics="codes"), "--sweep with --metrics=codes"),
    (dict(prefix=17), "--prefix=17 is outside 0 … 16"),
    (dict(top_p=2.0), "--top_p=2.0 is outside 0 … 1"),
    (dict(metrics="kid", num=5), "--metrics=kid cannot be had: 5 samples"),
    (dict(content="a"), "--content, --style and --outputs are for --metrics=style"),
    (dict(metrics="style"), "--metrics=style needs two folders of images: give --content"),
    (dict(metrics="style,kid"), "--metrics=style is measured alone"),
    (dict(metrics="style", content="a", style="b", samples="c"), "--samples has no use with"),
    (dict(metrics="style", content="a", style="b", image_size=31), "--image_size=31 is under 32"),
    (dict(metrics="style", content="a", style="b", leak_pairs=-1), "--leak_pairs=-1 is under 0"),
    (dict(metrics="style", content="nowhere", style="b"), "--content=.*/nowhere is no folder"),
  ],
)
def test_bad_input(values, words, run):
  with pytest.raises(UserError, match=words):
    run(**values)


def test_the_best_checkpoint_is_asked_for_by_name(run, trained, tiny_config, capsys):
  with pytest.raises(UserError, match="--checkpoint=best: 1-finetune of .* has kept none"):
    run(checkpoint="best")
  summary = trained / "1-finetune" / "summary.json"
  best = {"metric": "validation/psnr", "mode": "max", "step": 1, "value": 12.5}
  summary.write_text(json.dumps({"best": best, "steps": 6}))
  try:
    for checkpoint, words in (
      ("best", "the best checkpoint"),
      ("last", "the last checkpoint, not"),
    ):
      options = dict(metrics="class_accuracy", num=8, prefix=2)
      found = run(checkpoint=checkpoint, **options)
      assert found["protocol"]["samples"]["step"] == 0  # of an untrained state
      line = f"1-finetune: {words}"
      assert capsys.readouterr().out.count(line) == 1
  finally:
    summary.write_text("{}")


def test_broken_off_while_drawing(run, monkeypatch, tmp_path):
  from imgtx_jax.evaluate import feature_store

  monkeypatch.setattr(feature_store, "SHARD", 8)
  options = dict(metrics="frechet,class_accuracy", prefix=2, cfg_scale=1.5)
  whole = run(**options, out=str(tmp_path / "out"))
  (tmp_path / "out" / "evaluation.json").unlink()
  for path in (tmp_path / "out" / "features").glob("*/*-00001.npy"):
    path.unlink()  # the second of three shards was not written yet
  for path in (tmp_path / "out" / "features").glob("*/moments*.npz"):
    path.unlink()
  drawn = []
  draw = runner.Evaluator._fill

  def fill(self, title, images, wanted):
    self.report = lambda title, done, total: drawn.append((title, total))
    draw(self, title, images, wanted)

  monkeypatch.setattr(runner.Evaluator, "_fill", fill)
  again = run(**options, out=str(tmp_path / "out"))
  assert drawn == [("samples", 8)]
  assert (again["results"], again["protocol"]) == (whole["results"], whole["protocol"])


def test_a_gan_has_no_tokenizer(run, tiny_config, untrained_workdir, tmp_path):
  tiny_config.stages = ("gan",)
  tiny_config.generator.taps = ()
  untrained_workdir(tiny_config.lock(), tmp_path / "gan", NAMES)
  found = run(workdir=str(tmp_path / "gan"))
  assert found["skipped"]["codes"] == "the gan stage has no tokenizer"
  assert found["protocol"]["samples"]["stage"] == "gan"
  assert {"frechet", "class_accuracy"} <= {f["metric"] for f in found["results"].values()}


def test_the_audit_by_its_flag(run, tmp_path, capsys):
  found = run(audit=True, num=18, prefix=2)
  assert found["protocol"]["num"] == 18 and found["protocol"]["prefix"] == 2
  assert found["protocol"]["sampling"]["truncation"] == 1.0
  assert (tmp_path / "out" / "audit.html").exists()
  assert "worst classes by" in capsys.readouterr().out
  with pytest.raises(UserError, match="--audit is of a trained model"):
    run(audit=True, stage="finetune")


def test_two_folders_without_a_work_directory(run, smooth_images, tmp_path):
  for name, seed in (("a", 1), ("b", 2)):
    for i, image in enumerate(smooth_images(12, 16, seed)):
      save_grid(image[None], tmp_path / name / f"{i}.png", gutter=0)
  folders = dict(samples=str(tmp_path / "a"), reference=str(tmp_path / "b"))
  found = run(workdir="", **folders, num=10)
  assert {f["metric"] for f in found["results"].values()} == {
    "frechet",
    "kid",
    "precision_recall",
  }
  assert found["protocol"]["samples"]["count"] == 10
  assert found["protocol"]["reference"]["count"] == 12
  with pytest.raises(UserError, match="samples are 16×16 and the reference 12×12"):
    run(workdir="", samples=folders["samples"], reference=crop(tmp_path / "b", tmp_path / "c"))
  assert run(workdir="", **folders, image_size=16)["protocol"]["samples"]["size"] == [16, 16]


@pytest.mark.usefixtures("small_vgg")
def test_style_of_two_folders_without_a_work_directory(run, smooth_images, tmp_path, capsys):
  for name, seed in (("content", 1), ("style", 2)):
    for i, image in enumerate(smooth_images(2, 32, seed)):
      save_grid(image[None], tmp_path / name / f"{i}.png", gutter=0)
      if name == "style":
        for content in range(2):
          save_grid(image[None], tmp_path / "others" / f"{content}--{i}.png", gutter=0)
  folders = {name: str(tmp_path / name) for name in ("content", "style")}
  outputs = [f"others={tmp_path / 'others'}"]
  found = run(workdir="", metrics="style", image_size=32, outputs=outputs, leak_pairs=1, **folders)
  assert list(found["rows"]) == ["identity", "style copy", "colour mean-std", "others"]
  assert found["rows"]["others"] == found["rows"]["style copy"]
  assert found["leak"]["colour mean-std"].keys() == {"1", "2"}
  assert found["protocol"]["networks"]["mean_activation"].keys() >= {"relu1_1", "relu5_1"}
  assert found["protocol"]["methods"]["others"]["kind"] == "folder"
  shown = capsys.readouterr().out
  assert "LPIPS gray" in shown and "colour mean-std, applied" in shown and "style.json" in shown


def crop(folder, to):
  """The images of a folder at 12×12, in another."""
  for path in folder.glob("*.png"):
    with Image.open(path) as image:
      save_grid(np.asarray(image)[None, :12, :12], to / path.name, gutter=0)
  return str(to)
