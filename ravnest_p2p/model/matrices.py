"""Which parameters of a model are hidden matrices: those for which Muon is made.

Problem: Muon is for the matrices between the first and the last layer; embeddings, heads, and what is no
matrix at all want AdamW. A program has no modules that could say what a parameter is for, and peers that cut
it differently must agree. Solution: read it from the flow of data through the whole program, which every
stage of a job has.

Source: Keller Jordan, kellerjordan.github.io/posts/muon ("hidden layers").
"""

from __future__ import annotations

from ravnest_p2p.model.node import Node, Ref
from ravnest_p2p.model.program import Program

_PRODUCTS = {f"aten.{name}": (0, 1) for name in ("linear.default", "matmul.default", "mm.default")} | {
    "aten.addmm.default": (1, 2)
}
_CONVOLUTIONS = {
    f"aten.{name}": (0, 1)
    for name in (
        "conv1d.default",
        "conv1d.padding",
        "conv2d.default",
        "conv2d.padding",
        "conv3d.default",
        "conv3d.padding",
        "conv_transpose1d.default",
        "conv_transpose2d.input",
    )
}
_SAME_WEIGHT = frozenset(
    f"aten.{name}"
    for name in (
        "alias.default",
        "chunk.default",
        "clone.default",
        "contiguous.default",
        "narrow.default",
        "numpy_T.default",
        "permute.default",
        "slice.Tensor",
        "split.Tensor",
        "split.sizes",
        "split_with_sizes.default",
        "t.default",
        "to.dtype",
        "transpose.int",
    )
)
"""Hand a weight, or a part of it, on to the product that uses it."""


def hidden_matrices(program: Program) -> frozenset[str]:
    """Names of the trained parameters that

    * have two dimensions, both above 1;
    * are read by matrix products only (so no embedding, no table of positions, and no head tied to one),
      where they may be transposed, cut, or cast on the way there;
    * are not of the first layer: some product multiplies them with what an earlier weight had a part in;
    * are not of the last layer: what comes out of some product reaches another product or convolution with a
      weight.

    It is a function of the whole program, so all stages of all cuts agree.
    """
    weight_of: dict[int, int] = {}
    first_leaf = len(program.inputs)
    for slot, leaf in enumerate(program.leaves):
        if slot >= first_leaf and leaf.kind in ("param", "frozen"):
            weight_of[slot] = slot
    weighed = set(weight_of)
    other_use: set[int] = set()
    uses: list[tuple[int, int, int]] = []
    steps: list[tuple[Node, range, int | None]] = []
    for index, node in enumerate(program.nodes):
        outputs = range(program.first_slots[index], program.first_slots[index + 1])
        refs = node.refs()
        weighed.update(outputs if weighed.intersection(refs) else ())
        if node.op in _SAME_WEIGHT and refs and refs[0] in weight_of:
            weight_of.update((slot, weight_of[refs[0]]) for slot in outputs)
            continue
        operands = _operands(node)
        multiplied = [slot for slot in operands if slot in weight_of]
        data = next((slot for slot in operands if slot not in weight_of), None)
        if len(multiplied) == 1 and data is not None and node.op in _PRODUCTS:
            uses.append((weight_of[multiplied[0]], data, outputs[0]))
            other_use.update(weight_of[slot] for slot in refs if slot in weight_of and slot not in operands)
        else:
            other_use.update(weight_of[slot] for slot in refs if slot in weight_of)
        steps.append((node, outputs, data if multiplied else None))
    reaches: set[int] = set()
    for node, outputs, data in reversed(steps):
        if not reaches.isdisjoint(outputs):
            reaches.update(node.refs())
        if data is not None:
            reaches.add(data)
    inside = {weight for weight, data, _ in uses if data in weighed}
    followed = {weight for weight, _, output in uses if output in reaches}
    return frozenset(
        leaf.name
        for slot, leaf in enumerate(program.leaves)
        if leaf.kind == "param"
        and len(leaf.shape) == 2
        and min(leaf.shape) > 1
        and slot in (inside & followed) - other_use
    )


def _operands(node: Node) -> tuple[int, ...]:
    """Slots of the two things that a product or convolution multiplies; none for other operations."""
    places = _PRODUCTS.get(node.op) or _CONVOLUTIONS.get(node.op) or ()
    values = [node.args[place] for place in places if place < len(node.args)]
    return tuple(value.slot for value in values if isinstance(value, Ref))
