"""``dkpn evaluate``: measure a network, and other methods' results, on HDR images."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dkpn.commands.common import (
    DONE,
    FILE_FAILED,
    UsageError,
    add_device,
    add_weights,
    chosen_weights,
)

if TYPE_CHECKING:
    from dkpn.evaluate import Method, Pair
    from dkpn.pairs import SavedResults
    from dkpn.report import Evaluation

NETWORK = "DKPN"
PRELIMINARY = "preliminary only"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Photograph HDR images with a virtual camera that the path of each decides (or take your "
        "own photos of them), reconstruct them, and print PU21-PSNR in dB and other measures "
        "beside the LDR input and the camera oracle."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="HDR images (.hdr, .exr)")
    add(
        "--inputs",
        type=Path,
        metavar="DIR",
        help="your own photos of them (.jpg, .png, 8 bits), matched by equal stem",
    )
    add(
        "--results",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another method's results (.exr, .hdr, .npy), matched by equal stem; repeatable",
    )
    add_weights(parser)
    add(
        "--no-network",
        action="store_true",
        help="judge the results of --results alone",
    )
    add(
        "--metrics",
        nargs="+",
        metavar="M",
        help="columns to show: gain, crf, clipped, clipped_crf, mu_law, ssim, ssim_crf, flip, "
        "flip_crf, cvvdp, cvvdp_crf; default: the first four and ssim",
    )
    add("--out", type=Path, metavar="DIR", help="write per_image.csv and table.md there")
    add("--save-inputs", type=Path, metavar="DIR", help="write the JPEG inputs there")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from tqdm import tqdm

    from dkpn.columns import DEFAULT, check_columns
    from dkpn.evaluate import evaluate

    for name, folder in (("--out", options.out), ("--save-inputs", options.save_inputs)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UsageError(f"{name} {folder}: is a file, expected a folder")
    metrics = tuple(options.metrics or DEFAULT)
    try:
        check_columns(metrics)
    except (ValueError, ModuleNotFoundError) as error:
        raise UsageError(f"--{error}") from None
    names, pairs = _pairs(options)
    results = _results(options.results, names)
    methods = _methods(options)
    _make_folders(options)
    try:
        with tqdm(total=len(names), unit="image") as bar:
            evaluation = evaluate(
                pairs,
                methods,
                results=results,
                metrics=metrics,
                save_inputs=options.save_inputs,
                progress=lambda _: bar.update(),
            )
    except (OSError, ValueError) as error:
        print(f"dkpn evaluate: {error}", file=sys.stderr)
        return FILE_FAILED
    try:
        _write(evaluation, options.out)
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"dkpn evaluate: --out {options.out}: {error.strerror or error}", file=sys.stderr)
        return FILE_FAILED
    return DONE


def _make_folders(options: argparse.Namespace) -> None:
    """Before the work, not after it."""
    for name, folder in (("--out", options.out), ("--save-inputs", options.save_inputs)):
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or error
                raise UsageError(f"{name} {folder}: cannot be made ({reason})") from None


def _pairs(options: argparse.Namespace) -> tuple[list[str], "Iterable[Pair]"]:
    """The names of the images, and their pairs."""
    from dkpn.data import evaluation_pairs, find_images
    from dkpn.pairs import match_pairs, own_pairs

    if options.inputs is None:
        try:
            files = find_images(options.data)
            return [path.stem for path in files], evaluation_pairs(options.data, files)
        except (OSError, ValueError) as error:
            raise UsageError(f"--data: {error}") from None
    if options.save_inputs is not None:
        raise UsageError("--save-inputs: the photos of --inputs are files already; leave it out")
    try:
        names = [photo.stem for photo, _ in match_pairs(options.inputs, options.data)]
        return names, own_pairs(options.inputs, options.data)
    except (OSError, ValueError) as error:
        raise UsageError(f"--inputs, --data: {error}") from None


def _results(words: list[str], names: list[str]) -> "dict[str, SavedResults]":
    """The folders of ``--results``, each with a file for every image, by name of the method."""
    from dkpn.pairs import SavedResults
    from dkpn.report import CAMERA_ORACLE, LDR

    results: dict[str, SavedResults] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not (name and equals and folder):
            raise UsageError(f"--results {word}: expected NAME=DIR, e.g. ExpandNet=results/expand")
        if name in {LDR, CAMERA_ORACLE, NETWORK, PRELIMINARY, *results}:
            raise UsageError(f"--results {word}: there is a row {name!r} already; choose another")
        try:
            results[name] = SavedResults(folder)
            results[name].require(names)
        except (OSError, ValueError) as error:
            raise UsageError(f"--results {name}: {error}") from None
    return results


def _methods(options: argparse.Namespace) -> "dict[str, Method]":
    from dkpn.evaluate import preliminary_only

    if options.no_network:
        if not options.results and options.save_inputs is None:
            raise UsageError("--no-network: leaves nothing to judge; give --results NAME=DIR")
        if options.weights is not None:
            raise UsageError("--no-network: does not go with --weights; leave one of them out")
        return {}
    model = chosen_weights(options)
    return {PRELIMINARY: preliminary_only(model), NETWORK: model.infer}


def _write(evaluation: "Evaluation", out: Path | None) -> None:
    from dkpn.hdr_io import write_atomically

    table = evaluation.table()
    try:
        if out is not None:
            evaluation.write_csv(out / "per_image.csv")
            write_atomically(
                out / "table.md", lambda path: path.write_text(table + "\n", encoding="utf-8")
            )
    finally:
        # Last, so that the files are there even where the output's reader has gone.
        print(table)
