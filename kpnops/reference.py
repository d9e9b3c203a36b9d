"""Naive versions of every op: the specification that tests and benchmarks compare with."""

from ._decoupled_filter.reference import decoupled_filter
from ._predict_filter.reference import predict_filter

__all__ = ["decoupled_filter", "predict_filter"]
