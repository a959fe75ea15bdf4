"""The slow twin of `prunehal.core.lens` and its two policies: one token and one word at a time, by a stock model's logits."""

import math

import torch


def readings(model, single, visual):
    """Return information and certainty of each visual position of one row, from the logits that the model itself gives there."""
    with torch.no_grad():
        logits = model(**single).logits[0].double()
    said = []
    for position in visual:
        weights = [math.exp(value) for value in logits[position].tolist()]
        said.append([weight / sum(weights) for weight in weights])
    mean = [sum(of_word) / len(said) for of_word in zip(*said, strict=True)]
    information = [sum(p * math.log(p / q) for p, q in zip(of_token, mean, strict=True) if p > 0) for of_token in said]
    return information, [max(of_token) for of_token in said]


def scores(information, certainty, grid, window):
    """Return what both rank by: a token's information times the square of its surroundings' mean."""
    sure = [i * c for i, c in zip(information, certainty, strict=True)]
    ranked = []
    for number, own in enumerate(information):
        near = [sure[number]] if grid is None else []
        for other, value in enumerate(sure if grid is not None else []):
            same = number // grid**2 == other // grid**2
            down, across = other % grid**2 // grid - number % grid**2 // grid, other % grid - number % grid
            if same and abs(down) <= window // 2 and abs(across) <= window // 2:
                near.append(value)
        ranked.append(own * (sum(near) / len(near)) ** 2)
    return ranked


def kept(ranked, visual, p):
    """Return the positions of the fewest best tokens whose scores sum up to the share p of all."""
    best, held = [], 0.0
    for number in sorted(range(len(visual)), key=lambda number: -ranked[number]):
        if best and held >= p * sum(ranked):
            break
        best.append(visual[number])
        held += ranked[number]
    return sorted(best)


def reaching(ranked, visual, part):
    """Return the positions of the tokens whose score is at least this part of the largest."""
    return [position for position, score in zip(visual, ranked, strict=True) if score >= part * max(ranked)]
