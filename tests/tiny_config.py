"""The tests' tiny config as a file for --config: tiny_config.py:STAGE,STAGE."""

import importlib.util
import os
import pathlib


def get_config(stages="tokenizer"):
  kept = dict(os.environ)
  spec = importlib.util.spec_from_file_location(
    "tests_conftest", pathlib.Path(__file__).with_name("conftest.py")
  )
  conftest = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(conftest)
  os.environ.clear()  # its devices are not those of this process
  os.environ.update(kept)
  config = conftest.make_tiny_config()
  config.stages = tuple(stages.split(","))
  config.parallel.mode = "jit"
  config.generator.taps = ()
  # Adam divides by the gradient's size: a large epsilon keeps it from blowing up the last digits.
  config.optimizer.epsilon = 1e-3
  return config.lock()
