"""The command: single files, mixtures, masks, folders, contact sheets; bad input."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from imgtx_jax import stylize
from imgtx_jax.errors import UserError
from imgtx_jax.io import image_grid
from imgtx_jax.style_transfer import batch_jobs

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def place(tmp_path, monkeypatch, smooth_images):
  """A folder to work in: a.png, contents/, styles/ with files of one colour each."""
  monkeypatch.chdir(tmp_path)
  images = smooth_images(3, 80)
  images[..., :] = 64 + images // 2
  for name in ("contents", "styles"):
    pathlib.Path(name).mkdir()
  Image.fromarray(images[0][:50, :70]).save("a.png")
  for i, image in enumerate(images):
    Image.fromarray(image[: 80 - i]).save(f"contents/frame{i}.png")
  for name, color in COLORS.items():
    Image.new("RGB", (300, 200), color).save(f"styles/{name}.png")
  return tmp_path


@pytest.fixture
def call(place, monkeypatch, parse_flags, local_stylizer):
  """call(**flags) runs the command with a made-up stylizer, which it returns."""

  defaults = dict(
    workdir="work", content="a.png", style="styles/red.png", out="out.png", style_size=64
  )

  def run(**flags):
    stylizer = local_stylizer()
    monkeypatch.setattr(stylize, "load_stylizer", lambda directory, checkpoint: stylizer)
    stylize.main(parse_flags(stylize.COMMAND, **defaults | flags))
    return stylizer

  return run


def read(path):
  return np.asarray(Image.open(path)).astype(int)


def shift(path, content="a.png"):
  """What the output has more than the content in each channel, on average."""
  return (read(path)[..., :3] - read(content)[..., :3]).mean((0, 1))


def test_one_content_in_one_style(call):
  call()
  assert read("out.png").shape == (50, 70, 3)
  red, green, blue = shift("out.png")
  assert red > 25 and green < -25 and blue < -25
  call(strength=0.0, out="same.png")
  np.testing.assert_array_equal(read("same.png"), read("a.png"))


def test_mixtures(call):
  pair = ["styles/red.png", "styles/blue.png"]
  call(style=pair, weights="3,1", out="mixed.png")
  call(style=pair[:1], out="red.png")
  call(style=pair[1:], out="blue.png")
  want = 0.75 * shift("red.png") + 0.25 * shift("blue.png")
  np.testing.assert_allclose(shift("mixed.png"), want, atol=1.5)
  call(style=pair, weights="1,0", out="first.png")
  np.testing.assert_array_equal(read("first.png"), read("red.png"))


def test_masks_have_exact_borders(call):
  content = read("a.png")
  left, right = np.zeros((2, 50, 70), np.uint8)
  left[10:30, :20], right[:, 40:] = 255, 255
  Image.fromarray(left).save("left.png")
  Image.fromarray(right).save("right.png")
  call(mask=["left.png"], out="one.png")
  call(out="whole.png")
  found = read("one.png")
  np.testing.assert_array_equal(found[left == 0], content[left == 0])
  np.testing.assert_array_equal(found[left > 0], read("whole.png")[left > 0])
  call(style=["styles/red.png", "styles/blue.png"], mask=["left.png", "right.png"], out="two.png")
  call(style=["styles/blue.png"], out="blue.png")
  found = read("two.png")
  outside = (left == 0) & (right == 0)
  np.testing.assert_array_equal(found[outside], content[outside])
  np.testing.assert_array_equal(found[left > 0], read("whole.png")[left > 0])
  np.testing.assert_array_equal(found[right > 0], read("blue.png")[right > 0])


def test_colours_are_kept(call):
  call(keep_color="luminance")
  found, content = read("out.png"), read("a.png")
  for other in (1, 2):
    chroma = (found[..., other] - found[..., 0]) - (content[..., other] - content[..., 0])
    assert np.abs(chroma).max() <= 1
  call(keep_color="coral", out="coral.png")
  found = read("coral.png").reshape(-1, 3)
  np.testing.assert_allclose(found.mean(0), content.mean((0, 1)), atol=1)
  covariance = np.cov(content.reshape(-1, 3).T)
  np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.02 * covariance.max())


def test_alpha_orientation_and_hidden_pixels(call):
  rgba = np.dstack([read("a.png"), np.full((50, 70), 255)]).astype(np.uint8)
  rgba[:, 35:, 3] = 0
  rgba[:, 35:, :3] = 0  # black that nobody sees
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(rgba).save("b.png", exif=exif)
  call(content="b.png")
  found, turned = read("out.png"), np.rot90(rgba, -1)
  assert found.shape == (70, 50, 4) and Image.open("out.png").getexif().get(0x0112, 1) == 1
  np.testing.assert_array_equal(found[..., 3], turned[..., 3])
  np.testing.assert_array_equal(found[35:], turned[35:])
  # The black does not stain what is seen: the row beside it is as bright as the others.
  assert abs((found - turned)[34, :, :3].mean() - (found - turned)[20:30, :, :3].mean()) < 12
  with pytest.raises(UserError, match="out.jpg cannot keep the content's alpha channel"):
    call(content="b.png", out="out.jpg")


def test_working_at_another_size(call):
  stylizer = call(size=100)
  assert read("out.png").shape == (50, 70, 3)
  assert stylizer.shapes == [(1, 128, 192, 3)]
  Image.fromarray(np.pad(np.full((30, 50), 255, np.uint8), 10)).save("m.png")
  call(size=20, output_size="work", out="small.png", strength=0.0, mask=["m.png"])
  assert read("small.png").shape == (20, 28, 3)


def test_folders_by_folders(call, capsys):
  stylizer = call(content="contents", style=["styles"], out="out", batch_size=2, grid="sheet.png")
  names = {path.name for path in pathlib.Path("out").iterdir()}
  assert names == {f"frame{i}--{color}.png" for i in range(3) for color in COLORS}
  assert stylizer.encoded == 3
  assert {shape[0] for shape in stylizer.shapes} == {1, 2}
  for i in range(3):
    content = f"contents/frame{i}.png"
    assert read(f"out/frame{i}--red.png").shape == read(content).shape
    assert np.argmax(shift(f"out/frame{i}--blue.png", content)) == 2
  assert "9 images in" in capsys.readouterr().out
  cell = image_grid.CELL + 2
  sheet = read("sheet.png")
  assert sheet.shape == (4 * cell + 2, 4 * cell + 2, 3)
  assert (sheet[2 : cell - 2, 2 : cell - 2] == 255).all()
  centers = sheet[cell // 2 :: cell, cell // 2 :: cell]
  assert [tuple(color) for color in centers[0, 1:]] == [COLORS[n] for n in sorted(COLORS)]
  difference = (centers[1:, 1:] - centers[1:, :1])[:, :, :]
  assert (difference.argmax(-1) == [2, 1, 0]).all()


def test_frames_of_one_style_are_rendered_together(call):
  stylizer = call(content="contents", out="out")
  assert stylizer.encoded == 1
  # Of different heights, but the same when padded.
  assert stylizer.shapes == [(4, 128, 128, 3)]
  assert len(list(pathlib.Path("out").iterdir())) == 3


def test_the_rest_of_a_batch_goes_on(call, capsys):
  pathlib.Path("contents/frame1.png").write_bytes(b"none")
  Image.new("RGB", (1, 1)).save("contents/tiny.png")
  pathlib.Path("contents/notes.txt").write_text("no image by name: not even tried")
  pathlib.Path("styles/green.png").write_bytes(b"")
  with pytest.raises(SystemExit) as caught:
    call(content="contents", style=["styles"], out="out", grid="sheet.png")
  assert caught.value.code == 1
  names = {path.name for path in pathlib.Path("out").iterdir()}
  assert names == {f"frame{i}--{color}.png" for i in (0, 2) for color in ("red", "blue")}
  captured = capsys.readouterr()
  assert "4 images in" in captured.out
  title, *lines = captured.err.splitlines()
  assert title == "3 files failed:" and len(lines) == 3
  for line, file in zip(lines, ("green", "frame1", "tiny"), strict=True):
    assert f"{file}.png" in line
  assert read("sheet.png").shape[0] == 3 * (image_grid.CELL + 2) + 2


def test_a_mask_of_another_size_fails_its_content_only(call, capsys):
  Image.new("L", (80, 79), 255).save("m.png")
  with pytest.raises(SystemExit):
    call(content="contents", out="out", mask=["m.png"])
  assert [path.name for path in pathlib.Path("out").iterdir()] == ["frame1--red.png"]
  words = "the mask .*m.png is 80×79 pixels and .*contents/frame0.png is 80×80"
  assert re.search(words, capsys.readouterr().err)


def test_names_that_differ_in_their_suffix_only(place):
  Image.new("RGB", (20, 20)).save("contents/frame0.jpg")
  pathlib.Path("contents/more").mkdir()
  Image.new("RGB", (20, 20)).save("contents/more/frame0.jpg")
  names = [file.name for file in batch_jobs.find("contents", [])]
  assert names == ["frame0.jpg", "frame0.png", "frame1", "frame2", "more/frame0"]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (dict(content="none.png"), "none.png cannot be read"),
    (dict(content="text.png"), "text.png is no whole image"),
    (dict(style=["none.png"]), "none.png cannot be read"),
    (dict(style=["text.png", "styles/red.png"]), "text.png is no whole image"),
    (dict(mask=["none.png"]), "none.png cannot be read"),
    (dict(mask=["styles/red.png"]), "the mask .*red.png is 300×200 pixels and .*a.png is 70×50"),
    (dict(content="empty", out="out"), "empty holds no image"),
    (dict(out=""), "nothing to write"),
    (dict(out="out.gif"), "out.gif is no name of an image file"),
    (dict(out="a.png"), "a.png is an input too"),
    (dict(out="styles/../styles/red.png"), "red.png is an input too"),
    (dict(grid="a.png"), "a.png is an input too"),
    (dict(grid="out.png"), "out.png would be written 2 times"),
    (dict(grid="grid.jpg"), "contact sheets are PNG files"),
    (dict(content="contents", out="a.png"), "--out=.*a.png is a file, and a batch needs a folder"),
    (dict(content="contents", out="contents/out"), "lies in .*contents, whose images are inputs"),
    (dict(style=["styles", "a.png"], out="out"), "--style=.*styles is a folder: give it alone"),
    (dict(style=["styles"], weights="1,2", out="out"), "mixes files"),
    (dict(weights="1,2"), "2 numbers for 1 styles"),
    (dict(mask=["m.png", "m.png"]), "2 times --mask and 1 times --style"),
    (
      dict(style=["a.png", "a.png"], mask=["m.png", "m.png"], weights="1,2"),
      "mixes styles, and each has a mask",
    ),
    (dict(strength=1.5), "--strength=1.5 is outside"),
    (dict(size=5), "--size=5 is outside 16"),
    (dict(output_size="work"), "--output_size=work is the size of --size"),
    (dict(style_size=100), "--style_size=100 must be a multiple of 8"),
    (dict(style=["bad"], out="out"), "none of 1 styles can be read: .*bad/text.png"),
  ],
)
def test_bad_input(call, flags, message):
  pathlib.Path("text.png").write_text("text")
  for folder in ("empty", "bad"):
    pathlib.Path(folder).mkdir()
  pathlib.Path("bad/text.png").write_text("text")
  before = pathlib.Path("a.png").read_bytes()
  with pytest.raises(UserError, match=message) as caught:
    call(**flags)
  assert "\n" not in str(caught.value)
  assert pathlib.Path("a.png").read_bytes() == before and not pathlib.Path("out.png").exists()
