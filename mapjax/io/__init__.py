"""Checkpoints on disk: load, save, look into and merge them, larger than memory too.

What to use when:

* safetensors (a file, shards with an index, a Hugging Face folder): to share, and to merge
  what does not fit into memory. Read lazily, a slice at a time; bfloat16 and float8 kept.
* orbax (a folder): the checkpoints of JAX training loops. Sharded over devices and hosts;
  parts are read alone, `load(path, item="params")`.
* flax msgpack (`.msgpack`): what `flax.serialization.to_bytes` wrote. Read as a whole.
* NumPy (`.npz`): small things, and programs that have nothing but NumPy.

A pickle is never read. What is written appears whole or not at all.
"""

from mapjax.io._load import load as load
from mapjax.io._merge_files import merge_files as merge_files
from mapjax.io._model_card import save_model_card as save_model_card
from mapjax.io._open import open_checkpoint as open_checkpoint
from mapjax.io._plan import MergePlan as MergePlan
from mapjax.io._rename import rename as rename
from mapjax.io._rename import rename_back as rename_back
from mapjax.io._run_folder import RunFolder as RunFolder
from mapjax.io._save import save as save
from mapjax.io._solution import load_solution as load_solution
from mapjax.io._solution import save_solution as save_solution
from mapjax.io._tensor import AbstractCheckpoint as AbstractCheckpoint
from mapjax.io._tensor import TensorInfo as TensorInfo
from mapjax.io._ties import TIES as TIES
