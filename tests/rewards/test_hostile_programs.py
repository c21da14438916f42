"""Programs that want to do harm, or to pass without being right: they do neither."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import kit
import pytest

from fuserl.records.schema import Message, PromptGroup, Response
from fuserl.rewards import programs, sandbox, unit_tests
from fuserl.rewards.code import CodeScorer
from fuserl.rewards.protocol import Item

SECRET = "47b3-not-for-programs-91c2"
TESTS = "assert f(2) == 40961\nassert f(3) == 51234\nassert f([1]) == {'a': (1, 2)}"
MARKER = "=right "
LIMITS = dict(cpu_seconds=1, wall_seconds=4, memory_mb=256, scratch_mb=8, output_mb=1)

# Each defines f, which is never right: what the tests expect is nowhere to be guessed. {file}, {port}, {repository} and
# {marker} are put in. `tried` catches what the walls say, so that the next line is tried too.
TRIED = """
import os, sys
def tried(*attempts):
    for attempt in attempts:
        try: attempt()
        except BaseException: pass
"""
CALLED = {
    "forks without end": "import os\nwhile True: os.fork()",
    "forks and ignores that it may not": TRIED + "def f(x):\n while True: tried(os.fork)",
    "starts processes": "import subprocess\ndef f(x): return subprocess.run(['touch', {file!r}])",
    "starts processes through multiprocessing": "import multiprocessing\ndef f(x): return multiprocessing.Pool(64).map(f, [x])",
    "starts threads without end": (
        "import threading, time\nthreading.stack_size(32768)\ndef f(x):\n"
        " while True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()"
    ),
    "leaves threads that never end": (
        "import threading, time\ndef spin():\n while True: time.sleep(0.01)\n"
        "threading.Thread(target=spin).start()\ndef f(x): return x"
    ),
    "takes memory without end": "def f(x):\n a = []\n while True: a.append(bytearray(1 << 22))",
    "takes memory in one piece": "def f(x): return len(bytearray(1 << 40))",
    "takes memory that no address space counts": "import os\ndef f(x): return os.memfd_create('a')",
    "computes without end": "def f(x): return 9 ** 9 ** 9",
    "loops without end": "while True: pass",
    "loops without end and catches every signal": (
        "import signal\nfor s in set(signal.Signals) - {{signal.SIGKILL, signal.SIGSTOP}}: signal.signal(s, lambda *_: None)\n"
        "while True:\n try:\n  while True: pass\n except BaseException: pass"
    ),
    "sleeps for ever": "import time\ndef f(x): time.sleep(1 << 20)",
    "sleeps for ever and ignores SIGTERM": (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef f(x):\n while True: time.sleep(9)"
    ),
    "fills its folder": "def f(x):\n with open('/tmp/a', 'wb') as file:\n  while True: file.write(bytes(1 << 20))",
    "fills its folder with files": "import os\ndef f(x):\n for i in range(1 << 30): os.mkdir(f'/tmp/{{i}}')",
    "unpacks a bomb": (
        "import zlib\ndef f(x):\n a = zlib.compress(bytes(1 << 27))\n return zlib.decompress(a) + zlib.decompress(a)"
    ),
    "prints without end": "while True: print('x' * 4096)",
    "talks to the examiner without end": "import os\ndef f(x):\n while True:\n  for fd in range(3, 64):\n   try: os.write(fd, b'x' * 65536)\n   except OSError: pass",
    "deletes everything": TRIED
    + "import shutil\ndef f(x): tried(lambda: shutil.rmtree('/'), lambda: os.remove({file!r}))",
    "deletes the repository": TRIED + "import shutil\ndef f(x): tried(lambda: shutil.rmtree({repository!r}))",
    "reads /etc/passwd": "def f(x): return open('/etc/passwd').read()",
    "reads a secret file": "def f(x): raise ValueError(open({file!r}).read())",
    "reads the environment": "import os\ndef f(x): raise ValueError(dict(os.environ))",
    "reads the environment of its parents": "def f(x): raise ValueError(open('/proc/1/environ').read())",
    "reads the home folder": "import os\ndef f(x): raise ValueError(os.listdir(os.path.expanduser('~root')))",
    "asks loopback": "import socket\ndef f(x): return socket.create_connection(('127.0.0.1', {port}), timeout=1)",
    "asks loopback by datagram": (
        "import socket\ndef f(x): return socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))"
    ),
    "asks the world": "import socket\ndef f(x): return socket.create_connection(('1.1.1.1', 80), timeout=1)",
    "writes into the repository": "def f(x): return open({repository!r} + '/owned', 'w').write('x')",
    "writes over the interpreter": "import os\ndef f(x): return open(os.__file__, 'w').write('x')",
    "writes where the examiner lies": "def f(x): return open('/inside/fuserl/rewards/inside/examiner.py', 'w').write('x')",
    "writes through a link": (
        "import os\nos.symlink({file!r}, '/tmp/a')\nos.symlink({repository!r}, '/tmp/b')\n"
        "def f(x):\n open('/tmp/a', 'w').write('x')\n return open('/tmp/b/owned', 'w').write('x')"
    ),
    "climbs out of its folder": "def f(x): return open('/tmp/../../../..' + {file!r}, 'w').write('x')",
    "opens devices": TRIED
    + "def f(x): tried(*(lambda d=d: open('/dev/' + d, 'wb').write(b'x') for d in ('sda', 'mem', 'kmsg', 'tty')))",
    "mounts and changes its root": (
        TRIED + "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "def f(x): tried(lambda: os.chroot('/tmp'), lambda: libc.mount(b'/', b'/tmp', b'', 4096, 0), lambda: libc.unshare(0x10000000), lambda: open({file!r}, 'w'))"
    ),
    "kills its parents": TRIED + "def f(x): tried(*(lambda p=p: os.kill(p, 9) for p in (os.getppid(), 1, -1)))",
    "traces other processes": (
        TRIED + "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "def f(x): tried(*(lambda p=p: libc.ptrace(16, p, 0, 0) for p in range(1, 99)), lambda: open('/proc/1/mem', 'r+b'))"
    ),
    "raises its limits": (
        "import resource\ndef f(x):\n resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n return len(bytearray(1 << 30))"
    ),
    "leaves with success": "import sys\nsys.exit(0)",
    "leaves with success when called": "def f(x): raise SystemExit(0)",
    "leaves at once with success": "import os\ndef f(x): os._exit(0)",
    "becomes another process": "import os, sys\ndef f(x): os.execv(sys.executable, [sys.executable, '-c', 'print({marker!r})'])",
    "prints that it is right": "import os\nfor fd in range(64):\n try: os.write(fd, b'ready\\n' + {marker!r}.encode() + b'\\n')\n except OSError: pass\ndef f(x): return x",
    "prints that it is right at exit": "import atexit\natexit.register(print, {marker!r})\ndef f(x): return x",
    "answers before it is asked": (
        "import os\nfor fd in range(3, 64):\n for _ in range(9):\n"
        "  try: os.write(fd, b'0000000fl3:s5:valueTd0:')\n  except OSError: pass\ndef f(x): return True"
    ),
    "answers with objects of its own": "class A:\n def __eq__(self, other): return True\ndef f(x): return A()",
    "answers with a number that equals all": (
        "class A(int):\n def __eq__(self, other): return True\n __hash__ = int.__hash__\ndef f(x): return A(7)"
    ),
    "answers with a text that equals all": (
        "class A(str):\n def __eq__(self, other): return True\n __hash__ = str.__hash__\ndef f(x): return A()"
    ),
    "answers with a false class": "class A:\n __class__ = int\n def __int__(self): return 40961\n def __eq__(self, o): return True\ndef f(x): return A()",
    "answers with nesting without end": "def f(x):\n a = []\n a.append(a)\n return a",
    "answers with too much": "def f(x): return 'x' * (9 << 20)",
    "ends iterations": "def f(x): raise StopIteration",
    "raises what the tests raise": "def f(x): raise AssertionError",
    "raises an error that cannot be printed": "class E(Exception):\n def __str__(self): raise E\ndef f(x): raise E",
    "replaces AssertionError": "import builtins\nbuiltins.AssertionError = type('Quiet', (BaseException,), {{}})\ndef f(x): return x",
    "replaces built-ins": "import builtins\nfor n in ('all', 'any', 'isinstance', 'len', 'print'): setattr(builtins, n, lambda *a, **k: True)\ndef f(x): return True",
    "replaces the examiner": (
        "from fuserl.rewards.inside import examiner, wire\nexaminer.examined = examiner._examined = lambda *a: ('right', '')\n"
        "wire.decode = wire.encode = lambda *a: 40961\nexaminer.main = lambda *a: print({marker!r})\ndef f(x): return x"
    ),
    "runs the examiner itself": (
        "import os\nfrom fuserl.rewards.inside import examiner\ndef f(x):\n examiner.main(0, 3)\n return x"
    ),
    "looks for the tests in its frames": (
        "import sys, gc\ndef f(x):\n frame, seen = sys._getframe(), []\n"
        " while frame: seen += [*frame.f_locals.values(), *frame.f_globals.values()]; frame = frame.f_back\n"
        " seen += gc.get_objects()\n return next((40961 if x == 2 else 51234 for s in seen if '40' + '961' in repr(s)[:4000]), 0)"
    ),
    "looks for the tests in its files": (
        TRIED + "def f(x):\n found = []\n def read(fd):\n  os.lseek(fd, 0, 0); found.append(os.read(fd, 1 << 20))\n"
        " tried(*(lambda fd=fd: read(fd) for fd in range(64)))\n return 40961 if any(b'40' + b'961' in part for part in found) else 0"
    ),
    "imports the tests": "import tests\ndef f(x): return tests",
    "imports from its folder": "open('/tmp/answers.py', 'w').write('a = 1')\nimport sys; sys.path.append('/tmp')\nimport answers\ndef f(x): return answers.a",
    "unpickles a command": (
        "import pickle\nclass A:\n def __reduce__(self): return (__import__('os').system, ('touch ' + {file!r},))\n"
        "def f(x): return pickle.loads(pickle.dumps(A()))"
    ),
    "breaks the interpreter": "import ctypes\ndef f(x): return ctypes.string_at(0)",
    "recurses without end": "import sys\nsys.setrecursionlimit(1 << 30)\ndef f(x): return f(x)",
    "closes all files": "import os\ndef f(x):\n os.closerange(0, 64)\n return x",
    "is no Python": "def f(x: return",
    "is nested too deeply": "f = " + "(" * 5000 + ")" * 5000,
    "is empty": "",
    "defines the tests' names": "def check(c): pass\ncandidate = tests = lambda *a: True\ndef f(x): return x",
}
PRINTED = {
    "prints another answer": "print(input())",
    "prints that it is right, as a script": "print({marker!r})",
    "prints without end, as a script": "while True: print('x' * 65536)",
    "sleeps for ever, as a script": "import time\ntime.sleep(1 << 20)",
    "loops without end, as a script": "while True: pass",
    "prints and does not end": "import os, time\nprint(1764, flush=True)\nos.close(1)\ntime.sleep(99)",
    "prints and fails": "print(1764)\nraise SystemExit(3)",
    "reads a secret file, as a script": "print(open({file!r}).read())",
    "looks for the answer": "import os\nprint(os.listdir('/tmp'), os.environ, open('/proc/self/environ').read())",
}


@pytest.fixture(scope="module")
def walls() -> None:
    """Hostile programs are run behind walls or not at all."""
    binary, why = sandbox.bubblewrap()
    if not binary:
        pytest.skip(f"NO SANDBOX HERE, hostile programs were not tried: {why}")


class World:
    """What must not be touched."""

    def __init__(self, folder: Path, server: socket.socket) -> None:
        self.file = folder / "secret.txt"
        self.file.write_text(SECRET)
        self.server, self.visits = server, 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self.server.accept()[0].close()
            except OSError:
                return
            self.visits += 1

    def put_in(self, program: str) -> str:
        return program.format(
            file=str(self.file), port=self.server.getsockname()[1], repository=str(kit.ROOT), marker=MARKER
        )


def item(name: str, program: str, extra: dict[str, object]) -> Item:
    response = Response("hostile", program)
    return Item(name, PromptGroup(name, (Message("user", "Write f."),), (response,), extra=extra), response)


@pytest.fixture(scope="module")
def world(walls, tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield World(tmp_path_factory.mktemp("world"), server)


@pytest.fixture(scope="module")
def scorer(walls) -> CodeScorer:
    return CodeScorer(
        program=programs.whole,
        tests=unit_tests.auto,
        imports=[],
        limits=LIMITS,
        workers=4,
        allow_unsafe_code=False,
    )


@pytest.fixture(scope="module")
def found(world, scorer):
    """All of them, side by side: what one does must not matter to the others either."""
    os.environ["FUSERL_TEST_SECRET"] = SECRET
    items = [item(name, world.put_in(text), {"test_list": TESTS.split("\n")}) for name, text in CALLED.items()]
    case = [{"input": "42\n", "output": "1764\n"}]
    items += [item(name, world.put_in(text), {"input_output": case}) for name, text in PRINTED.items()]
    try:
        return {score.key: score for score in scorer.score(items)}
    finally:
        del os.environ["FUSERL_TEST_SECRET"]


@pytest.mark.parametrize("name", [*CALLED, *PRINTED])
def test_it_does_not_pass(found, name):
    score = found[name]
    assert getattr(score, "verdict", score) == "wrong", score
    assert score.reward == 0.0
    assert SECRET not in str(score.detail)


def test_nothing_was_touched(found, world):
    assert world.file.read_text() == SECRET
    assert world.visits == 0
    assert not (kit.ROOT / "owned").exists()
    assert (kit.ROOT / "src/fuserl/rewards/inside/examiner.py").read_text().startswith('"""Runs unit tests')


