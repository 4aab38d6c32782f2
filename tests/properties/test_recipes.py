"""Whatever a recipe holds, it composes, or every line of the one error names the key or the file at fault."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

from mixsize.recipes.config.compose import RecipeError, compose, digest, packaged_recipes, to_yaml
from mixsize.recipes.config.keys import LEAF_MAPPINGS, OPEN_SECTIONS, all_keys
from mixsize.recipes.planning.regimes import build_regime

from .for_all import for_all, made
from .recipe_strategies import STARTS, applied, changes

KNOWN = {".".join(map(str, path)) for path in all_keys()}
FREE = tuple(".".join(path) + "." for path in LEAF_MAPPINGS | OPEN_SECTIONS)
FILE = "mutant.yaml"


def compose_or_name_the_key(items: list[str], file: str):
    """The recipe; None where it is refused, each line naming a key by its path or the file."""
    try:
        recipe = compose(items)
    except RecipeError as error:
        lines = str(error).splitlines()
    else:
        again = compose([write(file, to_yaml(recipe).encode())])
        assert again == recipe
        assert digest(again) == digest(recipe)
        return recipe
    assert lines
    for line in lines:
        assert line.isprintable(), line
        place, _, problem = line.partition(": ")
        assert problem, line
        path = ".".join(part for part in place.split(".") if not part.isdigit())
        of_a_key = (
            path in KNOWN or path.startswith(FREE) or re.search("unknown key|too deeply|is not a YAML value", line)
        )
        of_an_item = place == file or line.startswith(("'", '"'))
        assert of_a_key or of_an_item, line
    return None


def write(file: str, content: bytes) -> str:
    Path(file).write_bytes(content)
    return file


def as_override(path: tuple, value: object) -> str:
    key = ".".join(str(part) for part in path)
    text = "null" if value is ... else yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return f"{key}={text.strip().removesuffix('...').strip()}"


@for_all(
    80,
    12_000,
    number=st.integers(0, len(STARTS) - 1),
    faults=st.lists(changes(), max_size=3),
    stride_px=st.sampled_from([1, 4, 7]),
    ranks=st.integers(1, 3),
    data=st.data(),
)
def test_a_recipe_of_any_values_composes_or_names_each_key_at_fault(number, faults, stride_px, ranks, data):
    start = STARTS[number]
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/{FILE}"
        if data.draw(st.booleans()):
            for fault in faults:
                start = applied(start, fault)
            items = [write(file, yaml.safe_dump(start, allow_unicode=True).encode("utf-8", "surrogatepass"))]
        else:
            items = [write(file, yaml.safe_dump(start).encode()), *(as_override(*fault) for fault in faults)]
        recipe = compose_or_name_the_key(items, file)
    if recipe is not None:
        regime = made(lambda: build_regime(recipe, stride_px, ranks), re.compile("^regime: "))
        assert regime is None or regime.max_images >= 1


#: What YAML would take for something else, were it written without quotes.
AMBIGUOUS = [
    "123", "-1", "1e5", "1.5", ".5", ".nan", "-.inf", "true", "False", "null", "~", "Null", "<<", "off", "1:30", "0x1f",
    "2001-01-01", "!x", "&a", "*a", "# x", "x # y", "- x", "? x", "a: b", "a:", "'", '"', "{}", "[]", "[", "|", ">",
    "%", "@", "`", "---", "...", " x", "x ", "\t", "a\nb", "\x85", "\u2028", "\ufeff", "é", "=", "1_000",
]  # fmt: skip


@for_all(120, 4_000, text=st.one_of(st.sampled_from(AMBIGUOUS), st.text(max_size=4)))
def test_a_text_is_written_so_that_it_is_read_as_the_same_text(text):
    start = applied(STARTS[2], (("model", "kwargs"), {"a": text}))
    start = applied(start, (("output", "wandb", "tags"), [text] if text else []))
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/{FILE}"
        # JSON's escapes are YAML's, and leave no doubt.
        recipe = compose_or_name_the_key([write(file, json.dumps(start).encode())], file)
    if recipe is not None:
        assert recipe.model.kwargs["a"] == text


PACKAGED = [
    resources.files("mixsize.recipes").joinpath(f"{name}.yaml").read_bytes()
    for name in packaged_recipes()
    if name in ("demo", "cifar10/resnet44", "imagenet/resnet50", "regime/progressive", "regime/s144_bplus")
]
ODDITIES = [
    b"\t", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x85", b"\xe2\x80\xa8", b"\r", b"---\n", b"...\n",
    b"%YAML 9.9\n---\n", b"%YAML " + b"9" * 5000 + b".1\n---\n", b"%TAG ! tag:x,2000:\n---\n", b"&a ", b"*a ",
    b"<<: *a\n", b"<<: [*a, *a]\n", b"!!int ''", b"!!float ''", b"!!bool x", b"!!null x", b"!!str [a]", b"!!map x",
    b"!!seq {}", b"!!set {a}", b"!!omap []", b"!!binary aGk=", b"!!timestamp 2001-01-01", b"!!python/name:os.system ",
    b"!<tag:yaml.org,2002:int> 0x", b"!x y", b'"\\ud800"', b'"\\uDFFF": 1\n', b'"\\UFFFFFFFF"', b'"\\U00110000"',
    b'"\\x', b"? ", b"? [a]\n: b\n", b": ", b"- ", b"{", b"}", b"[", b"]", b"'", b'"', b"|\n", b">9\n", b"#", b",",
    b"@", b"`", b".nan", b"-.inf", b"1e999", b"1_", b"0o7", b"9" * 5000, b"name: x\nname: y\n", b"=", b"<<",
    b"[" * 100, b"{a: " * 40, b"k" * 2000 + b": 1\n", b"\xf0\x9d\x94\x98",
]  # fmt: skip


@st.composite
def mutated(draw) -> bytes:
    """A packaged recipe with some of its bytes changed, and YAML's oddities put in between."""
    text = draw(st.sampled_from(PACKAGED))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 2, 10, 80])))
        put = draw(
            st.one_of(st.sampled_from(ODDITIES), st.binary(max_size=3), st.just(b""), st.just(text[start:end] * 2))
        )
        if draw(st.booleans()):  # At the start of a line, where it means most.
            start = text.rfind(b"\n", 0, start) + 1
            end = max(start, end)
        text = text[:start] + put + text[end:]
    return text


