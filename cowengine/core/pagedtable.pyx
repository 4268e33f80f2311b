"""Trees whose leaves Python reads and writes: the lineage table, the index of names, and the free map at a checkpoint.

Threads   Methods take the volume's mutex; who may change a tree is the engine's to say.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from cowengine.core.mutex cimport Mutex
from cowengine.core.nodewriter cimport NodeWriter
from cowengine.core.radix cimport (
    NODE_BYTES, STATUS_STOPPED, TREE_LINEAGE, TREE_NAMES, Tree, node_t, pointer_t, sweep_t,
)
from cowengine.core.readpath cimport ReadPath
from cowengine.core.status cimport check_status


cdef enum:
    PAIRS = 256     # in a leaf


cdef class PagedTable:
    """A tree of whole leaves."""

    cdef readonly Tree tree
    cdef Mutex mutex

    def __cinit__(self, ReadPath path not None, Tree tree not None):
        self.tree, self.mutex = tree, path.mutex

    @property
    def pointer(self):
        """The root's pointer as 32 bytes."""
        return (<const char *>&self.tree.root.pointer)[:sizeof(pointer_t)]

    @pointer.setter
    def pointer(self, bytes raw not None):
        cdef const char *data = raw
        memcpy(&self.tree.root.pointer, data, sizeof(pointer_t))

    def read(self, uint64_t key):
        """The 4,096 bytes of the leaf that holds a key, or None."""
        cdef node_t *leaf = NULL
        cdef bytes result = None
        self.mutex.acquire()
        cdef int status = self.tree.leaf(&self.tree.root, key, &leaf)
        if status == 0 and leaf != NULL:
            result = (<const char *>leaf.words)[:NODE_BYTES]
        self.mutex.release()
        check_status(status, self.tree)
        return result

    def lacks(self, uint64_t key, uint64_t wanted):
        """Whether certainly no leaf has a pair of numbers that begins with `wanted`, of those that a bucket has whose
        first leaf holds a key: there is none, or its pairs stand at its front, end before its end, and it is not there.

        False, too, if that leaf cannot be read: who looks closer says why.
        """
        cdef node_t *leaf = NULL
        cdef bint lacks = False
        cdef int i = 0
        self.mutex.acquire()
        if self.tree.leaf(&self.tree.root, key, &leaf) == 0:
            if leaf == NULL:
                lacks = True
            else:
                while i < PAIRS and leaf.words[2 * i] != 0 and leaf.words[2 * i] != wanted:
                    i += 1
                lacks = i < PAIRS and leaf.words[2 * i] == 0
        self.mutex.release()
        return lacks

    def next(self, uint64_t key):
        """The first key of the first leaf there is at or behind a key, or None."""
        self.mutex.acquire()
        cdef int status = self.tree.next_leaf(&self.tree.root, &key)
        self.mutex.release()
        if status == STATUS_STOPPED:
            return None
        check_status(status, self.tree)
        return key

    def write(self, uint64_t key, uint64_t offset, bytes data not None):
        """Changes bytes of the leaf that holds a key."""
        cdef node_t *leaf = NULL
        cdef const char *raw = data
        if offset + len(data) > NODE_BYTES:
            raise ValueError("beyond the leaf")
        self.mutex.acquire()
        cdef int status = self.tree.leaf_for_change(key, &leaf)
        if status == 0:
            memcpy(<char *>leaf.words + offset, raw, len(data))
        self.mutex.release()
        check_status(status, self.tree)

    def unload(self):
        """Drops all clean nodes from memory. The commit lock is held."""
        cdef sweep_t sweep
        cdef bint more = True
        sweep.position = 0
        while more:
            self.mutex.acquire()
            more = self.tree.forget_some(&self.tree.root, &sweep, 0)
            self.mutex.release()

    def take_superseded(self):
        """Slots of nodes that the next checkpoint no longer needs, as [(slot, count)]."""
        cdef size_t i
        self.mutex.acquire()
        runs = [(self.tree.superseded.items[i].slot, self.tree.superseded.items[i].count)
                for i in range(self.tree.superseded.count)]
        self.tree.superseded.count = 0
        self.mutex.release()
        return runs

    def nodes(self):
        """How many nodes are in memory."""
        return self.tree.node_count

    def dirty_nodes(self):
        """How many nodes a checkpoint would write now."""
        return self.tree.dirty_count

    def flush(self, list runs not None):
        """Writes all dirty nodes into slots of `runs`; returns the runs left over. Not durable."""
        cdef NodeWriter writer = NodeWriter(self.tree, self.mutex, runs)
        cdef int status
        self.mutex.acquire()
        status = writer.add(&self.tree.root)
        self.tree.stamp += 1
        self.mutex.release()
        return writer.finish(status)


def lineage_table(ReadPath path not None, uint64_t fold):
    """An empty lineage table of a volume."""
    return PagedTable(path, Tree(path.io, path.fd, TREE_LINEAGE, fold, 3, 1, <uint64_t>1 << 47))


def name_table(ReadPath path not None, uint64_t fold):
    """An empty index of names of a volume."""
    return PagedTable(path, Tree(path.io, path.fd, TREE_NAMES, fold, 8, 1, <uint64_t>1 << 47))