def test_no_process_is_left(found):
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert not [line for line in running.splitlines() if "fuserl.rewards.inside" in line and sandbox.INSIDE in line]


REPORTS = {
    "the address space is limited": (
        "def f():\n a = []\n try:\n  while True: a.append(bytearray(1 << 20))\n except MemoryError: return len(a)",
        f"assert 64 < f() < {LIMITS['memory_mb']}",
    ),
    "its folder is limited": (
        "import os\ndef f():\n n = 0\n try:\n  while True:\n   with open(f'/tmp/{n}', 'wb') as file: file.write(bytes(1 << 20))\n   n += 1\n except OSError: return n",
        f"assert f() == {LIMITS['scratch_mb']}",
    ),
    "it may write there": "def f():\n open('/tmp/a', 'w').write('b')\n return open('/tmp/a').read()\n|assert f() == 'b'",
    "nowhere else": (
        "import os\ndef f():\n wrote = []\n for folder, _, _ in os.walk('/'):\n"
        "  try: open(folder + '/w', 'w').close(); wrote.append(folder)\n  except OSError: pass\n return wrote",
        "assert f() == ['/tmp']",
    ),
    "it sees nobody's files": (
        "import os\ndef f(): return sorted(os.listdir('/')), os.path.exists('/etc'), os.path.exists('/proc'), os.listdir('/dev')",
        "top, etc, proc, dev = f()\nassert not set(top) & {'home', 'etc', 'proc', 'sys', 'run', 'var', 'mnt', 'work'}\n"
        "assert not etc and not proc and dev == ['null']",
    ),
    "it has no environment": (
        "import os\ndef f(): return list(os.environ)",
        "assert set(f()) <= {'PYTHONHASHSEED', 'LC_ALL', 'HOME', 'PATH', 'PWD'}",
    ),
    "it is nobody, with no rights": (
        "import ctypes, os\ndef f(): return os.getuid(), os.getpid() < 9, ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)",
        "assert f() == (65534, True, 1)",
    ),
    "it holds no files but its channel": (
        "import os, stat\ndef f():\n held = {}\n for fd in range(64):\n  try: held[fd] = stat.S_IFMT(os.fstat(fd).st_mode)\n"
        "  except OSError: pass\n return sorted(held), [k for k in held if stat.S_ISREG(held[k]) or stat.S_ISDIR(held[k])]",
        "held, files = f()\nassert files == [] and held == [0, 1, 2, 3]",
    ),
    "there is no network": (
        "import socket\ndef f(): return [name for _, name in socket.if_nameindex()]",
        "assert set(f()) <= {'lo'}",
    ),
    "it may have threads": (
        "from concurrent.futures import ThreadPoolExecutor as Pool\ndef f():\n with Pool(4) as p: return sum(p.map(int, '1234'))",
        "assert f() == 10",
    ),
    "the order of a set is no chance": (
        "def f(): return [hash('a'), list({'a', 'b', 'c', 'd'})]",
        "import os\nassert os.environ['PYTHONHASHSEED'] == '0'\nassert f() == [hash('a'), list({'a', 'b', 'c', 'd'})]",
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_an_honest_program_reports_its_walls(scorer, name):
    entry = REPORTS[name]
    program, tests = entry.split("|") if isinstance(entry, str) else entry
    (score,) = scorer.score([item(name, program, {"test_list": tests.split("\n")})])
    assert getattr(score, "verdict", score) == "right", score
