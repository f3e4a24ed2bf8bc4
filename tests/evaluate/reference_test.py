"""Statistics in files, and samples as ADM's evaluator reads them."""

import numpy as np
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import inputs, reference


def open_npz(path, network):
  return reference.open_reference(str(path), network, inputs.widths(network, (16, 16)))


def test_saved_statistics_give_the_same_distance(evaluate, folders, tmp_path):
  expected = evaluate(*folders)["results"]["FD-Tiny"]["value"]
  path = tmp_path / "stats.npz"
  evaluate(folders[1], None, asked=["inception_score"], save_stats=path)
  found = evaluate(folders[0], path)
  assert found["results"]["FD-Tiny"]["value"] == pytest.approx(expected, rel=1e-9)
  assert found["results"]["FD-Tiny"]["computed_on"] == "23 samples, a file's statistics"
  assert found["protocol"]["reference"]["count"] == 31
  assert found["skipped"]["kid"] == "the reference is a file of statistics: name images"


def test_statistics_of_another_network(evaluate, folders, make_network, tmp_path):
  path = tmp_path / "stats.npz"
  evaluate(folders[1], None, asked=["inception_score"], save_stats=path)
  with pytest.raises(UserError, match="network tiny with weights abab.* with weights cdcd"):
    open_npz(path, make_network(weights_sha256="cd" * 32))
  np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
  with pytest.raises(UserError, match=r"mu has the shape \[2048\], and FD-Tiny has 6 features"):
    open_npz(path, make_network())
  np.savez(path, mu=np.zeros(6), sigma=np.eye(5))
  with pytest.raises(UserError, match=r"sigma has the shape \[5, 5\], not \[6, 6\]"):
    open_npz(path, make_network())


def test_an_npz_of_something_else(make_network, tmp_path):
  np.savez(tmp_path / "a.npz", weights=np.zeros(3))
  with pytest.raises(UserError, match="a.npz holds weights; a reference needs arr_0"):
    open_npz(tmp_path / "a.npz", make_network())
  (tmp_path / "b.npz").write_text("nothing")
  with pytest.raises(UserError, match="b.npz is no .npz file"):
    open_npz(tmp_path / "b.npz", make_network())


def test_samples_as_adm_writes_them(evaluate, folders, tmp_path, small_shards):
  expected = evaluate(*folders, save_npz=tmp_path / "samples.npz")["results"]
  with np.load(tmp_path / "samples.npz") as arrays:
    assert list(arrays) == ["arr_0"]
    assert arrays["arr_0"].shape == (23, 16, 16, 3) and arrays["arr_0"].dtype == np.uint8
  assert evaluate(tmp_path / "samples.npz", folders[1], out="other")["results"] == expected


def test_adm_images_go_with_any_network(make_network, tmp_path, smooth_images):
  path = tmp_path / "adm.npz"
  stats = dict(mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32), mu_s=np.zeros(2023))
  np.savez(path, arr_0=smooth_images(9, 16), **stats)
  found = open_npz(path, make_network())
  assert found.statistics == {} and found.images.count == 9
  assert found.about["statistics"] == "of the images"


@pytest.mark.parametrize(
  "text, words",
  [
    ("train", "give --workdir"),
    ("tfds:imagenet2012:test", "'test' is not one of: train, validation"),
    ("nowhere", "no folder of images"),
    ("nowhere.npz", "no folder of images"),
  ],
)
def test_no_reference(text, words, make_network):
  with pytest.raises(UserError, match=words):
    open_npz(text, make_network())
