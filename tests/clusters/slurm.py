"""A Slurm cluster of this machine alone: slurmctld, slurmdbd on MariaDB and two nodes, in a folder, ended with the test.

Debian's packages (`make slurm`) and root's rights are needed: slurmd starts its steps with them.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmdbd", "slurmd", "sbatch", "srun", "scontrol", "mariadbd", "mariadb-install-db")
NODES = ("first", "second")
PATIENCE = 60.0  # seconds for the cluster to come up, or to go
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={accounting}
AccountingStoragePass={folder}/munge.socket
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=30
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=batch Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=2 State=UP
"""
ACCOUNTING = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdPort={accounting}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
"""


def missing() -> str | None:
    """Why no cluster is started here; None where one is."""
    if "FUSERL_WITH_SLURM" not in os.environ:
        return "minutes on a Slurm of their own: `make slurm test-slurm`"
    absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)}: `make slurm` installs them"
    return None if os.geteuid() == 0 else "slurmd wants root's rights"


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs."""

    folder: Path
    environment: dict[str, str]  # of every client of this cluster

    def tell(self, *command: str) -> str:
        """What a command of the cluster's says; an error where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def jobs(self) -> dict[str, str]:
        """State of every job that the controller remembers, by its number."""
        rows = self.tell("squeue", "--all", "--states=all", "--noheader", "--format=%i %T").splitlines()
        return dict(row.split() for row in rows)

    def field(self, job: str, name: str) -> str:
        """One of what `scontrol show job` tells."""
        told = self.tell("scontrol", "--oneliner", "show", "job", job)
        return next(word.partition("=")[2] for word in told.split() if word.startswith(f"{name}="))

    def logs(self) -> str:
        """The ends of all logs, for a failed assertion."""
        found = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in found)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A controller and two nodes with a processor each; all are gone afterwards, with the jobs they had."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # munge's clients must reach its socket
    (folder / "state").mkdir()
    _write_settings(folder, *_free_ports(3 + len(NODES)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path(), "OMP_NUM_THREADS": "1"}
    running = Cluster(folder, environment)
    with ExitStack() as stack:
        _start_munge(stack, folder, environment)
        _start_accounting(stack, running)
        stack.enter_context(_running(folder, environment, "slurmctld", "-D"))
        for name in NODES:
            stack.enter_context(_running(folder, environment, "slurmd", "-D", "-N", name))
        _until(lambda: _idle(environment), running.logs)
        stack.callback(_cancel_all, running)
        yield running


def _write_settings(folder: Path, controller: int, accounting: int, database: int, *of_nodes: int) -> None:
    host = socket.gethostname().partition(".")[0]
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=1000 Gres=gpu:1"
        for name, port in zip(NODES, of_nodes, strict=True)
    )
    settings = {"host": host, "port": controller, "accounting": accounting, "database": database}
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, nodes=nodes, **settings))
    (folder / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File=/dev/null\n")  # in name alone
    (folder / "slurmdbd.conf").touch(mode=0o600)
    (folder / "slurmdbd.conf").write_text(ACCOUNTING.format(folder=folder, **settings))
    (folder / "database.cnf").write_text(
        f"[mariadbd]\ndatadir={folder}/database\nsocket={folder}/database.socket\nbind-address=127.0.0.1\nport={database}\n"
        "user=root\ninnodb-buffer-pool-size=32M\n"
    )


def _start_munge(stack: ExitStack, folder: Path, environment: dict[str, str]) -> None:
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    stack.enter_context(_running(folder, environment, "munged", "--foreground", "--force", *options))
    _until((folder / "munge.socket").exists, lambda: (folder / "munged.said").read_text())


def _start_accounting(stack: ExitStack, running: Cluster) -> None:
    """`sacct` is what submitit asks; without it a job that was cancelled is waited for without end."""
    folder, environment, settings = (
        running.folder,
        running.environment,
        f"--defaults-file={running.folder}/database.cnf",
    )
    running.tell("mariadb-install-db", settings, "--auth-root-authentication-method=normal", "--skip-test-db")
    stack.enter_context(_running(folder, environment, "mariadbd", settings))
    _until((folder / "database.socket").exists, lambda: (folder / "mariadbd.said").read_text())
    stack.enter_context(_running(folder, environment, "slurmdbd", "-D"))
    _until(lambda: _says(environment, "sacctmgr", "--noheader", "show", "cluster") is not None, running.logs)
    running.tell("sacctmgr", "--immediate", "add", "cluster", "test")


@contextmanager
def _running(folder: Path, environment: dict[str, str], *command: str) -> Iterator[None]:
    with (folder / f"{command[0]}.said").open("a") as said:
        process = subprocess.Popen(
            command, env=environment, stdout=said, stderr=said, start_new_session=True, preexec_fn=_die_with_the_test
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_the_test() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _says(environment: dict[str, str], *command: str) -> str | None:
    """Of a command; None where it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return None if done.returncode else done.stdout


def _idle(environment: dict[str, str]) -> bool:
    return set((_says(environment, "sinfo", "--noheader", "--Node", "--format=%T") or "").split()) == {"idle"}


def _cancel_all(running: Cluster) -> None:
    """Jobs do not die with their slurmd."""
    _says(running.environment, "scancel", "--signal=KILL", "--full", "--user=root")
    _says(running.environment, "scancel", "--user=root")
    _until(lambda: not running.tell("squeue", "--noheader"), running.logs)


def _until(true: Callable[[], bool], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def _path() -> str:
    """Where Debian puts daemons is not on everybody's path."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
