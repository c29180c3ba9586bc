"""`python -m llmcli`: the command, also where another program is called llm."""

import sys

from llmcli.cli.app import main

sys.exit(main())
