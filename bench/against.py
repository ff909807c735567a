"""This checkout beside others: the same server before and after a change, in one run.

The servers take turns in each round, so that no minute of the machine is one version's own. All
have this checkout's load client and settings, and each the packages of its own ``.venv``.
"""

from collections.abc import Mapping, Sequence

from bench.options import Options
from bench.product import Reattach
from bench.results import NO_FIGURE, Table, shown
from bench.rounds import Results


def versions(options: Options, settings: Mapping[str, str] | None = None) -> list[Reattach]:
    """The product of this checkout, and of those that it is measured against."""
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
    """The cost of this checkout in units of each other one: the ratio of the medians."""
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
