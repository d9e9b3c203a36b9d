"""Train configurations with the same budget each, judge them on the same images, write one table.

``python -m dkpn.ablation --data DIR --val DIR --out OUT --minutes M`` takes the configurations that
the package brings (``dkpn/configs``), or those named behind it, one after the other. The output
folder holds:

=======================  =================================================================
``NAME/``                 the training run of a configuration, see :mod:`dkpn.train`
``NAME/per_image.csv``    the numbers of each image, ``NAME/ablation.json`` their means
``table.md``              one row for each configuration, ``table.csv`` the same numbers
=======================  =================================================================

What is done is not done again: the same command goes on where it was stopped.
"""

import argparse
import csv
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dkpn.checkpoint import latest_checkpoint, read_json, write_json
from dkpn.columns import COLUMNS, JUDGED
from dkpn.commands.common import DONE, FILE_FAILED, WRONG_USE, UsageError, add_device, usable_device
from dkpn.config import config_differences
from dkpn.data import evaluation_pairs, find_images
from dkpn.evaluate import evaluate
from dkpn.hdr_io import write_atomically
from dkpn.model import DKPN
from dkpn.report import CAMERA_ORACLE, LDR, Evaluation
from dkpn.run_config import CONFIGS, RunConfig, find_config, read_run_config
from dkpn.run_folder import find_resume
from dkpn.schedule import StopRequest
from dkpn.train import train
from dkpn.training_data import spread, training_data

RESULT = "ablation.json"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all configurations have in common.

    Args:
        data: folder of HDR images to train on.
        val: folder of HDR images to judge on, which training only watches.
        out: the output folder.
        images: largest number of images judged, spread over all there are.
        device: torch device.
    """

    data: Path
    val: Path
    out: Path
    images: int
    device: str


def run_one(name: str, config: RunConfig, setting: Setting, stop: StopRequest) -> None:
    """Train and judge one configuration, unless that is done; what is begun goes on.

    Args:
        name: of the configuration, and of its folder.
        config: all choices.
        setting: data, output folder and device.
        stop: asked after every iteration; a run that was stopped is not judged.

    Raises:
        ValueError: the folder holds a run with other choices, or an image cannot be used.
        FloatingPointError: the training did not stay finite.
        OSError: a file cannot be read or written.
    """
    folder = setting.out / name
    choices = json.loads(json.dumps(dataclasses.asdict(config)))
    if (folder / RESULT).is_file():
        before = read_json(folder / RESULT)["config"]
        if before != choices:
            tables = (config_differences(before[table], choices[table]) for table in choices)
            differences = "; ".join(itertools.chain(*tables))
            raise ValueError(
                f"{folder}: holds a result with other choices (then and now: {differences}); "
                "remove it, or choose another folder with --out"
            )
        return
    pairs, validation = training_data(config, setting.data, setting.val, setting.device)
    resume, device = find_resume(folder, "auto"), setting.device
    model = train(config, pairs, validation, folder, resume=resume, device=device, stop=stop)
    if stop.requested:
        return
    files = spread(find_images(setting.val), setting.images)
    evaluation = evaluate(evaluation_pairs(setting.val, files), {name: model.infer})
    evaluation.write_csv(folder / "per_image.csv")
    write_json(folder / RESULT, {"config": choices} | _summary(name, model, folder, evaluation))


def _summary(name: str, model: DKPN, folder: Path, evaluation: Evaluation) -> dict[str, Any]:
    """What the table shows of a configuration, as plain numbers."""
    checkpoint = latest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None  # train() has written one
    state = read_json(checkpoint / "state.json")
    scores = {
        method: {
            column: {"mean": evaluation.mean(method, column)}
            | dataclasses.asdict(evaluation.over(method, column), dict_factory=_over)
            for column in JUDGED
        }
        for method in evaluation.methods
    }
    return {
        "images": len(evaluation.values(LDR, JUDGED[0])),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "iterations": state["iteration"],
        "seconds": state["seconds"],
        "scores": {"result": scores[name], LDR: scores[LDR], CAMERA_ORACLE: scores[CAMERA_ORACLE]},
    }


def _over(fields: list[tuple[str, float]]) -> dict[str, float | None]:
    """Fields of a difference to the LDR row; there is no interval over a single scene."""
    return {f"over_{name}": None if math.isnan(value) else value for name, value in fields}


def write_tables(results: Mapping[str, Mapping[str, Any]], out: Path) -> str:
    """Write ``table.md`` and ``table.csv``.

    Args:
        results: what :func:`run_one` wrote, by the names of the configurations; at least one.
        out: the output folder.

    Returns:
        The text of ``table.md``.
    """
    first = next(iter(results.values()))
    headings = ["configuration", "parameters", "iterations", "minutes"]
    headings += [COLUMNS[column].heading for column in JUDGED]
    ldr = [f"{first['scores'][LDR][column]['mean']:.2f} dB" for column in JUDGED]
    oracle = [_cell(first["scores"][CAMERA_ORACLE][column]) for column in JUDGED]
    rows = [[LDR, "", "", "", *ldr], [CAMERA_ORACLE, "", "", "", *oracle]]
    for name, result in results.items():
        cells = [_cell(result["scores"]["result"][column]) for column in JUDGED]
        minutes = f"{result['seconds'] / 60:.1f}"
        rows.append(
            [name, f"{result['parameters']:,}", f"{result['iterations']:,}", minutes, *cells]
        )
    lines = [
        f"PU21-PSNR in dB on {first['images']} images: the {LDR} row itself, and by how much the "
        "others pass it, with the 95 % interval over scenes.",
        "",
        *("| " + " | ".join(row) + " |" for row in (headings, ["---"] + ["---:"] * 7, *rows)),
    ]
    text = "\n".join(lines) + "\n"
    write_atomically(out / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    write_atomically(out / "table.csv", lambda path: _write_csv(results, path))
    return text


def _cell(score: Mapping[str, float | None]) -> str:
    text = f"{score['over_mean']:+.2f}"
    if score["over_low"] is None:
        return text
    return f"{text} [{score['over_low']:+.2f}, {score['over_high']:+.2f}]"


def _write_csv(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    plain = ("parameters", "iterations", "seconds", "images")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        first = next(iter(results.values()))["scores"]["result"]
        scores = [(column, number) for column in JUDGED for number in first[column]]
        writer.writerow(["configuration", *plain, *(f"{c}_{number}" for c, number in scores)])
        for name, result in results.items():
            values = [result["scores"]["result"][column][number] for column, number in scores]
            writer.writerow([name, *(result[field] for field in plain), *values])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ablation from the command line; returns the exit code, as of ``dkpn train``."""
    options = _parser().parse_args(arguments)
    stop, failed, results = StopRequest(), [], {}
    try:
        setting = Setting(
            options.data, options.val, options.out, options.images, usable_device(options.device)
        )
        configs = _configurations(options)
        for folder in (options.data, options.val):
            find_images(folder)
    except (UsageError, OSError, ValueError, TypeError) as error:
        print(f"dkpn.ablation: {error}", file=sys.stderr)
        return WRONG_USE
    with stop.listening():
        for name, config in configs.items():
            print(f"{name} ({len(results) + len(failed) + 1} of {len(configs)})")
            try:
                run_one(name, config, setting, stop)
            except (OSError, ValueError, FloatingPointError) as error:
                # The other configurations may still be worth their time.
                failed.append(name)
                print(f"dkpn.ablation: {name}: {error}", file=sys.stderr)
                continue
            if stop.requested:
                print("stopped; the same command goes on from here")
                return 128 + stop.number
            results[name] = read_json(setting.out / name / RESULT)
            table = write_tables(results, setting.out)
    if results:
        print(table)
    if failed:
        print(f"dkpn.ablation: failed: {', '.join(failed)}", file=sys.stderr)
    return FILE_FAILED if failed else DONE


