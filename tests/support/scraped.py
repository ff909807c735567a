"""The values of a scrape, by name and labels."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Scraped:
    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels; 0 if there is none."""
        wanted = labels.items()
        return sum(
            value
            for (found, of), value in self.values.items()
            if found == name and wanted <= set(of)
        )

    def since(self, before: Scraped, name: str, **labels: str) -> float:
        """Return how much a counter has grown."""
        return self.value(name, **labels) - before.value(name, **labels)

    def workers(self, name: str, **labels: str) -> dict[str, float]:
        """Return the value of each worker that has samples with these labels."""
        found = {dict(of)["worker"] for (one, of) in self.values if one == name}
        return {worker: self.value(name, worker=worker, **labels) for worker in found}


def parse(text: str) -> Scraped:
    """Parse a scrape in the text form of Prometheus. Fails if a sample occurs twice."""
    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in values, key
            values[key] = sample.value
    return Scraped(values)
