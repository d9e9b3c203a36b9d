"""Which way a program of a kernel goes: the loops of a disassembly, and the path without masks from
its start to its end.

A kernel has variants of one computation - with masks, without, and a repair that is rarely run.
The loop that is counted takes the fewest instructions for a product; the path around it makes as
many products as any other, and of those it has the fewest instructions.
"""

from dataclasses import dataclass, field

from bench.sass import PRODUCTS, TENSOR_PRODUCTS, Instruction, Kernel, leaders, successors

# A path belongs to the computation if it makes this share of the most products of any path:
# variants differ by a few, of rounding or addresses.
_MOST = 0.9
# A loop does, if one trip makes this share of the most of any loop: variants may be unrolled more
# or less often.
_LOOP = 0.25
# And the loop is the computation unless code outside loops makes so many times its products, as
# many as trips: then it is part of a repair, or of a variant that is small rather than fast.
_STRAIGHT = 1.25


@dataclass(frozen=True)
class Path:
    """Instructions that run one after the other, and the loops between them."""

    instructions: tuple[Instruction, ...]  # without those of the loops
    loops: tuple["Path", ...]

    @property
    def everything(self) -> tuple[Instruction, ...]:
        """Instructions of the path with one trip of each of its loops."""
        return self.instructions + tuple(item for loop in self.loops for item in loop.everything)


@dataclass
class _Graph:
    """Basic blocks by the position of their first instruction."""

    kernel: Kernel
    starts: list[int]
    following: dict[int, list[int]]
    loops: dict[int, set[int]] = field(default_factory=dict)  # blocks of each, by its first block

    def block(self, start: int) -> tuple[Instruction, ...]:
        place = self.starts.index(start)
        ends = [*self.starts[1:], len(self.kernel.instructions)]
        return self.kernel.instructions[start : ends[place]]


@dataclass(frozen=True)
class _Way:
    """A candidate for a path: what it costs, what it goes through."""

    products: int
    length: int
    nodes: tuple[tuple[tuple[Instruction, ...], Path | None], ...]  # blocks, and loops


@dataclass(frozen=True)
class HotPath:
    """The path of a program whose tile needs no masks, from its first instruction to its last."""

    path: Path
    loop: Path | None  # the loop on it in which the products are, as one trip; None without one

    @property
    def straight(self) -> tuple[Instruction, ...]:
        """What the path has beside one trip of the loop."""
        inside = {item.address for item in self.loop.everything} if self.loop else set()
        return tuple(item for item in self.path.everything if item.address not in inside)


def hot_path(kernel: Kernel) -> HotPath:
    """Return the way of a program whose tile needs no masks."""
    graph = _graph(kernel)
    tensor = any(item.name in TENSOR_PRODUCTS for item in kernel.instructions)
    names = TENSOR_PRODUCTS if tensor else PRODUCTS
    everywhere = _reachable(graph, 0)
    straight = _best(graph, 0, everywhere, _Search(names, None))
    hottest = _hottest_loop(graph, names)
    if hottest is not None:
        loop = _best(graph, hottest, graph.loops[hottest], _Search(names, hottest, inside=True))
        if _STRAIGHT * _products(loop.instructions, names) >= _products(
            straight.instructions, names
        ):
            path = _best(graph, 0, everywhere, _Search(names, hottest))
            return HotPath(path, loop)
    return HotPath(straight, None)


def loops(kernel: Kernel) -> dict[int, set[int]]:
    """Return the natural loops: blocks of each, by the position of its first instruction."""
    return _graph(kernel).loops


def _products(items: tuple[Instruction, ...], names: tuple[str, ...]) -> int:
    return sum(item.name in names for item in items)


def _hottest_loop(graph: _Graph, names: tuple[str, ...]) -> int | None:
    """First block of the loop that takes fewest instructions for a product, of the innermost."""
    costs: dict[int, tuple[int, int]] = {}
    for header, body in graph.loops.items():
        if any(other in body for other in graph.loops if other != header):
            continue
        items = tuple(item for start in sorted(body) for item in graph.block(start))
        costs[header] = (_products(items, names), len(items))
    most = max((products for products, _ in costs.values()), default=0)
    if most == 0:
        return None
    able = [header for header, (products, _) in costs.items() if products >= _LOOP * most]
    return min(able, key=lambda header: costs[header][1] / costs[header][0])


def _graph(kernel: Kernel) -> _Graph:
    items, labels = kernel.instructions, kernel.labels
    starts = leaders(items, labels)
    ends = [*starts[1:], len(items)]
    following = {
        start: successors(items, labels, end - 1) for start, end in zip(starts, ends, strict=True)
    }
    graph = _Graph(kernel, starts, following)
    dominators = _dominators(graph)
    for start in dominators:
        for header in graph.following[start]:
            if header in dominators[start]:
                graph.loops.setdefault(header, {header}).update(
                    _reaching(graph, start, header, set(dominators))
                )
    return graph


