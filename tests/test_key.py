"""Keys: blind to names and order, sharp on structure; networkx's exact isomorphism is the oracle."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import networkx
import pytest

from graphir.ir.dims import symbol
from graphir.ir.graph import Attrs, Graph, Node, Value, Weight, Where
from graphir.ir.text import dump, read
from graphir.ir.types import Type

from handmade import B, Maker, T, rich

X = Type("float", (B, T, 8))
COMMUTATIVE = ("add", "mul")


def random_graph(rng: random.Random, size: int, inputs: int = 1) -> Graph:
    """A small DAG of unary, ordered and commutative ops, with weights that nodes may share; every sink is an output."""
    m = Maker(*[(f"x{i}", X) for i in range(inputs)])
    values = [m[f"x{i}"] for i in range(inputs)]
    linears: list[Node] = []
    for _ in range(size):
        op = rng.choice(("relu", "linear", "linear", "add", "add", "mul", "sub", "fork"))
        a, b = rng.choice(values), rng.choice(values)
        if op == "linear":
            shares = rng.choice(linears) if linears and rng.random() < 0.4 else None
            node = m.apply(op, a, shares=shares, out=8, bias=False)
            linears.append(node)
        elif op == "fork":
            node = m.apply(op, a, branches=("a", "b"))
        else:
            node = m.apply(op, a) if op == "relu" else m.apply(op, a, b)
        values.extend(node.outputs)
    used = {v for node in m.builder.nodes for v in node.inputs}
    sinks = [v for v in values[inputs:] if v not in used]
    rng.shuffle(sinks)
    return m.graph(*sinks[: rng.choice((1, 2, len(sinks)))])


def oracle(graph: Graph) -> networkx.MultiDiGraph:
    """The live part as a labelled graph whose exact isomorphism is what a key claims."""
    out = networkx.MultiDiGraph()
    made: dict[Value, tuple[object, int]] = {}
    for i, (_, value) in enumerate(graph.inputs):
        out.add_node(("in", i), label=f"input {i} {value.type}")
        made[value] = (("in", i), 0)
    for i, node in enumerate(graph.nodes):
        attrs = {k: len(v) if k == "branches" else v for k, v in node.attrs.items()}
        out.add_node(i, label=f"{node.op} {sorted(attrs.items())} {node.where.backend}")
        for port, value in enumerate(node.outputs):
            made[value] = (i, port)
        for port, value in enumerate(node.inputs):
            source, result = made[value]
            out.add_edge(source, i, label=f"{result} {'any' if node.op in COMMUTATIVE else port}")
        for role, name in node.weights:
            weight = graph.weights[name]
            out.add_node(name, label=f"weight {weight}")
            out.add_edge(name, i, label=role)
    ends = []
    for kind, results in (("out", graph.outputs), ("aux", graph.aux)):
        for i, (_, value) in enumerate(results):
            source, result = made[value]
            out.add_node((kind, i), label=f"{kind} {i}")
            out.add_edge(source, (kind, i), label=str(result))
            ends.append((kind, i))
    live = set(ends).union(*(networkx.ancestors(out, end) for end in ends)) | {("in", i) for i in range(len(graph.inputs))}
    return out.subgraph(live).copy()


def isomorphic(a: networkx.MultiDiGraph, b: networkx.MultiDiGraph) -> bool:
    same_label = networkx.algorithms.isomorphism.categorical_node_match("label", None)
    labels = lambda edges: Counter(e["label"] for e in edges.values())  # noqa: E731
    return networkx.is_isomorphic(a, b, same_label, lambda x, y: labels(x) == labels(y))


def fingerprint(g: networkx.MultiDiGraph) -> tuple:
    """A coarse invariant: graphs that differ in it are not isomorphic, so the oracle need not compare them."""
    above = {n: tuple(sorted((g.nodes[s]["label"], d["label"]) for s, _, d in g.in_edges(n, data=True))) for n in g}
    rows = Counter((g.nodes[n]["label"], above[n], g.out_degree(n)) for n in g)
    return tuple(sorted(rows.items()))


def disguise(graph: Graph, rng: random.Random) -> Graph:
    """The same architecture with everything renamed, independent nodes reordered, commutative operands shuffled, dead nodes added."""
    names = {"B": "Q", "T": "A"}
    dims = {symbol(a): symbol(b) for a, b in names.items()}
    retype = lambda t: Type(t.dtype, tuple(dims.get(d, d) for d in t.shape))  # noqa: E731
    values = {v: Value(retype(v.type)) for _, v in graph.inputs}
    weights = {name: f"w{rng.randrange(10**9)}.{i}" for i, name in enumerate(graph.weights)}
    waiting, nodes = list(graph.nodes), []
    while waiting:
        ready = [n for n in waiting if all(v in values for v in n.inputs)]
        node = rng.choice(ready)
        waiting.remove(node)
        inputs = [values[v] for v in node.inputs]
        if node.op in COMMUTATIVE:
            rng.shuffle(inputs)
        attrs = {k: tuple(f"b{i}" for i in range(len(v))) if k == "branches" else v for k, v in reversed(node.attrs.items())}
        where = Where(f"n{rng.randrange(10**9)}", (), None, node.where.backend)
        roles = tuple((role, weights[name]) for role, name in node.weights)
        new = Node(node.op, tuple(inputs), Attrs(attrs), roles, where, [retype(v.type) for v in node.outputs])
        values.update(zip(node.outputs, new.outputs))
        nodes.append(new)
    nodes.append(Node("relu", (rng.choice(list(values.values())),), Attrs(), (), Where("dead"), [X]))
    inventory = [(weights[name], weight) for name, weight in graph.weights.items()]
    rng.shuffle(inventory)
    return Graph(
        "Other", tuple((f"i{i}", values[v]) for i, (_, v) in enumerate(graph.inputs)), tuple(nodes),
        tuple((f"o{i}", values[v]) for i, (_, v) in enumerate(graph.outputs)), dict(inventory),
        tuple((f"a{i}", values[v]) for i, (_, v) in enumerate(graph.aux)), params={"p": 1},
    )


@pytest.mark.parametrize("seed", range(3))
def test_keys_are_equal_exactly_for_isomorphic_graphs(seed):
    rng = random.Random(seed)
    classes: dict[str, networkx.MultiDiGraph] = {}
    coarse: dict[tuple, list[str]] = {}
    merged = 0
    for _ in range(1000):
        graph = random_graph(rng, rng.randint(2, 7), rng.choice((1, 1, 2)))
        view = oracle(graph)
        if graph.key in classes:
            merged += 1
            assert isomorphic(view, classes[graph.key]), f"one key for two architectures:\n{dump(graph)}"
            continue
        rivals = coarse.setdefault(fingerprint(view), [])
        assert not any(isomorphic(view, classes[r]) for r in rivals), f"two keys for one architecture:\n{dump(graph)}"
        classes[graph.key] = view
        rivals.append(graph.key)
    assert merged > 50
    assert len(classes) > 300


def test_keys_see_neither_names_nor_order():
    rng = random.Random(7)
    for _ in range(300):
        graph = random_graph(rng, rng.randint(3, 14), 2)
        assert disguise(graph, rng).key == graph.key


def test_key_of_everything_survives_a_round_trip():
    assert read(dump(rich())).key == rich().key


def _two(f):
    m = Maker(("x", X), ("y", X))
    return f(m).key


def test_what_counts():
    base = _two(lambda m: m.graph(m.linear(m["x"], out=8, bias=False)))
    different = [
        _two(lambda m: m.graph(m.linear(m["y"], out=8, bias=False))),
        _two(lambda m: m.graph(m.linear(m["x"], out=9, bias=False))),
        _two(lambda m: m.graph(m.linear(m["x"], out=8, bias=True))),
        _two(lambda m: m.graph(m.linear(m["x"], out=8, bias=False, backend="mlx"))),
        _two(lambda m: m.graph(m.linear(m["x"], out=8, bias=False, init="zeros"))),
        _two(lambda m: m.graph(m.relu(m["x"]))),
        _two(lambda m: m.graph(value := m.linear(m["x"], out=8, bias=False), value)),
        _two(lambda m: m.graph(value := m.linear(m["x"], out=8, bias=False), aux=[("a", value)])),
    ]
    assert len({base, *different}) == len(different) + 1

    def frozen(m):
        graph = m.graph(m.linear(m["x"], out=8, bias=False))
        return graph.with_(weights={n: Weight(w.shape, w.init, True) for n, w in graph.weights.items()})

    assert _two(frozen) != base


def test_operand_order_counts_where_it_matters():
    assert _two(lambda m: m.graph(m.sub(m["x"], m["y"]))) != _two(lambda m: m.graph(m.sub(m["y"], m["x"])))
    assert _two(lambda m: m.graph(m.add(m["x"], m["y"]))) == _two(lambda m: m.graph(m.add(m["y"], m["x"])))
    assert _two(lambda m: m.graph(m.add(m["x"], m["y"], alpha=1.0))) == _two(lambda m: m.graph(m.add(m["y"], m["x"], alpha=1.0)))
    assert _two(lambda m: m.graph(m.add(m["x"], m["y"], alpha=0.5))) != _two(lambda m: m.graph(m.add(m["y"], m["x"], alpha=0.5)))
    assert _two(lambda m: m.graph(m.add(m["x"], m["x"]))) != _two(lambda m: m.graph(m.add(m["x"], m["x"], m["x"])))


def test_values_of_equal_history_are_two_values():
    def apart(m):
        a, b = m.linear(m["x"], out=8), m.linear(m["x"], out=8)
        return m.graph(m.relu(a), m.halve(b))

    def together(m):
        a, b = m.linear(m["x"], out=8), m.linear(m["x"], out=8)
        return m.graph(m.relu(a), m.halve(a), aux=[("b", b)])

    def with_dead(m):
        a, _ = m.linear(m["x"], out=8), m.linear(m["x"], out=8)
        return m.graph(m.relu(a), m.halve(a))

    assert len({_two(apart), _two(together), _two(with_dead)}) == 3


def test_sharing_counts():
    def stack(shared):
        def make(m):
            first = m.apply("linear", m["x"], out=8)
            return m.graph(m.apply("linear", first.outputs[0], shares=first if shared else None, out=8).outputs[0])

        return make

    assert _two(stack(True)) != _two(stack(False))

    def pattern(*order):
        def make(m):
            value, made = m["x"], {}
            for which in order:
                node = m.apply("linear", value, shares=made.get(which), out=8)
                made.setdefault(which, node)
                value = node.outputs[0]
            return m.graph(value)

        return make

    assert len({_two(pattern(*p)) for p in ("aabb", "abab", "abba", "aaaa", "abcd", "aaab")}) == 6
    assert _two(pattern(*"abab")) == _two(pattern(*"baba"))


def _rings(m, *pairs):
    """Equal linears summed pair by pair: a regular wiring that refinement alone cannot tell from another."""
    leaves = [m.linear(m["x"], out=8) for _ in range(len(pairs))]
    return m.graph(m.add(*[m.add(leaves[a], leaves[b]) for a, b in pairs]))


def test_interchangeable_parts_are_singled_out():
    one_ring = _two(lambda m: _rings(m, (0, 1), (1, 2), (2, 3), (3, 0)))
    two_rings = _two(lambda m: _rings(m, (0, 1), (1, 0), (2, 3), (3, 2)))
    relabelled = _two(lambda m: _rings(m, (2, 0), (0, 3), (3, 1), (1, 2)))
    assert one_ring != two_rings
    assert one_ring == relabelled


def test_runtime_names_are_read_by_place():
    def with_inputs(a, b):
        m = Maker(("x", Type("float", a)), ("y", Type("float", b)))
        return m.graph(m.relu(m["x"]), m.relu(m["y"])).key

    b, t, q = symbol("B"), symbol("T"), symbol("Q")
    assert with_inputs((b, t), (t, 4)) == with_inputs((q, b), (b, 4))
    assert with_inputs((b, t), (t, 4)) != with_inputs((b, t), (b, 4))
    assert with_inputs((2 * b, t), (t, b)) == with_inputs((2 * t, b), (b, t))
    assert with_inputs((t // 2, b + t), (4, 4)) == with_inputs((b // 2, b + t), (4, 4))


def test_keys_do_not_depend_on_the_hash_seed():
    program = "from handmade import rich; print(rich().key)"
    folder = str(Path(__file__).parent)
    run = lambda s: subprocess.run(  # noqa: E731
        [sys.executable, "-c", program], cwd=folder, env={"PYTHONHASHSEED": s}, capture_output=True, text=True, check=True
    )
    seen = {run(s).stdout for s in ("0", "1", "2")}
    assert seen == {rich().key + "\n"}


def test_keys_are_cheap():
    """Bounded against hashing alone, in one process: a key is a few digests per node and never grows faster than the graph."""
    from hashlib import blake2b

    m = Maker(("x", X))
    x = m["x"]
    for _ in range(500):
        x = m.add(x, m.linear(m.relu(m.linear(x, out=32)), out=8))
    graph = m.graph(x)

    def cost(f):
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            f()
            best = min(best, time.process_time() - start)
        return best

    from graphir.ir.key import key

    hashing = cost(lambda: [blake2b(b"x" * 64, digest_size=16).digest() for _ in graph.nodes])
    assert cost(lambda: key(graph)) < 60 * hashing

