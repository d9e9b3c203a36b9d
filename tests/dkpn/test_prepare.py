import json

import numpy as np
import pytest

pytest.importorskip("OpenEXR", reason="the sources are EXR files")

from dkpn.data import evaluation_pairs, find_images
from dkpn.hdr_io import read_hdr, write_hdr
from dkpn.prepare import PrepareSettings, prepare
from dkpn.prepare import folders as module
from dkpn.prepare.pictures import range_in_stops
from dkpn.prepared import MANIFEST, read_manifest, read_prepared
from dkpn.scenes import generate_scenes

SMALL = PrepareSettings(min_side=16, min_stops=0)
# The largest relative error of a half float, and of float32's division before it.
HALF_ERROR = 2.0**-11 + 2.0**-23


def light(seed: int = 0, size: int | tuple[int, int] = 24) -> np.ndarray:
    return generate_scenes(1, size, seed=seed)[0]


def panorama(seed: int = 0, height: int = 32) -> np.ndarray:
    """Twice as wide as high, and its sides meet: they mirror each other."""
    half = light(seed, height)
    return np.concatenate((half, half[:, ::-1]), axis=1)


def luminance(image: np.ndarray) -> np.ndarray:
    return image @ np.array([0.2126, 0.7152, 0.0722])


def write(folder, **images):
    for name, image in images.items():
        path = folder / f"{name.replace('_in_', '/')}.exr"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_hdr(path, image)
    return folder


@pytest.fixture
def sources(tmp_path):
    return write(tmp_path / "photos", lake__a=light(0), lake__b=light(1), hall=light(2, (30, 20)))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "set"


def reasons(made) -> dict[str, str]:
    return {one.source: one.reason for one in made.refused}


# --- what is in a set -----------------------------------------------------------------------------


def test_values_are_divided_by_the_median_of_the_lit_pixels(tmp_path, out):
    dark = light(0)
    dark[:8] = 0
    write(tmp_path / "photos", dark=dark, light=1000 * light(1, (20, 30)))
    prepare([tmp_path / "photos"], out, SMALL)
    for picture, scene in zip(read_manifest(out)["pictures"], read_prepared(out), strict=True):
        image = read_hdr(tmp_path / "photos" / picture["source"])
        lit = luminance(image)[luminance(image) > 0]
        assert picture["divisor"] == pytest.approx(np.median(lit), rel=1e-5)
        expected = image.astype(np.float64) / picture["divisor"]
        normal = expected >= 2.0**-14
        error = np.abs(scene.pixels.astype(np.float64) / np.where(normal, expected, 1) - 1)[normal]
        assert error.max() <= HALF_ERROR
        assert (scene.pixels[image == 0] == 0).all()


def test_the_manifest_says_what_is_in_the_set_and_where_it_came_from(sources, out):
    write(sources, lake=panorama())
    (sources / "MANIFEST.csv").write_text(
        "file,scene,licence\nphotos/hall.exr,hall,CC0\nlake__a.exr,lake,\n"
    )
    (sources / "LICENSE-others.txt").write_text("keep this notice")
    made = prepare([sources], out, SMALL)
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest == made.manifest
    assert manifest["settings"]["folders"] == [str(sources)]
    assert manifest["settings"]["min_side"] == 16
    assert manifest["refused"] == manifest["left_out"] == []
    hall, lake, lake_a, lake_b = manifest["pictures"]
    assert [one["kind"] for one in (hall, lake, lake_a, lake_b)] == ["photo", "panorama"] + [
        "photo"
    ] * 2
    assert (hall["width"], hall["height"]) == (20, 30)
    assert (hall["file"], hall["scene"], hall["source"]) == ("hall.npz", "hall", "hall.exr")
    assert [one["licence"] for one in (hall, lake, lake_a)] == ["CC0", "", ""]
    assert hall["clamped_pixels"] == 0
    assert hall["stops"] == pytest.approx(range_in_stops(luminance(light(2, (30, 20)))), abs=0.01)
    assert (out / "LICENSE-others.txt").read_text() == "keep this notice"
    assert made.bytes == sum(path.stat().st_size for path in out.iterdir())


