"""digits3: three kinds of digits, and experts for them that are worth merging."""

from mapjax.adapters.digits3._data import Dataset as Dataset
from mapjax.adapters.digits3._data import Split as Split
from mapjax.adapters.digits3._data import load as load
from mapjax.adapters.digits3._train import predict as predict
from mapjax.adapters.digits3._train import train as train
