"""The commands of ``dkpn``, one file each; :mod:`dkpn.cli` puts them together."""
