"""The rules on who may import what and who places arrays; and that compile time does not grow with
depth.

The checks are functions of {module name: source}, so that they can be tried on made-up packages.
"""

import ast
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import imgtx_jax
from imgtx_jax import stages

ROOT = Path(imgtx_jax.__file__).parent
PACKAGE = "imgtx_jax"

# A module imports modules of lower layers and of its own room. A name is a room or a module; the
# longest that fits decides.
LAYERS = (
  ("errors", "rng", "option_fields"),
  ("io", "distributed"),
  ("models",),
  ("training.optimizer", "training.train_state", "training.gradient_accumulation"),
  ("pretrained",),
  ("losses", "metrics"),
  ("sampling", "data"),
  ("config",),
  ("cli",),
  ("training", "stages"),  # not of each other
  ("sampling.sampler", "style_transfer", "reporting"),
  ("benchmark", "evaluate"),
  ("plan", "convert"),
  ("main", "sample", "judge", "stylize"),
)
COMMANDS = (*LAYERS[-1], *(f"{room}.__main__" for room in (*LAYERS[-2], *LAYERS[-3])))
# What the order of layers allows and the rules do not: who must not reach whom, through others too.
FORBIDDEN = {
  "models": ("distributed.processes",),
  "data": ("models", "losses", "metrics"),
}
# Who alone may import an outside module.
ALONE = {
  "absl.flags": ("cli", *COMMANDS),
  "ml_collections.config_flags": ("cli", *COMMANDS),
  "orbax": ("training.checkpoint",),
  "tensorflow": (),
}
PLACING = ("device_put", "make_array_", "NamedSharding", "PartitionSpec", "GSPMDSharding")
CONSTRAINING = ("PartitionSpec", "with_sharding_constraint")  # of activations within a step


# -- The checks ------------------------------------------------------------------------------------


def read_package():
  """{"imgtx_jax.models.gpt": source}; a package's __init__ goes by the package's name."""
  sources = {}
  for path in sorted(ROOT.rglob("*.py")):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
  return sources


def imports(source, module_level=False):
  """[(module, name or None)] of every import; module_level: those outside functions."""
  tree = ast.parse(source)
  functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
  later = set()
  if module_level:
    later = {n for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import) and node not in later:
      found += [(alias.name, None) for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node not in later:
      assert node.level == 0, "relative imports are not followed: write the whole name"
      found += [(node.module, alias.name) for alias in node.names]
  return found


def dotted(source):
  """Every imported thing by its whole name."""
  return {module if name is None else f"{module}.{name}" for module, name in imports(source)}


def edges(sources, module_level=False):
  """{module: modules of the package it imports}."""
  graph = {}
  for module, source in sources.items():
    pairs = imports(source, module_level)
    # "from x import y" is module x.y where there is one, and else something in x.
    names = {f"{m}.{n}" if f"{m}.{n}" in sources else m for m, n in pairs}
    graph[module] = (names & set(sources)) - {module}
  return graph


def reach(graph, start):
  """Every module that start imports, through others too."""
  found, todo = set(), [start]
  while todo:
    new = graph[todo.pop()] - found
    found |= new
    todo += new
  return found


def belongs(module, part):
  """Whether module is imgtx_jax.part, or lies in that folder."""
  return f"{module}.".startswith(f"{PACKAGE}.{part}.")


def place(module):
  """(layer, room) of a module of the package: the layer of the longest name that fits."""
  name = module.removeprefix(f"{PACKAGE}.")
  fits = [(len(n), i) for i, names in enumerate(LAYERS) for n in names if belongs(module, n)]
  assert fits, f"{module} is in no layer: add its room to LAYERS"
  return max(fits)[1], name.split(".")[0]


def bad_layers(sources):
  """Lines "who imports whom" of imports from a layer above, or from another room of the same; and
  of a command by another module."""
  found = []
  for module, others in edges(sources).items():
    for other in sorted(others - {PACKAGE}):
      (layer, room), (below, of) = place(module), place(other)
      command = any(belongs(other, c) for c in COMMANDS)
      if below > layer or (below == layer and room != of) or command:
        found.append(f"{module} imports {other}")
  return found


def bad_dependencies(sources):
  """Lines "who reaches whom" against FORBIDDEN."""
  graph = edges(sources)
  return [
    f"{module} reaches {other}"
    for part, forbidden in FORBIDDEN.items()
    for module in sources
    if belongs(module, part)
    for other in sorted(reach(graph, module))
    if any(belongs(other, f) for f in forbidden)
  ]


def bad_outside_imports(sources):
  """Lines "who imports what" against ALONE."""
  return [
    f"{module} imports {name}"
    for module, source in sources.items()
    for name in sorted(dotted(source))
    for outside, allowed in ALONE.items()
    if f"{name}.".startswith(f"{outside}.") and not any(belongs(module, a) for a in allowed)
  ]


def bad_placements(sources):
  """Lines "who uses what" for names that place arrays outside distributed/sharding.py, or constrain
  them outside distributed/collectives.py."""
  lines = []
  for module, source in sources.items():
    used = {n.attr for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute)}
    used |= {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)}
    used |= {name.split(".")[-1] for name in dotted(source)}
    if belongs(module, "distributed.sharding"):
      continue
    bad = {name for name in used if name.startswith((*PLACING, *CONSTRAINING))}
    if belongs(module, "distributed.collectives"):
      bad -= set(CONSTRAINING)
    bad = sorted(bad)
    if bad:
      lines.append(f"{module} uses {', '.join(bad)}")
  return lines


