"""The loader bench times what it says it times, counts views, and leaves empty what a loader cannot do."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections import Counter
from ctypes.util import find_library
from pathlib import Path

import pytest
import torch
from PIL import Image

from mixsize.algorithms.regime.regime import Base
from mixsize.bench.loader.cases import Setting, make_cases, mixed_sizes
from mixsize.bench.loader.loader import mix_costs
from mixsize.bench.loader.loaders import LOADERS, choose_loaders, default_pool
from mixsize.bench.loader.plot import plot
from mixsize.bench.loader.process import LoaderProcess, cpu_seconds, make_loader
from mixsize.bench.pages.tables import TABLES
from mixsize.cli import main
from mixsize.ffcv_loaders.conversion.convert import convert

# A DataLoader forks its workers; PyTorch's own threads are there by then.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

COLOURS = {"red": (230, 20, 30), "green": (10, 200, 60), "grey": (128, 128, 128)}
#: By hand: (colour / 255 - mean) / std with ImageNet's statistics.
NORMALISED = {
    "red": (1.821, -1.686, -1.282),
    "green": (-1.947, 1.466, -0.759),
    "grey": (0.074, 0.205, 0.427),
}


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    """A folder with 4 JPEG images of one colour in each of 3 classes, below images/, and two files made of them.

    They are flat.beton and, with copies of half the sides, levels.beton. Images are 72 px high, 80 to 104 px wide.
    """
    folder = tmp_path_factory.mktemp("flat")
    for name, colour in COLOURS.items():
        (folder / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (80 + 8 * i, 72), colour).save(folder / "images" / name / f"{i}.jpg", quality=95)
    convert(folder / "images", folder / "flat.beton", store="jpg", workers=1, progress=False)
    convert(folder / "images", folder / "levels.beton", store="jpg", levels=(2,), workers=1, progress=False)
    return folder


@pytest.fixture
def setting(flat) -> Setting:
    files = (flat / "flat.beton", flat / "levels.beton", flat / "images")
    return Setting(*files, Base(32, 4), threads=1, epoch_images=80, pad_crop=False)


def need(loader: str) -> None:
    """Skip the test where the loader's library is not installed."""
    package = LOADERS[loader].package
    if package.startswith("lib"):
        if find_library(package.removeprefix("lib")) is None:
            pytest.skip(f"{package} is not installed")
    elif package:
        pytest.importorskip(package)


def test_batches_follow_the_budget():
    setting = Setting(Path(), None, None, Base(224, 16), 2, 1800, False)
    cases = make_cases([96, 128, 224, 320], ["s144"], [3, 5], 128, setting)
    batches = {case.name: [choice.batch_size for choice in case.regime.choices] for case in cases}
    # 16 * (224 / S)**2: 87.1, 49, 16, 7.84; at D = 3 and 5 the 49 are shared out: 16.3, 9.8
    assert batches == {
        "96 px": [87],
        "128 px": [49],
        "224 px": [16],
        "320 px": [8],
        "s144": [12, 16, 49, 87],
        "128 px, D = 3": [16],
        "128 px, D = 5": [10],
    }
    assert mixed_sizes(cases[4], cases) is None  # 256 px is not timed alone.


def test_mixing_costs_the_time_of_the_mix_over_that_of_its_parts():
    setting = Setting(Path(), None, None, Base(32, 64), 1, 1800, True)
    cases = make_cases([40, 32, 24, 16], ["s28"], [], 24, setting)
    rates = {"40 px": [100.0], "32 px": [150.0], "24 px": [300.0], "16 px": [400.0], "s28": [160.0]}
    # 0.2 / 100 + 0.3 / 150 + 0.3 / 300 + 0.2 / 400 = 0.0055 s an image; 1 / 160 = 0.00625
    assert mix_costs(rates, cases)["s28"]["median"] == pytest.approx(0.00625 / 0.0055)


