"""What a run says before it trains: nothing about labels, draws or weights is silent."""

from __future__ import annotations

from hardpix.data import DataModule
from hardpix.methods import Method
from hardpix.run.data_facts import label_verdict, told_left_out, told_of_depth

_told: set[str] = set()  # remarks on the optimiser: all jobs of a sweep would say the same


def start_remarks(data: DataModule, method: Method) -> tuple[str, ...]:
    """Remarks of the data set, on repeated frames and missing depth, of losses, of a method on its optimiser: lines.

    The last kind comes once in a process.
    """
    speaking = [module for module in method.modules() if hasattr(module, "remarks")]
    optimizer = method.parts.build_optimizer(method.parameter_groups())
    new = [line for line in method.optimizer_remarks(optimizer) if line not in _told]
    _told.update(new)
    return (
        *data.remarks(),
        *told_left_out(data),
        *told_of_depth(data),
        *label_verdict(data).lines,
        *(line for module in speaking for line in module.remarks(data.info.classes)),  # type: ignore[operator]
        *_of_stages(method),
        *new,
    )


def _of_stages(method: Method) -> tuple[str, ...]:
    model = method.model
    if not (model.head.decides_twice and len(model.aux_head)):
        return ()
    return (
        "the head's first stage stands for an auxiliary head, and one trains besides; as published it is "
        "model.aux_level=null",
    )
