"""The index of a ``.beton`` file as arrays; ``test_format.py`` compares their types with FFCV's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixsize.ffcv_loaders.beton.format import ALLOCATION, DESCRIPTOR, HEADER, row_type


class Parts:
    """Header, descriptors, metadata and allocation table of a file."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self.header = np.frombuffer(data, HEADER, 1)[0]
        self.descriptors = np.frombuffer(data, DESCRIPTOR, self.header["num_fields"], HEADER.itemsize)
        self.metadata = np.frombuffer(
            data, row_type(self.descriptors["type_id"].tolist()), int(self.header["num_samples"]),
            HEADER.itemsize + self.descriptors.nbytes,
        )  # fmt: skip
        self.table = np.frombuffer(data, ALLOCATION, offset=int(self.header["alloc_table_ptr"]))
        self.names = [name.tobytes().rstrip(b"\0").decode() for name in self.descriptors["name"]]
