"""Figures of two folders: whatever the batch, the devices and the interruptions; and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import imgtx_jax
from imgtx_jax.distributed import sharding
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import extractors, feature_store, image_sets, runner
from imgtx_jax.metrics.frechet import Moments, frechet_distance

RESULTS = {
  "FD-Tiny": "frechet",
  "IS-Tiny": "inception_score",
  "KID-Tiny": "kid",
  "precision-Tiny": "precision_recall",
  "recall-Tiny": "precision_recall",
  "density-Tiny": "precision_recall",
  "coverage-Tiny": "precision_recall",
}


def values(found):
  return {name: result["value"] for name, result in found["results"].items()}


def of_folder(network, folder):
  """Moments of a network's features of a folder, the short way."""
  images = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])
  return Moments().add(network.apply(network.params, jnp.asarray(images))["features"])


def test_two_folders(evaluate, folders, make_network, capsys):
  found = evaluate(*folders)
  assert {name: f["metric"] for name, f in found["results"].items()} == RESULTS
  ours, theirs = (of_folder(make_network(), folder) for folder in folders)
  expected = frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
  assert expected > 0.01
  assert found["results"]["FD-Tiny"]["value"] == pytest.approx(expected, rel=1e-4)
  assert found["results"]["FD-Tiny"]["computed_on"] == "23 samples, 31 references"
  assert set(found["skipped"]) == {
    "sfid",
    "class_accuracy",
    "reconstruction",
    "codes",
    "nearest",
  }
  assert "skipped sfid: tiny gives no spatial features" in capsys.readouterr().out
  (line, *_) = runner.table(found)
  assert line.split()[:2] == ["FD-Tiny", f"{found['results']['FD-Tiny']['value']:.5g}"]


def test_any_batch_and_devices_give_the_same(evaluate, folders, small_shards, monkeypatch):
  first = values(evaluate(*folders, out="a", batch_size=4))
  monkeypatch.setattr(feature_store, "SHARD", 256)
  for name, batch_size in (("b", 7), ("c", 64)):
    again = values(evaluate(*folders, out=name, batch_size=batch_size))
    assert again == pytest.approx(first, rel=1e-5)
  monkeypatch.setattr(jax, "local_device_count", lambda: 1)
  monkeypatch.setattr(sharding.jax, "local_devices", lambda: jax.devices()[:1])
  assert values(evaluate(*folders, out="d", batch_size=7)) == pytest.approx(first, rel=1e-5)


def test_a_kill_in_the_middle_changes_nothing(evaluate, folders, small_shards, make_network):
  whole = evaluate(*folders, out="whole")
  seen = []

  def stop(title, done, total):
    seen.append(title)
    if len(seen) == 8:  # five shards of samples, then in the reference
      raise RuntimeError("killed")

  with pytest.raises(RuntimeError, match="killed"):
    evaluate(*folders, out="broken", report=stop)
  assert seen == ["samples"] * 5 + ["reference"] * 3
  left = []
  again = evaluate(*folders, out="broken", report=lambda *step: left.append(step))
  assert [title for title, *_ in left] == ["reference"] * 5
  assert left[-1] == ("reference", 21, 21)
  assert (again["results"], again["protocol"]) == (whole["results"], whole["protocol"])


def test_the_protocol_tells_all(evaluate, folders, make_network):
  protocol = evaluate(*folders, batch_size=7)["protocol"]
  assert protocol["network"] == {
    "network": "tiny",
    "label": "FD-Tiny",
    "weights_sha256": "ab" * 32,
    "resize": "none",
  }
  for name, folder, count in (("samples", folders[0], 23), ("reference", folders[1], 31)):
    assert protocol[name]["path"] == str(folder.resolve())
    assert protocol[name]["count"] == count and protocol[name]["size"] == [16, 16]
    assert len(protocol[name]["files"]) == 64
  assert protocol["settings"]["kid_subset_size"] == 10 and protocol["settings"]["kid_seed"] == 2020
  assert protocol["versions"] == {"imgtx_jax": imgtx_jax.__version__, "jax": jax.__version__}
  assert protocol == evaluate(*folders, out="other", batch_size=64)["protocol"]


