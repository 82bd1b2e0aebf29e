"""Balance losses at their published values, uniform and collapsed."""

import pytest
import torch
from brick_cases import use

UNIFORM = torch.full((64, 8), 1 / 8, dtype=torch.float64)
COLLAPSED = torch.zeros(64, 8, dtype=torch.float64).index_fill_(1, torch.tensor(0), 1.0)
ROUND_ROBIN = torch.eye(8, dtype=torch.float64).repeat(8, 1)


@pytest.mark.parametrize(
    ("text", "inputs", "wanted"),
    [
        ("switch_balance", (UNIFORM, ROUND_ROBIN), 1.0),
        ("switch_balance", (COLLAPSED, COLLAPSED), 8.0),
        ("switch_balance", (UNIFORM, UNIFORM), 1.0),
        ("switch_balance(normalise = false)", (UNIFORM, UNIFORM), 8.0),
        ("importance", (UNIFORM,), 0.0),
        ("importance", (COLLAPSED,), 7.0),
        ("balance_document", (UNIFORM,), 1.0),
        ("balance_document", (COLLAPSED,), 16.0),
        ("entropy", (UNIFORM,), 2.0794415416798357),
        ("entropy", (COLLAPSED,), 0.0),
        ("z_loss", (torch.zeros(5, 8),), 2.0794415416798357**2),
    ],
)
def test_values(text, inputs, wanted):
    assert use(text, *inputs).item() == pytest.approx(wanted, abs=1e-6)


def test_load_and_its_entropy():
    w = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert use("load", w).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert use("load", w != 0).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert use("entropy", torch.tensor([0.5, 0.5, 0.0, 0.0])).item() == pytest.approx(0.6931, abs=1e-4)


def test_switch_balance_is_the_published_formula():
    p = torch.randn(3, 7, 5, dtype=torch.float64).softmax(-1)
    chosen = use("keep_top(1, renormalise = false)", p)
    flat, picked = p.reshape(-1, 5), (chosen != 0).double().reshape(-1, 5)
    wanted = 25 * (picked.mean(0) * flat.mean(0)).mean()
    torch.testing.assert_close(use("switch_balance", p, chosen), wanted)


def test_gradients_push_towards_balance():
    logits = torch.zeros(32, 4, dtype=torch.float64)
    logits[:, 0] = 2.0
    for text in ("switch_balance", "importance", "balance_document"):
        z = logits.clone().requires_grad_()
        p = z.softmax(-1)
        use(text, p, p.detach() > 0.5).backward() if text == "switch_balance" else use(text, p).backward()
        assert (z.grad[:, 0] > 0).all(), text
        assert (z.grad[:, 1:] < 0).all(), text


def test_losses_of_perfect_balance_have_finite_gradients():
    for text in ("importance", "balance_document", "entropy", "z_loss"):
        x = UNIFORM.clone().requires_grad_()
        use(text, x).backward()
        assert x.grad.isfinite().all(), text
    x = ROUND_ROBIN.clone().requires_grad_()
    use("entropy", x).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("text", ["switch_balance", "importance", "balance_document", "z_loss", "load", "entropy", "drop_rate"])
def test_no_tokens(text):
    nothing = torch.zeros(0, 4)
    inputs = (nothing, nothing) if text in ("switch_balance", "drop_rate") else (nothing,)
    assert use(text, *inputs).abs().sum() == 0
