"""Hypothesis strategies for everything the format can hold."""

from __future__ import annotations

from hypothesis import strategies as st

from cowengine import format as f

u64 = st.integers(0, 2**64 - 1)
u63 = st.integers(0, 2**63 - 1)
uuids = st.binary(min_size=16, max_size=16)
epochs = st.integers(1, f.EPOCH_MAX)
ids = st.integers(0, f.ID_MAX)
slots = st.integers(2, f.SLOT_MASK)
sizes = st.integers(1, f.SIZE_MAX // 512).map(lambda n: n * 512)
names = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60)
reasons = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=16)
node_pointers = st.builds(
    f.Pointer, st.just(f.POINTER_NODE), slots, st.integers(0, 6), st.integers(0, f.EPOCH_MAX), u64
)
hole_pointers = st.builds(f.hole, st.integers(0, 6), st.integers(0, f.EPOCH_MAX))
run_pointers = st.builds(f.Pointer, st.just(f.POINTER_RUN), slots, st.integers(0, 6), epochs, st.just(0))
pointers = node_pointers | hole_pointers | run_pointers
indexes_of_names = st.fixed_dictionaries({
    "name_root": node_pointers.map(lambda pointer: pointer._replace(birth=0)),
    "name_buckets": st.integers(1, 2**20), "name_entries": u64, "linear": st.booleans(),
})  # fmt: skip


@st.composite
def superblocks(draw):
    base_sequence = draw(st.integers(0, 2**40))
    tip_sequence = base_sequence + draw(st.integers(0, 2**20))
    block_shift = draw(st.integers(12, 20))
    log_shift = draw(st.sampled_from(f.LOG_SHIFTS))
    log_slots = draw(st.integers(4, 64))
    regions, block, slot = [], 0, 2 + log_slots
    for _ in range(draw(st.integers(1, f.REGIONS_MAX))):
        block += draw(st.integers(0, 5))
        slot += draw(st.integers(0, 5))
        count = draw(st.integers(1, 2**24))
        regions.append(f.Region(block, slot, count))
        block += count
        slot += count << (block_shift - 12)
    sealed = draw(st.booleans())
    index = draw(st.just({}) | indexes_of_names)
    return f.Superblock(
        block_shift=block_shift,
        log_shift=log_shift,
        volume_uuid=draw(uuids),
        log_first=2,
        log_slots=log_slots,
        regions=tuple(regions),
        generation=draw(st.integers(1, 2**63 - 1)),
        salt=draw(u64),
        created_ns=draw(u64),
        clean=draw(st.booleans()),
        needs_store=draw(st.booleans()),
        features_incompatible=(f.FEATURE_SEALS if sealed else 0) | draw(st.sampled_from([0, f.FEATURE_HEADS])),
        features_read_only_compatible=draw(u64),
        features_compatible=draw(u64),
        store_uuid=draw(uuids),
        base_sequence=base_sequence,
        base_checksum=draw(u64) if base_sequence else 0,
        base_offset=draw(st.integers(0, log_slots * 4096 >> log_shift)) << log_shift,
        tip_sequence=tip_sequence,
        tip_checksum=draw(u64) if tip_sequence else 0,
        epoch=draw(epochs),
        next_id=draw(st.integers(1, f.NAMED_IDS_MAX if index else f.ID_MAX + 1)),
        store_sequence=draw(u64),
        lineage_root=draw(node_pointers)._replace(birth=0),
        free_map_root=draw(node_pointers | hole_pointers)._replace(birth=0),
        clock_ns=draw(u63),
        clock_boot_ns=draw(u63),
        clock_boot_id=draw(uuids),
        sealed_below=draw(st.integers(0, 1)),
        seal_root=draw(node_pointers | hole_pointers)._replace(birth=0) if sealed else f.HOLE,
        **index,
        when_full=draw(st.integers(0, 1)),
        keep_newest=draw(u64),
        snapshot_bytes_max=draw(u64),
        given_up_count=draw(st.integers(50, 2**63 - 1)),
        given_up=f.newest_losses(draw(st.lists(st.builds(f.Loss, u64, u64, u64, u64, names), max_size=30))),
    )


