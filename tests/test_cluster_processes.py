import os
import subprocess
import sys

from cluster.processes import birth_of, end, is_alive


def sleeper(code: str = "import time; time.sleep(60)") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_this_process_is_alive_and_another_with_its_number_is_not():
    birth = birth_of(os.getpid())
    assert birth is not None
    assert is_alive(os.getpid(), birth)
    assert not is_alive(os.getpid(), birth + "0")
    assert not is_alive(os.getpid(), None)


def test_a_killed_process_is_not_alive_even_before_it_is_waited_for():
    process = sleeper()
    birth = birth_of(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid, birth)
    process.wait()


def test_a_process_that_does_not_listen_is_ended_all_the_same():
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); "
    deaf += "time.sleep(60)"
    process = sleeper(deaf)
    process.stdout.readline()
    birth = birth_of(process.pid)
    end(process.pid, birth, grace_s=0.2)
    assert not is_alive(process.pid, birth)


def test_a_stranger_that_took_over_the_number_is_left_alone():
    process = sleeper()
    end(process.pid, birth_of(process.pid) + "0", grace_s=0.1)
    assert process.poll() is None
    process.kill()
    process.wait()
