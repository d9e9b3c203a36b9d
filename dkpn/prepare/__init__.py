"""Folders of HDR pictures to a training set, which :mod:`dkpn.prepared` describes and reads."""

from dkpn.prepare.folders import PrepareSettings, prepare

__all__ = ["PrepareSettings", "prepare"]
