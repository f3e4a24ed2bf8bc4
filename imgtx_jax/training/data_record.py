"""The record of the data that a run is trained on: written once, compared at every later start.

data.json   {"imgtx_jax": the version that began the run, "config": the digest of its config,
             "sources": {name: {split: {"images", "class_images", "digest"}}}}
"""

import json
from pathlib import Path

import imgtx_jax
from imgtx_jax.errors import UserError, first_line

FILE = "data.json"
_SHOWN = 3  # names in a message


def describe(sources):
  """Returns the record of {name: (training, held_out)} data sources."""
  splits = ("training", "held_out")
  return {
    "imgtx_jax": imgtx_jax.__version__,
    "sources": {
      name: {split: _describe(source) for split, source in zip(splits, pair, strict=True)}
      for name, pair in sources.items()
    },
  }


def _describe(source):
  return {
    "images": len(source),
    "class_images": source.class_counts(),
    "digest": source.digest()[:16],
  }


def check_classes(workdir, trained, found):
  """Raises UserError unless the data has the classes that a work directory was trained on.

  trained: names of those classes. found: those of the data. Imported weights do not name their
  classes: numbers stand for any names.
  """
  trained, found = list(trained), list(found)
  if trained == found or stand_ins(trained, found):
    return
  new = [name for name in found if name not in set(trained)]
  missing = [name for name in trained if name not in set(found)]
  changes = [f"{_some(new)} {_are(new)} new"] if new else []
  changes += [f"{_some(missing)} {_are(missing)} missing"] if missing else []
  raise UserError(
    f"{workdir} was trained on {len(trained)} classes, and config.data.path has others now: "
    f"{' and '.join(changes) or 'their order is another one'}; bring the old ones back, or train "
    "with another --workdir"
  )


def stand_ins(trained, found):
  """Returns whether the names `trained` are just numbers of as many classes as `found`."""
  return len(trained) == len(found) and trained == [str(i) for i in range(len(trained))]


def compare(workdir, record, class_names):
  """Compares the record of a work directory with that of the data to train on now.

  Returns (the record to write or None, lines of notes). Raises UserError if the work directory was
  begun on other images.
  """
  path = Path(workdir) / FILE
  if not path.exists():
    return record, []
  before = _read(path)
  try:
    for name in record["sources"]:
      for split, now in record["sources"][name].items():
        _check_split(workdir, before["sources"].get(name, {}).get(split), now, split, class_names)
  except (KeyError, TypeError, AttributeError) as error:
    raise _damaged(path, error) from error
  notes = []
  if before["imgtx_jax"] != record["imgtx_jax"]:
    notes.append(
      f"note: {workdir} was begun with imgtx_jax {before['imgtx_jax']}, and this is "
      f"{record['imgtx_jax']}: what is trained from here on may differ from what that would give"
    )
  merged = before | {"sources": record["sources"] | before["sources"]}
  return (merged if merged != before else None), notes


def config_digest(workdir):
  """Returns the digest of the config that a work directory was begun with; "" if unknown."""
  path = Path(workdir) / FILE
  if not path.exists():
    return ""
  record = _read(path)
  return record["config"] if record["imgtx_jax"] == imgtx_jax.__version__ else ""


def _read(path):
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record["sources"], dict):
      raise TypeError("its sources are none")
    record["imgtx_jax"], record["config"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise _damaged(path, error) from error
  return record


def _damaged(path, error):
  return UserError(
    f"{path} is damaged ({first_line(error)}): delete it, and what is there now counts as what the "
    "run was begun with"
  )


def _check_split(workdir, before, now, split, class_names):
  if before is None or before["digest"] == now["digest"]:
    return
  raise UserError(
    f"the {split.replace('_', '-')} images of {workdir} have changed: "
    f"{_difference(before, now, class_names)}; put them back, train with another --workdir, or "
    f"delete {Path(workdir) / FILE} to go on with them as they are now"
  )


def _difference(before, now, class_names):
  """What has changed between two records of a split, in words."""
  counts = before["class_images"] or [], now["class_images"] or []
  if len(counts[0]) == len(counts[1]) == len(class_names):
    changed = [
      f"class {name} has {new} and had {old}"
      for name, old, new in zip(class_names, *counts, strict=True)
      if old != new
    ]
    if changed:
      return _some(changed)
  if before["images"] != now["images"]:
    return f"there are {now['images']}, and there were {before['images']}"
  return f"as many, {now['images']}, but some have other names"


def _some(names):
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + more


def _are(names):
  return "is" if len(names) == 1 else "are"
