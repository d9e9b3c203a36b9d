"""Photos of any format, and colour space, to the sRGB pixels that the network takes."""

from dkpn.photos.reading import Photo, photo_paths, read_photo

__all__ = ["Photo", "photo_paths", "read_photo"]
