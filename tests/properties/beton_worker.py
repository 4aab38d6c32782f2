"""Opens ``.beton`` files and decodes every image of them, in a process that may crash without taking the tests along.

Reads a path a line from standard input and answers each with a line of JSON: ``{"images": N}``, or ``{"error": ...,
"kind": ...}`` with the class of what was raised. Once it is warm, it may take only so much more memory.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.decode.augment import CenterCrop, RandomResizedCrop, draw_windows
from mixsize.ffcv_loaders.decode.decode import Decoder

#: Bytes of address space beyond what importing and compiling took.
_ROOM = 256 << 20
_SIDE, _DUPLICATES = 24, 2


def decode_all(path: str) -> int:
    """Decode every image whole and in parts; returns how many there are."""
    with Beton.open(path) as beton:
        assert beton.num_classes >= 1
        assert len(beton.fingerprint) == 8
        decoder = Decoder(beton, num_workers=1)
        for sample in range(beton.num_samples):
            samples = np.array([sample])
            for augment in (RandomResizedCrop(), CenterCrop()):
                size = (beton.heights[samples], beton.widths[samples])
                windows = draw_windows(augment, *size, samples, _DUPLICATES, _SIDE, 0, 0)
                decoder.decode(samples, _DUPLICATES, windows, np.empty((_DUPLICATES, _SIDE, _SIDE, 3), np.uint8))
        decoder.close()
        return beton.num_samples


def main() -> None:
    for line in sys.stdin:
        path = line.rstrip("\n")
        try:
            answer = {"images": decode_all(path)}
        except Exception as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        print(json.dumps(answer), flush=True)
        if path in sys.argv[1:]:  # Warm: everything is compiled.
            taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + _ROOM, taken + _ROOM))


if __name__ == "__main__":
    main()
