"""Naive versions of every op: the specification that tests and benchmarks compare with."""

from ._decoupled_filter.reference import decoupled_filter

__all__ = ["decoupled_filter"]
