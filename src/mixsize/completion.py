"""``mixsize completion``: a shell script that completes commands, packaged recipes and the keys of recipes."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mixsize.recipes.config.compose import packaged_recipes
from mixsize.recipes.config.reference import recipe_keys

#: A word that ends in = takes no space behind it. Where no word fits, files do.
_SCRIPT = """\
_mixsize() {{
    local word words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}}" in
            bench) if [ "$COMP_CWORD" -eq 2 ]; then words="{benches}"; fi ;;
            plan|train|eval|export) words="{recipes} {keys}" ;;
            recipes) words="{recipes}" ;;
            completion) words="bash zsh" ;;
        esac
    fi
    COMPREPLY=()
    for word in $(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"); do
        case "$word" in
            *=) COMPREPLY+=("$word") ;;
            *) COMPREPLY+=("$word ") ;;
        esac
    done
}}
complete -o default -o nospace -F _mixsize mixsize
"""
_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mixsize completion``."""
    parser.add_argument(
        "shell", choices=["bash", "zsh"], help='for instance in ~/.bashrc: eval "$(mixsize completion bash)"'
    )


def prepare(args: argparse.Namespace) -> Callable[[], int]:
    """The function returned prints the script."""

    def show() -> int:
        print(script(args.shell), end="")
        return 0

    return show


def script(shell: str) -> str:
    """The script for ``bash`` or ``zsh``."""
    from mixsize.cli import BENCHES, COMMANDS

    names = dict.fromkeys(key.name for key in recipe_keys() if "[" not in key.name)
    sections = {name.rpartition(".")[0] for name in names}
    text = _SCRIPT.format(
        commands=" ".join([*COMMANDS, "bench"]),
        benches=" ".join(BENCHES),
        recipes=" ".join(packaged_recipes()),
        keys=" ".join(f"{name}=" for name in names if name not in sections),
    )
    return text if shell == "bash" else _ZSH + text
