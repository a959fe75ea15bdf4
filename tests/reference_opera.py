"""Slow, loop-written twin of OPERA: the whole sequence through an eager model at every step, lists, and its own beams.

It shares no code with prunehal. Of the past it keeps nothing but token lists: windows, penalties, kept visual tokens and
votes are worked out anew from whole sequences. With a policy, tokens are dropped by masks, for the queries after the prune;
what a beam drops is a function of its tokens alone.
"""

import copy
import math
from dataclasses import dataclass, field

import reference
import torch

__all__ = ["Found", "Reader", "Setting", "search"]


@dataclass(frozen=True)
class Setting:
    """Hold the setting of a search; names as in the method's release, where it has some."""

    beams: int
    alpha: float
    sigma: float
    candidates: int
    threshold: int
    scale: float
    warmup: int
    new_tokens: int
    ends: tuple[int, ...] = ()
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    words: int = 94  # ids from here on are no words


@dataclass
class Found:
    """Hold what a search found: (score, tokens), best first; and which token was chosen anew at each return."""

    sequences: list[tuple[float, list[int]]] = field(default_factory=list)
    returns: list[int] = field(default_factory=list)


class Reader:
    """Read whole sequences: logits after the last token, and the last layer's attention matrix."""

    def __init__(self, model, layers, inputs, placeholders, policy=None):
        self.model, self.layers, self.inputs, self.policy = model, layers, inputs, policy
        ids = inputs["input_ids"][0].tolist()
        self.prompt = len(ids)
        self.visual = [position for position, token in enumerate(ids) if token in placeholders]
        self.pools = {}  # the pruner's state after an answer was read

    def read(self, answer):
        """Return logits and the last layer's weights [head][token of the answer][key], with 0 for dropped tokens."""
        if self.policy is None:
            return self.run(answer, [])
        before = self.pool(answer[:-1]) if answer else None
        logits, weights = self.run(answer, self.drops(answer[:-1]) if answer else [])
        if tuple(answer) not in self.pools:
            pool = copy.deepcopy(before)
            if pool is None:
                pool = reference.Pool([[list(self.visual)] for _ in self.layers], [[] for _ in self.layers])
            rows = {index: matrix[0, :, -1] for index, matrix in enumerate(self.matrices)}
            reference._decide(pool, self.policy, rows, len(answer) + 1)
            self.pools[tuple(answer)] = pool
        return logits, weights

    def pool(self, answer):
        if tuple(answer) not in self.pools:
            self.read(answer)
        return self.pools[tuple(answer)]

    def drops(self, answer):
        """Return (first query that no longer sees, kept positions of each layer) for every step of the answer."""
        return [(self.prompt + m, self.pool(answer[:m]).kept) for m in range(len(answer) + 1)]

    def run(self, answer, drops):
        words = torch.tensor([answer], dtype=torch.long).reshape(1, -1)
        longer = {}
        for name, value in self.inputs.items():
            longer[name] = value
            if name == "input_ids":
                longer[name] = torch.cat([value, words], dim=1)
            elif value.shape == self.inputs["input_ids"].shape:
                more = torch.full_like(words, int(name == "attention_mask"))
                longer[name] = torch.cat([value, more.to(value.dtype)], dim=1)

        def masking(index):
            def hook(module, args, kwargs):
                mask = kwargs["attention_mask"].clone()  # (1, 1, query, position), additive
                for first, kept in drops:
                    for position in self.visual:
                        if position not in kept[index][0]:
                            mask[0, 0, first:, position] = -math.inf
                return args, kwargs | {"attention_mask": mask}

            return hook

        handles = [layer.self_attn.register_forward_pre_hook(masking(i), with_kwargs=True) for i, layer in enumerate(self.layers)]
        try:
            with torch.no_grad():
                out = self.model(**longer, use_cache=False, output_attentions=True)
        finally:
            for handle in handles:
                handle.remove()
        self.matrices = out.attentions
        return out.logits[0, -1].tolist(), out.attentions[-1][0, :, self.prompt :].tolist()

    def rows(self, weights, answer):
        """Return the attention of each token of the answer on all positions: the largest of the heads, of sum 1."""
        rows = []
        for query in range(len(answer)):
            largest = [max(head[query][key] for head in weights) for key in range(self.prompt + len(answer))]
            total = sum(largest)
            rows.append([weight / total for weight in largest])
        return rows