@pytest.mark.parametrize(
    ("loader", "served"),
    [
        # Whole batches of 3 and 16; 16 of 5 images with 3 views; of s28 5 x 3, 6 x 4, 3 x 7 and 1 x 16 images.
        ("ours", {"40 px": 78, "16 px": 80, "16 px, D = 3": 240, "s28": 15 + 24 + 21 + 16}),
        ("levels", {"40 px": 78, "16 px": 80, "16 px, D = 3": 240, "s28": 15 + 24 + 21 + 16}),
        ("torchvision", {"40 px": 78, "16 px": 80}),
        ("torchvision-0", {"40 px": 78, "16 px": 80}),
        ("simplejpeg", {"40 px": 78, "16 px": 80}),
        ("dali", {"40 px": 78, "16 px": 80}),
        ("composer", {"16 px": 80}),  # It loads 32 px and does not enlarge.
    ],
)
def test_each_loader_serves_what_it_can_and_every_view_counts(setting, loader, served):
    need(loader)
    cases = make_cases([40, 16], ["s28"], [3], 16, setting)
    epochs = make_loader(loader, setting, cases)
    assert set(epochs) == set(served)
    for name, epoch in epochs.items():
        images = [image for batch in epoch() for image in checked(batch)]
        assert len(images) == served[name]
        if name != "s28":
            assert {image.shape[-1] for image in images} == {int(name.split()[0])}


def test_dali_begins_every_epoch_anew(setting):
    need("dali")
    (epoch,) = make_loader("dali", setting, make_cases([40], [], [], 16, setting)).values()
    assert [sum(map(len, epoch())) for _ in range(3)] == [78, 78, 78]


def test_torchvision_is_timed_with_the_number_of_workers_in_its_name(setting, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "mixsize.bench.loader.torchvision_loader.torchvision_loader", lambda *args: asked.append(args[3])
    )
    for loader in ("torchvision", "torchvision-0", "torchvision-1", "torchvision-2", "torchvision-4"):
        make_loader(loader, setting, make_cases([16], [], [], 16, setting))
    assert asked == [setting.threads, 0, 1, 2, 4]


