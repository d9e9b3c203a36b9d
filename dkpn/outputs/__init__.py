"""HDR results as files that other programs open: OpenEXR, Radiance, TIFF, PNG, AVIF, UltraHDR."""

from dkpn.outputs.files import OUTPUT_SUFFIXES, encoding_bytes, output_suffix, write_result

__all__ = ["OUTPUT_SUFFIXES", "encoding_bytes", "output_suffix", "write_result"]
