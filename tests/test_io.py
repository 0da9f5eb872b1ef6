"""Round trips of every format, against the library that owns it."""

import hashlib
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import safetensors.numpy
from flax import linen, nnx, serialization
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import mapjax.io as mio
from mapjax.io import _dtypes
from mapjax.io._npz import NpzCheckpoint

RNG = np.random.default_rng(0)
ALL_DTYPES = list(_dtypes.SAFETENSORS.values())


def numbers(dtype, shape=(3, 4)):
    return RNG.integers(0, 2, size=shape).astype(dtype)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        x, y = np.asarray(got[name]), np.asarray(want[name])
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        assert x.tobytes() == y.tobytes(), name


def all_arrays():
    arrays = {dtype.name: numbers(dtype) for dtype in ALL_DTYPES}
    return arrays | {"scalar": np.array(3, np.float32), "empty": np.zeros((0, 5))}


def write_hub_folder(folder, arrays, shards=2, tied=None):
    """Write shards as `transformers` does: an index, metadata, a configuration."""
    folder.mkdir()
    names, files = (
        list(arrays),
        [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)],
    )
    places = {name: files[i * shards // len(names)] for i, name in enumerate(names)}
    for file in files:
        part = {n: x for n, x in arrays.items() if places[n] == file}
        safetensors.numpy.save_file(part, folder / file, {"format": "pt"} | (tied or {}))
    index = {"metadata": {"total_size": 1, "kind": "test"}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"hidden": 4}')
    (folder / "training_args.bin").write_bytes(b"\x80\x04pickle")


def test_safetensors_written_by_its_own_library_and_back(tmp_path):
    arrays = all_arrays()
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", {"format": "pt"})
    loaded = mio.load(tmp_path / "a.safetensors")
    assert_same({name: loaded[name] for name in arrays}, arrays)
    mio.save(tmp_path / "b.safetensors", arrays)
    read = dict(safetensors.deserialize((tmp_path / "b.safetensors").read_bytes()))
    assert read.keys() == arrays.keys()
    names = {dtype.name: name for name, dtype in _dtypes.SAFETENSORS.items()}
    for name, x in arrays.items():
        assert (read[name]["dtype"], read[name]["shape"]) == (
            names[x.dtype.name],
            list(x.shape),
        )
        assert bytes(read[name]["data"]) == x.tobytes()
    loaded = mio.load(tmp_path / "b.safetensors")
    assert_same({name: loaded[name] for name in arrays}, arrays)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_written_by_numpy_and_back(save, tmp_path):
    arrays = {k: v for k, v in all_arrays().items() if "float8" not in k}
    arrays |= {
        "complex": np.array([1j]),
        "fortran": np.asfortranarray(RNG.normal(size=(3, 5))),
    }
    save(tmp_path / "a.npz", **arrays)
    assert_same(mio.load(tmp_path / "a.npz"), arrays)
    mio.save(tmp_path / "b.npz", mio.load(tmp_path / "a.npz"), like=tmp_path / "a.npz")
    with np.load(tmp_path / "b.npz", allow_pickle=False) as file:
        assert_same({k: file[k].view(arrays[k].dtype) for k in file.files}, arrays)
    with mio.open_checkpoint(tmp_path / "b.npz") as checkpoint:
        assert isinstance(checkpoint, NpzCheckpoint)
        assert checkpoint.compressed is (save is np.savez_compressed)
        assert_same(
            {"x": checkpoint.read("fortran", (slice(1, 3),))}, {"x": arrays["fortran"][1:3]}
        )


def test_npz_keeps_small_floats_and_byte_order(tmp_path):
    arrays = all_arrays()
    mio.save(tmp_path / "a.npz", arrays)
    assert_same(mio.load(tmp_path / "a.npz"), arrays)
    np.savez(tmp_path / "big.npz", x=np.arange(3, dtype=">f4"))
    assert_same(mio.load(tmp_path / "big.npz"), {"x": np.arange(3, dtype=np.float32)})
    mio.save(tmp_path / "big.safetensors", {"x": np.arange(3, dtype=">f4")})
    assert_same(
        mio.load(tmp_path / "big.safetensors"), {"x": np.arange(3, dtype=np.float32)}
    )


def test_msgpack_written_by_flax_and_back(tmp_path):
    arrays = {k: v for k, v in all_arrays().items()}
    tree = {"params": {"layer": arrays, "list": [np.ones(2), np.zeros(1)]}, "step": 3}
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(tree))
    loaded = mio.load(tmp_path / "a.msgpack")
    assert_same(loaded["params"]["layer"], arrays)
    assert loaded["step"] == 3
    assert list(mio.load(tmp_path / "a.msgpack", item="params.list")) == ["0", "1"]
    (tmp_path / "no_suffix").write_bytes((tmp_path / "a.msgpack").read_bytes())
    assert_same(mio.load(tmp_path / "no_suffix", item="params.layer"), arrays)
    mio.save(tmp_path / "b.msgpack", tree)
    back = serialization.from_bytes(tree, (tmp_path / "b.msgpack").read_bytes())
    assert_same(back["params"]["layer"], arrays)
    np.testing.assert_array_equal(back["params"]["list"][0], np.ones(2))
    mio.save(tmp_path / "c.msgpack", loaded, like=tmp_path / "a.msgpack")
    assert_same(mio.load(tmp_path / "c.msgpack", item="params.layer"), arrays)
    with mio.open_checkpoint(tmp_path / "c.msgpack") as checkpoint:
        assert checkpoint.read("params.list.0", (slice(1),)).tolist() == [1.0]
        assert checkpoint.tensors["params.layer.bfloat16"].shape == (3, 4)


@pytest.fixture(scope="module")
def orbax_folder(tmp_path_factory):
    """A train state, the same in a manager's step, and one of two items."""
    folder = tmp_path_factory.mktemp("orbax")
    params = {
        "w": jnp.arange(12, dtype=jnp.bfloat16).reshape(4, 3),
        "l": [jnp.ones(2), np.arange(3.0)],
    }
    state = {"params": params, "opt_state": {"mu": jnp.ones(5)}, "step": 3}
    state["f8"] = jnp.ones(3, jnp.float8_e4m3fn)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
    with ocp.CheckpointManager(folder / "steps") as manager:
        for step in (9, 10):
            manager.save(step, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        other=ocp.args.StandardSave({"x": jnp.ones(1)}),
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder / "items", args=items)
    return folder, state


def test_orbax_with_and_without_an_abstract_tree(orbax_folder):
    folder, state = orbax_folder
    loaded = mio.load(folder / "state")
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        assert isinstance(x, np.ndarray)
        assert_same({"x": x}, {"x": y})
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.float32), state["params"]
    )
    params = mio.load(folder / "state", like=like, item="params")
    assert params["w"].dtype == np.float32
    np.testing.assert_array_equal(params["w"], np.arange(12).reshape(4, 3))
    assert mio.load(folder / "state", item="step") == 3
    assert mio.load(folder / "state", item="params.l.1").tolist() == [0, 1, 2]