def test_the_floor_reads_whole_images_of_jpeg_files(setting, digits):
    need("entropy_floor")
    from mixsize.bench.loader.floor import open_turbojpeg, read_entropy_code

    (epoch,) = make_loader("entropy_floor", setting, make_cases([40], ["s28"], [], 16, setting)).values()
    assert [len(batch) for batch in epoch()] == [3] * 26
    raw = Setting(digits / "train.beton", None, None, Base(8, 16), 1, 160, pad_crop=True)
    assert make_loader("entropy_floor", raw, make_cases([8], [], [], 8, raw)) == {}
    jpeg = (setting.images / "red" / "0.jpg").read_bytes()
    library = open_turbojpeg()
    read_entropy_code(library, jpeg, 72, 80)
    with pytest.raises(ValueError, match="not a whole JPEG file"):
        read_entropy_code(library, jpeg[: len(jpeg) // 2], 72, 80)


def test_ffcv_serves_fixed_sizes_without_duplicates(setting):
    need("ffcv")
    assert set(make_loader("ffcv", setting, make_cases([40, 16], ["s28"], [3], 16, setting))) == {"40 px", "16 px"}


def test_timm_serves_mixes_in_batches_of_the_regime(setting):
    cases = make_cases([16], ["s28"], [3], 16, setting)
    epochs = make_loader("timm", setting, cases)
    assert set(epochs) == {"16 px", "s28"}
    assert sum(len(checked(batch)) for batch in epochs["16 px"]()) == 80
    batches = [checked(batch) for batch in epochs["s28"]()]
    assert {len(batch) == {40: 3, 32: 4, 24: 7, 16: 16}[batch.shape[-1]] for batch in batches} == {True}


def test_timm_draws_sizes_with_the_shares_of_the_regime(flat):
    setting = Setting(flat / "flat.beton", None, flat / "images", Base(32, 4), 1, 40_000, False)
    (case,) = make_cases([], ["s28"], [], 16, setting)
    sampler = make_loader("timm", setting, [case])["s28"].args[0].batch_sampler
    images = Counter()
    for choice, batch_size in sampler.schedule:
        images[case.regime.choices[choice].size_px] += batch_size
    shares = {size: count / 40_000 for size, count in images.items()}
    assert shares == pytest.approx({40: 0.2, 32: 0.3, 24: 0.3, 16: 0.2}, abs=0.02)


def checked(batch: torch.Tensor) -> torch.Tensor:
    """The batch, which must be float32 ``(N, 3, S, S)`` and hold images of the three colours, normalised."""
    assert batch.dtype == torch.float32
    assert batch.shape[1] == 3
    assert batch.shape[2] == batch.shape[3]
    assert batch.device.type == "cpu"
    colours = torch.tensor(list(NORMALISED.values()))
    distance = (batch[:, None] - colours[None, :, :, None, None]).abs().amax(dim=(2, 3, 4))
    assert distance.amin(dim=1).max() < 0.06, "JPEG moves a colour by up to 3 of 255"
    return batch


@pytest.mark.parametrize(
    ("options", "base", "images", "names"),
    [
        ([], Base(224, 16), 900, ["96 px", "128 px", "160 px", "192 px", "224 px", "256 px", "288 px", "320 px"]),
        (["--pad-crop"], Base(32, 64), 50_000, ["16 px", "24 px", "32 px", "40 px"]),
    ],
)
def test_defaults_suit_photographs_or_cifar(options, base, images, names, flat, monkeypatch):
    asked = []

    def measure(_names, *args):
        asked.extend(args)
        raise InterruptedError

    monkeypatch.setattr("mixsize.bench.loader.loader.measure", measure)
    with pytest.raises(InterruptedError):
        main(["bench", "loader", str(flat / "flat.beton"), "--threads", "1", *options])
    setting, cases, rounds = asked
    assert (setting.base, setting.epoch_images, setting.pad_crop, rounds) == (base, images, bool(options), 5)
    mixes = ["s28"] if options else ["s144", "s208"]
    side = names[1]
    assert [case.name for case in cases] == [*names, *mixes, f"{side}, D = 3", f"{side}, D = 5"]
    # The cost of every mix can be told.
    assert all(mixed_sizes(case, cases) for case in cases if case.name in mixes)


def test_with_pad_and_crop_ffcv_serves_the_stored_size_alone(digits):
    need("ffcv")
    setting = Setting(digits / "train.beton", None, None, Base(8, 16), 1, 160, pad_crop=True)
    cases = make_cases([8, 16], [], [], 8, setting)
    assert set(make_loader("ffcv", setting, cases)) == {"8 px"}
    epochs = make_loader("ours", setting, cases)
    assert {name: sum(map(len, epoch())) for name, epoch in epochs.items()} == {"8 px": 160, "16 px": 160}


def test_libraries_that_are_not_installed_are_left_out_by_name(setting, monkeypatch):
    monkeypatch.setattr(
        "mixsize.bench.loader.loaders.find_spec", lambda name: None if name == "simplejpeg" else "something"
    )
    pool = ("ours", "simplejpeg", "timm")
    line = "simplejpeg is not installed (pip install 'mixsize[bench]')"
    assert choose_loaders(None, setting, pool) == (("ours", "timm"), (f"simplejpeg is left out: {line}",))
    assert choose_loaders(["timm", "ours"], setting, pool) == (("ours", "timm"), ())
    with pytest.raises(ValueError, match="--loaders simplejpeg: simplejpeg is not installed"):
        choose_loaders(["simplejpeg"], setting, pool)


def test_torchvision_is_timed_once_for_each_number_of_workers():
    several = {"torchvision-0", "torchvision-1", "torchvision-2", "torchvision-4"}
    assert {name for name in default_pool(2) if "torchvision" in name} == several
    assert {name for name in default_pool(16) if "torchvision" in name} == {*several, "torchvision"}


def test_the_cpu_time_of_workers_counts():
    def work(end):
        while time.process_time() < 0.1:
            pass
        end.send(time.process_time())
        end.recv()

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    worker = context.Process(target=work, args=(there,))
    before = cpu_seconds()
    worker.start()
    spent = here.recv()
    assert spent >= 0.1
    assert cpu_seconds() - before >= spent
    here.send(None)
    worker.join()
    assert cpu_seconds() - before >= 0.99 * spent  # The kernel counts ended processes in microseconds.


def test_the_bench_times_our_loader_and_ffcvs_in_processes_of_their_own(flat, tmp_path, capsys):
    need("ffcv")
    out = tmp_path / "result.json"
    options = ["--sizes", "32", "--mixes", "--duplicates", "2", "--duplicates-size", "32"]
    options += ["--base-size", "32", "--base-batch", "4", "--epoch-images", "12", "--rounds", "1", "--threads", "1"]
    options += ["--loaders", "ours", "ffcv"]
    assert main(["bench", "loader", str(flat / "flat.beton"), *options, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {loader: set(rates) for loader, rates in result["rates"].items()} == {
        "ours": {"32 px", "32 px, D = 2"},
        "ffcv": {"32 px"},
    }
    assert all(rate["n"] == 1 and rate["min"] > 0 for rates in result["rates"].values() for rate in rates.values())
    served = {loader: set(rates) for loader, rates in result["rates"].items()}
    assert {loader: set(cpu) for loader, cpu in result["cpu_ms"].items()} == served
    assert all(cpu["min"] > 0 for by_case in result["cpu_ms"].values() for cpu in by_case.values())
    assert set(result["memory_mib"]["ours"]) == set(result["memory_mib"]["ffcv"]) == {"32 px"}
    assert result["base_bytes"] == 4 * 32**2 * 3
    assert result["setting"]["data"]["file"] == "flat.beton"
    assert "Loaders that read image files (`--images`) were left out." in capsys.readouterr().out
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    assert "| images/s | 32 px | 32 px, D = 2 |\n| --- | ---: | ---: |\n| batch | 4 | 2 |" in TABLES["loader"](result)


def test_a_loader_that_fails_is_named(setting):
    with (
        LoaderProcess("unheard of", setting, ()) as process,
        pytest.raises(RuntimeError, match="the loader 'unheard of' failed: KeyError"),
    ):
        _ = process.serves


def rate(median: float) -> dict[str, float]:
    return {"median": median, "min": median - 100, "max": median + 50, "n": 5}


def cpu(median: float) -> dict[str, float]:
    return {"median": median, "min": median / 2, "max": median * 2, "n": 5}


@pytest.fixture
def result() -> dict:
    cases = [("96 px", [96], [87], [1]), ("s144", [256, 96], [12, 87], [1, 1]), ("128 px, D = 3", [128], [16], [3])]
    start = {"median": 0.02, "min": 0.01, "max": 0.03, "n": 5}
    cost = {"median": 1.01, "min": 0.99, "max": 1.04, "n": 5}
    return {
        "cases": [
            {
                "name": name,
                "sizes_px": sizes,
                "batch_sizes": batches,
                "duplicates": duplicates,
                "sample_shares": [1 / len(sizes)] * len(sizes),
            }
            for name, sizes, batches, duplicates in cases
        ],
        "setting": {
            "data": {"images": 300, "mean_height": 370.8, "mean_width": 436.3, "jpeg": 1.0},
            "images": True,
            "base": [224, 16],
            "threads": 2,
            "rounds": 5,
            "epoch_images": 1800,
            "pad_crop": False,
        },
        "rates": {
            "levels": {"96 px": rate(2500), "s144": rate(2000), "128 px, D = 3": rate(6000)},
            "ours": {"96 px": rate(1500), "s144": rate(1400), "128 px, D = 3": rate(4000)},
            "ffcv": {"96 px": rate(900)},
            "composer": {"96 px": rate(500)},
            "torchvision-1": {"96 px": rate(400)},
        },
        "cpu_ms": {
            "levels": {"96 px": cpu(0.4), "s144": cpu(0.5), "128 px, D = 3": cpu(0.125)},
            "ours": {"96 px": cpu(0.8), "s144": cpu(0.9), "128 px, D = 3": cpu(0.25)},
            "ffcv": {"96 px": cpu(1.23456)},
            "composer": {"96 px": cpu(12.3456)},
            "torchvision-1": {"96 px": cpu(4.0)},
        },
        "first_batch_seconds": {"ours": {"96 px": start}, "ffcv": {"96 px": start}},
        "mix_cost": {"levels": {}, "ours": {"s144": cost}},
        "mix_cost_target": 1.05,
        "memory_mib": {"ours": {"96 px": 70.4, "s144": 65.6}, "ffcv": {"96 px": 496.3}},
        "base_bytes": 16 * 224**2 * 3,
        "environment": {"gpu": None, "cpu": "a processor", "cores": 2, "torch": "2.7.0"},
        "measured": "2026-01-02T03:04:05+00:00",
    }


def test_what_a_loader_cannot_do_is_left_empty_in_the_table(result):
    rates, cpu_times = TABLES["loader"](result).split("\n\n")[:2]
    assert rates.splitlines() == [
        "| images/s | 96 px | s144 | 128 px, D = 3 |",
        "| --- | ---: | ---: | ---: |",
        "| batch | 87 |  | 16 |",
        "| mixsize, levels | 2,500 (2,400-2,550) | 2,000 (1,900-2,050) | 6,000 (5,900-6,050) |",
        "| mixsize | 1,500 (1,400-1,550) | 1,400 (1,300-1,450) | 4,000 (3,900-4,050) |",
        "| FFCV | 900 (800-950) |  |  |",
        "| torchvision, 1 worker | 400 (300-450) |  |  |",
        "| Composer | 500 (400-550) |  |  |",
        "| mixsize, levels / FFCV | 2.78x |  |  |",
        "| mixsize / FFCV | 1.67x |  |  |",
    ]
    assert cpu_times.splitlines() == [
        "| CPU ms/image | 96 px | s144 | 128 px, D = 3 |",
        "| --- | ---: | ---: | ---: |",
        "| mixsize, levels | 0.400 | 0.500 | 0.125 |",
        "| mixsize | 0.800 | 0.900 | 0.250 |",
        "| FFCV | 1.23 |  |  |",
        "| torchvision, 1 worker | 4.00 |  |  |",
        "| Composer | 12.3 |  |  |",
    ]


def test_a_mix_is_compared_with_ffcvs_share_weighted_sizes_and_duplicates_with_one_view(result):
    """Half of the images at 900 a second and half at 450 come to 600."""
    result["rates"]["ffcv"] |= {"256 px": rate(450), "128 px": rate(800)}
    text = TABLES["loader"](result)
    assert "| mixsize, levels / FFCV | 2.78x | 3.33x | 7.50x |\n| mixsize / FFCV | 1.67x | 2.33x | 5.00x |\n" in text
    assert "mixes are compared with its share-weighted fixed sizes" in text


def test_the_table_says_what_else_was_measured(result):
    below = TABLES["loader"](result)
    assert "each of an image's D views counted" in below
    assert "mixsize: s144 1.010x (0.990-1.040) of their time (n=5, target at most 1.05)" in below
    assert "mixsize 96 px 70 MiB, mixsize s144 66 MiB, FFCV 96 px 496 MiB" in below
    assert "(`--images`)" not in below
    assert "The floor" not in below
    result["setting"]["images"] = False
    result["rates"]["entropy_floor"] = result["cpu_ms"]["entropy_floor"] = {}
    assert "Loaders that read image files (`--images`) were left out." in TABLES["loader"](result)
    result["rates"]["entropy_floor"] = {"96 px": rate(2600)}
    assert "The floor reads the entropy code of whole images" in TABLES["loader"](result)


@pytest.mark.parametrize("removed", [{"ffcv", "levels", "composer"}, {"ours"}])
def test_a_plot_is_drawn_whichever_loaders_were_timed(result, removed, tmp_path):
    for loader in removed:
        del result["rates"][loader]
    plot(result, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 800


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threads", "0"], "--threads is 0; it must lie between 1 and"),
        (["--threads", "100000"], "--threads is 100000; it must lie between 1 and"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--epoch-images", "0"], "--epoch-images is 0"),
        (["--epoch-images", "100"], "100 images are too few"),
        (["--sizes", "96", "96"], "96 px is asked for twice"),
        (["--duplicates", "0"], "--duplicates is 0"),
        (["--sizes", "--mixes", "--duplicates"], "nothing to time"),
        (["--loaders", "ours", "timm"], "--loaders timm: needs --images"),
        (["--images", "missing"], "missing: no such folder"),
        (["--images", "{few}"], "few: holds other images than {data}"),
        (["--images", "{other}"], "other: holds other images than {data}"),
        (["--pad-crop", "--images", "{few}"], "--images with --pad-crop"),
        (["--levels-file", "{data}"], "flat.beton: holds one stored resolution"),
        (["--levels-file", "missing.beton"], "missing.beton"),
    ],
)
def test_mistakes_are_named_before_anything_is_timed(options, words, flat, tmp_path, capsys):
    for name in ("few", "other"):
        shutil.copytree(flat / "images", tmp_path / name)
        (tmp_path / name / "red" / "0.jpg").unlink()
    shutil.copy(flat / "images" / "red" / "0.jpg", tmp_path / "other" / "grey" / "more.jpg")
    names = {"few": tmp_path / "few", "other": tmp_path / "other", "data": flat / "flat.beton"}
    argv = ["bench", "loader", str(flat / "flat.beton"), *(option.format(**names) for option in options)]
    assert main(argv) == 2
    assert words.format(**names) in capsys.readouterr().err


def test_files_of_several_stored_resolutions_are_told_apart(flat, photos, capsys):
    assert main(["bench", "loader", str(flat / "levels.beton")]) == 2
    assert "levels.beton: holds 2 stored resolutions; give it as --levels-file" in capsys.readouterr().err
    assert main(["bench", "loader", str(photos), "--levels-file", str(flat / "levels.beton")]) == 2
    assert f"levels.beton: holds other images than {photos}" in capsys.readouterr().err
