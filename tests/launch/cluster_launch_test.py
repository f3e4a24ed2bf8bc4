"""The scripts for clusters: their syntax, and what they would run. None of them runs here."""

import os
import pathlib
import shlex
import subprocess

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"


def run(script, *arguments, **environment):
  kept = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
  done = subprocess.run(
    ["bash", LAUNCH / script, *arguments], env=kept | environment, capture_output=True, text=True
  )
  return done.returncode, done.stdout, done.stderr


def commands(text):
  """The words of every line but comments."""
  return [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.s*")), ids=lambda path: path.name)
def test_syntax(path):
  done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")


# -- SLURM -----------------------------------------------------------------------------------------


def test_slurm_runs_the_command_in_a_step_and_requeues():
  command = ["python", "-m", "imgtx_jax.main", "--workdir", "a b"]
  status, said, _ = run("slurm.sbatch", "--dry_run", *command)
  submit, step, notice, again = commands(said.replace("    #", "\n#"))
  assert status == 0 and submit[0] == "sbatch" and submit[2:] == command
  assert step[0] == "srun" and step[-5:] == command
  assert notice[:2] == ["scancel", "--signal=TERM"] and again[:2] == ["scontrol", "requeue"]
  options = {
    line.split()[1]
    for line in (LAUNCH / "slurm.sbatch").read_text().splitlines()
    if line.startswith("#SBATCH")
  }
  assert {"--requeue", "--signal=B:USR1@120", "--open-mode=append"} <= options
  assert run("slurm.sbatch", *command)[0] == 2  # outside a job


def make_slurm(folder, srun):
  """Stand-ins for SLURM's commands that write down what they are called with; srun's own body."""
  for name, body in (("srun", srun), ("scontrol", ""), ("scancel", "kill -TERM $(cat srun.pid)")):
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/bash\ncd {folder}\necho "{name} $*" >>calls\n{body}\n')
    path.chmod(0o755)
  return {"PATH": f"{folder}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
  ("status", "restarts", "requeued"),
  [(0, 0, False), (1, 0, False), (2, 0, False), (143, 0, True), (75, 3, True), (134, 20, False)],
)
def test_slurm_requeues_what_can_go_on(tmp_path, status, restarts, requeued):
  environment = make_slurm(tmp_path, f"exit {status}") | {"SLURM_RESTART_COUNT": str(restarts)}
  assert run("slurm.sbatch", "python", "x.py", **environment)[0] == status
  calls = (tmp_path / "calls").read_text().splitlines()
  assert calls[0] == "srun --kill-on-bad-exit=0 --label python x.py"
  assert calls[1:] == ["scontrol requeue 7"] * requeued


def test_slurm_hands_a_notice_to_the_step_and_waits_for_it(tmp_path):
  srun = "echo $$ >srun.pid; trap 'sleep 0.3; exit 143' TERM; kill -USR1 $PPID"
  srun += "; sleep 20 >&- 2>&- & wait"
  status, said, _ = run("slurm.sbatch", "python", "x.py", **make_slurm(tmp_path, srun))
  calls = (tmp_path / "calls").read_text().splitlines()
  assert status == 143 and calls[1:] == ["scancel --signal=TERM 7", "scontrol requeue 7"], said


# -- Cloud TPU -------------------------------------------------------------------------------------


def tpu(*arguments, **environment):
  status, said, error = run("tpu_pod.sh", "--dry_run", *arguments, ZONE="us-a", **environment)
  assert status == 0, error
  return commands(said)


def test_tpu_pod_creates_what_is_asked_for():
  (create, describe) = tpu("create", TYPE="v6e-64", SPOT="1", NAME="mine")
  assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mine"]
  wanted = {"--accelerator-type=v6e-64", "--runtime-version=v2-alpha-tpuv6e", "--spot"}
  assert wanted | {"--zone=us-a", "--node-id=mine"} <= set(create)
  assert "describe" in describe
  assert "--spot" not in tpu("create")[0]


def test_tpu_pod_runs_the_same_command_on_all_workers():
  ((*start, command, zone),) = tpu("run", "--config", "c.py", "--workdir", "/mnt/runs/it's & x")
  assert start == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "imgtx-jax", "--worker=all"]
  script = command.removeprefix("--command=")
  assert zone == "--zone=us-a"
  assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0
  assert 'imgtx_jax.main "$@"' in script and "/mnt/runs/it\\'s" in script


