"""`joblet config`: validate a configuration file, and print what holds in the end."""

from pathlib import Path

import click
import yaml

from cli.joblet.up import base_dir_option
from common.config.load import effective, load_settings, notices

_file_argument = click.Path(dir_okay=False, path_type=Path)


@click.group(epilog="Example: joblet config check /opt/joblet/joblet-config.yml")
def config() -> None:
    """Check and show the configuration."""


@config.command(epilog="Example: joblet config check /opt/joblet/joblet-config.yml")
@click.argument("file", type=_file_argument)
def check(file: Path) -> None:
    """Validate FILE; exit 0 when the services would accept it."""
    settings = load_settings(file)
    for notice in notices(settings):
        click.echo(f"joblet: {notice}", err=True)
    click.echo(f"{file}: valid")


@config.command(epilog="Example: joblet config show --base-dir /tmp/node")
@click.option("--config", "file", type=_file_argument, help="Configuration file.")
@base_dir_option
def show(file: Path | None, base_dir: Path | None) -> None:
    """Print every setting as it holds, defaults filled in, keys hidden."""
    click.echo(yaml.safe_dump(effective(load_settings(file, base_dir=base_dir)), sort_keys=False), nl=False)