def test_orbax_parts_and_items(orbax_folder):
    folder, state = orbax_folder
    for path in ("state", "items", "steps/10"):
        params = mio.load(folder / path, item="params")
        assert_same({"w": params["w"]}, {"w": state["params"]["w"]})
        assert isinstance(params["l"], list)
    with pytest.raises(
        ValueError, match=r"items.*has the items \['other', 'params'\]: pass"
    ):
        mio.load(folder / "items")
    with pytest.raises(ValueError, match="holds the checkpoints '9', '10': pass the path"):
        mio.load(folder / "steps")
    with pytest.raises(
        ValueError, match="has no item 'ema', but 'f8', 'opt_state', 'params'"
    ):
        mio.load(folder / "state", item="ema")


def test_orbax_onto_shardings(orbax_folder):
    folder, state = orbax_folder
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spread = NamedSharding(mesh, PartitionSpec("x"))
    w = mio.load(folder / "state", item="params", sharding={"w": spread})["w"]
    assert w.sharding == spread
    assert_same({"w": w}, {"w": state["params"]["w"]})
    like = {
        "w": jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=spread),
        "l": state["params"]["l"],
    }
    params = mio.load(folder / "items", item="params", like=like)
    assert (params["w"].sharding, params["w"].dtype) == (spread, jnp.float32)
    assert isinstance(params["l"][0], jax.Array)


