"""`python -m llmcli`: the command, also where another program is called llm."""

from llmcli.cli.app import command

command()
