"""Describe the distribution `watchnext` and the one set of versions it is for.

The bounds below are the set the project is tested with; requirements.lock
holds the exact version of every package, transitive ones included.

Beam workers install this same distribution. The list is therefore kept to
what the stages import. Of its 2.7 GB, TensorFlow is 1.8 and what only the
driver and the trainers import (ScaNN, Recommenders, Typer, Rich) 0.05: a
split of the list would save workers 2 % and be a second set to test. Clouds,
accelerators and test tools are extras.
"""

from setuptools import setup

INSTALL_REQUIRES = [
    # Transform, BSL and tf_keras below are built for exactly this minor.
    "tensorflow==2.21.0",
    # The last pair of versions built for TensorFlow 2.21.
    "tensorflow-transform==1.21.0",
    # Carries native code that must match Transform and Arrow.
    "tfx-bsl==1.21.0",
    # The last release; it needs Keras 2, which TensorFlow no longer ships.
    "tensorflow-recommenders==0.7.7",
    # Keras 2, for TensorFlow Recommenders and multi-worker strategies.
    "tf_keras==2.21.0",
    # Dataflow workers run in the container image of this very version.
    "apache-beam==2.77.0",
    # The saved index is read back by the version that wrote it.
    "scann==1.4.2",
    # Beam 2.77 ends below 2.5; 2.4 has wheels for Python 3.11 to 3.13.
    "numpy>=2.4,<2.5",
    # Beam 2.77 ends below 26; before 14.0.1 the file readers have a hole.
    "pyarrow>=25,<26",
    # Transform 1.21 ends below 7; TensorFlow's generated code needs 6.31.
    "protobuf>=6.33,<6.34",
    # The configs use the models and validators of version 2.
    "pydantic>=2.11,<3",
    # Reads configs and mappings; version 6 still has safe_load's YAML 1.1.
    "pyyaml>=6.0.2,<7",
    # Stable hashes of keys (XXH3 is a fixed algorithm).
    "xxhash>=4,<5",
    # Mappings' expressions over outside logs, vectorised; one plain wheel.
    "polars>=2,<3",
    # Logistic regression, a baseline of ranking; in the tests AUC and log
    # loss by the definitions everybody compares with.
    "scikit-learn>=1.6,<2",
    # Sparse matrices of the linear baselines.
    "scipy>=1.16,<2",
    # Matrix factorisation, a baseline of the evaluation; wheels for 3.11 to
    # 3.13, and nothing new below it but tqdm.
    "implicit>=0.7.3,<0.8",
    # Keeps the BLAS to one thread below that library's own.
    "threadpoolctl>=3.5,<4",
    # The protocol's messages, in which warm-up requests are written; the
    # only version between its TensorFlow bounds and Transform's.
    "tensorflow-serving-api>=2.19.1,<3",
    # Asks the other workers' TensorFlow servers whether they are there.
    "grpcio>=1.70,<2",
    # The development server's HTTP: routes and errors.
    "starlette>=1.0,<2",
    # What runs it; plain Python, and nothing new below it but h11.
    "uvicorn>=0.40,<1",
    # Messages of histograms and HParams, and what shows them: TensorFlow no
    # longer brings it.
    "tensorboard>=2.20,<2.21",
    # The command line; from 0.26 on its errors are no longer Click's.
    "typer>=0.22,<0.26",
    # Whose errors `pipeline/cli.py` turns into lines and exit codes.
    "click>=8.2,<9",
    # Tables and progress in the terminal.
    "rich>=14,<16",
    # Cores, memory and disk in `doctor`, memory in the benchmarks.
    "psutil>=7,<8",
    # Plots of the report and pictures of the networks, as SVG and PNG without
    # any program of the machine.
    "matplotlib>=3.10,<4",
    # The report's page; it escapes whatever a log's ids are made of.
    "jinja2>=3.1.6,<4",
    # The type by which a template tells plots from text; below jinja2 anyhow.
    "markupsafe>=3,<4",
]