def test_tpu_pod_sets_up_watches_and_fetches():
  archive, copy, install = tpu("setup", BUCKET="gs://runs")
  assert archive[0] == "git" and "scp" in copy and "--worker=all" in copy
  (script,) = (word.removeprefix("--command=") for word in install if "--command=" in word)
  assert "gcsfuse" in script and "environment tpu" in script
  assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0
  actions = [" ".join(words) for words in tpu("watch", "--config", "c.py")]
  places = [next(i for i, a in enumerate(actions) if w in a) for w in ("create", "tar", "main")]
  assert places == sorted(places) and "delete" in actions[-1]
  assert ["kill -TERM" in a for (*_, a, _) in tpu("stop")] == [True]
  assert tpu("logs", "here")[0] == ["mkdir", "-p", "here"]
  assert tpu("delete")[0][-3:] == ["--force", "--quiet", "--zone=us-a"]


@pytest.mark.parametrize(
  ("arguments", "environment", "words"),
  [
    (["fly"], {"ZONE": "a"}, "no such action: 'fly'"),
    (["create"], {}, "ZONE"),
    (["create"], {"ZONE": "a", "TYPE": "v99-8"}, "TYPE=v99-8"),
  ],
)
def test_tpu_pod_says_what_is_missing(arguments, environment, words):
  status, said, error = run("tpu_pod.sh", "--dry_run", *arguments, **environment)
  assert status and words in error and not said


# -- GKE -------------------------------------------------------------------------------------------


def test_the_manifest_is_filled_in():
  """(It was also validated against JobSet's own CustomResourceDefinition, which is not ours.)"""
  arguments = ["--config", "configs/imagenet256.py:xl", "--workdir", "/runs/it's & x"]
  given = {"IMAGE": "registry/image:1", "BUCKET": "gs://runs", "TOPOLOGY": "4x4x8", "NAME": "mine"}
  status, said, error = run("gke_jobset.sh", "--dry_run", *arguments, **given)
  assert status == 0, error
  assert "_\n" not in said and not any(f"{word}_" in said for word in ("NAME", "ARGS", "CHIPS"))
  manifest = yaml.safe_load(said)
  assert (manifest["kind"], manifest["metadata"]["name"]) == ("JobSet", "mine")
  (job,) = manifest["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["parallelism"] == spec["completions"] == 32 and spec["backoffLimit"] == 0
  (container,) = spec["template"]["spec"]["containers"]
  assert container["args"] == arguments and container["image"] == "registry/image:1"
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  echo = ["bash", "-c", container["command"][2].replace("exec python", "echo"), "train"]
  echoed = subprocess.run([*echo, *arguments], capture_output=True, text=True).stdout
  assert echoed == f"-m imgtx_jax.main {' '.join(arguments)}\n"
  (volume,) = spec["template"]["spec"]["volumes"]
  assert volume["csi"]["volumeAttributes"]["bucketName"] == "runs"


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"BUCKET": "b"}, "IMAGE"),
    ({"IMAGE": "i", "BUCKET": "b", "TOPOLOGY": "16"}, "TOPOLOGY=16"),
    ({"IMAGE": "i", "BUCKET": "b", "TOPOLOGY": "3x3"}, "9 chips, which CHIPS=4"),
  ],
)
def test_the_manifest_says_what_is_missing(given, words):
  status, said, error = run("gke_jobset.sh", "--dry_run", **given)
  assert status and words in error and not said


# -- Processes on this machine ---------------------------------------------------------------------


def local(tmp_path, body, count=2, **environment):
  script = tmp_path / "command.sh"
  script.write_text(f'for word; do index="${{word#--process_id=}}"; done\n{body}\n')
  return run(
    "local_processes.sh",
    str(count),
    "bash",
    str(script),
    LOGS=str(tmp_path / "logs"),
    **environment,
  )


def test_local_processes_differ_by_their_number_alone(tmp_path):
  status, said, error = run("local_processes.sh", "--dry_run", "2", "python", "a b")
  first, second = commands(said)
  assert (status, error) == (0, "") and first[:3] == ["JAX_PLATFORMS=cpu", "python", "a b"]
  assert first[:-1] == second[:-1] and [first[-1], second[-1]] == [
    f"--process_id={i}" for i in range(2)
  ]
  assert run("local_processes.sh", "0", "x")[0] == run("local_processes.sh", "2")[0] == 2


def test_local_processes_end_as_the_first_that_failed(tmp_path):
  status, said, _ = local(tmp_path, "echo I am $index", count=3)
  assert status == 0 and "I am 0" in said and "I am 1" not in said
  assert (tmp_path / "logs" / "process-2.log").read_text() == "I am 2\n"
  body = 'if ((index == 1)); then echo "no disk"; exit 7; fi; exec sleep 60'
  status, _, error = local(tmp_path, body, count=3, GRACE="1")
  assert status == 7 and "process 1 ended with status 7: no disk" in error
