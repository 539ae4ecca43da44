"""`rnx node info` and `rnx nodes`: what a node is and can enforce; which contexts there are.

Here: the two commands. Not here: reading the configuration (`cli/client/contexts.py`).
"""

import click

from cli.client.contexts import find_config, read_nodes
from cli.client.views import node_object, time_text
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.tables import print_fields, print_json, print_table
from common.quantities import format_size
from proto.joblet.v1 import node_pb2


@click.command("info", cls=Verb, example="rnx --node build-7 node info")
@pass_invocation
def info_command(invocation: Invocation) -> None:
    """The node, the limits that it can enforce, and what its services counted.

    Certificates and counters are told to those only who may see all jobs; docs/operations.md says what they mean.
    """
    with invocation.session() as session:
        node = session.ask_again(session.nodes.GetInfo, node_pb2.GetInfoRequest())
    if invocation.json:
        print_json(node_object(node))
        return
    print_fields(
        (
            ("node", node.node_id),
            ("joblet", node.version),
            ("kernel", node.kernel),
            ("cgroups", node.cgroup_version),
            ("cpus", str(node.cpus)),
            ("memory", format_size(node.memory_bytes)),
            ("running jobs", f"{node.running_jobs} of at most {node.running_max}"),
            ("waiting jobs", str(node.queued_jobs)),
        )
    )
    if node.capabilities:
        click.echo()
        level = node_pb2.Capability.Level
        print_table(
            ("CAPABILITY", "LEVEL", "DETAIL"),
            ((c.name, level.Name(c.level).lower(), c.detail) for c in node.capabilities),
        )
    if node.certificates:
        click.echo()
        print_table(
            ("CERTIFICATE", "ENDS", "SOON", "SUBJECT"),
            ((c.name, time_text(c.not_after), "yes" if c.soon else "", c.subject) for c in node.certificates),
        )
    if node.counters:
        click.echo()
        print_table(("COUNTER", "VALUE"), ((name, str(value)) for name, value in sorted(node.counters.items())))


@click.command("nodes", cls=Verb, example="rnx nodes --json")
@pass_invocation
def nodes_command(invocation: Invocation) -> None:
    """The contexts that --node can name."""
    entries = read_nodes(find_config(invocation.config)).values()
    if invocation.json:
        print_json([{"name": entry.name, "address": entry.address, "node_id": entry.node_id} for entry in entries])
    else:
        print_table(("CONTEXT", "ADDRESS", "NODE"), ((entry.name, entry.address, entry.node_id) for entry in entries))
