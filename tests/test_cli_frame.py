"""The command line as a frame: verbs, help, exit codes, and errors without a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

import hamnet
from hamnet.cli import main as frame
from hamnet.cli.main import main
from hamnet.errors import HamnetError, ReaderError

VERBS = ("check", "preprocess", "train", "evaluate", "texture", "predict", "solve", "fermi", "bands", "dos", "unfold")


@pytest.fixture
def verb(monkeypatch):
    """A verb whose work is the function that the test sets."""

    def install(work):
        module = SimpleNamespace(
            add_arguments=lambda parser: parser.add_argument("--model"), run=lambda args: work(args)
        )
        monkeypatch.setattr(frame, "import_module", lambda name: module)

    return install


def _raiser(error: BaseException):
    def work(args):
        raise error

    return work


def test_help_names_all_verbs_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in VERBS:
        assert re.search(rf"\n    {name}\s", text)
    assert "0 good, 1 a check failed, 2 wrong use or bad input" in " ".join(text.split())


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_each_of_its_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: hamnet {name}" in capsys.readouterr().out
    parser = frame._parser(name)
    sub = next(a for a in parser._actions if a.dest == "verb").choices[name]  # type: ignore[union-attr,index]
    assert [a.dest for a in sub._actions if not a.help] == []


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_parsed_and_run_by_its_own_module(name):
    module = import_module(f"hamnet.cli.{name}")
    assert callable(module.add_arguments)
    assert callable(module.run)


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"hamnet {hamnet.__version__}\n"


@pytest.mark.parametrize("words", [[], ["fold"], ["bands", "--colour", "red"]])
def test_wrong_use_exits_with_2_and_shows_the_usage(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: hamnet" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 1])
def test_the_verb_decides_between_good_and_failed(verb, code):
    verb(lambda args: code)
    assert main(["check"]) == code


def test_the_value_of_an_option_is_not_taken_for_the_verb(verb):
    seen = {}
    verb(lambda args: seen.update(vars(args)) or 0)
    assert main(["predict", "--model", "bands"]) == 0
    assert (seen["verb"], seen["model"]) == ("predict", "bands")


def test_bad_input_is_one_message_without_traceback_and_exit_code_2(verb, capsys):
    error = ReaderError("52 orbitals", expected="54", remedy="run it again", path="a.scfout", place="byte 16")
    verb(_raiser(error))
    assert main(["check"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "hamnet check: a.scfout, byte 16: 52 orbitals; expected 54. Run it again\n"
    assert captured.out == ""


def test_debug_shows_the_traceback(verb):
    verb(_raiser(ReaderError("52 orbitals")))
    with pytest.raises(ReaderError):
        main(["check", "--debug"])


def test_a_missing_file_is_bad_input_and_is_named(verb, capsys):
    verb(lambda args: open("/nowhere/at/all"))  # noqa: PTH123
    assert main(["check"]) == 2
    assert "No such file or directory: '/nowhere/at/all'" in capsys.readouterr().err


def test_an_error_of_our_own_is_not_hidden(verb):
    verb(_raiser(ZeroDivisionError("a defect")))
    with pytest.raises(ZeroDivisionError):
        main(["check"])


def test_interruption_ends_quietly_with_130(verb, capsys):
    verb(_raiser(KeyboardInterrupt()))
    assert main(["check"]) == 130
    assert capsys.readouterr().err == "hamnet check: interrupted\n"


def test_the_reader_of_a_pipe_may_leave_early():
    code = "import sys; from hamnet.cli.main import main; sys.exit(main(['--help']))"
    command = f'"{sys.executable}" -c "{code}" | head -n 1'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_errors_tell_place_found_expected_and_remedy_and_survive_a_process_pool():
    import pickle

    error = ReaderError("52 orbitals", expected="54", remedy="run it again", path="a.scfout", place="byte 16")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(copy), str(copy)) == (ReaderError, str(error))
    assert (copy.found, copy.expected, copy.remedy, copy.path, copy.place) == (
        "52 orbitals",
        "54",
        "run it again",
        "a.scfout",
        "byte 16",
    )
    assert str(HamnetError("52 orbitals")) == "52 orbitals"
