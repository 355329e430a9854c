"""The command line itself: help, completion, mistakes in one line with exit code 2."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata

import pytest

from penn_jax.cli import main
from penn_jax.completion import SHELLS
from penn_jax.config import Config, to_json
from penn_jax.options import COMMANDS, build_parser


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_json(Config())))
    return str(path)


def _error(capsys, *arguments):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.startswith("penn: error: ")
    assert said.err.count("\n") == 1
    return said.err


def test_unknown_commands_and_options(capsys, config):
    assert "invalid choice: 'fly'" in _error(capsys, "fly")
    assert "required" in _error(capsys)
    assert "--data" in _error(capsys, "train", config, "--out", "x")
    assert "unknown option --speed" in _error(capsys, "evaluate", "a", "b", "--speed")


def test_folders_that_are_not_there(capsys, tmp_path, config):
    gone, out = str(tmp_path / "gone"), str(tmp_path / "out")
    assert "gone" in _error(capsys, "prepare", gone, out)
    assert "gone" in _error(capsys, "train", config, "--data", gone, "--out", out)
    assert "gone" in _error(capsys, "predict", gone, gone, "--out", out)
    assert "gone" in _error(capsys, "evaluate", gone, gone)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (["--optim.learnin-rate", "0.1"], "learnin-rate"),
        (["--optim.learning-rate", "fast"], "fast"),
        (["--optim.learning-rate", "-1"], "optim.learning_rate = -1.0"),
        (["--model.stem", "3"], "stem"),
        (["--max-steps", "-5"], "train.max_steps = -5"),
    ],
)
def test_overrides_that_do_not_fit(capsys, tmp_path, config, override, said):
    line = _error(
        capsys, "train", config, "--data", str(tmp_path), "--out", str(tmp_path / "o"), *override
    )
    assert said in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("config = 3", "sets no config"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("1 +", "SyntaxError"),
    ],
)
def test_config_files_that_do_not_fit(capsys, tmp_path, text, said):
    path = tmp_path / "config.py"
    path.write_text(text)
    line = _error(capsys, "train", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "o"))
    assert said in line
    assert "config.py" in line


def test_a_config_file_with_an_unknown_key(capsys, tmp_path):
    values = to_json(Config())
    values["model"]["depth"] = 7
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    line = _error(capsys, "train", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "o"))
    assert "model.depth = 7" in line


def test_bad_spacing(capsys, tmp_path):
    assert "--spacing" in _error(
        capsys, "prepare", str(tmp_path), str(tmp_path / "o"), "--spacing", "1", "wide"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_help_ends_with_an_example_that_parses(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command.name, "--help"])
    assert stop.value.code == 0
    _, end = capsys.readouterr().out.split("\nexample: ")
    lines = [line.strip() for line in end.strip().split("\n")]
    assert lines == [*command.examples]
    for line in lines:
        penn, *words = shlex.split(line.split(" > ")[0])  # what follows is the shell's
        assert (penn, words[0]) == ("penn", command.name)
        options = build_parser().parse_args(words)
        assert options.command is command.run


@pytest.mark.parametrize(
    ("words", "times"),
    [("train gone.py --data gone --out gone", 1), ("predict gone gone --out gone", 0)],
)
def test_a_training_command_of_a_shell_asks_for_huge_pages(monkeypatch, words, times):
    begun = []
    monkeypatch.setattr("penn_jax.cli.start_with_huge_pages", lambda: begun.append(words))
    monkeypatch.setattr(sys, "argv", ["penn", *words.split()])
    assert main() == 2
    assert begun == [words] * times
    assert main(words.split()) == 2  # a caller from Python keeps its process
    assert begun == [words] * times


def test_the_help_of_the_whole_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert said.endswith("\nexample: penn demo --out demo\n")
    assert re.findall(r"^    (\w+)", said, re.MULTILINE) == [c.name for c in COMMANDS]
    assert {"demo", "train", "predict", "report", "doctor"} <= {c.name for c in COMMANDS}


def test_all_but_what_has_no_result_can_be_quiet_and_speak_json():
    without = set()
    for command in COMMANDS:
        words = [*shlex.split(command.examples[0].split(" > ")[0])[1:], "--quiet", "--json"]
        options, unknown = build_parser().parse_known_args(words)
        assert (options.quiet, options.json) == (not unknown, not unknown)
        without |= {command.name} if unknown else set()
    assert without == {"view", "completion"}


def test_mistakes_are_one_line_on_stderr_for_programs_too(capsys, tmp_path, config):
    gone = str(tmp_path / "gone")
    assert "gone" in _error(capsys, "evaluate", gone, gone, "--json")
    assert "gone" in _error(capsys, "train", config, "--data", gone, "--out", gone, "--json")
    assert "invalid int value" in _error(capsys, "prepare", "a", "b", "--seed", "x", "--json")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"penn_jax {metadata.version('penn-jax')}\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_choices(capsys, tmp_path):
    pytest.importorskip("shtab", reason="penn-jax[completion] is not installed")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "penn"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "scans").mkdir()

    def completed(*words):
        line = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        line += f"_shtab_penn penn '{words[-1]}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        command = ["bash", "--norc", "-c", line]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return set(answer.stdout.split())

    assert completed("penn", "pre") == {"prepare", "pretrain", "predict"}
    assert completed("penn", "predict", "--dicom") == {"--dicom-seg"}
    assert completed("penn", "predict", "--engine", "o") == {"onnxruntime"}
    assert completed("penn", "predict", "sc") == {"scans"}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_that_names_every_command(capsys, shell):
    pytest.importorskip("shtab", reason="penn-jax[completion] is not installed")
    assert main(["completion", shell]) == 0
    said, error = capsys.readouterr()
    assert error == ""
    assert all(re.search(rf"\b{command.name}\b", said) for command in COMMANDS)
    assert "smallest-component" in said


def test_completion_without_shtab_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'penn-jax[completion]'" in _error(capsys, "completion", "bash")


def test_help_does_not_import_jax():
    code = "import sys, penn_jax.options as o; o.build_parser(); print('jax' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


def test_a_full_disk_or_a_locked_folder_is_one_line(capsys, monkeypatch, tmp_path, config):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "locked"))

    monkeypatch.setattr("penn_jax.evaluate.evaluate", refuse)
    line = _error(capsys, "evaluate", str(tmp_path), str(tmp_path))
    assert "locked: Permission denied" in line
