"""The asyncio side of the library: `fluxlog.Producer`, `fluxlog.Consumer` and `fluxlog.Admin` live here.

connection  channels, one per node, and calls that fail over     metadata    topics and where their leaders are
producer    records to batches to acknowledgements               consumer    committed records, in order
admin       topics, nodes, groups                                membership  of a consumer group
"""
