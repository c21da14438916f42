"""Cells for programs that nobody has read: what they see, what they may take, and what happens when they take more."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fuserl.errors import FuserlError
from fuserl.rewards import inside, seccomp
from fuserl.rewards.inside import examiner, guest, program  # noqa: F401  imported here, they lie compiled beside their source

MASKED = ("site-packages", "dist-packages")  # folders of other people's packages beside the standard library
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")  # where the loader finds libc; links are made anew inside
INSIDE = "/inside"  # where our own few modules lie in a cell
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from fuserl.rewards.inside.{0} import main; main(*map(int, sys.argv[2:]))"
# Not -I: it would also ignore PYTHONHASHSEED, and the order of a set must not decide a verdict.
PYTHON_OPTIONS = ("-s", "-S", "-P", "-B")
ENVIRONMENT = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "HOME": "/tmp", "PATH": "/nowhere"}
HINT = (
    "install bubblewrap 0.7 or newer (`apt-get install bubblewrap`; `make setup` fetches it where apt is), or, where it is"
    " no loss if a program deletes everything, say `rewards.code.allow_unsafe_code=true`"
)


@dataclass(frozen=True)
class Limits:
    """What one program may take."""

    cpu_seconds: int  # of all its threads together; this decides, for it does not depend on other work on the machine
    wall_seconds: float  # for programs that sleep; generous, so that a busy machine makes no right program wrong
    memory_mb: int  # address space
    scratch_mb: int  # its folder /tmp, in memory; also the size of any one file
    output_mb: int  # of standard output; more and it is stopped

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> Limits:
        """Limits as they stand in the configuration.

        Raises:
            FuserlError: one is missing or unknown, or no positive number, or no whole one where only whole ones count.
        """
        names = {field.name for field in fields(cls)}
        if odd := sorted(names ^ {*given}):
            raise FuserlError(f"`{odd[0]}` is missing or unknown", where=where, hint=f"give {', '.join(sorted(names))}")
        for name, value in given.items():
            kinds = int | float if name == "wall_seconds" else int
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 1 << 20:
                hint = "give a whole number from 1, in the unit of its name"
                raise FuserlError(f"{value!r} is no limit", where=f"{where}.{name}", hint=hint)
        return cls(**given)

    def inside(self) -> dict[str, int]:
        """Those that a process takes upon itself before the program begins."""
        names = ("cpu_seconds", "memory_mb", "scratch_mb")
        return {name: value for name, value in asdict(self).items() if name in names}


@dataclass
class Running:
    """A process in its cell."""

    process: subprocess.Popen[bytes]
    told: int | None = None  # bubblewrap says here, once, which process is the first of the cell
    scratch: int = 0  # bytes of its /tmp
    _said: bytes = b""

    def files(self) -> int:
        """Files and folders in its /tmp, whose size does not bound their number; 0 where that cannot be seen."""
        try:
            if self.told is not None and not self._said.endswith(b"}\n"):
                self._said += os.read(self.told, 4096)
            first = re.search(rb'"child-pid": (\d+)\D', self._said)
            space = os.statvfs(f"/proc/{int(first[1])}/root/tmp") if first else None
        except OSError:  # nothing to read yet, or the process is gone
            return 0
        if not space or space.f_blocks * space.f_frsize != self.scratch:
            return 0  # before the walls stand, this is our own /tmp
        return space.f_files - space.f_ffree

    def end(self) -> None:
        """Kill it, and with it all that is in the cell."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()
        if self.told is not None:
            os.close(self.told)


@runtime_checkable
class Cell(Protocol):
    """A way to start one of the modules of `inside` as a process of its own."""

    @property
    def safe(self) -> bool:
        """Whatever runs in it harms nothing outside."""
        ...

    def start(self, module: str, numbers: Sequence[int], limits: Limits, **handles: Any) -> Running:
        """Start `inside.module.main(*numbers)`.

        Args:
            numbers: open files that the module is told of; they stay open in it.
            handles: stdin, stdout and stderr, as of Popen; nothing by default.

        Raises:
            OSError: the system starts no more processes.
        """
        ...


@dataclass(frozen=True)
class Bubblewrap:
    """Linux namespaces by bubblewrap, with a filter of system calls.

    No network (a net namespace of its own, with nothing in it), no other process in sight, no /proc, no environment; of the
    file system the interpreter, its standard library and the system's libraries, read-only, and an empty /tmp of limited
    size in memory. Neither capabilities nor new privileges nor new processes. All dies with the process that started it.
    """

    binary: str
    safe: bool = True

    def start(self, module: str, numbers: Sequence[int], limits: Limits, **handles: Any) -> Running:
        """See `Cell`."""
        told, telling = os.pipe()
        filtering, filling = os.pipe()
        os.write(filling, seccomp.program())
        os.close(filling)
        command = [
            *(self.binary, *_walls(), "--size", str(limits.scratch_mb << 20), "--tmpfs", "/tmp", "--chdir", "/tmp"),
            *("--remount-ro", "/", "--seccomp", str(filtering), "--info-fd", str(telling), "--", _interpreter()),
            *(*PYTHON_OPTIONS, "-c", BOOT.format(module), INSIDE, *map(str, numbers)),
        ]
        try:
            os.set_blocking(told, False)
            process = _popen(command, (*numbers, filtering, telling), "/", {}, handles)
            return Running(process, told, limits.scratch_mb << 20)
        except OSError:
            os.close(told)
            raise
        finally:
            os.close(filtering)
            os.close(telling)


