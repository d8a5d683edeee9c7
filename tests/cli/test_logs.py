"""`logs`: now, as they grow, through rotation and new workers, and after the run."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rolecall import errors
from rolecall.cli.logs import Follower, last_lines
from tests.cli.cli_rig import CommandLine, Controller, environment, running


@pytest.fixture
def hand_made(tmp_path: Path) -> Iterator[Path]:
    """A run directory whose controller is this very process: it holds the lock."""
    directory = tmp_path / "made" / "t0"
    (directory / "logs").mkdir(parents=True)
    with (directory / ".lock").open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield directory


def on_a_terminal(*argv: str) -> str:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "rolecall.cli", *argv], stdout=theirs, env=environment()) as process:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # the other end is closed
            while data := os.read(ours, 4096):
                seen += data
    os.close(ours)
    assert process.returncode == 0
    return seen.decode()


@pytest.mark.parametrize("log", ["actor-0", "merged"])
def test_escape_sequences_of_a_worker_do_not_reach_a_terminal(hand_made: Path, log: str) -> None:
    """They are shown; a pipe gets what the worker wrote."""
    line = ("[actor/0] " if log == "merged" else "") + "\x1b]0;title\x07 \x1b[2J text \x9b1m\r"
    (hand_made / "logs" / f"{log}.log").write_text(line + "\n")
    target = ["actor/0"] if log == "actor-0" else []
    seen = on_a_terminal("logs", *target, "--run", str(hand_made))
    assert "\\x1b]0;title\\x07 \\x1b[2J text \\x9b1m\\x0d" in seen
    assert not {"\x1b]", "\x1b[2J", "\x07", "\x9b"} & {seen[at : at + n] for at in range(len(seen)) for n in (1, 2, 4)}
    command = [sys.executable, "-m", "rolecall.cli", "logs", *target, "--run", str(hand_made)]
    assert line.encode() in subprocess.run(command, capture_output=True, check=True, env=environment()).stdout


def test_escape_sequences_of_a_worker_are_shown_in_errors() -> None:
    """Wherever a worker's words are in an error's text: message, traceback, the end of its log, stacks."""
    evil = "\x1b[2J\x9b"
    for error in (
        errors.EngineCallError("a/0", "f", "T", evil, evil),
        errors.EngineCreationError("a/0", "a/0", evil, evil),
        errors.WorkerCreationError("a", evil, [0], {0: evil}),
        errors.WorkerFailedError("a/0", 1, log_tail=evil, reason=evil),
        errors.WorkerStalledError("a/0", evil, evil),
        errors.RemoteError("T", evil, evil),
    ):
        text = str(error) + str(getattr(error, "report", ""))
        assert "\\x1b[2J\\x9b" in text and "\x1b" not in text and "\x9b" not in text, type(error)


def read_until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    """The lines that a process printed up to the wanted one."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line.rstrip("\n"))
        if wanted in line:
            return seen
    raise AssertionError(f"{wanted!r} was not printed, but {seen}")


@pytest.mark.slow("ten commands, each a process")
def test_logs_are_merged_or_of_one_worker_and_outlive_the_run(cli: CommandLine, controller: Controller) -> None:
    """Merged lines bear their worker; one worker's are as it wrote them; both are there when all is over."""
    controller.ask("say one [red]line[/red]")
    early = cli.run("logs", "critic", "--run", "cli/t0")
    assert early.returncode == 2 and "no log of 'critic'" in early.stderr
    controller.end()
    assert "[actor/0] one [red]line[/red]\n" in cli.run("logs", "--run", "cli/t0").stdout
    made, *said = cli.run("logs", "actor/0", "--run", "cli/t0").stdout.splitlines()
    assert "INFO rolecall: engine 'actor/0'" in made and said == ["one [red]line[/red]"]
    assert "[actor/0] one" in cli.run("logs", "actor", "--run", "cli/t0").stdout
    lines = cli.run("logs", "--run", "cli/t0", "--json").stdout.splitlines()
    (line,) = [line for line in lines if "INFO rolecall" not in line]
    assert json.loads(line) == {"source": "actor/0", "line": "one [red]line[/red]"}
    assert "ending" in cli.run("logs", "guard", "--run", "cli/t0").stdout
    unknown = cli.run("logs", "critic", "--run", "cli/t0")
    assert unknown.returncode == 2 and "actor/0, actor/1" in unknown.stderr