def named_stages(source, names):
  """Names of stages that stand in a source as strings or identifiers."""
  words = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      words.add(node.value)
    elif isinstance(node, (ast.Name, ast.Attribute)):
      words.add(node.id if isinstance(node, ast.Name) else node.attr)
  return sorted(set(names) & words)


def cycles(sources):
  """Modules that import themselves through others when they are loaded."""
  graph = edges(sources, module_level=True)
  return sorted(module for module in sources if module in reach(graph, module))


# -- The package -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources():
  return read_package()


def test_all_of_the_package_is_read(sources):
  needed = {"imgtx_jax.training.loop", "imgtx_jax.models.gpt", "imgtx_jax.stages"}
  assert needed <= set(sources)
  assert reach(edges(sources), "imgtx_jax.main") >= needed


def test_few_modules_lie_outside_a_room():
  assert len(list(ROOT.glob("*.py"))) <= 10


@pytest.mark.parametrize(
  "check", [bad_layers, bad_dependencies, bad_outside_imports, bad_placements, cycles]
)
def test_the_package_keeps_the_rules(check, sources):
  assert check(sources) == []


def test_the_loop_names_no_stage(sources):
  assert named_stages(sources["imgtx_jax.training.loop"], stages.STAGES) == []


# -- The checks can fail ---------------------------------------------------------------------------


def test_an_import_against_the_layers_is_found():
  sources = {
    "imgtx_jax": "",
    "imgtx_jax.config": "",
    "imgtx_jax.models": "",
    "imgtx_jax.models.net": "import jax\nfrom imgtx_jax.models import other",
    "imgtx_jax.models.other": "def f():\n  from imgtx_jax import config",
    "imgtx_jax.training": "",
    "imgtx_jax.training.loop": "from imgtx_jax.stages.one import Stage",
    "imgtx_jax.training.optimizer": "import optax",
    "imgtx_jax.stages": "",
    "imgtx_jax.stages.one": "import imgtx_jax.config\nfrom imgtx_jax.training import optimizer",
    "imgtx_jax.main": "from imgtx_jax import sample\nfrom imgtx_jax.training import loop",
    "imgtx_jax.sample": "from imgtx_jax.plan import __main__",
    "imgtx_jax.plan": "",
    "imgtx_jax.plan.__main__": "",
  }
  assert bad_layers(sources) == [
    "imgtx_jax.models.other imports imgtx_jax.config",
    "imgtx_jax.training.loop imports imgtx_jax.stages.one",
    "imgtx_jax.main imports imgtx_jax.sample",
    "imgtx_jax.sample imports imgtx_jax.plan.__main__",
  ]
  with pytest.raises(AssertionError, match="imgtx_jax.attic is in no layer"):
    bad_layers({"imgtx_jax.attic": "from imgtx_jax import config", "imgtx_jax.config": ""})


def test_a_forbidden_import_is_found_through_others():
  sources = {
    "imgtx_jax.data.x": "from imgtx_jax.io import y",
    "imgtx_jax.io.y": "def f():\n  from imgtx_jax.models import z",
    "imgtx_jax.models.z": "",
  }
  assert bad_dependencies(sources) == ["imgtx_jax.data.x reaches imgtx_jax.models.z"]


@pytest.mark.parametrize(
  "source, line",
  [
    ("from absl import flags, logging", "imgtx_jax.data.x imports absl.flags"),
    ("import absl.flags as f", "imgtx_jax.data.x imports absl.flags"),
    ("from ml_collections import config_flags", "imports ml_collections.config_flags"),
    ("import orbax.checkpoint as ocp", "imgtx_jax.data.x imports orbax.checkpoint"),
    ("def f():\n  import tensorflow as tf", "imgtx_jax.data.x imports tensorflow"),
  ],
)
def test_an_outside_import_is_found(source, line):
  (found, *_) = bad_outside_imports({"imgtx_jax.data.x": source})
  assert line in found
  fine = "from absl import logging\nimport tensorflow_datasets as tfds\nimport tensorboardX"
  assert bad_outside_imports({"imgtx_jax.data.x": fine}) == []
  home = {
    "imgtx_jax.training.checkpoint": "import orbax.checkpoint",
    "imgtx_jax.main": "import absl.flags",
    "imgtx_jax.plan.__main__": "import absl.flags",
  }
  assert bad_outside_imports(home) == []