def test_orbax_saved_and_read_by_orbax(orbax_folder, tmp_path):
    folder, state = orbax_folder
    mio.save(tmp_path / "new", state)
    with ocp.StandardCheckpointer() as checkpointer:
        back = checkpointer.restore(tmp_path / "new", state)
    assert_same({"w": back["params"]["w"]}, {"w": state["params"]["w"]})
    wide = jax.tree.map(
        lambda x: np.asarray(x, np.float32), mio.load(folder / "state", item="params")
    )
    mio.save(tmp_path / "like", wide, like=folder / "items" / "params")
    assert_same({"w": mio.load(tmp_path / "like")["w"]}, {"w": state["params"]["w"]})
    with mio.open_checkpoint(tmp_path / "new", item="params") as checkpoint:
        assert checkpoint.tensors["params.w"].dtype == jnp.bfloat16
        assert checkpoint.read("params.w", (slice(1, 2),)).tolist() == [[3, 4, 5]]


def test_trees_of_frameworks_come_back(tmp_path):
    module = linen.Dense(2)
    variables = module.init(jax.random.key(0), jnp.ones((1, 3)))
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    for i, tree in enumerate([variables, linear, state]):
        for suffix in (".safetensors", ".npz", ".msgpack", ""):
            path = tmp_path / f"tree_{i}{suffix}"
            mio.save(path, tree)
            back = mio.load(path, like=tree)
            assert jax.tree.structure(back) == jax.tree.structure(tree)
            for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
                assert isinstance(x, jax.Array)
                np.testing.assert_array_equal(x, y)


def test_names_nest_and_parts_are_picked(tmp_path):
    mio.save(tmp_path / "a.npz", {"enc": {"w": np.ones(2)}, "head/b": np.zeros(1)})
    assert list(mio.load(tmp_path / "a.npz")) == ["enc.w", "head/b"]
    assert list(mio.load(tmp_path / "a.npz", separator=".")["enc"]) == ["w"]
    assert list(mio.load(tmp_path / "a.npz", item="enc")) == ["w"]
    assert list(mio.load(tmp_path / "a.npz", item="head")) == ["b"]
    mio.save(tmp_path / "b.npz", {"a": np.ones(1), "a.b": np.ones(1)})
    with pytest.raises(ValueError, match=r"'a\.b' cannot be nested at '\.'"):
        mio.load(tmp_path / "b.npz", separator=".")


def test_a_hub_folder_is_repeated(tmp_path):
    arrays = {f"layer.{i}.w": numbers(ml_dtypes.bfloat16) for i in range(5)}
    write_hub_folder(tmp_path / "base", arrays)
    for path in (tmp_path / "base", tmp_path / "base" / "model.safetensors.index.json"):
        assert_same(mio.load(path), arrays)
    wide = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    mio.save(tmp_path / "new", wide, like=tmp_path / "base")
    names = {p.name for p in (tmp_path / "base").iterdir()} - {"training_args.bin"}
    assert {p.name for p in (tmp_path / "new").iterdir()} == names
    for shard in (tmp_path / "base").glob("*.safetensors"):
        theirs = safetensors.numpy.load_file(tmp_path / "new" / shard.name)
        assert_same(theirs, safetensors.numpy.load_file(shard))
        with safetensors.safe_open(tmp_path / "new" / shard.name, "np") as file:
            assert file.metadata() == {"format": "pt"}
    old, new = (
        json.loads((tmp_path / f / "model.safetensors.index.json").read_text())
        for f in ("base", "new")
    )
    assert new["weight_map"] == old["weight_map"]
    assert new["metadata"] == {"kind": "test", "total_size": 5 * 24}
    with pytest.raises(
        ValueError, match="new exists already, and a folder is never overwr"
    ):
        mio.save(tmp_path / "new", wide, like=tmp_path / "base")


def test_the_hub_cache_of_links_is_read(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    write_hub_folder(tmp_path / "plain", {"a": np.ones(2), "b": np.ones(3)})
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in (tmp_path / "plain").iterdir():
        file.rename(blobs / f"{file.name}-hash")
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}-hash")
    assert_same(mio.load(snapshot), {"a": np.ones(2), "b": np.ones(3)})


