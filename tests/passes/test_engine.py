"""The engine: one walk, watchers, reasons, loops, reproducers, and that the work grows with the graph and no faster."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest
from hand import Hand, ops

from graphir.ir.graph import Graph, Node, Where
from graphir.lang.diagnostic import Diagnostic, GraphirError
from graphir.passes import (
    DEFAULT,
    Diff,
    InternalError,
    Pass,
    Pipeline,
    PrintAfter,
    Report,
    Statistics,
    Step,
    Timing,
    Verify,
    crash,
    parse,
    rewrite,
    run_pipeline,
)
from graphir.passes.pipeline import NoOptions
from graphir.passes.rewrite import Rewriter, RuleLoop, branch_of, common_scope, leaves_branch


def _graph() -> Graph:
    h = Hand()
    return h.graph(h.call("gelu", h.call("id", h.call("linear", h.x, out=8))))


def _step(run) -> Step:
    return Step(Pass(run.__name__, run), NoOptions())


# one walk


def test_what_a_rule_emits_is_offered_again():
    def gelu_is_silu(node, rewriter):
        return rewriter.emit("silu", node.inputs, {}, (), node.where)

    def silu_is_relu(node, rewriter):
        return rewriter.emit("relu", node.inputs, {}, (), node.where)

    report = Report()
    after = rewrite(_graph(), {"gelu": [gelu_is_silu], "silu": [silu_is_relu]}, report=report)
    assert ops(after) == ["linear", "id", "relu"]
    assert after.nodes[-1].where.frames == ("relu",)
    assert dict(report.fired) == {"gelu_is_silu": 1, "silu_is_relu": 1}


def test_rules_that_undo_each_other_are_named():
    def there(node, rewriter):
        return rewriter.emit("silu", node.inputs, {}, (), node.where)

    def back(node, rewriter):
        return rewriter.emit("gelu", node.inputs, {"approximate": "none"}, (), node.where)

    with pytest.raises(RuleLoop, match="there, back, there, back"):
        rewrite(_graph(), {"gelu": [there], "silu": [back]})


def test_nodes_before_and_beside_a_change_are_reused():
    graph = _graph()
    after, _ = parse("simplify").steps[0](graph), None
    assert after.nodes[0] is graph.nodes[0]
    assert after.nodes[1] is not graph.nodes[2]
    assert after.nodes[1].outputs[0].type == graph.nodes[2].outputs[0].type


def test_nothing_to_do_is_the_same_object():
    def never(node, rewriter):
        return rewriter.no("no reason", node)

    graph = _graph()
    assert rewrite(graph, {"gelu": [never]}) is graph
    assert rewrite(graph, {"conv2d": [never]}) is graph
    assert rewrite(graph, merge=True) is graph


def test_new_places_are_unique():
    rewriter = Rewriter(_graph())
    where = Where("a", ("Block",))
    assert [rewriter.below(where, "b").path for _ in range(3)] == ["a.b", "a.b_1", "a.b_2"]
    assert rewriter.below(Where(""), "gelu_2").path == "gelu_2_1"


@pytest.mark.parametrize(
    ("path", "frames", "branch"),
    [
        ("a.b", ("Block", "linear"), ()),
        ("moe.high.linear", ("filter", "pipe", "linear"), ("moe", "high")),
        ("moe.linear", ("filter", "linear"), ("moe", "linear")),
        ("moe.branches.3.up", ("filter", "[]", "SwiGLU", "linear"), ("moe", "branches", "3")),
        ("l.fork.a.moe.b.x.y", ("[]", "fork", "pipe", "filter", "Block", "Block", "linear"), ("l", "fork", "a", "moe", "b")),
    ],
)
def test_branches_of_places(path, frames, branch):
    assert branch_of(Where(path, frames)) == branch


def test_common_scopes():
    assert common_scope("a.b.c", "a.b.d") == ("a", "b")
    assert common_scope("a.b.c", "a.bc.c") == ("a",)
    assert common_scope("a", "b") == ()
    assert leaves_branch(Where("moe.a.x", ("filter", "pipe", "linear")), 1)
    assert not leaves_branch(Where("moe.a.x", ("filter", "pipe", "linear")), 2)
    assert not leaves_branch(Where("l.a.x", ("[]", "Block", "linear")), 0)


# watchers


def test_watchers_are_told_of_each_pass():
    timing, statistics, text, diff = Timing(), Statistics(), io.StringIO(), io.StringIO()
    watchers = [timing, statistics, PrintAfter({"simplify"}, stream=text), Diff(stream=diff), Verify()]
    after = run_pipeline(_graph(), "share,simplify", watchers)
    assert ops(after) == ["linear", "gelu"]
    assert [(row[0], row[2:]) for row in timing.rows] == [("share", (3, 3, False)), ("simplify", (3, 2, True))]
    lines = str(timing).splitlines()
    assert len(lines) == 4
    assert "3 unchanged" in lines[1]
    assert "3 -> 2" in lines[2]
    assert statistics.fired["2. simplify"] == {"id_is_its_input": 1}
    assert "1 id is its input" in str(statistics)
    assert text.getvalue() == f"# after simplify\n{after}\n"
    assert diff.getvalue().startswith("# share: no change\n--- before simplify\n+++ after simplify\n")
    assert "\n-%1 = id(%0)" in diff.getvalue()


def test_printing_only_what_changed():
    text = io.StringIO()
    run_pipeline(_graph(), "share,simplify,share", [PrintAfter(changed_only=True, stream=text)])
    assert text.getvalue().count("# after") == 1


def test_refusals_are_collected_only_when_asked_for():
    h = Hand()
    graph = h.graph(h.call("rmsnorm", h.x, at="layers.0.norm"))
    silent, asked, other = Statistics(), Statistics(), Statistics()
    run_pipeline(graph, DEFAULT, [silent])
    run_pipeline(graph, DEFAULT, [asked], explain=["norm_of_a_sum_is_one_node_with_it"])
    run_pipeline(graph, DEFAULT, [other], explain=["id_is_its_input"])
    assert silent.refusals == other.refusals == []
    assert asked.refusals == ["norm_of_a_sum_is_one_node_with_it not at layers.0.norm: it reads an input of the model, not a sum"]


# faults


def _breaks(graph, options, report):
    """Breaks."""
    raise ZeroDivisionError("by nought")


def _refuses(graph, options, report):
    """Refuses."""
    raise GraphirError(Diagnostic("E0999", "no"))


def _spoils(graph, options, report):
    """Spoils the graph."""
    return graph.with_(nodes=tuple(reversed(graph.nodes)))


def test_a_crash_leaves_a_reproducer_that_replays(tmp_path, monkeypatch, capsys):
    graph = _graph()
    pipeline = Pipeline((*parse("simplify").steps, _step(_breaks), *parse("share").steps))
    with pytest.raises(InternalError) as caught:
        run_pipeline(graph, pipeline, crash_folder=tmp_path)
    (path,) = tmp_path.iterdir()
    assert caught.value.reproducer == path
    assert path.name.startswith("crash-")
    assert path.suffix == ".gir"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert f"graphir replay {path}" in str(caught.value)
    text = path.read_text()
    assert "# passes: _breaks,share\n" in text
    assert "# error: pass `_breaks` failed: ZeroDivisionError: by nought\n" in text
    assert "# versions: python " in text
    assert " = id(" not in text, "the graph is the one before the failing pass, not the first one"
    path.write_text(text.replace("_breaks,", ""))
    assert crash.main([str(path)]) == 0
    assert capsys.readouterr().out == "`share` ran through\n"
    again, steps = crash.read(path.read_text())
    assert str(again) == "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert str(steps) == "share"


def test_the_same_crash_has_the_same_name(tmp_path):
    for _ in range(2):
        with pytest.raises(InternalError):
            run_pipeline(_graph(), Pipeline((_step(_breaks),)), crash_folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_where_nothing_can_be_written_the_first_error_is_told(tmp_path):
    with pytest.raises(InternalError, match="by nought") as caught:
        run_pipeline(_graph(), Pipeline((_step(_breaks),)), crash_folder=tmp_path / "missing")
    assert caught.value.reproducer is None
    assert "no reproducer could be written" in str(caught.value)


def test_a_user_s_mistake_is_no_crash(tmp_path):
    with pytest.raises(GraphirError):
        run_pipeline(_graph(), Pipeline((_step(_refuses),)), crash_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_pass_that_spoils_the_graph_is_caught_by_the_verifier(tmp_path):
    with pytest.raises(InternalError, match="the graph after `_spoils` is not valid"):
        run_pipeline(_graph(), Pipeline((_step(_spoils),)), [Verify()], crash_folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_another_file_is_no_reproducer():
    with pytest.raises(GraphirError) as caught:
        crash.read("gir 1\ngraph G\n")
    assert [d.code for d in caught.value.diagnostics] == ["E0902"]


# cost


def _chain(length: int) -> Graph:
    h = Hand()
    y = h.x
    for _ in range(length):
        total = h.call("add", y, h.call("gelu", h.call("rmsnorm", y, scale=False)))
        y = h.call("id", total)
    return h.graph(y)


def _seconds(graph: Graph, text: str) -> float:
    """Processor time per node, the best of five."""

    def once() -> float:
        copy = replace(graph)  # what is known of a graph from an earlier run is not counted
        started = time.process_time()
        run_pipeline(copy, text)
        return time.process_time() - started

    return min(once() for _ in range(5)) / len(graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["share", "simplify", "norm-fusion", "lower", DEFAULT])
def test_the_work_grows_with_the_graph_and_no_faster(text):
    small, large = _chain(2_000), _chain(10_000)  # both larger than the caches of the processor
    assert _seconds(large, text) < 3 * _seconds(small, text)  # quadratic work would be 5


def test_a_deep_graph_needs_no_deep_stack():
    graph = _chain(3000)
    after = run_pipeline(graph, DEFAULT)
    assert after.ops["add_rmsnorm"] == 2999
    assert isinstance(after.nodes[0], Node)
