"""Thousands of damaged files: a clear error or a correct load, in little memory."""

import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from io_tools import GOOD, safetensors_bytes

import mapjax.io as mio

EXAMPLES = int(os.environ.get("MAPJAX_FUZZ", "200"))


def template(kind):
    arrays = {"a.b": np.ones((2, 3), np.float32), "c": np.arange(5)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x.{kind}")
        if kind == "json":
            return json.dumps(
                {"metadata": {}, "weight_map": {"x": "good.safetensors"}}
            ).encode()
        if kind == "compressed":
            np.savez_compressed(Path(folder, "x.npz"), **arrays)
            path = Path(folder, "x.npz")
        else:
            mio.save(path, arrays)
        return path.read_bytes()


SUFFIXES = {
    "safetensors": ".safetensors", "npz": ".npz", "compressed": ".npz",
    "msgpack": ".msgpack", "json": ".safetensors.index.json",
}  # fmt: skip
TEMPLATES = {kind: template(kind) for kind in SUFFIXES}
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "delete", "number"]),
        st.integers(0, 2**16),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=6,
)


def mutate(content, edits):
    content = bytearray(content)
    for what, place, data in edits:
        at = place % (len(content) + 1)
        if what == "set":
            content[at : at + len(data)] = data
        elif what == "cut":
            del content[at:]
        elif what == "insert":
            content[at:at] = data
        elif what == "delete":
            del content[at : at + len(data)]
        else:  # change a number in text
            digits = [i for i, byte in enumerate(content) if 48 <= byte <= 57] or [0]
            at = digits[place % len(digits)]
            content[at : at + 1] = str(int.from_bytes(data, "little")).encode()
    return bytes(content)


@pytest.mark.parametrize("kind", SUFFIXES)
@settings(max_examples=EXAMPLES)
@given(edits=EDITS, headers=st.booleans())
def test_damaged_files_are_refused_or_read_in_little_memory(kind, edits, headers):
    content = TEMPLATES[kind]
    if headers and kind == "safetensors":  # a header that is whole as far as lengths go
        length = int.from_bytes(content[:8], "little")
        content = safetensors_bytes(
            mutate(content[8 : 8 + length], edits), content[8 + length :]
        )
    else:
        content = mutate(content, edits)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x" + SUFFIXES[kind])
        path.write_bytes(content)
        Path(folder, "good.safetensors").write_bytes(GOOD)
        tracemalloc.start()
        loaded, said = None, None
        try:
            loaded = mio.load(path)
        except ValueError as error:
            said = str(error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24
        if said is None:
            assert all(x.nbytes < 2**20 for x in jax.tree.leaves(loaded))
        else:
            assert len(said) < 1500
            assert str(folder) in said
