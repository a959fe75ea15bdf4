"""Bank: a KV cache whose dropped visual tokens go to a bank instead of nowhere, and return when the policy says so."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from prunehal.core.attention import Aside
from prunehal.core.bank_table import BankTable
from prunehal.core.cache import PrunableCache
from prunehal.core.layer import PrunableLayer
from prunehal.core.selection import averaged
from prunehal.core.table import sent
from prunehal.core.vault import Vault

__all__ = ["BankingCache"]


class BankingCache(PrunableCache):
    """Cache K and V of a prompt and what follows, for the policy `Bank`; made by ``attach``.

    Example:
        >>> import prunehal as ph
        >>> from prunehal.testbed.world.scenes import scene
        >>> model, processor = ph.load()
        >>> prompt = "<image>Describe this scene in detail."
        >>> inputs = processor(images=scene("test", 0).image(), text=prompt, return_tensors="pt")
        >>> cache = ph.attach(model, inputs, ph.Bank(r=0.25, t=1, back="key", store="int8"))
        >>> ids = model.generate(**inputs, **cache.options, max_new_tokens=3)
        >>> cache.events["reason"].tolist(), cache.events["kept"][1]
        (['forced', 'swapped'], [36, 36, 36, 36, 36, 36])
        >>> cache.bank_bytes < sum(layer.nbytes() for layer in cache.layers)
        True
    """

    _kind_of_table = BankTable
    table: BankTable | None

    def _forget(self) -> None:
        super()._forget()
        self._vaults = [Vault(self.policy.store, self.policy.back == "key") for _ in self._pruned]
        self._compared: list[Tensor] = []  # the newest query's weights on [stored | banked], by layer
        self._swap: Tensor | None = None  # what to hold after the pending swap, bool (layer, pool, head, visual)

    @property
    def events(self) -> pd.DataFrame:
        """Return one line for each prune and each return: as for every cache, and ``returned``, tokens that came back by layer.

        A return's reason is "returned" (all tokens of the bank) or "swapped" (for as many others). With kept="head" a layer's
        number is that of the head with the most.
        """
        return super().events.assign(returned=[event["returned"] for event in self._events])

    @property
    def bank_bytes(self) -> int:
        """Return the memory that the bank takes now, in bytes, wherever it is."""
        self._settle()
        return sum(vault.nbytes() for vault in self._vaults)

    def aside(self, layer: PrunableLayer, mask: Tensor | None, window: int | None) -> Aside | None:
        """Return the bank's keys at a step that compares them with the newest query."""
        policy, table = self.policy, self.table
        due = policy.back == "key" and self.wants_row(layer) and self.step % policy.every == 0
        if not due or not table.bank_width:
            return None
        positions = table.bank_positions(layer.place).to(layer.device)
        seen = positions >= 0
        if window is not None:
            seen = seen & (positions > layer.seen - 1 - window)
        seen = seen[:, :, None]
        if mask is not None and mask.ndim == 4:
            last = mask[:, :, -1].expand(len(positions), -1, -1)
            shape = (len(positions), max(last.shape[1], positions.shape[1]), -1)
            last = last.expand(shape).gather(2, positions.clamp_min(0).expand(shape))[:, :, None]
            seen = seen & (last if last.dtype == torch.bool else last >= 0)
        return Aside(self._vaults[layer.place].keys(layer.keys), seen, self._compare)

    def _compare(self, weights: Tensor) -> None:
        self._compared.append(self._report(weights.detach()))

    def _may_act(self, pool: int, left: Sequence[int]) -> bool:
        returns = self.policy.back == "fall" or self._compared
        return super()._may_act(pool, left) or bool(returns and self.table.banked(pool))

    def _finish(self) -> None:
        super()._finish()
        compared, self._compared = self._compared, []
        if not compared:
            return
        table, live = self.table, self._live()
        weights = table.read_all(compared)
        if self.policy.beam_state == "shared" and self._copies > 1:
            weights, live = averaged(weights, live, self._copies, table.pools)
        self._swap = self.policy.swapped(weights, table.valid, table.present)
        counts = ((self._swap & ~table.valid).sum(-1).amax(-1) * live).flatten()  # (layer, pool): of the head with the most
        step, wishes = self._pending
        self._pending = (step, torch.cat([wishes.long(), counts]))  # read together

    def _act(self, step: int, wanted: list[int]) -> None:
        table, policy, n = self.table, self.policy, len(self.table.totals)
        swap, self._swap = self._swap, None
        left = list(zip(*table.left, strict=True))  # for each pool its tokens by layer
        falls = [pool for pool in range(n) if wanted[pool] and policy.back == "fall" and table.banked(pool)]
        prunes = [p for p in range(n) if wanted[p] and p not in falls and self._memory.may_prune(p, left[p])]
        swapped = list(zip(*(wanted[start : start + n] for start in range(n, len(wanted), n)), strict=True)) or [()] * n
        swaps = [p for p in range(n) if any(swapped[p]) and p not in prunes]
        if not (falls or prunes or swaps):
            return

        keep, after = self._memory.choose(table, prunes)
        for pools, chosen in ((falls, table.present), (swaps, swap)):
            if pools:
                index = sent(pools, keep.device)
                keep = keep.index_copy(1, index, chosen.index_select(1, index))
        after = [
            [held if p in falls else now for p, (now, held) in enumerate(zip(*both, strict=True))]
            for both in zip(after, table.held, strict=True)
        ]
        most = [max(swapped[p]) if p in swaps else 0 for p in range(n)]
        if prunes:
            self._memory.count(prunes)
        moves = table.exchange(keep, after, step, self._pruned[0].seen, most)
        for layer, vault, move in zip(self._pruned, self._vaults, moves, strict=True):
            vault.exchange(layer, move)

        for pool in sorted(falls + prunes + swaps):
            if pool in prunes:
                reason, returned = "forced" if policy.forced(step) else "vote", [0] * len(self._pruned)
            elif pool in swaps:
                reason, returned = "swapped", list(swapped[pool])
            else:
                reason, returned = "returned", [of[pool] - then for of, then in zip(after, left[pool], strict=True)]
            self._events.append(self._event(pool, step, reason) | {"returned": returned})

    def _move(self, beam_idx: Tensor, rows: list[int]) -> None:
        super()._move(beam_idx, rows)
        if rows != list(range(len(rows))):
            for vault in self._vaults:
                vault.reorder(rows)

    def release(self) -> None:
        """Free K and V, those of the bank too; what was observed can still be read."""
        super().release()
        self._vaults = []