def _configurations(options: argparse.Namespace) -> dict[str, RunConfig]:
    """The configurations by name, each with the budget of the command line."""
    budget = {"iterations": options.iterations, "minutes": options.minutes}
    given = {name: value for name, value in budget.items() if value is not None}
    if not given:
        raise UsageError("expected a budget for each configuration: --minutes or --iterations")
    shipped = sorted(CONFIGS.glob("*.toml"), key=lambda path: (path.stem != "default", path.stem))
    configs = {}
    for path in options.configs or shipped:
        config = read_run_config(path, options.base)
        configs[find_config(path).stem] = dataclasses.replace(
            config, train=dataclasses.replace(config.train, **given)
        )
    return configs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dkpn.ablation",
        description="Train configurations with the same budget each and judge them in one table.",
    )
    add = parser.add_argument
    add(
        "configs",
        nargs="*",
        type=Path,
        metavar="CONFIG",
        help="TOML files, or names of those that dkpn brings; default: all that it brings",
    )
    add("--data", type=Path, required=True, metavar="DIR", help="HDR images to train on")
    add("--val", type=Path, required=True, metavar="DIR", help="HDR images to judge on")
    add("--out", type=Path, default=Path("runs/ablation"), metavar="OUT")
    add("--minutes", type=float, metavar="M", help="of training, for each configuration")
    add("--iterations", type=int, metavar="N", help="optimizer steps, for each configuration")
    add("--base", type=Path, metavar="FILE.toml", help="what the configurations leave open")
    add("--images", type=int, default=1_000_000, metavar="N", help="judge on at most so many")
    add_device(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
