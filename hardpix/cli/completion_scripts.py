"""``hardpix completion``: print or install the scripts for bash, zsh and fish."""

from __future__ import annotations

import os
import sys
from pathlib import Path

USAGE = """\
usage: hardpix completion install [bash|zsh|fish]   put the script where the shell looks for it (default: $SHELL)
       hardpix completion bash|zsh|fish             print the script
"""

# COMP_WORDBREAKS splits at = and :, so that only what follows the last one may be answered.
BASH = """\
# Completion of hardpix for bash; made by: hardpix completion bash
_hardpix() {
    local line="${COMP_LINE:0:COMP_POINT}" current="" word
    local -a words
    read -ra words <<< "$line"
    if [[ $line != *[[:space:]] ]]; then
        current="${words[${#words[@]}-1]}"
        unset "words[${#words[@]}-1]"
    fi
    local answered="${current##*["$COMP_WORDBREAKS"]}"
    local before="${current%"$answered"}"
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("${word#"$before"}")
    done < <("${words[0]/#\\~/$HOME}" completion words "${words[@]:1}" "$current" 2> /dev/null)
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=./,] ]]; then
        compopt -o nospace 2> /dev/null
    fi
}
complete -o bashdefault -o default -F _hardpix hardpix
"""

ZSH = """\
#compdef hardpix
# Completion of hardpix for zsh; made by: hardpix completion zsh
_hardpix() {
    local -a found closed open
    found=("${(@f)$(${~words[1]} completion words "${(@)words[2,CURRENT-1]}" "$PREFIX" 2> /dev/null)}")
    found=(${found:#})
    if (( ! ${#found} )); then
        _files
        return
    fi
    open=(${(M)found:#*[=./,]})
    closed=(${found:#*[=./,]})
    (( ${#closed} )) && compadd -Q -- $closed
    (( ${#open} )) && compadd -Q -S '' -- $open
}
if [[ ${funcstack[1]} == _hardpix ]]; then
    _hardpix "$@"
else
    compdef _hardpix hardpix
fi
"""

FISH = """\
# Completion of hardpix for fish; made by: hardpix completion fish
function __hardpix_words
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] completion words $words[2..-1] "$current" 2> /dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete -c hardpix -f -a '(__hardpix_words)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion(arguments: list[str]) -> int:
    if arguments[:1] == ["words"]:  # what the scripts ask for on every key press
        from hardpix.cli.completion import candidates

        found = candidates(arguments[1:-1], arguments[-1]) if len(arguments) > 1 else []
        print("".join(f"{word}\n" for word in found), end="")
        return 0
    if len(arguments) == 1 and arguments[0] in SCRIPTS:
        print(SCRIPTS[arguments[0]], end="")
        return 0
    if arguments and arguments[0] == "install" and len(arguments) <= 2:
        return install(arguments[1] if len(arguments) == 2 else own_shell())
    asked = not arguments or arguments[0] in ("-h", "--help")
    print(USAGE, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def own_shell() -> str:
    return Path(os.environ.get("SHELL", "")).name


def target(shell: str) -> Path:
    """The file in which ``shell`` looks for a user's own completion of ``hardpix``."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    if shell == "bash":
        own = os.environ.get("BASH_COMPLETION_USER_DIR")
        return (Path(own) if own else data / "bash-completion") / "completions/hardpix"
    if shell == "zsh":
        return data / "zsh/site-functions/_hardpix"
    return config / "fish/completions/hardpix.fish"


def install(shell: str) -> int:
    """Write the script, unless it is there already, and say what is left to do and how to take it back."""
    if shell not in SCRIPTS:
        from hardpix.types import ConfigError

        raise ConfigError(f"no completion for the shell {shell or '(unknown)'!r}: name bash, zsh or fish")
    path = target(shell)
    there = path.is_file() and path.read_text(encoding="utf-8") == SCRIPTS[shell]
    if not there:
        _write(path, SCRIPTS[shell])
    print(f"{'already there' if there else 'written'}: {path}")
    for line in _left_to_do(shell, path):
        print(line)
    print(f"to undo: rm {path}")
    return 0


def _left_to_do(shell: str, path: Path) -> list[str]:
    if shell == "bash":
        return [
            "new shells have it where the package bash-completion is installed; in this one, or without that package,",
            f"    source {path}",
        ]
    if shell == "zsh":
        return [
            "zsh looks there with these lines in ~/.zshrc (before any compinit of yours):",
            f"    fpath=({path.parent} $fpath)",
            "    autoload -Uz compinit && compinit",
        ]
    return ["new shells have it"]


def _write(path: Path, text: str) -> None:
    from hardpix.types import HardpixError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HardpixError(
            f"{path}: cannot be written ({error.strerror}); `hardpix completion bash|zsh|fish` prints the script"
        ) from None
