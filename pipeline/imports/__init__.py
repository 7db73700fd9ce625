"""Features that others made -> this project's feature file (`pipeline-import`; docs/importing-features.md).

A file is opened as a tree of plain containers with arrays as leaves (`files`, `hdf5`, `vectors`, `unpickle`); layouts
that are published are found in it (`published`), or arrays with lengths and masks are cut into utterances (`cutting`);
what is found is matched with a table of utterances (`matching`), checked and written (`values`, `stage`).
"""
