"""The results of an audit in sentences."""

import numpy as np

WORST = 5
_NAMED = 2  # favoured and dropped classes that are named


def summarize(audit):
  """Returns {"worst": [{name, text}], "ranked_by": words, "biases": [sentences]} of an audit.

  Classes rank by their kernel distance, which has no bias in small sets; without features by the
  fraction of their samples that the class head recognises.
  """
  rows = audit["classes"]
  network = audit["protocol"]["network"]
  measured = [row for row in rows if row["distance"]]
  if measured:
    ranked = sorted(measured, key=lambda row: -row["distance"]["samples"]["kernel"])
    by = "kernel distance, largest first"
  else:
    ranked = [row for row in rows if row["accuracy_samples"] is not None]
    ranked = sorted(ranked, key=lambda row: row["accuracy_samples"])
    by = "the fraction of samples that the class head recognises, least first"
  worst = [{"name": row["name"], "text": _describe(row, network)} for row in ranked[:WORST]]
  return {"worst": worst, "ranked_by": by, "biases": _biases(audit)}


def _describe(row, network):
  """Returns the results of a class as one line."""
  parts = []
  if row["distance"]:
    ours, real = row["distance"]["samples"], row["distance"]["real"]
    parts.append(
      f"kernel distance {ours['kernel']:.2f} (halves of real images {signed(real['kernel'])} "
      f"± {real['kernel_deviation']:.2f})"
    )
    parts.append(f"{network['label']} {ours['frechet']:.3g} (halves {real['frechet']:.3g})")
    if ours["precision"] is not None:
      parts.append(f"precision {ours['precision']:.0%} ({real['precision']:.0%})")
      parts.append(f"recall {ours['recall']:.0%} ({real['recall']:.0%})")
  recognised = f"the class head recognises {percent(row['accuracy_samples'])} of its samples"
  parts.append(f"{recognised} and {percent(row['accuracy_real'])} of its held-out images")
  return ", ".join(parts)


def _biases(audit):
  """Returns sentences, one for each kind of bias."""
  sentences = [_head(audit["confusion"])]
  judges = [("the class head", audit)]
  if audit["by_features"]:
    who = f"a discriminant on {audit['protocol']['network']['name']} features"
    # A class head that guesses would only repeat that it does.
    judges = judges if _is_trusted(audit["confusion"]) else []
    judges = [*judges, (who, audit["by_features"])]
  for who, judge in judges:
    sentences += _favoured(judge["unconditional"], audit["protocol"]["num"], who)
    for key, words in (("real", "held-out images"), ("samples", "samples")):
      counts, names = np.array(judge["confusion"][key]), judge["confusion"]["names"]
      sentences += _confused(counts, names, words, who)
  sentences += _told_apart(audit["classes"])
  sentences += _unstable(audit["stability"])
  return sentences + _edges(audit["saliency"])


def _is_trusted(confusion):
  """Returns whether a classifier is clearly better than guessing, as a mean over classes."""
  return confusion["mean_accuracy"] >= 1.5 / len(confusion["names"])


def _head(confusion):
  """Returns a sentence on the accuracy of the class head."""
  counts, accuracy = np.array(confusion["real"]), confusion["mean_accuracy"]
  total, answers = counts.sum(), counts.sum(axis=0)
  most, guessing = int(np.argmax(answers)), 1 / len(counts)
  doubt = "" if _is_trusted(confusion) else "; what rests on its answers says little"
  return (
    f"The class head is right on {np.trace(counts) / total:.0%} of held-out images, on "
    f"{accuracy:.0%} as a mean over classes (guessing: {guessing:.0%}); it says "
    f"{confusion['names'][most]} of {answers[most] / total:.0%}, and "
    f"{counts[most].sum() / total:.0%} are{doubt}."
  )


def _favoured(rows, num, who):
  sentences = []
  ordered = sorted(rows, key=lambda row: row["deviations"])
  for verdict, some in (("favoured", ordered[::-1]), ("dropped", ordered)):
    some = [row for row in some if row["verdict"] == verdict][:_NAMED]
    for row in some:
      sentences.append(
        f"Without a label {row['name']} is {verdict}: {who} finds it in {row['fraction']:.0%} of "
        f"{num} samples (95%: {row['low']:.0%} to {row['high']:.0%}) and would in "
        f"{row['expected']:.0%} of real images."
      )
  if not sentences:
    sentences.append(f"Without a label {who} finds no class favoured in {num} samples.")
  return sentences


def _confused(counts, names, words, who):
  """Returns a sentence on the strongest confusion, of classes with at least 5 images."""
  totals = counts.sum(axis=1)
  fractions = counts / np.maximum(totals, 1)[:, None] * (totals >= 5)[:, None]
  np.fill_diagonal(fractions, 0.0)
  i, j = np.unravel_index(np.argmax(fractions), fractions.shape)
  if fractions[i, j] == 0:
    return []
  taken = f"takes {fractions[i, j]:.0%} of the {words} of {names[i]} for {names[j]}"
  return [f"{who[0].upper()}{who[1:]} {taken} ({counts[i, j]} of {totals[i]})."]


def _told_apart(rows):
  known = [row for row in rows if row["auc"] is not None]
  if not known:
    return []
  most, least = (choose(known, key=lambda row: row["auc"]) for choose in (max, min))
  return [
    f"The discriminator tells samples from held-out images best in {most['name']} (the real one "
    f"has the higher logit in {most['auc']:.0%} of pairs; 50% is guessing) and least in "
    f"{least['name']} ({least['auc']:.0%})."
  ]


def _unstable(rows):
  """Returns sentences on the corruptions that change the classes and the logit most."""
  rows = [row for row in rows if row["strength"]]
  upset = min(rows, key=lambda row: row["real"]["unchanged"])
  moved = max(rows, key=lambda row: abs(row["real"]["shift"]))
  mild = {row["name"]: row for row in rows if row["strength"] == 1}
  shift = moved["real"]["shift"]
  return [
    f"Class answers hold least under {upset['name']}: they change on "
    f"{1 - upset['real']['unchanged']:.0%} of real images at strength {upset['strength']} "
    f"({upset['amount']}), on {1 - mild[upset['name']]['real']['unchanged']:.0%} at strength 1.",
    f"The logit moves most under {moved['name']} at strength {moved['strength']} "
    f"({moved['amount']}): by {signed(shift)} of its deviations within a label, so real images "
    f"look {'more' if shift > 0 else 'less'} real; at strength 1 by "
    f"{signed(mild[moved['name']]['real']['shift'])}.",
  ]


def _edges(saliency):
  area, real = saliency["edge_area"], saliency["real"]
  return [
    f"The outer eighth of held-out images, {area:.0%} of their area, has "
    f"{real['attention']:.0%} of the attention on patches, {real['logit']:.0%} of the logit's "
    f"gradient and {real['class']:.0%} of the class's."
  ]


def percent(fraction):
  """Returns a fraction in per cent, or a dash for None."""
  return "–" if fraction is None else f"{fraction:.0%}"


def signed(value):
  """Returns two decimals with a sign: +0.52, −1.30."""
  return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\u2212")
