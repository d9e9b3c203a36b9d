"""A generator of HDR scenes, for demonstrations and tests where no HDR pictures are at hand.

A scene is a dead-leaves picture of reflectances, lit by light of power-law luminance with cast
shadows, and holds what makes real scenes high in dynamic range: the sun in a sky, windows seen from
a dark room, lamps at night. It is numpy only, and a pure function of its seed and size.

References:
    Lee, Mumford and Huang, Occlusion Models for Natural Images: A Statistical Study of a
    Scale-Invariant Dead Leaves Model, IJCV 41, 2001. Ruderman, Origins of Scaling in Natural
    Images, Vision Research 37, 1997.
"""

import numpy as np

# Everything is drawn at twice the size and averaged in linear light, which smooths the edges.
_SUPERSAMPLING = 2
_LEAVES = 350
_LEAF_RADIUS = (0.012, 0.5)  # of the scene's longer side


def generate_scene(seed: int, size: int | tuple[int, int]) -> np.ndarray:
    """Generate one HDR scene.

    Args:
        seed: any integer of at least 0; one seed and size always give the same scene.
        size: side, or (height, width), in pixels, at least 8 each.

    Returns:
        (H, W, 3) float32, linear Rec.709, above 0, in an arbitrary unit (a white wall in the main
        light is about 1); suns reach some 10^4.

    Raises:
        ValueError: the seed is negative, or the size too small.

    >>> generate_scene(0, (16, 24)).shape
    (16, 24, 3)
    """
    height, width = (size, size) if isinstance(size, int) else size
    if seed < 0:
        raise ValueError(f"seed: expected an integer of at least 0, got {seed}")
    if min(height, width) < 8:
        raise ValueError(f"size: expected at least 8 pixels a side, got {height} x {width}")
    rng = np.random.default_rng(seed)
    shape = (height * _SUPERSAMPLING, width * _SUPERSAMPLING)
    kind = rng.choice(["outdoor", "indoor", "night"], p=[0.4, 0.4, 0.2])
    light = _illumination(rng, shape)
    if kind == "outdoor":
        scene = _dead_leaves(rng, shape) * light[..., None]
        _add_sky(rng, scene)
    elif kind == "indoor":
        scene = _dead_leaves(rng, shape) * (0.15 * light[..., None])
        for _ in range(rng.integers(1, 4)):
            _add_window(rng, scene)
        for _ in range(rng.integers(0, 3)):
            _add_lamp(rng, scene)
    else:
        scene = _dead_leaves(rng, shape) * (0.05 * light[..., None])
        for _ in range(rng.integers(2, 7)):
            _add_lamp(rng, scene)
    averaged = scene.reshape(height, _SUPERSAMPLING, width, _SUPERSAMPLING, 3).mean(axis=(1, 3))
    return averaged.astype(np.float32)


