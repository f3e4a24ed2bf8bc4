"""Measures a model or images: python -m imgtx_jax.evaluate --workdir DIR [--num 50000]

Draws samples from a work directory, or reads them (--samples: a folder or an .npz), compares them
with --reference, prints a table and writes evaluation.json with the whole protocol into --out.
Without --workdir it compares --samples with --reference.

--metrics: frechet, sfid, inception_score, kid, precision_recall, class_accuracy, reconstruction (of
the tokenizer: rFD, PSNR, SSIM, LPIPS), codes (usage, bits), nearest (nearest training images, with
a picture); by default all that can be had. A figure carries its network's name: FID is that of the
published InceptionV3 weights alone. --sweep=cfg_scale=1,1.5,2 repeats it all for each value.
--audit writes audit.html instead: classes done badly, favoured or dropped, and what the
discriminator judges by.

--metrics=style --content DIR --style DIR measures style transfer over their pairs and writes
style.json: a row each for the content as it is, the style image, colours alone, the style stage of
--workdir, and every --outputs=NAME=FOLDER of another method, named CONTENT--STYLE.png; with
--sweep=strength=.25,.5,.75 also rows at those strengths, and style.png, their curve.

Features are kept beside the results: the same command after a kill goes on where it was, and gives
the same figures. References' are shared through $IMGTX_CACHE, where it is set. Several processes
(jax.distributed) share the work through those folders, which all must see; the first one computes.
"""

import dataclasses
import os
from pathlib import Path

import jax
from absl import flags

from imgtx_jax.cli import command, sampling_flags
from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import extractors, image_sets, inputs, reference, runner, sweep
from imgtx_jax.evaluate.audit import audit
from imgtx_jax.evaluate.metrics_registry import Settings
from imgtx_jax.evaluate.style import from_flags
from imgtx_jax.pretrained import inception_weights
from imgtx_jax.sampling import options as sampling_options
from imgtx_jax.sampling.sampler import check_prefix
from imgtx_jax.training import workdir

FLAGS = flags.FLAGS
AUDIT_NUM = 2000  # samples with a label, and as many without


def main():
  """Evaluates what the flags ask for and writes it."""
  asked = [name.strip() for name in FLAGS.metrics.split(",") if name.strip()]
  if "style" in asked:
    from_flags.run(FLAGS, asked, folder())
    return
  check_flags()
  if FLAGS.audit:
    run_audit()
    return
  network = extractors.load(FLAGS.network or default_network())
  found = make_subject(network)
  evaluator = runner.Evaluator(
    network,
    Settings(kid_subset_size=FLAGS.kid_subset_size, splits=FLAGS.splits),
    out=folder(),
    shared=shared_folder(),
    batch_size=FLAGS.batch_size,
  )
  if FLAGS.sweep:
    run_sweep(evaluator, found, asked)
    return
  if draws(found):
    found.samples = draw(found.model)
  result = evaluator.run(found, asked, save_npz=FLAGS.save_npz, save_stats=FLAGS.save_stats)
  if result:
    runner.write(folder() / "evaluation.json", result)
    print("\n".join([*runner.table(result), f"protocol: {folder()}/evaluation.json"]))


def check_flags():
  """UserError for flags that cannot go together, before anything is loaded."""
  command.check_least(
    FLAGS, num=1, batch_size=1, reference_num=0, kid_subset_size=2, splits=1, image_size=0
  )
  if FLAGS.content or FLAGS.style or FLAGS.outputs:
    raise UserError("--content, --style and --outputs are for --metrics=style; give it too")
  if not (FLAGS.workdir or FLAGS.samples):
    raise UserError("nothing to evaluate: give --workdir, or --samples with --reference")
  if FLAGS.audit and jax.process_count() > 1:
    raise UserError(f"--audit is made by one process, and this run has {jax.process_count()}")
  if FLAGS.audit and (FLAGS.sweep or FLAGS.samples or FLAGS.stage or not FLAGS.workdir):
    raise UserError("--audit is of a trained model: give --workdir, no --samples, --stage, --sweep")
  if FLAGS.sweep and (FLAGS.samples or not FLAGS.workdir):
    raise UserError("--sweep draws anew for each value: give --workdir, and no --samples")
  if FLAGS.sweep and (FLAGS.save_npz or FLAGS.save_stats):
    raise UserError("--sweep has many sets of samples: leave --save_npz and --save_stats out")


