"""Two processes, each with one CPU device, share the candidates over loopback."""

import os
import socket
import subprocess
import sys

import numpy as np

import mapjax as mj

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


WORKER = """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from test_distributed import C, make_evaluator
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("candidates",))
assert jax.process_count() == 2 and mesh.size == 2
print("scores", np.asarray(make_evaluator(mesh)(C)).astype(np.float64).tolist())
"""


def test_two_processes_give_the_answer_of_one():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.path.dirname(__file__)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(i)],
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
        line = next(x for x in out.splitlines() if x.startswith("scores "))
        answers.append(np.array(eval(line.removeprefix("scores "))))
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(
        answers[0], np.asarray(make_evaluator()(C)).astype(np.float64)
    )