def test_a_cached_reference_is_used_and_refused(evaluate, folders, make_network):
  def gathered(**options):
    seen = []
    evaluate(*folders, report=lambda title, done, total: seen.append(title), **options)
    return set(seen)

  assert gathered() == {"samples", "reference"}
  assert gathered() == set()
  assert gathered(network=make_network(weights_sha256="cd" * 32)) == {"samples", "reference"}
  Image.new("RGB", (16, 16)).save(folders[1] / "030.png")
  assert gathered() == {"reference"}


def test_processes_share_the_work(folders, small_shards, make_network, tmp_path):
  images = image_sets.open_files(folders[0])
  extractor = extractors.of_network(make_network(), 8)

  def store(name):
    return feature_store.FeatureStore(tmp_path / name, extractor, images.fingerprint, {}, 23)

  def fill(name, index, count):
    options = dict(batch_size=3, process_index=index, process_count=count)
    feature_store.fill(images, [(store(name), extractor)], report=lambda *_: None, **options)

  fill("one", 0, 1)
  fill("two", 1, 2)
  assert store("two").missing() == [0, 2, 4]
  fill("two", 0, 2)
  np.testing.assert_array_equal(store("two").read("features"), store("one").read("features"))


def test_a_damaged_shard_is_made_again(evaluate, folders, small_shards, tmp_path):
  before = evaluate(*folders)
  (path, *_) = sorted((tmp_path / "out" / "features").glob("tiny-*/features-00002.npy"))
  data = bytearray(path.read_bytes())
  data[200] ^= 255  # among the features
  path.write_bytes(data)
  seen = []
  again = evaluate(*folders, report=lambda *step: seen.append(step))
  assert seen == [("samples", 5, 5)]
  assert again["results"] == before["results"]


def test_an_unreadable_image_is_skipped_and_told(evaluate, folders):
  (folders[0] / "011.png").write_bytes(b"nothing")
  found = evaluate(*folders)
  assert found["protocol"]["samples"]["unreadable"] == 1
  assert found["results"]["IS-Tiny"]["computed_on"] == "22 samples, 2 splits"


def test_features_of_nan_stop_it(evaluate, folders, make_network):
  network = make_network(apply=lambda params, x: {"features": jnp.full((len(x), 6), jnp.nan)})
  with pytest.raises(UserError, match="features of tiny: 8 of 8 rows hold NaN"):
    evaluate(*folders, network=network)


@pytest.mark.parametrize(
  "asked, words",
  [
    (("fid",), "--metrics='fid' is not one of: frechet"),
    (("sfid",), "--metrics=sfid cannot be had: tiny gives no spatial"),
    (("kid",), "3 samples, and it needs at least 10: raise --num, or lower --kid_subset_size"),
    (("precision_recall",), "3 samples, and it needs at least 6"),
    (("reconstruction",), "give --workdir"),
  ],
)
def test_what_cannot_be_had(asked, words, evaluate, folders):
  for path in sorted(folders[0].glob("*.png"))[3:]:
    path.unlink()
  with pytest.raises(UserError, match=words):
    evaluate(*folders, asked=asked)


def test_sizes_that_differ(evaluate, folders, make_network):
  for path in folders[0].glob("*.png"):
    Image.open(path).resize((32, 32)).save(path)
  words = "samples are 32×32 and the reference 16×16, and tiny does not resize"
  with pytest.raises(UserError, match=words):
    evaluate(*folders)
  assert "FD-Tiny" in evaluate(*folders, network=make_network(resize="inside"))["results"]


def test_nothing_to_compare_with(evaluate, folders):
  found = evaluate(folders[0], None)
  assert list(found["results"]) == ["IS-Tiny"]
  assert found["skipped"]["frechet"] == "there is nothing to compare with: give --reference"
