"""The command line: one thin file per verb, with heavy imports inside the functions."""

import signal
import sys
from contextlib import suppress

hangups: list[int] = []
"""SIGHUPs that `multibox serve` got before it could read its models again; by default the first would end it."""

# nohup starts it with SIGHUP ignored, so that it outlives its terminal
if sys.argv[1:2] == ["serve"] and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    # Here, because importing the verbs takes half of the start. Only the main thread may set a handler
    with suppress(ValueError):
        signal.signal(signal.SIGHUP, lambda number, _: hangups.append(number))