def _reachable(graph: _Graph, start: int) -> set[int]:
    seen, waiting = {start}, [start]
    while waiting:
        for place in graph.following[waiting.pop()]:
            if place not in seen:
                seen.add(place)
                waiting.append(place)
    return seen


def _dominators(graph: _Graph) -> dict[int, set[int]]:
    reachable = sorted(_reachable(graph, 0))
    before: dict[int, list[int]] = {place: [] for place in reachable}
    for place in reachable:
        for target in graph.following[place]:
            before[target].append(place)
    found = {place: set(reachable) for place in reachable}
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for place in reachable[1:]:
            common = set.intersection(*(found[item] for item in before[place])) | {place}
            if common != found[place]:
                found[place] = common
                changed = True
    return found


def _reaching(graph: _Graph, latch: int, header: int, reachable: set[int]) -> set[int]:
    """Blocks from which the jump back is reached without passing the loop's first block."""
    body, waiting = {latch}, [latch] if latch != header else []
    while waiting:
        place = waiting.pop()
        for source in reachable:
            if place in graph.following[source] and source not in body and source != header:
                body.add(source)
                waiting.append(source)
    return body


@dataclass(frozen=True)
class _Search:
    """What a path is looked for by: products, and the loop that it goes through.

    Loops beside that one are no reason to choose a path.
    """

    names: tuple[str, ...]
    loop: int | None
    inside: bool = False  # the path is that of the loop itself

    def weight(self, items: tuple[Instruction, ...], header: int | None, graph: _Graph) -> int:
        if header is None:
            return _products(items, self.names)
        through = not self.inside and self.loop is not None and self.loop in graph.loops[header]
        return 1_000_000 if through else 0


def _best(graph: _Graph, start: int, region: set[int], search: _Search) -> Path:
    """The path through ``region`` from ``start`` to where it ends: the jump back to ``start`` if
    the region is its loop, else the kernel's end."""
    is_loop = graph.loops.get(start) == region
    around = _outermost(graph, region, start if is_loop else None)
    memory: dict[int, list[_Way]] = {}

    def ways(place: int, pending: frozenset[int]) -> list[_Way]:
        if place in memory:
            return memory[place]
        if place in pending:
            raise ValueError(f"a cycle with two ways in, at block {place}")
        header, child, items = around.get(place), None, ()
        if header is None:
            items, targets = graph.block(place), set(graph.following[place])
        else:
            body = graph.loops[header]
            child = _best(graph, header, body, search)
            targets = {target for block in body for target in graph.following[block]} - body
        everything = child.everything if child else items
        weight = search.weight(everything, header, graph)
        after = [
            way
            for target in sorted(targets & region - ({start} if is_loop else set()))
            for way in ways(target, pending | {place})
        ]
        # programs may leave early, by a predicate, but not before they made their products
        leaves = not targets or (child is None and [item.name for item in items[-1:]] == ["EXIT"])
        if start in targets if is_loop else leaves:
            after.append(_Way(0, 0, ()))
        memory[place] = _undominated(
            [
                _Way(
                    way.products + weight,
                    way.length + len(everything),
                    ((items, child), *way.nodes),
                )
                for way in after
            ]
        )
        return memory[place]

    candidates = ways(start, frozenset())
    if not candidates:
        raise ValueError(f"no path from block {start} comes to an end")
    most = max(way.products for way in candidates) % 1_000_000
    able = [
        way
        for way in candidates
        if way.products >= max(item.products for item in candidates) - (1 - _MOST) * most
    ]
    chosen = min(able, key=lambda way: way.length)
    instructions = tuple(item for items, _ in chosen.nodes for item in items)
    return Path(instructions, tuple(child for _, child in chosen.nodes if child is not None))


def _outermost(graph: _Graph, region: set[int], itself: int | None) -> dict[int, int]:
    """First block of the outermost loop inside the region, for every block in one."""
    found: dict[int, int] = {}
    for header, body in sorted(graph.loops.items(), key=lambda item: len(item[1])):
        if header != itself and body < region:
            found |= dict.fromkeys(body, header)
    return found


def _undominated(found: list[_Way]) -> list[_Way]:
    """Ways that no other beats in both products and length."""
    kept: list[_Way] = []
    for way in sorted(found, key=lambda way: (way.length, -way.products)):
        if not kept or way.products > kept[-1].products:
            kept.append(way)
    return kept
