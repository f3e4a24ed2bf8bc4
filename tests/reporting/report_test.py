import base64
import html.parser
import io
import json
import math
import re
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from imgtx_jax.errors import UserError
from imgtx_jax.io import image_grid
from imgtx_jax.reporting import report
from imgtx_jax.training import metric_writer

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(html.parser.HTMLParser):
  """What a test asks of a page: balanced tags, ids, links, and the pictures in it."""

  def __init__(self, path):
    super().__init__()
    self.open, self.ids, self.links, self.images, self.sections = [], [], [], [], []
    self.words = path.read_text()
    self.feed(self.words)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids += [attrs["id"]] if "id" in attrs else []
    self.links += [attrs[name] for name in ("href", "xlink:href", "src") if name in attrs]
    self.sections += [attrs["id"]] if tag == "section" else []
    if tag == "img":
      self.images.append(
        base64.b64decode(re.sub("^data:image/(png|jpeg);base64,", "", attrs["src"]))
      )
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def make_stage(workdir, name, *, figures=None, steps=4, best=None):
  """A stage's folder as training leaves it; without figures, as if it were still running."""
  directory = workdir / name
  log = metric_writer.MetricLog(directory)
  for step in range(1, steps + 1):
    log.write(step, step / 2, {"train/loss": 1 / step, "train/broken": math.nan})
    log.write(step, step / 2, {"validation/loss": 2 / step, "learning_rate": 1e-3})
    for picture in ("reconstructions", "samples_k0"):
      grid = np.random.default_rng(step).integers(0, 255, (6, 8, 8, 3)).astype(np.uint8)
      image_grid.save_grid(grid, directory / "pictures" / f"{picture}-{step:07d}.png")
  log.close()
  if figures is not None:
    stage = {"stage": name[2:], "round": int(name[0]), "steps": steps, "seconds": 431.0}
    stage |= {"compile_seconds": 3.25, "images_per_second": 512.5, "peak_memory_bytes": None}
    stage |= {"best": best}
    (directory / "summary.json").write_text(json.dumps(stage | {"figures": figures}))
  return directory


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("a <run>")
  config = {"stages": ["tokenizer", "pretrain", "finetune"], "note": "</pre><script>"}
  (workdir / "config.json").write_text(json.dumps(config))
  make_stage(workdir, "1-tokenizer", figures={"validation/psnr": 18.25, "code_usage": 0.75})
  make_stage(workdir, "1-pretrain", figures={"validation/bits_per_code": math.nan})
  best = {"metric": "samples/k0_fd_vgg16", "mode": "min", "step": 3, "value": 87.5}
  make_stage(workdir, "1-finetune", figures={"baseline": 3}, best=best)
  make_stage(workdir, "2-pretrain")
  report.write(workdir)
  return workdir


def test_page_is_whole_and_self_contained(workdir):
  page = Page(workdir / "report.html")
  assert len(page.ids) == len(set(page.ids))
  assert page.links
  files = {str(path.relative_to(workdir)) for path in workdir.glob("*/pictures/*.png")}
  for link in page.links:
    embedded = link.startswith("data:image/png;base64,") or link.removeprefix("#") in page.ids
    assert embedded or urllib.parse.unquote(link) in files  # the originals of pictures
  assert not re.search(r"url\((?!#)|@import", page.words)
  assert "&lt;/pre&gt;&lt;script&gt;" in page.words


def test_stages_stand_in_the_order_they_ran(workdir):
  sections = ["1-tokenizer", "1-pretrain", "1-finetune", "2-pretrain", "config"]
  assert Page(workdir / "report.html").sections == sections


def test_every_picture_is_embedded(workdir):
  page = Page(workdir / "report.html")
  made = {path.read_bytes() for path in workdir.glob("*/pictures/*.png")}
  assert len(list(workdir.glob("*/pictures/*.png"))) == 32
  assert made == set(page.images)


def test_large_pictures_are_thumbnails_that_link_to_their_originals(tmp_path, smooth_images):
  directory = make_stage(tmp_path, "1-tokenizer", figures={}, steps=2)
  small = Page(report_of(tmp_path))
  for step in (1, 2):
    path = directory / "pictures" / f"samples_k16-{step:07d}.png"
    image_grid.save_grid(smooth_images(64, 256, seed=step), path)  # 2048 pixels a side
  assert path.stat().st_size > 10 * report._EMBEDDED_BYTES
  page = Page(report_of(tmp_path))
  (first, second) = sorted(set(page.images) - set(small.images))
  for data in (first, second):
    with Image.open(io.BytesIO(data)) as thumbnail:
      assert thumbnail.format == "JPEG" and max(thumbnail.size) == report._THUMBNAIL
  assert len(page.words) - len(small.words) < 10 * report._EMBEDDED_BYTES
  assert page.words.count('href="1-tokenizer/pictures/samples_k16-0000002.png"') == 2
  assert page.words.count('data-original="1-tokenizer/pictures/samples_k16-0000001.png"') == 1


