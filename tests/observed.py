"""What a server shows of itself, as a test reads it: its metrics page as numbers."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, frozenset[tuple[str, str]]]


class Page:
    """The numbers of a metrics page at one moment."""

    def __init__(self, text: str):
        self.text = text
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @classmethod
    def at(cls, url: str) -> Page:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return cls(answer.read().decode())

    def __call__(self, name: str, **labels: str) -> float:
        """One number; 0 if there is none of these labels yet."""
        return self._samples.get((f"reward_server_{name}", frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """The sum over every series that has at least these labels."""
        wanted = set(labels.items())
        return sum(
            value
            for (found, of), value in self._samples.items()
            if found == f"reward_server_{name}" and wanted <= set(of)
        )

    def label_values(self) -> set[str]:
        return {value for _, labels in self._samples for _, value in labels}