@st.composite
def lineage_records(draw):
    kind = draw(st.sampled_from([f.LINEAGE_HEAD, f.LINEAGE_SNAPSHOT]))
    epoch = draw(epochs)
    metadata_bytes = draw(st.integers(0, f.METADATA_BYTES_MAX))
    reason = draw(reasons | st.just(""))
    flags = draw(st.integers(0, 7) | st.sampled_from([18, 19, 22, 23]))
    sealed = kind == f.LINEAGE_SNAPSHOT and draw(st.booleans())
    is_head = kind == f.LINEAGE_HEAD
    id_ = draw(ids)
    number = draw(st.integers(1, f.HEADS_MAX - 1)) if is_head and id_ else 0
    if not id_:
        kind, is_head, sealed = f.LINEAGE_HEAD, True, False
    return f.LineageRecord(
        kind=kind,
        id=id_,
        number=number,
        next_head=draw(ids) if is_head else 0,
        origin=draw(ids) if is_head else 0,
        name=draw(names),
        epoch=epoch,
        size=draw(sizes),
        flags=flags | (f.LINEAGE_HELD if reason else 0) | (f.LINEAGE_SEALED if sealed else 0),
        hold_reason=reason,
        parent=draw(ids | st.just(f.NONE_ID)),
        frozen=draw(st.integers(0, epoch - 1)) if is_head else 0,
        created_ns=draw(u64),
        tag=draw(u64),
        root=f.hole(draw(st.integers(0, 6))) if flags & f.LINEAGE_EMPTY else draw(pointers),
        cursor=draw(u64),
        set_id=draw(uuids),
        retain_until_ns=draw(u63),
        metadata_bytes=metadata_bytes,
        metadata_slot=draw(slots) if metadata_bytes else 0,
        metadata_checksum=draw(u64) if metadata_bytes else 0,
    )


before = st.booleans()
heads = st.integers(0, f.HEADS_MAX - 1)
clones = st.integers(1, f.HEADS_MAX - 1)
event_epochs = st.integers(1, f.EPOCH_MAX - 1)
snapshot_events = st.builds(
    f.SnapshotEvent,
    st.integers(1, f.ID_MAX), event_epochs, u64, u64, names, uuids, st.sampled_from([0, f.LINEAGE_AUTOMATIC]),
    st.binary(max_size=f.METADATA_BYTES_MAX), before, heads,
)  # fmt: skip
events = st.one_of(
    snapshot_events,
    st.builds(f.DeleteEvent, ids, before),
    st.builds(f.ReclaimEvent, ids, u64, before),
    st.builds(f.ReclaimedEvent, ids, before),
    st.builds(f.RollbackEvent, heads, ids, event_epochs, sizes, before),
    st.builds(f.StoreEvent, u64, before),
    st.builds(f.PolicyEvent, st.integers(0, 1), u64, u64, before),
    st.builds(f.GiveUpEvent, ids, u64, before),
    st.builds(f.ResizeEvent, heads, sizes, event_epochs, before),
    st.builds(f.RegionEvent, ids, slots, ids, before),
    st.builds(f.HoldEvent, ids, reasons | st.just(""), before),
    st.builds(f.RetainEvent, ids, u63, u63, u63, st.binary(min_size=16, max_size=16), before),
    st.builds(f.AnchorEvent, ids, before),
    st.builds(f.CloneEvent, clones, st.integers(1, f.ID_MAX), ids, event_epochs, u64, names, before),
    st.builds(f.DeleteHeadEvent, clones, event_epochs, before),
)  # fmt: skip


@st.composite
def records(draw):
    drawn = draw(st.lists(events, max_size=3))
    epoch = draw(st.integers(max([getattr(event, "epoch", 0) for event in drawn], default=0) + 1, f.EPOCH_MAX))
    ends = [event.epoch for event in drawn if isinstance(event, f.SnapshotEvent) and not event.before]
    born_max = min([epoch, *ends])
    births = st.integers(1, born_max)
    counts = st.integers(1, 2**20)
    blocks = st.integers(0, 2**40)
    mapped = st.builds(f.encode_delta, blocks, counts, st.just(f.ENTRY_MAPPED), st.integers(2, 2**40), births, heads)
    holes = st.builds(
        f.encode_delta, blocks, counts, st.just(f.ENTRY_HOLE), st.just(0), st.integers(0, born_max), heads
    )
    runs = st.lists(st.tuples(st.integers(2, 2**40), counts), max_size=4)
    return f.Record(
        salt=draw(u64),
        sequence=draw(u64),
        generation=draw(u64),
        previous=draw(u64),
        epoch=epoch,
        time_ns=draw(u64),
        size=draw(sizes),
        one_barrier=draw(st.booleans()),
        deltas=b"".join(draw(st.lists(mapped | holes, max_size=5))),
        freed=draw(runs),
        freed_nodes=draw(runs),
        checks=draw(st.lists(st.tuples(slots, u64), max_size=4)),
        events=drawn,
    )
