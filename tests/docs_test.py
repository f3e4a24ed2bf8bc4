"""The guides: links lead somewhere, command lines parse, keys and files that they name exist, and
README stays short."""

import ast
import collections
import importlib
import re
import shlex
from pathlib import Path

import jax
import pytest
from absl import flags

from imgtx_jax.cli import command
from imgtx_jax.config import defaults, validation
from imgtx_jax.errors import UserError
from imgtx_jax.training import workdir

ROOT = Path(__file__).parents[1]
PAGES = [
  *(ROOT / name for name in ("README.md", "CHANGELOG.md", "examples/README.md")),
  *sorted((ROOT / "docs").glob("*.md")),
]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
WORDS = range(1600, 2201)  # of README

# What hands its arguments on to imgtx_jax.main.
LAUNCHERS = ("launch/quickstart.sh", "launch/tpu_pod.sh", "launch/gke_jobset.sh")
OPERATORS = {"|", "||", "&", "&&", ";", ">", ">>"}
# The commands themselves ignore it: ml_collections loads config files so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module.. method:DeprecationWarning")
KEY = re.compile(r"(?<![\w/.])config\.(?!json|py)([a-z_][a-z_0-9]*(?:\.[a-z_][a-z_0-9]*)*)")
FILE = re.compile(r"[\w.-]+(/[\w.-]+)*(\.(py|sh|sbatch|md)|/)")


# -- What a page holds -----------------------------------------------------------------------------


def split_code(text):
  """(prose, [line of code]) of Markdown: code is indented by four spaces or fenced; continued
  lines are joined."""
  prose, code, fenced = [], [], False
  for line in re.sub(r"\\\n\s*", " ", text).splitlines():
    if line.startswith("```"):
      fenced = not fenced
    elif fenced or line.startswith("    "):
      code.append(line.strip())
    else:
      prose.append(line)
  return "\n".join(prose), code


def inline_code(prose):
  """What stands between backticks, on one line each."""
  return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]


def read_code(path):
  """All code of a page, or of a config's docstring."""
  if path.suffix == ".py":
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return split_code(re.sub(r"(?m)^  (?=\S)", "    ", docstring))[1]
  prose, code = split_code(path.read_text(encoding="utf-8"))
  return inline_code(prose) + code


def links(text):
  """The targets of a page's links and pictures."""
  prose = re.sub(r"`[^`]*`", "", split_code(text)[0])
  return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(text):
  """The anchors of a page's headings, as GitHub makes them."""
  found, counts = set(), collections.Counter()
  for heading in re.findall(r"(?m)^#+ (.+)$", split_code(text)[0]):
    slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
    found.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
    counts[slug] += 1
  return found


def broken_link(path, target):
  """Why a link of the page at path leads nowhere; "" where it does not, or leaves the project."""
  if re.match(r"[a-z]+:", target):
    return ""
  name, _, anchor = target.partition("#")
  file = path.parent / name if name else path
  if not file.exists():
    return f"{target}: no such file"
  if anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
    return f"{target}: no such heading"
  return ""


def commands(line):
  """[(command, arguments)] of a line of code: what it runs of imgtx_jax, arguments as a list."""
  try:
    words = shlex.split(line, comments=True)
  except ValueError:  # an apostrophe: prose, or a placeholder
    words = line.split()
  found = []
  for i, word in enumerate(words):
    rest = words[i + 1 :]
    end = next((j for j, other in enumerate(rest) if other in OPERATORS), len(rest))
    if word == "-m" and rest and rest[0].startswith("imgtx_jax."):
      found.append((rest[0].removeprefix("imgtx_jax."), rest[1:end]))
    elif word in LAUNCHERS and any(argument.startswith("--config") for argument in rest):
      first = next(j for j, argument in enumerate(rest) if argument.startswith("--config"))
      found.append(("main", rest[first:end]))
  return found


def unknown_keys(code):
  """Keys of the config that a line of code names and that do not exist."""
  known = set(defaults.flatten(defaults.default()))
  groups = {key[:i] for key in known for i, letter in enumerate(key) if letter == "."}
  return [key for key in KEY.findall(code) if key not in known | groups]


def missing_file(path, code):
  """The file or folder of the project that inline code names and that does not exist, or ""."""
  name = code.partition(":")[0]
  if not FILE.fullmatch(name):
    return ""
  places = (ROOT, ROOT / "imgtx_jax", path.parent)
  return "" if any((place / name).exists() for place in places) else name


# -- Parsing a command line as the command does ----------------------------------------------------


def entry(name):
  """The Command, or {kind: Command}, that `python -m imgtx_jax.NAME` runs."""
  folder = ROOT / "imgtx_jax" / name.replace(".", "/")
  if folder.is_dir():
    name = f"{name}.__main__"
  elif not folder.with_suffix(".py").is_file():
    raise ValueError(f"no command imgtx_jax.{name}")
  module = importlib.import_module(f"imgtx_jax.{name}")
  return getattr(module, "COMMAND", None) or module.COMMANDS


