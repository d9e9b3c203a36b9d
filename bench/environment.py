"""What a run was made on and with: hardware, driver, versions, state of the sources."""

import hashlib
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import kpnops

ROOT = Path(__file__).resolve().parents[1]
# Words of a GPU's name that tell memory or form, not model.
_FORM = re.compile(r"\d+GB|HBM\w*|SXM\d*|PCIE?|NVL", re.IGNORECASE)


@dataclass(frozen=True)
class Hardware:
    """What the rows were measured on."""

    kind: str  # "cpu" or "cuda"
    name: str  # of the CPU or the GPU that ran the rows
    cpu: str
    cores: int
    threads: int  # that PyTorch used
    memory_bytes: int  # of the device


def hardware_of(device: torch.device) -> Hardware:
    """Return what the rows of a device are measured on.

    Args:
        device: a CPU or a GPU.

    Returns:
        Names, cores and memory.
    """
    cpu = _cpu_model()
    if device.type == "cpu":
        name = cpu
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    return Hardware(device.type, name, cpu, os.cpu_count() or 1, torch.get_num_threads(), memory)


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def file_name(hardware: Hardware) -> str:
    """Return what results of this hardware are called, without an ending.

    Args:
        hardware: of a run.

    Returns:
        Such as `nvidia-h200` for an "NVIDIA H200", `cpu-2core` for a CPU of two cores.
    """
    if hardware.kind == "cpu":
        return f"cpu-{hardware.cores}core"
    words = [word for word in hardware.name.split() if not _FORM.fullmatch(word)]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, where they are installed."""
    found = {
        "python": platform.python_version(),
        "system": platform.system(),
        "kpnops": kpnops.__version__,  # also where the package runs from its folder
        "torch": torch.__version__,  # its local part tells the CPU build from CUDA's
    }
    for package in ("triton", "numpy", "ddf"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    toolkit = torch.version.cuda or torch.version.hip
    if toolkit is not None:
        found["toolkit"] = toolkit
    return found


def driver_version(device: torch.device) -> str | None:
    """Return the version of NVIDIA's driver, None on a CPU or where nothing tells it."""
    if device.type == "cpu":
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        text = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return text.splitlines()[0].strip() if text.strip() else None


@cache
def commit() -> str:
    """Return the commit of the working tree, with a "+" where files differ from it.

    The environment variable COMMIT says it where there is no git; else it is "unknown".
    """
    given = os.environ.get("COMMIT")
    if given:
        return given
    try:
        short = _git("rev-parse", "--short", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", "kpnops", "bench").strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return short + ("+" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


@cache
def source_digest() -> str:
    """Return 12 hexadecimal digits that change with the library's sources and with nothing else.

    Rows measured from the same sources need no second measurement, whatever else was committed.
    """
    digest = hashlib.sha256()
    folder = Path(kpnops.__file__).parent
    for path in sorted(folder.rglob("*.py")) + sorted(folder.rglob("*.json")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
