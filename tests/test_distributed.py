"""Two processes, each with one CPU device, share the candidates over loopback."""

import json
import os
import socket
import subprocess
import sys

import numpy as np

import mapjax as mj
from mapjax.evaluation import Recorder, describe_problem

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 8)).astype(np.float32)
Y = RNG.integers(0, 4, 40)
BASE, *EXPERTS = ({"w": RNG.normal(size=(8, 4)).astype(np.float32)} for _ in range(4))
C = RNG.random((5, 3)).astype(np.float32)


def predict(params, x):
    return x @ params["w"]


def make_evaluator(mesh=None):
    tv = mj.TaskVectors.from_params(BASE, EXPERTS)
    tasks = [
        mj.Task("a", predict, X, Y),
        mj.Task("b", predict, X, Y, mj.metrics.cross_entropy),
    ]
    return mj.Evaluator(tv, tasks, mesh=mesh)


def make_recorder(evaluator, path):
    return Recorder(describe_problem(evaluator), path, keep_outputs=True)


WORKER = """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from test_distributed import C, make_evaluator, make_recorder
# Axes of both kinds.
meshes = [
    jax.sharding.Mesh(np.array(jax.devices()), ("candidates",)),
    jax.make_mesh((2,), ("candidates",)),
]
assert jax.process_count() == 2 and meshes[0].size == 2
for mesh in meshes:
    print("scores", np.asarray(make_evaluator(mesh)(C)).astype(np.float64).tolist())
make_recorder(make_evaluator(meshes[0]), sys.argv[3])(C)
"""


def test_two_processes_give_the_answer_of_one(tmp_path):
    path = tmp_path / "samples.jsonl"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    # Compiled as here, to the last bit, but with a device in each process.
    words = os.environ["XLA_FLAGS"].split()
    flags = " ".join(word for word in words if "device_count" not in word)
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.path.dirname(__file__)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(i), str(path)],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]
    answers = []
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        lines = [x for x in out.splitlines() if x.startswith("scores ")]
        answers += [json.loads(x.removeprefix("scores ")) for x in lines]
    assert len(answers) == 4
    one = np.asarray(make_evaluator()(C)).astype(np.float64)
    for answer in answers:
        np.testing.assert_array_equal(answer, one)
    # One of them wrote each sample once, and a single process goes on from there.
    assert len(path.read_text().splitlines()) == 1 + len(C)
    recorder = make_recorder(make_evaluator(), path)
    np.testing.assert_array_equal(recorder(C), one)
    assert recorder.num_new == 0
