"""Tables of nftables as requests to the kernel. Pure.

Here: `rules.py`'s data turned into messages. Not here: which rules there are. One batch is one transaction: all of
it is done, or nothing. References: nf_tables.h and nfnetlink.h of linux/netfilter; pyroute2 knows the attributes.
"""

import errno
from typing import Any, Final, NamedTuple

from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink import nftsocket as nft

from services.executor.network.expressions import Expression, Verdict
from services.executor.network.netlink import Request
from services.executor.network.rules import Chain, Rule, Set, Table

_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_REQUEST: Final = 0x1  # NLM_F_… of linux/netlink.h
_ACK: Final = 0x4
_DUMP: Final = 0x300
_ADD: Final = _REQUEST | _ACK | 0x400  # NLM_F_CREATE
_APPEND: Final = _ADD | 0x800  # NLM_F_APPEND
_FAMILIES: Final = {"inet": 1, "bridge": 7}
_HOOKS: Final = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_POLICY_ACCEPT: Final = 1

Attributes = list[tuple[str, Any]]


class Place(NamedTuple):
    """A set of a table."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"the set {self.name} of table {self.family} {self.table}"


def install(tables: tuple[Table, ...]) -> tuple[Request, ...]:
    """Put these tables in place of those of the same names, in one step: no packet meets neither, or half."""
    requests = []
    for table in tables:
        requests += [_add_table(table), _remove_table(table), _add_table(table)]
        for number, each in enumerate(table.sets, start=1):
            requests.append(_add_set(table, each, number))
            place = Place(table.family, table.name, each.name)
            requests += [_add_key(place, key) for key in each.keys]
        for chain in table.chains:
            requests.append(_add_chain(table, chain))
            requests += [_add_rule(table, chain, rule) for rule in chain.rules]
    return _batch(requests)


def remove(tables: tuple[Table, ...]) -> tuple[Request, ...]:
    """Remove these tables, whether they are there or not."""
    return _batch([request for table in tables for request in (_add_table(table), _remove_table(table))])


def add_key(where: Place, key: bytes) -> tuple[Request, ...]:
    """Put a key into a set. OSError ENOENT: somebody has removed the table."""
    return _batch([_add_key(where, key)])


def remove_key(where: Place, key: bytes) -> tuple[Request, ...]:
    """Take a key out of a set. Nothing when it, or the table, is gone."""
    what = f"remove a key from {where}"
    message = nft.nft_set_elem_list_msg()
    request = _encode(what, message, nft.NFT_MSG_DELSETELEM, where.family, _element(where, key))
    return _batch([request._replace(tolerated=frozenset({errno.ENOENT}))])


def list_keys(where: Place) -> Request:
    """A question for `Netlink.dump`; `parse_keys` reads each message of the answer. OSError ENOENT: no such table."""
    message = nft.nft_set_elem_list_msg()
    attributes = [("NFTA_SET_ELEM_LIST_TABLE", where.table), ("NFTA_SET_ELEM_LIST_SET", where.name)]
    return _encode(f"list {where}", message, nft.NFT_MSG_GETSETELEM, where.family, attributes, flags=_REQUEST | _DUMP)


def parse_keys(data: bytes) -> tuple[bytes, ...]:
    """The keys in one message of a list."""
    message = nft.nft_set_elem_list_msg(data)
    message.decode()
    elements = message.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or ()
    return tuple(bytes(each.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE")) for each in elements)


def _batch(requests: list[Request]) -> tuple[Request, ...]:
    return (_mark(_BATCH_BEGIN), *requests, _mark(_BATCH_END))


def _mark(kind: int) -> Request:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = kind
    message["header"]["flags"] = _REQUEST
    message.encode()
    return Request("change nftables", bytes(message.data))


def _add_table(table: Table) -> Request:
    what = f"add table {table.family} {table.name}"
    message = nft.nft_table_msg()
    return _encode(what, message, nft.NFT_MSG_NEWTABLE, table.family, [("NFTA_TABLE_NAME", table.name)], flags=_ADD)


def _remove_table(table: Table) -> Request:
    what = f"remove table {table.family} {table.name}"
    message = nft.nft_table_msg()
    return _encode(what, message, nft.NFT_MSG_DELTABLE, table.family, [("NFTA_TABLE_NAME", table.name)])


def _add_set(table: Table, each: Set, number: int) -> Request:
    attributes = [
        ("NFTA_SET_TABLE", table.name),
        ("NFTA_SET_NAME", each.name),
        ("NFTA_SET_FLAGS", ()),
        ("NFTA_SET_KEY_TYPE", nft.DATA_TYPE_IFNAME),  # for the eyes of nft(8) only
        ("NFTA_SET_KEY_LEN", each.key_bytes),
        ("NFTA_SET_ID", number),
    ]
    what = f"add set {each.name} to table {table.family} {table.name}"
    return _encode(what, nft.nft_set_msg(), nft.NFT_MSG_NEWSET, table.family, attributes, flags=_ADD)


def _add_key(where: Place, key: bytes) -> Request:
    message = nft.nft_set_elem_list_msg()
    what = f"add a key to {where}"
    return _encode(what, message, nft.NFT_MSG_NEWSETELEM, where.family, _element(where, key), flags=_ADD)


def _element(where: Place, key: bytes) -> Attributes:
    element = {"attrs": [("NFTA_SET_ELEM_KEY", {"attrs": [("NFTA_DATA_VALUE", key)]})]}
    return [
        ("NFTA_SET_ELEM_LIST_TABLE", where.table),
        ("NFTA_SET_ELEM_LIST_SET", where.name),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", [element]),
    ]


def _add_chain(table: Table, chain: Chain) -> Request:
    hook = [("NFTA_HOOK_HOOKNUM", _HOOKS[chain.hook]), ("NFTA_HOOK_PRIORITY", chain.priority)]
    attributes = [
        ("NFTA_CHAIN_TABLE", table.name),
        ("NFTA_CHAIN_NAME", chain.name),
        ("NFTA_CHAIN_HOOK", {"attrs": hook}),
        ("NFTA_CHAIN_POLICY", _POLICY_ACCEPT),
        ("NFTA_CHAIN_TYPE", chain.kind),
    ]
    what = f"add chain {chain.name} to table {table.family} {table.name}"
    return _encode(what, nft.nft_chain_msg(), nft.NFT_MSG_NEWCHAIN, table.family, attributes, flags=_ADD)


def _add_rule(table: Table, chain: Chain, rule: Rule) -> Request:
    steps = [_expression(each) for part in rule.parts for each in part.expressions]
    attributes = [
        ("NFTA_RULE_TABLE", table.name),
        ("NFTA_RULE_CHAIN", chain.name),
        ("NFTA_RULE_EXPRESSIONS", steps),
    ]
    what = f"add rule '{rule.text}' to chain {chain.name} of table {table.family} {table.name}"
    return _encode(what, nft.nft_rule_msg(), nft.NFT_MSG_NEWRULE, table.family, attributes, flags=_APPEND)


def _expression(each: Expression) -> dict[str, Any]:
    data = {"attrs": [(name, _value(value)) for name, value in each.attributes]}
    return {"attrs": [("NFTA_EXPR_NAME", each.name), ("NFTA_EXPR_DATA", data)]}


def _value(value: int | str | bytes | Verdict) -> Any:
    match value:
        case bytes():
            return {"attrs": [("NFTA_DATA_VALUE", value)]}
        case Verdict(code):
            return {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", code)]})]}
        case _:
            return value


def _encode(
    what: str, message: Any, kind: int, family: str, attributes: Attributes, *, flags: int = _REQUEST | _ACK
) -> Request:
    message["nfgen_family"] = _FAMILIES[family]
    message["attrs"] = attributes
    message["header"]["type"] = kind | NFNL_SUBSYS_NFTABLES << 8
    message["header"]["flags"] = flags
    message.encode()
    return Request(what, bytes(message.data))
