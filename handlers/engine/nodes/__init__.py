"""The nodes, by family. `NODES` is the whole of what the engine can run."""

from handlers.engine.nodes import adjust, combine, create, filters, load, save, transform
from handlers.engine.schema import Node

NODES: dict[str, Node] = {
    node.name: node
    for family in (create, load, transform, combine, adjust, filters, save)
    for node in family.NODES
}
