"""Problems to measure on: real models, with a validation and a test evaluator."""

from benchmarks.suites._suite import Suite as Suite
