"""Stages that are repeated in rounds, side by side: what the report says of their figures and
samples."""


def compare(summaries):
  """{"STAGE/FIGURE": [the value of each round, None where there is none]} of the figures that a
  stage has in at least two rounds; {} without a second round.

  summaries: of report.py; figures of a stage that has not ended are its latest.
  """
  count = max(summary["round"] for summary in summaries)
  rows = {}
  for summary in summaries:
    for name, value in (summary["figures"] or summary["latest"]).items():
      values = rows.setdefault(f"{summary['stage']}/{name}", [None] * count)
      values[summary["round"] - 1] = value
  rows = {name: row for name, row in rows.items() if sum(v is not None for v in row) > 1}
  # The GPT's bits per code first: whether fine-tuning keeps it a prior is what rounds turn on.
  return dict(sorted(rows.items(), key=lambda item: "bits_per_code" not in item[0]))


def samples(stages):
  """The last sample pictures of each name that several rounds of a stage have:
  [{"name", "stage", "rounds": [(round, picture)]}]."""
  found = {}
  for stage in stages:
    for picture in stage["pictures"]:
      if "sample" in picture["name"]:
        rounds = found.setdefault((stage["stage"], picture["name"]), [])
        rounds.append((stage["round"], picture["steps"][-1]))
  return [
    {"stage": stage, "name": name, "rounds": rounds}
    for (stage, name), rounds in found.items()
    if len(rounds) > 1
  ]
