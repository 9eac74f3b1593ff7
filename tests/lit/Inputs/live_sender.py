"""Holds a sender (a command that writes to file:STORE with --live) in the middle of its work until a receiver follows it, and then lets it go on, or kills it.

live_sender.py STORE go-on|kill PUBLISH... -- RUN...
Prints what `ds-store ls` says of it in the middle, then what RUN prints. Nothing here waits for a time: the sender is stopped as soon as what it writes is
there, and goes on as soon as the receiver has opened it.
"""
import os, signal, subprocess, sys, time

store, what = sys.argv[1:3]
both = sys.argv[3:]
publish, run = both[:both.index("--")], both[both.index("--") + 1:]
live = os.path.join(store, ".live")


def until(is_so):
    while not is_so():
        time.sleep(0.001)


def being_written():
    if sender.poll() is not None:
        sys.exit("the sender has ended before it was seen")
    return os.path.isdir(live) and any(not ".tmp-" in name for name in os.listdir(live))


def opened():
    if receiver.poll() is not None:
        sys.exit("the receiver has ended without following: " + receiver.communicate()[0])
    for fd in os.listdir(f"/proc/{receiver.pid}/fd"):
        try:
            if "/.live/" in os.readlink(f"/proc/{receiver.pid}/fd/{fd}"):
                return True
        except OSError:
            pass
    return False


sender = subprocess.Popen(publish, stdout=subprocess.DEVNULL)
until(being_written)
sender.send_signal(signal.SIGSTOP)
print(subprocess.run(["ds-store", "ls", "file:" + store], capture_output=True, text=True, check=True).stdout, end="", flush=True)
receiver = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
until(opened)
sender.send_signal(signal.SIGCONT if what == "go-on" else signal.SIGKILL)
print(receiver.communicate()[0], end="")
sender.wait()
sys.exit(receiver.returncode)
