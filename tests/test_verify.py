"""The verifier accepts what builders make and names everything that is wrong with the rest."""

import random
import time

import pytest

from graphir.ir.graph import Attrs, Graph, Node, Precondition, Value, Weight, Where
from graphir.ir.text import dump, read
from graphir.ir.types import Type
from graphir.ir.verify import verify
from graphir.lang.diagnostic import GraphirError

from handmade import BRICKS, B, Maker, T, rich

X = Type("float", (B, T, 8))


def messages(graph: Graph) -> list[str]:
    try:
        verify(graph, BRICKS)
    except GraphirError as e:
        return [d.message for d in e.diagnostics if d.code == "E0903"]
    return []


def broken(old: str, new: str) -> list[str]:
    """What is wrong with the rich graph after one replacement in its text."""
    text = dump(rich())
    assert old in text
    return messages(read(text.replace(old, new, 1)))


def test_sound_graphs_pass():
    assert messages(rich()) == []
    assert messages(read(dump(rich()))) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("relu(%22)", "rellu(%22)", "the op `rellu` is not known"),
        ("@last", "@barest", "another node has the path `barest`"),
        (" @barest", "", "the path '' is not well formed"),
        ("!mlx", "!tpu", "the backend 'tpu' is not known"),
        (": float[B, T, 8] @part.add_6", ": float[B, T, 9] @part.add_6", "the node holds float[B, T, 9]"),
        (": float[B, T, 8] @part.add_6", ": int[B, T, 8] @part.add_6", "the node holds int[B, T, 8]"),
        (": float[B, T, 8] @part.add_6", ": float[B, 8] @part.add_6", "the node holds float[B, 8]"),
        (": float[B, T//2, 8]", ": float[B, T, 8]", "the node holds float[B, T, 8]"),
        ("{out=8, bias=true}", "{out=8, bias=false}", "`linear` has the weights weight, not weight, bias"),
        ("{out=8, bias=true} w{weight=part.linear_3.weight, ", "{out=8, bias=true} w{", "has the weights weight, bias, not bias"),
        ("w{weight=part.linear_3.weight, ", "w{weight=part.linear_3.weight, weight=part.linear_3.bias, ", "two weights are called"),
        ("w{weight=part.linear_3.weight", "w{weight=part.linear_4.wait", "the weight `part.linear_4.wait` is not in the inventory"),
        ("weight part.linear_4.weight [8, 8]", "weight part.linear_4.weight [9, 8]", "has the shape [8, 8], but"),
        ("weight part.linear_4.", "weight part.linear_9.weight [8, 8] he\nweight part.linear_4.", "no node uses the weight"),
        ('branches=["a", "b"]', 'branches=["a", "b", "c"]', "a fork of 3 branches has one input and 3 results"),
        ('branches=["a", "b"]', 'branches=["a", "a"]', "are distinct names"),
        ('branches=["a", "b"]', "branches=2", "are distinct names"),
        (' {branches=["a", "b"]}', "", "are distinct names"),
        ("{size=10, out=8}", '{size="ten", out=8}', "refuses it"),
        (" {size=10, out=8}", "", "refuses it"),
        ("{size=10, out=8}", "{size=10, out=[8, [8]]}", "refuses it"),
        ("embedding(%tokens)", "embedding(%x)", "refuses it: `tokens` takes int elements"),
        ("relu(%22)", "relu(%22, %22)", "refuses it: `relu` takes 1 tensor"),
        ("return y1 = %6\n", "return %6\n", "the output name '' is not well formed"),
        ("return y0 = %24\nreturn y1 = %6\n", "", "there is no output"),
    ],
)
def test_corruptions_of_a_text_are_found(old, new, expected):
    found = broken(old, new)
    assert any(expected in message for message in found), found


def _linear() -> tuple[Maker, Value]:
    m = Maker(("x", X))
    return m, m.linear(m["x"], out=8, bias=False)


def test_order_and_definition():
    m, y = _linear()
    z = m.relu(y)
    good = m.graph(z)
    assert messages(good) == []
    first, second = good.nodes
    assert any("input 0 is not defined before" in t for t in messages(good.with_(nodes=(second, first))))
    assert any("a result is defined already" in t for t in messages(good.with_(nodes=(first, first, second))))
    assert any("the output `` is not defined" in t for t in messages(good.with_(nodes=(first,))))
    assert any("aux output `a` is not defined" in t for t in messages(good.with_(aux=(("a", Value(X)),))))
    stolen = Node("relu", (y,), Attrs(), (), Where("p"), [X])
    stolen.outputs = first.outputs
    assert any("does not know this node as its own" in t for t in messages(good.with_(nodes=(stolen, second), outputs=(("", z),))))
    void = Node("relu", (y,), Attrs(), (), Where("p"), [])
    assert any("there is no result" in t for t in messages(good.with_(nodes=(first, void, second))))