@for_all(200, 20_000, text=mutated())
def test_a_file_of_any_bytes_composes_or_is_named(text):
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/{FILE}"
        compose_or_name_the_key([write(file, text)], file)


@pytest.mark.parametrize("before", [b"", b"name: ", PACKAGED[0]])
def test_each_oddity_alone_and_behind_others_composes_or_is_named(before):
    with tempfile.TemporaryDirectory() as folder:
        for oddity in [
            *ODDITIES,
            b"3",
            b"[a]",
            b"a: &x [*x]\n",
            b"name: &x [*x]\n",
            b"a: &x {b: *x}\n",
            b"a: !!int x\n",
        ]:
            compose_or_name_the_key([write(f"{folder}/{FILE}", before + oddity)], f"{folder}/{FILE}")


def _bombs() -> dict[str, bytes]:
    names = [f"a{i}" for i in range(40)]
    pairs = list(itertools.pairwise(names))
    aliases = "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairs)
    merges = "".join(f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in pairs)
    chain = "".join(f"{new}: &{new} {{k: *{old}}}\n" for old, new in pairs)
    return {
        "aliases": f"a0: &a0 [1]\n{aliases}".encode(),
        "merge keys": f"a0: &a0 {{x: 1}}\n{merges}".encode(),
        "a chain of aliases": f"a0: &a0 {{x: 1}}\n{chain}".encode(),
        "brackets": b"[" * 900_000,
        "braces": b"{a: " * 200_000,
        "dashes": b"- " * 400_000,
        "question marks": b"? " * 400_000,
        "a long word": b"name: " + b"x" * 1_000_000,
        "a long quoted text": b'name: "' + b"\\x41" * 240_000 + b'"',
        "a long key": b"k" * 1_000_000 + b": 1",
        "comments": b"# x\n" * 250_000,
        "indented nothing": (" " * 1000 + "\n").encode() * 1000,
        "unknown keys": b"".join(b"optimizr%d: 1\n" % i for i in range(1990)),
        "many keys": b"".join(b"k%d: 1\n" % i for i in range(100_000)),
        "long unknown keys": b"".join(b"%s%d: 1\n" % (b"z" * 500, i) for i in range(1900)),
        "sizes": b"regime: {mode: B+, sizes: {" + b"".join(b"%d: 0.001, " % i for i in range(1, 900)) + b"}}",
        "a number": b"seed: " + b"9" * 900_000,
        "a duration": b"max_duration: " + b"9" * 900_000 + b"ep",
        "anchors": b"".join(b"k%d: &b%d 1\n" % (i, i) for i in range(50_000)),
        "more than a file may have": b"#" * (2 << 20),
    }


_COMPOSE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from mixsize.recipes.config.compose import compose, RecipeError
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for file in sys.argv[1:]:
    try:
        compose(["demo", file])
        print("composed")
    except RecipeError as error:
        print(str(error).splitlines()[0][:200])
"""


def test_no_few_lines_take_much_time_or_memory(tmp_path):
    """In a process with one gigabyte and a minute of processor time for all of them."""
    bombs = _bombs()
    files = []
    for number, content in enumerate(bombs.values()):
        (tmp_path / f"{number}.yaml").write_bytes(content)
        files.append(str(tmp_path / f"{number}.yaml"))
    endless = tmp_path / "endless.yaml"
    endless.symlink_to("/dev/zero")
    done = subprocess.run(
        [sys.executable, "-c", _COMPOSE, *files, str(endless)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = done.stdout.splitlines()
    assert len(outcomes) == len(files) + 1
    named = dict(zip([*bombs, "endless"], outcomes, strict=True))
    assert [name for name, outcome in named.items() if outcome == "composed"] == ["a long word", "a long quoted text"]
    too_long = [name for name, outcome in named.items() if outcome.endswith("bytes, which no recipe has")]
    assert too_long == ["more than a file may have", "endless"]
    for name in ("brackets", "braces", "dashes"):
        assert named[name].endswith("is nested more than 32 deep"), named[name]
    for name in ("many keys", "anchors"):
        assert named[name].endswith("holds more than 2000 values"), named[name]
    for name in ("aliases", "merge keys", "a chain of aliases"):
        assert named[name].endswith("aliases such as *a0 are not allowed"), named[name]


@pytest.mark.parametrize("length", [300, 5000])
def test_a_path_longer_than_paths_can_be_is_refused_as_a_file_and_as_a_name(length):
    for item in ("x" * length + ".yaml", "y" * length, "a.b=" * length):
        with pytest.raises(RecipeError):
            compose([item])
    with pytest.raises(RecipeError, match="is nested too deeply"):
        compose(["demo", "a." * length + "b=1"])
