import json

import jax
import numpy as np
import pytest
from PIL import Image

from imgtx_jax import judge
from imgtx_jax.cli import command
from imgtx_jax.errors import UserError
from imgtx_jax.training import workdir

NAMES = ["cat", "dog", "4", "tree"]
_BUILT = {}
_verdict = jax.jit(lambda stage, *args: stage.adversary.verdict(*args), static_argnums=0)


@pytest.fixture
def trained(tiny_config, tmp_path_factory, untrained_workdir):
  """(work directory, config, Judge) of finished stages that have their first, random weights."""
  if not _BUILT:
    config = tiny_config.lock()
    directory = tmp_path_factory.mktemp("work")
    untrained_workdir(config, directory, NAMES)
    _BUILT["work"] = directory, config, judge.load(directory, config, NAMES, prefix=3)
  return _BUILT["work"]


@pytest.fixture
def files(tmp_path, smooth_images):
  """Two image files of other sizes and formats than the network's."""
  paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
  for path, image in zip(paths, smooth_images(2, 40), strict=True):
    Image.fromarray(image[:, :30]).save(path)
  return [str(path) for path in paths]


def run(directory, files, **values):
  """Judges files as the command line does."""
  values = dict(workdir=directory) | values
  words = [f"--{name}={value}" for name, value in values.items()]
  command.parse(judge.COMMAND, ["judge", *words, *files]).run()


def test_scores_are_relative_to_own_images_of_the_label(trained, smooth_images):
  _, config, subject = trained
  (image,) = smooth_images(1, 16, seed=3)
  found = subject.examine(image)
  assert found.probabilities.shape == (4,) and found.probabilities.sum() == pytest.approx(1)
  assert found.label == np.argmax(found.probabilities)
  for label in (found.label, (found.label + 1) % 4, len(NAMES)):
    found = subject.examine(image, label)
    pixels = image[None].astype(np.float32) / 127.5 - 1
    verdict = _verdict(subject.stage, subject.params, pixels, np.array([label]))
    own = subject.own_logits(label)
    assert found.label == label and own.shape == (judge.SAMPLES,) and own.std() > 0
    assert found.score == pytest.approx(float(verdict.logit[0]) - own.mean(), abs=1e-4)
    assert found.more_real_than == np.mean(own < float(verdict.logit[0]))


def test_own_images_are_called_real_one_time_in_ten(trained):
  _, _, subject = trained
  images = subject._draw(subject.drawing_params, np.full(judge.SAMPLES, 1))
  verdicts = [subject.examine(image, 1).verdict for image in np.asarray(images)]
  assert 4 <= verdicts.count("real") <= 8


def test_gradient_and_attention(trained, smooth_images):
  _, _, subject = trained
  (image,) = smooth_images(1, 16, seed=4)
  attention, gradient = subject.saliency(image, 1)
  assert attention.shape == (4, 4) and attention.min() > 0 and attention.sum() < 1
  assert gradient.shape == (16, 16)
  pixels, row, column = image[None].astype(np.float32) / 127.5 - 1, 3, 9
  slopes = []
  for channel in range(3):
    step = np.zeros_like(pixels)
    step[0, row, column, channel] = 1e-2
    logits = [
      float(_verdict(subject.stage, subject.params, x, np.array([1])).logit[0])
      for x in (pixels + step, pixels - step)
    ]
    slopes.append((logits[0] - logits[1]) / 2e-2)
  assert gradient[row, column] == pytest.approx(np.abs(slopes).sum(), rel=0.05)


def test_verdict():
  assert judge.Judgement(0, 1.0, judge.REAL_FRACTION, np.ones(1)).verdict == "real"
  assert judge.Judgement(0, 1.0, judge.REAL_FRACTION - 1 / 64, np.ones(1)).verdict == "fake"


def test_command(trained, files, tmp_path, capsys):
  directory, _, _ = trained
  picture = tmp_path / "new" / "heat.png"
  run(directory, files, out=picture, label="4")
  head, *lines, last = capsys.readouterr().out.splitlines()
  assert "64 of the model's own images" in head and "at k = 0" in head and "90%" in head
  assert len(lines) == 4 and str(picture) in last
  for file, line, classes in zip(files, lines[::2], lines[1::2], strict=True):
    assert line.startswith(f"{file}: real, score ") or line.startswith(f"{file}: fake, score ")
    assert line.endswith("% of the model's own images of 4")
    assert all(name in classes for name in NAMES) and classes.count("%") == 4
  grid = np.asarray(Image.open(picture))
  assert grid.shape[0] > 2 * judge.PICTURE_SIDE and grid.shape[1] > 3 * judge.PICTURE_SIDE


@pytest.mark.parametrize(
  ("name", "content", "flags", "message"),
  [
    ("none.png", None, {}, r"none.png cannot be read \(No such file"),
    ("", None, {}, r"cannot be read \(Is a directory"),
    ("text.png", b"no image", {}, "text.png is no whole image"),
    ("cut.png", "half", {}, "cut.png is no whole image"),
    ("a.png", "whole", {"label": "7"}, "--label=7 is no class"),
    ("a.png", "whole", {"out": "heat.jpg"}, "--out=.*/heat.jpg must end in .png"),
    (
      "a.png",
      "whole",
      {"out": "/dev/null/heat.png"},
      "--out=/dev/null/heat.png: /dev/null is a file",
    ),
    ("a.png", "whole", {"prefix": 17}, "--prefix=17 is outside 0 … 16"),
  ],
)
def test_bad_input(trained, files, tmp_path, name, content, flags, message):
  if isinstance(content, bytes):
    (tmp_path / name).write_bytes(content)
  elif content == "half":
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=message):
    run(trained[0], [files[0], str(tmp_path / name)], **flags)


def test_needs_a_finished_finetune(tiny_config, files, tmp_path):
  with pytest.raises(UserError, match="holds no config.json, so nothing was trained there"):
    run(tmp_path / "empty", files)
  workdir.claim(tiny_config, tmp_path / "work", NAMES)
  (tmp_path / "work" / "1-tokenizer").mkdir()
  (tmp_path / "work" / "1-tokenizer" / "summary.json").write_text(json.dumps({}))
  with pytest.raises(UserError, match="has finished 1-tokenizer, and judging needs finetune"):
    run(tmp_path / "work", files)


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    (["--workdir=nowhere"], "no image files given; run with --help to see how"),
    (["a.png"], "--workdir is missing; run with --help to see all flags"),
  ],
)
def test_command_line(arguments, line):
  with pytest.raises(UserError) as caught:
    command.parse(judge.COMMAND, ["judge", *arguments])
  assert str(caught.value) == line