def log_softmax(values):
    """Return the logarithms of the softmax of a list."""
    top = max(values)
    total = math.log(sum(math.exp(value - top) for value in values))
    return [value - top - total for value in values]


def ranked(values):
    """Return the indices from the largest to the smallest value."""
    return sorted(range(len(values)), key=lambda index: (-values[index], index))


def most_frequent(values):
    """Return the most frequent value, the smallest of several."""
    return max(sorted(set(values)), key=values.count)


def search(reader, setting):
    """Return what OPERA finds."""
    found, beams = Found(), [(0.0 if beam == 0 else -1e9, []) for beam in range(setting.beams)]
    ended = []
    locations = [[] for _ in beams]  # of each beam's line of descent
    past = []  # what stood before each token was chosen, and what was chosen: (beams, ended, locations, choices)
    rejected, returned = {}, {}
    redo = False
    while True:
        chosen = len(beams[0][1])
        all_logits = [reader.read(answer)[0] for _, answer in beams]
        scores = []
        if redo:
            for beam, logits in enumerate(all_logits):
                logits = list(logits)
                lowest = min(logits)
                for row, token in rejected[chosen]:
                    if row == beam:
                        logits[token] = lowest
                scores.append(log_softmax(logits))
        else:
            found_at = []
            for beam, (_, answer) in enumerate(beams):
                logits = all_logits[beam]
                candidates = ranked(logits)[: setting.candidates]
                penalised, where = [], []
                for token in candidates:
                    longer = [*answer, token]
                    rows = reader.rows(reader.read(longer)[1], longer)
                    products = []
                    for j in range(len(longer)):
                        product = setting.scale
                        for i in range(j, len(longer)):
                            product *= setting.sigma * rows[i][reader.prompt + j]
                        products.append(product)
                    where.append(products.index(max(products)))
                    penalty = min(max(products), 65504.0)
                    if len(longer) <= setting.warmup:
                        penalty = -sum(rows[-1][position] for position in reader.visual)
                    penalised.append(logits[token] - setting.alpha * penalty)
                own = log_softmax(penalised)
                floor, top = min(own) - 999, max(logits)
                of_beam = [floor + value - top for value in logits]
                for token, value in zip(candidates, own, strict=True):
                    of_beam[token] = value
                scores.append(of_beam)
                found_at.append(most_frequent(where))
                locations[beam] = [*locations[beam], found_at[-1]]
            place = _place(most_frequent(found_at), locations, setting, returned, chosen)
            if place is not None:
                found.returns.append(place)
                returned[place] = returned.get(place, 0) + 1
                for later in [at for at in rejected if at > place]:
                    del rejected[later]
                beams, ended, locations, choices = past[place]
                rejected[place] = rejected.get(place, []) + choices
                past, redo = past[:place], True
                continue
        redo = False

        longest = chosen + 1 == setting.new_tokens
        options = []
        for beam, of_beam in enumerate(scores):
            for token in range(setting.words):
                options.append((beams[beam][0] + of_beam[token], beam, token))
        options = sorted(options, key=lambda option: (-option[0], option[1], option[2]))[
            : max(2, 1 + len(setting.ends)) * setting.beams
        ]
        before = (beams, list(ended), locations)
        running = []
        for rank, (score, beam, token) in enumerate(options):
            answer = [*beams[beam][1], token]
            if longest or token in setting.ends:
                if rank < setting.beams:
                    ended.append((score / len(answer) ** setting.length_penalty, answer))
            elif len(running) < setting.beams:
                running.append((score, answer, beam, token))
        ended = sorted(ended, key=lambda each: -each[0])[: setting.beams]
        full = len(ended) == setting.beams
        if longest or (full and setting.early_stopping is True):
            break
        length = chosen + 1
        if setting.early_stopping == "never" and setting.length_penalty > 0:
            length = setting.new_tokens
        if full and running[0][0] / length**setting.length_penalty <= ended[-1][0]:
            break
        past.append((*before, [(beam, token) for _, _, beam, token in running]))
        beams = [(score, answer) for score, answer, _, _ in running]
        locations = [locations[beam] for _, _, beam, _ in running]
    found.sequences = ended
    return found


def _place(location, locations, setting, returned, chosen):
    if location < setting.warmup or location + 1 >= chosen:
        return None
    for beam in locations:
        if sum(each == location for each in beam) <= setting.threshold:
            return None
    for place in (location + 1, location):
        if returned.get(place, 0) < setting.candidates:
            return place
    return None
