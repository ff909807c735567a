"""Comparison of this checkout with others: a server before and after a change, in one run.

The servers take turns in each round, so that a slow minute of the machine affects all of them. All
use this checkout's load client and settings, and each the packages of its own ``.venv``.
"""

from collections.abc import Mapping, Sequence

from bench.contenders.product import Reattach
from bench.measuring.results import NO_FIGURE, Table, shown
from bench.measuring.rounds import Results
from bench.options import Options


def versions(options: Options, settings: Mapping[str, str] | None = None) -> list[Reattach]:
    """List the servers of this checkout and of those that it is compared with."""
    return [
        Reattach(settings=settings),
        *(
            Reattach(f"Reattach in {checkout.name}", settings=settings, checkout=checkout)
            for checkout in options.against
        ),
    ]


def ratios(
    results: Results, options: Options, measurements: Sequence[str], columns: Mapping[str, str]
) -> list[Table]:
    """Divide the median costs of this checkout by those of each other one."""
    own, *others = versions(options)
    tables = []
    for other in others:
        rows = []
        for name in measurements:
            found = [
                results.ratio(column, (own.name, name), (other.name, name))
                for column in columns.values()
            ]
            if any(ratio is not None for ratio in found):
                rows.append([name, *(NO_FIGURE if one is None else shown(one) for one in found)])
        tables.append(Table(f"{own.name} in units of {other.name}", ["work", *columns], rows))
    return tables