def test_names_of_graphs_made_in_python():
    m, y = _linear()
    good = m.graph(y)
    bad = 'x=print("PWNED")'
    (name, value), (first,) = good.inputs[0], good.nodes
    assert any("input name" in t for t in messages(good.with_(inputs=((bad, value),))))
    assert any("two inputs `x`" in t for t in messages(good.with_(inputs=((name, value), (name, Value(X))))))
    assert any("two inputs are one value" in t for t in messages(good.with_(inputs=((name, value), ("y", value)))))
    assert any("output name" in t for t in messages(good.with_(outputs=((bad, y),))))
    assert any("two outputs `o`" in t for t in messages(good.with_(outputs=(("o", y), ("o", y)))))
    assert any("two aux outputs `o`" in t for t in messages(good.with_(aux=(("o", y), ("o", y)))))
    assert any("the name" in t for t in messages(good.with_(name=bad)))
    assert any("param name" in t for t in messages(good.with_(params={bad: 1})))

    def node(attrs=first.attrs, weights=first.weights, path="p"):
        return Node("linear", (value,), Attrs(attrs), weights, Where(path), [X])

    def with_node(new):
        return good.with_(nodes=(new,), outputs=(("", new.outputs[0]),), weights=good.weights)

    assert any("attribute name" in t for t in messages(with_node(node({**first.attrs, bad: 1}))))
    assert any("is inf, which a graph may not hold" in t for t in messages(with_node(node({**first.attrs, "a": float("inf")}))))
    assert any("the path" in t for t in messages(with_node(node(path=bad))))
    assert any("the role" in t for t in messages(with_node(node(weights=((bad, first.weights[0][1]),)))))
    hostile = Graph("M", good.inputs, (), (("", value),), {bad: Weight((2,))})
    assert any("weight name" in t for t in messages(hostile))


def test_facts_settle_types():
    m = Maker(("x", Type("float", (B, T, 8))))
    y = m.double(m.halve(m["x"]))
    even = Node("relu", (y,), Attrs(), (), Where("r"), [X])
    nodes = (*m.builder.nodes, even)
    require = (Precondition(T, "==", 0, 2),)
    assert messages(Graph("M", tuple(m.inputs), nodes, (("", even.outputs[0]),), {}, requires=require)) == []
    assert messages(Graph("M", tuple(m.inputs), nodes, (("", even.outputs[0]),), {}))


def test_filters_and_joins_count_their_branches():
    m = Maker(("x", X), ("w", X))
    node = m.apply("filter", m["w"], m["x"], m["x"], branches=("a", "b"))
    assert messages(m.graph(node.outputs[0])) == []
    short = m.apply("filter", m["w"], m["x"], branches=("a", "b"))
    assert any("a filter of 2 branches has 3 inputs" in t for t in messages(m.graph(short.outputs[0])))
    m = Maker(("x", X))
    join = m.apply("add", m["x"], m["x"], branches=("a", "b", "c"))
    assert any("a join of 3 branches has 3 inputs" in t for t in messages(m.graph(join.outputs[0])))


def test_all_problems_are_listed_each_with_a_window():
    text = dump(rich()).replace("relu(%22)", "rellu(%22)").replace("!mlx", "!tpu").replace("[10, 8] normal", "[9, 8] normal")
    with pytest.raises(GraphirError) as caught:
        verify(read(text), BRICKS)
    found = caught.value.diagnostics
    assert len(found) == 3
    window = next(d for d in found if "tpu" in d.message).notes[0].splitlines()
    assert len(window) == 3 + 1 + 5
    assert window[3].startswith("> %4 = linear(%2)")
    assert all(line.startswith("  %") for line in window[:3] + window[4:])
    assert str(next(d for d in found if "tpu" in d.message).span) == "hand.arch:4:3"


def test_random_corruptions_are_found_or_harmless():
    """Dropped, swapped and doubled lines and changed numbers: found, or the graph is one that a builder could have made."""
    rng = random.Random(3)
    lines = dump(rich()).splitlines()
    seen = 0
    for _ in range(300):
        changed = list(lines)
        i, j = rng.randrange(2, len(lines)), rng.randrange(2, len(lines))
        kind = rng.choice(("drop", "swap", "wire", "width"))
        if kind == "drop":
            del changed[i]
        elif kind == "swap":
            changed[i], changed[j] = changed[j], changed[i]
        elif kind == "wire":
            changed[i] = changed[i].replace(f"(%{i - 18}", f"(%{rng.randrange(20)}")
        else:
            changed[i] = changed[i].replace("8", "7", 1)
        try:
            graph = read("\n".join(changed))
            verify(graph, BRICKS)
        except GraphirError:
            seen += 1
            continue
        for node in graph.nodes:
            types = tuple(v.type for v in node.inputs)
            given = BRICKS[node.op].infer(types, node.attrs, graph.facts)
            assert all(graph.facts.same(x, y) for a, v in zip(given, node.outputs) for x, y in zip(a.shape, v.type.shape))
    assert seen > 150


def test_cost_is_small_and_linear():
    def net(depth):
        m = Maker(("x", X))
        x = m["x"]
        for _ in range(depth):
            x = m.add(x, m.linear(m.relu(m.linear(x, out=32)), out=8))
        return m.graph(x)

    def cost(graph):
        best = float("inf")
        for _ in range(4):
            start = time.process_time()
            verify(graph, BRICKS)
            best = min(best, time.process_time() - start)
        return best / len(graph.nodes)

    assert cost(net(2000)) < 4 * cost(net(200))