def report_of(workdir):
  report.write(workdir)
  return workdir / "report.html"


def test_long_time_lines_keep_first_and_last_and_say_what_is_left_out(tmp_path):
  directory = make_stage(tmp_path, "1-tokenizer", figures={}, steps=20)
  report.write(tmp_path)
  page = Page(tmp_path / "report.html")
  for step in (1, 20):
    path = directory / "pictures" / f"samples_k0-{step:07d}.png"
    assert path.read_bytes() in page.images
  assert "4 more in between" in page.words


def test_curves_share_axes_between_train_and_validation(workdir):
  words = (workdir / "report.html").read_text()
  # loss (train and validation), broken (never finite, so no drawing), learning rate; four stages.
  assert words.count("<figcaption><span") == 12
  assert words.count("<svg") == 8
  assert words.count("No finite value") == 4
  assert words.count("train 0.25</span><span") == words.count("validation 0.5</span>") == 4


def test_json_carries_every_figure(workdir):
  made = json.loads((workdir / "report.json").read_text(), parse_constant=pytest.fail)
  assert made["figures"] == {
    "1-tokenizer/validation/psnr": 18.25,
    "1-tokenizer/code_usage": 0.75,
    "1-pretrain/validation/bits_per_code": None,
    "1-finetune/baseline": 3,
  }
  assert made["config"]["stages"] == ["tokenizer", "pretrain", "finetune"]
  tokenizer, *_, running = made["stages"]
  assert (tokenizer["finished"], tokenizer["seconds"]) == (True, 431.0)
  assert (running["finished"], running["steps"], running["round"]) == (False, 4, 2)
  assert (running["figures"], running["latest"]) == ({}, {"validation/loss": 0.5})


def test_page_shows_figures_and_timings(workdir):
  words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", (workdir / "report.html").read_text()))
  for text in ("18.25 dB", "validation · PSNR", "7 min 11 s", "3.25 s", "512.5", "not finished"):
    assert text in words
  assert words.count("The best checkpoint is kept") == 1
  assert "step 3, by samples · k0 FD VGG16 87.5." in words


def test_report_without_stages_names_the_remedy(tmp_path):
  with pytest.raises(UserError, match="imgtx_jax.main"):
    report.write(tmp_path / "absent")


@pytest.mark.parametrize(
  "text",
  ["", "[]", "\0", '{"figures": [1]}', '{"seconds": "x"}', '{"best": {"step": 3}}', "[" * 9999],
)
def test_a_damaged_summary_is_one_line(tmp_path, text):
  (make_stage(tmp_path, "1-tokenizer", steps=1) / "summary.json").write_text(text)
  with pytest.raises(UserError, match="1-tokenizer/summary.json is damaged .* delete it"):
    report.write(tmp_path)


def test_damaged_pictures_and_metrics_are_left_out(tmp_path, caplog):
  directory = make_stage(tmp_path, "1-tokenizer", steps=2)
  picture = directory / "pictures" / "reconstructions-0000002.png"
  picture.write_bytes(picture.read_bytes()[:200])
  with open(directory / "metrics.jsonl", "a") as file:
    file.write('{"step": 3, "train/loss": "x"}\n{"step": "3"}\n')
  page = report_of(tmp_path).read_text()
  (stage,) = json.loads((tmp_path / "report.json").read_text())["stages"]
  assert stage["steps"] == 2 and not stage["finished"]
  assert "reconstructions-0000001.png" in page and "reconstructions-0000002.png" not in page
  assert "is no whole picture" in caplog.text


def test_rounds_are_compared(tmp_path):
  for number, bits in ((1, 4.5), (2, 4.25)):
    make_stage(tmp_path, f"{number}-pretrain", figures={"validation/bits_per_code": bits + 0.1})
    figures = {"samples/k0_patch_grid_ratio": 1.2 / number, "validation/bits_per_code": bits}
    make_stage(tmp_path, f"{number}-finetune", figures=figures)
  report.write(tmp_path)
  rounds = json.loads((tmp_path / "report.json").read_text())["rounds"]
  assert rounds == {
    "pretrain/validation/bits_per_code": [4.6, 4.35],
    "finetune/validation/bits_per_code": [4.5, 4.25],
    "finetune/samples/k0_patch_grid_ratio": [1.2, 0.6],
  }
  page = Page(tmp_path / "report.html")
  assert "rounds" in page.sections and page.words.count("round 2 · step 4") == 2
