"""The help of the command line: its width, the page made of it, and completion in a shell."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dkpn import cli
from dkpn.commands.manual import COLUMNS, manual

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
COMMANDS = sorted(cli.NEEDED_PACKAGES)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse lays help out in another way")
def test_the_page_is_what_the_help_says():
    assert PAGE.read_text(encoding="utf-8") == manual(), "run: make cli-page"


def test_the_page_has_every_command_and_no_line_is_too_long():
    page = manual()
    for command in COMMANDS:
        assert f"## dkpn {command}\n" in page
    helps = page.partition("## dkpn\n")[2]
    assert max(map(len, helps.splitlines())) <= COLUMNS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_has_a_help_text(command):
    parser = cli.parsers()[1][command]
    assert parser.description
    for action in parser._actions:
        assert action.help, action.dest
        assert not action.help.endswith(".")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_is_printed(shell, capsys):
    pytest.importorskip("shtab", reason="makes the scripts")
    assert cli.main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS:
        assert command in script
    assert "skip-existing" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dkpn", "rec"], "reconstruct"),
        (["dkpn", "reconstruct", "--skip"], "--skip-existing"),
        (["dkpn", "reconstruct", "--format", "av"], "avif"),
        (["dkpn", "reconstruct", "holi"], "holiday.jpg"),
        (["dkpn", "view", "--weights", "holi"], "holiday.jpg"),
    ],
)
def test_bash_completes(words, expected, capsys, tmp_path):
    pytest.importorskip("shtab", reason="makes the script")
    assert cli.main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    (tmp_path / "holiday.jpg").touch()
    quoted = " ".join(f"'{word}'" for word in words)
    call = (
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_dkpn; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{call}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert expected in done.stdout.split()


def test_without_shtab_it_is_said_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["--print-completion", "bash"]) == 2
    assert capsys.readouterr().err.startswith("dkpn: shtab is needed")
    assert cli.main(["--print-completion", "fish"]) == 2