@pytest.mark.slow("a controller of its own")
def test_follow_shows_what_comes_and_ends_with_the_run(cli: CommandLine, controller: Controller) -> None:
    """Lines of workers that did not exist yet are followed too."""
    process = cli.start("logs", "-f", "--run", "cli/t0")
    controller.ask("say first")
    read_until(process, "[actor/0] first")
    controller.ask("role later")
    read_until(process, "[later/0] this is later")
    controller.end()
    rest, said = process.communicate(timeout=30)
    assert process.returncode == 0 and "has ended" in said, rest


def test_follow_ends_quietly_with_ctrl_c(cli: CommandLine, hand_made: Path) -> None:
    """Status 130 and no traceback."""
    log = hand_made / "logs" / "actor-0.log"
    log.write_text("a\n")
    process = cli.start("logs", "-f", "actor/0", "--run", "made/t0")
    read_until(process, "a")
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=30)
    assert (process.returncode, rest, said) == (130, "", "")


def test_follow_goes_on_through_rotation_and_new_workers(cli: CommandLine, hand_made: Path) -> None:
    """A renamed log is read to its end, its successor from its beginning, and a new worker's with its name."""
    log = hand_made / "logs" / "actor-0.log"
    log.write_text("before\n")
    process = cli.start("logs", "-f", "actor", "--run", "made/t0")
    assert read_until(process, "before") == ["[actor/0] before"]
    with log.open("a") as old:
        log.rename(log.with_name("rotated"))
        log.write_text("successor\n")
        old.write("last of the old\n")
    seen = read_until(process, "successor")
    assert seen[-1] == "[actor/0] successor" and set(seen[:-1]) <= {"[actor/0] last of the old"}
    (hand_made / "logs" / "actor-1.log").write_text("new worker\n")
    read_until(process, "[actor/1] new worker")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_a_follower_misses_and_repeats_nothing(tmp_path: Path) -> None:
    """Partial lines are kept until whole; a replaced or cut file goes on from its beginning."""
    path = tmp_path / "x.log"
    follower = Follower(path)
    assert list(follower.lines()) == []
    with path.open("w") as file:
        file.write("one\ntw")
        file.flush()
        assert list(follower.lines()) == ["one"]
        file.write("o\nthree\nfo")
        file.flush()
        path.rename(tmp_path / "x.log.1")
        assert list(follower.lines()) == ["two", "three"]
        file.write("ur\n")
    path.write_text("five\n")
    assert list(follower.lines()) == ["four", "five"]
    path.write_text("6\n")
    assert list(follower.lines()) == ["6"]
    follower.close()


@pytest.mark.parametrize("count", [0, 1, 2, 5, 40000, None])
def test_last_lines_are_the_last_lines(tmp_path: Path, count: int | None) -> None:
    """Whole lines only, however large the file; reading goes on where they end."""
    lines = [f"line {i} {'x' * (i % 97)}" for i in range(20000)]
    path = tmp_path / "big.log"
    path.write_text("\n".join(lines) + "\nunfinished")
    with path.open("rb") as file:
        assert last_lines(file, count) == (lines if count is None else lines[-count:] if count else [])
        assert file.read() == b"unfinished"


