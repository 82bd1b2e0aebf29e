"""Mechanistic architecture design (Poli et al. 2024, arXiv 2403.17844): six synthetic tasks, how models are trained on them, and its layers.

from graphir.mad import tasks, train
data = tasks.make(tasks.setting("in-context-recall", vocab=8, length=32, train=3200))
score = train.fit(graph, data, steps=1000)
"""
