"""A search loop: vary parameters, skip architectures already seen, reject by cost before torch is touched, train the rest."""

import random
from pathlib import Path

import graphir

PROGRAM = Path(__file__).with_name("odds.arch")
random.seed(0)
seen, scores = set(), {}
while len(scores) < 4:
    graph = graphir.load(PROGRAM, width=random.choice([2, 4, 8, 16, 64]))
    if graph.key in seen:
        continue
    seen.add(graph.key)
    if graph.summary(B=64).flops > 100_000:
        print(f"width {graph.params['width']}: too expensive")
        continue
    import torch

    net, x = graphir.compile(graph), torch.rand(256, 8, generator=torch.Generator().manual_seed(1))
    target = (x[:, :1] > 0.5).float()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(200):
        loss = torch.nn.functional.binary_cross_entropy(net(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    scores[graph.key] = loss.item()
    print(f"width {graph.params['width']}: {graph.parameters} parameters, loss {loss.item():.3f}")
