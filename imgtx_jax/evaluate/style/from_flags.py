"""evaluate --metrics=style: style transfer over the pairs of two folders, as the flags ask."""

from imgtx_jax.errors import UserError
from imgtx_jax.evaluate import runner, sweep
from imgtx_jax.evaluate.style import evaluation, strength_plot, style_methods, style_pairs
from imgtx_jax.io.atomic import write_atomically

STYLE_SIZE = 256  # pixels a side


def run(flags, asked, folder):
  """Measures and writes style.json into a folder; with --sweep style.png too.

  flags: evaluate's, parsed; asked: the names of the metrics.
  """
  check_flags(flags, asked)
  size = flags.image_size or STYLE_SIZE
  batch_size = flags.batch_size if flags["batch_size"].present else evaluation.default_batch(size)
  strengths = []
  if flags.sweep:
    _, strengths = sweep.parse(flags.sweep, {"strength": (0, 1)})
    if not flags.workdir:
      raise UserError(f"--sweep={flags.sweep} is of a trained model; give its --workdir")
  pairs = style_pairs.Pairs(flags.content, flags.style, size=size, limit=flags.num)
  for note in (*pairs.contents.notes, *pairs.styles.notes):
    print(f"note: {note}", flush=True)
  methods = style_methods.open_methods(
    pairs,
    directory=flags.workdir,
    outputs=flags.outputs,
    batch_size=batch_size,
    checkpoint=flags.checkpoint,
    strengths=strengths,
  )
  result = evaluation.run(
    pairs,
    methods,
    out=folder,
    batch_size=batch_size,
    leak_pairs=flags.leak_pairs,
    leak_rounds=flags.leak_rounds,
  )
  if result:
    runner.write(folder / "style.json", result)
    print("\n".join([*evaluation.table(result), f"protocol: {folder}/style.json"]))
    if strengths:
      curve = [method.name for method in methods if isinstance(method, style_methods.Model)]
      write_atomically(folder / "style.png", strength_plot.draw(result, curve))
      print(f"{folder}/style.png")


def check_flags(flags, asked):
  """Raises UserError for flags that do not go with --metrics=style."""
  if asked != ["style"]:
    raise UserError("--metrics=style is measured alone; leave the other metrics out")
  if not (flags.content and flags.style):
    raise UserError("--metrics=style needs two folders of images: give --content and --style")
  for name in ("samples", "reference", "network", "audit", "save_npz", "save_stats"):
    if flags[name].value:
      raise UserError(f"--{name} has no use with --metrics=style; leave it out")
  if 0 < flags.image_size < evaluation.LEAST_SIDE:
    raise UserError(
      f"--image_size={flags.image_size} is under {evaluation.LEAST_SIDE}: ask for more"
    )