@dataclass(frozen=True)
class Bare:
    """No walls: limits of CPU time, memory and file size alone. A program can read and delete what its user can."""

    safe: bool = False

    def start(self, module: str, numbers: Sequence[int], limits: Limits, **handles: Any) -> Running:
        """See `Cell`."""
        root = str(Path(inside.__file__).parents[3])
        command = [_interpreter(), *PYTHON_OPTIONS, "-c", BOOT.format(module), root, *map(str, numbers)]
        return Running(_popen(command, numbers, tempfile.gettempdir(), ENVIRONMENT, handles))


def find(*, allow_unsafe: bool) -> Cell:
    """The best cell this machine offers.

    Raises:
        FuserlError: there is no sandbox, and nobody said that it is not needed.
    """
    binary, why = bubblewrap()
    if binary:
        return Bubblewrap(binary)
    if allow_unsafe:
        return Bare()
    raise FuserlError("programs cannot be run safely here", where=why, hint=HINT)


@cache
def bubblewrap() -> tuple[str, str]:
    """Path of a bubblewrap that works here, or an empty one; and what was found.

    It is looked for on PATH and beside the interpreter, and tried: a program in it must see neither this process's files nor
    its network nor its environment, and must not start another process.
    """
    found = shutil.which("bwrap") or shutil.which("bwrap", path=str(Path(sys.executable).parent))
    if not sys.platform.startswith("linux"):
        return "", "namespaces are Linux's"
    if not seccomp.supported():
        return "", f"no table of system calls for {platform.machine()}"
    if not found:
        return "", "bubblewrap (`bwrap`) is not installed"
    try:
        with tempfile.NamedTemporaryFile() as secret, socket.create_server(("127.0.0.1", 0)) as server:
            said = _tried(Bubblewrap(found), f"{secret.name}\n{server.getsockname()[1]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{found} cannot be tried: {error}"
    if said != b"walls hold":
        return "", f"{found} does not work here: {said.decode(errors='replace').strip()[-200:] or 'it says nothing'}"
    return found, f"{found}: tried, walls hold"


def _tried(cell: Bubblewrap, targets: str) -> bytes:
    """What somebody who tries to get out says; where nobody comes to speak, what bubblewrap says."""
    limits = Limits(cpu_seconds=5, wall_seconds=20, memory_mb=256, scratch_mb=1, output_mb=1)
    with tempfile.TemporaryFile() as job:
        job.write(targets.encode())
        job.seek(0)
        running = cell.start("escape", [job.fileno()], limits, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            return running.process.communicate(timeout=limits.wall_seconds)[0]
        finally:
            running.end()


def _popen(
    command: list[str], numbers: Sequence[int], folder: str, environment: dict[str, str], handles: dict[str, Any]
) -> subprocess.Popen[bytes]:
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = {**quiet, **handles, "start_new_session": True}  # a group of its own, which is killed as one
    started: Any = subprocess.Popen(command, pass_fds=numbers, cwd=folder, env=environment, **options)
    return started


@cache
def _interpreter() -> str:
    """The Python under any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@cache
def _walls() -> tuple[str, ...]:
    """Options of bubblewrap that are the same for every program."""
    options = ["--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "cell"]
    options += ["--die-with-parent", "--new-session", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        options += ["--setenv", name, value]
    libraries = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib").resolve()
    library = Path(sysconfig.get_path("stdlib")).resolve()
    for folder in SYSTEM:
        if os.path.islink(folder):
            options += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            options += ["--ro-bind", folder, folder]
    for path in dict.fromkeys([str(libraries), str(library), _interpreter()]):
        if not any(
            _under(path, folder) for folder in (*SYSTEM, *((str(libraries),) if path != str(libraries) else ()))
        ):
            options += ["--ro-bind", path, path]
    for folder in {*(library / name for name in MASKED), *(Path("/usr/lib/python3") / name for name in MASKED)}:
        if folder.is_dir():
            options += ["--size", "4096", "--tmpfs", str(folder), "--remount-ro", str(folder)]
    ours = str(Path(inside.__file__).parent)
    return (*options, "--ro-bind", ours, f"{INSIDE}/fuserl/rewards/inside", "--dev-bind", "/dev/null", "/dev/null")


def _under(path: str, folder: str) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep) or path == folder
