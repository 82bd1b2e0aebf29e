"""The graph as networkx sees it."""

import networkx

from handmade import rich


def test_nodes_inputs_outputs_and_ports():
    graph = rich()
    view = graph.to_networkx()
    assert isinstance(view, networkx.MultiDiGraph)
    assert networkx.is_directed_acyclic_graph(view)
    assert view.graph["name"] == "Hand"
    assert list(view) == list(range(len(graph.inputs) + len(graph.nodes) + len(graph.outputs) + len(graph.aux)))
    kinds = networkx.get_node_attributes(view, "kind")
    assert [kinds[n] for n in (0, 3, len(view) - 3, len(view) - 1)] == ["input", "node", "output", "aux"]
    assert view.number_of_edges() == sum(graph.uses.values())

    fork = next(n for n, d in view.nodes(data=True) if d["op"] == "fork")
    assert view.nodes[fork]["attrs"] == {"branches": ("a", "b")}
    assert view.nodes[fork]["types"] == ["float[B, T, 8]"] * 2
    assert sorted(d["source"] for _, _, d in view.out_edges(fork, data=True)) == [0, 1]

    add = next(n for n, d in view.nodes(data=True) if d["op"] == "add")
    assert sorted(d["target"] for _, _, d in view.in_edges(add, data=True)) == [0, 1, 2]
    linear = next(d for _, d in view.nodes(data=True) if d["path"] == "part.linear_3")
    assert linear["weights"] == {"weight": "part.linear_3.weight", "bias": "part.linear_3.bias"}
    assert linear["frames"] == ("Part", "linear")
    assert next(d["name"] for _, d in view.nodes(data=True) if d["kind"] == "aux") == "layers.0.balance"


def test_sharing_is_seen_by_name():
    view = rich().to_networkx()
    names = [d["weights"].get("weight") for _, d in view.nodes(data=True)]
    assert names.count("part.linear_4.weight") == 2
