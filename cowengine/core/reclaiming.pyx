"""Finding what only a deleted snapshot holds: a step at a call, for the open batch (docs/invariants.md I13).

Threads   The engine's commit lock is held, so that nobody else takes the batch.
"""

from libc.stdint cimport uint64_t

from cowengine.core.blockmap cimport unshared_t
from cowengine.core.datapath cimport DataPath
from cowengine.core.radix cimport STATUS_STOPPED, run_t, runs_clear, runs_t
from cowengine.core.roots cimport Head, Root
from cowengine.core.status cimport check_status


def reclaim(
    DataPath path not None, Root dead not None, Root kept, uint64_t before_epoch, uint64_t cursor, uint64_t budget,
    uint64_t parts=1, size_t runs=1 << 16,
):
    """One step of giving back what only `dead` holds; `kept` is what stands on it, a snapshot or a head, if any.

    It has up to `parts` parts of `budget` leaves, between which the mutex is given up, and frees about `runs` runs at
    most; it ends early where more than twice `budget` nodes had to be read. What a part frees and the move of the
    cursor are of one moment, and so is the last part with the batch that is taken then (I13): all of it is in that.
    Returns (cursor, whether it is at the end, the batch as `take_batch` gives it, without roots).
    """
    cdef unshared_t found
    cdef Head head = kept if isinstance(kept, Head) else None
    cdef bint is_kept = kept is not None, is_head = head is not None
    cdef size_t nodes
    cdef int status
    found.before_epoch, found.position, found.end = before_epoch, cursor, ~<uint64_t>0
    found.freed, found.freed_nodes = &path.batch.freed, &path.batch.freed_nodes
    with nogil:
        path.mutex.acquire_nogil()
        nodes, runs = path.map.node_count, runs + path.batch.freed.count
        status = path.state
        while status == 0:
            found.budget = budget
            found.freed_max = min(runs, path.batch.runs_max(32 * sizeof(run_t)))
            status = path.map.unshared(&dead.link, &kept.link if is_kept else NULL, 0, &found)
            if is_head:
                head.holder.cursor = found.position
            parts -= 1
            if status != STATUS_STOPPED or parts == 0 or (
                    path.batch.freed.count >= found.freed_max or path.map.node_count > nodes + 2 * budget):
                break
            path.mutex.release()    # what is written meanwhile goes into the same batch
            _yield()
            path.mutex.acquire_nogil()
            status = 0
    if status != 0 and status != STATUS_STOPPED:
        path.mutex.release()
        check_status(status, path.map)
    batch = path.take([])
    path.mutex.release()
    return found.position, status == 0, batch


def replay_reclaim(
    DataPath path not None, Root dead not None, Root kept, uint64_t before_epoch, uint64_t cursor, uint64_t end,
):
    """A step of `reclaim` that moved the cursor to `end`, as a record says: its nodes that have no slot yet are noted
    (RT5). What it freed, the record says.
    """
    cdef unshared_t found
    cdef runs_t freed, freed_nodes
    cdef int status
    freed.items, freed.count, freed.room = NULL, 0, 0
    freed_nodes.items, freed_nodes.count, freed_nodes.room = NULL, 0, 0
    found.before_epoch, found.position, found.end = before_epoch, cursor, end
    found.budget = found.freed_max = ~<size_t>0
    found.freed, found.freed_nodes = &freed, &freed_nodes
    path.mutex.acquire()
    with nogil:
        status = path.map.unshared(&dead.link, NULL if kept is None else &kept.link, 0, &found)
    path.mutex.release()
    runs_clear(&freed)
    runs_clear(&freed_nodes)
    if status != STATUS_STOPPED:
        check_status(status, path.map)


cdef extern from "<sched.h>" nogil:
    int _yield "sched_yield" ()
