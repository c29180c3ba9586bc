"""`llm completion SHELL`: the lines that make a shell complete commands, flags, values and names of models.

They call `llm completion SHELL LINE`, which writes what may come next (complete.py): a word a line, with a tab and what it is; the
line <files> says that names of files may stand there too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from llmcli.cli.console import Console, is_terminal, open_answer
from llmcli.cli.options import Common

ABOUT = """
Prints a script for the shell that completes commands, flags, values of flags, files, topics of llm docs and names of models at Tab.
Evaluate it where your shell starts; the examples say how. It takes effect in new shells.

With a command line as second argument it prints what may come next in that line, a word a line: that is how the scripts ask.
"""

EXAMPLE = """
eval "$(llm completion bash)"                                           # in ~/.bashrc
eval "$(llm completion zsh)"                                            # in ~/.zshrc, below compinit
llm completion fish > ~/.config/fish/completions/llm.fish               # once
llm completion bash "llm run --te"                                      # what may come next?
"""

WHERE = {
    "bash": 'add to ~/.bashrc: eval "$({program} completion bash)"',
    "zsh": 'add to ~/.zshrc, below compinit: eval "$({program} completion zsh)"',
    "fish": "once: {program} completion fish > ~/.config/fish/completions/llm.fish",
}

FILES = "<files>"

SCRIPTS = {
    "bash": r"""
_llmcli_complete() {
    local word about line=${COMP_LINE:0:COMP_POINT} typed
    typed=${line##*[[:space:]]}
    COMPREPLY=()
    while IFS=$'\t' read -r word about; do
        if [[ $word == '<files>' ]]; then
            compopt -o default
        else
            # Readline ends words at : and =, so what stands before them is not replaced.
            [[ $typed == *[:=]* ]] && word=${word#"${typed%"${typed##*[:=]}"}"}
            COMPREPLY+=("$word")
        fi
    done < <("${COMP_WORDS[0]}" completion bash "$line" 2>/dev/null)
}
complete -o nosort -F _llmcli_complete llm llmcli
""",
    "zsh": r"""
_llmcli_complete() {
    local line files result=1
    local -a offered
    for line in "${(@f)$("${words[1]}" completion zsh "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}"; do
        if [[ $line == '<files>' ]]; then
            files=1
        elif [[ -n $line ]]; then
            offered+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
        fi
    done
    (( $#offered )) && _describe -V llm offered && result=0
    [[ -n $files ]] && _files && result=0
    return result
}
compdef _llmcli_complete llm llmcli
""",
    "fish": r"""
function __llmcli_complete
    set -l program (commandline -opc)[1]
    $program completion fish (commandline -cp | string collect) 2>/dev/null | while read -l found
        if test "$found" = '<files>'
            __fish_complete_path (commandline -ct)
        else
            echo $found
        end
    end
end
complete -c llm -f -k -a '(__llmcli_complete)'
complete -c llmcli -f -k -a '(__llmcli_complete)'
""",
}


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish", rich_help_panel="The shell")]
    line: Annotated[
        str | None, typer.Argument(metavar="LINE", help="a command line up to the cursor: what may come next?", rich_help_panel="The shell")
    ] = None


def execute(options: Options, console: Console) -> int:
    with open_answer() as answer:
        if options.line is None:
            answer.write(SCRIPTS[options.shell].lstrip("\n"))
        else:
            from llmcli.cli.complete import complete

            offer = complete(options.line)
            answer.write("".join(f"{word}\t{about}\n" for word, about in offer.words) + (f"{FILES}\n" if offer.files else ""))
    if options.line is None and is_terminal(sys.stdout):
        console.note("\n# " + WHERE[options.shell].format(program="llm"))
    return 0
