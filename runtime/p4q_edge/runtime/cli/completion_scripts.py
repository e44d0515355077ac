"""Scripts that complete `p4q-edge` in bash, zsh and fish: all words are in them, and nothing is run at a key press."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from p4q_edge.runtime.cli.known_words import CommandWords, Option

GENERAL = ("--help", "--version")
_HEAD = "# Completion of p4q-edge {version} for {shell}; write it again after an update."


def bash_script(commands: Sequence[CommandWords], version: str) -> str:
    """Return the script for bash 3.2 and later."""
    top = " ".join([*(one.path[0] for one in commands if len(one.path) == 1), *GENERAL])
    lines = [
        _HEAD.format(version=version, shell="bash"),
        "# Now:    source <(p4q-edge completion bash)",
        "# Always: p4q-edge completion bash > ~/.local/share/bash-completion/completions/p4q-edge",
        "# What bash would offer where a word is free, and cannot be told not to before version 4.",
        "_p4q_edge_no_files() { compopt +o bashdefault +o default 2>/dev/null; }",
        "_p4q_edge() {",
        '    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" at words= values=',
        "    COMPREPLY=()",
        "    if ((COMP_CWORD == 1)); then",
        f'        COMPREPLY=($(compgen -W {_quoted(top)} -- "$cur"))',
        "        return",
        "    fi",
        '    at="${COMP_WORDS[1]}"',
        '    case "$at" in',
    ]
    for group in (one for one in commands if one.actions):
        names = "|".join(name for name, _ in group.actions)
        lines += [
            f"        {group.path[0]})",
            '            ((COMP_CWORD > 2)) && case "${COMP_WORDS[2]}" in',
            f'                {names}) at="$at ${{COMP_WORDS[2]}}";;',
            "            esac;;",
        ]
    lines += ["    esac", '    case "$at" in']
    for one in commands:
        lines += [f"        {_quoted(' '.join(one.path))})", *(f"            {line}" for line in _bash_case(one))]
        lines.append("            ;;")
    lines += [
        "    esac",
        '    if [[ "$cur" == -* ]]; then',
        '        COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        '    elif [[ -n "$values" ]]; then',
        '        COMPREPLY=($(compgen -W "$values" -- "$cur"))',
        "    fi",
        "}",
        "# Where nothing is offered, bash completes names of files.",
        "complete -o bashdefault -o default -F _p4q_edge p4q-edge",
    ]
    return "\n".join(lines) + "\n"


def _bash_case(one: CommandWords) -> list[str]:
    words = " ".join(name for option in one.options for name in option.names)
    values = " ".join([*one.choices, *(name for name, _ in one.actions)])
    lines = [f"words={_quoted(words)}", *([f"values={_quoted(values)}"] if values else [])]
    cases = []
    for option in one.options:
        if option.takes == "choice":
            choices = _quoted(" ".join(option.choices))
            cases.append(f'{"|".join(option.names)}) COMPREPLY=($(compgen -W {choices} -- "$cur")); return;;')
    for kinds, ending in ((("path",), "return"), (("number", "text"), "_p4q_edge_no_files; return")):
        names = [name for option in one.options if option.takes in kinds for name in option.names]
        cases += [f"{'|'.join(names)}) {ending};;"] if names else []
    return [*lines, 'case "$prev" in', *(f"    {case}" for case in cases), "esac"] if cases else lines


def zsh_script(commands: Sequence[CommandWords], version: str) -> str:
    """Return the script for zsh, for its `fpath` or to be sourced."""
    top = [one for one in commands if len(one.path) == 1]
    lines = [
        "#compdef p4q-edge",
        _HEAD.format(version=version, shell="zsh"),
        "# Now:    source <(p4q-edge completion zsh)",
        '# Always: p4q-edge completion zsh > "${fpath[1]}/_p4q-edge", and open another shell',
        "_p4q_edge() {",
        "    local at=$words[2]",
        "    local -a found",
        "    if (( CURRENT == 2 )); then",
        f"        found=({_described((one.path[0], one.help) for one in top)} {' '.join(GENERAL)})",
        "        _describe -t commands command found",
        "        return",
        "    fi",
    ]
    for group in (one for one in commands if one.actions):
        names = "|".join(name for name, _ in group.actions)
        lines.append(
            f'    (( CURRENT > 3 )) && [[ $at == {group.path[0]} && $words[3] == ({names}) ]] && at="$at $words[3]"'
        )
    lines.append("    case $at in")
    for one in commands:
        lines += [
            f"        ({_quoted(' '.join(one.path))})",
            *(f"            {line}" for line in _zsh_case(one)),
            "            ;;",
        ]
    lines += ["    esac", "}", "(( $+functions[compdef] )) && compdef _p4q_edge p4q-edge"]
    lines += ['[[ $funcstack[1] == _p4q-edge ]] && _p4q_edge "$@"', "true"]
    return "\n".join(lines) + "\n"


def _zsh_case(one: CommandWords) -> list[str]:
    cases = []
    for option in one.options:
        names = "|".join(option.names)
        if option.takes == "choice":
            cases.append(f"    ({names}) compadd -- {' '.join(map(_quoted, option.choices))}; return;;")
        elif option.takes != "nothing":
            cases.append(f"    ({names}) {'_files; return' if option.takes == 'path' else 'return'};;")
    options = _described((name, option.help) for option in one.options for name in option.names)
    lines = ["case $words[CURRENT-1] in", *cases, "esac"] if cases else []
    lines += ["if [[ $words[CURRENT] == -* ]]; then", f"    found=({options})", "    _describe -t options option found"]
    if one.actions:
        lines += ["else", f"    found=({_described(one.actions)})", "    _describe -t commands action found"]
    elif one.choices:
        lines += ["else", f"    compadd -- {' '.join(map(_quoted, one.choices))}"]
    else:
        lines += ["else", "    _files"]
    return [*lines, "fi"]


def fish_script(commands: Sequence[CommandWords], version: str) -> str:
    """Return the script for fish."""
    top = [one for one in commands if len(one.path) == 1]
    lines = [
        _HEAD.format(version=version, shell="fish"),
        "# Now:    p4q-edge completion fish | source",
        "# Always: p4q-edge completion fish > ~/.config/fish/completions/p4q-edge.fish",
        "complete -c p4q-edge -e",
    ]
    for one in top:
        lines.append(f"complete -c p4q-edge -n __fish_use_subcommand -f -a {one.path[0]} -d {_fish(one.help)}")
    for name in GENERAL:
        lines.append(f"complete -c p4q-edge -n __fish_use_subcommand -f -l {name[2:]}")
    for one in commands:
        lines += _fish_lines(one)
    return "\n".join(lines) + "\n"


def _fish_lines(one: CommandWords) -> list[str]:
    seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in one.path)
    start = f"complete -c p4q-edge -n {_fish(seen)}"
    if one.actions:
        names = " ".join(name for name, _ in one.actions)
        none = _fish(f"{seen}; and not __fish_seen_subcommand_from {names}")
        return [f"complete -c p4q-edge -n {none} -f -a {name} -d {_fish(text)}" for name, text in one.actions]
    lines = [f"{start} -f -a {_fish(' '.join(one.choices))}"] if one.choices else []
    for option in one.options:
        flags = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
        lines.append(f"{start} {flags}{_fish_takes(option)} -d {_fish(option.help)}")
    return lines


def _fish_takes(option: Option) -> str:
    if option.takes == "nothing":
        return ""
    if option.takes == "choice":
        return f" -x -a {_fish(' '.join(option.choices))}"
    return " -r" if option.takes == "path" else " -x"


def _quoted(text: str) -> str:
    """Return a word of bash and of zsh, as it is."""
    return text if re.fullmatch(r"[\w./:=,+-]+", text) else "'" + text.replace("'", "'\\''") + "'"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _described(pairs: object) -> str:
    """Return words of zsh's `_describe`: name and help, with the colons of names escaped."""
    return " ".join(_quoted(f"{name.replace(':', chr(92) + ':')}:{text}") for name, text in pairs)  # type: ignore[attr-defined]


SCRIPTS: Mapping[str, Callable[[Sequence[CommandWords], str], str]] = {
    "bash": bash_script,
    "zsh": zsh_script,
    "fish": fish_script,
}
