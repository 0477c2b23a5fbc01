"""Client library of fluxd.

    fluxlog.client   the way to a cluster, with fail-over      fluxlog.admin    topics, nodes, cluster
    fluxlog.sender   idempotent, pipelined writes              fluxlog.reader   committed records, through failovers
    fluxlog.offsets  begin, end, offset at a time              fluxlog.errors   reasons and outcomes
    fluxlog.batch    RecordBatch, column by column             fluxlog.v1       the generated stubs
    fluxlog.checker  judges what clients saw of a cluster under faults

Synchronous, small, and used by fluxctl for all that it does. Nothing is imported here, so that the stubs can be used
without the rest.
"""
