"""What samples are compared with: images, or mean and covariance of their features in a file.

Statistics as ADM's evaluator has them: mu [D] and sigma [D, D], and mu_s, sigma_s of the spatial
features. Files of write_statistics also hold the name of their network.
"""

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np

from imgtx_jax.errors import UserError, first_line
from imgtx_jax.evaluate import image_sets
from imgtx_jax.io import npz
from imgtx_jax.io.atomic import open_atomically, write_atomically
from imgtx_jax.training import data_record

_PARTS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclasses.dataclass
class Reference:
  """What samples are compared with.

  about: for the protocol. images: an ImageSet or None. statistics: {part: (mean, covariance)} of a
  file, used before those of the images.
  """

  about: dict
  images: image_sets.ImageSet | None = None
  statistics: dict = dataclasses.field(default_factory=dict)


def open_reference(text, network, widths, *, model=None, size=None, crop=None, limit=0):
  """Returns the Reference that `text` names.

  Args:
    text: "train" or "validation" (of the model's data), "tfds:NAME" or "tfds:NAME:SPLIT", a folder,
      or an .npz of images or of statistics.
    network: the FeatureNetwork in use.
    widths: {part: D} of the network's features.
    model: the inputs.Model whose data "train" and "validation" are; or None.
    size: side to which the images of data sets are resized.
    crop: side to which a folder's images are cropped and resized; None leaves them as they are.
    limit: largest number of images; 0 for all.

  Raises:
    UserError: if there are no such images, or the file is damaged or of another network.
  """
  if text in ("train", "validation"):
    if model is None:
      raise UserError(f"--reference={text} is the data of a work directory; give --workdir")
    images = own_data(model, text, limit)
  elif text.startswith("tfds:"):
    name, _, split = text.removeprefix("tfds:").partition(":")
    if split not in ("", "train", "validation"):
      raise UserError(f"--reference={text}: {split!r} is not one of: train, validation")
    config = model and model.config
    path = config.data.path if config and config.data.source == f"tfds:{name}" else ""
    options = dict(path=path, size=size, limit=limit)
    images = image_sets.open_data(f"tfds:{name}", split or "validation", **options)
  elif text.endswith(".npz") and Path(text).is_file():
    return _open_npz(Path(text), network, widths, limit)
  else:
    images = image_sets.open_files(text, size=crop, limit=limit)
  return Reference(images.fingerprint, images)


def own_data(model, split, limit=0):
  """Returns the ImageSet of a split of the data that an inputs.Model was trained on.

  limit: largest number of images; 0 for all. Raises UserError if the data has other classes now.
  """
  data = model.config.data
  images = image_sets.open_data(
    data.source, split, path=data.path, size=data.image_size, limit=limit, threads=data.threads
  )
  data_record.check_classes(model.directory, model.class_names, images.source.class_names)
  return images


def _open_npz(path, network, widths, limit):
  if not zipfile.is_zipfile(path):
    raise UserError(f"{path} is no .npz file, whatever its name; name another file")
  try:
    with np.load(path, allow_pickle=False) as arrays:
      has_images = "arr_0" in arrays
      small = [key for key in arrays if key not in ("arr_0", "arr_1")]
      values = {key: arrays[key] for key in small}
  except npz.DAMAGE as error:
    raise UserError(f"{path} is no whole .npz ({first_line(error)}); name another file") from error
  if not has_images and not {"mu", "sigma"} <= values.keys():
    raise UserError(
      f"{path} holds {', '.join(values) or 'nothing'}; a reference needs arr_0 (images), or mu and "
      "sigma (statistics)"
    )
  images = image_sets.NpzImages(path, limit=limit) if has_images else None
  refused = _refuse(path, values, network, widths)
  if refused and not has_images:
    raise UserError(refused)
  about = {"kind": "npz", "path": str(path.resolve()), "sha256": image_sets.hash_file(path)}
  if images:
    about |= images.fingerprint
  if refused:
    return Reference(about | {"statistics": "of the images"}, images)
  statistics = {
    part: (values[mean], values[covariance])
    for part, (mean, covariance) in _PARTS.items()
    if {mean, covariance} <= values.keys() and values[mean].shape == (widths.get(part),)
  }
  about |= {"statistics": f"{', '.join(statistics)} as the file has them"}
  if "count" in values:
    if np.shape(values["count"]) or values["count"].dtype.kind not in "iu":
      raise UserError(
        f"{path}: count is {values['count'].dtype} {list(np.shape(values['count']))}, and should "
        "be one whole number; make the file again"
      )
    about["count"] = int(values["count"])
  return Reference(about, images, statistics)


def _refuse(path, values, network, widths):
  """Returns why the file's statistics are not of this network, or "" if they are."""
  if "mu" not in values or "sigma" not in values:
    return f"{path} has no mu and sigma"
  own = str(values.get("weights_sha256", network.weights_sha256))
  name = str(values.get("network", network.name))
  if (name, own) != (network.name, network.weights_sha256):
    return (
      f"{path} is of the network {name} with weights {own[:8]}, and {network.name} with weights "
      f"{network.weights_sha256[:8]} is in use: choose its --network, or another reference"
    )
  if np.shape(values["mu"]) != (widths["features"],):
    return (
      f"{path}: mu has the shape {list(np.shape(values['mu']))}, and {network.label} has "
      f"{widths['features']} features, so it is of another network: choose that --network, or "
      "another reference"
    )
  width = widths["features"]
  if np.shape(values["sigma"]) != (width, width):
    return f"{path}: sigma has the shape {list(np.shape(values['sigma']))}, not [{width}, {width}]"
  return ""


def write_statistics(path, network, moments):
  """Writes moments {part: Moments} of a network's features as an .npz that open_reference reads."""
  arrays = {"network": network.name, "weights_sha256": network.weights_sha256}
  for part, (mean, covariance) in _PARTS.items():
    if part in moments:
      arrays |= {mean: moments[part].mean, covariance: moments[part].covariance}
      arrays["count"] = moments[part].count
  data = io.BytesIO()
  np.savez(data, **arrays)
  write_atomically(path, data.getvalue())


def write_npz(path, stores_images, labels, count, size):
  """Writes samples as ADM's evaluator reads them: arr_0 uint8 [count, H, W, 3] and, unless labels
  is None, arr_1 [count]. stores_images: yields them a part at a time."""
  header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
  with open_atomically(path) as file, zipfile.ZipFile(file, "w") as archive:
    with archive.open("arr_0.npy", "w", force_zip64=True) as member:
      np.lib.format.write_array_header_1_0(member, header)
      for images in stores_images:
        member.write(np.ascontiguousarray(images).tobytes())
    if labels is not None:
      with archive.open("arr_1.npy", "w") as member:
        np.lib.format.write_array(member, np.asarray(labels, np.int64))
