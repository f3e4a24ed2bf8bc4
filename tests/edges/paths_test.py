"""Paths: "~" is the home folder, remote ones are one line, relative ones hold from anywhere; for
every flag and every config key that is a path."""

import json
import os
import pwd
from pathlib import Path

import pytest

from imgtx_jax.cli import paths
from imgtx_jax.config import defaults
from imgtx_jax.errors import UserError
from imgtx_jax.io import local_paths
from imgtx_jax.training import workdir

FLAGS = {
  "main": ("workdir",),
  "sample": ("workdir", "out", "save_images", "save_codes", "init", "style", "style_workdir"),
  "judge": ("workdir", "out"),
  "stylize": ("workdir", "content", "style", "out", "mask", "grid"),
  "evaluate": (
    *("workdir", "reference", "samples", "out", "save_npz", "save_stats", "content", "style"),
  ),
  "convert llamagen": ("gpt", "tokenizer", "out"),
  "convert inception": ("out",),
  "convert imagenet": ("tars", "data_dir"),
}
TOKENIZER = ("--config=config.py", "--stage=tokenizer")
CASES = [(name, flag) for name, given in FLAGS.items() for flag in given]


@pytest.mark.parametrize("name, flag", CASES)
def test_every_path_flag_refuses_remote_paths(call, name, flag, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for value in ("gs://bucket/x", "s3://bucket/x", "~nobody-of-this-name/x", "a" * 300):
    assert f"--{flag}={value}" in call(*name.split(), f"--{flag}={value}").error
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", defaults.PATH_KEYS)
def test_every_path_key_is_made_absolute_and_refuses_remote_paths(key, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", "/home/me")
  config = defaults.default().lock()
  for given, wanted in (("", ""), ("x/../y", f"{tmp_path}/y"), ("~/x", "/home/me/x")):
    with config.unlocked():
      config.update_from_flattened_dict({key: given})
    paths.resolve(config)
    assert defaults.flatten(config)[key] == wanted and config.is_locked
  config.update_from_flattened_dict({key: "gs://bucket/x"})
  with pytest.raises(UserError, match=f"config.{key}=gs://bucket/x: "):
    paths.resolve(config)


def test_several_folders_and_words_that_are_no_paths(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = defaults.default()
  config.data.update(dict(source="images", path="a, b"))
  config.pretrain.code_cache = "auto"
  paths.resolve(config)
  assert config.data.path == f"{tmp_path}/a,{tmp_path}/b"
  assert config.pretrain.code_cache == "auto"


def test_home_is_one_place_for_all_of_a_work_directory(
  call, place, no_training, monkeypatch, tmp_path_factory
):
  home = tmp_path_factory.mktemp("home")
  monkeypatch.setenv("HOME", str(home))
  before = sorted(os.listdir(place))
  result = call("main", *TOKENIZER, "--config.data.path=data", "--workdir=~/run1")
  assert result.code == 0, result.err
  assert sorted(os.listdir(place)) == before
  assert no_training == [f"{home}/run1/1-tokenizer"]
  flat = json.loads((home / "run1" / "config.json").read_text())
  assert flat["data.path"] == str(place / "data")


@pytest.mark.parametrize("words", [["--config=~/x.py"], ["--config", "~/x.py"], ["--flagfile=f"]])
def test_home_in_config(words, call, place, no_training, monkeypatch):
  monkeypatch.setenv("HOME", str(place))
  (place / "config.py").rename(place / "x.py")
  (place / "f").write_text("--config=~/x.py\n")
  arguments = ("--stage=tokenizer", "--config.data.path=data", "--workdir=new")
  result = call("main", *words, *arguments)
  assert result.code == 0, result.err
  assert no_training == [f"{place}/new/1-tokenizer"]
  result = call("main", "--config=~nobody-of-that-name/x.py", *arguments)
  assert "--config=~nobody-of-that-name/x.py: there is no such home folder" in result.error


def test_a_relative_path_holds_from_another_folder(call, place, no_training, tmp_path_factory):
  call("main", *TOKENIZER, "--config.data.path=data", "--workdir=new")
  os.chdir(tmp_path_factory.mktemp("elsewhere"))
  config, _ = workdir.read(place / "new")
  assert Path(config.data.path) == place / "data"


def test_paths_of_an_older_version_count_as_absolute(tmp_path, monkeypatch, tiny_config):
  monkeypatch.chdir(tmp_path)
  tiny_config.init_from = "source"
  workdir.claim(tiny_config, tmp_path / "work", ["a"])
  tiny_config.init_from = str(tmp_path / "source")
  workdir.claim(tiny_config, tmp_path / "work", ["a"])
  tiny_config.init_from = str(tmp_path / "other")
  with pytest.raises(UserError, match="init_from is"):
    workdir.claim(tiny_config, tmp_path / "work", ["a"])


def test_an_empty_work_directory_is_none(call, place):
  result = call("main", "--config=config.py", "--workdir=")
  assert "--workdir is missing" in result.error


def test_the_message_names_the_key(call, place):
  result = call("main", "--config=config.py", "--workdir=new", "--config.data.path=nowhere")
  assert f"config.data.path={place}/nowhere is not a folder" in result.error
  result = call(
    "main",
    *("--config=config.py", "--workdir=new", "--config.data.path=data"),
    "--config.style.data.path=nowhere",
  )
  assert f"config.style.data.path={place}/nowhere holds no image" in result.error
  assert not (place / "new").exists()


def test_without_a_home_folder(monkeypatch):
  def nobody(_):
    raise KeyError("no such user")

  monkeypatch.delenv("HOME", raising=False)
  monkeypatch.delenv("IMGTX_CACHE", raising=False)
  monkeypatch.setattr(pwd, "getpwuid", nobody)
  assert local_paths.cache_folder() is None
  with pytest.raises(ValueError, match="no such home folder"):
    local_paths.absolute("~/x")
  monkeypatch.setenv("IMGTX_CACHE", "cache")
  assert local_paths.cache_folder() == Path("cache").absolute()
  monkeypatch.setenv("IMGTX_CACHE", "gs://bucket")
  with pytest.raises(UserError, match="IMGTX_CACHE=gs://bucket"):
    local_paths.cache_folder()