def test_a_licence_is_found_in_the_folder_above(sources, out):
    (sources.parent / "MANIFEST.csv").write_text("file,license\nphotos/hall.exr,CC BY 3.0\n")
    prepare([sources], out, SMALL)
    assert read_manifest(out)["pictures"][0]["licence"] == "CC BY 3.0"


def test_suns_are_clamped_and_counted(tmp_path, out):
    image = light()
    divisor = float(np.median(luminance(image)))
    image[3, 4:7] = 70000 * divisor
    image[3, 4, 1] = 0.1
    write(tmp_path / "photos", sun=image)
    made = prepare([tmp_path / "photos"], out, SMALL)
    assert made.manifest["pictures"][0]["clamped_pixels"] == 3
    pixels = read_prepared(out)[0].pixels
    assert np.isfinite(pixels).all()
    assert pixels.max() == 65504
    assert (pixels[3, 5:7] == 65504).all()


def test_equal_stems_get_names_of_their_own_and_one_scene(tmp_path, out):
    write(tmp_path / "a", lake=light(0), sub_in_lake=light(1))
    write(tmp_path / "b", Lake=light(2))
    made = prepare([tmp_path / "a", tmp_path / "b"], out, SMALL)
    files = [picture["file"] for picture in made.manifest["pictures"]]
    assert files == ["lake.npz", "lake__2.npz", "Lake__3.npz"]
    assert [scene.name for scene in read_prepared(out)] == ["lake", "lake", "Lake"]


def test_a_set_is_the_same_each_time(sources, out, tmp_path):
    prepare([sources], out, SMALL)
    prepare([sources], tmp_path / "again", SMALL)
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_validation_photos_are_those_of_the_sources(sources, out):
    pytest.importorskip("PIL", reason="Pillow makes the JPEG files")
    prepare([sources], out, SMALL)
    made = {pair.name: pair for pair in evaluation_pairs(out)}
    for pair in evaluation_pairs(sources):
        prepared = made[pair.name]
        assert prepared.camera.jpeg_quality == pair.camera.jpeg_quality
        assert prepared.camera.seed == pair.camera.seed
        # The exposure takes the changed scale back, up to the rounding of one value and of each.
        lit = pair.target > 1e-3
        ratio = prepared.target[lit] / pair.target[lit]
        assert np.abs(ratio - 1).max() <= 2 * HALF_ERROR + 1e-6
        difference = np.abs(prepared.input.astype(int) - pair.input)
        # A value that is rounded to the next code makes its whole block of the JPEG differ.
        assert difference.mean() < 1


# --- what is not ----------------------------------------------------------------------------------


def test_what_cannot_be_used_is_refused_with_a_reason(sources, out):
    broken = light(5)
    broken[0, :2] = np.inf
    broken[1, 0, 2] = np.inf
    write(
        sources,
        black=np.zeros((24, 24, 3), np.float32),
        broken=broken,
        copy=light(0),
        flat=np.full((24, 24, 3), 0.5, np.float32),
        narrow=light(3, (40, 15)),
    )
    (sources / "damaged.exr").write_bytes(b"no picture")
    (sources / "cut.exr").write_bytes((sources / "hall.exr").read_bytes()[:300])
    made = prepare([sources], out, PrepareSettings(min_side=16, min_stops=1))
    assert [picture["source"] for picture in made.manifest["pictures"]] == [
        "copy.exr",
        "hall.exr",
        "lake__b.exr",
    ]
    expected = {
        "black.exr": "black",
        "broken.exr": "3 pixels of NaN or infinity",
        "cut.exr": "cannot be read",
        "damaged.exr": "cannot be read",
        "flat.exr": "range of 0.0 stops, expected at least 1",
        "lake__a.exr": "the same picture as copy.exr",
        "narrow.exr": "too small: 15 x 40, expected at least 16 a side",
    }
    found = reasons(made)
    assert found.keys() == expected.keys()
    for source, reason in expected.items():
        assert reason in found[source]
    listed = {one["source"]: one["reason"] for one in made.manifest["refused"]}
    assert listed == found
    assert {one.source for one in made.refused if one.broken} == {
        "broken.exr",
        "cut.exr",
        "damaged.exr",
    }