def generate_scenes(count: int, size: int | tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Generate several scenes, different for every seed.

    Args:
        count: how many.
        size: as for :func:`generate_scene`.
        seed: any integer of at least 0.

    Returns:
        ``count`` arrays (H, W, 3) float32.

    Raises:
        ValueError: the seed is negative, or the size too small.
    """
    # Seeds a prime apart, so that the scenes of neighbouring seeds do not overlap.
    return [generate_scene(seed * 1_000_003 + index, size) for index in range(count)]


def _dead_leaves(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Paint discs and rectangles over each other, radii distributed as r^-3: reflectances."""
    texture = _power_law_field(rng, shape)
    reflectance = _reflectance_colour(rng) * np.exp(0.3 * texture)[..., None]
    smallest, largest = (radius * max(shape) for radius in _LEAF_RADIUS)
    for u in rng.random(_LEAVES):
        # Inverse of the distribution of radii with density r^-3 between the two bounds.
        radius = (smallest**-2 - u * (smallest**-2 - largest**-2)) ** -0.5
        # Only the box around the leaf is touched, so that small leaves cost little.
        center_y, center_x = rng.random(2) * shape
        reach = radius * np.sqrt(2)
        rows = slice(max(int(center_y - reach), 0), int(center_y + reach) + 1)
        columns = slice(max(int(center_x - reach), 0), int(center_x + reach) + 1)
        box = reflectance[rows, columns]
        y = np.arange(box.shape[0])[:, None] + rows.start - center_y
        x = np.arange(box.shape[1])[None, :] + columns.start - center_x
        angle = rng.random() * 2 * np.pi
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        if rng.random() < 0.5:
            inside = along**2 + across**2 < radius**2
        else:
            inside = (np.abs(along) < radius) & (np.abs(across) < radius * rng.uniform(0.2, 1.0))
        shading = 1 + rng.uniform(0.0, 0.5) * along / reach
        grain = np.exp(rng.uniform(0.0, 0.5) * texture[rows, columns])
        leaf = _reflectance_colour(rng) * (shading * grain)[..., None]
        np.copyto(box, leaf, where=inside[..., None])
    return np.clip(reflectance, 0.01, 0.95)


def _reflectance_colour(rng: np.random.Generator) -> np.ndarray:
    grey = np.exp(rng.uniform(np.log(0.06), np.log(0.8)))
    return grey * np.exp(rng.normal(0.0, 0.25, size=3))


def _power_law_field(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Noise whose amplitude falls as 1 / frequency, mean 0, standard deviation 1."""
    spectrum = np.fft.rfft2(rng.standard_normal(shape))
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(spectrum / frequency, s=shape)
    return field / field.std()


def _illumination(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Light of power-law luminance, with one or two shadows of 1 to 3 stops."""
    stops = rng.uniform(0.3, 0.8) * _power_law_field(rng, shape)
    y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    for _ in range(rng.integers(1, 3)):
        angle = rng.random() * 2 * np.pi
        distance = x * np.cos(angle) + y * np.sin(angle) - rng.uniform(-0.7, 0.7)
        penumbra = np.exp(rng.uniform(np.log(0.005), np.log(0.2)))
        stops -= rng.uniform(1.0, 3.0) * 0.5 * (1 + np.tanh(distance / penumbra))
    return np.exp2(stops - stops.max() * 0.5)


def _distance(shape: tuple[int, ...], center: np.ndarray) -> np.ndarray:
    """Distance of each pixel to a point in units of the longer side; the point is in [0, 1]²."""
    y = np.arange(shape[0])[:, None] - center[0] * shape[0]
    x = np.arange(shape[1])[None, :] - center[1] * shape[1]
    return np.hypot(y, x) / max(shape[:2])


def _add_sky(rng: np.random.Generator, scene: np.ndarray) -> None:
    """Replace what lies above a skyline by sky and clouds, with a sun that may be in it."""
    height, width = scene.shape[:2]
    skyline = _power_law_field(rng, (height, width))[0]
    horizon = (rng.uniform(0.25, 0.6) + 0.05 * skyline) * height
    above = np.arange(height)[:, None] < horizon[None, :]
    altitude = np.linspace(1.0, 0.0, height)[:, None]
    clouds = 1 / (1 + np.exp(-3 * _power_law_field(rng, (height, width))))
    blue = np.array([0.35, 0.6, 1.0]) * rng.uniform(1.0, 4.0)
    white = np.full(3, rng.uniform(2.0, 12.0))
    sky = (blue * (1.3 - altitude)[..., None]) * (1 - clouds)[..., None] + white * clouds[..., None]
    if rng.random() < 0.7:
        distance = _distance(scene.shape, rng.random(2) * (0.5, 1.0))
        radius = rng.uniform(0.004, 0.02)
        aureole = rng.uniform(2.0, 20.0) / (1 + (distance / (4 * radius)) ** 2)
        disc = np.exp(rng.uniform(np.log(1e3), np.log(3e4))) * (distance < radius)
        sky += np.array([1.0, 0.9, 0.7]) * (aureole + disc)[..., None]
    np.copyto(scene, sky, where=above[..., None])


def _add_window(rng: np.random.Generator, scene: np.ndarray) -> None:
    """Cut a window with bars: behind it bright leaves and a patch of sky; it lights the room."""
    height, width = scene.shape[:2]
    window_size = np.maximum(rng.uniform(0.12, 0.4, size=2) * (height, width), 8).astype(int)
    top, left = (rng.random(2) * (np.array([height, width]) - window_size)).astype(int)
    brightness = np.exp(rng.uniform(np.log(6.0), np.log(60.0)))
    outside = _dead_leaves(rng, (int(window_size[0]), int(window_size[1])))
    sky_rows = rng.integers(0, window_size[0])
    outside[:sky_rows] = np.array([0.8, 0.95, 1.2])
    bars = rng.integers(2, 4, size=2)
    y, x = np.ogrid[: window_size[0], : window_size[1]]
    frame = ((y * bars[0]) % window_size[0] < 2 * bars[0]) | (
        (x * bars[1]) % window_size[1] < 2 * bars[1]
    )
    center = (np.array([top, left]) + window_size / 2) / (height, width)
    spill = 0.01 * brightness / (0.1 + _distance(scene.shape, center)) ** 2
    scene *= 1 + np.minimum(spill, 4.0)[..., None]
    box = scene[top : top + window_size[0], left : left + window_size[1]]
    np.copyto(box, brightness * outside, where=~frame[..., None])


def _add_lamp(rng: np.random.Generator, scene: np.ndarray) -> None:
    """Hang a lamp: a bright disc, a glow around it, and its light on what is near."""
    distance = _distance(scene.shape, rng.random(2))
    radius = rng.uniform(0.006, 0.04)
    brightness = np.exp(rng.uniform(np.log(10.0), np.log(800.0)))
    colour = np.array([1.0, rng.uniform(0.6, 1.0), rng.uniform(0.25, 1.0)])
    lit = rng.uniform(2.0, 20.0) / (1 + (distance / rng.uniform(0.05, 0.2)) ** 2)
    scene *= 1 + lit[..., None] * colour
    glow = 0.004 * brightness / (1 + (distance / radius) ** 2) ** 1.5
    disc = brightness * (distance < radius) * (1 - 0.5 * np.minimum(distance / radius, 1.0) ** 2)
    scene += (glow + disc)[..., None] * colour