# For `watchnext export --onnx`.
ONNX = [
    # Converts the traced networks; 1.17 is the first for numpy 2 and
    # protobuf 6.
    "tf2onnx>=1.17,<1.18",
    # The format and its checker.
    "onnx>=1.20,<2",
]

# A ranking baseline that is not among the default ones: users who do not ask
# for it need no second learner. From 4.6 on it works with scikit-learn 1.6.
LIGHTGBM = ["lightgbm>=4.6,<5"]

# For `watchnext tune`. Ask and tell, pruning and a journal to resume from,
# round any training; keras-tuner wants to build and fit a Keras model itself.
TUNE = ["optuna>=5,<6"]

# Runs `docs/walk_through.ipynb` in any Jupyter.
NOTEBOOK = ["ipykernel>=7,<8"]

EXTRAS_REQUIRE = {
    # Dataflow, and gs:// for Beam. TensorFlow 2.21 reads gs:// by itself:
    # tensorflow-io-gcs-filesystem 0.37.1 does not even load beside it.
    "gcp": ["apache-beam[gcp]==2.77.0"],
    # CUDA and cuDNN as wheels; the driver must be on the machine.
    "gpu": ["tensorflow[and-cuda]==2.21.0"],
    # The driver library of Cloud TPU VMs. TensorFlow's own TPU build ends at
    # 2.20 on the package index, so 2.21 on a TPU needs the machine's build.
    "tpu": ["libtpu>=0.0.52,<0.1"],
    "onnx": ONNX,
    "lightgbm": LIGHTGBM,
    "tune": TUNE,
    "notebook": NOTEBOOK,
    "test": [
        *ONNX,
        *LIGHTGBM,
        *TUNE,
        *NOTEBOOK,
        # Executes the notebook.
        "nbclient>=0.10,<0.11",
        # Finds the commands, snippets and links of the documents.
        "markdown-it-py>=4,<5",
        # Runs what was converted, beside TensorFlow. The marker is for the
        # lock, which looks at Pythons that this one has no wheel for.
        "onnxruntime>=1.24,<2; python_version < '3.14'",
        "pytest>=9,<10",
        # Two tests at a time: most of them wait for one core.
        "pytest-xdist>=3.8,<4",
        "hypothesis>=6.150,<7",
        "ruff>=0.17,<0.18",
        "mypy>=2.4,<3",
        "types-PyYAML>=6.0.12",
        "types-psutil>=7,<8",
        # The published schemas of Kubernetes, for `deploy/kubernetes`.
        "kubernetes-validate>=1.37,<2",
        # The service's own message of a job, for `deploy/vertex`.
        "google-cloud-aiplatform>=1.165,<2",
        # Drives a headless browser, by its DevTools protocol.
        "websockets>=15",
        # Builds the project without a network once the lock is installed.
        "setuptools==80.9.0",
        "wheel>=0.45",
    ],
}
setup(
    name="watchnext",
    version="0.1.0",
    description=(
        "Two-stage video recommender after Covington et al. (RecSys 2016)"
        " and Zhao et al. (RecSys 2019): raw watch logs in, a served"
        " TensorFlow model out"
    ),
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=[
        "pipeline",
        "pipeline.configs",
        "pipeline.commands",
        "pipeline.experiments",
        "pipeline.pages",
        "pipeline.report",
        "pipeline.serve",
        "models",
        "beam_jobs",
        "beam_jobs.sources",
        "schemas",
    ],
    # The configs live at the top level, where people look for them; in a
    # wheel they travel inside `pipeline` (see pipeline/shipped.py).
    package_dir={"pipeline.configs": "configs"},
    package_data={
        "pipeline.configs": ["*.yaml", "mappings/*.yaml", "tuning/*.yaml"],
        "pipeline.pages": ["*.html"],
        "pipeline.serve": ["page.html"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["watchnext = pipeline.cli:main"]},
)