def test_a_log_that_is_cut_while_it_is_read_ends_nobody() -> None:
    """Its lines are lost, and nothing else is."""

    class Cut(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            self.truncate(0)
            return super().read(size)

    assert last_lines(Cut(b"a\nb\n"), 1) == []


def test_the_unfinished_last_line_is_printed_too(cli: CommandLine, hand_made: Path) -> None:
    """The last words of a killed program often lack their end of line."""
    (hand_made / "logs" / "actor-0.log").write_text("whole\nlast wor")
    assert cli.run("logs", "actor/0", "--run", "made/t0").stdout == "whole\nlast wor\n"


def test_a_sparse_log_of_any_size_costs_no_memory(tmp_path: Path) -> None:
    """Last lines are looked for in what is near the end; `--follow` goes on from there."""
    log = tmp_path / "sparse.log"
    log.touch()
    os.truncate(log, 8 << 30)
    tracemalloc.start()
    with log.open("rb") as file:
        assert last_lines(file, 5) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 256 << 20


@pytest.mark.parametrize("log", ["actor-0", "merged"])
def test_only_regular_files_are_logs(cli: CommandLine, hand_made: Path, tmp_path: Path, log: str) -> None:
    """No link is followed to what its maker may not read, and a FIFO is not waited for."""
    (tmp_path / "secret").write_text("a secret\n")
    path = hand_made / "logs" / f"{log}.log"
    command = ["logs", *(["actor/0"] if log == "actor-0" else []), "--run", "made/t0"]
    path.symlink_to(tmp_path / "secret")
    assert "a secret" not in cli.run(*command).stdout
    path.unlink()
    os.mkfifo(path)
    assert cli.run(*command).stdout == ""


def test_a_follower_reads_a_successor_from_its_beginning(tmp_path: Path) -> None:
    """Also when the file was replaced right after its last lines were read."""
    path = tmp_path / "x.log"
    path.write_text("before\n")
    follower = Follower(path)
    assert follower.last(10) == ["before"]
    path.rename(tmp_path / "rotated")
    path.write_text("a longer successor\n")
    assert list(follower.lines()) == ["a longer successor"]
    follower.close()


@pytest.mark.slow("two controllers and five commands")
def test_logs_of_earlier_runs_of_a_trial_are_told_apart(cli: CommandLine, tmp_path: Path) -> None:
    """The latest run's are shown; the others by their number, counted back; as a run directory of their own, too."""
    for text in ("of the first", "of the second"):
        with running(tmp_path) as controller:
            controller.ask(f"say {text}")
    said = {i: cli.run("logs", "--run", "cli/t0", "--earlier", str(i)) for i in (0, 1, 2)}
    for i, (shown, other) in enumerate((("of the second", "of the first"), ("of the first", "of the second"))):
        assert f"[actor/0] {shown}\n" in said[i].stdout and other not in said[i].stdout
    assert (said[2].returncode, said[2].stderr.count("known runs: 1")) == (2, 1)
    assert "of the first\n" in cli.run("logs", "actor/0", "--run", "cli/t0/earlier/1").stdout
    assert cli.json("ps", "--run", "cli/t0")["state"] == "ended"


def test_a_terminal_gets_coloured_names(cli: CommandLine, hand_made: Path) -> None:
    """Unless NO_COLOR is set; a pipe gets none."""
    (hand_made / "logs" / "merged.log").write_text("[actor/0] hello\n")
    argv = cli.argv("logs", "--run", "made/t0")
    for extra, shown in (({}, "m[actor/0]\x1b[0m hello\r\n"), ({"NO_COLOR": "1"}, "[actor/0] hello\r\n")):
        ours, theirs = os.openpty()
        env = {**environment(), "NO_COLOR": "", **extra}
        subprocess.run(argv, stdout=theirs, stderr=subprocess.DEVNULL, env=env, check=True, timeout=60)
        os.close(theirs)
        seen = os.read(ours, 1000).decode()
        os.close(ours)
        assert seen.endswith(shown) and seen.startswith("\x1b[") == (not extra)
    assert cli.run("logs", "--run", "made/t0").stdout == "[actor/0] hello\n"
