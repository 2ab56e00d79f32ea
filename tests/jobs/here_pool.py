"""A pool whose only worker is in this process."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from jobs.cluster.pool import Pool

T = TypeVar("T")


class HerePool(Pool):
    """Calls go through by name, as they do through Ray."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def share(self, value: T) -> T:
        return value

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return getattr(self.worker, method.__name__)(*args, **kwargs)

    def map(self, method: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        return ((i, self.call(method, *each)) for i, each in enumerate(calls))

    def reduce(
        self,
        method: Callable[..., Any],
        calls: Callable[[], Iterable[tuple[Any, ...]]],
        count: int,
        add: Callable[[Sequence[Any]], Any],
        finish: Callable[[Any], Any],
    ) -> Any:
        results = [result for _, result in self.map(method, calls())]
        assert len(results) == count
        return finish(add(results))
