import os

import pytest

from mixsize.bench.loader import storage
from mixsize.cli import main


def test_a_file_that_fits_is_refused(tmp_path, capsys):
    file = tmp_path / "small.beton"
    file.write_bytes(bytes(3 << 20))
    assert main(["bench", "storage", str(file), "--limit-mib", "10"]) == 2
    assert "has 3 MiB; it must be larger than --limit-mib 10" in capsys.readouterr().err
    assert main(["bench", "storage", str(file), "--rounds", "0"]) == 2
    assert "--rounds is 0; it must be at least 1" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_limit_is_set_and_gone_afterwards():
    try:
        with storage.memory_limit(64) as members:
            limits = [members.with_name(name) for name in ("memory.max", "memory.limit_in_bytes")]
            assert [file.read_text().strip() for file in limits if file.exists()] == [str(64 << 20)]
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    assert not members.parent.exists()


def test_the_table_gives_medians_and_ranges():
    runs = [{"images_per_second": rate, "kib_per_image": 40.0, "images": 10} for rate in (1000, 3000, 1500)]
    head, rows = storage.table({"cases": {"random order": runs, "FFCV": []}})
    assert head == ["loader", "images/s", "read for an image"]
    assert rows == [["random order", "1,500 (1,000-3,000)", "40 KiB"], ["FFCV", "did not run", ""]]
