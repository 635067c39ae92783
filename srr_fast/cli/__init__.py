# SPDX-License-Identifier: Apache-2.0
"""The ``srr-fast`` command: ``command.py`` is all of it, with a module beside it for each group of subcommands."""