def test_nothing_usable_is_an_error_and_leaves_nothing(tmp_path, out):
    write(tmp_path / "photos", black=np.zeros((24, 24, 3), np.float32))
    with pytest.raises(ValueError, match=r"none of 1 pictures.*black\.exr: black"):
        prepare([tmp_path / "photos"], out, SMALL)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        prepare([tmp_path / "absent"], out, SMALL)
    with pytest.raises(ValueError, match="folders: expected at least one"):
        prepare([], out, SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_a_prepared_set_is_no_source(sources, out, tmp_path):
    prepare([sources], out, SMALL)
    with pytest.raises(ValueError, match="is a prepared set already"):
        prepare([out], tmp_path / "again", SMALL)


@pytest.mark.parametrize(
    ("choice", "kinds", "refused"),
    [
        ("auto", ["photo", "panorama"], []),
        ("no", ["photo", "photo"], []),
        ("yes", ["panorama"], ["a.exr"]),
    ],
)
def test_panoramas_are_told_apart_or_told(tmp_path, out, choice, kinds, refused):
    write(tmp_path / "photos", a=light(0, (32, 48)), b=panorama())
    settings = PrepareSettings(min_side=16, min_stops=0, panorama=choice)
    made = prepare([tmp_path / "photos"], out, settings)
    assert [picture["kind"] for picture in made.manifest["pictures"]] == kinds
    assert list(reasons(made)) == refused
    assert [scene.panorama for scene in read_prepared(out)] == [
        kind == "panorama" for kind in kinds
    ]


# --- smaller --------------------------------------------------------------------------------------


def test_max_side_shrinks_what_is_larger(tmp_path, out):
    images = {"a": light(0, (60, 80)), "b": light(1, (32, 24)), "c": panorama(2, 50)}
    write(tmp_path / "photos", **images)
    settings = PrepareSettings(min_side=16, min_stops=0, max_side=40)
    made = prepare([tmp_path / "photos"], out, settings)
    sizes = [(one["height"], one["width"]) for one in made.manifest["pictures"]]
    assert sizes == [(30, 40), (32, 24), (20, 40)]
    small = read_prepared(out)[0].pixels.astype(np.float64)
    divisor = made.manifest["pictures"][0]["divisor"]
    boxes = images["a"].astype(np.float64).reshape(30, 2, 40, 2, 3).mean(axis=(1, 3)) / divisor
    np.testing.assert_allclose(small, boxes, rtol=2 * HALF_ERROR)


@pytest.fixture
def mixed(tmp_path):
    """A panorama, two views of it, and two photos of other scenes, with noise."""
    rng = np.random.default_rng(0)
    images = {
        "lake": panorama(0, 64),
        "lake__a": light(1, 64),
        "lake__b": light(2, 64),
        "hall": light(3, 64),
        "street": light(4, (64, 96)),
    }
    noisy = {k: v * np.exp(0.1 * rng.normal(size=v.shape)) for k, v in images.items()}
    noisy["lake"][:, -1] = noisy["lake"][:, 0]
    return write(tmp_path / "photos", **{k: v.astype(np.float32) for k, v in noisy.items()})


def made_with(folder, out, **options):
    made = prepare([folder], out, PrepareSettings(min_side=16, min_stops=0, **options))
    return made.manifest, made.bytes


def test_a_set_gives_up_bits_then_covered_photos_then_sharpness(mixed, tmp_path):
    """Each limit is just under what the step before takes."""
    whole, whole_bytes = made_with(mixed, tmp_path / "whole")
    assert (whole["mantissa_bits"], whole["left_out"], whole["scale"]) == (10, [], 1)
    assert len(whole["pictures"]) == 5

    manifest, size = made_with(mixed, tmp_path / "roomy", max_bytes=int(whole_bytes / 0.9))
    assert manifest["pictures"] == whole["pictures"]

    fewer, fewer_bytes = made_with(mixed, tmp_path / "bits", max_bytes=int(0.95 * whole_bytes))
    assert (fewer["mantissa_bits"], fewer["left_out"], fewer["scale"]) == (6, [], 1)
    assert fewer_bytes <= 0.95 * whole_bytes

    left, left_bytes = made_with(mixed, tmp_path / "left", max_bytes=int(0.95 * fewer_bytes))
    assert (left["mantissa_bits"], left["scale"]) == (6, 1)
    assert left["left_out"] == ["lake__a.exr", "lake__b.exr"]
    assert [one["scene"] for one in left["pictures"]] == ["hall", "lake", "street"]

    limit = int(0.6 * left_bytes)
    shrunk, size = made_with(mixed, tmp_path / "shrunk", max_bytes=limit)
    assert size <= limit
    assert size > 0.8 * limit  # it is not shrunk much more than needed
    assert shrunk["scale"] < 1
    for one in shrunk["pictures"]:
        assert one["height"] == pytest.approx(shrunk["scale"] * one["source_height"], abs=0.51)
    lake = shrunk["pictures"][1]
    assert lake["width"] == 2 * lake["height"]


def test_what_is_chosen_is_not_given_up(mixed, tmp_path):
    _, whole_bytes = made_with(mixed, tmp_path / "whole")
    limit = int(0.6 * whole_bytes)
    manifest, size = made_with(mixed, tmp_path / "set", max_bytes=limit, bits=9, covered="keep")
    assert size <= limit
    assert (manifest["mantissa_bits"], manifest["left_out"]) == (9, [])
    assert manifest["scale"] < 1
    dropped, _ = made_with(mixed, tmp_path / "dropped", covered="drop", bits=4)
    assert (dropped["mantissa_bits"], dropped["scale"]) == (4, 1)
    assert len(dropped["left_out"]) == 2


def test_a_limit_that_cannot_be_met_is_an_error(mixed, tmp_path, out):
    with pytest.raises(ValueError, match=r"max_bytes: .* at its smallest.*lower min_side \(16\)"):
        made_with(mixed, out, max_bytes=3000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


# --- all or nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_what_was_there(sources, out, tmp_path, monkeypatch, stop):
    prepare([sources], out, SMALL)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write_picture = module.write_picture

    def fails(picture, *rest):
        if picture.source.name == "lake__b":
            raise stop
        return write_picture(picture, *rest)

    monkeypatch.setattr(module, "write_picture", fails)
    for target in (out, tmp_path / "new"):
        with pytest.raises(type(stop)):
            prepare([sources], target, SMALL, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "set"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_remains_of_a_killed_run_are_cleared_away(sources, out, tmp_path):
    remains = tmp_path / ".set.writing"
    remains.mkdir()
    (remains / "half.npz").write_bytes(b"half")
    prepare([sources], out, SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "set"]
    assert not (out / "half.npz").exists()


def test_only_sets_and_empty_folders_are_overwritten(sources, out, tmp_path):
    prepare([sources], out, SMALL)
    with pytest.raises(FileExistsError, match=r"exists; choose another name, or .* --overwrite"):
        prepare([sources], out, SMALL)
    write(sources, new=light(9))
    assert len(prepare([sources], out, SMALL, overwrite=True).manifest["pictures"]) == 4
    assert len(find_images(out)) == 4
    (tmp_path / "empty").mkdir()
    prepare([sources], tmp_path / "empty", SMALL, overwrite=True)
    (tmp_path / "file").write_text("precious")
    for precious in (sources, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="neither a prepared set nor an empty folder"):
            prepare([sources], precious, SMALL, overwrite=True)
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(FileNotFoundError, match="create it first"):
        prepare([sources], tmp_path / "no" / "set", SMALL)
