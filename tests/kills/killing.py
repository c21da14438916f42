"""Kill a job over and over and give it again; what it leaves in the end must be what an undisturbed one leaves."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from forking import TOLD, Nursery, descendants, ended

EARLY, EARLY_SHARE = 0.25, 0.1  # so many of the kills fall into the first tenth: the lock, the manifest, the first file
CHAIN = 4  # kills of one job at most before it may end
PATIENCE = 30.0  # seconds that what a dead process has started may need to see it and end
WHOM = ("all", "first", "one")  # every process of the job; the one that was started, alone; one of the others


@dataclass(frozen=True)
class Job:
    """One command, and what counts as its result."""

    name: str
    verb: str
    prepare: Callable[[Path], list[str]]  # overrides, after writing into a folder what they name
    left: Callable[[Path], Mapping[str, object]]  # of the output folder: what must be equal, by name
    end: str  # pattern of files: where they are there, all is
    kept: str  # pattern of files, beside and in the output folder, that hold work once begun
    share: int  # of all kills
    results: int = 1  # so many of them
    processes: bool = False  # whether it has any of its own
    imports: tuple[str, ...] = ()


@dataclass
class Tally:
    """What became of one job's kills."""

    job: str
    verb: str
    seconds: float = 0.0  # an undisturbed run
    kills: int = 0  # that hit a running process
    late: int = 0  # aimed at one that was over already: not counted
    resumed: int = 0  # of the kills: that hit a run which had begun with what an earlier one had left
    kept: int = 0  # of the kills: after which there was work on the disk
    told: int = 0  # of the kills: that the rest of the job saw and ended for, with a clear error
    ended: int = 0  # times that the job came to its end, each compared with the undisturbed one
    whom: dict[str, int] = field(default_factory=dict)


class Killing:
    """One job, its undisturbed result, and the kills so far."""

    def __init__(self, job: Job, nursery: Nursery, folder: Path) -> None:
        """Run it undisturbed.

        Args:
            folder: for inputs and outputs; made here.
        """
        self.job, self.nursery, self.out = job, nursery, folder / "out"
        folder.mkdir(parents=True)
        self.overrides = job.prepare(folder)
        self.tally = Tally(job.name, job.verb)
        begun = time.monotonic()
        self._to_the_end(folder / "quiet")
        self.tally.seconds = self.seconds = time.monotonic() - begun
        self.wanted = job.left(folder / "quiet")
        assert self.wanted, "an undisturbed run leaves nothing to compare"

    def kill(self, kills: int, rng: Random) -> Tally:
        """Kill it so many times, in chains that end with an undisturbed continuation and a comparison.

        Further kills follow while none has found work on the disk, at most three times as many.

        Raises:
            AssertionError: a result differs, a run fails, or something outlives its job.
        """
        moments, tally = self._moments(kills, rng), self.tally
        while tally.kills < kills or (not tally.kept and tally.kills < 4 * kills):
            for number in range(rng.randint(1, CHAIN)):
                if (tally.kills >= kills and tally.kept) or self._strike(next(moments), rng, resumed=number > 0):
                    break
            self._to_the_end(self.out)
            self._compare()
        return tally

    def _moments(self, kills: int, rng: Random) -> Iterator[float]:
        """Shares of an undisturbed run's duration: early ones, and the rest spread evenly, in a random order."""
        while True:
            early = round(EARLY * kills) if kills > 2 else 0
            rest = kills - early
            found = [rng.uniform(0, EARLY_SHARE) for _ in range(early)]
            found += [(place + rng.random()) / rest for place in range(rest)]
            rng.shuffle(found)
            yield from found

    def _strike(self, moment: float, rng: Random, *, resumed: bool) -> bool:
        """Start it, kill it at that moment; whether it came to its end nevertheless."""
        child = self.nursery.start(self.job.verb, self._overrides(self.out))
        time.sleep(moment * self.seconds)
        found = descendants(child)
        whom = rng.choice(WHOM) if found and self.job.processes else "all"
        victims = {"all": [child, *found], "first": [child], "one": [rng.choice(found)] if found else []}[whom]
        hit = not ended(child) and not ended(victims[0])
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        status = self.nursery.finish()
        self._nothing_outlives_it()
        fine = {signal.SIGKILL, 0, TOLD << 8} if whom == "one" else {signal.SIGKILL, 0}
        assert status in fine, f"{self.job.name}, killed: {whom}: status {status}\n{self.nursery.said()[-4000:]}"
        tally = self.tally
        if not hit:
            tally.late += 1
            self.seconds *= 1.0 if resumed else 0.8  # other work on the machine slows one run more than another
        else:
            self.seconds *= 1.2 if moment > 0.9 else 1.0
            tally.kills, tally.resumed = tally.kills + 1, tally.resumed + resumed
            tally.kept += any(self.out.parent.glob(self.job.kept))
            tally.told += status == TOLD << 8
            tally.whom[whom] = tally.whom.get(whom, 0) + 1
        if self._done():  # what has the name of a result is one
            self._same(self.job.left(self.out))
        return status == 0

    def _nothing_outlives_it(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while left := descendants(self.nursery.process.pid):
            told = [_command(process) for process in left]
            assert time.monotonic() < deadline, f"{self.job.name}: outlived by {told}"
            time.sleep(0.02)

    def _to_the_end(self, out: Path) -> None:
        self.nursery.start(self.job.verb, self._overrides(out))
        status = self.nursery.finish()
        assert status == 0, f"{self.job.name}: status {status}\n{self.nursery.said()[-4000:]}"
        self._nothing_outlives_it()

    def _compare(self) -> None:
        """With the undisturbed result; then nothing is left of it."""
        assert self._done(), f"{self.job.name}: no {self.job.end}"
        self._same(self.job.left(self.out))
        self.tally.ended += 1
        for folder in self.out.parent.glob(f"{self.out.name}*"):
            shutil.rmtree(folder)

    def _same(self, found: Mapping[str, object]) -> None:
        assert found.keys() == self.wanted.keys(), f"{self.job.name}: {found.keys() ^ self.wanted.keys()}"
        other = [
            f"{name}{difference(found[name], self.wanted[name])}" for name in found if found[name] != self.wanted[name]
        ]
        assert not other, f"{self.job.name}: unlike an undisturbed run: {'; '.join(other)}; {self.tally}"

    def _done(self) -> bool:
        return len(list(self.out.glob(self.job.end))) >= self.job.results

    def _overrides(self, out: Path) -> list[str]:
        """A run has its own cache, too, unless the job says otherwise."""
        return [one.replace("OUT", str(out)) for one in self.overrides]


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return f"process {process}"


def difference(ours: object, theirs: object) -> str:
    """Where two contents differ first."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [key for key in [*theirs, *ours] if ours.get(key) != theirs.get(key)]
        return f".{keys[0]}{difference(ours.get(keys[0]), theirs.get(keys[0]))}"
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        at = next(at for at, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
        return f"[{at}]{difference(ours[at], theirs[at])}"
    return f": {str(ours)[:80]!r}, not {str(theirs)[:80]!r}"
