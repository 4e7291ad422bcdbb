"""Help of every command, the program that starts them, and what is suggested for a wrong name."""

import contextlib
import importlib
import io
import re
import subprocess
import sys

import pytest
from absl import flags
from networks import ROOT, run

from alexnet_jax import __main__ as program
from alexnet_jax import __version__
from alexnet_jax.config import Config, as_dict
from alexnet_jax.system import cli, help, suggest

COMMANDS = list(program.COMMANDS)


def defined(name: str) -> flags.FlagValues:
    """The flags of a command."""
    options = flags.FlagValues()
    importlib.import_module(program.COMMANDS[name]).COMMAND.define(options)
    return options


def sections(shown: str) -> dict[str, list[str]]:
    """The lines of a help by the title above them."""
    found: dict[str, list[str]] = {"": []}
    for line in shown.splitlines():
        if re.fullmatch(r"[A-Z][a-z ]+", line):
            found[line] = []
        else:
            list(found.values())[-1].append(line)
    return found


def shown_flags(lines: list[str]) -> list[str]:
    """The names of the flags that begin a line."""
    return [match[1] for line in lines if (match := re.match(r"  --(?:\[no\])?(\w+)", line))]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_every_flag_of_the_command_once_in_its_group(name):
    result = run(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    found = sections(result.stdout)
    titles = ["", "Flags of this command", *(group.capitalize() for group in help.GROUPS), "Everywhere"]
    assert list(found) == [title for title in titles if title in found]
    assert ("Flags of this command" in found) == (name != "train")
    ours = [flag for title, lines in found.items() if title != "Everywhere" for flag in shown_flags(lines)]
    old_names = {"mirror", "lot"}
    assert sorted(ours) == sorted(set(defined(name)) - old_names)
    assert shown_flags(found["Everywhere"]) == ["flagfile", "help"]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert f"\n    python -m alexnet_jax.{name} " in result.stdout
    assert not re.search(r" \n|`\w+=|undefok|repeat this option|<\w+\|", result.stdout)


def test_the_groups_are_those_of_the_config():
    found = sections(run("train", "--help").stdout)
    groups = {title: shown_flags(lines) for title, lines in found.items()}
    assert list(as_dict(Config())) == [flag for title in help.GROUPS for flag in groups[title.capitalize()]]
    for flag, title in {
        "workdir": "Run", "seed": "Run", "architecture": "Network", "init_layers": "Network", "dataset": "Data",
        "fold": "Data", "batch_size": "Optimiser", "freeze": "Optimiser", "epochs": "Schedule", "drop_epochs": "Schedule",
        "mesh": "Devices", "step_timeout": "Devices", "log_every": "Records", "keep": "Records",
    }.items():  # fmt: skip
        assert flag in groups[title]


def test_a_flag_whose_default_is_the_runs_says_so():
    shown = " ".join(run("evaluate", "--help").stdout.split())
    assert "examples per step over all devices (Section 5: 128); default: that of the run Devices" in shown
    assert "folder of the prepared sets, also at s3:// or gs://; default: that of the run Optimiser" in shown
    assert defined("evaluate")["batch_size"].default is None
    assert defined("convert")["data_dir"].default == "data"


def define_some(options: flags.FlagValues) -> None:
    """A flag of each kind."""
    flags.DEFINE_multi_string("workdir", [], "`folder` of a run; repeat it to compare", flag_values=options)
    flags.DEFINE_enum("format", "table", ("table", "jsonl"), "what is printed", flag_values=options)
    flags.DEFINE_enum("long_name_of_sets", "a", ("a", "b", "c", "d", "e"), "a set", flag_values=options)
    flags.DEFINE_integer("size", 256, "side in `pixels` of images (Section 2: 256)", flag_values=options, module_name="data")
    flags.DEFINE_float("decay", 5e-4, "decay " * 12 + "(Section 5: 0.0005)", flag_values=options, module_name="optimiser")
    flags.DEFINE_boolean("flip", True, "flip half of the images", options, module_name="data")
    flags.DEFINE_alias("mirror", "flip", options, module_name="data")
    flags.DEFINE_list("drops", ["25", "51"], "epochs of the drops", flag_values=options, module_name="schedule")
    flags.DEFINE_string("out", None, "`F.png` to draw into", flag_values=options)


SOME = """\
Draws. It draws a figure of each run, in colours that everybody can tell apart,
and of each layer.

    python -m alexnet_jax.draw --workdir=W

Flags of this command
  --workdir=FOLDER          folder of a run; repeat it to compare
  --format=table|jsonl      what is printed [default: table]
  --long_name_of_sets=NAME  a set; one of a, b, c, d, e [default: a]
  --out=F.png               F.png to draw into

Data
  --size=PIXELS             side in pixels of images (Section 2: 256)
                            [default: 256]
  --[no]flip                flip half of the images [default: yes]

Optimiser
  --decay=X                 decay decay decay decay decay decay decay decay
                            decay decay decay decay (Section 5: 0.0005)
                            [default: 0.0005]

Schedule
  --drops=TEXT              epochs of the drops [default: 25,51]

Everywhere
"""
ABOUT = """Draws. It draws a figure of each run, in colours that everybody can
    tell apart, and of each layer.

        python -m alexnet_jax.draw --workdir=W
    """


def help_of_some(*words: str, terminal: bool = False) -> str:
    """The help of a small command, as a pipe or a terminal gets it."""

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    with contextlib.redirect_stdout(Screen()) as stdout:
        assert cli.Command(ABOUT, define_some, lambda options: None)(words) == 0
    return stdout.getvalue()


def test_a_help_word_for_word():
    shown = help_of_some("--help")
    assert shown.startswith(SOME)
    assert shown == help_of_some("-h") == help_of_some("--size=3", "--help")


def test_what_absl_adds_is_in_the_full_help_alone():
    assert "--undefok=NAMES" not in help_of_some("--help")
    full = help_of_some("--helpfull")
    assert full.startswith(SOME)
    assert "\nOf absl\n" in full
    assert "  --undefok=NAMES" in full


def test_a_terminal_gets_colours_and_lines_of_its_width(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    plain, coloured = help_of_some("--help"), help_of_some("--help", terminal=True)
    assert max(map(len, plain.splitlines())) <= 60
    assert "\n\x1b[36m  --workdir=FOLDER\x1b[0m          folder of a run" in coloured
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    monkeypatch.setenv("COLUMNS", "300")
    assert max(map(len, help_of_some("--help", terminal=True).splitlines())) > 80
    assert max(map(len, help_of_some("--help").splitlines())) <= help.WIDEST


QUICKLY = """
import contextlib, importlib, io, sys, time
from alexnet_jax.__main__ import COMMANDS, overview
overview()
for name, module in COMMANDS.items():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert importlib.import_module(module).COMMAND(["--help"]) == 0
        assert importlib.import_module(module).COMMAND(["--lr=1"]) == 1
print(time.process_time())
large = {"jax", "numpy", "flax", "orbax", "matplotlib", "optuna", "tensorflow_datasets", "PIL", "alexnet_jax.run.open"}
print(*large & set(sys.modules))
"""


def test_help_and_a_wrong_flag_of_all_commands_together_take_a_second_and_import_nothing_large():
    done = subprocess.run([sys.executable, "-c", QUICKLY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    seconds, large = done.stdout.splitlines()
    assert float(seconds) < 1  # of the processor
    assert large == ""


def test_the_program_lists_its_commands_and_has_a_version(capsys):
    assert program.answer("--help") == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^  (\w+)  +[A-Z]", shown, re.MULTILINE) == COMMANDS
    assert max(map(len, shown.splitlines())) <= 80
    assert program.answer("--version") == 0
    assert capsys.readouterr().out == f"alexnet_jax {__version__}\n"
    assert program.answer("evalute") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: evalute is not a command: did you mean evaluate? the commands are prepare, train")


def test_the_program_runs_a_command_and_says_how_it_was_started(monkeypatch, capsys):
    done = subprocess.run(
        [sys.executable, "-m", "alexnet_jax", "report", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, run("report", "--help").stdout, "")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/alexnet"])
    assert "\n    alexnet report --workdir=runs/first\n" in run("report", "--help").stdout
    program.answer("--help")
    shown = capsys.readouterr().out
    assert shown.endswith("    alexnet train --flagfile=quickstart.cfg --workdir=runs/first\n")
    assert "python -m" not in shown


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        ("train", "--lr=0.1", "--learning_rate"),
        ("train", "--learning-rate=0.1", "--learning_rate"),
        ("train", "--colour-noise=none", "--colour_noise"),
        ("train", "--LR=0.1", "--learning_rate"),
        ("train", "--bs=8", "--batch_size"),
        ("train", "--wd=0", "--weight_decay"),
        ("train", "--gpus=2", "--mesh or --host_devices"),
        ("train", "--momentun=0.9", "--momentum"),
        ("train", "--nofilp", "--noflip"),
        ("train", "--drop=1", "--drop_epochs or --drop_factor or --dropout"),
        ("evaluate", "--veiws=10", "--views"),
        ("evaluate", "--ckpt=3", "--step or --workdir"),
        ("sweep", "--n_trials=3", "--trials"),
        ("report", "--output=a.html", "--out or --workdir"),
        ("predict", "--lr=0.1", ""),
    ],
)
def test_an_unknown_flag_suggests_what_was_meant(command, typed, meant):
    result = run(command, typed)
    name = typed.partition("=")[0]
    question = f": did you mean {meant}?" if meant else ":"
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {name} is not a flag of this command{question} --help lists its flags\n"


def test_other_programs_names_lead_to_flags_that_there_are():
    known = {flag for name in COMMANDS for flag in defined(name)}
    for other, ours in suggest.OTHER_NAMES.items():
        assert other not in known or other in ours
        assert set(ours) <= known
