"""The page of the command line, from its help: ``python -m dkpn.commands.manual docs/cli.md``."""

import argparse
import sys
from functools import partial
from pathlib import Path

COLUMNS = 80

_HEAD = """# The command line

What `--help` says, at {columns} columns; `make cli-page` writes this page.
The commands are explained in [reconstruction.md](reconstruction.md), [training.md](training.md) and
[evaluation.md](evaluation.md).

| exit code | |
|---|---|
| 0 | all done |
| 1 | at least one file failed, or an output could not be written |
| 2 | wrong arguments, configuration, weights or packages: nothing was processed |
| 130 | interrupted by Ctrl-C; what was finished stays |

Completion of commands, options and file names, for `bash`, `zsh` or `tcsh`, as in `~/.bashrc`:

```bash
eval "$(dkpn --print-completion bash)"
```
"""


def manual() -> str:
    """Return the page, in Markdown."""
    from dkpn.cli import parsers

    parser, commands = parsers()
    parts = [_HEAD.format(columns=COLUMNS)]
    for name, one in (("dkpn", parser), *((f"dkpn {name}", c) for name, c in commands.items())):
        # argparse leaves two columns free.
        one.formatter_class = partial(argparse.HelpFormatter, width=COLUMNS - 2)
        parts.append(f"## {name}\n\n```text\n{one.format_help()}```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(manual(), encoding="utf-8")
