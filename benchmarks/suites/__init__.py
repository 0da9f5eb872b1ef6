"""Problems to measure on: real models, with examples to choose and to judge merges by."""

from benchmarks.suites._cache import CACHE as CACHE
from benchmarks.suites._load import SUITES as SUITES
from benchmarks.suites._load import Entry as Entry
from benchmarks.suites._load import load as load
from benchmarks.suites._suite import Suite as Suite
from benchmarks.suites._suite import with_rule as with_rule
