import jax
import jax.numpy as jnp
import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.training import step_profile


def test_flags():
  assert step_profile.parse("") is None
  assert step_profile.parse("100:110") == range(100, 110)
  for text in ("100", "110:100", "5:5", "a:b", "1:2:3", "-1:2"):
    with pytest.raises(UserError, match=f"--profile_steps={text} is no FIRST:LAST"):
      step_profile.parse(text)


def marked_steps(folder):
  """Numbers of the steps marked in the only trace under a folder, as TensorBoard finds it."""
  (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
  events = [
    event
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    for line in plane.lines
    for event in line.events
    if event.name == "train"
  ]
  return sorted(dict(event.stats)["step_num"] for event in events)


def test_writes_the_steps_asked_for(tmp_path):
  profile, waits = step_profile.StepProfile(range(2, 4), tmp_path), []
  for number in range(6):
    with profile.step(number, lambda n=number: waits.append(n)):
      jnp.ones(3) + number
  profile.stop()
  assert marked_steps(tmp_path) == [2, 3] and waits == [2, 3]


def test_a_training_that_ends_within_the_range(tmp_path):
  profile = step_profile.StepProfile(range(2, 9), tmp_path)
  for number in (4, 5):  # it went on from step 4
    with profile.step(number, lambda: None):
      pass
  profile.stop()
  assert marked_steps(tmp_path) == [4, 5] and not profile.running
