"""The values of a sweep, and its plot."""

import io

import pytest
from PIL import Image

from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import sweep

OPTIONS = {"prefix": (0, 16), "cfg_scale": (0, 100), "top_k": (0, None)}


def test_values_between_commas():
  assert sweep.parse("cfg_scale=1,1.5,2", OPTIONS) == ("cfg_scale", [1, 1.5, 2])
  assert sweep.parse("prefix=0,16", OPTIONS) == ("prefix", [0, 16])


@pytest.mark.parametrize(
  "text, words",
  [
    ("scale=1", "'scale' is not one of: prefix, cfg_scale, top_k"),
    ("prefix", "give numbers between commas, as prefix=1,2,4"),
    ("prefix=a", "give numbers"),
    ("prefix=4,17", "17 is outside 0 … 16"),
    ("top_k=-1", "-1 is outside 0 … the vocabulary"),
    ("top_k=inf", "inf is outside 0 … the vocabulary"),
    ("top_k=1.5", "top_k takes whole numbers, not 1.5"),
    ("cfg_scale=nan", "nan is outside 0 … 100"),
  ],
)
def test_what_is_no_sweep(text, words):
  with pytest.raises(UserError, match=words):
    sweep.parse(text, OPTIONS, whole=("prefix", "top_k"))


def test_the_plot_has_a_panel_for_all_there_is():
  def evaluation(x):
    names = {"FD-Tiny": "frechet", "precision-Tiny": "precision_recall"}
    names["recall-Tiny"] = "precision_recall"
    results = {name: {"name": name, "metric": m, "value": x} for name, m in names.items()}
    return {"results": results, "timing": {"drawing_seconds_an_image": 0.1 + x}}

  found = [(value, evaluation(value / 10)) for value in (0, 4, 16)]
  picture = Image.open(io.BytesIO(sweep.draw("prefix", found)))
  assert picture.size[0] > picture.size[1] > 600  # two rows: four panels
  for _, one in found:
    del one["timing"]["drawing_seconds_an_image"]
  assert Image.open(io.BytesIO(sweep.draw("prefix", found))).size[1] < 600
