"""`completion`: a shell script that completes commands, options and values without starting Python."""

from __future__ import annotations

import shlex
from contextlib import suppress

from prompt_transfer.commands import run_options
from prompt_transfer.commands.help import Page
from prompt_transfer.commands.parsing import hint, keeping_pages
from prompt_transfer.commands.table import COMMANDS, VERBS, find
from prompt_transfer.utils.errors import UserError

SHELLS = ("bash", "zsh")
# Options that take task names, and options that take backbones.
_TASKS, _BACKBONES = ("--data.task", "--task", "--tasks"), ("--model.backbone", "--backbone", "--source", "--target")

_START = """\
# prompt-transfer completion {shell}, version {version}: regenerate after an update.
_prompt_transfer() {{
    # $2: the word under the cursor; $3: the previous word.
    local command="${{COMP_WORDS[1]}}" words=""
    case "$command" in
        {with_subcommands}) [ "$COMP_CWORD" -gt 2 ] && command="$command ${{COMP_WORDS[2]}}";;
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    else
        case "$command" in
"""
_END = """\
        esac
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$2") )
}
complete -o default -F _prompt_transfer prompt-transfer
"""


def run(command: str, arguments: list[str]) -> None:
    """`prompt-transfer completion bash | zsh`."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(
            "usage: prompt-transfer completion bash|zsh\n\nPrint a script that completes commands, options and their "
            "values. Save it, and load it when the shell starts:\n\n"
            "  prompt-transfer completion bash > ~/.prompt-transfer-completion\n"
            "  echo 'source ~/.prompt-transfer-completion' >> ~/.bashrc      # zsh: completion zsh, ~/.zshrc"
        )
        return
    if arguments[0] not in SHELLS or len(arguments) > 1:
        raise UserError(f"completion needs the name of a shell, not {arguments[-1]!r}: {hint(arguments[-1], SHELLS)}")
    print(script(arguments[0], tree()))


def tree() -> dict[str, dict[str, list[str]]]:
    """Return command (with subcommand) -> option -> possible values.

    A command with subcommands has an entry of its own, with the subcommands as options.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for command in COMMANDS:
        if command == "completion":
            found[command] = {shell: [] for shell in SHELLS}
        elif command in VERBS:
            found[command] = _options(run_options.page(command))
        else:
            pages = _pages(command)
            found |= {name: _options(page) for name, page in pages.items()}
            if names := [name.partition(" ")[2] for name in pages if " " in name]:
                found[command] = {name: [] for name in names}
    return found


def _pages(command: str) -> dict[str, Page]:
    """Return the pages of help of a command, or of its subcommands by full name."""
    with keeping_pages() as pages, suppress(SystemExit):
        find(command)(command, ["--help"])
    return pages


def script(shell: str, commands: dict[str, dict[str, list[str]]]) -> str:
    """Return the script for a shell; zsh loads the bash script.

    Args:
        shell: bash or zsh.
        commands: see `tree`.
    """
    from prompt_transfer.version import __version__

    names = [name for name in commands if " " not in name]
    several = sorted({name.split()[0] for name in commands if " " in name})
    start = _START.format(
        shell=shell,
        version=__version__,
        with_subcommands="|".join(several),
        commands=shlex.quote(" ".join([*names, "--help", "--version"])),
    )
    lines = []
    for name, options in commands.items():
        if options and not any(option.startswith("--") for option in options):
            lines += [f"            {shlex.quote(name)}) words={shlex.quote(' '.join(options))};;"]
            continue
        lines += [f"            {shlex.quote(name)})", '                case "$3" in']
        for option, values in options.items():
            lines += [f"                    {option}) words={shlex.quote(' '.join(values))};;"] if values else []
        # Words without a dash are left to the shell's completion of files.
        words = shlex.quote(" ".join([*options, "--help", "--json"]))
        lines += [f'                    *) case "$2" in -*) words={words};; esac;;', "                esac;;"]
    first = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n" if shell == "zsh" else ""
    return first + start + "\n".join(lines) + "\n" + _END


def _options(page: Page) -> dict[str, list[str]]:
    from prompt_transfer.backbones.builtin import builtin_backbones, shipped
    from prompt_transfer.backbones.catalogue import ROWS
    from prompt_transfer.tasks.registry import task_names

    configs = shipped("configs")
    values = {
        **{option: list(task_names()) for option in _TASKS},
        **{option: [*builtin_backbones(), *ROWS] for option in _BACKBONES},
        "--config": sorted(str(path.relative_to(configs)) for path in configs.rglob("*.yaml")),
    }
    options = [entry for entry in page.entries if entry.name.startswith("--")]
    found = {entry.name: entry.choices or values.get(entry.name, []) for entry in options}
    groups = [group.key for group in page.groups if group.key]
    return found | {option: [] for key in groups for option in (f"--{key}", f"--help_{key}")}
