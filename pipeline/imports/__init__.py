"""Features that others made -> this project's feature file (`pipeline-import`; docs/importing-features.md).

A file is opened as a tree of plain containers with arrays as leaves (`files`, `formats`, `unpickle`); how
features lie in it is settled (`layout`), in pickles as others publish them (`pickles`) or in arrays with lengths and
masks that are cut into utterances (`entries`); what is found is matched with a table of utterances (`matching`),
checked and written (`values`, `stage`).
"""

from typing import TYPE_CHECKING

from pipeline.settings import door

if TYPE_CHECKING:
    from pipeline.imports.layout import given_parts
    from pipeline.imports.stage import import_features
else:
    __getattr__ = door(__name__, __file__)