def run_audit():
  """The audit of the work directory's model: a page and its figures."""
  config, class_names = workdir.read(FLAGS.workdir)
  found = audit.run_audit(
    FLAGS.workdir,
    config,
    class_names,
    num=FLAGS.num if FLAGS["num"].present else AUDIT_NUM,
    seed=FLAGS.seed,
    prefix=FLAGS.prefix,
    options=sampling_flags.choose(FLAGS, config),
    network=FLAGS.network or default_network(),
    batch_size=FLAGS.batch_size,
    checkpoint=FLAGS.checkpoint,
    out=folder() / "audit.html",
  )
  worst = ", ".join(row["name"] for row in found["worst"])
  lines = [f"worst classes by {found['ranked_by']}: {worst}", *found["biases"]]
  print("\n".join([*lines, f"audit: {found['page']}, {found['figures']}"]))


def default_network():
  """FID's, if its weights were converted here; else the one that comes by pip."""
  return "inception" if inception_weights.default_path().is_file() else "vgg16"


def folder():
  """Where results go."""
  return Path(FLAGS.out or (f"{FLAGS.workdir}/evaluation" if FLAGS.workdir else "evaluation"))


def shared_folder():
  """Where features of references and training data go."""
  cache = os.environ.get("IMGTX_CACHE")
  if not cache and FLAGS.workdir:
    return Path(FLAGS.workdir) / "evaluation" / "references"
  return Path(cache or Path.home() / ".cache" / "imgtx_jax") / "references"


def make_subject(network):
  """The Subject that the flags name; samples only if they are read."""
  model = None
  if FLAGS.workdir:
    model = inputs.load_model(FLAGS.workdir, FLAGS.stage, FLAGS.checkpoint)
  config = model and model.config
  crop = FLAGS.image_size or None
  samples = None
  if FLAGS.samples:
    samples = image_sets.open_files(FLAGS.samples, size=crop, limit=FLAGS.num)
  side = crop or (config.data.image_size if config else samples.size[0])
  widths = inputs.widths(network, samples.size if samples else (side, side))
  compared = None
  if FLAGS.reference or config:
    compared = reference.open_reference(
      FLAGS.reference or "train",
      network,
      widths,
      config=config,
      size=side,
      crop=crop,
      limit=FLAGS.reference_num,
    )
  return inputs.Subject(
    network,
    widths,
    model,
    samples,
    compared,
    held_out=own_data(config, "validation", FLAGS.num),
    training=own_data(config, "train", FLAGS.reference_num),
  )


def own_data(config, split, limit):
  """The work directory's images, or None, with a line, where they are not on this machine."""
  if config is None:
    return None
  try:
    return reference.own_data(config, split, limit)
  except UserError as error:
    if jax.process_index() == 0:
      print(f"without the work directory's {split} images: {error}", flush=True)
    return None


def draws(found):
  """Whether samples are to be drawn."""
  return found.samples is None and found.model is not None and found.model.draws


def draw(model, **changes):
  """The samples of a model as the flags and changes ask for: prefix=k or a decoding option."""
  options = sampling_flags.choose(FLAGS, model.config)
  default = model.stage.num_codes if FLAGS.prefix is None else FLAGS.prefix
  prefix = changes.pop("prefix", default)
  check_prefix(model.stage, prefix)
  for name, value in changes.items():
    options = sampling_options.with_option(options, name, value)
  return inputs.draw_samples(
    model,
    options,
    count=FLAGS.num,
    prefix=prefix,
    seed=FLAGS.seed,
    rule=FLAGS.labels,
    batch_size=FLAGS.batch_size,
  )


