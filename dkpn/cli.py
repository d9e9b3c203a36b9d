"""The command ``dkpn``: train, reconstruct, evaluate.

Exit codes: 0 all done; 1 a file failed; 2 wrong arguments, configuration or weights, or a missing
package. Only the standard library is imported before it is known that the extra is installed.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dkpn.config import TrainConfig  # the standard library is all that it needs

if TYPE_CHECKING:
    from dkpn.model import DKPN
    from dkpn.train import RunConfig

# What the command needs beyond the core: name to import, name to install.
EXTRA_PACKAGES = {
    "safetensors": "safetensors",
    "PIL": "pillow",
    "imagecodecs": "imagecodecs",
    "OpenEXR": "OpenEXR",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
}
HOW_TO_TRAIN = (
    "no weights are shipped yet; train some with\n"
    "  dkpn train --data FOLDER_OF_HDR_IMAGES --out runs/first\n"
    "and pass --weights runs/first"
)
DONE, FILE_FAILED, WRONG_USE = 0, 1, 2


class UsageError(Exception):
    """Wrong arguments, configuration or weights; its text is shown without a traceback."""


def entry_point() -> int:
    """Run the installed command ``dkpn``; say what to install where its extra is missing."""
    missing = [name for module, name in EXTRA_PACKAGES.items() if not _is_installed(module)]
    if missing:
        print(
            f'dkpn needs {", ".join(missing)}: pip install "kpnops[dkpn]"',
            file=sys.stderr,
        )
        return WRONG_USE
    return main()


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # a module that is loaded without a specification
        return module in sys.modules


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: words after ``dkpn``; None: those of the process.

    Returns:
        The exit code.
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its message, or the help
        return stop.code if isinstance(stop.code, int) else WRONG_USE
    try:
        return options.run(options)
    except UsageError as error:
        print(f"dkpn {options.command}: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print(f"dkpn {options.command}: interrupted", file=sys.stderr)
        return FILE_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dkpn",
        description="One 8-bit photo in, an HDR image out: linear Rec.709, 1.0 = the photo's clip "
        "level, taken as diffuse white, 203 cd/m².",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="train a network on HDR images"))
    _add_reconstruct(commands.add_parser("reconstruct", help="turn photos into HDR images"))
    _add_evaluate(commands.add_parser("evaluate", help="measure a network on HDR images"))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a network. Photos are made from the HDR images on the fly by a virtual camera. "
        "Ctrl-C saves a checkpoint; go on with --resume auto."
    )
    parser.set_defaults(run=_train)
    add = parser.add_argument
    defaults = TrainConfig()
    add("--data", type=Path, metavar="DIR", help="HDR images (.hdr, .exr); default: generated")
    add("--val", type=Path, metavar="DIR", help="HDR images; default: a tenth of --data's scenes")
    add("--config", type=Path, metavar="FILE.toml", help="all choices; the options below override")
    add(
        "--out",
        type=Path,
        default=Path("runs/dkpn"),
        metavar="RUN",
        help="folder of the run (default: %(default)s)",
    )
    add("--resume", metavar="auto|PATH", help="go on from the newest checkpoint of RUN, or PATH")
    add(
        "--iterations",
        type=int,
        metavar="N",
        help=f"optimizer steps (default: {defaults.iterations})",
    )
    add("--minutes", type=float, metavar="M", help="end after so many minutes of training, too")
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"samples a step (default: {defaults.batch_size})",
    )
    add("--crop-size", type=int, metavar="PIXELS", help="side of a training crop")
    add(
        "--learning-rate",
        type=float,
        metavar="X",
        help=f"after the warm-up (default: {defaults.learning_rate})",
    )
    add(
        "--workers",
        type=int,
        metavar="N",
        help=f"processes that make training pairs (default: {defaults.workers})",
    )
    add("--seed", type=int, metavar="N", help="of the first weights and of the training pairs")
    _add_device(parser)


def _add_reconstruct(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reconstruct HDR images from photos. Results are linear Rec.709, float32, 1.0 = the "
        "photo's clip level = 203 cd/m²; a tone-mapped preview lies beside each."
    )
    parser.set_defaults(run=_reconstruct)
    add = parser.add_argument
    add("photos", nargs="+", type=Path, metavar="PHOTO", help="JPEG or PNG file")
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="with .exr or .hdr: the file, for one photo; without suffix: a folder, created if "
        "absent, for <stem>.exr and <stem>_preview.png of each photo",
    )
    add("--weights", type=Path, metavar="W", help="model.safetensors, or a folder that holds it")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    _add_device(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Photograph HDR images with a virtual camera that the path of each decides, reconstruct "
        "them, and print PU21-PSNR in dB beside the LDR input and the camera oracle."
    )
    parser.set_defaults(run=_evaluate)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="HDR images (.hdr, .exr)")
    add("--weights", type=Path, metavar="W", help="model.safetensors, or a folder that holds it")
    add("--out", type=Path, metavar="DIR", help="write per_image.csv and table.md there")
    add("--save-inputs", type=Path, metavar="DIR", help="write the JPEG inputs there")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help='torch device, e.g. "cpu" or "cuda:1"; default: a GPU where there is one',
    )


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: cannot be used ({error})") from None
    return name


def _load_weights(options: argparse.Namespace) -> "DKPN":
    from dkpn.checkpoint import load_weights

    if options.weights is None:
        raise UsageError(f"--weights is missing: {HOW_TO_TRAIN}")
    try:
        model = load_weights(options.weights)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--weights: {error}") from None
    return model.to(_device(options.device))


def _reconstruct(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from dkpn.infer import plan_reconstructions, reconstruct_file

    try:
        plan = plan_reconstructions(options.photos, options.output, options.overwrite)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    model = _load_weights(options)
    if not options.output.suffix:
        options.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for entry in tqdm(plan, unit="photo", disable=len(plan) == 1):
        try:
            reconstruct_file(model, entry)
        except (OSError, ValueError, MemoryError) as error:
            failed += 1
            tqdm.write(f"dkpn reconstruct: {error}", file=sys.stderr)
        else:
            tqdm.write(f"{entry.hdr}  {entry.preview}")
    if failed and len(plan) > 1:
        print(f"dkpn reconstruct: {failed} of {len(plan)} photos failed", file=sys.stderr)
    return FILE_FAILED if failed else DONE


def _train(options: argparse.Namespace) -> int:
    from dkpn.train import (
        StopRequest,
        find_resume,
        keep_config_file,
        leave_cores_to,
        train,
        training_data,
    )

    if options.val is not None and options.data is None:
        raise UsageError("--val without --data; generated scenes bring their own validation")
    device = _device(options.device)
    try:
        config = _run_config(options)
        resume = find_resume(options.out, options.resume)
        pairs, validation = training_data(config, options.data, options.val)
        if options.config is not None:
            keep_config_file(options.config, options.out)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    if device == "cpu":
        leave_cores_to(config.train.workers)
    stop = StopRequest()
    with stop.listening():
        try:
            train(config, pairs, validation, options.out, resume=resume, device=device, stop=stop)
        except (OSError, ValueError) as error:
            raise UsageError(str(error)) from None
    if stop.requested:
        print(f"stopped; go on with --out {options.out} --resume auto")
    print(f"weights: {options.out / 'model.safetensors'}")
    return DONE


def _run_config(options: argparse.Namespace) -> "RunConfig":
    """The configuration file, or the defaults, with the command line's own values over it."""
    from dkpn.train import RunConfig, read_run_config

    config = RunConfig() if options.config is None else read_run_config(options.config)
    names = ("iterations", "minutes", "batch_size", "learning_rate", "workers", "seed")
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **given))
    if options.crop_size is not None:
        data = dataclasses.replace(config.data, crop_size=options.crop_size)
        config = dataclasses.replace(config, data=data)
    return config


def _evaluate(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from dkpn.data import find_images
    from dkpn.evaluate import evaluate
    from dkpn.hdr_io import write_atomically

    try:
        count = len(find_images(options.data))
    except (OSError, ValueError) as error:
        raise UsageError(f"--data: {error}") from None
    for name, folder in (("--out", options.out), ("--save-inputs", options.save_inputs)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UsageError(f"{name} {folder}: is a file, expected a folder")
    model = _load_weights(options)
    try:
        with tqdm(total=count, unit="image") as bar:
            evaluation = evaluate(
                options.data,
                {"DKPN": model.infer},
                save_inputs=options.save_inputs,
                progress=lambda _: bar.update(),
            )
    except (OSError, ValueError) as error:
        print(f"dkpn evaluate: {error}", file=sys.stderr)
        return FILE_FAILED
    table = evaluation.table()
    print(table)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        evaluation.write_csv(options.out / "per_image.csv")
        write_atomically(
            options.out / "table.md",
            lambda path: path.write_text(table + "\n", encoding="utf-8"),
        )
    return DONE