def test_tied_tensors_are_stored_once(tmp_path):
    shared = np.arange(6.0).reshape(2, 3)
    mio.save(tmp_path / "a.safetensors", {"embed": shared, "head": shared, "b": np.ones(1)})
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert set(file.keys()) == {"embed", "b"}
        assert file.metadata() == {"head": "embed"}
    loaded = mio.load(tmp_path / "a.safetensors")
    assert loaded["head"] is loaded["embed"]
    mio.save(tmp_path / "b.safetensors", loaded, like=tmp_path / "a.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (
        tmp_path / "a.safetensors"
    ).read_bytes()
    # A file that says nothing of the tie, as those of `transformers`.
    safetensors.numpy.save_file(
        {"embed": shared, "b": np.ones(1)}, tmp_path / "c.safetensors"
    )
    mio.save(
        tmp_path / "d.safetensors",
        loaded,
        like=tmp_path / "c.safetensors",
    )
    assert set(mio.load(tmp_path / "d.safetensors")) == {"embed", "b"}
    with pytest.raises(
        ValueError, match=r"'head' is tied to 'embed' in .* but differs from it"
    ):
        mio.save(
            tmp_path / "e", {**loaded, "head": shared + 1}, like=tmp_path / "a.safetensors"
        )
    with pytest.raises(ValueError, match="`params` has 'head', which `like` lacks"):
        mio.save(
            tmp_path / "e", {**loaded, "head": shared + 0}, like=tmp_path / "c.safetensors"
        )


def test_shards_of_devices_read_their_part(tmp_path):
    x = RNG.normal(size=(8, 4)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
    for name in ("x.safetensors", "x.npz", "x.msgpack"):
        mio.save(tmp_path / name, {"x": x, "s": np.float32(2)})
        for spec in (("a", "b"), ("b",), (None, "a"), ()):
            sharding = NamedSharding(mesh, PartitionSpec(*spec))
            loaded = mio.load(tmp_path / name, sharding={"x": sharding})
            assert loaded["x"].sharding == sharding
            assert isinstance(loaded["s"], np.ndarray)
            np.testing.assert_array_equal(loaded["x"], x)
    everywhere = SingleDeviceSharding(jax.devices()[1])
    assert mio.load(tmp_path / "x.npz", sharding=everywhere)["s"].sharding == everywhere


def test_slices_are_read_alone(tmp_path):
    x = np.arange(60.0).reshape(5, 4, 3)
    mio.save(tmp_path / "x.safetensors", {"x": x})
    np.savez_compressed(tmp_path / "x.npz", x=x)
    for name in ("x.safetensors", "x.npz"):
        with mio.open_checkpoint(tmp_path / name) as checkpoint:
            assert checkpoint.nbytes == x.nbytes
            assert checkpoint.format == name[2:]
            for index in ((), (slice(3, 5),), (slice(1, 2), slice(2, 9)), (slice(4, 2),)):
                np.testing.assert_array_equal(checkpoint.read("x", index), x[index])
            flat = np.empty(7)
            for start in (50, 0, 11):
                checkpoint.read_into("x", start, flat)
                np.testing.assert_array_equal(flat, x.ravel()[start : start + 7])
            with pytest.raises(ValueError, match="has no tensor 'y', but 'x'"):
                checkpoint.read("y")


def test_a_hash_beside_a_file_is_compared(tmp_path):
    path = tmp_path / "a.safetensors"
    mio.save(path, {"x": np.ones(3)})
    sidecar = tmp_path / "a.safetensors.sha256"
    sidecar.write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "  a.safetensors\n")
    mio.load(path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a\.safetensors has the SHA-256 .* says"):
        mio.load(path)
    assert mio.load(path, verify=False)["x"][0] == 1
    sidecar.write_text("nonsense")
    with pytest.raises(ValueError, match=r"holds no SHA-256\. Write it with `sha256sum"):
        mio.load(path)
    mio.save(path, {"x": np.ones(3)})  # which takes the hash of what was there away
    assert not sidecar.exists()
    mio.load(path)
