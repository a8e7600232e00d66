"""Programs that try to get out, to see, to stay, or to eat the machine; each prints ESCAPED where it succeeds.

They run before it is known whether the sandbox holds, so none does harm where it does not: they send signal 0, open for
writing and write nothing, pass the kernel arguments that are wrong, and take back what they made.

SECRET, PORT, ABSTRACT and PARENT are replaced by a file of the host, a TCP port and an abstract socket on which it
listens, and the trainer's process id. An attack of `QUICK` ends by itself; one of `LASTING` has to be stopped.
"""

from __future__ import annotations

_TRY = """
def tries(*actions):
    for action in actions:
        try:
            value = action()
        except BaseException:
            continue
        if value is not False:
            print("ESCAPED", repr(value)[:80])

def makes(path):
    import os
    open(path, "x").close()
    os.remove(path)
"""

_SYSCALL = """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
def call(x86, generic, *arguments):
    return libc.syscall(generic if arm else x86, *arguments) >= 0
def reaches(x86, generic, *arguments):
    "Whether a call with wrong arguments fails for these, and not because it is not allowed."
    return call(x86, generic, *arguments) or ctypes.get_errno() not in (1, 11, 13, 38)
"""

QUICK = {
    # It reads what is not its own.
    "reads a host file": "tries(lambda: open('SECRET').read())",
    "reads system files": """
import os
tries(*[lambda p=p: open(p).read() for p in ('/etc/passwd', '/etc/shadow', '/etc/hostname', '/etc/resolv.conf')])
tries(*[lambda p=p: [n for n in os.listdir(p) if n != 'ld.so.cache'] or False for p in ('/etc', '/var')])
""",
    "reads a host file through the posix module": """
import importlib, sys
del sys.modules['posix']
posix = importlib.import_module('posix')
tries(lambda: posix.read(posix.open('SECRET', 0), 100))
""",
    "reads a host file through ctypes": _SYSCALL + "tries(lambda: libc.open(b'SECRET', 0) >= 0 and 'opened')",
    "walks up from the working directory": """
import os
tries(lambda: os.open('../' * 20 + 'SECRET'.lstrip('/'), os.O_RDONLY))
""",
    "reads environments over /proc": """
import glob
for path in ['/proc/1/environ', '/proc/self/environ', '/proc/thread-self/environ', *glob.glob('/proc/*/environ')]:
    tries(lambda: open(path, 'rb').read() or False)
""",
    "reads its own environment": """
import os
known = {'HOME', 'TMPDIR', 'LANG', 'LC_CTYPE', 'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS'}
tries(lambda: sorted(set(os.environ) - known) or False)
""",
    "reads the environment the process started with": _SYSCALL
    + """
known = ('HOME', 'TMPDIR', 'LANG', 'LC_CTYPE', 'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'PYTHONHASHSEED', 'PWD')
start = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')
found = []
while start and start[len(found)]:
    found.append(start[len(found)].decode())
tries(lambda: [f for f in found if f.split('=')[0] not in known] or False)
""",
    "lists processes": """
import os
tries(lambda: [name for name in os.listdir('/proc') if name.isdigit()] or False)
""",
    "looks for the gold answer in frames and objects": """
import gc, sys
frame = sys._getframe()
while frame:
    tries(lambda: ('answer' in frame.f_locals or 'gold' in frame.f_locals) and list(frame.f_locals))
    frame = frame.f_back
""",
    "reads inherited descriptors": """
import os
for number in range(3, 256):
    tries(lambda: os.pread(number, 10, 0))
    tries(lambda: os.read(number, 10) if number not in (3, 4) else False)
""",
    "writes to inherited descriptors": """
import os
for number in range(4, 256):
    tries(lambda: os.write(number, b'{"status": "ok", "text": "forged"}'))
""",
    "reads from the standard input": "tries(lambda: input(), lambda: __import__('sys').stdin.read() or False)",
    # It writes where it may not.
    "writes over a host file": """
# It may well write a file of that name of its own; the host's is looked at afterwards.
for mode in ('w', 'a', 'r+'):
    try: open('SECRET', mode).write('taken')
    except OSError: pass
""",
    "writes outside": """
places = '/ /etc /usr /usr/lib /var/tmp /root /home /packages /packages/sympy /dev /proc'.split()
tries(*[lambda p=p: makes(p + '/grpo-jax-attack') for p in places])
""",
    "changes the Python installation": """
import os, numpy, sympy, json
for module in (numpy, sympy, json, os):
    path = module.__file__
    tries(lambda: os.open(path, os.O_WRONLY))
    tries(lambda: os.open(path, os.O_RDWR | os.O_APPEND), lambda: os.rename(path, path))
    tries(lambda: makes(os.path.dirname(path) + '/grpo-jax-attack'), lambda: os.chmod(path, os.stat(path).st_mode))
    tries(lambda: os.utime(path, ns=(os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns)))
""",
    "goes through a symbolic link": """
import os
os.symlink('SECRET', '/tmp/link')
os.symlink('/', '/tmp/all')
tries(lambda: open('/tmp/link').read(), lambda: open('/tmp/all/etc/passwd'), lambda: os.link('SECRET', '/tmp/hard'))
tries(lambda: os.rename('/tmp/link', '/usr/link'))
try: open('/tmp/link', 'a').write('x')
except OSError: pass
""",
    "makes a device": """
import os, stat
tries(lambda: os.mknod('/tmp/device', stat.S_IFBLK | 0o666, os.makedev(254, 0)))
tries(lambda: os.mknod('/dev/device', stat.S_IFCHR | 0o666, os.makedev(1, 1)))
""",
    # It talks.
    "connects over TCP": """
import socket
tries(lambda: socket.create_connection(('127.0.0.1', PORT), 1))
""",
    "connects to an abstract socket": """
import socket
tries(lambda: socket.socket(socket.AF_UNIX).connect('\\0ABSTRACT'))
""",
    "sends datagrams": """
import socket
tries(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT)))
tries(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), lambda: socket.socket(socket.AF_PACKET))
tries(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), lambda: socket.socket(socket.AF_INET6))
""",
    "opens a socket through the kernel": _SYSCALL
    + "tries(lambda: call(41, 198, 2, 1, 0), lambda: call(41, 198, 40, 1, 0))",
    # It starts or hurts other processes.
    "starts a shell": """
import os, subprocess
tries(lambda: os.system('true') == 0, lambda: subprocess.run(['/bin/sh', '-c', 'true']))
tries(lambda: os.popen('id').read() or False)
""",
    "finds Popen over subclasses": """
import subprocess
for found in [c for c in object.__subclasses__() if c.__name__ == 'Popen'] + [subprocess.Popen]:
    tries(lambda: found(['/bin/true']), lambda: found(['python3', '-c', '']))
""",
    "executes itself anew": """
import os, sys
tries(lambda: os.posix_spawn(sys.executable or '/usr/bin/python3', ['python'], {}))
tries(lambda: os.execv(sys.executable or '/usr/bin/python3', ['python', '-c', 'print("ESCAPED")']))
""",
    "executes a file in memory": _SYSCALL
    + "tries(lambda: call(319, 279, b'x', 0), lambda: reaches(322, 281, -1, None, None, None, 0))",
    "forks a bomb": """
import os
while True:
    try:
        if os.fork() == 0:
            while True: pass
    except OSError:
        break
    print('ESCAPED')
    break
""",
    "forks a daemon twice": """
import os, time
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            print('ESCAPED', flush=True)
            time.sleep(1000)
        os._exit(0)
except OSError:
    pass
""",
    "starts a pool of processes": """
import multiprocessing
tries(lambda: multiprocessing.Process(target=print, args=('ESCAPED',)).start())
""",
    "signals the trainer": """
import ctypes, os
libc = ctypes.CDLL(None)
tries(lambda: os.getpid() != PARENT and (os.kill(PARENT, 0), 'seen'))
tries(lambda: os.getpid() != PARENT and libc.kill(PARENT, 0) == 0)
""",
    "signals its parent and all others": """
import os
tries(lambda: os.getppid() != 0 and (os.kill(os.getppid(), 0), 'seen'), lambda: (os.kill(-1, 0), 'seen'))
""",
    "traces processes": _SYSCALL
    + """
tries(lambda: call(101, 117, 0, 0, 0, 0))
tries(lambda: reaches(310, 270, PARENT, None, 0, None, 0, 0), lambda: call(434, 434, PARENT, 0))
tries(lambda: reaches(440, 440, -1, None, 0, 0, 0), lambda: reaches(312, 272, PARENT, PARENT, 99, 0, 0))
""",
    # It asks the kernel for more.
    "becomes another user": """
import os
tries(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0))
tries(lambda: os.getuid() == 0 and 'root', lambda: (open('/tmp/mine', 'w').close(), os.chown('/tmp/mine', 0, 0)))
""",
    "mounts": _SYSCALL
    + """
tries(lambda: reaches(165, 40, None, None, None, 0, None))
tries(lambda: reaches(166, 39, None, 0), lambda: reaches(161, 51, None))
tries(lambda: reaches(155, 41, None, None), lambda: call(430, 430, b'tmpfs', 0), lambda: call(428, 428, -100, b'/', 1))
tries(lambda: reaches(442, 442, -1, None, 0, None, 0), lambda: reaches(429, 429, -1, None, -1, None, 0))
""",
    "makes namespaces": _SYSCALL
    + """
tries(*[lambda f=f: libc.unshare(f) == 0 for f in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x10020000)])
tries(lambda: reaches(308, 268, -1, 0))
tries(lambda: reaches(56, 220, 0x10000f00, 0, 0, 0, 0), lambda: reaches(435, 435, None, 0))
""",
    "uses the keyring": _SYSCALL
    + """
tries(lambda: reaches(248, 217, None, None, None, 0, 0))
tries(lambda: reaches(250, 219, 999, 0, 0), lambda: reaches(249, 218, None, None, None, 0))
""",
    "uses io_uring": _SYSCALL + "tries(lambda: call(425, 425, 8, ctypes.create_string_buffer(120)))",
    "uses userfaultfd, bpf and perf": _SYSCALL
    + """
tries(lambda: reaches(323, 282, -1), lambda: reaches(321, 280, -1, None, 0))
tries(lambda: reaches(298, 241, None, 0, -1, -1, 0))
""",
    "opens files by handle, loads modules, sets the clock": _SYSCALL
    + """
tries(lambda: reaches(303, 264, -100, None, None, None, 0), lambda: reaches(304, 265, -1, None, 0))
tries(lambda: reaches(313, 273, -1, None, 0))
tries(lambda: reaches(103, 116, 999, None, 0), lambda: reaches(227, 112, 0, None))
tries(lambda: reaches(170, 161, None, 3), lambda: reaches(246, 104, 0, 0, None, 999), lambda: reaches(163, 89, b'/x/y'))
""",
    "lifts its own bounds": """
import resource
for name in ('RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_FSIZE', 'RLIMIT_NOFILE', 'RLIMIT_NPROC'):
    kind = getattr(resource, name)
    soft, hard = resource.getrlimit(kind)
    tries(lambda: resource.setrlimit(kind, (hard + 1, hard + 1)) if hard >= 0 else False)
""",
    "keeps shared memory of the system": _SYSCALL
    + """
tries(lambda: reaches(29, 194, 98765, 4096, 0))
tries(lambda: reaches(68, 186, 98765, 0), lambda: reaches(64, 190, 98765, 1, 0))
tries(lambda: reaches(240, 180, None, 0, 0, None))
""",
    "hides behind 32 bits": _SYSCALL + "tries(lambda: not arm and call(0x40000000 + 41, 0, 2, 1, 0))",
    # It crashes, or breaks the reader.
    "crashes": "import ctypes\nctypes.string_at(0)\nprint('ESCAPED')",
    "aborts": "import os\nos.abort()\nprint('ESCAPED')",
    "exits under the runner": "import os\nprint('before')\nos._exit(0)",
    "closes all descriptors": "import os\nos.closerange(0, 256)",
    "prints bytes that are no text": "import os\nos.write(1, bytes(range(256)) * 4 + b'\\xff\\xfe\\xed\\xa0\\x80')",
    "prints lone surrogates and zeros": "print('\\ud800\\udfff\\x00\\x1b[2J')",
    "forges the answer": """
import os
for number in (1, 3, 4):
    try: os.write(number, b'\\xff\\xff\\xff\\xff{"status": "ok"}')
    except OSError: pass
""",
    "raises what cannot be shown": """
class Bad(Exception):
    def __str__(self): raise SystemExit('never')
raise Bad
""",
    "nests without end": "eval('(' * 5000 + ')' * 5000)",
    "makes many files": """
import os
made = []
try:
    for number in range(20000):
        open(f'/tmp/{number}', 'w').close()
        made.append(number)
    print('ESCAPED')
except OSError: pass
for number in made: os.remove(f'/tmp/{number}')
""",
    "fills the disk": """
import os
written, made = 0, []
try:
    while written < 256 << 20:
        made.append(f'/tmp/{len(made)}')
        with open(made[-1], 'wb') as file:
            written += file.write(bytes(15 << 20))
    print('ESCAPED')
except OSError: pass
for path in made: os.remove(path)
""",
    "makes a sparse giant": """
import os
open('/tmp/giant', 'w').close()
tries(lambda: (os.truncate('/tmp/giant', 1 << 40), 'made'))
os.remove('/tmp/giant')
""",
    "takes memory at once": "tries(lambda: len(bytearray(8 << 30)))",
}

