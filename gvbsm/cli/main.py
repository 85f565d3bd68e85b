"""The command `gvbsm`: puts the commands together and turns errors into one line."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from gvbsm.cli import estimate, plugins, results, run
from gvbsm.version import __version__

PLUGINS = "GVBSM_PLUGINS"
RENAMED = {"synthesize": "synthesis", "evaluate": "evaluation"}
"""Commands that had another name once."""


class _Group(click.Group):
    """Turns a GvbsmError into one line and exit code 2, and Ctrl-C into a line that says how to go on."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on from here", err=True)
            sys.exit(130)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            # by name, for importing the class would cost `--help` its speed; plugins may derive from it
            if "GvbsmError" not in (base.__name__ for base in type(error).__mro__):
                line = _of_this_machine(error)
                if not line:
                    raise
                click.echo(f"gvbsm: {line}", err=True)
                sys.exit(2)
            if keep := getattr(error, "keep", None):  # a component's, without a log to write to
                keep()
            click.echo(f"gvbsm: {error}", err=True)
            sys.exit(2)

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        if (new := RENAMED.get(args[0])) and not context.resilient_parsing:
            from gvbsm_registry import GvbsmError

            raise GvbsmError(f"unknown command {args[0]!r}; it is called {new}")
        return super().resolve_command(context, args)


def _of_this_machine(error: Exception) -> str:
    """Return the line for an error that nobody's code is to blame for; "" if it is another."""
    from gvbsm.runtime.blame import out_of_memory

    if out_of_memory(error):
        what = "out of memory; lower a batch, the images' size, their number or the networks' width"
        return f"{what} ({' '.join(str(error).split())[:200]})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO) and error.filename is None:
        return f"the output can't be written ({error.strerror}); what was made is kept"
    return ""


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gvbsm")
@click.option("--no-plugins", is_flag=True, help="Load the built-in plugins only.")
@click.pass_context
def main(context: click.Context, no_plugins: bool) -> None:
    """Condense an image data set into a few synthetic images per class."""
    # Threads that wait by spinning make small networks many times slower where anything else runs, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context.with_resource(_warnings_as_lines())
    for stream in (sys.stdout, sys.stderr):  # a terminal without box characters shows something else
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        os.getcwd()
    except OSError as error:
        raise click.ClickException(
            "the working directory is not there any more; cd to another one"
        ) from error
    if no_plugins:
        context.with_resource(_built_in_only())


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show warnings that are meant for users without the line of code that they come from."""
    before = warnings.formatwarning

    def as_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        whole = before(message, category, filename, lineno, line)
        return f"warning: {message}\n" if category is UserWarning else whole

    warnings.formatwarning = as_line
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def _built_in_only() -> Iterator[None]:
    """As an environment variable, so that worker processes load no other plugins either."""
    before = os.environ.get(PLUGINS)
    os.environ[PLUGINS] = "gvbsm"
    try:
        yield
    finally:
        del os.environ[PLUGINS]
        if before is not None:
            os.environ[PLUGINS] = before


for _command in (*run.COMMANDS, *results.COMMANDS, estimate.estimate_command, plugins.plugins_command):
    main.add_command(_command)