def run_sweep(evaluator, found, asked):
  """The evaluation for each value, and the plot."""
  if not draws(found):
    raise UserError(f"--sweep draws samples, and {FLAGS.workdir} has only a tokenizer")
  options = {name: limits[:2] for name, limits in sampling_options.RANGES.items()}
  options["prefix"] = (0, found.model.stage.num_codes)
  name, values = sweep.parse(FLAGS.sweep, options)
  if unfit := [metric for metric in asked if metric not in sweep.METRICS]:
    raise UserError(f"--sweep with --metrics={unfit[0]}: only {', '.join(sweep.METRICS)} change")
  evaluations = []
  for value in values:
    changed = dataclasses.replace(found, samples=draw(found.model, **{name: value}))
    result = evaluator.run(changed, asked, among=sweep.METRICS)
    if result:
      print("\n".join([f"{name} = {value:g}", *runner.table(result)]), flush=True)
      evaluations.append((value, result))
  if evaluations:
    sweep.write(folder(), name, evaluations)
    print(f"{folder()}/sweep.json, {folder()}/sweep.png")


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "The work directory of imgtx_jax.main.")
  stages = ("", "tokenizer", "pretrain", "finetune", "gan")
  flags.DEFINE_enum("stage", "", stages, "Empty: the last one.")
  flags.DEFINE_string("metrics", "", "Names between commas; empty: all that can be had.")
  flags.DEFINE_integer("num", 50000, "How many samples to draw, or to read at most.")
  flags.DEFINE_string(
    "reference",
    "",
    "train or validation of the work directory's data (train by default), a folder, an .npz of "
    "images or statistics, tfds:NAME or tfds:NAME:SPLIT.",
  )
  flags.DEFINE_integer("reference_num", 0, "At most so many reference images; 0: all.")
  flags.DEFINE_string("samples", "", "A folder or .npz of images to measure; empty: draw them.")
  flags.DEFINE_enum("network", "", ("", *extractors.NETWORKS), "Empty: inception if it is here.")
  flags.DEFINE_integer("image_size", 0, "Crop and resize images to it; 0: as they are; style: 256.")
  flags.DEFINE_integer("prefix", None, "The dial k: codes drawn before rendering; all by default.")
  sampling_flags.define()
  command.define_checkpoint_flag()
  flags.DEFINE_enum("labels", "", ("", *inputs.LABELS), "Classes in turn, or as often as in data.")
  flags.DEFINE_integer("seed", 0, "Image i depends on the seed, i and its label.")
  flags.DEFINE_integer("batch_size", 64, "Images at a time; figures do not depend on it.")
  flags.DEFINE_integer("kid_subset_size", 1000, "Images a subset of the kernel distance.")
  flags.DEFINE_integer("splits", 10, "Parts of the Inception Score.")
  flags.DEFINE_string("out", "", "A folder for the results; WORKDIR/evaluation by default.")
  flags.DEFINE_string("save_npz", "", "Write the samples as ADM's evaluator reads them.")
  flags.DEFINE_string("save_stats", "", "Write mean and covariance of the samples' features.")
  flags.DEFINE_bool("audit", False, "Look for bias instead: audit.html; --num is 2000 by default.")
  flags.DEFINE_string("content", "", "Style: a folder of content images.")
  flags.DEFINE_string("style", "", "Style: a folder of style images.")
  flags.DEFINE_multi_string("outputs", [], "Style: NAME=FOLDER of outputs, CONTENT--STYLE.png.")
  flags.DEFINE_integer("leak_pairs", 100, "Style: apply repeatedly on so many pairs; 0: none.")
  flags.DEFINE_integer("leak_rounds", 20, "Style: how often.")
  flags.DEFINE_string("sweep", "", "OPTION=VALUE,VALUE,…; prefix, cfg_scale, temperature …")
  jax.config.parse_flags_with_absl()
  command.run(main, processes_may="share")