LASTING = {
    "takes memory in pieces": "kept = []\nwhile len(kept) < 300: kept.append(bytearray(10 << 20))\nprint('ESCAPED')",
    "takes memory in shared mappings": """
import mmap
kept = []
while len(kept) < 200:
    kept.append(mmap.mmap(-1, 16 << 20))
    kept[-1].write(bytes(16 << 20))
print('ESCAPED')
""",
    "takes memory over children": """
import os, time
children = 0
for number in range(10):
    try:
        if os.fork() == 0:
            kept = bytearray(200 << 20)
            time.sleep(10)
            os._exit(0)
    except OSError: break
    children += 1
print(children, 'ESCAPED' if children else '')
""",
    "recurses without end": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "spins": "while True: pass",
    "spins in C": "10 ** 10 ** 9",
    "spins in an expression of sympy": "import sympy\nsympy.factorint(2**1001 - 1)",
    "sleeps": "import time\ntime.sleep(10**6)",
    "sleeps and ignores signals": """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try: time.sleep(1000)
    except BaseException: pass
""",
    "catches everything": """
while True:
    try:
        while True: pass
    except BaseException: pass
""",
    "waits on itself": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "starts threads without end": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(1000,)).start()
    except RuntimeError: pass
""",
    "leaves a thread behind": """
import threading, time
threading.Thread(target=lambda: [time.sleep(1) for _ in range(10**6)]).start()
""",
    "floods the output": "while True: print('x' * 10000)",
    "floods the output in C": "import os\nwhile True: os.write(1, b'y' * 65536)",
    "floods the runner's channel": """
import os
while True:
    try: os.write(3, b'S' * 65536)
    except OSError: break
""",
    "prints a huge integer": "import sys\nsys.set_int_max_str_digits(0)\nprint(10 ** (10 ** 7))",
    "matches without end": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "opens a pipe and waits": "import os\nr, w = os.pipe()\nos.read(r, 1)",
}


def program(name: str, places: dict[str, str]) -> str:
    """The code of an attack, with the host's places in it."""
    code = _TRY + {**QUICK, **LASTING}[name]
    for word, value in places.items():
        code = code.replace(word, value)
    return code