@pytest.mark.parametrize(
  "source",
  [
    "import jax\nx = jax.device_put(1)",
    "from jax.sharding import NamedSharding as N",
    "import jax\nf = jax.make_array_from_callback",
    "from jax import device_put_sharded",
    "import jax\nf = jax.lax.with_sharding_constraint",
  ],
)
def test_a_placement_is_found(source):
  assert len(bad_placements({"imgtx_jax.x": source})) == 1
  assert bad_placements({"imgtx_jax.distributed.sharding": source}) == []


def test_collectives_may_constrain_and_not_place():
  module = "imgtx_jax.distributed.collectives"
  assert bad_placements({module: "from jax.sharding import PartitionSpec"}) == []
  assert len(bad_placements({module: "import jax\nx = jax.device_put(1)"})) == 1


def test_a_named_stage_is_found():
  assert named_stages("if stage.name == 'pretrain':\n  pass", ["pretrain", "style"]) == ["pretrain"]
  assert named_stages("config.style.steps", ["pretrain", "style"]) == ["style"]
  assert named_stages("'a style of pretraining'", ["pretrain", "style"]) == []


def test_a_cycle_is_found():
  a, b = "from imgtx_jax import b", "import imgtx_jax.c"
  sources = {"imgtx_jax.a": a, "imgtx_jax.b": b, "imgtx_jax.c": "from imgtx_jax.a import x"}
  assert cycles(sources) == ["imgtx_jax.a", "imgtx_jax.b", "imgtx_jax.c"]
  later = sources | {"imgtx_jax.c": "def f():\n  from imgtx_jax.a import x"}
  assert cycles(later) == []


# -- What importing changes ------------------------------------------------------------------------

IMPORTS = """
import importlib, logging, sys, warnings
import jax, numpy, orbax.checkpoint as ocp
import absl.logging, cv2, flax.linen, grain, matplotlib.figure, optax, PIL.Image, tensorboardX
import clu.parameter_overview, ml_collections.config_flags, tensorflow_datasets

def state():
  loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
  handler = ocp.type_handlers.get_type_handler
  return {
    "unraisable": sys.unraisablehook,
    "excepthook": sys.excepthook,
    "warnings": list(warnings.filters),
    "log filters": [x.filters for x in loggers if getattr(x, "filters", None)],
    "log levels": absl.logging.get_verbosity(),
    "orbax": [handler(kind) for kind in (numpy.ndarray, jax.Array, int, str)],
    "jax": dict(jax.config.values),
  }

before = state()
for name in sys.argv[1:]:
  importlib.import_module(name)
after = state()
assert before == after, {n: (before[n], after[n]) for n in before if before[n] != after[n]}
"""


def test_importing_any_module_changes_nothing_global(sources):
  """Each library is loaded before, for what it does itself is not ours."""
  modules = [m for m in sorted(sources) if "tf_data" not in m]
  done = subprocess.run(
    [sys.executable, "-c", IMPORTS, *modules],
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(ROOT.parent)},
  )
  assert done.returncode == 0, done.stderr


# -- Compile time ----------------------------------------------------------------------------------


@pytest.fixture
def no_compilation_cache():
  """Programs are compiled, not read from disk; without the optimizations that take longest."""
  quick, cached = "jax_disable_most_optimizations", "jax_enable_compilation_cache"
  before = {name: jax.config.values[name] for name in (quick, cached)}
  jax.config.update(quick, True)
  jax.config.update(cached, False)
  compilation_cache.reset_cache()  # which else remembers that it was on
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def compile_seconds(config, layers):
  """Processor time to trace and compile a tokenizer step; encoder and decoder share the layers."""
  for name in ("encoder", "generator"):
    config[name].depth = layers // 2
  stage = stages.build("tokenizer", config, 10)
  key = jax.eval_shape(lambda: jax.random.key(0))
  size = config.data.image_size
  shape = (stage.batch_size, size, size, 3)
  state = jax.eval_shape(lambda key: stage.init(key, shape, {}), key)
  batch = {
    "image": jax.ShapeDtypeStruct(shape, np.uint8),
    "label": jax.ShapeDtypeStruct(shape[:1], np.int32),
  }
  started = time.process_time()
  jax.jit(functools.partial(stage.step, axis=None)).lower(state, batch, key).compile()
  return time.process_time() - started


def test_compile_time_does_not_grow_with_depth(tiny_config, no_compilation_cache):
  # The deep one first: what only a first program pays is on its side of the balance.
  deep = compile_seconds(tiny_config, 24)
  shallow = compile_seconds(tiny_config, 6)
  if deep >= 1.5 * shallow:  # once more: the machine may have been busy
    deep = compile_seconds(tiny_config, 24)
  assert deep < 1.5 * shallow