@pytest.fixture
def parse(monkeypatch, tmp_path):
  """parse(command, arguments): ValueError where the command would end before it does anything, by
  its own flags and the config's checks."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  monkeypatch.chdir(tmp_path)

  def parse(name, arguments):
    argv = [name]
    for argument in arguments:
      if (source := re.search(r"from_workdir\.py:(\S+)", argument)) and not Path(
        source[1]
      ).exists():
        workdir.claim(defaults.default().lock(), source[1], ["a class"])
      if not argument.startswith("--jax_"):
        argv.append(argument)
      elif not hasattr(jax.config, argument.partition("=")[0].removeprefix("--")):
        raise ValueError(f"jax has no flag {argument}")
    try:
      values = command.parse(entry(name), argv).flags
      if "config" in values and values.config is not None:
        validation.check(values.config, devices=1)
    except (UserError, flags.Error) as error:
      raise ValueError(str(error)) from error

  return parse


# -- The pages -------------------------------------------------------------------------------------


def title(path):
  return str(path.relative_to(ROOT))


def test_readme_is_short_and_begins_with_a_picture():
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  assert len(text.split()) in WORDS
  assert "](docs/quickstart.png)" in "".join(text.splitlines()[:5])
  for line in ("bash launch/quickstart.sh", "bash launch/test.sh"):
    assert line in text[: len(text) // 4]


@pytest.mark.parametrize("path", PAGES, ids=title)
def test_links_lead_somewhere(path):
  text = path.read_text(encoding="utf-8")
  assert [why for target in links(text) if (why := broken_link(path, target))] == []


@pytest.mark.parametrize("path", [*PAGES, *CONFIGS], ids=title)
def test_command_lines_parse(path, parse):
  faults = []
  for line in read_code(path):
    for name, arguments in commands(line):
      try:
        if arguments:
          parse(name, arguments)
        else:
          entry(name)
      except ValueError as error:
        faults.append(f"{line}\n    {error}")
  assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", [*PAGES, *CONFIGS], ids=title)
def test_keys_of_the_config_exist(path):
  assert [key for code in read_code(path) for key in unknown_keys(code)] == []


@pytest.mark.parametrize("path", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=title)
def test_files_that_are_named_exist(path):
  prose, _ = split_code(path.read_text(encoding="utf-8"))
  assert [name for code in inline_code(prose) if (name := missing_file(path, code))] == []


@pytest.mark.parametrize("path", PAGES, ids=title)
def test_extras_exist(path):
  setup = (ROOT / "setup.py").read_text(encoding="utf-8")
  named = re.findall(r"\.\[(\w+)\]", path.read_text(encoding="utf-8"))
  assert [extra for extra in named if f'"{extra}": ' not in setup] == []


def test_every_guide_is_linked_from_readme():
  linked = {target.partition("#")[0] for target in links((ROOT / "README.md").read_text("utf-8"))}
  assert {title(path) for path in PAGES if path.name != "README.md"} <= linked


def test_the_paths_of_one_image_have_nine_files_at_most():
  text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
  section = text.partition("## The path of one image")[2].partition("\n## ")[0]
  tables = [part for part in section.split("\n\n") if part.startswith("|")]
  assert len(tables) == 2
  for table in tables:
    files = re.findall(r"(?m)^\| \d+ \| \[[^\]]+\]\(\.\./imgtx_jax/([^)]+)\)", table)
    assert 0 < len(files) == len(set(files)) <= 9


# -- That faults are found -------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["no_such.md", "README.md#no-such-heading", "#no-such-heading"])
def test_a_broken_link_is_found(target):
  assert broken_link(ROOT / "README.md", target)


@pytest.mark.parametrize(
  "line",
  [
    "python -m imgtx_jax.no_such --workdir DIR",
    "python -m imgtx_jax.sample --workdir DIR --no_such_flag 3",
    "python -m imgtx_jax.sample --num 3 --out grid.png",
    "python -m imgtx_jax.sample --workdir DIR --guidance none",
    "python -m imgtx_jax.judge --workdir DIR",
    "python -m imgtx_jax.main --config configs/no_such.py --workdir DIR",
    "python -m imgtx_jax.main --config configs/quickstart.py --workdir DIR --config.no.key=1",
    "python -m imgtx_jax.main --config configs/quickstart.py --workdir DIR --config.rounds=many",
    "python -m imgtx_jax.main --config configs/quickstart.py --workdir DIR --config.rounds=0",
    "python -m imgtx_jax.benchmark no_such --config configs/quickstart.py",
    "bash launch/tpu_pod.sh run --config configs/no_such.py --workdir DIR",
  ],
)
def test_a_command_line_that_fails_is_found(line, parse):
  ((name, arguments),) = commands(line)
  with pytest.raises(ValueError):
    parse(name, arguments)


def test_names_that_do_not_exist_are_found():
  assert unknown_keys("--config.no_such=1 and config.gpt.no_such") == ["no_such", "gpt.no_such"]
  assert unknown_keys("config.gpt.order, config.gpt, WORKDIR/config.json, config/defaults.py") == []
  assert missing_file(ROOT / "README.md", "models/no_such.py")
  assert not missing_file(ROOT / "README.md", "models/gpt.py")
  assert anchors("# One: two\n\n## One two\n\n## `x` of y\n") == {"one-two", "one-two-1", "x-of-y"}
